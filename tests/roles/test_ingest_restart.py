"""ingest after a crash: the tape is the one that an ingester without a crash would have written."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tapewatch.adapters.memory import MemoryBus
from tapewatch.contracts.samples import make_rule
from tapewatch.engine.columns import SECOND_NS, Batch, Gap, make_batch
from tapewatch.engine.rules import Ruleset
from tapewatch.errors import ConfigError
from tapewatch.ports import Entry, Position, Snapshot
from tapewatch.roles.ingest import Ingest

pytestmark = pytest.mark.anyio

PARTITIONS = 3
SYMBOLS = tuple(f"S{n}" for n in range(12))


class Killed(BaseException):
    """What happens to a process that is killed: nothing of ours catches it."""


class Pages:
    """A journal that outlives its ingester."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, Entry]] = []

    async def append(self, entry: Entry, *, rows: int) -> None:
        self.entries.append((rows, entry))

    async def read(self) -> AsyncIterator[tuple[int, Entry]]:
        for item in list(self.entries):
            yield item

    async def close(self) -> None:
        pass


class MortalBus:
    """The bus of one ingester's life: after so many entries of single streams the ingester is dead."""

    def __init__(self, bus: MemoryBus, lives: int) -> None:
        self._bus, self._left = bus, lives

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def publish_all(self, entries: Mapping[str, Entry]) -> dict[str, Position]:
        done = {}
        for stream, entry in entries.items():
            if not self._left:
                raise Killed
            self._left -= 1
            done[stream] = await self._bus.publish(stream, entry)
        return done


class Tape:
    """A feed of batches that can go on anywhere."""

    name = "tape"

    def __init__(self, batches: list[Batch]) -> None:
        self.rejected: Mapping[str, int] = MappingProxyType({})
        self._batches, self._skip = batches, 0

    def resume(self, rows: int) -> None:
        self._skip = rows

    async def batches(self) -> AsyncIterator[Batch]:
        passed = 0
        for batch in self._batches:
            start = max(0, self._skip - passed)
            passed += len(batch)
            if start < len(batch) or passed > self._skip or (not len(batch) and passed >= self._skip):
                yield batch.rows(min(start, len(batch)), len(batch)) if start else batch


class Live(Tape):
    """One that goes on where the market is."""

    resume = None  # type: ignore[assignment]  # a live feed cannot


def day(seed: int) -> list[Batch]:
    rng = np.random.default_rng(seed)
    batches = []
    for second in range(8):
        n = int(rng.integers(1, 9))
        at_ns = (1_000 + second) * SECOND_NS
        batches.append(
            make_batch(
                symbols=SYMBOLS,
                conditions=("@",),
                symbol=rng.integers(0, len(SYMBOLS), n),
                ts_ns=[at_ns] * n,
                price=rng.integers(1, 100, n),
                size=[100.0] * n,
                tape=[67] * n,
                exchange=[78] * n,
                trade_id=rng.integers(1, 30, n),
                marks_row=[n],
                marks_ns=[at_ns + SECOND_NS],
            )
        )
    return batches


async def live(feed: Tape, bus: Any, pages: Pages, ledger: Any, clock: Any) -> bool:
    """One life of an ingester; False if it was killed."""
    ingest = Ingest(feed=feed, bus=bus, store=ledger, clock=clock, partitions=PARTITIONS, journal=pages)
    task = asyncio.create_task(ingest.run())
    while ingest.state != "ended" and not task.done():  # noqa: ASYNC110  # it tells nobody
        await asyncio.sleep(0)
    survived = not task.done()
    task.cancel()
    (outcome,) = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(outcome, (asyncio.CancelledError, Killed, BaseExceptionGroup))
    return survived


async def rows_of(bus: MemoryBus) -> list[list[tuple[Any, ...]]]:
    """Of each partition: its rows and marks, in order; a mark that repeats the one before says nothing."""
    tapes = []
    for p in range(PARTITIONS):
        told: list[tuple[Any, ...]] = []
        for _, entry in await bus.newest(f"ticks:{p}", 10_000):
            if isinstance(entry, Ruleset):
                told += [] if ("rules", entry.number) in told else [("rules", entry.number)]
            elif isinstance(entry, Batch):
                for row in range(len(entry) + 1):
                    for mark in np.flatnonzero(entry.marks_row == row).tolist():
                        ns = int(entry.marks_ns[mark])
                        if ns > max((item[1] for item in told if item[0] == "mark"), default=0):
                            told.append(("mark", ns))
                    if row < len(entry):
                        told.append(
                            (
                                "row",
                                entry.symbols[entry.symbol[row]],
                                int(entry.ts_ns[row]),
                                float(entry.price[row]),
                                int(entry.trade_id[row]),
                            )
                        )
        tapes.append(told)
    return tapes


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 5), lives=st.lists(st.integers(0, 20), max_size=4))
def test_however_often_it_is_killed_each_stream_holds_each_row_once_and_in_order(
    ledger: Any, clock: Any, seed: int, lives: list[int]
) -> None:
    ledger.ruleset = Snapshot(1, [make_rule("a")], [])

    async def play(lives: list[int]) -> list[list[tuple[Any, ...]]]:
        bus, pages = MemoryBus(epoch=1), Pages()
        for left in lives:
            if await live(Tape(day(seed)), MortalBus(bus, left), pages, ledger, clock):
                break
        else:
            assert await live(Tape(day(seed)), bus, pages, ledger, clock)
        return await rows_of(bus)

    assert asyncio.run(play(lives)) == asyncio.run(play([]))


async def test_feed_that_cannot_go_on_leaves_a_gap_between_its_lives(ledger: Any, clock: Any) -> None:
    bus, pages = MemoryBus(epoch=1), Pages()
    whole = day(1)
    assert await live(Live(whole[:3]), bus, pages, ledger, clock)
    assert await live(Live(whole[6:]), bus, pages, ledger, clock)
    for p in range(PARTITIONS):
        entries = [entry for _, entry in await bus.newest(f"ticks:{p}", 1_000)]
        (gap,) = [entry for entry in entries if isinstance(entry, Gap)]
        first_of_second = int(whole[6].ts_ns[0])
        assert (gap.start_ns, gap.end_ns) == (int(whole[2].marks_ns[-1]), first_of_second)
        behind = [entry for entry in entries[entries.index(gap) :] if isinstance(entry, Batch)]
        assert all((batch.ts_ns >= first_of_second).all() for batch in behind)


async def test_tape_whose_journal_is_gone_is_not_played_again(ledger: Any, clock: Any) -> None:
    bus = MemoryBus(epoch=1)
    assert await live(Tape(day(1)), bus, Pages(), ledger, clock)
    ingest = Ingest(feed=Tape(day(1)), bus=bus, store=ledger, clock=clock, partitions=PARTITIONS, journal=Pages())
    with pytest.raises(ConfigError, match="played here before"):
        await ingest.run()


async def test_arrival_times_rise_strictly_over_the_lives(ledger: Any, clock: Any) -> None:
    bus, pages = MemoryBus(epoch=1), Pages()
    assert not await live(Tape(day(2)), MortalBus(bus, 9), pages, ledger, clock)
    assert await live(Tape(day(2)), bus, pages, ledger, clock)
    for p in range(PARTITIONS):
        arrived = [entry.received_ns for _, entry in await bus.newest(f"ticks:{p}", 1_000) if isinstance(entry, Batch)]
        assert arrived == sorted(set(arrived))
