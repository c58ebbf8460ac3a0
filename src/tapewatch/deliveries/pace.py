"""How fast a channel may be told, and how long a failed delivery waits."""

from collections import deque

from tapewatch.engine.columns import SECOND_NS

MINUTE_NS = 60 * SECOND_NS
FIRST_RETRY_S, LONGEST_RETRY_S = 5.0, 600.0
MOST_ATTEMPTS = 8


class Pace:
    """So many in any minute."""

    def __init__(self) -> None:
        self._sent_ns: deque[int] = deque()

    def wait_ns(self, rate_per_minute: int, now_ns: int) -> int:
        """How long until one more may be sent; 0: now."""
        while self._sent_ns and self._sent_ns[0] <= now_ns - MINUTE_NS:
            self._sent_ns.popleft()
        if len(self._sent_ns) < rate_per_minute:
            return 0
        return self._sent_ns[len(self._sent_ns) - rate_per_minute] + MINUTE_NS - now_ns

    def sent(self, now_ns: int) -> None:
        self._sent_ns.append(now_ns)


def retry_after_s(attempts: int, *, chance: float) -> float:
    """Seconds before the next try after so many: twice as long each time, and between half and all of it by `chance`
    from 0 to 1.
    """
    return float(min(FIRST_RETRY_S * 2.0 ** (attempts - 1), LONGEST_RETRY_S) * (0.5 + chance / 2))
