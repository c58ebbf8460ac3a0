"""housekeeping: once an hour the store forgets what it need not remember any longer.

Bars and alerts age by the tape: one that is replayed is not thrown away for being old.
"""

from collections.abc import Callable

import structlog

from tapewatch.patience import patiently
from tapewatch.ports import Clock, Store

EVERY_S = 3_600.0

log = structlog.get_logger("tapewatch")


class Housekeeping:
    """`tape_ns` tells the tape's time; 0 before it is known."""

    def __init__(self, *, store: Store, clock: Clock, tape_ns: Callable[[], int]) -> None:
        self._store, self._clock, self._tape_ns = store, clock, tape_ns

    async def run(self) -> None:
        """Until it is cancelled; the first time at once."""
        while True:
            expired = await patiently(
                lambda: self._store.expire(self._clock.now_ns(), tape_ns=self._tape_ns() or None),
                clock=self._clock,
                where="housekeeping",
            )
            if expired:
                log.info("audit entries expired", entries=expired)
            await self._clock.sleep(EVERY_S)
