"""Why a rule fired or did not, asked of the running system over REST while the tape stands still."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

pytestmark = pytest.mark.anyio

RULE = {
    "id": "strong",
    "name": "Strong",
    "when": "price > 100 and volume_day >= 300",
    "cooldown": 60.0,
    "severity": "warning",
}
WARMING = {"id": "oversold", "name": "Oversold", "when": "rsi_14_1m < 30"}


class Desk:
    """A running system whose tape goes on when the test says so."""

    def __init__(self, up: Any, steps: list[asyncio.Event], marks_ns: list[int], eventually: Any) -> None:
        self.up = up
        self._steps, self._marks_ns, self._eventually = steps, marks_ns, eventually

    async def next(self) -> None:
        """The next part of the script, until it has been scanned."""
        mark_ns = self._marks_ns.pop(0)
        self._steps.pop(0).set()
        await self._eventually(lambda: all(s.watermark_ns >= mark_ns for s in self.up.system.scanners))
        await self.up.system.drain()

    async def explain(self, symbol: str, rule_id: str = "strong") -> Any:
        return await self.up.get(f"rules/{rule_id}/explain", symbol=symbol)

    async def near(self, **query: Any) -> list[dict[str, Any]]:
        page = await self.up.get("rules/strong/near-misses", **query)
        assert page["total"] == len(page["items"])
        return page["items"]  # type: ignore[no-any-return]  # JSON


@pytest.fixture
def desk(running: Any, scripted: Any, market: Any, eventually: Any) -> Any:
    """Over a script of prints a second: each is a step that the test takes."""

    @asynccontextmanager
    async def opened(*seconds: dict[str, float], partitions: int = 1) -> AsyncIterator[Desk]:
        script: list[Any] = []
        steps, marks_ns = [], []
        for second, prices in enumerate(seconds):
            steps.append(asyncio.Event())
            quiet = market.quiet(second + 1)
            marks_ns.append(int(quiet.marks_ns[-1]))
            script += [steps[-1], market.prints(second + 0.5, prices), quiet]
        async with running(scripted(script), partitions=partitions) as up:
            yield Desk(up, steps, marks_ns, eventually)

    return opened


@pytest.mark.parametrize("partitions", [1, 2, 4])
async def test_rule_is_explained_as_the_tape_goes_on(desk: Any, partitions: int) -> None:
    first = {"AAPL": 90.0, "MSFT": 400.0, "TSLA": 99.0, "C": 98.0, "ZZZ": 50.0}
    async with desk(first, first, first, {"AAPL": 101.0}, partitions=partitions) as open_desk:
        await open_desk.up.save_rule(RULE)
        await open_desk.up.save_rule(WARMING)

        await open_desk.next()
        said = await open_desk.explain("AAPL")
        assert (said["symbol"], said["verdict"]) == ("AAPL", "false")
        assert said["why"] == "Not true: price > 100; volume_day >= 300."
        price, volume = said["when"]["parts"]
        assert (price["true"], price["lacks"], volume["true"], volume["lacks"]) == (False, 10.0, False, 200.0)
        (operand,) = price["operands"]
        assert (operand["value"], operand["unit"], operand["age_s"], operand["unknown"]) == (90.0, "$", 0.5, None)
        assert operand["formula"]
        (near,) = await open_desk.near()
        assert (near["symbol"], near["missing"], near["lacks"]) == ("MSFT", "volume_day >= 300", 200.0)
        oversold = await open_desk.explain("AAPL", "oversold")
        assert (oversold["verdict"], oversold["why"]) == ("unknown", "Unknown: rsi_14_1m (warming).")
        assert oversold["when"]["operands"][0]["value"] is None

        await open_desk.next()
        await open_desk.next()
        said = await open_desk.explain("MSFT")
        assert (said["verdict"], said["why"]) == ("fired", "Fired at this scan.")
        assert said["at"] == "2025-03-03T14:30:03.000000000Z"
        nearest = await open_desk.near()
        assert [miss["symbol"] for miss in nearest] == ["TSLA", "C", "AAPL", "ZZZ"]
        assert [miss["lacks"] for miss in nearest] == [1.0, 2.0, 10.0, 50.0]
        assert [miss["symbol"] for miss in await open_desk.near(limit=2)] == ["TSLA", "C"]

        await open_desk.next()
        assert (await open_desk.explain("AAPL"))["verdict"] == "fired"
        said = await open_desk.explain("MSFT")
        assert said["verdict"] == "cooldown"
        assert "silent for another 59 s" in said["why"]
        assert said["when"]["parts"][0]["operands"][0]["age_s"] == 1.5


async def test_alert_is_explained_with_what_it_saw(desk: Any) -> None:
    prices = {"AAPL": 120.0}
    async with desk(prices, prices, prices, {"AAPL": 10.0}) as open_desk:
        await open_desk.up.save_rule(RULE)
        for _ in range(4):
            await open_desk.next()
        await open_desk.up.save_rule({**RULE, "when": "price > 500"})
        (alert,) = await open_desk.up.alerts_over_rest(1)
        said = await open_desk.up.get(f"alerts/{alert['alert_id']}/explanation")
    assert alert.pop("mark") is None
    assert {name: said[name] for name in alert} == alert
    assert alert["ages"] == {"price": 0.5, "volume_day": 0.5}
    assert alert["severity"] == "warning"
    assert (said["when"], said["gate"], said["rule_version"]) == (RULE["when"], None, 1)
    told = [(o["name"], o["value"], o["unit"], o["age_s"]) for o in said["operands"]]
    assert told == [("price", 120.0, "$", 0.5), ("volume_day", 300.0, "shares", 0.5)]
    assert all(operand["formula"] for operand in said["operands"])


@pytest.mark.parametrize("partitions", [1, 2])
async def test_rule_switched_off_is_not_explained_and_a_symbol_without_trades_says_so(
    desk: Any, partitions: int
) -> None:
    async with desk({"AAPL": 120.0}, {"AAPL": 120.0}, partitions=partitions) as open_desk:
        await open_desk.up.save_rule(RULE)
        await open_desk.next()
        said = await open_desk.explain("NOPE")
        assert (said["verdict"], said["when"]) == ("not asked", None)
        assert said["why"] == "Not asked: no trade of the symbol has been seen."
        said = await open_desk.explain("MSFT")
        assert (said["verdict"], "(no trade yet)" in said["why"]) == ("unknown", True)

        await open_desk.up.save_rule({**RULE, "enabled": False})
        for path in ("explain?symbol=AAPL", "near-misses"):
            answer = await open_desk.up.api.get(f"/api/v1/rules/strong/{path}")
            assert answer.status_code == 404
            assert "disabled" in answer.json()["detail"]

        await open_desk.up.save_rule(RULE)
        assert (await open_desk.explain("AAPL"))["why"] == "Not asked: no scan has been made yet."
        await open_desk.next()
        assert (await open_desk.explain("AAPL"))["verdict"] == "false"
