"""indicators and toplists: what they put in hot state and tell on their channels."""

import asyncio
import json
import math
from typing import Any

import numpy as np
import pytest

from tapewatch.contracts.samples import make_bars
from tapewatch.engine.board import BoardRows
from tapewatch.engine.calendar import TradingDays
from tapewatch.engine.columns import MINUTE_NS, SECOND_NS
from tapewatch.engine.indicators import INDICATORS, Indicators
from tapewatch.engine.metrics import CATALOGUE
from tapewatch.roles.indicators import IndicatorsRole
from tapewatch.roles.toplists import ToplistsRole

pytestmark = pytest.mark.anyio


async def test_indicators_of_a_symbol_are_json_with_null_while_they_warm(
    running: Any, bus: Any, hot: Any, clock: Any, days: TradingDays, open_ns: int, eventually: Any
) -> None:
    role = IndicatorsRole(indicators=Indicators(days), bus=bus, hot=hot, clock=clock)
    notices = bus.listen("indicators.updated")
    async with running(role):
        for minute in range(25):
            bars = make_bars([("A", open_ns + minute * MINUTE_NS), ("B", open_ns + minute * MINUTE_NS)])
            last = await bus.publish("bars.finalized:0", bars)
        await eventually(lambda: role.position == last)
        a, b = (json.loads(value) for value in await hot.get(["ind:A", "ind:B"]))
        told = json.loads(await anext(notices))
    assert list(a) == ["symbol", "ts", *INDICATORS]
    assert (a["symbol"], b["symbol"]) == ("A", "B")
    assert a["ts"] == "2025-03-03T14:54:00.000000000Z"
    assert a["sma_200_1m"] is None
    assert a["sma_20_1m"] == 10.0
    assert told == {"ts": "2025-03-03T14:30:00.000000000Z", "partition": 0, "symbols": 2}


async def test_hot_state_that_is_full_does_not_stop_indicators(
    running: Any, bus: Any, hot: Any, clock: Any, days: TradingDays, open_ns: int, eventually: Any
) -> None:
    role = IndicatorsRole(indicators=Indicators(days), bus=bus, hot=hot, clock=clock)
    hot._max_keys = 0
    async with running(role):
        last = await bus.publish("bars.finalized:0", make_bars([("A", open_ns)]))
        await eventually(lambda: role.position == last)


def board(values: dict[str, float], *, ts_ns: int) -> BoardRows:
    """All metrics of a symbol are equal."""
    table = np.tile(np.array(list(values.values()), np.float64), (len(CATALOGUE), 1))
    return BoardRows(ts_ns=ts_ns, session="regular", symbols=tuple(values), metrics=tuple(CATALOGUE), values=table)


async def gainers(notices: Any) -> Any:
    while True:
        async with asyncio.timeout(5):
            data = json.loads(await anext(notices))["data"]
        if data["toplist_id"] == "gainers_5m":
            return data


async def test_lists_of_partitions_are_ranked_together_once_all_have_reached_the_scan(
    running: Any, bus: Any, hot: Any, clock: Any, open_ns: int
) -> None:
    notices = bus.listen("toplists.updated")
    async with running(ToplistsRole(bus=bus, hot=hot, clock=clock, partitions=2)):
        await bus.publish("board:0", board({"Z": 3.0, "B": 1.0, "U": math.nan}, ts_ns=open_ns))
        await bus.publish("board:1", board({"A": 1.0, "C": 2.0}, ts_ns=open_ns))
        first = await gainers(notices)
        await bus.publish("board:1", board({"A": 9.0, "C": 2.0}, ts_ns=open_ns + 1))
        await bus.publish("board:0", board({"Z": 3.0, "B": 1.0, "U": 4.0}, ts_ns=open_ns + 1))
        second = await gainers(notices)
        ranking = await hot.ranking("toplist:change_pct:5m", limit=10)
    # Equal values stand by name, whichever partition they come from.
    assert [(row["rank"], row["symbol"], row["value"]) for row in first["rankings"]] == [
        (1, "Z", 3.0),
        (2, "C", 2.0),
        (3, "A", 1.0),
        (4, "B", 1.0),
    ]
    assert [row["symbol"] for row in second["rankings"]] == ["A", "U", "Z", "C", "B"]
    assert [ranked.member for ranked in ranking] == ["A", "U", "Z", "C", "B"]
    assert first["rankings"][0]["metadata"] == {"price": 3.0, "change_pct_day": 3.0, "volume_day": 3.0}


