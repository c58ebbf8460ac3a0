"""Daily history: bars of whole days as they traded, and what the running day wants to know of the days before it.

`DailyBars` are raw: no split is applied to them, ever. `daily_facts` applies those that are known by its day. Days are
trading dates of New York, counted since 1970-01-01.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tapewatch.engine.columns import F64, I32, Bool
from tapewatch.engine.splits import SplitSpec, price_factors
from tapewatch.errors import Invalid

FIRST_DAY, LAST_DAY = 7_305, 47_482
"""1990 to 2100: what a stored day may be."""
HIGHEST_PRICE = 1e7
YEAR_DAYS = 365
_AVERAGES = (10, 20, 30)
_CLOSE_WITHIN = 5

DAILY_FACTS = (
    "close_prev_day",
    "high_prev_day",
    "low_prev_day",
    "volume_prev_day",
    *(f"avg_daily_volume_{n}d" for n in _AVERAGES),
    "high_52w",
    "low_52w",
)
"""The rows of `daily_facts`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DailyBars:
    """One row a symbol and day, in any order; each column but `symbols` has shape (n,)."""

    symbols: tuple[str, ...]
    symbol: I32
    """Index into `symbols`."""
    day: I32
    open: F64
    high: F64
    low: F64
    close: F64
    volume: F64

    def __post_init__(self) -> None:
        for column in fields(self)[1:]:
            getattr(self, column.name).setflags(write=False)

    def __len__(self) -> int:
        return len(self.day)

    def take(self, index: NDArray[Any]) -> "DailyBars":
        """The rows at these positions, or where a mask says so."""
        return DailyBars(symbols=self.symbols, **{name: getattr(self, name)[index] for name in DAILY_COLUMNS})

    def by_day(self) -> Iterator["DailyBars"]:
        """The rows of one day at a time, days ascending."""
        for day in np.unique(self.day):
            yield self.take(self.day == day)

    def faults(self) -> Iterator[tuple[str, str, Bool]]:
        """Of what can be wrong: the column, the rule that it breaks, and the rows where it does."""
        yield "day", "is not a day between 1990 and 2100", (self.day < FIRST_DAY) | (self.day >= LAST_DAY)
        for name in ("open", "high", "low", "close"):
            price = getattr(self, name)
            yield name, "is not a price between 0 and 10 million", ~((price > 0) & (price <= HIGHEST_PRICE))
        yield "volume", "is not a number of shares", ~((self.volume >= 0) & np.isfinite(self.volume))
        yield "high", "is below the low", self.high < self.low

    def check(self, where: str = "daily bars", *, first_row: int = 0) -> None:
        """`Invalid` names the first row (the first of all is `first_row`) and column that break a rule."""
        worst: tuple[int, str, str] | None = None
        for name, rule, wrong in self.faults():
            if wrong.any():
                row = int(np.argmax(wrong))
                if worst is None or row < worst[0]:
                    worst = row, name, rule
        if worst is not None:
            row, name, rule = worst
            value, symbol = getattr(self, name)[row].item(), self.symbols[self.symbol[row]]
            raise Invalid(f"{where} row {first_row + row}, column {name}", f"{value!r} of {symbol} {rule}")

    def sound(self) -> "DailyBars":
        """Only the rows without a fault."""
        wrong = np.zeros(len(self), np.bool_)
        for _, _, rows in self.faults():
            wrong |= rows
        return self.take(~wrong) if wrong.any() else self


DAILY_COLUMNS = ("symbol", "day", "open", "high", "low", "close", "volume")


def make_daily_bars(symbols: Sequence[str], day: Any, **prices: Any) -> DailyBars:
    """Rows from columns of any sequence type; `symbols` names the symbol of each row."""
    names = tuple(dict.fromkeys(symbols))
    index = {name: place for place, name in enumerate(names)}
    return DailyBars(
        symbols=names,
        symbol=np.fromiter(map(index.__getitem__, symbols), np.int32, len(symbols)),
        day=np.array(day, np.int32),
        **{name: np.array(prices[name], np.float64) for name in DAILY_COLUMNS[2:]},
    )


