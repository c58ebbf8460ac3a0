"""Signing in and what it opens: every operation needs a scope, and who was let in is sent away within seconds."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute

from tapewatch.accounts.passwords import Passwords
from tapewatch.accounts.roles import LOCAL, ROLES, SCOPES, Principal, Role
from tapewatch.accounts.tokens import Keys
from tapewatch.accounts.users import User
from tapewatch.adapters.memory import MemoryBus
from tapewatch.adapters.sql import SqlStore
from tapewatch.clock import SystemClock
from tapewatch.errors import ConfigError, Unauthorized
from tapewatch.ports import AuditQuery
from tapewatch.rules_as_code import OnServer
from tapewatch.serve.access import ACCESS, LOOK_S, Accounts
from tapewatch.serve.app import create_app
from tapewatch.serve.services import Services

pytestmark = pytest.mark.anyio
KEYS = Keys("c0ffee1234567890abcdef9876543210")
PASSWORD = "correct horse battery"  # noqa: S105  # of tests
API = "/api/v1"
AUTH = f"{API}/auth"
OPEN = {
    *("log_in", "refresh_access", "log_out", "read_health", "read_readiness"),
    *("list_sign_in_methods", "begin_openid", "finish_openid"),
}

SignIn = Callable[..., Awaitable[dict[str, Any]]]


@pytest.fixture(scope="module")
def password_hash() -> str:
    return asyncio.run(Passwords().hashed(PASSWORD))


@pytest.fixture
async def people(store: SqlStore, password_hash: str) -> dict[str, User]:
    """One of each role, of that name; and root, another admin."""
    names: dict[str, Role] = {**{role: role for role in ROLES}, "root": "admin"}
    return {
        name: await store.add_user(
            User(user_id=f"u-{name}", name=name, role=role, password_hash=password_hash, created_at_ns=1)
        )
        for name, role in names.items()
    }


@pytest.fixture
async def sign_in(people: dict[str, User], api: httpx.AsyncClient) -> SignIn:
    async def sign_in(name: str, **more: Any) -> dict[str, Any]:
        answer = await api.post(f"{AUTH}/login", json={"name": name, "password": PASSWORD, **more})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    return sign_in


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def status(api: httpx.AsyncClient, token: str | None, path: str = "/rules", method: str = "GET") -> int:
    return (await api.request(method, f"{API}{path}", headers={} if token is None else bearer(token))).status_code


# -- without accounts -------------------------------------------------------------------------------------------------


async def test_without_accounts_everybody_is_local_and_may_all(api: httpx.AsyncClient) -> None:
    assert (await api.get(f"{API}/rules")).status_code == 200
    assert (await api.get(f"{API}/rules", headers=bearer("rubbish"))).status_code == 200
    profile = (await api.get(f"{API}/user/profile")).json()
    assert (profile["user_id"], profile["role"], profile["scopes"]) == ("local", "admin", sorted(SCOPES))
    assert (await api.get(f"{API}/users")).json() == {"items": [], "total": 0}
    assert (await api.get(f"{API}/user/tokens")).json() == {"items": []}


async def test_without_accounts_nobody_makes_one_over_rest(api: httpx.AsyncClient, store: SqlStore) -> None:
    wanted = {"name": "ann", "password": PASSWORD, "role": "admin"}
    for method, path, body in (
        ("POST", "/users", wanted),
        ("PUT", "/user/profile", {}),
        ("POST", "/user/tokens", {"name": "mine"}),
        ("POST", "/user/password", {"password": PASSWORD, "new_password": PASSWORD}),
    ):
        answer = await api.request(method, f"{API}{path}", json=body)
        assert (answer.status_code, "tapewatch user add" in answer.json()["detail"]) == (403, True)
    assert (await store.accounts(1)).users == []
    assert (await api.post(f"{AUTH}/login", json={"name": "ann", "password": PASSWORD})).status_code == 401


async def test_away_from_loopback_nobody_is_local(
    services: Services, store: SqlStore, clock: SystemClock, bus: MemoryBus, serve: Callable[[Services], Any]
) -> None:
    outside = replace(services, accounts=Accounts(store, clock, bus=bus, keys=KEYS, loopback=False))
    async with serve(outside) as address, httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as api:
        assert (await api.get(f"{API}/rules")).status_code == 401
        assert (await api.get("/health")).status_code == 200


# -- who may what -----------------------------------------------------------------------------------------------------


def api_routes(services: Services) -> Iterator[APIRoute]:
    for included in create_app(services).routes:  # a router that was included stays one
        for route in getattr(included, "original_router", APIRouter()).routes:
            if isinstance(route, APIRoute) and route.path.startswith(f"{API}/"):
                yield route


async def test_every_route_has_a_row_and_every_row_a_route(services: Services) -> None:
    assert {route.name for route in api_routes(services)} == set(ACCESS)
    assert {name for name, scope in ACCESS.items() if scope is None} == OPEN


async def test_every_operation_is_closed_to_strangers_and_open_by_scope(
    services: Services, api: httpx.AsyncClient, people: dict[str, User], sign_in: SignIn
) -> None:
    tokens = {role: (await sign_in(role))["access_token"] for role in ROLES}
    for route in api_routes(services):
        scope = ACCESS[route.name]
        if scope is None:
            continue
        path = route.path.removeprefix(API)
        for name in route.param_convertors:
            path = path.replace(f"{{{name}}}", "1").replace(f"{{{name}:rule_id}}", "1")
        for method in (route.methods or set()) - {"HEAD"}:
            refused = await api.request(method, f"{API}{path}", json={})
            assert refused.status_code == 401, route.name
            assert refused.headers["WWW-Authenticate"] == "Bearer"
            assert refused.headers["Content-Type"] == "application/problem+json"
            for role in ROLES:
                answer = await api.request(method, f"{API}{path}?nothing=1", json={}, headers=bearer(tokens[role]))
                may = Principal.of("u", role).may(scope)
                assert (answer.status_code != 403) == may, (route.name, role)
                assert answer.status_code != 401


async def test_route_without_a_row_is_refused(
    services: Services, serve: Callable[[Services], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    without = {name: scope for name, scope in ACCESS.items() if name != "list_rules"}
    monkeypatch.setattr("tapewatch.serve.access.ACCESS", without)
    async with serve(services) as address, httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as api:
        assert (await api.get(f"{API}/rules")).status_code == 403
        assert (await api.get(f"{API}/watchlists")).status_code == 200


async def test_probes_and_the_page_stay_open(api: httpx.AsyncClient, people: dict[str, User]) -> None:
    for path in ("/health", "/ready", "/metrics", "/", f"{API}/health", f"{API}/ready", f"{API}/openapi.json"):
        assert (await api.get(path)).status_code == 200, path
    assert (await api.get(f"{API}/rules")).status_code == 401


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer null", "Bearer undefined", "bearer x.y.z", "Basic cm9vdDpyb290", "Token x"],
)
async def test_header_that_is_none_is_refused(api: httpx.AsyncClient, people: dict[str, User], header: str) -> None:
    answer = await api.get(f"{API}/rules", headers={"Authorization": header})
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")


async def test_two_headers_are_refused(api: httpx.AsyncClient, sign_in: SignIn) -> None:
    token = (await sign_in("trader"))["access_token"]
    twice = [("Authorization", f"Bearer {token}"), ("Authorization", f"Bearer {token}")]
    assert (await api.get(f"{API}/rules", headers=twice)).status_code == 401
    assert (await api.get(f"{API}/rules", headers=[("authorization", f"bEARER {token}")])).status_code == 200


async def test_token_of_another_installation_or_secret_is_refused(
    services: Services, api: httpx.AsyncClient, people: dict[str, User], sign_in: SignIn
) -> None:
    session_id = (await services.store.accounts(1)).sessions
    assert session_id == []
    await sign_in("trader")
    (session,) = (await services.store.accounts(1)).sessions
    claims: dict[str, Any] = {"user_id": "u-trader", "session_id": session.session_id, "epoch": 1}
    now_ns = services.clock.now_ns()
    audience = services.accounts.audience
    ours = services.accounts.keys
    assert ours is not None
    assert await status(api, ours.sign(**claims, audience=audience, now_ns=now_ns)) == 200
    assert await status(api, ours.sign(**claims, audience="another", now_ns=now_ns)) == 401
    assert await status(api, KEYS.sign(**claims, audience=audience, now_ns=now_ns)) == 401
    assert await status(api, ours.sign(**claims | {"epoch": 2}, audience=audience, now_ns=now_ns)) == 401
    assert await status(api, ours.sign(**claims | {"user_id": "u-root"}, audience=audience, now_ns=now_ns)) == 401
    assert await status(api, ours.sign(**claims | {"session_id": "x"}, audience=audience, now_ns=now_ns)) == 401


# -- signing in and out -----------------------------------------------------------------------------------------------


async def test_sign_in_refresh_and_sign_out(api: httpx.AsyncClient, sign_in: SignIn) -> None:
    first = await sign_in("TRADER")
    assert (first["token_type"], first["expires_in"]) == ("Bearer", 900)
    assert await status(api, first["access_token"]) == 200
    answer = await api.post(f"{AUTH}/refresh", json={"refresh_token": first["refresh_token"]})
    second = answer.json()
    assert answer.headers["Cache-Control"] == "no-store"
    assert second["refresh_token"] != first["refresh_token"]
    for token in (first, second):
        assert await status(api, token["access_token"]) == 200
    gone = await api.post(f"{AUTH}/logout", json={"refresh_token": second["refresh_token"]})
    assert gone.status_code == 204
    for token in (first, second):
        assert await status(api, token["access_token"]) == 401
        again = await api.post(f"{AUTH}/refresh", json={"refresh_token": token["refresh_token"]})
        assert again.status_code == 401


async def test_browser_forgets_with_the_sign_out_what_it_kept(api: httpx.AsyncClient, sign_in: SignIn) -> None:
    token = (await sign_in("trader", cookie=True))["access_token"]
    read = await api.get(f"{API}/rules", headers=bearer(token))
    assert read.headers["cache-control"] == "no-store"
    left = await api.post(f"{AUTH}/logout", headers=bearer(token))
    assert left.headers["clear-site-data"] == '"cache"'
    assert {cookie.split("=")[0] for cookie in left.headers.get_list("set-cookie")} == {
        "__Host-tapewatch",
        "tapewatch_refresh",
    }


async def test_access_token_alone_signs_out(api: httpx.AsyncClient, sign_in: SignIn) -> None:
    one, other = await sign_in("trader"), await sign_in("trader")
    assert (await api.post(f"{AUTH}/logout", headers=bearer(one["access_token"]))).status_code == 204
    assert await status(api, one["access_token"]) == 401
    assert await status(api, other["access_token"]) == 200
    assert (await api.post(f"{AUTH}/logout", headers=bearer(one["access_token"]))).status_code == 204


async def test_refresh_token_shown_twice_ends_the_session(api: httpx.AsyncClient, sign_in: SignIn) -> None:
    first = await sign_in("trader")
    stolen = {"refresh_token": first["refresh_token"]}
    second = (await api.post(f"{AUTH}/refresh", json=stolen)).json()
    assert (await api.post(f"{AUTH}/refresh", json=stolen)).status_code == 401
    assert await status(api, second["access_token"]) == 401
    answer = await api.post(f"{AUTH}/refresh", json={"refresh_token": second["refresh_token"]})
    assert answer.status_code == 401


@pytest.mark.parametrize("token", ["x", "0" * 32, f"{'0' * 32}.{'A' * 43}", "é"])
async def test_refresh_token_that_is_none_is_refused(
    api: httpx.AsyncClient, people: dict[str, User], token: str
) -> None:
    assert (await api.post(f"{AUTH}/refresh", json={"refresh_token": token})).status_code == 401
    assert (await api.post(f"{AUTH}/refresh")).status_code == 401
    assert (await api.post(f"{AUTH}/logout", json={"refresh_token": token})).status_code == 204


async def test_page_gets_its_refresh_token_in_a_cookie_that_scripts_cannot_read(
    api: httpx.AsyncClient, people: dict[str, User]
) -> None:
    credentials = {"name": "trader", "password": PASSWORD, "cookie": True}
    answer = await api.post(f"{AUTH}/login", json=credentials)
    assert "refresh_token" not in answer.json()
    cookie = answer.headers["Set-Cookie"]
    assert cookie.startswith("tapewatch_refresh=")
    for part in ("HttpOnly", "SameSite=strict", "Path=/api/v1/auth", "Max-Age=2592000"):
        assert part in cookie
    assert "Secure" not in cookie
    renewed = await api.post(f"{AUTH}/refresh")
    assert (renewed.status_code, "refresh_token" in renewed.json()) == (200, False)
    assert renewed.headers["Set-Cookie"] != cookie
    assert await status(api, renewed.json()["access_token"]) == 200
    assert await status(api, None) == 401  # the cookie alone opens nothing
    gone = await api.post(f"{AUTH}/logout")
    assert gone.status_code == 204
    assert not api.cookies
    assert await status(api, renewed.json()["access_token"]) == 401


async def test_behind_tls_the_cookie_is_of_this_host_alone(api: httpx.AsyncClient, people: dict[str, User]) -> None:
    credentials = {"name": "trader", "password": PASSWORD, "cookie": True}
    origin = {"Origin": f"https://{api.base_url.host}:{api.base_url.port}"}
    cookie = (await api.post(f"{AUTH}/login", json=credentials, headers=origin)).headers["Set-Cookie"]
    assert cookie.startswith("__Host-tapewatch=")
    for part in ("HttpOnly", "SameSite=strict", "Path=/;", "Secure"):
        assert part in cookie
    assert "Domain" not in cookie


async def test_page_of_another_origin_cannot_use_the_cookie(api: httpx.AsyncClient, people: dict[str, User]) -> None:
    await api.post(f"{AUTH}/login", json={"name": "trader", "password": PASSWORD, "cookie": True})
    answer = await api.post(f"{AUTH}/refresh", headers={"Origin": "https://evil.example"})
    assert answer.status_code == 403


async def test_wrong_name_and_wrong_password_look_the_same(
    api: httpx.AsyncClient, people: dict[str, User], store: SqlStore
) -> None:
    await store.change_user("u-viewer", disabled=True)
    api.headers["X-Request-Id"] = "the-same-of-all"
    answers = []
    took: dict[str, list[float]] = {"trader": [], "nobody": [], "viewer": []}
    for _ in range(3):
        for name, password in (("trader", "wrong password"), ("nobody", "wrong password"), ("viewer", PASSWORD)):
            began = time.perf_counter()
            answer = await api.post(f"{AUTH}/login", json={"name": name, "password": password})
            took[name].append(time.perf_counter() - began)
            answers.append((answer.status_code, answer.text, set(answer.headers)))
    assert answers[0][0] == 401
    assert answers == [answers[0]] * 9
    assert 0.25 < statistics.median(took["nobody"]) / statistics.median(took["trader"]) < 4


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time stands still, however slow the machine is."""
    now_ns = SystemClock().now_ns()
    monkeypatch.setattr(SystemClock, "now_ns", lambda _: now_ns)


