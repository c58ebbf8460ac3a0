"""The tape as a replay server hands it out: paced by its own time, and the same pace for every client.

Owns pacing and positions. Protocols, symbol filters and faults belong to the servers. Usage::

    async with Player(paths, speed=math.inf) as player:
        with player.listen() as listener:      # joining is what starts the tape
            async for piece in listener:       # ends with the tape
                ...                            # send piece.rows.batch
"""

import asyncio
import math
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np

from tapewatch.clock import SystemClock
from tapewatch.engine.columns import I64, SECOND_NS, Batch
from tapewatch.feeds.servers.whole_tape import Rows, WholeTape
from tapewatch.ports import Clock

Start = Literal["on-subscribe", "at-once"]
"""The tape begins when the first client has subscribed, so that it gets every trade; or when the server is up."""
WhileAway = Literal["go-on", "hold"]
"""What the tape does while nobody is subscribed: it goes on, as a provider does, or waits where the last one left."""

PIECE_ROWS = 500
_PIECE_S = 0.05
_LONGEST_QUIET_S = 5.0
_AHEAD = 64


Beside = tuple[str, str, dict[str, Any]]
"""A message that goes with a piece, such as a bar: channel, symbol, content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What is sent at one moment: at most `PIECE_ROWS` rows, and what the server makes of them for all clients.

    Where a tape is cut depends on the tape and the speed only.
    """

    rows: Rows
    beside: Sequence[Beside]


@dataclass(slots=True)
class Sent:
    """What a server sent over one connection."""

    client: int
    """Connections count from 1."""
    counts: Counter[str] = field(default_factory=Counter)
    """``frames`` and ``rows`` of data, ``bars``, and faults by their name."""
    ended: str = ""
    """Why the server ended the connection, in a word; empty as long as it did not."""
    _parts: list[I64] = field(default_factory=list)

    @property
    def rows(self) -> I64:
        """Places in the tape in the order of sending, repetitions included."""
        return np.concatenate([np.zeros(0, np.int64), *self._parts])

    def note(self, places: I64, *, keep: bool = True) -> None:
        """A frame with these rows went out."""
        self.counts["frames"] += 1
        self.counts["rows"] += len(places)
        if keep:
            self._parts.append(places)


class Listener:
    """A client's place in the tape: iterate for pieces. A piece counts as taken when the next one is asked for, or
    `done` is called.
    """

    def __init__(
        self, position: int, *, ask: Callable[[int], Awaitable[Piece | None]], on_done: Callable[[], None]
    ) -> None:
        self.position = position
        """Number of the next piece."""
        self._ask, self._on_done = ask, on_done
        self._taken = True

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        self.done()
        piece = await self._ask(self.position)
        if piece is None:
            raise StopAsyncIteration
        self._taken = False
        return piece

    def done(self) -> None:
        """The piece is dealt with; with `hold`, whoever comes next begins after it."""
        if not self._taken:
            self._taken = True
            self.position += 1
            self._on_done()


