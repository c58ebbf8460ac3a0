"""Clients that come back: what they missed comes from the log, the stream or history, or they hear that it cannot."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from gateway_house import House, Publisher, house
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import ConnectionClosed

from tapewatch.adapters.memory import MemoryBus
from tapewatch.adapters.sql import SqlStore
from tapewatch.documents import Alert
from tapewatch.errors import PositionLost, Unavailable
from tapewatch.ports import Alerts
from tapewatch.serve import alert_tail
from tapewatch.serve import gateway as gateway_module
from tapewatch.serve.alert_log import AlertLog, Outgoing
from tapewatch.serve.client import Client
from tapewatch.serve.places import NOWHERE, Place
from tapewatch.serve.resume import MOST_MISSED
from tapewatch.telemetry import ALERT_DELIVERY_LATENCY_SECONDS, ALERTS_DELIVERED_TOTAL

pytestmark = pytest.mark.anyio
MakeAlert = Callable[..., Alert]


class Line:
    """A client that keeps the whole frames, and its places as the protocol page tells it to."""

    def __init__(self, socket: ClientConnection, welcome: Any) -> None:
        self.socket = socket
        self.places: dict[str, str] = dict(welcome["data"]["places"])
        self.last_id: str | None = None
        self.ids: list[str] = []

    async def hear(self) -> Any:
        frame = json.loads(await asyncio.wait_for(self.socket.recv(), 10))
        if "at" in frame:
            partition, _, place = frame["at"].partition(":")
            self.places[partition] = place
        if frame["type"] == "alert":
            self.ids.append(frame["data"]["alert_id"])
            self.last_id = self.ids[-1]
        return frame

    async def hear_alerts(self, count: int) -> list[str]:
        return [(await self.hear())["data"]["alert_id"] for _ in range(count)]

    async def say(self, **message: Any) -> None:
        await self.socket.send(json.dumps(message))

    async def resume(self, places: Any = None, last_id: str | None = None) -> Any:
        data: dict[str, Any] = {} if last_id is None else {"last_id": last_id}
        await self.say(type="resume", data=data if places is None else {**data, "places": places})
        while (answer := await self.hear())["type"] not in {"resumed", "error"}:
            pass
        return answer

    async def nothing_more(self) -> None:
        await self.say(type="ping")
        assert await self.hear() == {"type": "pong"}


@asynccontextmanager
async def line(at: House) -> AsyncIterator[Line]:
    async with open_socket(at.url, proxy=None) as socket:
        yield Line(socket, json.loads(await socket.recv()))


@pytest.fixture
def publisher(bus: MemoryBus, make_alert: MakeAlert) -> Publisher:
    return Publisher(bus, make_alert)


async def save(store: SqlStore, publisher: Publisher) -> None:
    await store.save_alerts(publisher.alerts, reader="alerts:0")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # a gateway tells nobody how far it has read
            await asyncio.sleep(0.001)


async def everything_read(at: House) -> None:
    """The gateway has taken all that is on the bus."""
    tails = {p: Place.after_entry(await at.bus.tail(f"alerts.filtered:{p}")) for p in range(at.partitions)}
    await until(lambda: at.gateway._alerts.reached == tails)


class TestFromTheLog:
    async def test_what_was_missed_comes_first_and_live_goes_on(self, bus: MemoryBus, publisher: Publisher) -> None:
        async with house(bus) as at:
            async with line(at) as before:
                await publisher.publish(0, 3)
                await publisher.publish(1)
                await before.hear_alerts(4)
            await publisher.publish(1, 2)
            await publisher.publish(0, 2)
            await everything_read(at)
            async with line(at) as after:
                answer = await after.resume(before.places)
                assert answer["data"] == {"recovered": True, "alerts": 4, "places": {"0": "1-2", "1": "1-2"}}
                await publisher.publish(0)
                heard = publisher.by_partition(await after.hear_alerts(5))
                assert heard == {0: publisher.ids[0][3:], 1: publisher.ids[1][1:]}
                await after.nothing_more()

    async def test_place_within_an_entry_gives_its_rest(self, bus: MemoryBus, publisher: Publisher) -> None:
        async with house(bus) as at, line(at) as before:
            await publisher.publish(0, 5)
            ats = [(await before.hear())["at"] for _ in range(5)]
            assert ats == ["0:1-1.0+", "0:1-1.1+", "0:1-1.2+", "0:1-1.3+", "0:1-1.4"]
            async with line(at) as after:
                assert (await after.resume({"0": "1-1.2+", "1": "0-0"}))["data"]["alerts"] == 2
                assert await after.hear_alerts(2) == publisher.ids[0][3:]
                await after.nothing_more()

    async def test_alerts_between_welcome_and_resume_come_again_in_order(
        self, bus: MemoryBus, publisher: Publisher
    ) -> None:
        async with house(bus) as at:
            async with line(at) as before:
                pass
            await publisher.publish(0)
            await everything_read(at)
            async with line(at) as after:
                await publisher.publish(0)
                assert await after.hear_alerts(1) == publisher.ids[0][1:]
                assert (await after.resume(before.places))["data"]["alerts"] == 2
                assert await after.hear_alerts(2) == publisher.ids[0]

    async def test_gateway_that_starts_serves_clients_of_one_that_died_and_new_ones_get_nothing_old(
        self, bus: MemoryBus, publisher: Publisher
    ) -> None:
        async with house(bus) as at:
            async with line(at) as before:
                await publisher.publish(0)
                await before.hear_alerts(1)
            await at.kill()
            await publisher.publish(0, 2)
            await publisher.publish(1, 2)
            await at.start()
            async with line(at) as after, line(at) as new:
                assert (await after.resume(before.places))["data"]["alerts"] == 4
                heard = publisher.by_partition(await after.hear_alerts(4))
                assert heard == {0: publisher.ids[0][1:], 1: publisher.ids[1]}
                await new.nothing_more()
                assert new.places == {"0": "1-2", "1": "1-1"}

    async def test_resumed_alerts_are_counted_as_delivered_but_not_timed(
        self, bus: MemoryBus, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        timed: list[float] = []
        monkeypatch.setattr(ALERT_DELIVERY_LATENCY_SECONDS, "observe", timed.append)
        counter = ALERTS_DELIVERED_TOTAL._value
        async with house(bus) as at:
            async with line(at) as before:
                pass
            await publisher.publish(0, 2, received_ns=1)
            await everything_read(at)
            delivered = counter.get()
            async with line(at) as after:
                await after.resume(before.places)
                await after.hear_alerts(2)
                await after.nothing_more()
            assert (counter.get() - delivered, timed) == (2, [])

    async def test_gateway_that_cannot_read_yet_lets_the_client_wait(
        self, bus: MemoryBus, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gateway_module, "WELCOME_WAIT_S", 0.01)
        newest, back = bus.newest, asyncio.Event()

        async def slow(stream: str, limit: int) -> Any:
            await back.wait()
            return await newest(stream, limit)

        monkeypatch.setattr(bus, "newest", slow)
        await publisher.publish(0)
        async with house(bus) as at, line(at) as after:
            assert after.places == {}
            asyncio.get_running_loop().call_later(0.05, back.set)
            assert (await after.resume({"0": "0-0", "1": "0-0"}))["data"]["alerts"] == 1
            assert await after.hear_alerts(1) == publisher.ids[0]


class TestFromTheStream:
    async def test_what_the_log_dropped_is_read_again(self, bus: MemoryBus, publisher: Publisher) -> None:
        async with house(bus, alerts=AlertLog(alerts=4)) as at:
            async with line(at) as before:
                await publisher.publish(0, 3)
                await before.hear_alerts(2)
            for n in range(10):
                await publisher.publish(n % 2, 3)
            await everything_read(at)
            async with line(at) as after:
                answer = await after.resume(before.places)
                assert (answer["data"]["recovered"], answer["data"]["alerts"]) == (True, 31)
                heard = publisher.by_partition(await after.hear_alerts(31))
                assert heard == {0: publisher.ids[0][2:], 1: publisher.ids[1]}
                await publisher.publish(1)
                assert await after.hear_alerts(1) == publisher.ids[1][-1:]
                assert after.places == {"0": "1-6.2", "1": "1-6.0"}

    async def test_nothing_is_doubled_or_lost_while_alerts_keep_coming(
        self, bus: MemoryBus, publisher: Publisher
    ) -> None:
        async with house(bus, alerts=AlertLog(alerts=40)) as at:
            async with line(at) as before:
                pass
            for n in range(100):
                await publisher.publish(n % 2)
            await everything_read(at)

            async def keep_coming() -> None:
                for n in range(100):
                    await publisher.publish(n % 2)
                    await asyncio.sleep(0.001)

            async with line(at) as after:
                coming = asyncio.create_task(keep_coming())
                await asyncio.sleep(0)
                missed = (await after.resume(before.places))["data"]["alerts"]
                assert missed >= 100
                heard = await after.hear_alerts(200)
                await coming
                assert publisher.by_partition(heard) == publisher.ids


class TestFromHistory:
    @pytest.fixture
    async def bus(self) -> AsyncIterator[MemoryBus]:
        bus = MemoryBus(capacity=3)
        yield bus
        await bus.close()

    async def test_stream_that_is_gone_is_replaced_by_history_from_before_the_last_alert(
        self, bus: MemoryBus, store: SqlStore, publisher: Publisher
    ) -> None:
        async with house(bus, store=store, alerts=AlertLog(alerts=2)) as at:
            for n in range(200):
                await publisher.publish(n % 2)
            async with line(at) as before:
                await publisher.publish(0)
                await before.hear_alerts(1)
            for n in range(10):
                await publisher.publish(n % 2)
            await everything_read(at)
            publisher.alerts, unsaved = publisher.alerts[:-1], publisher.alerts[-1]
            await save(store, publisher)
            async with line(at) as after:
                answer = await after.resume(before.places, before.last_id)
                assert answer["data"]["recovered"] == "history"
                expected = [*(alert.alert_id for alert in publisher.alerts[80:]), unsaved.alert_id]
                assert answer["data"]["alerts"] == len(expected)
                assert await after.hear_alerts(len(expected)) == expected
                await after.nothing_more()

    async def test_last_id_alone_is_enough_and_notes_come_after_their_alerts(
        self, bus: MemoryBus, store: SqlStore, publisher: Publisher
    ) -> None:
        await publisher.publish(0)
        publisher.alerts[0] = publisher.alerts[0].annotated("cancelled")
        await save(store, publisher)
        await bus.close()
        async with house(MemoryBus(), store=store) as at, line(at) as after:
            answer = await after.resume(last_id=publisher.ids[0][0])
            assert (answer["data"]["recovered"], answer["data"]["alerts"]) == ("history", 2)
            frames = [await after.hear(), await after.hear()]
        assert [(frame["type"], frame["data"]["note"], "at" in frame) for frame in frames] == [
            ("alert", None, False),
            ("alert_note", "cancelled", False),
        ]

    async def test_place_beyond_the_streams_end_is_of_another_life_of_it(
        self, bus: MemoryBus, store: SqlStore, publisher: Publisher
    ) -> None:
        async with house(bus, store=store) as at:
            await publisher.publish(0)
            await save(store, publisher)
            await everything_read(at)
            async with line(at) as after:
                answer = await after.resume({"0": "7-3", "1": "0-0"}, publisher.ids[0][0])
                assert answer["data"]["recovered"] == "history"


class TestNotAtAll:
    @pytest.fixture
    async def bus(self) -> AsyncIterator[MemoryBus]:
        bus = MemoryBus(capacity=3)
        yield bus
        await bus.close()

    @pytest.mark.parametrize("last_id", [None, "unknown"])
    async def test_client_is_told_where_to_look_and_gets_everything_since_its_welcome(
        self, bus: MemoryBus, store: SqlStore, publisher: Publisher, last_id: str | None
    ) -> None:
        async with house(bus, store=store, alerts=AlertLog(alerts=2)) as at:
            async with line(at) as before:
                pass
            for _ in range(9):
                await publisher.publish(0)
            await everything_read(at)
            async with line(at) as after:
                await publisher.publish(1)
                assert await after.hear_alerts(1) == publisher.ids[1]
                answer = (await after.resume(before.places, last_id))["data"]
                assert (answer["recovered"], answer["alerts"], answer["see"]) == (False, 1, "/api/v1/alerts")
                assert answer["why"]
                assert await after.hear_alerts(1) == publisher.ids[1]
                await after.nothing_more()

    async def test_more_than_the_bound_is_not_sent(self, store: SqlStore, make_alert: MakeAlert) -> None:
        bus = MemoryBus()
        publisher = Publisher(bus, make_alert)
        async with house(bus, store=store) as at:
            async with line(at) as before:
                pass
            await publisher.publish(0, MOST_MISSED + 1)
            await everything_read(at)
            async with line(at) as after:
                answer = (await after.resume(before.places))["data"]
                assert (answer["recovered"], answer["alerts"]) == (False, 0)
                await after.nothing_more()
                assert at.gateway.clients == 1
        await bus.close()

    async def test_bus_that_is_away_costs_the_connection_and_not_the_places(
        self, bus: MemoryBus, publisher: Publisher
    ) -> None:
        async with house(bus, alerts=AlertLog(alerts=2)) as at:
            async with line(at) as before:
                pass
            for _ in range(3):
                await publisher.publish(0)
            await everything_read(at)

            def away(*_: Any) -> Any:
                raise Unavailable("away")

            at.gateway._resumes._bus = type("Away", (), {"read": away, "tail": away})()
            async with line(at) as after:
                with pytest.raises(ConnectionClosed) as closed:
                    await after.resume(before.places)
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 1013


FORGED: list[Any] = [
    {"0": "x"},
    {"0": "1-1.0 "},
    {"0": "1-1.0\n"},
    {"0": "-1-1"},
    {"0": "9999999999999999999-1"},
    {"0": "1-٣"},
    {"00": "1-1"},
    {"2": "1-1"},
    {"-1": "1-1"},
    {"": "1-1"},
]


@pytest.mark.parametrize("places", FORGED, ids=[str(places)[:40] for places in FORGED])
async def test_place_that_no_server_gave_is_an_error_and_the_connection_goes_on(
    bus: MemoryBus, publisher: Publisher, places: Any
) -> None:
    async with house(bus) as at, line(at) as client:
        answer = await client.resume(places)
        assert (answer["type"], answer["data"]["code"]) == ("error", "bad_resume")
        await publisher.publish(0)
        assert await client.hear_alerts(1) == publisher.ids[0]


@pytest.mark.parametrize(
    "data",
    [None, [], "x", {"places": []}, {"places": {"0": 1}}, {"places": {"0": "1" * 65}}, {"last_id": 1},
     {"last_id": "x" * 65}, {"last_id": "\ud800"}, {"at": "0:1-1"}],
    ids=lambda data: str(data)[:30].encode("ascii", "replace").decode(),
)  # fmt: skip
async def test_resume_of_another_shape_is_a_bad_message(bus: MemoryBus, data: Any) -> None:
    async with house(bus) as at, line(at) as client:
        await client.say(type="resume", data=data)
        assert (await client.hear())["data"]["code"] in {"bad_message", "bad_json"}
        await client.nothing_more()


async def test_resume_is_the_first_message_or_none(bus: MemoryBus) -> None:
    async with house(bus) as at, line(at) as client:
        assert (await client.resume(client.places))["data"]["recovered"] is True
        assert (await client.resume(client.places))["data"]["code"] == "bad_resume"
    async with house(bus) as at, line(at) as client:
        await client.nothing_more()
        assert (await client.resume(client.places))["data"]["code"] == "bad_resume"


async def test_places_of_one_gateway_are_good_at_another_that_interleaves_otherwise(
    bus: MemoryBus, publisher: Publisher
) -> None:
    async with house(bus, partitions=2) as one, house(bus, partitions=2) as other:
        order: list[list[str]] = []
        for at in (one, other):
            deliver = at.gateway._tail._deliver

            async def late(alerts: Any, at: House = at, deliver: Any = deliver) -> None:
                frames = list(alerts)
                for _ in range(3 if frames and frames[0].partition == (at is one) else 0):
                    await asyncio.sleep(0)
                await deliver(frames)

            at.gateway._tail._deliver = late
        async with line(one) as a, line(other) as b:
            for _ in range(20):
                await publisher.publish(0, 2)
                await publisher.publish(1, 3)
            order = [await a.hear_alerts(100), await b.hear_alerts(100)]
            assert order[0] != order[1]
        async with line(one) as a:
            assert (await a.resume({"0": "0-0", "1": "0-0"}))["data"]["alerts"] == 100
            first = await a.hear_alerts(37)
        async with line(other) as b:
            # Exactly the rest, although 37 frames of the other gateway would have been other alerts.
            places = {"0": "0-0", "1": "0-0"} | a.places
            assert (await b.resume(places))["data"]["alerts"] == 63
            heard = publisher.by_partition(first + await b.hear_alerts(63))
            assert heard == publisher.ids


async def test_alert_that_is_twice_on_the_stream_is_sent_once_and_so_is_each_note(
    bus: MemoryBus, make_alert: MakeAlert
) -> None:
    alert = make_alert(1)
    noted, again = alert.annotated("cancelled"), alert.annotated("cancelled").annotated("corrected")
    async with house(bus) as at, line(at) as client:
        for one in (alert, alert, noted, alert, again, noted, make_alert(2)):
            await bus.publish("alerts.filtered:0", Alerts((one,)))
        frames = [await client.hear() for _ in range(4)]
        await client.nothing_more()
    assert [(frame["at"], frame["data"]["note"]) for frame in frames] == [
        ("0:1-1.0", None),
        ("0:1-3.0", "cancelled"),
        ("0:1-5.0", "cancelled\ncorrected"),
        ("0:1-7.0", None),
    ]


class Leaky(MemoryBus):
    """A bus that a gateway cannot read for a while, as if it were slow or cut off."""

    def __init__(self) -> None:
        super().__init__(capacity=3)
        self.readable = asyncio.Event()
        self.readable.set()
        self.also: dict[str, asyncio.Event] = {}

    def read(self, stream: str, after: Any = None) -> Any:
        return self._read(stream, super().read(stream, after))

    async def _read(self, stream: str, reader: Any) -> Any:
        readable = self.also.get(stream, self.readable)
        while True:
            await readable.wait()
            item = await anext(reader)
            await readable.wait()
            yield item


async def test_client_that_is_ahead_of_a_gateway_has_all_and_gets_it_again_later(make_alert: MakeAlert) -> None:
    bus = Leaky()
    publisher = Publisher(bus, make_alert)
    async with house(bus) as at, line(at) as client:
        await publisher.publish(0)
        await client.hear_alerts(1)
        bus.readable.clear()
        await publisher.publish(0, 2)
        async with line(at) as ahead:
            answer = (await ahead.resume({"0": "1-2.1", "1": "0-0"}))["data"]
            assert (answer["recovered"], answer["alerts"]) == (True, 0)
            bus.readable.set()
            assert await ahead.hear_alerts(2) == publisher.ids[0][1:]


class TestGatewayThatLostItsPlace:
    async def test_sends_what_history_has_and_nothing_twice(self, store: SqlStore, make_alert: MakeAlert) -> None:
        bus = Leaky()
        publisher = Publisher(bus, make_alert)
        async with house(bus, store=store) as at, line(at) as client:
            for _ in range(5):
                await publisher.publish(0)
                await publisher.publish(1)
                await client.hear_alerts(2)
            bus.readable.clear()
            for n in range(40):
                await publisher.publish(n % 2)
            await save(store, publisher)
            await publisher.publish(0)  # not yet in history
            bus.readable.set()
            await client.hear_alerts(41)
            await client.nothing_more()
            assert publisher.by_partition(client.ids) == publisher.ids
            async with line(at) as after:  # and its log is whole again
                assert (await after.resume({"0": "1-5", "1": "1-5"}))["data"]["recovered"] is True
                await after.hear_alerts(41)
                await after.nothing_more()

    async def test_takes_from_history_only_what_belongs_to_the_partition(
        self, store: SqlStore, make_alert: MakeAlert
    ) -> None:
        bus = Leaky()
        other = bus.also["alerts.filtered:1"] = asyncio.Event()
        other.set()
        publisher = Publisher(bus, make_alert)
        async with house(bus, store=store) as at, line(at) as client:
            await publisher.publish(0)
            await publisher.publish(1)
            await client.hear_alerts(2)
            bus.readable.clear()
            other.clear()
            await publisher.publish(1, 2)
            for _ in range(9):
                await publisher.publish(0)
            await save(store, publisher)
            bus.readable.set()
            assert await client.hear_alerts(9) == publisher.ids[0][1:]
            other.set()
            assert [(await client.hear())["at"] for _ in range(2)] == ["1:1-2.0+", "1:1-2.1"]

    async def test_sends_nothing_twice_that_the_stream_still_holds(
        self, store: SqlStore, make_alert: MakeAlert, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Forgetful(MemoryBus):
            """It loses a reader's place twice, and nothing else."""

            forgotten = 0

            def read(self, stream: str, after: Any = None) -> Any:
                if stream == "alerts.filtered:0" and after is not None and self.forgotten < 2:
                    self.forgotten += 1
                    raise PositionLost("lost")
                return super().read(stream, after)

        monkeypatch.setattr(alert_tail, "MOST_KNOWN", 1)
        bus = Forgetful()
        publisher = Publisher(bus, make_alert)
        await publisher.publish(0)
        await publisher.publish(0)
        async with house(bus, store=store) as at, line(at) as client:
            await until(lambda: bus.forgotten == 2)
            await publisher.publish(0)
            assert await client.hear_alerts(1) == publisher.ids[0][-1:]

    async def test_without_history_says_so_to_everybody(self, make_alert: MakeAlert) -> None:
        bus = Leaky()
        publisher = Publisher(bus, make_alert)
        async with house(bus) as at, line(at) as client:
            await publisher.publish(0)
            await client.hear_alerts(1)
            bus.readable.clear()
            for _ in range(10):
                await publisher.publish(0)
            bus.readable.set()
            with suppress(ConnectionClosed):
                while True:
                    await client.hear()
            assert (client.socket.close_code, client.socket.close_reason) == (1012, "alerts were lost")
            await everything_read(at)
            async with line(at) as after:
                assert (await after.resume({"0": "1-1.0", "1": "0-0"}))["data"]["recovered"] is False


