"""Channels, subscriptions and deliveries over HTTP: their life, whose they are, and what is never told."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import Request
from hooks import Names

from tapewatch.accounts.roles import Principal
from tapewatch.adapters.memory import MemoryBus
from tapewatch.adapters.sql import SqlStore
from tapewatch.channels.addresses import Addresses
from tapewatch.contracts.store_deliveries import SECRET, make_delivery
from tapewatch.serve.api import channels, deliveries, subscriptions
from tapewatch.serve.services import Services

pytestmark = pytest.mark.anyio
CHANNELS, SUBSCRIPTIONS, DELIVERIES = "/api/v1/channels", "/api/v1/subscriptions", "/api/v1/deliveries"
HOOK = {"kind": "webhook", "url": "https://hooks.example.com/in", "secret": SECRET}
DRAFT: dict[str, Any] = {"name": "My hook", "settings": HOOK}
SLACK = {"kind": "slack"}
MAIL = {
    "kind": "email",
    "host": "mail.example.com",
    "user": "me",
    "password": "p",
    "sender": "a@example.com",
    "to": ["b@example.com"],
}


@pytest.fixture
def services(services: Services) -> Services:
    names = Names({"in.example.com": [["10.0.0.1"]]})
    for name in ("hooks.example.com", "other.example.com", "mail.example.com"):
        names.answers[name] = [["93.184.216.34"]]
    return replace(services, addresses=Addresses(resolve=names.resolve))


@pytest.fixture
def as_user(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Whoever asks from now on."""
    asking = ["local"]

    def who(_request: Request) -> Principal:
        return Principal.of(asking[0], "admin" if asking[0] == "root" else "trader")

    for module in (channels, subscriptions, deliveries):
        monkeypatch.setattr(module, "who", who)

    def ask_as(user: str) -> None:
        asking[0] = user

    return ask_as


async def make(api: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await api.post(CHANNELS, json=DRAFT | fields)
    assert answer.status_code == 201, answer.text
    created: dict[str, Any] = answer.json()
    return created


async def subscribe(api: httpx.AsyncClient, *channel_ids: str, **fields: Any) -> httpx.Response:
    draft = {"name": "Mine", "what": {"all": True}, "channels": list(channel_ids)}
    return await api.post(SUBSCRIPTIONS, json=draft | fields)


async def test_channel_lives_and_its_secret_is_never_told(api: httpx.AsyncClient, store: SqlStore) -> None:
    created = await api.post(CHANNELS, json=DRAFT)
    channel_id = created.json()["id"]
    address = created.headers["location"]
    assert address == f"{CHANNELS}/{channel_id}"
    assert created.json()["settings"] == {"kind": "webhook", "url": HOOK["url"], "secret": "set"}
    assert (created.json()["owner"], created.json()["rate_per_minute"]) == ("local", 120)
    changed = await api.put(
        address,
        json={"name": "New", "settings": {"kind": "webhook", "url": HOOK["url"]}, "rate_per_minute": 5},
        headers={"If-Match": created.headers["etag"]},
    )
    assert (changed.status_code, changed.headers["etag"]) == (200, '"2"')
    assert (await store.channel(channel_id)).settings.stored()["secret"] == SECRET
    stale = await api.put(address, json=DRAFT, headers={"If-Match": created.headers["etag"]})
    assert stale.status_code == 412
    listed = await api.get(CHANNELS)
    read = await api.get(address)
    audit = await api.get("/api/v1/audit")
    assert listed.json() == {"items": [read.json()], "total": 1}
    for answer in (created, changed, listed, read, audit):
        assert SECRET not in answer.text
    assert audit.json()["items"][0]["kind"] == "channel"
    assert (await api.delete(address)).status_code == 204
    assert (await api.get(address)).status_code == 404


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"settings": HOOK | {"url": "http://hooks.example.com/"}}, "body.settings.url"),
        ({"settings": HOOK | {"url": "https://169.254.169.254/"}}, "body.settings.url"),
        ({"settings": HOOK | {"url": "https://127.0.0.1/"}}, "body.settings.url"),
        ({"settings": HOOK | {"url": "https://2130706433/"}}, "body.settings.url"),
        ({"settings": HOOK | {"url": "https://redis:6379/"}}, "body.settings.url"),
        ({"settings": HOOK | {"url": "https://in.example.com/"}}, "body.settings.url"),
        ({"settings": HOOK | {"url": "https://nowhere.example.com/"}}, "body.settings.url"),
        ({"settings": HOOK | {"url": "javascript:alert(1)"}}, "body.settings.url"),
        ({"settings": HOOK | {"url": "https://hooks.example.com/\n"}}, "body.settings.url"),
        ({"settings": HOOK | {"secret": "short"}}, "body.settings.secret"),
        ({"settings": HOOK | {"secret": None}}, "body.settings.secret"),
        ({"settings": {"kind": "webhook", "url": HOOK["url"]}}, "body.settings.secret"),
        ({"settings": HOOK | {"extra": 1}}, "body.settings.extra"),
        ({"settings": HOOK | {"kind": "carrier pigeon"}}, "body.settings"),
        ({"settings": {}}, "body.settings"),
        ({"settings": MAIL | {"host": "localhost"}}, "body.settings.host"),
        ({"settings": MAIL | {"host": "in.example.com"}}, "body.settings.host"),
        ({"settings": MAIL | {"port": 22}}, "body.settings.port"),
        ({"settings": MAIL | {"to": ["x@y\r\nBcc: z@example.com"]}}, "body.settings.to[0]"),
        ({"settings": {"kind": "telegram", "token": "t", "chat_id": "1"}}, "body.settings.token"),
        ({"settings": SLACK | {"url": "https://evil.example.com/services/T/B/" + "x" * 40}}, "body.settings.url"),
        ({"settings": {"kind": "apprise", "url": "json://hooks.example.com/"}}, "body.settings.url"),
        ({"settings": {"kind": "apprise", "url": "ntfys://in.example.com/topic"}}, "body.settings.url"),
        ({"owner": "root"}, "body.owner"),
        ({"id": "mine"}, "body.id"),
        ({"notice": "x"}, "body.notice"),
        ({"rate_per_minute": 0}, "body.rate_per_minute"),
        ({"rate_per_minute": True}, "body.rate_per_minute"),
        ({"name": "a\u202eb"}, "body.name"),
    ],
)  # fmt: skip
async def test_channel_that_cannot_be_is_refused_with_its_field(
    api: httpx.AsyncClient, fields: dict[str, Any], where: str
) -> None:
    answer = await api.post(CHANNELS, json=DRAFT | fields)
    assert (answer.status_code, answer.json().get("where")) == (422, where), answer.text
    assert SECRET not in answer.text
    assert (await api.get(CHANNELS)).json()["total"] == 0


