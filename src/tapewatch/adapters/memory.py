"""Bus and hot state inside one process: the default of `tapewatch up`, and what the tests use.

Owns: the newest entries of each stream, and the facts that have not expired. It never writes to disk, never copies an
entry (they are frozen) and never waits for a reader. Both classes belong to one event loop and are not thread-safe.

What happens when something is full:

- A stream drops its oldest entries; it is full by their number or by the bytes of their columns. A reader that needed
  one gets `PositionLost` and rebuilds from the store; one that said how far it came is counted in `trimmed_unread`.
- The hot state refuses a new key with `Unavailable` until something expires. What it holds is never evicted,
  because a claim that vanished early could be granted twice.

Streams and the names of topics come from the code and are few, so they are kept as long as the bus; channels and keys
may be made of users' input, so a channel without a listener and an expired key leave nothing behind.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from heapq import heappop, heappush

import numpy as np

from tapewatch.adapters.listeners import Listeners
from tapewatch.errors import PositionLost, Unavailable
from tapewatch.ports import Entry, Position, Ranked

ENTRIES = 4_096
BYTES = 16_000_000
"""Columns of a stream's entries: some seven seconds of tape at 50,000 trades a second."""
ENTRIES_BY_TOPIC: Mapping[str, int] = {"board": 2, "bars.finalized": 512}
"""A board of ten thousand symbols is about 5 MB, and a minute's bars are 1 MB; nobody needs old ones."""
NOTICES = 1_024
KEYS = 1_000_000
SEEN_S = 60.0
"""A reader that has said nothing for so long is taken for gone."""
TURN = 64
"""A reader that catches up lets the others run after this many entries."""

log = logging.getLogger(__name__)


