"""scanner: the tape into alerts and boards. All of the thinking is `engine.Scanner`; this is its loop."""

import time

from tapewatch.documents import Alert
from tapewatch.engine.columns import SECOND_NS, Batch, Facts, Gap
from tapewatch.engine.rules import Match, Ruleset
from tapewatch.engine.scanner import Scanner
from tapewatch.ports import Alerts, Bus, Clock, Position
from tapewatch.roles.patience import read_on
from tapewatch.telemetry import ALERTS_EMITTED_TOTAL, SCAN_CYCLE_SECONDS, TICK_PROCESSING_LATENCY_SECONDS


class ScannerRole:
    def __init__(self, *, scanner: Scanner, bus: Bus, clock: Clock, partition: int = 0) -> None:
        self.scanner = scanner
        self._bus, self._clock, self._partition = bus, clock, partition
        self.position: Position | None = None
        """The newest entry of the tape that is on the board."""

    async def run(self) -> None:
        async for position, entry in read_on(
            self._bus, f"ticks:{self._partition}", clock=self._clock, where="scanner.read"
        ):
            if isinstance(entry, Batch):
                await self._step(entry)
            elif isinstance(entry, Ruleset):
                self.scanner.apply(entry)
            elif isinstance(entry, Gap):
                self.scanner.gap(entry)
            elif isinstance(entry, Facts):
                self.scanner.learn(entry)
            self.position = position

    async def _step(self, batch: Batch) -> None:
        started = time.perf_counter()
        step = self.scanner.step(batch)
        if step.scans:
            SCAN_CYCLE_SECONDS.observe((time.perf_counter() - started) / step.scans)
        told = 0
        for before, withdrawn in step.withdrawn:
            await self._tell(step.matches[told:before], batch)
            told = before
            await self._bus.publish(f"alerts:{self._partition}", withdrawn)
        await self._tell(step.matches[told:], batch)
        for board in step.boards:
            await self._bus.publish(f"board:{self._partition}", board)
        if batch.received_ns:
            TICK_PROCESSING_LATENCY_SECONDS.observe((self._clock.now_ns() - batch.received_ns) / SECOND_NS)

    async def _tell(self, matches: list[Match], batch: Batch) -> None:
        if matches:
            ALERTS_EMITTED_TOTAL.inc(len(matches))
            alerts = tuple(Alert.of(match, received_ns=batch.received_ns) for match in matches)
            await self._bus.publish(f"alerts:{self._partition}", Alerts(alerts))
