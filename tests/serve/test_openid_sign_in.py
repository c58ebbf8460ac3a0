"""Signing in through an OpenID provider that answers over HTTP, and everything that may be wrong with it or with who
comes back from it.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from minted_accounts import MovedClock
from openid_server import CLIENT_SECRET, OpenIdServer, callback, key_named, openid_server
from starlette.responses import JSONResponse, Response

from tapewatch.accounts.openid import ATTEMPT_S
from tapewatch.accounts.openid_settings import OpenIdSettings
from tapewatch.accounts.tokens import Keys
from tapewatch.accounts.users import Identity, User
from tapewatch.adapters.sql import SqlStore
from tapewatch.ports import AuditQuery
from tapewatch.serve import openid_sign_in
from tapewatch.serve.access import Accounts
from tapewatch.serve.openid_sign_in import MOST_BYTES, NEW_KEYS_S, QUIET_S, OpenIdProvider
from tapewatch.serve.services import Services

pytestmark = pytest.mark.anyio
AUTH = "/api/v1/auth"
BEGIN = f"{AUTH}/openid/begin"
PUBLIC = "http://127.0.0.1:8000"
FROM_THE_PAGE = {"Origin": PUBLIC, "Host": "127.0.0.1:8000"}
SUBJECT = "248289761001"


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock()


@pytest.fixture
async def provider() -> AsyncIterator[OpenIdServer]:
    async with openid_server() as server:
        yield server


@pytest.fixture
def changes() -> dict[str, Any]:
    """Of the settings, by a test's parameters."""
    return {}


@pytest.fixture
def services(services: Services, provider: OpenIdServer, clock: MovedClock, changes: dict[str, Any]) -> Services:
    config = OpenIdSettings(**{
        "issuer": provider.issuer, "client_id": provider.client_id, "public_url": PUBLIC, "name": "Example", **changes
    })  # fmt: skip
    return replace(services, openid=OpenIdProvider(config, clock, secret=CLIENT_SECRET))


@pytest.fixture(autouse=True)
async def root(store: SqlStore) -> User:
    """There is an admin before anybody may come through a provider."""
    return await store.add_user(User(user_id="u-root", name="root", role="admin", password_hash="", created_at_ns=1))


async def begin(api: httpx.AsyncClient) -> str:
    answer = await api.post(BEGIN, headers=FROM_THE_PAGE)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["authorization_url"])


async def come_back(api: httpx.AsyncClient, query: dict[str, str]) -> str:
    """What the page is told."""
    answer = await api.get(callback(query))
    assert answer.status_code == 303, answer.text
    assert answer.headers["Cache-Control"] == "no-store"
    place, _, outcome = answer.headers["Location"].partition("#sign-in=")
    assert place == f"{PUBLIC}/"
    assert outcome == "done" or "tapewatch_refresh" not in answer.headers.get("Set-Cookie", "")
    return outcome


async def sign_in(api: httpx.AsyncClient, provider: OpenIdServer, subject: str = SUBJECT) -> str:
    return await come_back(api, provider.let_in(await begin(api), subject))


async def who_is_in(api: httpx.AsyncClient) -> dict[str, Any]:
    """As the page finds out."""
    renewed = await api.post(f"{AUTH}/refresh", headers={"Origin": f"http://{api.base_url.netloc.decode()}"})
    assert renewed.status_code == 200, renewed.text
    token = renewed.json()["access_token"]
    profile = await api.get("/api/v1/user/profile", headers={"Authorization": f"Bearer {token}"})
    return dict(profile.json())


async def users_of(store: SqlStore) -> list[str]:
    return [user.name for user in (await store.accounts(1)).users]


# -- coming in --------------------------------------------------------------------------------------------------------


