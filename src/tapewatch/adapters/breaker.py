"""A circuit breaker: who asks a server that is away is told so at once, instead of waiting for it in a long line."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tapewatch.telemetry import CIRCUIT_OPEN

FAILURES = 3
"""So many in a row open the circuit."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 2.0
"""How long it stays open before one caller may try again; twice as long each time that this fails."""


class Breaker:
    """Around each attempt. `of` names the server for Prometheus."""

    def __init__(
        self, of: str, *, failures: tuple[type[Exception], ...], now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._of, self._failures, self._now_s = of, failures, now_s
        self._last: Exception | None = None
        self._failed = 0
        self._wait_s = FIRST_WAIT_S
        self._again_s = 0.0
        self._trying = False

    @property
    def is_open(self) -> bool:
        return self._failed >= FAILURES

    @asynccontextmanager
    async def attempt(self) -> AsyncIterator[None]:
        """While the circuit is open the last failure is raised again, without an attempt; but one caller may try when
        its time has come. Any of `failures` counts, and so does an attempt that is given up while the circuit is open,
        as silence is no answer.
        """
        was_open = self.is_open
        if was_open:
            if self._last is not None and (self._trying or self._now_s() < self._again_s):
                raise self._last.with_traceback(None)
            self._trying = True
        try:
            yield
        except self._failures as error:
            self._fail(error)
            raise
        except BaseException:
            if was_open:
                self._fail(self._last)
            raise
        else:
            self._last, self._failed, self._wait_s = None, 0, FIRST_WAIT_S
            CIRCUIT_OPEN.labels(of=self._of).set(0)
        finally:
            if was_open:
                self._trying = False

    def _fail(self, error: Exception | None) -> None:
        self._last = error
        self._failed += 1
        if self.is_open:
            self._again_s = self._now_s() + self._wait_s
            self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)
            CIRCUIT_OPEN.labels(of=self._of).set(1)
