"""Ownership: members come, go, die and stand still over one hot state, in a time that the test holds."""

import asyncio
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapewatch.adapters.memory import MemoryHotState
from tapewatch.errors import LeaseLost, PositionLost, Unavailable
from tapewatch.roles.leases import SLOTS, View, share_of
from tapewatch.roles.ownership import Ownership

pytestmark = pytest.mark.anyio

STEP_S = 0.1
T = TypeVar("T")


class World:
    """One hot state, the members that use it, and the time of all of them."""

    def __init__(self, *, partitions: int = 8) -> None:
        self.now_s = 1_000.0
        self.partitions = partitions
        self.hot = MemoryHotState(monotonic=self.monotonic)
        self.away = False
        self.forgot_s = 0.0
        self.members: list[Member] = []
        self.sleepers: list[tuple[float, asyncio.Future[None], Member]] = []

    def monotonic(self) -> float:
        return self.now_s

    def forget(self) -> None:
        """A server that comes back empty."""
        self.forgot_s = self.now_s
        self.hot = MemoryHotState(monotonic=self.monotonic)

    async def join(self, **settings: Any) -> "Member":
        member = Member(self, **settings)
        self.members.append(member)
        await settle()
        return member

    @property
    def alive(self) -> list["Member"]:
        return [member for member in self.members if not member.task.done()]

    def owners(self) -> dict[int, "Member"]:
        """By partition, who holds a valid lease; never two."""
        found: dict[int, Member] = {}
        for member in self.members:
            for p in member.ownership.owned:
                assert p not in found, f"partition {p} has two owners"
                found[p] = member
                if self.now_s > self.forgot_s + 2.0:
                    assert self.holder(p) == member.ownership.token, "who counts on a lease has it"
        return found

    def holder(self, p: int) -> str | None:
        """Whom hot state says the lease is held by."""
        fact = self.hot._facts.get(f"lease:scanner:{p}")
        if fact is None or fact.expires_s <= self.now_s:
            return None
        assert isinstance(fact.value, bytes)
        return fact.value.decode()

    def workers(self) -> dict[int, list["Member"]]:
        return {p: [member for member in self.alive if p in member.running] for p in range(self.partitions)}

    def shares(self) -> list[int]:
        return sorted(len(member.ownership.owned) for member in self.alive)

    async def walk(self, seconds: float) -> None:
        for _ in range(round(seconds / STEP_S)):
            self.now_s += STEP_S
            self.wake_sleepers()
            await settle()
            self.owners()

    async def walk_until(self, condition: Callable[[], bool], *, within_s: float) -> float:
        """The seconds that it took."""
        begun_s = self.now_s
        while not condition():
            assert self.now_s - begun_s < within_s, "it took too long"
            await self.walk(STEP_S)
        return self.now_s - begun_s

    def all_owned(self) -> bool:
        return len(self.owners()) == self.partitions

    def wake_sleepers(self) -> None:
        for entry in list(self.sleepers):
            due_s, future, member = entry
            if future.done() or (due_s <= self.now_s + 1e-9 and not member.paused):
                self.sleepers.remove(entry)
                if not future.done():
                    future.set_result(None)


async def settle() -> None:
    for _ in range(12):
        await asyncio.sleep(0)


