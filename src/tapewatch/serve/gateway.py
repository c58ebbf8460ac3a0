"""The WebSocket gateway: alerts, notes on them, and toplists to every client that asked, each frame encoded once.

`AlertTail` reads the alerts for it, and `Resumes` finds what a client missed; it owns nothing that must survive. What
waits for a client is bounded, and one task a client does the waiting. A burst of alerts larger than the log waits for
the clients that read; one that stalls is closed, and so delays nobody for longer than `STALL_S`. The messages are
described in ``docs/protocol.md``.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from itertools import islice
from typing import Annotated, Any, Literal

import msgspec
from pydantic import ConfigDict, Field, ValidationError
from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketDisconnected, WebSocketState

from tapewatch.accounts.roles import LOCAL, Principal
from tapewatch.documents import Document, load_json
from tapewatch.errors import Invalid, NotFound, Unavailable
from tapewatch.ports import MAX_TOPLISTS, Bus, Clock, Store
from tapewatch.serve.alert_log import AlertLog, Outgoing, frame_of
from tapewatch.serve.alert_tail import AlertTail
from tapewatch.serve.api import API
from tapewatch.serve.api.query import IDENTIFIER
from tapewatch.serve.client import Client, Ending
from tapewatch.serve.follow import pause
from tapewatch.serve.resume import Missed, Resumes, parse_places
from tapewatch.serve.server import ABORT, HEARTBEAT_S, MAX_FRAME_BYTES
from tapewatch.telemetry import (
    ALERT_DELIVERY_LATENCY_SECONDS,
    ALERTS_DELIVERED_TOTAL,
    ERRORS_TOTAL,
    WEBSOCKET_CONNECTIONS,
    WEBSOCKET_RESUMES_TOTAL,
)

PROTOCOL = 1
TOPLISTS_CHANNEL = "toplists.updated"
CLOSE_GRACE_S = 5.0
SEND_TIMEOUT_S = 10.0
STALL_S = 0.25
"""A burst waits for clients that are half a log behind. One that takes nothing for so long is closed."""
PATIENCE_S = 5.0
"""So is one that reads, but kept a scan's alerts waiting for so long in all."""
WELCOME_WAIT_S = 2.0
"""A gateway that starts reads the streams back first, so that its welcome can name the places."""
RESUME_WAIT_S = 10.0
_CHUNK = 100
_LOOK_AGAIN_S = 0.005


class _UpdatedToplist(msgspec.Struct):
    toplist_id: str
    toplist_type: Literal["system", "user"] = "system"


class _ToplistFrame(msgspec.Struct):
    """As much of a ``toplist_update`` or ``toplist_event`` as is needed to know whom it is for."""

    type: Literal["toplist_update", "toplist_event"]
    data: _UpdatedToplist


class _Message(Document):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    type: Literal[
        "subscribe_toplist", "unsubscribe_toplist", "subscribe_alerts", "unsubscribe_alerts", "ping", "resume"
    ]


class _ToplistMessage(_Message):
    toplist_id: str = Field(max_length=128)
    toplist_type: str | None = Field(default=None, max_length=32)


class _Where(Document):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    last_id: str | None = Field(default=None, pattern=IDENTIFIER)
    places: dict[str, Annotated[str, Field(max_length=64)]] = Field(default={})


class _ResumeMessage(_Message):
    data: _Where


_MODELS: dict[str, type[_Message]] = {
    "subscribe_toplist": _ToplistMessage,
    "unsubscribe_toplist": _ToplistMessage,
    "subscribe_alerts": _Message,
    "unsubscribe_alerts": _Message,
    "ping": _Message,
    "resume": _ResumeMessage,
}
_read_frame = msgspec.json.Decoder(_ToplistFrame).decode


_PONG = frame_of("pong")


