"""Readers and writers that behave as the product's do while a server is away: they ask again."""

import asyncio
from collections.abc import Sequence
from typing import TypeVar

from tapewatch.contracts.samples import number_of, numbered, soon
from tapewatch.errors import Unavailable
from tapewatch.ports import Bus, Position

PAUSE_S = 0.02
T = TypeVar("T")


class Follower:
    """Reads a stream in the background, from its beginning, with one iterator."""

    def __init__(self, bus: Bus, stream: str) -> None:
        self.seen: list[int] = []
        self._entries = bus.read(stream)
        self._more = asyncio.Condition()
        self._task = asyncio.ensure_future(self._follow())

    async def has(self, count: int) -> list[int]:
        """All that it has seen, once that is so much. What ended it is raised here."""

        async def enough() -> None:
            async with self._more:
                await self._more.wait_for(lambda: len(self.seen) >= count or self._task.done())

        await soon(enough())
        if self._task.done():
            self._task.result()
        return self.seen

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _follow(self) -> None:
        try:
            while True:
                try:
                    _, entry = await anext(self._entries)
                except Unavailable:
                    await asyncio.sleep(PAUSE_S)
                    continue
                self.seen.append(number_of(entry))
                async with self._more:
                    self._more.notify_all()
        finally:
            async with self._more:
                self._more.notify_all()


async def published(bus: Bus, streams: Sequence[str], number: int) -> dict[str, Position]:
    """Publish until it is said to be done."""

    async def again() -> dict[str, Position]:
        while True:
            try:
                return await bus.publish_all(dict.fromkeys(streams, numbered(number)))
            except Unavailable:
                await asyncio.sleep(PAUSE_S)

    return await soon(again())
