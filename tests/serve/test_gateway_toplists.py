"""Users' toplists over the WebSocket: who may follow which, the newest first, and events beside them."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection

from tapewatch.accounts.roles import Principal
from tapewatch.adapters.memory import MemoryBus
from tapewatch.adapters.sql import SqlStore
from tapewatch.contracts.samples import make_toplist
from tapewatch.serve.alert_log import AlertLog
from tapewatch.serve.client import MAX_EVENTS, Client
from tapewatch.serve.gateway import Gateway

pytestmark = pytest.mark.anyio
CHANNEL = "toplists.updated"


@pytest.fixture
def gateway_options(store: SqlStore) -> dict[str, Any]:
    return {"store": store}


def frame(toplist: str, number: int = 0, *, kind: str = "toplist_update", of: str = "user") -> bytes:
    data = {"toplist_id": toplist, "toplist_type": of, "n": number}
    return json.dumps({"type": kind, "data": data}).encode()


async def hear(client: ClientConnection) -> Any:
    async with asyncio.timeout(5):
        return json.loads(await client.recv())


async def say(client: ClientConnection, **message: Any) -> None:
    await client.send(json.dumps(message))


async def answered(client: ClientConnection) -> None:
    """Everything said so far was obeyed."""
    await say(client, type="ping")
    assert (await hear(client))["type"] == "pong"


async def test_list_of_a_user_comes_newest_first_then_each_update(
    dial: Callable[..., Any], bus: MemoryBus, store: SqlStore
) -> None:
    await store.save_toplist(make_toplist("t"))
    await bus.notify(CHANNEL, frame("t", 1))
    await asyncio.sleep(0.01)
    async with dial() as client:
        await say(client, type="subscribe_toplist", toplist_id="t", toplist_type="user")
        assert (await hear(client))["data"]["n"] == 1
        await bus.notify(CHANNEL, frame("other", 2))
        await bus.notify(CHANNEL, frame("t", 3))
        assert (await hear(client))["data"] == {"toplist_id": "t", "toplist_type": "user", "n": 3}
        await bus.notify(CHANNEL, frame("t", 4, kind="toplist_event"))
        assert (await hear(client))["type"] == "toplist_event"
        await say(client, type="unsubscribe_toplist", toplist_id="t")
        await answered(client)
        await bus.notify(CHANNEL, frame("t", 5))
        await bus.notify(CHANNEL, frame("t", 6, kind="toplist_event"))
        await say(client, type="subscribe_toplist", toplist_id="t")  # the type may be left out
        assert (await hear(client))["data"]["n"] == 5


async def test_another_s_list_is_unknown(
    dial: Callable[..., Any], bus: MemoryBus, store: SqlStore, gateway: Gateway
) -> None:
    await store.save_toplist(make_toplist("anns", owner="ann"))
    await store.save_toplist(make_toplist("bobs", owner="bob"))
    await store.save_toplist(make_toplist("gone", owner="bob"))
    await store.delete_toplist("gone")
    for name in ("anns", "bobs", "gone"):
        await bus.notify(CHANNEL, frame(name))
    async with dial() as client:
        (inside,) = gateway._clients
        inside.principal = Principal.of("bob", "viewer")
        for name, kind in (("anns", "user"), ("gone", "user"), ("none", "user"), ("bobs", "system")):
            await say(client, type="subscribe_toplist", toplist_id=name, toplist_type=kind)
            assert (await hear(client))["data"]["code"] == "unknown_toplist"
        await say(client, type="subscribe_toplist", toplist_id="bobs", toplist_type="user")
        assert (await hear(client))["data"]["toplist_id"] == "bobs"


async def test_frame_of_a_list_that_was_switched_off_is_not_shown(
    dial: Callable[..., Any], bus: MemoryBus, store: SqlStore
) -> None:
    await store.save_toplist(make_toplist("t", enabled=False))
    await bus.notify(CHANNEL, frame("t", 1))
    async with dial() as client:
        await say(client, type="subscribe_toplist", toplist_id="t", toplist_type="user")
        await answered(client)
        await bus.notify(CHANNEL, frame("t", 2))
        assert (await hear(client))["data"]["n"] == 2


async def test_user_s_frame_cannot_pass_for_a_system_list(
    dial: Callable[..., Any], bus: MemoryBus, gateway: Gateway
) -> None:
    async with dial() as client:
        await say(client, type="subscribe_toplist", toplist_id="gainers_1m")
        await answered(client)
        await bus.notify(CHANNEL, frame("gainers_1m", 1))
        await bus.notify(CHANNEL, frame("nobodys", 1, of="system"))
        await bus.notify(CHANNEL, frame("gainers_1m", 2, of="system"))
        assert (await hear(client))["data"]["n"] == 2
    assert gateway.clients <= 1


async def test_gateway_keeps_a_bounded_number_of_frames(bus: MemoryBus, gateway: Gateway) -> None:
    for number in range(800):
        await bus.notify(CHANNEL, frame(f"t{number}"))
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    assert 500 <= len(gateway._newest) < 600
    assert "t799" in gateway._newest


async def test_events_that_wait_are_the_newest() -> None:
    client = Client(AlertLog())
    client.subscribe("t")
    for number in range(MAX_EVENTS + 5):
        client.offer_event("t", f"e{number}")
    client.offer_event("other", "never")
    client.offer_toplist("t", "list")
    taken = []
    while (outgoing := client.take()) is not None:
        taken.append(outgoing.frame)
    assert taken == ["list", *(f"e{number}" for number in range(5, MAX_EVENTS + 5))]
