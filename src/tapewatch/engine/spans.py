"""Sums and extremes over stretches of clock minutes, of all symbols at once.

What is closed is summed once a minute; a revised bar mends the sums of its symbol alone. Minutes are joined from the
newest to the oldest, whatever was asked before, so that equal tapes give equal bits.
"""

from typing import Any

import numpy as np

from tapewatch.engine.bars import BarBuilder
from tapewatch.engine.columns import F64
from tapewatch.engine.frozen import Carried
from tapewatch.engine.symbols import Index


class Spans:
    """Over minutes of the ring of `bars`, both ends included. What `over` gives is not to be written to."""

    def __init__(self, bars: BarBuilder) -> None:
        self._bars = bars
        self.remake()

    def remake(self, _: None = None) -> None:
        """Sums are made again when somebody asks."""
        self._closed: dict[tuple[str, int], dict[int, F64]] = {}
        """By column and newest minute: by oldest minute what it comes to."""
        self._revised: list[Index] = []

    def clear(self) -> None:
        """Another minute has closed, or the arrays have grown."""
        self._closed.clear()
        self._revised.clear()

    def revise(self, symbols: Index) -> None:
        """Closed minutes of these symbols have changed."""
        if self._closed:
            self._revised.append(symbols)

    def over(self, column: str, first: int, last: int) -> F64:
        """``high`` and ``low``: the extreme, infinite where no print may set it; other columns: the sum."""
        candles, open_minute = self._bars.candles, self._bars.open_minute
        combine, array = _combine(column), getattr(candles, column)
        if self._revised:
            self._mend()
        newest = min(last, open_minute - 1)
        oldest = min(max(first, open_minute + 2 - candles.rows), newest + 1)  # from newest + 1 on there is none
        total = self._of_closed(column, oldest, newest)
        for minute in range(max(first, open_minute), last + 1):
            total = combine(total, array[self._bars.row(minute)])
        return total

    def _of_closed(self, column: str, oldest: int, newest: int) -> F64:
        kept = self._closed.setdefault((column, newest), {})
        known = kept.get(oldest)
        if known is None:
            combine, array = _combine(column), getattr(self._bars.candles, column)
            nearest = min((start for start in kept if start > oldest), default=newest + 1)
            known = kept[nearest].copy() if nearest in kept else np.full(array.shape[1], _BLANK.get(column, 0.0))
            for minute in range(nearest - 1, oldest - 1, -1):
                combine(known, array[self._bars.row(minute)], out=known)
            kept[oldest] = known
        return known

    def _mend(self) -> None:
        symbols = np.unique(np.concatenate(self._revised))
        self._revised.clear()
        for (column, newest), kept in self._closed.items():
            combine, array = _combine(column), getattr(self._bars.candles, column)
            minutes = range(newest, min(kept) - 1, -1)
            if not minutes:
                continue
            rows = np.array([self._bars.row(minute) for minute in minutes])
            totals = combine.accumulate(array[rows[:, None], symbols], axis=0)
            for oldest, known in kept.items():
                if oldest <= newest:
                    known[symbols] = totals[newest - oldest]


_BLANK = {"high": -np.inf, "low": np.inf}


def _combine(column: str) -> Any:
    return {"high": np.maximum, "low": np.minimum}.get(column, np.add)


SPAN_CARRIED = (Carried(Spans, remade=("_closed", "_revised")),)
