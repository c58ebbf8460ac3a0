"""The stocks of the synthetic market: names and habits.

Owns what is drawn once per seed and then stays: names, tapes, first prices, activity, volatility. It never holds
anything that moves with time.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tapewatch.engine.columns import F64, I64, U8, Bool

_LETTER_WEIGHTS = np.array([9, 4, 7, 5, 5, 4, 4, 4, 6, 2, 3, 6, 6, 6, 5, 6, 1, 7, 8, 7, 3, 4, 3, 3, 2, 1], np.float64)
_TEST_SYMBOLS = frozenset({"CBO", "CBX", "IBO"})

_LISTING_VENUE = "NPQ"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Every stock's habits. Columns have shape (symbols,)."""

    symbols: tuple[str, ...]
    tape_index: U8
    """0, 1, 2 for tapes A, B, C."""
    tape: U8
    venue: U8
    """Ord of the listing market's participant letter."""
    price: F64
    """Dollars at the close before the first day."""
    share: F64
    """Share of all trades in a quiet regular session; sums to 1."""
    sigma: F64
    """Standard deviation of one regular session's log return of its own."""
    beta: F64
    half_spread: F64
    """Half of the quoted spread, relative to the price; never less than half a cent in dollars when it is used."""
    band: F64
    """Log move within about five minutes at which trading is halted."""


class Alias(NamedTuple):
    """Walker's alias method: one draw from any fixed distribution in two lookups."""

    threshold: I64
    """Shape (n,): below this 32-bit number the column itself, else its alias."""
    other: I64

    def draw(self, bits: NDArray[np.uint64]) -> I64:
        """One index per 64 random bits."""
        column = ((bits >> np.uint64(32)) * np.uint64(len(self.other)) >> np.uint64(32)).astype(np.int64)
        low = (bits & np.uint64(0xFFFFFFFF)).astype(np.int64)
        return np.where(low < self.threshold[column], column, self.other[column])


def make_alias(weights: F64) -> Alias:
    n = len(weights)
    scaled = (weights * (n / weights.sum())).tolist()
    threshold = [1.0] * n
    other = list(range(n))
    small = [i for i, weight in enumerate(scaled) if weight < 1]
    large = [i for i, weight in enumerate(scaled) if weight >= 1]
    while small and large:
        less, more = small.pop(), large[-1]
        threshold[less], other[less] = scaled[less], more
        scaled[more] -= 1 - scaled[less]
        if scaled[more] < 1:
            small.append(large.pop())
    return Alias((np.array(threshold) * (1 << 32)).astype(np.int64), np.array(other, np.int64))


def make_listing(*, seed: int, symbols: int) -> Listing:
    """A market of that many stocks; the same seed and number give the same one."""
    rng = np.random.default_rng([seed, 0x115])
    tape_index = np.sort(rng.choice(3, symbols, p=(0.28, 0.27, 0.45))).astype(np.uint8)
    names = _make_names(rng, tape_index)
    order = rng.permutation(symbols)
    names, tape_index = [names[i] for i in order], tape_index[order]
    # Rank 0 trades most. With this offset the busiest 5 % have 60 % of the trades at any number of symbols.
    weight = 1.0 / (np.arange(symbols) + max(0.5, symbols / 2000))
    busy = 1.0 - np.arange(symbols) / symbols
    is_fund = tape_index == 1
    price = np.exp(3.05 + 0.5 * (busy - 0.5) + rng.normal(0.0, 1.0, symbols)).clip(0.3, 900.0)
    sigma = 0.017 * (price / 30) ** -0.28 * np.exp(0.5 * (1 - busy) + rng.normal(0.0, 0.3, symbols))
    sigma = np.where(is_fund, 0.4 * sigma, sigma).clip(0.003, 0.09)
    half_spread = (0.00015 + 0.0025 * (1 - busy) ** 4) * (1 + 20 * sigma)
    # The busiest stocks have the narrow band, the cheap ones a wide one, as in the limit-up limit-down plan.
    band = np.where(price < 3, 0.18, np.where(busy > 0.9, 0.07, 0.10))
    return Listing(
        symbols=tuple(names),
        tape_index=tape_index,
        tape=np.frombuffer(b"ABC", np.uint8)[tape_index],
        venue=np.frombuffer(_LISTING_VENUE.encode(), np.uint8)[tape_index],
        price=on_grid(price),
        share=np.asarray(weight / weight.sum(), np.float64),
        sigma=sigma,
        beta=np.where(is_fund, rng.normal(0.9, 0.3, symbols), rng.normal(1.0, 0.45, symbols)),
        half_spread=half_spread,
        band=band,
    )


def on_grid(price: F64) -> F64:
    """Whole cents from a dollar up, hundredths of a cent below; never less than one of these."""
    fine = np.rint(price * 1e4) / 1e4
    return np.where(fine >= 1.0, np.rint(price * 100) / 100, np.maximum(fine, 1e-4))


def _make_names(rng: np.random.Generator, tape_index: U8) -> list[str]:
    """Unique tickers: one to three letters on tape A, three or four on B, four or five on C, as far as they suffice."""
    lengths = np.empty(len(tape_index), np.int64)
    for tape, (choices, p) in enumerate(
        (((1, 2, 3), (0.006, 0.12, 0.874)), ((3, 4), (0.3, 0.7)), ((4, 5), (0.88, 0.12)))
    ):
        mine = tape_index == tape
        lengths[mine] = rng.choice(choices, int(mine.sum()), p=p)
    weights = _LETTER_WEIGHTS / _LETTER_WEIGHTS.sum()
    letters = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", np.uint8)
    names = np.zeros(len(lengths), "S6")
    todo: NDArray[np.intp] = np.arange(len(lengths))
    extra = 0
    while len(todo):
        drawn = letters[rng.choice(26, (len(todo), 6), p=weights)]
        # A length whose names run out makes room by growing: one more letter every third round.
        length = np.minimum(lengths[todo] + extra // 3, 6 if extra > 30 else 5)
        drawn[np.arange(6) >= length[:, None]] = 0
        names[todo] = np.ascontiguousarray(drawn).view("S6")[:, 0]
        first: Bool = np.zeros(len(names), np.bool_)
        first[np.unique(names, return_index=True)[1]] = True
        bad = ~first | np.array([_is_test_symbol(name) for name in names.astype(str).tolist()])
        todo = np.flatnonzero(bad)
        extra += 1
    return [str(name) for name in names.astype(str)]


def _is_test_symbol(name: str) -> bool:
    """Whether the exchanges use such a name, or one like it, to test their systems in production."""
    return (name.startswith("Z") and len(name) > 2) or "TEST" in name or "TST" in name or name in _TEST_SYMBOLS
