"""scoreboard: what it shows of the running day, what it catches up with, and when a day ends."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tapewatch.adapters.memory import MemoryBus
from tapewatch.adapters.sql import SqlStore
from tapewatch.contracts.samples import make_alert, make_bars
from tapewatch.documents import Alert
from tapewatch.engine.calendar import TradingDays
from tapewatch.engine.columns import MINUTE_NS, SECOND_NS
from tapewatch.engine.outcomes import OUTCOMES
from tapewatch.errors import Unavailable
from tapewatch.nyse import day_of
from tapewatch.ports import AlertQuery, Alerts
from tapewatch.roles.scoreboard import ScoreboardRole

pytestmark = pytest.mark.anyio

_, OPEN_NS, CLOSE_NS, POST_NS = day_of("2025-03-03")
NEXT_PRE_NS = day_of("2025-03-04")[0]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    store = SqlStore(tmp_path / "store.db")
    await store.upgrade()
    yield store
    await store.close()


@pytest.fixture
def wiring(days: TradingDays, bus: MemoryBus, hot: Any, store: SqlStore, clock: Any) -> dict[str, Any]:
    return {"days": days, "bus": bus, "hot": hot, "store": store, "clock": clock}


def fired(number: int, second: float, *, symbol: str = "A", price: float = 10.0, rule: str = "gap") -> Alert:
    return make_alert(
        number,
        rule_id=rule,
        rule_name=f"Rule {rule}",
        symbol=symbol,
        price=price,
        fired_at_ns=OPEN_NS + round(second * SECOND_NS),
    )


async def publish(bus: MemoryBus, role: ScoreboardRole, stream: str, entry: Any, *, eventually: Any) -> None:
    position = await bus.publish(stream, entry)
    await eventually(lambda: role.positions.get(stream) == position)


async def publish_bars(
    bus: MemoryBus, role: ScoreboardRole, minutes: Sequence[int], *, close: float, eventually: Any, symbol: str = "A"
) -> None:
    for minute in minutes:
        bars = make_bars([(symbol, OPEN_NS + minute * MINUTE_NS)], close=close)
        await publish(bus, role, "bars.finalized:0", bars, eventually=eventually)


async def shown(hot: Any, clock: Any, *, until: Any = lambda _board: True) -> Any:
    """The board, once it is as wished; each look lets five seconds pass."""
    async with asyncio.timeout(10):
        while True:
            await clock.wake()
            (body,) = await hot.get(["scoreboard"])
            if body is not None and until(board := json.loads(body)):
                return board
            await asyncio.sleep(0.001)


async def test_board_follows_alerts_by_the_bars_that_close(
    wiring: Any, running: Any, bus: MemoryBus, hot: Any, clock: Any, eventually: Any
) -> None:
    role = ScoreboardRole(**wiring)
    async with running(role):
        await publish(
            bus, role, "alerts.filtered:0", Alerts((fired(1, 5), fired(2, 5, symbol="B"))), eventually=eventually
        )
        await publish_bars(bus, role, range(2), close=10.5, eventually=eventually)
        board = await shown(hot, clock, until=lambda board: board["symbols"] == 1)
    (rule,) = board["rules"]
    assert (board["date"], board["as_of"]) == ("2025-03-03", "2025-03-03T14:32:00.000000000Z")
    assert (board["alerts"], board["unfollowed"]) == (2, 0)
    assert {name: rule[name] for name in ("name", "rule_id", "rule_version", "alerts", "symbols", "too_broad")} == {
        "name": "Rule gap", "rule_id": "gap", "rule_version": 1, "alerts": 2, "symbols": 2, "too_broad": None,
    }  # fmt: skip
    assert list(rule["outcomes"]) == list(OUTCOMES)
    one = rule["outcomes"]["return_pct_1m"]
    assert (one["known"], one["positive_pct"]) == (2, 50.0)
    assert one["mean_pct"] == pytest.approx(2.5)
    assert rule["outcomes"]["return_pct_5m"] == dict.fromkeys(one, None) | {"known": 0}
    assert rule["outcomes"]["best_pct"]["highest_pct"] == pytest.approx(10.0)  # the bar's high is 11


async def test_alert_that_comes_again_with_a_note_counts_once(
    wiring: Any, running: Any, bus: MemoryBus, hot: Any, clock: Any, eventually: Any
) -> None:
    role, alert = ScoreboardRole(**wiring), fired(1, 5)
    async with running(role):
        for each in (alert, alert.annotated("A print before this alert was cancelled.")):
            await publish(bus, role, "alerts.filtered:0", Alerts((each,)), eventually=eventually)
        board = await shown(hot, clock)
    assert board["alerts"] == 1


async def test_started_again_it_reads_the_day_from_the_store(
    wiring: Any, running: Any, bus: MemoryBus, store: SqlStore, hot: Any, clock: Any, eventually: Any
) -> None:
    yesterday = make_alert(9, rule_id="old", fired_at_ns=day_of("2025-02-28")[2])
    to_come = fired(8, 3600, rule="later")
    many = [fired(100 + n, n / 10, rule="many", symbol=f"S{n % 7}") for n in range(1_200)]
    await store.save_alerts([yesterday, fired(1, 30), fired(2, 30, symbol="B"), *many, to_come], reader="alerts:0")
    for minute in range(25):
        await store.save_bars(
            make_bars([("A", OPEN_NS + minute * MINUTE_NS)], close=10 + minute / 100), reader="bars:0"
        )
    role = ScoreboardRole(**wiring)
    async with running(role):
        # The newest bar comes on the bus, and it is in the store already.
        await publish_bars(bus, role, [20], close=11.0, eventually=eventually)
        board = await shown(hot, clock)
    assert {rule["rule_id"]: rule["alerts"] for rule in board["rules"]} == {"many": 1_200, "gap": 2}
    outcomes = board["rules"][1]["outcomes"]
    assert outcomes["return_pct_5m"]["highest_pct"] == pytest.approx(0.4)  # the bar of the fifth minute
    assert outcomes["return_pct_15m"]["highest_pct"] == pytest.approx(1.4)
    assert outcomes["return_pct_60m"]["known"] == 0


async def test_spans_of_bars_add_up(
    wiring: Any, running: Any, bus: MemoryBus, store: SqlStore, hot: Any, clock: Any, eventually: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Read half an hour at a time, and whole."""
    await store.save_alerts([fired(n, 60 * n, symbol="AB"[n % 2]) for n in range(150)], reader="alerts:0")
    for minute in range(200):
        rows = [(symbol, OPEN_NS + minute * MINUTE_NS) for symbol in "AB"]
        await store.save_bars(make_bars(rows, close=10 + minute**2 % 17), reader="bars:0")
    boards = []
    for bars_at_once in (1, 1_000_000):
        monkeypatch.setattr("tapewatch.roles.scoreboard._BARS_AT_ONCE", bars_at_once)
        own = MemoryBus()
        role = ScoreboardRole(**{**wiring, "bus": own})
        task = asyncio.create_task(role.run())
        await publish_bars(own, role, [200], close=11.0, eventually=eventually)
        await own.close()
        await task
        boards.append(json.loads((await hot.get(["scoreboard"]))[0]))
    assert boards[0] == boards[1]
    assert boards[0]["rules"][0]["outcomes"]["return_pct_60m"]["known"] == 142


