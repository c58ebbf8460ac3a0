"""A bus on a Redis server (7.0 or newer, or Valkey): what separate services share.

Owns the streams, one per topic and partition. Entries travel as `tapewatch.wire` writes them. It keeps no copy: what
the server has forgotten is lost to readers.

An entry's id is its position, so the server refuses a retried write instead of doubling it, and an older writer. Its
field `after` holds the position before it, so a reader sees each hole, across epochs too; a writer's first entry is
appended in one step with the look at the stream's end.

What happens when something is full: a stream drops its oldest entries, by their number or their bytes, and readers
that needed one get `PositionLost`. A full server (`maxmemory`) refuses with `Unavailable`.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

from redis.exceptions import ResponseError

from tapewatch import wire
from tapewatch.adapters.redis_notices import RedisNotices
from tapewatch.adapters.redis_server import CONNECT_TIMEOUT_S, TIMEOUT_S, RedisServer
from tapewatch.errors import BadBatch, LeaseLost, PositionLost, Unavailable
from tapewatch.ports import Entry, Position

ENTRIES = 16_384
BYTES = 16_000_000
"""Of a stream's entries as written: 64 partitions of ticks take at most a gigabyte of the server's memory."""
ENTRIES_BY_TOPIC: Mapping[str, int] = {"board": 2, "bars.finalized": 512}
NOTICES = 1_024
READ_ENTRIES = 32
"""What a reader that catches up fetches at once."""
_SENT = 64
"""Payloads of unknown fate that a writer remembers for one position."""

_NOTHING = Position(0, 0)
_LAST = """
local last = '0-0'
if redis.call('EXISTS', KEYS[1]) == 1 then
  local info = redis.call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then last = info[i + 1] end
  end
end
"""
_TAIL = _LAST + "return last"
_OPEN = (
    _LAST
    + """
if last ~= ARGV[2] then return last end
redis.call('XADD', KEYS[1], ARGV[4], '~', ARGV[5], ARGV[1], 'after', ARGV[2], 'entry', ARGV[3])
return false
"""
)
log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class _Writer:
    """What this process knows of a stream that it writes."""

    key: str
    epoch: int
    capacity: int
    capacity_bytes: int
    after: Position | None = None
    """The stream's last position; None before the server was asked."""
    sequence: int = 0
    """The last one of this epoch."""
    sizes: deque[int] = field(default_factory=deque)
    held_bytes: int = 0
    overflowed: bool = False
    sent: deque[bytes] = field(default_factory=lambda: deque(maxlen=_SENT))
    """Digests of what went out for the next position and was not confirmed."""
    doubted: bool = False
    """The server was away, and may have come back without its newest entries."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def next(self) -> Position:
        return Position(self.epoch, self.sequence + 1)

    def open(self, last: Position) -> None:
        self.after = last
        self.sequence = last.sequence if last.epoch == self.epoch else 0

    def make_room(self, size: int) -> tuple[str, str]:
        """How XADD trims. Until this writer alone fills the stream, entries of earlier epochs are bounded by number."""
        while self.sizes and (len(self.sizes) >= self.capacity or self.held_bytes + size > self.capacity_bytes):
            self.held_bytes -= self.sizes.popleft()
            self.overflowed = True
        if self.overflowed:
            return "MINID", _id(Position(self.epoch, self.next.sequence - len(self.sizes)))
        return "MAXLEN", str(self.capacity)

    def took(self, size: int) -> None:
        self.after = self.next
        self.sequence += 1
        self.sizes.append(size)
        self.held_bytes += size
        self.sent.clear()


class _Reader:
    """Iterates over a stream. Not a generator, so that a cancelled `anext` keeps its place and may be asked again."""

    __slots__ = ("_bus", "_fetched", "_key", "_looked", "_reached", "_stream")

    def __init__(self, bus: "RedisBus", stream: str, after: Position | None) -> None:
        self._bus = bus
        self._stream = stream
        self._key = _key(stream)
        self._reached = after
        self._looked = False
        self._fetched: deque[tuple[Position, Position, bytes]] = deque()

    def __aiter__(self) -> "_Reader":
        return self

    async def __anext__(self) -> tuple[Position, Entry]:
        while not self._bus.closed:
            if not self._fetched:
                try:
                    await self._fetch()
                except BaseException:
                    self._looked = False
                    raise
                continue
            position, after, payload = self._fetched[0]
            if self._reached is not None and after != self._reached:
                raise PositionLost(
                    f"{self._stream} holds nothing that follows {_id(self._reached)} directly; "
                    f"its next entry is {_id(position)}, after {_id(after)}"
                )
            self._fetched.popleft()
            self._reached = position
            try:
                return position, self._bus.decoded(payload)
            except BadBatch as error:
                self._bus.unreadable += 1
                log.error("%s %s cannot be read and is left out: %s", self._stream, _id(position), error)  # noqa: TRY400
        raise StopAsyncIteration

    async def _fetch(self) -> None:
        """Wait only after a look at the stream's end: a server that lost entries may never reach the position."""
        self._fetched.extend(await self._bus.fetch(self._key, self._reached or _NOTHING, wait=self._looked))
        if self._fetched or self._bus.closed:
            return
        if self._reached is not None:
            last = await self._bus.last(self._key)
            if last < self._reached:
                raise PositionLost(
                    f"{self._stream} ends at {_id(last)}; the reader wanted what follows {_id(self._reached)}"
                )
        self._looked = True


