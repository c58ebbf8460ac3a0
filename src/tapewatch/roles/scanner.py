"""scanner: the tape into alerts and boards. All of the thinking is `engine.Scanner`; this is its loop.

After a restart it goes on from the state that it kept, edges and cooldowns included; an alert that it then tells again
has the id that it had.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing

from tapewatch.documents import Alert
from tapewatch.engine.columns import SECOND_NS, Batch, Facts, Gap, first_ns
from tapewatch.engine.rules import Match, Ruleset
from tapewatch.engine.scanner import Scanner
from tapewatch.patience import publish
from tapewatch.ports import Alerts, Bus, Clock, Entry, Position, Store
from tapewatch.roles.recovery import Hole, Recovery
from tapewatch.telemetry import ALERTS_EMITTED_TOTAL, SCAN_CYCLE_SECONDS, TICK_PROCESSING_LATENCY_SECONDS


class ScannerRole:
    """`thaw` makes a scanner of the state that an earlier one kept in `store`; without it every run begins with
    `scanner`. `anew` makes one for a tape that begins before the state ends.
    """

    def __init__(
        self,
        *,
        scanner: Scanner,
        bus: Bus,
        clock: Clock,
        partition: int = 0,
        store: Store | None = None,
        thaw: Callable[[bytes], Scanner] | None = None,
        anew: Callable[[], Scanner] | None = None,
        alone: bool = False,
    ) -> None:
        self.scanner = scanner
        self._bus, self._clock, self._partition, self._thaw, self._anew = bus, clock, partition, thaw, anew
        self.recovery = Recovery(
            f"scanner:{partition}",
            f"ticks:{partition}",
            bus=bus,
            clock=clock,
            store=None if thaw is None else store,
            alone=alone,
        )
        self._hole_since_ns: int | None = None

    @property
    def position(self) -> Position | None:
        """The newest entry of its stream that it has done."""
        return self.recovery.position

    async def run(self, leave: asyncio.Event | None = None) -> None:
        """Until the bus closes or `leave` is set."""
        self.scanner = await self.recovery.begin(self._thaw) or self.scanner
        async with (
            asyncio.TaskGroup() as tasks,
            aclosing(self.recovery.entries(leave)) as entries,  # type: ignore[type-var]  # a generator
        ):
            async for found in entries:
                if isinstance(found, Hole):
                    self._hole_since_ns = self.scanner.watermark_ns or None
                    continue
                position, entry = found
                await self._take(position, entry)
                self.recovery.position = position
                if self.recovery.due:
                    tasks.create_task(self.recovery.keep(self.scanner.freeze()), name="scanner state")
        await self.recovery.leave(self.scanner.freeze)

    async def _take(self, position: Position, entry: Entry) -> None:
        if isinstance(entry, Batch):
            self._bridge(entry)
            await self._step(position, entry)
        elif isinstance(entry, Ruleset):
            self.scanner.apply(entry)
        elif isinstance(entry, Gap):
            self.scanner.gap(entry)
        elif isinstance(entry, Facts):
            self.scanner.learn(entry)

    def _bridge(self, batch: Batch) -> None:
        """Behind a hole in the tape: what it swallowed may be missing."""
        begin_ns = first_ns(batch)
        if self._hole_since_ns is None or begin_ns is None:
            return
        if begin_ns >= self._hole_since_ns:
            self.scanner.gap(Gap(self._hole_since_ns, begin_ns, "lost"))
        elif self._anew is not None:  # another tape, from its beginning
            ruleset = self.scanner.ruleset
            self.scanner = self._anew()
            self.scanner.apply(ruleset)
        self._hole_since_ns = None

    async def _step(self, position: Position, batch: Batch) -> None:
        started = time.perf_counter()
        step = self.scanner.step(batch)
        if step.scans:
            SCAN_CYCLE_SECONDS.observe((time.perf_counter() - started) / step.scans)
        told = 0
        for before, withdrawn in step.withdrawn:
            await self._tell(step.matches[told:before], batch)
            told = before
            await self._publish("alerts", withdrawn)
        await self._tell(step.matches[told:], batch)
        for board in () if self.recovery.catches_up(position) else step.boards:  # who catches up has none that is new
            await self._publish("board", board)
        if batch.received_ns:
            TICK_PROCESSING_LATENCY_SECONDS.observe((self._clock.now_ns() - batch.received_ns) / SECOND_NS)

    async def _publish(self, topic: str, entry: Entry) -> None:
        await publish(self._bus, f"{topic}:{self._partition}", entry, clock=self._clock, where=f"scanner.{topic}")

    async def _tell(self, matches: list[Match], batch: Batch) -> None:
        if matches:
            ALERTS_EMITTED_TOTAL.inc(len(matches))
            now_ns = self._clock.now_ns()
            alerts = tuple(Alert.of(match, received_ns=batch.received_ns, scanned_ns=now_ns) for match in matches)
            await self._publish("alerts", Alerts(alerts))
