"""The streams that this process writes on a Redis server: positions, fences, what to keep, and what to put back.

An append is one step with the look at the stream's end, so a retried one is refused instead of doubled, and a writer
that was overtaken, or whose server lost something, learns of it before anything new is there.

A writer remembers what it published lately. Where a server comes back without its newest entries (a crash before they
were on its disk, the promotion of a replica that lagged), it puts them back under their own ids.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

from tapewatch.adapters.redis_server import RedisServer
from tapewatch.adapters.redis_streams import (
    APPEND,
    NOTHING,
    PUT_BACK,
    READERS,
    TAIL,
    Row,
    end_of,
    id_of,
    key_of,
    position_of,
    rows_of,
)
from tapewatch.errors import ConfigError, LeaseLost, TapewatchError, Unavailable
from tapewatch.ports import Position

REMEMBERED_S = 120.0
REMEMBERED_BYTES = 8_000_000
"""What a writer can put back, of each stream."""
WATCH_S = 5.0
"""Between two looks at the ends of the streams that this process writes."""
FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 0.5
SEEN_S = 60.0
"""A reader that has said nothing for so long is taken for gone."""
ASK_S = 1.0
"""How often a writer that drops entries asks where the readers are."""
_SENT = 64
"""Payloads of unknown fate that a writer remembers for one position."""
PIECE_BYTES = 250_000
"""Bytes that are put back in one step, during which the server does nothing else."""

log = logging.getLogger(__name__)


class Limits(NamedTuple):
    """What a stream keeps: it drops its oldest entries beyond any of these."""

    entries: int
    bytes: int
    age_s: float


class _Held(NamedTuple):
    position: Position
    at_s: float
    size: int


class _Kept(NamedTuple):
    row: Row
    at_s: float


@dataclass(slots=True, kw_only=True)
class Writer:
    """What this process knows of a stream that it writes."""

    stream: str
    key: str
    epoch: int
    limits: Limits
    after: Position | None = None
    """The stream's last position; None before the server was asked."""
    sequence: int = 0
    """The last one of this epoch."""
    claimed: bool = True
    """Its epoch may begin behind whatever an earlier writer added meanwhile."""
    opened_s: float = 0.0
    held: deque[_Held] = field(default_factory=deque)
    """The entries of this writer that the stream keeps."""
    held_bytes: int = 0
    alone: bool = False
    """Nothing of earlier writers is kept any more."""
    kept: deque[_Kept] = field(default_factory=deque)
    """What can be put back, without a hole, up to `after`."""
    kept_bytes: int = 0
    lost: bool = False
    """The stream ends before `after`, and what is missing cannot be put back."""
    sent: deque[bytes] = field(default_factory=lambda: deque(maxlen=_SENT))
    """Digests of what went out for the next position and was not confirmed."""
    untold: tuple[bytes, Position] | None = None
    """The newest entry, when the call that published it raised because of another stream."""
    readers: dict[str, Position] = field(default_factory=dict)
    asked_s: float = float("-inf")
    overrun: set[str] = field(default_factory=set)
    """Readers whose entries were dropped, and of which the log knows."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def next(self) -> Position:
        return Position(self.epoch, self.sequence + 1)

    def open(self, last: Position, now_s: float) -> None:
        """Go on behind `last`. What was remembered is of use only if it ends there."""
        if last != self.after:
            self.kept.clear()
            self.kept_bytes = 0
        self.lost = False
        self.after = last
        self.sequence = last.sequence if last.epoch == self.epoch else 0
        self.opened_s = now_s

    def begin(self, *, claimed: bool) -> None:
        """A new epoch. It is greater than any that the stream has seen, and than this writer's own before."""
        known = max(self.epoch, 0 if self.after is None else self.after.epoch)
        self.epoch = max(time.time_ns() // 1_000_000, known + 1)
        self.sequence = 0
        self.claimed = claimed
        self.sent.clear()
        self.untold = None

    def make_room(self, size: int, now_s: float) -> list[Position]:
        """Let go of what the stream has no room for beside so many bytes."""
        gone = []
        oldest_s = now_s - self.limits.age_s
        while self.held and (
            len(self.held) >= self.limits.entries
            or self.held_bytes + size > self.limits.bytes
            or self.held[0].at_s < oldest_s
        ):
            position, _, bytes_ = self.held.popleft()
            self.held_bytes -= bytes_
            self.alone = True
            gone.append(position)
        self.alone = self.alone or self.opened_s < oldest_s
        return gone

    @property
    def trim(self) -> tuple[str, str]:
        """As XADD takes it. While there are entries of earlier writers, all are bounded by number."""
        if self.alone:
            return "MINID", id_of(self.held[0].position if self.held else self.next)
        return "MAXLEN", str(self.limits.entries)

    def took(self, payload: bytes, now_s: float) -> Position:
        position = self.next
        self.held.append(_Held(position, now_s, len(payload)))
        self.held_bytes += len(payload)
        self.kept.append(_Kept(Row(position, self.after or NOTHING, payload), now_s))
        self.kept_bytes += len(payload)
        while self.kept_bytes > REMEMBERED_BYTES or self.kept[0].at_s < now_s - REMEMBERED_S:
            self.kept_bytes -= len(self.kept.popleft().row.payload)
            if not self.kept:
                break
        self.after = position
        self.sequence = position.sequence
        self.sent.clear()
        return position

    def missing(self, end: Position) -> list[Row]:
        """What follows `end`, if all of it is remembered; else nothing."""
        rows = [kept.row for kept in self.kept if kept.row.position > end]
        return rows if rows and rows[0].after == end else []

    def refused(self, end: Position) -> LeaseLost:
        after = self.after or NOTHING
        why = "lost entries that it had confirmed" if end < after else "has another writer"
        return LeaseLost(f"{self.stream} {why}: it ends at {id_of(end)}, this writer's entries at {id_of(after)}")


@dataclass(slots=True)
class _Sending:
    writer: Writer
    payload: bytes
    digest: bytes


class Writers:
    def __init__(self, server: RedisServer, *, epoch: int, limits: Callable[[str], Limits]) -> None:
        """`epoch` is that of streams which are written without being taken over. `limits` are those of a topic."""
        self.trimmed_unread = 0
        self.put_back = 0
        self._server = server
        self._epoch = epoch
        self._limits = limits
        self._writers: dict[str, Writer] = {}
        self._doubt = asyncio.Event()
        server.doubted = self._doubt.set
        self._watching: asyncio.Task[None] | None = None

    async def publish(self, payloads: Mapping[str, bytes]) -> dict[str, Position]:
        """All in one round trip, if nothing is in the way."""
        positions: dict[str, Position] = {}
        async with AsyncExitStack() as locks:
            sending = []
            for stream in sorted(payloads):  # in one order, so that no two calls wait for each other
                payload = payloads[stream]
                digest = blake2b(payload, digest_size=16).digest()
                sending.append(_Sending(self._writer(stream), payload, digest))
                await locks.enter_async_context(sending[-1].writer.lock)
            try:
                await self._publish(sending, positions)
            except BaseException:
                for each in sending:
                    if each.writer.stream in positions:
                        each.writer.untold = each.digest, positions[each.writer.stream]
                raise
        return {stream: positions[stream] for stream in payloads}

    async def take_over(self, stream: str) -> None:
        writer = self._writer(stream)
        async with writer.lock:
            (last,) = await self.ends([writer.key])
            writer.held.clear()
            writer.held_bytes = 0
            writer.alone = False
            writer.kept.clear()
            writer.kept_bytes = 0
            writer.after = max(last, writer.after or NOTHING)  # the new epoch is later than what was lost, too
            writer.begin(claimed=True)
            writer.open(last, time.monotonic())
        self._watch()

    async def ends(self, keys: Sequence[str]) -> list[Position]:
        """The last position that each stream ever took; `(0, 0)` for none."""
        return [position_of(last) for last in await self._server.each(TAIL, [(key,) for key in keys])]

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching})

    async def _publish(self, sending: Iterable[_Sending], positions: dict[str, Position]) -> None:
        problems: list[TapewatchError] = []
        waiting: list[_Sending] = []
        for each in sending:
            untold, each.writer.untold = each.writer.untold, None
            if untold is not None and untold[0] == each.digest:
                positions[each.writer.stream] = untold[1]
            else:
                waiting.append(each)
        await self._open([each.writer for each in waiting if each.writer.after is None])
        for each in waiting:
            if each.writer.sent and each.digest not in each.writer.sent:
                await self._part_from_given_up(each.writer)
        while waiting:
            again = []
            for each, reply in zip(waiting, await self._append(waiting), strict=True):
                writer = each.writer
                try:
                    if isinstance(reply, TapewatchError):
                        raise reply
                    if reply is None:
                        positions[writer.stream] = writer.took(each.payload, time.monotonic())
                    elif (position := await self._settled(each, reply)) is not None:
                        positions[writer.stream] = position
                    else:
                        again.append(each)
                except (LeaseLost, ConfigError, Unavailable) as error:
                    problems.append(error)
            waiting = again
        if problems:
            raise next((problem for problem in problems if not isinstance(problem, Unavailable)), problems[0])

    async def _open(self, writers: Sequence[Writer]) -> None:
        if not writers:
            return
        for writer, last in zip(writers, await self.ends([writer.key for writer in writers]), strict=True):
            if last.epoch > writer.epoch:
                raise LeaseLost(
                    f"{writer.stream} has another writer: it ends at {id_of(last)}, this one is of {writer.epoch}"
                )
            writer.open(last, time.monotonic())
        self._watch()

    async def _append(self, sending: Sequence[_Sending]) -> list[Position | TapewatchError | None]:
        """Of each None when the server took it, else the position at which the stream ends, or what is wrong."""
        now_s = time.monotonic()
        gone = [(each.writer, each.writer.make_room(len(each.payload), now_s)) for each in sending]
        await self._look_out_for_readers([(writer, positions) for writer, positions in gone if positions])
        calls = []
        for each in sending:
            writer = each.writer
            if each.digest not in writer.sent:
                writer.sent.append(each.digest)
            calls.append((writer.key, id_of(writer.next), id_of(writer.after or NOTHING), each.payload, *writer.trim))
        replies = await self._server.each(APPEND, calls, problems=True)
        return [reply if isinstance(reply, TapewatchError) else end_of(reply) for reply in replies]

    async def _settled(self, each: _Sending, end: Position) -> Position | None:
        """The server did not take it, because the stream ends elsewhere. Where it is after all; None to try again."""
        writer = each.writer
        if end == writer.next:
            stored = await self._stored(writer.key, end)
            if stored is None or blake2b(stored, digest_size=16).digest() not in writer.sent:
                raise writer.refused(end)
            position = writer.took(stored, time.monotonic())
            return position if stored == each.payload else None
        if not writer.sequence and end.epoch < writer.epoch and writer.claimed:
            writer.open(end, time.monotonic())  # the writer before this one had one more
            return None
        await self._mend(writer, end)
        return None

    async def _part_from_given_up(self, writer: Writer) -> None:
        """Something went out for the next position, and the caller goes on with something else. If it is in the log, it
        stays. If not, some reader may still have seen it before the server lost it: so nothing else takes its position.
        """
        stored = await self._stored(writer.key, writer.next)
        if stored is not None and blake2b(stored, digest_size=16).digest() in writer.sent:
            writer.took(stored, time.monotonic())
        else:
            writer.begin(claimed=False)

    async def _mend(self, writer: Writer, end: Position) -> None:
        """Put back what the stream lost; `LeaseLost` where that cannot be done."""
        while writer.after is not None and end < writer.after:
            missing = writer.missing(end)
            if not missing:
                raise writer.refused(end)
            piece: list[str | bytes] = []
            size = 0
            count = 0
            for row in missing:
                piece += [id_of(row.position), row.payload]
                size += len(row.payload)
                count += 1
                if size >= PIECE_BYTES:
                    break
            (reply,) = await self._server.each(PUT_BACK, [(writer.key, id_of(end), *piece)])
            now = end_of(reply)
            if now is None:
                self.put_back += count
                log.warning("%s had lost its newest entries: %d of them are put back", writer.stream, count)
                end = missing[count - 1].position
            elif now > end:
                (end,) = await self.ends([writer.key])
                if end > (writer.after or NOTHING):
                    raise writer.refused(end)
            else:
                end = now
        if writer.after is not None and end > writer.after:
            raise writer.refused(end)

    async def _stored(self, key: str, position: Position) -> bytes | None:
        async with self._server.speaking(key) as client:
            rows = rows_of(await client.xrange(key, id_of(position), id_of(position)))
        return rows[0].payload if rows else None

    def _watch(self) -> None:
        if self._watching is None or self._watching.done():
            self._watching = asyncio.get_running_loop().create_task(self._keep_watch(), name="redis writers")

    async def _keep_watch(self) -> None:
        """Mend streams that nothing is published to for the moment, too."""
        wait_s = FIRST_WAIT_S
        while True:
            if not self._doubt.is_set():
                try:
                    async with asyncio.timeout(WATCH_S):
                        await self._doubt.wait()
                except TimeoutError:
                    pass
            self._doubt.clear()
            try:
                await self._look_after(list(self._writers.values()))
                wait_s = FIRST_WAIT_S
            except ConfigError as error:
                log.error("the streams that this process writes cannot be looked after: %s", error)  # noqa: TRY400
                await asyncio.sleep(WATCH_S)
            except Unavailable:
                self._doubt.set()
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    async def _look_after(self, writers: Sequence[Writer]) -> None:
        """A stream whose writer is at work is looked after by that."""
        quiet = [writer for writer in writers if writer.after and not writer.lost and not writer.lock.locked()]
        known = [writer.after for writer in quiet]
        replies = await self._server.each(TAIL, [(writer.key,) for writer in quiet], problems=True)
        problems = [reply for reply in replies if isinstance(reply, TapewatchError)]
        for writer, after, reply in zip(quiet, known, replies, strict=True):
            end = None if isinstance(reply, TapewatchError) else position_of(reply)
            if end is None or after is None or end >= after:
                continue
            async with writer.lock:
                try:
                    await self._mend(writer, end)
                except LeaseLost as error:
                    writer.lost = True
                    log.warning("%s", error)
        if problems:
            raise problems[0]

    async def _look_out_for_readers(self, gone: Sequence[tuple[Writer, Sequence[Position]]]) -> None:
        """Say so when entries go that a reader has not reached. Where it is, is asked again before that is said."""
        now_s = time.monotonic()
        await self._ask_for_readers([writer for writer, _ in gone if writer.asked_s < now_s - ASK_S], now_s)
        suspects = [writer for writer, positions in gone if _behind(writer, positions[-1]) - writer.overrun]
        await self._ask_for_readers([writer for writer in suspects if writer.asked_s < now_s], now_s)
        for writer, positions in gone:
            self.trimmed_unread += sum(1 for position in positions if _behind(writer, position))
            for reader in sorted(_behind(writer, positions[-1]) - writer.overrun):
                writer.overrun.add(reader)
                log.error("%s drops entries that %s has not reached", writer.stream, reader)

    async def _ask_for_readers(self, writers: Sequence[Writer], now_s: float) -> None:
        calls = [(writer.key, str(int(SEEN_S * 1_000))) for writer in writers]
        for writer, readers in zip(writers, await self._server.each(READERS, calls), strict=True):
            writer.readers = {name.decode(): position_of(id_) for name, id_ in readers}
            writer.overrun &= writer.readers.keys()
            writer.asked_s = now_s

    def _writer(self, stream: str) -> Writer:
        writer = self._writers.get(stream)
        if writer is None:
            limits = self._limits(stream.partition(":")[0])
            writer = Writer(stream=stream, key=key_of(stream), epoch=self._epoch, limits=limits)
            self._writers[stream] = writer
        return writer


def _behind(writer: Writer, position: Position) -> set[str]:
    return {reader for reader, reached in writer.readers.items() if reached < position}