async def test_partition_that_stays_behind_does_not_hold_the_lists_up(
    running: Any, bus: Any, hot: Any, clock: Any, open_ns: int
) -> None:
    notices = bus.listen("toplists.updated")
    async with running(ToplistsRole(bus=bus, hot=hot, clock=clock, partitions=2)):
        await bus.publish("board:0", board({"Z": 3.0}, ts_ns=open_ns))
        await bus.publish("board:1", board({"A": 1.0}, ts_ns=open_ns))
        both = await gainers(notices)
        without = []
        for second in (3, 4):
            await bus.publish("board:0", board({"Z": 3.0 + second}, ts_ns=open_ns + second * SECOND_NS))
            without.append(await gainers(notices))
        await bus.publish("board:1", board({"A": 9.0}, ts_ns=open_ns + 5 * SECOND_NS))
        await bus.publish("board:0", board({"Z": 8.0}, ts_ns=open_ns + 5 * SECOND_NS))
        again = await gainers(notices)
    assert "partitions_missing" not in both
    assert [data["timestamp"][17:22] for data in without] == ["03.00", "04.00"]
    for data in without:
        assert ([row["symbol"] for row in data["rankings"]], data["partitions_missing"]) == (["Z"], 1)
    assert [row["symbol"] for row in again["rankings"]] == ["A", "Z"]
    assert "partitions_missing" not in again


async def test_role_that_falls_behind_ranks_the_newest_scan_and_leaves_older_ones_out(
    running: Any, bus: Any, hot: Any, clock: Any, open_ns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    notices = bus.listen("toplists.updated")
    free, rank = asyncio.Event(), hot.rank

    async def slow(*ranked: Any, **options: Any) -> None:
        await free.wait()
        await rank(*ranked, **options)

    monkeypatch.setattr(hot, "rank", slow)
    async with running(ToplistsRole(bus=bus, hot=hot, clock=clock, partitions=2)):
        for second in range(6):  # the second partition is a scan behind
            await bus.publish("board:0", board({"Z": 1.0}, ts_ns=open_ns + second * SECOND_NS))
            if second:
                await bus.publish("board:1", board({"A": 2.0}, ts_ns=open_ns + (second - 1) * SECOND_NS))
            await asyncio.sleep(0.01)
        free.set()
        first, second = await gainers(notices), await gainers(notices)
    assert [data["timestamp"][17:22] for data in (first, second)] == ["00.00", "04.00"]
    assert [row["symbol"] for row in second["rankings"]] == ["A", "Z"]


async def test_lists_are_made_again_when_a_partition_that_was_left_out_reaches_their_scan(
    running: Any, bus: Any, hot: Any, clock: Any, open_ns: int
) -> None:
    notices = bus.listen("toplists.updated")
    async with running(ToplistsRole(bus=bus, hot=hot, clock=clock, partitions=2)):
        for second in (0, 3):
            await bus.publish("board:0", board({"Z": 1.0}, ts_ns=open_ns + second * SECOND_NS))
        alone = await gainers(notices)
        await bus.publish("board:1", board({"A": 2.0}, ts_ns=open_ns + 3 * SECOND_NS))
        both = await gainers(notices)
    assert alone["timestamp"] == both["timestamp"]
    assert alone["partitions_missing"] == 1
    assert [row["symbol"] for row in both["rankings"]] == ["A", "Z"]


async def test_partition_whose_scanner_began_again_is_ranked_by_what_it_showed_last(
    running: Any, bus: Any, hot: Any, clock: Any, open_ns: int
) -> None:
    notices = bus.listen("toplists.updated")
    async with running(ToplistsRole(bus=bus, hot=hot, clock=clock, partitions=2)):
        for partition in range(2):
            await bus.publish(f"board:{partition}", board({"ZA"[partition]: 1.0}, ts_ns=open_ns))
        await gainers(notices)
        for second, value in ((2, 5.0), (1, 3.0)):
            await bus.publish("board:0", board({"Z": value}, ts_ns=open_ns + second * SECOND_NS))
        await bus.publish("board:1", board({"A": 2.0}, ts_ns=open_ns + SECOND_NS))
        again = await gainers(notices)
    assert again["timestamp"] == "2025-03-03T14:30:01.000000000Z"
    assert [(row["symbol"], row["value"]) for row in again["rankings"]] == [("Z", 3.0), ("A", 2.0)]
