"""Subscriptions: list, create, read, replace, delete, mute."""

from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi import Query as FromQuery
from fastapi.responses import Response
from pydantic import BaseModel, Field

from tapewatch.delivery_documents import Subscription, SubscriptionDraft
from tapewatch.documents import DAY_S, Document, rfc3339
from tapewatch.engine.columns import SECOND_NS
from tapewatch.errors import Invalid
from tapewatch.serve.access import who
from tapewatch.serve.api import API
from tapewatch.serve.api.channels import announce
from tapewatch.serve.api.ownership import own
from tapewatch.serve.api.query import NO_QUERY, AnyId, Page
from tapewatch.serve.api.versions import (
    ABSENT,
    LOCATION,
    WHOLE,
    VersionNumber,
    changed,
    check_match,
    created,
    etag,
    new_id,
)
from tapewatch.serve.bodies import described, read_document
from tapewatch.serve.idempotency import IdempotencyKey, once
from tapewatch.serve.problems import PROBLEMS, json_response
from tapewatch.serve.services import Services

MOST_MUTE_S = 7 * DAY_S


class SubscriptionChange(SubscriptionDraft):
    """A draft that replaces a subscription; with `version`, only if that is still the stored one."""

    version: Annotated[VersionNumber, ABSENT] = 0


class Mute(Document):
    """For how long nothing is told; 0 ends it."""

    seconds: Annotated[int, Field(ge=0, le=MOST_MUTE_S), WHOLE]


class SubscriptionList(BaseModel):
    items: list[Subscription]
    total: int


def router(services: Services) -> APIRouter:
    store, clock, bus = services.store, services.clock, services.bus
    routes = APIRouter(prefix=f"{API}/subscriptions", tags=["channels"], responses=PROBLEMS)

    async def theirs(request: Request, subscription_id: str) -> Subscription:
        return own(who(request), await store.subscription(subscription_id))

    async def check_channels(draft: SubscriptionDraft, owner: str) -> None:
        known = {channel.id for channel in await store.channels(owner)} if draft.channels else set()
        for place, channel_id in enumerate(draft.channels):
            if channel_id not in known:
                raise Invalid(f"body.channels[{place}]", "is none of the owner's channels")

    @routes.get("", response_model=SubscriptionList)
    async def list_subscriptions(request: Request, page: Annotated[Page, FromQuery()]) -> Response:
        subscriptions = await store.subscriptions(who(request).user_id)
        items = subscriptions[page.offset : page.offset + page.limit]
        return json_response({"items": [item.shown() for item in items], "total": len(subscriptions)})

    @routes.post(
        "",
        status_code=201,
        response_model=Subscription,
        responses={201: LOCATION},
        openapi_extra=described(SubscriptionDraft),
        dependencies=[NO_QUERY],
    )
    async def create_subscription(request: Request, key: IdempotencyKey = None) -> Response:
        draft = await read_document(request, SubscriptionDraft)
        return await once(services, request, key, draft, lambda: create(request, draft))

    async def create(request: Request, draft: SubscriptionDraft) -> Response:
        now, owner = rfc3339(clock.now_ns()), who(request).user_id
        await check_channels(draft, owner)

        def make() -> Subscription:
            chosen = new_id(draft.name, kind="subscription")
            return _subscription(draft, id=chosen, owner=owner, created_at=now, updated_at=now)

        stored = await created("", make, lambda subscription: store.save_subscription(subscription, actor=owner))
        await announce(bus)
        location = str(request.url_for("read_subscription", subscription_id=stored.id).path)
        return json_response(stored.shown(), status=201, headers={"Location": location, **etag(stored)})

    @routes.get("/{subscription_id}", response_model=Subscription, dependencies=[NO_QUERY])
    async def read_subscription(request: Request, subscription_id: AnyId) -> Response:
        subscription = await theirs(request, subscription_id)
        return json_response(subscription.shown(), headers=etag(subscription))

    @routes.put(
        "/{subscription_id}",
        response_model=Subscription,
        openapi_extra=described(SubscriptionChange),
        dependencies=[NO_QUERY],
        description="Without `version` and `If-Match`, the last writer wins. `If-Match` takes the ETag of a read.",
    )
    async def replace_subscription(request: Request, subscription_id: AnyId) -> Response:
        draft = await read_document(request, SubscriptionChange)

        async def make(known: Subscription) -> Subscription:
            await check_channels(draft, known.owner)
            return _subscription(
                draft,
                id=subscription_id,
                owner=known.owner,
                version=known.version + 1,
                created_at=known.created_at,
                updated_at=rfc3339(clock.now_ns()),
            )

        return await change(request, subscription_id, make, version=draft.version)

    @routes.post(
        "/{subscription_id}/mute",
        response_model=Subscription,
        openapi_extra=described(Mute),
        dependencies=[NO_QUERY],
    )
    async def mute_subscription(request: Request, subscription_id: AnyId) -> Response:
        mute = await read_document(request, Mute)

        async def make(known: Subscription) -> Subscription:
            now_ns = clock.now_ns()
            until = rfc3339(now_ns + mute.seconds * SECOND_NS) if mute.seconds else ""
            return known.model_copy(
                update={"muted_until": until, "version": known.version + 1, "updated_at": rfc3339(now_ns)}
            )

        return await change(request, subscription_id, make)

    async def change(request: Request, subscription_id: str, make: Any, *, version: int = 0) -> Response:
        stored, _ = await changed(
            request,
            read=lambda: theirs(request, subscription_id),
            make=make,
            save=lambda subscription: store.save_subscription(subscription, actor=who(request).user_id),
            version=version,
        )
        await announce(bus)
        return json_response(stored.shown(), headers=etag(stored))

    @routes.delete(
        "/{subscription_id}",
        status_code=204,
        dependencies=[NO_QUERY],
        description="`If-Match` takes the ETag of a read.",
    )
    async def delete_subscription(request: Request, subscription_id: AnyId) -> Response:
        check_match(request, await theirs(request, subscription_id))
        await store.delete_subscription(subscription_id, actor=who(request).user_id)
        await announce(bus)
        return Response(status_code=204)

    return routes


def _subscription(draft: SubscriptionDraft, **fields: Any) -> Subscription:
    written = {name: getattr(draft, name) for name in SubscriptionDraft.model_fields}
    return Subscription(**written, **fields)
