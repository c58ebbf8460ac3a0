"""Rules that change while the tape runs take effect at a place on it, and survive the process with their alerts."""

import asyncio
from typing import Any

import pytest

from tapewatch.engine.rules import Ruleset

pytestmark = pytest.mark.anyio
ABOVE = {"id": "above", "name": "Above", "conditions": [{"metric": "price", "operator": ">", "value": 100.0}]}


async def test_rule_created_edited_switched_off_and_deleted_while_the_tape_runs_takes_effect_there(
    running: Any, stored: Any, engine: Any, scripted: Any, market: Any, eventually: Any
) -> None:
    gates = [asyncio.Event() for _ in range(5)]
    script: list[Any] = []
    for part, gate in enumerate(gates):
        script.append(gate)
        for second in range(part * 10, part * 10 + 10):
            up_and_down = 90.0 if second % 4 < 2 else 120.0
            script.append(market.prints(second + 0.5, {"AAPL": up_and_down, "MSFT": up_and_down + 100.0}))
            script.append(market.quiet(second + 1))

    async with running(scripted(script)) as up:

        async def play(part: int) -> None:
            watermark_ns = market.quiet(part * 10 + 10).marks_ns[-1]
            gates[part].set()
            await eventually(lambda: up.system.ingest.watermark_ns >= watermark_ns)
            await up.system.drain()

        await play(0)
        assert (await up.save_rule(ABOVE))["version"] == 1
        await play(1)
        higher = {**ABOVE, "conditions": [{"metric": "price", "operator": ">", "value": 200.0}]}
        assert (await up.save_rule(higher))["version"] == 2
        await play(2)
        assert (await up.save_rule({**higher, "enabled": False}))["version"] == 3
        await play(3)
        assert (await up.save_rule(ABOVE))["version"] == 4
        assert (await up.api.delete("/api/v1/rules/above")).status_code == 204
        await eventually(lambda: not up.system.scanners[0].ruleset.rules)
        await play(4)
        tape = await up.tape()

    _, alerts = await stored([])
    numbers = [entry.number for entry in tape if isinstance(entry, Ruleset)]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 6
    assert [a.alert_id for a in alerts] == sorted(
        (a.alert_id for a in engine(tape).alerts), key=[a.alert_id for a in alerts].index
    )
    by_second = {(alert.fired_at_ns - market.quiet(0).marks_ns[0]) // 10**9 for alert in alerts}
    assert by_second
    assert min(by_second) > 10
    assert max(by_second) <= 30
    assert {alert.rule_version for alert in alerts} == {1, 2}
    assert {alert.symbol for alert in alerts if alert.rule_version == 2} == {"MSFT"}


async def test_restart_keeps_rules_and_history_and_the_same_tape_adds_nothing_twice(
    running: Any, stored: Any, forget_tape: Any, scripted: Any, market: Any
) -> None:
    gate = asyncio.Event()
    async with running(scripted([gate, *market.afternoon()])) as up:
        await up.save_rule(ABOVE)
        gate.set()
        await up.played()
    before = await stored(market.symbols)
    assert before[1]
    forget_tape()
    async with running(scripted(market.afternoon())) as up:
        assert [rule["id"] for rule in (await up.get("rules"))["items"]] == ["above"]
        await up.played()
        assert up.system.scanners[0].ruleset.number == 1
    assert await stored(market.symbols) == before