@pytest.mark.parametrize("name", ["trader", "nobody"])
async def test_guessing_is_slowed_down_whether_the_name_exists_or_not(
    api: httpx.AsyncClient, people: dict[str, User], still: None, name: str
) -> None:
    codes = []
    for _ in range(8):
        answer = await api.post(f"{AUTH}/login", json={"name": name, "password": "wrong password"})
        codes.append(answer.status_code)
    assert codes == [401] * 5 + [429] * 3
    assert answer.headers["Retry-After"] == "1"
    refused = await api.post(f"{AUTH}/login", json={"name": name.upper(), "password": PASSWORD})
    assert refused.status_code == 429
    assert (await api.post(f"{AUTH}/login", json={"name": "viewer", "password": PASSWORD})).status_code == 200


async def test_guessing_many_at_once_is_no_way_around(
    api: httpx.AsyncClient, people: dict[str, User], still: None
) -> None:
    credentials = {"name": "trader", "password": "wrong password"}
    answers = await asyncio.gather(*(api.post(f"{AUTH}/login", json=credentials) for _ in range(20)))
    assert sum(answer.status_code == 401 for answer in answers) == 5


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({}, "body.name"),
        ({"name": "trader"}, "body.password"),
        ({"name": "trader", "password": 1}, "body.password"),
        ({"name": "trader", "password": "x" * 257}, "body.password"),
        ({"name": "a b", "password": "x"}, "body.name"),
        ({"name": "trader", "password": "x", "role": "admin"}, "body.role"),
    ],
)
async def test_sign_in_that_is_malformed_says_where(api: httpx.AsyncClient, body: dict[str, Any], where: str) -> None:
    answer = await api.post(f"{AUTH}/login", json=body)
    assert (answer.status_code, answer.json()["where"]) == (422, where)


