"""bars: the tape into one-minute bars, for everybody who wants bars.

Closed and revised bars go to `bars.finalized:{p}` at once and to the store in batches, together with the position up to
which they are true. Live bars go to hot state each second.
"""

import asyncio

import msgspec
import numpy as np
import structlog

from tapewatch.documents import known, rfc3339
from tapewatch.engine.bars import BarBuilder
from tapewatch.engine.columns import Bars, Batch, Gap, concat_bars
from tapewatch.errors import Unavailable
from tapewatch.ports import Bus, Clock, HotState, Position, Store
from tapewatch.roles.patience import patiently, read_on
from tapewatch.telemetry import ERRORS_TOTAL

_LIVE_TTL_S = 300.0
_EACH_S = 1.0
_LAST_FLUSH_S = 1.5
_CHUNK = 100
MOST_PENDING = 200_000
"""Bars waiting for the store; past that the role stops reading the tape until they are saved."""

log = structlog.get_logger("tapewatch")


class BarsRole:
    def __init__(
        self,
        *,
        builder: BarBuilder,
        bus: Bus,
        hot: HotState,
        store: Store,
        clock: Clock,
        partition: int = 0,
        most_pending: int = MOST_PENDING,
    ) -> None:
        self._builder, self._bus, self._hot, self._store, self._clock = builder, bus, hot, store, clock
        self._partition, self._name = partition, f"bars:{partition}"
        self._most_pending = most_pending
        self._pending: list[Bars] = []
        self._pending_to: Position | None = None
        self._flushing = asyncio.Lock()
        self._shown = np.zeros(0)
        self._shown_minute = -1
        self.position: Position | None = None
        """The newest entry of the tape that is in the bars."""

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            flushing = tasks.create_task(self._flush_each_second(), name="bars store")
            showing = tasks.create_task(self._show_each_second(), name="live bars")
            async for position, entry in read_on(
                self._bus, f"ticks:{self._partition}", clock=self._clock, where="bars.read"
            ):
                if isinstance(entry, Batch):
                    await self._publish(self._builder.step(entry), position)
                elif isinstance(entry, Gap):
                    self._builder.gap(entry)
                self.position = position
            flushing.cancel()
            showing.cancel()
        try:
            async with asyncio.timeout(_LAST_FLUSH_S):
                await self._flush()
        except TimeoutError:
            log.warning("bars not saved: the store is away", bars=self._waiting)

    @property
    def _waiting(self) -> int:
        return sum(map(len, self._pending))

    async def _publish(self, bars: Bars, position: Position) -> None:
        if not len(bars):
            return
        self._pending.append(bars)
        self._pending_to = position
        await self._bus.publish(f"bars.finalized:{self._partition}", bars)
        if self._waiting > self._most_pending:
            await self._flush()

    async def _flush_each_second(self) -> None:
        while True:
            await self._clock.sleep(_EACH_S)
            await self._flush()

    async def _flush(self) -> None:
        """All that is pending, in order; it leaves the list when the store has it."""
        async with self._flushing:
            parts, position = list(self._pending), self._pending_to
            if not parts:
                return
            bars = concat_bars(parts)
            await patiently(
                lambda: self._store.save_bars(bars, reader=self._name, position=position),
                clock=self._clock,
                where="bars.store",
            )
            del self._pending[: len(parts)]

    async def _show_each_second(self) -> None:
        while True:
            await self._clock.sleep(_EACH_S)
            try:
                await self._show_live()
            except Unavailable:  # they come again in a second
                ERRORS_TOTAL.labels(where="bars.live").inc()

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
