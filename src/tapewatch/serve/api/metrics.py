"""The metric catalogue: the words that rules and toplists are written in."""

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel

from tapewatch.engine.metrics import CATALOGUE
from tapewatch.serve.api import API
from tapewatch.serve.api.query import NO_QUERY
from tapewatch.serve.problems import PROBLEMS, json_response


class MetricInfo(BaseModel):
    name: str
    unit: str
    formula: str


class MetricCatalogue(BaseModel):
    items: list[MetricInfo]
    total: int


def router() -> APIRouter:
    routes = APIRouter(prefix=f"{API}/metrics", tags=["metrics"], responses=PROBLEMS)

    @routes.get("", response_model=MetricCatalogue, dependencies=[NO_QUERY])
    async def list_metrics() -> Response:
        items = [{"name": m.name, "unit": m.unit, "formula": m.formula} for m in CATALOGUE.values()]
        return json_response({"items": items, "total": len(items)})

    return routes
