"""Candles of longer timeframes, folded from one-minute bars, and the studies over those that have closed.

Candles are aligned to New York's clock, counted from 04:00 of the trading day. Minutes between two days belong to
neither: their candles are counted backwards from the 04:00 that follows, and none reaches back into the day before.

A candle runs until all its minutes have closed, then the next one does: within the seconds in which the tape may still
bring prints of its last minute, the candle that is about to close is the running one. So the running candle and the
newest closed one are neighbours. A candle exists for a symbol if one of its minutes has a bar; it then holds all that
its minutes hold, those included that are no bar because no print of theirs could set a price. An official open is the
open of its own minute only.

A timeframe is kept from the moment that somebody wants it, starting from the minutes that the bars' ring still holds; a
candle that began before these, while the tape was running, is unknown. What was kept once is kept on.

Studies that take one close after the other (`OF_CLOSES`) have frames of their own, which keep a few closes where others
keep some twenty whole candles: boards show them whether rules ask or not.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from tapewatch.engine.bars import REACH_MINUTES, BarBuilder
from tapewatch.engine.columns import F64, I64, MINUTE_NS, SECOND_NS
from tapewatch.engine.frames import (
    BARS,
    CLOSE,
    HALF_HOUR,
    HIGH,
    LOW,
    OPEN,
    TRADES,
    VOLUME,
    Frame,
    HalfHours,
    complete,
    fold,
    join,
)
from tapewatch.engine.indicators import RECURSIVE
from tapewatch.engine.patterns import PATTERNS
from tapewatch.engine.series import Column
from tapewatch.engine.studies import STUDIES
from tapewatch.engine.symbols import Index

TIMEFRAMES = {"1m": 1, "2m": 2, "5m": 5, "10m": 10, "15m": 15, "30m": 30, "1h": 60, "4h": 240}
BACK = 10
"""How many closed candles back a candle's own figures can be asked for."""
FORECAST_AFTER_NS = 10 * SECOND_NS
"""A running candle's volume says nothing of the whole candle before that."""
RUNNING: dict[str, tuple[int, Column]] = {
    "open": (OPEN, "open"),
    "high": (HIGH, "high"),
    "low": (LOW, "low"),
    "close": (CLOSE, "close"),
    "candle_volume": (VOLUME, "volume"),
    "candle_trades": (TRADES, "trades"),
}
OF_CLOSES = frozenset({"rsi_14"})
RELATIVE, USUAL = "relative_candle_volume", "candle_volume_avg_10"


@dataclass(frozen=True, slots=True)
class TimeframeMetric:
    """A metric of one timeframe: what its declaration says."""

    stem: str
    timeframe: str
    unit: str
    formula: str
    source: str
    """Whose definition it is."""
    candles: int
    """Closed candles until it is known."""
    back: int
    """How many candles back it can be asked for."""


def _metrics() -> dict[str, TimeframeMetric]:
    stems = {
        "open": ("$", "first price of the running candle", "field", 0, BACK),
        "high": ("$", "highest price of the running candle", "field", 0, BACK),
        "low": ("$", "lowest price of the running candle", "field", 0, BACK),
        "close": ("$", "last price of the running candle", "field", 0, BACK),
        "candle_volume": ("shares", "volume of the running candle", "field", 0, BACK),
        "candle_trades": ("trades", "trades that counted in the volume of the running candle", "field", 0, BACK),
        RELATIVE: (
            "ratio",
            "forecast of the running candle's volume / mean volume of the 10 before; unknown in its first 10 seconds",
            "field",
            10,
            0,
        ),
        **{
            stem: (study.unit, study.formula, study.source, study.candles, 0)
            for stem, study in (STUDIES | PATTERNS).items()
        },
    }
    return {
        f"{stem}_{timeframe}": TimeframeMetric(stem, timeframe, *rest)
        for timeframe in TIMEFRAMES
        for stem, rest in stems.items()
        if f"{stem}_{timeframe}" not in RECURSIVE  # the scanner has these anyway
    }


TIMEFRAME_METRICS = _metrics()
"""What is served here, by name. The one-minute indicators that every scanner keeps are not among them."""


def _frame_of(metric: TimeframeMetric) -> tuple[str, bool]:
    return metric.timeframe, metric.stem in OF_CLOSES