# -- one's own account ------------------------------------------------------------------------------------------------


async def test_profile_is_read_and_replaced(api: httpx.AsyncClient, sign_in: SignIn) -> None:
    mine = bearer((await sign_in("viewer"))["access_token"])
    before = (await api.get(f"{API}/user/profile", headers=mine)).json()
    assert (before["name"], before["role"], before["time_zone"]) == ("viewer", "viewer", "America/New_York")
    assert "rules:write" not in before["scopes"]
    wanted = {"display_name": "Vi", "time_zone": "Asia/Tokyo", "preferences": {"dark": True, "rows": 50, "zoom": 1.25}}
    after = await api.put(f"{API}/user/profile", headers=mine, json=wanted)
    assert after.json() == before | wanted
    assert (await api.get(f"{API}/user/profile", headers=mine)).json() == before | wanted


@pytest.mark.parametrize(
    "body",
    [
        {"time_zone": "Mars/Olympus"},
        {"time_zone": "../../etc/passwd"},
        {"display_name": "x" * 101},
        {"display_name": "a\u202eb"},
        {"preferences": {"a b": 1}},
        {"preferences": {"a": {"nested": 1}}},
        {"preferences": {"a": 10**30}},
        {"preferences": {str(n): n for n in range(101)}},
        {"role": "admin"},
        {"user_id": "u-root"},
    ],
    ids=str,
)
async def test_profile_that_does_not_hold_is_refused(
    api: httpx.AsyncClient, sign_in: SignIn, body: dict[str, Any]
) -> None:
    mine = bearer((await sign_in("viewer"))["access_token"])
    assert (await api.put(f"{API}/user/profile", headers=mine, json=body)).status_code == 422


