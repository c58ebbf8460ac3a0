"""Those who listen to a bus in this process, by channel, and the notices that they have not taken yet.

A listener's queue drops its oldest notice, adds to `Listeners.dropped` and logs a warning once. Channels may be made of
users' input, so one that nobody listens to leaves nothing behind.
"""

import asyncio
import logging
import weakref
from collections import deque
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from functools import partial

log = logging.getLogger(__name__)


class Listener:
    """The newest notices of one channel. Not a generator: a cancelled `anext` may be asked again."""

    __slots__ = ("__weakref__", "_arrived", "_channel", "_dropped", "_ended", "_notices", "_problem")

    def __init__(self, channel: str, capacity: int) -> None:
        self._channel = channel
        self._notices: deque[bytes] = deque(maxlen=capacity)
        self._arrived = asyncio.Event()
        self._dropped = False
        self._ended = False
        self._problem: Exception | None = None

    def offer(self, payload: bytes) -> int:
        """Queue a notice; returns how many older ones had to go (0 or 1)."""
        dropped = len(self._notices) == self._notices.maxlen
        if dropped and not self._dropped:
            self._dropped = True
            log.warning("a listener of %s is slow; its oldest notices are dropped", self._channel)
        self._notices.append(payload)
        self._arrived.set()
        return int(dropped)

    def end(self, problem: Exception | None = None) -> None:
        """Iteration stops at once; with a problem, by raising it."""
        self._ended = True
        self._problem = problem
        self._arrived.set()

    def __aiter__(self) -> "Listener":
        return self

    async def __anext__(self) -> bytes:
        while not self._ended:
            if self._notices:
                return self._notices.popleft()
            self._arrived.clear()
            await self._arrived.wait()
        if self._problem is not None:
            raise self._problem
        raise StopAsyncIteration


class Listeners:
    """Holds its listeners weakly, because one leaves by dropping its iterator, and nothing else tells us."""

    def __init__(self, capacity: int, *, left: Callable[[], None] = lambda: None) -> None:
        """`capacity` is in notices of one listener; `left` is called when a channel has lost its last one."""
        self.dropped = 0
        self._capacity = capacity
        self._left = left
        self._by_channel: dict[str, set[weakref.ref[Listener]]] = {}

    @property
    def channels(self) -> AbstractSet[str]:
        """Those with a listener; follows what happens."""
        return self._by_channel.keys()

    def listen(self, channel: str) -> Listener:
        listener = Listener(channel, self._capacity)
        reference = weakref.ref(listener, partial(self._forget, channel))
        self._by_channel.setdefault(channel, set()).add(reference)
        return listener

    def deliver(self, channel: str, payload: bytes) -> None:
        for reference in tuple(self._by_channel.get(channel, ())):
            listener = reference()
            if listener is not None:
                self.dropped += listener.offer(payload)

    def end(self, problem: Exception | None = None) -> None:
        """End and forget all."""
        by_channel, self._by_channel = self._by_channel, {}
        for references in by_channel.values():
            for reference in tuple(references):
                listener = reference()
                if listener is not None:
                    listener.end(problem)

    def _forget(self, channel: str, reference: "weakref.ref[Listener]") -> None:
        references = self._by_channel.get(channel)
        if references is not None:
            references.discard(reference)
            if not references:
                del self._by_channel[channel]
                self._left()
