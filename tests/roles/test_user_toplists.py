"""Users' lists in the toplists role: read from the store, ranked over boards, told with what happened in them."""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tapewatch.adapters.sql import SqlStore
from tapewatch.contracts.samples import make_security, make_toplist, make_watchlist
from tapewatch.engine.board import BoardRows
from tapewatch.engine.columns import SECOND_NS
from tapewatch.engine.metrics import PUBLISHED
from tapewatch.roles.toplists import ToplistsRole
from tapewatch.roles.user_toplists import config_key
from tapewatch.toplist_documents import Filters

pytestmark = pytest.mark.anyio


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    store = SqlStore(tmp_path / "store.db")
    await store.upgrade()
    yield store
    await store.close()


def board(values: dict[str, float], *, ts_ns: int, covered: bool = True, **rows: list[float]) -> BoardRows:
    """All metrics of a symbol are equal, but for `rows`, and the prices are fresh."""
    table = np.tile(np.array(list(values.values()), np.float64), (len(PUBLISHED), 1))
    for name, row in ({"price_age": [0.0] * len(values), "halted": [0.0] * len(values)} | rows).items():
        table[PUBLISHED.index(name)] = row
    return BoardRows(
        ts_ns=ts_ns, session="regular", symbols=tuple(values), metrics=PUBLISHED, values=table, covered=covered
    )


async def known(hot: Any, key: str, *, containing: bytes = b"") -> None:
    """Wait until the role knows a list."""
    async with asyncio.timeout(5):
        while containing not in ((await hot.get([key]))[0] or b"") or (await hot.get([key]))[0] is None:  # noqa: ASYNC110  # hot state tells nobody
            await asyncio.sleep(0.001)


async def told(notices: Any, kind: str = "toplist_update") -> Any:
    """The next frame of a user's list."""
    while True:
        async with asyncio.timeout(5):
            frame = json.loads(await anext(notices))
        if frame["type"] == kind and frame["data"]["toplist_type"] == "user":
            return frame["data"]