async def test_secret_is_not_kept_for_another_address(api: httpx.AsyncClient) -> None:
    hook, mail = await make(api), await make(api, settings=MAIL)
    moved = {"kind": "webhook", "url": "https://other.example.com/"}
    without = {name: value for name, value in MAIL.items() if name != "password"}
    for channel, settings, status in (
        (hook, moved, 422),
        (hook, moved | {"secret": SECRET}, 200),
        (mail, without | {"host": "other.example.com"}, 422),
        (mail, without | {"port": 25}, 422),
        (mail, without | {"to": ["c@example.com"]}, 200),
        (mail, {"kind": "webhook", "url": HOOK["url"]}, 422),
    ):
        answer = await api.put(f"{CHANNELS}/{channel['id']}", json={"name": "n", "settings": settings})
        assert answer.status_code == status, answer.text


async def test_subscription_lives_and_is_muted(api: httpx.AsyncClient) -> None:
    channel = await make(api)
    quiet = {"from": "22:00", "to": "07:00", "time_zone": "Europe/Berlin", "days": ["mon"]}
    created = await subscribe(api, channel["id"], quiet_hours=quiet)
    assert created.status_code == 201, created.text
    assert created.json()["quiet_hours"] == quiet
    address = created.headers["location"]
    assert (await api.get(address)).json() == created.json()
    muted = await api.post(f"{address}/mute", json={"seconds": 3600})
    assert muted.status_code == 200
    assert muted.json()["muted_until"] > muted.json()["updated_at"]
    again = await api.post(f"{address}/mute", json={"seconds": 0})
    assert (again.json()["muted_until"], again.json()["version"]) == ("", 3)
    draft = {"name": "Other", "what": {"symbols": ["AAPL", "AAPL"]}, "version": 3}
    replaced = await api.put(address, json=draft)
    assert (replaced.json()["what"]["symbols"], replaced.json()["channels"]) == (["AAPL"], [])
    assert (await api.put(address, json=draft)).status_code == 409
    assert (await api.get(SUBSCRIPTIONS)).json() == {"items": [replaced.json()], "total": 1}
    assert (await api.delete(address, headers={"If-Match": '"1"'})).status_code == 412
    assert (await api.delete(address)).status_code == 204
    assert (await api.get(address)).status_code == 404


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"what": {}}, "body.what.all"),
        ({"what": {"all": True, "rules": ["r"]}}, "body.what.all"),
        ({"what": {"symbols": ["a b"]}}, "body.what.symbols[0]"),
        ({"channels": ["nobody-s"]}, "body.channels[0]"),
        ({"sessions": ["lunch"]}, "body.sessions[0]"),
        ({"severity": "deadly"}, "body.severity"),
        ({"cooldown": -1}, "body.cooldown"),
        ({"cooldown": 10**30}, "body.cooldown"),
        ({"cooldown": 1.5}, "body.cooldown"),
        ({"muted_until": "tomorrow"}, "body.muted_until"),
        ({"muted_until": "2025-03-03T10:00:00"}, "body.muted_until"),
        ({"muted_until": "9999-12-31T00:00:00Z"}, "body.muted_until"),
        ({"digest": {"more_than": 0}}, "body.digest.more_than"),
        ({"quiet_hours": {"from": "25:00", "to": "07:00", "time_zone": "UTC"}}, "body.quiet_hours.from"),
        ({"quiet_hours": {"from": "07:00", "to": "07:00", "time_zone": "UTC"}}, "body.quiet_hours.to"),
        ({"quiet_hours": {"from": "22:00", "to": "07:00", "time_zone": "../etc/passwd"}}, "body.quiet_hours.time_zone"),
        ({"quiet_hours": {"from": "22:00", "to": "07:00", "time_zone": "UTC", "days": []}}, "body.quiet_hours.days"),
        ({"quiet_hours": {"from_": "22:00", "to": "07:00", "time_zone": "UTC"}}, "body.quiet_hours.from"),
        ({"owner": "root"}, "body.owner"),
    ],
)
async def test_subscription_that_cannot_be_is_refused_with_its_field(
    api: httpx.AsyncClient, fields: dict[str, Any], where: str
) -> None:
    answer = await subscribe(api, **fields)
    assert (answer.status_code, answer.json().get("where")) == (422, where), answer.text
    assert (await api.get(SUBSCRIPTIONS)).json()["total"] == 0


