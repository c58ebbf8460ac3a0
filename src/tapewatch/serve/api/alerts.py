"""Alert history, page by page from a cursor: a page costs the same however far back it lies.

People see the alerts of their own rules, and those of rules that were shared when they fired. Beside each alert stands
what the user who asks has put on it (`alert_marks`).
"""

import base64
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Request
from fastapi import Query as FromQuery
from fastapi.responses import Response
from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from tapewatch.accounts.roles import Principal
from tapewatch.documents import DAY_S, Alert, Text, rfc3339
from tapewatch.engine.columns import SECOND_NS
from tapewatch.errors import Invalid, NotFound
from tapewatch.ports import AlertKey, AlertMark, AlertQuery, Store
from tapewatch.serve.access import who
from tapewatch.serve.api import API
from tapewatch.serve.api.ownership import viewer_of
from tapewatch.serve.api.query import IDENTIFIER, NO_QUERY, SYMBOL, AnyId, Limit, Query, Switch, some_of, words
from tapewatch.serve.problems import PROBLEMS, encoded_response
from tapewatch.serve.services import Services

_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,18}))?"
    r"(?:[Zz]|([+-])([01][0-9]|2[0-3]):([0-5][0-9]))"
)
_CURSOR = re.compile(r"([0-9]{1,19}):([A-Za-z0-9][A-Za-z0-9_.\-]{0,63})")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST_NS = 2**63 - 1
_LOOKS, _LOOK_AGAIN_S = 20, 0.1
_WRITTEN = 10_000
"""Alerts, some 500 bytes each; beyond that, all are written again."""
MOST_YEARS = 20
"""Between two instants of one question."""

Instant = Annotated[str, Field(max_length=64, json_schema_extra={"format": "date-time"})]


class AlertFilter(Query):
    """Several words with commas between them ask for alerts that have one of them."""

    symbol: Annotated[str, some_of(SYMBOL)] | SkipJsonSchema[None] = None
    rule_id: Annotated[str, some_of(IDENTIFIER)] | SkipJsonSchema[None] = None
    severity: Annotated[str, some_of("(?:info|warning|critical)", most=3)] | SkipJsonSchema[None] = None
    session: Annotated[str, some_of("(?:pre|regular|post|closed)", most=4)] | SkipJsonSchema[None] = None
    tag: Annotated[str, some_of(IDENTIFIER, most=16)] | SkipJsonSchema[None] = None
    q: (
        Annotated[Text, Field(min_length=1, max_length=120, json_schema_extra={"format": "plain-text"})]
        | SkipJsonSchema[None]
    ) = None
    """A part of the rule's name, ASCII letters in any case."""
    acknowledged: Switch | SkipJsonSchema[None] = None
    """By the user who asks."""
    since: Instant | SkipJsonSchema[None] = None
    until: Instant | SkipJsonSchema[None] = None
    sort: Literal["newest", "oldest"] = "newest"


class AlertsQuery(AlertFilter):
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


class MarkBody(BaseModel):
    """What the user who asks has put on an alert; nobody else sees it."""

    acknowledged_at: str | None
    note: str
    version: int


class MarkedAlert(AlertBody):
    mark: MarkBody | None


class AlertPage(BaseModel):
    items: list[MarkedAlert]
    next_cursor: str | None


