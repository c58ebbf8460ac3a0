"""One WebSocket client as the gateway sees it: what it wants, what waits for it, and whether it behaves.

It never touches a socket and never waits: offering to it costs the same however slow the client is.
"""

import asyncio
from collections import deque
from typing import NamedTuple

MAX_OUTBOX_BYTES = 256 * 1024
MAX_SUBSCRIPTIONS = 200
MAX_MESSAGES_PER_S = 20
MAX_ERRORS = 5


class Ending(NamedTuple):
    """Why the server ends a connection; with `flush`, what waits is sent first."""

    code: int
    reason: str
    flush: bool


class Outgoing(NamedTuple):
    frame: str
    received_ns: int | None
    """Of an alert: when its trades arrived, 0 in a replay; None for every other frame."""


class Client:
    """Alerts and replies wait in order, `outbox` of them and 256 kB at most; of a toplist only the newest frame waits.

    Toplist frames do not count: there is one a list at most, and all clients share the same text.
    """

    def __init__(self, *, outbox: int) -> None:
        self.wants_alerts = True
        self.ending: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._outbox = outbox
        self._queue: deque[Outgoing] = deque()
        self._queued_bytes = 0
        self._toplists: dict[str, str] = {}
        self._subscriptions: set[str] = set()
        self._something = asyncio.Event()
        self._spoke_s: deque[float] = deque(maxlen=MAX_MESSAGES_PER_S)
        self._errors = 0

    def offer_alert(self, frame: str, received_ns: int) -> None:
        if self.wants_alerts:
            self._put(Outgoing(frame, received_ns))

    def offer_toplist(self, toplist: str, frame: str) -> None:
        if toplist in self._subscriptions:
            self._toplists[toplist] = frame
            self._something.set()

    def reply(self, frame: str) -> None:
        self._put(Outgoing(frame, None))

    def complain(self, frame: str) -> None:
        """Answer a message that was wrong; a client that is wrong too often is sent away."""
        self.reply(frame)
        self._errors += 1
        if self._errors >= MAX_ERRORS:
            self.end(1008, "too many errors", flush=True)

    def _put(self, outgoing: Outgoing) -> None:
        if self.ending.done():
            return
        # Frames are nearly all ASCII, so their length is their size.
        self._queued_bytes += len(outgoing.frame)
        self._queue.append(outgoing)
        if len(self._queue) > self._outbox or self._queued_bytes > MAX_OUTBOX_BYTES:
            self._queue.clear()
            self.end(4008, "slow")
        self._something.set()

    def take(self) -> Outgoing | None:
        """The next frame to send; None when nothing waits. Alerts go before toplists."""
        if self._queue:
            outgoing = self._queue.popleft()
            self._queued_bytes -= len(outgoing.frame)
            return outgoing
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
        if not self.ending.done():
            self.ending.set_result(Ending(code, reason, flush))