@pytest.mark.parametrize("seconds", [-1, 10**9, 1.5, "60", True, None])
async def test_mute_hostile_is_422(api: httpx.AsyncClient, seconds: Any) -> None:
    address = (await subscribe(api)).headers["location"]
    assert (await api.post(f"{address}/mute", json={"seconds": seconds})).status_code == 422


async def test_what_is_another_s_is_as_good_as_not_there(
    api: httpx.AsyncClient, store: SqlStore, as_user: Callable[[str], None]
) -> None:
    as_user("ann")
    channel = await make(api)
    subscription = (await subscribe(api, channel["id"])).json()
    await store.save_deliveries([make_delivery(1, owner="ann", state="dead")], reader="r")
    as_user("bob")
    api.headers["X-Request-Id"] = "the-same-of-all"
    asked = [
        ("GET", f"{CHANNELS}/{channel['id']}", None),
        ("PUT", f"{CHANNELS}/{channel['id']}", DRAFT),
        ("DELETE", f"{CHANNELS}/{channel['id']}", None),
        ("POST", f"{CHANNELS}/{channel['id']}/test", None),
        ("GET", f"{SUBSCRIPTIONS}/{subscription['id']}", None),
        ("PUT", f"{SUBSCRIPTIONS}/{subscription['id']}", {"name": "n", "what": {"all": True}}),
        ("DELETE", f"{SUBSCRIPTIONS}/{subscription['id']}", None),
        ("POST", f"{SUBSCRIPTIONS}/{subscription['id']}/mute", {"seconds": 1}),
        ("GET", f"{DELIVERIES}/d00001", None),
        ("POST", f"{DELIVERIES}/d00001/replay", None),
    ]
    for method, path, body in asked:
        answer = await api.request(method, path, json=body)
        known = path.split("/")[4]
        missing = await api.request(method, path.replace(known, "missing"), json=body)
        assert (answer.status_code, missing.status_code) == (404, 404), (method, path)
        assert answer.text.replace(known, "missing") == missing.text
    for path in (CHANNELS, SUBSCRIPTIONS, DELIVERIES):
        assert (await api.get(path)).json()["items"] == []
    assert (await subscribe(api, channel["id"])).json()["where"] == "body.channels[0]"
    as_user("root")
    for path in (f"{CHANNELS}/{channel['id']}", f"{SUBSCRIPTIONS}/{subscription['id']}", f"{DELIVERIES}/d00001"):
        assert (await api.get(path)).status_code == 200
    changed = await api.put(f"{CHANNELS}/{channel['id']}", json=DRAFT)
    assert changed.json()["owner"] == "ann"