async def test_password_change_ends_what_was_before(api: httpx.AsyncClient, sign_in: SignIn) -> None:
    mine, other = await sign_in("trader"), await sign_in("trader")
    wanted = {"password": PASSWORD, "new_password": "another password"}
    path, header = f"{API}/user/password", bearer(mine["access_token"])
    wrong = await api.post(path, json=wanted | {"password": "wrong password"}, headers=header)
    assert (wrong.status_code, wrong.json()["detail"]) == (403, "the password is wrong")
    short = await api.post(path, json=wanted | {"new_password": "short"}, headers=header)
    assert (short.status_code, short.json()["where"]) == (422, "body.new_password")
    assert await status(api, mine["access_token"]) == 200
    assert (await api.post(path, json=wanted, headers=header)).status_code == 204
    for token in (mine, other):
        assert await status(api, token["access_token"]) == 401
    answers = [await api.post(f"{AUTH}/refresh", json={"refresh_token": t["refresh_token"]}) for t in (mine, other)]
    assert [answer.status_code for answer in answers] == [200, 401]
    assert (await api.post(f"{AUTH}/login", json={"name": "trader", "password": PASSWORD})).status_code == 401
    again = await api.post(f"{AUTH}/login", json={"name": "trader", "password": "another password"})
    assert again.status_code == 200


