"""One timeframe: the running candle of all symbols, the closed ones, and how minutes are folded into them.

A block is candles in the making, shape (7, symbols): prices, sums, and the number of minutes that are bars. Minutes
follow each other: the open is that of the first minute with one, the close that of the last. `timeframes` says when a
candle begins and ends.
"""

from collections.abc import Iterable

import numpy as np

from tapewatch.engine.bars import REACH_MINUTES
from tapewatch.engine.candles import Candles
from tapewatch.engine.columns import F64, Bool
from tapewatch.engine.frozen import Carried
from tapewatch.engine.patterns import PATTERNS
from tapewatch.engine.series import COLUMNS, Column, Series, Study, View
from tapewatch.engine.studies import STUDIES
from tapewatch.engine.symbols import Index

OPEN, HIGH, LOW, CLOSE, VOLUME, TRADES, BARS = range(7)
_PLACES: dict[Column, int] = {
    "open": OPEN,
    "high": HIGH,
    "low": LOW,
    "close": CLOSE,
    "volume": VOLUME,
    "trades": TRADES,
}
_CLOSES: tuple[Column, ...] = ("close",)
_AT_ONCE = 1 << 15
"""Symbols whose studies are brought up to date together: memory for their windows is bounded."""
HALF_HOUR = 30
_BLANK = np.array([np.nan, -np.inf, np.inf, np.nan, 0.0, 0.0, 0.0])[:, None]
_LOOKBACK = 20
"""The longest window that studies look at; long means keep their own closes."""
_SPARE = 2
"""Candles that can be re-run beyond those that minutes within reach may touch."""
_HALVES = 10
"""Half hours that a candle of four hours and the one before it may need while they can be revised."""


def blank(*shape: int) -> F64:
    """Blocks without a print; the last of `shape` is the number of symbols."""
    return np.broadcast_to(_BLANK, (*shape[:-1], len(_BLANK), shape[-1])).copy()


def fold(block: F64, candles: Candles, row: int, bars: Index) -> None:
    """Join a minute that follows what the candle has."""
    open_, close = candles.open[row], candles.close[row]
    np.copyto(block[OPEN], open_, where=np.isnan(block[OPEN]))
    np.maximum(block[HIGH], candles.high[row], out=block[HIGH])
    np.minimum(block[LOW], candles.low[row], out=block[LOW])
    np.copyto(block[CLOSE], close, where=~np.isnan(close))
    block[VOLUME] += candles.volume[row]
    block[TRADES] += candles.count[row]
    block[BARS, bars] += 1


def join(parts: F64) -> F64:
    """Consecutive parts of candles, shape (parts, 7, symbols), as one, (7, symbols). Sums run in the order of time."""
    joined = blank(parts.shape[2])
    if not len(parts):
        return joined
    known = ~np.isnan(parts[:, OPEN])
    joined[OPEN] = np.take_along_axis(parts[:, OPEN], known.argmax(axis=0)[None], axis=0)[0]
    known = ~np.isnan(parts[::-1, CLOSE])
    joined[CLOSE] = np.take_along_axis(parts[::-1, CLOSE], known.argmax(axis=0)[None], axis=0)[0]
    joined[HIGH] = parts[:, HIGH].max(axis=0)
    joined[LOW] = parts[:, LOW].min(axis=0)
    joined[VOLUME:] = np.cumsum(parts[:, VOLUME:], axis=0)[-1]
    return joined


