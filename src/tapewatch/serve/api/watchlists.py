"""Watchlists: list, create, read, replace, delete. Rules name them by id; a change reaches those rules by itself.

People see their own lists and shared ones, and change their own. Once a list is not shared any more, the rules of
others that name it are not asked.
"""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi import Query as FromQuery
from fastapi.responses import Response
from pydantic import BaseModel

from tapewatch.config import WATCHLISTS_A_USER
from tapewatch.documents import Identifier, Watchlist, WatchlistDraft, rfc3339
from tapewatch.serve.access import who
from tapewatch.serve.api import API
from tapewatch.serve.api.ownership import own, seen
from tapewatch.serve.api.query import NO_QUERY, AnyId, Page
from tapewatch.serve.api.versions import (
    ABSENT,
    LOCATION,
    VersionNumber,
    announce,
    changed,
    check_match,
    created,
    etag,
    new_id,
)
from tapewatch.serve.bodies import described, read_document
from tapewatch.serve.idempotency import IdempotencyKey, once
from tapewatch.serve.problems import PROBLEMS, json_response
from tapewatch.serve.services import Services

MAX_WATCHLIST_BYTES = 256 * 1024
"""Of a body: five thousand of the longest symbols."""


class NewWatchlist(WatchlistDraft):
    """A draft that may bring its own id; without one it gets one made of its name."""

    id: Annotated[Identifier, ABSENT] = ""


class WatchlistChange(WatchlistDraft):
    """A draft that replaces a watchlist; with `version`, only if that is still the stored one."""

    version: Annotated[VersionNumber, ABSENT] = 0


class WatchlistList(BaseModel):
    items: list[Watchlist]
    total: int


def router(services: Services) -> APIRouter:
    store, clock, bus = services.store, services.clock, services.bus
    routes = APIRouter(prefix=f"{API}/watchlists", tags=["watchlists"], responses=PROBLEMS)

    @routes.get("", response_model=WatchlistList)
    async def list_watchlists(request: Request, page: Annotated[Page, FromQuery()]) -> Response:
        principal = who(request)
        watchlists = [item for item in await store.watchlists() if principal.sees(item.owner, shared=item.shared)]
        items = watchlists[page.offset : page.offset + page.limit]
        return json_response({"items": [item.model_dump() for item in items], "total": len(watchlists)})

    @routes.post(
        "",
        status_code=201,
        response_model=Watchlist,
        responses={201: LOCATION},
        openapi_extra=described(NewWatchlist),
        dependencies=[NO_QUERY],
    )
    async def create_watchlist(request: Request, key: IdempotencyKey = None) -> Response:
        draft = await read_document(request, NewWatchlist, most_bytes=MAX_WATCHLIST_BYTES)
        return await once(services, request, key, draft, lambda: create(request, draft))

    async def create(request: Request, draft: NewWatchlist) -> Response:
        user = who(request).user_id
        now = rfc3339(clock.now_ns())

        def make() -> Watchlist:
            chosen = draft.id or new_id(draft.name, kind="watchlist")
            return _watchlist(draft, id=chosen, owner=user, created_at=now, updated_at=now)

        save = partial(store.save_watchlist, actor=user, most=WATCHLISTS_A_USER)
        stored = await created(draft.id, make, save)
        await announce(bus, stored)
        location = str(request.url_for("read_watchlist", watchlist_id=stored.id).path)
        return json_response(stored.model_dump(), status=201, headers={"Location": location, **etag(stored)})

    @routes.get("/{watchlist_id}", response_model=Watchlist, dependencies=[NO_QUERY])
    async def read_watchlist(request: Request, watchlist_id: AnyId) -> Response:
        watchlist = seen(who(request), await store.watchlist(watchlist_id))
        return json_response(watchlist.model_dump(), headers=etag(watchlist))

    @routes.put(
        "/{watchlist_id}",
        response_model=Watchlist,
        openapi_extra=described(WatchlistChange),
        dependencies=[NO_QUERY],
        description="Without `version` and `If-Match`, the last writer wins. `If-Match` takes the ETag of a read.",
    )
    async def replace_watchlist(request: Request, watchlist_id: AnyId) -> Response:
        principal = who(request)
        draft = await read_document(request, WatchlistChange, most_bytes=MAX_WATCHLIST_BYTES)

        async def read() -> Watchlist:
            return own(principal, await store.watchlist(watchlist_id))

        async def make(known: Watchlist) -> Watchlist:
            return _watchlist(
                draft,
                id=watchlist_id,
                owner=known.owner,
                version=known.version + 1,
                created_at=known.created_at,
                updated_at=rfc3339(clock.now_ns()),
            )

        stored, _ = await changed(
            request,
            read=read,
            make=make,
            save=partial(store.save_watchlist, actor=principal.user_id),
            version=draft.version,
        )
        await announce(bus, stored)
        return json_response(stored.model_dump(), headers=etag(stored))

    @routes.delete(
        "/{watchlist_id}",
        status_code=204,
        dependencies=[NO_QUERY],
        description="409 while enabled rules name it. `If-Match` takes the ETag of a read.",
    )
    async def delete_watchlist(request: Request, watchlist_id: AnyId) -> Response:
        known = own(who(request), await store.watchlist(watchlist_id))
        check_match(request, known)
        await store.delete_watchlist(watchlist_id, actor=who(request).user_id)
        await announce(bus, known)
        return Response(status_code=204)

    return routes


def _watchlist(draft: WatchlistDraft, **fields: Any) -> Watchlist:
    return Watchlist(name=draft.name, symbols=draft.symbols, shared=draft.shared, **fields)
