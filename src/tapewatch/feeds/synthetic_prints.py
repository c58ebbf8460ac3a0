"""How single prints of the synthetic market look: venue, size, price on the grid, sale conditions, lateness.

Owns the lookup tables these are drawn from, and the layout of rows before they are cut into batches. It never moves a
market price and never decides who trades when.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from tapewatch.engine.columns import F64, I32, I64, SECOND_NS, U8, U16, Bool, Kind
from tapewatch.feeds.synthetic_listing import Listing, on_grid

SIZE_DRAWS = 1 << 14
"""Draws in each size table; a print takes one by 14 random bits."""
VENUE_DRAWS = 1 << 12
"""Draws in each tape's venue table; a print takes one by 12 random bits."""

FLAG_F, FLAG_T, FLAG_I = 1, 2, 4
"""Bits of a condition code below 8: intermarket sweep, Form T, odd lot."""
_CODES = (
    *("", "F", "T", "FT", "I", "FI", "TI", "FTI"),
    *("4", "4I", "4B", "4BI", "B", "BI", "7V", "7VI", "Z", "ZI", "U", "UI"),
    *("O", "Q", "M", "6", "5"),
)
CODES_PER_TAPE = len(_CODES)
CODE = {letters: code for code, letters in enumerate(_CODES)}
"""Condition code by letters, in the spelling of tapes A and B. The odd-lot form of a code is the next one."""
CONDITIONS = (
    "",
    *(" " + letters for letters in _CODES),
    # Average price is W on tape C, where B means bunched.
    *("@" + letters.replace("B", "W") for letters in _CODES),
)
"""The dictionary of every batch: a row's condition is 1 + code, and CODES_PER_TAPE more on tape C."""

# Shares of the off-exchange and lit venues, roughly those of the consolidated tape of the 2020s. Nasdaq prints as T on
# tapes A and B and as Q on tape C.
_VENUES = (
    {"D": 40, "N": 14, "T": 11, "P": 8, "K": 6, "Z": 6, "U": 4, "V": 3, "Y": 2.5, "B": 1.5, "J": 1.5, "H": 1, "A": 1},
    {"D": 40, "P": 15, "T": 12, "K": 7, "Z": 7, "N": 4, "U": 4, "V": 3, "Y": 2.5, "B": 1.5, "J": 1.5, "H": 1, "A": 1},
    {"D": 40, "Q": 22, "P": 8, "K": 7, "Z": 6, "U": 4, "V": 3, "N": 2, "Y": 2.5, "B": 1.5, "J": 1.5, "H": 1, "X": 1},
)
OFF_EXCHANGE = ord("D")

