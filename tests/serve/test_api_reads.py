"""Alerts, symbols, toplists, the catalogue and the system over HTTP."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import fields
from typing import Any

import httpx
import numpy as np
import pytest

from tapewatch.adapters.memory import MemoryBus
from tapewatch.adapters.sql import SqlStore
from tapewatch.clock import SystemClock
from tapewatch.contracts.samples import make_security
from tapewatch.documents import Alert, rfc3339
from tapewatch.engine.board import BoardRows
from tapewatch.engine.columns import MINUTE_NS, Bars
from tapewatch.engine.metrics import CATALOGUE
from tapewatch.engine.toplists import SYSTEM_TOPLISTS
from tapewatch.serve.board_view import BoardView

pytestmark = pytest.mark.anyio
MakeAlert = Callable[..., Alert]
MakeBoard = Callable[..., BoardRows]
LISTING = (
    "name", "exchange", "tape", "type", "is_test", "active", "market_cap", "shares_outstanding", "sector", "round_lot",
)  # fmt: skip


def bars(symbol: str, n: int) -> Bars:
    columns: dict[str, Any] = {field.name: np.arange(1.0, n + 1) for field in fields(Bars) if field.name != "symbols"}
    columns |= {
        "symbol": np.zeros(n, np.int32),
        "ts_ns": np.arange(n, dtype=np.int64) * MINUTE_NS,
        "vwap": np.full(n, math.nan),
        "trade_count": np.full(n, 3, np.int64),
        "revision": np.zeros(n, np.int64),
    }
    return Bars(symbols=(symbol,), **columns)


async def test_alerts_are_paged_newest_first_without_loss_or_repeat(
    api: httpx.AsyncClient, store: SqlStore, make_alert: MakeAlert
) -> None:
    # Pairs share an instant, so that a cursor made of the time alone would lose or repeat some.
    alerts = [make_alert(n, fired_at_ns=make_alert(n // 2).fired_at_ns) for n in range(9)]
    await store.save_alerts(alerts, reader="test")
    seen: list[str] = []
    params: dict[str, Any] = {"limit": 2}
    while True:
        page = (await api.get("/api/v1/alerts", params=params)).json()
        seen += [item["alert_id"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        params["cursor"] = page["next_cursor"]
    newest_first = sorted(alerts, key=lambda alert: (alert.fired_at_ns, alert.alert_id), reverse=True)
    assert seen == [alert.alert_id for alert in newest_first]


async def test_alerts_are_filtered_by_symbol_rule_and_time(
    api: httpx.AsyncClient, store: SqlStore, make_alert: MakeAlert
) -> None:
    alerts = [make_alert(n, symbol="AAPL" if n % 2 else "MSFT", rule_id=f"r{n % 3}") for n in range(6)]
    await store.save_alerts(alerts, reader="test")

    async def found(**params: str) -> list[int]:
        answer = await api.get("/api/v1/alerts", params=params)
        return [int(item["alert_id"], 16) for item in answer.json()["items"]]

    assert await found(symbol="AAPL") == [5, 3, 1]
    assert await found(rule_id="r0") == [3, 0]
    assert await found(symbol="aapl") == []
    assert await found(since=rfc3339(alerts[4].fired_at_ns)) == [5, 4]
    assert await found(until=rfc3339(alerts[2].fired_at_ns)) == [1, 0]
    assert await found(since="9999-01-01T00:00:00Z") == []


async def test_alert_read_shows_unknown_values_as_null(
    api: httpx.AsyncClient, store: SqlStore, make_alert: MakeAlert
) -> None:
    alert = make_alert(1)
    await store.save_alerts([alert], reader="test")
    answer = await api.get(f"/api/v1/alerts/{alert.alert_id}")
    assert answer.json() == alert.as_json() | {"mark": None}
    assert answer.json()["values"] == {"change_pct_5m": 2.5, "rsi_14_1m": None}
    assert (await api.get("/api/v1/alerts/none")).status_code == 404


async def test_symbols_are_listed_by_prefix(api: httpx.AsyncClient, board: BoardView, make_board: MakeBoard) -> None:
    board.show(0, make_board("MSFT", "AAPL"))
    board.show(1, make_board("AA", "TSLA"))
    everything = (await api.get("/api/v1/symbols")).json()
    assert [item["symbol"] for item in everything["items"]] == ["AA", "AAPL", "MSFT", "TSLA"]
    glance = {"symbol": "TSLA", "price": 20, "change_pct_day": None, "volume_day": 2000}
    assert everything["items"][3] == glance | dict.fromkeys(LISTING)
    page = (await api.get("/api/v1/symbols", params={"prefix": "AA", "limit": 1, "offset": 1})).json()
    assert ([item["symbol"] for item in page["items"]], page["total"]) == (["AAPL"], 2)


async def test_symbols_carry_what_the_master_knows_and_test_symbols_are_marked(
    api: httpx.AsyncClient, store: SqlStore, board: BoardView, make_board: MakeBoard
) -> None:
    board.show(0, make_board("AAPL", "ZVZZT"))
    await store.save_securities(
        [
            make_security("AAPL", name="Apple Inc.", market_cap=3.5e12, sector=None),
            make_security("ZVZZT", is_test=True, active=False),
            make_security("NOTRADE"),
        ]
    )
    apple, test = (await api.get("/api/v1/symbols")).json()["items"]
    known = {"name": "Apple Inc.", "exchange": "XNAS", "tape": "C", "type": "CS", "market_cap": 3.5e12, "sector": None}
    assert apple | known | {"is_test": False, "active": True, "round_lot": 100, "price": 10} == apple
    assert (test["is_test"], test["active"]) == (True, False)
    detail = (await api.get("/api/v1/symbols/AAPL")).json()
    assert detail | known | {"listing_as_of": "2025-03-03", "shares_outstanding": 1e15} == detail
    unlisted = (await api.get("/api/v1/symbols/MSFT")).status_code
    assert (unlisted, (await api.get("/api/v1/symbols/NOTRADE")).status_code) == (404, 404)


async def test_symbol_that_the_master_does_not_list_has_nulls(api: httpx.AsyncClient, store: SqlStore) -> None:
    await store.save_bars(bars("OLD", 1), reader="test")
    detail = (await api.get("/api/v1/symbols/OLD")).json()
    assert {detail[name] for name in (*LISTING, "listing_as_of")} == {None}


async def test_symbol_shows_board_and_last_sixty_bars(
    api: httpx.AsyncClient, store: SqlStore, board: BoardView, make_board: MakeBoard
) -> None:
    board.show(0, make_board("MSFT", "AAPL"))
    await store.save_bars(bars("AAPL", 70), reader="test")
    detail = (await api.get("/api/v1/symbols/AAPL")).json()
    assert detail["as_of"] == "2013-09-24T05:20:00.000000000Z"
    assert detail["session"] == "regular"
    assert detail["metrics"] == {"price": 20, "change_pct_day": None, "volume_day": 2000, "change_pct_5m": 2}
    assert len(detail["bars"]) == 60
    assert detail["bars"][-1]["ts"] == rfc3339(69 * MINUTE_NS)
    assert detail["bars"][-1] | {"close": 70.0, "vwap": None, "trade_count": 3, "revision": 0} == detail["bars"][-1]


async def test_symbol_known_from_bars_only_has_unknown_metrics(api: httpx.AsyncClient, store: SqlStore) -> None:
    await store.save_bars(bars("OLD", 1), reader="test")
    detail = (await api.get("/api/v1/symbols/OLD")).json()
    assert detail["as_of"] is None
    assert detail["metrics"] == dict.fromkeys(CATALOGUE)
    assert (await api.get("/api/v1/symbols/NEVER")).status_code == 404


async def test_toplist_ranks_with_metadata_from_the_board(
    api: httpx.AsyncClient, board: BoardView, make_board: MakeBoard, rank_board: Callable[[], Awaitable[None]]
) -> None:
    board.show(0, make_board("A", "B", "C"))
    await rank_board()
    top = (await api.get("/api/v1/toplists/system/gainers_5m", params={"limit": 2})).json()
    assert top == {
        "toplist_id": "gainers_5m",
        "toplist_type": "system",
        "title": SYSTEM_TOPLISTS["gainers_5m"].title,
        "metric": "change_pct_5m",
        "timestamp": "2013-09-24T05:20:00.000000000Z",
        "session": "regular",
        "rankings": [
            {
                "symbol": "C",
                "rank": 1,
                "value": 3,
                "metadata": {"price": 30, "change_pct_day": None, "volume_day": 3000},
                "stale": False,
                "halted": False,
            },
            {
                "symbol": "B",
                "rank": 2,
                "value": 2,
                "metadata": {"price": 20, "change_pct_day": 1, "volume_day": 2000},
                "stale": False,
                "halted": False,
            },
        ],
        "pagination": {"limit": 2, "offset": 0, "total": 3},
    }
    bottom = (await api.get("/api/v1/toplists/system/losers_5m", params={"limit": 1, "offset": 1})).json()
    assert [(row["symbol"], row["rank"]) for row in bottom["rankings"]] == [("B", 2)]
    cheap = (await api.get("/api/v1/toplists/system/gainers_5m", params={"price_max": 20, "limit": 1})).json()
    assert [(row["symbol"], row["rank"]) for row in cheap["rankings"]] == [("B", 2)]
    assert cheap["pagination"]["total"] == 2
    assert (await api.get("/api/v1/toplists/system/gainers_1d")).json()["toplist_id"] == "gainers_day"


async def test_toplist_before_the_first_scan_is_empty(api: httpx.AsyncClient) -> None:
    top = (await api.get("/api/v1/toplists/system/volume_day")).json()
    assert (top["timestamp"], top["rankings"], top["pagination"]["total"]) == (None, [], 0)
    assert (await api.get("/api/v1/toplists/system/none")).status_code == 404


async def test_toplists_and_metrics_are_catalogued(api: httpx.AsyncClient) -> None:
    toplists = (await api.get("/api/v1/toplists")).json()["items"]
    assert [toplist["id"] for toplist in toplists] == list(SYSTEM_TOPLISTS)
    losers = next(toplist for toplist in toplists if toplist["id"] == "losers_1m")
    assert (losers["metric"], losers["window"], losers["order"]) == ("change_pct_1m", "1m", "ascending")
    metrics = (await api.get("/api/v1/metrics")).json()["items"]
    assert [metric["name"] for metric in metrics] == list(CATALOGUE)
    gap = next(metric for metric in metrics if metric["name"] == "gap_pct")
    assert gap == {
        "name": "gap_pct",
        "unit": "%",
        "formula": CATALOGUE["gap_pct"].formula,
        "timeframe": "day",
        "warm_up": "",
        "session": "after open",
        "freshness": "trade",
        "source": "",
        "needs": "reference",
        "back": 0,
        "published": True,
    }


async def test_status_with_unknown_number_is_json(api: httpx.AsyncClient) -> None:
    assert (await api.get("/api/v1/system/status")).json() == {"feed": "synthetic", "lag_s": None}


async def test_prometheus_counts_requests_by_template(api: httpx.AsyncClient) -> None:
    await api.get("/api/v1/rules/some-rule")
    await api.get("/no/such/page")
    exported = (await api.get("/metrics")).text
    assert 'http_requests_total{method="GET",path="/api/v1/rules/{rule_id}",status="404"}' in exported
    assert 'path="(no route)",status="404"' in exported
    assert "some-rule" not in exported
    for name in ("scan_cycle_seconds_bucket", "tick_processing_latency_seconds_bucket", "websocket_connections"):
        assert name in exported


async def test_board_view_follows_the_bus_from_the_newest_on(
    bus: MemoryBus, board: BoardView, make_board: MakeBoard
) -> None:
    following = asyncio.create_task(board.follow(bus, 2))
    for _ in range(5):
        await asyncio.sleep(0)
    assert board.as_of() is None
    await bus.publish("board:0", make_board("A"))
    await bus.publish("board:1", make_board("B", "C", at_ns=7))
    await bus.publish("board:0", make_board("D", "A"))
    for _ in range(10):
        await asyncio.sleep(0)
    assert board.symbols() == ("A", "B", "C", "D")
    view = board.of("A")
    assert view is not None
    assert (view.as_of_ns, view.metrics["price"]) == (make_board("A").ts_ns, 20.0)
    symbols, values = board.column("price")
    assert dict(zip(symbols, values.tolist(), strict=True)) == {"D": 10, "A": 20, "B": 10, "C": 20}
    assert board.of("E") is None
    assert math.isnan(board.some_of("E", ("price",))["price"])
    assert board.column("no_metric")[0] == []
    following.cancel()


async def test_board_view_is_caught_up_with_the_boards_that_are_kept_and_without_any(
    bus: MemoryBus, make_board: MakeBoard
) -> None:
    await bus.publish("board:1", make_board("OLD"))
    await bus.publish("board:1", make_board("A"))
    board = BoardView(SystemClock())
    assert not board.caught_up
    asking = asyncio.Event()
    newest = bus.newest

    async def slowly(stream: str, limit: int) -> Any:
        if stream == "board:0":
            await asking.wait()
        return await newest(stream, limit)

    bus.newest = slowly  # type: ignore[method-assign]
    following = asyncio.create_task(board.follow(bus, 2))
    for _ in range(10):
        await asyncio.sleep(0)
    assert (board.symbols(), board.caught_up) == (("A",), False)
    asking.set()
    for _ in range(10):
        await asyncio.sleep(0)
    assert board.caught_up
    assert board.version == 1  # the older one that is kept too was never shown
    following.cancel()


async def test_catalogue_that_a_client_has_is_304(api: httpx.AsyncClient) -> None:
    answer = await api.get("/api/v1/metrics")
    etag = answer.headers["etag"]
    for known in (etag, f'"another", W/{etag}'):
        again = await api.get("/api/v1/metrics", headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert (await api.get("/api/v1/metrics", headers={"If-None-Match": '"another"'})).content == answer.content
