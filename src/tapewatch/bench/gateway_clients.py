"""Many WebSocket clients in one process, each as cheap as it can be: it splits frames and reads one stamp out of each.

`dial_and_listen` runs in a process of its own and is spoken to over a pipe. A client that were a whole library's would
be what is measured: thousands of them share one core.
"""

import asyncio
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, cast

import msgspec

_AT_ONCE = 16
"""Connections that are being made; a server lets in only so many that have not said who they are."""
_STALLED_BUFFER_BYTES = 64 * 1024
_ALERT, _TOPLIST = b'{"type":"alert",', b'{"type":"toplist_update",'
_FIRED, _RANKED = b'"fired_at":"', b'"timestamp":"'
_STAMP = len("2013-10-07T13:30:01.000000000Z")
_WHERE = 2_000
"""The stamp of a frame stands among its first bytes."""
_TEXT, _CLOSE, _PING = 1, 8, 9


@dataclass(frozen=True, slots=True)
class Dial:
    """One client to be."""

    token: str
    toplists: tuple[str, ...]
    will_stall: bool = False


@dataclass(frozen=True, slots=True)
class Expected:
    """All that was published, as the stamps of the frames."""

    alerts: frozenset[bytes]
    newest: dict[str, bytes]
    """Of each list."""
    updates: dict[str, int]
    """Of each list, how often."""


@dataclass(slots=True)
class Heard:
    """What the clients got, apart from those that were told to stall."""

    waits_s: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """By phase, and by what it was: from publication to the client."""
    alerts_missing: int = 0
    """By client and alert."""
    doubled: int = 0
    stale: int = 0
    """Clients that have not got the newest of their lists."""
    passed_over: int = 0
    """Updates of lists that a client did not get because a newer one was there."""
    lost: dict[int, int] = field(default_factory=dict)
    """Clients that were closed, by code; 0 is a connection that broke."""
    stalled: list[int] = field(default_factory=list)
    """The codes with which those were closed that stalled; -1 if they were not."""


class _Client(asyncio.Protocol):
    """Shakes hands, says who it is, subscribes; `welcomed` is done once the server said both."""

    transport: asyncio.Transport

    def __init__(self, load: "_Load", dial: Dial) -> None:
        self.dial = dial
        self.welcomed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.alerts = 0
        """A bit for each."""
        self.updates = 0
        self.newest = b""
        """Of its list, if it has only one."""
        self.code: int | None = None
        self._load = load
        self._rest = b""
        self._is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(
            b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )

    def data_received(self, data: bytes) -> None:
        now_s = time.time()
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        if not self._is_open:
            head = data.find(b"\r\n\r\n")
            if head < 0:
                self._rest = data
                return
            if not data.startswith(b"HTTP/1.1 101 "):
                self.welcomed.set_exception(RuntimeError(f"the server refused: {data[:200]!r}"))
                return
            at, self._is_open = head + 4, True
            self._say({"type": "authenticate", "data": {"token": self.dial.token}})
            for toplist in self.dial.toplists:
                self._say({"type": "subscribe_toplist", "toplist_id": toplist})
        while end - at >= 2:
            begin, length = at + 2, data[at + 1]
            if length == 126:
                begin, length = at + 4, int.from_bytes(data[at + 2 : at + 4], "big")
            elif length == 127:
                begin, length = at + 10, int.from_bytes(data[at + 2 : at + 10], "big")
            if end < begin or end < begin + length:
                break
            self._take(data, data[at] & 15, begin, begin + length, now_s)
            at = begin + length
        self._rest = data[at:]

    def _take(self, data: bytes, kind: int, begin: int, end: int, now_s: float) -> None:
        load = self._load
        if kind == _TEXT and self.dial.will_stall and self.welcomed.done():
            pass  # when its frames come says nothing
        elif kind == _TEXT and data.startswith(_TOPLIST, begin):
            self.newest = _stamp(data, _RANKED, begin)
            load.hear("toplists", self.newest, now_s)
            self.updates += 1
        elif kind == _TEXT and data.startswith(_ALERT, begin):
            bit = 1 << load.hear("alerts", _stamp(data, _FIRED, begin), now_s)
            load.heard.doubled += bool(self.alerts & bit)
            self.alerts |= bit
        elif kind == _PING:
            self.transport.write(_frame(0x8A, data[begin:end]))
        elif kind == _CLOSE:
            self.code = int.from_bytes(data[begin : begin + 2], "big")
        elif data.startswith(b'{"type":"welcome"', begin) and not self.welcomed.done():
            self.welcomed.set_result(None)
        elif data.startswith(b'{"type":"error"', begin) and not self.welcomed.done():
            self.welcomed.set_exception(RuntimeError(f"the server complains: {data[begin:end]!r}"))

    def connection_lost(self, _: Exception | None) -> None:
        if self.code is None:
            self.code = 0
        if not self.welcomed.done():
            self.welcomed.set_exception(RuntimeError(f"the server ended the connection with {self.code}"))

    def _say(self, message: dict[str, Any]) -> None:
        self.transport.write(_frame(0x81, msgspec.json.encode(message)))


