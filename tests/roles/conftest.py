"""One role at a time over the embedded adapters, with a store and a clock that the test commands."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tapewatch.adapters.memory import MemoryBus, MemoryHotState
from tapewatch.documents import Alert
from tapewatch.engine.bars import BarBuilder
from tapewatch.engine.calendar import TradingDays
from tapewatch.engine.columns import SECOND_NS, Bars, Batch, make_batch
from tapewatch.engine.conditions import Profile
from tapewatch.errors import Unavailable
from tapewatch.nyse import day_of, trading_days
from tapewatch.ports import Entry, Position, Snapshot

OPEN_NS = day_of("2025-03-03")[1]
PATIENCE_S = 10.0


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


class Sleepy:
    """A clock whose sleepers wake when the test says so."""

    def __init__(self) -> None:
        self.asked_s: list[float] = []
        self._sleeping: list[asyncio.Future[None]] = []

    def now_ns(self) -> int:
        return 1_000_000

    async def sleep(self, seconds: float) -> None:
        self.asked_s.append(seconds)
        future = asyncio.get_running_loop().create_future()
        self._sleeping.append(future)
        await future

    async def wake(self) -> None:
        """Everybody who sleeps, now or as soon as somebody does."""
        await until(lambda: bool(self._sleeping))
        sleeping, self._sleeping = self._sleeping, []
        for future in sleeping:
            if not future.done():
                future.set_result(None)
        await asyncio.sleep(0)


class Ledger:
    """A store that remembers what was written, alerts with which position, and fails while it is `away`."""

    def __init__(self) -> None:
        self.away = False
        self.refused = 0
        self.bars: list[Bars] = []
        self.alerts: list[tuple[list[Alert], Position | None]] = []
        self.ruleset = Snapshot(0, [], [])
        self.shown: tuple[str, ...] = ()
        self.positions: list[Position | None] = []

    async def save_bars(self, bars: Bars, *, reader: str, owner: int | None = None) -> None:  # noqa: ARG002
        self._check()
        self.bars.append(bars)

    async def save_alerts(
        self,
        alerts: Sequence[Alert],
        *,
        reader: str,  # noqa: ARG002
        position: Position | None = None,
        owner: int | None = None,  # noqa: ARG002
    ) -> list[Alert]:
        self._check()
        self.alerts.append((list(alerts), position))
        self.positions.append(position)
        return list(alerts)

    async def annotate_alerts(
        self,
        symbol: str,
        *,
        since_ns: int,
        note: str,
        reader: str,  # noqa: ARG002
        position: Position | None = None,
        owner: int | None = None,  # noqa: ARG002
    ) -> list[Alert]:
        self._check()
        self.positions.append(position)
        changed: list[Alert] = []
        for alerts, _ in self.alerts:
            for place, alert in enumerate(alerts):
                if alert.symbol == symbol and alert.fired_at_ns >= since_ns:
                    alerts[place] = alert.annotated(note)
                    changed.append(alerts[place])
        return changed

    async def shown_metrics(self) -> tuple[str, ...]:
        return self.shown

    async def ruleset_number(self) -> int:
        self._check()
        return self.ruleset.number

    async def rules(self) -> Snapshot:
        self._check()
        return self.ruleset

    def _check(self) -> None:
        if self.away:
            self.refused += 1
            raise Unavailable("away")


@pytest.fixture
def bus() -> MemoryBus:
    return MemoryBus(epoch=7)


@pytest.fixture
def hot() -> MemoryHotState:
    return MemoryHotState()


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def clock() -> Sleepy:
    return Sleepy()


@pytest.fixture
def days() -> TradingDays:
    return trading_days()


@pytest.fixture
def builder(days: TradingDays, profile: Profile) -> BarBuilder:
    return BarBuilder(days=days, profile=profile)


@pytest.fixture
def profile() -> Profile:
    from tapewatch.eligibility import load_profile

    return load_profile("alpaca")


@pytest.fixture
def eventually() -> Callable[..., Any]:
    return until


@pytest.fixture
def open_ns() -> int:
    return OPEN_NS


@pytest.fixture
def prints() -> Callable[..., Batch]:
    """One trade of each symbol at a second after the open, and the watermark behind it."""

    def make(second: float, *symbols: str, price: float = 10.0, size: float = 100.0) -> Batch:
        ts_ns = OPEN_NS + round(second * SECOND_NS)
        n = len(symbols)
        return make_batch(
            symbols=symbols,
            conditions=("@",),
            symbol=range(n),
            ts_ns=[ts_ns] * n,
            price=[price] * n,
            size=[size] * n,
            tape=[ord("C")] * n,
            marks_row=[n],
            marks_ns=[ts_ns + 1],
        )

    return make


@pytest.fixture
def read(bus: MemoryBus) -> Callable[[str], Any]:
    """What a stream holds."""

    async def entries(stream: str) -> list[Entry]:
        end = await bus.tail(stream)
        found: list[Entry] = []
        if end is not None:
            async for position, entry in bus.read(stream):
                found.append(entry)
                if position == end:
                    break
        return found

    return entries


@pytest.fixture
def running(bus: MemoryBus) -> Callable[..., Any]:
    """Run a role; at the end of the block the bus closes and the role ends by itself."""

    @asynccontextmanager
    async def run(role: Any, *, cancel: bool = False) -> AsyncIterator[Any]:
        task = asyncio.create_task(role.run())
        try:
            yield role
        finally:
            await bus.close()
            if cancel:
                task.cancel()
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.gather(task, return_exceptions=cancel)

    return run
