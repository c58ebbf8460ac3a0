"""How the reader of one stream takes up where it, or its predecessor, ended.

The reader is a pure function of its stream. Now and then its whole state is frozen and stored together with the
position that it belongs to, after everything that came of the entries up to there is stored or published. Whoever takes
over thaws it and reads on from there. What it then says a second time is what it said before, and whoever hears it
knows it.

Without a store nothing is kept and everything retained is read: what a reader does whose stream dies with it.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from enum import Enum
from struct import Struct
from typing import Any, Literal, TypeVar

import structlog

from tapewatch.engine.columns import SECOND_NS, Batch
from tapewatch.errors import Invalid, PositionLost, Unavailable
from tapewatch.patience import FIRST_WAIT_S, patiently, pause
from tapewatch.ports import Bus, Clock, Entry, Position, Store
from tapewatch.telemetry import ERRORS_TOTAL

KEEP_S = 30.0
"""A state is kept so often: as much tape is read again when its reader dies."""
LAST_KEEP_S = 3.0
MOST_STATE_BYTES = 2**31
_HEAD = Struct("<QQ")
"""Of a stored state: its length before it was compressed, and the arrival of the newest batch in it."""

log = structlog.get_logger("tapewatch")
T = TypeVar("T")

Phase = Literal["starting", "restoring", "replaying", "running"]


class Hole(Enum):
    """What stands among the entries where there is a hole in the tape."""

    LOST = "lost"
    """Entries were there, and are not any more."""
    STOPPED = "stopped"
    """Nobody wrote any: the process that wrote and read them had stopped."""


class Recovery:
    """`begin`, then `entries`; the reader sets `position` when it has done an entry, and calls `keep` when one is
    `due`.
    """

    def __init__(
        self,
        reader: str,
        stream: str,
        *,
        bus: Bus,
        clock: Clock,
        store: Store | None = None,
        keep_s: float = KEEP_S,
        alone: bool = False,
    ) -> None:
        """`alone`: the bus lives and dies with this process. Then a state is kept when it ends, and read when the next
        one begins.
        """
        self.reader, self.stream = reader, stream
        self.position: Position | None = None
        """The newest entry that was done."""
        self.owner: int | None = None
        """The token that the reader's writes to the store name."""
        self._bus, self._clock, self._store = bus, clock, store
        self._keep_ns = round(keep_s * SECOND_NS)
        self._alone, self._had_stopped = alone, False
        self._next_keep_ns = 0
        self._keeping = False
        self._received_ns = 0
        """Arrival of the newest batch that was done: one that arrived no later is put onto the tape again."""
        self._target: Position | None = None
        self._phase: Phase = "starting"

    @property
    def phase(self) -> Phase:
        """Replaying: what was on the stream when it took over is not done yet."""
        if self._phase == "replaying" and not self.catches_up(self.position or Position(0, 0)):
            self._phase = "running"
        return self._phase

    def catches_up(self, position: Position) -> bool:
        """More stands behind this entry that was on the stream when it took over."""
        return self._target is not None and position < self._target

    async def begin(self, thaw: Callable[[bytes], T] | None = None) -> T | None:
        """Take over: what `thaw` makes of the state at `position`. Without one, or with one that this release cannot
        read, everything retained is read again.
        """
        if self._store is None:
            self._phase = "running"
            return None
        self._phase = "restoring"
        store = self._store
        saved = await patiently(lambda: store.take_over(self.reader), clock=self._clock, where=self._where("begin"))
        self._target = await patiently(
            lambda: self._bus.tail(self.stream), clock=self._clock, where=self._where("begin")
        )
        self.owner, self.position = saved.owner, saved.position
        self._delay()
        restored = None
        if thaw is not None:
            restored = await asyncio.to_thread(self._thawed, saved.state, thaw)
            if restored is None:
                self.position = None
        if self._alone:
            self.position, self._had_stopped = None, restored is not None
        self._phase = "replaying"
        return restored

    def _thawed(self, packed: bytes | None, thaw: Callable[[bytes], T]) -> T | None:
        if packed is None:
            return None
        try:
            state, self._received_ns = _expanded(packed)
            return thaw(state)
        except Invalid as error:
            log.warning(
                "a kept state cannot be read; beginning with what the tape retains", reader=self.reader, why=str(error)
            )
            return None

    async def entries(self, leave: asyncio.Event | None = None) -> AsyncIterator[tuple[Position, Entry] | Hole]:
        """What follows `position`, then live, until the bus closes or `leave` is set.

        Where the position is lost, what is retained is read again, and what of it was done before is left out.
        """
        leaving: asyncio.Future[Any] | None = None if leave is None else asyncio.ensure_future(leave.wait())
        wait_s = FIRST_WAIT_S
        reader = self._bus.read(self.stream, self.position)
        again: _Again | None = None
        try:
            if self._had_stopped:
                yield Hole.STOPPED
            while True:
                try:
                    found = await _next(reader, leaving)
                except PositionLost as error:
                    ERRORS_TOTAL.labels(where=self._where("read")).inc()
                    log.warning("entries lost", reader=self.reader, why=str(error))
                    self.position = None
                    reader = self._bus.read(self.stream, None)
                    again = _Again(self._received_ns)
                except Unavailable as error:
                    ERRORS_TOTAL.labels(where=self._where("read")).inc()
                    if wait_s == FIRST_WAIT_S:
                        log.warning("waiting", where=self._where("read"), why=str(error))
                    wait_s = await pause(self._clock, wait_s)
                else:
                    if found is None:
                        return
                    wait_s = FIRST_WAIT_S
                    news = [found] if again is None else again.sift(found)
                    if news:
                        again = None
                    for item in news:
                        if not isinstance(item, Hole) and isinstance(item[1], Batch):
                            if 0 < item[1].received_ns <= self._received_ns:
                                self.position = item[0]
                                continue
                            self._received_ns = max(self._received_ns, item[1].received_ns)
                        yield item
        finally:
            if leaving is not None:
                leaving.cancel()

    @property
    def due(self) -> bool:
        """It is time to keep the state."""
        if self._store is None or self._alone or self._keeping:
            return False
        return self._clock.now_ns() >= self._next_keep_ns

    def keep(self, state: bytes, *, after: Callable[[], Awaitable[None]] | None = None) -> Coroutine[None, None, None]:
        """Begin to store the state of the present `position`: `after` stores what came of the entries before it. A
        store that is away is asked again when the next state is due.
        """
        self._keeping = True
        return self._keep(state, self.position, self._received_ns, after)

    async def _keep(
        self, state: bytes, position: Position | None, received_ns: int, after: Callable[[], Awaitable[None]] | None
    ) -> None:
        try:
            packed = await asyncio.to_thread(_compressed, state, received_ns)
            if after is not None:
                await after()
            if self._store is None or position is None:
                return
            await self._store.save_state(self.reader, packed, position=position, owner=self.owner)
        except Unavailable:
            ERRORS_TOTAL.labels(where=self._where("keep")).inc()
        finally:
            self._keeping = False
            self._delay()

    async def leave(self, state: Callable[[], bytes], *, after: Callable[[], Awaitable[None]] | None = None) -> None:
        """Keep the last state, for whoever comes next; without a store that answers it is the one before."""
        if self._store is None:
            return
        try:
            async with asyncio.timeout(LAST_KEEP_S):
                while self._keeping:  # noqa: ASYNC110  # the one before is on its way, and ends by itself
                    await asyncio.sleep(0.01)
                await self.keep(state(), after=after)
        except TimeoutError:
            log.warning("the last state was not kept: the store is away", reader=self.reader)

    def _delay(self) -> None:
        """States of partitions that began together are not kept together for ever."""
        spread = random.uniform(0.75, 1.25)  # noqa: S311  # chance needs no secrecy
        self._next_keep_ns = self._clock.now_ns() + round(self._keep_ns * spread)

    def _where(self, what: str) -> str:
        return f"{self.reader.partition(':')[0]}.{what}"


