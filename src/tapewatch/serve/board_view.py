"""The newest board of every partition, as the API shows it. It reads; it computes no metric and keeps no history."""

import asyncio
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tapewatch.engine.board import BoardRows
from tapewatch.engine.columns import F64
from tapewatch.engine.toplists import MARKS, marks
from tapewatch.patience import patiently, read_on
from tapewatch.ports import Bus, Clock, Entry


class SymbolView(NamedTuple):
    """A symbol's column of the board."""

    as_of_ns: int
    session: str
    metrics: dict[str, float]
    """Every metric of the board by name; NaN is unknown."""


class BoardView:
    """Kept current by `follow`; everything else answers at once from memory."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.version = 0
        """Rises with each board: what was made of equal versions is equal."""
        self._rows: dict[int, BoardRows] = {}
        self._row_of: dict[int, dict[str, int]] = {}
        """By partition, where the board's metrics stand."""
        self._place: dict[str, tuple[int, int]] = {}
        self._sorted: tuple[str, ...] | None = None
        self._unread = {0}
        """Partitions whose newest board was not asked for yet; there is one at least."""

    @property
    def caught_up(self) -> bool:
        """What the bus keeps is shown: of each partition the newest board, if there is one."""
        return not self._unread

    async def follow(self, bus: Bus, partitions: int) -> None:
        """Read ``board:{p}`` of partitions 0 to `partitions` - 1 until the bus closes."""
        self._unread = set(range(partitions))
        async with asyncio.TaskGroup() as tasks:
            for partition in range(partitions):
                tasks.create_task(self._follow(bus, partition), name=f"board view {partition}")

    async def _follow(self, bus: Bus, partition: int) -> None:
        stream, where = f"board:{partition}", "board_view.read"
        kept = await patiently(lambda: bus.newest(stream, 1), clock=self._clock, where=where)
        for _, entry in kept:
            self._take(partition, entry)
        self._unread.discard(partition)
        after = kept[-1][0] if kept else None
        async for _, entry in read_on(bus, stream, clock=self._clock, where=where, after=after, newest_only=True):
            self._take(partition, entry)

    def _take(self, partition: int, entry: Entry) -> None:
        if isinstance(entry, BoardRows):
            self.show(partition, entry)

    def show(self, partition: int, rows: BoardRows) -> None:
        """Replace the partition's board."""
        known = self._rows.get(partition)
        self._rows[partition] = rows
        self.version += 1
        if known is None or known.metrics != rows.metrics:
            self._row_of[partition] = {name: row for row, name in enumerate(rows.metrics)}
        if known is not None and (known.symbols is rows.symbols or known.symbols == rows.symbols):
            return
        if known is not None:
            for symbol in known.symbols:
                self._place.pop(symbol, None)
        for column, symbol in enumerate(rows.symbols):
            self._place[symbol] = (partition, column)
        self._sorted = None

    def symbols(self) -> tuple[str, ...]:
        """Every symbol on the board, sorted."""
        if self._sorted is None:
            self._sorted = tuple(sorted(self._place))
        return self._sorted

    def of(self, symbol: str) -> SymbolView | None:
        """All metrics of a symbol; None if the board does not know it."""
        place = self._place.get(symbol)
        if place is None:
            return None
        partition, column = place
        rows = self._rows[partition]
        return SymbolView(
            rows.ts_ns, rows.session, dict(zip(rows.metrics, rows.values[:, column].tolist(), strict=True))
        )

    def some_of(self, symbol: str, metrics: Sequence[str]) -> dict[str, float]:
        """Just these metrics of a symbol, NaN where the board does not know."""
        place = self._place.get(symbol)
        if place is None:
            return dict.fromkeys(metrics, math.nan)
        partition, column = place
        values, row_of = self._rows[partition].values, self._row_of[partition]
        return {name: float(values[row_of[name], column]) if name in row_of else math.nan for name in metrics}

    def marks(self, symbols: Sequence[str]) -> dict[str, tuple[bool, bool]]:
        """Of each that the board knows, whether it is stale, and whether it is halted."""
        known: dict[int, list[str]] = {}
        for symbol in symbols:
            if symbol in self._place:
                known.setdefault(self._place[symbol][0], []).append(symbol)
        found: dict[str, tuple[bool, bool]] = {}
        for partition, some in known.items():
            rows, row_of = self._rows[partition], self._row_of[partition]
            columns = [self._place[symbol][1] for symbol in some]
            unknown = np.full(len(some), np.nan)
            facts = [rows.values[row_of[name], columns] if name in row_of else unknown for name in MARKS]
            stale, halted = marks(*facts, covered=rows.covered)
            found |= zip(some, zip(stale.tolist(), halted.tolist(), strict=True), strict=True)
        return found

    def column(self, metric: str) -> tuple[list[str], F64]:
        """Symbols and their values of one metric over all partitions, for ranking: shapes (n,) and (n,)."""
        symbols: list[str] = []
        parts: list[F64] = []
        for partition, rows in sorted(self._rows.items()):
            row = self._row_of[partition].get(metric)
            if row is not None:
                symbols += rows.symbols
                parts.append(rows.values[row])
        return symbols, np.concatenate(parts) if parts else np.zeros(0)

    def as_of(self) -> tuple[int, str] | None:
        """Event time and session of the newest scan; None before the first."""
        if not self._rows:
            return None
        newest = max(self._rows.values(), key=lambda rows: rows.ts_ns)
        return newest.ts_ns, newest.session
