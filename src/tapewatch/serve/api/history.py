"""What a symbol did: candles and indicators, page by page, the newest page first and the oldest candle of it first."""

import asyncio
import base64
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from fastapi import APIRouter
from fastapi import Query as FromQuery
from fastapi.responses import Response
from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from tapewatch.documents import day_of_number, known, rfc3339
from tapewatch.engine.columns import SECOND_NS
from tapewatch.engine.indicators import INDICATORS
from tapewatch.errors import Invalid, Unavailable
from tapewatch.serve.api import API
from tapewatch.serve.api.alerts import Instant, time_range
from tapewatch.serve.api.query import Limit, Query, SymbolName, some_of, words
from tapewatch.serve.api.symbols import Bar, bars_json
from tapewatch.serve.history import candles, with_indicators
from tapewatch.serve.problems import PROBLEMS, json_response
from tapewatch.serve.services import Services

_CURSOR = re.compile(r"history:([0-9]{1,19})")
_LATEST_NS = 2**63 - 1
_NEW_YORK = ZoneInfo("America/New_York")
_WAIT_S = 5.0


class HistoryQuery(Query):
    start: Instant | SkipJsonSchema[None] = None
    end: Instant | SkipJsonSchema[None] = None
    """Candles that begin from `start` on and before `end`."""
    limit: Limit = 100
    cursor: (
        Annotated[str, Field(max_length=200, json_schema_extra={"format": "history-cursor"})] | SkipJsonSchema[None]
    ) = None
    """From the page before: the next one lies further back."""


class BarsQuery(HistoryQuery):
    timeframe: Literal["1m", "5m", "15m", "1h", "1d"] = "1m"


class IndicatorsQuery(HistoryQuery):
    indicator: Annotated[str, some_of(f"(?:{'|'.join(INDICATORS)})", most=len(INDICATORS))] | SkipJsonSchema[None] = (
        None
    )
    """Names with commas between them; all of them without."""


class BarPage(BaseModel):
    symbol: str
    timeframe: str
    items: list[Bar]
    next_cursor: str | None


class IndicatorRow(BaseModel):
    ts: str
    values: dict[str, float | None]


class IndicatorPage(BaseModel):
    symbol: str
    warm_up_bars: int
    """How many bars before the first item went into it; averages of fewer than a thousand may still be settling."""
    items: list[IndicatorRow]
    next_cursor: str | None


def router(services: Services) -> APIRouter:
    routes = APIRouter(prefix=f"{API}/symbols", tags=["symbols"], responses=PROBLEMS)
    store = services.store
    computing = asyncio.Lock()

    @routes.get(
        "/{symbol}/bars",
        response_model=BarPage,
        description="Minutes are stored, candles of 5m, 15m and 1h made of them by the clock; days are those of the "
        "consolidated tape as they traded, at midnight in New York. A symbol without bars has none: the list is empty.",
    )
    async def list_bars(symbol: SymbolName, query: Annotated[BarsQuery, FromQuery()]) -> Response:
        start_ns, end_ns = _asked(query)
        if query.timeframe == "1d":
            items = await days(symbol, start_ns, end_ns, most=query.limit + 1)
        else:
            found = await candles(
                store, symbol, query.timeframe, start_ns=start_ns, end_ns=end_ns, limit=query.limit + 1
            )
            items = list(zip(found.ts_ns.tolist(), bars_json(found), strict=True))
        page = items[-query.limit :]
        next_cursor = write_cursor(page[0][0]) if len(items) > len(page) else None
        answer = {"symbol": symbol, "timeframe": query.timeframe, "items": [item for _, item in page]}
        return json_response({**answer, "next_cursor": next_cursor})

    async def days(symbol: str, start_ns: int | None, end_ns: int | None, *, most: int) -> list[tuple[int, Any]]:
        first = None if start_ns is None else _date(start_ns)
        last = None if end_ns is None else _date(end_ns)
        found = await store.daily_bars([symbol], start=first, end=last)
        items = []
        for number, *row in zip(found.day.tolist(), *(getattr(found, n).tolist() for n in _DAILY), strict=True):
            ts_ns = _midnight_ns(number)
            if (start_ns is None or ts_ns >= start_ns) and (end_ns is None or ts_ns < end_ns):
                numbers = dict(zip(_DAILY, row, strict=True))
                items.append((ts_ns, {"ts": rfc3339(ts_ns), **numbers, **_UNKNOWN_OF_A_DAY}))
        return items[-most:]

    @routes.get(
        "/{symbol}/indicators",
        response_model=IndicatorPage,
        description="What the scanner keeps of minute bars, computed from the stored ones as the scanner does. One "
        "computation at a time.",
    )
    async def list_indicators(symbol: SymbolName, query: Annotated[IndicatorsQuery, FromQuery()]) -> Response:
        start_ns, end_ns = _asked(query)
        wanted = words(query.indicator) or INDICATORS
        try:
            async with asyncio.timeout(_WAIT_S):
                await computing.acquire()
        except TimeoutError:
            raise Unavailable("indicators of other requests are being computed") from None
        try:
            found = await with_indicators(store, symbol, start_ns=start_ns, end_ns=end_ns, limit=query.limit)
        finally:
            computing.release()
        columns = [INDICATORS.index(name) for name in wanted]
        times = found.bars.ts_ns.tolist()
        items = [
            {"ts": rfc3339(ts_ns), "values": dict(zip(wanted, map(known, row), strict=True))}
            for ts_ns, row in zip(times, found.values[:, columns].tolist(), strict=True)
        ]
        next_cursor = write_cursor(times[0]) if found.more else None
        answer = {"symbol": symbol, "warm_up_bars": found.before, "items": items, "next_cursor": next_cursor}
        return json_response(answer)

    return routes


_DAILY: Sequence[str] = ("open", "high", "low", "close", "volume")
_UNKNOWN_OF_A_DAY: dict[str, Any] = {"vwap": None, "trade_count": None, "revision": 0}


def _asked(query: HistoryQuery) -> tuple[int | None, int | None]:
    start_ns, end_ns = time_range(query.start, query.end, names=("query.start", "query.end"))
    if query.cursor is not None:
        before_ns = read_cursor(query.cursor)
        end_ns = before_ns if end_ns is None else min(end_ns, before_ns)
    return start_ns, end_ns


def _midnight_ns(day: int) -> int:
    midnight = datetime.combine(day_of_number(day), time(), _NEW_YORK)
    return round(midnight.timestamp()) * SECOND_NS


def _date(ts_ns: int) -> date:
    """The day in New York."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=ts_ns // SECOND_NS)).astimezone(_NEW_YORK).date()


def write_cursor(ts_ns: int) -> str:
    return base64.urlsafe_b64encode(f"history:{ts_ns}".encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> int:
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        place = _CURSOR.fullmatch(base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii"))
    except ValueError:  # which base64's and ASCII's own errors are
        place = None
    if place is None or int(place[1]) > _LATEST_NS:
        raise Invalid("query.cursor", "is not a cursor of this list")
    return int(place[1])
