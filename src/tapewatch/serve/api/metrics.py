"""The metric catalogue: the words that rules and toplists are written in."""

from dataclasses import fields
from functools import cache
from hashlib import blake2b

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from tapewatch.engine.metrics import CATALOGUE, Metric
from tapewatch.serve.api import API
from tapewatch.serve.api.query import NO_QUERY
from tapewatch.serve.problems import PROBLEMS, encoded_response


class MetricInfo(BaseModel):
    name: str
    unit: str
    formula: str
    timeframe: str = Field(description="The window or candle that it looks at; empty for an instant.")
    warm_up: str = Field(description="What must have been seen first; empty for nothing but a trade.")
    session: str = Field(description="When it can be known: any, day, pre, regular, post or after open.")
    freshness: str = Field(
        description="What moves it: trade, quote, second, minute, candle, status, day, clock or scan."
    )
    source: str = Field(description="Whose definition it is; empty for the plain meaning of its words.")
    needs: str = Field(description="Data beside the symbol's own trades: reference, quotes or index; or empty.")
    back: int = Field(description="How many closed candles back a rule may ask for it, as in name[1].")
    published: bool = Field(description="It stands on the boards of lists and pages.")


class MetricCatalogue(BaseModel):
    items: list[MetricInfo]
    total: int


_FIELDS = tuple(field.name for field in fields(Metric) if field.name in MetricInfo.model_fields)


@cache
def _catalogue() -> tuple[bytes, str]:
    """As JSON, and its ETag. It never changes while the program runs, and takes milliseconds to write."""
    items = [{name: getattr(metric, name) for name in _FIELDS} for metric in CATALOGUE.values()]
    body = msgspec.json.encode({"items": items, "total": len(items)})
    return body, f'"{blake2b(body, digest_size=12).hexdigest()}"'


def router() -> APIRouter:
    routes = APIRouter(prefix=f"{API}/metrics", tags=["metrics"], responses=PROBLEMS)

    @routes.get(
        "",
        response_model=MetricCatalogue,
        responses={304: {"description": "`If-None-Match` named the ETag of this catalogue"}},
        dependencies=[NO_QUERY],
    )
    async def list_metrics(request: Request) -> Response:
        body, etag = _catalogue()
        headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
        known = request.headers.get("if-none-match", "").replace("W/", "").split(",")
        if etag in map(str.strip, known):
            return Response(status_code=304, headers=headers)
        return encoded_response(body, headers=headers)

    return routes
