"""Clients that do not read: they are closed, they cost a bounded amount of memory, and nobody waits for them."""

import asyncio
import json
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import psutil
import pytest

from tapewatch.adapters.memory import MemoryBus
from tapewatch.documents import Alert
from tapewatch.ports import Alerts
from tapewatch.serve.client import MAX_OUTBOX_BYTES, Client
from tapewatch.serve.gateway import Gateway

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


def wide(make_alert: MakeAlert, number: int) -> Alert:
    return make_alert(number, values={f"metric_{n}": float(n) for n in range(100)})


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
                message = json.loads(await asyncio.wait_for(reader.recv(), 1))
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
        client.settimeout(3)
        received = b""
        while chunk := client.recv(65_536):
            received += chunk
            if received.endswith(b"slow"):
                break
        return received

    received = await asyncio.to_thread(read_on)
    assert received.endswith(b"\x88\x06" + struct.pack("!H", 4008) + b"slow")


async def test_stalled_send_is_slow_even_with_an_empty_outbox(
    silent: Silent, bus: MemoryBus, gateway: Gateway, make_alert: MakeAlert
) -> None:
    await silent()
    await until(lambda: gateway.clients == 1, within_s=2)
    (state,) = gateway._clients
    number, waiting = 0, 0
    while waiting < 10:  # fill the buffers of socket and transport, not the outbox
        if not state._queue:
            waiting = 0
            await bus.publish("alerts.filtered:0", Alerts((wide(make_alert, number),)))
            number += 1
        await asyncio.sleep(0.002)
        waiting += 1
    took_s = await until(lambda: gateway.clients == 0, within_s=3)
    assert took_s > 0.5
    assert state.ending.result().code == 4008


async def test_outbox_ends_by_number_of_alerts() -> None:
    client = Client(outbox=3)
    for _ in range(3):
        client.offer_alert("frame", 0)
    assert not client.ending.done()
    client.offer_alert("frame", 0)
    assert client.ending.result() == (4008, "slow", False)
    assert client.take() is None


async def test_outbox_ends_by_bytes() -> None:
    client = Client(outbox=1_000)
    for _ in range(4):
        client.offer_alert("x" * (MAX_OUTBOX_BYTES // 4), 0)
    assert not client.ending.done()
    client.offer_alert("x", 0)
    assert client.ending.result().code == 4008


async def test_outbox_keeps_alerts_in_order_and_of_toplists_the_newest() -> None:
    client = Client(outbox=10)
    client.subscribe("a")
    client.subscribe("b")
    for number in range(3):
        client.offer_toplist("a", f"a{number}")
        client.offer_toplist("b", f"b{number}")
        client.offer_toplist("c", f"c{number}")
        client.offer_alert(f"alert{number}", number)
    taken = []
    while (outgoing := client.take()) is not None:
        taken.append(outgoing.frame)
    assert taken == ["alert0", "alert1", "alert2", "a2", "b2"]
