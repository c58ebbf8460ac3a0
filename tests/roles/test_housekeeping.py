"""housekeeping: at the start and once a day, whatever the store does meanwhile."""

import asyncio
from typing import Any

import pytest

from tapewatch.errors import Unavailable
from tapewatch.roles.housekeeping import EVERY_S, Housekeeping

pytestmark = pytest.mark.anyio


class Attic:
    """A store that is away the first time it is asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    async def expire(self, now_ns: int) -> int:
        self.asked.append(now_ns)
        if len(self.asked) == 1:
            raise Unavailable("away")
        return 3


async def test_store_is_cleared_at_the_start_and_then_once_a_day(clock: Any, eventually: Any) -> None:
    attic = Attic()
    running = asyncio.create_task(Housekeeping(store=attic, clock=clock).run())  # type: ignore[arg-type]  # all it asks
    await eventually(lambda: len(attic.asked) == 1)
    await clock.wake()
    await eventually(lambda: len(attic.asked) == 2)
    assert clock.asked_s[1:] == [EVERY_S]
    await clock.wake()
    await eventually(lambda: len(attic.asked) == 3)
    assert attic.asked == [clock.now_ns()] * 3
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
