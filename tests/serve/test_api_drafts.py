"""Drafts over HTTP: what is said of a rule before it is saved, dry runs, and the templates to begin with."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from tapewatch.adapters.sql import SqlStore
from tapewatch.contracts.samples import make_rule_of_every_node, make_watchlist
from tapewatch.documents import Alert, Rule
from tapewatch.serve.api import drafts
from tapewatch.serve.services import DryRunReport, Services
from tapewatch.templates import templates

pytestmark = pytest.mark.anyio
RULES = "/api/v1/rules"
Serve = Callable[[Services], Any]
MakeAlert = Callable[..., Alert]


def report(**changes: Any) -> DryRunReport:
    return DryRunReport(
        **{
            "fires": {"2025-03-03": 40, "2025-03-04": 0},
            "symbols": 12,
            "symbols_share": 0.25,
            "examples": [],
            "too_broad": "",
            "measured_s": 0.5,
            "seconds": 2.5,
            **changes,
        }
    )


async def test_draft_validated_is_answered_in_its_canonical_forms_and_not_stored(
    api: httpx.AsyncClient, store: SqlStore
) -> None:
    await store.save_watchlist(make_watchlist("mine"))
    rule = make_rule_of_every_node("a")
    answer = await api.post(f"{RULES}/validate", json={"name": "n", "when": f"  ({rule.when})", "gate": rule.gate})
    assert answer.status_code == 200
    said = answer.json()
    assert said["valid"] is True
    assert said["when"] == rule.when
    assert said["conditions"] == rule.model_dump(mode="json")["conditions"]
    assert "close_day[1]" in said["reads"]
    assert said["cost"]["comparisons"] >= 10
    assert 0 < said["cost"]["scan_us"] < said["cost"]["max_scan_us"]
    assert said["cost"]["memory_bytes"] > 100_000
    assert said["warnings"] == ["there is no watchlist gate: it counts as empty"]
    assert (await api.get(RULES)).json()["total"] == 0
    plain = (await api.post(f"{RULES}/validate", json={"name": "n", "when": "price > 1"})).json()
    assert plain["warnings"] == []
    assert plain["cost"]["remembering"] == 0


async def test_draft_that_would_fire_at_every_scan_is_warned_of(api: httpx.AsyncClient) -> None:
    draft = {"name": "n", "when": "price > 1", "fire": "level"}
    (warning,) = (await api.post(f"{RULES}/validate", json=draft)).json()["warnings"]
    assert "every scan" in warning
    assert (await api.post(f"{RULES}/validate", json=draft | {"cooldown": 60.0})).json()["warnings"] == []


def client(address: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://{address}", timeout=10, trust_env=False)


async def test_dry_run_tells_fires_examples_cost_and_what_is_wrong(
    serve: Serve, services: Services, make_alert: MakeAlert, draft: dict[str, Any]
) -> None:
    asked: list[list[Rule]] = []

    async def run(rules: list[Rule]) -> DryRunReport:
        asked.append(rules)
        alerts = [make_alert(n) for n in range(30)]
        return report(examples=alerts, too_broad="fires 900 times a day (more than 500)", measured_s=math.nan)

    async with serve(replace(services, dry_run=run)) as address, client(address) as api:
        answer = await api.post(f"{RULES}/dry-run", json=draft | {"enabled": False})
    assert answer.status_code == 200
    said = answer.json()
    assert said["fires"] == [{"date": "2025-03-03", "fires": 40}, {"date": "2025-03-04", "fires": 0}]
    assert (said["symbols"], said["symbols_share"], said["seconds"], said["measured_s"]) == (12, 0.25, 2.5, None)
    assert said["examples"] == [make_alert(n).as_json() for n in range(20)]
    assert said["warnings"] == ["too broad: it fires 900 times a day (more than 500)"]
    assert said["cost"]["comparisons"] == 1
    ((rule,),) = asked
    assert rule.enabled
    assert rule.when == "change_pct_5m > 2"
    assert (await services.store.rules()).rules == []


async def test_second_dry_run_at_the_same_time_is_told_to_come_again(
    serve: Serve, services: Services, draft: dict[str, Any]
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def run(_rules: list[Rule]) -> DryRunReport:
        begun.set()
        await go_on.wait()
        return report()

    async with serve(replace(services, dry_run=run)) as address, client(address) as api:
        first = asyncio.create_task(api.post(f"{RULES}/dry-run", json=draft))
        await asyncio.wait_for(begun.wait(), 5)
        second = await api.post(f"{RULES}/dry-run", json=draft)
        assert second.status_code == 503
        assert int(second.headers["retry-after"]) > 0
        assert "another dry run" in second.json()["detail"]
        go_on.set()
        assert (await first).status_code == 200
        assert (await api.post(f"{RULES}/dry-run", json=draft)).status_code == 200


async def test_dry_run_that_takes_too_long_is_ended(
    serve: Serve, services: Services, draft: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drafts, "_DRY_RUN_S", 0.05)
    ended = asyncio.Event()

    async def run(_rules: list[Rule]) -> DryRunReport:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return report()

    async with serve(replace(services, dry_run=run)) as address, client(address) as api:
        answer = await api.post(f"{RULES}/dry-run", json=draft)
    assert answer.status_code == 503
    assert "was ended" in answer.json()["detail"]
    assert ended.is_set()


async def test_installation_without_a_tape_says_so(api: httpx.AsyncClient, draft: dict[str, Any]) -> None:
    answer = await api.post(f"{RULES}/dry-run", json=draft)
    assert answer.status_code == 503
    assert "no tape" in answer.json()["detail"]
    assert "retry-after" not in answer.headers
    assert (await api.post(f"{RULES}/dry-run", json={"name": "n"})).status_code == 422


async def test_templates_are_rules_that_can_be_saved(api: httpx.AsyncClient) -> None:
    page = (await api.get(f"{RULES}/templates")).json()
    assert page["total"] == len(page["items"]) == len(templates()) > 0
    item = page["items"][0]
    assert (await api.get(f"{RULES}/templates/{item['id']}")).json() == item
    assert item["text"].startswith(f"rule {item['id']}")
    machine = {"owner", "version", "created_at", "updated_at"}
    content = {key: value for key, value in item["rule"].items() if key not in machine}
    created = await api.post(RULES, json=content)
    assert created.status_code == 201
    assert created.json()["when"] == item["rule"]["when"]
    assert (await api.get(f"{RULES}/templates/nope")).status_code == 404
