"""Clients that do not read: they are closed, they cost a bounded amount of memory, and nobody waits for them."""

import asyncio
import json
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any

import psutil
import pytest
from websockets.asyncio.client import ClientConnection

from tapewatch.adapters.memory import MemoryBus
from tapewatch.clock import SystemClock
from tapewatch.documents import Alert
from tapewatch.ports import Alerts
from tapewatch.serve.alert_log import AlertLog, Outgoing, from_entry
from tapewatch.serve.client import MAX_REPLIES, Client
from tapewatch.serve.gateway import STALL_S, Gateway
from tapewatch.serve.places import Place

pytestmark = pytest.mark.anyio
Dial = Callable[..., Any]
MakeAlert = Callable[..., Alert]
Silent = Callable[[], Awaitable[socket.socket]]


@pytest.fixture
def gateway_options() -> dict[str, Any]:
    return {"send_timeout_s": 1.0, "close_grace_s": 0.5}


@pytest.fixture
def silent(address: str) -> Iterator[Silent]:
    """Clients that shake hands and then do not read."""
    clients: list[socket.socket] = []

    def shake_hands() -> socket.socket:
        host, _, port = address.partition(":")
        client = socket.socket()
        clients.append(client)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
        client.connect((host, int(port)))
        client.sendall(
            b"GET /ws HTTP/1.1\r\nHost: " + address.encode() + b"\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        return client

    yield partial(asyncio.to_thread, shake_hands)
    for client in clients:
        client.close()


async def until(condition: Callable[[], bool], *, within_s: float) -> float:
    """How long it took."""
    started = time.perf_counter()
    while not condition():
        assert time.perf_counter() - started < within_s
        await asyncio.sleep(0.005)
    return time.perf_counter() - started


WIDE = {f"metric_{n}": float(n) for n in range(100)}


def wide(make_alert: MakeAlert, number: int) -> Alert:
    """Small for the bus, which keeps it, and 2 kB for the gateway."""
    return make_alert(number, values=WIDE)


async def test_slow_client_is_dropped_while_others_get_everything_at_once(
    silent: Silent, dial: Dial, bus: MemoryBus, gateway: Gateway, make_alert: MakeAlert
) -> None:
    for _ in range(10):
        await silent()
    async with dial() as reader:
        await until(lambda: gateway.clients == 11, within_s=2)
        resident = psutil.Process().memory_info().rss
        sent, longest_s = 0, 0.0
        while gateway.clients > 1:
            assert sent < 20_000
            alerts = tuple(wide(make_alert, sent + n) for n in range(20))
            sent += len(alerts)
            started = time.perf_counter()
            await bus.publish("alerts.filtered:0", Alerts(alerts))
            for alert in alerts:
                message = json.loads(await asyncio.wait_for(reader.recv(), 10))
                assert message["data"]["alert_id"] == alert.alert_id
            longest_s = max(longest_s, time.perf_counter() - started)
        assert longest_s < 0.5
        assert psutil.Process().memory_info().rss - resident < 10 * 2_000_000


async def test_slow_client_that_never_reads_its_goodbye_loses_its_connection(
    silent: Silent, bus: MemoryBus, gateway: Gateway, make_alert: MakeAlert
) -> None:
    client = await silent()
    await until(lambda: gateway.clients == 1, within_s=2)
    number = 0
    while gateway.clients:
        await bus.publish("alerts.filtered:0", Alerts(tuple(wide(make_alert, number + n) for n in range(20))))
        number += 20

    def server_side() -> list[Any]:
        port = client.getsockname()[1]
        connections = psutil.Process().net_connections("tcp")
        return [c for c in connections if c.raddr and c.raddr.port == port and c.status == psutil.CONN_ESTABLISHED]

    assert len(server_side()) == 1
    await until(lambda: not server_side(), within_s=3)


@pytest.mark.parametrize("gateway_options", [{"send_timeout_s": 1.0, "close_grace_s": 10.0}])
async def test_slow_client_that_reads_again_sees_why(
    silent: Silent, bus: MemoryBus, gateway: Gateway, make_alert: MakeAlert
) -> None:
    client = await silent()
    await until(lambda: gateway.clients == 1, within_s=2)
    number = 0
    while gateway.clients:
        await bus.publish("alerts.filtered:0", Alerts(tuple(wide(make_alert, number + n) for n in range(20))))
        number += 20

    def read_on() -> bytes:
        client.settimeout(10)
        received = b""
        while chunk := client.recv(65_536):
            received += chunk
            if received.endswith(b"slow"):
                break
        return received

    received = await asyncio.to_thread(read_on)
    assert received.endswith(b"\x88\x06" + struct.pack("!H", 4008) + b"slow")


async def test_stalled_send_is_slow_even_when_nothing_else_waits(
    silent: Silent, bus: MemoryBus, gateway: Gateway, make_alert: MakeAlert
) -> None:
    await silent()
    await until(lambda: gateway.clients == 1, within_s=2)
    (state,) = gateway._clients
    number, waiting = 0, 0
    while waiting < 10:  # fill the buffers of socket and transport
        if state.next == gateway._alerts.end:
            waiting = 0
            await bus.publish("alerts.filtered:0", Alerts((wide(make_alert, number),)))
            number += 1
        await asyncio.sleep(0.002)
        waiting += 1
    took_s = await until(lambda: gateway.clients == 0, within_s=3)
    assert took_s > 0.5
    assert state.ending.result().code == 4008


def ids(alerts: Sequence[Alert]) -> list[str]:
    return [alert.alert_id for alert in alerts]


async def heard(client: ClientConnection, count: int) -> list[str]:
    """The ids of the next alerts."""
    async with asyncio.timeout(20):
        return [json.loads(await client.recv())["data"]["alert_id"] for _ in range(count)]


async def test_burst_of_10_000_alerts_reaches_a_client_that_reads_in_order_beside_one_that_does_not(
    silent: Silent, dial: Dial, bus: MemoryBus, gateway: Gateway, make_alert: MakeAlert
) -> None:
    await silent()
    async with dial() as reader, dial() as other:
        await until(lambda: gateway.clients == 3, within_s=2)
        burst = tuple(make_alert(n) for n in range(10_000))
        await bus.publish("alerts.filtered:0", Alerts(burst))
        one, two = await asyncio.gather(heard(reader, 10_000), heard(other, 10_000))
        assert one == two == ids(burst)
        await until(lambda: gateway.clients == 2, within_s=3)  # the one that does not read is sent away


class TestBurstLargerThanTheLog:
    """The log holds 500 alerts, and stalled sends would be noticed only after a minute."""

    @pytest.fixture
    def gateway_options(self) -> dict[str, Any]:
        return {"alerts": AlertLog(alerts=500), "send_timeout_s": 60.0, "close_grace_s": 0.5}

    async def test_waits_for_a_client_that_reads_and_no_longer_than_the_bound_for_one_that_does_not(
        self, silent: Silent, dial: Dial, bus: MemoryBus, gateway: Gateway, make_alert: MakeAlert
    ) -> None:
        await silent()
        async with dial() as reader:
            await until(lambda: gateway.clients == 2, within_s=2)
            burst = tuple(make_alert(n) for n in range(20_000))
            await bus.publish("alerts.filtered:0", Alerts(burst))
            arrived: list[str] = []
            longest_s = 0.0
            while len(arrived) < len(burst):
                started = time.perf_counter()
                arrived += await heard(reader, 1)
                longest_s = max(longest_s, time.perf_counter() - started)
            assert arrived == ids(burst)
            assert longest_s < STALL_S + 0.5
            await until(lambda: gateway.clients == 1, within_s=3)

    async def test_memory_stays_bounded_when_nobody_reads(
        self, silent: Silent, bus: MemoryBus, gateway: Gateway, make_alert: MakeAlert
    ) -> None:
        for _ in range(3):
            await silent()
        await until(lambda: gateway.clients == 3, within_s=2)
        await bus.publish("alerts.filtered:0", Alerts(tuple(wide(make_alert, n) for n in range(5_000))))
        await until(lambda: gateway.clients == 0, within_s=3)
        assert gateway._alerts.end - gateway._alerts.first <= 500


async def test_client_that_reads_too_slowly_delays_a_burst_by_the_patience_at_most(
    bus: MemoryBus, clock: SystemClock, make_alert: MakeAlert
) -> None:
    log = AlertLog(alerts=500)
    gateway = Gateway(bus, clock, toplists=(), alerts=log, patience_s=0.3)
    slow, fast = Client(log), Client(log)
    gateway._clients |= {slow, fast}
    taken: list[str] = []

    async def read(client: Client, *, each_s: float) -> None:
        while not client.ending.done():
            if (outgoing := client.take()) is None:
                await client.wait()
                continue
            if client is fast:
                taken.append(json.loads(outgoing.frame)["data"]["alert_id"])
            await asyncio.sleep(each_s)

    reading = [asyncio.create_task(read(slow, each_s=0.02)), asyncio.create_task(read(fast, each_s=0))]
    burst = tuple(make_alert(n) for n in range(2_000))
    frames = [from_entry(burst, partition=0, entry=Place(1, 1), nth=nth) for nth in range(len(burst))]
    started = time.perf_counter()
    await gateway._deliver(frames[:1_000])
    assert time.perf_counter() - started < 0.3 + 0.5
    assert slow.ending.result().code == 4008
    await gateway._deliver(frames[1_000:])
    await until(lambda: len(taken) == len(burst), within_s=2)
    assert taken == ids(burst)
    for task in reading:
        task.cancel()


async def test_log_drops_its_oldest_by_number_and_a_client_that_lacked_it_is_slow() -> None:
    log = AlertLog(alerts=3)
    behind, level = Client(log), Client(log)
    for n in range(4):
        log.append(Outgoing(f"alert{n}", 0))
        assert (level.take() or pytest.fail("nothing to take")).frame == f"alert{n}"
    behind.see_alerts()
    level.see_alerts()
    assert behind.ending.result() == (4008, "slow", False)
    assert behind.take() is None
    assert not level.ending.done()


async def test_log_drops_its_oldest_by_bytes() -> None:
    log = AlertLog(max_bytes=100)
    client = Client(log)
    for _ in range(4):
        log.append(Outgoing("x" * 25, 0))
    client.see_alerts()
    assert not client.ending.done()
    log.append(Outgoing("x", 0))
    client.see_alerts()
    assert client.ending.result().code == 4008


async def test_replies_nobody_reads_end_the_connection() -> None:
    client = Client(AlertLog())
    for _ in range(MAX_REPLIES):
        client.reply("pong")
    assert not client.ending.done()
    client.reply("pong")
    assert client.ending.result() == (4008, "slow", False)
    assert client.take() is None


async def test_alerts_keep_their_order_and_of_toplists_the_newest_waits() -> None:
    log = AlertLog()
    client = Client(log)
    client.subscribe("a")
    client.subscribe("b")
    for number in range(3):
        client.offer_toplist("a", f"a{number}")
        client.offer_toplist("b", f"b{number}")
        client.offer_toplist("c", f"c{number}")
        log.append(Outgoing(f"alert{number}", number))
    client.reply("pong")
    taken = []
    while (outgoing := client.take()) is not None:
        taken.append(outgoing.frame)
    assert taken == ["pong", "alert0", "alert1", "alert2", "a2", "b2"]