async def test_list_of_a_user_is_ranked_with_its_filters_and_columns(
    running: Any, bus: Any, hot: Any, clock: Any, open_ns: int, store: SqlStore
) -> None:
    await store.save_toplist(
        make_toplist(
            "t", owner="ann", columns=["price", "macd_5m"], filters=Filters(price_min=2, when="volume_day < 9")
        )
    )
    await store.save_toplist(make_toplist("off", enabled=False))
    notices = bus.listen("toplists.updated")
    async with running(ToplistsRole(bus=bus, hot=hot, clock=clock, store=store)):
        await known(hot, config_key("t"))
        now = board(
            {"B": 5.0, "A": 5.0, "C": 3.0, "D": 1.0, "E": math.nan, "F": 9.0},
            ts_ns=open_ns,
            price_age=[0.0, 61.0, 60.0, 0.0, 0.0, 0.0],
            halted=[1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        )
        await bus.publish("board:0", now)
        data = await told(notices)
        ranking = await hot.ranking("toplist:user:ann:t", limit=10)
        (config,) = await hot.get([config_key("t")])
    rankings = data.pop("rankings")
    assert data == {
        "toplist_id": "t",
        "toplist_type": "user",
        "title": "«'\";-- 100% :x ? 🚀»",
        "version": 1,
        "metric": "change_pct_5m",
        "columns": ["price", "macd_5m"],
        "total": 3,
        "session": "regular",
        "timestamp": "2025-03-03T14:30:00.000000000Z",
    }
    assert [(row["rank"], row["symbol"], row["value"], row["stale"], row["halted"]) for row in rankings] == [
        (1, "A", 5.0, True, False),
        (2, "B", 5.0, False, True),
        (3, "C", 3.0, False, False),
    ]
    assert rankings[0]["metadata"] == {"price": 5.0, "macd_5m": None}  # not on this board
    assert [tuple(ranked) for ranked in ranking] == [("A", 5.0), ("B", 5.0), ("C", 3.0)]
    assert json.loads(config)["owner"] == "ann"


async def test_list_that_is_changed_or_deleted_is_another_from_the_next_board_on(
    running: Any, bus: Any, hot: Any, clock: Any, open_ns: int, store: SqlStore
) -> None:
    notices = bus.listen("toplists.updated")
    role = ToplistsRole(bus=bus, hot=hot, clock=clock, store=store)
    values = {"A": 1.0, "B": 2.0}
    async with running(role):
        await bus.publish("board:0", board(values, ts_ns=open_ns))
        await store.save_toplist(make_toplist("t"))
        await bus.notify("toplists.changed", b"{}")
        await known(hot, config_key("t"))
        await bus.publish("board:0", board(values, ts_ns=open_ns + SECOND_NS))
        first = await told(notices)
        await store.save_toplist(make_toplist("t", version=2, sort_order="asc", name="rising"))
        await bus.notify("toplists.changed", b"{}")
        await known(hot, config_key("t"), containing=b"rising")
        await bus.publish("board:0", board(values, ts_ns=open_ns + 2 * SECOND_NS))
        second = await told(notices)
        await store.delete_toplist("t")
        await bus.notify("toplists.changed", b"{}")
        async with asyncio.timeout(5):
            while await hot.ranking("toplist:user:local:t", limit=1):  # noqa: ASYNC110  # hot state tells nobody
                await asyncio.sleep(0.001)
    assert [row["symbol"] for row in first["rankings"]] == ["B", "A"]
    assert (second["version"], [row["symbol"] for row in second["rankings"]]) == (2, ["A", "B"])


async def test_change_without_a_notice_is_found_after_seconds(
    running: Any, bus: Any, hot: Any, clock: Any, store: SqlStore
) -> None:
    async with running(ToplistsRole(bus=bus, hot=hot, clock=clock, store=store)):
        await asyncio.sleep(0.05)
        await store.save_toplist(make_toplist("t"))
        async with asyncio.timeout(5):
            while (await hot.get([config_key("t")]))[0] is None:  # hot state tells nobody
                await clock.wake()


async def test_filters_know_exchanges_sectors_and_watchlists(
    running: Any, bus: Any, hot: Any, clock: Any, open_ns: int, store: SqlStore
) -> None:
    for symbol, exchange, sector in (("A", "XNAS", "Tech"), ("B", "XNYS", "Tech"), ("C", "XNAS", "Food")):
        await store.save_securities([make_security(symbol, exchange=exchange, sector=sector)])
    await store.save_watchlist(make_watchlist("mine", symbols=["B", "C", "D"]))
    await store.save_toplist(make_toplist("a", filters=Filters(exchanges=["NASDAQ"], sectors=["Tech"])))
    await store.save_toplist(make_toplist("b", filters=Filters(when="symbol in watchlist mine")))
    await store.save_toplist(make_toplist("c", filters=Filters(when="not sector is Tech")))
    notices = bus.listen("toplists.updated")
    async with running(ToplistsRole(bus=bus, hot=hot, clock=clock, store=store)):
        await known(hot, config_key("c"))
        await bus.publish("board:0", board({"D": 4.0, "A": 3.0, "B": 2.0, "C": 1.0}, ts_ns=open_ns))
        found = [await told(notices) for _ in range(3)]
    assert [[row["symbol"] for row in data["rankings"]] for data in found] == [["A"], ["D", "B", "C"], ["C"]]


async def test_list_over_another_s_watchlist_is_empty_while_that_is_not_shared(
    running: Any, bus: Any, hot: Any, clock: Any, open_ns: int, store: SqlStore
) -> None:
    theirs = make_watchlist("theirs", symbols=["B"], owner="bob")
    await store.save_watchlist(theirs.model_copy(update={"shared": True}))
    for toplist_id, owner in (("a", "ann"), ("b", "bob")):
        filters = Filters(when="symbol in watchlist theirs")
        await store.save_toplist(make_toplist(toplist_id, owner=owner, filters=filters))
    notices = bus.listen("toplists.updated")
    role = ToplistsRole(bus=bus, hot=hot, clock=clock, store=store)
    lists = role._users
    assert lists is not None

    async def shown(second: int) -> dict[str, list[str]]:
        await bus.publish("board:0", board({"A": 2.0, "B": 1.0}, ts_ns=open_ns + second * SECOND_NS))
        told_ = [await told(notices) for _ in range(2)]
        return {data["toplist_id"]: [row["symbol"] for row in data["rankings"]] for data in told_}

    async with running(role):
        await known(hot, config_key("b"))
        assert await shown(0) == {"a": ["B"], "b": ["B"]}
        for second, shared in enumerate((False, True), start=1):
            known_ = await store.watchlist("theirs")
            await store.save_watchlist(known_.model_copy(update={"shared": shared, "version": known_.version + 1}))
            await lists._look()
            assert await shown(second) == {"a": ["B"] if shared else [], "b": ["B"]}


async def test_events_tell_who_entered_left_and_jumped(
    running: Any, bus: Any, hot: Any, clock: Any, open_ns: int, store: SqlStore
) -> None:
    await store.save_toplist(make_toplist("t", alerts=True, jump_ranks=2, filters=Filters(price_min=1)))
    notices = bus.listen("toplists.updated")
    async with running(ToplistsRole(bus=bus, hot=hot, clock=clock, store=store)):
        await known(hot, config_key("t"))
        for second, values in enumerate((
            {"A": 4.0, "B": 3.0, "C": 2.0, "D": 0.0},
            {"A": 1.0, "B": 3.0, "C": 0.0, "D": 9.0},
        )):  # fmt: skip
            await bus.publish("board:0", board(values, ts_ns=open_ns + second * SECOND_NS))
            await told(notices)
        events = await told(notices, "toplist_event")
    assert events == {
        "toplist_id": "t",
        "toplist_type": "user",
        "title": "«'\";-- 100% :x ? 🚀»",
        "session": "regular",
        "timestamp": "2025-03-03T14:30:01.000000000Z",
        "events": [
            {"kind": "entered", "symbol": "D", "rank": 1, "rank_before": None},
            {"kind": "jumped", "symbol": "A", "rank": 3, "rank_before": 1},
            {"kind": "left", "symbol": "C", "rank": None, "rank_before": 3},
        ],
    }


async def test_all_are_stale_while_no_trades_arrive(
    running: Any, bus: Any, hot: Any, clock: Any, open_ns: int, store: SqlStore
) -> None:
    await store.save_toplist(make_toplist("t"))
    notices = bus.listen("toplists.updated")
    async with running(ToplistsRole(bus=bus, hot=hot, clock=clock, store=store)):
        await known(hot, config_key("t"))
        await bus.publish("board:0", board({"A": 1.0}, ts_ns=open_ns, covered=False))
        data = await told(notices)
    assert [row["stale"] for row in data["rankings"]] == [True]
