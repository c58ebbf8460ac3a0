"""The OpenAPI document, and schemathesis attacking a running server with it: every check, and nothing found."""

import asyncio
import math
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tapewatch.adapters.sql import SqlStore
from tapewatch.contracts.samples import make_rule_of_every_node, make_watchlist
from tapewatch.documents import Alert, Rule
from tapewatch.engine.board import BoardRows
from tapewatch.engine.metrics import CATALOGUE
from tapewatch.serve.board_view import BoardView
from tapewatch.serve.services import DryRunReport, Services

pytestmark = pytest.mark.anyio
HERE = Path(__file__).parent
DOCUMENT = "/api/v1/openapi.json"
CONFIGURATION = """
[checks.negative_data_rejection]
expected-statuses = [400, 404, 405, 406, 409, 413, 415, 422]
"""
"""Its own list leaves out 413, which is the answer to a text that is wrong because it is too long."""


@pytest.fixture
def services(services: Services, make_alert: Callable[..., Alert]) -> Services:
    async def dry_run(_rules: list[Rule]) -> DryRunReport:
        return DryRunReport(
            fires={"2025-03-03": 3, "2025-03-04": 0},
            symbols=2,
            symbols_share=math.nan,
            examples=[make_alert(1)],
            too_broad="fires 900 times a day",
            measured_s=0.1,
            seconds=0.5,
        )

    return replace(services, dry_run=dry_run)


@pytest.mark.parametrize(
    ("phases", "mode"),
    [
        ("examples,coverage,fuzzing", "all"),
        ("stateful", "positive"),  # what comes from an earlier answer takes the place of what was made wrong on purpose
    ],
)
async def test_schemathesis_finds_nothing(
    *,
    address: str,
    tmp_path: Path,
    store: SqlStore,
    board: BoardView,
    rule: Rule,
    make_alert: Callable[..., Alert],
    make_board: Callable[..., BoardRows],
    answering: Callable[..., Any],
    phases: str,
    mode: str,
) -> None:
    rules = [rule, make_rule_of_every_node("every-node")]
    for known in rules:
        await store.save_rule(known)
    await answering(rules, {"AAPL": 0.5, "MSFT": 400.0})
    await store.save_watchlist(make_watchlist("mine"))
    await store.save_alerts([make_alert(n) for n in range(5)], reader="test")
    board.show(0, make_board("AAPL", "MSFT"))
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    attack = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "run", f"http://{address}{DOCUMENT}"),
        *("--phases", phases, "--mode", mode),
        *("--checks", "all", "--max-examples", "8", "--seed", "1", "--workers", "1", "--max-failures", "10"),
        # The versions of a deleted rule can be read: alerts speak of them.
        *("--exclude-checks", "use_after_free", "--suppress-health-check", "all", "--no-color"),
        cwd=tmp_path,
        env={**os.environ, "SCHEMATHESIS_HOOKS": "attack_hooks", "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(attack.communicate(), 240)
    assert attack.returncode == 0, said.decode()
    async with httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as api:
        assert (await api.get("/api/v1/rules", params={"limit": 500})).status_code == 200


async def test_document_describes_what_is_served(api: httpx.AsyncClient) -> None:
    document = (await api.get(DOCUMENT)).json()
    operations = {f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item}
    rules, rule, lists = "/api/v1/rules", "/api/v1/rules/{rule_id}", "/api/v1/watchlists"
    assert operations == {
        *(f"GET {rules}", f"POST {rules}", f"POST {rules}/validate", f"POST {rules}/dry-run"),
        *(f"GET {rules}/templates", f"GET {rules}/templates/{{template_id}}"),
        *(f"{method} {rule}" for method in ("GET", "PUT", "DELETE")),
        *(f"GET {rule}/versions", f"GET {rule}/versions/{{version}}"),
        *(f"GET {rule}/explain", f"GET {rule}/near-misses", "GET /api/v1/alerts/{alert_id}/explanation"),
        *(f"POST {rule}/{operation}" for operation in ("rollback", "enable", "disable")),
        *(f"GET {lists}", f"POST {lists}"),
        *(f"{method} {lists}/{{watchlist_id}}" for method in ("GET", "PUT", "DELETE")),
        *("GET /api/v1/alerts", "GET /api/v1/alerts/{alert_id}", "GET /api/v1/audit", "GET /api/v1/scoreboard"),
        *("GET /api/v1/symbols", "GET /api/v1/symbols/{symbol}"),
        *("GET /api/v1/toplists", "GET /api/v1/toplists/system/{toplist_id}"),
        *("GET /api/v1/toplists/user", "POST /api/v1/toplists/user"),
        *(f"{method} /api/v1/toplists/user/{{toplist_id}}" for method in ("GET", "PUT", "DELETE")),
        "GET /api/v1/toplists/user/{toplist_id}/rankings",
        *("GET /api/v1/metrics", "GET /api/v1/system/status", "GET /api/v1/health", "GET /api/v1/ready"),
    }
    components = document["components"]["schemas"]
    for method, path in (("post", rules), ("put", rule), ("post", f"{rules}/validate"), ("post", f"{rules}/dry-run")):
        operation = document["paths"][path][method]
        assert not [key for key in operation if key.startswith("x-")]
        body = operation["requestBody"]["content"]["application/json"]["schema"]
        assert body["additionalProperties"] is False
        forms = [form["$ref"].rpartition("/")[2] for form in body["properties"]["conditions"]["items"]["oneOf"]]
        assert components[forms[0]]["properties"]["metric"]["enum"] == list(CATALOGUE)
        assert all(components[form]["additionalProperties"] is False for form in forms)
    for path, answer in (
        (f"{rule}/explain", "ExplanationBody"),
        (f"{rule}/near-misses", "NearMissList"),
        ("/api/v1/alerts/{alert_id}/explanation", "AlertExplanation"),
    ):
        content = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]
        assert content["schema"] == {"$ref": f"#/components/schemas/{answer}"}
    limit = document["paths"][rules]["get"]["parameters"][0]["schema"]
    assert (limit["type"], limit["minimum"], limit["maximum"], limit["default"]) == ("integer", 1, 500, 100)


async def test_everything_that_the_document_refers_to_is_in_it(api: httpx.AsyncClient) -> None:
    document = (await api.get(DOCUMENT)).json()
    waiting: list[Any] = [document]
    references = set()
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            references.add(part.get("$ref"))
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert references - {None} <= known
    assert "#/components/schemas/GivenAllOf" in references
