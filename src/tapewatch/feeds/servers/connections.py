"""WebSocket connections of a replay server: who is on, what each gets of the tape, and what goes wrong on the way.

A `Talk` knows the provider's words and does no I/O; `ReplayServer` owns connections, limits and faults. Each provider's
module brings both.
"""

import asyncio
import contextlib
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from tapewatch.engine.columns import I64, Batch, Bool
from tapewatch.feeds.servers.access import Credentials, address, listen, reset
from tapewatch.feeds.servers.faults import Act, Drop, Faults, Frame, Garble, Payload, Send, Stall
from tapewatch.feeds.servers.play import Beside, Piece, Player, Sent, Start, WhileAway
from tapewatch.feeds.servers.whole_tape import Rows
from tapewatch.ports import Clock

_PATIENCE_S = 30.0
_GOODBYE_S = 1.0

Reason = Literal["connection_limit", "slow_consumer", "auth_timeout"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the server says."""

    frames: Sequence[Payload] = ()
    ended: str = ""
    """Why the connection ends after them, in a word; empty if it does not."""


class Talk(ABC):
    """One connection's words, without the wire."""

    hello_within_s: float | None = None
    """How long the client may take to authenticate; None: as long as it likes, or it has tried."""
    authenticated = False
    strange: Sequence[Payload] = ()
    """Well-formed frames that make no sense."""
    _names: tuple[str, ...] | None = None
    _wanted: Bool
    """Per name of `_names`."""

    def opening(self) -> Reply:
        """What the server says first."""
        return Reply()

    @abstractmethod
    def hear(self, message: Payload) -> Reply:
        """Answer a client's message, whatever it is."""

    @abstractmethod
    def farewell(self, reason: Reason) -> Payload:
        """The message that comes before the end."""

    @property
    @abstractmethod
    def subscribed(self) -> bool: ...

    @abstractmethod
    def wants(self, channel: str, symbol: str) -> bool:
        """Whether it subscribed to that; trades with their cancels and corrections are the channel ``trades``."""

    @abstractmethod
    def encode(self, rows: Rows, index: I64) -> Payload:
        """A frame of the rows at `index`."""

    @abstractmethod
    def encode_beside(self, messages: Sequence[Beside]) -> Payload: ...

    def wanted(self, batch: Batch) -> Bool:
        """Shape (len(batch),): which rows the client subscribed to."""
        if self._names is not batch.symbols:
            self._names = batch.symbols
            self._wanted = np.array([self.wants("trades", name) for name in batch.symbols], np.bool_)
        return self._wanted[batch.symbol]

    def forget(self) -> None:
        """Subscriptions have changed."""
        self._names = None


@dataclass(slots=True)
class _Client:
    connection: ServerConnection
    talk: Talk
    sent: Sent
    muted: bool = False


class _EndedError(Exception):
    """The server ended the connection."""


class ReplayServer(ABC):
    """``async with`` it: then it listens at `url`, and `player` and `sent` tell how far it is.

    A client that does not take a frame within 30 s is cut, or sooner if the fault ``slow-consumer`` says so.
    """

    path: ClassVar[str]
    """Of the URL."""
    over_the_limit: ClassVar[Literal["newcomer", "oldest"]]
    """Whose connection ends when there are too many."""

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        speed: float = math.inf,
        start: Start = "on-subscribe",
        while_away: WhileAway = "go-on",
        faults: Sequence[str] = (),
        seed: int = 1,
        credentials: Credentials | None = None,
        keep_rows: bool = True,
        clock: Clock | None = None,
    ) -> None:
        """`keep_rows`: remember in `sent` which rows went out. `Invalid` for a file that is no tape, `ConfigError` for
        a fault that is none.
        """
        self.faults = Faults(faults, seed=seed)
        self.credentials = credentials or Credentials()
        self.player = Player(
            paths, speed=speed, start=start, while_away=while_away, make=self._bar_messages(), clock=clock
        )
        self.sent: list[Sent] = []
        """One for each connection that was accepted, in the order of time."""
        self.refused = 0
        self._address = (host, port)
        self._keep_rows = keep_rows
        self._clients: list[_Client] = []
        self._accepted = 0
        self._server: Server | None = None
        self._goodbyes: set[asyncio.Task[None]] = set()
        self.url = ""

    @abstractmethod
    def _talk(self, request: Request) -> Talk: ...

    @abstractmethod
    def _bar_messages(self) -> Callable[[Batch], Sequence[Beside]]:
        """What the provider computes from trades, for all clients."""

    @abstractmethod
    def _serves(self, path: str) -> bool: ...

    async def __aenter__(self) -> Self:
        listener = listen(*self._address)
        self._server = await serve(
            self._handle,
            sock=listener,
            process_request=self._on_request,
            compression=None,  # costs more than loopback could save
            close_timeout=_GOODBYE_S,
        )
        self.url = f"ws://{address(listener)}{self.path}"
        await self.player.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
        for goodbye in self._goodbyes:
            goodbye.cancel()
        await self.player.__aexit__(*error)

    # -- a connection -------------------------------------------------------------------------------------------------

    def _on_request(self, connection: ServerConnection, request: Request) -> Response | None:
        self._accepted += 1
        status = self.faults.refuses(self._accepted)
        if status is not None:
            self.refused += 1
            return connection.respond(HTTPStatus(status), "refused on request\n")
        if not self._serves(request.path.partition("?")[0]):
            return connection.respond(HTTPStatus.NOT_FOUND, "no such stream\n")
        return None

    async def _handle(self, connection: ServerConnection) -> None:
        if connection.request is None:
            return
        client = _Client(connection, self._talk(connection.request), Sent(len(self.sent) + 1))
        self.sent.append(client.sent)
        pump: asyncio.Task[None] | None = None
        try:
            async with asyncio.TaskGroup() as group:
                await self._answer(client, client.talk.opening())
                begun = time.monotonic()
                while True:
                    message = await self._receive(client, begun)
                    await self._answer(client, client.talk.hear(message))
                    if client.talk.subscribed and pump is None:
                        pump = group.create_task(self._pump(client))
        except* (ConnectionClosed, _EndedError):
            pass
        finally:
            if client in self._clients:
                self._clients.remove(client)

    async def _receive(self, client: _Client, begun: float) -> Payload:
        limit_s = client.talk.hello_within_s
        try:
            async with asyncio.timeout(None if limit_s is None else max(0.0, begun + limit_s - time.monotonic())):
                return await client.connection.recv()
        except TimeoutError:
            await self._end(client, "auth_timeout")
            raise _EndedError from None

    async def _answer(self, client: _Client, reply: Reply) -> None:
        for place, frame in enumerate(reply.frames, start=1):
            if place == len(reply.frames) and client.talk.authenticated and client not in self._clients:
                await self._admit(client)
            await self._send(client, frame)
        if reply.ended:
            client.sent.ended = reply.ended
            await client.connection.close(1008)
            raise _EndedError

    async def _admit(self, client: _Client) -> None:
        limit = self.faults.max_connections
        if limit is not None and len(self._clients) >= limit:
            if self.over_the_limit == "newcomer":
                await self._end(client, "connection_limit")
                raise _EndedError
            goodbye = asyncio.create_task(self._end(self._clients.pop(0), "connection_limit"))
            self._goodbyes.add(goodbye)
            goodbye.add_done_callback(self._goodbyes.discard)
        self._clients.append(client)

    async def _end(self, client: _Client, reason: Reason) -> None:
        """Say why, and close; a client that does not listen is cut."""
        client.sent.ended = reason
        with contextlib.suppress(TimeoutError, ConnectionClosed):
            async with asyncio.timeout(_GOODBYE_S):
                await client.connection.send(client.talk.farewell(reason))
        client.muted = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE_S):
                await client.connection.close(1008)
        reset(client.connection.transport)

    async def _send(self, client: _Client, payload: Payload) -> None:
        if client.muted:
            return
        try:
            async with asyncio.timeout(self.faults.slow_after_s or _PATIENCE_S):
                await client.connection.send(payload)
        except TimeoutError:
            await self._end(client, "slow_consumer")
            raise _EndedError from None

    # -- the tape -----------------------------------------------------------------------------------------------------

    async def _pump(self, client: _Client) -> None:
        """From the subscription on, until the tape or the connection ends."""
        disturbance = self.faults.disturb(client.talk.strange)
        begun = time.monotonic()
        with self.player.listen() as listener:
            async for piece in listener:
                frame = self._frame(client, piece)
                acts = [] if frame is None else disturbance.take(frame, elapsed_s=time.monotonic() - begun)
                for act in acts:
                    if isinstance(act, Drop | Stall):
                        listener.done()
                    if isinstance(act, Stall) and act.for_s is None:
                        client.muted = True
                        client.sent.counts["stall"] += 1
                        return
                    await self._act(client, act)
                beside = [message for message in piece.beside if client.talk.wants(message[0], message[1])]
                if beside:
                    await self._send(client, client.talk.encode_beside(beside))
                    client.sent.counts["bars"] += len(beside)
            for act in disturbance.flush():
                await self._act(client, act)

    def _frame(self, client: _Client, piece: Piece) -> Frame | None:
        batch = piece.rows.batch
        index = np.flatnonzero(client.talk.wanted(batch) & ~self.faults.withheld(batch.ts_ns))
        if not len(index):
            return None
        times = batch.ts_ns[index]
        return Frame(
            places=piece.rows.places[index],
            first_ns=int(times.min()),
            last_ns=int(times.max()),
            payload=client.talk.encode(piece.rows, index),
        )

    async def _act(self, client: _Client, act: Act) -> None:
        counts = client.sent.counts
        match act:
            case Send(frame=frame, fault=fault):
                await self._send(client, frame.payload)
                client.sent.note(frame.places, keep=self._keep_rows)
                if fault:
                    counts[fault] += 1
            case Garble(payload=payload):
                counts["malformed"] += 1
                await self._send(client, payload)
            case Stall(for_s=for_s):
                counts["stall"] += 1
                await asyncio.sleep(for_s or 0.0)
            case Drop():
                counts["drop"] += 1
                client.sent.ended = "drop"
                # What was sent has arrived when the pong is back: the reset destroys what is still on its way.
                with contextlib.suppress(TimeoutError, ConnectionClosed):
                    async with asyncio.timeout(_GOODBYE_S):
                        await (await client.connection.ping())
                reset(client.connection.transport)
                raise _EndedError
