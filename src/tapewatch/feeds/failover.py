"""Supervision: a primary feed and perhaps a fallback, as one feed that goes on for ever.

Owns: when to connect again, which of the two is needed, and which stretches of the tape nobody covered. It decodes
nothing. While both run, both are passed on; who reads removes the trades that came twice.
"""

import asyncio
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import structlog

from tapewatch.engine.columns import OPEN_END_NS, SECOND_NS, Bars, Batch, Gap
from tapewatch.errors import FeedLoss, FeedLost, FeedRefused
from tapewatch.feeds.live import LiveFeed
from tapewatch.feeds.marks import first_after
from tapewatch.ports import Clock, Feed, FeedStatus
from tapewatch.telemetry import FEED_CONNECTS_TOTAL, FEED_LOSSES_TOTAL, FEED_RUNNING

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0
LIMITED_WAIT_S = 20.0
"""After a connection limit: the provider needs time to forget the old connection. With jitter, at least ten seconds."""
STEADY_S = 10.0
"""A connection on which data has flowed for so long has proved itself."""
PATIENCE_S = 15.0
"""The fallback is called when the primary has been away for so long."""
FAILURES, WITHIN_S, OPEN_S = 5, 30.0, 60.0
"""So many losses within so long open the primary's circuit for so long."""
_WAITING = 8
"""Items of both feeds that wait for the reader; then the feeds wait, and their own queues have bounds."""

Item: TypeAlias = Batch | Gap | Bars

log = structlog.get_logger("tapewatch")


@dataclass(slots=True, eq=False)
class _Line:
    """One feed and what became of it."""

    feed: Feed
    role: Literal["primary", "fallback"]
    state: Literal["waiting", "connecting", "running", "lost", "refused", "open"] = "waiting"
    circuit: Literal["closed", "open", "half_open"] = "closed"
    problem: str = ""
    reason: FeedLoss | Literal["", "refused"] = ""
    task: asyncio.Task[None] | None = None
    """Keeps it connected; None: it is not needed."""
    wait_s: float = FIRST_WAIT_S
    failed_ns: deque[int] = field(default_factory=lambda: deque(maxlen=FAILURES))
    failures: int = 0
    connects: int = 0
    losses: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    last_data_ns: int | None = None
    flowing_since_ns: int | None = None
    """Wall clock of this connection's first rows."""
    covers_from_ns: int | None = None
    """Event time from which this connection's tape is whole."""
    newest_ns: int = -1
    """Event time of its newest row."""
    reached_ns: int = -1
    """Event time up to which it has come, quiet stretches included."""


_Event: TypeAlias = tuple[_Line, asyncio.Task[None] | None, Item | Exception | None]
"""Which line, which of its keepers, and what: an item, how it ended, or None for the end of its data."""


