"""How the running day's alerts of each rule have fared: what the scoreboard role keeps in hot state, as it is."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel

from tapewatch.serve.api import API
from tapewatch.serve.api.query import NO_QUERY
from tapewatch.serve.problems import PROBLEMS, json_response
from tapewatch.serve.services import Services

KEY = "scoreboard"
_EMPTY: dict[str, Any] = {"date": None, "as_of": None, "symbols": 0, "alerts": 0, "unfollowed": 0, "rules": []}


class Scoreboard(BaseModel):
    date: str | None
    """The trading day; null until a rule has fired."""
    as_of: str | None
    symbols: int
    """That traded."""
    alerts: int
    unfollowed: int
    """Alerts whose outcome nobody followed."""
    rules: list[dict[str, Any]]
    """Those that fired, the most frequent first."""


def router(services: Services) -> APIRouter:
    routes = APIRouter(prefix=f"{API}/scoreboard", tags=["alerts"], responses=PROBLEMS)

    @routes.get("", response_model=Scoreboard, dependencies=[NO_QUERY])
    async def read_scoreboard() -> Response:
        (shown,) = await services.hot.get([KEY])
        return json_response(_EMPTY) if shown is None else Response(shown, media_type="application/json")

    return routes