async def test_day_stands_until_the_next_pre_market(
    wiring: Any, running: Any, bus: MemoryBus, hot: Any, clock: Any, eventually: Any
) -> None:
    role = ScoreboardRole(**wiring)
    night = make_alert(3, rule_id="night", symbol="A", price=10.0, fired_at_ns=POST_NS + 5 * SECOND_NS)

    async def bar_at(ts_ns: int) -> None:
        await publish(bus, role, "bars.finalized:0", make_bars([("A", ts_ns)], close=11.0), eventually=eventually)

    async with running(role):
        await publish(bus, role, "alerts.filtered:0", Alerts((fired(1, 5),)), eventually=eventually)
        await bar_at(CLOSE_NS - MINUTE_NS)
        await publish(bus, role, "alerts.filtered:0", Alerts((night,)), eventually=eventually)
        await bar_at(POST_NS + 60 * MINUTE_NS)  # the day's alerts have left
        evening = await shown(hot, clock, until=lambda board: board["as_of"].startswith("2025-03-04T02"))
        await bar_at(NEXT_PRE_NS)
        morning = await shown(hot, clock, until=lambda board: board["date"] == "2025-03-04")
    assert [(rule["rule_id"], rule["alerts"]) for rule in evening["rules"]] == [("gap", 1)]
    assert evening["date"] == "2025-03-03"
    assert evening["rules"][0]["outcomes"]["return_pct_close"]["mean_pct"] == pytest.approx(10.0)
    assert [(rule["rule_id"], rule["alerts"]) for rule in morning["rules"]] == [("night", 1)]


