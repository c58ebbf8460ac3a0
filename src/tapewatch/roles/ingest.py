"""ingest: a feed onto the tape. The only writer of `ticks:{p}`.

It stamps each batch with the time of its arrival, splits it by partition, and puts rule snapshots between the batches,
so that a replay of the tape applies them at the same place. Marks are the feed's; ingest never makes time up.
"""

import asyncio
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from tapewatch.documents import ruleset
from tapewatch.engine.columns import Batch
from tapewatch.ports import Bus, Clock, Feed, Store
from tapewatch.telemetry import TICKS_TOTAL

RULES_CHANNEL = "rules.updated"


def partition_of(symbol: str, partitions: int) -> int:
    """Fixed for the life of an installation; the same in every process."""
    return crc32(symbol.encode()) % partitions


class Ingest:
    def __init__(self, *, feed: Feed, bus: Bus, store: Store, clock: Clock, partitions: int = 1) -> None:
        self._feed, self._bus, self._store, self._clock = feed, bus, store, clock
        self._partitions = partitions
        self._ruleset = -1
        self._dictionary: tuple[str, ...] | None = None
        self._partition: NDArray[np.int64] = np.zeros(0, np.int64)
        self.rows = 0
        self.watermark_ns = 0
        self.batch_ns = 0
        """Wall clock of the newest batch: the age of the data."""
        self.ended = False

    async def run(self) -> None:
        """Until the feed ends; rules go on being published after that."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_rules(), name="ingest rules")
            async for batch in self._feed.batches():
                await self._publish(batch.received(self._clock.now_ns()))
            self.ended = True

    async def _follow_rules(self) -> None:
        notices = self._bus.listen(RULES_CHANNEL)
        await self._publish_rules()
        async for _ in notices:
            await self._publish_rules()

    async def _publish_rules(self) -> None:
        number, rules = await self._store.rules()
        if number > self._ruleset:
            self._ruleset = number
            for p in range(self._partitions):
                await self._bus.publish(f"ticks:{p}", ruleset(number, rules))

    async def _publish(self, batch: Batch) -> None:
        self.rows += len(batch)
        self.batch_ns = batch.received_ns
        TICKS_TOTAL.labels(feed=self._feed.name).inc(len(batch))
        if self._partitions == 1:
            await self._bus.publish("ticks:0", batch)
        else:
            partition = self._partition_of_each(batch.symbols)[batch.symbol]
            for p in range(self._partitions):
                await self._bus.publish(f"ticks:{p}", batch.take(partition == p))
        if len(batch.marks_ns):
            self.watermark_ns = int(batch.marks_ns[-1])

    def _partition_of_each(self, symbols: tuple[str, ...]) -> NDArray[np.int64]:
        if symbols is not self._dictionary:
            self._partition = np.array([partition_of(symbol, self._partitions) for symbol in symbols], np.int64)
            self._dictionary = symbols
        return self._partition
