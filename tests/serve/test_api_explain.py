"""Explanations over HTTP: scanners answer over the bus; where there is none, the refusal comes in time."""

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from tapewatch.adapters.memory import MemoryBus, MemoryHotState
from tapewatch.adapters.sql import SqlStore
from tapewatch.contracts.samples import make_alert
from tapewatch.documents import Alert, Rule
from tapewatch.serve.api.explain import AlertExplanation, ExplanationBody, NearMissList
from tapewatch.serve.explanations import Explanations
from tapewatch.serve.services import Services

pytestmark = pytest.mark.anyio
EXPLAIN, NEAR = "/api/v1/rules/movers/explain", "/api/v1/rules/movers/near-misses"
Serve = Callable[[Services], Any]
Answering = Callable[..., Any]


@pytest.fixture
def rule() -> Rule:
    return Rule(id="movers", name="Movers", when="price > 100 and volume_day >= 50", gate="change_pct_day > 2")


def client(address: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://{address}", timeout=10, trust_env=False)


def found(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


async def test_explanation_tells_every_condition_with_its_operands(
    api: httpx.AsyncClient, store: SqlStore, answering: Answering, rule: Rule
) -> None:
    await store.save_rule(rule)
    await answering([rule], {"AAPL": 90.0, "MSFT": 400.0})
    said = found(await api.get(EXPLAIN, params={"symbol": "AAPL"}))
    assert ExplanationBody.model_validate(said).model_dump() == said
    assert (said["rule_id"], said["rule_version"], said["symbol"]) == ("movers", 1, "AAPL")
    assert (said["at"], said["session"]) == ("2025-03-03T14:30:01.000000000Z", "regular")
    assert (said["verdict"], said["why"]) == ("false", "Not true: price > 100.")
    price, volume = said["when"]["parts"]
    assert (price["text"], price["true"], price["lacks"]) == ("price > 100", False, 10.0)
    assert (volume["text"], volume["true"], volume["lacks"]) == ("volume_day >= 50", True, None)
    (operand,) = price["operands"]
    assert (operand["name"], operand["value"], operand["unit"], operand["age_s"]) == ("price", 90.0, "$", 0.5)
    assert operand["unknown"] is None
    assert operand["formula"]
    gate = said["gate"]
    assert gate["true"] is None
    assert (gate["operands"][0]["value"], gate["operands"][0]["unknown"]) == (None, "no reference data")
    assert said["rearm"] is None
    gated = found(await api.get(EXPLAIN, params={"symbol": "MSFT"}))
    assert (gated["verdict"], gated["why"]) == ("gated", "True, but the gate is not: change_pct_day > 2.")


async def test_symbol_that_nobody_has_seen_is_said_to_be_so(
    api: httpx.AsyncClient, store: SqlStore, answering: Answering, rule: Rule
) -> None:
    await store.save_rule(rule)
    await answering([rule], {"AAPL": 90.0})
    said = found(await api.get(EXPLAIN, params={"symbol": "NOPE"}))
    assert ExplanationBody.model_validate(said).model_dump() == said
    assert (said["verdict"], said["why"]) == ("not asked", "Not asked: no trade of the symbol has been seen.")
    assert said["when"] is None


async def test_near_misses_are_the_nearest_first_and_no_more_than_asked_for(
    api: httpx.AsyncClient, store: SqlStore, answering: Answering, rule: Rule
) -> None:
    await store.save_rule(rule)
    await answering([rule], {"FAR": 50.0, "NEAR": 99.0, "TRUE": 101.0, "MID": 80.0})
    said = found(await api.get(NEAR))
    assert NearMissList.model_validate(said).model_dump() == said
    assert [miss["symbol"] for miss in said["items"]] == ["NEAR", "MID", "FAR"]
    assert said["total"] == 3
    first = said["items"][0]
    assert (first["missing"], first["true"], first["value"], first["lacks"]) == ("price > 100", False, 99.0, 1.0)
    assert first["lacks_pct"] == pytest.approx(1.0)
    limited = found(await api.get(NEAR, params={"limit": 2}))
    assert [miss["symbol"] for miss in limited["items"]] == ["NEAR", "MID"]
    assert limited["total"] == 2


BAD = [
    (EXPLAIN, "", "query.symbol"),
    (EXPLAIN, "?symbol=", "query.symbol"),
    (EXPLAIN, "?symbol=A%20B", "query.symbol"),
    (EXPLAIN, f"?symbol={'A' * 25}", "query.symbol"),
    (EXPLAIN, "?symbol=AAPL&symbol=MSFT", "query.symbol"),
    (EXPLAIN, "?symbol=AAPL&limit=5", "query.limit"),
    (NEAR, "?limit=0", "query.limit"),
    (NEAR, "?limit=501", "query.limit"),
    (NEAR, "?limit=1_0", "query.limit"),
    (NEAR, "?symbol=AAPL", "query.symbol"),
    ("/api/v1/alerts/x/explanation", "?limit=1", "query.limit"),
    ("/api/v1/alerts/-x/explanation", "", "path.alert_id"),
]


@pytest.mark.parametrize(("path", "query", "where"), BAD, ids=[path + query for path, query, _ in BAD])
async def test_parameter_that_is_wrong_or_missing_is_named(
    api: httpx.AsyncClient, store: SqlStore, rule: Rule, path: str, query: str, where: str
) -> None:
    await store.save_rule(rule)
    answer = await api.get(path + query)
    assert (answer.status_code, answer.json()["where"]) == (422, where)


async def test_rule_that_does_not_exist_or_that_no_scanner_asks_is_404(
    api: httpx.AsyncClient, store: SqlStore, answering: Answering, rule: Rule
) -> None:
    await answering([rule.model_copy(update={"enabled": False})], {"AAPL": 90.0})
    for path in (f"{EXPLAIN}?symbol=AAPL", NEAR):
        answer = await api.get(path)
        assert (answer.status_code, "is not asked" in answer.json()["detail"]) == (404, False)
    await store.save_rule(rule)
    for path in (f"{EXPLAIN}?symbol=AAPL", NEAR):
        answer = await api.get(path)
        assert answer.status_code == 404
        assert "rule movers is not asked: it is disabled" in answer.json()["detail"]


@pytest.mark.parametrize("path", [f"{EXPLAIN}?symbol=AAPL", NEAR])
async def test_scanners_that_do_not_answer_are_waited_for_no_longer_than_two_seconds(
    api: httpx.AsyncClient, store: SqlStore, rule: Rule, path: str
) -> None:
    await store.save_rule(rule)
    started = time.monotonic()
    answer = await api.get(path)
    assert 1.9 < time.monotonic() - started < 6
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert answer.json()["detail"] == "no scanner answers"


async def test_scanner_that_is_missing_may_be_the_one_that_knows(
    serve: Serve, services: Services, bus: MemoryBus, answering: Answering, rule: Rule
) -> None:
    await services.store.save_rule(rule)
    await answering([rule], {"AAPL": 90.0})
    impatient = replace(services, explanations=Explanations(bus, partitions=2, patience_s=0.1))
    async with serve(impatient) as address, client(address) as api:
        assert found(await api.get(EXPLAIN, params={"symbol": "AAPL"}))["verdict"] == "false"
        for path in (f"{EXPLAIN}?symbol=NOPE", NEAR):
            answer = await api.get(path)
            assert answer.status_code == 503
            assert answer.json()["detail"] == "1 of 2 scanners do not answer"
        await answering([rule], {"MSFT": 95.0})
        assert found(await api.get(EXPLAIN, params={"symbol": "NOPE"}))["verdict"] == "not asked"
        assert found(await api.get(EXPLAIN, params={"symbol": "MSFT"}))["when"]["parts"][0]["lacks"] == 5.0
        assert [miss["symbol"] for miss in found(await api.get(NEAR))["items"]] == ["MSFT", "AAPL"]


async def test_bus_that_closes_is_no_answer(
    api: httpx.AsyncClient, store: SqlStore, bus: MemoryBus, rule: Rule
) -> None:
    await store.save_rule(rule)
    asked = asyncio.create_task(api.get(EXPLAIN, params={"symbol": "AAPL"}))
    async with asyncio.timeout(5):
        while not bus._listeners.channels:  # noqa: ASYNC110  # until the question is out
            await asyncio.sleep(0)
    await bus.close()
    assert (await asked).status_code == 503
    assert (await api.get(NEAR)).status_code == 503


async def test_questions_at_the_same_time_get_their_own_answers(
    api: httpx.AsyncClient, store: SqlStore, answering: Answering, rule: Rule
) -> None:
    other = rule.model_copy(update={"id": "other"})
    for saved in (rule, other):
        await store.save_rule(saved)
    prices = {f"S{n}": 100.0 - n for n in range(1, 11)}
    await answering([rule, other], prices)
    paths = [f"/api/v1/rules/{of}/explain" for of in ("movers", "other")]
    asked = [(path, symbol) for path in paths for symbol in prices]
    answers = await asyncio.gather(
        *(api.get(path, params={"symbol": symbol}) for path, symbol in asked),
        *(api.get(NEAR, params={"limit": limit}) for limit in range(1, 6)),
    )
    for (path, symbol), answer in zip(asked, answers, strict=False):
        said = found(answer)
        assert (said["rule_id"] in path, said["symbol"]) == (True, symbol)
        assert said["when"]["parts"][0]["operands"][0]["value"] == prices[symbol]
    assert [len(found(answer)["items"]) for answer in answers[len(asked) :]] == [1, 2, 3, 4, 5]


async def test_nobody_listens_for_answers_any_more(
    api: httpx.AsyncClient, store: SqlStore, bus: MemoryBus, answering: Answering, rule: Rule
) -> None:
    await store.save_rule(rule)
    await answering([rule], {"AAPL": 90.0})
    for _ in range(3):
        found(await api.get(EXPLAIN, params={"symbol": "AAPL"}))
    assert "rules.explained" not in bus._listeners.channels


async def test_alert_is_explained_with_the_text_of_the_version_that_fired(
    api: httpx.AsyncClient, store: SqlStore, make_alert: Callable[..., Alert], rule: Rule
) -> None:
    await store.save_rule(rule)
    later = rule.model_copy(update={"version": 2})
    await store.save_rule(Rule(**{**later.model_dump(exclude={"conditions"}), "when": "price > 999", "gate": ""}))
    alert = make_alert(
        1,
        values={"price": 101.0, "close_5m[1]": 99.5, "rsi_14_1m": math.nan},
        ages_s={"price": 0.25, "close_5m[1]": 61.0},
        tags=("a",),
    )
    await store.save_alerts([alert], reader="test")
    said = found(await api.get(f"/api/v1/alerts/{alert.alert_id}/explanation"))
    assert AlertExplanation.model_validate(said).model_dump() == said
    assert {name: said[name] for name in alert.as_json()} == alert.as_json()
    assert (said["when"], said["gate"]) == ("price > 100 and volume_day >= 50", "change_pct_day > 2")
    price, close, rsi = said["operands"]
    assert (price["name"], price["value"], price["unit"], price["age_s"]) == ("price", 101.0, "$", 0.25)
    assert (close["name"], close["value"], close["unit"], close["age_s"]) == ("close_5m[1]", 99.5, "$", 61.0)
    assert (rsi["value"], rsi["age_s"]) == (None, None)
    assert all(operand["formula"] for operand in said["operands"])


async def test_alert_of_a_deleted_rule_is_explained_and_one_that_never_fired_is_not(
    api: httpx.AsyncClient, store: SqlStore, make_alert: Callable[..., Alert], rule: Rule
) -> None:
    await store.save_rule(rule)
    await store.save_alerts([make_alert(1)], reader="test")
    await store.delete_rule(rule.id)
    assert found(await api.get(f"/api/v1/alerts/{make_alert(1).alert_id}/explanation"))["when"] == rule.when
    assert (await api.get(f"/api/v1/alerts/{make_alert(2).alert_id}/explanation")).status_code == 404


async def test_alert_that_is_on_its_way_to_the_store_is_waited_for(
    api: httpx.AsyncClient, store: SqlStore, hot: MemoryHotState
) -> None:
    alert = make_alert(77, rule_id="late", rule_version=1)
    await store.save_rule(Rule(id="late", name="Late", when="price > 1"))
    await hot.claim(f"alert:{alert.alert_id}", "alerts:0", ttl_s=60)
    asked = asyncio.ensure_future(api.get(f"/api/v1/alerts/{alert.alert_id}/explanation"))
    await asyncio.sleep(0.05)
    assert not asked.done()
    await store.save_alerts([alert], reader="alerts:0")
    assert (await asked).status_code == 200
