"""What surrounds every operation: names of requests, kinds of problems, other origins, limits, and creating once."""

import asyncio
import json
import logging
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from limits.aio.storage import MemoryStorage, Storage
from limits.errors import StorageError

from tapewatch.adapters.sql import SqlStore
from tapewatch.errors import Unavailable
from tapewatch.ports import ONCE_S
from tapewatch.serve.app import create_app
from tapewatch.serve.problems import KINDS
from tapewatch.serve.rate_limits import USER_PER_MINUTE, RateLimits, address_of
from tapewatch.serve.server import server_config
from tapewatch.serve.services import Services
from tapewatch.telemetry import configure_logging

pytestmark = pytest.mark.anyio
RULES = "/api/v1/rules"
Serve = Callable[[Services], Any]
DOCS = Path(__file__).parents[2] / "docs" / "api.md"


@asynccontextmanager
async def client_of(serve: Serve, services: Services) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        serve(services) as address,
        httpx.AsyncClient(base_url=f"http://{address}", trust_env=False, timeout=10) as api,
    ):
        yield api


# -- names of requests ------------------------------------------------------------------------------------------------


async def test_request_keeps_its_id_or_gets_one_and_problems_tell_it(api: httpx.AsyncClient) -> None:
    named = await api.get(f"{RULES}/none", headers={"X-Request-Id": "desk-7_a.b"})
    assert (named.headers["x-request-id"], named.json()["request_id"]) == ("desk-7_a.b", "desk-7_a.b")
    for path in ("/", "/health", RULES, "/none"):
        first, second = [(await api.get(path)).headers["x-request-id"] for _ in range(2)]
        assert re.fullmatch(r"[0-9a-f]{32}", first)
        assert first != second


@pytest.mark.parametrize("given", ["short", "x" * 65, "has spaces", "new\tline", "quo'te-and-more", "é" * 8, ""])
async def test_request_id_that_is_none_is_replaced(api: httpx.AsyncClient, given: str) -> None:
    answer = await api.get("/health", headers=[(b"X-Request-Id", given.encode("latin-1"))])
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])


async def test_request_id_stands_in_the_lines_that_are_logged_for_it(
    services: Services, serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken(*_: Any) -> Any:
        raise ZeroDivisionError("secret of ours")

    monkeypatch.setattr(SqlStore, "rules", broken)
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    try:
        configure_logging(json=True)
        async with client_of(serve, services) as api:
            answers = await asyncio.gather(
                *(api.get(RULES, headers={"X-Request-Id": f"request-{n}"}) for n in range(3))
            )
    finally:
        root.handlers, root.level = handlers, level
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if "failed" in line]
    assert sorted(line["request_id"] for line in lines) == [f"request-{n}" for n in range(3)]
    assert [answer.json()["request_id"] for answer in answers] == [f"request-{n}" for n in range(3)]
    assert {answer.json()["type"] for answer in answers} == {"urn:tapewatch:problem:internal"}
    assert "secret" not in answers[0].text


