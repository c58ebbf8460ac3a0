"""One WebSocket client as the gateway sees it: what it wants, what waits for it, and whether it behaves.

It never touches a socket and never waits. Alerts wait in one log for all clients, in which each client has its own
place, so a burst costs its memory once however many clients are behind.
"""

import asyncio
from collections import deque
from typing import NamedTuple

MAX_ALERTS = 20_000
MAX_ALERT_BYTES = 8 * 1024 * 1024
MAX_REPLIES = 500
MAX_REPLY_BYTES = 256 * 1024
MAX_SUBSCRIPTIONS = 200
MAX_MESSAGES_PER_S = 20
MAX_ERRORS = 5


class Ending(NamedTuple):
    """Why the server ends a connection; with `flush`, replies that wait are sent first."""

    code: int
    reason: str
    flush: bool


class Outgoing(NamedTuple):
    frame: str
    received_ns: int | None
    """Of an alert: when its trades arrived, 0 in a replay; None for every other frame."""


class AlertLog:
    """The newest alert frames, `alerts` of them and `max_bytes` at most. Full, it drops the oldest, and a client that
    has not taken that one yet is slow.
    """

    def __init__(self, *, alerts: int = MAX_ALERTS, max_bytes: int = MAX_ALERT_BYTES) -> None:
        self.first = 0
        """The place of the oldest frame that is held."""
        self._alerts, self._max_bytes = alerts, max_bytes
        self._frames: deque[Outgoing] = deque()
        self._bytes = 0

    @property
    def end(self) -> int:
        """The place of the next frame."""
        return self.first + len(self._frames)

    def is_far_back(self, place: int) -> bool:
        """Whether more than half of what the log can hold comes after that place."""
        after = self.end - place
        return 2 * after > self._alerts or 2 * after * self._bytes > self._max_bytes * len(self._frames)

    def append(self, frame: str, received_ns: int | None) -> None:
        self._frames.append(Outgoing(frame, received_ns))
        self._bytes += len(frame)  # frames are nearly all ASCII, so their length is their size
        while len(self._frames) > self._alerts or self._bytes > self._max_bytes:
            self._drop()

    def at(self, place: int) -> Outgoing:
        return self._frames[place - self.first]

    def forget(self, place: int) -> None:
        """Drop what stands before `place`, because everybody has it."""
        while self.first < place:
            self._drop()

    def _drop(self) -> None:
        self._bytes -= len(self._frames.popleft().frame)
        self.first += 1


class Client:
    """Replies go first, then alerts in order, then of each toplist the newest frame.

    Toplist frames do not count as waiting: there is one a list at most, and all clients share the same text.
    """

    def __init__(self, alerts: AlertLog) -> None:
        self.ending: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self.place = alerts.end
        """The next alert to send, as a place in the log."""
        self.took_s = self.ending.get_loop().time()
        """When it last took an alert or had none to take, by the loop's clock."""
        self._alerts = alerts
        self._wants_alerts = True
        self._replies: deque[str] = deque()
        self._reply_bytes = 0
        self._toplists: dict[str, str] = {}
        self._subscriptions: set[str] = set()
        self._something = asyncio.Event()
        self._spoke_s: deque[float] = deque(maxlen=MAX_MESSAGES_PER_S)
        self._errors = 0

    @property
    def wants_alerts(self) -> bool:
        return self._wants_alerts

    @wants_alerts.setter
    def wants_alerts(self, wants: bool) -> None:
        if wants and not self._wants_alerts:
            self.place = self._alerts.end
        self._wants_alerts = wants

    def see_alerts(self) -> None:
        """The log has grown. A client that lost its place in it is slow."""
        if not self._wants_alerts:
            self.place = self._alerts.end
        elif self.place < self._alerts.first:
            self.end(4008, "slow")
        else:
            self._something.set()

    def offer_toplist(self, toplist: str, frame: str) -> None:
        if toplist in self._subscriptions:
            self._toplists[toplist] = frame
            self._something.set()

    def reply(self, frame: str) -> None:
        if self.ending.done():
            return
        self._replies.append(frame)
        self._reply_bytes += len(frame)
        if len(self._replies) > MAX_REPLIES or self._reply_bytes > MAX_REPLY_BYTES:
            self.end(4008, "slow")
        self._something.set()

    def complain(self, frame: str) -> None:
        """Answer a message that was wrong; a client that is wrong too often is sent away."""
        self.reply(frame)
        self._errors += 1
        if self._errors >= MAX_ERRORS:
            self.end(1008, "too many errors", flush=True)

    def take(self) -> Outgoing | None:
        """The next frame to send; None when nothing waits. Once the client is ending, only replies are left."""
        if self._replies:
            frame = self._replies.popleft()
            self._reply_bytes -= len(frame)
            return Outgoing(frame, None)
        if self.ending.done():
            return None
        if self._wants_alerts:
            self.took_s = self.ending.get_loop().time()
            if self._alerts.first <= self.place < self._alerts.end:
                self.place += 1
                return self._alerts.at(self.place - 1)
        if self._toplists:
            oldest = next(iter(self._toplists))
            return Outgoing(self._toplists.pop(oldest), None)
        return None

    async def wait(self) -> None:
        """Until something was put or the client is ending."""
        await self._something.wait()
        self._something.clear()

    def wake(self) -> None:
        self._something.set()

    def subscribe(self, toplist: str) -> bool:
        """False if the client has as many subscriptions as it may."""
        if len(self._subscriptions) >= MAX_SUBSCRIPTIONS and toplist not in self._subscriptions:
            return False
        self._subscriptions.add(toplist)
        return True

    def unsubscribe(self, toplist: str) -> None:
        self._subscriptions.discard(toplist)
        self._toplists.pop(toplist, None)

    def may_speak(self, now_s: float) -> bool:
        """Count a message from the client; False if it is one too many within a second."""
        if len(self._spoke_s) == MAX_MESSAGES_PER_S and now_s - self._spoke_s[0] < 1.0:
            return False
        self._spoke_s.append(now_s)
        return True

    def end(self, code: int, reason: str, *, flush: bool = False) -> None:
        """End the connection; the first reason counts."""
        if self.ending.done():
            return
        if not flush:
            self._replies.clear()
        self.ending.set_result(Ending(code, reason, flush))
