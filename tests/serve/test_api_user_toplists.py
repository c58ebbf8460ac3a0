"""Users' toplists over HTTP: their life, their versions, their rankings, and what is refused."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import Request

from tapewatch.accounts.roles import LOCAL, Principal
from tapewatch.adapters.memory import MemoryBus, MemoryHotState
from tapewatch.adapters.sql import SqlStore
from tapewatch.contracts.samples import make_toplist, make_watchlist
from tapewatch.engine.board import BoardRows
from tapewatch.engine.metrics import CATALOGUE
from tapewatch.engine.toplists import SYSTEM_TOPLISTS
from tapewatch.ports import AuditQuery, Ranked
from tapewatch.serve.api import toplists
from tapewatch.serve.board_view import BoardView
from tapewatch.toplist_documents import SHORT_NAMES

pytestmark = pytest.mark.anyio
LISTS = "/api/v1/toplists/user"
DRAFT: dict[str, Any] = {
    "name": "High Volume Gainers",
    "description": "Stocks with >2% gain and >1M volume",
    "metric": "change_pct",
    "time_window": "5m",
    "sort_order": "desc",
    "filters": {"min_volume": 1_000_000, "min_change_pct": 2.0, "price_min": 10.0, "price_max": 500.0},
    "columns": ["symbol", "price", "change_pct", "volume", "rsi"],
    "color_scheme": {"positive": "#00ff00", "negative": "#ff0000", "neutral": "#ffffff"},
    "enabled": True,
}


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> None:
    """The header ``X-User`` says who asks."""

    def who(request: Request) -> Principal:
        name = request.headers.get("x-user")
        return LOCAL if name is None else Principal.of(name, "trader")

    monkeypatch.setattr(toplists, "who", who)


async def test_list_created_can_be_read_where_location_says(api: httpx.AsyncClient, store: SqlStore) -> None:
    created = await api.post(LISTS, json=DRAFT)
    assert created.status_code == 201, created.text
    assert created.headers["etag"] == '"1"'
    read = await api.get(created.headers["location"])
    assert read.json() == {**created.json(), "timestamp": None, "session": None, "rankings": []}
    document = created.json()
    assert document["id"].startswith("high-volume-gainers-")
    assert (document["owner"], document["version"], document["columns"]) == (
        "local",
        1,
        ["price", "change_pct", "volume", "rsi"],
    )
    assert (await api.get(LISTS)).json() == {"items": [document], "total": 1}
    everything = (await api.get("/api/v1/toplists")).json()
    assert everything["total"] == len(SYSTEM_TOPLISTS) + 1
    assert everything["items"][-1] == {
        "id": document["id"],
        "title": "High Volume Gainers",
        "metric": "change_pct_5m",
        "window": "5m",
        "order": "descending",
        "toplist_type": "user",
    }
    (entry,) = await store.audit(AuditQuery(kind="toplist"))
    assert (entry.subject, entry.action, entry.actor) == (document["id"], "create", "local")


@pytest.mark.parametrize("window", ["1m", "5m", "15m", "1h", "1d"])
@pytest.mark.parametrize("name", SHORT_NAMES)
async def test_short_name_is_a_metric_over_each_window(api: httpx.AsyncClient, name: str, window: str) -> None:
    made = await api.post(LISTS, json={"name": "Mine", "metric": name, "time_window": window})
    assert made.status_code == 201
    everything = (await api.get("/api/v1/toplists")).json()["items"]
    assert CATALOGUE[everything[-1]["metric"]].timeframe == window.replace("1d", "day")


async def test_change_is_told_and_deletion_ends_it(api: httpx.AsyncClient, bus: MemoryBus) -> None:
    notices = bus.listen("toplists.changed")
    made = (await api.post(LISTS, json=DRAFT)).json()
    at = f"{LISTS}/{made['id']}"
    changed = await api.put(at, json=DRAFT | {"name": "Other", "sort_order": "asc"})
    assert (changed.json()["version"], changed.json()["created_at"]) == (2, made["created_at"])
    assert (await api.delete(at)).status_code == 204
    assert (await api.get(at)).status_code == 404
    assert (await api.delete(at)).status_code == 404
    assert [json.loads(await anext(notices))["version"] for _ in range(3)] == [1, 2, 2]


@pytest.mark.parametrize(
    ("fields", "headers", "status"),
    [
        ({}, {}, 200),
        ({"version": 1}, {}, 200),
        ({"version": 2}, {}, 409),
        ({}, {"If-Match": '"1"'}, 200),
        ({}, {"If-Match": '"2"'}, 412),
    ],
)
async def test_list_replaced_on_condition_only_if_the_stored_version_is_meant(
    api: httpx.AsyncClient, fields: dict[str, Any], headers: dict[str, str], status: int
) -> None:
    made = (await api.post(LISTS, json=DRAFT)).json()
    answer = await api.put(f"{LISTS}/{made['id']}", json=DRAFT | {"name": "New"} | fields, headers=headers)
    assert answer.status_code == status
    stored = (await api.get(f"{LISTS}/{made['id']}")).json()
    assert stored["name"] == ("New" if status == 200 else DRAFT["name"])


@pytest.mark.parametrize(
    ("changes", "where", "why"),
    [
        ({"metric": "chnge_pct_5m"}, "body.metric", "did you mean"),
        ({"metric": "change_pct_1h"}, "body.time_window", "not the one of change_pct_1h"),
        ({"metric": "new_high_day"}, "body.metric", "since the scan before"),
        ({"metric": "rsi", "time_window": None}, "body.metric", "needs a time_window"),
        ({"time_window": "2m"}, "body.time_window", "1m"),
        ({"sort_order": "up"}, "body.sort_order", "asc"),
        ({"columns": ["price", "x"]}, "body.columns", "unknown metric 'x'"),
        ({"columns": [f"sma_{n}_5m" for n in range(30)]}, "body.columns", "at most"),
        ({"filters": {"price_min": 2, "price_max": 1}}, "body.filters.price_max", "below price_min"),
        ({"filters": {"min_volume": -1}}, "body.filters.min_volume", "greater"),
        ({"filters": {"exchanges": ["nowhere"]}}, "body.filters.exchanges[0]", "pattern"),
        ({"filters": {"when": "price >"}}, "body.filters.when", "line 1, column"),
        ({"filters": {"when": "price crosses_above 5"}}, "body.filters.when", "crosses_above"),
        ({"filters": {"when": "price > 5 for 10s"}}, "body.filters.when", "for cannot be asked"),
        ({"filters": {"when": "price > 5 within 10s"}}, "body.filters.when", "within cannot be asked"),
        ({"filters": {"when": "price > 5 3 times in a row"}}, "body.filters.when", "times in a row cannot"),
        ({"filters": {"when": "price > 5 then price > 6 within 5m"}}, "body.filters.when", "then cannot"),
        ({"filters": {"when": "new_high_day"}}, "body.filters.when", "since the scan before"),
        ({"filters": {"when": "symbol in watchlist none"}}, "body.filters.when", "no watchlist none"),
        ({"filters": {"x": 1}}, "body.filters.x", "not a field"),
        ({"color_scheme": {"positive": "url(//evil)"}}, "body.color_scheme.positive", "pattern"),
        ({"color_scheme": {"positive": "#00ff00\n"}}, "body.color_scheme.positive", "pattern"),
        ({"owner": "ann"}, "body.owner", "not a field"),
        ({"id": "mine"}, "body.id", "not a field"),
        ({"jump_ranks": 0}, "body.jump_ranks", "greater"),
        ({"name": "a\u202eb"}, "body.name", "cannot be shown"),
    ],
)
async def test_list_that_cannot_be_is_refused_with_the_field(
    api: httpx.AsyncClient, changes: dict[str, Any], where: str, why: str
) -> None:
    answer = await api.post(LISTS, json=DRAFT | changes)
    assert (answer.status_code, answer.json().get("where")) == (422, where), answer.text
    assert why in answer.json()["detail"]
    assert (await api.get(LISTS)).json()["total"] == 0


async def test_filters_that_cost_too_much_are_refused(api: httpx.AsyncClient) -> None:
    when = " and ".join(f"price / vwap_session / {n} > 1" for n in range(2, 25))
    answer = await api.post(LISTS, json=DRAFT | {"filters": {"when": when}})
    assert (answer.status_code, answer.json()["where"]) == (422, "body.filters")
    assert "microseconds" in answer.json()["detail"]


async def test_list_names_watchlists_that_are_there(api: httpx.AsyncClient, store: SqlStore) -> None:
    await store.save_watchlist(make_watchlist("mine"))
    answer = await api.post(LISTS, json=DRAFT | {"filters": {"when": "symbol in watchlist mine"}})
    assert answer.status_code == 201, answer.text


async def test_watchlists_are_judged_by_the_list_s_owner_whoever_changes_it(
    api: httpx.AsyncClient, store: SqlStore, several: None
) -> None:
    await store.save_watchlist(make_watchlist("anns", owner="ann"))
    await store.save_watchlist(make_watchlist("of-admins", owner="local"))
    await store.save_watchlist(make_watchlist("bobs", owner="bob"))
    await store.save_watchlist(make_watchlist("everybodys", owner="bob", shared=True))
    ann = {"X-User": "ann"}
    at = (await api.post(LISTS, json=DRAFT, headers=ann)).headers["location"]
    for headers in (ann, {}):  # the admin sees all of them
        for name, status in (("anns", 200), ("everybodys", 200), ("of-admins", 422), ("bobs", 422), ("none", 422)):
            draft = DRAFT | {"filters": {"when": f"symbol in watchlist {name}"}}
            answer = await api.put(at, json=draft, headers=headers)
            assert answer.status_code == status, (name, headers)
            if status == 422:
                assert answer.json()["where"] == "body.filters.when"
                assert answer.json()["detail"] == f"there is no watchlist {name}"
    mine = {"filters": {"when": "symbol in watchlist anns"}}
    assert (await api.post(LISTS, json=DRAFT | mine)).status_code == 422


async def test_another_s_list_is_as_good_as_not_there(api: httpx.AsyncClient, several: None) -> None:
    ann, bob = {"X-User": "ann"}, {"X-User": "bob"}
    made = (await api.post(LISTS, json=DRAFT, headers=ann)).json()
    at = f"{LISTS}/{made['id']}"
    assert made["owner"] == "ann"
    missing = await api.get(f"{LISTS}/none", headers=bob)
    for answer in (
        await api.get(at, headers=bob),
        await api.get(f"{at}/rankings", headers=bob),
        await api.put(at, json=DRAFT, headers=bob),
        await api.delete(at, headers=bob),
    ):
        assert answer.status_code == 404
        assert answer.json()["detail"] == missing.json()["detail"].replace("none", made["id"])
    assert (await api.get(LISTS, headers=bob)).json() == {"items": [], "total": 0}
    assert len((await api.get("/api/v1/toplists", headers=bob)).json()["items"]) == len(SYSTEM_TOPLISTS)
    by_admin = await api.put(at, json=DRAFT | {"name": "Seen"})
    assert (by_admin.status_code, by_admin.json()["owner"]) == (200, "ann")
    assert (await api.get(at, headers=ann)).json()["name"] == "Seen"


async def test_fifty_first_list_is_refused(api: httpx.AsyncClient, store: SqlStore) -> None:
    for n in range(50):
        await store.save_toplist(make_toplist(f"t{n}"))
    answer = await api.post(LISTS, json=DRAFT)
    assert answer.status_code == 409
    assert "50 toplists" in answer.json()["detail"]


async def test_rankings_are_the_list_s_with_filters_and_pages(
    *,
    api: httpx.AsyncClient,
    store: SqlStore,
    hot: MemoryHotState,
    board: BoardView,
    make_board: Callable[..., BoardRows],
) -> None:
    board.show(0, make_board("A", "B", "C", "D"))
    await store.save_toplist(make_toplist("t", columns=["price"]))
    await hot.rank("toplist:user:local:t", [Ranked(symbol, 1.0 + n) for n, symbol in enumerate("ABCD")], ttl_s=60)
    at = f"{LISTS}/t/rankings"
    first = (await api.get(at, params={"limit": 1})).json()
    assert first == {
        "toplist_id": "t",
        "toplist_type": "user",
        "title": "«'\";-- 100% :x ? 🚀»",
        "metric": "change_pct_5m",
        "timestamp": "2013-09-24T05:20:00.000000000Z",
        "session": "regular",
        "rankings": [
            {"symbol": "D", "rank": 1, "value": 4, "metadata": {"price": 40}, "stale": False, "halted": False}
        ],
        "pagination": {"limit": 1, "offset": 0, "total": 4},
    }

    async def found(**query: Any) -> tuple[list[tuple[str, int]], int]:
        page = (await api.get(at, params=query)).json()
        return [(row["symbol"], row["rank"]) for row in page["rankings"]], page["pagination"]["total"]

    assert await found(limit=2, offset=1) == ([("C", 2), ("B", 3)], 4)
    assert await found(price_max=30, price_min="20.0") == ([("C", 2), ("B", 3)], 2)
    assert await found(min_volume=2000, limit=1, offset=1) == ([("C", 2)], 3)
    detail = (await api.get(f"{LISTS}/t")).json()
    assert [row["symbol"] for row in detail["rankings"]] == ["D", "C", "B", "A"]
    for query in ("limit=501", "limit=0", "min_volume=nan", "price_min=-1", "price_max=1_000", "x=1"):
        assert (await api.get(f"{at}?{query}")).status_code == 422
    await store.save_toplist(make_toplist("t", version=2, enabled=False))
    assert await found() == ([], 0)
