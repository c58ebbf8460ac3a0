"""The WebSocket protocol, message by message, as docs/protocol.md has it."""

import asyncio
import json
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from wrong_messages import WRONG

from tapewatch.adapters.memory import MemoryBus
from tapewatch.documents import Alert
from tapewatch.engine.scanner import Withdrawn
from tapewatch.errors import Unavailable
from tapewatch.ports import Alerts
from tapewatch.roles.alerts import note_of
from tapewatch.serve.alert_log import AlertLog
from tapewatch.serve.api.alerts import parse_instant_ns
from tapewatch.serve.client import MAX_SUBSCRIPTIONS, Client
from tapewatch.serve.gateway import Gateway
from tapewatch.telemetry import ALERT_DELIVERY_LATENCY_SECONDS, ALERTS_DELIVERED_TOTAL, WEBSOCKET_CONNECTIONS

pytestmark = pytest.mark.anyio
Dial = Callable[..., Any]
MakeAlert = Callable[..., Alert]
PROTOCOL_PAGE = Path(__file__).parents[2] / "docs/protocol.md"


def update(toplist: str, number: int = 0) -> bytes:
    return json.dumps({"type": "toplist_update", "data": {"n": number, "toplist_id": toplist, "rankings": []}}).encode()


async def say(client: ClientConnection, **message: Any) -> None:
    await client.send(json.dumps(message))


async def hear(client: ClientConnection) -> Any:
    return json.loads(await asyncio.wait_for(client.recv(), 10))


async def settled(client: ClientConnection) -> None:
    """What was sent before has been obeyed once the pong is here; nothing else may have come before it."""
    await say(client, type="ping")
    assert await hear(client) == {"type": "pong"}


async def closed(client: ClientConnection) -> tuple[int, str]:
    with suppress(ConnectionClosed):
        while True:
            await asyncio.wait_for(client.recv(), 5)
    return client.close_code or 0, client.close_reason or ""


async def test_client_is_welcomed_and_gets_alerts_of_all_partitions_from_the_start(
    dial: Dial, bus: MemoryBus, make_alert: MakeAlert
) -> None:
    async with dial() as client:
        await bus.publish("alerts.filtered:0", Alerts((make_alert(1), make_alert(2))))
        await bus.publish("alerts.filtered:1", Alerts((make_alert(3),)))
        heard = [await hear(client) for _ in range(3)]
    assert {message["type"] for message in heard} == {"alert"}
    for message in heard:
        assert message["data"]["latency"].pop("sent") is not None
    assert sorted((message["data"] for message in heard), key=lambda data: data["alert_id"]) == [
        make_alert(n).as_json() for n in (1, 2, 3)
    ]


async def test_welcome_names_protocol_and_heartbeat(address: str) -> None:
    async with connect(f"ws://{address}/ws", proxy=None) as client:
        welcome = await hear(client)
    assert welcome == {
        "type": "welcome",
        "data": {"protocol": 1, "heartbeat_s": 20, "places": {"0": "0-0", "1": "0-0"}},
    }


async def test_alerts_from_before_the_start_are_not_sent(bus: MemoryBus, make_alert: MakeAlert) -> None:
    class Clock:
        def now_ns(self) -> int:
            return 0

        async def sleep(self, seconds: float) -> None: ...

    await bus.publish("alerts.filtered:0", Alerts((make_alert(1),)))
    log = AlertLog()
    gateway = Gateway(bus, Clock(), toplists=(), alerts=log)
    client = Client(log)
    gateway._clients.add(client)
    running = asyncio.create_task(gateway.run())
    await asyncio.sleep(0.01)
    await bus.publish("alerts.filtered:0", Alerts((make_alert(2),)))
    await asyncio.wait_for(client.wait(), 10)
    outgoing = client.take()
    assert outgoing is not None
    assert json.loads(outgoing.frame)["data"]["alert_id"] == make_alert(2).alert_id
    assert client.take() is None
    running.cancel()


async def test_alert_with_a_note_is_a_message_of_its_own_and_no_second_delivery(
    dial: Dial, bus: MemoryBus, make_alert: MakeAlert
) -> None:
    alert = make_alert(1, received_ns=time.time_ns())
    annotated = make_alert(1, received_ns=alert.received_ns, note="A print before this alert was cancelled.")
    delivered_before = ALERTS_DELIVERED_TOTAL._value.get()
    async with dial() as client:
        await bus.publish("alerts.filtered:0", Alerts((alert,)))
        await bus.publish("alerts.filtered:0", Alerts((annotated,)))
        first, second = await hear(client), await hear(client)
        await settled(client)
    assert (first["type"], first["data"]["note"]) == ("alert", None)
    assert first["data"]["latency"].pop("sent") <= second["data"]["latency"].pop("sent")
    assert second == {"type": "alert_note", "at": "0:1-2.0", "data": {**first["data"], "note": annotated.note}}
    assert ALERTS_DELIVERED_TOTAL._value.get() == delivered_before + 1