async def test_user_comes_in_with_a_session_as_after_a_password(
    api: httpx.AsyncClient, provider: OpenIdServer, store: SqlStore
) -> None:
    provider.claims = {"preferred_username": "ann", "name": "Ann\nO'Hara", "email": "ann@example.com"}
    address = await begin(api)
    query = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
    assert query["redirect_uri"] == f"{PUBLIC}/api/v1/auth/openid/callback"
    answer = await api.get(callback(provider.let_in(address, session_state="keycloak adds this")))
    assert answer.headers["Location"] == f"{PUBLIC}/#sign-in=done"
    kept = answer.headers.get_list("Set-Cookie")
    (refresh,) = [cookie for cookie in kept if cookie.startswith("tapewatch_refresh=")]
    assert "HttpOnly" in refresh
    assert "SameSite=strict" in refresh
    assert "Path=/api/v1/auth;" in refresh
    ann = await who_is_in(api)
    assert (ann["name"], ann["role"], ann["display_name"]) == ("ann", "viewer", "AnnO'Hara")
    user = await store.user_of(Identity(provider.issuer, SUBJECT))
    assert (user.user_id, user.password_hash) == (ann["user_id"], "")
    session, created, _ = await store.audit(AuditQuery())
    assert (session.kind, session.action, session.actor) == ("session", "create", user.user_id)
    assert (created.kind, created.action, created.actor) == ("user", "create", "openid")
    assert created.after["identity"] == {"issuer": provider.issuer, "subject": SUBJECT}
    assert (await api.post(f"{AUTH}/logout")).status_code == 204
    assert (await api.post(f"{AUTH}/refresh")).status_code == 401


@pytest.mark.parametrize(("in_body", "secret"), [(False, None), (True, CLIENT_SECRET)])
async def test_client_may_have_no_secret_or_show_it_in_the_form(
    *,
    services: Services,
    provider: OpenIdServer,
    serve: Callable[[Services], Any],
    in_body: bool,
    secret: str | None,
) -> None:
    assert services.openid is not None
    provider.secret = secret
    if in_body:
        provider.description = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    openid = OpenIdProvider(services.openid.config, services.clock, secret=secret)
    async with (
        serve(replace(services, openid=openid)) as address,
        httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as api,
    ):
        assert await sign_in(api, provider) == "done"


async def test_known_user_comes_in_again_whatever_they_are_called_now(
    api: httpx.AsyncClient, provider: OpenIdServer, store: SqlStore
) -> None:
    provider.claims = {"preferred_username": "ann"}
    assert await sign_in(api, provider) == "done"
    provider.claims = {"preferred_username": "ann.ohara", "email": "root@example.com"}
    assert await sign_in(api, provider) == "done"
    assert (await who_is_in(api))["name"] == "ann"
    assert await users_of(store) == ["ann", "root"]


async def test_name_or_address_of_another_makes_nobody_that_other(
    api: httpx.AsyncClient, provider: OpenIdServer, store: SqlStore, root: User
) -> None:
    await store.save_profile(root.user_id, root.profile.model_copy(update={"display_name": "root@example.com"}))
    provider.claims = {"preferred_username": "ROOT", "email": "root@example.com", "email_verified": True}
    assert await sign_in(api, provider) == "done"
    comer = await who_is_in(api)
    assert comer["user_id"] != root.user_id
    assert comer["role"] == "viewer"
    assert comer["name"].startswith("ROOT-")
    assert await sign_in(api, provider, "another") == "done"
    assert len(await users_of(store)) == 3


async def test_two_windows_of_a_new_user_make_one(
    api: httpx.AsyncClient, provider: OpenIdServer, store: SqlStore, address: str
) -> None:
    provider.claims = {"preferred_username": "ann"}
    async with httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as other:
        done = await asyncio.gather(sign_in(api, provider), sign_in(other, provider))
    assert list(done) == ["done", "done"]
    assert await users_of(store) == ["ann", "root"]


async def test_user_without_password_cannot_sign_in_with_one(api: httpx.AsyncClient, provider: OpenIdServer) -> None:
    provider.claims = {"preferred_username": "ann"}
    await sign_in(api, provider)
    ann = await who_is_in(api)
    answer = await api.post(f"{AUTH}/login", json={"name": ann["name"], "password": "correct horse battery"})
    assert answer.status_code == 401


async def test_disabled_user_stays_out(api: httpx.AsyncClient, provider: OpenIdServer, store: SqlStore) -> None:
    assert await sign_in(api, provider) == "done"
    user = await store.user_of(Identity(provider.issuer, SUBJECT))
    await store.change_user(user.user_id, disabled=True)
    assert await sign_in(api, provider) == "stranger"
    assert (await api.post(f"{AUTH}/refresh")).status_code == 401


