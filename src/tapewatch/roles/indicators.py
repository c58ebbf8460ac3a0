"""indicators: closed bars into indicators, to `ind:{symbol}` and the channel `indicators.updated`."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing

import msgspec

from tapewatch.documents import known, rfc3339
from tapewatch.engine.columns import Bars
from tapewatch.engine.indicators import INDICATORS, IndicatorRows, Indicators, by_minute
from tapewatch.errors import Unavailable
from tapewatch.ports import Bus, Clock, HotState, Position, Store
from tapewatch.roles.recovery import Hole, Recovery
from tapewatch.telemetry import ERRORS_TOTAL

_TTL_S = 600.0
_CHUNK = 100
CHANNEL = "indicators.updated"


class IndicatorsRole:
    """`thaw` makes indicators of the state that earlier ones kept in `store`; without it every run begins with
    `indicators`. Bars that were lost leave them warming: a value that lacks a bar would be wrong.
    """

    def __init__(
        self,
        *,
        indicators: Indicators,
        bus: Bus,
        hot: HotState,
        clock: Clock,
        partition: int = 0,
        store: Store | None = None,
        thaw: Callable[[bytes], Indicators] | None = None,
        alone: bool = False,
    ) -> None:
        self._indicators, self._bus, self._hot, self._clock = indicators, bus, hot, clock
        self._partition, self._thaw = partition, thaw
        self.recovery = Recovery(
            f"indicators:{partition}",
            f"bars.finalized:{partition}",
            bus=bus,
            clock=clock,
            store=None if thaw is None else store,
            alone=alone,
        )

    @property
    def position(self) -> Position | None:
        """The newest entry of its stream that it has done."""
        return self.recovery.position

    async def run(self, leave: asyncio.Event | None = None) -> None:
        """Until the bus closes or `leave` is set."""
        self._indicators = await self.recovery.begin(self._thaw) or self._indicators
        async with (
            asyncio.TaskGroup() as tasks,
            aclosing(self.recovery.entries(leave)) as entries,  # type: ignore[type-var]  # a generator
        ):
            async for found in entries:
                if isinstance(found, Hole):
                    if found is Hole.LOST:
                        self._indicators = Indicators(self._indicators.days)
                    continue
                position, entry = found
                if isinstance(entry, Bars):
                    await self._take(entry)
                self.recovery.position = position
                if self.recovery.due:
                    tasks.create_task(self.recovery.keep(self._indicators.freeze()), name="indicators state")
        await self.recovery.leave(self._indicators.freeze)

    async def _take(self, entry: Bars) -> None:
        for bars in by_minute(entry):
            rows = self._indicators.update(bars)
            if not len(rows.symbol):  # they came before
                continue
            try:
                await self._show(rows)
            except Unavailable:  # the next minute brings newer ones
                ERRORS_TOTAL.labels(where="indicators.show").inc()

    async def _show(self, rows: IndicatorRows) -> None:
        ts = rfc3339(int(rows.ts_ns[0]))
        columns = rows.values.T.tolist()
        symbols = rows.symbol.tolist()
        for start in range(0, len(symbols), _CHUNK):
            facts = {
                f"ind:{rows.symbols[symbol]}": msgspec.json.encode(
                    {"symbol": rows.symbols[symbol], "ts": ts, **dict(zip(INDICATORS, map(known, values), strict=True))}
                )
                for symbol, values in zip(symbols[start : start + _CHUNK], columns[start : start + _CHUNK], strict=True)
            }
            await self._hot.put(facts, ttl_s=_TTL_S)
            await asyncio.sleep(0)  # ten thousand symbols close at once; let ticks pass in between
        notice = {"ts": ts, "partition": self._partition, "symbols": len(symbols)}
        await self._bus.notify(CHANNEL, msgspec.json.encode(notice))
