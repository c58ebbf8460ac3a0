"""One WebSocket client as the gateway sees it: what it wants, what waits for it, and whether it behaves.

It never touches a socket and never waits. Alerts wait in one log for all clients, in which each client has its own
number, so a burst costs its memory once however many clients are behind. What a client missed before it came back
waits for it alone, and goes first.

The log is everybody's: a client is handed what its principal sees, and passes over the rest. Where nothing waits for it
it stands at the log's end, whatever others' alerts come, so that they neither wake it nor make it slow.
"""

import asyncio
from collections import deque
from collections.abc import Collection, Sequence
from typing import NamedTuple, TypeAlias

from tapewatch.accounts.roles import LOCAL, Principal
from tapewatch.serve.alert_log import AlertLog, Outgoing

MAX_REPLIES = 500
MAX_REPLY_BYTES = 256 * 1024
MAX_SUBSCRIPTIONS = 200
MAX_MESSAGES_PER_S = 20
MAX_ERRORS = 5
MAX_EVENTS = 100
"""Frames with events of toplists that wait; the oldest go, since the lists themselves tell what is."""


class Ending(NamedTuple):
    """Why the server ends a connection; with `flush`, replies that wait are sent first."""

    code: int
    reason: str
    flush: bool


class News(NamedTuple):
    """Alerts that the log has got just now."""

    since: int
    """The number of the first."""
    owners: Collection[str]
    shared: bool
    """Some are everybody's."""


class _Bell:
    """What one task waits for. It is rung thousands of times a second, so it does without what an event has for many
    that wait.
    """

    __slots__ = ("_is_rung", "_waiter")

    def __init__(self) -> None:
        self._is_rung = False
        self._waiter: asyncio.Future[None] | None = None

    def is_set(self) -> bool:
        return self._is_rung

    def ring(self) -> None:
        self._is_rung = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def heard(self) -> None:
        """Until it rings, or at once if it has rung since the last time."""
        if not self._is_rung:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._is_rung = False


Followers: TypeAlias = dict[str, set["Client"]]
"""By toplist, who follows it: an update is offered to nobody else."""


