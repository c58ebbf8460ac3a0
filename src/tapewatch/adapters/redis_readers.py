"""Reading the streams of a Redis server: each reader at its own place, all of them behind one waiting connection.

A reader that is behind fetches for itself. One that has come to its stream's end joins the watch, which waits for new
entries of all streams at once and hands them to its readers; it reads ahead of a slow one by a bounded number of
entries and then lets it go, to fetch for itself again.

A server may come back without its newest entries, and a reader may have seen some of them. It waits for a while for
their writer to put them back.
"""

import asyncio
import logging
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from typing import Any

from redis.exceptions import NoPermissionError

from tapewatch.adapters.redis_server import RedisServer
from tapewatch.adapters.redis_streams import NOTHING, TAIL, Row, id_of, key_of, position_of, rows_of
from tapewatch.errors import BadBatch, PositionLost, TapewatchError, Unavailable
from tapewatch.ports import Entry, Position

READ_ENTRIES = 32
"""What a reader that catches up fetches at once."""
AHEAD_ENTRIES = 16
"""What the watch has for a reader that does not take it, and of one stream at once."""
LOOK_S = 1.0
"""How often it is asked where streams end from which nothing comes."""
GATHER_S = 0.002
"""After entries came, the watch lets more of them come before it asks again."""
NUDGE_S = 0.003
UNNUDGED_S = 0.05
"""How long the watch waits at once where the server does not let it be woken."""

log = logging.getLogger(__name__)


class Reader:
    """Iterates over a stream. Not a generator, so that a cancelled `anext` keeps its place and may be asked again."""

    __slots__ = (
        "__weakref__",
        "_ahead_s",
        "_end",
        "_news",
        "_problem",
        "_reached",
        "_readers",
        "_rows",
        "key",
        "stream",
        "watched",
    )

    def __init__(self, readers: "Readers", stream: str, after: Position | None) -> None:
        self.stream = stream
        self.key = key_of(stream)
        self.watched = False
        self._readers = readers
        self._reached = after
        self._rows: deque[Row] = deque()
        self._news = asyncio.Event()
        self._end: Position | None = None
        self._ahead_s: float | None = None
        self._problem: TapewatchError | None = None

    def __aiter__(self) -> "Reader":
        return self

    async def __anext__(self) -> tuple[Position, Entry]:
        while not self._readers.closed:
            if not self._rows:
                await self._more()
                continue
            position, after, payload = self._rows[0]
            if self._reached is not None and after != self._reached:
                self._rows.clear()
                self._readers.leave(self)
                raise PositionLost(
                    f"{self.stream} holds nothing that follows {id_of(self._reached)} directly; "
                    f"its next entry is {id_of(position)}, after {id_of(after)}"
                )
            self._rows.popleft()
            self._reached = position
            self._ahead_s = None
            entry = self._readers.decoded(self.stream, position, payload)
            if entry is not None:
                return position, entry
        raise StopAsyncIteration

    @property
    def cursor(self) -> Position:
        """The newest entry that it has, taken or not."""
        return self._rows[-1].position if self._rows else self._reached or NOTHING

    @property
    def full(self) -> bool:
        return len(self._rows) >= AHEAD_ENTRIES

    def offer(self, rows: Iterable[Row]) -> None:
        cursor = self.cursor
        self._rows.extend(row for row in rows if row.position > cursor)
        self._end = None
        self._news.set()

    def ends(self, end: Position) -> None:
        """Where the stream ends now."""
        if self._reached is not None and end < self._reached:
            self._end = end
            self._news.set()
        else:
            self._ahead_s = None

    def fail(self, problem: TapewatchError | None) -> None:
        """The watch has ended."""
        self.watched = False
        self._problem = problem
        self._news.set()

    async def _more(self) -> None:
        """Entries, or a moment in which there were none."""
        problem, self._problem = self._problem, None
        if problem is not None:
            raise problem
        if not self.watched:
            self._rows.extend(await self._readers.fetch(self.key, self._reached or NOTHING))
            if self._rows or self._readers.closed:
                return
            self._readers.join(self)
        end, self._end = self._end, None
        if end is not None and self._reached is not None:
            now_s = time.monotonic()
            self._ahead_s = self._ahead_s or now_s
            if now_s - self._ahead_s >= self._readers.patience_s:
                self._ahead_s = None
                self._readers.leave(self)
                raise PositionLost(
                    f"{self.stream} ends at {id_of(end)}; the reader wanted what follows {id_of(self._reached)}"
                )
        await self._news.wait()
        self._news.clear()


