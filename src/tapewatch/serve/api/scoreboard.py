"""How the running day's alerts of each rule have fared: what the scoreboard role keeps in hot state, as it is, or as
much of it as somebody sees.
"""

from typing import Any

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel

from tapewatch.accounts.roles import Principal
from tapewatch.serve.access import who
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
    async def read_scoreboard(request: Request) -> Response:
        principal = who(request)
        (shown,) = await services.hot.get([KEY])
        if shown is None:
            return json_response(_EMPTY)
        if principal.role == "admin":
            return Response(shown, media_type="application/json")
        return json_response(_as_seen(msgspec.json.decode(shown), principal))

    return routes


def _as_seen(board: dict[str, Any], principal: Principal) -> dict[str, Any]:
    """Their own and shared rules, and sums of these."""
    rules = [rule for rule in board["rules"] if principal.sees(rule["owner"], shared=rule["shared"])]
    sums = {name: sum(rule[name] for rule in rules) for name in ("alerts", "unfollowed")}
    return {**board, **sums, "rules": rules}