class FailoverFeed:
    """Raises `FeedRefused` when every feed has refused, and ends when the primary's data end; a loss never gets out.

    A lost feed is asked again after 1 s, 2 s, 4 s up to 60 s, each shortened by up to half at random; the steps begin
    anew once data have flowed for ten seconds. The fallback is connected when it is needed: the primary fell silent,
    refused, failed five times in 30 s, or has been away for 15 s. It goes when the primary has proved itself and the
    fallback's tape has come as far as the primary's began.
    """

    def __init__(self, primary: Feed, fallback: Feed | None, clock: Clock) -> None:
        self._primary = _Line(primary, "primary")
        self._fallback = None if fallback is None else _Line(fallback, "fallback")
        self._lines = [line for line in (self._primary, self._fallback) if line is not None]
        self._clock = clock
        self._gap: Gap | None = None
        self._watermark_ns = -1
        self._events: asyncio.Queue[_Event] = asyncio.Queue(_WAITING)

    @property
    def name(self) -> str:
        return self._primary.feed.name

    @property
    def rejected(self) -> Mapping[str, int]:
        return sum((Counter(line.feed.rejected) for line in self._lines), Counter())

    @property
    def gap(self) -> Gap | None:
        """The stretch that is missing and has not ended."""
        return self._gap

    def status(self) -> list[FeedStatus]:
        now_ns = self._clock.now_ns()
        return [
            FeedStatus(
                name=line.feed.name,
                role=line.role,
                state=line.state,
                circuit=line.circuit,
                problem=line.problem,
                reason=line.reason,
                failures=line.failures,
                connects=line.connects,
                losses=dict(line.losses),
                last_data_ns=line.last_data_ns,
                last_data_age_s=None if line.last_data_ns is None else (now_ns - line.last_data_ns) / SECOND_NS,
                rows=line.rows,
                overflow_frames=line.feed.overflow_frames if isinstance(line.feed, LiveFeed) else 0,
                rejected=dict(line.feed.rejected),
                samples=line.feed.quarantine.samples if isinstance(line.feed, LiveFeed) else {},
            )
            for line in self._lines
        ]

    async def batches(self) -> AsyncIterator[Item]:
        self._events = asyncio.Queue(_WAITING)
        self._start(self._primary)
        try:
            while True:
                line, keeper, event = await self._events.get()
                if keeper is not line.task:
                    continue  # it was called off
                if event is None:
                    if line is self._primary:
                        return
                    line.task = None
                elif isinstance(event, Exception):
                    for gap in self._ended(line, event):
                        yield gap
                else:
                    for item in self._arrived(line, event):
                        yield item
        finally:
            tasks = [line.task for line in self._lines if line.task is not None]
            for line in self._lines:
                self._stop(line)
            await asyncio.gather(*tasks, return_exceptions=True)

    # -- a line's life ------------------------------------------------------------------------------------------------

    def _start(self, line: _Line, *, after_s: float = 0.0) -> None:
        line.task = asyncio.create_task(self._keep(line, after_s), name=f"{line.role} feed")

    def _stop(self, line: _Line) -> None:
        if line.task is not None:
            line.task.cancel()
        line.task = line.flowing_since_ns = line.covers_from_ns = None
        FEED_RUNNING.labels(feed=line.feed.name, role=line.role).set(0)
        if line.state != "refused":
            line.state = "waiting"

    async def _keep(self, line: _Line, after_s: float) -> None:
        """Connected for ever, in steps; what comes and how it ends goes to the one who reads."""
        keeper = asyncio.current_task()
        if after_s:
            await self._clock.sleep(after_s)
        while True:
            line.state = "connecting"
            event: Exception | None = None
            try:
                async with aclosing(line.feed.batches()) as items:  # type: ignore[type-var]  # feeds are generators
                    async for item in items:
                        self._count(line, item)
                        await self._events.put((line, keeper, item))
            except Exception as error:  # noqa: BLE001  # raised where the items are read
                event = error
            FEED_RUNNING.labels(feed=line.feed.name, role=line.role).set(0)
            wait_s = self._lost(line, event) if isinstance(event, FeedLost) else None
            if isinstance(event, FeedRefused):
                line.state, line.reason, line.problem = "refused", "refused", str(event)
                log.error("feed refused", feed=line.feed.name, role=line.role, why=line.problem)
            await self._events.put((line, keeper, event))
            if wait_s is None:
                return
            await self._clock.sleep(wait_s)
            if line.circuit == "open":
                line.circuit = "half_open"

    def _count(self, line: _Line, item: Item) -> None:
        now_ns = self._clock.now_ns()
        if line.state != "running":
            line.state, line.problem, line.reason = "running", "", ""
            line.connects += 1
            FEED_CONNECTS_TOTAL.labels(feed=line.feed.name).inc()
            FEED_RUNNING.labels(feed=line.feed.name, role=line.role).set(1)
            log.info("feed connected", feed=line.feed.name, role=line.role)
        if isinstance(item, Batch) and len(item):
            line.rows += len(item)
            line.last_data_ns = now_ns
            if line.flowing_since_ns is None:
                line.flowing_since_ns = now_ns
        if line.failures and self._is_steady(line):
            line.wait_s, line.failures, line.circuit = FIRST_WAIT_S, 0, "closed"
            line.failed_ns.clear()

    def _is_steady(self, line: _Line) -> bool:
        since_ns = line.flowing_since_ns
        return since_ns is not None and self._clock.now_ns() - since_ns >= STEADY_S * SECOND_NS

    def _lost(self, line: _Line, error: FeedLost) -> float:
        """Take down a loss; the seconds until the next attempt."""
        now_ns = self._clock.now_ns()
        line.reason, line.problem, line.flowing_since_ns = error.reason, str(error), None
        line.failures += 1
        line.failed_ns.append(now_ns)
        line.losses[error.reason] += 1
        FEED_LOSSES_TOTAL.labels(feed=line.feed.name, reason=error.reason).inc()
        log.warning("feed lost", feed=line.feed.name, role=line.role, reason=error.reason, why=line.problem)
        often = len(line.failed_ns) == FAILURES and now_ns - line.failed_ns[0] <= WITHIN_S * SECOND_NS
        if line is self._primary and self._has_fallback and (often or line.circuit == "half_open"):
            line.state = line.circuit = "open"
            return OPEN_S
        line.state, line.circuit = "lost", "closed"
        wait_s = max(line.wait_s, LIMITED_WAIT_S) if error.reason == "connection_limit" else line.wait_s
        line.wait_s = min(line.wait_s * 2, LONGEST_WAIT_S)
        return wait_s * random.uniform(0.5, 1.0)  # noqa: S311  # jitter needs no secrecy

    # -- which line is needed -----------------------------------------------------------------------------------------

    @property
    def _has_fallback(self) -> bool:
        return self._fallback is not None and self._fallback.state != "refused"

    def _ended(self, line: _Line, error: Exception) -> Iterator[Gap]:
        """A connection ended: what is missing from now on, and who is to step in."""
        if not isinstance(error, FeedLost | FeedRefused):
            raise error
        refused = isinstance(error, FeedRefused)
        if refused:
            line.task = None
        yield from self._uncover(line, "refused" if isinstance(error, FeedRefused) else error.reason)
        if all(each.state == "refused" for each in self._lines):
            raise FeedRefused("; ".join(f"{each.feed.name}: {each.problem}" for each in self._lines))
        if line is self._primary:
            at_once = isinstance(error, FeedRefused) or error.reason == "silent" or line.circuit == "open"
            self._call_fallback(after_s=0.0 if at_once else PATIENCE_S)

    def _call_fallback(self, *, after_s: float) -> None:
        line = self._fallback
        if line is None or line.state == "refused":
            return
        if line.task is not None and line.state == "waiting" and not after_s:
            self._stop(line)
        if line.task is None:
            self._start(line, after_s=after_s)

    def _hand_over(self) -> None:
        """The fallback goes when it is not needed any more."""
        line, primary = self._fallback, self._primary
        if line is None or line.task is None or primary.state != "running":
            return
        came_as_far = primary.covers_from_ns is not None and (
            line.covers_from_ns is None or line.reached_ns >= primary.covers_from_ns
        )
        if line.state == "waiting" or (self._is_steady(primary) and came_as_far):
            log.info("fallback not needed", feed=line.feed.name)
            self._stop(line)

    # -- what the tape covers -----------------------------------------------------------------------------------------

    def _arrived(self, line: _Line, item: Item) -> Iterator[Item]:
        if isinstance(item, Batch):
            if len(item):
                yield from self._cover(line, item)
                line.newest_ns = max(line.newest_ns, int(item.ts_ns.max()))
            if len(item.marks_ns):
                line.reached_ns = max(line.reached_ns, int(item.marks_ns[-1]))
            item = self._in_step(item)
            if len(item) or len(item.marks_ns):
                yield item
        elif isinstance(item, Bars) or not self._others(line):
            yield item
        self._hand_over()

    def _others(self, line: _Line) -> list[int]:
        """From when on each other line covers, of those that do."""
        return [each.covers_from_ns for each in self._lines if each is not line and each.covers_from_ns is not None]

    def _cover(self, line: _Line, rows: Batch) -> Iterator[Gap]:
        """Rows came: this line covers from here on, and a gap that was open ends."""
        if line.covers_from_ns is not None:
            return
        if self._gap is None:
            line.covers_from_ns = int(rows.ts_ns.max())
            return
        end_ns = first_after(rows, self._gap.start_ns)
        if end_ns is not None:
            line.covers_from_ns = end_ns
            gap, self._gap = replace(self._gap, end_ns=end_ns), None
            yield gap

    def _uncover(self, line: _Line, reason: str) -> Iterator[Gap]:
        if line.covers_from_ns is None:
            return
        line.covers_from_ns = None
        others = self._others(line)
        if not others:
            self._gap = Gap(line.newest_ns, OPEN_END_NS, reason)
            yield self._gap
        elif others[0] > line.newest_ns:
            yield Gap(line.newest_ns, others[0], reason)

    def _in_step(self, batch: Batch) -> Batch:
        """Without the marks that lie behind what the other line has already said: time never goes back."""
        ahead = batch.marks_ns > self._watermark_ns
        if ahead.any():
            self._watermark_ns = int(batch.marks_ns[-1])
        if ahead.all():
            return batch
        return replace(batch, marks_row=batch.marks_row[ahead], marks_ns=batch.marks_ns[ahead])