# Chances of the rare kinds of print, in 65536ths, one after the other on sixteen random bits.
_CONTINGENT, _AVERAGE, _DERIVED, _DERIVED_AVERAGE, _LATE, _BUST, _BLOCK, _FRACTION = (
    int(edge) for edge in np.cumsum([200, 330, 130, 200, 260, 16, 30, 900])
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Columns of a `Batch` in the order of arrival, and what only the market itself knows. Shape (n,) each."""

    symbol: I32
    condition: U16
    kind: U8
    ts_ns: I64
    price: F64
    size: F64
    tape: U8
    exchange: U8
    trade_id: I64
    arrival_ns: I64
    """When the row reaches the tape; later than `ts_ns` for a late print."""
    busted: Bool
    """Whether a CANCEL row will follow."""

    def __len__(self) -> int:
        return len(self.ts_ns)

    def take(self, index: Any) -> "Rows":
        return Rows(**{name: getattr(self, name)[index] for name in _COLUMNS})


_COLUMNS = tuple(column.name for column in fields(Rows))
NO_ROWS = Rows(
    symbol=np.zeros(0, np.int32),
    condition=np.zeros(0, np.uint16),
    kind=np.zeros(0, np.uint8),
    ts_ns=np.zeros(0, np.int64),
    price=np.zeros(0),
    size=np.zeros(0),
    tape=np.zeros(0, np.uint8),
    exchange=np.zeros(0, np.uint8),
    trade_id=np.zeros(0, np.int64),
    arrival_ns=np.zeros(0, np.int64),
    busted=np.zeros(0, np.bool_),
)


def join_rows(parts: Sequence[Rows]) -> Rows:
    """All parts in order; at least one."""
    if len(parts) == 1:
        return parts[0]
    return Rows(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS})


@dataclass(frozen=True, slots=True, kw_only=True)
class PrintTables:
    """What single prints are drawn from, by random bits."""

    venue: U8
    """Shape (3 * VENUE_DRAWS,): participant letter, one block a tape."""
    sweep: U8
    """Shape (3 * VENUE_DRAWS,): FLAG_F where that print is an intermarket sweep, else 0."""
    size: F64
    """Shape (3 * SIZE_DRAWS,): shares, one block a price class (under $5, ordinary, over $150)."""
    side: F64
    """Shape (64,): where between bid (-1) and ask (+1) a print falls."""


class Printer:
    """Makes rows of symbols, times and market prices."""

    def __init__(self, listing: Listing, *, seed: int) -> None:
        self._listing = listing
        self._tables = make_print_tables(seed=seed)
        self._size_row = (np.searchsorted([5.0, 150.0], listing.price) * SIZE_DRAWS).astype(np.int64)
        self._venue_row = listing.tape_index.astype(np.int64) * VENUE_DRAWS
        self._code_base = np.where(listing.tape_index == 2, 1 + CODES_PER_TAPE, 1)

    def ordinary(
        self,
        symbol: I64,
        ts_ns: I64,
        price: F64,
        *,
        first_id: int,
        is_regular: bool,
        last_arrival_ns: int,
        rng: np.random.Generator,
    ) -> Rows:
        """Prints of every kind that a session brings, around the given market prices."""
        n = len(symbol)
        bits = rng.integers(0, 1 << 63, n, np.int64)
        venue_at = self._venue_row[symbol] + ((bits >> 14) & (VENUE_DRAWS - 1))
        exchange = self._tables.venue[venue_at]
        code = self._tables.sweep[venue_at]
        size = self._tables.size[self._size_row[symbol] + (bits & (SIZE_DRAWS - 1))]
        rare = (bits >> 32) & 0xFFFF
        unusual = np.flatnonzero(rare < _FRACTION)
        which = rare[unusual]

        block = unusual[(which >= _BUST) & (which < _BLOCK)]
        size[block] = np.maximum(size[block], 100) * rng.integers(20, 300, len(block))
        fraction = unusual[which >= _BLOCK]
        fraction = fraction[exchange[fraction] == OFF_EXCHANGE]
        size[fraction] = size[fraction] % 20 + rng.integers(1, 10_000, len(fraction)) / 10_000
        is_odd = size < 100
        code |= is_odd.astype(np.uint8) * np.uint8(FLAG_I)
        if not is_regular:
            code |= FLAG_T

        side_at = (bits >> 26) & 63
        half_spread = np.maximum(self._listing.half_spread[symbol] * price, np.where(price < 1, 5e-5, 5e-3))
        printed = on_grid(price + self._tables.side[side_at] * half_spread)
        midpoint = np.flatnonzero((exchange == OFF_EXCHANGE) & (side_at >> 2 == 8) & (price >= 1))
        printed[midpoint] = np.rint(np.floor(price[midpoint] * 100) * 10 + 5) / 1000

        if is_regular:
            away = unusual[which < _DERIVED_AVERAGE]
            printed[away], code[away] = _go_off_market(printed[away], rare[away], is_odd[away], rng)
            exchange[away] = OFF_EXCHANGE
        arrival = ts_ns.copy()
        late = unusual[(which >= _DERIVED_AVERAGE) & (which < _LATE)]
        delay_s = 1 + rng.exponential(12.0, len(late)).clip(0, 59)
        delay_s *= np.where(rng.random(len(late)) < 0.04, 10.0, 1.0)
        arrival[late] = np.minimum(ts_ns[late] + (delay_s * SECOND_NS).astype(np.int64), last_arrival_ns)
        exchange[late] = OFF_EXCHANGE
        code[late] &= ~np.uint8(FLAG_F)
        sold = late[rng.random(len(late)) < 0.5]
        code[sold] = CODE["Z" if is_regular else "U"] + is_odd[sold]
        busted = np.zeros(n, np.bool_)
        busted[unusual[(which >= _LATE) & (which < _BUST)]] = True
        return self._rows(
            symbol,
            ts_ns,
            price=printed,
            size=size,
            code=code,
            exchange=exchange,
            first_id=first_id,
            arrival_ns=arrival,
            busted=busted,
        )

    def special(self, symbol: I64, ts_ns: I64, price: F64, size: F64, letters: str, *, first_id: int) -> Rows:
        """Auction and official prints of the listing market, at these very prices."""
        code = np.full(len(symbol), CODE[letters], np.uint8)
        venue = self._listing.venue[symbol]
        return self._rows(symbol, ts_ns, price=on_grid(price), size=size, code=code, exchange=venue, first_id=first_id)

    def facts(self, symbol: I64, kind: Kind, ts_ns: int, *, price: F64 | float = 0.0) -> Rows:
        """Rows that are no trades: no sale condition, no size, no id."""
        n = len(symbol)
        ts = np.full(n, ts_ns, np.int64)
        return Rows(
            symbol=symbol.astype(np.int32),
            condition=np.zeros(n, np.uint16),
            kind=np.full(n, kind, np.uint8),
            ts_ns=ts,
            price=np.broadcast_to(np.float64(price), n).copy(),
            size=np.zeros(n),
            tape=self._listing.tape[symbol],
            exchange=self._listing.venue[symbol],
            trade_id=np.zeros(n, np.int64),
            arrival_ns=ts,
            busted=np.zeros(n, np.bool_),
        )

    def cancels(self, rows: Rows, *, last_arrival_ns: int, rng: np.random.Generator) -> Rows:
        """The CANCEL rows of the busted trades among `rows`, seconds later."""
        doomed = rows.take(np.flatnonzero(rows.busted))
        delay_s = 1 + rng.exponential(8.0, len(doomed))
        ts = np.minimum(doomed.ts_ns + (delay_s * SECOND_NS).astype(np.int64), last_arrival_ns)
        return replace(
            doomed,
            kind=np.full(len(doomed), Kind.CANCEL, np.uint8),
            ts_ns=ts,
            arrival_ns=ts,
            busted=np.zeros(len(doomed), np.bool_),
        )

    def _rows(
        self,
        symbol: I64,
        ts_ns: I64,
        *,
        price: F64,
        size: F64,
        code: U8,
        exchange: U8,
        first_id: int,
        arrival_ns: I64 | None = None,
        busted: Bool | None = None,
    ) -> Rows:
        n = len(symbol)
        return Rows(
            symbol=symbol.astype(np.int32),
            condition=(self._code_base[symbol] + code).astype(np.uint16),
            kind=np.zeros(n, np.uint8),
            ts_ns=ts_ns,
            price=price,
            size=size,
            tape=self._listing.tape[symbol],
            exchange=exchange,
            trade_id=np.arange(first_id, first_id + n),
            arrival_ns=ts_ns if arrival_ns is None else arrival_ns,
            busted=np.zeros(n, np.bool_) if busted is None else busted,
        )


def make_print_tables(*, seed: int) -> PrintTables:
    rng = np.random.default_rng([seed, 0x7AB])
    venues, sweeps = [], []
    for shares in _VENUES:
        weights = np.array(list(shares.values()), np.float64)
        letters = np.frombuffer("".join(shares).encode(), np.uint8)
        venue = letters[rng.choice(len(letters), VENUE_DRAWS, p=weights / weights.sum())]
        venues.append(venue)
        sweeps.append(np.where((venue != OFF_EXCHANGE) & (rng.random(VENUE_DRAWS) < 0.55), FLAG_F, 0).astype(np.uint8))
    return PrintTables(
        venue=np.concatenate(venues),
        sweep=np.concatenate(sweeps),
        size=np.concatenate([_make_sizes(rng, odd_share) for odd_share in (0.25, 0.46, 0.68)]),
        side=np.repeat([-1.0, -0.5, 0.0, 0.5, 1.0], (24, 6, 4, 6, 24)),
    )


def _go_off_market(price: F64, which: I64, is_odd: Bool, rng: np.random.Generator) -> tuple[F64, U8]:
    """Prices and codes of contingent, average and derivatively priced prints: agreed on elsewhere, or earlier."""
    kind = np.searchsorted((_CONTINGENT, _AVERAGE, _DERIVED), which, side="right")
    shift = np.array([0.016, 0.006, 0.0015, 0.006])[kind] * rng.standard_normal(len(price))
    moved = price * (1 + shift.clip(-0.06, 0.06))
    # Averages come in hundredths of a cent, contingent legs in cents.
    moved = np.where(kind == 0, on_grid(moved), np.maximum(np.rint(moved * 1e4), 1.0) / 1e4)
    codes = np.array([CODE[letters] for letters in ("7V", "B", "4", "4B")], np.uint8)
    return moved, codes[kind] + is_odd.astype(np.uint8)


def _make_sizes(rng: np.random.Generator, odd_share: float) -> F64:
    """Shares of SIZE_DRAWS prints: odd lots crowd at small and round numbers, the others at 100, with a heavy tail."""
    n = SIZE_DRAWS
    common_odd = rng.choice(
        [1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 25.0, 50.0], n, p=[0.3, 0.1, 0.05, 0.1, 0.15, 0.1, 0.1, 0.1]
    )
    odd = np.where(rng.random(n) < 0.45, common_odd, np.floor(np.exp(rng.uniform(0.0, math.log(100), n))))
    tail = 100 * np.exp(np.abs(rng.normal(0.0, 1.15, n)))
    tail = np.where(rng.random(n) < 0.6, np.rint(tail / 100) * 100, np.rint(tail))
    large = np.where(rng.random(n) < 0.6, 100.0, tail.clip(100, 50_000))
    return np.where(rng.random(n) < odd_share, odd.clip(1, 99), large)
