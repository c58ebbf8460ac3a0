"""Reading a stream from its tail on for as long as the process lives: what live views need.

It owns the waiting and the starting over. It keeps no position: whoever must miss nothing, as `AlertTail`, reads for
itself.
"""

import random
from collections.abc import AsyncIterator

from tapewatch.errors import PositionLost, Unavailable
from tapewatch.ports import Bus, Clock, Entry, Position
from tapewatch.telemetry import ERRORS_TOTAL

FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 5.0


async def follow(bus: Bus, stream: str, *, clock: Clock) -> AsyncIterator[Entry]:
    """Entries published from now on, until the bus closes. Entries lost to trimming are counted and skipped."""
    after: Position | None = None
    from_tail = True
    wait_s = FIRST_WAIT_S
    while True:
        try:
            if from_tail:
                after = await bus.tail(stream)
                from_tail = False
            async for position, entry in bus.read(stream, after):
                after = position
                wait_s = FIRST_WAIT_S
                yield entry
        except PositionLost:
            ERRORS_TOTAL.labels(where=f"follow:{stream}").inc()
            from_tail = True
        except Unavailable:
            ERRORS_TOTAL.labels(where=f"follow:{stream}").inc()
            wait_s = await pause(clock, wait_s)
        else:
            return


async def pause(clock: Clock, wait_s: float) -> float:
    """Sleep a random part of `wait_s`, so that many readers do not come back at once; the next wait is returned."""
    await clock.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311  # jitter needs no secrecy
    return min(wait_s * 2, _LONGEST_WAIT_S)
