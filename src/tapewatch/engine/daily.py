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
from tapewatch.engine.daily_metrics import DAILY_METRICS, MARKET
from tapewatch.engine.daily_studies import Past
from tapewatch.engine.splits import SplitSpec, price_factors
from tapewatch.errors import Invalid

FIRST_DAY, LAST_DAY = 7_305, 47_482
"""1990 to 2100: what a stored day may be."""
HIGHEST_PRICE = 1e7
HISTORY_DAYS = 450
"""Of the calendar, and so some 305 trading days: what `DAILY_METRICS` look back to, and room for days without a bar."""
_SYMBOLS_AT_ONCE = 256
"""Their matrices fit into the processor's cache."""

DAILY_FACTS = tuple(DAILY_METRICS)
"""The rows of `daily_facts`, which leaves those of the listing to its caller."""


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
    market: DailyBars | None = None,
) -> F64:
    """`DAILY_FACTS` of each of `bars.symbols`, as of 04:00 of `today` and in its shares; shape (facts, symbols).

    `days`, shape (d,), are the trading days before `today`, ascending, the last the previous one; `HISTORY_DAYS` of the
    calendar are enough for every figure. `full` says which were not cut short, `covered` of which the history is there.
    `halted`, shape (d, symbols), says which days of a symbol were no normal trading. `market` holds the bars of
    `MARKET`; without it they are looked for in `bars`.

    Formulas and warm-ups are those of `DAILY_METRICS`. Where a day that a figure needs is not covered, or the symbol is
    too young for it, it is NaN; figures of the listing always are. In mean volumes a day without a bar counts as none;
    halted days are left out, and of a symbol that was halted on more than half of the days the mean is NaN.
    """
    count = len(bars.symbols)
    facts = np.full((len(DAILY_FACTS), count), np.nan)
    if not len(days):
        return facts
    rows = _Rows(bars, splits=splits, today=today, days=days)
    index = _closes_of_market(bars if market is None else market, splits=splits, today=today, days=days)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        for first in range(0, count, _SYMBOLS_AT_ONCE):
            stop = min(first + _SYMBOLS_AT_ONCE, count)
            past = Past(
                today=today,
                days=days,
                full=full,
                covered=covered,
                normal=np.ones((len(days), stop - first), np.bool_) if halted is None else ~halted[:, first:stop],
                market=index,
                **rows.columns(first, stop),
            )
            for row, metric in enumerate(DAILY_METRICS.values()):
                facts[row, first:stop] = metric.compute(past)
    return facts


def _closes_of_market(bars: DailyBars, *, splits: Sequence[SplitSpec], today: int, days: I32) -> F64:
    """Shape (days,)."""
    if MARKET not in bars.symbols:
        return np.full(len(days), np.nan)
    place = bars.symbols.index(MARKET)
    rows = _Rows(bars.take(bars.symbol == place), splits=splits, today=today, days=days)
    return rows.columns(place, place + 1)["close"][:, 0]


class _Rows:
    """Bars of trading days by symbol, in today's shares."""

    def __init__(self, bars: DailyBars, *, splits: Sequence[SplitSpec], today: int, days: I32) -> None:
        place = np.minimum(np.searchsorted(days, bars.day), len(days) - 1)
        on = np.flatnonzero(days[place] == bars.day)
        if np.any(np.diff(bars.symbol[on]) < 0):
            on = on[np.argsort(bars.symbol[on], kind="stable")]
        self._days, self._day, self._symbol = len(days), place[on], bars.symbol[on]
        self._values = {name: getattr(bars, name)[on] for name in DAILY_COLUMNS[2:]}
        split = {split.symbol for split in splits}
        concerned = np.flatnonzero(np.array([name in split for name in bars.symbols], np.bool_)[self._symbol])
        if len(concerned):
            day = bars.day[on[concerned]]
            factor = price_factors(bars.symbols, self._symbol[concerned], day, splits, today=today)
            for name, values in self._values.items():
                was = values[concerned]
                values[concerned] = was / factor if name == "volume" else was * factor

    def columns(self, first: int, stop: int) -> dict[str, F64]:
        """Of these symbols as matrices, shape (days, symbols); NaN where there is no bar."""
        rows = slice(*np.searchsorted(self._symbol, (first, stop)).tolist())
        cell = self._day[rows] * (stop - first) + self._symbol[rows] - first
        columns = {}
        for name, values in self._values.items():
            matrix = np.full((self._days, stop - first), np.nan)
            matrix.reshape(-1)[cell] = values[rows]
            columns[name] = matrix
        return columns
