"""indicators: closed bars into indicators, to `ind:{symbol}` and the channel `indicators.updated`."""

import asyncio

import msgspec

from tapewatch.documents import known, rfc3339
from tapewatch.engine.columns import Bars
from tapewatch.engine.indicators import INDICATORS, IndicatorRows, Indicators, by_minute
from tapewatch.ports import Bus, HotState

_TTL_S = 600.0
_CHUNK = 500
CHANNEL = "indicators.updated"


class IndicatorsRole:
    def __init__(self, *, indicators: Indicators, bus: Bus, hot: HotState, partition: int = 0) -> None:
        self._indicators, self._bus, self._hot, self._partition = indicators, bus, hot, partition

    async def run(self) -> None:
        async for _, entry in self._bus.read(f"bars.finalized:{self._partition}"):
            if isinstance(entry, Bars):
                for bars in by_minute(entry):
                    await self._show(self._indicators.update(bars))

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
