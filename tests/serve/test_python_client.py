"""`tapewatch.client`: each alert once and in order, whatever happens to connections, gateways and the program."""

import asyncio
import json
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest
from gateway_house import House, Publisher, house
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection, serve

from tapewatch.accounts.roles import Principal
from tapewatch.adapters.memory import MemoryBus
from tapewatch.adapters.sql import SqlStore
from tapewatch.client import AlertFired, AlertNoted, AlertsLost, Client, Lost, Refused, State, ToplistUpdated, connect
from tapewatch.documents import Alert
from tapewatch.ports import Alerts
from tapewatch.serve.alert_log import AlertLog

pytestmark = pytest.mark.anyio
MakeAlert = Callable[..., Alert]
SOON: Any = {"first_wait_s": 0.01, "longest_wait_s": 0.05, "proxy": None}


@pytest.fixture
def publisher(bus: MemoryBus, make_alert: MakeAlert) -> Publisher:
    return Publisher(bus, make_alert)


async def take(client: Client, count: int) -> list[str]:
    async with asyncio.timeout(10):
        return [(await client.next_alert())["alert_id"] for _ in range(count)]


async def test_alerts_come_as_they_are_and_raw_frames_are_seen_first(bus: MemoryBus, publisher: Publisher) -> None:
    frames: list[str] = []
    async with house(bus) as at, connect(at.url, on_frame=frames.append, **SOON) as client:
        await publisher.publish(0, 2)
        async for alert in client.alerts():
            assert alert["latency"].pop("sent")
            assert alert == publisher.alerts[0].as_json()
            break
        second = await client.next_alert()
        assert second["latency"].pop("sent")
        assert second == publisher.alerts[1].as_json()
        assert client.last_id == publisher.ids[0][1]
        assert client.places() == {"0": "1-1.1", "1": "0-0"}
    assert [json.loads(frame)["type"] for frame in frames] == ["welcome", "alert", "alert"]


async def test_places_that_others_alerts_have_brought_are_learned(bus: MemoryBus, publisher: Publisher) -> None:
    async with house(bus, places_s=0.01) as at, connect(at.url, **SOON) as client:
        (listening,) = at.gateway._clients
        listening.principal = Principal.of("ann", "trader")
        await publisher.publish(0, 3, owner="bob")
        await publisher.publish(1, owner="bob")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.next_alert()
        assert client.places() == {"0": "1-1", "1": "1-1"}
        await publisher.publish(0, owner="ann")
        assert (await client.next_alert())["owner"] == "ann"


async def test_lost_connection_is_made_again_and_nothing_is_missing(bus: MemoryBus, publisher: Publisher) -> None:
    async with house(bus) as at, connect(at.url, **SOON) as client:
        heard: list[str] = []
        for _ in range(5):
            await publisher.publish(0, 2)
            at.cut()
            await publisher.publish(1, 2)
            heard += await take(client, 1)
        heard += await take(client, 15)
        assert client.connects >= 3
        await publisher.publish(0)
        heard += await take(client, 1)
        assert publisher.by_partition(heard) == publisher.ids


async def test_wait_that_is_cancelled_costs_no_alert(bus: MemoryBus, publisher: Publisher) -> None:
    async with house(bus) as at, connect(at.url, **SOON) as client:
        alerts = client.alerts()
        for _ in range(20):
            with suppress(TimeoutError):
                await asyncio.wait_for(anext(alerts), 0.001)
        await publisher.publish(0)
        assert (await asyncio.wait_for(anext(alerts), 10))["alert_id"] == publisher.ids[0][0]


async def test_program_goes_on_where_it_saved_its_state(bus: MemoryBus, publisher: Publisher) -> None:
    async with house(bus) as at:
        async with connect(at.url, **SOON) as client:
            await publisher.publish(0, 5)
            first = await take(client, 3)
            saved: State = json.loads(json.dumps(client.state()))
        await publisher.publish(1, 2)
        async with connect(at.url, **saved, **SOON) as client:
            assert publisher.by_partition(first + await take(client, 4)) == publisher.ids


