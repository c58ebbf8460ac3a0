"""Who works on which partition: members of a role find each other in hot state, and share its partitions.

Owns slots, leases, and the start and end of each partition's work. It makes nothing safe by itself: a member that stood
still while another took its place is fenced by the bus and by the store. What it promises is that somebody works, that
shares are even, and that little moves.

Slot and leases are held for `TTL_S` (`leases`). Each `TURN_S` a member looks at all of them. Its share is the floor or
the ceiling of partitions over members. It asks the works that are too many to finish, newest first, and gives their
leases back when they have; and it takes free ones up to its share. So a partition moves only to a member that has too
few, at most ceil(P / members) for one that comes or goes.

After hot state was away, or forgot, or this process stood still, nobody knows who lives: for `SETTLE_S` a member holds
what it has, and neither takes nor gives. So does one that comes when nothing is owned: others may be coming, too.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import structlog

from tapewatch.errors import LeaseLost, PositionLost, Unavailable
from tapewatch.patience import FIRST_WAIT_S, LONGEST_WAIT_S, pause
from tapewatch.ports import Clock, HotState
from tapewatch.roles.leases import SURE, TTL_S, Leases, View, share_of

TURN_S = 0.5
SETTLE_S = 1.5
FINISH_S = 10.0
"""A work that was asked to finish and has not by then is cancelled."""

log = structlog.get_logger("tapewatch")
Run = Callable[[int, asyncio.Event], Awaitable[None]]
Phase = Literal["working", "unsure", "pausing", "leaving", "ending", "ended"]
"""unsure: the lease could not be renewed, and the work goes on. pausing: it lost its position and begins anew.
leaving: it was asked to finish. ending: it was cancelled. ended: it returned by itself, and is not begun again.
"""


@dataclass(slots=True)
class _Work:
    task: asyncio.Task[None] | None = None
    leave: asyncio.Event = field(default_factory=asyncio.Event)
    leave_by_s: float = 0.0
    doing: Phase = "working"
    cancelled: bool = False

    def cancel(self) -> None:
        if self.task is not None and not self.cancelled:
            self.cancelled = True
            self.task.cancel()


class Ownership:
    """One member of a role.

    `run(p, leave)` is a partition's work: it restores itself from the store, works, and returns soon after `leave` is
    set, when its state is saved. `PositionLost` begins it anew after a pause, `LeaseLost` gives the lease up; any other
    error ends the role. It may be cancelled at any time.
    """

    def __init__(
        self,
        hot: HotState,
        clock: Clock,
        *,
        role: str,
        partitions: int,
        run: Run,
        shard: tuple[int, int] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        ttl_s: float = TTL_S,
        settle_s: float = SETTLE_S,
        finish_s: float = FINISH_S,
    ) -> None:
        """`shard` (2, 8), said as ``--shard 2/8`` and counted from 0, fixes the share: partitions p with p % 8 == 2 and
        never others. Leases are taken all the same: of two processes with the same shard one stands by. Without
        partitions, members only find each other.
        """
        if partitions < 0:
            raise ValueError("a role has partitions, or none: then its members only find each other")
        if shard is not None and not 0 <= shard[0] < shard[1]:
            raise ValueError(f"a shard is counted from 0: {shard[0]}/{shard[1]} is none")
        self._clock, self._monotonic, self._run = clock, monotonic, run
        self._role, self._partitions, self._ttl_s = role, partitions, ttl_s
        self._settle_s, self._finish_s = settle_s, finish_s
        self._leases = Leases(
            hot, role=role, partitions=partitions, monotonic=monotonic, ttl_s=ttl_s, on_lost=self._on_lost
        )
        self._fixed = shard is not None
        place, count = shard or (0, 1)
        self._mine = range(place, partitions, count)
        self._works: dict[int, _Work] = {}
        self._not_before_s: dict[int, float] = {}
        self._tasks = asyncio.TaskGroup()
        self._news = asyncio.Event()
        self._stopping = False
        self._era: str | None = None
        self._settled_at_s = self._rested_s = monotonic()
        self.members = 0
        """How many were there at the last look."""
        self.taken = self.given = self.lost = 0
        """Leases that came, that were given back, and that somebody else had in the end."""
        self.fenced = self.restarted = 0
        """Works that ended with `LeaseLost`, and that were begun anew after `PositionLost`."""
        self.late = 0
        """How often this process stood still for so long that leases were in doubt."""

    @property
    def token(self) -> str:
        """By which others know this member."""
        return self._leases.token

    @property
    def slot(self) -> int | None:
        """Its place among the members; None while it has none."""
        return self._leases.slot

    @property
    def away(self) -> bool:
        """Hot state did not answer the last time."""
        return self._leases.away

    @property
    def unanswered(self) -> int:
        """How often hot state did not answer."""
        return self._leases.unanswered

    @property
    def moves(self) -> int:
        return self.taken + self.given + self.lost

    @property
    def owned(self) -> tuple[int, ...]:
        """The partitions whose leases are sure at this moment."""
        return tuple(p for p in sorted(self._leases.held) if self.owns(p))

    def owns(self, p: int) -> bool:
        """Asks the monotonic clock, so it is true of a process that was just woken, too."""
        return self._leases.owns(p)

    @property
    def phases(self) -> Mapping[int, Phase]:
        """Of every partition that is worked on here."""
        return {p: self._phase(p, work) for p, work in sorted(self._works.items())}

    def _phase(self, p: int, work: _Work) -> Phase:
        if work.cancelled:
            return "ending"
        if work.leave.is_set():
            return "leaving"
        return work.doing if self.owns(p) else "unsure"

    def stop(self) -> None:
        """Ask all works to finish; `run` returns when they have, and everything is given back."""
        self._stopping = True
        self._news.set()

    async def run(self) -> None:
        """Until `stop`, or until cancelled: then works are cancelled, and leases given back."""
        self._rested_s = self._monotonic()
        try:
            async with self._tasks:
                while not self._stopping:
                    await self._turn()
                    await self._rest()
                await self._finish()
        finally:
            await self._leases.give_slot()

    async def _rest(self) -> None:
        """Until the next turn is due, or something happened."""
        self._rested_s = self._monotonic()
        await _first(self._clock.sleep(TURN_S), self._news.wait())
        self._news.clear()

    async def _finish(self) -> None:
        await self._leases.give_slot()
        for work in self._works.values():
            self._ask_to_leave(work)
        while self._works:
            await self._rest()
            try:
                await self._leases.renew()
            except Unavailable as error:
                self._leases.failed(error)
            self._hurry()

    # -- a turn -------------------------------------------------------------------------------------------------------

    async def _turn(self) -> None:
        now_s = self._monotonic()
        if now_s - self._rested_s > self._ttl_s * SURE:
            self.late += 1
            log.warning("this process stood still", role=self._role, seconds=round(now_s - self._rested_s, 1))
            self._settle()
        self._hurry()
        try:
            await self._leases.renew()
            looked_s = self._monotonic()
            view = await self._leases.look()
            self.members = len(view.members)
            if self.away:
                self._leases.away = False
                log.info("hot state is back", role=self._role)
                self._settle()
            await self._check_era(view)
            await self._leases.compare(view)
            if await self._leases.join(view) and not view.owners and not self._fixed:
                self._settle()
            now_s = self._monotonic()
            if now_s >= self._settled_at_s and now_s - looked_s < self._ttl_s * SURE and self._is_member(view):
                await self._share(view)
        except Unavailable as error:
            self._leases.failed(error)

    def _is_member(self, view: View) -> bool:
        return self.slot is not None and view.members.get(self.slot) == self.token

    def _settle(self) -> None:
        self._settled_at_s = self._monotonic() + self._settle_s

    def _hurry(self) -> None:
        now_s = self._monotonic()
        for p, work in self._works.items():
            if work.leave.is_set() and now_s >= work.leave_by_s and not work.cancelled:
                log.warning("a partition did not finish in time", role=self._role, partition=p)
                work.cancel()

    async def _check_era(self, view: View) -> None:
        if view.era is None:
            if self._era is not None or not self._fixed:
                self._settle()
            await self._leases.begin_era()
        elif view.era != self._era:
            if self._era is not None:
                log.warning("hot state has forgotten who lives", role=self._role)
                self._settle()
            self._era = view.era

    # -- shares -------------------------------------------------------------------------------------------------------

    async def _share(self, view: View) -> None:
        held = self._leases.held
        staying = [p for p in held if p not in self._works or not self._works[p].leave.is_set()]
        if self._fixed:
            share, meant = len(self._mine), [p for p in self._mine if p not in view.owners]
        else:
            share, meant = share_of(self.token, view, self._partitions)
        for p in staying[share:]:  # the newest stand last
            if p in self._works:
                self._ask_to_leave(self._works[p])
        # What an answer that was lost gave me is mine, too.
        meant += [p for p in self._mine if view.owners.get(p) == self.token and p not in held]
        now_s = self._monotonic()
        free = [p for p in meant if p not in self._works and now_s >= self._not_before_s.get(p, now_s)]
        wanted = free[: max(0, share - len(staying))]
        taken = await self._leases.take(wanted)
        self.taken += len(taken)
        await self._begin([p for p in held if p not in self._works])

    async def _begin(self, partitions: list[int]) -> None:
        if partitions:
            await self._leases.say_owner(partitions)
            log.info("partitions come", role=self._role, partitions=sorted(partitions))
        for p in partitions:
            work = self._works[p] = _Work()
            work.task = self._tasks.create_task(self._work(p, work), name=f"{self._role} {p}")

    def _ask_to_leave(self, work: _Work) -> None:
        if not work.leave.is_set():
            work.leave.set()
            work.leave_by_s = self._monotonic() + self._finish_s

    def _on_lost(self, p: int) -> None:
        log.warning("somebody else has a partition now", role=self._role, partition=p)
        self.lost += 1
        if p in self._works:
            self._works[p].cancel()

    # -- one partition ------------------------------------------------------------------------------------------------

    async def _work(self, p: int, work: _Work) -> None:
        try:
            await self._work_on(p, work)
        finally:
            if await self._leases.give_back(p):
                self.given += 1
            del self._works[p]
            self._news.set()

    async def _work_on(self, p: int, work: _Work) -> None:
        wait_s = FIRST_WAIT_S
        while not work.leave.is_set():
            if not self.owns(p):  # who begins takes over, and fences whoever has it by now
                await _first(self._clock.sleep(FIRST_WAIT_S), work.leave.wait())
                continue
            begun_s = self._monotonic()
            work.doing = "working"
            try:
                await self._run(p, work.leave)
            except Exception as error:
                problem = _told_by(error)
                if problem is None:
                    raise
                log.warning("a partition's work was interrupted", role=self._role, partition=p, why=str(problem))
                if isinstance(problem, LeaseLost):
                    self.fenced += 1
                    self._not_before_s[p] = self._monotonic() + random.uniform(0.5, 1.5) * TURN_S  # noqa: S311  # jitter
                    return
            else:
                work.doing = "ended"
                await work.leave.wait()
                return
            self.restarted += 1
            work.doing = "pausing"
            if self._monotonic() - begun_s > LONGEST_WAIT_S:
                wait_s = FIRST_WAIT_S
            await _first(pause(self._clock, wait_s), work.leave.wait())
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)


def _told_by(error: BaseException) -> LeaseLost | PositionLost | None:
    """The loss that a work ended with; None when anything else went wrong as well."""
    if isinstance(error, BaseExceptionGroup):
        told = [_told_by(part) for part in error.exceptions]
        if None in told:
            return None
        return next((part for part in told if isinstance(part, LeaseLost)), told[0])
    return error if isinstance(error, (LeaseLost, PositionLost)) else None


async def _first(*waiting: Awaitable[object]) -> None:
    """Until one of them is done; the others are cancelled."""
    tasks = [asyncio.ensure_future(each) for each in waiting]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
