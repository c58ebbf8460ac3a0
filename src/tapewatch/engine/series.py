"""Closed candles of all symbols, each symbol counting its own, and what is computed from one candle to the next.

A ring keeps the newest candles. A `Part` is a recursive quantity with a few numbers of state per symbol, such as an
exponential average. The state before each of the newest candles is kept too, so that a revised, added or removed candle
re-runs its symbol from there: the result is that of a fresh run over the right candles.

A part that is asked for later starts from the candles that the ring still holds. Arrays are indexed by the caller's
symbol indices; a candle is named by the minute in which it starts.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tapewatch.engine.columns import F64, I64, Bool
from tapewatch.engine.frozen import Carried
from tapewatch.engine.symbols import Index

Column = Literal["high", "low", "close", "open", "volume", "trades"]
COLUMNS: tuple[Column, ...] = ("high", "low", "close", "open", "volume", "trades")
"""Of a candle; prices come first."""
_PRICES = frozenset(COLUMNS[:4])
_CLOSES = 256
"""More than the longest mean and the reach together."""

_FEW, _MANY = 3, 20
"""Candles that studies look at: a view takes as many at once."""

Number = TypeVar("Number", np.float64, np.int64)
T = TypeVar("T")


class Part(Protocol):
    """Equal parts are one."""

    def __hash__(self) -> int: ...

    @property
    def rows(self) -> int:
        """Numbers of state per symbol."""

    @property
    def blank(self) -> float:
        """The state before the first candle."""

    @property
    def closes(self) -> int:
        """How many closes back a step looks."""

    def step(self, state: F64, i: I64, bar: "Bar") -> None:
        """Take one candle of some symbols; `state` has shape (rows, symbols) and is changed in place, `i` counts the
        candles that this part took before.
        """


class Bar:
    """One candle of each of some symbols, already in the ring, and those before it."""

    def __init__(self, series: "Series", symbol: Index, index: I64) -> None:
        self._series = series
        self._symbol = symbol
        self._index = index

    def ago(self, column: Column, back: int) -> F64:
        """`back` candles before this one; meaningless where there was none."""
        return self._series.at(column, self._symbol, self._index - back)

    def close_ago(self, back: int) -> F64:
        return self._series.close_at(self._symbol, self._index - back)

    @cached_property
    def high(self) -> F64:
        return self.ago("high", 0)

    @cached_property
    def low(self) -> F64:
        return self.ago("low", 0)

    @cached_property
    def close(self) -> F64:
        return self.ago("close", 0)

    @cached_property
    def open(self) -> F64:
        return self.ago("open", 0)

    @cached_property
    def previous_close(self) -> F64:
        return self.ago("close", 1)

    @cached_property
    def change(self) -> F64:
        return self.close - self.previous_close

    @cached_property
    def true_range(self) -> F64:
        high, low, before = self.high, self.low, self.previous_close
        return np.maximum(high - low, np.maximum(np.abs(high - before), np.abs(low - before)))


@dataclass(slots=True)
class _Running:
    """A part in operation."""

    part: Part
    rows: slice
    """Its rows of the state."""
    since: I64 | None
    """Per symbol, the number of the first candle that the part took; None if it took all."""


class View:
    """The newest candles of some symbols, and the state of parts after them."""

    def __init__(self, series: "Series", symbol: Index | slice) -> None:
        self._series = series
        self._symbol = symbol
        self.count = series.count[symbol]
        self._flat: Index | None = None
        self._windows: dict[Column, F64] = {}
        self._made: dict[Hashable, Any] = {}

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What several studies need, made by the first."""
        if key not in self._made:
            self._made[key] = make()
        made: T = self._made[key]
        return made

    def state(self, part: Part) -> F64:
        """Shape (rows, symbols)."""
        rows = self._series.running[part].rows
        return self.once(part, lambda: self._series.state[rows, self._symbol])

    def candles(self, part: Part | None) -> I64:
        """How many the part has taken; with None, how many there were."""
        since = None if part is None else self._series.running[part].since
        return self.count if since is None else self.count - since[self._symbol]

    def window(self, column: Column, candles: int) -> F64:
        """The newest candles, the newest first, shape (candles, symbols); meaningless where there are fewer."""
        known = self._windows.get(column)
        if known is None or len(known) < candles:
            known = self._series.take(column, self._slots(_FEW if candles <= _FEW else max(candles, _MANY)))
            self._windows[column] = known
        return known[:candles]

    def _slots(self, candles: int) -> Index:
        if self._flat is None or len(self._flat) < candles:
            symbol = np.arange(self._series.capacity)[self._symbol]
            back = np.arange(1, candles + 1)[:, None]
            self._flat = self._series.flat(symbol, self.count - back)
        return self._flat[:candles]


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What closed candles of any timeframe can be asked for."""

    unit: str
    formula: str
    """In words, for the reader of the reference page."""
    source: str
    """Whose definition it is."""
    candles: int
    """Closed candles until it is known."""
    value: Callable[[View], F64]
    part: Part | None = None

    def of(self, view: View) -> F64:
        """For the view's symbols; NaN while warming."""
        return np.where(view.candles(self.part) >= self.candles, self.value(view), np.nan)


