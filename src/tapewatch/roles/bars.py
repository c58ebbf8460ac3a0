"""bars: the tape into one-minute bars, for everybody who wants bars.

Closed and revised bars go to `bars.finalized:{p}` at once and to the store in batches, together with the position up to
which they are true. Live bars go to hot state each second.
"""

import asyncio

import msgspec
import numpy as np

from tapewatch.documents import known, rfc3339
from tapewatch.engine.bars import BarBuilder
from tapewatch.engine.columns import Bars, Batch, concat_bars
from tapewatch.ports import Bus, Clock, HotState, Position, Store

_LIVE_TTL_S = 300.0
_FLUSH_S = 1.0
_MOST_PENDING = 200_000
"""Bars waiting for the store; past that the role stops reading the tape until they are saved."""
_CHUNK = 500


class BarsRole:
    def __init__(
        self, *, builder: BarBuilder, bus: Bus, hot: HotState, store: Store, clock: Clock, partition: int = 0
    ) -> None:
        self._builder, self._bus, self._hot, self._store, self._clock = builder, bus, hot, store, clock
        self._partition = partition
        self._pending: list[Bars] = []
        self._pending_rows = 0
        self._position: Position | None = None
        self._saving = asyncio.Lock()
        self._shown = np.zeros(0)
        self._shown_minute = -1

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            flushing = tasks.create_task(self._flush_each_second(), name="bars store")
            async for position, entry in self._bus.read(f"ticks:{self._partition}"):
                if isinstance(entry, Batch):
                    bars = self._builder.step(entry)
                    self._position = position
                    if len(bars):
                        await self._publish(bars)
            flushing.cancel()
        await self._flush()

    async def _publish(self, bars: Bars) -> None:
        await self._bus.publish(f"bars.finalized:{self._partition}", bars)
        self._pending.append(bars)
        self._pending_rows += len(bars)
        if self._pending_rows > _MOST_PENDING:
            await self._flush()

    async def _flush_each_second(self) -> None:
        while True:
            await self._clock.sleep(_FLUSH_S)
            await self._flush()
            await self._show_live()

    async def _flush(self) -> None:
        async with self._saving:
            if not self._pending:
                return
            parts, position = self._pending, self._position
            self._pending, self._pending_rows = [], 0
            await self._store.save_bars(concat_bars(parts), reader=f"bars:{self._partition}", position=position)

    async def _show_live(self) -> None:
        """Live bars that changed since the last time, to `livebar:{symbol}`."""
        builder = self._builder
        if builder.first_minute is None:
            return
        minute = builder.newest_minute
        row, count = builder.row(minute), len(builder.symbols)
        seen = builder.candles.count[row, :count]
        if minute != self._shown_minute or len(self._shown) != count:
            self._shown, self._shown_minute = np.zeros(count), minute
        changed = np.intersect1d(np.flatnonzero(seen != self._shown), builder.candles.complete(row, count))
        self._shown = seen.copy()
        bars = builder.bars_of(minute, changed)
        for start in range(0, len(bars), _CHUNK):
            await self._hot.put(
                _as_json(bars.take(np.arange(start, min(start + _CHUNK, len(bars))))), ttl_s=_LIVE_TTL_S
            )
            await asyncio.sleep(0)


def _as_json(bars: Bars) -> dict[str, bytes]:
    names = ("open", "high", "low", "close", "volume", "vwap", "trade_count")
    columns = [getattr(bars, name).tolist() for name in names]
    start = rfc3339(int(bars.ts_ns[0])) if len(bars) else ""
    return {
        f"livebar:{bars.symbols[symbol]}": msgspec.json.encode(
            {"symbol": bars.symbols[symbol], "ts": start, **dict(zip(names, map(known, row), strict=True))}
        )
        for symbol, row in zip(bars.symbol.tolist(), zip(*columns, strict=True), strict=True)
    }
