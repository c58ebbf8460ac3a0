"""Rules that are not saved: whether a draft is right, what it would cost, and what it would have done."""

import asyncio
from collections.abc import Awaitable
from http import HTTPStatus

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from tapewatch.documents import ConditionForm, Rule
from tapewatch.engine.rules.cost import MAX_COST_US, Cost
from tapewatch.engine.rules.tree import watchlists
from tapewatch.errors import Unavailable
from tapewatch.ports import Store
from tapewatch.serve.access import who
from tapewatch.serve.api import API
from tapewatch.serve.api.alerts import AlertBody
from tapewatch.serve.api.ownership import sees_watchlist
from tapewatch.serve.api.query import NO_QUERY
from tapewatch.serve.api.rules import NewRule, affordable, rule_body, rule_of
from tapewatch.serve.bodies import read_document
from tapewatch.serve.problems import PROBLEMS, json_response
from tapewatch.serve.services import DryRunReport, Services

MOST_EXAMPLES = 20
_DRY_RUN_S = 120.0
_LOOK_S = 0.5
_AGAIN_S = 5


class CostBody(BaseModel):
    """An estimate, for ten thousand symbols."""

    comparisons: int
    remembering: int
    """Conditions whose answer depends on earlier scans."""
    scan_us: float
    """Microseconds of one core at each scan."""
    max_scan_us: float
    """What a rule may take."""
    memory_bytes: int


class Validity(BaseModel):
    valid: bool
    when: str
    """What the rule asks, as text in its one canonical form."""
    conditions: list[ConditionForm]
    """The same as JSON."""
    reads: list[str]
    """Metrics, such as ``close_5m[1]``."""
    cost: CostBody
    warnings: list[str]


class DayOfFires(BaseModel):
    date: str
    fires: int


class DryRunBody(BaseModel):
    fires: list[DayOfFires]
    """Of each trading day of the tape."""
    symbols: int
    """That it fired for."""
    symbols_share: float | None
    """Of the tape's symbols, those that it fired for."""
    examples: list[AlertBody]
    seconds: float
    """That the dry run took."""
    measured_s: float | None
    """Processor time that the rule alone took for the whole tape."""
    cost: CostBody
    warnings: list[str]


def router(services: Services) -> APIRouter:
    routes = APIRouter(prefix=f"{API}/rules", tags=["rules"], responses=PROBLEMS)
    running = asyncio.Lock()

    @routes.post("/validate", response_model=Validity, openapi_extra=rule_body(NewRule), dependencies=[NO_QUERY])
    async def validate_rule(request: Request) -> Response:
        draft = await read_document(request, NewRule)
        rule = _rule(draft, who(request).user_id)
        estimate = affordable(rule, draft)
        return json_response(
            {
                "valid": True,
                "when": rule.when,
                "conditions": rule.model_dump()["conditions"],
                "reads": estimate.metrics,
                "cost": _cost(estimate),
                "warnings": await _warnings(services.store, rule),
            }
        )

    @routes.post(
        "/dry-run",
        response_model=DryRunBody,
        openapi_extra=rule_body(NewRule),
        dependencies=[NO_QUERY],
        description="What the rule would have done on the stored tape. One dry run at a time: another is told with 503 "
        "and `Retry-After` to come again.",
    )
    async def try_rule(request: Request) -> Response:
        draft = await read_document(request, NewRule)
        rule = _rule(draft, who(request).user_id).model_copy(update={"enabled": True})
        estimate = affordable(rule, draft)
        if services.dry_run is None:
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "this installation has no tape to try rules on")
        if running.locked():
            headers = {"Retry-After": str(_AGAIN_S)}
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "another dry run is going on", headers=headers)
        async with running:
            try:
                async with asyncio.timeout(_DRY_RUN_S):
                    report = await _while_connected(request, services.dry_run([rule]))
            except TimeoutError:
                raise Unavailable(f"the dry run took more than {_DRY_RUN_S:.0f} s and was ended") from None
        broad = [f"too broad: it {report.too_broad}"] if report.too_broad else []
        return json_response(
            {
                "fires": [{"date": date, "fires": fires} for date, fires in report.fires.items()],
                "symbols": report.symbols,
                "symbols_share": report.symbols_share,
                "examples": [alert.as_json() for alert in report.examples[:MOST_EXAMPLES]],
                "seconds": report.seconds,
                "measured_s": report.measured_s,
                "cost": _cost(estimate),
                "warnings": [*broad, *await _warnings(services.store, rule)],
            }
        )

    return routes


def _rule(draft: NewRule, owner: str) -> Rule:
    return rule_of(draft, id=draft.id or "draft", owner=owner)


def _cost(estimate: Cost) -> dict[str, float]:
    return {
        "comparisons": estimate.comparisons,
        "remembering": estimate.remembering,
        "scan_us": estimate.scan_us,
        "max_scan_us": MAX_COST_US,
        "memory_bytes": estimate.memory_bytes,
    }


async def _warnings(store: Store, rule: Rule) -> list[str]:
    """What is allowed, and hardly meant."""
    spec, found = rule.spec(), []
    if spec.fire.mode == "level" and not spec.cooldown_ns:
        found.append("it fires at every scan while it is true: give it a cooldown")
    unknown = [name for name in watchlists(*spec.conditions) if not await sees_watchlist(store, rule.owner, name)]
    return [*found, *(f"there is no watchlist {name}: it counts as empty" for name in unknown)]


async def _while_connected(request: Request, work: Awaitable[DryRunReport]) -> DryRunReport:
    """The result, unless the client leaves before; whatever happens, the work has ended."""
    running = asyncio.ensure_future(work)
    try:
        while not running.done():
            await asyncio.wait([running], timeout=_LOOK_S)
            if await request.is_disconnected():
                raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, "the client has left")
        return await running
    finally:
        running.cancel()
        await asyncio.wait([running])
