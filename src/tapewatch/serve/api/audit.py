"""Who changed which rule, watchlist, toplist, subscription, channel, user, sign-in or token, newest first, page by page
from a cursor. Entries are kept for ninety days.
"""

import base64
import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from fastapi import Query as FromQuery
from fastapi.responses import Response
from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from tapewatch.documents import rfc3339
from tapewatch.errors import Invalid
from tapewatch.ports import AuditEntry, AuditKind, AuditQuery
from tapewatch.serve.api import API
from tapewatch.serve.api.alerts import Instant, parse_instant_ns
from tapewatch.serve.api.query import IDENTIFIER, Limit, Query
from tapewatch.serve.problems import PROBLEMS, json_response
from tapewatch.serve.services import Services

_CURSOR = re.compile(r"audit:([0-9]{1,18})")


class AuditFilter(Query):
    kind: AuditKind | SkipJsonSchema[None] = None
    subject: Annotated[str, Field(pattern=IDENTIFIER)] | SkipJsonSchema[None] = None
    """The id of what was changed."""
    since: Instant | SkipJsonSchema[None] = None
    limit: Limit = 100
    cursor: (
        Annotated[str, Field(max_length=200, json_schema_extra={"format": "audit-cursor"})] | SkipJsonSchema[None]
    ) = None


class AuditBody(BaseModel):
    at: str
    actor: str
    action: Literal["create", "change", "delete"]
    kind: AuditKind
    subject: str
    version: int
    before: dict[str, Any]
    """The fields that changed; of a watchlist's symbols those that went."""
    after: dict[str, Any]
    """The same fields afterwards; of a watchlist's symbols those that came."""


class AuditPage(BaseModel):
    items: list[AuditBody]
    next_cursor: str | None


def router(services: Services) -> APIRouter:
    routes = APIRouter(prefix=f"{API}/audit", tags=["audit"], responses=PROBLEMS)

    @routes.get("", response_model=AuditPage)
    async def list_changes(query: Annotated[AuditFilter, FromQuery()]) -> Response:
        entries = await services.store.audit(
            AuditQuery(
                kind=query.kind,
                subject=query.subject,
                since_ns=None if query.since is None else parse_instant_ns(query.since, where="query.since"),
                before=None if query.cursor is None else read_cursor(query.cursor),
                limit=query.limit + 1,  # one more tells whether there is a next page
            )
        )
        page = entries[: query.limit]
        next_cursor = write_cursor(page[-1].entry) if len(entries) > len(page) else None
        return json_response({"items": [_body(entry) for entry in page], "next_cursor": next_cursor})

    return routes


def _body(entry: AuditEntry) -> dict[str, Any]:
    return {
        "at": rfc3339(entry.at_ns),
        "actor": entry.actor,
        "action": entry.action,
        "kind": entry.kind,
        "subject": entry.subject,
        "version": entry.version,
        "before": entry.before,
        "after": entry.after,
    }


def write_cursor(entry: int) -> str:
    return base64.urlsafe_b64encode(f"audit:{entry}".encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> int:
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        place = _CURSOR.fullmatch(base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii"))
    except ValueError:  # which base64's and ASCII's own errors are
        place = None
    if place is None:
        raise Invalid("query.cursor", "is not a cursor of this list")
    return int(place[1])
