"""What makes thousands of clients cheap: each update goes to its followers only, a text is framed once, heartbeats are
spread, and a process allows itself the files. And the load of `tapewatch bench gateway_5000` counts what it gets.
"""

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from typing import Any

import pytest
from gateway_house import House, Publisher, house
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tapewatch.accounts.roles import LOCAL, Principal
from tapewatch.adapters.memory import MemoryBus
from tapewatch.bench.gateway_clients import Dial, Expected, Heard, _Load
from tapewatch.clock import SystemClock
from tapewatch.documents import Alert, rfc3339
from tapewatch.serve.alert_log import AlertLog
from tapewatch.serve.client import Client, Followers
from tapewatch.serve.gateway import Gateway
from tapewatch.serve.server import HEARTBEAT_S
from tapewatch.telemetry import WEBSOCKET_ENDINGS_TOTAL

pytestmark = pytest.mark.anyio
MakeAlert = Callable[..., Alert]
CHANNEL = "toplists.updated"
LISTS = ("gainers_1m", "losers_1m", "volume_1m")
MAY_NOT = Principal.of("ann", "trader", scopes=["alerts:read"])


def update(toplist: str, **data: Any) -> bytes:
    return json.dumps({"type": "toplist_update", "data": {"toplist_id": toplist, **data}}, ensure_ascii=False).encode()


@pytest.mark.parametrize("size", [125, 126, 127, 65_535, 65_536, 200_000])
async def test_frame_of_any_length_arrives_as_it_was_published(
    dial: Callable[..., Any], bus: MemoryBus, size: int
) -> None:
    bare = len(update("gainers_1m", title="é"))
    text = update("gainers_1m", title="é" + "x" * (size - bare))
    assert len(text) == size
    async with dial(max_size=None) as client:
        await client.send(json.dumps({"type": "subscribe_toplist", "toplist_id": "gainers_1m"}))
        await client.send('{"type":"ping"}')
        assert await client.recv() == '{"type":"pong"}'
        await bus.notify(CHANNEL, text)
        assert await asyncio.wait_for(client.recv(), 10) == text.decode()


STEPS = st.one_of(
    st.tuples(st.sampled_from(["subscribe", "unsubscribe"]), st.integers(0, 2), st.sampled_from(LISTS)),
    st.tuples(st.sampled_from(["leave", "may not", "may"]), st.integers(0, 2), st.just("")),
    st.tuples(st.just("update"), st.just(0), st.sampled_from(LISTS)),
)


@given(st.lists(STEPS, max_size=40))
def test_update_reaches_exactly_those_who_follow_its_list(steps: list[tuple[str, int, str]]) -> None:
    async def run() -> None:
        gateway = Gateway(MemoryBus(), SystemClock(), toplists=LISTS)
        clients = [Client(AlertLog(), followers=gateway._followers) for _ in range(3)]
        naive: list[set[str]] = [set(), set(), set()]
        for number, (what, nth, toplist) in enumerate(steps):
            client = clients[nth]
            match what:
                case "subscribe":
                    client.subscribe(toplist)
                    naive[nth].add(toplist)
                case "unsubscribe":
                    client.unsubscribe(toplist)
                    naive[nth].discard(toplist)
                case "leave":
                    client.unsubscribe_all()
                    naive[nth].clear()
                case "may not":
                    client.principal = MAY_NOT
                    naive[nth].clear()
                case "may":
                    client.principal = LOCAL
                case _:
                    text = update(toplist, n=number)
                    gateway._update(text)
                    taken = [client.take() for client in clients]
                    assert [None if one is None else one.frame for one in taken] == [
                        text.decode() if toplist in follows else None for follows in naive
                    ]
        left: Followers = {}
        for client, follows in zip(clients, naive, strict=True):
            for toplist in follows:
                left.setdefault(toplist, set()).add(client)
        assert gateway._followers == left

    asyncio.run(run())


async def test_client_that_is_gone_follows_nothing(dial: Callable[..., Any], gateway: Gateway) -> None:
    async with dial() as client:
        for toplist in LISTS:
            await client.send(json.dumps({"type": "subscribe_toplist", "toplist_id": toplist}))
        await client.send('{"type":"ping"}')
        await client.recv()
        assert set(gateway._followers) == set(LISTS)
    async with asyncio.timeout(2):
        while gateway._followers:  # noqa: ASYNC110  # nobody is told
            await asyncio.sleep(0.005)


async def test_heartbeats_of_clients_that_came_at_once_are_spread(bus: MemoryBus) -> None:
    async with house(bus) as at:
        sockets = await asyncio.gather(*(connect(at.url, proxy=None) for _ in range(40)))
        assert at._server is not None
        now_s = asyncio.get_running_loop().time()
        timers: list[Any] = [connection.ping_timer for connection in at._server.server_state.connections]  # type: ignore[union-attr]
        due_s = sorted(timer.when() - now_s for timer in timers)
        assert len(due_s) == 40
        assert HEARTBEAT_S * 0.4 < due_s[0] < HEARTBEAT_S * 0.625
        assert HEARTBEAT_S * 0.8 < due_s[-1] <= HEARTBEAT_S
        await asyncio.gather(*(one.close() for one in sockets))


