"""bars: what is saved, what waits while the store is away, and the live bars."""

import asyncio
import json
from typing import Any

import pytest

from tapewatch.adapters.memory import MemoryBus
from tapewatch.engine.bars import BarBuilder
from tapewatch.engine.columns import Bars
from tapewatch.roles.bars import BarsRole
from tapewatch.telemetry import ERRORS_TOTAL

pytestmark = pytest.mark.anyio


@pytest.fixture
def role(builder: BarBuilder, bus: Any, hot: Any, ledger: Any, clock: Any) -> BarsRole:
    return BarsRole(builder=builder, bus=bus, hot=hot, store=ledger, clock=clock, most_pending=3)


def times(bars: Bars, open_ns: int) -> list[int]:
    """Minutes after the open."""
    return [(ts_ns - open_ns) // 60_000_000_000 for ts_ns in bars.ts_ns.tolist()]


async def test_bars_are_saved_each_second(
    role: BarsRole, running: Any, bus: Any, ledger: Any, clock: Any, prints: Any, eventually: Any, read: Any
) -> None:
    async with running(role):
        await bus.publish("ticks:0", prints(1, "A"))
        await bus.publish("ticks:0", prints(70, "A", "B"))
        last = await bus.publish("ticks:0", prints(71, "A"))
        await eventually(lambda: role.position == last)
        assert ledger.bars == []
        await clock.wake()
        await eventually(lambda: len(ledger.bars) == 1)
        published = await read("bars.finalized:0")
    (saved,) = ledger.bars
    assert [saved.symbols[i] for i in saved.symbol] == ["A"]
    assert len(published) == 1


async def test_bars_pending_at_the_end_are_saved(
    role: BarsRole, running: Any, bus: Any, ledger: Any, prints: Any, eventually: Any
) -> None:
    async with running(role):
        await bus.publish("ticks:0", prints(1, "A"))
        last = await bus.publish("ticks:0", prints(70, "A"))
        await eventually(lambda: role.position == last)
    (saved,) = ledger.bars
    assert len(saved) == 1


async def test_store_away_makes_the_role_stop_reading_at_its_bound_and_lose_nothing(
    role: BarsRole, running: Any, bus: Any, ledger: Any, clock: Any, prints: Any, eventually: Any, open_ns: int
) -> None:
    ledger.away = True
    async with running(role):
        positions = [await bus.publish("ticks:0", prints(60 * minute + 5, "A", "B")) for minute in range(8)]
        await eventually(lambda: ledger.refused == 1)
        assert role.position is not None
        # The second minute's two bars are one too many: that batch is not done before they are saved.
        assert role.position == positions[1]
        for tries in range(2, 5):
            await clock.wake()
            await eventually(lambda tries=tries: ledger.refused >= tries)
        assert role.position == positions[1]
        ledger.away = False
        await clock.wake()
        await eventually(lambda: role.position == positions[-1])
    minutes = [minute for saved in ledger.bars for minute in times(saved, open_ns)]
    assert minutes == [minute for minute in range(7) for _ in "AB"]


async def test_waits_for_the_store_grow_to_a_bound(
    role: BarsRole, running: Any, bus: Any, ledger: Any, clock: Any, prints: Any, eventually: Any
) -> None:
    ledger.away = True
    async with running(role):
        for second in (1, 70):
            last = await bus.publish("ticks:0", prints(second, "A"))
        await eventually(lambda: role.position == last)
        for tries in range(1, 12):
            await clock.wake()
            await eventually(lambda tries=tries: ledger.refused >= tries)
        ledger.away = False
        await clock.wake()
    waits_s = [asked_s for asked_s in clock.asked_s if asked_s != 1.0]
    assert 0.05 <= waits_s[0] <= 0.1
    assert 2.5 <= max(waits_s) <= 5.0


async def test_live_bar_is_json_with_unknown_as_null_and_shown_when_it_changed(
    role: BarsRole, running: Any, bus: Any, hot: Any, clock: Any, prints: Any, eventually: Any
) -> None:
    async with running(role):
        await bus.publish("ticks:0", prints(1, "A", "B", price=10.0))
        last = await bus.publish("ticks:0", prints(2, "A", price=12.0, size=300.0))
        await eventually(lambda: role.position == last)
        await clock.wake()
        await eventually(lambda: len(hot) == 2)
        a, b, other = await hot.get(["livebar:A", "livebar:B", "livebar:C"])
        assert json.loads(a) == {
            "symbol": "A", "ts": "2025-03-03T14:30:00.000000000Z", "open": 10.0, "high": 12.0, "low": 10.0,
            "close": 12.0, "volume": 400.0, "vwap": 11.5, "trade_count": 2,
        }  # fmt: skip
        assert json.loads(b)["close"] == 10.0
        assert other is None
        puts: list[set[str]] = []
        put = hot.put

        async def spy(values: dict[str, bytes], *, ttl_s: float) -> None:
            puts.append(set(values))
            await put(values, ttl_s=ttl_s)

        hot.put = spy
        last = await bus.publish("ticks:0", prints(3, "B"))
        await eventually(lambda: role.position == last)
        await clock.wake()
        await eventually(lambda: puts == [{"livebar:B"}])


async def test_hot_state_that_is_full_does_not_stop_bars(
    role: BarsRole, running: Any, bus: Any, hot: Any, clock: Any, ledger: Any, prints: Any, eventually: Any
) -> None:
    hot._max_keys = 0
    async with running(role):
        await bus.publish("ticks:0", prints(1, "A"))
        last = await bus.publish("ticks:0", prints(70, "A"))
        await eventually(lambda: role.position == last)
        for _ in range(3):
            await clock.wake()
        await eventually(lambda: len(ledger.bars) == 1)


async def test_entries_trimmed_before_they_were_read_are_skipped_and_counted(
    builder: BarBuilder, hot: Any, ledger: Any, clock: Any, prints: Any, eventually: Any
) -> None:
    small = MemoryBus(capacity=4)
    role = BarsRole(builder=builder, bus=small, hot=hot, store=ledger, clock=clock, most_pending=1)
    lost = ERRORS_TOTAL.labels(where="bars.read")._value
    before = lost.get()
    task = asyncio.create_task(role.run())
    ledger.away = True
    for minute in range(3):
        await small.publish("ticks:0", prints(60 * minute + 5, "A", "B"))
    await eventually(lambda: ledger.refused == 1)
    for second in range(200, 212):
        last = await small.publish("ticks:0", prints(second, "A"))
    ledger.away = False
    await clock.wake()
    await eventually(lambda: role.position == last)
    assert lost.get() == before + 1
    await small.close()
    await task
