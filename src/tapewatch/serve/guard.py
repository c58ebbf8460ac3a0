"""The outermost layer of the HTTP application: who may ask, which headers every answer carries, and what is counted.

It looks at headers only. It never reads a body and never decides what a request means.
"""

import logging
from functools import cache, lru_cache
from http import HTTPStatus
from urllib.parse import urlsplit

from prometheus_client import Counter
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tapewatch.serve.problems import problem
from tapewatch.telemetry import ERRORS_TOTAL, HTTP_REQUESTS_TOTAL

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_METHODS = _SAFE | {"POST", "PUT", "PATCH", "DELETE"}
_DEFAULT_PORTS = {"http": 80, "https": 443}
_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    # 'self' holds the WebSocket of the same host, too. The one style let in is that of the chart library's logo.
    b"content-security-policy": (
        b"default-src 'self'; img-src 'self' data:; "
        b"style-src 'self' 'sha256-3pRED1tOXas1FXFoPb9TGCjmYe9XQsmO9OV23khV2nY='; "
        b"object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    b"x-frame-options": b"DENY",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
}
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Idempotency-Key, If-Match, X-Request-Id",
    "Access-Control-Max-Age": "600",
}
_EXPOSED = "ETag, Location, RateLimit, RateLimit-Policy, Retry-After, X-Request-Id"
_NOT_STORED = ("/api/", "/health", "/ready", "/metrics")
"""Unless the answer itself says who may store it."""

log = logging.getLogger(__name__)


class Guard:
    """ASGI middleware. `origins`, `foreign_origins` and `hosts` are those of `Services`."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        origins: frozenset[str],
        hosts: frozenset[str],
        foreign_origins: frozenset[str] = frozenset(),
    ) -> None:
        self.app = app
        self._origins = origins
        self._foreign = foreign_origins
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            refusal = self._refusal(scope, changes=True)
            if refusal is None:
                await self.app(scope, receive, send)
            else:
                await _deny(scope, receive, send, refusal)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope["method"]
        # HEAD is GET without the body, which the server itself leaves out.
        inner = {**scope, "method": "GET"} if method == "HEAD" else scope
        status = 0
        shared_with: str | None = None
        if self._foreign and scope["path"].startswith("/api/"):
            origin = Headers(scope=scope).get("origin")
            shared_with = origin if origin in self._foreign else None

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                headers = [header for header in message["headers"] if header[0] not in _HEADERS]
                if scope["path"].startswith(_NOT_STORED) and not any(key == b"cache-control" for key, _ in headers):
                    headers.append((b"cache-control", b"no-store"))
                message["headers"] = [*headers, *_HEADERS.items()]
                if self._foreign:
                    shared = MutableHeaders(scope=message)
                    shared.add_vary_header("Origin")
                    if shared_with is not None:
                        shared["Access-Control-Allow-Origin"] = shared_with
                        shared["Access-Control-Expose-Headers"] = _EXPOSED
            await send(message)

        refusal = self._refusal(scope, changes=method not in _SAFE, foreign=shared_with)
        if refusal is None and shared_with is not None and _is_preflight(scope):
            refusal = Response(status_code=HTTPStatus.NO_CONTENT, headers=_PREFLIGHT)
        try:
            if refusal is None:
                await self.app(inner, receive, send_guarded)
            else:
                await refusal(scope, receive, send_guarded)
        except Exception:
            # A bug. Its story belongs into our log, not into the answer.
            log.exception("%s %s failed", method, scope["path"])
            ERRORS_TOTAL.labels(where="api").inc()
            if status:
                raise
            await problem(HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed; its log says why")(
                scope, receive, send_guarded
            )
        finally:
            _counter(method if method in _METHODS else "other", _template(inner), status).inc()

    def _refusal(self, scope: Scope, *, changes: bool, foreign: str | None = None) -> Response | None:
        """`foreign`: the origin that may do this although it is not ours."""
        headers = dict(reversed(scope["headers"]))  # of several the first
        if b"content-length" in headers and b"transfer-encoding" in headers:
            # A proxy in front may believe the other one, and then take the body's end for somebody's next request.
            return problem(HTTPStatus.BAD_REQUEST, "a body has one length", headers={"Connection": "close"})
        host = headers.get(b"host", b"").decode("latin-1")
        if self._hosts and _name(host) not in self._hosts:
            return problem(HTTPStatus.MISDIRECTED_REQUEST, "this server does not go by that name")
        origin = headers[b"origin"].decode("latin-1") if b"origin" in headers else None
        if changes and origin is not None and origin != foreign and not self._is_own(origin, host):
            return problem(HTTPStatus.FORBIDDEN, "a page of another origin may not do this")
        return None

    def _is_own(self, origin: str, host: str) -> bool:
        if origin in self._origins:
            return True
        try:
            parts = urlsplit(origin)
            asked = urlsplit(f"//{host}")
            default = _DEFAULT_PORTS[parts.scheme]
            return bool(parts.hostname) and (parts.hostname, parts.port or default) == (
                asked.hostname,
                asked.port or default,
            )
        except (ValueError, KeyError):  # not a URL, or of a scheme that pages do not have ("null" has none)
            return False


def _is_preflight(scope: Scope) -> bool:
    return scope["method"] == "OPTIONS" and "access-control-request-method" in Headers(scope=scope)


@lru_cache(maxsize=256)
def _name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


@cache
def _counter(method: str, path: str, status: int) -> Counter:
    """There are as many as there are routes and statuses; to look one up by its labels takes as long as to count."""
    return HTTP_REQUESTS_TOTAL.labels(method=method, path=path, status=str(status))


def _template(scope: Scope) -> str:
    """The route's path with its parameters' names, so that the number of label values stays bounded."""
    path = getattr(scope.get("route"), "path_format", None)
    return path if isinstance(path, str) else "(no route)"


async def _deny(scope: Scope, receive: Receive, send: Send, refusal: Response) -> None:
    """Answer a WebSocket handshake with an ordinary response, where the server can."""
    await receive()
    if "websocket.http.response" in scope.get("extensions", {}):
        await send(
            {
                "type": "websocket.http.response.start",
                "status": refusal.status_code,
                "headers": refusal.raw_headers,
            }
        )
        await send({"type": "websocket.http.response.body", "body": refusal.body})
    else:
        await send({"type": "websocket.close", "code": 1008, "reason": ""})
