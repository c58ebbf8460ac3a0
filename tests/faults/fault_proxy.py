"""A TCP proxy in front of a server, which misbehaves as the test says. It has a thread and an event loop of its own, so
a test that waits does not stand in its way; every method may be called from any thread.

What it cannot do: deliver a request twice. TCP numbers its bytes, and a receiver drops those it has; a request that the
server gets twice was sent twice by the client. Duplicates are made by publishing again: see `fault_streams`.
"""

import asyncio
import contextlib
import math
import random
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, TypeVar

from fault_frames import Frames, Request

T = TypeVar("T")

_CHUNK = 1 << 16
_WAITING = 64
"""Chunks that one direction of a connection holds back; then the sender's own window fills up."""
_CONTROL_S = 10.0
_Waiting: TypeAlias = "asyncio.Queue[tuple[float, float, bytes] | Loss | None]"
"""Chunks with when they came and what was drawn for them, a loss, and None at the end."""
_RESET = struct.pack("ii", 1, 0)
_CONNECT_S = 5.0

Towards = Literal["server", "client"]
Then = Literal["cut", "silence"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """How one direction flows. Bytes never overtake each other."""

    latency_s: float = 0.0
    jitter_s: float = 0.0
    """The latency of a chunk is drawn evenly from `latency_s` ± `jitter_s`."""
    bytes_per_s: float = math.inf
    slice_bytes: int = _CHUNK
    slice_pause_s: float = 0.0
    """Pieces of `slice_bytes`, each followed by a pause."""
    passing: bool = True
    """False: what comes is taken and held back."""


@dataclass(slots=True, kw_only=True)
class Loss:
    """One request or reply that is to be lost."""

    towards: Towards
    matching: Callable[[Request], bool]
    skip: int
    """So many that match are let through first."""
    then: Then
    lost: Request | None = None
    happened: threading.Event = field(default_factory=threading.Event)

    def wait(self, within_s: float = 20.0) -> Request:
        """The request that was lost, or whose reply was."""
        if not self.happened.wait(within_s) or self.lost is None:
            raise TimeoutError(f"nothing towards the {self.towards} was lost within {within_s:g} s")
        return self.lost


@dataclass(slots=True)
class Traffic:
    """What went through since the start."""

    connections: int = 0
    to_server_bytes: int = 0
    to_client_bytes: int = 0


class Proxy:
    """A context manager; `port` is where clients connect. With `frames` it knows where requests and replies end."""

    def __init__(
        self,
        upstream: tuple[str, int],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        frames: Callable[[], Frames] | None = None,
        seed: int = 0,
    ) -> None:
        self.host = host
        self.port = port
        self.traffic = Traffic()
        self.frames = frames
        self.rng = random.Random(seed)
        self.flows: dict[Towards, Flow] = {"server": Flow(), "client": Flow()}
        self.changed = asyncio.Event()
        self.upstream = upstream
        self._losses: list[Loss] = []
        self._links: set[_Link] = set()
        self._problems: list[Exception] = []
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy of {upstream[1]}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._do(self._shut())
        self._do(self._end_links(reset=False))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        if self._problems and error is None:
            raise ExceptionGroup("the proxy broke", self._problems)

    # -- faults -------------------------------------------------------------------------------------------------------

    def shape(self, *, to_server: Flow | None = None, to_client: Flow | None = None) -> None:
        """From now on these directions flow so, on connections that are open too."""
        if to_server is not None:
            self.flows["server"] = to_server
        if to_client is not None:
            self.flows["client"] = to_client
        self._do(self._tell())

    def slow(self, latency_s: float, *, jitter_s: float = 0.0) -> None:
        """Late in both directions."""
        flow = Flow(latency_s=latency_s, jitter_s=jitter_s)
        self.shape(to_server=flow, to_client=flow)

    def hang(self) -> None:
        """Accept, and forward nothing. What was held back goes on its way when the proxy is mended."""
        self.shape(to_server=Flow(passing=False), to_client=Flow(passing=False))

    def cut(self) -> None:
        """Close every connection and refuse new ones."""
        self._do(self._shut())
        self._do(self._end_links(reset=False))

    def reset(self) -> None:
        """Reset every connection; new ones are served."""
        self._do(self._end_links(reset=True))

    def forget_connections(self) -> None:
        """Half-open connections, as behind a firewall that lost its table: those that are there stay there and carry
        nothing, for good; new ones are served.
        """
        self._do(self._darken())

    def retarget(self, upstream: tuple[str, int]) -> None:
        """New connections go to another server, those to the old one are reset: an address that follows a failover."""
        self.upstream = upstream
        self.reset()

    def lose_reply(self, matching: str | Callable[[Request], bool], *, skip: int = 0, then: Then = "cut") -> Loss:
        """The server does it, and the client does not hear of it: nothing is forwarded from that reply on, and the
        connection is cut, or stays silent until the client gives up. Happens once.

        `matching`: the name of a command, as ``XADD``; of PostgreSQL the tag of what was done, as ``COMMIT``.
        """
        return self._lose("client", matching, skip, then)

    def lose_request(self, matching: str | Callable[[Request], bool], *, skip: int = 0, then: Then = "cut") -> Loss:
        """The server never gets it. Happens once. To the client it looks as a lost reply does."""
        return self._lose("server", matching, skip, then)

    def mend(self) -> None:
        """Forward everything at once, and lose nothing. Half-open connections stay so."""
        self._losses.clear()
        self.shape(to_server=Flow(), to_client=Flow())
        self._do(self._open())

    # -- inside the loop ----------------------------------------------------------------------------------------------

    def loss_of(self, towards: Towards, request: Request) -> Loss | None:
        for loss in self._losses:
            if loss.towards == towards and loss.matching(request):
                if loss.skip:
                    loss.skip -= 1
                    continue
                self._losses.remove(loss)
                loss.lost = request
                return loss
        return None

    def _lose(self, towards: Towards, matching: str | Callable[[Request], bool], skip: int, then: Then) -> Loss:
        if self.frames is None:
            raise ValueError("a proxy that is to lose one reply must know the frames")
        name = matching.upper() if isinstance(matching, str) else ""
        test = matching if callable(matching) else lambda request: request.name == name
        loss = Loss(towards=towards, matching=test, skip=skip, then=then)
        self._losses.append(loss)
        return loss

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_CONTROL_S)

    async def _tell(self) -> None:
        told, self.changed = self.changed, asyncio.Event()
        told.set()

    async def _open(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, self.host, self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _shut(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    async def _end_links(self, *, reset: bool) -> None:
        links = tuple(self._links)
        for link in links:
            link.end(reset=reset)
        await asyncio.gather(*(link.ended.wait() for link in links))

    async def _darken(self) -> None:
        for link in self._links:
            link.darken()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.traffic.connections += 1
        link = _Link(self, reader, writer)
        self._links.add(link)
        try:
            await link.run()
        except Exception as error:  # noqa: BLE001  # told when the proxy ends, in the thread of the test
            self._problems.append(error)
        finally:
            self._links.discard(link)


class _Link:
    """One connection: a client's, and ours to the server for it."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.ended = asyncio.Event()
        self._proxy = proxy
        self._client = reader, writer
        self._writers = [writer]
        self._frames = None if proxy.frames is None else proxy.frames()
        self._dark = False
        self._task = asyncio.current_task()

    async def run(self) -> None:
        try:
            async with asyncio.timeout(_CONNECT_S):
                server_reader, server_writer = await asyncio.open_connection(*self._proxy.upstream)
            self._writers.append(server_writer)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._direction("server", self._client[0], server_writer))
                tasks.create_task(self._direction("client", server_reader, self._client[1]))
        except* (OSError, asyncio.CancelledError):
            pass  # one side has gone, or the test said so
        finally:
            for writer in self._writers:
                writer.close()
            self.ended.set()

    def end(self, *, reset: bool) -> None:
        for writer in self._writers:
            if reset:
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()
        if self._task is not None:
            self._task.cancel()

    def darken(self) -> None:
        self._dark = True

    async def _direction(self, towards: Towards, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        waiting: _Waiting = asyncio.Queue(_WAITING)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._take(towards, reader, waiting))
            tasks.create_task(self._give(towards, writer, waiting))

    async def _take(self, towards: Towards, reader: asyncio.StreamReader, waiting: _Waiting) -> None:
        now_s = asyncio.get_running_loop().time
        while data := await reader.read(_CHUNK):
            if self._dark:
                continue
            passed, loss = self._without_lost(towards, data)
            if passed:
                await waiting.put((now_s(), self._proxy.rng.uniform(-1, 1), passed))
            if loss is not None:
                await waiting.put(loss)
        await waiting.put(None)

    def _without_lost(self, towards: Towards, data: bytes) -> tuple[bytes, Loss | None]:
        """What may go on, and what is to happen behind it."""
        if self._frames is None:
            return data, None
        frames = self._frames.to_server(data) if towards == "server" else self._frames.to_client(data)
        whole: list[bytes] = []
        for frame, request in frames:
            loss = None if request is None else self._proxy.loss_of(towards, request)
            if loss is not None:
                return b"".join(whole), loss
            whole.append(frame)
        return b"".join(whole), None

    async def _give(self, towards: Towards, writer: asyncio.StreamWriter, waiting: _Waiting) -> None:
        while (item := await waiting.get()) is not None:
            if isinstance(item, Loss):
                self._lose(item)
                continue
            taken_s, drawn, data = item
            while data:
                await self._due(towards, taken_s, drawn)
                if self._dark:
                    break
                size, pause_s = _piece(self._proxy.flows[towards], len(data))
                writer.write(data[:size])
                await writer.drain()
                self._count(towards, size)
                data = data[size:]
                if pause_s:
                    await self._changed(pause_s)
        if self._dark:
            self.end(reset=False)
        elif writer.can_write_eof():
            with contextlib.suppress(OSError):
                writer.write_eof()

    async def _due(self, towards: Towards, taken_s: float, drawn: float) -> None:
        """Wait until a chunk may go on, by what is asked for now and not when it came."""
        now_s = asyncio.get_running_loop().time
        while True:
            flow = self._proxy.flows[towards]
            rest_s = taken_s + flow.latency_s + drawn * flow.jitter_s - now_s()
            if flow.passing and rest_s <= 0:
                return
            await self._changed(rest_s if flow.passing else None)

    async def _changed(self, within_s: float | None) -> None:
        """So long, or until the test asks for something else."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._proxy.changed.wait()

    def _lose(self, loss: Loss) -> None:
        self._dark = True
        if loss.then == "cut":
            for writer in self._writers:
                writer.close()  # what went before the lost reply still arrives
        loss.happened.set()

    def _count(self, towards: Towards, n: int) -> None:
        if towards == "server":
            self._proxy.traffic.to_server_bytes += n
        else:
            self._proxy.traffic.to_client_bytes += n


def _piece(flow: Flow, waiting: int) -> tuple[int, float]:
    """How many bytes go on now, and the pause behind them."""
    size = min(max(1, flow.slice_bytes), waiting)
    if math.isfinite(flow.bytes_per_s):
        size = max(1, min(size, int(flow.bytes_per_s / 20)))
    return size, flow.slice_pause_s + size / flow.bytes_per_s
