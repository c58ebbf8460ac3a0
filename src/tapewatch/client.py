"""A client of the gateway for Python programs: every alert once, in order within its partition, through lost
connections, restarts of servers and of the program itself.

    async with connect("ws://127.0.0.1:8000/ws") as client:
        async for alert in client.alerts():
            print(alert["symbol"], alert["rule_name"], alert["price"])

An alert is a dictionary as ``docs/protocol.md`` has it. The client connects again by itself, after a random wait that
grows, and resumes where it was. Nothing is missing without a word: where the server cannot tell what was missed,
`Client.alerts` raises `AlertsLost`, and may be asked again to go on; `Client.events` gives a `Lost` instead.

Where the server has accounts, ``connect(url, token=...)`` takes an API token, or an async function that gives a fresh
access token whenever one is needed: for each connection, and when the server says that the last one expires. `Refused`
is raised as soon as a token is.

A program that shall go on where it ended saves `Client.state` whenever it has handled an alert, and gives it back:
``connect(url, **state)``. It reads when it is asked for the next event. A program that does not ask for long is sent
away by the server, and resumes.
"""

import asyncio
import json
import random
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypedDict, TypeVar
from zlib import crc32

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, WebSocketException

from tapewatch.errors import TapewatchError

KNOWN = 20_000
"""Alerts and notes that are recognised when they come again."""
SAVED = 2_000
"""Of these, how many go into the state that a program saves."""
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 15.0
OPEN_TIMEOUT_S = 10.0
_WELCOME_TIMEOUT_S = 15.0
_RESUMED_TIMEOUT_S = 30.0
_GOODBYE_S = 0.5
_STEADY_S = 5.0
"""A connection that lived so long was a good one: the next wait is short again."""
_MAX_FRAME_BYTES = 16 * 1024 * 1024
_HISTORY = "/api/v1/alerts"
_MEND = {1002, 1003, 1007, 1008, 1009}
"""Codes with which a server ends a connection because the client is wrong."""
_UNAUTHORIZED = 4401


class AlertsLost(TapewatchError):
    """Alerts may be missing, and the server cannot say which; they may be found at `see`, a path of the REST API."""

    def __init__(self, lost: "Lost") -> None:
        super().__init__(f"alerts may be missing: {lost.why}; see {lost.see}")
        self.lost = lost


class Refused(TapewatchError):
    """The server will not have this client, and trying again is useless."""


@dataclass(frozen=True, slots=True)
class AlertFired:
    """An alert that this client was not given before."""

    alert: dict[str, Any]


@dataclass(frozen=True, slots=True)
class AlertNoted:
    """Something was learned about an alert, maybe one from before this client was there: it, with all its notes."""

    alert: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ToplistUpdated:
    toplist: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Lost:
    """After `last_id`, alerts may be missing; what follows is complete again."""

    why: str
    see: str
    last_id: str | None


Token: TypeAlias = str | Callable[[], Awaitable[str]]
"""Who asks, or an async function that is asked for it each time."""
Event: TypeAlias = AlertFired | AlertNoted | ToplistUpdated | Lost


T = TypeVar("T")


class State(TypedDict):
    """Where a client is; it can be written as JSON, and is what `connect` takes by name."""

    places: dict[str, str]
    last_id: str | None
    known: list[str]


class _Forever(Generic[T]):
    """Not a generator, so that a cancelled `anext` may be asked again."""

    def __init__(self, take: Callable[[], Awaitable[T]]) -> None:
        self._take = take

    def __aiter__(self) -> "_Forever[T]":
        return self

    async def __anext__(self) -> T:
        return await self._take()