class _Again:
    """What a stream retains, read again by a reader that lost its position. If it reaches back to a batch that was
    done, there is no hole: the writer put the rest on it again. What stands before such a batch was done as well.
    """

    def __init__(self, done_ns: int) -> None:
        """`done_ns`: arrival of the newest batch that was done; 0 where streams have no batches."""
        self._done_ns, self._reaches_back = done_ns, False
        self._doubtful: list[tuple[Position, Entry]] = []

    def sift(self, found: tuple[Position, Entry]) -> list[tuple[Position, Entry] | Hole]:
        """What is new, once that is known, behind the hole if there is one."""
        entry = found[1]
        if self._done_ns and not (isinstance(entry, Batch) and entry.received_ns):
            self._doubtful.append(found)
            return []
        if isinstance(entry, Batch) and 0 < entry.received_ns <= self._done_ns:
            self._reaches_back = True
            self._doubtful.clear()
            return []
        return [*([] if self._reaches_back else [Hole.LOST]), *self._doubtful, found]


def _compressed(state: bytes, received_ns: int) -> bytes:
    import pyarrow as pa  # 40 MB that a single process without states does without

    return _HEAD.pack(len(state), received_ns) + bytes(pa.compress(state, codec="zstd", asbytes=True))


def _expanded(packed: bytes) -> tuple[bytes, int]:
    import pyarrow as pa

    if len(packed) < _HEAD.size or _HEAD.unpack_from(packed)[0] > MOST_STATE_BYTES:
        raise Invalid("state", "has no length")
    size, received_ns = _HEAD.unpack_from(packed)
    try:
        state = pa.decompress(packed[_HEAD.size :], decompressed_size=size, codec="zstd", asbytes=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Invalid("state", f"is damaged: {error}") from None
    return bytes(state), received_ns


async def _next(
    reader: AsyncIterator[tuple[Position, Entry]], leaving: "asyncio.Future[Any] | None"
) -> tuple[Position, Entry] | None:
    """None when the stream has ended or we are leaving."""
    if leaving is None:
        return await anext(reader, None)
    if leaving.done():
        return None
    getting = asyncio.ensure_future(_taken(reader))
    try:
        await asyncio.wait({getting, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        if not getting.done():
            getting.cancel()
            await asyncio.gather(getting, return_exceptions=True)
    if getting.cancelled():
        return None
    return getting.result()


async def _taken(reader: AsyncIterator[tuple[Position, Entry]]) -> tuple[Position, Entry] | None:
    return await anext(reader, None)
