"""Redis as the adapters see it: its connections, which of its servers has a key, and what its complaints mean.

Owns the translation of the driver's exceptions. No text that leaves here holds the password or a value; the driver's
own exception is not chained, because it carries the connection.

Calls do not wait without end: a connection is made within `connect_timeout_s`, a reply comes within `timeout_s`. The
driver retries nothing, because only the adapter knows what may be sent twice.

In a Cluster every call names its key, and a command's keys are of one hash slot. Where a slot is, is asked again after
each complaint. While one is being moved, what needs it is `Unavailable`.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from hiredis import pack_command
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ConnectionError,  # noqa: A004  # the driver's name
    MovedError,
    NoPermissionError,
    RedisError,
)
from redis.exceptions import TimeoutError as NoReply

from tapewatch.adapters.redis_address import parsed
from tapewatch.errors import ConfigError, TapewatchError, Unavailable

OLDEST = (7, 0)
CONNECT_TIMEOUT_S = 1.0
TIMEOUT_S = 2.0
_LONG_COMMAND = 32
"""Arguments from which on a command is packed in C."""
_PASSWORD = ("NOAUTH", "WRONGPASS", "Authentication required", "invalid username-password", "AUTH <password> called")

log = logging.getLogger(__name__)


class RedisServer:
    def __init__(self, url: str, *, what: str, connect_timeout_s: float, timeout_s: float) -> None:
        """`what` names the adapter for people: "the bus"."""
        self._address = parsed(url)
        self.name = self._address.name
        self.timeout_s = timeout_s
        self.doubted: Callable[[], None] = lambda: None
        """Called when a server was away: it may have come back without its newest entries."""
        self._what = what
        self._checked = False
        self._closed = False
        self._patience: dict[str, Any] = {
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            "socket_connect_timeout": connect_timeout_s,
            "socket_timeout": timeout_s,
            "socket_keepalive": True,
        }
        self._sentinel: Any = None
        self._nodes: dict[tuple[str, int], Redis] = {}
        self._slots: list[Redis] = []
        """By hash slot; empty when that has to be asked."""
        self._mapping = asyncio.Lock()
        if self._address.kind == "sentinel":
            make: Any = _Sentinels  # the driver gives it no types
            self._sentinel = make(
                self._address.hosts,
                sentinel_kwargs=self._patience | self._address.sentinel_settings,
                **self._patience | self._address.settings,
            )
            self._nodes[self._address.hosts[0]] = _packing(self._sentinel.master_for(self._address.master))
        else:
            self._node(*self._address.hosts[0])

    @property
    def closed(self) -> bool:
        return self._closed

    def place(self, key: str) -> int:
        """Keys of one place can be named in one command."""
        return key_slot(key.encode()) if self._address.kind == "cluster" else 0

    @asynccontextmanager
    async def speaking(self, key: str = "") -> AsyncIterator[Any]:
        """The driver's client for that key, whose own types leave open what its settings decide. What it raises inside
        comes out as `Unavailable` or `ConfigError`; a cancellation that it swallows comes out all the same.
        """
        if self._closed:
            raise Unavailable(f"{self._what} is closed")
        task = asyncio.current_task()
        before = task.cancelling() if task is not None else 0
        problem: TapewatchError | None = None
        try:
            with _as_complaints():
                yield await self._client(key)
        except (RedisError, OSError) as error:
            problem = self.translated(error)
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError
        if problem is not None:
            raise problem

    @asynccontextmanager
    async def waiting(self, key: str) -> AsyncIterator[Any]:
        """As `speaking`, over one connection that stays the same."""
        async with self.speaking(key) as client:
            one = client.client()
            try:
                yield await one.initialize()
            finally:
                await one.aclose()

    async def each(self, script: str, calls: Sequence[Sequence[Any]], *, problems: bool = False) -> list[Any]:
        """What the script says to each (key, arguments…), as `all_of`."""
        commands = [("EVAL", script, 1, *call) for call in calls]
        return await self.all_of(commands, [call[0] for call in calls], problems=problems)

    async def all_of(
        self, commands: Sequence[Sequence[Any]], keys: Sequence[str], *, problems: bool = False
    ) -> list[Any]:
        """The replies to commands, each about the key beside it, all asked in one round trip to each server. With
        `problems`, what is wrong with one of them stands in its place instead of being raised.
        """
        replies: list[Any] = [None] * len(commands)
        left = list(range(len(commands)))
        for _ in range(2):
            by_client: dict[Redis, list[int]] = {}
            async with self.speaking():
                for index in left:
                    by_client.setdefault(await self._client(keys[index]), []).append(index)
            asked = [self._ask(client, [commands[index] for index in its]) for client, its in by_client.items()]
            for its, answers in zip(by_client.values(), await asyncio.gather(*asked), strict=True):
                for index, answer in zip(its, answers, strict=True):
                    replies[index] = answer
            left = [index for index in left if isinstance(replies[index], MovedError)]
            if not left or self._address.kind != "cluster":
                break
            self._slots = []
        for index, reply in enumerate(replies):
            if isinstance(reply, Exception):
                replies[index] = self.translated(reply)
                if not problems:
                    raise replies[index]
        return replies

    def translated(self, error: Exception) -> TapewatchError:
        if isinstance(error, (ConnectionError, OSError, NoReply, AskError)) or "CLUSTERDOWN" in str(error):
            self._slots = []
            self.doubted()
        if self._closed:
            return Unavailable(f"{self._what} is closed")
        # A pipeline puts the command, and so the value, in front of what the server said.
        said = str(error).rpartition("caused error: ")[2]
        for secret in self._address.secrets:
            said = said.replace(secret, "***")
        if isinstance(error, AuthenticationError) or any(word in said for word in _PASSWORD):
            return ConfigError(f"{self.name} refuses the user or the password of its URL")
        if isinstance(error, NoPermissionError):
            return ConfigError(f"{self.name} does not let this user do what {self._what} needs: {said}")
        if isinstance(error, AskError) or "CROSSSLOT" in said:
            if self._address.kind == "cluster":
                return Unavailable(f"{self.name} is moving keys")
            return ConfigError(f"{self.name} is a node of a Redis Cluster, whose URL begins with redis+cluster://")
        if "cluster support disabled" in said:
            return ConfigError(f"{self.name} is no Redis Cluster; the URL of a single server begins with redis://")
        if "WRONGTYPE" in said:
            return ConfigError(f"{self.name} holds keys of another program under names that {self._what} uses")
        if "CERTIFICATE_VERIFY_FAILED" in said:
            return ConfigError(f"{self.name} shows a certificate that is not trusted here")
        if isinstance(error, MasterNotFoundError):
            return Unavailable(f"{self.name} has no master that a Sentinel knows of")
        if isinstance(error, NoReply):
            return Unavailable(f"{self.name} does not answer in time")
        if isinstance(error, (ConnectionError, OSError)):
            return Unavailable(f"{self.name} is away: {said}")
        return Unavailable(f"{self.name} refuses: {said}")

    def shut(self) -> None:
        """From now on calls are refused, and those under way may be ended."""
        self._closed = True

    async def close(self) -> None:
        self._closed = True
        for client in self._nodes.values():
            await client.aclose()
            await client.connection_pool.disconnect(inuse_connections=True)
        if self._sentinel is not None:
            await self._sentinel.aclose()

    async def _ask(self, client: Redis, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Replies and complaints. What breaks the connection is the complaint about every one of them."""
        try:
            with _as_complaints():
                async with client.pipeline(transaction=False) as pipeline:
                    for command in commands:
                        pipeline.execute_command(*command)
                    return list(await pipeline.execute(raise_on_error=False))
        except (RedisError, OSError) as error:
            return [error] * len(commands)

    async def _client(self, key: str) -> Redis:
        if self._address.kind == "cluster":
            while not self._slots:
                await self._map()
            return self._slots[key_slot(key.encode())]
        (client,) = self._nodes.values()
        if not self._checked:
            await self._check(client)
        return client

    async def _map(self) -> None:
        """Ask the nodes, until one answers, which of them has which slot."""
        async with self._mapping:
            if self._slots:
                return
            problem: Exception = ConnectionError("no node of the Cluster answers")
            for host, port in dict.fromkeys((*self._nodes, *self._address.hosts)):
                client: Any = self._node(host, port)
                try:
                    ranges = await client.execute_command("CLUSTER", "SLOTS")
                    if not self._checked:
                        await self._check(client)
                except (RedisError, OSError) as error:
                    problem = error
                    continue
                slots: list[Redis | None] = [None] * 16_384
                for first, last, (named, at, *_), *_ in ranges:
                    node = self._node(named.decode() if named else host, int(at))
                    slots[first : last + 1] = [node] * (last + 1 - first)
                known = [node for node in slots if node is not None]
                if len(known) == len(slots):
                    self._slots = known
                    return
                problem = ConnectionError("some slots of the Cluster are on no node")
            raise problem

    def _node(self, host: str, port: int) -> Redis:
        client = self._nodes.get((host, port))
        if client is None:
            client = Redis(host=host, port=port, **self._patience | self._address.settings)
            self._nodes[host, port] = _packing(client)
        return client

    async def _check(self, client: Redis) -> None:
        server = await client.info("server")
        version = str(server["redis_version"])
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
            wanted = ".".join(map(str, OLDEST))
            raise ConfigError(f"{self.name} runs version {version}; {self._what} needs {wanted} or newer")
        memory = await client.info("memory")
        policy = memory.get("maxmemory_policy", "noeviction")
        if memory.get("maxmemory") and policy != "noeviction" and not self._checked:
            log.warning(
                "%s evicts when it is full (%s): claims and entries can vanish early; set maxmemory-policy noeviction",
                self.name,
                policy,
            )
        self._checked = True


def _packing(client: Redis) -> Redis:
    """Long commands of its connections are packed in C, ten times as fast: the driver does that for its synchronous
    connections only.
    """
    kind: Any = client.connection_pool.connection_class

    def packed(self: Any, *args: Any) -> list[bytes]:
        return [pack_command(args)] if len(args) >= _LONG_COMMAND else kind.pack_command(self, *args)

    client.connection_pool.connection_class = type(f"Packing{kind.__name__}", (kind,), {"pack_command": packed})
    return client


class _Sentinels(Sentinel):
    """Asked by one task at a time: the driver puts the one that answered first in its list, and two tasks that do so at
    once make it forget a third.
    """

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)  # type: ignore[no-untyped-call]  # the driver's
        self._asking = asyncio.Lock()

    async def discover_master(self, service_name: str) -> Any:
        async with self._asking:
            return await super().discover_master(service_name)


@contextmanager
def _as_complaints() -> Iterator[None]:
    """Uvloop tells of a connection that was reset in the middle of a write in a way of its own."""
    try:
        yield
    except RuntimeError as error:
        if "handler is closed" not in str(error):
            raise
        raise ConnectionError("the connection was reset") from None