class Member:
    """One process: its own clock and its own way to hot state, both of which may stand still."""

    def __init__(self, world: World, *, slow_finish: bool = False, **settings: Any) -> None:
        self.world = world
        self.awake = asyncio.Event()
        self.awake.set()
        self.dead = False
        self.lose_replies = 0.0
        self.latency_s = 0.0
        self.pause_after = ""
        """It stands still when this call was made, before the answer is here."""
        self.ends_slowly = False
        self.slow_finish = slow_finish
        self.may_finish = asyncio.Event()
        self.running: set[int] = set()
        self.begun: list[int] = []
        self.finished: list[int] = []
        self.cut_off: list[int] = []
        self.raising: dict[int, BaseException] = {}
        self.trouble = asyncio.Event()
        self.random = random.Random(7)
        self.ownership = Ownership(
            Line(self),
            self,
            role="scanner",
            partitions=world.partitions,
            run=self.work,
            monotonic=world.monotonic,
            **settings,
        )
        self.task = asyncio.ensure_future(self.ownership.run())

    async def work(self, p: int, leave: asyncio.Event) -> None:
        assert p not in self.running, "one work of a partition at a time"
        self.running.add(p)
        self.begun.append(p)
        try:
            while not leave.is_set():
                waiting = [asyncio.ensure_future(leave.wait()), asyncio.ensure_future(self.trouble.wait())]
                try:
                    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for each in waiting:
                        each.cancel()
                if p in self.raising:
                    raise self.raising.pop(p)
                self.trouble.clear()
            if self.slow_finish:
                await self.may_finish.wait()
            self.finished.append(p)
        except asyncio.CancelledError:
            self.cut_off.append(p)
            if self.ends_slowly:
                await self.may_finish.wait()
            raise
        finally:
            self.running.discard(p)

    async def fail(self, p: int, error: BaseException) -> None:
        self.raising[p] = error
        self.trouble.set()
        await settle()

    # -- its clock

    @property
    def paused(self) -> bool:
        return not self.awake.is_set()

    def now_ns(self) -> int:
        raise AssertionError("nobody may ask for the wall clock")

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.world.sleepers.append((self.world.now_s + seconds, future, self))
        await future

    # -- its fate

    def pause(self) -> None:
        self.awake.clear()

    async def wake(self) -> None:
        self.awake.set()
        self.world.wake_sleepers()
        await settle()

    async def kill(self) -> None:
        """Nothing that it does from now on leaves the process."""
        self.dead = True
        self.awake.set()
        self.may_finish.set()
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.ownership._leases.held.clear()

    async def stop(self) -> None:
        self.ownership.stop()
        await settle()


class Line:
    """A member's way to hot state."""

    def __init__(self, member: Member) -> None:
        self._member = member

    async def _call(self, name: str, make: Callable[[MemoryHotState], Awaitable[T]]) -> T:
        member = self._member
        await self._travel()
        if member.dead or member.world.away:
            raise Unavailable("away")
        answer = await make(member.world.hot)
        if member.pause_after == name:
            member.pause_after = ""
            member.pause()
        await self._travel()
        if member.random.random() < member.lose_replies:
            raise Unavailable("the reply was lost")
        return answer

    async def _travel(self) -> None:
        member = self._member
        if member.latency_s and not member.dead:
            await member.sleep(member.latency_s)
        await member.awake.wait()

    async def get(self, keys: Sequence[str]) -> list[bytes | None]:
        return await self._call("get", lambda hot: hot.get(keys))

    async def put(self, values: Mapping[str, bytes], *, ttl_s: float) -> None:
        await self._call("put", lambda hot: hot.put(values, ttl_s=ttl_s))

    async def swap(self, key: str, before: bytes | None, after: bytes | None, *, ttl_s: float) -> bool:
        return await self._call("swap", lambda hot: hot.swap(key, before, after, ttl_s=ttl_s))

    async def claim(self, key: str, token: str, *, ttl_s: float, renew: bool = False) -> bool:
        return await self._call("claim", lambda hot: hot.claim(key, token, ttl_s=ttl_s, renew=renew))

    async def hold(self, keys: Sequence[str], token: str, *, ttl_s: float) -> list[bool]:
        return await self._call("hold", lambda hot: hot.hold(keys, token, ttl_s=ttl_s))

    async def release(self, key: str, token: str) -> None:
        await self._call("release", lambda hot: hot.release(key, token))

    async def rank(self, *_: object, **__: object) -> None:
        raise AssertionError("not its business")

    async def ranking(self, *_: object, **__: object) -> list[Any]:
        raise AssertionError("not its business")

    async def close(self) -> None:
        raise AssertionError("not its business")


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    await end(world)