class Client:
    """Replies go first, then what it missed, then alerts in order, then of each toplist the newest frame, then what
    happened in toplists.

    Toplist frames do not count as waiting: there is one a list at most, and all clients share the same text.
    """

    def __init__(self, alerts: AlertLog, principal: Principal = LOCAL, *, followers: Followers | None = None) -> None:
        self.passed_over = False
        """Alerts that it was not handed stand behind the last place that it was told."""
        self.ending: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self.next = alerts.end
        """The next alert to send, as its number in the log."""
        self.began = alerts.end
        """The first one after its welcome."""
        self.heard = 0
        """Messages from the client."""
        self.held = False
        """Alerts are kept back: it is not welcomed yet, or what it missed is being looked for."""
        self.took_s = self.ending.get_loop().time()
        """When it last took an alert or had none to take, by the loop's clock."""
        self._alerts = alerts
        self._principal = principal
        self._wants_alerts = True
        self._gets_alerts = principal.may("alerts:read")
        self._missed: deque[Outgoing] = deque()
        self._replies: deque[str] = deque()
        self._reply_bytes = 0
        self._toplists: dict[str, str] = {}
        self._events: deque[tuple[str, str]] = deque(maxlen=MAX_EVENTS)
        self._subscriptions: set[str] = set()
        self._followers: Followers = {} if followers is None else followers
        self._something = _Bell()
        self._spoke_s: deque[float] = deque(maxlen=MAX_MESSAGES_PER_S)
        self._errors = 0

    @property
    def wants_alerts(self) -> bool:
        return self._wants_alerts

    @wants_alerts.setter
    def wants_alerts(self, wants: bool) -> None:
        self._wants_alerts = wants
        self._settle()

    @property
    def principal(self) -> Principal:
        """Whose it is: what they may not read does not come."""
        return self._principal

    @principal.setter
    def principal(self, principal: Principal) -> None:
        self._principal = principal
        if not principal.may("toplists:read"):
            self.unsubscribe_all()
        self._settle()

    def _settle(self) -> None:
        gets = self._wants_alerts and self._principal.may("alerts:read")
        if gets and not self._gets_alerts:
            self.next = self._alerts.end
        if not gets:
            self._missed.clear()
        self._gets_alerts = gets

    def sees(self, alert: Outgoing) -> bool:
        return self.principal.sees(alert.owner, shared=alert.shared)

    def see_alerts(self, news: News | None = None) -> None:
        """The log has grown. A client that lacks one which the log dropped is slow."""
        if self.held or not self._gets_alerts:
            self.next = self._alerts.end
        elif news is not None and self.next == news.since and not self._is_for(news):
            self.next = self._alerts.end
            self.took_s = self.ending.get_loop().time()
            self.passed_over = True
        elif self.next < self._alerts.first:
            self.end(4008, "slow")
        else:
            self._something.ring()

    def _is_for(self, news: News) -> bool:
        return news.shared or self.principal.user_id in news.owners or self.principal.role == "admin"

    def tell_places(self, frame: str) -> None:
        """The places at the log's end, if it stands there and would not learn of them by its own alerts."""
        at_the_end = self._gets_alerts and not self.held and not self._missed and self.next == self._alerts.end
        if at_the_end and self.passed_over:
            self.passed_over = False
            self.reply(frame)

    def offer_toplist(self, toplist: str, frame: str) -> None:
        if toplist in self._subscriptions:
            self._toplists[toplist] = frame
            self._something.ring()

    def offer_event(self, toplist: str, frame: str) -> None:
        if toplist in self._subscriptions:
            self._events.append((toplist, frame))
            self._something.ring()

    def welcome(self, frame: str) -> None:
        """From here on it gets alerts."""
        self.held = False
        self.next = self.began = self._alerts.end
        self.reply(frame)

    def go_on_after(self, missed: Sequence[Outgoing]) -> None:
        """Send these and then what comes from now on. The caller has not waited since it found them."""
        self._missed.extend(missed)
        self.next = self._alerts.end
        self._release()

    def go_on_from_welcome(self) -> None:
        """Send all alerts since the welcome, again."""
        self.next = self.began
        self._release()
        self.see_alerts()

    def _release(self) -> None:
        self.held = False
        self._something.ring()

    def reply(self, frame: str) -> None:
        if self.ending.done():
            return
        self._replies.append(frame)
        self._reply_bytes += len(frame)
        if len(self._replies) > MAX_REPLIES or self._reply_bytes > MAX_REPLY_BYTES:
            self.end(4008, "slow")
        self._something.ring()

    def complain(self, frame: str) -> None:
        """Answer a message that was wrong; a client that is wrong once more than it may be is sent away."""
        self._errors += 1
        if self._errors > MAX_ERRORS:
            self.end(1008, "too many errors", flush=True)
        else:
            self.reply(frame)

    def take(self) -> Outgoing | None:
        """The next frame to send; None when nothing waits. Once the client is ending, only replies are left."""
        if self._replies:
            frame = self._replies.popleft()
            self._reply_bytes -= len(frame)
            return Outgoing(frame, None)
        if self.ending.done():
            return None
        if self._gets_alerts and not self.held:
            self.took_s = self.ending.get_loop().time()
            if self._missed:
                return self._missed.popleft()
            while self._alerts.first <= self.next < self._alerts.end:
                alert = self._alerts.at(self.next)
                self.next += 1
                if self.sees(alert):
                    return alert
                self.passed_over = True
        if self._toplists:
            oldest = next(iter(self._toplists))
            return Outgoing(self._toplists.pop(oldest), None)
        if self._events:
            return Outgoing(self._events.popleft()[1], None)
        return None

    async def wait(self) -> None:
        """Until something was put or the client is ending."""
        await self._something.heard()

    def wake(self) -> None:
        self._something.ring()

    def subscribe(self, toplist: str) -> bool:
        """False if the client has as many subscriptions as it may."""
        if len(self._subscriptions) >= MAX_SUBSCRIPTIONS and toplist not in self._subscriptions:
            return False
        self._subscriptions.add(toplist)
        self._followers.setdefault(toplist, set()).add(self)
        return True

    def follows(self, toplist: str) -> bool:
        return toplist in self._subscriptions

    def unsubscribe(self, toplist: str) -> None:
        self._unfollow(toplist)
        self._subscriptions.discard(toplist)
        self._toplists.pop(toplist, None)
        waiting = [event for event in self._events if event[0] != toplist]
        self._events.clear()
        self._events.extend(waiting)

    def unsubscribe_all(self) -> None:
        """It follows no list any more; whoever forgets it calls this."""
        for toplist in self._subscriptions:
            self._unfollow(toplist)
        self._subscriptions.clear()
        self._toplists.clear()
        self._events.clear()

    def _unfollow(self, toplist: str) -> None:
        followers = self._followers.get(toplist, set())
        followers.discard(self)
        if not followers:
            self._followers.pop(toplist, None)

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