class _Bell:
    """Wakes everybody who waits at that moment; ringing costs nothing when nobody does."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()

    async def wait(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)


@dataclass(slots=True, kw_only=True)
class _Stream:
    """The retained entries. Inside they are numbered from 1 on, through all epochs; the first of them is `first`."""

    name: str
    capacity: int
    """Entries."""
    capacity_bytes: int
    closed: bool
    epochs: list[tuple[int, int]]
    """Each with the number of the entry before it, oldest first; those of which nothing is kept are left out."""
    fresh: int | None = None
    """The epoch that begins with the next entry."""
    entries: deque[Entry] = field(default_factory=deque)
    sizes: deque[int] = field(default_factory=deque)
    bytes: int = 0
    first: int = 1
    published: _Bell = field(default_factory=_Bell)
    reached: dict[str, tuple[int, float]] = field(default_factory=dict)
    """How far each reader has come, and when it said so."""
    overrun: set[str] = field(default_factory=set)
    """Readers that entries were dropped before, and of which the log knows."""

    @property
    def next(self) -> int:
        return self.first + len(self.entries)

    def position(self, number: int) -> Position:
        epoch, before = next(pair for pair in reversed(self.epochs) if number > pair[1])
        return Position(epoch, number - before)

    def number(self, position: Position) -> int | None:
        """None for an epoch that is not here (any more), or that ended before."""
        end: int | None = None
        for epoch, before in reversed(self.epochs):
            if epoch == position.epoch:
                number = before + position.sequence
                return number if end is None or number <= end else None
            end = before
        return None

    def append(self, entry: Entry, size: int) -> Position:
        if self.fresh is not None:
            self.epochs.append((self.fresh, self.next - 1))
            self.fresh = None
        number = self.next
        self.entries.append(entry)
        self.sizes.append(size)
        self.bytes += size
        self.published.ring()
        return self.position(number)

    def trim(self) -> int:
        """Drop what there is no room for. Returns how many of these a reader was still to come to."""
        unread = 0
        while len(self.entries) > 1 and (len(self.entries) > self.capacity or self.bytes > self.capacity_bytes):
            self.entries.popleft()
            self.bytes -= self.sizes.popleft()
            unread += self._overrun(self.first)
            self.first += 1
        while len(self.epochs) > 1 and self.epochs[1][1] < self.first - 1:
            del self.epochs[0]
        return unread

    def _overrun(self, number: int) -> bool:
        """Whether somebody who was seen lately is still to come to that entry."""
        behind = [reader for reader, (reached, _) in self.reached.items() if reached < number]
        lately_s = time.monotonic() - SEEN_S
        behind = [reader for reader in behind if self.reached[reader][1] >= lately_s]
        for reader in behind:
            if reader not in self.overrun:
                self.overrun.add(reader)
                log.error("%s drops entries that %s has not reached", self.name, reader)
        return bool(behind)


class _Reader:
    """Iterates over a stream. Not a generator, so that a cancelled `anext` keeps its place and may be asked again."""

    __slots__ = ("_next", "_served", "_stream", "_wanted")

    def __init__(self, stream: _Stream, after: Position | None) -> None:
        self._stream = stream
        self._served = 0
        self._wanted = after
        self._next: int | None = None

    def __aiter__(self) -> "_Reader":
        return self

    async def __anext__(self) -> tuple[Position, Entry]:
        stream = self._stream
        self._served += 1
        if self._served % TURN == 0:
            await asyncio.sleep(0)
        while not stream.closed:
            number = self._next if self._next is not None else self._begin()
            # A position beyond the tail is lost too: waiting for it would silently skip everything up to it.
            if not stream.first <= number <= stream.next:
                raise PositionLost(
                    f"{stream.name} holds {stream.first} to {stream.next - 1}, counted from its beginning; "
                    f"the reader wanted {number}"
                )
            self._next = number
            if number < stream.next:
                self._next = number + 1
                return stream.position(number), stream.entries[number - stream.first]
            self._served = 0
            await stream.published.wait()
        raise StopAsyncIteration

    def _begin(self) -> int:
        if self._wanted is None:
            return self._stream.first
        number = self._stream.number(self._wanted)
        if number is None:
            epochs = ", ".join(str(epoch) for epoch, _ in self._stream.epochs)
            raise PositionLost(f"{self._stream.name} is in epoch {epochs}; the reader wanted {self._wanted.epoch}")
        return number + 1


class MemoryBus:
    """`Bus` in memory. `epoch` is that of streams which nobody took over; it must rise from one life to the next if
    anybody keeps positions longer than the bus.
    """

    def __init__(
        self,
        *,
        epoch: int = 1,
        capacity: int = ENTRIES,
        capacity_bytes: int = BYTES,
        capacity_by_topic: Mapping[str, int] = ENTRIES_BY_TOPIC,
        notices: int = NOTICES,
    ) -> None:
        if min(capacity, notices, *capacity_by_topic.values()) < 1:
            raise ValueError("a bus keeps at least one entry and one notice")
        self.trimmed_unread = 0
        """Entries that were dropped while a reader had not reached them."""
        self._epoch = epoch
        self._capacity = capacity
        self._capacity_bytes = capacity_bytes
        self._capacity_by_topic = dict(capacity_by_topic)
        self._closed = False
        self._streams: dict[str, _Stream] = {}
        self._listeners = Listeners(notices)

    @property
    def lost(self) -> Mapping[str, int]:
        return {"went before they were read": self.trimmed_unread}

    @property
    def notices_dropped(self) -> int:
        return self._listeners.dropped

    async def publish(self, stream: str, entry: Entry) -> Position:
        return (await self.publish_all({stream: entry}))[stream]

    async def publish_all(self, entries: Mapping[str, Entry]) -> dict[str, Position]:
        # A turn of the loop comes first, so that a writer which never waits cannot outrun its readers, and so that a
        # cancelled publish has either not happened or returned.
        await asyncio.sleep(0)
        self._check_open()
        return {stream: self._append(stream, entry) for stream, entry in entries.items()}

    def read(self, stream: str, after: Position | None = None) -> AsyncIterator[tuple[Position, Entry]]:
        return _Reader(self._stream(stream), after)

    async def take_over(self, stream: str) -> None:
        self._check_open()
        taken = self._stream(stream)
        taken.fresh = max(time.time_ns() // 1_000_000, (taken.fresh or taken.epochs[-1][0]) + 1)

    async def tail(self, stream: str) -> Position | None:
        self._check_open()
        log_ = self._streams.get(stream)
        return log_.position(log_.next - 1) if log_ is not None and log_.entries else None

    async def newest(self, stream: str, limit: int) -> list[tuple[Position, Entry]]:
        self._check_open()
        log_ = self._streams.get(stream)
        if log_ is None:
            return []
        numbers = range(max(log_.first, log_.next - limit), log_.next)
        return [(log_.position(number), log_.entries[number - log_.first]) for number in numbers]

    async def reached(self, reader: str, positions: Mapping[str, Position]) -> None:
        self._check_open()
        for stream, position in positions.items():
            log_ = self._stream(stream)
            number = log_.number(position)
            log_.reached[reader] = (log_.first - 1 if number is None else number, time.monotonic())

    async def lag(self, reader: str, streams: Sequence[str]) -> dict[str, int]:
        self._check_open()
        known = {stream: self._streams[stream] for stream in streams if stream in self._streams}
        return {
            stream: max(0, log_.next - 1 - log_.reached[reader][0])
            for stream, log_ in known.items()
            if reader in log_.reached
        }

    async def notify(self, channel: str, payload: bytes) -> None:
        self._check_open()
        self._listeners.deliver(channel, payload)

    def listen(self, channel: str) -> AsyncIterator[bytes]:
        listener = self._listeners.listen(channel)
        if self._closed:
            listener.end()
        return listener

    async def close(self) -> None:
        self._closed = True
        for stream in self._streams.values():
            stream.closed = True
            stream.entries.clear()
            stream.published.ring()
        self._listeners.end()

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the bus is closed")

    def _append(self, name: str, entry: Entry) -> Position:
        stream = self._stream(name)
        position = stream.append(entry, _freeze(entry))
        self.trimmed_unread += stream.trim()
        return position

    def _stream(self, name: str) -> _Stream:
        stream = self._streams.get(name)
        if stream is None:
            capacity = self._capacity_by_topic.get(name.partition(":")[0], self._capacity)
            stream = _Stream(
                name=name,
                epochs=[(self._epoch, 0)],
                capacity=capacity,
                capacity_bytes=self._capacity_bytes,
                closed=self._closed,
            )
            self._streams[name] = stream
        return stream


def _freeze(entry: Entry) -> int:
    """Readers share the entry, so nobody may write to its columns from here on, the publisher included. Returns the
    bytes of its columns.
    """
    size = 0
    for column in fields(entry):
        value = getattr(entry, column.name)
        if isinstance(value, np.ndarray):
            value.setflags(write=False)
            size += value.nbytes
    return size


@dataclass(frozen=True, slots=True)
class _Fact:
    value: bytes | tuple[Ranked, ...]
    expires_s: float
    filed_s: int


class MemoryHotState:
    """`HotState` in memory. No method awaits anything, so each is one step for all tasks of the loop.

    Each key is also filed under a whole second at which it may be gone. Every call first empties the seconds that have
    passed: what has expired is removed, within a second by a call of any kind, and what was renewed in the meantime is
    filed again. So renewing a key costs no more than putting it, and leaves nothing behind.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic, max_keys: int = KEYS) -> None:
        self._monotonic = monotonic
        self._max_keys = max_keys
        self._closed = False
        self._facts: dict[str, _Fact] = {}
        self._due: dict[int, set[str]] = {}
        self._seconds: list[int] = []

    def __len__(self) -> int:
        """How many keys are held, those of the running second that have expired already included."""
        return len(self._facts)

    async def get(self, keys: Sequence[str]) -> list[bytes | None]:
        now = self._sweep()
        values = (self._value(key, now) for key in keys)
        return [value if isinstance(value, bytes) else None for value in values]

    async def put(self, values: Mapping[str, bytes], *, ttl_s: float) -> None:
        now = self._sweep()
        self._set(dict(values), now, _positive(ttl_s))

    async def claim(self, key: str, token: str, *, ttl_s: float, renew: bool = False) -> bool:
        now = self._sweep()
        held = self._value(key, now)
        if held is not None and not (renew and held == token.encode()):
            return False
        self._set({key: token.encode()}, now, _positive(ttl_s))
        return True

    async def hold(self, keys: Sequence[str], token: str, *, ttl_s: float) -> list[bool]:
        now = self._sweep()
        value = token.encode()
        held = [self._value(key, now) in (None, value) for key in keys]
        self._set({key: value for key, mine in zip(keys, held, strict=True) if mine}, now, _positive(ttl_s))
        return held

    async def release(self, key: str, token: str) -> None:
        now = self._sweep()
        if self._value(key, now) == token.encode():
            self._drop(key)

    async def swap(self, key: str, before: bytes | None, after: bytes | None, *, ttl_s: float) -> bool:
        now, ttl_s = self._sweep(), _positive(ttl_s)
        if self._value(key, now) != before:
            return False
        if after is not None:
            self._set({key: after}, now, ttl_s)
        elif before is not None:
            self._drop(key)
        return True

    async def rank(self, key: str, ranking: Sequence[Ranked], *, ttl_s: float) -> None:
        now = self._sweep()
        scores = {ranked.member: float(ranked.score) for ranked in ranking}
        if not all(map(math.isfinite, scores.values())):
            raise ValueError(f"a score of the ranking {key} is not finite")
        best_first = sorted((Ranked(*item) for item in scores.items()), key=lambda r: (-r.score, r.member))
        self._set({key: tuple(best_first)}, now, _positive(ttl_s))

    async def ranking(self, key: str, *, limit: int, offset: int = 0, descending: bool = True) -> list[Ranked]:
        if limit < 0 or offset < 0:
            raise ValueError("limit and offset cannot be negative")
        value = self._value(key, self._sweep())
        if not isinstance(value, tuple):
            return []
        ranking = value if descending else sorted(value, key=lambda r: (r.score, r.member))
        return list(ranking[offset : offset + limit])

    async def close(self) -> None:
        self._closed = True
        self._facts.clear()
        self._due.clear()
        self._seconds.clear()

    def _value(self, key: str, now: float) -> bytes | tuple[Ranked, ...] | None:
        fact = self._facts.get(key)
        return fact.value if fact is not None and fact.expires_s > now else None

    def _set(self, values: Mapping[str, bytes | tuple[Ranked, ...]], now: float, ttl_s: float) -> None:
        facts = self._facts
        if len(facts) + len(values) > self._max_keys and len(facts.keys() | values.keys()) > self._max_keys:
            raise Unavailable(f"the hot state is full ({self._max_keys} keys)")
        expires_s = now + ttl_s
        second = math.ceil(expires_s)
        for key, value in values.items():
            old = facts.get(key)
            if old is None:
                self._file(key, second)
            elif second < old.filed_s:
                self._due[old.filed_s].discard(key)
                self._file(key, second)
            filed_s = second if old is None else min(second, old.filed_s)
            facts[key] = _Fact(value, expires_s, filed_s)

    def _drop(self, key: str) -> None:
        fact = self._facts.pop(key)
        self._due[fact.filed_s].discard(key)

    def _file(self, key: str, second: int) -> None:
        due = self._due.get(second)
        if due is None:
            due = self._due[second] = set()
            heappush(self._seconds, second)
        due.add(key)

    def _sweep(self) -> float:
        if self._closed:
            raise Unavailable("the hot state is closed")
        now = self._monotonic()
        while self._seconds and self._seconds[0] <= now:
            for key in self._due.pop(heappop(self._seconds)):
                fact = self._facts[key]
                if fact.expires_s <= now:
                    del self._facts[key]
                else:
                    second = math.ceil(fact.expires_s)
                    self._facts[key] = replace(fact, filed_s=second)
                    self._file(key, second)
        return now


def _positive(ttl_s: float) -> float:
    if not (ttl_s > 0 and math.isfinite(ttl_s)):
        raise ValueError(f"ttl_s must be positive and finite, not {ttl_s}")
    return ttl_s
