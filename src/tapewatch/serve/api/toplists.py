"""Toplists: the system's, and users' own. Rankings come from hot state; nothing is ranked here."""

import logging
import re
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from fastapi import APIRouter, Request
from fastapi import Query as FromQuery
from fastapi.responses import Response
from pydantic import BaseModel, BeforeValidator, Field
from pydantic.json_schema import SkipJsonSchema

from tapewatch.accounts.roles import Principal
from tapewatch.documents import rfc3339
from tapewatch.engine.toplists import SYSTEM_TOPLISTS, system_toplist
from tapewatch.errors import Invalid, NotFound, Unavailable
from tapewatch.ports import Ranked
from tapewatch.serve.access import who
from tapewatch.serve.api import API
from tapewatch.serve.api.ownership import own, sees_watchlist
from tapewatch.serve.api.query import NO_QUERY, AnyId, Limit, Page
from tapewatch.serve.api.versions import (
    ABSENT,
    LOCATION,
    VersionNumber,
    changed,
    check_match,
    created,
    etag,
    new_id,
)
from tapewatch.serve.bodies import described, read_document
from tapewatch.serve.idempotency import IdempotencyKey, once
from tapewatch.serve.problems import PROBLEMS, encoded_response, json_response
from tapewatch.serve.services import Services
from tapewatch.telemetry import ERRORS_TOTAL
from tapewatch.toplist_documents import Toplist, ToplistDraft

_SHOWN = ("price", "change_pct_day", "volume_day")
_RANKED = 500
"""Symbols of a user's list that hot state has."""
_KEPT = 500
"""Answers; beyond that, all are made again."""
_FIRST = 50
"""Of a list that is read whole."""

log = logging.getLogger(__name__)