async def test_alerts_can_be_muted_and_asked_for_again(dial: Dial, bus: MemoryBus, make_alert: MakeAlert) -> None:
    async with dial() as client:
        await say(client, type="unsubscribe_alerts")
        await settled(client)
        await bus.publish("alerts.filtered:0", Alerts((make_alert(1),)))
        await asyncio.sleep(0.02)
        await say(client, type="subscribe_alerts")
        await settled(client)
        await bus.publish("alerts.filtered:0", Alerts((make_alert(2),)))
        assert (await hear(client))["data"]["alert_id"] == make_alert(2).alert_id


async def test_toplist_update_reaches_its_subscribers_byte_for_byte(dial: Dial, bus: MemoryBus) -> None:
    async with dial() as one, dial() as other, dial() as neither:
        for client in (one, other):
            await say(client, type="subscribe_toplist", toplist_id="gainers_1m", toplist_type="system")
            await settled(client)
        frame = update("gainers_1m") + b" "  # white space shows that the frame was not encoded again
        await bus.notify("toplists.updated", frame)
        assert [await one.recv(), await other.recv()] == [frame.decode()] * 2
        await settled(neither)
        await say(one, type="unsubscribe_toplist", toplist_id="gainers_1m")
        await settled(one)
        await bus.notify("toplists.updated", update("gainers_1m", 2))
        assert (await hear(other))["data"]["n"] == 2
        await settled(one)


async def test_toplist_subscribed_late_is_answered_with_the_newest(dial: Dial, bus: MemoryBus) -> None:
    for number in range(3):
        await bus.notify("toplists.updated", update("gainers_1m", number))
    await bus.notify("toplists.updated", update("no_such_list"))
    await bus.notify("toplists.updated", b'{"type":"toplist_update","data":{}}')
    await bus.notify("toplists.updated", b"\xff")
    await asyncio.sleep(0.01)
    async with dial() as client:
        await say(client, type="subscribe_toplist", toplist_id="gainers_1m")
        assert (await hear(client))["data"]["n"] == 2


@pytest.mark.parametrize(("code", "text"), WRONG, ids=[f"{code} {text[:40]}" for code, text in WRONG])
async def test_message_wrong_is_answered_with_its_code_and_the_connection_stays(
    dial: Dial, code: str, text: str
) -> None:
    async with dial() as client:
        await client.send(text)
        answer = await hear(client)
        assert (answer["type"], answer["data"]["code"]) == ("error", code)
        assert len(answer["data"]["message"]) < 200
        await settled(client)


async def test_message_binary_is_wrong(dial: Dial) -> None:
    async with dial() as client:
        await client.send(b'{"type":"ping"}')
        assert (await hear(client))["data"]["code"] == "bad_message"


async def test_sixth_error_closes_after_five_were_answered(dial: Dial) -> None:
    async with dial() as client:
        for _ in range(6):
            await say(client, type="nonsense")
        assert [(await hear(client))["data"]["code"] for _ in range(5)] == ["unknown_type"] * 5
        assert await closed(client) == (1008, "too many errors")


async def test_flood_of_messages_closes_with_4429(dial: Dial) -> None:
    async with dial() as client:
        for _ in range(40):
            await say(client, type="ping")
        assert await closed(client) == (4429, "too many messages")


async def test_frame_of_more_than_64_kb_closes_with_1009(dial: Dial) -> None:
    async with dial() as client:
        await client.send("x" * 70_000)
        assert (await closed(client))[0] == 1009


async def raw_frames(client: ClientConnection, data: bytes) -> None:
    client.transport.write(data)
    await asyncio.sleep(0)


MASK = b"\x00\x00\x00\x00"


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (b"\x81\x02hi", 1002),
        (b"\x83\x80" + MASK, 1002),
        (b"\xc1\x80" + MASK, 1002),
        (b"\x81\x82" + MASK + b"\xff\xfe", 1007),
        (b"\x01\x80" + MASK + (b"\x00\x80" + MASK) * 20_000, 1009),
        ((b"\x89\xfd" + MASK + b"p" * 125) * 100, 1008),
    ],
    ids=["unmasked", "reserved opcode", "reserved bit", "not UTF-8", "empty fragments without end", "flood of pings"],
)
async def test_frame_that_breaks_the_protocol_closes(dial: Dial, frames: bytes, code: int) -> None:
    async with dial() as client:
        await raw_frames(client, frames)
        assert (await closed(client))[0] == code
    async with dial() as another:
        await settled(another)


async def test_compression_is_not_offered(address: str) -> None:
    async with connect(f"ws://{address}/ws", proxy=None, compression="deflate") as client:
        assert client.protocol.extensions == []


async def test_connections_are_counted_and_left_clients_forgotten(dial: Dial, gateway: Gateway) -> None:
    before = WEBSOCKET_CONNECTIONS._value.get()
    async with dial() as one, dial():
        assert gateway.clients == 2
        assert WEBSOCKET_CONNECTIONS._value.get() == before + 2
        one.transport.abort()
        await asyncio.sleep(0.05)
        assert gateway.clients == 1
    await asyncio.sleep(0.05)
    assert gateway.clients == 0
    assert WEBSOCKET_CONNECTIONS._value.get() == before