async def test_token_is_shown_once_and_good_until_it_is_revoked(
    api: httpx.AsyncClient, sign_in: SignIn, store: SqlStore
) -> None:
    mine = bearer((await sign_in("trader"))["access_token"])
    made = await api.post(f"{API}/user/tokens", headers=mine, json={"name": "my script", "days": 2})
    token = made.json()
    assert made.status_code == 201
    assert token["token"].startswith(f"tw_{token['token_id']}_")
    assert token["scopes"] is None
    assert await status(api, token["token"]) == 200
    listed = (await api.get(f"{API}/user/tokens", headers=mine)).json()["items"]
    assert [item["token_id"] for item in listed] == [token["token_id"]]
    assert "token" not in listed[0]
    assert token["token"][-43:] not in repr(await store.tokens())
    theirs = bearer((await sign_in("viewer"))["access_token"])
    path = f"{API}/user/tokens/{token['token_id']}"
    missing = await api.delete(f"{API}/user/tokens/0123", headers=theirs)
    refused = await api.delete(path, headers=theirs)
    assert (refused.status_code, missing.status_code) == (404, 404)
    assert refused.json()["detail"].replace(token["token_id"], "") == missing.json()["detail"].replace("0123", "")
    assert (await api.delete(path, headers=mine)).status_code == 204
    assert await status(api, token["token"]) == 401
    assert (await api.get(f"{API}/user/tokens", headers=mine)).json() == {"items": []}