def router(services: Services) -> APIRouter:
    routes = APIRouter(prefix=f"{API}/alerts", tags=["alerts"], responses=PROBLEMS)
    bodies = _Bodies(services.store)

    @routes.get("", response_model=AlertPage)
    async def list_alerts(request: Request, query: Annotated[AlertsQuery, FromQuery()]) -> Response:
        seen = None if query.cursor is None else read_cursor(query.cursor)
        wanted = asked_for(query, who(request), seen=seen)
        # One more tells whether there is a next page.
        keys = await services.store.alert_keys(wanted._replace(limit=query.limit + 1))
        page = keys[: query.limit]
        more = len(keys) > len(page)
        next_cursor = write_cursor(page[-1].fired_at_ns, page[-1].alert_id) if more else None
        items = b",".join(await bodies.marked(who(request), page))
        return encoded_response(b'{"items":[%b],"next_cursor":%b}' % (items, msgspec.json.encode(next_cursor)))

    @routes.get("/{alert_id}", response_model=MarkedAlert, dependencies=[NO_QUERY])
    async def read_alert(request: Request, alert_id: AnyId) -> Response:
        alert = await stored_alert(services, alert_id, who(request))
        body, mark = bodies.written(alert), await services.store.alert_marks(who(request).user_id, [alert_id])
        return encoded_response(body + _end(mark.get(alert_id)))

    return routes


def asked_for(query: AlertFilter, asking: Principal, *, seen: tuple[int, str] | None = None) -> AlertQuery:
    """Of what they see. `seen`: the last alert of the page before."""
    since_ns, until_ns = time_range(query.since, query.until, names=("query.since", "query.until"))
    return AlertQuery(
        viewer=viewer_of(asking),
        symbols=words(query.symbol),
        rule_ids=words(query.rule_id),
        severities=words(query.severity),
        sessions=words(query.session),
        tags=words(query.tag),
        name_part=query.q or "",
        acknowledged_by=asking.user_id if query.acknowledged is True else None,
        not_acknowledged_by=asking.user_id if query.acknowledged is False else None,
        since_ns=since_ns,
        until_ns=until_ns,
        oldest_first=query.sort == "oldest",
        before=seen if query.sort == "newest" else None,
        after=seen if query.sort == "oldest" else None,
    )


class _Bodies:
    """Alerts as JSON, each written once: of a stored alert nothing changes but its note."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._written: dict[tuple[str, str], bytes] = {}
        """By id and note."""

    async def marked(self, asking: Principal, keys: Sequence[AlertKey]) -> list[bytes]:
        """With the marks of who asks. What has been forgotten since the keys were read is left out."""
        marks = await self._store.alert_marks(asking.user_id, [key.alert_id for key in keys])
        bodies = {key.alert_id: self._written.get((key.alert_id, key.note)) for key in keys}
        missing = [alert_id for alert_id, body in bodies.items() if body is None]
        if missing:
            bodies |= {alert.alert_id: self.written(alert) for alert in await self._store.alerts_of(missing)}
        return [body + _end(marks.get(alert_id)) for alert_id, body in bodies.items() if body is not None]

    def written(self, alert: Alert) -> bytes:
        """Up to the place where the mark goes."""
        key = alert.alert_id, alert.note
        body = self._written.get(key)
        if body is None:
            if len(self._written) >= _WRITTEN:
                self._written.clear()
            body = self._written[key] = msgspec.json.encode({**alert.as_json(), "mark": None})[: -len(b"null}")]
        return body


def _end(mark: AlertMark | None) -> bytes:
    return b"null}" if mark is None else msgspec.json.encode(mark_json(mark)) + b"}"


def mark_json(mark: AlertMark) -> dict[str, Any]:
    seen_ns = mark.acknowledged_at_ns
    return {
        "acknowledged_at": None if seen_ns is None else rfc3339(seen_ns),
        "note": mark.note,
        "version": mark.version,
    }


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


def time_range(start: str | None, end: str | None, *, names: tuple[str, str]) -> tuple[int | None, int | None]:
    """From when until before when, in nanoseconds; `Invalid` for more than `MOST_YEARS`."""
    start_ns = None if start is None else parse_instant_ns(start, where=names[0])
    end_ns = None if end is None else parse_instant_ns(end, where=names[1])
    if start_ns is not None and end_ns is not None and end_ns - start_ns > MOST_YEARS * 366 * DAY_S * SECOND_NS:
        raise Invalid(names[1], f"is more than {MOST_YEARS} years after the beginning")
    return start_ns, end_ns


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
