"""A member's leases: what one process holds in hot state, and for how long it may count on it.

    member:{role}:{slot}    the token of a member, one of `SLOTS`: one `get` shows all of them
    lease:{role}:{p}        the token of the member that owns the partition
    owner:{role}:{p}        the token of the member that owned it last, for `_OWNER_TTL_S`
    era:{role}              made once; another one, or none, says that hot state has forgotten

Times are this process's monotonic clock, and a lease is counted from before the call that renewed it was sent: by its
own clock a holder knows that a lease has ended before hot state does, however long it stood still. Who should hold what
is decided in `ownership`.
"""

import asyncio
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import structlog

from tapewatch.errors import Unavailable
from tapewatch.ports import HotState
from tapewatch.telemetry import ERRORS_TOTAL

SLOTS = 128
TTL_S = 3.0
RENEW_S = 1.0
SURE = 2 / 3
"""Of a lease's life, after which its holder does not count on it any more."""
_OWNER_TTL_S = 86_400.0
_ERA_TTL_S = 7 * 86_400.0
_LONG_AGO_S = -1e9

log = structlog.get_logger("tapewatch")
T = TypeVar("T")


@dataclass(slots=True)
class View:
    """What hot state said at one moment."""

    members: dict[int, str]
    """Tokens by slot, ascending."""
    owners: dict[int, str]
    """Tokens by partition; those that are free are missing."""
    era: str | None


