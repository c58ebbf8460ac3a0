"""Back-off of failed attempts, of one process and of several."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapewatch.adapters.memory import MemoryHotState
from tapewatch.engine.columns import SECOND_NS
from tapewatch.errors import Unavailable
from tapewatch.serve.attempts import MOST_KEYS, Attempts

pytestmark = pytest.mark.anyio
NOW_NS = 1_800_000_000 * SECOND_NS


class Failing(MemoryHotState):
    """Away while it is told to be."""

    away = False

    async def get(self, keys: Sequence[str]) -> list[bytes | None]:
        if self.away:
            raise Unavailable("away")
        return await super().get(keys)


class Crowded(MemoryHotState):
    """Others come in between."""

    async def get(self, keys: Sequence[str]) -> list[bytes | None]:
        found = await super().get(keys)
        await asyncio.sleep(0)
        return found


def attempts(hot: MemoryHotState, *, free: int = 1, longest_s: int = 10) -> Attempts:
    return Attempts("address", hot, free=free, longest_s=longest_s)


async def test_some_are_free_and_then_each_waits_twice_as_long(hot: MemoryHotState) -> None:
    trying = attempts(hot, free=3)
    now_ns, waits = NOW_NS, []
    for _ in range(10):
        wait_s = await trying.wait_s("ann", now_ns)
        assert wait_s == 0 or await trying.begin("ann", now_ns) == wait_s
        waits.append(wait_s)
        now_ns += wait_s * SECOND_NS
        assert await trying.begin("ann", now_ns) == 0
    assert waits == [0, 0, 0, 1, 2, 4, 8, 10, 10, 10]


async def test_others_do_not_wait(hot: MemoryHotState) -> None:
    trying = attempts(hot)
    await trying.begin("ann", NOW_NS)
    assert (await trying.wait_s("ann", NOW_NS), await trying.wait_s("bob", NOW_NS)) == (1, 0)
    accounts = Attempts("account", hot, free=1, longest_s=10)
    assert await accounts.wait_s("ann", NOW_NS) == 0


async def test_success_forgets_and_an_hour_does(hot: MemoryHotState) -> None:
    trying = attempts(hot)
    await trying.begin("ann", NOW_NS)
    await trying.forget("ann")
    assert await trying.wait_s("ann", NOW_NS) == 0
    now_ns = NOW_NS
    for _ in range(20):
        await trying.begin("ann", now_ns)
        now_ns += 10 * SECOND_NS
    later_ns = now_ns + 3_601 * SECOND_NS
    await trying.begin("ann", later_ns)
    assert await trying.wait_s("ann", later_ns) == 1


async def test_one_that_did_not_fail_is_taken_back(hot: MemoryHotState) -> None:
    trying = attempts(hot)
    await trying.begin("here", NOW_NS)
    await trying.take_back("here")
    await trying.take_back("nowhere")
    assert await trying.wait_s("here", NOW_NS) == 0
    assert len(hot) == 0


async def test_processes_count_together() -> None:
    hot = Crowded()
    processes = [attempts(hot, free=5, longest_s=60) for _ in range(3)]
    answers = await asyncio.gather(*(one.begin("ann", NOW_NS) for one in processes * 10))
    assert sorted(answers) == [0] * 5 + [1] * 25
    assert [await one.wait_s("ann", NOW_NS) for one in processes] == [1] * 3
    later_ns = NOW_NS + SECOND_NS
    answers = await asyncio.gather(*(one.begin("ann", later_ns) for one in processes))
    assert sorted(answers) == [0, 2, 2]
    await processes[1].forget("ann")
    assert [await one.wait_s("ann", later_ns) for one in processes] == [0] * 3


async def test_process_goes_on_by_its_own_count_while_hot_state_is_away() -> None:
    hot = Failing()
    one, two = attempts(hot, free=2), attempts(hot, free=2)
    assert [await each.begin("ann", NOW_NS) for each in (two, one)] == [0, 0]  # what each heard last
    hot.away = True
    assert (await one.wait_s("ann", NOW_NS), await one.begin("ann", NOW_NS)) == (1, 1)
    assert [await two.begin("ann", NOW_NS) for _ in range(2)] == [0, 1]
    await two.forget("ann")
    assert await two.begin("ann", NOW_NS) == 0
    hot.away = False
    assert await two.begin("ann", NOW_NS) == 1


async def test_what_somebody_else_wrote_there_is_no_count(hot: MemoryHotState) -> None:
    trying = attempts(hot)
    (place,) = [trying._place("ann")]
    await hot.put({place: b"many"}, ttl_s=60)
    assert await trying.begin("ann", NOW_NS) == 0
    assert await trying.begin("ann", NOW_NS) == 1


async def test_made_up_keys_do_not_fill_memory_here_or_there(hot: MemoryHotState) -> None:
    trying = attempts(hot)
    for number in range(MOST_KEYS + 500):
        await trying.begin(str(number), NOW_NS)
    assert len(trying._own) == len(hot) == MOST_KEYS
    assert (await trying.wait_s("0", NOW_NS), await trying.wait_s(str(MOST_KEYS), NOW_NS)) == (0, 1)


async def test_what_is_tried_does_not_stand_in_hot_state(hot: MemoryHotState) -> None:
    await attempts(hot).begin("a password typed as a name" * 10, NOW_NS)
    (place,) = hot._facts
    assert "password" not in place
    assert len(place) < 60


STEPS = st.lists(
    st.tuples(st.sampled_from(["begin", "take_back", "forget"]), st.booleans(), st.sampled_from([0, 1, 7, 90, 4_000])),
    max_size=40,
)


@given(STEPS)
def test_two_processes_are_as_strict_as_one_that_remembers_all(steps: list[tuple[str, bool, int]]) -> None:
    async def compare() -> None:
        hot = MemoryHotState(monotonic=lambda: 0.0)
        processes = {side: attempts(hot, free=3, longest_s=60) for side in (True, False)}
        count, last_ns, now_ns = 0, 0, NOW_NS
        for what, side, pause_s in steps:
            now_ns += pause_s * SECOND_NS
            if now_ns - last_ns > 3_600 * SECOND_NS:
                count = 0
            expected = 0
            if count >= 3:
                expected = max(0, last_ns // SECOND_NS + min(2 ** (count - 3), 60) - now_ns // SECOND_NS)
            assert await processes[side].wait_s("ann", now_ns) == expected
            if what == "begin":
                assert await processes[side].begin("ann", now_ns) == expected
                if not expected:
                    count, last_ns = count + 1, now_ns
            else:
                await getattr(processes[side], what)("ann")
                count = 0 if what == "forget" else max(0, count - 1)

    asyncio.run(compare())
