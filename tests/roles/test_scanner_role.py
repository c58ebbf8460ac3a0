"""scanner: what it puts on `alerts:{p}` stands in the order in which it happened, however the tape was cut."""

from typing import Any

import pytest

from tapewatch.eligibility import load_profile
from tapewatch.engine.columns import OPEN_END_NS, SECOND_NS, Batch, Gap, Kind, make_batch
from tapewatch.engine.rules import Ruleset, RuleSpec, compare
from tapewatch.engine.scanner import Scanner, Withdrawn
from tapewatch.nyse import day_of, trading_days
from tapewatch.ports import Alerts
from tapewatch.roles.scanner import ScannerRole

pytestmark = pytest.mark.anyio

OPEN_NS = day_of("2025-03-03")[1]
ABOVE_TEN = RuleSpec(id="r", version=1, name="r", when=compare("price", ">", 10.0), cooldown_ns=0)


def tape() -> Batch:
    """A print, a scan that fires on it, its cancel, another print, and a scan that fires again."""
    return make_batch(
        symbols=("A",),
        conditions=("@",),
        symbol=[0, 0, 0, 0],
        kind=[Kind.TRADE, Kind.TRADE, Kind.CANCEL, Kind.TRADE],
        ts_ns=[OPEN_NS + s * SECOND_NS for s in (1, 2, 4, 6)],
        price=[9.0, 11.0, 0.0, 12.0],
        size=[100.0] * 4,
        tape=[ord("A")] * 4,
        exchange=[ord("N")] * 4,
        trade_id=[1, 2, 2, 3],
        marks_row=[0, 1, 2, 3, 4],
        marks_ns=[OPEN_NS + s * SECOND_NS for s in (0, 1, 3, 5, 7)],
    )


@pytest.mark.parametrize("pieces", [1, 4])
async def test_alerts_and_withdrawn_prints_keep_their_order(
    bus: Any, clock: Any, running: Any, read: Any, eventually: Any, pieces: int
) -> None:
    scanner = Scanner(days=trading_days(), profile=load_profile("alpaca"))
    role = ScannerRole(scanner=scanner, bus=bus, clock=clock)
    async with running(role):
        await bus.publish("ticks:0", Ruleset(number=1, rules=(ABOVE_TEN,)))
        whole, step = tape(), 4 // pieces
        for start in range(0, 4, step):
            last = await bus.publish("ticks:0", whole.rows(start, start + step))
        await eventually(lambda: role.position == last)
        entries = await read("alerts:0")
    assert [type(entry) for entry in entries] == [Alerts, Withdrawn, Alerts]


async def test_no_rule_fires_while_a_gap_is_open(
    bus: Any, clock: Any, running: Any, read: Any, eventually: Any
) -> None:
    scanner = Scanner(days=trading_days(), profile=load_profile("alpaca"))
    role = ScannerRole(scanner=scanner, bus=bus, clock=clock)
    async with running(role):
        await bus.publish("ticks:0", Ruleset(number=1, rules=(ABOVE_TEN,)))
        await bus.publish("ticks:0", Gap(OPEN_NS, OPEN_END_NS, "silent"))
        last = await bus.publish("ticks:0", tape())
        await eventually(lambda: role.position == last)
        assert [type(entry) for entry in await read("alerts:0")] == [Withdrawn]
