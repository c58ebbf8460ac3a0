"""bars: the tape into one-minute bars, for everybody who wants bars.

Closed and revised bars go to `bars.finalized:{p}` at once and to the store in batches. Live bars go to hot state each
second. After a restart it goes on from the state that it kept; bars that it then makes again are the same again.
"""

import asyncio
from collections.abc import Callable
from contextlib import aclosing

import msgspec
import numpy as np
import structlog

from tapewatch.documents import known, rfc3339
from tapewatch.engine.bars import BarBuilder
from tapewatch.engine.columns import MINUTE_NS, Bars, Batch, Gap, concat_bars, first_ns
from tapewatch.errors import Unavailable
from tapewatch.patience import patiently, publish
from tapewatch.ports import Bus, Clock, HotState, Position, Store
from tapewatch.roles.recovery import Hole, Recovery
from tapewatch.telemetry import ERRORS_TOTAL

_LIVE_TTL_S = 300.0
_EACH_S = 1.0
_LAST_FLUSH_S = 1.5
_CHUNK = 100
MOST_PENDING = 200_000
"""Bars waiting for the store; past that the role stops reading the tape until they are saved."""

log = structlog.get_logger("tapewatch")


class BarsRole:
    """`thaw` makes a builder of the state that an earlier one kept; without it every run begins with `builder`. `anew`
    makes one for a tape that begins before the state ends.
    """

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
        thaw: Callable[[bytes], BarBuilder] | None = None,
        anew: Callable[[], BarBuilder] | None = None,
        alone: bool = False,
    ) -> None:
        self._builder, self._bus, self._hot, self._store, self._clock = builder, bus, hot, store, clock
        self._partition, self._name, self._thaw, self._anew = partition, f"bars:{partition}", thaw, anew
        self.recovery = Recovery(
            self._name, f"ticks:{partition}", bus=bus, clock=clock, store=None if thaw is None else store, alone=alone
        )
        self._most_pending = most_pending
        self._pending: list[Bars] = []
        self._flushing = asyncio.Lock()
        self._hole_since_ns: int | None = None
        self._shown = np.zeros(0)
        self._shown_minute = -1

    @property
    def position(self) -> Position | None:
        """The newest entry of its stream that it has done."""
        return self.recovery.position

    async def run(self, leave: asyncio.Event | None = None) -> None:
        """Until the bus closes or `leave` is set."""
        self._builder = await self.recovery.begin(self._thaw) or self._builder
        async with asyncio.TaskGroup() as tasks:
            flushing = tasks.create_task(self._flush_each_second(), name="bars store")
            showing = tasks.create_task(self._show_each_second(), name="live bars")
            async with aclosing(self.recovery.entries(leave)) as entries:  # type: ignore[type-var]  # a generator
                async for found in entries:
                    if isinstance(found, Hole):
                        begun = self._builder.first_minute is not None
                        self._hole_since_ns = self._builder.open_minute * MINUTE_NS if begun else None
                        continue
                    position, entry = found
                    if isinstance(entry, Batch):
                        self._bridge(entry)
                        await self._publish(self._builder.step(entry))
                    elif isinstance(entry, Gap):
                        self._builder.gap(entry)
                    self.recovery.position = position
                    if self.recovery.due:
                        tasks.create_task(
                            self.recovery.keep(self._builder.freeze(), after=self._flush), name="bars state"
                        )
            flushing.cancel()
            showing.cancel()
        await self.recovery.leave(self._builder.freeze, after=self._flush)
        try:
            async with asyncio.timeout(_LAST_FLUSH_S):
                await self._flush()
        except TimeoutError:
            log.warning("bars not saved: the store is away", bars=self._waiting)

    def _bridge(self, batch: Batch) -> None:
        """Behind a hole in the tape: what it swallowed may be missing."""
        begin_ns = first_ns(batch)
        if self._hole_since_ns is None or begin_ns is None:
            return
        if begin_ns >= self._hole_since_ns:
            self._builder.gap(Gap(self._hole_since_ns, begin_ns, "lost"))
        elif self._anew is not None:  # another tape, from its beginning
            self._builder = self._anew()
        self._hole_since_ns = None

    @property
    def _waiting(self) -> int:
        return sum(map(len, self._pending))

    async def _publish(self, bars: Bars) -> None:
        if not len(bars):
            return
        self._pending.append(bars)
        await publish(self._bus, f"bars.finalized:{self._partition}", bars, clock=self._clock, where="bars.publish")
        if self._waiting > self._most_pending:
            await self._flush()

    async def _flush_each_second(self) -> None:
        while True:
            await self._clock.sleep(_EACH_S)
            await self._flush()

    async def _flush(self) -> None:
        """All that is pending, in order; it leaves the list when the store has it."""
        async with self._flushing:
            parts = list(self._pending)
            if not parts:
                return
            bars = concat_bars(parts)
            await patiently(
                lambda: self._store.save_bars(bars, reader=self._name, owner=self.recovery.owner),
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
        changed = builder.candles.complete(row, np.flatnonzero(seen != self._shown))
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
