"""housekeeping: once a day the store forgets what it need not remember any longer."""

import structlog

from tapewatch.ports import Clock, Store
from tapewatch.roles.patience import patiently

EVERY_S = 86_400.0

log = structlog.get_logger("tapewatch")


class Housekeeping:
    def __init__(self, *, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock

    async def run(self) -> None:
        """Until it is cancelled; the first time at once."""
        while True:
            expired = await patiently(
                lambda: self._store.expire(self._clock.now_ns()), clock=self._clock, where="housekeeping"
            )
            if expired:
                log.info("audit entries expired", entries=expired)
            await self._clock.sleep(EVERY_S)
