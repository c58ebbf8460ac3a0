"""One Redis server as the adapters see it: its address, its connections, and what its complaints mean.

Owns the translation of the driver's exceptions. No text that leaves here holds the password or a value; the driver's
own exception is not chained, because it carries the connection.

Calls do not wait without end: a connection is made within `connect_timeout_s`, a reply comes within `timeout_s`. The
driver retries nothing, because only the adapter knows what may be sent twice.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AskError, AuthenticationError, ConnectionError, NoPermissionError, RedisError  # noqa: A004
from redis.exceptions import TimeoutError as NoReply

from tapewatch.errors import ConfigError, TapewatchError, Unavailable

OLDEST = (7, 0)
CONNECT_TIMEOUT_S = 1.0
TIMEOUT_S = 2.0
_PASSWORD = ("NOAUTH", "WRONGPASS", "Authentication required", "invalid username-password", "AUTH <password> called")
_SHAPE = "a Redis URL reads redis://user:password@host:6379/0, or rediss:// with TLS"

log = logging.getLogger(__name__)


class RedisServer:
    def __init__(self, url: str, *, what: str, connect_timeout_s: float, timeout_s: float) -> None:
        """`what` names the adapter for people: "the bus"."""
        parts = _parsed(url)
        self.name = f"{parts.scheme}://{parts.hostname}:{parts.port or 6379}{parts.path.rstrip('/') or '/0'}"
        self.timeout_s = timeout_s
        self._what = what
        self._secrets = {secret for secret in (parts.password, unquote(parts.password or "")) if secret}
        self._checked = False
        self._closed = False
        self._client: Redis = Redis.from_url(
            url,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=connect_timeout_s,
            socket_timeout=timeout_s,
            socket_keepalive=True,
            **({"ssl_check_hostname": True} if parts.scheme == "rediss" else {}),
        )

    @property
    def closed(self) -> bool:
        return self._closed

    @asynccontextmanager
    async def speaking(self) -> AsyncIterator[Any]:
        """The driver's client, whose own types leave open what its settings decide. What it raises inside comes out as
        `Unavailable` or `ConfigError`.
        """
        if self._closed:
            raise Unavailable(f"{self._what} is closed")
        try:
            if not self._checked:
                await self._check()
            yield self._client
        except (RedisError, OSError) as error:
            raise self.translated(error) from None

    def translated(self, error: Exception) -> TapewatchError:
        if self._closed:
            return Unavailable(f"{self._what} is closed")
        # A pipeline puts the command, and so the value, in front of what the server said.
        said = str(error).rpartition("caused error: ")[2]
        for secret in self._secrets:
            said = said.replace(secret, "***")
        if isinstance(error, AuthenticationError) or any(word in said for word in _PASSWORD):
            return ConfigError(f"{self.name} refuses the user or the password of its URL")
        if isinstance(error, NoPermissionError):
            return ConfigError(f"{self.name} does not let this user do what {self._what} needs: {said}")
        if isinstance(error, AskError) or "CROSSSLOT" in said:
            return ConfigError(f"{self.name} is a node of a Redis Cluster; {self._what} needs a single server")
        if "WRONGTYPE" in said:
            return ConfigError(f"{self.name} holds keys of another program under names that {self._what} uses")
        if "CERTIFICATE_VERIFY_FAILED" in said:
            return ConfigError(f"{self.name} shows a certificate that is not trusted here")
        if isinstance(error, NoReply):
            return Unavailable(f"{self.name} does not answer in time")
        if isinstance(error, (ConnectionError, OSError)):
            return Unavailable(f"{self.name} is away: {said}")
        return Unavailable(f"{self.name} refuses: {said}")

    async def close(self) -> None:
        self._closed = True
        await self._client.aclose()
        await self._client.connection_pool.disconnect(inuse_connections=True)

    async def _check(self) -> None:
        server = await self._client.info("server")
        version = str(server["redis_version"])
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
            wanted = ".".join(map(str, OLDEST))
            raise ConfigError(f"{self.name} runs version {version}; {self._what} needs {wanted} or newer")
        memory = await self._client.info("memory")
        policy = memory.get("maxmemory_policy", "noeviction")
        if memory.get("maxmemory") and policy != "noeviction" and not self._checked:
            log.warning(
                "%s evicts when it is full (%s): claims and entries can vanish early; set maxmemory-policy noeviction",
                self.name,
                policy,
            )
        self._checked = True


def _parsed(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        options = parse_qsl(parts.query, strict_parsing=bool(parts.query))
        sound = parts.scheme in {"redis", "rediss"} and bool(parts.hostname) and (parts.port or 6379) > 0
    except ValueError:  # its text may hold the password
        raise ConfigError(_SHAPE) from None
    if not sound or not (parts.path.strip("/").isdecimal() or parts.path in {"", "/"}):
        raise ConfigError(_SHAPE)
    for option, _ in options:
        if not option.startswith("ssl_"):
            raise ConfigError(f"a Redis URL takes options of TLS (ssl_…) only, not {option}")
    return parts