class Leases:
    """All methods raise `Unavailable` unless said otherwise. `on_lost` is told of each lease that somebody else has."""

    def __init__(
        self,
        hot: HotState,
        *,
        role: str,
        partitions: int,
        monotonic: Callable[[], float],
        ttl_s: float,
        on_lost: Callable[[int], None],
    ) -> None:
        self._hot, self._monotonic, self._role, self._ttl_s, self._on_lost = hot, monotonic, role, ttl_s, on_lost
        self._slots = [f"member:{role}:{slot}" for slot in range(SLOTS)]
        self._leases = [f"lease:{role}:{p}" for p in range(partitions)]
        self._owners = [f"owner:{role}:{p}" for p in range(partitions)]
        self._era = f"era:{role}"
        self._renew_at_s = _LONG_AGO_S
        self._talking = asyncio.Lock()
        """A lease that is being given back must not be renewed meanwhile."""
        self.token = secrets.token_hex(8)
        self.slot: int | None = None
        self.held: dict[int, float] = {}
        """When each was renewed, in the order of coming."""
        self.away = False
        """Hot state did not answer the last time."""
        self.unanswered = 0

    def owns(self, p: int) -> bool:
        return p in self.held and self._monotonic() - self.held[p] < self._ttl_s * SURE

    def failed(self, error: Unavailable) -> None:
        self.unanswered += 1
        ERRORS_TOTAL.labels(where="leases").inc()
        if not self.away:
            log.warning("leases cannot be renewed", role=self._role, why=str(error))
        self.away = True

    async def look(self) -> View:
        keys = [*self._slots, *self._leases, self._era]
        values = [value.decode() if value is not None else None for value in await self._ask(self._hot.get(keys))]
        return View(
            members={slot: token for slot, token in enumerate(values[:SLOTS]) if token is not None},
            owners={p: token for p, token in enumerate(values[SLOTS:-1]) if token is not None},
            era=values[-1],
        )

    async def renew(self, *, at_once: bool = False) -> None:
        """Slot and leases in one call, if it is time."""
        async with self._talking:
            sent_s = self._monotonic()
            leases = list(self.held)
            keys = [self._leases[p] for p in leases]
            if self.slot is not None:
                keys.append(self._slots[self.slot])
            if not keys or (sent_s < self._renew_at_s and not at_once):
                return
            answers = await self._ask(self._hot.hold(keys, self.token, ttl_s=self._ttl_s))
            self._renew_at_s = sent_s + RENEW_S
            answered_s = self._monotonic()
        doubtful: list[int] = []
        for p, is_held in zip(leases, answers, strict=False):
            if p not in self.held:
                continue
            if not is_held:
                self.lose(p)
            elif answered_s - self.held[p] >= self._ttl_s:
                doubtful.append(p)
            else:
                self.held[p] = sent_s
        if doubtful:
            await self._clear_up(doubtful, sent_s)

    async def _clear_up(self, doubtful: Sequence[int], sent_s: float) -> None:
        """These ended in between, perhaps, and somebody had them since, perhaps."""
        owners = await self._ask(self._hot.get([self._owners[p] for p in doubtful]))
        for p, owner in zip(doubtful, owners, strict=True):
            if p not in self.held:
                continue
            if owner is None or owner.decode() == self.token:
                self.held[p] = sent_s
            else:
                self.lose(p)

    async def compare(self, view: View) -> None:
        """What is held with what is said."""
        for p in list(self.held):
            if view.owners.get(p, self.token) != self.token:
                self.lose(p)
        if self.held.keys() - view.owners.keys() or (self.slot is not None and self.slot not in view.members):
            await self.renew(at_once=True)

    def lose(self, p: int) -> None:
        del self.held[p]
        self._on_lost(p)

    async def join(self, view: View) -> bool:
        """Have a slot: the one that is mine already, known to me or not, or the first that is free. True if it is new;
        then it is in the view, too. Without one, `slot` stays None.
        """
        if self.slot is not None and view.members.get(self.slot, self.token) == self.token:
            return False
        self.slot = next((slot for slot, token in view.members.items() if token == self.token), None)
        if self.slot is not None:
            return False
        slot = next((slot for slot in range(SLOTS) if slot not in view.members), None)
        if slot is None:
            log.warning("all places of this role are taken", role=self._role, places=SLOTS)
            return False
        (is_mine,) = await self._ask(self._hot.hold([self._slots[slot]], self.token, ttl_s=self._ttl_s))
        if is_mine:
            self.slot = slot
            view.members = dict(sorted({**view.members, slot: self.token}.items()))
        return is_mine

    async def begin_era(self) -> None:
        await self._ask(self._hot.claim(self._era, secrets.token_hex(8), ttl_s=_ERA_TTL_S))

    async def take(self, wanted: Sequence[int]) -> list[int]:
        """Those that were free."""
        sent_s = self._monotonic()
        keys = [self._leases[p] for p in wanted]
        answers = await self._ask(self._hot.hold(keys, self.token, ttl_s=self._ttl_s)) if keys else []
        taken = [p for p, is_held in zip(wanted, answers, strict=True) if is_held]
        self.held |= dict.fromkeys(taken, sent_s)
        return taken

    async def say_owner(self, partitions: Sequence[int]) -> None:
        """Before anything is done with them."""
        said = {self._owners[p]: self.token.encode() for p in partitions}
        await self._ask(self._hot.put(said, ttl_s=_OWNER_TTL_S))

    async def give_back(self, p: int) -> bool:
        """False if I had none. Never raises: it ends by itself if hot state is away."""
        if self.held.pop(p, None) is None:
            return False
        await self._release(self._leases[p])
        return True

    async def give_slot(self) -> None:
        """Never raises."""
        if self.slot is not None:
            slot, self.slot = self.slot, None
            await self._release(self._slots[slot])

    async def _release(self, key: str) -> None:
        async with self._talking:
            if not self.away:  # else many of them would wait one after the other
                try:
                    await self._ask(self._hot.release(key, self.token))
                except Unavailable as error:
                    self.failed(error)

    async def _ask(self, call: Awaitable[T]) -> T:
        """An answer in time for another try before a lease ends."""
        try:
            async with asyncio.timeout(self._ttl_s / 3):
                return await call
        except TimeoutError:
            raise Unavailable("hot state does not answer in time") from None


def share_of(token: str, view: View, partitions: int) -> tuple[int, list[int]]:
    """How many partitions a member should own, and which of the free ones are meant for it.

    A share is the floor or the ceiling of partitions over members: the ceiling for those that own most, then by slot.
    Shares add up, and members that see the same reach for different partitions.
    """
    owned = Counter(view.owners.values())
    least, more = divmod(partitions, len(view.members))
    free = [p for p in range(partitions) if p not in view.owners]
    order = sorted(view.members.items(), key=lambda member: (-owned[member[1]], member[0]))
    for place, (_, member) in enumerate(order):
        share = least + (place < more)
        lacking = max(0, share - owned[member])
        if member == token:
            return share, free[:lacking]
        free = free[lacking:]
    raise ValueError("who asks for a share is a member")