class Series:
    """`depth` candles are kept, and the newest `reach` of them can be revised. Of a candle `columns` are kept, in the
    order of `COLUMNS`, the close among them.
    """

    def __init__(self, capacity: int, *, columns: Sequence[Column], depth: int, reach: int) -> None:
        if depth < reach + 2:
            raise ValueError("candles that can be revised must be kept, and the one before them")
        self.capacity = capacity
        self.count = np.zeros(capacity, np.int64)
        """Closed candles, per symbol."""
        self.running: dict[Part, _Running] = {}
        self.state = np.full((0, capacity), 0.0)
        """Of all parts, shape (rows, capacity)."""
        self._undo = np.full((0, reach, capacity), 0.0)
        """The state before candle i at i % reach, shape (rows, reach, capacity)."""
        self._depth = depth
        self._reach = reach
        self.columns = list(columns)
        self._log = np.full((len(columns), depth, capacity), 0.0)  # all pages at once: memory is the same in an hour
        self._minute = np.full((depth, capacity), 0)
        self._closes: F64 | None = None
        """Closes further back than the log, for long means."""

    def resize(self, capacity: int) -> None:
        old, self.capacity = self.capacity, capacity
        self.count = _widened(self.count, capacity)
        self._log = _widened(self._log, capacity)
        self._minute = _widened(self._minute, capacity)
        if self._closes is not None:
            self._closes = _widened(self._closes, capacity)
        self.state = _widened(self.state, capacity)
        self._undo = _widened(self._undo, capacity)
        for running in self.running.values():
            self.state[running.rows, old:] = running.part.blank
            if running.since is not None:
                running.since = _widened(running.since, capacity)

    # -- parts --------------------------------------------------------------------------------------------------------

    def run(self, parts: Iterable[Part]) -> None:
        """Keep these from now on, starting from the candles that are still kept."""
        fresh = [part for part in dict.fromkeys(parts) if part not in self.running]
        if not fresh:
            return
        kept = self._kept()
        if any(part.closes + self._reach > self._depth for part in fresh):
            self._keep_closes(kept)
        late = self.count - kept
        since = late if late.any() else None
        began = stop = len(self.state)
        for part in fresh:
            start, stop = stop, stop + part.rows
            self.running[part] = _Running(part=part, rows=slice(start, stop), since=since)
        blanks = [np.full((part.rows, self.capacity), part.blank) for part in fresh]
        self.state = np.concatenate([self.state, *blanks])
        self._undo = np.concatenate([self._undo, np.full((stop - began, self._reach, self.capacity), 0.0)])
        running = tuple(self.running[part] for part in fresh)
        for back in range(int(kept.max(initial=0)), 0, -1):
            symbol = np.flatnonzero(kept >= back)
            self._step(running, slice(began, stop), symbol, self.count[symbol] - back)

    def _kept(self) -> I64:
        """How many of its newest candles the log holds of each symbol. A slot that a removed candle left behind holds
        one that is no older than the newest.
        """
        back = np.arange(1, self._depth + 1)[:, None]
        bar = self.count - back
        minute = self._minute[bar % self._depth, np.arange(self.capacity)]
        there = (bar >= 0) & ((back == 1) | (minute < minute[0]))
        kept: I64 = np.count_nonzero(there, axis=0)
        return kept

    def _keep_closes(self, kept: I64) -> None:
        if self._closes is not None:
            return
        self._closes = np.full((_CLOSES, self.capacity), 0.0)
        for back in range(1, int(kept.max(initial=0)) + 1):
            symbol = np.flatnonzero(kept >= back)
            bar = self.count[symbol] - back
            self._closes[bar % _CLOSES, symbol] = self.at("close", symbol, bar)

    # -- candles ------------------------------------------------------------------------------------------------------

    def close(self, symbol: Index, minute: int | I64, *columns: F64) -> None:
        """Take one closed candle of each of these symbols (each at most once), with the columns that are kept."""
        index = self.count[symbol]
        at = self.flat(symbol, index)
        self._minute.reshape(-1)[at] = minute
        for log, column in zip(self._log, columns, strict=True):
            log.reshape(-1)[at] = column
        if self._closes is not None:
            self._closes.reshape(-1)[index % _CLOSES * self.capacity + symbol] = self._close_of(columns)
        self._step(tuple(self.running.values()), slice(0, len(self.state)), symbol, index)
        self.count[symbol] = index + 1

    def _step(self, parts: tuple[_Running, ...], rows: slice, symbol: Index, index: I64) -> None:
        """Run parts, whose state is in these rows, over a candle that the log holds."""
        bar = Bar(self, symbol, index)
        state = self.state[rows].take(symbol, axis=1)
        before = index % self._reach * self.capacity + symbol
        self._undo.reshape(len(self._undo), self._reach * self.capacity)[rows, before] = state
        for running in parts:
            here = slice(running.rows.start - rows.start, running.rows.stop - rows.start)
            i = index if running.since is None else index - running.since[symbol]
            running.part.step(state[here], i, bar)
        self.state[rows, symbol] = state

    def revise(self, symbol: Index, minute: int, *columns: F64) -> int:
        """Replace (or insert) these symbols' candles of `minute`; how many were too far back to be re-run. A candle
        whose close is NaN is taken out.
        """
        back = np.arange(1, self._reach + 1)[:, None]
        bar = self.count[symbol] - back
        minutes = np.where(bar >= 0, self._minute[bar % self._depth, symbol], -1)
        minutes[1:][minutes[1:] >= minutes[0]] = -1  # what a removed candle left behind
        after = np.count_nonzero(minutes > minute, axis=0)
        replaces = (minutes == minute).any(axis=0)
        reachable = (after + replaces < self._reach) | replaces
        lost = len(symbol) - int(np.count_nonzero(reachable))
        changes = reachable & (replaces | ~np.isnan(self._close_of(columns)))
        index = self.count[symbol] - after - replaces
        same = self._same_prices(symbol, index, columns) & changes & replaces
        if same.any():
            at = self.flat(symbol[same], index[same])
            prices = self._prices
            for log, column in zip(self._log[prices:], columns[prices:], strict=True):
                log.reshape(-1)[at] = column[same]
            changes &= ~same
        self._run_again(
            symbol[changes], minute, index[changes], after[changes], [column[changes] for column in columns]
        )
        return lost

    def _same_prices(self, symbol: Index, index: I64, columns: tuple[F64, ...]) -> Bool:
        at = self.flat(symbol, index)
        same = np.ones(len(symbol), np.bool_)
        prices = self._prices
        for log, column in zip(self._log[:prices], columns[:prices], strict=True):
            same &= log.reshape(-1)[at] == column
        return same

    def _run_again(self, symbol: Index, minute: int, index: I64, after: I64, columns: list[F64]) -> None:
        """Candle `index` and the `after` that follow it, from the state before."""
        first = self.count[symbol] - after
        tails = [
            (self._minute[slot, symbol], self._log[:, slot, symbol])
            for slot in ((first + step) % self._depth for step in range(int(after.max(initial=0))))
        ]
        again = np.flatnonzero(index < self.count[symbol])
        slot = index[again] % self._reach
        self.state[:, symbol[again]] = self._undo[:, slot, symbol[again]]
        self.count[symbol] = index
        stands = np.flatnonzero(~np.isnan(self._close_of(columns)))
        self.close(symbol[stands], minute, *(column[stands] for column in columns))
        for step, (minute_of, prices) in enumerate(tails):
            left = np.flatnonzero(after > step)
            self.close(symbol[left], minute_of[left], *prices[:, left])

    @property
    def _prices(self) -> int:
        return sum(name in _PRICES for name in self.columns)

    def _close_of(self, columns: Sequence[F64]) -> F64:
        return columns[self.columns.index("close")]

    # -- reading ------------------------------------------------------------------------------------------------------

    def flat(self, symbol: Index, index: I64) -> Index:
        """Where candles number `index` of these symbols lie in a column of the log."""
        return index % self._depth * self.capacity + symbol

    def take(self, column: Column, at: Index) -> F64:
        taken: F64 = self._log[self.columns.index(column)].reshape(-1)[at]
        return taken

    def at(self, column: Column, symbol: Index, index: I64) -> F64:
        return self.take(column, self.flat(symbol, index))

    def close_at(self, symbol: Index, index: I64) -> F64:
        if self._closes is None:
            return self.at("close", symbol, index)
        close: F64 = self._closes.reshape(-1)[index % _CLOSES * self.capacity + symbol]
        return close


def _widened(array: NDArray[Number], capacity: int, *, blank: float = 0) -> NDArray[Number]:
    """The array with its last axis grown."""
    grown = np.full((*array.shape[:-1], capacity), blank, array.dtype)
    grown[..., : array.shape[-1]] = array
    return grown


SERIES_CARRIED = (Carried(Series), Carried(_Running))
