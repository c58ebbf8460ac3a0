"""How often somebody may try: each attempt that fails makes the next one wait longer.

Failures are counted in hot state, so that all serving processes count together. While that is away each goes by what it
has counted itself.
"""

from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b
from typing import NamedTuple

from tapewatch.engine.columns import SECOND_NS
from tapewatch.errors import Unavailable
from tapewatch.ports import HotState
from tapewatch.telemetry import ERRORS_TOTAL

MOST_KEYS = 10_000
FORGET_S = 3_600
_TRIES = 64
"""To be the one who counts, while others count the same key."""


class _Failed(NamedTuple):
    times: int
    last_ns: int

    @classmethod
    def read(cls, raw: bytes | None) -> "_Failed | None":
        """None for what none of ours has written."""
        try:
            times, last_ns = map(int, (raw or b"").split(b" "))
        except ValueError:
            return None
        return cls(times, last_ns)

    def written(self) -> bytes:
        return b"%d %d" % self


class Attempts:
    """`free` failures cost nothing; then 1, 2, 4, ... seconds up to `longest_s`. Forgotten an hour after the last one.
    Beyond `MOST_KEYS` keys of this process those go that failed longest ago.

    `what` is tried, such as an address, is a part of the key in hot state; whose it is stands there as a digest.
    """

    def __init__(self, what: str, hot: HotState, *, free: int, longest_s: int) -> None:
        self._what, self._hot = what, hot
        self._free, self._longest_s = free, longest_s
        self._own: OrderedDict[str, _Failed] = OrderedDict()

    async def wait_s(self, key: str, now_ns: int) -> int:
        """How long until the next attempt; 0: now."""
        try:
            failed = _Failed.read(await self._read(key))
        except Unavailable:
            failed = self._own.get(key)
        return self._wait_s(failed, now_ns)

    async def begin(self, key: str, now_ns: int) -> int:
        """0, and it counts as failed from now on, so that many at once are not all the first; or how long to wait."""
        try:
            for _ in range(_TRIES):
                raw = await self._read(key)
                failed = _Failed.read(raw)
                wait_s = self._wait_s(failed, now_ns)
                if wait_s:
                    return wait_s
                after = self._one_more(failed, now_ns)
                if await self._hot.swap(self._place(key), raw, after.written(), ttl_s=FORGET_S):
                    self._own[key] = after
                    await self._make_room(key)
                    return 0
        except Unavailable:
            ERRORS_TOTAL.labels(where="attempts").inc()
            wait_s = self._wait_s(self._own.get(key), now_ns)
            if not wait_s:
                self._own[key] = self._one_more(self._own.get(key), now_ns)
                await self._make_room(key)
            return wait_s
        return 1

    async def take_back(self, key: str) -> None:
        """One that has begun did not fail."""

        def one_less(failed: _Failed) -> _Failed | None:
            return failed._replace(times=failed.times - 1) if failed.times > 1 else None

        await self._change(key, one_less)

    async def forget(self, key: str) -> None:
        await self._change(key, lambda _: None)

    async def _change(self, key: str, change: Callable[[_Failed], _Failed | None]) -> None:
        own = self._own.get(key)
        after = None if own is None else change(own)
        if after is not None:
            self._own[key] = after
        else:
            self._own.pop(key, None)
        with suppress(Unavailable):  # it waits a little longer than it must
            for _ in range(_TRIES):
                raw = await self._read(key)
                failed = _Failed.read(raw)
                if failed is None:
                    return
                after = change(failed)
                written = None if after is None else after.written()
                if await self._hot.swap(self._place(key), raw, written, ttl_s=FORGET_S):
                    return

    async def _make_room(self, newest: str) -> None:
        self._own.move_to_end(newest)
        while len(self._own) > MOST_KEYS:
            oldest, _ = self._own.popitem(last=False)
            await self.forget(oldest)

    async def _read(self, key: str) -> bytes | None:
        (raw,) = await self._hot.get([self._place(key)])
        return raw

    def _place(self, key: str) -> str:
        """Of bounded length; and people type passwords where a name belongs."""
        return f"attempts:{self._what}:{blake2b(key.encode(), digest_size=16).hexdigest()}"

    def _wait_s(self, failed: _Failed | None, now_ns: int) -> int:
        if failed is None or failed.times < self._free or now_ns - failed.last_ns > FORGET_S * SECOND_NS:
            return 0
        longest_s = min(1 << min(failed.times - self._free, 30), self._longest_s)
        return max(0, -(-(failed.last_ns + SECOND_NS * longest_s - now_ns) // SECOND_NS))

    def _one_more(self, failed: _Failed | None, now_ns: int) -> _Failed:
        if failed is None or now_ns - failed.last_ns > FORGET_S * SECOND_NS:
            return _Failed(1, now_ns)
        return _Failed(failed.times + 1, now_ns)