@pytest.fixture
async def single() -> AsyncIterator[World]:
    """A role of one partition."""
    world = World(partitions=1)
    yield world
    await end(world)


async def end(world: World) -> None:
    world.away = False
    for member in world.alive:
        await member.kill()


def moved(before: dict[int, Member], after: dict[int, Member]) -> int:
    return sum(before.get(p) is not after.get(p) for p in before.keys() | after.keys())


# -- coming and going --------------------------------------------------------------------------------------------------


async def test_first_member_takes_everything_once_it_is_sure_to_be_alone(world: World) -> None:
    member = await world.join()
    assert member.ownership.owned == ()
    assert await world.walk_until(world.all_owned, within_s=2.1) >= 1.5
    assert member.running == set(range(8))
    assert set(member.ownership.phases.values()) == {"working"}
    assert (member.ownership.taken, member.ownership.members, member.ownership.slot) == (8, 1, 0)


async def test_members_that_come_together_share_evenly_and_nothing_moves(world: World) -> None:
    members = [await world.join() for _ in range(3)]
    await world.walk_until(world.all_owned, within_s=3)
    await world.walk(5)
    assert world.shares() == [2, 3, 3]
    assert sum(member.ownership.moves for member in members) == 8
    assert [member.ownership.members for member in members] == [3, 3, 3]


