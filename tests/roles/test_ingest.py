"""ingest: rule snapshots once each and at one place, batches split so that nothing is lost or doubled, gaps told."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from tapewatch.contracts.samples import make_rule, make_watchlist
from tapewatch.engine.bars import BarBuilder
from tapewatch.engine.columns import OPEN_END_NS, ROW_COLUMNS, SECOND_NS, Bars, Batch, Facts, Gap, make_batch, pulse
from tapewatch.engine.rules import Ruleset
from tapewatch.engine.symbols import partition_of
from tapewatch.errors import FeedLost, FeedRefused, Unavailable
from tapewatch.feeds.failover import FailoverFeed
from tapewatch.ports import Snapshot
from tapewatch.roles.ingest import Ingest
from tapewatch.telemetry import CONFLICTING_TRADES_TOTAL

pytestmark = pytest.mark.anyio


class Script:
    name = "script"

    def __init__(self, *steps: Batch | Gap | Bars | Exception | asyncio.Event) -> None:
        self.rejected: Mapping[str, int] = MappingProxyType({})
        self._steps = steps
        self.passed = 0
        """Steps that the reader has come back from."""

    async def batches(self) -> AsyncIterator[Batch | Gap | Bars]:
        for step in self._steps:
            if isinstance(step, asyncio.Event):
                await step.wait()
            elif isinstance(step, Exception):
                raise step
            else:
                yield step
            self.passed += 1


async def test_ruleset_is_published_once_a_number_and_before_the_first_batch(
    running: Any, bus: Any, ledger: Any, clock: Any, prints: Any, read: Any, eventually: Any
) -> None:
    ledger.ruleset = Snapshot(3, [make_rule("a"), make_rule("b", enabled=False)], [])
    gate = asyncio.Event()
    ingest = Ingest(feed=Script(prints(1, "A"), gate, prints(2, "A")), bus=bus, store=ledger, clock=clock)
    async with running(ingest, cancel=True):
        await eventually(lambda: ingest.rows == 1)
        for _ in range(3):  # nothing has changed since
            await bus.notify("rules.updated", b"{}")
        ledger.ruleset = Snapshot(5, [], [])
        await bus.notify("rules.updated", b"{}")
        await eventually(lambda: ingest._ruleset == 5)
        ledger.ruleset = Snapshot(4, [make_rule("a")], [])  # an older answer, overtaken on its way
        await bus.notify("rules.updated", b"{}")
        gate.set()
        await eventually(lambda: ingest.state == "ended")
        ledger.ruleset = Snapshot(6, [make_rule("c")], [])  # rules go on after the feed has ended
        await bus.notify("rules.updated", b"{}")
        await eventually(lambda: ingest._ruleset == 6)
        await asyncio.sleep(0)
        tape = await read("ticks:0")
    kinds = [entry.number if isinstance(entry, Ruleset) else "batch" for entry in tape]
    assert kinds == [3, "batch", 5, "batch", 6]
    assert [rule.id for rule in tape[0].rules] == ["a"]


async def test_ruleset_brings_the_watchlists_that_its_rules_name(
    running: Any, bus: Any, ledger: Any, clock: Any, prints: Any, read: Any, eventually: Any
) -> None:
    rule = make_rule("a", conditions=[{"watchlist": "mine"}])
    ledger.ruleset = Snapshot(1, [rule], [make_watchlist("mine", symbols=["A", "B"])])
    ingest = Ingest(feed=Script(prints(1, "A")), bus=bus, store=ledger, clock=clock, partitions=2)
    async with running(ingest, cancel=True):
        await eventually(lambda: ingest.state == "ended")
        for p in range(2):
            first = (await read(f"ticks:{p}"))[0]
            assert isinstance(first, Ruleset)
            assert dict(first.watchlists) == {"mine": frozenset({"A", "B"})}


async def test_facts_are_divided_with_their_labels(
    running: Any, bus: Any, ledger: Any, clock: Any, prints: Any, read: Any, eventually: Any
) -> None:
    names = tuple(f"S{n}" for n in range(20))
    facts = Facts(
        day_start_ns=1,
        symbols=names,
        names=("close_prev_day",),
        values=np.arange(20.0)[None, :],
        labels={"sector": tuple(f"of {name}" for name in names), "type": ("",) * 20},
    )
    ingest = Ingest(feed=Script(prints(1, "A")), bus=bus, store=ledger, clock=clock, partitions=3)
    async with running(ingest, cancel=True):
        await eventually(lambda: ingest.state == "ended")
        await ingest.announce(facts)
        parts = [(await read(f"ticks:{p}"))[-1] for p in range(3)]
    assert sorted(symbol for part in parts for symbol in part.symbols) == sorted(names)
    for p, part in enumerate(parts):
        assert {partition_of(symbol, 3) for symbol in part.symbols} == {p}
        assert part.labels == {
            "sector": tuple(f"of {symbol}" for symbol in part.symbols),
            "type": ("",) * len(part.symbols),
        }
        assert [f"S{value:.0f}" for value in part.values[0]] == list(part.symbols)


async def test_store_away_at_a_change_of_rules_delays_the_change_and_not_the_tape(
    running: Any, bus: Any, ledger: Any, clock: Any, prints: Any, eventually: Any
) -> None:
    gate = asyncio.Event()
    ingest = Ingest(feed=Script(prints(1, "A"), gate, prints(2, "A")), bus=bus, store=ledger, clock=clock)
    async with running(ingest, cancel=True):
        await eventually(lambda: ingest.rows == 1)
        ledger.away = True
        ledger.ruleset = Snapshot(1, [make_rule("a")], [])
        await bus.notify("rules.updated", b"{}")
        await eventually(lambda: ledger.refused == 1)
        gate.set()
        await eventually(lambda: ingest.rows == 2)
        assert ingest._ruleset == 0
        ledger.away = False
        await clock.wake()
        await eventually(lambda: ingest._ruleset == 1)


async def test_batches_split_by_partition_add_up_to_the_whole_in_order(
    running: Any, bus: Any, ledger: Any, clock: Any, read: Any, eventually: Any
) -> None:
    names = tuple(f"S{n}" for n in range(40))
    random = np.random.default_rng(1)
    n = 500
    batch = make_batch(
        symbols=names,
        conditions=("@", "I"),
        symbol=random.integers(0, 40, n),
        condition=random.integers(0, 2, n),
        ts_ns=np.arange(n) + 1,
        price=random.random(n) + 1,
        size=random.random(n) + 1,
        trade_id=np.arange(n),
        marks_row=[0, 100, n],
        marks_ns=[1, 101, 501],
    )
    ingest = Ingest(feed=Script(batch, batch), bus=bus, store=ledger, clock=clock, partitions=4)
    async with running(ingest, cancel=True):
        await eventually(lambda: ingest.state == "ended")
        tapes = [[entry for entry in await read(f"ticks:{p}") if isinstance(entry, Batch)] for p in range(4)]
    # The tape begins at the same instant in all partitions.
    assert [tape.pop(0).marks_ns.tolist() for tape in tapes] == [[1]] * 4
    assert [len(tape) for tape in tapes] == [2] * 4
    seen: dict[int, dict[str, Any]] = {}
    for p, (part, again) in enumerate(tapes):
        assert part.symbols is again.symbols  # one dictionary, so that readers need not translate again
        assert {partition_of(symbol, 4) for symbol in part.symbols} <= {p}
        assert part.marks_ns.tolist() == [1, 101, 501]
        assert part.marks_row[0] == 0
        assert part.marks_row[1] == np.searchsorted(part.ts_ns, 101)
        assert part.marks_row[2] == len(part)
        assert part.received_ns == 1_000_001  # behind the pulse that began the tape
        for row in range(len(part)):
            facts = {name: getattr(part, name)[row] for name in ROW_COLUMNS if name != "symbol"}
            seen[int(part.trade_id[row])] = facts | {"symbol": part.symbols[part.symbol[row]]}
    assert sorted(sum((tape[0].symbols for tape in tapes), ())) == sorted(names)
    for row in range(n):
        facts = {name: getattr(batch, name)[row] for name in ROW_COLUMNS if name != "symbol"}
        assert seen[row] == facts | {"symbol": names[batch.symbol[row]]}


def test_partition_of_a_symbol_is_fixed_for_ever() -> None:
    assert [partition_of(symbol, 64) for symbol in ("AAPL", "BRK.B", "ZVZZT")] == [28, 44, 28]


async def test_change_of_rules_whose_notice_was_lost_is_found_within_five_seconds(
    running: Any, bus: Any, ledger: Any, clock: Any, read: Any, eventually: Any
) -> None:
    ingest = Ingest(feed=Script(asyncio.Event()), bus=bus, store=ledger, clock=clock)
    async with running(ingest, cancel=True):
        await eventually(lambda: ingest._ruleset == 0)
        ledger.ruleset = Snapshot(1, [make_rule("a")], [])
        await clock.wake()
        await eventually(lambda: ingest._ruleset == 1)
        await asyncio.sleep(0)
        tape = await read("ticks:0")
    assert [entry.number for entry in tape] == [0, 1]
    assert clock.asked_s[0] == 5.0


@pytest.mark.parametrize(
    ("error", "state"), [(FeedLost("the line is dead"), "lost"), (FeedRefused("the line is dead"), "refused")]
)
async def test_feed_that_breaks_has_ended_and_rules_go_on(
    running: Any, bus: Any, ledger: Any, clock: Any, prints: Any, eventually: Any, error: Exception, state: str
) -> None:
    ingest = Ingest(feed=Script(prints(1, "A"), error, prints(2, "A")), bus=bus, store=ledger, clock=clock)
    async with running(ingest, cancel=True):
        await eventually(lambda: ingest.state == state)
        assert (ingest.problem, ingest.rows) == ("the line is dead", 1)
        ledger.ruleset = Snapshot(1, [], [])
        await bus.notify("rules.updated", b"{}")
        await eventually(lambda: ingest._ruleset == 1)


async def test_gap_stands_in_every_partition_and_in_the_state_until_it_ends(
    running: Any, bus: Any, ledger: Any, clock: Any, prints: Any, read: Any, eventually: Any, open_ns: int
) -> None:
    opened = Gap(open_ns, OPEN_END_NS, "network")
    other, ended = Gap(open_ns - 5, open_ns - 3, "overflow"), Gap(open_ns, open_ns + SECOND_NS, "network")
    gates = [asyncio.Event() for _ in range(3)]
    feed = Script(prints(1, "A"), opened, gates[0], other, gates[1], ended, prints(2, "A"), gates[2])
    ingest = Ingest(feed=feed, bus=bus, store=ledger, clock=clock, partitions=2)
    async with running(ingest, cancel=True):
        await eventually(lambda: ingest.gap == opened)
        assert (ingest.state, ingest.problem) == ("lost", "network")
        gates[0].set()
        await eventually(lambda: feed.passed == 4)
        assert ingest.gap == opened
        gates[1].set()
        await eventually(lambda: ingest.rows == 2)
        assert ingest.gap is None
        assert (ingest.state, ingest.problem) == ("running", "")
        for p in range(2):
            gaps = [entry for entry in await read(f"ticks:{p}") if isinstance(entry, Gap)]
            assert gaps == [opened, other, ended]


async def test_bars_of_the_provider_go_to_a_stream_of_their_own_by_partition(
    running: Any, bus: Any, ledger: Any, clock: Any, prints: Any, read: Any, eventually: Any, builder: BarBuilder
) -> None:
    names = tuple(f"S{n}" for n in range(20))
    builder.step(prints(1, *names))
    bars = builder.step(pulse(int(prints(1, "A").ts_ns[0]) + 120 * SECOND_NS))
    assert len(bars) == 20
    ingest = Ingest(feed=Script(bars), bus=bus, store=ledger, clock=clock, partitions=3)
    seen: list[str] = []
    async with running(ingest, cancel=True):
        await eventually(lambda: ingest.state == "ended")
        for p in range(3):
            (part,) = await read(f"bars.vendor:{p}")
            own = [part.symbols[i] for i in part.symbol]
            assert {partition_of(symbol, 3) for symbol in own} == {p}
            seen += own
            assert not [entry for entry in await read(f"ticks:{p}") if isinstance(entry, Bars)]
    assert sorted(seen) == sorted(names)


async def test_status_of_each_provider_is_at_hand(
    running: Any, bus: Any, ledger: Any, clock: Any, prints: Any, eventually: Any
) -> None:
    plain = Script(prints(1, "A"))
    assert Ingest(feed=plain, bus=bus, store=ledger, clock=clock).feeds() == []
    ingest = Ingest(feed=FailoverFeed(plain, None, clock), bus=bus, store=ledger, clock=clock)
    async with running(ingest, cancel=True):
        await eventually(lambda: ingest.state == "ended")
        (status,) = ingest.feeds()
    assert (status.name, status.role, status.rows) == ("script", "primary", 1)


def named(batch: Batch, first_id: int) -> Batch:
    """The batch with trade ids from `first_id` on."""
    n = len(batch)
    return replace(batch, trade_id=np.arange(first_id, first_id + n), exchange=np.full(n, ord("N"), np.uint8))


async def test_trades_that_came_before_are_left_out_and_counted(
    running: Any, bus: Any, ledger: Any, clock: Any, prints: Any, read: Any, eventually: Any
) -> None:
    first, again = named(prints(1, "A", "B"), 7), named(prints(2, "A", "B", "C"), 7)
    feed = Script(first, replace(again, ts_ns=np.concatenate([first.ts_ns, again.ts_ns[2:]])))
    ingest = Ingest(feed=feed, bus=bus, store=ledger, clock=clock)
    async with running(ingest, cancel=True):
        await eventually(lambda: ingest.state == "ended")
        tape = [entry for entry in await read("ticks:0") if isinstance(entry, Batch)]
    assert [len(batch) for batch in tape] == [2, 1]
    assert [batch.symbols[batch.symbol[-1]] for batch in tape] == ["B", "C"]
    assert (ingest.rows, ingest.duplicates, ingest.conflicts) == (3, 2, 0)
    assert tape[1].marks_row.tolist() == [1]


async def test_of_a_trade_that_comes_with_another_price_the_first_stands_and_the_conflict_is_counted(
    running: Any, bus: Any, ledger: Any, clock: Any, prints: Any, read: Any, eventually: Any
) -> None:
    first = named(prints(1, "A", "B"), 7)
    dearer = replace(first, price=first.price + np.array([0.0, 0.01]))
    ingest = Ingest(feed=Script(first, first, dearer), bus=bus, store=ledger, clock=clock)
    counted = CONFLICTING_TRADES_TOTAL.labels(feed="script")._value.get()
    async with running(ingest, cancel=True):
        await eventually(lambda: ingest.state == "ended")
        tape = [entry for entry in await read("ticks:0") if isinstance(entry, Batch)]
    assert [batch.price.tolist() for batch in tape] == [first.price.tolist(), [], []]
    assert (ingest.rows, ingest.duplicates, ingest.conflicts) == (2, 4, 1)
    assert CONFLICTING_TRADES_TOTAL.labels(feed="script")._value.get() == counted + 1


@pytest.mark.parametrize("complete", [True, False])
async def test_gap_is_filled_and_taken_back_when_all_of_it_came(
    running: Any, bus: Any, ledger: Any, clock: Any, prints: Any, read: Any, eventually: Any, *, complete: bool
) -> None:
    before, after, missed = named(prints(1, "A"), 1), named(prints(9, "A"), 9), named(prints(5, "A", "B"), 4)
    start_ns, end_ns = int(before.ts_ns[0]), int(after.ts_ns[0])
    asked: list[Gap] = []

    async def fill(gap: Gap) -> tuple[Batch, bool]:
        asked.append(gap)
        return missed, complete

    feed = Script(before, Gap(start_ns, OPEN_END_NS, "network"), Gap(start_ns, end_ns, "network"), after)
    ingest = Ingest(feed=feed, bus=bus, store=ledger, clock=clock, fill=fill)
    async with running(ingest, cancel=True):
        await eventually(lambda: len(asked) == 1)
        last = Gap(start_ns, start_ns, "network")
        tape: list[Any] = []
        while not (last in tape if complete else any(len(entry) == 2 for entry in tape if isinstance(entry, Batch))):
            await asyncio.sleep(0)
            tape = await read("ticks:0")
    assert asked == [Gap(start_ns, end_ns, "network")]
    assert (last in tape) == complete
    rows = [entry.trade_id.tolist() for entry in tape if isinstance(entry, Batch)]
    assert sorted(rows) == [[1], [4, 5], [9]]


async def test_gap_that_the_source_cannot_fill_stays_and_the_tape_goes_on(
    running: Any, bus: Any, ledger: Any, clock: Any, prints: Any, read: Any, eventually: Any
) -> None:
    async def fill(_gap: Gap) -> tuple[Batch, bool]:
        raise Unavailable("the source is away")

    gate = asyncio.Event()
    first = prints(1, "A")
    start_ns = int(first.ts_ns[0])
    gap = Gap(start_ns, start_ns + 5 * SECOND_NS, "network")
    feed = Script(first, gap, gate, prints(9, "A"))
    ingest = Ingest(feed=feed, bus=bus, store=ledger, clock=clock, fill=fill)
    async with running(ingest, cancel=True):
        await eventually(lambda: feed.passed == 2)
        gate.set()
        await eventually(lambda: ingest.state == "ended")
        tape = await read("ticks:0")
    assert [entry for entry in tape if isinstance(entry, Gap)] == [gap]
    assert ingest.rows == 2
