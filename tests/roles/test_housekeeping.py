"""housekeeping: at the start and once an hour, whatever the store does meanwhile."""

import asyncio
from typing import Any

import pytest

from tapewatch.errors import Unavailable
from tapewatch.roles.housekeeping import EVERY_S, Housekeeping

pytestmark = pytest.mark.anyio


class Attic:
    """A store that is away the first time it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int | None]] = []

    async def expire(self, now_ns: int, *, tape_ns: int | None = None) -> int:
        self.asked.append((now_ns, tape_ns))
        if len(self.asked) == 1:
            raise Unavailable("away")
        return 3


async def test_store_is_cleared_at_the_start_and_then_once_an_hour_by_the_time_of_the_tape(
    clock: Any, eventually: Any
) -> None:
    attic = Attic()
    times = iter([0, 0, 17])
    keeping = Housekeeping(store=attic, clock=clock, tape_ns=lambda: next(times))  # type: ignore[arg-type]  # all it asks
    running = asyncio.create_task(keeping.run())
    await eventually(lambda: len(attic.asked) == 1)
    await clock.wake()
    await eventually(lambda: len(attic.asked) == 2)
    assert clock.asked_s[1:] == [EVERY_S]
    await clock.wake()
    await eventually(lambda: len(attic.asked) == 3)
    assert attic.asked == [(clock.now_ns(), None), (clock.now_ns(), None), (clock.now_ns(), 17)]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