class Timeframes:
    """Follows a `BarBuilder`: `close` after it closes a minute, `revise` after a closed minute changed."""

    def __init__(self, bars: BarBuilder) -> None:
        self._bars = bars
        self._capacity = bars.candles.capacity
        self._frames: dict[tuple[str, bool], Frame] = {}
        """By timeframe, and whether it is the one of `OF_CLOSES`."""
        self._new: list[Frame] = []
        """Those that nothing has been folded into yet."""
        self._halves: HalfHours | None = None

    def want(self, names: Collection[str]) -> None:
        """Keep what these metrics need from now on; names that are not served here are others' business."""
        self._make_room()
        wanted: dict[tuple[str, bool], list[str]] = {}
        for name, metric in TIMEFRAME_METRICS.items():
            if name in names:
                key = _frame_of(metric)
                wanted.setdefault(key, []).append(USUAL if metric.stem == RELATIVE else metric.stem)
        for (timeframe, of_closes), stems in wanted.items():
            frame = self._frames.get((timeframe, of_closes))
            if frame is None:
                frame = Frame(TIMEFRAMES[timeframe], self._capacity, closes_only=of_closes)
                self._frames[timeframe, of_closes] = frame
                self._new.append(frame)
            frame.want(stem for stem in stems if stem not in RUNNING)
        self._begin(self._bars.open_minute)

    def close(self, minute: int, symbols: Index) -> None:
        """The minute has closed, with bars of these symbols."""
        if not self._frames:
            return
        self._make_room()
        self._begin(minute)
        self._advance(minute)
        row = self._bars.row(minute)
        for frame in self._frames.values():
            if frame.known:
                fold(frame.running, self._bars.candles, row, symbols)
        half = None if self._halves is None else self._halves.of(minute // HALF_HOUR)
        if half is not None:
            fold(half, self._bars.candles, row, symbols)
        self._advance(self._bars.open_minute)

    def revise(self, minute: int, symbols: Index) -> int:
        """A closed minute changed for these symbols, each named once; how many candles were too far back to be
        re-run with all that followed.
        """
        if not self._frames:
            return 0
        self._follow()
        lost = 0
        half_start = minute - minute % HALF_HOUR
        candles = {
            frame: (frame.start, frame.end) if minute >= frame.start else self._period(frame.minutes, minute)
            for frame in self._frames.values()
        }
        short = [start for frame, (start, _) in candles.items() if frame.minutes <= HALF_HOUR]
        first, parts = self._minutes(min([*short, half_start]), symbols)
        if self._halves is not None:
            half = self._halves.of(minute // HALF_HOUR)
            if half is not None:
                half[:, symbols] = join(parts[max(half_start - first, 0) : half_start + HALF_HOUR - first])
        for frame, (start, end) in candles.items():
            if start < frame.whole_from:
                continue
            if frame.minutes > HALF_HOUR and self._halves is not None:
                block = join(self._halves.between(start, end, symbols))
            else:
                block = join(parts[max(start - first, 0) : end - first])
            if start == frame.start:
                frame.running[:, symbols] = block
            else:
                lost += frame.revise(start, symbols, block)
        return lost

    def row(self, name: str, back: int, now_ns: int) -> F64:
        """A wanted metric of all symbols, shape (capacity,), NaN where unknown; good until the next call of anything
        here. `back` counts candles: 0 is the running one, or for studies the newest closed. ValueError for what does
        not reach so far back.
        """
        metric = TIMEFRAME_METRICS[name]
        if not 0 <= back <= metric.back:
            raise ValueError(f"{name} reaches {metric.back} candles back, not {back}")
        if self._bars.first_minute is None:
            return np.full(self._bars.candles.capacity, np.nan)
        self._follow()
        frame = self._frames[_frame_of(metric)]
        if metric.stem == RELATIVE:
            return self._relative_volume(frame, now_ns)
        if metric.stem not in RUNNING:
            return frame.value(metric.stem)
        place, column = RUNNING[metric.stem]
        return frame.closed(column, back) if back else self._running(frame, place)

    def count(self, timeframe: str) -> I64:
        """Closed candles of each symbol so far, shape (capacity,)."""
        self._follow()
        return self._frames[timeframe, False].series.count

    def span_ns(self, timeframe: str) -> tuple[int, int]:
        """From when until when, event time, the running candle runs."""
        self._follow()
        frame = self._frames[timeframe, False]
        return frame.start * MINUTE_NS, frame.end * MINUTE_NS

    # -- time ---------------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        self._make_room()
        self._begin(self._bars.open_minute)
        self._advance(self._bars.open_minute)

    def _begin(self, until: int) -> None:
        """Fill what is new from the minutes before `until` that the ring holds."""
        bars = self._bars
        if not self._new or bars.first_minute is None:
            return
        fresh, self._new = self._new, []
        held = bars.open_minute + 2 - bars.candles.rows
        lost = held > bars.first_minute - 1 - REACH_MINUTES
        symbols = np.arange(len(bars.symbols))
        for frame in fresh:
            frame.start, frame.end = self._period(frame.minutes, held)
            frame.whole_from = held if lost else frame.start
        halves = None
        if self._halves is None and any(frame.minutes > HALF_HOUR for frame in self._frames.values()):
            halves = self._halves = HalfHours(self._capacity)
        for minute in range(held, until):
            row = bars.row(minute)
            complete = bars.candles.all_complete(row, len(symbols))
            for frame in fresh:
                self._advance_frame(frame, minute)
                if frame.known:
                    fold(frame.running, bars.candles, row, complete)
            half = None if halves is None else halves.of(minute // HALF_HOUR)
            if half is not None:
                fold(half, bars.candles, row, complete)

    def _advance(self, minute: int) -> None:
        """Close the candles that ended before this minute."""
        for frame in self._frames.values():
            self._advance_frame(frame, minute)

    def _advance_frame(self, frame: Frame, minute: int) -> None:
        if minute >= frame.end:
            frame.close()
            frame.start, frame.end = self._period(frame.minutes, minute)

    def _period(self, minutes: int, minute: int) -> tuple[int, int]:
        """First minute of the candle that this minute belongs to, and the first after it."""
        days = self._bars.days
        at = self._bars.session_of(minute)
        if not len(days.pre_ns):
            start = minute - minute % minutes
            return start, start + minutes
        day = int(days.pre_ns[min(at.day, len(days.pre_ns) - 1)]) // MINUTE_NS
        start = day + (minute - day) // minutes * minutes
        if at.session:
            return start, start + minutes
        return max(start, at.start_ns // MINUTE_NS), start + minutes

    # -- candles ------------------------------------------------------------------------------------------------------

    def _minutes(self, start: int, symbols: Index) -> tuple[int, F64]:
        """The closed minutes of these symbols since `start`, as far as the ring holds them: the first, and all as
        parts of candles, shape (minutes, 7, symbols).
        """
        bars, c = self._bars, self._bars.candles
        first = max(start, bars.open_minute + 2 - c.rows)
        rows = np.array([bars.row(minute) for minute in range(first, bars.open_minute)], np.intp)
        at = np.ix_(rows, symbols)
        parts = np.empty((len(rows), BARS + 1, len(symbols)))
        for place, column in enumerate((c.open, c.high, c.low, c.close, c.volume, c.count)):
            parts[:, place] = column[at]
        parts[:, BARS] = complete(parts)
        return first, parts

    def _running(self, frame: Frame, place: int) -> F64:
        """Closed minutes and the open ones, as they stand."""
        if not frame.known:
            return np.full(self._capacity, np.nan)
        bars, c = self._bars, self._bars.candles
        column = (c.open, c.high, c.low, c.close, c.volume, c.count)[place]
        value: F64 = frame.running[place]
        for minute in range(bars.open_minute, min(bars.open_minute + 2, frame.end)):
            live = column[bars.row(minute)]
            if place == OPEN:
                value = np.where(np.isnan(value), live, value)
            elif place == HIGH:
                value = np.maximum(value, live)
            elif place == LOW:
                value = np.minimum(value, live)
            elif place == CLOSE:
                value = np.where(np.isnan(live), value, live)
            else:
                value = value + live
        if place in {HIGH, LOW}:
            return np.where(np.isinf(value), np.nan, value)
        return value

    def _relative_volume(self, frame: Frame, now_ns: int) -> F64:
        elapsed_ns = now_ns - frame.start * MINUTE_NS
        if elapsed_ns < FORECAST_AFTER_NS:
            return np.full(self._capacity, np.nan)
        whole_ns = (frame.end - frame.start) * MINUTE_NS
        usual = frame.value(USUAL)
        forecast = self._running(frame, VOLUME) * (whole_ns / min(elapsed_ns, whole_ns))
        return np.where(usual > 0, forecast / np.where(usual > 0, usual, 1.0), np.nan)

    def _make_room(self) -> None:
        """Arrays are as wide as those of the bars."""
        capacity = self._bars.candles.capacity
        if capacity == self._capacity:
            return
        self._capacity = capacity
        for frame in self._frames.values():
            frame.resize(capacity)
        if self._halves is not None:
            self._halves.resize(capacity)
