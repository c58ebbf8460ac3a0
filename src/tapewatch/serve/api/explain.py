"""Why a rule fired or did not, and which symbols came near."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from tapewatch.engine.rules.explain import Verdict
from tapewatch.explanations import operand_json
from tapewatch.serve.access import who
from tapewatch.serve.api import API
from tapewatch.serve.api.alerts import AlertBody, stored_alert
from tapewatch.serve.api.ownership import seen
from tapewatch.serve.api.query import NO_QUERY, SYMBOL, AnyId, Limit, RuleId
from tapewatch.serve.api.query import Query as Parameters
from tapewatch.serve.problems import PROBLEMS, json_response
from tapewatch.serve.services import Services


class ExplainQuery(Parameters):
    symbol: Annotated[str, Field(pattern=SYMBOL)]


class NearQuery(Parameters):
    limit: Limit = 20


class OperandBody(BaseModel):
    """What a condition reads."""

    name: str
    value: float | None
    unit: str | None
    age_s: float | None
    """Seconds since the newest trade, quote or close behind the value."""
    unknown: str | None
    """Why the value is unknown."""
    formula: str | None
    source: str | None
    """Where the formula comes from."""


class FindingBody(BaseModel):
    """A condition at the scan, and those below it."""

    text: str
    true: bool | None
    """Null is unknown."""
    lacks: float | None
    """How far the left side of a comparison that does not hold is from the right one; negative: it is too high."""
    operands: list[OperandBody]
    parts: list["FindingBody"]


class ExplanationBody(BaseModel):
    rule_id: str
    rule_version: int
    symbol: str
    at: str | None
    """Event time of the scan; null before the first one."""
    session: str
    verdict: Verdict
    why: str
    when: FindingBody | None
    gate: FindingBody | None
    rearm: FindingBody | None


class NearMissBody(BaseModel):
    symbol: str
    missing: str
    """The one condition that is not true."""
    true: Literal[False] | None
    """Null is unknown."""
    unknown: str | None
    """Why."""
    value: float | None
    """Left side of the missing comparison."""
    lacks: float | None
    lacks_pct: float | None
    """Of the right side."""


class NearMissList(BaseModel):
    items: list[NearMissBody]
    total: int


class AlertExplanation(AlertBody):
    when: str
    gate: str | None
    operands: list[OperandBody]


def router(services: Services) -> APIRouter:
    routes = APIRouter(prefix=API, tags=["explanations"], responses=PROBLEMS)

    @routes.get("/rules/{rule_id:rule_id}/explain", response_model=ExplanationBody)
    async def explain_rule(request: Request, rule_id: RuleId, query: Annotated[ExplainQuery, Query()]) -> Response:
        """Each condition's truth at the last scan, with its operands' values, ages, and why they are unknown."""
        seen(who(request), await services.store.rule(rule_id))
        return json_response(await services.explanations.explain(rule_id, query.symbol))

    @routes.get("/rules/{rule_id:rule_id}/near-misses", response_model=NearMissList)
    async def list_near_misses(request: Request, rule_id: RuleId, query: Annotated[NearQuery, Query()]) -> Response:
        """Symbols of which all conditions but one are true at the last scan, the nearest first."""
        seen(who(request), await services.store.rule(rule_id))
        items = await services.explanations.near_misses(rule_id, limit=query.limit)
        return json_response({"items": items, "total": len(items)})

    @routes.get("/alerts/{alert_id}/explanation", response_model=AlertExplanation, dependencies=[NO_QUERY])
    async def explain_alert(request: Request, alert_id: AnyId) -> Response:
        """Why an alert fired: the rule's text in the version that fired, and each operand as it was then."""
        alert = await stored_alert(services, alert_id, who(request))
        rule = await services.store.rule(alert.rule_id, alert.rule_version)
        operands: list[dict[str, Any]] = [
            operand_json(name, value, alert.ages_s.get(name, float("nan"))) for name, value in alert.values.items()
        ]
        answer = {**alert.as_json(), "when": rule.when, "gate": rule.gate or None, "operands": operands}
        return json_response(answer)

    return routes
