"""Rules over HTTP: their life, their versions, and who hears of a change."""

import asyncio
import json
import re
from typing import Any

import httpx
import pytest

from tapewatch.adapters.memory import MemoryBus
from tapewatch.adapters.sql import SqlStore
from tapewatch.documents import Rule
from tapewatch.engine.rules.cost import MAX_USER_COST_US, MAX_USER_MEMORY_BYTES
from tapewatch.serve.api.rule_budget import cost_of

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


@pytest.mark.parametrize("word", ["validate", "dry-run", "templates"])
async def test_rule_cannot_take_the_name_of_an_operation(
    api: httpx.AsyncClient, draft: dict[str, Any], word: str
) -> None:
    assert (await api.post(RULES, json=draft | {"id": word})).status_code == 422
    assert (await api.post(RULES, json=draft | {"id": f"{word}d"})).status_code == 201
    assert (await api.get(f"{RULES}/{word}d")).status_code == 200


async def test_rule_written_as_text_is_the_rule_written_as_json(api: httpx.AsyncClient, draft: dict[str, Any]) -> None:
    text = "change_pct_5m > 2 and (halted or price crosses_above vwap_session)"
    written = {"name": draft["name"], "when": text, "fire": "once per session", "tags": ["a"], "severity": "critical"}
    stored = (await api.post(RULES, json=written | {"id": "text"})).json()
    assert stored["when"] == text
    same = {**written, "conditions": stored["conditions"]}
    del same["when"]
    assert (await api.post(RULES, json=same | {"id": "json"})).json()["when"] == text
    # What was read can be written back as it is, but for the machine's own fields.
    back = {key: value for key, value in stored.items() if key not in {"id", "owner", "created_at", "updated_at"}}
    assert (await api.put(f"{RULES}/text", json=back)).status_code == 200


async def test_rules_are_filtered_by_state_tag_and_a_part_of_their_name(
    api: httpx.AsyncClient, draft: dict[str, Any]
) -> None:
    for rule_id, name, tags, enabled in (
        ("a", "Gap up", ["gap", "open"], True),
        ("b", "GAP down", ["gap"], False),
        ("c", "100% Volume", ["volume"], True),
    ):
        await api.post(RULES, json=draft | {"id": rule_id, "name": name, "tags": tags, "enabled": enabled})

    async def found(**wanted: Any) -> list[str]:
        page = (await api.get(RULES, params=wanted)).json()
        return [item["id"] for item in page["items"]]

    assert await found(enabled="true") == ["a", "c"]
    assert await found(enabled="false") == ["b"]
    assert await found(tag="gap") == ["a", "b"]
    assert await found(tag="ga") == []
    assert await found(q="gAp") == ["a", "b"]
    assert await found(q="%") == ["c"]
    assert await found(q="gap", tag="gap", enabled="true") == ["a"]
    assert await found(tag="gap", limit=1, offset=1) == ["b"]
    assert (await api.get(RULES, params={"tag": "gap", "limit": 1})).json()["total"] == 2


async def test_rule_has_versions_until_it_is_deleted(
    api: httpx.AsyncClient, draft: dict[str, Any], store: SqlStore
) -> None:
    versions = [(await api.post(RULES, json=draft | {"id": "mine"})).json()]
    versions += [(await api.put(f"{RULES}/mine", json=draft | {"name": f"N{n}"})).json() for n in range(2, 5)]
    page = (await api.get(f"{RULES}/mine/versions")).json()
    assert page == {"items": versions[::-1], "total": 4}
    page = (await api.get(f"{RULES}/mine/versions", params={"limit": 2, "offset": 1})).json()
    assert page == {"items": [versions[2], versions[1]], "total": 4}
    assert (await api.get(f"{RULES}/mine/versions", params={"offset": 9})).json() == {"items": [], "total": 4}
    assert (await api.get(f"{RULES}/mine/versions/2")).json() == versions[1]
    assert (await api.get(f"{RULES}/mine/versions/5")).status_code == 404
    await api.delete(f"{RULES}/mine")
    for rule_id in ("mine", "nope"):
        for path in ("versions", "versions/1"):
            assert (await api.get(f"{RULES}/{rule_id}/{path}")).status_code == 404
    assert [rule.name for rule in await store.rule_versions("mine")][:2] == ["N4", "N3"]  # of which alerts tell