class RedisBus:
    """`Bus` on Redis. `epoch` rises from one life of a writer to the next: `LeaseLost` from `publish` says that a
    newer writer is there, or that the server lost entries which it had confirmed, and that this one must stop.

    Listening begins within one round trip of the call. What this bus notifies after `listen` goes out after the
    subscription; a notice from elsewhere may be missed before it.
    """

    def __init__(
        self,
        url: str,
        *,
        epoch: int,
        capacity: int = ENTRIES,
        capacity_bytes: int = BYTES,
        capacity_by_topic: Mapping[str, int] = ENTRIES_BY_TOPIC,
        notices: int = NOTICES,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        timeout_s: float = TIMEOUT_S,
        encode: Callable[[Entry], bytes] = wire.encode,
        decode: Callable[[bytes], Entry] = wire.decode,
    ) -> None:
        if min(capacity, notices, *capacity_by_topic.values()) < 1:
            raise ValueError("a bus keeps at least one entry and one notice")
        if epoch < 1:
            raise ValueError(f"an epoch is 1 or more, not {epoch}")
        self.unreadable = 0
        """Entries that readers left out, because this release cannot decode them."""
        self.decoded = decode
        self._encode = encode
        self._epoch = epoch
        self._capacity = capacity
        self._capacity_bytes = capacity_bytes
        self._capacity_by_topic = dict(capacity_by_topic)
        self._server = RedisServer(url, what="the bus", connect_timeout_s=connect_timeout_s, timeout_s=timeout_s)
        self._notices = RedisNotices(self._server, capacity=notices, silence_s=10 * timeout_s)
        self._writers: dict[str, _Writer] = {}
        self._fetching: set[asyncio.Task[list[tuple[Position, Position, bytes]]]] = set()

    @property
    def closed(self) -> bool:
        return self._server.closed

    @property
    def notices_dropped(self) -> int:
        return self._notices.dropped

    async def publish(self, stream: str, entry: Entry) -> Position:
        payload = self._encode(entry)
        digest = blake2b(payload, digest_size=16).digest()
        writer = self._writer(stream)
        async with writer.lock:
            if writer.doubted and writer.after is not None:
                last = await self.last(writer.key)
                if last < writer.after:
                    raise _lost(stream, last, writer.after)
            writer.doubted = False
            if writer.after is None:
                last = await self.last(writer.key)
                if last.epoch > self._epoch:
                    raise LeaseLost(
                        f"{stream} has another writer: it ends at {_id(last)}, this one is of {self._epoch}"
                    )
                writer.open(last)
            while True:
                if digest not in writer.sent:
                    writer.sent.append(digest)
                position, after = writer.next, writer.after or _NOTHING
                end = await self._append(writer, position, after, payload)
                if end is None:
                    writer.took(len(payload))
                    return position
                if end.epoch < self._epoch and not writer.sequence:
                    writer.open(end)  # the writer before this one had one more
                    continue
                stored = await self._stored(writer.key, position) if end == position else None
                if stored is None or blake2b(stored, digest_size=16).digest() not in writer.sent:
                    raise _lost(stream, end, after)
                writer.took(len(stored))
                if stored == payload:
                    return position

    def read(self, stream: str, after: Position | None = None) -> AsyncIterator[tuple[Position, Entry]]:
        return _Reader(self, stream, after)

    async def tail(self, stream: str) -> Position | None:
        last = await self.last(_key(stream))
        return None if last == _NOTHING else last

    async def notify(self, channel: str, payload: bytes) -> None:
        await self._notices.settled()
        async with self._server.speaking() as client:
            await client.publish(channel, payload)

    def listen(self, channel: str) -> AsyncIterator[bytes]:
        return self._notices.listen(channel)

    async def close(self) -> None:
        await self._notices.close()
        await self._server.close()
        for task in tuple(self._fetching):
            task.cancel()

    async def last(self, key: str) -> Position:
        """The last position that the stream ever took; `(0, 0)` for none."""
        async with self._server.speaking() as client:
            return _position(await client.eval(_TAIL, 1, key))

    async def fetch(self, key: str, after: Position, *, wait: bool) -> list[tuple[Position, Position, bytes]]:
        """Positions, the positions before them, and payloads. Empty when there is none for a while, or on closing."""
        task = asyncio.ensure_future(self._fetch(key, after, wait=wait))
        self._fetching.add(task)
        try:
            return await task
        except Unavailable:
            if self.closed:
                return []
            raise
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if self.closed and not (current is not None and current.cancelling()):
                return []
            raise
        finally:
            self._fetching.discard(task)

    async def _fetch(self, key: str, after: Position, *, wait: bool) -> list[tuple[Position, Position, bytes]]:
        block_ms = int(self._server.timeout_s * 500) if wait else None
        async with self._server.speaking() as client:
            found = await client.xread({key: _id(after)}, count=READ_ENTRIES, block=block_ms)
        return [(_position(id_), _position(body[b"after"]), body[b"entry"]) for _, rows in found for id_, body in rows]

    async def _append(self, writer: _Writer, position: Position, after: Position, payload: bytes) -> Position | None:
        """None when the server took it, else the position at which the stream ends."""
        trim = writer.make_room(len(payload))
        given = (_id(position), "after", _id(after), "entry", payload)
        try:
            async with self._server.speaking() as client:
                if not writer.sequence:
                    end = await client.eval(_OPEN, 1, writer.key, _id(position), _id(after), payload, *trim)
                    return None if end is None else _position(end)
                try:
                    taken = await client.execute_command(
                        "XADD", writer.key, "NOMKSTREAM", trim[0], "~", trim[1], *given
                    )
                except ResponseError as error:
                    if "equal or smaller" not in str(error):
                        raise
                    return _position(await client.eval(_TAIL, 1, writer.key))
        except Unavailable:
            for each in self._writers.values():
                each.doubted = True
            raise
        return None if taken is not None else _NOTHING

    async def _stored(self, key: str, position: Position) -> bytes | None:
        async with self._server.speaking() as client:
            rows = await client.xrange(key, _id(position), _id(position))
        return rows[0][1][b"entry"] if rows else None

    def _writer(self, stream: str) -> _Writer:
        writer = self._writers.get(stream)
        if writer is None:
            writer = self._writers[stream] = _Writer(
                key=_key(stream),
                epoch=self._epoch,
                capacity=self._capacity_by_topic.get(stream.partition(":")[0], self._capacity),
                capacity_bytes=self._capacity_bytes,
            )
        return writer


def _key(stream: str) -> str:
    """``ticks:0`` is kept under ``ticks:{0}``: in a Cluster all streams of a partition live together."""
    topic, colon, partition = stream.rpartition(":")
    return f"{topic}:{{{partition}}}" if colon else stream


def _lost(stream: str, end: Position, after: Position) -> LeaseLost:
    why = "lost entries that it had confirmed" if end < after else "has another writer"
    return LeaseLost(f"{stream} {why}: it ends at {_id(end)}, this writer's entries at {_id(after)}")


def _id(position: Position) -> str:
    return f"{position.epoch}-{position.sequence}"


def _position(id_: bytes) -> Position:
    epoch, _, sequence = id_.partition(b"-")
    return Position(int(epoch), int(sequence))
