"""A bus on a Redis server (7.0 or newer, or Valkey): what separate services share.

Owns the streams, one per topic and partition. Entries travel as `tapewatch.wire` writes them. What the server has
forgotten, and no writer of it remembers, is lost to readers.

An entry's id is its position, so the server refuses a retried write instead of doubling it, and an older writer. Its
field `after` holds the position before it, so a reader sees each hole, across epochs too.

What happens when something is full: a stream drops its oldest entries, by their age, their number or their bytes, and
readers that needed one get `PositionLost`; those that said how far they came are counted in `trimmed_unread`. A full
server (`maxmemory`) refuses with `Unavailable`.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from tapewatch import wire
from tapewatch.adapters.redis_notices import RedisNotices
from tapewatch.adapters.redis_readers import Readers
from tapewatch.adapters.redis_server import CONNECT_TIMEOUT_S, TIMEOUT_S, RedisServer
from tapewatch.adapters.redis_streams import LAG, NOTHING, REACHED, id_of, key_of
from tapewatch.adapters.redis_writers import Limits, Writers
from tapewatch.ports import Entry, Position

ENTRIES = 65_536
BYTES = 16_000_000
"""Of a stream's entries as written: 64 partitions of ticks take at most a gigabyte of the server's memory."""
ENTRIES_BY_TOPIC: Mapping[str, int] = {"board": 2, "bars.finalized": 512}
AGE_S = 3_600.0
AGE_S_BY_TOPIC: Mapping[str, float] = {"ticks": 900.0, "board": 60.0, "bars.finalized": 28_800.0}
"""Older entries go when new ones come: a quarter of an hour of tape, a day of bars and an hour of the rest."""
NOTICES = 1_024
PATIENCE_S = 15.0
"""How long a reader waits for what it has seen to come back."""


class RedisBus:
    """`Bus` on Redis. `epoch` is that of streams which are written without being taken over: a stream that has a later
    one refuses with `LeaseLost`.

    Listening begins within one round trip of the call. What this bus notifies after `listen` goes out after the
    subscription; a notice from elsewhere may be missed before it.
    """

    def __init__(
        self,
        url: str,
        *,
        epoch: int = 1,
        capacity: int = ENTRIES,
        capacity_bytes: int = BYTES,
        capacity_by_topic: Mapping[str, int] = ENTRIES_BY_TOPIC,
        age_s_by_topic: Mapping[str, float] = AGE_S_BY_TOPIC,
        notices: int = NOTICES,
        patience_s: float = PATIENCE_S,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        timeout_s: float = TIMEOUT_S,
        encode: Callable[[Entry], bytes] = wire.encode,
        decode: Callable[[bytes], Entry] = wire.decode,
    ) -> None:
        if min(capacity, notices, *capacity_by_topic.values()) < 1:
            raise ValueError("a bus keeps at least one entry and one notice")
        if epoch < 1:
            raise ValueError(f"an epoch is 1 or more, not {epoch}")
        self._encode = encode
        self._server = RedisServer(url, what="the bus", connect_timeout_s=connect_timeout_s, timeout_s=timeout_s)
        self._notices = RedisNotices(self._server, capacity=notices, silence_s=10 * timeout_s)
        self._readers = Readers(self._server, patience_s=patience_s, decode=decode)
        self._writers = Writers(
            self._server,
            epoch=epoch,
            limits=lambda topic: Limits(
                capacity_by_topic.get(topic, capacity), capacity_bytes, age_s_by_topic.get(topic, AGE_S)
            ),
        )

    @property
    def closed(self) -> bool:
        return self._server.closed

    @property
    def notices_dropped(self) -> int:
        return self._notices.dropped

    @property
    def unreadable(self) -> int:
        """Entries that readers left out, because this release cannot decode them."""
        return self._readers.unreadable

    @property
    def trimmed_unread(self) -> int:
        """Entries that were dropped while a reader had not reached them."""
        return self._writers.trimmed_unread

    @property
    def lost(self) -> Mapping[str, int]:
        return {"could not be read": self.unreadable, "went before they were read": self.trimmed_unread}

    @property
    def put_back(self) -> int:
        """Entries that the server had lost, and has again."""
        return self._writers.put_back

    async def publish(self, stream: str, entry: Entry) -> Position:
        return (await self._writers.publish({stream: self._encode(entry)}))[stream]

    async def publish_all(self, entries: Mapping[str, Entry]) -> dict[str, Position]:
        return await self._writers.publish({stream: self._encode(entry) for stream, entry in entries.items()})

    def read(self, stream: str, after: Position | None = None) -> AsyncIterator[tuple[Position, Entry]]:
        return self._readers.read(stream, after)

    async def take_over(self, stream: str) -> None:
        await self._writers.take_over(stream)

    async def tail(self, stream: str) -> Position | None:
        (last,) = await self._writers.ends([key_of(stream)])
        return None if last == NOTHING else last

    async def newest(self, stream: str, limit: int) -> list[tuple[Position, Entry]]:
        return await self._readers.newest(stream, limit)

    async def reached(self, reader: str, positions: Mapping[str, Position]) -> None:
        calls = [(key_of(stream), reader, id_of(position)) for stream, position in positions.items()]
        await self._server.each(REACHED, calls)

    async def lag(self, reader: str, streams: Sequence[str]) -> dict[str, int]:
        lags = await self._server.each(LAG, [(key_of(stream), reader) for stream in streams])
        return {stream: int(lag) for stream, lag in zip(streams, lags, strict=True) if lag is not None}

    async def notify(self, channel: str, payload: bytes) -> None:
        await self._notices.settled()
        async with self._server.speaking() as client:
            await client.publish(channel, payload)

    def listen(self, channel: str) -> AsyncIterator[bytes]:
        return self._notices.listen(channel)

    async def close(self) -> None:
        self._server.shut()
        await self._notices.close()
        await self._writers.close()
        await self._readers.close()
        await self._server.close()