async def test_partitions_share_one_board(
    wiring: Any, running: Any, bus: MemoryBus, hot: Any, clock: Any, eventually: Any
) -> None:
    role = ScoreboardRole(**wiring, partitions=2)
    async with running(role):
        for p, symbol in enumerate("AB"):
            await publish(
                bus, role, f"alerts.filtered:{p}", Alerts((fired(p, 5, symbol=symbol),)), eventually=eventually
            )
        board = await shown(hot, clock, until=lambda board: board["alerts"] == 2)
    assert (len(board["rules"]), board["rules"][0]["symbols"]) == (1, 2)


async def test_more_alerts_than_the_bound_are_counted(
    wiring: Any, running: Any, bus: MemoryBus, hot: Any, clock: Any, eventually: Any
) -> None:
    role = ScoreboardRole(**wiring, most_open=2)
    async with running(role):
        alerts = Alerts(tuple(fired(n, n) for n in range(5)))
        await publish(bus, role, "alerts.filtered:0", alerts, eventually=eventually)
        await publish_bars(bus, role, [0, 1, 2], close=11.0, eventually=eventually)
        board = await shown(hot, clock, until=lambda board: board["symbols"] == 1)
    (rule,) = board["rules"]
    assert (board["alerts"], board["unfollowed"]) == (5, 3)
    assert (rule["alerts"], rule["unfollowed"], rule["outcomes"]["return_pct_1m"]["known"]) == (5, 3, 2)


async def test_hot_state_that_is_away_gets_the_board_later(
    wiring: Any, running: Any, bus: MemoryBus, hot: Any, clock: Any, eventually: Any
) -> None:
    role, put, refused = ScoreboardRole(**wiring), hot.put, []

    async def away(*_: Any, **__: Any) -> None:
        refused.append(1)
        raise Unavailable("away")

    hot.put = away
    async with running(role):
        await publish(bus, role, "alerts.filtered:0", Alerts((fired(1, 5),)), eventually=eventually)
        await clock.wake()
        await eventually(lambda: refused == [1])
        hot.put = put
        board = await shown(hot, clock)
    assert board["alerts"] == 1


async def test_store_that_is_away_is_waited_for(
    wiring: Any, running: Any, bus: MemoryBus, store: SqlStore, hot: Any, clock: Any, eventually: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    await store.save_alerts([fired(1, 5)], reader="alerts:0")
    refused: list[AlertQuery] = []
    alerts = store.alerts

    async def away_once(query: AlertQuery) -> list[Alert]:
        if not refused:
            refused.append(query)
            raise Unavailable("away")
        return await alerts(query)

    monkeypatch.setattr(store, "alerts", away_once)
    role = ScoreboardRole(**wiring)
    async with running(role):
        await bus.publish("alerts.filtered:0", Alerts((fired(2, 6),)))
        await eventually(lambda: len(refused) == 1)
        assert role.positions == {}
        board = await shown(hot, clock, until=lambda board: board["alerts"] == 2)
    assert board["rules"][0]["alerts"] == 2
