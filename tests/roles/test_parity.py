"""parity: our bars against the provider's own."""

from typing import Any

import numpy as np
import pytest

from tapewatch.engine.columns import MINUTE_NS, Bars
from tapewatch.roles.parity import ParityRole

pytestmark = pytest.mark.anyio


def bars(
    minute: int, symbols: tuple[str, ...], closes: list[float], *, revision: int = 0, volume: float = 100.0
) -> Bars:
    n = len(closes)
    price = np.array(closes)
    return Bars(
        symbols=symbols,
        symbol=np.arange(n, dtype=np.int32),
        ts_ns=np.full(n, minute * MINUTE_NS),
        open=price,
        high=price,
        low=price,
        close=price,
        volume=np.full(n, volume),
        vwap=price,
        vwap_volume=np.full(n, volume),
        trade_count=np.ones(n, np.int64),
        revision=np.full(n, revision),
    )


async def test_bars_are_compared_a_minute_later_with_the_last_revision_of_both(
    bus: Any, clock: Any, running: Any, eventually: Any
) -> None:
    parity = ParityRole(bus=bus, clock=clock)
    theirs, ours = "bars.vendor:0", "bars.finalized:0"
    async with running(parity):
        await bus.publish(ours, bars(1, ("A", "B", "C"), [10.0, 20.0, 30.0]))
        await bus.publish(theirs, bars(1, ("B", "A", "D"), [20.0, 11.0, 40.0]))
        await bus.publish(theirs, bars(1, ("A",), [10.0], revision=1))
        await eventually(lambda: parity._theirs.get(1) is not None and parity._theirs[1][0, 1] == 20.0)
        assert parity.compared == 0
        await bus.publish(ours, bars(2, ("A", "B", "C"), [10.0, 20.0, 30.0]))
        await eventually(lambda: parity.compared == 4)
    assert parity.equal == 2
    assert parity.differing == {"missing": 1, "extra": 1}
    assert len(parity.samples) == 2


async def test_a_difference_is_counted_by_field_and_shown(bus: Any, clock: Any, running: Any, eventually: Any) -> None:
    parity = ParityRole(bus=bus, clock=clock)
    async with running(parity):
        await bus.publish("bars.vendor:0", bars(1, ("A",), [10.5], volume=90.0))
        await eventually(lambda: 1 in parity._theirs)
        for minute in (1, 2):
            await bus.publish("bars.finalized:0", bars(minute, ("A",), [10.0]))
        await eventually(lambda: parity.compared == 1)
    assert parity.describe() == {
        "compared": 1,
        "equal": 0,
        "differing": {"close": 1, "high": 1, "low": 1, "open": 1, "volume": 1},
        "samples": ["A 1970-01-01T00:01:00.000000000Z: ours 10 10 10 10 100, theirs 10.5 10.5 10.5 10.5 90"],
    }


async def test_minutes_that_wait_in_vain_are_forgotten(bus: Any, clock: Any, running: Any, eventually: Any) -> None:
    parity = ParityRole(bus=bus, clock=clock)
    async with running(parity):
        for minute in range(1, 50):
            await bus.publish("bars.vendor:0", bars(minute, ("A",), [10.5]))
        await eventually(lambda: 49 in parity._theirs)
    assert len(parity._theirs) <= 4
