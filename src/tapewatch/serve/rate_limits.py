"""How often one user and one address may ask the API, by moving windows of a minute, and the headers that say so.

Where the limits are kept is the caller's: in this process, or in Redis for many. Limits that cannot be asked hold
nobody up. Probes and the page's files are free. An address is that of the connection, or what a trusted proxy says (the
server's business); of IPv6 it is the /64, which is what one customer gets.
"""

import ipaddress
import logging
import math
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Literal, NamedTuple

from fastapi import Request
from limits import RateLimitItemPerMinute
from limits.aio.storage import Storage
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import StorageError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tapewatch.accounts.roles import Principal
from tapewatch.serve.problems import problem
from tapewatch.telemetry import ERRORS_TOTAL

USER_PER_MINUTE, ADDRESS_PER_MINUTE = 100, 1_000
WINDOW_S = 60
_LIMITED = "/api/"
_FREE = frozenset({"/api/v1/health", "/api/v1/ready"})
_STATE = "rate_limits"

log = logging.getLogger(__name__)
Whose = Literal["user", "address"]


class Standing(NamedTuple):
    """What is left to somebody."""

    whose: Whose
    quota: int
    left: int
    more_in_s: int
    """Until the oldest request of the window no longer counts."""
    passed: bool


class RateLimits:
    """`storage` is made to wrap its errors in `StorageError`. `applies` says whether anybody is counted now."""

    def __init__(
        self,
        storage: Storage,
        *,
        user: int = USER_PER_MINUTE,
        address: int = ADDRESS_PER_MINUTE,
        applies: Callable[[], bool] = lambda: True,
    ) -> None:
        self.applies = applies
        self._windows = MovingWindowRateLimiter(storage)
        self._items = {
            "user": RateLimitItemPerMinute(user, namespace="tapewatch"),
            "address": RateLimitItemPerMinute(address, namespace="tapewatch"),
        }

    @property
    def policy(self) -> str:
        return ", ".join(f'"{whose}";q={item.amount};w={WINDOW_S}' for whose, item in self._items.items())

    async def count(self, whose: Whose, name: str) -> Standing | None:
        """Count one request; None if nobody can say how many there were."""
        item = self._items[whose]
        try:
            passed = await self._windows.hit(item, whose, name)
            reset_s, left = await self._windows.get_window_stats(item, whose, name)
        except StorageError as error:
            ERRORS_TOTAL.labels(where="rate_limits").inc()
            log.debug("not limited: %s", error)
            return None
        more_in_s = min(max(math.ceil(reset_s - time.time()), 1), WINDOW_S)
        return Standing(whose, item.amount, max(int(left), 0), more_in_s, passed)


class Limited:
    """ASGI middleware: counts addresses, before anything is read or decided, and tells clients how they stand."""

    def __init__(self, app: ASGIApp, *, limits: RateLimits) -> None:
        self.app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_free = scope["type"] != "http" or not scope["path"].startswith(_LIMITED) or scope["path"] in _FREE
        if is_free or not self._limits.applies():
            await self.app(scope, receive, send)
            return
        standings: list[Standing] = []
        scope.setdefault("state", {})[_STATE] = standings

        async def send_told(message: Message) -> None:
            if message["type"] == "http.response.start" and standings:
                headers = MutableHeaders(scope=message)
                headers["RateLimit-Policy"] = self._limits.policy
                headers["RateLimit"] = _told(standings)
            await send(message)

        client = scope.get("client")
        standing = await self._limits.count("address", address_of(client[0] if client else ""))
        if standing is not None:
            standings.append(standing)
            if not standing.passed:
                refusal = problem(HTTPStatus.TOO_MANY_REQUESTS, _refused(standing), headers=_later(standing))
                await refusal(scope, receive, send_told)
                return
        await self.app(scope, receive, send_told)


async def within_limits(request: Request) -> None:
    """A dependency of every operation but the probes: counts the user, once it is known who asks."""
    limits: RateLimits | None = request.app.state.limits
    standings: list[Standing] | None = getattr(request.state, _STATE, None)
    if limits is None or standings is None:
        return
    principal: Principal | None = getattr(request.state, "principal", None)
    if principal is None:  # an operation that is open to all, such as signing in
        return
    standing = await limits.count("user", principal.user_id)
    if standing is None:
        return
    standings.insert(0, standing)
    if not standing.passed:
        raise HTTPException(HTTPStatus.TOO_MANY_REQUESTS, _refused(standing), headers=_later(standing))


def address_of(host: str) -> str:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:  # a socket of the file system, or a proxy that says something else
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def _told(standings: Sequence[Standing]) -> str:
    return ", ".join(f'"{standing.whose}";r={standing.left};t={standing.more_in_s}' for standing in standings)


def _refused(standing: Standing) -> str:
    return f"more than {standing.quota} requests a minute by one {standing.whose}"


def _later(standing: Standing) -> dict[str, str]:
    return {"Retry-After": str(standing.more_in_s)}