@pytest.mark.parametrize("changes", [{"default_role": None}])
async def test_stranger_stays_out_until_an_admin_adds_them(
    api: httpx.AsyncClient,
    provider: OpenIdServer,
    store: SqlStore,
    root: User,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert await sign_in(api, provider) == "stranger"
    assert await users_of(store) == ["root"]
    assert f"subject '{SUBJECT}' of {provider.issuer} has no account" in caplog.text
    await store.link_identity(root.user_id, Identity(provider.issuer, SUBJECT))
    assert await sign_in(api, provider) == "done"
    assert (await who_is_in(api))["role"] == "admin"


GROUPS = {"role_claim": "groups", "roles": {"desk": "trader", "admins": "admin"}}


@pytest.mark.parametrize("changes", [GROUPS])
async def test_role_follows_the_claim_at_each_sign_in(
    api: httpx.AsyncClient, provider: OpenIdServer, store: SqlStore
) -> None:
    roles = []
    for groups in (["desk", "admins"], ["desk"], [], ["admins"]):
        provider.claims = {"groups": groups}
        assert await sign_in(api, provider) == "done"
        roles.append((await who_is_in(api))["role"])
    assert roles == ["admin", "trader", "viewer", "admin"]
    changed = next(entry for entry in await store.audit(AuditQuery(kind="user")) if entry.action == "change")
    assert (changed.actor, changed.after) == ("openid", {"role": "admin"})


@pytest.mark.parametrize("changes", [{**GROUPS, "default_role": None}])
async def test_who_loses_every_role_stays_out(api: httpx.AsyncClient, provider: OpenIdServer, store: SqlStore) -> None:
    provider.claims = {"groups": ["desk"]}
    assert await sign_in(api, provider) == "done"
    provider.claims = {"groups": ["sales"]}
    assert await sign_in(api, provider) == "stranger"
    assert (await store.user_of(Identity(provider.issuer, SUBJECT))).role == "trader"


@pytest.mark.parametrize("changes", [GROUPS])
async def test_last_admin_stays_one_whatever_the_claim_says(
    api: httpx.AsyncClient, provider: OpenIdServer, store: SqlStore, root: User
) -> None:
    await store.link_identity(root.user_id, Identity(provider.issuer, SUBJECT))
    assert await sign_in(api, provider) == "done"
    assert (await who_is_in(api))["role"] == "admin"


@pytest.mark.parametrize("changes", [{"public_url": "https://scan.example.com"}])
async def test_over_tls_the_cookies_are_of_this_host_alone(api: httpx.AsyncClient, provider: OpenIdServer) -> None:
    begun = await api.post(BEGIN)
    cookie = begun.headers["Set-Cookie"]
    assert cookie.startswith("__Host-tapewatch-openid=")
    for part in ("HttpOnly", "SameSite=lax", "Path=/;", "Secure", f"Max-Age={ATTEMPT_S}"):
        assert part in cookie
    assert "Domain" not in cookie
    carried = {"Cookie": cookie.partition(";")[0]}
    query = provider.let_in(begun.json()["authorization_url"])
    answer = await api.get(callback(query), headers=carried)
    assert answer.headers["Location"] == "https://scan.example.com/#sign-in=done"
    kept, gone = answer.headers.get_list("Set-Cookie")
    assert kept.startswith("__Host-tapewatch=")
    assert "Secure" in kept
    assert gone.startswith('__Host-tapewatch-openid="";')


# -- who did not begin ------------------------------------------------------------------------------------------------


async def test_answer_to_somebody_elses_attempt_signs_nobody_in(
    api: httpx.AsyncClient, provider: OpenIdServer, address: str
) -> None:
    """An attacker signs in, stops at the last step, and sends the victim there."""
    async with httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as attacker:
        theirs = provider.let_in(await begin(attacker), "attacker")
        assert await come_back(api, theirs) == "again"  # a browser that has begun nothing
        mine = provider.let_in(await begin(api))
        assert await come_back(api, theirs) == "again"
        assert await come_back(api, {**mine, "code": theirs["code"]}) == "refused"  # PKCE: of another verifier
        assert "tapewatch_refresh" not in api.cookies
        assert provider.asked.count("/token") == 1


async def test_wrong_state_asks_the_provider_nothing_and_leaves_the_attempt_alive(
    api: httpx.AsyncClient, provider: OpenIdServer
) -> None:
    query = provider.let_in(await begin(api))
    for state in ("", "x", query["state"][:-1], query["state"] + "x"):
        assert await come_back(api, {**query, "state": state}) == "again"
    assert "/token" not in provider.asked
    assert await come_back(api, query) == "done"


async def test_answer_is_good_once_also_with_the_cookie(api: httpx.AsyncClient, provider: OpenIdServer) -> None:
    query = provider.let_in(await begin(api))
    kept = {"Cookie": "; ".join(f"{name}={value}" for name, value in api.cookies.items())}
    assert await come_back(api, query) == "done"
    assert "tapewatch_openid" not in api.cookies
    assert await come_back(api, query) == "again"
    asked = len(provider.asked)
    for _ in range(2):
        replayed = await api.get(callback(query), headers=kept)
        assert replayed.headers["Location"].endswith("#sign-in=again")
    fresh = {**query, "code": provider.let_in(await begin(api))["code"]}
    assert (await api.get(callback(fresh), headers=kept)).headers["Location"].endswith("#sign-in=again")
    assert len(provider.asked) == asked


async def test_attempt_ends_by_itself(api: httpx.AsyncClient, provider: OpenIdServer, clock: MovedClock) -> None:
    query = provider.let_in(await begin(api))
    clock.move(ATTEMPT_S)
    assert await come_back(api, query) == "again"


async def test_page_of_another_origin_cannot_begin(api: httpx.AsyncClient, provider: OpenIdServer) -> None:
    for origin in ("https://evil.example", "null", f"http://{api.base_url.netloc.decode()}"):
        answer = await api.post(BEGIN, headers={"Origin": origin})
        assert answer.status_code == 403
        assert "Set-Cookie" not in answer.headers
    assert PUBLIC in answer.json()["detail"]  # our own page under another name is told where to begin


async def test_redirects_lead_to_the_configured_page_alone(api: httpx.AsyncClient, provider: OpenIdServer) -> None:
    evil = {"Host": "evil.example", "X-Forwarded-Host": "evil.example", "Forwarded": "host=evil.example"}
    begun = await api.post(BEGIN, headers=evil)
    assert "evil" not in begun.json()["authorization_url"]
    query = provider.let_in(begun.json()["authorization_url"]) | {
        "redirect_uri": "https://evil.example/",
        "next": "https://evil.example/",
        "return_to": "//evil.example",
    }
    answer = await api.get(callback(query), headers=evil)
    assert answer.headers["Location"] == f"{PUBLIC}/#sign-in=done"


async def test_parameter_that_comes_twice_is_refused(api: httpx.AsyncClient, provider: OpenIdServer) -> None:
    query = provider.let_in(await begin(api))
    assert (await api.get(f"{callback(query)}&state=x")).status_code == 422


# -- an answer of another provider ------------------------------------------------------------------------------------


async def test_answer_that_names_another_issuer_is_refused(api: httpx.AsyncClient, provider: OpenIdServer) -> None:
    for iss in ("https://evil.example", f"{provider.issuer}/", ""):
        assert await come_back(api, provider.let_in(await begin(api), iss=iss)) == "refused"
    assert "/token" not in provider.asked
    assert await come_back(api, provider.let_in(await begin(api), iss=provider.issuer)) == "done"


async def test_provider_that_names_itself_has_to(api: httpx.AsyncClient, provider: OpenIdServer) -> None:
    provider.description = {"authorization_response_iss_parameter_supported": True}
    assert await sign_in(api, provider) == "refused"
    assert await come_back(api, provider.let_in(await begin(api), iss=provider.issuer)) == "done"


async def test_user_who_declines_is_told_so(
    api: httpx.AsyncClient, provider: OpenIdServer, caplog: pytest.LogCaptureFixture
) -> None:
    for error in ("access_denied", "<script>\nforged line"):
        state = provider.let_in(await begin(api))["state"]
        assert await come_back(api, {"error": error, "error_description": "<b>", "state": state}) == "denied"
    assert "access_denied" in caplog.text
    assert "script" not in caplog.text
    assert "/token" not in provider.asked


# -- forged tokens ----------------------------------------------------------------------------------------------------


def unsigned(claims: dict[str, Any]) -> str:
    return jwt.encode(claims, "", algorithm="none")


def by_another(claims: dict[str, Any]) -> str:
    return jwt.encode(claims, key_named("of an attacker"), algorithm="RS256", headers={"kid": "first"})


def by_the_public_key(claims: dict[str, Any]) -> str:
    pem = key_named("first").public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    algorithm = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    head = jwt.encode(claims, "x" * 32, algorithm="HS256", headers={"kid": "first"}).rpartition(".")[0]
    return f"{head}.{jwt.utils.base64url_encode(algorithm.sign(head.encode(), pem)).decode()}"


def by_the_client_secret(claims: dict[str, Any]) -> str:
    return jwt.encode(claims, CLIENT_SECRET.ljust(32), algorithm="HS256")


@pytest.mark.parametrize("sign", [unsigned, by_another, by_the_public_key, by_the_client_secret])
async def test_forged_token_opens_nothing(
    api: httpx.AsyncClient, provider: OpenIdServer, store: SqlStore, sign: Callable[[dict[str, Any]], str]
) -> None:
    provider.sign = sign
    assert await sign_in(api, provider) == "refused"
    assert await users_of(store) == ["root"]
    provider.sign = provider.signed
    assert await sign_in(api, provider) == "done"


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://evil.example"},
        {"aud": "another"},
        {"aud": ["tapewatch", "another"]},
        {"azp": "another"},
        {"nonce": "of another sign-in"},
        {"nonce": None},
        {"exp": 1_700_000_000},
        {"iat": 1_700_000_000},
        {"sub": None},
    ],
)
async def test_token_that_is_not_for_this_sign_in_opens_nothing(
    api: httpx.AsyncClient, provider: OpenIdServer, store: SqlStore, claims: dict[str, Any]
) -> None:
    provider.claims = claims
    assert await sign_in(api, provider) == "refused"
    assert await users_of(store) == ["root"]


