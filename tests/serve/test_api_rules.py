"""Rules over HTTP: their life, their versions, and who hears of a change."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from tapewatch.adapters.memory import MemoryBus
from tapewatch.adapters.sql import SqlStore
from tapewatch.documents import Rule

pytestmark = pytest.mark.anyio
RULES = "/api/v1/rules"


async def test_rule_created_can_be_read_where_location_says(api: httpx.AsyncClient, draft: dict[str, Any]) -> None:
    created = await api.post(RULES, json=draft)
    assert created.status_code == 201
    assert created.headers["etag"] == '"1"'
    read = await api.get(created.headers["location"])
    assert read.status_code == 200
    assert read.json() == created.json()
    assert read.json()["id"].startswith("fast-movers-")
    assert read.json() | draft == read.json()


async def test_rule_with_own_id_keeps_it_and_a_second_one_conflicts(
    api: httpx.AsyncClient, draft: dict[str, Any]
) -> None:
    assert (await api.post(RULES, json=draft | {"id": "mine"})).json()["id"] == "mine"
    second = await api.post(RULES, json=draft | {"id": "mine", "name": "Other"})
    assert second.status_code == 409
    assert second.headers["content-type"] == "application/problem+json"
    assert "mine" in second.json()["detail"]
    assert (await api.get(f"{RULES}/mine")).json()["name"] == "Fast movers"


async def test_rule_replaced_has_next_version_and_its_first_creation_time(
    api: httpx.AsyncClient, draft: dict[str, Any]
) -> None:
    first = (await api.post(RULES, json=draft | {"id": "mine"})).json()
    second = await api.put(f"{RULES}/mine", json=draft | {"name": "Slower", "enabled": False})
    assert second.status_code == 200
    assert second.headers["etag"] == '"2"'
    assert second.json()["version"] == 2
    assert second.json()["created_at"] == first["created_at"]
    assert second.json()["updated_at"] > first["updated_at"]
    assert (await api.get(f"{RULES}/mine")).json() == second.json()


@pytest.mark.parametrize(
    ("fields", "headers", "status"),
    [
        ({"version": 1}, {}, 200),
        ({"version": 2}, {}, 409),
        ({}, {"If-Match": '"1"'}, 200),
        ({}, {"If-Match": '"7", "1"'}, 200),
        ({}, {"If-Match": "*"}, 200),
        ({}, {"If-Match": '"2"'}, 412),
        ({}, {"If-Match": 'W/"1"'}, 412),
        ({}, {"If-Match": "1"}, 412),
        ({"version": 1}, {"If-Match": '"2"'}, 412),
    ],
)
async def test_rule_replaced_on_condition_only_if_the_stored_version_is_meant(
    api: httpx.AsyncClient, draft: dict[str, Any], fields: dict[str, Any], headers: dict[str, str], status: int
) -> None:
    await api.post(RULES, json=draft | {"id": "mine"})
    answer = await api.put(f"{RULES}/mine", json=draft | {"name": "New"} | fields, headers=headers)
    assert answer.status_code == status
    name = (await api.get(f"{RULES}/mine")).json()["name"]
    assert name == ("New" if status == 200 else draft["name"])


async def test_rule_replaced_by_many_at_once_loses_no_version(api: httpx.AsyncClient, draft: dict[str, Any]) -> None:
    await api.post(RULES, json=draft | {"id": "mine"})
    answers = await asyncio.gather(
        *(api.put(f"{RULES}/mine", json=draft | {"name": f"N{n}", "version": 1}) for n in range(8))
    )
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 7
    assert (await api.get(f"{RULES}/mine")).json()["version"] == 2


async def test_rule_deleted_is_gone(api: httpx.AsyncClient, draft: dict[str, Any]) -> None:
    await api.post(RULES, json=draft | {"id": "mine"})
    assert (await api.delete(f"{RULES}/mine", headers={"If-Match": '"9"'})).status_code == 412
    deleted = await api.delete(f"{RULES}/mine")
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert (await api.get(f"{RULES}/mine")).status_code == 404
    assert (await api.delete(f"{RULES}/mine")).status_code == 404
    assert (await api.put(f"{RULES}/mine", json=draft)).status_code == 404
    assert (await api.get(RULES)).json() == {"items": [], "total": 0}


async def test_rules_are_listed_page_by_page(api: httpx.AsyncClient, draft: dict[str, Any]) -> None:
    for n in range(5):
        await api.post(RULES, json=draft | {"id": f"r{n}"})
    pages = [(await api.get(RULES, params={"limit": 2, "offset": offset})).json() for offset in (0, 2, 4, 6)]
    assert [[item["id"] for item in page["items"]] for page in pages] == [["r0", "r1"], ["r2", "r3"], ["r4"], []]
    assert {page["total"] for page in pages} == {5}


async def test_rule_validated_is_not_stored(api: httpx.AsyncClient, draft: dict[str, Any]) -> None:
    answer = await api.post(f"{RULES}/validate", json=draft)
    assert (answer.status_code, answer.json()) == (200, {"valid": True})
    assert (await api.get(RULES)).json()["total"] == 0


async def test_rule_cannot_take_the_name_of_an_operation(api: httpx.AsyncClient, draft: dict[str, Any]) -> None:
    assert (await api.post(RULES, json=draft | {"id": "validate"})).status_code == 422
    assert (await api.post(RULES, json=draft | {"id": "validated"})).status_code == 201
    assert (await api.get(f"{RULES}/validated")).status_code == 200


async def test_rule_invalid_says_where_and_why(api: httpx.AsyncClient, draft: dict[str, Any]) -> None:
    draft["conditions"].append({"metric": "change_pct_6m", "operator": ">", "value": 1})
    answer = await api.post(f"{RULES}/validate", json=draft)
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["where"] == "body.conditions[1].metric"
    assert "did you mean change_pct_5m" in problem["detail"]
    assert problem["status"] == 422
    assert problem["title"]


async def test_rule_change_is_told_on_the_bus(api: httpx.AsyncClient, bus: MemoryBus, draft: dict[str, Any]) -> None:
    notices = bus.listen("rules.updated")
    await api.post(RULES, json=draft | {"id": "mine"})
    await api.put(f"{RULES}/mine", json=draft)
    await api.delete(f"{RULES}/mine")
    told = [json.loads(await asyncio.wait_for(anext(notices), 1)) for _ in range(3)]
    assert told == [{"rule_id": "mine", "version": version} for version in (1, 2, 2)]


async def test_rule_change_without_a_bus_is_stored_all_the_same(
    api: httpx.AsyncClient, bus: MemoryBus, draft: dict[str, Any]
) -> None:
    await bus.close()
    assert (await api.post(RULES, json=draft | {"id": "mine"})).status_code == 201
    assert (await api.get(f"{RULES}/mine")).status_code == 200


async def test_rule_saved_by_somebody_else_is_served(api: httpx.AsyncClient, store: SqlStore, rule: Rule) -> None:
    await store.save_rule(rule)
    assert (await api.get(f"{RULES}/movers")).json()["conditions"] == [
        {"metric": "price", "operator": ">", "value": 1.0}
    ]
