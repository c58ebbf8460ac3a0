"""The WebSocket gateway: alerts, notes on them, and toplists to every client that asked, each frame encoded once.

`AlertTail` reads the alerts for it, `Resumes` finds what a client missed, and `Admission` knows whose each client is;
it owns nothing that must survive. What waits for a client is bounded, and one task a client does the waiting. A burst
of alerts larger than the log waits for the clients that read; one that stalls is closed, and so delays nobody for
longer than `STALL_S`. The messages are described in ``docs/protocol.md``.

A client gets the alerts that its principal sees. Its places move on over all others, and it is told so now and then.
"""

import asyncio
from collections import defaultdict
from collections.abc import Collection, Iterable
from contextlib import suppress
from http import HTTPStatus
from itertools import islice
from typing import Annotated, Any, Literal

import msgspec
from pydantic import ConfigDict, Field, ValidationError
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketDisconnected, WebSocketState

from tapewatch.accounts.roles import LOCAL
from tapewatch.documents import Document, load_json
from tapewatch.errors import Invalid, NotFound, Unavailable
from tapewatch.patience import pause
from tapewatch.ports import MAX_TOPLISTS, Bus, Clock, Store
from tapewatch.serve.admission import (
    FIRST_MESSAGE_S,
    MAX_OF_USER,
    MAX_UNKNOWN,
    NOBODY,
    WATCH_S,
    Accounts,
    Admission,
    chosen_subprotocol,
    offered_token,
)
from tapewatch.serve.alert_log import AlertLog, Outgoing, frame_of
from tapewatch.serve.alert_tail import Active, AlertTail
from tapewatch.serve.api import API
from tapewatch.serve.api.query import IDENTIFIER
from tapewatch.serve.client import Client, Ending, Followers, News
from tapewatch.serve.problems import problem
from tapewatch.serve.resume import Missed, Resumes, parse_places
from tapewatch.serve.server import HEARTBEAT_S, MAX_FRAME_BYTES, BoundedWebSocket, socket_of
from tapewatch.telemetry import (
    ALERT_DELIVERY_LATENCY_SECONDS,
    ALERTS_DELIVERED_TOTAL,
    ERRORS_TOTAL,
    WEBSOCKET_CONNECTIONS,
    WEBSOCKET_ENDINGS_TOTAL,
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
PLACES_S = 20.0
"""So often a client is told of places that only others' alerts have brought."""
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
        "subscribe_toplist",
        "unsubscribe_toplist",
        "subscribe_alerts",
        "unsubscribe_alerts",
        "ping",
        "resume",
        "authenticate",
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


class _Token(Document):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    token: str = Field(min_length=1, max_length=8_192, repr=False)


class _AuthenticateMessage(_Message):
    data: _Token


_MODELS: dict[str, type[_Message]] = {
    "subscribe_toplist": _ToplistMessage,
    "unsubscribe_toplist": _ToplistMessage,
    "subscribe_alerts": _Message,
    "unsubscribe_alerts": _Message,
    "ping": _Message,
    "resume": _ResumeMessage,
    "authenticate": _AuthenticateMessage,
}
_read_frame = msgspec.json.Decoder(_ToplistFrame).decode


_PONG = frame_of("pong")


class Gateway:
    """`run` feeds it, `connect` is the endpoint. `toplists` are the ids of the system's lists; users' lists are looked
    up in the store, and without one there are none. `active` says whether there is such a user who is not disabled:
    alerts of others stay in history.
    """

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        *,
        toplists: Collection[str],
        store: Store | None = None,
        accounts: Accounts | None = None,
        partitions: int = 1,
        max_clients: int = 2_000,
        max_unknown: int = MAX_UNKNOWN,
        max_of_user: int = MAX_OF_USER,
        alerts: AlertLog | None = None,
        patience_s: float = PATIENCE_S,
        send_timeout_s: float = SEND_TIMEOUT_S,
        close_grace_s: float = CLOSE_GRACE_S,
        places_s: float = PLACES_S,
        active: Active = lambda _owner: True,
        first_message_s: float = FIRST_MESSAGE_S,
        watch_s: float = WATCH_S,
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
        self._places_s = places_s
        self._first_message_s = first_message_s
        self._admission = Admission(accounts, clock, max_unknown=max_unknown, max_of_user=max_of_user, watch_s=watch_s)
        self._clients: set[Client] = set()
        self._followers: Followers = {}
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
            active=active,
        )
        self._resumes = Resumes(bus, self._alerts, clock, store=store, partitions=partitions, active=active)

    @property
    def clients(self) -> int:
        return len(self._clients)

    async def run(self) -> None:
        """Hand out alerts and toplists, from now on until the bus closes."""
        async with asyncio.TaskGroup() as beside:
            telling = beside.create_task(self._tell_places(), name="gateway places")
            watching = beside.create_task(self._admission.watch(), name="gateway sessions")
            async with asyncio.TaskGroup() as following:
                following.create_task(self._follow_toplists(), name="gateway toplists")
                following.create_task(self._tail.run(), name="gateway alerts")
            telling.cancel()
            watching.cancel()

    async def _tell_places(self) -> None:
        while True:
            await asyncio.sleep(self._places_s)
            frame = frame_of("places", self._places())
            for client in self._clients:
                client.tell_places(frame)

    async def _deliver(self, alerts: Iterable[Outgoing]) -> None:
        """In pieces, so that clients take some while others are still being encoded."""
        waited_s: defaultdict[Client, float] = defaultdict(float)
        coming = iter(alerts)
        while piece := list(islice(coming, _CHUNK)):
            news = News(
                self._alerts.end, {new.owner for new in piece if not new.shared}, any(new.shared for new in piece)
            )
            for new in piece:
                self._alerts.append(new)
            for client in self._clients:
                client.see_alerts(news)
            await asyncio.sleep(0)
            await self._wait_for_room(waited_s)

    async def _wait_for_room(self, waited_s: defaultdict[Client, float]) -> None:
        """Until no client is half a log behind: for those that read, and as long as they may be waited for."""
        now_s = asyncio.get_running_loop().time
        while self._alerts.is_half_full():
            behind = [
                client for client in self._clients if self._alerts.is_far_back(client.next) and not client.ending.done()
            ]
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
            for client in self._followers.get(toplist, ()):
                client.offer_event(toplist, frame)
            return
        self._newest.pop(toplist, None)
        self._newest[toplist] = frame
        if len(self._newest) > len(self._toplists) + MAX_TOPLISTS:  # some were deleted, and their last frames are here
            del self._newest[next(iter(self._newest))]
        for client in self._followers.get(toplist, ()):
            client.offer_toplist(toplist, frame)

    async def connect(self, websocket: WebSocket) -> None:
        """The life of one connection: the endpoint ``/ws``."""
        client = Client(self._alerts, NOBODY, followers=self._followers)
        client.held = True
        try:
            await self._admission.ready()
        except Unavailable as error:
            refusal: Response | None = _come_again(str(error))
        else:
            refusal = self._refusal(websocket, client)
        if refusal is not None:
            await websocket.send_denial_response(refusal)
            return
        self._clients.add(client)  # without having waited since the limits were looked at: no storm slips past them
        WEBSOCKET_CONNECTIONS.inc()
        try:
            await websocket.accept(chosen_subprotocol(websocket.scope["subprotocols"]))
            await self._identify(websocket, client)
            if client.ending.done():
                await self._close(websocket, client.ending.result())
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(WELCOME_WAIT_S):
                    await self._tail.begun.wait()
            client.welcome(frame_of("welcome", {"protocol": PROTOCOL, "heartbeat_s": HEARTBEAT_S, **self._places()}))
            await self._serve(websocket, client)
        finally:
            self._forget(client)
            self._admission.forget(client)
            WEBSOCKET_CONNECTIONS.dec()

    def _forget(self, client: Client) -> None:
        self._clients.discard(client)
        client.unsubscribe_all()

    def _refusal(self, websocket: WebSocket, client: Client) -> Response | None:
        """The answer to a handshake that makes no connection. Otherwise the client is expected."""
        if websocket.scope["query_string"]:
            # Addresses stand in the logs of proxies: a token that came in one is burnt, and must not seem to work.
            return problem(HTTPStatus.FORBIDDEN, "this address has no parameters; a token is sent in the first message")
        if len(self._clients) >= self._max_clients:
            return _come_again("too many clients")
        if not self._admission.expect(client, websocket.client.host if websocket.client else ""):
            return problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "too many clients that did not authenticate",
                headers={"Retry-After": "5"},
            )
        return None

    async def _identify(self, websocket: WebSocket, client: Client) -> None:
        """Admit the client, or end it. Until then nothing that it sends is looked at but its first message."""
        if client.principal is LOCAL:
            return
        token = offered_token(websocket.scope["subprotocols"])
        if token is None:
            token = await self._first_token(websocket, client)
        if token is None:
            client.end(4401, "authenticate first")
        else:
            await self._admission.admit(client, token)

    async def _first_token(self, websocket: WebSocket, client: Client) -> str | None:
        first = asyncio.create_task(websocket.receive(), name="websocket first message")
        try:
            waits: set[asyncio.Future[Any]] = {first, client.ending}
            await asyncio.wait(waits, timeout=self._first_message_s, return_when=asyncio.FIRST_COMPLETED)
            if not first.done() or first.result()["type"] == "websocket.disconnect":
                return None
        finally:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
        message = self._understood(first.result().get("text"), client)
        return message.data.token if isinstance(message, _AuthenticateMessage) else None

    def _places(self) -> dict[str, dict[str, str]]:
        """Where live alerts begin now."""
        return {"places": {str(partition): place.text() for partition, place in sorted(self._alerts.reached.items())}}

    async def _serve(self, websocket: WebSocket, client: Client) -> None:
        reader = asyncio.create_task(self._read(websocket, client), name="websocket reader")
        writer = asyncio.create_task(self._write(socket_of(websocket), client), name="websocket writer")
        try:
            first: set[asyncio.Future[Any]] = {reader, writer, client.ending}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            self._forget(client)
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
        if websocket.client_state is WebSocketState.DISCONNECTED or socket_of(websocket).is_over:
            return
        WEBSOCKET_ENDINGS_TOTAL.labels(code=ending.code).inc()
        try:
            async with asyncio.timeout(self._close_grace_s):
                await websocket.close(ending.code, ending.reason)
        except TimeoutError:
            socket_of(websocket).transport.abort()
        except (WebSocketDisconnect, WebSocketDisconnected):
            pass  # it left first

    async def _write(self, socket: BoundedWebSocket, client: Client) -> None:
        """Hand frames to the socket, for which they were encoded and framed once for all clients. A socket that takes
        them at once costs neither a timer nor a turn of the loop.
        """
        while True:
            outgoing = client.take()
            if outgoing is None:
                if client.ending.done():
                    return
                await client.wait()
                continue
            if not socket.writable.is_set():
                try:
                    async with asyncio.timeout(self._send_timeout_s):
                        await socket.writable.wait()
                except TimeoutError:
                    client.end(4008, "slow")
                    return
            if not socket.write_text(outgoing.frame):
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
                elif isinstance(asked, _ToplistMessage):
                    await self._subscribe_to_users(asked.toplist_id, client)
                elif asked is not None:
                    await self._renew(asked.data.token, client)

    def _handle(
        self, text: str | None, client: Client
    ) -> _ResumeMessage | _AuthenticateMessage | _ToplistMessage | None:
        """Obey or complain. What takes time is returned: a token, a wish to resume, or for a user's list."""
        message = self._understood(text, client)
        if isinstance(message, _AuthenticateMessage):
            return message  # `resume` may still come first
        client.heard += 1
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

    async def _renew(self, token: str, client: Client) -> None:
        trouble = await self._admission.renew(client, token)
        if trouble is not None:
            client.complain(_error(*trouble))

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
        if not client.principal.may("alerts:read"):
            client.complain(_error("forbidden", "the token does not allow alerts:read"))
            return
        client.held = True
        try:
            async with asyncio.timeout(RESUME_WAIT_S):
                await self._tail.begun.wait()
                places = parse_places(where.places, self._partitions)
                missed = await self._resumes.find(places, where.last_id, client.principal)
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
        follow = len(missed.frames) if missed.recovered else sum(map(client.sees, self._alerts.since(client.began)))
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
            if client.wants_alerts and not client.principal.may("alerts:read"):
                client.complain(_error("forbidden", "the token does not allow alerts:read"))
        elif not client.principal.may("toplists:read"):
            client.complain(_error("forbidden", "the token does not allow toplists:read"))
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
        principal = client.principal
        if not principal.may("toplists:read"):
            client.complain(_error("forbidden", "the token does not allow toplists:read"))
            return
        try:
            toplist = None if self._store is None else await self._store.toplist(toplist_id)
        except NotFound:
            toplist = None
        except Unavailable:
            ERRORS_TOTAL.labels(where="gateway.toplist").inc()
            client.reply(_error("unavailable", "the list cannot be looked up now; ask again"))
            return
        if toplist is None or not principal.sees(toplist.owner):
            client.complain(_error("unknown_toplist", "there is no such toplist"))
        else:
            self._subscribe(toplist_id, client, with_newest=toplist.enabled)


def _come_again(why: str) -> Response:
    return problem(HTTPStatus.SERVICE_UNAVAILABLE, why, headers={"Retry-After": "5"})


def _error(code: str, message: str) -> str:
    return frame_of("error", {"code": code, "message": message})
