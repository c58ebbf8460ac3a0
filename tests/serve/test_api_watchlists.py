"""Watchlists over HTTP: their life, their versions, the rules that name them, and what is refused."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from tapewatch.adapters.memory import MemoryBus

pytestmark = pytest.mark.anyio
LISTS = "/api/v1/watchlists"
JSON = {"Content-Type": "application/json"}
DRAFT: dict[str, Any] = {"name": "My list", "symbols": ["AAPL", "BRK.B", "AAPL"]}


async def test_watchlist_created_can_be_read_where_location_says(api: httpx.AsyncClient) -> None:
    created = await api.post(LISTS, json=DRAFT)
    assert created.status_code == 201
    assert created.headers["etag"] == '"1"'
    read = await api.get(created.headers["location"])
    assert (read.status_code, read.json()) == (200, created.json())
    assert read.json()["id"].startswith("my-list-")
    assert read.json()["symbols"] == ["AAPL", "BRK.B"]
    assert (await api.get(LISTS)).json() == {"items": [read.json()], "total": 1}


async def test_watchlist_with_own_id_keeps_it_and_a_second_one_conflicts(api: httpx.AsyncClient) -> None:
    assert (await api.post(LISTS, json=DRAFT | {"id": "mine"})).json()["id"] == "mine"
    second = await api.post(LISTS, json=DRAFT | {"id": "mine"})
    assert second.status_code == 409
    assert "mine" in second.json()["detail"]


async def test_watchlists_are_listed_page_by_page(api: httpx.AsyncClient) -> None:
    for n in range(3):
        await api.post(LISTS, json=DRAFT | {"id": f"w{n}"})
    page = (await api.get(LISTS, params={"limit": 2, "offset": 1})).json()
    assert ([item["id"] for item in page["items"]], page["total"]) == (["w1", "w2"], 3)


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
async def test_watchlist_replaced_on_condition_only_if_the_stored_version_is_meant(
    api: httpx.AsyncClient, fields: dict[str, Any], headers: dict[str, str], status: int
) -> None:
    first = (await api.post(LISTS, json=DRAFT | {"id": "mine"})).json()
    answer = await api.put(f"{LISTS}/mine", json={"name": "New", "symbols": []} | fields, headers=headers)
    assert answer.status_code == status
    stored = (await api.get(f"{LISTS}/mine")).json()
    if status == 200:
        assert answer.headers["etag"] == '"2"'
        assert stored == first | {"name": "New", "symbols": [], "version": 2, "updated_at": stored["updated_at"]}
    else:
        assert stored == first
    assert (await api.put(f"{LISTS}/nope", json=DRAFT)).status_code == 404


async def test_watchlist_that_an_enabled_rule_names_cannot_be_deleted(api: httpx.AsyncClient) -> None:
    await api.post(LISTS, json=DRAFT | {"id": "mine"})
    rule = {"name": "n", "when": "price > 1 and symbol in watchlist mine", "id": "r"}
    await api.post("/api/v1/rules", json=rule)
    refused = await api.delete(f"{LISTS}/mine")
    assert refused.status_code == 409
    assert refused.json()["detail"].endswith(": r")
    await api.post("/api/v1/rules/r/disable")
    assert (await api.delete(f"{LISTS}/mine", headers={"If-Match": '"9"'})).status_code == 412
    deleted = await api.delete(f"{LISTS}/mine")
    assert (deleted.status_code, deleted.content) == (204, b"")
    for call in (api.get(f"{LISTS}/mine"), api.delete(f"{LISTS}/mine"), api.put(f"{LISTS}/mine", json=DRAFT)):
        assert (await call).status_code == 404


async def test_watchlist_change_is_told_on_the_bus(api: httpx.AsyncClient, bus: MemoryBus) -> None:
    notices = bus.listen("rules.updated")
    await api.post(LISTS, json=DRAFT | {"id": "mine"})
    await api.put(f"{LISTS}/mine", json=DRAFT)
    await api.delete(f"{LISTS}/mine")
    told = [json.loads(await asyncio.wait_for(anext(notices), 10)) for _ in range(3)]
    assert told == [{"watchlist_id": "mine", "version": version} for version in (1, 2, 2)]


async def test_watchlist_holds_five_thousand_of_the_longest_symbols_and_no_more(api: httpx.AsyncClient) -> None:
    symbols = [f"{n:024}" for n in range(5_001)]
    assert (await api.post(LISTS, json={"name": "n", "symbols": symbols[:5_000]})).status_code == 201
    refused = await api.post(LISTS, json={"name": "n", "symbols": symbols})
    assert (refused.status_code, refused.json()["where"]) == (422, "body.symbols")
    huge = b'{"name":"n","symbols":[]}' + b" " * 300_000
    assert (await api.post(LISTS, content=huge, headers=JSON)).status_code == 413


HOSTILE = {
    "symbols are missing": b'{"name":"n"}',
    "symbols are null": b'{"name":"n","symbols":null}',
    "symbols are a text": b'{"name":"n","symbols":"AAPL"}',
    "a symbol is a number": b'{"name":"n","symbols":[1]}',
    "a symbol is empty": b'{"name":"n","symbols":[""]}',
    "a symbol has NUL": b'{"name":"n","symbols":["A\\u0000"]}',
    "a symbol ends in a newline": b'{"name":"n","symbols":["A\\n"]}',
    "a symbol is 25 letters": b'{"name":"n","symbols":["' + b"A" * 25 + b'"]}',
    "a symbol is a look-alike": '{"name":"n","symbols":["\u0410APL"]}'.encode(),
    "name is missing": b'{"symbols":[]}',
    "name has NUL": b'{"name":"\\u0000","symbols":[]}',
    "unknown field": b'{"name":"n","symbols":[],"owner":"me"}',
    "doubled key": b'{"name":"n","symbols":[],"symbols":["A"]}',
    "id with a slash": b'{"name":"n","symbols":[],"id":"a/b"}',
    "version is null": b'{"name":"n","symbols":[],"version":null}',
    "a list": b'["AAPL"]',
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE.keys())
async def test_watchlist_hostile_is_refused_and_never_stored(api: httpx.AsyncClient, hostile: bytes) -> None:
    for method, path in (("POST", LISTS), ("PUT", f"{LISTS}/there")):
        answer = await api.request(method, path, content=hostile, headers=JSON)
        assert answer.status_code == 422, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["where"].startswith("body")
    assert (await api.get(LISTS)).json() == {"items": [], "total": 0}
