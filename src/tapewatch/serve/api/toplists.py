"""System toplists: which there are, and who leads. Rankings come from hot state; nothing is ranked here."""

from typing import Annotated

import numpy as np
from fastapi import APIRouter
from fastapi import Query as FromQuery
from fastapi.responses import Response
from pydantic import BaseModel

from tapewatch.documents import rfc3339
from tapewatch.engine.toplists import SYSTEM_TOPLISTS
from tapewatch.errors import NotFound
from tapewatch.serve.api import API
from tapewatch.serve.api.query import NO_QUERY, AnyId, Limit, Page
from tapewatch.serve.problems import PROBLEMS, json_response
from tapewatch.serve.services import Services

_SHOWN = ("price", "change_pct_day", "volume_day")


class RankingQuery(Page):
    limit: Limit = 50


class ToplistInfo(BaseModel):
    id: str
    title: str
    metric: str
    window: str
    order: str


class ToplistCatalogue(BaseModel):
    items: list[ToplistInfo]
    total: int


class Metadata(BaseModel):
    price: float | None
    change_pct_day: float | None
    volume_day: float | None


class Ranking(BaseModel):
    symbol: str
    rank: int
    value: float
    metadata: Metadata


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


def router(services: Services) -> APIRouter:
    board = services.board
    routes = APIRouter(prefix=f"{API}/toplists", tags=["toplists"], responses=PROBLEMS)

    @routes.get("", response_model=ToplistCatalogue, dependencies=[NO_QUERY])
    async def list_toplists() -> Response:
        items = [
            {
                "id": toplist.id,
                "title": toplist.title,
                "metric": toplist.metric,
                "window": toplist.window,
                "order": "descending" if toplist.descending else "ascending",
            }
            for toplist in SYSTEM_TOPLISTS.values()
        ]
        return json_response({"items": items, "total": len(items)})

    @routes.get("/system/{toplist_id}", response_model=ToplistBody)
    async def read_system_toplist(toplist_id: AnyId, page: Annotated[RankingQuery, FromQuery()]) -> Response:
        toplist = SYSTEM_TOPLISTS.get(toplist_id)
        if toplist is None:
            raise NotFound(f"there is no system toplist {toplist_id}")
        ranking = await services.hot.ranking(
            toplist.key, limit=page.limit, offset=page.offset, descending=toplist.descending
        )
        as_of = board.as_of()
        total = int(np.count_nonzero(~np.isnan(board.column(toplist.metric)[1])))
        return json_response(
            {
                "toplist_id": toplist.id,
                "toplist_type": "system",
                "title": toplist.title,
                "metric": toplist.metric,
                "timestamp": None if as_of is None else rfc3339(as_of[0]),
                "session": None if as_of is None else as_of[1],
                "rankings": [
                    {"symbol": symbol, "rank": place, "value": score, "metadata": board.some_of(symbol, _SHOWN)}
                    for place, (symbol, score) in enumerate(ranking, start=page.offset + 1)
                ],
                # The ranking may be a moment older than the board, so a place that was shown exists.
                "pagination": {
                    "limit": page.limit,
                    "offset": page.offset,
                    "total": max(total, page.offset + len(ranking) if ranking else 0),
                },
            }
        )

    return routes
