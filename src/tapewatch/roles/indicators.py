"""indicators: closed bars into indicators, to `ind:{symbol}` and the channel `indicators.updated`."""

import asyncio

import msgspec

from tapewatch.documents import known, rfc3339
from tapewatch.engine.columns import Bars
from tapewatch.engine.indicators import INDICATORS, IndicatorRows, Indicators, by_minute
from tapewatch.errors import Unavailable
from tapewatch.ports import Bus, Clock, HotState, Position
from tapewatch.roles.patience import read_on
from tapewatch.telemetry import ERRORS_TOTAL

_TTL_S = 600.0
_CHUNK = 100
CHANNEL = "indicators.updated"


class IndicatorsRole:
    def __init__(self, *, indicators: Indicators, bus: Bus, hot: HotState, clock: Clock, partition: int = 0) -> None:
        self._indicators, self._bus, self._hot, self._clock = indicators, bus, hot, clock
        self._partition = partition
        self.position: Position | None = None
        """The newest bars that are in the indicators."""

    async def run(self) -> None:
        async for position, entry in read_on(
            self._bus, f"bars.finalized:{self._partition}", clock=self._clock, where="indicators.read"
        ):
            if isinstance(entry, Bars):
                for bars in by_minute(entry):
                    rows = self._indicators.update(bars)
                    try:
                        await self._show(rows)
                    except Unavailable:  # the next minute brings newer ones
                        ERRORS_TOTAL.labels(where="indicators.show").inc()
            self.position = position

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
