"""ingest: rule snapshots once each and at one place, batches split so that nothing is lost or doubled."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from tapewatch.contracts.samples import make_rule
from tapewatch.engine.columns import ROW_COLUMNS, Batch, make_batch
from tapewatch.engine.rules import Ruleset
from tapewatch.roles.ingest import Ingest, partition_of

pytestmark = pytest.mark.anyio


class Script:
    name = "script"

    def __init__(self, *steps: Batch | asyncio.Event) -> None:
        self.rejected: Mapping[str, int] = MappingProxyType({})
        self._steps = steps

    async def batches(self) -> AsyncIterator[Batch]:
        for step in self._steps:
            if isinstance(step, asyncio.Event):
                await step.wait()
            else:
                yield step


async def test_ruleset_is_published_once_a_number_and_before_the_first_batch(
    running: Any, bus: Any, ledger: Any, clock: Any, prints: Any, read: Any, eventually: Any
) -> None:
    ledger.ruleset = (3, [make_rule("a"), make_rule("b", enabled=False)])
    gate = asyncio.Event()
    ingest = Ingest(feed=Script(prints(1, "A"), gate, prints(2, "A")), bus=bus, store=ledger, clock=clock)
    async with running(ingest, cancel=True):
        await eventually(lambda: ingest.rows == 1)
        for _ in range(3):  # nothing has changed since
            await bus.notify("rules.updated", b"{}")
        ledger.ruleset = (5, [])
        await bus.notify("rules.updated", b"{}")
        await eventually(lambda: ingest._ruleset == 5)
        ledger.ruleset = (4, [make_rule("a")])  # an older answer, overtaken on its way
        await bus.notify("rules.updated", b"{}")
        gate.set()
        await eventually(lambda: ingest.state == "ended")
        ledger.ruleset = (6, [make_rule("c")])  # rules go on after the feed has ended
        await bus.notify("rules.updated", b"{}")
        await eventually(lambda: ingest._ruleset == 6)
        await asyncio.sleep(0)
        tape = await read("ticks:0")
    kinds = [entry.number if isinstance(entry, Ruleset) else "batch" for entry in tape]
    assert kinds == [3, "batch", 5, "batch", 6]
    assert [rule.id for rule in tape[0].rules] == ["a"]


async def test_store_away_at_a_change_of_rules_delays_the_change_and_not_the_tape(
    running: Any, bus: Any, ledger: Any, clock: Any, prints: Any, eventually: Any
) -> None:
    gate = asyncio.Event()
    ingest = Ingest(feed=Script(prints(1, "A"), gate, prints(2, "A")), bus=bus, store=ledger, clock=clock)
    async with running(ingest, cancel=True):
        await eventually(lambda: ingest.rows == 1)
        ledger.away = True
        ledger.ruleset = (1, [make_rule("a")])
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
        assert part.received_ns == 1_000_000
        for row in range(len(part)):
            facts = {name: getattr(part, name)[row] for name in ROW_COLUMNS if name != "symbol"}
            seen[int(part.trade_id[row])] = facts | {"symbol": part.symbols[part.symbol[row]]}
    assert sorted(sum((tape[0].symbols for tape in tapes), ())) == sorted(names)
    for row in range(n):
        facts = {name: getattr(batch, name)[row] for name in ROW_COLUMNS if name != "symbol"}
        assert seen[row] == facts | {"symbol": names[batch.symbol[row]]}


def test_partition_of_a_symbol_is_fixed_for_ever() -> None:
    assert [partition_of(symbol, 64) for symbol in ("AAPL", "BRK.B", "ZVZZT")] == [28, 44, 28]
