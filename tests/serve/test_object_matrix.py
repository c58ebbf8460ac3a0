"""Every operation on an object of somebody else, made from the OpenAPI document: it answers as if there was nothing. An
operation on objects whose owner nobody has thought of fails.
"""

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import httpx
import pytest

from tapewatch.accounts.roles import ROLES, Principal, Role
from tapewatch.accounts.tokens import new_api_token
from tapewatch.accounts.users import ApiToken, User
from tapewatch.adapters.sql import SqlStore
from tapewatch.contracts.samples import NOON_NS, make_alert, make_rule, make_toplist, make_watchlist
from tapewatch.contracts.store_deliveries import make_channel, make_delivery, make_subscription
from tapewatch.serve.access import ACCESS
from tapewatch.serve.app import create_app
from tapewatch.serve.services import Services

pytestmark = pytest.mark.anyio

OWNED = {
    "rules": "rule_id",
    "watchlists": "watchlist_id",
    "alerts": "alert_id",
    "toplists/user": "toplist_id",
    "channels": "channel_id",
    "subscriptions": "subscription_id",
    "deliveries": "delivery_id",
    "user/tokens": "token_id",
}
"""Kinds of objects that have an owner, by address, and the parameter that names one."""
EVERYBODY_S = {"symbols", "templates", "rules/templates", "toplists/system"}
OF_ADMINS = {"users"}
MISSING = {"token_id": "0" * 16}
REQUEST_ID = "the-same-of-all"
PEOPLE: dict[str, Role] = {"bob": "trader", **{f"another-{role}": role for role in ROLES}}


class Operation(NamedTuple):
    method: str
    path: str
    kind: str
    name: str
    body: dict[str, Any] | None
    query: dict[str, str]


def operations(document: dict[str, Any]) -> list[Operation]:
    """Those on one object."""
    found = []
    for path, item in document["paths"].items():
        kind, slash, _ = path.removeprefix("/api/v1/").partition("/{")
        if not slash:
            continue
        assert kind in {*OWNED, *EVERYBODY_S, *OF_ADMINS}, f"whose are the objects of {path}?"
        for method, operation in item.items():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            asked = [p for p in operation.get("parameters", []) if p["in"] == "query" and p.get("required")]
            query = {parameter["name"]: {"symbol": "AAPL"}[parameter["name"]] for parameter in asked}
            found.append(Operation(method.upper(), path, kind, operation["operationId"], content.get("example"), query))
    return found


@pytest.fixture
async def theirs(store: SqlStore) -> dict[str, str]:
    """Of each kind an object of bob's."""
    token_id, secret_hash, _ = new_api_token()
    await store.add_user(User(user_id="bob", name="bob", role="trader", password_hash="", created_at_ns=1))
    await store.add_token(
        ApiToken(token_id=token_id, user_id="bob", name="his", secret_hash=secret_hash, scopes=None, created_at_ns=1)
    )
    await store.save_rule(make_rule("theirs", owner="bob"), actor="bob")
    await store.save_watchlist(make_watchlist("theirs", owner="bob"), actor="bob")
    await store.save_toplist(make_toplist("theirs", owner="bob"), actor="bob")
    await store.save_channel(make_channel("theirs", owner="bob"), actor="bob")
    await store.save_subscription(make_subscription("theirs", owner="bob"), actor="bob")
    await store.save_deliveries(
        [make_delivery(1, delivery_id="theirs", channel_id="theirs", owner="bob")], reader="deliveries"
    )
    alert = make_alert(1, alert_id="theirs", rule_id="theirs", rule_version=1, owner="bob", fired_at_ns=NOON_NS)
    await store.save_alerts([alert], reader="alerts:0")
    return {**dict.fromkeys(OWNED.values(), "theirs"), "token_id": token_id}


@pytest.fixture
async def clients(services: Services, store: SqlStore, theirs: dict[str, str]) -> AsyncIterator[dict[str, Any]]:
    """Bob, and another of each role."""
    app = create_app(services)
    async with AsyncExitStack() as opened:
        found = {}
        for user, role in PEOPLE.items():
            if user != "bob":
                await store.add_user(User(user_id=user, name=user, role=role, password_hash="", created_at_ns=1))
            token_id, secret_hash, token = new_api_token()
            await store.add_token(
                ApiToken(
                    token_id=token_id, user_id=user, name="t", secret_hash=secret_hash, scopes=None, created_at_ns=1
                )
            )
            client = httpx.AsyncClient(
                transport=httpx.ASGITransport(app=app),
                base_url="http://tapewatch",
                headers={"Authorization": f"Bearer {token}", "X-Request-Id": REQUEST_ID},
                trust_env=False,
            )
            found[user] = await opened.enter_async_context(client)
        yield found


async def ask(client: httpx.AsyncClient, operation: Operation, named: str) -> httpx.Response:
    path = re.sub(r"\{version\}", "1", operation.path)
    path = re.sub(r"\{[a-z_]+\}", named, path, count=1)
    return await client.request(operation.method, path, params=operation.query, json=operation.body)


def told(answer: httpx.Response, named: str) -> tuple[int, str, str]:
    return answer.status_code, answer.headers.get("etag", ""), answer.text.replace(named, "X")


async def test_what_is_another_s_is_answered_as_what_is_not_there_by_every_operation(
    services: Services, clients: dict[str, httpx.AsyncClient], theirs: dict[str, str]
) -> None:
    asked = 0
    for operation in operations(create_app(services).openapi()):
        if operation.kind not in OWNED:
            continue
        named = theirs[OWNED[operation.kind]]
        missing = MISSING.get(OWNED[operation.kind], "missing")
        scope = ACCESS[operation.name]
        assert scope is not None
        for role in ROLES:
            client = clients[f"another-{role}"]
            if not Principal.of("u", role).may(scope):
                assert (await ask(client, operation, named)).status_code == 403, (operation, role)
            elif role != "admin":
                answer = await ask(client, operation, named)
                assert told(answer, named) == told(await ask(client, operation, missing), missing), (operation, role)
                assert answer.status_code == 404, (operation, role, answer.text)
                asked += 1
    assert asked >= 80


async def test_owner_reads_what_others_could_not_find(
    services: Services, clients: dict[str, httpx.AsyncClient], theirs: dict[str, str]
) -> None:
    """So that the answers above are of ownership, and not of a wrong address."""
    for operation in operations(create_app(services).openapi()):
        if operation.kind in OWNED and operation.method == "GET":
            answer = await ask(clients["bob"], operation, theirs[OWNED[operation.kind]])
            assert answer.status_code in {200, 503}, (operation, answer.text)  # no scanner explains here


async def test_operations_on_users_are_for_admins(
    services: Services, clients: dict[str, httpx.AsyncClient], theirs: dict[str, str]
) -> None:
    for operation in operations(create_app(services).openapi()):
        if operation.kind in OF_ADMINS and operation.method != "GET":
            for role in set(ROLES) - {"admin"}:
                assert (await ask(clients[f"another-{role}"], operation, "bob")).status_code == 403, (operation, role)