async def test_known_ids_that_were_saved_are_dropped_when_history_repeats_them(
    store: SqlStore, make_alert: MakeAlert
) -> None:
    bus = MemoryBus(capacity=2)
    publisher = Publisher(bus, make_alert)
    async with house(bus, store=store, alerts=AlertLog(alerts=1)) as at:
        async with connect(at.url, **SOON) as client:
            for _ in range(5):
                await publisher.publish(0)
            first = await take(client, 5)
            saved = client.state()
        for _ in range(5):
            await publisher.publish(0)
        await store.save_alerts(publisher.alerts, reader="alerts:0")
        async with connect(at.url, **saved, **SOON) as client:
            assert first + await take(client, 5) == publisher.ids[0]
            assert client.repeated == 5
            assert client.places() == {"0": "1-10", "1": "0-0"}
            await publisher.publish(0)
            assert await take(client, 1) == publisher.ids[0][-1:]
            assert client.places() == {"0": "1-11.0", "1": "0-0"}
    await bus.close()


class TestWhenItCannotBeToldWhatWasMissed:
    @pytest.fixture
    async def bus(self) -> AsyncIterator[MemoryBus]:
        bus = MemoryBus(capacity=2)
        yield bus
        await bus.close()

    @pytest.fixture
    async def broken(self, bus: MemoryBus, publisher: Publisher) -> AsyncIterator[tuple[House, Client]]:
        """The client has one alert and will miss the next nine."""
        async with house(bus, alerts=AlertLog(alerts=1)) as at, connect(at.url, **SOON) as client:
            await publisher.publish(0)
            await take(client, 1)
            await at.kill()
            for _ in range(9):
                await publisher.publish(0)
            await at.start()
            yield at, client

    async def test_alerts_raise_and_go_on(self, publisher: Publisher, broken: tuple[House, Client]) -> None:
        _, client = broken
        with pytest.raises(AlertsLost, match="may be missing") as lost:
            await take(client, 1)
        assert (lost.value.lost.see, lost.value.lost.last_id) == ("/api/v1/alerts", publisher.ids[0][0])
        await publisher.publish(0)
        assert await take(client, 1) == publisher.ids[0][-1:]

    async def test_events_say_so_once_and_what_follows_is_complete_again(
        self, publisher: Publisher, broken: tuple[House, Client]
    ) -> None:
        at, client = broken
        assert isinstance(await client.next_event(), Lost)
        at.cut()
        await publisher.publish(0)
        event = await asyncio.wait_for(client.next_event(), 5)
        assert isinstance(event, AlertFired)
        assert event.alert["alert_id"] == publisher.ids[0][-1]


async def test_forged_places_are_reported_and_the_client_begins_anew(bus: MemoryBus, publisher: Publisher) -> None:
    async with house(bus) as at, connect(at.url, places={"9": "1-1"}, **SOON) as client:
        event = await asyncio.wait_for(client.next_event(), 5)
        assert isinstance(event, Lost)
        await client.open()
        await publisher.publish(0)
        assert await take(client, 1) == publisher.ids[0]


