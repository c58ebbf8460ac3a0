"""Readers that die and are replaced: what they say and store is what one that lived on would have said and stored."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from tapewatch.adapters.memory import MemoryBus, MemoryHotState
from tapewatch.documents import Alert
from tapewatch.eligibility import load_profile
from tapewatch.engine.bars import BarBuilder
from tapewatch.engine.columns import SECOND_NS, Bars, Batch, Gap, make_batch, pulse
from tapewatch.engine.indicators import Indicators
from tapewatch.engine.rules import Ruleset, RuleSpec, compare
from tapewatch.engine.scanner import Scanner
from tapewatch.errors import LeaseLost, PositionLost
from tapewatch.nyse import day_of, trading_days
from tapewatch.ports import Alerts, Entry, Position, Saved
from tapewatch.replay import final_bars
from tapewatch.roles.alerts import AlertsRole
from tapewatch.roles.bars import BarsRole
from tapewatch.roles.indicators import IndicatorsRole
from tapewatch.roles.recovery import Hole, Recovery
from tapewatch.roles.scanner import ScannerRole

pytestmark = pytest.mark.anyio

OPEN_NS = day_of("2025-03-03")[1]
SYMBOLS = ("A", "B", "C")
RULES = Ruleset(
    number=1,
    rules=(
        RuleSpec(id="high", version=1, name="high", when=compare("price", ">", 103.0), cooldown_ns=40 * SECOND_NS),
        RuleSpec(id="busy", version=1, name="busy", when=compare("volume_1m", ">", 900.0), cooldown_ns=0),
    ),
)
ENGINE: dict[str, Any] = {"days": trading_days(), "profile": load_profile("alpaca"), "kept_trades": 1_000}
SCANNING: dict[str, Any] = {**ENGINE, "scan_interval_ns": SECOND_NS, "board_interval_ns": 60 * SECOND_NS}


class Vault:
    """A store as far as readers need one; it keeps the newest revision of a bar and an alert once."""

    def __init__(self) -> None:
        self.bars: dict[tuple[str, int], tuple[float, ...]] = {}
        self.alerts: dict[str, Alert] = {}
        self.saved: dict[str, Saved] = {}

    async def take_over(self, reader: str) -> Saved:
        before = self.saved.get(reader, Saved(0, None, None))
        self.saved[reader] = before._replace(owner=before.owner + 1)
        return self.saved[reader]

    async def save_state(self, reader: str, state: bytes, *, position: Position, owner: int | None = None) -> None:
        self._check(reader, owner)
        self.saved[reader] = Saved(self.saved[reader].owner, position, state)

    async def save_bars(self, bars: Bars, *, reader: str, owner: int | None = None) -> None:
        self._check(reader, owner)
        names = ("open", "high", "low", "close", "volume", "vwap", "trade_count", "revision")
        for row in range(len(bars)):
            key = (bars.symbols[bars.symbol[row]], int(bars.ts_ns[row]))
            facts = tuple(float(getattr(bars, name)[row]) for name in names)
            if facts[-1] >= self.bars.get(key, (0.0,) * 8)[-1]:
                self.bars[key] = facts

    async def save_alerts(
        self, alerts: Sequence[Alert], *, reader: str, position: Position | None, owner: int | None = None
    ) -> list[Alert]:
        self._check(reader, owner)
        new = [alert for alert in alerts if alert.alert_id not in self.alerts]
        self.alerts |= {alert.alert_id: alert for alert in new}
        if position is not None:
            self.saved[reader] = self.saved[reader]._replace(position=position)
        return new

    async def annotate_alerts(self, symbol: str, **about: Any) -> list[Alert]:
        changed = []
        for key, alert in self.alerts.items():
            if alert.symbol == symbol and alert.fired_at_ns >= about["since_ns"]:
                noted = alert.annotated(about["note"])
                changed += [noted] if noted.note != alert.note else []
                self.alerts[key] = noted
        return changed

    def _check(self, reader: str, owner: int | None) -> None:
        if owner is not None and owner != self.saved[reader].owner:
            raise LeaseLost(reader)


class Clock:
    """Goes on by a second at each look, so that states are kept often."""

    def __init__(self) -> None:
        self._now_ns = 0

    def now_ns(self) -> int:
        self._now_ns += SECOND_NS
        return self._now_ns

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.001))


def tape() -> list[Batch]:
    """Five minutes; each second a print of each symbol, some late, one of them cancelled."""
    batches = []
    for second in range(0, 300, 3):
        at_ns = OPEN_NS + second * SECOND_NS
        late_ns = at_ns - (70 * SECOND_NS if second % 30 == 0 and second > 90 else 0)
        kind = [0, 0, 1 if second == 150 else 0]
        batches.append(
            make_batch(
                symbols=SYMBOLS,
                conditions=("@",),
                symbol=[0, 1, 2],
                kind=kind,
                ts_ns=[at_ns, late_ns, at_ns],
                price=[100.0 + second % 7, 50.0 + second % 5, 102.0 + second // 3 % 3],
                size=[100.0, 200.0 + second, 50.0],
                tape=[67] * 3,
                exchange=[78] * 3,
                trade_id=[second + 1, second + 2, 121 if second == 150 else second + 1],
                marks_row=[0, 3],
                marks_ns=[at_ns, at_ns + 1],
            )
        )
    return batches


async def _lives(make: Any, bus: MemoryBus, stream: str, deaths: Sequence[int]) -> None:
    """One reader after the other: each is killed when it has done so many entries; the last lives on to the end."""
    end = await bus.tail(stream)
    for death in [*deaths, None]:
        role = make()
        done: list[Position] = []
        leave = asyncio.Event()
        task = asyncio.create_task(role.run(leave))
        async with asyncio.timeout(30):
            while role.position != end and not task.done():
                if role.position is not None and (not done or role.position != done[-1]):
                    done.append(role.position)
                if death is not None and len(done) > death:
                    break
                await asyncio.sleep(0)
        if death is None or task.done():
            leave.set()
            async with asyncio.timeout(30):
                await task
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(deaths=st.lists(st.integers(0, 60), max_size=4))
def test_chain_of_readers_that_die_says_and_stores_what_lives_on(deaths: list[int]) -> None:
    async def play(deaths: Sequence[int]) -> tuple[Any, ...]:
        bus, hot, vault, clock = MemoryBus(epoch=1, capacity=100_000), MemoryHotState(), Vault(), Clock()
        await bus.publish("ticks:0", RULES)
        for batch in tape():
            await bus.publish("ticks:0", batch)
        shared: dict[str, Any] = {"bus": bus, "store": vault, "clock": clock}

        def bars() -> BarsRole:
            role = BarsRole(builder=BarBuilder(**ENGINE), thaw=partial(BarBuilder.thaw, **ENGINE), hot=hot, **shared)
            role.recovery = Recovery("bars:0", "ticks:0", keep_s=4.0, **shared)
            return role

        def scanner() -> ScannerRole:
            role = ScannerRole(scanner=Scanner(**SCANNING), thaw=partial(Scanner.thaw, **SCANNING), **shared)
            role.recovery = Recovery("scanner:0", "ticks:0", keep_s=4.0, **shared)
            return role

        def indicators() -> IndicatorsRole:
            days = ENGINE["days"]
            thaw = partial(Indicators.thaw, days=days)
            role = IndicatorsRole(indicators=Indicators(days), thaw=thaw, hot=hot, **shared)
            role.recovery = Recovery("indicators:0", "bars.finalized:0", keep_s=4.0, **shared)
            return role

        await _lives(bars, bus, "ticks:0", deaths)
        await _lives(scanner, bus, "ticks:0", deaths)
        await _lives(indicators, bus, "bars.finalized:0", deaths)
        await _lives(lambda: AlertsRole(resumes=True, **shared), bus, "alerts:0", deaths)
        finalized = [entry for _, entry in await bus.newest("bars.finalized:0", 10_000) if isinstance(entry, Bars)]
        told = [entry for _, entry in await bus.newest("alerts.filtered:0", 10_000) if isinstance(entry, Alerts)]
        first = {alert.alert_id: alert for entry in reversed(told) for alert in reversed(entry.alerts)}
        whole = final_bars(finalized)
        shown = await hot.get([f"ind:{symbol}" for symbol in SYMBOLS])
        twice = [alert for entry in told for alert in entry.alerts if not alert.note]
        assert len({alert.alert_id for alert in twice}) == len(twice)
        stored = {key: structs.replace(alert, scanned_ns=0, filtered_ns=0) for key, alert in vault.alerts.items()}
        return vault.bars, stored, first.keys(), whole.close.tolist(), whole.volume.tolist(), shown

    alive, died = asyncio.run(play([])), asyncio.run(play(deaths))
    assert len(alive[0]) == 4 * len(SYMBOLS)
    assert len(alive[1]) > 10
    assert any(alert.note for alert in alive[1].values())
    assert died == alive


async def test_fenced_owner_cannot_write_and_its_successor_goes_on() -> None:
    bus, hot, vault, clock = MemoryBus(epoch=1), MemoryHotState(), Vault(), Clock()
    shared: dict[str, Any] = {"bus": bus, "store": vault, "clock": clock}

    def role() -> BarsRole:
        return BarsRole(builder=BarBuilder(**ENGINE), thaw=partial(BarBuilder.thaw, **ENGINE), hot=hot, **shared)

    old, leave = role(), asyncio.Event()
    task = asyncio.create_task(old.run(leave))
    batches = tape()
    for batch in batches[:15]:
        await bus.publish("ticks:0", batch)
    async with asyncio.timeout(10):
        while old.position != await bus.tail("ticks:0"):  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0)
    await vault.take_over("bars:0")
    for batch in batches[15:40]:
        await bus.publish("ticks:0", batch)
    with pytest.raises(BaseExceptionGroup) as raised:
        async with asyncio.timeout(10):
            await task
    assert raised.group_contains(LeaseLost)
    assert vault.bars == {}


async def test_scanner_that_catches_up_publishes_alerts_and_no_old_boards() -> None:
    bus, vault, clock = MemoryBus(epoch=1), Vault(), Clock()
    await bus.publish("ticks:0", RULES)
    batches = tape()
    for batch in batches[:-1]:
        await bus.publish("ticks:0", batch)
    shared: dict[str, Any] = {"bus": bus, "store": vault, "clock": clock}
    role = ScannerRole(scanner=Scanner(**SCANNING), thaw=partial(Scanner.thaw, **SCANNING), **shared)
    leave = asyncio.Event()
    task = asyncio.create_task(role.run(leave))
    async with asyncio.timeout(10):
        while role.recovery.phase != "running":  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0)
        assert await bus.newest("alerts:0", 10)
        assert not await bus.newest("board:0", 10)
        await bus.publish("ticks:0", pulse(OPEN_NS + 400 * SECOND_NS))
        while not await bus.newest("board:0", 10):  # noqa: ASYNC110  # the same
            await asyncio.sleep(0)
    leave.set()
    await task


async def test_scanner_that_has_caught_up_publishes_the_board_though_nothing_follows() -> None:
    bus, vault, clock = MemoryBus(epoch=1), Vault(), Clock()
    await bus.publish("ticks:0", RULES)
    for batch in [*tape(), pulse(OPEN_NS + 400 * SECOND_NS)]:
        await bus.publish("ticks:0", batch)
    shared: dict[str, Any] = {"bus": bus, "store": vault, "clock": clock}
    role = ScannerRole(scanner=Scanner(**SCANNING), thaw=partial(Scanner.thaw, **SCANNING), **shared)
    leave = asyncio.Event()
    task = asyncio.create_task(role.run(leave))
    async with asyncio.timeout(10):
        while not await bus.newest("board:0", 10):  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0)
    leave.set()
    await task


async def test_entries_that_were_lost_are_a_gap_of_the_scanner() -> None:
    bus, vault, clock = MemoryBus(epoch=1, capacity=30), Vault(), Clock()
    shared: dict[str, Any] = {"bus": bus, "store": vault, "clock": clock}

    def role() -> ScannerRole:
        return ScannerRole(scanner=Scanner(**SCANNING), thaw=partial(Scanner.thaw, **SCANNING), **shared)

    batches = tape()
    for batch in batches[:20]:
        await bus.publish("ticks:0", batch)
    await _lives(role, bus, "ticks:0", [])
    for batch in batches[20:]:
        await bus.publish("ticks:0", batch)
    late = role()
    leave = asyncio.Event()
    task = asyncio.create_task(late.run(leave))
    async with asyncio.timeout(10):
        while late.position != await bus.tail("ticks:0"):  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0)
    leave.set()
    await task
    lost_from = int(batches[19].marks_ns[-1])
    kept_from = int(batches[-30].marks_ns[0])
    assert late.scanner.bars.gaps == {lost_from: kept_from}


class LossyBus:
    """A bus whose log, after some entries, comes back as another one."""

    def __init__(self, before: Sequence[Entry], after: Sequence[Entry]) -> None:
        self._logs = [before, after]

    async def _iterate(self, log: Sequence[Entry], epoch: int, *, lossy: bool) -> AsyncIterator[tuple[Position, Entry]]:
        for sequence, entry in enumerate(log, start=1):
            yield Position(epoch, sequence), entry
        if lossy:
            raise PositionLost("ticks:0 ends before")

    def read(self, _stream: str, after: Position | None = None) -> AsyncIterator[tuple[Position, Entry]]:
        assert after is None
        lossy = len(self._logs) == 2
        return self._iterate(self._logs.pop(0), 1 if lossy else 2, lossy=lossy)


def arrived(*instants: int) -> list[Batch]:
    return [pulse(OPEN_NS + at, received_ns=at) for at in instants]


GAP = Gap(OPEN_NS, OPEN_NS + 1, "network")


@pytest.mark.parametrize(
    ("retained", "heard"),
    [
        ([*arrived(2, 3), *arrived(4)], arrived(4)),
        ([*arrived(1), GAP, *arrived(3), RULES, *arrived(4)], [RULES, *arrived(4)]),
        ([*arrived(3)], []),
        ([GAP, *arrived(5, 6)], [Hole.LOST, GAP, *arrived(5, 6)]),
        ([*arrived(5)], [Hole.LOST, *arrived(5)]),
    ],
    ids=["overlaps", "overlaps with others between", "nothing new", "hole behind a gap", "hole"],
)
async def test_after_a_loss_only_what_is_new_is_heard_and_a_hole_only_where_there_is_one(
    retained: list[Entry], heard: list[Entry | Hole]
) -> None:
    bus: Any = LossyBus(arrived(1, 2, 3), retained)
    recovery = Recovery("bars:0", "ticks:0", bus=bus, clock=Clock())
    found = [item if isinstance(item, Hole) else item[1] async for item in recovery.entries()]
    assert len(found) == 3 + len(heard)
    for item, expected in zip(found[3:], heard, strict=True):
        assert item is expected or (isinstance(item, Batch) and item.received_ns == expected.received_ns)  # type: ignore[union-attr]  # a batch too
