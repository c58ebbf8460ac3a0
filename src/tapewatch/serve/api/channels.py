"""Channels: list, create, read, replace, delete, and a test of one. Their secrets are written, and never read."""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request
from fastapi import Query as FromQuery
from fastapi.responses import Response
from pydantic import BaseModel

from tapewatch.channels.addresses import Addresses, AddressRefused, AddressUnknown
from tapewatch.channels.apprise_channel import check_apprise_url, check_mail_host
from tapewatch.deliveries.deciding import delivery_id
from tapewatch.delivery_documents import (
    AppriseSettings,
    Channel,
    ChannelDraft,
    Delivery,
    EmailSettings,
    Settings,
    WebhookSettings,
    channel_settings,
)
from tapewatch.documents import rfc3339
from tapewatch.errors import Invalid, Unavailable, VersionConflict
from tapewatch.ports import Bus
from tapewatch.serve.access import who
from tapewatch.serve.api import API
from tapewatch.serve.api.ownership import own
from tapewatch.serve.api.query import NO_QUERY, AnyId, Page
from tapewatch.serve.api.versions import (
    ABSENT,
    LOCATION,
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
from tapewatch.telemetry import ERRORS_TOTAL

UPDATED = "deliveries.updated"


class ChannelChange(ChannelDraft):
    """A draft that replaces a channel; with `version`, only if that is still the stored one."""

    version: Annotated[VersionNumber, ABSENT] = 0


class ChannelBody(BaseModel):
    """A channel without its secrets: they are ``set`` or ``unset``."""

    id: str
    owner: str
    version: int
    name: str
    kind: str
    enabled: bool
    settings: dict[str, Any]
    rate_per_minute: int
    notice: str
    """Why it was switched off, if nobody did it by hand."""
    created_at: str
    updated_at: str


class ChannelList(BaseModel):
    items: list[ChannelBody]
    total: int


class TestSent(BaseModel):
    delivery_id: str


def router(services: Services) -> APIRouter:
    store, clock, bus = services.store, services.clock, services.bus
    routes = APIRouter(prefix=f"{API}/channels", tags=["channels"], responses=PROBLEMS)

    async def theirs(request: Request, channel_id: str) -> Channel:
        return own(who(request), await store.channel(channel_id))

    @routes.get("", response_model=ChannelList)
    async def list_channels(request: Request, page: Annotated[Page, FromQuery()]) -> Response:
        channels = await store.channels(who(request).user_id)
        items = channels[page.offset : page.offset + page.limit]
        return json_response({"items": [item.shown() for item in items], "total": len(channels)})

    @routes.post(
        "",
        status_code=201,
        response_model=ChannelBody,
        responses={201: LOCATION},
        openapi_extra=described(ChannelDraft),
        dependencies=[NO_QUERY],
    )
    async def create_channel(request: Request, key: IdempotencyKey = None) -> Response:
        draft = await read_document(request, ChannelDraft)
        return await once(services, request, key, draft, lambda: create(request, draft))

    async def create(request: Request, draft: ChannelDraft) -> Response:
        settings = channel_settings(draft, None)
        await _check_address(settings, services.addresses)
        now, owner = rfc3339(clock.now_ns()), who(request).user_id

        def make() -> Channel:
            chosen = new_id(draft.name, kind="channel")
            return _channel(draft, settings, id=chosen, owner=owner, created_at=now, updated_at=now)

        stored = await created("", make, lambda channel: store.save_channel(channel, actor=owner))
        await announce(bus)
        location = str(request.url_for("read_channel", channel_id=stored.id).path)
        return json_response(stored.shown(), status=201, headers={"Location": location, **etag(stored)})

    @routes.get("/{channel_id}", response_model=ChannelBody, dependencies=[NO_QUERY])
    async def read_channel(request: Request, channel_id: AnyId) -> Response:
        channel = await theirs(request, channel_id)
        return json_response(channel.shown(), headers=etag(channel))

    @routes.put(
        "/{channel_id}",
        response_model=ChannelBody,
        openapi_extra=described(ChannelChange),
        dependencies=[NO_QUERY],
        description="A secret that is left out stays as it is. Without `version` and `If-Match`, the last writer wins.",
    )
    async def replace_channel(request: Request, channel_id: AnyId) -> Response:
        draft = await read_document(request, ChannelChange)

        async def make(known: Channel) -> Channel:
            settings = channel_settings(draft, known)
            await _check_address(settings, services.addresses)
            return _channel(
                draft,
                settings,
                id=channel_id,
                owner=known.owner,
                version=known.version + 1,
                created_at=known.created_at,
                updated_at=rfc3339(clock.now_ns()),
                notice="" if draft.enabled else known.notice,
            )

        stored, _ = await changed(
            request,
            read=lambda: theirs(request, channel_id),
            make=make,
            save=lambda channel: store.save_channel(channel, actor=who(request).user_id),
            version=draft.version,
        )
        await announce(bus)
        return json_response(stored.shown(), headers=etag(stored))

    @routes.delete(
        "/{channel_id}",
        status_code=204,
        dependencies=[NO_QUERY],
        description="409 while subscriptions name it. `If-Match` takes the ETag of a read.",
    )
    async def delete_channel(request: Request, channel_id: AnyId) -> Response:
        check_match(request, await theirs(request, channel_id))
        await store.delete_channel(channel_id, actor=who(request).user_id)
        await announce(bus)
        return Response(status_code=204)

    @routes.post(
        "/{channel_id}/test",
        status_code=202,
        response_model=TestSent,
        dependencies=[NO_QUERY],
        description="Sends a test message. `GET /deliveries/{delivery_id}` says what became of it.",
    )
    async def test_channel(request: Request, channel_id: AnyId) -> Response:
        channel = await theirs(request, channel_id)
        if not channel.enabled:
            raise VersionConflict(f"the channel {channel_id} is switched off")
        now_ns = clock.now_ns()
        test = Delivery(
            delivery_id=delivery_id(channel_id, "test", str(now_ns)),
            channel_id=channel_id,
            owner=channel.owner,
            kind="test",
            at_ns=now_ns,
            next_try_ns=now_ns,
        )
        await store.save_deliveries([test], reader="tests")
        await announce(bus)
        return json_response({"delivery_id": test.delivery_id}, status=202)

    return routes


def _channel(draft: ChannelDraft, settings: Settings, **fields: Any) -> Channel:
    return Channel(
        name=draft.name, enabled=draft.enabled, settings=settings, rate_per_minute=draft.rate_per_minute, **fields
    )


async def _check_address(settings: Settings, addresses: Addresses) -> None:
    """Whatever it resolves to is checked again when something is sent."""
    where = "body.settings.url"
    try:
        if isinstance(settings, WebhookSettings):
            await addresses.target(settings.url)
        elif isinstance(settings, EmailSettings):
            where = "body.settings.host"
            await check_mail_host(settings, addresses)
        elif isinstance(settings, AppriseSettings) and settings.url is not None:
            await check_apprise_url(settings.url.get_secret_value(), addresses)
    except (AddressRefused, AddressUnknown) as error:
        raise Invalid(where, str(error)) from None


async def announce(bus: Bus) -> None:
    """Tell the role that sends."""
    try:
        await bus.notify(UPDATED, msgspec.json.encode({}))
    except Unavailable:  # it looks for itself every second
        ERRORS_TOTAL.labels(where="deliveries.notify").inc()
