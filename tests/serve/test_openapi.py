"""The OpenAPI document, and schemathesis attacking a running server with it: every check, and nothing found."""

import asyncio
import math
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tapewatch.accounts.roles import LOCAL
from tapewatch.accounts.tokens import new_api_token
from tapewatch.accounts.users import ApiToken, User
from tapewatch.adapters.sql import SqlStore
from tapewatch.channels.addresses import Addresses
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
[phases.coverage]
unexpected-methods = ["PATCH", "TRACE"]

[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 406, 409, 413, 415, 422]
"""
"""Its own list of statuses leaves out 413, which is the answer to a text that is wrong because it is too long. Methods:
the others are refused by the same code, operation by operation.
"""


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

    async def resolve(_host: str, _port: int) -> list[str]:
        return ["93.184.216.34"]

    status = {"state": "running", "feed": {"name": "synthetic"}}
    return replace(services, dry_run=dry_run, status=lambda: status, addresses=Addresses(resolve=resolve))


Attack = Callable[..., Awaitable[None]]


@pytest.fixture
async def attack(
    *,
    address: str,
    tmp_path: Path,
    store: SqlStore,
    board: BoardView,
    rule: Rule,
    make_alert: Callable[..., Alert],
    make_board: Callable[..., BoardRows],
    answering: Callable[..., Any],
) -> Attack:
    """Let schemathesis loose on a server that has something of everything, which is `owner`'s."""
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)

    async def let_loose(*options: str, owner: str) -> None:
        rules = [rule, make_rule_of_every_node("every-node")]
        for known in rules:
            await store.save_rule(known.model_copy(update={"owner": owner}))
        await answering(rules, {"AAPL": 0.5, "MSFT": 400.0})
        for named in ("mine", "gate"):
            await store.save_watchlist(make_watchlist(named, owner=owner))
        await store.save_alerts([make_alert(n, owner=owner) for n in range(5)], reader="test")
        board.show(0, make_board("AAPL", "MSFT"))
        program = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "schemathesis.cli", "run", f"http://{address}{DOCUMENT}"),
            *("--checks", "all", "--seed", "1", "--workers", "1", "--max-failures", "10"),
            *("--suppress-health-check", "all", "--no-color", *options),
            cwd=tmp_path,
            env={
                **os.environ,
                "SCHEMATHESIS_HOOKS": "attack_hooks",
                "WITHOUT_ACCOUNTS": "yes" if owner == LOCAL.user_id else "",
                "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]),
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await asyncio.wait_for(program.communicate(), 400)
        assert program.returncode == 0, said.decode()

    return let_loose


@pytest.fixture
async def admin(store: SqlStore) -> dict[str, str]:
    """The header of one who reaches every operation."""
    token_id, secret_hash, token = new_api_token()
    await store.add_user(User(user_id="root", name="root", role="admin", password_hash="", created_at_ns=1))
    await store.add_token(
        ApiToken(token_id=token_id, user_id="root", name="t", secret_hash=secret_hash, scopes=None, created_at_ns=1)
    )
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    ("phases", "mode"),
    [
        ("examples,coverage,fuzzing", "all"),
        ("stateful", "positive"),  # what comes from an earlier answer takes the place of what was made wrong on purpose
    ],
)
async def test_schemathesis_finds_nothing_as_an_admin(
    attack: Attack, admin: dict[str, str], api: httpx.AsyncClient, phases: str, mode: str
) -> None:
    await attack(
        *("--header", f"Authorization: {admin['Authorization']}"),
        *("--phases", phases, "--mode", mode, "--max-examples", "4"),
        owner="root",
    )
    answer = await api.get("/api/v1/rules", params={"limit": 500}, headers=admin)
    assert answer.status_code == 200


async def test_schemathesis_finds_nothing_where_there_are_no_accounts(attack: Attack, api: httpx.AsyncClient) -> None:
    await attack(
        *("--phases", "fuzzing", "--mode", "all", "--max-examples", "2"),
        owner=LOCAL.user_id,
    )
    assert (await api.get("/api/v1/rules", params={"limit": 500})).status_code == 200


