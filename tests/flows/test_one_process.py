"""The embedded system says what the engine says: the same bars, alerts and ranked lists of a tape, everywhere."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tapewatch.clock import SystemClock
from tapewatch.documents import Alert, load_rules, rfc3339
from tapewatch.eligibility import load_profile
from tapewatch.engine.board import BoardRows
from tapewatch.engine.columns import SECOND_NS, Batch
from tapewatch.engine.toplists import SYSTEM_TOPLISTS, rank
from tapewatch.feeds.replay import ReplayFeed
from tapewatch.feeds.synthetic import SyntheticFeed, TradingDay, synthetic_symbols, write_day
from tapewatch.nyse import day_of
from tapewatch.replay import scan_tape

pytestmark = pytest.mark.anyio
DAY = TradingDay(**dict(zip(("pre_ns", "open_ns", "close_ns", "post_ns"), day_of("2025-03-03"), strict=True)))
RULES = [
    {"id": "cheap", "name": "Cheap", "conditions": [{"metric": "price", "operator": "<", "value": 60.0}]},
    {
        "id": "moves",
        "name": "Moves",
        "conditions": [
            {"metric": "change_pct_1m", "operator": ">", "value": 0.05},
            {"metric": "volume_1m", "operator": ">", "value": 1000.0},
        ],
        "cooldown": 10.0,
    },
]


def synthetic(seconds: int) -> tuple[SyntheticFeed, tuple[str, ...]]:
    """So many seconds from the open, as fast as they can be played."""
    day = replace(DAY, close_ns=DAY.open_ns + seconds * SECOND_NS, post_ns=DAY.open_ns + seconds * SECOND_NS)
    feed = SyntheticFeed(
        seed=7, symbols=40, ticks_per_s=300, start_ns=DAY.open_ns, days=[day], speed=np.inf, clock=SystemClock()
    )
    return feed, synthetic_symbols(seed=7, symbols=40)


class Gated:
    """A feed that waits for the test to be ready."""

    name = "gated"
    rejected: dict[str, int] = {}  # noqa: RUF012

    def __init__(self, feed: Any) -> None:
        self._feed, self.open = feed, asyncio.Event()

    async def batches(self) -> Any:
        await self.open.wait()
        async for batch in self._feed.batches():
            yield batch


def by_id(alerts: Sequence[Alert]) -> dict[str, dict[str, Any]]:
    return {alert.alert_id: timeless(alert.as_json()) for alert in alerts}


def timeless(alert: dict[str, Any]) -> dict[str, Any]:
    """Without the wall clock's stamps and the reader's marks, which are no part of what happened."""
    return {name: value for name, value in alert.items() if name not in {"latency", "mark"}}


@pytest.mark.parametrize("kind", ["scripted", "synthetic"])
async def test_bars_and_alerts_are_the_engine_s_in_store_over_rest_and_over_websocket(
    kind: str, running: Any, stored: Any, engine: Any, scripted: Any, market: Any
) -> None:
    feed, symbols = (scripted(market.afternoon()), market.symbols) if kind == "scripted" else synthetic(100)
    gated = Gated(feed)
    async with running(gated) as up, up.socket() as client:
        for rule in RULES:
            await up.save_rule(rule)
        gated.open.set()
        await up.played()
        expected = engine(await up.tape())
        count = len(expected.alerts) + expected.notes
        heard = [json.loads(await asyncio.wait_for(client.recv(), 20)) for _ in range(count)]
        over_rest = await up.alerts_over_rest(len(expected.alerts))
    bars, alerts = await stored(symbols)
    assert expected.bars
    assert len(expected.alerts) > 20
    assert bars == expected.bars
    assert (expected.notes > 0) == (kind == "synthetic")
    fired = [message["data"]["alert_id"] for message in heard if message["type"] == "alert"]
    assert fired == [alert.alert_id for alert in expected.alerts]
    newest = {message["data"]["alert_id"]: timeless(message["data"]) for message in heard}
    for message in heard:
        stamps = [message["data"]["latency"][name] for name in ("received", "scanned", "filtered", "sent")]
        assert stamps == sorted(stamps)
    assert newest == by_id(alerts) == by_id(expected.alerts)
    assert {a["alert_id"]: timeless(a) for a in over_rest} == by_id(expected.alerts)


def ranked(board: BoardRows, toplist_id: str) -> list[tuple[str, float]]:
    """The list by the engine, symbols by name."""
    order = np.argsort(np.array(board.symbols))
    toplist = SYSTEM_TOPLISTS[toplist_id]
    values = board.values[board.metrics.index(toplist.metric)][order]
    top = rank(values, descending=toplist.descending, limit=50)
    return [(board.symbols[order[i]], values[i]) for i in top]


async def test_toplists_over_websocket_are_the_engine_s_ranking_of_the_board(
    running: Any, engine: Any, scripted: Any, market: Any
) -> None:
    ids = ["volume_day", "losers_1m", "gainers_day", "vwap_above"]
    gated = Gated(scripted(market.afternoon()))
    async with running(gated) as up, up.socket() as client:
        for toplist_id in ids:
            await client.send(json.dumps({"type": "subscribe_toplist", "toplist_id": toplist_id}))
        await client.send(json.dumps({"type": "ping"}))
        assert json.loads(await client.recv()) == {"type": "pong"}
        gated.open.set()
        await up.played()
        boards = engine(await up.tape()).boards
        last = rfc3339(max(boards))
        heard: dict[tuple[str, str], list[tuple[str, float]]] = {}
        while any((toplist_id, last) not in heard for toplist_id in ids):
            data = json.loads(await asyncio.wait_for(client.recv(), 20))["data"]
            assert [row["rank"] for row in data["rankings"]] == list(range(1, len(data["rankings"]) + 1))
            heard[data["toplist_id"], data["timestamp"]] = [(r["symbol"], r["value"]) for r in data["rankings"]]
        over_rest = await up.get("toplists/system/volume_day")
    expected = {
        (toplist_id, rfc3339(ts_ns)): ranked(board, toplist_id) for ts_ns, board in boards.items() for toplist_id in ids
    }
    assert heard == {key: expected[key] for key in heard}
    assert heard["volume_day", last]
    assert [(row["symbol"], row["value"]) for row in over_rest["rankings"]] == heard["volume_day", last]


async def test_any_number_of_partitions_gives_the_same_bars_alerts_and_lists(
    running: Any, stored: Any, emptied: Any, scripted: Any, market: Any
) -> None:
    outcomes = []
    for partitions in (1, 4):
        await emptied()
        gated = Gated(scripted([market.late_start(), *market.afternoon()]))
        async with running(gated, partitions=partitions) as up:
            for rule in RULES:
                await up.save_rule(rule)
            gated.open.set()
            await up.played()
            tapes = [[b for b in await up.tape(p) if isinstance(b, Batch)] for p in range(partitions)]
            assert sum(len(batch) for tape in tapes for batch in tape) == up.system.ingest.rows
            lists = {
                toplist_id: (await up.get(f"toplists/system/{toplist_id}"))["rankings"]
                for toplist_id in SYSTEM_TOPLISTS
            }
            symbols = await up.get("symbols", limit=100)
        bars, alerts = await stored(market.symbols)
        outcomes.append((bars, by_id(alerts), lists, symbols))
    one, four = outcomes
    assert one == four
    assert one[0]
    assert one[1]


async def test_tape_file_gives_what_replay_gives(tmp_path: Path, running: Any, stored: Any, scripted: Any) -> None:
    path = tmp_path / "day.parquet"
    end_ns = DAY.open_ns + 180 * SECOND_NS
    write_day(path, seed=3, symbols=30, trades=500_000, day=DAY, start_ns=DAY.open_ns, end_ns=end_ns)
    rules = load_rules(json.dumps(RULES), where="rules")
    replayed = scan_tape([path], profile=load_profile("alpaca"), rules=rules)
    gated = Gated(ReplayFeed([path], clock=SystemClock(), speed=np.inf))
    async with running(gated) as up:
        for rule in RULES:
            await up.save_rule(rule)
        gated.open.set()
        await up.played()
    bars, alerts = await stored(replayed.bars.symbols)
    names = ("open", "high", "low", "close", "volume", "vwap", "trade_count", "revision")
    columns = [getattr(replayed.bars, name).tolist() for name in names]
    keys = zip(
        (replayed.bars.symbols[i] for i in replayed.bars.symbol.tolist()), replayed.bars.ts_ns.tolist(), strict=True
    )
    assert bars == dict(zip(keys, zip(*columns, strict=True), strict=True))
    assert len(replayed.matches) > 20
    assert by_id(alerts) == by_id([Alert.of(match) for match in replayed.matches])
