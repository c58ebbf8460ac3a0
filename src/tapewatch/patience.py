"""How one lives through a server that is away: waiting in growing, jittered steps, and what happened is counted.

It decides nothing about what is kept meanwhile: who waits bounds its own pending work.
"""

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import structlog

from tapewatch.errors import PositionLost, Unavailable
from tapewatch.ports import Bus, Clock, Entry, Position
from tapewatch.telemetry import ERRORS_TOTAL

FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 5.0

log = structlog.get_logger("tapewatch")
T = TypeVar("T")

_waits: dict[object, tuple[str, str]] = {}
"""By waiter: the place, and why."""


def waits() -> dict[str, str]:
    """What this process waits for now: the place, and what the server that is away said."""
    return dict(_waits.values())


async def pause(clock: Clock, wait_s: float, *, longest_s: float = LONGEST_WAIT_S) -> float:
    """Sleep a random part of `wait_s`, so that many do not come back at once; the next wait is returned."""
    await clock.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311  # jitter needs no secrecy
    return min(wait_s * 2, longest_s)


async def patiently(attempt: Callable[[], Awaitable[T]], *, clock: Clock, where: str) -> T:
    """Try until it is not `Unavailable` any more."""
    waiter, wait_s = object(), FIRST_WAIT_S
    try:
        while True:
            try:
                result = await attempt()
            except Unavailable as error:
                ERRORS_TOTAL.labels(where=where).inc()
                if waiter not in _waits:
                    log.warning("waiting", where=where, why=str(error))
                _waits[waiter] = (where, str(error))
                wait_s = await pause(clock, wait_s)
            else:
                if waiter in _waits:
                    log.warning("going on", where=where)
                return result
    finally:
        _waits.pop(waiter, None)


async def publish(bus: Bus, stream: str, entry: Entry, *, clock: Clock, where: str) -> None:
    """Until the bus has it: publishing again what may have arrived does not double it."""
    await patiently(lambda: bus.publish(stream, entry), clock=clock, where=where)


async def read_on(
    bus: Bus, stream: str, *, clock: Clock, where: str, after: Position | None = None, newest_only: bool = False
) -> AsyncIterator[tuple[Position, Entry]]:
    """What follows `after` (None: everything retained), then live, until the bus closes. Entries lost to trimming are
    counted and skipped; with `newest_only` that is how it should be.
    """
    wait_s = FIRST_WAIT_S
    while True:
        try:
            async for position, entry in bus.read(stream, after):
                after, wait_s = position, FIRST_WAIT_S
                yield position, entry
        except PositionLost as error:
            if not newest_only:
                ERRORS_TOTAL.labels(where=where).inc()
                log.warning("entries lost", where=where, why=str(error))
            after = None
        except Unavailable:
            ERRORS_TOTAL.labels(where=where).inc()
            wait_s = await pause(clock, wait_s)
        else:
            return