class Readers:
    def __init__(self, server: RedisServer, *, patience_s: float, decode: Callable[[bytes], Entry]) -> None:
        """A reader that is ahead of its stream waits for `patience_s`."""
        self.unreadable = 0
        self.patience_s = patience_s
        self._server = server
        self._decode = decode
        self._watches: dict[int, _Watch] = {}
        self._fetching: set[asyncio.Task[list[Row]]] = set()

    @property
    def closed(self) -> bool:
        return self._server.closed

    def read(self, stream: str, after: Position | None) -> AsyncIterator[tuple[Position, Entry]]:
        return Reader(self, stream, after)

    async def newest(self, stream: str, limit: int) -> list[tuple[Position, Entry]]:
        async with self._server.speaking(key_of(stream)) as client:
            stored = await client.xrevrange(key_of(stream), count=limit)
        rows = reversed(rows_of(stored))
        entries = [(row.position, self.decoded(stream, row.position, row.payload)) for row in rows]
        return [(position, entry) for position, entry in entries if entry is not None]

    def decoded(self, stream: str, position: Position, payload: bytes) -> Entry | None:
        """None for what this release cannot read."""
        try:
            return self._decode(payload)
        except BadBatch as error:
            self.unreadable += 1
            log.error("%s %s cannot be read and is left out: %s", stream, id_of(position), error)  # noqa: TRY400
            return None

    async def fetch(self, key: str, after: Position) -> list[Row]:
        """What is there now. Empty on closing, too."""
        task = asyncio.ensure_future(self._fetch(key, after))
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

    def join(self, reader: Reader) -> None:
        place = self._server.place(reader.key)
        watch = self._watches.get(place)
        if watch is None:
            watch = self._watches[place] = _Watch(self._server, reader.key, look_s=min(LOOK_S, self.patience_s / 3))
        watch.join(reader)

    def leave(self, reader: Reader) -> None:
        watch = self._watches.get(self._server.place(reader.key))
        if watch is not None:
            watch.leave(reader)

    async def close(self) -> None:
        for watch in self._watches.values():
            await watch.close()
        fetching = tuple(self._fetching)
        for task in fetching:
            task.cancel()
        if fetching:
            await asyncio.wait(fetching)

    async def _fetch(self, key: str, after: Position) -> list[Row]:
        async with self._server.speaking(key) as client:
            found = await client.xread({key: id_of(after)}, count=READ_ENTRIES)
        return [row for _, stored in found for row in rows_of(stored)]


class _Watch:
    """One connection that waits for new entries of all streams that are kept at one place."""

    def __init__(self, server: RedisServer, key: str, *, look_s: float) -> None:
        """`key` is one of that place."""
        self._server = server
        self._key = key
        self._look_s = look_s
        # Weak, because a reader leaves by dropping its iterator, and nothing else tells us.
        self._members: weakref.WeakSet[Reader] = weakref.WeakSet()
        self._joined: set[str] = set()
        """Keys of readers that the connection does not wait for yet."""
        self._connection: int | None = None
        self._may_nudge = True
        self._running: asyncio.Task[None] | None = None
        self._nudging: asyncio.Task[None] | None = None

    def join(self, reader: Reader) -> None:
        reader.watched = True
        self._members.add(reader)
        self._joined.add(reader.key)
        if self._running is None or self._running.done():
            self._running = asyncio.get_running_loop().create_task(self._run(), name="redis readers")
        elif self._nudging is None or self._nudging.done():
            self._nudging = asyncio.get_running_loop().create_task(self._nudge(), name="redis readers' nudge")

    def leave(self, reader: Reader) -> None:
        reader.watched = False
        self._members.discard(reader)

    async def close(self) -> None:
        self._end(None)
        tasks = [task for task in (self._running, self._nudging) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _end(self, problem: TapewatchError | None) -> None:
        for reader in tuple(self._members):
            reader.fail(problem)
        self._members.clear()

    async def _run(self) -> None:
        while self._members:
            try:
                async with self._server.waiting(self._key) as client:
                    self._connection = await client.client_id()
                    await self._wait(client)
            except TapewatchError as error:
                self._end(error)
            finally:
                self._connection = None

    async def _wait(self, client: Any) -> None:
        quiet: set[str] = set()
        look_at_s = 0.0
        task = asyncio.current_task()
        while self._members and not (task is not None and task.cancelling()):  # the driver may swallow that
            joined, self._joined = self._joined, set()
            cursors: dict[str, Position] = {}
            for reader in tuple(self._members):
                if reader.full:
                    self.leave(reader)
                    continue
                cursor = reader.cursor
                cursors[reader.key] = min(cursors.get(reader.key, cursor), cursor)
            if not cursors:
                break
            now_s = time.monotonic()
            if now_s >= look_at_s:
                joined |= quiet
                quiet = set(cursors)
                look_at_s = now_s + self._look_s
            await self._look(client, cursors.keys() & joined)
            wait_s = min(self._look_s, self._server.timeout_s / 2, self._look_s if self._may_nudge else UNNUDGED_S)
            found = await client.xread(
                {key: id_of(cursor) for key, cursor in cursors.items()},
                count=AHEAD_ENTRIES,
                block=max(1, int(wait_s * 1_000)),
            )
            if not found:
                continue
            rows = {name.decode(): rows_of(stored) for name, stored in found}
            quiet -= rows.keys()
            for reader in tuple(self._members):
                # One that joined meanwhile may be behind what was asked for; it has its turn next.
                if reader.key in rows and reader.cursor >= cursors.get(reader.key, reader.cursor):
                    reader.offer(rows[reader.key])
            if len(cursors) > 1:
                await asyncio.sleep(GATHER_S)

    async def _look(self, client: Any, keys: Iterable[str]) -> None:
        """Tell readers where their streams end, in case that is before the place where they are."""
        asked = list(keys)
        if not asked:
            return
        async with client.pipeline(transaction=False) as pipeline:
            for key in asked:
                pipeline.eval(TAIL, 1, key)
            ends = dict(zip(asked, await pipeline.execute(), strict=True))
        for reader in tuple(self._members):
            if reader.key in ends:
                reader.ends(position_of(ends[reader.key]))

    async def _nudge(self) -> None:
        """Have the connection return, so that it asks again with those who joined."""
        with suppress(Unavailable):
            while self._joined and self._may_nudge and self._connection is not None:
                async with self._server.speaking(self._key) as client:
                    try:
                        await client.client_unblock(self._connection)
                    except NoPermissionError:
                        self._may_nudge = False
                await asyncio.sleep(NUDGE_S)