class Client:
    """Made by `connect`. One task at a time may ask for events or alerts."""

    def __init__(
        self,
        url: str,
        *,
        token: Token | None = None,
        places: Mapping[str, str] | None = None,
        last_id: str | None = None,
        known: Iterable[str] = (),
        on_frame: Callable[[str], None] | None = None,
        first_wait_s: float = FIRST_WAIT_S,
        longest_wait_s: float = LONGEST_WAIT_S,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.url = url
        self.connects = 0
        """Connections on which the server welcomed us."""
        self.repeated = 0
        """Alerts and notes that came again and were dropped."""
        self._token = token
        self._renewal: asyncio.Task[None] | None = None
        self._reads_alerts = True
        self._last_id = last_id
        self._places = dict(places or {})
        self._known: OrderedDict[str, None] = OrderedDict.fromkeys(known)
        self._on_frame = on_frame
        self._first_wait_s, self._longest_wait_s = first_wait_s, longest_wait_s
        self._options = dict(options or {})
        self._toplists: dict[str, None] = {}
        self._socket: ClientConnection | None = None
        self._resuming = False
        self._missed_left = 0
        self._places_then: dict[str, str] | None = None
        self._places_of_welcome: dict[str, str] = {}
        self._lost: Lost | None = None
        self._attempt = 0
        self._opened_s = 0.0

    @property
    def last_id(self) -> str | None:
        """The alert that was given last."""
        return self._last_id

    def places(self) -> dict[str, str]:
        """Where this client is, everything that it was given included."""
        return dict(self._places)

    def state(self) -> State:
        """All that a later life of the program needs to go on behind the event that was given last."""
        return {"places": self.places(), "last_id": self._last_id, "known": list(self._known)[-SAVED:]}

    async def subscribe(self, toplist: str) -> None:
        """Ask for a toplist, on this connection and all later ones. Its updates are among the events."""
        self._toplists[toplist] = None
        await self._say({"type": "subscribe_toplist", "toplist_id": toplist})

    async def unsubscribe(self, toplist: str) -> None:
        if toplist in self._toplists:
            del self._toplists[toplist]
            await self._say({"type": "unsubscribe_toplist", "toplist_id": toplist})

    def alerts(self) -> AsyncIterator[dict[str, Any]]:
        """`next_alert` again and again."""
        return _Forever(self.next_alert)

    def events(self) -> AsyncIterator[Event]:
        """`next_event` again and again."""
        return _Forever(self.next_event)

    async def next_alert(self) -> dict[str, Any]:
        """Each alert once. `AlertsLost` when some may be missing; what comes then is complete again. `Refused` if the
        token does not allow alerts, for which it would else wait for ever.
        """
        while True:
            if not self._reads_alerts and self._socket is not None:
                raise Refused(f"{self.url}: the token does not allow alerts:read")
            event = await self.next_event()
            if isinstance(event, AlertFired):
                return event.alert
            if isinstance(event, Lost):
                raise AlertsLost(event)

    async def next_event(self) -> Event:
        """The next thing that happens. It may be cancelled. `Refused` if the server will not have this client or its
        token. What a `Token` function raises comes out here, except `OSError` and `TimeoutError`: it is asked again.
        """
        while True:
            if self._lost is not None:
                lost, self._lost = self._lost, None
                return lost
            if self._socket is None:
                await self.open()
            else:
                event = await self._next(self._socket)
                if event is not None:
                    return event

    async def open(self) -> None:
        """Connect, and resume if there is a place to resume from. It tries until the server has this client."""
        while self._socket is None:
            if self._attempt:
                await asyncio.sleep(self._wait_s())
            self._attempt += 1
            try:
                await self._connect()
            except InvalidStatus as error:
                if error.response.status_code < 500 and error.response.status_code != 429:
                    raise Refused(f"{self.url} answers {error.response.status_code}") from error
            except (OSError, TimeoutError, ConnectionClosed, InvalidHandshake) as error:
                self._check_close(error)
            except WebSocketException as error:
                raise Refused(f"{self.url}: {error}") from error

    async def close(self) -> None:
        """End the connection. The places stay; `open` or the next event connects again."""
        socket, self._socket = self._socket, None
        self._stop_renewing()
        if socket is None:
            return
        try:
            async with asyncio.timeout(_GOODBYE_S):
                await socket.close()
        except TimeoutError:  # its answer stands behind alerts that nobody takes any more
            socket.transport.abort()

    def _wait_s(self) -> float:
        """Anything between nothing and a ceiling that doubles, so that many clients do not come back at once."""
        ceiling_s = min(self._longest_wait_s, self._first_wait_s * 2 ** min(self._attempt - 1, 30))
        return random.uniform(0, ceiling_s)  # noqa: S311  # jitter needs no secrecy

    async def _connect(self) -> None:
        options = {"max_size": _MAX_FRAME_BYTES, "open_timeout": OPEN_TIMEOUT_S, **self._options}
        token = await self._fresh_token()
        socket = await open_socket(self.url, **options)
        try:
            async with asyncio.timeout(_WELCOME_TIMEOUT_S):
                if token is not None:
                    await socket.send(_authenticate(token))
                places = await self._welcomed(socket)
            self._resuming = False
            self._places_then = None
            self._places_of_welcome = places or {}
            if not self._reads_alerts or (not self._places and self._last_id is None):
                self._places = dict(self._places_of_welcome)
            elif places is None:
                self._lose("the server cannot resume")
            else:
                self._resuming = True
                where = {"places": self._places} | ({} if self._last_id is None else {"last_id": self._last_id})
                await socket.send(json.dumps({"type": "resume", "data": where}))
            for toplist in self._toplists:
                await socket.send(json.dumps({"type": "subscribe_toplist", "toplist_id": toplist}))
        except ConnectionClosed as error:
            if error.rcvd is not None and error.rcvd.code == _UNAUTHORIZED:
                wanted = "a token" if token is None else "another token"
                raise Refused(f"{self.url} wants {wanted}: {error.rcvd.reason}") from error
            raise
        except BaseException:
            socket.transport.abort()
            raise
        self._socket = socket
        self.connects += 1
        self._opened_s = asyncio.get_running_loop().time()

    async def _welcomed(self, socket: ClientConnection) -> dict[str, str] | None:
        """The places of the welcome; None from a server that knows none."""
        self._reads_alerts = True
        while True:
            frame = await self._receive(socket)
            if frame["type"] == "authenticated":
                self._authenticated(frame["data"])
            elif frame["type"] == "welcome":
                places: dict[str, str] | None = frame["data"].get("places")
                return places

    async def _receive(self, socket: ClientConnection) -> dict[str, Any]:
        text = await socket.recv(decode=True)
        if self._on_frame is not None:
            self._on_frame(text)
        frame: dict[str, Any] = json.loads(text)
        return frame

    async def _next(self, socket: ClientConnection) -> Event | None:
        """What the next frame is to the program, if anything."""
        try:
            if self._resuming:
                async with asyncio.timeout_at(self._opened_s + _RESUMED_TIMEOUT_S):
                    frame = await self._receive(socket)
            else:
                frame = await self._receive(socket)
        except (ConnectionClosed, TimeoutError, OSError) as error:
            self._leave(socket)
            self._check_close(error)
            return None
        kind = frame["type"]
        if kind in {"alert", "alert_note"}:
            return None if self._resuming else self._taken(frame)
        if kind == "toplist_update":
            return ToplistUpdated(frame["data"])
        if kind == "places":
            if not self._resuming:
                self._places.update(frame["data"]["places"])
        elif kind == "resumed":
            self._resumed(frame["data"])
        elif kind == "authenticated":
            self._authenticated(frame["data"])
        elif kind == "token_expiring" and callable(self._token):
            # Beside the reading, which may be cancelled at any time.
            self._stop_renewing()
            self._renewal = asyncio.create_task(self._renew(socket), name="tapewatch client renewal")
        elif kind == "error" and self._resuming and frame["data"]["code"] in {"bad_resume", "bad_message"}:
            self._lose(f"the server does not know these places: {frame['data']['message']}")
            self._places, self._last_id = {}, None
            self._leave(socket)
        return None

    def _authenticated(self, user: dict[str, Any]) -> None:
        self._reads_alerts = "alerts:read" in user["scopes"]

    async def _fresh_token(self) -> str | None:
        return await self._token() if callable(self._token) else self._token

    async def _renew(self, socket: ClientConnection) -> None:
        """If it fails the server ends the connection, and the next one asks for a token again, and tells."""
        with suppress(Exception):
            token = await self._fresh_token()
            if token is not None:
                await socket.send(_authenticate(token))

    def _stop_renewing(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
            self._renewal = None

    def _leave(self, socket: ClientConnection) -> None:
        """Forget the socket at once: saying goodbye on a dead line takes long."""
        self._stop_renewing()
        if asyncio.get_running_loop().time() - self._opened_s > _STEADY_S:
            self._attempt = 1
        self._socket = None
        socket.transport.abort()

    def _taken(self, frame: dict[str, Any]) -> Event | None:
        alert: dict[str, Any] = frame["data"]
        event = self._news(frame["type"], alert)
        if "at" in frame:
            partition, _, place = frame["at"].partition(":")
            self._places[partition] = place
        self._count_missed()
        if event is None:
            self.repeated += 1
        return event

    def _news(self, kind: str, alert: dict[str, Any]) -> Event | None:
        """None if the program has it."""
        alert_id: str = alert["alert_id"]
        if kind == "alert_note":
            text = crc32((alert["note"] or "").encode())
            return None if self._knows(f"{alert_id} {text:08x}") else AlertNoted(alert)
        if self._knows(alert_id):
            return None
        self._last_id = alert_id
        return AlertFired(alert)

    def _knows(self, key: str) -> bool:
        """Whether it came before; it has, from now on."""
        if key in self._known:
            return True
        self._known[key] = None
        if len(self._known) > KNOWN:
            self._known.popitem(last=False)
        return False

    def _resumed(self, answer: dict[str, Any]) -> None:
        self._resuming = False
        if answer["recovered"] is False:
            self._lose(answer["why"], answer["see"])
        self._places_then, self._missed_left = answer["places"], answer["alerts"] + 1
        self._count_missed()

    def _count_missed(self) -> None:
        """The places of `resumed` are ours once all that it announced was given."""
        if self._places_then is None:
            return
        self._missed_left -= 1
        if self._missed_left == 0:
            self._places, self._places_then = dict(self._places_then), None

    def _lose(self, why: str, see: str = _HISTORY) -> None:
        """The alerts since the welcome come, or come again."""
        self._lost = Lost(why=why, see=see, last_id=self._last_id)
        self._places = dict(self._places_of_welcome)

    def _check_close(self, error: BaseException) -> None:
        if isinstance(error, ConnectionClosed) and error.rcvd is not None and error.rcvd.code in _MEND:
            raise Refused(f"{self.url} closed the connection: {error.rcvd.code} {error.rcvd.reason}") from error

    async def _say(self, message: dict[str, Any]) -> None:
        """To the server if there is a connection; the next one begins with what is wanted then."""
        if self._socket is not None:
            try:
                await self._socket.send(json.dumps(message))
            except ConnectionClosed:
                return  # whoever reads will see it


def _authenticate(token: str) -> str:
    return json.dumps({"type": "authenticate", "data": {"token": token}})


@asynccontextmanager
async def connect(
    url: str,
    *,
    token: Token | None = None,
    places: Mapping[str, str] | None = None,
    last_id: str | None = None,
    known: Iterable[str] = (),
    on_frame: Callable[[str], None] | None = None,
    first_wait_s: float = FIRST_WAIT_S,
    longest_wait_s: float = LONGEST_WAIT_S,
    **options: Any,
) -> AsyncIterator[Client]:
    """A client that is connected: no alert from here on is missed. It tries as long as it takes; wrap it in
    `asyncio.timeout` to give up. `Refused` if the server will not have it or its token.

    `places`, `last_id` and `known` are from `Client.state`. `on_frame` is given each text frame before anything is made
    of it, those that come again included. `options` go to `websockets.connect`, such as ``ssl`` or ``proxy``.
    """
    client = Client(
        url,
        token=token,
        places=places,
        last_id=last_id,
        known=known,
        on_frame=on_frame,
        first_wait_s=first_wait_s,
        longest_wait_s=longest_wait_s,
        options=options,
    )
    try:
        await client.open()
        yield client
    finally:
        await client.close()