async def test_rule_rolled_back_has_the_old_content_as_its_newest_version(
    api: httpx.AsyncClient, draft: dict[str, Any]
) -> None:
    first = (await api.post(RULES, json=draft | {"id": "mine"})).json()
    await api.put(f"{RULES}/mine", json=draft | {"name": "New", "enabled": False})
    answer = await api.post(f"{RULES}/mine/rollback", json={"version": 1})
    assert (answer.status_code, answer.headers["etag"]) == (200, '"3"')
    back = answer.json()
    assert back == first | {"version": 3, "updated_at": back["updated_at"]}
    assert back["updated_at"] > first["updated_at"]
    assert (await api.get(f"{RULES}/mine")).json() == back
    assert (await api.post(f"{RULES}/mine/rollback", json={"version": 9})).status_code == 404
    assert (await api.post(f"{RULES}/nope/rollback", json={"version": 1})).status_code == 404
    assert (await api.get(f"{RULES}/mine")).json()["version"] == 3


async def test_rule_switched_has_a_new_version_only_when_it_changed(
    api: httpx.AsyncClient, bus: MemoryBus, draft: dict[str, Any]
) -> None:
    await api.post(RULES, json=draft | {"id": "mine"})
    notices = bus.listen("rules.updated")
    for operation, enabled, version in (
        ("enable", True, 1),
        ("disable", False, 2),
        ("disable", False, 2),
        ("enable", True, 3),
    ):
        answer = await api.post(f"{RULES}/mine/{operation}")
        assert answer.status_code == 200
        assert answer.headers["etag"] == f'"{version}"'
        assert (answer.json()["enabled"], answer.json()["version"]) == (enabled, version)
    told = [json.loads(await asyncio.wait_for(anext(notices), 10))["version"] for _ in range(2)]
    assert told == [2, 3]
    assert (await api.post(f"{RULES}/nope/enable")).status_code == 404


@pytest.mark.parametrize("operation", ["rollback", "enable", "disable"])
async def test_every_change_of_a_rule_respects_if_match(
    api: httpx.AsyncClient, draft: dict[str, Any], operation: str
) -> None:
    await api.post(RULES, json=draft | {"id": "mine", "enabled": operation != "enable"})
    body: dict[str, Any] = {"json": {"version": 1}} if operation == "rollback" else {}
    refused = await api.post(f"{RULES}/mine/{operation}", headers={"If-Match": '"2"'}, **body)
    assert refused.status_code == 412
    assert (await api.get(f"{RULES}/mine")).json()["version"] == 1
    done = await api.post(f"{RULES}/mine/{operation}", headers={"If-Match": '"1"'}, **body)
    assert (done.status_code, done.json()["version"]) == (200, 2)


async def test_rule_beyond_the_budget_is_refused_with_the_figure(
    api: httpx.AsyncClient, store: SqlStore, draft: dict[str, Any]
) -> None:
    dear = {"name": "dear", "when": " or ".join(f"price crosses_above {n}" for n in range(65))}
    await api.post(RULES, json=draft | {"id": "mine"})
    for method, path in (("POST", RULES), ("POST", f"{RULES}/validate"), ("PUT", f"{RULES}/mine")):
        answer = await api.request(method, path, json=dear)
        assert answer.status_code == 422, path
        assert answer.json()["where"] == "body.when"
        assert re.search(r"5,\d{3} microseconds .* and 5,000 are allowed", answer.json()["detail"])
    # One that a file brought can be looked at, and stays off.
    await store.save_rule(Rule(id="dear", name="dear", when=dear["when"], enabled=False))
    assert (await api.post(f"{RULES}/dear/enable")).status_code == 422
    assert (await api.get(f"{RULES}/dear")).json()["enabled"] is False


