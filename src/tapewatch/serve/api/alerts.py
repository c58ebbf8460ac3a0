"""Alert history, newest first, page by page from a cursor: a page costs the same however far back it lies.

People see the alerts of their own rules, and those of rules that were shared when they fired.
"""

import base64
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi import Query as FromQuery
from fastapi.responses import Response
from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from tapewatch.accounts.roles import Principal
from tapewatch.documents import DAY_S, Alert
from tapewatch.engine.columns import SECOND_NS
from tapewatch.errors import Invalid, NotFound
from tapewatch.ports import AlertQuery
from tapewatch.serve.access import who
from tapewatch.serve.api import API
from tapewatch.serve.api.ownership import viewer_of
from tapewatch.serve.api.query import IDENTIFIER, NO_QUERY, SYMBOL, AnyId, Limit, Query
from tapewatch.serve.problems import PROBLEMS, json_response
from tapewatch.serve.services import Services

_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,18}))?"
    r"(?:[Zz]|([+-])([01][0-9]|2[0-3]):([0-5][0-9]))"
)
_CURSOR = re.compile(r"([0-9]{1,19}):([A-Za-z0-9][A-Za-z0-9_.\-]{0,63})")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST_NS = 2**63 - 1
_LOOKS, _LOOK_AGAIN_S = 20, 0.1

Instant = Annotated[str, Field(max_length=64, json_schema_extra={"format": "date-time"})]


class AlertsQuery(Query):
    symbol: Annotated[str, Field(pattern=SYMBOL)] | SkipJsonSchema[None] = None
    rule_id: Annotated[str, Field(pattern=IDENTIFIER)] | SkipJsonSchema[None] = None
    since: Instant | SkipJsonSchema[None] = None
    until: Instant | SkipJsonSchema[None] = None
    limit: Limit = 100
    cursor: (
        Annotated[str, Field(max_length=200, json_schema_extra={"format": "alert-cursor"})] | SkipJsonSchema[None]
    ) = None


class LatencyBody(BaseModel):
    """When an alert passed which place, by the wall clock; null where nobody looked at one, such as in a replay."""

    received: str | None
    """The trades that led to it came in."""
    scanned: str | None
    """The scanner told it."""
    filtered: str | None
    """It was passed on to screens and history."""


class AlertBody(BaseModel):
    alert_id: str
    rule_id: str
    rule_version: int
    rule_name: str
    symbol: str
    fired_at: str
    price: float | None
    values: dict[str, float | None]
    session: str
    note: str | None
    """What was learned after it fired, such as that a print before it was cancelled; a line each."""
    ages: dict[str, float | None]
    """How old each value was when it fired, in seconds of event time."""
    severity: str
    tags: list[str]
    owner: str
    """The user whose rule fired."""
    shared: bool
    """The rule was shared when it fired."""
    latency: LatencyBody


class AlertPage(BaseModel):
    items: list[AlertBody]
    next_cursor: str | None


def router(services: Services) -> APIRouter:
    routes = APIRouter(prefix=f"{API}/alerts", tags=["alerts"], responses=PROBLEMS)

    @routes.get("", response_model=AlertPage)
    async def list_alerts(request: Request, query: Annotated[AlertsQuery, FromQuery()]) -> Response:
        alerts = await services.store.alerts(
            AlertQuery(
                symbol=query.symbol,
                rule_id=query.rule_id,
                since_ns=_instant_ns(query.since, "query.since"),
                until_ns=_instant_ns(query.until, "query.until"),
                before=None if query.cursor is None else read_cursor(query.cursor),
                limit=query.limit + 1,  # one more tells whether there is a next page
                viewer=viewer_of(who(request)),
            )
        )
        page = alerts[: query.limit]
        more = len(alerts) > len(page)
        next_cursor = write_cursor(page[-1].fired_at_ns, page[-1].alert_id) if more else None
        return json_response({"items": [alert.as_json() for alert in page], "next_cursor": next_cursor})

    @routes.get("/{alert_id}", response_model=AlertBody, dependencies=[NO_QUERY])
    async def read_alert(request: Request, alert_id: AnyId) -> Response:
        return json_response((await stored_alert(services, alert_id, who(request))).as_json())

    return routes


async def stored_alert(services: Services, alert_id: str, principal: Principal) -> Alert:
    """The alert if they see it; one that a screen shows already may be on its way to the store for a moment."""
    alert = await _awaited(services, alert_id)
    if not principal.sees(alert.owner, shared=alert.shared):
        raise NotFound(f"there is no alert {alert_id}")
    return alert


async def _awaited(services: Services, alert_id: str) -> Alert:
    for _ in range(_LOOKS):
        try:
            return await services.store.alert(alert_id)
        except NotFound:
            (claimed,) = await services.hot.get([f"alert:{alert_id}"])
            if claimed is None:
                raise
            await services.clock.sleep(_LOOK_AGAIN_S)
    return await services.store.alert(alert_id)


def write_cursor(fired_at_ns: int, alert_id: str) -> str:
    return base64.urlsafe_b64encode(f"{fired_at_ns}:{alert_id}".encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> tuple[int, str]:
    """A cursor names a place, not a right: a forged one shows nothing that a query would not."""
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        place = _CURSOR.fullmatch(base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii"))
    except ValueError:  # which base64's and ASCII's own errors are
        place = None
    if place is None or int(place[1]) > _LATEST_NS:
        raise Invalid("query.cursor", "is not a cursor of this list")
    return int(place[1]), place[2]


def _instant_ns(text: str | None, where: str) -> int | None:
    return None if text is None else parse_instant_ns(text, where=where)


def parse_instant_ns(text: str, *, where: str) -> int:
    """RFC 3339 to nanoseconds since the epoch, kept within int64: no alert is older or newer than that."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise Invalid(where, "is not a time such as 2025-03-04T14:30:00Z")
    day, second, fraction, sign, hours, minutes = match.groups()
    try:
        local = datetime.fromisoformat(f"{day}T{second}+00:00")
    except ValueError:
        raise Invalid(where, "is not a time that exists") from None
    since_epoch = local - _EPOCH
    if sign:
        ahead = timedelta(hours=int(hours), minutes=int(minutes))
        since_epoch += -ahead if sign == "+" else ahead
    seconds = since_epoch.days * DAY_S + since_epoch.seconds
    nanoseconds = int((fraction or "0")[:9].ljust(9, "0"))
    return min(max(seconds * SECOND_NS + nanoseconds, 0), _LATEST_NS)
