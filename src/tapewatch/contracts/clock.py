"""What every `Clock` keeps its word about. The fixture is named by `ClockContract`."""

import asyncio

import pytest

from tapewatch.ports import Clock


@pytest.mark.anyio
class ClockContract:
    """Give `clock`."""

    @pytest.fixture
    def clock(self) -> Clock:
        raise NotImplementedError

    async def test_now_is_whole_nanoseconds(self, clock: Clock) -> None:
        assert isinstance(clock.now_ns(), int)

    async def test_sleep_moves_now_by_no_less(self, clock: Clock) -> None:
        before_ns = clock.now_ns()
        await clock.sleep(0.02)
        # A wall clock may be slewed meanwhile, and the loop's timer is a little coarse.
        assert clock.now_ns() - before_ns >= 15_000_000

    async def test_sleep_of_nothing_lets_others_run(self, clock: Clock) -> None:
        ran = asyncio.Event()
        asyncio.get_running_loop().call_soon(ran.set)
        await clock.sleep(0)
        assert ran.is_set()
