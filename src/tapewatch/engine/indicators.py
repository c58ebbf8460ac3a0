"""Indicators over a symbol's closed one-minute bars, in order, across sessions and days.

RSI, EMA, SMA and ATR are those of `studies`.

The rolling VWAPs sum over clock minutes: the n minutes that end with the bar's own. The session's VWAP starts anew with
each pre-market, regular and post-market session; the day's at 04:00 New York.

A revised bar re-runs its symbol from the state before that bar, as far back as bars can be revised. A bar that comes
again, or after a later revision of it, changes nothing: who resumes may publish some bars twice.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tapewatch.engine.averages import AVERAGE_CARRIED, FOLLOWS
from tapewatch.engine.calendar import TradingDays
from tapewatch.engine.columns import F64, I32, I64, MINUTE_NS, Bars, Bool
from tapewatch.engine.frozen import Carried, Frozen, Whitelist, freeze
from tapewatch.engine.series import COLUMNS, SERIES_CARRIED, Series, View
from tapewatch.engine.studies import STUDIES
from tapewatch.engine.symbols import SYMBOL_CARRIED, Index, SymbolTable
from tapewatch.errors import Invalid

EMA_SPANS = (20, 50, 200)
SMA_SPANS = (20, 50, 200)
VWAP_MINUTES = {"vwap_5m": 5, "vwap_15m": 15, "vwap_1h": 60}
RECURSIVE = (
    "rsi_14_1m",
    *(f"ema_{n}_1m" for n in EMA_SPANS),
    *(f"sma_{n}_1m" for n in SMA_SPANS),
    "atr_14_1m",
)
INDICATORS = (*RECURSIVE, *VWAP_MINUTES, "vwap_session", "vwap_day")
_STUDIES = {name: STUDIES[name.removesuffix("_1m")] for name in RECURSIVE}


class Recursive(Series):
    """RSI, EMA, SMA and ATR of all symbols; arrays are indexed by the caller's symbol indices."""

    _REACH = 32
    """Bars that a revision can re-run."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity, columns=COLUMNS[:3], depth=self._REACH + 2, reach=self._REACH)
        self.run(study.part for study in _STUDIES.values() if study.part is not None)

    def values(self, name: str, symbol: Index | slice) -> F64:
        """One of `RECURSIVE` for these symbols; NaN while warming."""
        return _STUDIES[name].of(View(self, symbol))


class RollingVwap:
    """VWAP over clock minutes, the session and the day, at each closed bar."""

    _RING = 64

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._value = np.full((self._RING, capacity), 0.0)  # all pages at once: memory is the same in an hour
        self._weight = np.full((self._RING, capacity), 0.0)
        self._minute = np.full(self._RING, -1)
        self._since = {"vwap_session": (-1, np.zeros((2, capacity))), "vwap_day": (-1, np.zeros((2, capacity)))}

    def resize(self, capacity: int) -> None:
        grown = RollingVwap(capacity)
        grown._value[:, : self.capacity] = self._value
        grown._weight[:, : self.capacity] = self._weight
        grown._minute = self._minute
        for name, (start, sums) in self._since.items():
            grown._since[name][1][:, : self.capacity] = sums
            grown._since[name] = (start, grown._since[name][1])
        self.__dict__.update(grown.__dict__)

    def close(self, symbol: Index, minute: int, value: F64, weight: F64, starts: dict[str, int]) -> None:
        """Take (or replace) the sums of these symbols in `minute`; `starts` names when session and day began."""
        row = minute % self._RING
        if self._minute[row] < minute:
            self._minute[row] = minute
            self._value[row] = 0.0
            self._weight[row] = 0.0
        elif self._minute[row] > minute:
            return  # older than the ring: nothing that is still asked for depends on it
        for name, start in starts.items():
            began, sums = self._since[name]
            if start > began:
                sums = np.zeros_like(sums)
                self._since[name] = (start, sums)
            if start >= began:
                sums[0, symbol] += value - self._value[row, symbol]
                sums[1, symbol] += weight - self._weight[row, symbol]
        self._value[row, symbol] = value
        self._weight[row, symbol] = weight

    def values(self, name: str, symbol: Index, minute: int) -> F64:
        """At the bar of `minute`; NaN where nothing counts in the window."""
        if name in self._since:
            value, weight = self._since[name][1][:, symbol]
        else:
            value, weight = np.zeros(len(symbol)), np.zeros(len(symbol))
            for m in range(minute - VWAP_MINUTES[name] + 1, minute + 1):
                if self._minute[m % self._RING] == m:
                    value += self._value[m % self._RING, symbol]
                    weight += self._weight[m % self._RING, symbol]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(weight > 0, value / weight, np.nan)


class Revisions:
    """Which bars of the newest 64 minutes have come, each in its highest revision."""

    _RING = 64

    def __init__(self, capacity: int) -> None:
        self._revision = np.full((self._RING, capacity), -1)
        self._minute = np.full(self._RING, -1)

    def resize(self, capacity: int) -> None:
        grown = np.full((self._RING, capacity), -1)
        grown[:, : self._revision.shape[1]] = self._revision
        self._revision = grown

    def news(self, symbol: Index, minute: int, revision: I64) -> Bool:
        """Take bars of one minute, each symbol once: which say something new. None of an older minute than are kept."""
        row = minute % self._RING
        if self._minute[row] < minute:
            self._minute[row] = minute
            self._revision[row] = -1
        news: Bool = (revision > self._revision[row, symbol]) & (self._minute[row] == minute)
        self._revision[row, symbol[news]] = revision[news]
        return news


@dataclass(frozen=True, slots=True, kw_only=True)
class IndicatorRows:
    """All indicators at the newest bar of each of these symbols."""

    symbols: tuple[str, ...]
    symbol: I32
    ts_ns: I64
    values: F64
    """Shape (len(INDICATORS), len(symbol)); NaN while warming."""


class Indicators:
    """`update` takes closed and revised bars of one minute; symbols are those of the bars' own table."""

    def __init__(self, days: TradingDays) -> None:
        self.days = days
        self.symbols = SymbolTable()
        self.recursive = Recursive(self.symbols.capacity)
        self.vwap = RollingVwap(self.symbols.capacity)
        self.revisions = Revisions(self.symbols.capacity)
        self.unrevised = 0
        """Revisions that came too late to be re-run."""

    def freeze(self) -> bytes:
        """All that it knows; `thaw` makes one of it that goes on as this one would."""
        return freeze(self, _WHITELIST, about={}, count=len(self.symbols), capacity=self.symbols.capacity)

    @classmethod
    def thaw(cls, state: bytes, *, days: TradingDays) -> "Indicators":
        """`Invalid` for bytes that are damaged or of another engine."""
        made = Frozen(state, _WHITELIST).thaw({"days": days})
        if not isinstance(made, cls):
            raise Invalid("state", f"is not of {cls.__name__}")
        return made

    def update(self, bars: Bars) -> IndicatorRows:
        """Take these bars; they must be of one minute, each symbol once. The rows are those of the bars that say
        something new, maybe none: a bar that has come before, or in a later revision, is left out.
        """
        symbol = self.symbols.translate(bars.symbols)[bars.symbol]
        if self.symbols.capacity > self.recursive.capacity:
            self.recursive.resize(self.symbols.capacity)
            self.vwap.resize(self.symbols.capacity)
            self.revisions.resize(self.symbols.capacity)
        minute = int(bars.ts_ns[0]) // MINUTE_NS
        news = self.revisions.news(symbol, minute, bars.revision)
        if not news.all():
            rows = np.flatnonzero(news)
            bars, symbol = bars.take(rows), symbol[rows]
        if len(symbol):
            self._take(bars, symbol, minute)
        return IndicatorRows(
            symbols=bars.symbols,
            symbol=bars.symbol,
            ts_ns=bars.ts_ns,
            values=np.stack(
                [self.recursive.values(name, symbol) for name in RECURSIVE]
                + [self.vwap.values(name, symbol, minute) for name in INDICATORS[len(RECURSIVE) :]]
            ),
        )

    def _take(self, bars: Bars, symbol: Index, minute: int) -> None:
        fresh = bars.revision == 0
        if fresh.all():
            self.recursive.close(symbol, minute, bars.high, bars.low, bars.close)
        else:
            new, old = np.flatnonzero(fresh), np.flatnonzero(~fresh)
            self.recursive.close(symbol[new], minute, bars.high[new], bars.low[new], bars.close[new])
            self.unrevised += self.recursive.revise(symbol[old], minute, bars.high[old], bars.low[old], bars.close[old])
        value = np.where(bars.vwap_volume > 0, np.nan_to_num(bars.vwap) * bars.vwap_volume, 0.0)
        self.vwap.close(symbol, minute, value, bars.vwap_volume, self._starts(minute))

    def _starts(self, minute: int) -> dict[str, int]:
        at = self.days.at(minute * MINUTE_NS)
        day_start = int(self.days.pre_ns[at.day]) if at.day < len(self.days.pre_ns) else at.start_ns
        return {"vwap_session": at.start_ns, "vwap_day": day_start if at.session else at.start_ns}


def by_minute(bars: Bars) -> Iterable[Bars]:
    """Split bars wherever the minute changes; of a bar that comes twice in a piece, the last revision stays."""
    edges = np.flatnonzero(np.diff(bars.ts_ns)) + 1
    for piece in np.split(np.arange(len(bars)), edges):
        if len(piece):
            _, backwards = np.unique(bars.symbol[piece][::-1], return_index=True)
            yield bars.take(piece[np.sort(len(piece) - 1 - backwards)])


_WHITELIST = Whitelist(
    (
        Carried(Indicators, given=("days",)),
        Carried(Recursive),
        Carried(RollingVwap),
        Carried(Revisions),
        *SYMBOL_CARRIED,
        *SERIES_CARRIED,
        *AVERAGE_CARRIED,
    ),
    FOLLOWS,
)