async def test_new_key_of_the_provider_is_fetched_but_not_for_every_token(
    api: httpx.AsyncClient, provider: OpenIdServer, clock: MovedClock
) -> None:
    assert await sign_in(api, provider) == "done"
    provider.key_id, provider.published = "second", ["first", "second"]
    assert await sign_in(api, provider) == "refused"  # asked a moment ago
    clock.move(NEW_KEYS_S)
    assert await sign_in(api, provider) == "done"
    provider.key_id = "never published"
    clock.move(NEW_KEYS_S)
    for _ in range(5):
        assert await sign_in(api, provider) == "refused"
    assert provider.asked.count("/jwks") == 3
    assert provider.asked.count("/.well-known/openid-configuration") == 1


# -- a provider that is away or out of its mind -----------------------------------------------------------------------


async def test_provider_that_is_away_keeps_nobody_else_out(
    api: httpx.AsyncClient, provider: OpenIdServer, clock: MovedClock, caplog: pytest.LogCaptureFixture
) -> None:
    discovery = "/.well-known/openid-configuration"
    provider.replaces = {discovery: Response("down for maintenance", 503)}
    answers = await asyncio.gather(*(api.post(BEGIN) for _ in range(10)))
    assert {answer.status_code for answer in answers} == {503}
    assert answers[0].json()["detail"] == "Example cannot be reached now; a password still works"
    assert provider.asked == [discovery]  # once for all of them
    assert (await api.get(f"{AUTH}/methods")).json() == {"password": True, "openid": "Example"}
    assert (await api.post(f"{AUTH}/login", json={"name": "root", "password": "x" * 12})).status_code == 401
    provider.replaces = {}
    clock.move(QUIET_S)
    assert await sign_in(api, provider) == "done"
    assert "maintenance" not in caplog.text