@pytest.mark.parametrize(
    ("text", "place"),
    [("0-0", NOWHERE), ("5-7", Place(5, 7)), ("5-7.3", Place(5, 7)), ("5-7.3+", Place(5, 7, 3))],
)
def test_place_is_read_as_it_is_written(text: str, place: Place) -> None:
    assert Place.parse(text) == place
    assert Place.parse(place.text()) == place


async def test_client_whose_past_is_looked_for_is_not_slow_however_much_comes_meanwhile() -> None:
    log = AlertLog(alerts=2)
    client = Client(log)
    client.held = True
    for n in range(5):
        log.append(Outgoing(f"a{n}", 0))
        client.see_alerts()
        assert client.take() is None
    client.go_on_after([Outgoing("missed", 0)])
    log.append(Outgoing("live", 0))
    client.see_alerts()
    assert [(client.take() or pytest.fail("nothing to take")).frame for _ in range(2)] == ["missed", "live"]
    assert not client.ending.done()


def test_log_reaches_back_as_far_as_it_holds_each_partition() -> None:
    log = AlertLog(alerts=3)
    for partition in (0, 1):
        log.begin(partition, [], after=NOWHERE, reached=NOWHERE)
    for sequence in (1, 2, 3):
        log.append(Outgoing(f"a{sequence}", 0, 0, Place(1, sequence, 0)))
    log.append(Outgoing("b1", 0, 1, Place(1, 1, 0)))
    assert log.after({0: NOWHERE, 1: NOWHERE}) is None
    assert [frame.frame for frame in log.after({0: Place(1, 1), 1: NOWHERE}) or ()] == ["a2", "a3", "b1"]
    assert [frame.frame for frame in log.after({0: Place(1, 3), 1: NOWHERE}) or ()] == ["b1"]
    assert log.after({0: Place(1, 3), 1: Place(1, 1)}) == []
    assert log.lacking({0: Place(1, 0), 1: NOWHERE}) == [0]
