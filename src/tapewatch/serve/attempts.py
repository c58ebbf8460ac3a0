"""How often somebody may try: each attempt that fails makes the next one wait longer.

It counts in this process only; several serving processes each allow as many.
"""

from collections import OrderedDict

from tapewatch.engine.columns import SECOND_NS

MOST_KEYS = 10_000
_FORGET_NS = 3_600 * SECOND_NS


class Attempts:
    """`free` failures cost nothing; then 1, 2, 4, ... seconds up to `longest_s`. Forgotten an hour after the last one.
    Beyond `MOST_KEYS` keys those go that failed longest ago.
    """

    def __init__(self, *, free: int, longest_s: int) -> None:
        self._free, self._longest_s = free, longest_s
        self._failed: OrderedDict[str, tuple[int, int]] = OrderedDict()

    def wait_s(self, key: str, now_ns: int) -> int:
        """How long until the next attempt; 0: now."""
        failures, last_ns = self._known(key, now_ns)
        if failures < self._free:
            return 0
        until_ns = last_ns + SECOND_NS * min(1 << min(failures - self._free, 30), self._longest_s)
        return max(0, -(-(until_ns - now_ns) // SECOND_NS))

    def count(self, key: str, now_ns: int) -> None:
        """An attempt begins. It counts as failed from now on, so that many at once are not all the first."""
        failures, _ = self._known(key, now_ns)
        self._failed[key] = (failures + 1, now_ns)
        self._failed.move_to_end(key)
        while len(self._failed) > MOST_KEYS:
            self._failed.popitem(last=False)

    def take_back(self, key: str) -> None:
        """One of them did not fail."""
        if key in self._failed:
            failures, last_ns = self._failed[key]
            self._failed[key] = (max(0, failures - 1), last_ns)

    def forget(self, key: str) -> None:
        self._failed.pop(key, None)

    def _known(self, key: str, now_ns: int) -> tuple[int, int]:
        failures, last_ns = self._failed.get(key, (0, now_ns))
        return (0, now_ns) if now_ns - last_ns > _FORGET_NS else (failures, last_ns)