class Player:
    """Plays once. The slowest listener sets the pace once it is a few pieces behind: nothing is skipped.

    Event time runs at `speed` times the clock (inf: as fast as it is taken); stretches without a print are shortened
    to five seconds.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        speed: float = 1.0,
        start: Start = "on-subscribe",
        while_away: WhileAway = "go-on",
        make: Callable[[Batch], Sequence[Beside]] | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`make` is called once with the rows of each piece, in order. `Invalid` for a file that cannot be a tape."""
        if not speed > 0:
            raise ValueError("speed must be positive")
        self.tape = WholeTape(paths)
        self.played_rows = 0
        self.event_ns = 0
        """The tape's time; 0 before it begins."""
        self._due_event_ns = 0
        self.ended = asyncio.Event()
        """Everything was handed out; listeners may still be behind."""
        self._speed, self._start, self._hold = speed, start, while_away == "hold"
        self._make, self._clock = make or _nothing, clock or SystemClock()
        self._window: deque[Piece] = deque()
        self._first = 0
        """Number of the window's first piece."""
        self._kept: int | None = None
        """Where the tape is held for the next one to come."""
        self._listeners: list[Listener] = []
        self._joined = False
        self._bell = _Bell()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._play())
        return self

    async def __aexit__(self, *_error: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    @property
    def listeners(self) -> int:
        return len(self._listeners)

    async def finish(self) -> None:
        """Wait until everything was handed out; raises what ended the tape early."""
        if self._task is not None:
            await asyncio.shield(self._task)

    @contextmanager
    def listen(self) -> Iterator[Listener]:
        """Join where the tape is now, or where it is held."""
        head = self._first + len(self._window)
        position = head if self._kept is None else self._kept
        listener = Listener(position, ask=self._piece, on_done=self._bell.ring)
        self._kept, self._joined = None, True
        self._listeners.append(listener)
        self._bell.ring()
        try:
            yield listener
        finally:
            self._listeners.remove(listener)
            if self._hold and not self._listeners:
                self._kept = listener.position
            self._bell.ring()

    async def _piece(self, number: int) -> Piece | None:
        while number >= self._first + len(self._window):
            if self._task is None or self._task.done():
                return None
            await self._bell.wait()
        return self._window[number - self._first]

    async def _play(self) -> None:
        try:
            while self._start == "on-subscribe" and not self._joined:
                await self._bell.wait()
            chunks = self.tape.chunks()
            due_ns = self._clock.now_ns()
            while chunk := await asyncio.to_thread(next, chunks, None):
                for rows in self._cut(chunk):
                    due_ns = await self._wait(rows, due_ns)
                    self._window.append(Piece(rows=rows, beside=self._make(rows.batch)))
                    self.played_rows += len(rows.batch)
                    self._bell.ring()
            self.ended.set()
        finally:
            asyncio.get_running_loop().call_soon(self._bell.ring)  # when this task counts as done

    async def _wait(self, rows: Rows, due_ns: int) -> int:
        """Until these rows are due and there is room for them; returns when they were due."""
        times = rows.batch.ts_ns if len(rows.batch) else rows.batch.marks_ns
        now_ns = max(self._due_event_ns, int(times[0]))
        if math.isfinite(self._speed):
            quiet_s = (now_ns - self._due_event_ns) / SECOND_NS / self._speed if self._due_event_ns else 0.0
            due_ns += round(min(quiet_s, _LONGEST_QUIET_S) * SECOND_NS)
            await self._clock.sleep(max(0.0, (due_ns - self._clock.now_ns()) / SECOND_NS))
        else:
            await self._clock.sleep(0)
        self._due_event_ns = now_ns
        self.event_ns = max(self.event_ns, int(times.max()))
        while self._crowded():
            await self._bell.wait()
            due_ns = max(due_ns, self._clock.now_ns())
        return due_ns

    def _crowded(self) -> bool:
        """Drop what everybody has; whether the next piece must wait."""
        head = self._first + len(self._window)
        places = [listener.position for listener in self._listeners]
        if self._kept is not None:
            places.append(self._kept)
        oldest = min(places, default=head)
        while self._first < oldest:
            self._window.popleft()
            self._first += 1
        return head - oldest >= _AHEAD or (self._hold and self._joined and not self._listeners)

    def _cut(self, chunk: Rows) -> Iterator[Rows]:
        """Pieces by the tape's time and by number of rows."""
        if not len(chunk.batch):
            yield chunk
            return
        cuts = np.arange(PIECE_ROWS, len(chunk.batch), PIECE_ROWS)
        if math.isfinite(self._speed):
            run = np.maximum.accumulate(chunk.batch.ts_ns)
            by_time = np.flatnonzero(np.diff(run // max(1, round(_PIECE_S * SECOND_NS * self._speed)))) + 1
            cuts = np.union1d(cuts, by_time)
        for start, stop in pairwise([0, *cuts.tolist(), len(chunk.batch)]):
            yield chunk.cut(start, stop)


def _nothing(_rows: Batch) -> Sequence[Beside]:
    return ()


class FeedServer(Protocol):
    """A replay server: listening while it is entered."""

    player: Player
    sent: list[Sent]
    """One for each connection, in the order of time."""
    url: str

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *error: object) -> None: ...


class _Bell:
    """Wakes everybody who waits now."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        rung, self._event = self._event, asyncio.Event()
        rung.set()

    async def wait(self) -> None:
        await self._event.wait()