async def test_text_that_cannot_be_read_is_shown_by_line_and_column(
    api: httpx.AsyncClient, draft: dict[str, Any]
) -> None:
    for field, text in (("when", "price > 1\n  and prise > 2"), ("gate", "\n\nprise > 2")):
        raw = {"name": "n", "when": "price > 1", field: text}
        answer = await api.post(f"{RULES}/validate", json=raw)
        problem = answer.json()
        assert (answer.status_code, problem["where"]) == (422, f"body.{field}")
        line = text.count("\n") + 1
        assert (problem["line"], problem["column"]) == (line, text.split("\n")[-1].index("prise") + 1)
        assert "did you mean price" in problem["detail"]


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
    told = [json.loads(await asyncio.wait_for(anext(notices), 10)) for _ in range(3)]
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


@pytest.mark.parametrize(
    ("when", "what"),
    [
        (" or ".join(f"price crosses_above {n}" for n in range(58)), "200 ms"),
        (" or ".join(f"halted within {n + 1}s" for n in range(45)), "256 MB"),
    ],
    ids=["time of the scan", "memory"],
)
async def test_rules_of_a_user_have_a_budget_together(
    api: httpx.AsyncClient, store: SqlStore, when: str, what: str
) -> None:
    one = cost_of(Rule(id="a", name="a", when=when))
    most = int(min(MAX_USER_COST_US / one.scan_us, MAX_USER_MEMORY_BYTES / one.memory_bytes))
    for n in range(most):
        await store.save_rule(Rule(id=f"r{n}", name="dear", when=when))
    await store.save_rule(Rule(id="of-another", name="dear", when=when, owner="bob"))
    draft = {"name": "one more", "when": when}
    refused = await api.post(RULES, json=draft)
    assert refused.status_code == 409
    assert f"{what} are allowed" in refused.json()["detail"]
    # Switched off it costs nothing; it cannot be switched on, nor can a small one grow.
    assert (await api.post(RULES, json=draft | {"id": "off", "enabled": False})).status_code == 201
    assert (await api.post(f"{RULES}/off/enable")).status_code == 409
    assert (await api.post(RULES, json={"id": "small", "name": "small", "when": "price > 1"})).status_code == 201
    assert (await api.put(f"{RULES}/small", json=draft)).status_code == 409
    assert (await api.post(f"{RULES}/r0/disable")).status_code == 200
    assert (await api.put(f"{RULES}/small", json=draft)).status_code == 200
    assert (await api.post(f"{RULES}/small/rollback", json={"version": 1})).status_code == 200
    assert (await api.post(f"{RULES}/small/rollback", json={"version": 2})).status_code == 200


async def test_of_rules_that_come_at_once_the_budget_takes_what_fits(api: httpx.AsyncClient, store: SqlStore) -> None:
    when = " or ".join(f"price crosses_above {n}" for n in range(58))
    most = int(MAX_USER_COST_US / cost_of(Rule(id="a", name="a", when=when)).scan_us)
    for n in range(most - 1):
        await store.save_rule(Rule(id=f"r{n}", name="dear", when=when))
    answers = await asyncio.gather(*(api.post(RULES, json={"name": "dear", "when": when}) for _ in range(10)))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 9


async def test_user_beyond_the_budget_may_still_ask_less(api: httpx.AsyncClient, store: SqlStore) -> None:
    when = " or ".join(f"price crosses_above {n}" for n in range(58))
    for n in range(45):  # as a folder of files may bring them
        await store.save_rule(Rule(id=f"r{n}", name="dear", when=when))
    less = " or ".join(f"price crosses_above {n}" for n in range(40))
    assert (await api.put(f"{RULES}/r1", json={"name": "less", "when": less})).status_code == 200
    assert (await api.put(f"{RULES}/r1", json={"name": "more", "when": when})).status_code == 409