def join_daily_bars(parts: Sequence[DailyBars]) -> DailyBars:
    """All rows, in order."""
    names: dict[str, int] = {}
    symbol = []
    for part in parts:
        codes = np.array([names.setdefault(name, len(names)) for name in part.symbols], np.int32)
        symbol.append(codes[part.symbol])
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts]) if parts else np.zeros(0)
        for name in DAILY_COLUMNS[1:]
    }
    columns["day"] = columns["day"].astype(np.int32)
    joined = np.concatenate(symbol) if symbol else np.zeros(0, np.int32)
    return DailyBars(symbols=tuple(names), symbol=joined, **columns)


def daily_facts(
    bars: DailyBars,
    *,
    splits: Sequence[SplitSpec],
    today: int,
    days: I32,
    full: Bool,
    covered: Bool,
    halted: Bool | None = None,
) -> F64:
    """`DAILY_FACTS` of each of `bars.symbols`, as of 04:00 of `today` and in its shares; shape (facts, symbols).

    `days`, shape (d,), are the trading days of the year before `today`, ascending, the last the previous one; `full`
    says which were not cut short, `covered` of which the history is there. `halted`, shape (d, symbols), says which
    days of a symbol were no normal trading. Where a day that a figure needs is not covered, the figure is NaN.

    - close_prev_day: the last close, not older than five trading days.
    - high_prev_day, low_prev_day, volume_prev_day: of the previous trading day; NaN if the symbol did not trade then.
    - avg_daily_volume_Nd: mean volume of the last N full days, a day without a bar counting as none, halted days left
      out; NaN for a symbol that is not that old, or was halted on more than half of them.
    - high_52w, low_52w: of the 365 days before `today`, or since the listing.
    """
    facts = np.full((len(DAILY_FACTS), len(bars.symbols)), np.nan)
    row_of = {name: facts[row] for row, name in enumerate(DAILY_FACTS)}
    if not len(days):
        return facts
    grid = _Grid(bars, splits=splits, today=today, days=days)
    if covered[-1]:
        for name in ("high", "low", "volume"):
            row_of[f"{name}_prev_day"][:] = grid.columns[name][-1]
        recent = grid.columns["close"][-_CLOSE_WITHIN:]
        recent = recent[len(recent) - _known_at_end(covered[-_CLOSE_WITHIN:]) :]
        for close in recent:
            row_of["close_prev_day"][:] = np.where(np.isnan(close), row_of["close_prev_day"], close)
    traded = ~np.isnan(grid.columns["close"])
    listed = np.logical_or.accumulate(traded, axis=0)
    volume = np.nan_to_num(grid.columns["volume"])
    normal = np.ones(traded.shape, np.bool_) if halted is None else ~halted
    full_days = np.flatnonzero(full)
    for n in _AVERAGES:
        window = full_days[-n:]
        if len(window) < n or not covered[window[0] :].all():
            continue
        counted = normal[window].sum(axis=0)
        known = listed[window[0]] & (counted * 2 >= n)
        total = (volume[window] * normal[window]).sum(axis=0)
        row_of[f"avg_daily_volume_{n}d"][known] = total[known] / counted[known]
    year = days >= today - YEAR_DAYS
    if covered[year].all() and days[0] <= today - YEAR_DAYS + _CLOSE_WITHIN:
        for name, extreme in (("high", np.fmax), ("low", np.fmin)):
            row_of[f"{name}_52w"][:] = extreme.reduce(grid.columns[name][year], axis=0, initial=np.nan)
    return facts


def _known_at_end(covered: Bool) -> int:
    """How many at the end are true without a hole."""
    holes = np.flatnonzero(~covered)
    return len(covered) - (int(holes[-1]) + 1 if len(holes) else 0)


class _Grid:
    """Columns of bars as matrices, shape (days, symbols), in today's shares; NaN where there is no bar."""

    def __init__(self, bars: DailyBars, *, splits: Sequence[SplitSpec], today: int, days: I32) -> None:
        place = np.minimum(np.searchsorted(days, bars.day), len(days) - 1)
        on = np.flatnonzero(days[place] == bars.day)
        row, symbol = place[on], bars.symbol[on]
        factor = price_factors(bars.symbols, symbol, bars.day[on], splits, today=today)
        self.columns: dict[str, F64] = {}
        for name in ("high", "low", "close", "volume"):
            values = getattr(bars, name)[on]
            matrix = np.full((len(days), len(bars.symbols)), np.nan)
            matrix[row, symbol] = values / factor if name == "volume" else values * factor
            self.columns[name] = matrix
