"""The audit log over HTTP, and the scoreboard: what others wrote, handed on."""

import httpx
import pytest

from tapewatch.adapters.memory import MemoryHotState
from tapewatch.adapters.sql import SqlStore
from tapewatch.contracts.samples import make_rule, make_watchlist
from tapewatch.ports import AuditQuery
from tapewatch.serve.api.audit import read_cursor, write_cursor

pytestmark = pytest.mark.anyio
AUDIT, RULES = "/api/v1/audit", "/api/v1/rules"


async def test_change_over_http_is_in_the_audit_with_what_it_changed(api: httpx.AsyncClient) -> None:
    await api.post(RULES, json={"name": "one", "when": "price > 1", "id": "r"})
    await api.put(f"{RULES}/r", json={"name": "two", "when": "price > 1"})
    await api.post(f"{RULES}/r/disable")
    await api.delete(f"{RULES}/r")
    await api.post("/api/v1/watchlists", json={"name": "w", "symbols": ["A"], "id": "w"})
    page = (await api.get(AUDIT)).json()
    assert page["next_cursor"] is None
    told = [(e["kind"], e["subject"], e["action"], e["version"], e["actor"]) for e in reversed(page["items"])]
    assert told == [
        ("rule", "r", "create", 1, "local"),
        ("rule", "r", "change", 2, "local"),
        ("rule", "r", "change", 3, "local"),
        ("rule", "r", "delete", 3, "local"),
        ("watchlist", "w", "create", 1, "local"),
    ]
    changes = page["items"][::-1]
    assert (changes[1]["before"], changes[1]["after"]) == ({"name": "one"}, {"name": "two"})
    assert (changes[2]["before"], changes[2]["after"]) == ({"enabled": True}, {"enabled": False})
    assert changes[3]["after"] == changes[0]["before"] == {}
    assert changes[0]["at"].endswith("Z")


async def test_audit_is_filtered_and_turned_page_by_page(api: httpx.AsyncClient, store: SqlStore) -> None:
    for n in range(5):
        await store.save_rule(make_rule(f"r{n}"), actor="ann")
        await store.save_watchlist(make_watchlist(f"r{n}"))
    whole = (await api.get(AUDIT)).json()["items"]
    assert len(whole) == 10
    seen: list[dict[str, object]] = []
    cursor: dict[str, str] = {}
    while True:
        page = (await api.get(AUDIT, params={"limit": 3, **cursor})).json()
        seen += page["items"]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert seen == whole
    rules = (await api.get(AUDIT, params={"kind": "rule"})).json()["items"]
    assert [entry["subject"] for entry in rules] == [f"r{n}" for n in reversed(range(5))]
    assert [e["kind"] for e in (await api.get(AUDIT, params={"subject": "r3"})).json()["items"]] == [
        "watchlist",
        "rule",
    ]
    since = whole[4]["at"]
    assert (await api.get(AUDIT, params={"since": since})).json()["items"] == whole[:5]
    assert (await api.get(AUDIT, params={"since": "2999-01-01T00:00:00Z"})).json()["items"] == []


@pytest.mark.parametrize(
    "query",
    [
        *(
            "kind=nobody",
            "subject=%00",
            "since=yesterday",
            "limit=0",
            "limit=1_0",
            "cursor=x",
            "cursor=OTk",
            "cursor=LTE6eA",
        ),
        *("cursor=" + "A" * 201, "actor=ann", "kind=rule&kind=rule"),
    ],
)
async def test_audit_query_hostile_is_422(api: httpx.AsyncClient, query: str) -> None:
    answer = await api.get(f"{AUDIT}?{query}")
    assert answer.status_code == 422
    assert answer.json()["where"].startswith("query.")


async def test_audit_cursor_read_is_the_place_written(store: SqlStore) -> None:
    assert read_cursor(write_cursor(10**18 - 1)) == 10**18 - 1
    assert await store.audit(AuditQuery(before=10**18 - 1)) == []


async def test_scoreboard_is_handed_on_and_empty_before_there_is_one(
    api: httpx.AsyncClient, hot: MemoryHotState
) -> None:
    empty = await api.get("/api/v1/scoreboard")
    assert empty.status_code == 200
    assert (empty.json()["rules"], empty.json()["as_of"]) == ([], None)
    board = (
        b'{"date":"2025-03-03","as_of":"2025-03-03T15:00:00Z","symbols":3,"alerts":1,"unfollowed":0,'
        b'"rules":[{"x":null}]}'
    )
    await hot.put({"scoreboard": board}, ttl_s=60)
    shown = await api.get("/api/v1/scoreboard")
    assert (shown.content, shown.headers["content-type"]) == (board, "application/json")
    assert shown.json().keys() == empty.json().keys()
