"""The metric catalogue: the words that rules and toplists are written in."""

from dataclasses import fields
from functools import cache

import msgspec
from fastapi import APIRouter
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
def _catalogue() -> bytes:
    """It never changes while the program runs, and takes milliseconds to write."""
    items = [{name: getattr(metric, name) for name in _FIELDS} for metric in CATALOGUE.values()]
    return msgspec.json.encode({"items": items, "total": len(items)})


def router() -> APIRouter:
    routes = APIRouter(prefix=f"{API}/metrics", tags=["metrics"], responses=PROBLEMS)

    @routes.get("", response_model=MetricCatalogue, dependencies=[NO_QUERY])
    async def list_metrics() -> Response:
        return encoded_response(_catalogue())

    return routes
