"""Indicators over a symbol's closed one-minute bars, in order, across sessions and days.

Formulas and seeds are those of TA-Lib 0.8 in its default mode:

* SMA(n): mean of the last n closes.
* EMA(n): first value is the SMA of the first n closes, then ``e += 2 / (n + 1) * (close - e)``.
* RSI(14), Wilder: first averages are the means of the first 14 gains and losses, then ``(13 * a + x) / 14``; the value
  is ``100 * gain / (gain + loss)``, and 0 when both are zero (a flat market), as TA-Lib has it.
* ATR(14), Wilder: the first bar has no true range; seed is the mean of the next 14, then ``(13 * a + tr) / 14``.

The rolling VWAPs sum over clock minutes: the n minutes that end with the bar's own. The session's VWAP starts anew with
each pre-market, regular and post-market session; the day's at 04:00 New York.

A revised bar re-runs its symbol from the state before that bar, as far back as bars can be revised.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tapewatch.engine.calendar import TradingDays
from tapewatch.engine.candles import last_of_each
from tapewatch.engine.columns import F64, I32, I64, MINUTE_NS, Bars
from tapewatch.engine.symbols import Index, SymbolTable

EMA_SPANS = (20, 50, 200)
SMA_SPANS = (20, 50, 200)
VWAP_MINUTES = {"vwap_5m": 5, "vwap_15m": 15, "vwap_1h": 60}
WILDER = 14
RECURSIVE = ("rsi_14_1m", "ema_20_1m", "ema_50_1m", "ema_200_1m", "sma_20_1m", "sma_50_1m", "sma_200_1m", "atr_14_1m")
INDICATORS = (*RECURSIVE, *VWAP_MINUTES, "vwap_session", "vwap_day")


class Recursive:
    """RSI, EMA, SMA and ATR of all symbols; arrays are indexed by the caller's symbol indices."""

    _PREV, _GAIN, _LOSS, _RANGE = 0, 1, 2, 3
    _SUMS = slice(4, 4 + len(SMA_SPANS))
    _EMAS = slice(4 + len(SMA_SPANS), 4 + len(SMA_SPANS) + len(EMA_SPANS))
    _ROWS = 4 + len(SMA_SPANS) + len(EMA_SPANS)
    _LOG = 32
    """Bars whose state before them is kept, so that a revision can re-run from there."""
    _CLOSES = 256
    """More than the longest SMA and the log together."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.count = np.zeros(capacity, np.int64)
        """Bars seen, per symbol."""
        self._state = np.full((self._ROWS, capacity), 0.0)
        self._closes = np.full((self._CLOSES, capacity), 0.0)
        self._undo = np.full((self._LOG, self._ROWS, capacity), 0.0)
        self._log_minute = np.full((self._LOG, capacity), 0)
        self._log = np.full((self._LOG, 3, capacity), 0.0)

    def resize(self, capacity: int) -> None:
        grown = Recursive(capacity)
        for name in ("count", "_state", "_closes", "_undo", "_log_minute", "_log"):
            getattr(grown, name)[..., : self.capacity] = getattr(self, name)
        self.__dict__.update(grown.__dict__)

    def close(self, symbol: Index, minute: int | I64, high: F64, low: F64, close: F64) -> None:
        """Take one closed bar of each of these symbols (each at most once)."""
        i = self.count[symbol]
        state = self._state[:, symbol]
        slot = i % self._LOG
        self._undo[slot, :, symbol] = state.T
        self._log_minute[slot, symbol] = minute
        self._log[slot, :, symbol] = np.stack([high, low, close], axis=1)
        prev = np.where(i > 0, state[self._PREV], close)
        change = close - prev
        true_range = np.maximum(high - low, np.maximum(np.abs(high - prev), np.abs(low - prev)))
        for row, x in (
            (self._GAIN, np.maximum(change, 0.0)),
            (self._LOSS, np.maximum(-change, 0.0)),
            (self._RANGE, np.where(i > 0, true_range, 0.0)),
        ):
            average = state[row]
            summed = np.where(i <= WILDER, average + x, ((WILDER - 1) * average + x) / WILDER)
            state[row] = np.where(i == WILDER, summed / WILDER, summed)
        self._closes[i % self._CLOSES, symbol] = close
        sums, emas = state[self._SUMS], state[self._EMAS]
        for k, n in enumerate(SMA_SPANS):
            leaving = np.where(i >= n, self._closes[(i - n) % self._CLOSES, symbol], 0.0)
            sums[k] += close - leaving
            emas[k] = np.where(i < n, sums[k] / n, emas[k] + 2.0 / (n + 1) * (close - emas[k]))
        state[self._PREV] = close
        self._state[:, symbol] = state
        self.count[symbol] = i + 1

    def revise(self, symbol: Index, minute: int, high: F64, low: F64, close: F64) -> int:
        """Replace (or insert) these symbols' bars of `minute`; how many were too far back to be re-run. A bar whose
        close is NaN is taken out.
        """
        depth = np.arange(1, self._LOG + 1)[:, None]
        bar = self.count[symbol] - depth
        minutes = np.where(bar >= 0, self._log_minute[bar % self._LOG, symbol], -1)
        after = np.count_nonzero(minutes > minute, axis=0)
        replaces = (minutes == minute).any(axis=0)
        reachable = (after + replaces < self._LOG) | replaces
        lost = len(symbol) - int(np.count_nonzero(reachable))
        symbol, after, replaces, high, low, close = (x[reachable] for x in (symbol, after, replaces, high, low, close))
        first = self.count[symbol] - after
        tails = [
            (self._log_minute[slot, symbol], self._log[slot, :, symbol])
            for slot in ((first + step) % self._LOG for step in range(int(after.max(initial=0))))
        ]
        start = first - replaces
        again = np.flatnonzero(after + replaces > 0)
        self._state[:, symbol[again]] = self._undo[start[again] % self._LOG, :, symbol[again]].T
        self.count[symbol] = start
        stands = np.flatnonzero(~np.isnan(close))
        self.close(symbol[stands], minute, high[stands], low[stands], close[stands])
        for step, (minute_of, prices) in enumerate(tails):
            left = np.flatnonzero(after > step)
            self.close(symbol[left], minute_of[left], prices[left, 0], prices[left, 1], prices[left, 2])
        return lost

    def values(self, name: str, symbol: Index | slice) -> F64:
        """One of `RECURSIVE` for these symbols; NaN while warming."""
        kind, span = name.split("_")[:2]
        n, count = int(span), self.count[symbol]
        if kind == "rsi":
            gain, loss = self._state[self._GAIN, symbol], self._state[self._LOSS, symbol]
            both = gain + loss
            flat = both == 0
            return np.where(count > n, 100.0 * gain / np.where(flat, 1.0, both), np.nan)
        if kind == "atr":
            return np.where(count > n, self._state[self._RANGE, symbol], np.nan)
        if kind == "sma":
            return np.where(count >= n, self._state[self._SUMS][SMA_SPANS.index(n), symbol] / n, np.nan)
        return np.where(count >= n, self._state[self._EMAS][EMA_SPANS.index(n), symbol], np.nan)


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
        self.unrevised = 0
        """Revisions that came too late to be re-run."""

    def update(self, bars: Bars) -> IndicatorRows:
        """Take these bars; they must be of one minute, each symbol once."""
        symbol = self.symbols.translate(bars.symbols)[bars.symbol]
        if self.symbols.capacity > self.recursive.capacity:
            self.recursive.resize(self.symbols.capacity)
            self.vwap.resize(self.symbols.capacity)
        minute = int(bars.ts_ns[0]) // MINUTE_NS
        fresh = bars.revision == 0
        if fresh.all():
            self.recursive.close(symbol, minute, bars.high, bars.low, bars.close)
        else:
            new, old = np.flatnonzero(fresh), np.flatnonzero(~fresh)
            self.recursive.close(symbol[new], minute, bars.high[new], bars.low[new], bars.close[new])
            self.unrevised += self.recursive.revise(symbol[old], minute, bars.high[old], bars.low[old], bars.close[old])
        value = np.where(bars.vwap_volume > 0, np.nan_to_num(bars.vwap) * bars.vwap_volume, 0.0)
        self.vwap.close(symbol, minute, value, bars.vwap_volume, self._starts(minute))
        return IndicatorRows(
            symbols=bars.symbols,
            symbol=bars.symbol,
            ts_ns=bars.ts_ns,
            values=np.stack(
                [self.recursive.values(name, symbol) for name in RECURSIVE]
                + [self.vwap.values(name, symbol, minute) for name in INDICATORS[len(RECURSIVE) :]]
            ),
        )

    def _starts(self, minute: int) -> dict[str, int]:
        at = self.days.at(minute * MINUTE_NS)
        day_start = int(self.days.pre_ns[at.day]) if at.day < len(self.days.pre_ns) else at.start_ns
        return {"vwap_session": at.start_ns, "vwap_day": day_start if at.session else at.start_ns}


def by_minute(bars: Bars) -> Iterable[Bars]:
    """Split bars wherever the minute changes; of a bar that comes twice in a piece, the last revision stays."""
    edges = np.flatnonzero(np.diff(bars.ts_ns)) + 1
    for piece in np.split(np.arange(len(bars)), edges):
        if len(piece):
            yield bars.take(piece[np.sort(last_of_each(bars.symbol[piece]))])
