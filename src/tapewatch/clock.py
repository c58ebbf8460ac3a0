"""The real clock: the only place of the package that asks the machine for the time."""

import asyncio
import time


class SystemClock:
    def now_ns(self) -> int:
        return time.time_ns()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