def silent(at: House) -> socket.socket:
    """Shakes hands, asks for a list, and reads no more."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
    client.connect(("127.0.0.1", at.port))
    client.sendall(
        b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    client.recv(65_536)
    client.sendall(masked(0x81, b'{"type":"subscribe_toplist","toplist_id":"gainers_1m"}'))
    return client


def masked(head: int, payload: bytes) -> bytes:
    return bytes([head, 0x80 | len(payload)]) + bytes(4) + payload


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # nobody is told
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("says_goodbye", [True, False])
async def test_client_that_ends_without_reading_what_was_written_is_dropped_and_no_error(
    bus: MemoryBus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, says_goodbye: bool
) -> None:
    """It closes the WebSocket and keeps the connection, or answers no heartbeat; its buffers are full."""
    monkeypatch.setattr("tapewatch.serve.server.HEARTBEAT_S", 20.0 if says_goodbye else 0.4)
    monkeypatch.setattr("tapewatch.serve.server._GOODBYE_S", 0.5)
    async with house(bus, send_timeout_s=1.0) as at:
        with await asyncio.to_thread(silent, at) as client:
            await until(lambda: bool(at.gateway._followers))
            assert at._server is not None
            connections: Any = at._server.server_state.connections
            (server_side,) = connections
            while server_side.writable.is_set():
                await bus.notify(CHANNEL, update("gainers_1m", fill="x" * 60_000))
                await asyncio.sleep(0)
            if says_goodbye:
                client.sendall(masked(0x88, b"\x03\xe8"))
            await until(lambda: not at.gateway.clients)
            await until(lambda: not connections)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_connections_that_the_gateway_ends_are_counted_by_code(dial: Callable[..., Any]) -> None:
    ended = WEBSOCKET_ENDINGS_TOTAL.labels(code=4429)
    before = ended._value.get()
    async with dial() as client:
        for _ in range(25):
            await client.send('{"type":"ping"}')
        with suppress(ConnectionClosed):
            while True:
                await asyncio.wait_for(client.recv(), 5)
        assert client.close_code == 4429
    assert ended._value.get() == before + 1


ALLOW = """
import resource
from tapewatch.app.program import allow_open_files
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 1_000))
for clients in (10, 500, 5_000):
    allow_open_files(clients)
    print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def test_process_allows_itself_the_files_of_its_clients_and_says_when_it_may_not() -> None:
    done = subprocess.run([sys.executable, "-c", ALLOW], capture_output=True, text=True, check=True)
    limits = [line for line in done.stdout.splitlines() if line.isdigit()]
    assert limits == ["266", "756", "1000"]
    assert "raise ulimit -n" in done.stdout + done.stderr
    assert "max_clients=5000" in done.stdout + done.stderr


async def test_load_counts_exactly_what_its_clients_got(bus: MemoryBus, make_alert: MakeAlert) -> None:
    """Two clients of a list each and one that stalls; one alert and one newest list were never published."""
    async with house(bus) as at:
        here, there = Pipe()
        dials = [Dial("t", ("gainers_1m",)), Dial("t", ("losers_1m",)), Dial("t", LISTS, will_stall=True)]
        running = asyncio.create_task(_Load(there, dials).run(at.port, 1_000.0))
        assert await asyncio.to_thread(here.recv) == 3
        here.send(("phase", "now"))
        await asyncio.sleep(0.05)
        publisher = Publisher(bus, make_alert)
        await publisher.publish(0, 2)
        await publisher.publish(1, 3)
        stamps = [rfc3339(1_380_000_000_000_000_000 + n).encode() for n in range(4)]
        await bus.notify(
            CHANNEL, update("gainers_1m", timestamp=stamps[0].decode(), fill="x" * 300_000).replace(b" ", b"")
        )
        await bus.notify(CHANNEL, update("losers_1m", timestamp=stamps[1].decode()).replace(b" ", b""))
        await bus.notify(CHANNEL, update("losers_1m", timestamp=stamps[2].decode()).replace(b" ", b""))
        await asyncio.sleep(0.3)
        fired = {rfc3339(alert.fired_at_ns).encode() for alert in publisher.alerts}
        newest = {"gainers_1m": stamps[0], "losers_1m": stamps[3]}
        here.send(("end", Expected(frozenset({*fired, stamps[3]}), newest, {"gainers_1m": 1, "losers_1m": 3})))
        heard = await asyncio.to_thread(here.recv)
        await running
    assert isinstance(heard, Heard)
    assert [len(found) for found in heard.waits_s["now"].values()] == [10, 3 - heard.passed_over + 1]
    assert (heard.alerts_missing, heard.doubled, heard.stale, heard.lost) == (2, 0, 1, {})
    assert heard.passed_over in {1, 2}  # the one that was never there, and the first if both came within one turn
    assert heard.stalled == [-1]