def _stamp(data: bytes, name: bytes, begin: int) -> bytes:
    at = data.find(name, begin, begin + _WHERE) + len(name)
    return data[at : at + _STAMP]


def _frame(head: int, payload: bytes) -> bytes:
    """Masked with zeros, which changes nothing."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return bytes([head]) + length + b"\0\0\0\0" + payload


class _Load:
    def __init__(self, pipe: Connection, dials: Sequence[Dial]) -> None:
        self.heard = Heard()
        self._pipe = pipe
        self._dials = dials
        self._clients: list[_Client] = []
        self._stamps: dict[str, dict[bytes, tuple[int, float]]] = {"alerts": {}, "toplists": {}}
        """The number of a stamp, and its time."""
        self._waits: dict[str, list[float]] = {}
        self._begin("before")

    def _begin(self, phase: str) -> None:
        self._waits = self.heard.waits_s.setdefault(phase, {"alerts": [], "toplists": []})

    def hear(self, what: str, stamp: bytes, now_s: float) -> int:
        stamps = self._stamps[what]
        known = stamps.get(stamp)
        if known is None:
            known = stamps[stamp] = len(stamps), _seconds(stamp)
        self._waits[what].append(now_s - known[1])
        return known[0]

    async def run(self, port: int, per_s: float) -> None:
        """Connect, and do what is asked on the pipe until it is the end."""
        await self._connect(port, per_s)
        while True:
            what, about = await asyncio.to_thread(self._pipe.recv)
            if what == "phase":
                self._begin(about)
            elif what == "stall":
                for client in self._stalling:
                    client.transport.pause_reading()
            elif what == "read on":
                for client in self._stalling:
                    client.transport.resume_reading()
            else:
                self._pipe.send(self._sum_up(about))
                return

    async def _connect(self, port: int, per_s: float) -> None:
        coming = iter(self._dials)
        loop, began_s = asyncio.get_running_loop(), time.monotonic()

        async def some() -> None:
            for dial in coming:
                wait_s = began_s + len(self._clients) / per_s - time.monotonic()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                raw = socket.socket()
                raw.setblocking(False)
                if dial.will_stall:
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _STALLED_BUFFER_BYTES)
                await loop.sock_connect(raw, ("127.0.0.1", port))
                _, client = await loop.create_connection(partial(_Client, self, dial), sock=raw)
                self._clients.append(client)
                await client.welcomed
                if len(self._clients) % 50 == 0:
                    self._pipe.send(len(self._clients))

        async with asyncio.TaskGroup() as connecting:
            for _ in range(_AT_ONCE):
                connecting.create_task(some())
        self._pipe.send(len(self._clients))

    @property
    def _stalling(self) -> list[_Client]:
        return [client for client in self._clients if client.dial.will_stall]

    def _missing(self, client: _Client, expected: Expected) -> int:
        known = self._stamps["alerts"]
        return sum(stamp not in known or not client.alerts >> known[stamp][0] & 1 for stamp in expected.alerts)

    def _sum_up(self, expected: Expected) -> Heard:
        heard = self.heard
        heard.stalled = [-1 if client.code is None else client.code for client in self._stalling]
        for client in self._clients:
            if client.dial.will_stall:
                continue
            if client.code is not None:
                heard.lost[client.code] = heard.lost.get(client.code, 0) + 1
            (toplist,) = client.dial.toplists
            heard.alerts_missing += self._missing(client, expected)
            heard.passed_over += expected.updates[toplist] - client.updates
            heard.stale += client.newest != expected.newest[toplist]
        return heard


def _seconds(stamp: bytes) -> float:
    text = stamp.decode()
    return datetime.fromisoformat(f"{text[:19]}+00:00").timestamp() + float(f"0{text[19:29]}")


def dial_and_listen(pipe: Connection, port: int, dials: Sequence[Dial], per_s: float) -> None:
    """The process: connects `per_s` clients a second, says how many there are now and then, then obeys."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_Load(pipe, dials).run(port, per_s))
