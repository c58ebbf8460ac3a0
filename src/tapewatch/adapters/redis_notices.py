"""Notices through Redis' PUBLISH and SUBSCRIBE: one connection for all channels that this process listens to.

Owns the subscriptions. When the connection breaks, listeners go on waiting; the subscriptions are made again, and what
was said meanwhile is lost.
"""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator

from redis.asyncio.client import PubSub
from redis.exceptions import ConnectionError  # noqa: A004

from tapewatch.adapters.listeners import Listeners
from tapewatch.adapters.redis_server import RedisServer
from tapewatch.errors import ConfigError, Unavailable

FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 0.5

log = logging.getLogger(__name__)


class RedisNotices:
    def __init__(self, server: RedisServer, *, capacity: int, silence_s: float) -> None:
        """After `silence_s` without a notice the server is asked whether it is still there."""
        self._server = server
        self._silence_s = silence_s
        self._closed = False
        self._confirmed: set[str] = set()
        self._confirmations = asyncio.Condition()
        self._changed = asyncio.Event()
        self._listeners = Listeners(capacity, left=self._changed.set)
        self._problem: ConfigError | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def dropped(self) -> int:
        return self._listeners.dropped

    def listen(self, channel: str) -> AsyncIterator[bytes]:
        """Subscribing begins with the call; `settled` waits until it is done."""
        listener = self._listeners.listen(channel)
        if self._closed:
            listener.end()
            return listener
        if channel not in self._confirmed:
            self._changed.set()
        if self._task is None or self._task.done():
            self._problem = None
            self._task = asyncio.get_running_loop().create_task(self._run(), name="redis notices")
        return listener

    async def settled(self) -> None:
        """Every channel that is listened to is subscribed. `Unavailable` if that takes too long."""
        if self._confirmed.issuperset(self._listeners.channels):
            return
        try:
            async with asyncio.timeout(self._server.timeout_s), self._confirmations:
                await self._confirmations.wait_for(
                    lambda: self._closed or self._problem or self._confirmed.issuperset(self._listeners.channels)
                )
        except TimeoutError:
            raise Unavailable(f"{self._server.name} does not confirm subscriptions") from None
        if self._problem is not None:
            raise self._problem

    async def close(self) -> None:
        self._closed = True
        self._listeners.end()
        self._changed.set()
        await self._confirm()
        if self._task is not None:
            self._task.cancel()  # it may be in a pause; otherwise it ends by itself
            await asyncio.wait({self._task}, timeout=self._server.timeout_s)

    async def _run(self) -> None:
        wait_s = FIRST_WAIT_S
        while self._listeners.channels and not self._closed:
            try:
                async with self._server.speaking() as client, client.pubsub() as pubsub:
                    await self._serve(pubsub)
                wait_s = FIRST_WAIT_S
            except ConfigError as error:
                self._problem = error
                self._listeners.end(error)
            except Unavailable as error:
                if self._confirmed:
                    wait_s = FIRST_WAIT_S
                    log.warning("notices may be lost: %s", error)
                    self._confirmed.clear()  # before the pause, so that `settled` waits
                await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311  # jitter needs no secrecy
                wait_s = min(wait_s * 2, LONGEST_WAIT_S)
            finally:
                self._confirmed.clear()
            await self._confirm()

    async def _serve(self, pubsub: PubSub) -> None:
        """Keep the subscriptions of one connection as they should be; return when nobody listens any more."""
        asked: set[str] = set()
        outstanding: Counter[str] = Counter()
        hearing: asyncio.Task[None] | None = None
        changing: asyncio.Task[bool] | None = None
        try:
            while self._listeners.channels and not self._closed:
                self._changed.clear()
                wanted = set(self._listeners.channels)
                if gone := asked - wanted:
                    self._confirmed -= gone
                    await pubsub.unsubscribe(*gone)
                if new := wanted - asked:
                    outstanding.update(new)
                    await pubsub.subscribe(*new)
                asked = wanted
                hearing = hearing or asyncio.ensure_future(self._hear(pubsub, outstanding))
                changing = asyncio.ensure_future(self._changed.wait())
                await asyncio.wait({hearing, changing}, return_when=asyncio.FIRST_COMPLETED)
                changing.cancel()
                if hearing.done():
                    hearing.result()
        finally:
            tasks = [task for task in (hearing, changing) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _hear(self, pubsub: PubSub, outstanding: Counter[str]) -> None:
        asked_whether_there = False
        while True:
            message = await pubsub.get_message(timeout=self._silence_s)
            if message is None:
                if asked_whether_there:
                    raise ConnectionError("it has gone silent")
                asked_whether_there = True
                await pubsub.ping()
                continue
            asked_whether_there = False
            if message["type"] == "message":
                self._listeners.deliver(message["channel"].decode(), message["data"])
            elif message["type"] == "subscribe":
                channel = message["channel"].decode()
                outstanding[channel] -= 1
                if not outstanding[channel]:
                    self._confirmed.add(channel)
                    await self._confirm()

    async def _confirm(self) -> None:
        async with self._confirmations:
            self._confirmations.notify_all()