@pytest.mark.parametrize("path", ["/token", "/jwks"])
@pytest.mark.parametrize(
    "answer",
    [
        Response("{}", 500),
        Response("", 302, {"Location": "http://127.0.0.1:1/"}),
        Response("x" * (MOST_BYTES + 1)),
        Response("{}", headers={"Content-Encoding": "gzip"}),
    ],
)
async def test_provider_that_fails_half_way_is_told_from_a_forgery(
    api: httpx.AsyncClient, provider: OpenIdServer, path: str, answer: Response
) -> None:
    provider.replaces = {path: answer}
    assert await sign_in(api, provider) == "unavailable"


@pytest.mark.parametrize(
    "answer",
    [
        JSONResponse({"error": "invalid_grant"}, 400),
        JSONResponse({"error": "<script>"}, 401),
        JSONResponse({}),
        JSONResponse({"id_token": None}),
        JSONResponse([]),
        Response("not JSON"),
    ],
)
async def test_token_endpoint_that_gives_no_token_lets_nobody_in(
    api: httpx.AsyncClient, provider: OpenIdServer, answer: Response, caplog: pytest.LogCaptureFixture
) -> None:
    provider.replaces = {"/token": answer}
    assert await sign_in(api, provider) == "refused"
    assert "script" not in caplog.text