class Gateway:
    """`run` feeds it, `connect` is the endpoint. `toplists` are the ids of the system's lists; users' lists are looked
    up in the store, and without one there are none.
    """

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        *,
        toplists: Collection[str],
        store: Store | None = None,
        partitions: int = 1,
        max_clients: int = 2_000,
        alerts: AlertLog | None = None,
        patience_s: float = PATIENCE_S,
        send_timeout_s: float = SEND_TIMEOUT_S,
        close_grace_s: float = CLOSE_GRACE_S,
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._store = store
        self._toplists = frozenset(toplists)
        self._partitions = partitions
        self._max_clients = max_clients
        self._patience_s = patience_s
        self._send_timeout_s = send_timeout_s
        self._close_grace_s = close_grace_s
        self._clients: set[Client] = set()
        self._alerts = alerts or AlertLog()
        self._newest: dict[str, str] = {}
        self._tail = AlertTail(
            bus,
            clock,
            store=store,
            partitions=partitions,
            alerts=self._alerts,
            deliver=self._deliver,
            lost=self._send_away,
        )
        self._resumes = Resumes(bus, self._alerts, store=store, partitions=partitions)

    @property
    def clients(self) -> int:
        return len(self._clients)

    async def run(self) -> None:
        """Hand out alerts and toplists, from now on until the bus closes."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_toplists(), name="gateway toplists")
            tasks.create_task(self._tail.run(), name="gateway alerts")

    async def _deliver(self, alerts: Iterable[Outgoing]) -> None:
        """In pieces, so that clients take some while others are still being encoded."""
        waited_s: defaultdict[Client, float] = defaultdict(float)
        coming = iter(alerts)
        while piece := list(islice(coming, _CHUNK)):
            for new in piece:
                self._alerts.append(new)
            for client in self._clients:
                client.see_alerts()
            await asyncio.sleep(0)
            await self._wait_for_room(waited_s)

    async def _wait_for_room(self, waited_s: defaultdict[Client, float]) -> None:
        """Until no client is half a log behind: for those that read, and as long as they may be waited for."""
        now_s = asyncio.get_running_loop().time
        while True:
            clients = [client for client in self._clients if not client.ending.done()]
            behind = [client for client in clients if self._alerts.is_far_back(client.next)]
            if not behind:
                return
            before_s = now_s()
            await self._clock.sleep(_LOOK_AGAIN_S)
            for client in behind:
                waited_s[client] += now_s() - before_s
                if now_s() - client.took_s > STALL_S or waited_s[client] > self._patience_s:
                    client.end(4008, "slow")

    def _send_away(self) -> None:
        """Alerts were lost. Who resumes hears of it."""
        for client in self._clients:
            client.end(1012, "alerts were lost")

    async def _follow_toplists(self) -> None:
        wait_s = 0.1
        while True:
            try:
                async for payload in self._bus.listen(TOPLISTS_CHANNEL):
                    self._update(payload)
                    wait_s = 0.1
            except Unavailable:
                ERRORS_TOTAL.labels(where="gateway.toplists").inc()
                wait_s = await pause(self._clock, wait_s)
            else:
                return

    def _update(self, payload: bytes) -> None:
        try:
            read = _read_frame(payload)
            frame = payload.decode()
        except (msgspec.DecodeError, UnicodeDecodeError):
            ERRORS_TOTAL.labels(where="gateway.toplist_frame").inc()
            return
        toplist = read.data.toplist_id
        if (toplist in self._toplists) != (read.data.toplist_type == "system"):
            # Nobody can have subscribed to it, and keeping it would let the other side fill this memory.
            ERRORS_TOTAL.labels(where="gateway.toplist_id").inc()
            return
        if read.type == "toplist_event":
            for client in self._clients:
                client.offer_event(toplist, frame)
            return
        self._newest.pop(toplist, None)
        self._newest[toplist] = frame
        if len(self._newest) > len(self._toplists) + MAX_TOPLISTS:  # some were deleted, and their last frames are here
            del self._newest[next(iter(self._newest))]
        for client in self._clients:
            client.offer_toplist(toplist, frame)

    async def connect(self, websocket: WebSocket) -> None:
        """The life of one connection: the endpoint ``/ws``."""
        if len(self._clients) >= self._max_clients:
            await websocket.send_denial_response(PlainTextResponse("too many clients", 503, {"Retry-After": "5"}))
            return
        client = Client(self._alerts)
        client.held = True
        self._clients.add(client)  # counted before the first await, so that a storm cannot slip past the limit
        WEBSOCKET_CONNECTIONS.inc()
        try:
            await websocket.accept()
            with suppress(TimeoutError):
                async with asyncio.timeout(WELCOME_WAIT_S):
                    await self._tail.begun.wait()
            client.welcome(frame_of("welcome", {"protocol": PROTOCOL, "heartbeat_s": HEARTBEAT_S, **self._places()}))
            await self._serve(websocket, client)
        finally:
            self._clients.discard(client)
            WEBSOCKET_CONNECTIONS.dec()

    def _places(self) -> dict[str, dict[str, str]]:
        """Where live alerts begin now."""
        return {"places": {str(partition): place.text() for partition, place in sorted(self._alerts.reached.items())}}

    async def _serve(self, websocket: WebSocket, client: Client) -> None:
        reader = asyncio.create_task(self._read(websocket, client), name="websocket reader")
        writer = asyncio.create_task(self._write(websocket, client), name="websocket writer")
        try:
            first: set[asyncio.Future[Any]] = {reader, writer, client.ending}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            self._clients.discard(client)
            ending = client.ending.result() if client.ending.done() else None
            if ending is not None and ending.flush and not writer.done():
                client.wake()  # the writer returns once everything is sent
                await asyncio.wait({writer}, timeout=self._close_grace_s)
        finally:
            reader.cancel()
            writer.cancel()
            outcomes = await asyncio.gather(reader, writer, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        if ending is not None:
            await self._close(websocket, ending)

    async def _close(self, websocket: WebSocket, ending: Ending) -> None:
        """Say goodbye; a client that does not read its goodbye in time is dropped."""
        if websocket.client_state is WebSocketState.DISCONNECTED:
            return
        try:
            async with asyncio.timeout(self._close_grace_s):
                await websocket.close(ending.code, ending.reason)
        except TimeoutError:
            abort: Callable[[], None] | None = websocket.scope.get("extensions", {}).get(ABORT)
            if abort is not None:
                abort()
        except (WebSocketDisconnect, WebSocketDisconnected):
            pass  # it left first

    async def _write(self, websocket: WebSocket, client: Client) -> None:
        while True:
            outgoing = client.take()
            if outgoing is None:
                if client.ending.done():
                    return
                await client.wait()
                continue
            try:
                async with asyncio.timeout(self._send_timeout_s):
                    await websocket.send({"type": "websocket.send", "text": outgoing.frame})
            except TimeoutError:
                client.end(4008, "slow")
                return
            except (WebSocketDisconnect, WebSocketDisconnected):
                return
            if outgoing.received_ns is not None:
                ALERTS_DELIVERED_TOTAL.inc()
                if outgoing.received_ns > 0:
                    ALERT_DELIVERY_LATENCY_SECONDS.observe((self._clock.now_ns() - outgoing.received_ns) / 1e9)

    async def _read(self, websocket: WebSocket, client: Client) -> None:
        with suppress(WebSocketDisconnected):
            while not client.ending.done():
                message = await websocket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                if not client.may_speak(asyncio.get_running_loop().time()):
                    client.reply(_error("too_many", "more than 20 messages in a second"))
                    client.end(4429, "too many messages", flush=True)
                    return
                asked = self._handle(message.get("text"), client)
                if isinstance(asked, _ResumeMessage):
                    await self._resume(asked.data, client)
                elif asked is not None:
                    await self._subscribe_to_users(asked.toplist_id, client)

    def _handle(self, text: str | None, client: Client) -> _ResumeMessage | _ToplistMessage | None:
        """Obey or complain. A wish to resume, or for a user's list, takes time: it is returned."""
        client.heard += 1
        message = self._understood(text, client)
        if isinstance(message, _ResumeMessage) or (
            isinstance(message, _ToplistMessage)
            and message.type == "subscribe_toplist"
            and message.toplist_type in {None, "user"}
            and message.toplist_id not in self._toplists
        ):
            return message
        if message is not None:
            self._obey(message, client)
        return None

    def _understood(self, text: str | None, client: Client) -> _Message | None:
        if text is None:
            client.complain(_error("bad_message", "frames must be text"))
            return None
        if len(text) > MAX_FRAME_BYTES:
            client.end(1009, "message too large")
            return None
        try:
            raw = load_json(text)
        except Invalid as error:
            client.complain(_error("bad_json", error.why))
            return None
        kind = raw.get("type") if isinstance(raw, dict) else None
        if not isinstance(kind, str):
            client.complain(_error("bad_message", "must be an object with a type"))
            return None
        model = _MODELS.get(kind)
        if model is None:
            client.complain(_error("unknown_type", f"the types are {', '.join(_MODELS)}"))
            return None
        try:
            return model.model_validate(raw)
        except ValidationError:
            client.complain(_error("bad_message", f"has other fields than a {kind} message"))
            return None

    async def _resume(self, where: _Where, client: Client) -> None:
        """Once a connection, and before anything else, so that it costs what a connection costs."""
        if client.heard > 1:
            client.complain(_error("bad_resume", "resume must be the first message"))
            return
        client.held = True
        try:
            async with asyncio.timeout(RESUME_WAIT_S):
                await self._tail.begun.wait()
                missed = await self._resumes.find(parse_places(where.places, self._partitions), where.last_id)
        except Invalid as error:
            client.complain(_error("bad_resume", str(error)))
            client.go_on_from_welcome()
        except (Unavailable, TimeoutError):
            ERRORS_TOTAL.labels(where="gateway.resume").inc()
            client.end(1013, "try again later")
        else:
            self._go_on(missed, client)

    def _go_on(self, missed: Missed, client: Client) -> None:
        """From here to the end nobody waits, so the log's end is still where `missed` ends."""
        WEBSOCKET_RESUMES_TOTAL.labels(recovered=str(missed.recovered).lower()).inc()
        follow = len(missed.frames) if missed.recovered else self._alerts.end - client.began
        answer: dict[str, Any] = {"recovered": missed.recovered, "alerts": follow, **self._places()}
        if not missed.recovered:
            answer |= {"why": missed.why, "see": f"{API}/alerts"}
        client.reply(frame_of("resumed", answer))
        if missed.recovered:
            client.go_on_after([frame._replace(received_ns=frame.received_ns and 0) for frame in missed.frames])
        else:
            client.go_on_from_welcome()

    def _obey(self, message: _Message, client: Client) -> None:
        if message.type == "ping":
            client.reply(_PONG)
        elif not isinstance(message, _ToplistMessage):
            client.wants_alerts = message.type == "subscribe_alerts"
        elif message.type == "unsubscribe_toplist" and client.follows(message.toplist_id):
            client.unsubscribe(message.toplist_id)
        elif message.toplist_id not in self._toplists or message.toplist_type not in {None, "system"}:
            client.complain(_error("unknown_toplist", "there is no such toplist"))
        elif message.type == "subscribe_toplist":
            self._subscribe(message.toplist_id, client)

    def _subscribe(self, toplist: str, client: Client, *, with_newest: bool = True) -> None:
        if not client.subscribe(toplist):
            client.reply(_error("too_many", "more than 200 subscriptions"))
            client.end(4429, "too many subscriptions", flush=True)
        elif with_newest and toplist in self._newest:
            client.offer_toplist(toplist, self._newest[toplist])

    async def _subscribe_to_users(self, toplist_id: str, client: Client) -> None:
        """If it is there for whom the client speaks: another's list is as good as not there."""
        principal: Principal = getattr(client, "principal", LOCAL)
        try:
            toplist = None if self._store is None else await self._store.toplist(toplist_id)
        except NotFound:
            toplist = None
        except Unavailable:
            ERRORS_TOTAL.labels(where="gateway.toplist").inc()
            client.reply(_error("unavailable", "the list cannot be looked up now; ask again"))
            return
        if toplist is None or not principal.sees(toplist.owner) or not principal.may("toplists:read"):
            client.complain(_error("unknown_toplist", "there is no such toplist"))
        else:
            self._subscribe(toplist_id, client, with_newest=toplist.enabled)


def _error(code: str, message: str) -> str:
    return frame_of("error", {"code": code, "message": message})
