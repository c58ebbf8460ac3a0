"""Headers, origins, methods, probes, the page, and what a bug looks like from outside."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tapewatch.serve.guard import Guard
from tapewatch.serve.services import Services

pytestmark = pytest.mark.anyio
Serve = Callable[[Services], Any]


@pytest.mark.parametrize("path", ["/", "/health", "/metrics", "/ws", "/api/v1/rules", "/api/v1/none", "/none"])
async def test_every_answer_carries_the_headers(api: httpx.AsyncClient, path: str) -> None:
    headers = (await api.get(path)).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
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
        for path in ("/assets/..%2f..%2fsecret", "/..%2fsecret", "/assets/none.js", "/assets", "/none"):
            answer = await api.get(path)
            assert answer.status_code in {404, 405}
            assert "secret" not in answer.text
        assert (await api.delete("/api/v1/alerts")).status_code == 405
        assert (await api.get("/api/v1/none")).status_code == 404