@pytest.mark.parametrize(
    "description",
    [
        {"issuer": "https://evil.example"},
        {"token_endpoint": "http://evil.example/token"},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"jwks_uri": None},
        {"padding": "x" * MOST_BYTES},
        {"deep": json.loads("[" * 500 + "]" * 500)},
    ],
)
async def test_discovery_document_that_cannot_be_used_sends_nobody_away(
    api: httpx.AsyncClient, provider: OpenIdServer, description: dict[str, Any]
) -> None:
    provider.description = description
    answer = await api.post(BEGIN)
    if "deep" in description:  # is not looked at
        assert answer.status_code == 200
    else:
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        assert "Set-Cookie" not in answer.headers


async def test_provider_that_does_not_answer_is_waited_for_in_bounds(
    api: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[asyncio.StreamWriter] = []

    async def hold(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(200):  # always a little, never all
            writer.write(b" ")
            await asyncio.sleep(0.02)

    assert services.openid is not None
    monkeypatch.setattr(openid_sign_in, "ANSWER_S", 0.2)
    async with await asyncio.start_server(hold, "127.0.0.1", 0) as slow:
        issuer = f"http://127.0.0.1:{slow.sockets[0].getsockname()[1]}"
        monkeypatch.setattr(services.openid, "config", replace(services.openid.config, issuer=issuer))
        async with asyncio.timeout(3):
            assert (await api.post(BEGIN)).status_code == 503
        for writer in held:
            writer.transport.abort()


async def test_failures_of_an_address_make_it_wait(
    api: httpx.AsyncClient, provider: OpenIdServer, clock: MovedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ns = clock.now_ns()
    monkeypatch.setattr(MovedClock, "now_ns", lambda self: now_ns + self.ahead_ns)
    provider.sign = unsigned
    outcomes = [await sign_in(api, provider) for _ in range(22)]
    assert outcomes == ["refused"] * 20 + ["wait"] * 2
    assert provider.asked.count("/token") == 20
    provider.sign = provider.signed
    clock.move(2)
    assert await sign_in(api, provider) == "done"


async def test_nothing_secret_is_logged(
    api: httpx.AsyncClient, provider: OpenIdServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="tapewatch")
    queries = []
    for sign in (provider.signed, unsigned, by_another):
        provider.sign = sign
        queries.append(provider.let_in(await begin(api)))
        await come_back(api, queries[-1])
    for secret in (CLIENT_SECRET, "eyJ", *(value for query in queries for value in query.values())):
        assert secret not in caplog.text
    assert CLIENT_SECRET not in repr(vars(OpenIdProvider)) + repr(api.cookies)


# -- without ----------------------------------------------------------------------------------------------------------


async def test_without_a_provider_the_routes_say_so(services: Services, serve: Callable[[Services], Any]) -> None:
    async with (
        serve(replace(services, openid=None)) as address,
        httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as api,
    ):
        assert (await api.get(f"{AUTH}/methods")).json() == {"password": True, "openid": None}
        for answer in (await api.post(BEGIN), await api.get(callback({"code": "c", "state": "s"}))):
            assert answer.status_code == 404
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert "no OpenID provider is set" in answer.json()["detail"]


async def test_without_a_secret_to_sign_with_nobody_is_sent_away(
    services: Services, serve: Callable[[Services], Awaitable[Any]]
) -> None:
    accounts = Accounts(services.store, services.clock, bus=services.bus)
    async with (
        serve(replace(services, accounts=accounts)) as address,  # type: ignore[attr-defined]
        httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as api,
    ):
        assert (await api.post(BEGIN)).status_code == 503


async def test_other_server_of_the_installation_finishes_what_one_began(
    api: httpx.AsyncClient, services: Services, provider: OpenIdServer, serve: Callable[[Services], Any]
) -> None:
    assert services.openid is not None
    twin = OpenIdProvider(services.openid.config, services.clock, secret=CLIENT_SECRET)
    accounts = Accounts(services.store, services.clock, bus=services.bus, keys=services.accounts.keys)
    query = provider.let_in(await begin(api))
    async with serve(replace(services, openid=twin, accounts=accounts)) as address:
        answer = await api.get(f"http://{address}{callback(query)}")
        assert answer.headers["Location"].endswith("#sign-in=done")
    strangers = Accounts(
        services.store, services.clock, bus=services.bus, keys=Keys("c0ffee1234567890abcdef9876543210")
    )
    query = provider.let_in(await begin(api))
    async with serve(replace(services, accounts=strangers)) as address:
        answer = await api.get(f"http://{address}{callback(query)}")
        assert answer.headers["Location"].endswith("#sign-in=again")