async def test_document_describes_what_is_served(api: httpx.AsyncClient) -> None:
    document = (await api.get(DOCUMENT)).json()
    operations = {f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item}
    rules, rule, lists = "/api/v1/rules", "/api/v1/rules/{rule_id}", "/api/v1/watchlists"
    channels, subscriptions = "/api/v1/channels", "/api/v1/subscriptions"
    assert operations == {
        *(f"GET {rules}", f"POST {rules}", f"POST {rules}/validate", f"POST {rules}/dry-run"),
        *(f"GET {rules}/templates", f"GET {rules}/templates/{{template_id}}"),
        *(f"{method} {rule}" for method in ("GET", "PUT", "DELETE")),
        *(f"GET {rule}/versions", f"GET {rule}/versions/{{version}}"),
        *(f"GET {rule}/explain", f"GET {rule}/near-misses", "GET /api/v1/alerts/{alert_id}/explanation"),
        *(f"POST {rule}/{operation}" for operation in ("rollback", "enable", "disable")),
        *(f"GET {lists}", f"POST {lists}"),
        *(f"{method} {lists}/{{watchlist_id}}" for method in ("GET", "PUT", "DELETE")),
        *("GET /api/v1/alerts/export", "PUT /api/v1/alerts/{alert_id}/note", "GET /api/v1/system/quality"),
        *(f"POST /api/v1/alerts/{{alert_id}}/{operation}" for operation in ("acknowledge", "unacknowledge")),
        *(f"GET /api/v1/symbols/{{symbol}}/{series}" for series in ("bars", "indicators")),
        *("GET /api/v1/alerts", "GET /api/v1/alerts/{alert_id}", "GET /api/v1/audit", "GET /api/v1/scoreboard"),
        *("GET /api/v1/symbols", "GET /api/v1/symbols/{symbol}"),
        *("GET /api/v1/toplists", "GET /api/v1/toplists/system/{toplist_id}"),
        *(f"POST /api/v1/auth/{operation}" for operation in ("login", "refresh", "logout", "openid/begin")),
        *("GET /api/v1/auth/methods", "GET /api/v1/auth/openid/callback"),
        *("GET /api/v1/user/profile", "PUT /api/v1/user/profile", "POST /api/v1/user/password"),
        *("GET /api/v1/user/tokens", "POST /api/v1/user/tokens", "DELETE /api/v1/user/tokens/{token_id}"),
        *("GET /api/v1/users", "POST /api/v1/users"),
        *(f"{method} /api/v1/users/{{user_id}}" for method in ("GET", "PUT", "DELETE")),
        "POST /api/v1/users/{user_id}/password",
        *(f"{method} {path}" for method in ("GET", "POST") for path in (channels, subscriptions)),
        *(f"{method} {channels}/{{channel_id}}" for method in ("GET", "PUT", "DELETE")),
        *(f"{method} {subscriptions}/{{subscription_id}}" for method in ("GET", "PUT", "DELETE")),
        *(f"POST {channels}/{{channel_id}}/test", f"POST {subscriptions}/{{subscription_id}}/mute"),
        *("GET /api/v1/deliveries", "GET /api/v1/deliveries/{delivery_id}"),
        "POST /api/v1/deliveries/{delivery_id}/replay",
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


async def test_every_body_has_an_example_that_is_one(api: httpx.AsyncClient) -> None:
    document = (await api.get(DOCUMENT)).json()
    assert document["openapi"].startswith("3.1")
    bodies = {
        operation["operationId"]: operation["requestBody"]["content"]["application/json"]
        for item in document["paths"].values()
        for operation in item.values()
        if "requestBody" in operation
    }
    assert [name for name, body in bodies.items() if "example" not in body] == []
    for path, name in (("rules", "create_rule"), ("watchlists", "create_watchlist"), ("rules/validate", "create_rule")):
        answer = await api.post(f"/api/v1/{path}", json=bodies[name]["example"])
        assert answer.status_code in {200, 201}, answer.text
