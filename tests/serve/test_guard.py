"""Headers, origins, methods, probes, the page, and what a bug looks like from outside."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tapewatch import __version__
from tapewatch.serve.guard import Guard
from tapewatch.serve.services import Services

pytestmark = pytest.mark.anyio
Serve = Callable[[Services], Any]


@pytest.mark.parametrize("path", ["/", "/health", "/metrics", "/ws", "/api/v1/rules", "/api/v1/none", "/none"])
async def test_every_answer_carries_the_headers(api: httpx.AsyncClient, path: str) -> None:
    headers = (await api.get(path)).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-frame-options"] == "DENY"
    assert headers["cross-origin-opener-policy"] == headers["cross-origin-resource-policy"] == "same-origin"
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy == {
        "default-src": "'self'",
        "img-src": "'self' data:",
        "style-src": "'self' 'sha256-3pRED1tOXas1FXFoPb9TGCjmYe9XQsmO9OV23khV2nY='",
        "object-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'self'",
        "frame-ancestors": "'none'",
    }
    assert "access-control-allow-origin" not in headers
    assert "server" not in headers
    assert (headers.get("cache-control") == "no-store") == (path not in {"/", "/ws", "/none"})


@pytest.mark.parametrize(
    "origin",
    [
        *("http://evil.example", "null", "https://{host}.evil.example", "http://localhost:1", "http://{host}0"),
        *("file://", "http://[", "chrome-extension://abc", "http://{host}@evil.example", ""),
    ],
)
async def test_foreign_origin_may_neither_change_state_nor_open_a_socket(
    address: str, api: httpx.AsyncClient, draft: dict[str, Any], origin: str
) -> None:
    origin = origin.format(host=address)
    answer = await api.post("/api/v1/rules", json=draft, headers={"Origin": origin})
    assert answer.status_code == 403
    assert answer.headers["content-type"] == "application/problem+json"
    assert (await api.get("/api/v1/rules", headers={"Origin": origin})).json()["total"] == 0
    with pytest.raises(InvalidStatus) as refused:
        await connect(f"ws://{address}/ws", additional_headers={"Origin": origin}, proxy=None)
    assert refused.value.response.status_code == 403


async def test_own_and_listed_origins_are_welcome(services: Services, serve: Serve, draft: dict[str, Any]) -> None:
    async with (
        serve(replace(services, origins=frozenset({"http://localhost:5173"}))) as address,
        httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as api,
    ):
        for origin in (f"http://{address}", "http://localhost:5173"):
            assert (await api.post("/api/v1/rules", json=draft, headers={"Origin": origin})).status_code == 201
            async with connect(f"ws://{address}/ws", additional_headers={"Origin": origin}, proxy=None) as client:
                await client.recv()


@pytest.mark.parametrize(
    ("origin", "host", "own"),
    [
        ("http://a.example", "a.example", True),
        ("http://a.example", "a.example:80", True),
        ("https://A.example", "a.example", True),
        ("https://a.example", "a.example:80", False),
        ("http://a.example:8000", "a.example", False),
        ("http://[::1]:8000", "[::1]:8000", True),
        ("http://", "", False),
        ("http://a.example:99999", "a.example", False),
    ],
)
def test_origin_is_own_if_host_and_port_are(*, origin: str, host: str, own: bool) -> None:
    async def app(*_: Any) -> None: ...

    assert Guard(app, origins=frozenset(), hosts=frozenset())._is_own(origin, host) is own


async def test_foreign_host_is_misdirected_when_hosts_are_listed(services: Services, serve: Serve) -> None:
    async with (
        serve(replace(services, hosts=frozenset({"127.0.0.1", "::1"}))) as address,
        httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as api,
    ):
        assert (await api.get("/health")).status_code == 200
        assert (await api.get("/health", headers={"Host": "[::1]:8000"})).status_code == 200
        rebound = {"Host": "evil.example", "Origin": "http://evil.example"}
        assert (await api.get("/api/v1/rules", headers=rebound)).status_code == 421
        with pytest.raises(InvalidStatus):
            await connect(f"ws://{address}/ws", additional_headers={"Host": "evil.example"}, proxy=None)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PATCH", "/api/v1/rules", "GET, HEAD, POST"),
        ("POST", "/api/v1/rules/mine", "DELETE, GET, HEAD, PUT"),
        ("GET", "/api/v1/rules/validate", "POST"),
        ("GET", "/api/v1/rules/validate/x", None),
        ("DELETE", "/api/v1/alerts", "GET, HEAD"),
        ("POST", "/health", "GET, HEAD"),
        ("OPTIONS", "/api/v1/rules", "GET, HEAD, POST"),
        ("PROPFIND", "/api/v1/rules", "GET, HEAD, POST"),
    ],
)
async def test_method_wrong_is_405_with_allow(
    api: httpx.AsyncClient, method: str, path: str, allow: str | None
) -> None:
    answer = await api.request(method, path)
    assert answer.status_code == (404 if allow is None else 405)
    assert answer.headers.get("allow") == allow
    assert answer.json()["status"] == answer.status_code


async def test_head_is_get_without_a_body(api: httpx.AsyncClient) -> None:
    get, head = await api.get("/api/v1/metrics"), await api.head("/api/v1/metrics")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(get.content))


async def test_not_ready_is_503_with_its_phase(services: Services, serve: Serve) -> None:
    async with (
        serve(replace(services, ready=lambda: (False, "rehydrating"))) as address,
        httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as api,
    ):
        for path in ("/ready", "/api/v1/ready"):
            answer = await api.get(path)
            assert (answer.status_code, answer.json()) == (503, {"ready": False, "phase": "rehydrating"})
        for path in ("/health", "/api/v1/health"):
            assert (await api.get(path)).status_code == 200


async def test_bug_is_500_without_its_story(services: Services, serve: Serve) -> None:
    def broken() -> dict[str, Any]:
        raise RuntimeError("the secret")

    async with (
        serve(replace(services, status=broken)) as address,
        httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as api,
    ):
        answer = await api.get("/api/v1/system/status")
        assert answer.status_code == 500
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "secret" not in answer.text
        assert (await api.get("/health")).status_code == 200


async def test_store_away_is_503_with_retry_after(services: Services, api: httpx.AsyncClient) -> None:
    await services.hot.close()
    answer = await api.get("/api/v1/toplists/system/gainers_5m")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"


async def test_page_missing_says_how_to_build_it(api: httpx.AsyncClient) -> None:
    answer = await api.get("/")
    assert answer.status_code == 200
    assert "make web" in answer.text


async def test_page_built_is_served_and_shadows_nothing(services: Services, serve: Serve) -> None:
    assets = services.ui / "assets"
    assets.mkdir(parents=True)
    (services.ui / "index.html").write_text("<!doctype html><title>tapewatch</title>")
    (services.ui / "favicon.svg").write_text("<svg/>")
    (assets / "index-abc.js").write_text("export {}")
    (services.ui.parent / "secret").write_text("secret")
    async with (
        serve(services) as address,
        httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as api,
    ):
        index = await api.get("/")
        assert "<title>tapewatch" in index.text
        assert index.headers["cache-control"] == "no-cache"
        assert (await api.get("/assets/index-abc.js")).headers["content-type"].startswith("text/javascript")
        assert (await api.get("/favicon.svg")).headers["content-type"] == "image/svg+xml"
        for path in ("/assets/none.js", "/assets", "/assets/", "/none", "/index.html"):
            assert (await api.get(path)).status_code in {404, 405}
        assert (await api.delete("/api/v1/alerts")).status_code == 405
        assert (await api.get("/api/v1/none")).status_code == 404


WAYS_OUT = {
    "dots in code": "/assets/..%2f..%2fsecret",
    "dots as they are": "/assets/../../secret",
    "coded twice": "/assets/%252e%252e%252fsecret",
    "backslashes": "/assets/..%5c..%5csecret",
    "an absolute path": "/assets/%2fetc%2fpasswd",
    "an absolute path behind two slashes": "/assets//etc/passwd",
    "NUL behind a good name": "/assets/index.js%00.html",
    "a link that leads out": "/assets/link",
    "a folder that is a link": "/assets/outside/secret",
    "half a character": "/assets/%ed%a0%80",
    "a name of ten thousand letters": "/assets/" + "a" * 10_000,
    "dots at the root": "/..%2fsecret",
    "a file beside the page": "/.env",
    "another host behind two slashes": "//evil.example/%2e%2e",
}


@pytest.mark.parametrize("path", WAYS_OUT.values(), ids=WAYS_OUT)
async def test_no_path_leads_out_of_the_page_s_folder(services: Services, serve: Serve, path: str) -> None:
    assets = services.ui / "assets"
    assets.mkdir(parents=True)
    (services.ui / "index.html").write_text("page")
    (assets / "index.js").write_text("page")
    secret = services.ui.parent / "secret"
    secret.write_text("the secret of root:x:0:0")
    (assets / "link").symlink_to(secret)
    (assets / "outside").symlink_to(services.ui.parent)
    async with serve(services) as address:
        host, _, port = address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
    assert answer.split(b" ", 2)[1] in {b"404", b"400", b"422"}
    for word in (b"root:x", b"evil.example", b"Traceback", b"Location"):
        assert word not in answer


@pytest.mark.parametrize(
    "path", ["/docs", "/redoc", "/openapi.json", "/debug", "/debug/pprof", "/admin", "/.git/config"]
)
async def test_what_others_leave_open_is_not_there(api: httpx.AsyncClient, path: str) -> None:
    assert (await api.get(path)).status_code == 404


async def test_metrics_tell_no_versions_and_can_have_a_port_of_their_own(
    services: Services, api: httpx.AsyncClient, serve: Serve
) -> None:
    told = (await api.get("/metrics")).text
    assert "http_requests_total" in told
    assert "_info" not in told
    assert f'"{__version__}' not in told
    async with (
        serve(replace(services, exports_metrics=False)) as address,
        httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as other,
    ):
        assert (await other.get("/metrics")).status_code == 404
        assert (await other.get("/health")).status_code == 200


async def test_made_up_paths_methods_and_symbols_make_no_labels(api: httpx.AsyncClient) -> None:
    for n in range(50):
        await api.get(f"/made/up/{n}")
        await api.get(f"/api/v1/symbols/MADEUP{n}")
        await api.request(f"MADEUP{n}", "/health")
        await api.get(f"/api/v1/rules/madeup{n}", headers={"Origin": f"http://madeup{n}.example"})
    assert "madeup" not in (await api.get("/metrics")).text.lower()


@pytest.mark.parametrize(
    "name", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "X-Original-URL", "X-Rewrite-URL"]
)
async def test_header_that_means_another_request_means_nothing(
    api: httpx.AsyncClient, draft: dict[str, Any], name: str
) -> None:
    await api.post("/api/v1/rules", json=draft | {"id": "mine"})
    for value in ("DELETE", "/api/v1/users"):
        answer = await api.get("/api/v1/rules/mine", headers={name: value})
        assert (answer.status_code, answer.json()["id"]) == (200, "mine")
        assert (await api.get(f"/api/v1/rules/mine?_method={value}")).status_code == 422
    assert (await api.get("/api/v1/rules/mine")).status_code == 200