async def test_delivery_is_counted_and_timed_when_arrival_is_known(
    dial: Dial, bus: MemoryBus, make_alert: MakeAlert
) -> None:
    def timed() -> float:
        (family,) = ALERT_DELIVERY_LATENCY_SECONDS.collect()
        return next(sample.value for sample in family.samples if sample.name.endswith("_count"))

    delivered_before, timed_before = ALERTS_DELIVERED_TOTAL._value.get(), timed()
    async with dial() as client:
        live = make_alert(1, received_ns=time.time_ns())
        await bus.publish("alerts.filtered:0", Alerts((live, make_alert(2))))
        await hear(client)
        await hear(client)
        await settled(client)
    assert ALERTS_DELIVERED_TOTAL._value.get() == delivered_before + 2
    assert timed() == timed_before + 1


class TestFull:
    """A gateway for two clients."""

    @pytest.fixture
    def gateway_options(self) -> dict[str, Any]:
        return {"max_clients": 2}

    async def test_client_beyond_the_limit_is_refused_until_another_leaves(self, address: str, dial: Dial) -> None:
        async with dial() as one, dial():
            with pytest.raises(InvalidStatus) as refused:
                await connect(f"ws://{address}/ws", proxy=None)
            assert refused.value.response.status_code == 503
            await one.close()
            async with dial():
                pass


async def test_bus_away_for_a_moment_loses_nothing_that_follows(bus: MemoryBus, make_alert: MakeAlert) -> None:
    class Away:
        """A bus that is away for the first call of each kind."""

        def __init__(self) -> None:
            self.failed: set[str] = set()

        async def tail(self, stream: str) -> Any:
            self.fail("tail")
            return await bus.tail(stream)

        async def newest(self, stream: str, limit: int) -> Any:
            self.fail("newest")
            return await bus.newest(stream, limit)

        def read(self, stream: str, after: Any) -> Any:
            self.fail("read")
            return bus.read(stream, after)

        def listen(self, channel: str) -> Any:
            self.fail("listen")
            return bus.listen(channel)

        def fail(self, what: str) -> None:
            if what not in self.failed:
                self.failed.add(what)
                raise Unavailable("away")

    class Clock:
        def now_ns(self) -> int:
            return 0

        async def sleep(self, seconds: float) -> None:
            await asyncio.sleep(min(seconds, 0))

    away: Any = Away()
    log = AlertLog()
    gateway = Gateway(away, Clock(), toplists=["gainers_1m"], alerts=log)
    client = Client(log, followers=gateway._followers)
    client.subscribe("gainers_1m")
    gateway._clients.add(client)
    running = asyncio.create_task(gateway.run())
    await asyncio.sleep(0.02)
    assert away.failed == {"tail", "newest", "read", "listen"}
    await bus.publish("alerts.filtered:0", Alerts((make_alert(1),)))
    await bus.notify("toplists.updated", update("gainers_1m"))
    await asyncio.sleep(0.02)
    alert, toplist = client.take(), client.take()
    assert alert is not None
    assert toplist is not None
    assert [json.loads(outgoing.frame)["type"] for outgoing in (alert, toplist)] == ["alert", "toplist_update"]
    running.cancel()


async def test_client_may_have_200_subscriptions() -> None:
    client = Client(AlertLog())
    assert all(client.subscribe(f"list{n}") for n in range(MAX_SUBSCRIPTIONS))
    assert client.subscribe("list0")
    assert not client.subscribe("one_more")


def test_protocol_page_shows_every_message_as_it_is(make_alert: MakeAlert) -> None:
    examples = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", PROTOCOL_PAGE.read_text(), re.DOTALL)]
    assert {example["type"] for example in examples} == {
        *("welcome", "alert", "alert_note", "toplist_update", "toplist_event", "pong", "error", "resumed", "places"),
        *("authenticate", "authenticated", "token_expiring"),
        *("subscribe_toplist", "unsubscribe_toplist", "subscribe_alerts", "unsubscribe_alerts", "ping", "resume"),
    }
    alert, note = (next(e["data"] for e in examples if e["type"] == kind) for kind in ("alert", "alert_note"))
    assert alert.keys() == make_alert(1).as_json().keys()
    assert alert["latency"].keys() == {*make_alert(1).as_json()["latency"], "sent"}
    withdrawn = Withdrawn("AAPL", parse_instant_ns("2013-10-07T13:30:00.412Z", where="test"), 486.75, 100.0, None)
    later = {**alert["latency"], "sent": note["latency"]["sent"]}
    assert note == {**alert, "note": note_of(withdrawn), "latency": later}


async def test_plain_get_of_the_socket_is_404(api: httpx.AsyncClient) -> None:
    assert (await api.get("/ws")).status_code == 404