def _plain_decimal(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(r"[0-9]{1,17}(\.[0-9]{1,20})?(e[+-]?[0-9]{1,3})?", value):
        raise ValueError("must be a number")
    return value


Least = Annotated[float, Field(ge=0, le=1e15), BeforeValidator(_plain_decimal)] | SkipJsonSchema[None]


class RankingQuery(Page):
    limit: Limit = 50
    min_volume: Least = None
    """Of the day."""
    price_min: Least = None
    price_max: Least = None

    @property
    def filters(self) -> bool:
        return (self.min_volume, self.price_min, self.price_max) != (None, None, None)


class ToplistChange(ToplistDraft):
    """A draft that replaces a toplist; with `version`, only if that is still the stored one."""

    version: Annotated[VersionNumber, ABSENT] = 0


class ToplistInfo(BaseModel):
    id: str
    title: str
    metric: str
    window: str
    order: str
    toplist_type: str


class ToplistCatalogue(BaseModel):
    items: list[ToplistInfo]
    total: int


class Ranking(BaseModel):
    symbol: str
    rank: int
    value: float
    metadata: dict[str, float | None]
    stale: bool
    """It has set no price for a minute."""
    halted: bool


class Pagination(BaseModel):
    limit: int
    offset: int
    total: int


class ToplistBody(BaseModel):
    toplist_id: str
    toplist_type: str
    title: str
    metric: str
    timestamp: str | None
    session: str | None
    rankings: list[Ranking]
    pagination: Pagination


class UserToplistList(BaseModel):
    items: list[Toplist]
    total: int


class UserToplist(Toplist):
    """A list, and its first places now."""

    timestamp: str | None
    session: str | None
    rankings: list[Ranking]


def router(services: Services) -> APIRouter:
    store, board, clock, hot, bus = services.store, services.board, services.clock, services.hot, services.bus
    routes = APIRouter(prefix=f"{API}/toplists", tags=["toplists"], responses=PROBLEMS)
    kept: dict[tuple[str, RankingQuery], tuple[int, list[Ranked], bytes]] = {}
    """The system's lists as they were sent last, with the board and the ranking that they were made of."""

    async def announce(toplist: Toplist) -> None:
        """To the toplists role, and to ingest, which puts onto the tape what boards must show."""
        try:
            notice = msgspec.json.encode({"toplist_id": toplist.id, "version": toplist.version})
            await bus.notify("toplists.changed", notice)
            await bus.notify("rules.updated", notice)
        except Unavailable:
            # The change is stored; both look for themselves every few seconds.
            ERRORS_TOTAL.labels(where="toplists.notify").inc()
            log.warning("the change of %s could not be announced", toplist.id)

    async def theirs(principal: Principal, toplist_id: str) -> Toplist:
        return own(principal, await store.toplist(toplist_id))

    async def all_seen(principal: Principal) -> list[Toplist]:
        owner = None if principal.role == "admin" else principal.user_id
        return [one for one in await store.toplists(owner=owner) if principal.sees(one.owner)]

    async def check_watchlists(owner: str, draft: ToplistDraft) -> None:
        """It counts who owns the list, whoever changes it."""
        for watchlist_id in draft.watchlists:
            if not await sees_watchlist(store, owner, watchlist_id):
                raise Invalid("body.filters.when", f"there is no watchlist {watchlist_id}")

    def as_of() -> dict[str, Any]:
        newest = board.as_of()
        return {
            "timestamp": None if newest is None else rfc3339(newest[0]),
            "session": None if newest is None else newest[1],
        }

    def rows(ranking: Sequence[tuple[int, Ranked]], columns: tuple[str, ...]) -> list[dict[str, Any]]:
        found = []
        marks = board.marks([ranked.member for _, ranked in ranking])
        for place, (symbol, score) in ranking:
            stale, halted = marks.get(symbol, (False, False))
            metadata = board.some_of(symbol, columns)
            found.append({
                "symbol": symbol, "rank": place, "value": score,
                "metadata": metadata, "stale": stale, "halted": halted,
            })  # fmt: skip
        return found

    def passes(query: RankingQuery, symbol: str) -> bool:
        """What is unknown does not."""
        facts = board.some_of(symbol, ("price", "volume_day"))
        return (
            (query.min_volume is None or facts["volume_day"] >= query.min_volume)
            and (query.price_min is None or facts["price"] >= query.price_min)
            and (query.price_max is None or facts["price"] <= query.price_max)
        )

    def filtered(query: RankingQuery, ranking: list[Ranked]) -> list[tuple[int, Ranked]]:
        """With the places that they have in the list."""
        return [
            (place, ranked)
            for place, ranked in enumerate(ranking, start=1)
            if not query.filters or passes(query, ranked.member)
        ]

    async def ranking_of(toplist: Toplist) -> list[Ranked]:
        if not toplist.enabled:
            return []
        key = f"toplist:user:{toplist.owner}:{toplist.id}"
        return await hot.ranking(key, limit=_RANKED, descending=toplist.ranked_by.descending)

    def page_of(query: RankingQuery, found: list[tuple[int, Ranked]]) -> list[tuple[int, Ranked]]:
        return found[query.offset : query.offset + query.limit]

    # -- the system's -------------------------------------------------------------------------------------------------

    @routes.get("", response_model=ToplistCatalogue, dependencies=[NO_QUERY])
    async def list_toplists(request: Request) -> Response:
        """The system's lists, then one's own."""
        items = [
            {
                "id": toplist.id,
                "title": toplist.title,
                "metric": toplist.metric,
                "window": toplist.window,
                "order": "descending" if toplist.descending else "ascending",
                "toplist_type": "system",
            }
            for toplist in SYSTEM_TOPLISTS.values()
        ]
        items += [
            {
                "id": toplist.id,
                "title": toplist.name,
                "metric": toplist.ranked_by.metric,
                "window": toplist.time_window or "",
                "order": "descending" if toplist.ranked_by.descending else "ascending",
                "toplist_type": "user",
            }
            for toplist in await all_seen(who(request))
        ]
        return json_response({"items": items, "total": len(items)})

    @routes.get("/system/{toplist_id}", response_model=ToplistBody)
    async def read_system_toplist(toplist_id: AnyId, query: Annotated[RankingQuery, FromQuery()]) -> Response:
        """The first 500 are there; filters choose among them. `1d` in an id means `day`."""
        toplist = system_toplist(toplist_id)
        if toplist is None:
            raise NotFound(f"there is no system toplist {toplist_id}")
        part = {"limit": _RANKED} if query.filters else {"limit": query.limit, "offset": query.offset}
        ranking = await hot.ranking(toplist.key, **part, descending=toplist.descending)
        known = kept.get((toplist_id, query))
        if known is not None and known[:2] == (board.version, ranking):
            return encoded_response(known[2])
        if query.filters:
            found = filtered(query, ranking)
            page, total = page_of(query, found), len(found)
        else:
            page = list(enumerate(ranking, start=query.offset + 1))
            ranked = int(np.count_nonzero(~np.isnan(board.column(toplist.metric)[1])))
            # The ranking may be a moment older than the board, so a place that was shown exists.
            total = max(ranked, query.offset + len(ranking) if ranking else 0)
        body = msgspec.json.encode(
            {
                "toplist_id": toplist.id,
                "toplist_type": "system",
                "title": toplist.title,
                "metric": toplist.metric,
                **as_of(),
                "rankings": rows(page, _SHOWN),
                "pagination": {"limit": query.limit, "offset": query.offset, "total": total},
            }
        )
        if len(kept) >= _KEPT:
            kept.clear()
        kept[toplist_id, query] = board.version, ranking, body
        return encoded_response(body)

    # -- users' -------------------------------------------------------------------------------------------------------

    @routes.get("/user", response_model=UserToplistList)
    async def list_user_toplists(request: Request, page: Annotated[Page, FromQuery()]) -> Response:
        toplists = await all_seen(who(request))
        items = toplists[page.offset : page.offset + page.limit]
        return json_response({"items": [item.model_dump() for item in items], "total": len(toplists)})

    @routes.post(
        "/user",
        status_code=201,
        response_model=Toplist,
        responses={201: LOCATION},
        openapi_extra=described(ToplistDraft),
        dependencies=[NO_QUERY],
        description="409 when one has 50 lists, or there are 500 in all.",
    )
    async def create_user_toplist(request: Request, key: IdempotencyKey = None) -> Response:
        draft = await read_document(request, ToplistDraft)
        return await once(services, request, key, draft, lambda: create(request, draft))

    async def create(request: Request, draft: ToplistDraft) -> Response:
        principal = who(request)
        await check_watchlists(principal.user_id, draft)
        now = rfc3339(clock.now_ns())

        def make() -> Toplist:
            chosen = new_id(draft.name, kind="toplist")
            return _toplist(draft, id=chosen, owner=principal.user_id, created_at=now, updated_at=now)

        async def save(toplist: Toplist) -> Toplist:
            return await store.save_toplist(toplist, actor=principal.user_id)

        stored = await created("", make, save)
        await announce(stored)
        location = str(request.url_for("read_user_toplist", toplist_id=stored.id).path)
        return json_response(stored.model_dump(), status=201, headers={"Location": location, **etag(stored)})

    @routes.get("/user/{toplist_id}", response_model=UserToplist, dependencies=[NO_QUERY])
    async def read_user_toplist(request: Request, toplist_id: AnyId) -> Response:
        """The list, and its first 50 places now."""
        toplist = await theirs(who(request), toplist_id)
        first = list(enumerate(await ranking_of(toplist), start=1))[:_FIRST]
        body = {**toplist.model_dump(), **as_of(), "rankings": rows(first, toplist.shown)}
        return json_response(body, headers=etag(toplist))

    @routes.put(
        "/user/{toplist_id}",
        response_model=Toplist,
        openapi_extra=described(ToplistChange),
        dependencies=[NO_QUERY],
        description="Without `version` and `If-Match`, the last writer wins. `If-Match` takes the ETag of a read.",
    )
    async def replace_user_toplist(request: Request, toplist_id: AnyId) -> Response:
        draft = await read_document(request, ToplistChange)
        principal = who(request)

        async def make(known: Toplist) -> Toplist:
            await check_watchlists(known.owner, draft)
            return _toplist(
                draft,
                id=toplist_id,
                owner=known.owner,
                version=known.version + 1,
                created_at=known.created_at,
                updated_at=rfc3339(clock.now_ns()),
            )

        async def save(toplist: Toplist) -> Toplist:
            return await store.save_toplist(toplist, actor=principal.user_id)

        stored, _ = await changed(
            request, read=lambda: theirs(principal, toplist_id), make=make, save=save, version=draft.version
        )
        await announce(stored)
        return json_response(stored.model_dump(), headers=etag(stored))

    @routes.delete(
        "/user/{toplist_id}",
        status_code=204,
        dependencies=[NO_QUERY],
        description="`If-Match` takes the ETag of a read.",
    )
    async def delete_user_toplist(request: Request, toplist_id: AnyId) -> Response:
        principal = who(request)
        known = await theirs(principal, toplist_id)
        check_match(request, known)
        await store.delete_toplist(toplist_id, actor=principal.user_id)
        await announce(known)
        return Response(status_code=204)

    @routes.get("/user/{toplist_id}/rankings", response_model=ToplistBody)
    async def read_user_rankings(
        request: Request, toplist_id: AnyId, query: Annotated[RankingQuery, FromQuery()]
    ) -> Response:
        """The first 500 are there; filters choose among them, and a row keeps its place in the list."""
        toplist = await theirs(who(request), toplist_id)
        found = filtered(query, await ranking_of(toplist))
        return json_response(
            {
                "toplist_id": toplist.id,
                "toplist_type": "user",
                "title": toplist.name,
                "metric": toplist.ranked_by.metric,
                **as_of(),
                "rankings": rows(page_of(query, found), toplist.shown),
                "pagination": {"limit": query.limit, "offset": query.offset, "total": len(found)},
            }
        )

    return routes


def _toplist(draft: ToplistDraft, **fields: Any) -> Toplist:
    return Toplist(**{name: getattr(draft, name) for name in ToplistDraft.model_fields}, **fields)