async def test_token_of_few_scopes_does_little_and_makes_no_greater_one(
    api: httpx.AsyncClient, sign_in: SignIn
) -> None:
    mine = bearer((await sign_in("trader"))["access_token"])
    wanted = {"name": "narrow", "scopes": ["alerts:read", "account:write"]}
    narrow = (await api.post(f"{API}/user/tokens", headers=mine, json=wanted)).json()["token"]
    assert await status(api, narrow, "/alerts") == 200
    assert await status(api, narrow, "/rules") == 403
    more = await api.post(f"{API}/user/tokens", headers=bearer(narrow), json={"name": "x", "scopes": ["rules:read"]})
    assert (more.status_code, "rules:read" in more.json()["detail"]) == (403, True)
    same = await api.post(f"{API}/user/tokens", headers=bearer(narrow), json={"name": "x"})
    assert same.json()["scopes"] == ["account:write", "alerts:read"]
    beyond = await api.post(f"{API}/user/tokens", headers=mine, json={"name": "x", "scopes": ["users:write"]})
    assert beyond.status_code == 403


async def test_token_that_was_touched_or_has_ended_is_refused(
    api: httpx.AsyncClient, sign_in: SignIn, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = bearer((await sign_in("trader"))["access_token"])
    made = await api.post(f"{API}/user/tokens", headers=mine, json={"name": "x", "days": 1})
    token = made.json()["token"]
    touched = token[:-1] + ("A" if token[-1] != "A" else "B")
    assert [await status(api, text) for text in (token, touched, token[:-1], token + "A")] == [200, 401, 401, 401]
    later_ns = services.clock.now_ns() + 86_401 * 10**9
    monkeypatch.setattr(SystemClock, "now_ns", lambda _: later_ns)
    assert await status(api, token) == 401


# -- users, for an admin ----------------------------------------------------------------------------------------------


async def test_admin_adds_changes_and_deletes_a_user(api: httpx.AsyncClient, sign_in: SignIn, store: SqlStore) -> None:
    admin = bearer((await sign_in("admin"))["access_token"])
    made = await api.post(f"{API}/users", headers=admin, json={"name": "Cy", "password": PASSWORD, "role": "viewer"})
    user = made.json()
    assert (made.status_code, user["name"], user["role"], user["disabled"]) == (201, "Cy", "viewer", False)
    path = made.headers["Location"]
    assert (await api.get(path, headers=admin)).json() == user
    assert "password" not in made.text
    theirs = (await sign_in("cy"))["access_token"]
    token = (await api.post(f"{API}/user/tokens", headers=bearer(theirs), json={"name": "x"})).json()["token"]
    taken = await api.post(f"{API}/users", headers=admin, json={"name": "CY", "password": PASSWORD})
    assert taken.status_code == 409
    raised = await api.put(path, headers=admin, json={"role": "trader", "disabled": False})
    assert raised.json()["role"] == "trader"
    assert await status(api, theirs) == 401  # its epoch has passed
    assert await status(api, token) == 200  # and has the new role
    assert await status(api, token, "/rules/dry-run", "POST") != 403
    await api.put(path, headers=admin, json={"role": "trader", "disabled": True})
    assert await status(api, token) == 401
    assert (await api.post(f"{AUTH}/login", json={"name": "cy", "password": PASSWORD})).status_code == 401
    names = [item["name"] for item in (await api.get(f"{API}/users?limit=3", headers=admin)).json()["items"]]
    assert names == ["admin", "Cy", "operator"]
    assert (await api.delete(path, headers=admin)).status_code == 204
    assert (await api.get(path, headers=admin)).status_code == 404
    entries = await store.audit(AuditQuery(kind="user", subject=user["user_id"]))
    assert [(entry.actor, entry.action) for entry in entries] == [
        ("u-admin", action) for action in ("delete", "change", "change", "create")
    ]


async def test_admin_resets_a_password_and_the_user_chooses_another(
    api: httpx.AsyncClient, sign_in: SignIn, store: SqlStore
) -> None:
    theirs, admin = await sign_in("trader"), bearer((await sign_in("admin"))["access_token"])
    token = (await api.post(f"{API}/user/tokens", headers=bearer(theirs["access_token"]), json={"name": "x"})).json()
    path, given = f"{API}/users/u-trader/password", "a password for once"
    short = await api.post(path, headers=admin, json={"password": "short"})
    assert (short.status_code, short.json()["where"]) == (422, "body.password")
    assert await status(api, theirs["access_token"]) == 200
    reset = await api.post(path, headers=admin, json={"password": given})
    assert (reset.status_code, reset.content) == (204, b"")
    assert await status(api, theirs["access_token"]) == 401
    refreshed = await api.post(f"{AUTH}/refresh", json={"refresh_token": theirs["refresh_token"]})
    assert refreshed.status_code == 401
    assert await status(api, token["token"]) == 200  # tokens of programs outlive it
    assert (await api.post(f"{AUTH}/login", json={"name": "trader", "password": PASSWORD})).status_code == 401
    signed_in = await api.post(f"{AUTH}/login", json={"name": "trader", "password": given})
    mine = bearer(signed_in.json()["access_token"])
    chosen = {"password": given, "new_password": "a password of my own"}
    assert (await api.post(f"{API}/user/password", headers=mine, json=chosen)).status_code == 204
    (_, line, *_) = await store.audit(AuditQuery(kind="user", subject="u-trader"))
    assert (line.actor, line.action, line.after) == ("u-admin", "change", {"password": "changed"})
    whole = (await api.get(f"{API}/audit", headers=admin, params={"limit": 500})).text
    assert given not in whole
    assert "argon2" not in whole


async def test_reset_of_a_password_is_for_admins_and_of_others(api: httpx.AsyncClient, sign_in: SignIn) -> None:
    admin, wanted = bearer((await sign_in("admin"))["access_token"]), {"password": "a password for once"}
    own = await api.post(f"{API}/users/u-admin/password", headers=admin, json=wanted)
    assert (own.status_code, "POST /user/password" in own.json()["detail"]) == (403, True)
    assert (await api.post(f"{API}/users/nobody/password", headers=admin, json=wanted)).status_code == 404
    operator = bearer((await sign_in("operator"))["access_token"])
    assert (await api.post(f"{API}/users/u-trader/password", headers=operator, json=wanted)).status_code == 403


async def test_last_admin_is_kept(api: httpx.AsyncClient, sign_in: SignIn, store: SqlStore) -> None:
    await store.delete_user("u-root")
    admin = bearer((await sign_in("admin"))["access_token"])
    path = f"{API}/users/u-admin"
    for answer in (
        await api.put(path, headers=admin, json={"role": "trader", "disabled": False}),
        await api.put(path, headers=admin, json={"role": "admin", "disabled": True}),
        await api.delete(path, headers=admin),
    ):
        assert (answer.status_code, "last admin" in answer.json()["detail"]) == (409, True)


@pytest.mark.parametrize(
    "body",
    [
        {"name": "new", "password": "short"},
        {"name": "new", "password": PASSWORD, "role": "owner"},
        {"name": "new", "password": PASSWORD, "user_id": "u1"},
        {"name": "no spaces", "password": PASSWORD},
        {"name": "new", "password": "a" * 12 + "\n"},
    ],
    ids=str,
)
async def test_user_that_does_not_hold_is_refused(
    api: httpx.AsyncClient, sign_in: SignIn, body: dict[str, Any]
) -> None:
    admin = bearer((await sign_in("admin"))["access_token"])
    assert (await api.post(f"{API}/users", headers=admin, json=body)).status_code == 422


async def test_commands_that_ask_a_server_send_the_token_of_the_environment(
    api: httpx.AsyncClient, sign_in: SignIn, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = bearer((await sign_in("trader"))["access_token"])
    token = (await api.post(f"{API}/user/tokens", headers=mine, json={"name": "x"})).json()["token"]
    monkeypatch.setenv("TAPEWATCH_TOKEN", token)
    server = OnServer(f"http://{address}")
    assert (await server.found()).rules == {}
    await server.close()
    monkeypatch.delenv("TAPEWATCH_TOKEN")
    stranger = OnServer(f"http://{address}")
    with pytest.raises(Unauthorized, match="set TAPEWATCH_TOKEN"):
        await stranger.found()
    await stranger.close()
    monkeypatch.setenv("TAPEWATCH_TOKEN", f"{token}\r\nX: y")
    with pytest.raises(ConfigError, match="TAPEWATCH_TOKEN") as caught:
        OnServer(f"http://{address}")
    assert token not in str(caught.value)


# -- the view of another process --------------------------------------------------------------------------------------


@pytest.fixture
async def elsewhere(store: SqlStore, bus: MemoryBus, clock: SystemClock, services: Services) -> AsyncIterator[Accounts]:
    """As a gateway has it, which follows what the API does."""
    accounts = Accounts(store, clock, bus=bus, keys=services.accounts.keys)
    following = asyncio.create_task(accounts.follow())
    await accounts.ready()
    await asyncio.sleep(0)
    yield accounts
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def until(condition: Callable[[], bool], within_s: float) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_others_know_a_session_at_once_and_its_end_by_notice(
    api: httpx.AsyncClient, sign_in: SignIn, elsewhere: Accounts
) -> None:
    token = (await sign_in("trader"))["access_token"]
    session = await elsewhere.authenticate(token)
    assert (session.principal.user_id, session.principal.role) == ("u-trader", "trader")
    assert elsewhere.still_valid(session)
    await api.post(f"{AUTH}/logout", headers=bearer(token))
    await until(lambda: not elsewhere.still_valid(session), LOOK_S / 2)
    with pytest.raises(Unauthorized):
        await elsewhere.authenticate(token)


async def test_others_see_a_change_without_a_notice(sign_in: SignIn, elsewhere: Accounts, store: SqlStore) -> None:
    session = await elsewhere.authenticate((await sign_in("trader"))["access_token"])
    await store.change_user("u-trader", disabled=True)  # as the command line does
    await until(lambda: not elsewhere.still_valid(session), LOOK_S + 1)


async def test_first_user_ends_the_time_of_the_local_one(
    elsewhere: Accounts, store: SqlStore, password_hash: str
) -> None:
    local = await elsewhere.authenticate("")
    assert local.principal is LOCAL
    assert not elsewhere.required
    assert elsewhere.still_valid(local)
    await store.add_user(User(user_id="u", name="ann", role="admin", password_hash=password_hash, created_at_ns=1))
    await until(lambda: elsewhere.required, LOOK_S + 1)
    assert not elsewhere.still_valid(local)
    with pytest.raises(Unauthorized):
        await elsewhere.authenticate("")


async def test_last_use_of_a_token_is_noted(
    api: httpx.AsyncClient, sign_in: SignIn, elsewhere: Accounts, store: SqlStore
) -> None:
    mine = bearer((await sign_in("trader"))["access_token"])
    token = (await api.post(f"{API}/user/tokens", headers=mine, json={"name": "x"})).json()["token"]
    session = await elsewhere.authenticate(token)
    assert session.session_id in token
    async with asyncio.timeout(LOOK_S + 2):
        while (await store.tokens())[0].used_at_ns is None:  # noqa: ASYNC110  # the store tells nobody
            await asyncio.sleep(0.05)
