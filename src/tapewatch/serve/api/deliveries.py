"""What became of alerts on their way to channels, newest first, page by page from a cursor; and one more try."""

import base64
import re
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi import Query as FromQuery
from fastapi.responses import Response
from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from tapewatch.delivery_documents import Delivery, DeliveryKind, DeliveryState
from tapewatch.documents import rfc3339
from tapewatch.errors import Invalid, NotFound
from tapewatch.ports import DeliveryQuery
from tapewatch.serve.access import who
from tapewatch.serve.api import API
from tapewatch.serve.api.channels import announce
from tapewatch.serve.api.ownership import viewer_of
from tapewatch.serve.api.query import IDENTIFIER, NO_QUERY, AnyId, Limit, Query
from tapewatch.serve.problems import PROBLEMS, json_response
from tapewatch.serve.services import Services

_CURSOR = re.compile(r"delivery:([0-9]{1,19}):([A-Za-z0-9][A-Za-z0-9_.\-]{0,63})")
_LATEST_NS = 2**63 - 1


class DeliveriesQuery(Query):
    state: DeliveryState | SkipJsonSchema[None] = None
    channel_id: Annotated[str, Field(pattern=IDENTIFIER)] | SkipJsonSchema[None] = None
    limit: Limit = 100
    cursor: (
        Annotated[str, Field(max_length=200, json_schema_extra={"format": "delivery-cursor"})] | SkipJsonSchema[None]
    ) = None


class DeliveryBody(BaseModel):
    delivery_id: str
    owner: str
    channel_id: str
    kind: DeliveryKind
    state: DeliveryState
    alert_id: str | None
    rule_id: str | None
    symbol: str | None
    subscriptions: list[str]
    at: str
    next_try_at: str | None
    attempts: int
    error: str | None
    """Of the last attempt."""
    digest_id: str | None
    """The delivery in which it is told."""
    sent_at: str | None
    body: dict[str, Any]
    """What it tells."""


class DeliveryPage(BaseModel):
    items: list[DeliveryBody]
    next_cursor: str | None


def router(services: Services) -> APIRouter:
    store = services.store
    routes = APIRouter(prefix=f"{API}/deliveries", tags=["channels"], responses=PROBLEMS)

    async def own(request: Request, delivery_id: str) -> Delivery:
        delivery = await store.delivery(delivery_id)
        if not who(request).sees(delivery.owner):
            raise NotFound(f"there is no delivery {delivery_id}")
        return delivery

    @routes.get("", response_model=DeliveryPage)
    async def list_deliveries(request: Request, query: Annotated[DeliveriesQuery, FromQuery()]) -> Response:
        """One's own; an admin's list has everybody's."""
        deliveries = await store.deliveries(
            DeliveryQuery(
                owner=viewer_of(who(request)),
                channel_id=query.channel_id,
                state=query.state,
                before=None if query.cursor is None else read_cursor(query.cursor),
                limit=query.limit + 1,  # one more tells whether there is a next page
            )
        )
        page = deliveries[: query.limit]
        next_cursor = write_cursor(page[-1]) if len(deliveries) > len(page) else None
        return json_response({"items": [_body(delivery) for delivery in page], "next_cursor": next_cursor})

    @routes.get("/{delivery_id}", response_model=DeliveryBody, dependencies=[NO_QUERY])
    async def read_delivery(request: Request, delivery_id: AnyId) -> Response:
        return json_response(_body(await own(request, delivery_id)))

    @routes.post(
        "/{delivery_id}/replay",
        response_model=DeliveryBody,
        dependencies=[NO_QUERY],
        description="Sends once more what is dead or was sent, with the same `Idempotency-Key`; 409 for what waits.",
    )
    async def replay_delivery(request: Request, delivery_id: AnyId) -> Response:
        await own(request, delivery_id)
        again = await store.replay_delivery(delivery_id, now_ns=services.clock.now_ns())
        await announce(services.bus)
        return json_response(_body(again))

    return routes


def _body(delivery: Delivery) -> dict[str, Any]:
    waits = delivery.state in {"pending", "held"}
    return {
        "delivery_id": delivery.delivery_id,
        "owner": delivery.owner,
        "channel_id": delivery.channel_id,
        "kind": delivery.kind,
        "state": delivery.state,
        "alert_id": delivery.alert_id or None,
        "rule_id": delivery.rule_id or None,
        "symbol": delivery.symbol or None,
        "subscriptions": list(delivery.subscriptions),
        "at": rfc3339(delivery.at_ns),
        "next_try_at": rfc3339(delivery.next_try_ns) if waits else None,
        "attempts": delivery.attempts,
        "error": delivery.error or None,
        "digest_id": delivery.digest_id or None,
        "sent_at": rfc3339(delivery.sent_ns) if delivery.sent_ns else None,
        "body": delivery.body,
    }


def write_cursor(delivery: Delivery) -> str:
    return base64.urlsafe_b64encode(f"delivery:{delivery.at_ns}:{delivery.delivery_id}".encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> tuple[int, str]:
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        place = _CURSOR.fullmatch(base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii"))
    except ValueError:  # which base64's and ASCII's own errors are
        place = None
    if place is None or int(place[1]) > _LATEST_NS:
        raise Invalid("query.cursor", "is not a cursor of this list")
    return int(place[1]), place[2]