async def test_server_that_cannot_resume_is_reported_each_time(make_alert: MakeAlert) -> None:
    async def old(socket: ServerConnection) -> None:
        await socket.send(json.dumps({"type": "welcome", "data": {"protocol": 1, "heartbeat_s": 20}}))
        await socket.send(json.dumps({"type": "alert", "data": make_alert(1).as_json()}))

    async with serve(old, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with connect(f"ws://127.0.0.1:{port}", **SOON) as client:
            kinds = [type(await asyncio.wait_for(client.next_event(), 5)) for _ in range(3)]
    assert kinds == [AlertFired, Lost, Lost]


async def test_loss_that_was_reported_leaves_the_client_at_the_welcome_of_that_connection() -> None:
    said: list[Any] = []

    async def server(socket: ServerConnection) -> None:
        places = {"0": f"5-{len(said)}"}
        await socket.send(json.dumps({"type": "welcome", "data": {"protocol": 1, "heartbeat_s": 20, "places": places}}))
        said.append(json.loads(await socket.recv())["data"])
        answer = {"recovered": False, "alerts": 1, "places": {"0": "5-9"}, "why": "it is gone", "see": "/here"}
        await socket.send(json.dumps({"type": "resumed", "data": answer}))

    async with serve(server, "127.0.0.1", 0) as running:
        port = running.sockets[0].getsockname()[1]
        async with connect(f"ws://127.0.0.1:{port}", places={"0": "1-1"}, **SOON) as client:
            event = await asyncio.wait_for(client.next_event(), 5)
            assert event == Lost(why="it is gone", see="/here", last_id=None)
            await asyncio.wait_for(client.next_event(), 5)
    assert said[:2] == [{"places": {"0": "1-1"}}, {"places": {"0": "5-0"}}]


async def test_notes_are_events_once_each_and_no_alerts(bus: MemoryBus, make_alert: MakeAlert) -> None:
    alert = make_alert(1)
    async with house(bus) as at, connect(at.url, **SOON) as client:
        for one in (alert, alert.annotated("cancelled")):
            await bus.publish("alerts.filtered:0", Alerts((one,)))
        events = [await client.next_event() for _ in range(2)]
        assert [type(event) for event in events] == [AlertFired, AlertNoted]
        state = client.state()
    async with (
        house(bus) as at,
        connect(at.url, known=state["known"], places={"0": "0-0", "1": "0-0"}, **SOON) as client,
    ):
        await bus.publish("alerts.filtered:0", Alerts((make_alert(2),)))
        assert await take(client, 1) == [make_alert(2).alert_id]
        assert client.repeated == 2


async def test_toplist_is_asked_for_again_after_a_loss(bus: MemoryBus) -> None:
    frame = json.dumps({"type": "toplist_update", "data": {"toplist_id": "gainers_1m", "rankings": []}}).encode()
    async with house(bus) as at, connect(at.url, **SOON) as client:
        await client.subscribe("gainers_1m")
        await bus.notify("toplists.updated", frame)
        for _ in range(2):
            event = await asyncio.wait_for(client.next_event(), 5)
            assert event == ToplistUpdated({"toplist_id": "gainers_1m", "rankings": []})
            at.cut()
        await client.unsubscribe("gainers_1m")


@pytest.mark.parametrize("code", [1008, 1002])
async def test_server_that_says_mend_the_client_is_not_asked_again(code: int) -> None:
    async def refuse(socket: ServerConnection) -> None:
        await socket.close(code, "too many errors")

    async with serve(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Refused, match=str(code)):
            async with connect(f"ws://127.0.0.1:{port}", **SOON):
                pass


async def test_address_that_is_none_is_refused_and_a_full_gateway_is_asked_until_there_is_room(bus: MemoryBus) -> None:
    async with house(bus, max_clients=1) as at:
        with pytest.raises(Refused, match=r"40[34]"):
            async with connect(at.url + "/no", **SOON):
                pass
        async with connect(at.url, **SOON) as first:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1), connect(at.url, **SOON):
                    pass
            waiting = asyncio.create_task(Client(at.url, **_constructor(SOON)).open())
            await asyncio.sleep(0)
            await first.close()
            await asyncio.wait_for(waiting, 5)


def _constructor(options: dict[str, Any]) -> dict[str, Any]:
    given = dict(options)
    return {"options": {"proxy": given.pop("proxy")}, **given}


def test_waits_are_between_nothing_and_a_ceiling_that_doubles() -> None:
    client = Client("ws://nowhere", first_wait_s=0.5, longest_wait_s=15)
    for attempt, ceiling_s in [(1, 0.5), (2, 1), (3, 2), (6, 15), (10_000, 15)]:
        client._attempt = attempt
        waits = [client._wait_s() for _ in range(500)]
        assert 0 <= min(waits) < 0.1 * ceiling_s
        assert 0.9 * ceiling_s < max(waits) <= ceiling_s


