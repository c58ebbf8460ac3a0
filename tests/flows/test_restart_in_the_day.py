"""A stop and a start in the middle of the day: what was true before it does not fire as new, and cooldowns go on."""

from typing import Any

import pytest

pytestmark = pytest.mark.anyio

ABOVE = {
    "id": "above",
    "name": "Above",
    "conditions": [{"metric": "price", "operator": ">", "value": 90.0}],
    "cooldown": 0,
}


@pytest.mark.parametrize("mode", ["embedded"], indirect=True)
async def test_condition_that_stays_true_over_a_restart_fires_once(
    running: Any, stored: Any, scripted: Any, market: Any
) -> None:
    async with running(scripted([])) as up:
        await up.save_rule(ABOVE)
    morning = [market.prints(second, {"AAPL": 100.0, "C": 10.0}) for second in range(30)]
    async with running(scripted(morning)) as up:
        await up.played()
    noon = [
        market.prints(second, {"AAPL": 101.0, "C": 95.0 if second > 7_205 else 10.0}) for second in range(7_200, 7_230)
    ]
    async with running(scripted(noon)) as up:
        await up.played()
        gaps = up.system.scanners[0].bars.gaps
    _, alerts = await stored(market.symbols)
    assert [(alert.symbol, alert.price) for alert in alerts] == [("AAPL", 100.0), ("C", 95.0)]
    ((start_ns, end_ns),) = gaps.items()
    assert start_ns == int(morning[-1].marks_ns[-1])
    assert end_ns == int(noon[0].ts_ns[0])
