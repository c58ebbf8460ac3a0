"""Whose alerts a client gets: its user's own and shared ones, live and when it comes back, whatever others have."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from gateway_house import House, Publisher, house
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_socket

from tapewatch.accounts.roles import LOCAL, Principal
from tapewatch.adapters.memory import MemoryBus
from tapewatch.adapters.sql import SqlStore
from tapewatch.clock import SystemClock
from tapewatch.documents import Alert
from tapewatch.serve import resume as resume_module
from tapewatch.serve.alert_log import AlertLog, Outgoing, from_entry
from tapewatch.serve.client import Client
from tapewatch.serve.gateway import Gateway
from tapewatch.serve.places import Place

pytestmark = pytest.mark.anyio
MakeAlert = Callable[..., Alert]
ANN, BOB = Principal.of("ann", "trader"), Principal.of("bob", "viewer")
ADMIN = Principal.of("root", "admin")


@pytest.fixture
def publisher(bus: MemoryBus, make_alert: MakeAlert) -> Publisher:
    return Publisher(bus, make_alert)


@asynccontextmanager
async def listening(at: House, principal: Principal) -> AsyncIterator[ClientConnection]:
    """A client that is welcomed, and is this user from then on."""
    before = set(at.gateway._clients)
    async with open_socket(at.url, proxy=None) as socket:
        assert json.loads(await socket.recv())["type"] == "welcome"
        (client,) = at.gateway._clients - before
        client.principal = principal
        yield socket


async def hear(socket: ClientConnection) -> Any:
    return json.loads(await asyncio.wait_for(socket.recv(), 10))


async def heard_until_pong(socket: ClientConnection) -> list[Any]:
    """What has come."""
    await asyncio.sleep(0.05)
    await socket.send('{"type":"ping"}')
    frames: list[Any] = []
    while (frame := await hear(socket))["type"] != "pong":
        frames.append(frame)
    return frames


def owners(frames: list[Any]) -> list[tuple[str, bool]]:
    return [(frame["data"]["owner"], frame["data"]["shared"]) for frame in frames if frame["type"] == "alert"]


async def resumed(socket: ClientConnection, places: Any, last_id: str | None = None) -> tuple[Any, list[Any]]:
    data = {"places": places} | ({} if last_id is None else {"last_id": last_id})
    await socket.send(json.dumps({"type": "resume", "data": data}))
    answer = (await hear(socket))["data"]
    return answer, [await hear(socket) for _ in range(answer["alerts"])]


async def mixed(publisher: Publisher, rounds: int = 1) -> None:
    for _ in range(rounds):
        for owner, shared in (("ann", False), ("bob", False), ("bob", True), ("carl", False)):
            await publisher.publish(0, owner=owner, shared=shared)


async def test_each_client_gets_its_own_and_shared_alerts_and_an_admin_all(
    bus: MemoryBus, publisher: Publisher
) -> None:
    async with (
        house(bus) as at,
        listening(at, ANN) as ann,
        listening(at, BOB) as bob,
        listening(at, ADMIN) as admin,
        listening(at, LOCAL) as local,
    ):
        await mixed(publisher, 2)
        assert owners(await heard_until_pong(ann)) == [("ann", False), ("bob", True)] * 2
        assert owners(await heard_until_pong(bob)) == [("bob", False), ("bob", True)] * 2
        assert len(owners(await heard_until_pong(admin))) == len(owners(await heard_until_pong(local))) == 8


async def test_frame_is_the_same_text_for_all_who_see_it(bus: MemoryBus, publisher: Publisher) -> None:
    async with house(bus) as at, listening(at, ANN) as ann, listening(at, BOB) as bob:
        await publisher.publish(0, owner="carl", shared=True)
        one, other = [await asyncio.wait_for(socket.recv(), 10) for socket in (ann, bob)]
    assert one == other
    assert json.loads(one)["data"]["latency"]["sent"] is not None


async def test_alert_of_a_deleted_rule_goes_to_its_owner_and_one_of_an_unknown_owner_to_nobody(
    bus: MemoryBus, store: SqlStore, publisher: Publisher
) -> None:
    async with (
        house(bus, store=store, active=lambda owner: owner != "gone") as at,
        listening(at, ANN) as ann,
        listening(at, ADMIN) as admin,
    ):
        await publisher.publish(0, rule_id="deleted-meanwhile", owner="ann")
        await publisher.publish(0, owner="gone", shared=True)
        await publisher.publish(0, owner="ann")
        assert [frame["data"]["rule_id"] for frame in await heard_until_pong(ann)] == ["deleted-meanwhile", "movers"]
        assert owners(await heard_until_pong(admin)) == [("ann", False)] * 2
    await store.save_alerts(publisher.alerts, reader="alerts:0")
    async with (
        house(MemoryBus(), store=store, active=lambda owner: owner != "gone") as at,
        listening(at, ADMIN) as admin,
    ):
        answer, frames = await resumed(admin, None or {}, publisher.alerts[0].alert_id)
        assert (answer["recovered"], owners(frames)) == ("history", [("ann", False)] * 2)


@pytest.mark.parametrize("kept", [20_000, 3])
async def test_resume_gives_what_one_missed_and_nothing_of_others_from_log_and_stream(
    bus: MemoryBus, publisher: Publisher, kept: int
) -> None:
    async with house(bus, alerts=AlertLog(alerts=kept)) as at:
        async with listening(at, ANN):
            places = {"0": "0-0", "1": "0-0"}
        await mixed(publisher, 3)
        await asyncio.sleep(0.05)
        async with listening(at, ANN) as ann:
            answer, frames = await resumed(ann, places)
            assert answer["recovered"] is True
            assert owners(frames) == [("ann", False), ("bob", True)] * 3
            assert answer["places"]["0"] == "1-12"
            again, nothing = await heard_until_pong(ann), owners([])
            assert owners(again) == nothing
        async with listening(at, BOB) as bob:
            answer, frames = await resumed(bob, answer["places"])
            assert (answer["recovered"], frames) == (True, [])


async def test_resume_over_too_many_alerts_of_others_asks_history(
    bus: MemoryBus, store: SqlStore, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume_module, "MOST_OF_OTHERS", 10)
    await publisher.publish(0, owner="ann")
    for n in range(40):
        await publisher.publish(0, owner="bob", shared=n == 5)
    await store.save_alerts(publisher.alerts, reader="alerts:0")
    async with house(bus, store=store, alerts=AlertLog(alerts=4)) as at, listening(at, ANN) as ann:
        at.gateway._resumes._most_of_others = 10
        answer, frames = await resumed(ann, {"0": "1-1", "1": "0-0"}, publisher.alerts[0].alert_id)
        assert answer["recovered"] == "history"
        assert owners(frames) == [("ann", False), ("bob", True)]


async def test_last_alert_of_another_is_one_that_history_does_not_know(store: SqlStore, publisher: Publisher) -> None:
    await mixed(publisher)
    await store.save_alerts(publisher.alerts, reader="alerts:0")
    theirs = next(alert.alert_id for alert in publisher.alerts if (alert.owner, alert.shared) == ("bob", False))
    async with house(MemoryBus(), store=store) as at:
        for last_id in (theirs, "nobody-s"):
            async with listening(at, ANN) as ann:
                answer, _ = await resumed(ann, {}, last_id)
                assert (answer["recovered"], answer["why"]) == (False, "history does not know the last alert")


async def test_client_that_cannot_recover_is_told_how_many_of_its_own_follow(
    bus: MemoryBus, publisher: Publisher
) -> None:
    async with house(bus) as at, listening(at, ANN) as ann:
        await mixed(publisher)
        await asyncio.sleep(0.05)
        await ann.send(json.dumps({"type": "resume", "data": {"places": {}}}))
        frames = await heard_until_pong(ann)
    (answer,) = [frame["data"] for frame in frames if frame["type"] == "resumed"]
    assert (answer["recovered"], answer["alerts"]) == (False, 2)
    assert owners(frames)[-2:] == [("ann", False), ("bob", True)]


async def test_places_of_a_silent_client_move_on_with_alerts_of_others(bus: MemoryBus, publisher: Publisher) -> None:
    async with (
        house(bus, places_s=0.02, alerts=AlertLog(alerts=3)) as at,
        listening(at, ANN) as ann,
        listening(at, ADMIN) as admin,
    ):
        for _ in range(20):
            await publisher.publish(1, owner="bob")
        frames = [frame for frame in await heard_until_pong(ann) if frame["type"] == "places"]
        assert frames[-1]["data"]["places"] == {"0": "0-0", "1": "1-20"}
        await asyncio.sleep(0.1)
        assert await heard_until_pong(ann) == []  # once each
        assert {frame["type"] for frame in await heard_until_pong(admin)} == {"alert"}  # they have places of their own


async def test_burst_of_others_neither_wakes_nor_ends_a_client_to_which_nothing_comes(
    bus: MemoryBus, make_alert: MakeAlert
) -> None:
    log = AlertLog(alerts=50)
    gateway = Gateway(bus, SystemClock(), toplists=(), alerts=log)
    stalled, waiting = Client(log), Client(log)
    stalled.principal, waiting.principal = ANN, BOB
    gateway._clients |= {stalled, waiting}
    own = [make_alert(n, owner="ann") for n in range(1)]
    others = [make_alert(n, owner="carl") for n in range(1, 60)]

    async def deliver(alerts: list[Alert]) -> None:
        await gateway._deliver(
            from_entry(alerts, partition=0, entry=Place(1, alerts[0].fired_at_ns), nth=nth)
            for nth in range(len(alerts))
        )

    await deliver(others)
    assert not stalled.ending.done()
    assert not waiting.ending.done()
    assert not waiting._something.is_set()
    assert (waiting.next, waiting.take()) == (log.end, None)
    await deliver(own)
    assert not waiting._something.is_set()
    taken = stalled.take()
    assert taken is not None
    assert taken.owner == "ann"
    assert stalled.take() is None


@given(
    st.lists(st.tuples(st.sampled_from(["ann", "bob", "local"]), st.booleans()), max_size=60),
    st.lists(st.integers(1, 7), max_size=20),
    st.sampled_from([ANN, BOB, ADMIN, LOCAL, Principal.of("local", "trader")]),
    st.integers(0, 3),
)
def test_client_takes_what_a_look_at_each_alert_would_hand_it(
    alerts: list[tuple[str, bool]], pieces: list[int], principal: Principal, takes: int
) -> None:
    async def run() -> list[str]:
        log = AlertLog()
        gateway = Gateway(MemoryBus(), SystemClock(), toplists=(), alerts=log)
        client = Client(log)
        client.principal = principal
        gateway._clients.add(client)
        frames = [
            Outgoing(str(n), 0, 0, Place(1, n + 1), owner=owner, shared=shared)
            for n, (owner, shared) in enumerate(alerts)
        ]
        got: list[str] = []
        start = 0
        for size in (*pieces, len(alerts)):
            await gateway._deliver(frames[start : start + size])
            start += size
            for _ in range(takes):
                taken = client.take()
                got += [] if taken is None else [taken.frame]
        while (taken := client.take()) is not None:
            got.append(taken.frame)
        assert client.next == log.end
        return got

    expected = [
        str(n)
        for n, (owner, shared) in enumerate(alerts)
        if shared or owner == principal.user_id or principal.role == "admin"
    ]
    assert asyncio.run(run()) == expected