def test_module_imports_no_server() -> None:
    code = (
        "import sys, tapewatch.client; print({'fastapi', 'uvicorn', 'numpy', 'pyarrow', 'pydantic'} & set(sys.modules))"
    )
    ran = subprocess.run(  # our own interpreter
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert ran.stdout.strip() == "set()"


class Application:
    """Takes alerts until it has as many as it is told, and writes down the order."""

    def __init__(self, url: str, seed: int) -> None:
        self.ids: list[str] = []
        self.connects = 0
        self._url, self._random = url, random.Random(seed)  # a seed, so that a failure comes again

    async def run(self, until: asyncio.Event, count: Callable[[], int]) -> None:
        """Now and then it ends and goes on with its saved state, as a program does that is started again."""
        state: State = {"places": {}, "last_id": None, "known": []}
        while not (until.is_set() and len(self.ids) >= count()):
            async with connect(self._url, **state, **SOON) as client:
                for _ in range(self._random.randint(1, 400)):
                    if until.is_set() and len(self.ids) >= count():
                        break
                    self.ids.append((await client.next_alert())["alert_id"])
                state = client.state()
                self.connects += client.connects


async def test_twenty_applications_see_each_alert_once_and_in_order_while_gateways_die_under_load(
    bus: MemoryBus, publisher: Publisher
) -> None:
    async with house(bus) as at:
        done = asyncio.Event()
        applications = [Application(at.url, seed) for seed in range(20)]
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            for application in applications:
                tasks.create_task(application.run(done, lambda: len(publisher.alerts)))
            while at.gateway.clients < 20:  # noqa: ASYNC110  # a gateway tells nobody who is there
                await asyncio.sleep(0.005)

            async def load() -> None:
                for n in range(300):
                    await publisher.publish(n % 2, 1 + n % 4)
                    await asyncio.sleep(0.003)

            loading = tasks.create_task(load())
            for _ in range(4):
                await asyncio.sleep(0.15)
                await at.kill()
                await asyncio.sleep(0.05)
                await at.start()
            await loading
            done.set()
            await publisher.publish(0)  # wakes those who wait for one more
        for application in applications:
            assert publisher.by_partition(application.ids) == publisher.ids
        assert min(application.connects for application in applications) >= 4


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.integers(0, 1), st.integers(1, 5)),
        st.tuples(st.just("repeat"), st.integers(0, 1), st.just(0)),
        st.tuples(st.just("take"), st.just(0), st.integers(1, 6)),
        st.sampled_from([("cut", 0, 0), ("restart", 0, 0), ("other", 0, 0), ("new program", 0, 0)]),
    ),
    min_size=5,
    max_size=30,
)


@settings(max_examples=30, deadline=None)
@given(steps=STEPS, log_size=st.sampled_from([2, 7, 1_000]))
def test_whatever_happens_each_alert_comes_once_and_in_order(steps: list[tuple[str, int, int]], log_size: int) -> None:
    asyncio.run(_play(steps, log_size))


def _plain_alert(number: int, **fields: Any) -> Alert:
    return Alert(
        alert_id=f"a{number}", rule_id="r", rule_version=1, rule_name="R", fired_at_ns=number, price=1.0, values={},
        session="regular", **fields,
    )  # fmt: skip


async def _play(steps: list[tuple[str, int, int]], log_size: int) -> None:
    """Two gateways over one bus; the program moves between them, and is started anew."""
    bus = MemoryBus()
    publisher = Publisher(bus, _plain_alert)
    async with (
        house(bus, alerts=AlertLog(alerts=log_size)) as one,
        house(bus, alerts=AlertLog(alerts=log_size)) as other,
    ):
        heard: list[str] = []
        at = one
        client = Client(at.url, **_constructor(SOON))
        await client.open()
        for step, partition, count in steps:
            if step == "publish":
                await publisher.publish(partition, count)
            elif step == "repeat":  # a writer that resumed
                own = [alert for alert in publisher.alerts if alert.alert_id in publisher.ids[partition]]
                if own:
                    await bus.publish(f"alerts.filtered:{partition}", Alerts((own[-1],)))
            elif step == "take":
                heard += await take(client, min(count, len(publisher.alerts) - len(heard)))
            elif step == "cut":
                at.cut()
            elif step == "restart":
                await at.kill()
                at.options["alerts"] = AlertLog(alerts=log_size)
                await at.start()
            else:
                state = client.state()
                await client.close()
                at = {one: other, other: one}[at] if step == "other" else at
                client = Client(at.url, **state, **_constructor(SOON))
                await client.open()
        heard += await take(client, len(publisher.alerts) - len(heard))
        await client.close()
        assert publisher.by_partition(heard) == publisher.ids
    await bus.close()
