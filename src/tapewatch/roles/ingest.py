"""ingest: a feed onto the tape. The only writer of `ticks:{p}`.

It stamps each batch with the time of its arrival, splits it by partition, and puts rule snapshots between the batches,
so that a replay of the tape applies them at the same place. Marks are the feed's; ingest never makes time up. A feed
that is lost is asked again, in growing and jittered steps; one that refuses is not.
"""

import asyncio
from dataclasses import replace
from typing import Literal, NamedTuple
from zlib import crc32

import numpy as np
import structlog
from numpy.typing import NDArray

from tapewatch.documents import ruleset
from tapewatch.engine.columns import Batch, Gap, pulse
from tapewatch.engine.rules import Ruleset
from tapewatch.errors import FeedLost, FeedRefused
from tapewatch.ports import Bus, Clock, Feed, Store
from tapewatch.roles.patience import patiently, pause
from tapewatch.telemetry import ERRORS_TOTAL, TICKS_TOTAL

RULES_CHANNEL = "rules.updated"
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30.0

log = structlog.get_logger("tapewatch")


def partition_of(symbol: str, partitions: int) -> int:
    """Fixed for the life of an installation; the same in every process."""
    return crc32(symbol.encode()) % partitions


class Ingest:
    def __init__(self, *, feed: Feed, bus: Bus, store: Store, clock: Clock, partitions: int = 1) -> None:
        self._feed, self._bus, self._store, self._clock = feed, bus, store, clock
        self._partitions = partitions
        self._ruleset = -1
        self._begun = False
        self._split: _Split | None = None
        self._writing = asyncio.Lock()
        """Held for an entry of all partitions, so that a ruleset has the same place among the batches of each."""
        self.state: Literal["starting", "running", "lost", "refused", "ended"] = "starting"
        self.problem = ""
        """What the feed said when it was lost or refused."""
        self.rows = 0
        self.watermark_ns = 0
        self.batch_ns = 0
        """Wall clock of the newest batch: the age of the data."""

    async def run(self) -> None:
        """Until it is cancelled: rules go on being published after the feed has ended."""
        notices = self._bus.listen(RULES_CHANNEL)
        await self._publish_rules()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._play(), name="ingest feed")
            async for _ in notices:
                await self._publish_rules()

    async def _play(self) -> None:
        wait_s = FIRST_WAIT_S
        while True:
            try:
                async for batch in self._feed.batches():
                    self.state, self.problem, wait_s = "running", "", FIRST_WAIT_S
                    if isinstance(batch, Gap):
                        await self._publish_to_all(batch)
                    else:
                        await self._publish(batch.received(self._clock.now_ns()))
            except FeedLost as error:
                self._tell("lost", str(error))
                wait_s = await pause(self._clock, wait_s, longest_s=LONGEST_WAIT_S)
            except FeedRefused as error:
                self._tell("refused", str(error))
                return
            else:
                self.state = "ended"
                return

    def _tell(self, state: Literal["lost", "refused"], problem: str) -> None:
        self.state, self.problem = state, problem
        ERRORS_TOTAL.labels(where=f"ingest.feed_{state}").inc()
        log.warning("the feed does not deliver", feed=self._feed.name, state=state, why=problem)

    async def _publish_rules(self) -> None:
        number, rules = await patiently(self._store.rules, clock=self._clock, where="ingest.rules")
        if number > self._ruleset:
            self._ruleset = number
            await self._publish_to_all(ruleset(number, rules))

    async def _publish_to_all(self, entry: Gap | Ruleset) -> None:
        async with self._writing:
            for p in range(self._partitions):
                await self._bus.publish(f"ticks:{p}", entry)

    async def _publish(self, batch: Batch) -> None:
        self.rows += len(batch)
        self.batch_ns = batch.received_ns
        TICKS_TOTAL.labels(feed=self._feed.name).inc(len(batch))
        async with self._writing:
            if self._partitions > 1 and not self._begun and (len(batch) or len(batch.marks_ns)):
                self._begun = True
                await self._begin(batch)
            for p, part in enumerate(self._parts(batch)):
                await self._bus.publish(f"ticks:{p}", part)
        if len(batch.marks_ns):
            self.watermark_ns = int(batch.marks_ns[-1])

    async def _begin(self, batch: Batch) -> None:
        """The engine counts windows from the first instant of its tape, which must be the same in all partitions."""
        at_mark = len(batch.marks_ns) > 0 and batch.marks_row[0] == 0
        first_ns = int(batch.marks_ns[0] if at_mark else batch.ts_ns[0])
        for p in range(self._partitions):
            await self._bus.publish(f"ticks:{p}", pulse(first_ns, received_ns=batch.received_ns))

    def _parts(self, batch: Batch) -> list[Batch]:
        """One batch a partition, each with a dictionary of its own symbols, so that no board lists another's."""
        if self._partitions == 1:
            return [batch]
        if self._split is None or self._split.symbols is not batch.symbols:
            self._split = _Split.of(batch.symbols, self._partitions)
        split = self._split
        owner = split.partition[batch.symbol]
        parts = []
        for p, names in enumerate(split.names):
            part = batch.take(owner == p)
            parts.append(replace(part, symbols=names, symbol=split.place[part.symbol]))
        return parts


class _Split(NamedTuple):
    """A dictionary of symbols divided among the partitions."""

    symbols: tuple[str, ...]
    partition: NDArray[np.int64]
    """Of each symbol."""
    place: NDArray[np.int32]
    """Of each symbol, in its partition's own dictionary."""
    names: list[tuple[str, ...]]

    @classmethod
    def of(cls, symbols: tuple[str, ...], partitions: int) -> "_Split":
        partition = np.array([partition_of(symbol, partitions) for symbol in symbols], np.int64)
        place = np.zeros(len(symbols), np.int32)
        names = []
        for p in range(partitions):
            own = np.flatnonzero(partition == p)
            place[own] = np.arange(len(own), dtype=np.int32)
            names.append(tuple(symbols[i] for i in own.tolist()))
        return cls(symbols, partition, place, names)
