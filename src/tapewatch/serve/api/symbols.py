"""Symbols: which there are, and everything known about one now."""

from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from itertools import takewhile
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter
from fastapi import Query as FromQuery
from fastapi.responses import Response
from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from tapewatch.documents import Security, Text, rfc3339
from tapewatch.engine.columns import Bars
from tapewatch.engine.metrics import CATALOGUE
from tapewatch.errors import NotFound, Unavailable
from tapewatch.ports import SecurityQuery
from tapewatch.serve.api import API
from tapewatch.serve.api.query import NO_QUERY, Page, SymbolName
from tapewatch.serve.problems import PROBLEMS, encoded_response, json_response
from tapewatch.serve.services import Services

_BARS_SHOWN = 60
_KEPT = 500
"""Pages of the list; beyond that, all are made again."""
_GLANCE = ("price", "change_pct_day", "volume_day")


_Word = Annotated[Text, Field(min_length=1, max_length=200, json_schema_extra={"format": "plain-text"})]


class SymbolsQuery(Page):
    """Without a filter on what a security is, the list holds what has traded; with one, what the symbol master lists,
    traded or not. `q` looks at both.
    """

    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9.\-^+=$_:]{0,24}$")] = ""
    q: _Word | SkipJsonSchema[None] = None
    """Begins the symbol or stands in the name, ASCII letters in any case; better matches come first."""
    exchange: Annotated[str, Field(pattern=r"^[A-Z0-9]{4}$")] | SkipJsonSchema[None] = None
    """MIC of the listing exchange."""
    type: Annotated[str, Field(pattern=r"^[A-Z0-9_]{1,16}$")] | SkipJsonSchema[None] = None
    sector: _Word | SkipJsonSchema[None] = None


class Listing(BaseModel):
    """What the symbol master says; null where it does not know, and all of it for a symbol that it does not list."""

    name: str | None
    exchange: str | None
    """MIC of the listing exchange, such as ``XNAS``."""
    tape: str | None
    type: str | None
    is_test: bool | None
    active: bool | None
    market_cap: float | None
    shares_outstanding: float | None
    sector: str | None
    round_lot: int | None


class Glance(Listing):
    symbol: str
    price: float | None
    change_pct_day: float | None
    volume_day: float | None


class SymbolList(BaseModel):
    items: list[Glance]
    total: int


class Bar(BaseModel):
    ts: str
    open: float | None
    high: float | None
    low: float | None
    close: float | None
    volume: float | None
    vwap: float | None
    trade_count: int
    revision: int


class LiveBar(BaseModel):
    """The minute that is running."""

    ts: str
    open: float | None
    high: float | None
    low: float | None
    close: float | None
    volume: float | None
    vwap: float | None
    trade_count: int


class IndicatorValues(BaseModel):
    """At the newest closed minute."""

    ts: str
    values: dict[str, float | None]


class SymbolDetail(Listing):
    symbol: str
    listing_as_of: str | None
    """The date of what the symbol master says."""
    as_of: str | None
    session: str | None
    metrics: dict[str, float | None]
    bars: list[Bar]
    live_bar: LiveBar | None
    """Null when it has not traded for a while."""
    indicators: IndicatorValues | None


def router(services: Services) -> APIRouter:
    board = services.board
    routes = APIRouter(prefix=f"{API}/symbols", tags=["symbols"], responses=PROBLEMS)
    kept: dict[SymbolsQuery, tuple[tuple[int, int, Sequence[str], list[Security]], bytes]] = {}
    """Pages as they were sent last, with what they were made of."""

    async def matching(query: SymbolsQuery) -> Sequence[str]:
        begun: Sequence[str] = board.symbols()
        if query.prefix:
            behind = begun[bisect_left(begun, query.prefix) :]
            begun = list(takewhile(lambda symbol: symbol.startswith(query.prefix), behind))
        wanted = SecurityQuery(query.q or "", query.exchange or "", query.type or "", query.sector or "")
        of_a_kind = any((wanted.exchange, wanted.type, wanted.sector))
        if query.q is None and not of_a_kind:
            return begun
        listed = await services.store.find_securities(wanted)
        found = {symbol for symbol in listed if symbol.startswith(query.prefix)}
        if query.q is None:
            return sorted(found)
        text = query.q.upper()
        if not of_a_kind:
            found |= {symbol for symbol in begun if symbol.upper().startswith(text)}
        # The symbol itself, symbols that begin so, then names.
        return sorted(found, key=lambda s: (s.upper() != text, not s.upper().startswith(text), s))

    @routes.get("", response_model=SymbolList)
    async def list_symbols(query: Annotated[SymbolsQuery, FromQuery()]) -> Response:
        found = await matching(query)
        page = found[query.offset : query.offset + query.limit]
        listed = await services.store.securities_of(page)
        of = board.version, len(found), page, listed
        known = kept.get(query)
        if known is not None and known[0] == of:
            return encoded_response(known[1])
        by_symbol = {security.symbol: security for security in listed}
        items = [
            {"symbol": symbol, **board.some_of(symbol, _GLANCE), **_listing(by_symbol.get(symbol))} for symbol in page
        ]
        body = msgspec.json.encode({"items": items, "total": len(found)})
        if len(kept) >= _KEPT:
            kept.clear()
        kept[query] = of, body
        return encoded_response(body)

    @routes.get("/{symbol}", response_model=SymbolDetail, dependencies=[NO_QUERY])
    async def read_symbol(symbol: SymbolName) -> Response:
        bars = await services.store.bars(symbol, limit=_BARS_SHOWN)
        view = board.of(symbol)
        listed = await services.store.securities_of([symbol])
        security = listed[0] if listed else None
        if view is None and not len(bars):
            raise NotFound(f"{symbol} has not traded")
        # Stored bars without a board: the process has just started, so all metrics are unknown.
        return json_response(
            {
                "symbol": symbol,
                **_listing(security),
                "listing_as_of": None if security is None else security.as_of.isoformat(),
                "as_of": None if view is None else rfc3339(view.as_of_ns),
                "session": None if view is None else view.session,
                "metrics": dict.fromkeys(CATALOGUE) if view is None else view.metrics,
                "bars": bars_json(bars),
                **await now(symbol),
            }
        )

    async def now(symbol: str) -> dict[str, Any]:
        try:
            live, indicators = await services.hot.get([f"livebar:{symbol}", f"ind:{symbol}"])
        except Unavailable:  # what is stored can be read without
            live = indicators = None
        running = None if live is None else msgspec.json.decode(live)
        closed = None if indicators is None else msgspec.json.decode(indicators)
        if running is not None:
            running.pop("symbol", None)
        if closed is not None:
            values = {name: value for name, value in closed.items() if name not in {"symbol", "ts"}}
            closed = {"ts": closed["ts"], "values": values}
        return {"live_bar": running, "indicators": closed}

    return routes


def _listing(security: Security | None) -> dict[str, Any]:
    return {name: getattr(security, name, None) for name in Listing.model_fields}


class BarRow(msgspec.Struct, frozen=True, gc=False):
    """`Bar`, as it is written."""

    ts: str
    open: float
    high: float
    low: float
    close: float
    volume: float
    vwap: float
    trade_count: int
    revision: int


def bars_json(bars: Bars) -> list[BarRow]:
    columns = [getattr(bars, name).tolist() for name in BarRow.__struct_fields__[1:]]
    return list(map(BarRow, map(_minute, bars.ts_ns.tolist()), *columns))


_minute = lru_cache(maxsize=50_000)(rfc3339)
"""Bars of all symbols begin at the same instants."""