async def test_admins_list_the_deliveries_of_all_with_their_owners(
    api: httpx.AsyncClient, store: SqlStore, as_user: Callable[[str], None]
) -> None:
    people = ("ann", "bob", "ann", "cy", "root")
    saved = [make_delivery(n, owner=owner, state="dead") for n, owner in enumerate(people)]
    await store.save_deliveries(saved, reader="r")
    for user, seen in (("ann", [2, 0]), ("bob", [1]), ("dan", []), ("root", [4, 3, 2, 1, 0])):
        as_user(user)
        items = (await api.get(DELIVERIES)).json()["items"]
        assert [(item["delivery_id"], item["owner"]) for item in items] == [(f"d{n:05}", people[n]) for n in seen]
    first = (await api.get(DELIVERIES, params={"limit": 2})).json()
    second = (await api.get(DELIVERIES, params={"limit": 2, "cursor": first["next_cursor"]})).json()
    assert [item["owner"] for item in second["items"]] == ["ann", "bob"]
    as_user("ann")  # a cursor gives no right
    mine = (await api.get(DELIVERIES, params={"cursor": first["next_cursor"]})).json()["items"]
    assert {item["owner"] for item in mine} == {"ann"}


async def test_channel_in_use_stays(api: httpx.AsyncClient) -> None:
    channel = await make(api)
    subscription = (await subscribe(api, channel["id"])).json()
    refused = await api.delete(f"{CHANNELS}/{channel['id']}")
    assert refused.status_code == 409
    assert subscription["id"] in refused.json()["detail"]
    await api.delete(f"{SUBSCRIPTIONS}/{subscription['id']}")
    assert (await api.delete(f"{CHANNELS}/{channel['id']}")).status_code == 204


async def test_test_of_a_channel_is_put_into_the_outbox(
    api: httpx.AsyncClient, store: SqlStore, bus: MemoryBus
) -> None:
    channel = await make(api)
    heard: list[bytes] = []

    async def hear() -> None:
        heard.extend([notice async for notice in bus.listen("deliveries.updated")])

    hearing = asyncio.create_task(hear())
    await asyncio.sleep(0)
    asked = await api.post(f"{CHANNELS}/{channel['id']}/test")
    assert asked.status_code == 202
    test = (await api.get(f"{DELIVERIES}/{asked.json()['delivery_id']}")).json()
    assert (test["kind"], test["state"], test["channel_id"]) == ("test", "pending", channel["id"])
    assert await store.count_waiting([channel["id"]]) == {channel["id"]: 1}
    await api.put(f"{CHANNELS}/{channel['id']}", json=DRAFT | {"enabled": False})
    assert (await api.post(f"{CHANNELS}/{channel['id']}/test")).status_code == 409
    await bus.close()
    await hearing
    assert len(heard) == 2


async def test_deliveries_are_listed_by_state_and_sent_again(api: httpx.AsyncClient, store: SqlStore) -> None:
    saved = [make_delivery(n, state="dead" if n % 2 else "sent", attempts=8, error="HTTP 500") for n in range(10)]
    await store.save_deliveries(saved, reader="r")
    found: list[str] = []
    cursor: str | None = None
    while True:
        given = {"state": "dead", "limit": "2"} | ({} if cursor is None else {"cursor": cursor})
        page = (await api.get(DELIVERIES, params=given)).json()
        found += [item["delivery_id"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert found == [f"d{n:05}" for n in (9, 7, 5, 3, 1)]
    again = await api.post(f"{DELIVERIES}/d00001/replay")
    assert (again.status_code, again.json()["state"], again.json()["attempts"]) == (200, "pending", 0)
    assert (await api.post(f"{DELIVERIES}/d00001/replay")).status_code == 409
    for query in ("state=lost", "cursor=x", "limit=0", "user_id=A", "state=dead&state=sent"):
        assert (await api.get(f"{DELIVERIES}?{query}")).status_code == 422, query