async def test_every_kind_of_problem_is_documented_and_told(api: httpx.AsyncClient) -> None:
    documented = re.findall(r"^\| `([a-z-]+)` \| (\d{3}) \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert {int(status): kind for kind, status in documented} == KINDS
    for answer, kind in (
        (await api.get("/api/v1/none"), "not-found"),
        (await api.put(RULES), "method-not-allowed"),
        (await api.get(f"{RULES}?limit=0"), "invalid"),
        (await api.post(RULES, content=b"{}"), "media-type"),
        (await api.post(RULES, json={}, headers={"Origin": "null"}), "forbidden"),
    ):
        assert answer.json()["type"] == f"urn:tapewatch:problem:{kind}"


# -- other origins ----------------------------------------------------------------------------------------------------

DESK = "https://desk.example.com"
STRANGERS = (
    *("null", "https://evil-desk.example.com", "https://desk.example.com.evil.example", "http://desk.example.com"),
    *("https://desk.example.com:8443", "https://desk.example.com/", "https://DESK.example.com", "", "*"),
)


async def test_no_origin_is_told_anything_by_default(api: httpx.AsyncClient) -> None:
    for origin in (DESK, *STRANGERS):
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        for answer in (await api.get(RULES, headers=headers), await api.options(RULES, headers=headers)):
            assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_listed_origin_reads_and_writes_and_no_other_does(
    services: Services, serve: Serve, draft: dict[str, Any]
) -> None:
    async with client_of(serve, replace(services, foreign_origins=frozenset({DESK}))) as api:
        asked = {"Origin": DESK, "Access-Control-Request-Method": "PUT"}
        preflight = await api.options(f"{RULES}/x", headers=asked | {"Access-Control-Request-Headers": "authorization"})
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == DESK
        assert preflight.headers["access-control-allow-methods"] == "GET, POST, PUT, DELETE"
        assert "Authorization" in preflight.headers["access-control-allow-headers"]
        answers = [
            preflight,
            await api.get(RULES, headers={"Origin": DESK}),
            await api.post(RULES, json=draft, headers={"Origin": DESK}),
            await api.get(f"{RULES}/none", headers={"Origin": DESK}),
        ]
        assert [answer.status_code for answer in answers[1:]] == [200, 201, 404]
        for answer in answers:
            assert answer.headers["access-control-allow-origin"] == DESK
            assert "access-control-allow-credentials" not in answer.headers
            assert "Origin" in answer.headers["vary"]
        for origin in STRANGERS:
            headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            refused = [await api.get(RULES, headers=headers), await api.options(RULES, headers=headers)]
            refused.append(await api.post(RULES, json=draft, headers={"Origin": origin}))
            assert refused[2].status_code == 403
            for answer in refused:
                assert "access-control-allow-origin" not in answer.headers
        page = await api.get("/health", headers={"Origin": DESK})
        assert "access-control-allow-origin" not in page.headers
        assert (await api.get(RULES)).json()["total"] == 1


# -- limits -----------------------------------------------------------------------------------------------------------


async def test_user_is_limited_and_told_when_to_come_again(services: Services, serve: Serve) -> None:
    limits = RateLimits(MemoryStorage(wrap_exceptions=True), user=3, address=100)
    async with client_of(serve, replace(services, limits=limits)) as api:
        answers = [await api.get(RULES) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert {answer.headers["ratelimit-policy"] for answer in answers} == {'"user";q=3;w=60, "address";q=100;w=60'}
        shape = re.compile(r'"user";r=(\d+);t=\d+, "address";r=(\d+);t=\d+')
        told = [shape.fullmatch(answer.headers["ratelimit"]) for answer in answers]
        assert [found and found[1] for found in told] == ["2", "1", "0", "0"]
        assert [found and found[2] for found in told] == ["99", "98", "97", "96"]
        refused = answers[3]
        assert refused.json()["type"] == "urn:tapewatch:problem:too-many-requests"
        assert refused.json()["detail"] == "more than 3 requests a minute by one user"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        for path in ("/api/v1/health", "/api/v1/ready", "/health", "/ready", "/metrics", "/"):
            answer = await api.get(path)
            assert answer.status_code == 200
            assert "ratelimit" not in answer.headers
        # The address was counted for what the user was refused, too; what was refused changes nothing.
        assert (await api.post(RULES, json={"name": "x"})).status_code == 429


async def test_address_is_limited_before_anything_is_read(services: Services, serve: Serve) -> None:
    limits = RateLimits(MemoryStorage(wrap_exceptions=True), user=100, address=2)
    async with client_of(serve, replace(services, limits=limits)) as api:
        forged = [{"X-Forwarded-For": f"203.0.113.{n}", "Forwarded": f"for=203.0.113.{n}"} for n in range(4)]
        answers = [await api.get("/api/v1/none", headers=headers) for headers in forged]
        assert [answer.status_code for answer in answers] == [404, 404, 429, 429]
        assert answers[3].headers["ratelimit"].startswith('"address";r=0;')


@asynccontextmanager
async def behind_proxy(services: Services, trusted: str) -> AsyncIterator[httpx.AsyncClient]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        config = server_config(create_app(services), host="127.0.0.1", port=port, forwarded_allow_ips=trusted)
        config.load()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        await server.startup(sockets=[listening])
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as api:
                yield api
        finally:
            server.should_exit = True
            await server.shutdown()


async def test_forwarded_address_counts_where_a_trusted_proxy_says_it(services: Services) -> None:
    async def statuses(trusted: str, forwarded: list[str]) -> list[int]:
        limits = RateLimits(MemoryStorage(wrap_exceptions=True), user=100, address=1)
        async with behind_proxy(replace(services, limits=limits), trusted) as api:
            return [(await api.get(RULES, headers={"X-Forwarded-For": value})).status_code for value in forwarded]

    two = ["203.0.113.1", "203.0.113.2"]
    assert await statuses("127.0.0.0/8", two) == [200, 200]
    assert await statuses("10.0.0.0/8", two) == [200, 429]
    # What the client wrote itself stands before what the proxy added.
    assert await statuses("127.0.0.0/8", [f"{forged}, 203.0.113.9" for forged in two]) == [200, 429]
    assert await statuses("127.0.0.0/8,198.51.100.7", [f"{two[0]}, 198.51.100.7", two[0]]) == [200, 429]


def test_address_of_one_customer_is_one() -> None:
    assert address_of("203.0.113.1") == "203.0.113.1"
    assert address_of("2001:db8::1") == address_of("2001:db8::ffff:2") == "2001:db8::/64"
    assert address_of("2001:db8:0:1::1") != address_of("2001:db8::1")
    assert address_of("::ffff:203.0.113.1") == "203.0.113.1"
    assert address_of("fe80::1%eth0") == "fe80::/64"
    assert address_of("") == address_of("a\nb") == "unknown"


async def test_limits_that_cannot_be_asked_hold_nobody_up(
    services: Services, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any, **__: Any) -> bool:
        raise StorageError(ConnectionError("away"))

    storage: Storage = MemoryStorage(wrap_exceptions=True)
    monkeypatch.setattr(storage, "acquire_entry", away)
    async with client_of(serve, replace(services, limits=RateLimits(storage, user=1, address=1))) as api:
        answers = [await api.get(RULES) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert "ratelimit" not in answers[0].headers


async def test_without_limits_nothing_is_counted_or_told(api: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(api.get(RULES) for _ in range(150)))
    assert {answer.status_code for answer in answers} == {200}
    assert "ratelimit-policy" not in answers[0].headers


def test_what_the_page_reads_in_a_minute_fits() -> None:
    """One minute of the page with everything open, by its own intervals, and the burst of its start."""
    sources = [
        path.read_text(encoding="utf-8")
        for path in sorted((DOCS.parents[1] / "web" / "src").rglob("*"))
        if path.suffix in {".ts", ".svelte"}
    ]

    def every_ms(name: str) -> list[int]:
        return [int(ms.replace("_", "")) for text in sources for ms in re.findall(rf"const {name} = ([\d_]+)", text)]

    (status_ms,), (look_ms,), (scores_ms,) = map(every_ms, ("STATUS_EVERY_MS", "LOOK_EVERY_MS", "SCORES_EVERY_MS"))
    views_ms = sorted(every_ms("REFRESH_MS"))
    # Two views that refresh themselves can be open, a symbol and a rule. The page's start reads ten documents.
    assert len(views_ms) == 3
    polls = sum(60_000 / ms for ms in (status_ms, look_ms, scores_ms, *views_ms[:2]))
    assert polls + 10 <= USER_PER_MINUTE


# -- creating once ----------------------------------------------------------------------------------------------------

TOPLISTS, CHANNELS, SUBSCRIPTIONS = (f"/api/v1/{name}" for name in ("toplists/user", "channels", "subscriptions"))


def _hook(*, secret: str = "a secret of 24 letters and some", path: str = "/in") -> dict[str, Any]:  # noqa: S107  # of nobody
    """An address in place of a name, so that nobody is asked for one."""
    url = f"https://198.41.0.4{path}"
    return {"name": "Once", "settings": {"kind": "webhook", "url": url, "secret": secret}}


@pytest.mark.parametrize(
    ("path", "body", "changed"),
    [
        (RULES, {"name": "Once", "when": "price > 1"}, {"name": "Once", "when": "price > 2"}),
        ("/api/v1/watchlists", {"name": "Once", "symbols": ["A"]}, {"name": "Once", "symbols": ["B"]}),
        (TOPLISTS, {"name": "Once", "metric": "rsi_14_1m"}, {"name": "Once", "metric": "rsi_14_5m"}),
        (CHANNELS, _hook(), _hook(secret="another secret of 24 letters")),  # noqa: S106  # of nobody
        (CHANNELS, _hook(), _hook(path="/elsewhere")),
        (SUBSCRIPTIONS, {"name": "Once", "what": {"all": True}}, {"name": "Once", "what": {"symbols": ["A"]}}),
    ],
    ids=["rule", "watchlist", "toplist", "secret of a channel", "channel", "subscription"],
)
async def test_same_key_and_body_give_the_same_answer_and_another_body_is_409(
    api: httpx.AsyncClient, path: str, body: dict[str, Any], changed: dict[str, Any]
) -> None:
    headers = {"Idempotency-Key": "b7e0c5a4-1"}
    first = await api.post(path, json=body, headers=headers)
    again = await api.post(
        path, content=json.dumps(body, indent=4), headers=headers | {"Content-Type": "application/json"}
    )
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.content == first.content
    for name in ("location", "etag", "content-type", "content-length"):
        assert again.headers[name] == first.headers[name]
    assert (first.headers.get("idempotency-replayed"), again.headers["idempotency-replayed"]) == (None, "true")
    assert first.headers["x-request-id"] != again.headers["x-request-id"]
    other = await api.post(path, json=changed, headers=headers)
    assert (other.status_code, other.json()["type"]) == (409, "urn:tapewatch:problem:conflict")
    assert (await api.get(path)).json()["total"] == 1
    assert (await api.post(path, json=body)).json()["id"] != first.json()["id"]
    assert (await api.post(path, json=body, headers={"Idempotency-Key": "b7e0c5a4-2"})).status_code == 201


async def test_openapi_document_names_the_operations_that_create_once(api: httpx.AsyncClient) -> None:
    document = (await api.get("/api/v1/openapi.json")).json()
    taking = {
        path
        for path, operations in document["paths"].items()
        for operation in operations.values()
        if "Idempotency-Key" in {parameter["name"] for parameter in operation.get("parameters", ())}
    }
    assert taking == {RULES, "/api/v1/watchlists", TOPLISTS, CHANNELS, SUBSCRIPTIONS}


async def test_key_of_one_operation_is_not_that_of_another(api: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "one-key"}
    assert (await api.post(RULES, json={"name": "x", "when": "price > 1"}, headers=headers)).status_code == 201
    answer = await api.post("/api/v1/watchlists", json={"name": "x", "symbols": []}, headers=headers)
    assert answer.status_code == 409


async def test_of_many_at_the_same_instant_over_two_servers_one_creates(
    services: Services, serve: Serve, empty_database: Path
) -> None:
    async with client_of(serve, services) as one, client_of(serve, services) as two:
        body, headers = {"name": "Once", "when": "price > 1"}, {"Idempotency-Key": "same-instant"}
        answers = await asyncio.gather(*(api.post(RULES, json=body, headers=headers) for api in [one, two] * 10))
        assert {answer.status_code for answer in answers} == {201}
        assert len({answer.content for answer in answers}) == 1
        assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
        assert (await one.get(RULES)).json()["total"] == 1


async def test_answer_that_is_an_error_is_not_kept(
    api: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers, body = {"Idempotency-Key": "error-first"}, {"name": "Once", "when": "price > 1"}
    assert (await api.post(RULES, json={"name": "Once"}, headers=headers)).status_code == 422

    async def away(*_: Any, **__: Any) -> Any:
        raise Unavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(SqlStore, "save_rule", away)
        assert (await api.post(RULES, json=body, headers=headers)).status_code == 503
    created = await api.post(RULES, json=body, headers=headers)
    assert (created.status_code, "idempotency-replayed" in created.headers) == (201, False)


async def test_key_holds_for_a_day(api: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    headers, body = {"Idempotency-Key": "for-a-day"}, {"name": "Once", "when": "price > 1"}
    first = await api.post(RULES, json=body, headers=headers)
    begun_ns = services.clock.now_ns()
    monkeypatch.setattr(type(services.clock), "now_ns", lambda _: begun_ns + (ONCE_S - 5) * 1_000_000_000)
    assert (await api.post(RULES, json=body, headers=headers)).content == first.content
    monkeypatch.setattr(type(services.clock), "now_ns", lambda _: begun_ns + ONCE_S * 1_000_000_000)
    assert (await api.post(RULES, json=body, headers=headers)).json()["id"] != first.json()["id"]


@pytest.mark.parametrize("key", ["", "k" * 65, "a b", "a/b", "ключ".encode(), 'a"b'])
async def test_key_that_is_none_is_422(api: httpx.AsyncClient, key: Any) -> None:
    answer = await api.post(RULES, json={"name": "x", "when": "price > 1"}, headers={"Idempotency-Key": key})
    assert answer.status_code == 422
    assert answer.json()["where"].lower() == "header.idempotency-key"
    assert (await api.get(RULES)).json()["total"] == 0
