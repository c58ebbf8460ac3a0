"""ingest: a feed onto the tape. The only writer of `ticks:{p}`.

It stamps each batch with the time of its arrival, leaves out trades that came before, splits it by partition, and puts
rule snapshots between the batches, so that a replay of the tape applies them at the same place. Marks are the feed's;
ingest never makes time up. A feed that ends, is lost or refuses has ended for ingest; one that comes back is
`feeds.failover`'s work.

With a journal it goes on after a crash: what stands in the journal and not on the tape is put there, and the feed goes
on behind it. A feed that cannot leaves a gap on the tape. Arrival times rise strictly, so that one names a batch.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray

from tapewatch.documents import ruleset
from tapewatch.engine.columns import OPEN_END_NS, Bars, Batch, Facts, Gap, first_ns, pulse
from tapewatch.engine.rules import Ruleset
from tapewatch.engine.seen import SeenTrades
from tapewatch.engine.symbols import partition_of
from tapewatch.errors import ConfigError, FeedLost, FeedRefused, TapewatchError
from tapewatch.patience import patiently
from tapewatch.ports import Bus, Clock, Entry, Feed, FeedStatus, Journal, Resumable, Store, Supervised
from tapewatch.telemetry import CONFLICTING_TRADES_TOTAL, DUPLICATE_TRADES_TOTAL, ERRORS_TOTAL, TICKS_TOTAL

RULES_CHANNEL = "rules.updated"
RULES_AGAIN_S = 5.0
"""The store is asked for rules so often by itself: a notice can be lost."""
REMEMBERED_TRADES = 500_000
"""At least so many trades are known again when they come twice."""
_WAITING_GAPS = 16
"""Gaps waiting to be filled; more of them stay as they are."""
_NEWEST = 64
"""Entries of a stream among which its newest batch is looked for: there is one every quarter of a second."""
_SPLITS = 4
"""Dictionaries of symbols whose division is remembered: those of two feeds, and of their bars."""

log = structlog.get_logger("tapewatch")


Fill = Callable[[Gap], Awaitable[tuple[Batch, bool]]]
"""The trades that a gap swallowed, and whether those are all. Raises an error of ours when the source has none."""


class Ingest:
    """Without a journal the tape begins with every run: what an ingester does whose bus dies with it."""

    def __init__(
        self,
        *,
        feed: Feed,
        bus: Bus,
        store: Store,
        clock: Clock,
        partitions: int = 1,
        fill: Fill | None = None,
        journal: Journal | None = None,
    ) -> None:
        self._feed, self._bus, self._store, self._clock = feed, bus, store, clock
        self._partitions, self._fill, self._journal = partitions, fill, journal
        self._fed = 0
        """Rows that the feed has given since its beginning."""
        self._received_ns = 0
        self._away_since_ns: int | None = None
        """The watermark at which an earlier ingester ended, until the feed shows from where on it goes on."""
        self._ended_gaps: asyncio.Queue[Gap] = asyncio.Queue(_WAITING_GAPS)
        self._seen = SeenTrades(most=REMEMBERED_TRADES)
        self._ruleset = -1
        self._begun = False
        self._on_tape = asyncio.Event()
        """Set once the feed has brought something, from which the engine counts."""
        self._splits: deque[_Split] = deque(maxlen=_SPLITS)
        self._writing = asyncio.Lock()
        """Held for an entry of all partitions, so that a ruleset has the same place among the batches of each."""
        self.state: Literal["starting", "running", "lost", "refused", "ended"] = "starting"
        self.problem = ""
        """What the feed said when it was lost or refused."""
        self.gap: Gap | None = None
        """The stretch of the tape that is missing and has not ended."""
        self.rows = 0
        self.duplicates = 0
        """Trades that had come before, from this connection, an earlier one or the other feed."""
        self.conflicts = 0
        """Of these, those that had come with another price, size or time."""
        self.watermark_ns = 0
        self.batch_ns = 0
        """Wall clock of the newest batch: the age of the data."""

    async def run(self) -> None:
        """Until it is cancelled: rules go on being published after the feed has ended."""
        notices = self._bus.listen(RULES_CHANNEL)
        if self._journal is not None:
            await self._go_on(self._journal)
        await self._publish_rules()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._play(), name="ingest feed")
            looking = tasks.create_task(self._look_for_rules(), name="ingest rules")
            filling = tasks.create_task(self._fill_gaps(), name="ingest back-fill")
            async for _ in notices:
                await self._publish_rules()
            looking.cancel()
            filling.cancel()

    def feeds(self) -> list[FeedStatus]:
        """Each provider's connection; empty for a feed that has none."""
        return self._feed.status() if isinstance(self._feed, Supervised) else []

    async def announce(self, entry: Batch | Facts) -> None:
        """Put what is not the feed's onto the tape, between two of its batches: facts of the day, previous closes,
        trades of a back-fill. Rows wait until the feed has begun the tape. They do not make the feed look alive.
        """
        if isinstance(entry, Batch):
            await self._on_tape.wait()
        async with self._writing:
            await self._write(self._stamped(self._fresh(entry)) if isinstance(entry, Batch) else entry)

    async def _play(self) -> None:
        try:
            async with aclosing(self._feed.batches()) as items:  # type: ignore[type-var]  # feeds are generators
                async for item in items:
                    await self._take(item)
        except FeedLost as error:
            self._tell("lost", str(error))
        except FeedRefused as error:
            self._tell("refused", str(error))
        else:
            self.state = "ended"

    async def _take(self, item: Batch | Gap | Bars) -> None:
        if isinstance(item, Gap):
            if item.end_ns == OPEN_END_NS:
                self.gap = item
                self._tell("lost", item.reason)
            elif self.gap is not None and self.gap.start_ns == item.start_ns:
                self.gap = None
            await self._put(item)
            if self._fill is not None and item.start_ns < item.end_ns < OPEN_END_NS and not self._ended_gaps.full():
                self._ended_gaps.put_nowait(item)
        elif isinstance(item, Bars):
            await self._publish_vendor_bars(item)
        else:
            self.state, self.problem = "running", ""
            await self._publish(item)

    async def _fill_gaps(self) -> None:
        """One gap after the other; one that cannot be filled stays on the tape."""
        while self._fill is not None:
            gap = await self._ended_gaps.get()
            try:
                trades, complete = await self._fill(gap)
            except TapewatchError as error:
                ERRORS_TOTAL.labels(where="ingest.fill").inc()
                log.warning("a gap is not filled", reason=gap.reason, why=str(error))
                continue
            if len(trades):
                await self.announce(trades)
            if complete:
                await self._put(replace(gap, end_ns=gap.start_ns))
            log.info("a gap was filled", reason=gap.reason, trades=len(trades), complete=complete)

    def _tell(self, state: Literal["lost", "refused"], problem: str) -> None:
        self.state, self.problem = state, problem
        ERRORS_TOTAL.labels(where=f"ingest.feed_{state}").inc()
        log.warning("the feed does not deliver", feed=self._feed.name, state=state, why=problem)

    async def _look_for_rules(self) -> None:
        while True:
            await self._clock.sleep(RULES_AGAIN_S)
            await self._publish_rules()

    async def _publish_rules(self) -> None:
        number = await patiently(self._store.ruleset_number, clock=self._clock, where="ingest.rules")
        if number <= self._ruleset:
            return
        snapshot = await patiently(self._store.rules, clock=self._clock, where="ingest.rules")
        # Read after the rules: whatever changes them from here on raises the number again.
        shown = await patiently(self._store.shown_metrics, clock=self._clock, where="ingest.rules")
        if snapshot.number > self._ruleset:  # the other task may have been first
            self._ruleset = snapshot.number
            await self._put(ruleset(*snapshot, shown=shown))

    async def _put(self, entry: Gap | Ruleset) -> None:
        async with self._writing:
            await self._write(entry)

    async def _publish(self, batch: Batch) -> None:
        fed = len(batch)
        batch = self._fresh(batch)
        self.rows += len(batch)
        TICKS_TOTAL.labels(feed=self._feed.name).inc(len(batch))
        async with self._writing:
            begin_ns = first_ns(batch)
            if begin_ns is not None:
                await self._begin(begin_ns)
            batch = self._stamped(batch)
            self.batch_ns = batch.received_ns
            self._fed += fed
            await self._write(batch)
        if len(batch.marks_ns):
            self.watermark_ns = int(batch.marks_ns[-1])
        if len(batch) or len(batch.marks_ns):
            self._on_tape.set()

    def _fresh(self, batch: Batch) -> Batch:
        """Without the trades that came before."""
        again = self._seen.repeats(batch)
        count, conflicts = (int(np.count_nonzero(rows)) for rows in again)
        if not count:
            return batch
        self.duplicates += count
        DUPLICATE_TRADES_TOTAL.labels(feed=self._feed.name).inc(count)
        if conflicts:
            self.conflicts += conflicts
            CONFLICTING_TRADES_TOTAL.labels(feed=self._feed.name).inc(conflicts)
        return batch.take(~again.repeated)

    def _stamped(self, batch: Batch) -> Batch:
        self._received_ns = max(self._clock.now_ns(), self._received_ns + 1)
        return batch.received(self._received_ns)

    async def _begin(self, begin_ns: int) -> None:
        """The feed shows its first instant. The engine counts windows from the first of its tape, which must be the
        same in all partitions; and if an earlier ingester ended before it, what passed in between is missing.
        """
        if self._away_since_ns is not None:
            away_ns, self._away_since_ns = self._away_since_ns, None
            if begin_ns > away_ns:
                gap = Gap(away_ns, begin_ns, "restart")
                await self._write(gap)
                if self._fill is not None and not self._ended_gaps.full():
                    self._ended_gaps.put_nowait(gap)
        if self._partitions > 1 and not self._begun:
            await self._write(self._stamped(pulse(begin_ns)))
        self._begun = True

    async def _write(self, entry: Batch | Gap | Facts | Ruleset) -> None:
        """Onto the tape: one entry a partition. Whoever calls holds `_writing`."""
        if self._journal is not None:
            journal = self._journal
            await patiently(lambda: journal.append(entry, rows=self._fed), clock=self._clock, where="ingest.journal")
        await self._publish_all({f"ticks:{p}": part for p, part in enumerate(self._pieces(entry))})

    async def _publish_all(self, entries: Mapping[str, Entry]) -> None:
        await patiently(lambda: self._bus.publish_all(entries), clock=self._clock, where="ingest.publish")

    def _pieces(self, entry: Entry) -> Sequence[Entry]:
        """What each partition gets of it."""
        if isinstance(entry, Batch):
            return self._parts(entry)
        if isinstance(entry, Facts):
            return _facts_by_partition(entry, self._partitions)
        return [entry] * self._partitions

    # -- after a crash ------------------------------------------------------------------------------------------------

    async def _go_on(self, journal: Journal) -> None:
        """Bring the streams to where the journal ends, and the feed behind it."""
        newest: list[Batch | None] = []
        for p in range(self._partitions):
            stream = f"ticks:{p}"
            await patiently(partial(self._bus.take_over, stream), clock=self._clock, where="ingest.begin")
            entries = await patiently(
                partial(self._bus.newest, stream, _NEWEST), clock=self._clock, where="ingest.begin"
            )
            newest.append(next((entry for _, entry in reversed(entries) if isinstance(entry, Batch)), None))
        on_tape_ns = [0 if batch is None else batch.received_ns for batch in newest]
        self._received_ns = max(on_tape_ns)
        marks = [int(batch.marks_ns[-1]) for batch in newest if batch is not None and len(batch.marks_ns)]
        sent = await self._send_again(journal, on_tape_ns)
        self._begun = self._received_ns > 0
        if not self._begun:
            return
        self.watermark_ns = max([self.watermark_ns, *marks])
        self._on_tape.set()
        if isinstance(self._feed, Resumable):
            if not sent:
                raise ConfigError(
                    f"this tape was played here before, and the journal that says how far is gone: "
                    f"choose another database of the bus, or empty it, to play {self._feed.name} from its beginning"
                )
            self._feed.resume(self._fed)
        else:
            self._away_since_ns = self.watermark_ns

    async def _send_again(self, journal: Journal, on_tape_ns: Sequence[int]) -> bool:
        """To each stream what follows its newest batch in the journal; False if the journal is empty. What is no batch
        and stands behind that one may come twice, which changes nothing.
        """
        reached_ns, count, again = 0, 0, 0
        async for rows, entry in journal.read():
            count += 1
            self._fed = rows
            if isinstance(entry, Batch):
                reached_ns = entry.received_ns
                self._received_ns = max(self._received_ns, reached_ns)
                self._seen.repeats(entry)
                if len(entry.marks_ns):
                    self.watermark_ns = max(self.watermark_ns, int(entry.marks_ns[-1]))
                behind = [p for p, newest_ns in enumerate(on_tape_ns) if reached_ns > newest_ns]
            else:
                behind = [p for p, newest_ns in enumerate(on_tape_ns) if reached_ns >= newest_ns]
            if behind:
                again += 1
                pieces = self._pieces(entry)
                await self._publish_all({f"ticks:{p}": pieces[p] for p in behind})
        if again:
            log.info("the tape goes on from the journal", entries=again)
        return count > 0

    # -- partitions ---------------------------------------------------------------------------------------------------

    def _parts(self, batch: Batch) -> list[Batch]:
        """One batch a partition, each with a dictionary of its own symbols, so that no board lists another's."""
        if self._partitions == 1:
            return [batch]
        split = self._split(batch.symbols)
        owner = split.partition[batch.symbol]
        parts = []
        for p, names in enumerate(split.names):
            part = batch.take(owner == p)
            parts.append(replace(part, symbols=names, symbol=split.place[part.symbol]))
        return parts

    async def _publish_vendor_bars(self, bars: Bars) -> None:
        """The provider's own bars, to compare ours with."""
        split = self._split(bars.symbols)
        owner = split.partition[bars.symbol]
        for p, names in enumerate(split.names):
            part = bars.take(np.flatnonzero(owner == p))
            if len(part):
                await self._bus.publish(
                    f"bars.vendor:{p}", replace(part, symbols=names, symbol=split.place[part.symbol])
                )

    def _split(self, symbols: tuple[str, ...]) -> "_Split":
        for split in self._splits:
            if split.symbols is symbols:
                return split
        split = _Split.of(symbols, self._partitions)
        self._splits.append(split)
        return split


def _facts_by_partition(facts: Facts, partitions: int) -> list[Facts]:
    owner = np.array([partition_of(symbol, partitions) for symbol in facts.symbols], np.int64)
    return [facts.of(np.flatnonzero(owner == p)) for p in range(partitions)]


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