async def test_scaling_from_one_to_four_to_two_moves_no_more_than_shares_ask_for(world: World) -> None:
    first = await world.join()
    await world.walk(3)
    members = [first]
    for count in (2, 3, 4):
        before = world.owners()
        members.append(await world.join())
        await world.walk(3)
        assert world.shares() == sorted([8 // count + (n < 8 % count) for n in range(count)])
        assert world.all_owned()
        assert moved(before, world.owners()) <= math.ceil(8 / count)
        settled = world.owners()
        await world.walk(5)
        assert world.owners() == settled
    for leaving, count in ((members[0], 3), (members[2], 2)):
        before = world.owners()
        await leaving.stop()
        await world.walk(2)
        assert world.shares() == sorted([8 // count + (n < 8 % count) for n in range(count)])
        assert moved(before, world.owners()) <= math.ceil(8 / count)
    assert all(not member.cut_off for member in members)


async def test_orderly_stop_lets_works_finish_and_others_take_over_within_a_second(world: World) -> None:
    one, two = await world.join(), await world.join()
    await world.walk(3)
    its = set(one.ownership.owned)
    await one.stop()
    assert one.task.done()
    assert set(one.finished) == its
    assert await world.walk_until(world.all_owned, within_s=1.0) <= 1.0
    assert two.running == set(range(8))


async def test_members_that_take_over_at_once_do_not_reach_for_the_same(world: World) -> None:
    members = [await world.join() for _ in range(4)]
    await world.walk(4)
    await members[3].stop()
    await world.walk_until(world.all_owned, within_s=0.6)
    assert world.shares() == [2, 3, 3]


async def test_lease_is_given_back_only_when_the_work_has_finished(world: World) -> None:
    one = await world.join(slow_finish=True)
    await world.walk(3)
    two = await world.join()
    await world.walk(5)
    assert (len(one.ownership.owned), two.ownership.owned) == (8, ())
    assert sorted(one.ownership.phases.values()) == ["leaving"] * 4 + ["working"] * 4
    assert all(len(workers) == 1 for workers in world.workers().values())
    one.may_finish.set()
    await world.walk(1)
    assert world.shares() == [4, 4]
    assert one.cut_off == []


async def test_stopping_member_keeps_its_leases_as_long_as_works_take(world: World) -> None:
    one, two = await world.join(slow_finish=True), await world.join()
    await world.walk(3)
    await one.stop()
    await world.walk(8)
    assert world.shares() == [4, 4]
    assert not one.task.done()
    one.may_finish.set()
    await world.walk_until(lambda: len(two.running) == 8, within_s=1.0)
    assert one.task.done()


async def test_work_that_does_not_finish_in_time_is_cancelled(world: World) -> None:
    one, two = await world.join(slow_finish=True, finish_s=4.0), await world.join()
    await world.walk(3)
    await one.stop()
    await world.walk_until(lambda: len(two.running) == 8, within_s=5.5)
    assert len(one.cut_off) == 4
    assert one.task.done()


async def test_partitions_of_a_member_that_died_are_taken_over_in_four_seconds(world: World) -> None:
    members = [await world.join() for _ in range(3)]
    await world.walk(4)
    before = world.owners()
    await members[1].kill()
    assert await world.walk_until(world.all_owned, within_s=4.0) > 1
    assert world.shares() == [4, 4]
    assert moved(before, world.owners()) <= 4


async def test_cancelled_member_gives_everything_back_at_once(world: World) -> None:
    one, two = await world.join(), await world.join()
    await world.walk(3)
    one.task.cancel()
    await settle()
    assert one.task.cancelled()
    assert len(one.cut_off) == 4
    await world.walk_until(world.all_owned, within_s=1.0)
    assert len(two.running) == 8


# -- standing still ----------------------------------------------------------------------------------------------------


async def test_member_that_stood_still_knows_before_it_is_told(world: World) -> None:
    one, two = await world.join(), await world.join()
    await world.walk(3)
    its = one.ownership.owned
    one.pause()
    await world.walk(10)
    assert len(two.running) == 8
    assert one.ownership.owned == ()
    assert not any(one.ownership.owns(p) for p in its)
    assert set(one.ownership.phases.values()) == {"unsure"}
    assert one.running == set(its)
    await one.wake()
    assert one.running == set()
    assert set(one.cut_off) == set(its)
    assert (one.ownership.late, one.ownership.lost) == (1, 4)
    await world.walk(5)
    assert world.shares() == [4, 4]
    assert all(len(workers) == 1 for workers in world.workers().values())


async def test_lease_counts_from_before_it_was_asked_for_however_late_the_answer_comes(world: World) -> None:
    one, two = await world.join(), await world.join()
    await world.walk(4)
    one.pause_after = "hold"
    await world.walk_until(lambda: one.paused, within_s=2)
    await world.walk(10)
    await one.wake()
    assert one.ownership.owned == ()
    assert len(two.ownership.owned) == 8
    await world.walk(5)
    assert world.shares() == [4, 4]


async def test_renewal_whose_answer_came_late_lasts_no_longer_for_it(world: World) -> None:
    one, two = await world.join(), await world.join()
    await world.walk(4)
    one.pause_after = "hold"
    await world.walk_until(lambda: one.paused, within_s=2)
    await world.walk(1.9)
    await one.wake()
    one.pause()
    await world.walk_until(lambda: len(two.ownership.owned) == 8, within_s=2.5)
    assert one.ownership.owned == ()


async def test_lease_that_was_taken_long_before_the_answer_came_counts_for_nothing(world: World) -> None:
    two = await world.join()
    await world.walk(4)
    one = await world.join()
    await world.walk_until(lambda: len(two.ownership.owned) == 4, within_s=2)
    one.pause_after = "hold"
    await world.walk_until(lambda: one.paused, within_s=2)
    taken = [p for p in range(8) if world.holder(p) == one.ownership.token]
    if not taken:  # that was its slot
        one.pause_after = "hold"
        await one.wake()
        await world.walk_until(lambda: one.paused, within_s=2)
        taken = [p for p in range(8) if world.holder(p) == one.ownership.token]
    assert len(taken) == 4
    await world.walk(10)
    assert len(two.ownership.owned) == 8
    await one.wake()
    assert one.ownership.owned == ()
    await world.walk(5)
    assert world.shares() == [4, 4]
    assert all(len(workers) == 1 for workers in world.workers().values())


async def test_member_that_stood_still_after_it_looked_decides_nothing_by_what_it_saw(world: World) -> None:
    one = await world.join()
    await world.walk(3)
    two = await world.join()
    assert two.ownership.slot == 1
    one.pause_after = "get"
    await world.walk_until(lambda: one.paused, within_s=1)
    await world.walk(10)
    assert len(two.ownership.owned) == 8
    await one.wake()
    await world.walk(1)
    assert (sorted(one.cut_off), one.finished) == (list(range(8)), [])


async def test_partition_whose_work_is_still_ending_here_is_left_to_others(world: World) -> None:
    one, two = await world.join(), await world.join()
    await world.walk(3)
    one.ends_slowly = True
    one.pause()
    await world.walk(10)
    await one.wake()
    assert set(one.ownership.phases.values()) == {"ending"}
    ending = set(one.ownership.phases)
    await two.kill()
    await world.walk(6)
    assert set(one.ownership.owned) == set(range(8)) - ending
    three = await world.join()
    await world.walk(3)
    assert set(three.ownership.owned) == ending
    one.may_finish.set()
    await world.walk(3)
    assert world.shares() == [4, 4]


async def test_short_pause_moves_nothing(world: World) -> None:
    members = [await world.join() for _ in range(3)]
    await world.walk(3)
    before = world.owners()
    members[0].pause()
    await world.walk(1.9)
    await members[0].wake()
    await world.walk(5)
    assert world.owners() == before
    assert all(member.begun == sorted(member.begun, key=member.begun.index) for member in members)
    assert sum(len(member.begun) for member in members) == 8


async def test_pause_in_which_nobody_came_interrupts_no_work(world: World) -> None:
    one = await world.join()
    await world.walk(3)
    one.pause()
    await world.walk(60)
    await one.wake()
    assert len(one.ownership.owned) == 8
    await world.walk(3)
    assert (len(one.begun), one.cut_off, one.ownership.late) == (8, [], 1)


async def test_work_is_begun_anew_if_somebody_had_the_partition_in_between(world: World) -> None:
    one = await world.join()
    await world.walk(3)
    one.pause()
    await world.walk(10)
    await world.hot.put({"owner:scanner:5": b"another"}, ttl_s=60)
    await one.wake()
    assert one.cut_off == [5]
    await world.walk(3)
    assert len(one.ownership.owned) == 8
    assert sorted(one.begun) == [0, 1, 2, 3, 4, 5, 5, 6, 7]


async def test_whole_machine_that_stood_still_goes_on_as_before(world: World) -> None:
    members = [await world.join() for _ in range(3)]
    await world.walk(3)
    before = world.owners()
    for member in members:
        member.pause()
    await world.walk(30)
    for member in members:
        await member.wake()
    await world.walk(5)
    assert world.owners() == before
    assert sum(len(member.begun) for member in members) == 8


# -- hot state that is away --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.5, 3.5, 20.0])
async def test_hot_state_away_interrupts_no_work_and_moves_nothing(world: World, seconds: float) -> None:
    members = [await world.join() for _ in range(3)]
    await world.walk(3)
    before = world.owners()
    world.away = True
    await world.walk(seconds)
    if seconds > 3:
        assert world.owners() == {}
        assert all(set(member.ownership.phases.values()) == {"unsure"} for member in members)
        assert all(member.ownership.away for member in members)
    world.away = False
    await world.walk(1)
    assert world.owners() == before
    await world.walk(5)
    assert world.owners() == before
    assert sum(len(member.begun) for member in members) == 8


@pytest.mark.parametrize("away_s", [0.0, 1.0, 10.0])
async def test_hot_state_that_forgot_everything_moves_nothing(world: World, away_s: float) -> None:
    members = [await world.join() for _ in range(3)]
    await world.walk(3.3)
    before = world.owners()
    for _ in range(7):
        world.away = away_s > 0
        await world.walk(away_s)
        world.forget()
        world.away = False
        await world.walk(0.6)
        assert all(world.holder(p) == member.ownership.token for p, member in before.items())
        await world.walk(5.5)
        assert world.owners() == before
    assert sum(len(member.begun) for member in members) == 8


async def test_member_that_dies_while_hot_state_is_away_is_replaced_after(world: World) -> None:
    members = [await world.join() for _ in range(2)]
    await world.walk(3)
    world.away = True
    await world.walk(2)
    await members[0].kill()
    await world.walk(5)
    world.away = False
    await world.walk_until(world.all_owned, within_s=5.0)
    assert len(members[1].running) == 8


async def test_stop_while_hot_state_is_away_ends_soon(world: World) -> None:
    one = await world.join()
    await world.walk(3)
    world.away = True
    await world.walk(1)
    await one.stop()
    await world.walk(1)
    assert one.task.done()
    assert len(one.finished) == 8


async def test_lost_replies_double_nothing_and_leave_nothing_behind(world: World) -> None:
    members = [await world.join() for _ in range(3)]
    for member in members:
        member.lose_replies = 0.2
    await world.walk(60)
    for member in members:
        member.lose_replies = 0.0
    await world.walk(6)
    assert world.shares() == [2, 3, 3]
    assert all(len(workers) == 1 for workers in world.workers().values())
    held = [key for key in world.hot._facts if key.startswith("member:")]
    assert len(held) == 3


# -- works that lose something -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("grouped", [False, True])
async def test_lease_that_the_work_lost_is_given_up_and_taken_again(world: World, *, grouped: bool) -> None:
    one = await world.join()
    await world.walk(3)
    error: Exception = LeaseLost("a newer writer has it")
    await one.fail(3, ExceptionGroup("tasks", [error]) if grouped else error)
    assert 3 not in one.ownership.owned
    assert one.ownership.fenced == 1
    assert await world.hot.get(["lease:scanner:3"]) == [None]
    await world.walk(2)
    assert len(one.ownership.owned) == 8
    assert one.begun.count(3) == 2


async def test_lost_position_begins_the_work_anew_after_a_pause_and_keeps_the_lease(world: World) -> None:
    one = await world.join()
    await world.walk(3)
    for times in range(1, 5):
        await one.fail(3, ExceptionGroup("tasks", [ExceptionGroup("more", [PositionLost("trimmed")])]))
        assert [p for p, phase in one.ownership.phases.items() if phase == "pausing"] == [3]
        assert one.ownership.owns(3)
        await world.walk(2)
        assert set(one.ownership.phases.values()) == {"working"}
        assert (one.begun.count(3), one.ownership.restarted) == (times + 1, times)


async def test_work_is_not_begun_anew_while_its_lease_is_in_doubt(world: World) -> None:
    one = await world.join()
    await world.walk(3)
    world.away = True
    await world.walk(3)
    await one.fail(3, PositionLost("trimmed"))
    await world.walk(10)
    assert one.running == set(range(8)) - {3}
    assert one.ownership.phases[3] == "unsure"
    world.away = False
    await world.walk(1)
    assert one.running == set(range(8))


async def test_work_is_not_begun_if_the_process_stood_still_before_it(world: World) -> None:
    one = await world.join()
    await world.walk(1)
    one.pause_after = "put"  # all leases are taken, nothing has begun
    await world.walk_until(lambda: one.paused, within_s=1)
    two = await world.join()
    await world.walk(10)
    assert len(two.running) == 8
    await one.wake()
    assert one.begun == []
    await world.walk(3)
    assert world.shares() == [4, 4]


async def test_member_leaves_during_the_pause_of_a_work(world: World) -> None:
    one = await world.join()
    await world.walk(3)
    await one.fail(3, PositionLost("trimmed"))
    await one.stop()
    await world.walk(0.1)
    assert one.task.done()


@pytest.mark.parametrize("error", [ValueError("broken"), ExceptionGroup("x", [LeaseLost("y"), ValueError("broken")])])
async def test_any_other_error_ends_the_role_and_gives_its_leases_back(world: World, error: Exception) -> None:
    one, two = await world.join(), await world.join()
    await world.walk(3)
    await one.fail(one.ownership.owned[0], error)
    assert one.task.done()
    with pytest.raises(ExceptionGroup) as raised:
        one.task.result()
    assert raised.group_contains(ValueError, match="broken") if hasattr(raised, "group_contains") else raised.value
    await world.walk_until(lambda: len(two.running) == 8, within_s=1.0)


async def test_work_that_returns_by_itself_is_not_begun_again(world: World) -> None:
    begun: list[int] = []

    async def ends(p: int, leave: asyncio.Event) -> None:
        begun.append(p)

    member = await world.join()
    member.ownership._run = ends
    await world.walk(6)
    assert sorted(begun) == list(range(8))
    assert len(member.ownership.owned) == 8
    assert set(member.ownership.phases.values()) == {"ended"}
    await member.stop()
    await world.walk(0.1)
    assert member.task.done()


# -- one partition, fixed shares, full slots ---------------------------------------------------------------------------


async def test_one_partition_has_one_active_member_and_the_others_stand_by(single: World) -> None:
    members = [await single.join() for _ in range(3)]
    await single.walk(4)
    (active,) = single.owners().values()
    standby = [member for member in members if member is not active]
    await standby[0].stop()
    await single.walk(4)
    newcomer = await single.join()
    await single.walk(6)
    assert list(single.owners().values()) == [active], "who comes to a lower slot takes nothing over"
    await active.kill()
    await single.walk_until(single.all_owned, within_s=4.0)
    (now,) = single.owners().values()
    assert now in {standby[1], newcomer}
    await now.stop()
    assert await single.walk_until(single.all_owned, within_s=1.0) <= 1.0


async def test_fixed_shards_are_counted_from_zero_and_never_move(world: World) -> None:
    members = [await world.join(shard=(place, 3)) for place in range(3)]
    await world.walk(1)
    expected = [(0, 3, 6), (1, 4, 7), (2, 5)]
    assert [member.ownership.owned for member in members] == expected
    await members[1].kill()
    await world.walk(10)
    assert [member.ownership.owned for member in world.alive] == [expected[0], expected[2]]
    await world.join(shard=(1, 3))
    await world.walk_until(world.all_owned, within_s=2)


async def test_of_two_with_the_same_shard_one_stands_by(world: World) -> None:
    one, two = await world.join(shard=(1, 2)), await world.join(shard=(1, 2))
    await world.walk(5)
    owning, waiting = (one, two) if one.running else (two, one)
    assert owning.running == {1, 3, 5, 7}
    assert waiting.running == set()
    await owning.kill()
    await world.walk_until(lambda: waiting.running == {1, 3, 5, 7}, within_s=4.0)


@pytest.mark.parametrize("wrong", [{"shard": (3, 3)}, {"shard": (-1, 2)}, {"partitions": -1}])
def test_share_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    async def nothing(p: int, leave: asyncio.Event) -> None: ...

    settings_: dict[str, Any] = {"partitions": 4, **wrong}
    with pytest.raises(ValueError, match=r"shard|partition"):
        Ownership(MemoryHotState(), Member, role="x", run=nothing, **settings_)  # type: ignore[arg-type]  # never used


async def test_members_of_a_role_without_partitions_only_find_each_other() -> None:
    world = World(partitions=0)
    members = [await world.join() for _ in range(3)]
    await world.walk(3)
    assert [member.ownership.members for member in members] == [3, 3, 3]
    await members[0].stop()
    await world.walk(1)
    assert [member.ownership.members for member in world.alive] == [2, 2]
    await end(world)


async def test_member_without_a_slot_stands_by_until_one_is_free(world: World) -> None:
    await world.hot.hold([f"member:scanner:{slot}" for slot in range(SLOTS)], "others", ttl_s=20)
    member = await world.join()
    await world.walk(10)
    assert (member.ownership.slot, member.ownership.owned) == (None, ())
    await world.hot.release("member:scanner:77", "others")
    await world.walk(1)
    assert member.ownership.slot == 77


@given(
    owned=st.lists(st.integers(0, 20), min_size=1, max_size=10),
    free=st.integers(0, 30),
    slots=st.randoms(use_true_random=False),
)
def test_shares_add_up_and_differ_by_one_at_most(owned: list[int], free: int, slots: random.Random) -> None:
    places = sorted(slots.sample(range(SLOTS), len(owned)))
    members = {slot: f"m{slot}" for slot in places}
    owners: dict[int, str] = {}
    for slot, count in zip(places, owned, strict=True):
        for _ in range(count):
            owners[len(owners)] = members[slot]
    partitions = len(owners) + free
    view = View(members, owners, None)
    shares = {token: share_of(token, view, partitions)[0] for token in members.values()}
    meant = [p for token in members.values() for p in share_of(token, view, partitions)[1]]
    assert len(meant) == len(set(meant))
    assert not set(meant) & owners.keys()
    surplus = any(count > shares[f"m{slot}"] for slot, count in zip(places, owned, strict=True))
    assert surplus or len(meant) == free
    assert sum(shares.values()) == partitions
    assert max(shares.values()) - min(shares.values()) <= 1
    most = max(owned)
    best = [shares[f"m{slot}"] for slot, count in zip(places, owned, strict=True) if count == most]
    assert max(best) == max(shares.values())


# -- anything, in any order --------------------------------------------------------------------------------------------

EVENTS = st.lists(
    st.tuples(st.sampled_from(["join", "stop", "kill", "pause", "away", "forget", "lossy"]), st.integers(0, 99)),
    min_size=1,
    max_size=7,
)


async def live_through(events: list[tuple[str, int]], partitions: int) -> None:
    world = World(partitions=partitions)
    for _ in range(2):
        await world.join()
    await world.walk(3)
    for event, number in events:
        members = world.alive
        member = members[number % len(members)]
        before = world.owners()
        count = len(members)
        if event == "join" and count < 5:
            await world.join()
            count += 1
        elif event == "stop" and count > 1:
            await member.stop()
            count -= 1
        elif event == "kill" and count > 1:
            await member.kill()
            count -= 1
        elif event == "pause":
            member.latency_s = (number % 4) / 10
            await world.walk((number % 13) / 10)
            member.pause()
            await world.walk(number / 10)
            await member.wake()
            member.latency_s = 0.0
        elif event == "away":
            world.away = True
            await world.walk(number / 10)
            world.away = False
        elif event == "forget":
            await world.walk((number % 10) / 10)
            world.forget()
        elif event == "lossy":
            for each in members:
                each.lose_replies = 0.3
            await world.walk(number / 10)
            for each in members:
                each.lose_replies = 0.0
        await world.walk_until(world.all_owned, within_s=5.0)
        await world.walk(4)
        assert world.shares() == sorted([partitions // count + (n < partitions % count) for n in range(count)])
        assert all(len(workers) == 1 for workers in world.workers().values())
        if event in {"join", "stop", "kill"}:
            assert moved(before, world.owners()) <= math.ceil(partitions / count)
        if event in {"away", "forget"}:
            assert moved(before, world.owners()) == 0
    await end(world)


@settings(max_examples=40, deadline=None)
@given(events=EVENTS, partitions=st.sampled_from([1, 3, 8, 17]))
def test_whatever_happens_there_are_never_two_owners_and_soon_there_is_one(
    events: list[tuple[str, int]], partitions: int
) -> None:
    asyncio.run(live_through(events, partitions))
