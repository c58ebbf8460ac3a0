"""What tests of live feeds share: a clock that the test moves."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tapewatch.engine.columns import SECOND_NS
from tapewatch.nyse import day_of

PATIENCE_S = 10.0


class HandClock:
    """Stands still until the test moves it, and remembers what it was asked to sleep."""

    def __init__(self, now_ns: int) -> None:
        self.asked_s: list[float] = []
        self._now_ns = now_ns
        self._sleeping: list[tuple[int, asyncio.Future[None]]] = []

    def now_ns(self) -> int:
        return self._now_ns

    async def sleep(self, seconds: float) -> None:
        self.asked_s.append(seconds)
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future = asyncio.get_running_loop().create_future()
        self._sleeping.append((self._now_ns + round(seconds * SECOND_NS), future))
        await future

    async def jump(self, seconds: float) -> None:
        """That much later in one go."""
        self._now_ns += round(seconds * SECOND_NS)
        for entry in [entry for entry in self._sleeping if entry[0] <= self._now_ns]:
            self._sleeping.remove(entry)
            if not entry[1].done():
                entry[1].set_result(None)
        for _ in range(8):
            await asyncio.sleep(0)

    async def walk(self, seconds: float) -> None:
        """Second by second in tenths, so that everybody who wakes is in time."""
        for _ in range(round(seconds * 10)):
            await self.jump(0.1)


@pytest.fixture
def clock() -> HandClock:
    """Five minutes after an open."""
    return HandClock(day_of("2025-03-03")[1] + 300 * SECOND_NS)


@pytest.fixture
def eventually() -> Callable[..., Any]:
    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110  # sockets tell nobody when they are done
                await asyncio.sleep(0.001)

    return until