class HalfHours:
    """The newest half hours of all symbols by the clock, of which longer candles can be made again."""

    def __init__(self, capacity: int) -> None:
        self.blocks = blank(_HALVES, capacity)
        self._number = np.full(_HALVES, -1)

    def resize(self, capacity: int) -> None:
        grown = blank(_HALVES, capacity)
        grown[..., : self.blocks.shape[-1]] = self.blocks
        self.blocks = grown

    def of(self, number: int) -> F64 | None:
        """The half hour since the epoch; None if newer ones have its place."""
        row = number % _HALVES
        if self._number[row] < number:
            self._number[row] = number
            self.blocks[row] = _BLANK
        return self.blocks[row] if self._number[row] == number else None

    def between(self, start: int, end: int, symbols: Index) -> F64:
        """Those from minute `start` to minute `end`, shape (half hours, 7, symbols)."""
        rows = [n % _HALVES for n in range(start // HALF_HOUR, end // HALF_HOUR) if self._number[n % _HALVES] == n]
        parts: F64 = self.blocks[rows][:, :, symbols]
        return parts


class Frame:
    """What is kept of one timeframe. With `closes_only`, for studies that take one close after the other: of closed
    candles the closes, of as many as can be revised and the one before.
    """

    def __init__(self, minutes: int, capacity: int, *, closes_only: bool = False) -> None:
        self.minutes = minutes
        touched = (REACH_MINUTES - 1 + minutes - 1) // minutes + 1
        reach = touched + _SPARE
        lookback, columns = (2, _CLOSES) if closes_only else (_LOOKBACK, COLUMNS)
        self.series = Series(capacity, columns=columns, depth=lookback + reach, reach=reach)
        self.running = blank(capacity)
        self.start = self.end = 0
        """The running candle's minutes."""
        self.whole_from = 0
        """Candles that start earlier are not known in full."""
        self._studies: dict[str, Study] = {}
        self._values: dict[str, F64] = {}
        self.remake()
        self._stale = np.zeros(capacity, np.bool_)
        """Symbols whose values are those of before their newest closed candles."""

    def remake(self, _: None = None) -> None:
        """What is read of the series again when somebody asks."""
        self._closed: dict[tuple[Column, int], F64] = {}

    @property
    def known(self) -> bool:
        """Whether the running candle has been seen from its start."""
        return self.start >= self.whole_from

    def want(self, stems: Iterable[str]) -> None:
        """Keep these studies up to date."""
        fresh = {stem: STUDIES.get(stem) or PATTERNS[stem] for stem in stems if stem not in self._studies}
        if not fresh:
            return
        self.series.run(study.part for study in fresh.values() if study.part is not None)
        self._studies |= fresh
        self._values |= {stem: np.full(self.series.capacity, np.nan) for stem in fresh}
        self._stale[:] = True

    def resize(self, capacity: int) -> None:
        old = self.series.capacity
        self.series.resize(capacity)
        running, stale = blank(capacity), np.zeros(capacity, np.bool_)
        running[:, :old], stale[:old] = self.running, self._stale
        self.running, self._stale = running, stale
        for stem, values in self._values.items():
            self._values[stem] = np.full(capacity, np.nan)
            self._values[stem][:old] = values
        self._closed.clear()

    def changed(self, symbols: Index) -> None:
        self._stale[symbols] = True
        self._closed.clear()

    def close(self) -> None:
        """The running candle has seen all its minutes."""
        symbols = np.flatnonzero(self.running[BARS])
        if len(symbols):
            self.series.close(symbols, self.start, *self._columns(self.running[:, symbols]))
            self.changed(symbols)
        self.running[:] = _BLANK

    def revise(self, start: int, symbols: Index, block: F64) -> int:
        """A closed candle is not what it was; how many were too far back."""
        block = np.where(block[BARS] > 0, block, np.nan)
        self.changed(symbols)
        return self.series.revise(symbols, start, *self._columns(block))

    def _columns(self, block: F64) -> list[F64]:
        """A block's columns as the series takes them."""
        return [block[_PLACES[column]] for column in self.series.columns]

    def closed(self, column: Column, back: int) -> F64:
        """Of the `back`-th newest closed candle."""
        known = self._closed.get((column, back))
        if known is None:
            count = self.series.count
            values = self.series.at(column, np.arange(self.series.capacity), count - back)
            known = self._closed[column, back] = np.where(count >= back, values, np.nan)
        return known

    def value(self, stem: str) -> F64:
        if self._stale.any():
            stale = np.flatnonzero(self._stale)
            for symbols in np.split(stale, range(_AT_ONCE, len(stale), _AT_ONCE)):
                view = View(self.series, symbols)
                for name, study in self._studies.items():
                    self._values[name][symbols] = study.of(view)
            self._stale[:] = False
        return self._values[stem]


def complete(parts: F64) -> Bool:
    """Which minutes are bars."""
    complete: Bool = (
        ~np.isnan(parts[:, OPEN]) & ~np.isnan(parts[:, CLOSE]) & (parts[:, HIGH] > -np.inf) & (parts[:, VOLUME] > 0)
    )
    return complete


FRAME_CARRIED = (Carried(Frame, remade=("_closed",)), Carried(HalfHours))
