"""Stored minute bars as candles of longer timeframes, and with the engine's own indicators.

It reads backwards in pieces and stops when a page is full, so what a page costs does not depend on how much is stored.
"""

import asyncio
from dataclasses import fields
from typing import NamedTuple

import numpy as np

from tapewatch.engine.columns import F64, I64, MINUTE_NS, Bars
from tapewatch.engine.indicators import INDICATORS, Indicators, by_minute
from tapewatch.nyse import trading_days
from tapewatch.ports import Store

MINUTES = {"1m": 1, "5m": 5, "15m": 15, "1h": 60}
WARM_UP_BARS = 1_000
"""Read before a page of indicators: five times the longest average, and more minutes than a day has, so that the day's
VWAP is whole.
"""
_PIECE = 2_000
"""Bars of one read: some milliseconds of the event loop."""


def folded(bars: Bars, minutes: int) -> Bars:
    """Bars of one symbol in ascending order as candles of so many minutes, by the clock of UTC.

    That is how the engine aligns them: it counts from 04:00 in New York, which is a full hour of UTC, and sessions
    begin and end there too. What has no bar adds nothing. The revision is the highest of the candle's minutes.
    """
    if minutes == 1 or not len(bars):
        return bars
    period = bars.ts_ns // (minutes * MINUTE_NS)
    first = _firsts(period)
    last = np.append(first[1:], len(bars)) - 1
    weight = np.add.reduceat(bars.vwap_volume, first)
    known = (bars.vwap_volume > 0) & ~np.isnan(bars.vwap)
    value = np.add.reduceat(np.where(known, bars.vwap * bars.vwap_volume, 0.0), first)
    return Bars(
        symbols=bars.symbols,
        symbol=bars.symbol[first],
        ts_ns=period[first] * (minutes * MINUTE_NS),
        open=bars.open[first],
        high=np.maximum.reduceat(bars.high, first),
        low=np.minimum.reduceat(bars.low, first),
        close=bars.close[last],
        volume=np.add.reduceat(bars.volume, first),
        vwap=np.where(weight > 0, value / np.where(weight > 0, weight, 1.0), np.nan),
        vwap_volume=weight,
        trade_count=np.add.reduceat(bars.trade_count, first),
        revision=np.maximum.reduceat(bars.revision, first),
    )


async def candles(
    store: Store, symbol: str, timeframe: str, *, start_ns: int | None, end_ns: int | None, limit: int
) -> Bars:
    """The newest `limit` candles that begin in [start_ns, end_ns), oldest first. The minutes of a candle that begins
    before the end are all in it.
    """
    minutes = MINUTES[timeframe]
    step_ns = minutes * MINUTE_NS
    start_ns = None if start_ns is None else -(-start_ns // step_ns) * step_ns
    end_ns = None if end_ns is None else -(-end_ns // step_ns) * step_ns
    pieces: list[Bars] = []
    found = 0
    while True:
        size = min(_PIECE, (limit + 1) * minutes)
        piece = await store.bars(symbol, start_ns=start_ns, end_ns=end_ns, limit=size)
        pieces.append(piece)
        found += len(_firsts(piece.ts_ns // step_ns))
        # Each piece may begin within a candle, which is then not whole or counted twice.
        if len(piece) < size or found >= limit + len(pieces):
            break
        end_ns = int(piece.ts_ns[0])
    bars = folded(pieces[0] if len(pieces) == 1 else _joined(pieces[::-1]), minutes)
    return bars if len(bars) <= limit else bars.take(np.arange(len(bars) - limit, len(bars)))


class Warmed(NamedTuple):
    """Minute bars with all `INDICATORS` at each of them."""

    bars: Bars
    values: F64
    """Shape (bars, indicators)."""
    before: int
    """Bars before the first that were read to warm up."""
    more: bool
    """Whether some of these were asked for, too."""


async def with_indicators(store: Store, symbol: str, *, start_ns: int | None, end_ns: int | None, limit: int) -> Warmed:
    """The newest `limit` minute bars in [start_ns, end_ns)."""
    bars = await store.bars(symbol, end_ns=end_ns, limit=limit + WARM_UP_BARS)
    values = await asyncio.to_thread(_indicators, bars)
    begin = 0 if start_ns is None else int(np.searchsorted(bars.ts_ns, start_ns))
    first = max(len(bars) - limit, begin)
    return Warmed(bars.take(np.arange(first, len(bars))), values[first:], first, first > begin)


def _indicators(bars: Bars) -> F64:
    indicators = Indicators(trading_days())
    rows = [np.zeros((0, len(INDICATORS)))]
    rows += [indicators.update(_closed(one)).values.T for one in by_minute(bars)]
    return np.concatenate(rows)


def _closed(bar: Bars) -> Bars:
    """As it came first, for nothing before it is in store that it could revise."""
    return Bars(**{f.name: getattr(bar, f.name) for f in fields(Bars)} | {"revision": np.zeros_like(bar.revision)})


def _joined(pieces: list[Bars]) -> Bars:
    names = [field.name for field in fields(Bars) if field.name != "symbols"]
    columns = {name: np.concatenate([getattr(piece, name) for piece in pieces]) for name in names}
    return Bars(symbols=pieces[0].symbols, **columns)


def _firsts(periods: I64) -> I64:
    """Where each of these begins, which are in ascending order."""
    begins = np.ones(len(periods), np.bool_)
    np.not_equal(periods[1:], periods[:-1], out=begins[1:])
    return np.flatnonzero(begins)
