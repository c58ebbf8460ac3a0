"""The memory adapters under their contracts, and what only they promise: their bounds."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator

import numpy as np
import pytest

from tapewatch.adapters.memory import TURN, MemoryBus, MemoryHotState
from tapewatch.contracts.bus import BusContract, numbers
from tapewatch.contracts.hot_state import Elapse, HotStateContract
from tapewatch.contracts.samples import number_of, numbered, soon
from tapewatch.engine.board import BoardRows
from tapewatch.engine.columns import make_batch
from tapewatch.errors import PositionLost, Unavailable
from tapewatch.ports import Bus, HotState, Position, Ranked

pytestmark = pytest.mark.anyio


class FakeTime:
    def __init__(self) -> None:
        self.now_s = 1_000.25

    def __call__(self) -> float:
        return self.now_s

    async def elapse(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def fake_time() -> FakeTime:
    return FakeTime()


class TestMemoryBus(BusContract):
    @pytest.fixture
    async def bus(self) -> AsyncIterator[Bus]:
        bus = MemoryBus(capacity=10)
        yield bus
        await bus.close()

    @pytest.fixture
    def trimmed_after(self) -> int:
        return 11


class TestMemoryHotState(HotStateContract):
    @pytest.fixture
    async def hot_state(self, fake_time: FakeTime) -> AsyncIterator[HotState]:
        hot_state = MemoryHotState(monotonic=fake_time)
        yield hot_state
        await hot_state.close()

    @pytest.fixture
    def elapse(self, fake_time: FakeTime) -> Elapse:
        return fake_time.elapse


class TestMemoryHotStateInRealTime(HotStateContract):
    @pytest.fixture
    async def hot_state(self) -> AsyncIterator[HotState]:
        hot_state = MemoryHotState()
        yield hot_state
        await hot_state.close()


async def test_stream_keeps_what_its_topic_may_keep() -> None:
    bus = MemoryBus(capacity=6, capacity_by_topic={"board": 2})
    for number in range(9):
        await bus.publish("ticks:0", numbered(number))
        await bus.publish("board:0", numbered(number))
    assert await numbers(bus.read("ticks:0"), 6) == [3, 4, 5, 6, 7, 8]
    assert await numbers(bus.read("board:0"), 2) == [7, 8]
    assert await numbers(bus.read("board:0", Position(1, 7)), 2) == [7, 8]
    with pytest.raises(PositionLost, match=r"board:0 holds 8 to 9, counted from its beginning; the reader wanted 7"):
        await anext(bus.read("board:0", Position(1, 6)))


async def test_position_of_another_epoch_is_lost() -> None:
    bus = MemoryBus(epoch=7)
    assert await bus.publish("ticks:0", numbered(0)) == Position(7, 1)
    for epoch in (6, 8):
        with pytest.raises(PositionLost, match="ticks:0 is in epoch 7"):
            await anext(bus.read("ticks:0", Position(epoch, 0)))


async def test_cancelled_wait_keeps_the_readers_place_and_leaves_nothing_behind() -> None:
    bus = MemoryBus()
    reader, listener = bus.read("ticks:0"), bus.listen("a")
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await anext(reader)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await anext(listener)
    assert not bus._streams["ticks:0"].published._waiting
    await bus.publish("ticks:0", numbered(5))
    await bus.notify("a", b"5")
    assert await numbers(reader, 1) == [5]
    assert await soon(anext(listener)) == b"5"


async def test_writer_that_never_waits_does_not_outrun_a_reader() -> None:
    bus = MemoryBus(capacity=8)
    reading = asyncio.ensure_future(numbers(bus.read("ticks:0"), 1_000))
    for number in range(1_000):
        await bus.publish("ticks:0", numbered(number))
    assert await reading == list(range(1_000))


async def test_reader_that_catches_up_lets_others_run() -> None:
    bus = MemoryBus()
    for number in range(4 * TURN):
        await bus.publish("ticks:0", numbered(number))
    turns = 0
    reading = True

    async def others() -> None:
        nonlocal turns
        while reading:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.ensure_future(others())
    async for _, entry in bus.read("ticks:0"):
        if number_of(entry) == 4 * TURN - 1:
            break
    reading = False
    await other
    assert turns >= 4


async def test_listener_drops_its_oldest_notices_counts_them_and_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    bus = MemoryBus(notices=3)
    slow, quick = bus.listen("a"), bus.listen("a")
    with caplog.at_level(logging.WARNING):
        for number in range(10):
            await bus.notify("a", b"%d" % number)
            assert await anext(quick) == b"%d" % number
    assert [await anext(slow) for _ in range(3)] == [b"7", b"8", b"9"]
    assert bus.notices_dropped == 7
    assert [record.message for record in caplog.records] == ["a listener of a is slow; its oldest notices are dropped"]


async def test_listener_that_left_is_forgotten_with_its_channel() -> None:
    bus = MemoryBus()
    for number in range(100):
        listener = bus.listen(f"user:{number}")
        await bus.notify(f"user:{number}", b"x")
        async for _ in listener:
            break
    del listener
    gc.collect()
    assert not bus._listeners.channels


async def test_closed_bus_is_unavailable_and_its_readers_end_at_once() -> None:
    bus = MemoryBus()
    await bus.publish("ticks:0", numbered(0))
    early = bus.read("ticks:0")
    await bus.close()
    for iterator in (early, bus.read("ticks:0"), bus.read("ticks:9"), bus.listen("a")):
        with pytest.raises(StopAsyncIteration):
            await anext(iterator)
    for call in (bus.publish("ticks:0", numbered(1)), bus.notify("a", b""), bus.tail("ticks:0")):
        with pytest.raises(Unavailable):
            await call


async def test_entry_is_handed_on_without_a_copy() -> None:
    bus = MemoryBus()
    values = np.zeros((2, 3))
    board = BoardRows(ts_ns=0, session="regular", symbols=("A", "B", "C"), metrics=("x", "y"), values=values)
    await bus.publish("board:0", board)
    _, arrived = await anext(bus.read("board:0"))
    assert arrived is board
    assert not values.flags.writeable


@pytest.mark.parametrize("wrong", [{"capacity": 0}, {"notices": 0}, {"capacity_by_topic": {"board": 0}}])
def test_bus_without_room_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        MemoryBus(**wrong)  # type: ignore[arg-type]


async def test_expired_keys_are_removed_whatever_is_called_next(fake_time: FakeTime) -> None:
    hot_state = MemoryHotState(monotonic=fake_time)
    for round_ in range(20):
        await hot_state.put({f"a:{round_}:{n}": b"x" for n in range(50)}, ttl_s=5.0)
        await hot_state.claim(f"b:{round_}", "me", ttl_s=5.0)
        await hot_state.rank(f"c:{round_}", [Ranked("A", 1.0)], ttl_s=5.0)
        await fake_time.elapse(1.0)
        assert len(hot_state) <= 6 * 52
    await fake_time.elapse(6.0)
    await hot_state.get([])
    assert len(hot_state) == len(hot_state._due) == len(hot_state._seconds) == 0


async def test_renewing_a_key_does_not_pile_up(fake_time: FakeTime) -> None:
    hot_state = MemoryHotState(monotonic=fake_time)
    for _ in range(5_000):
        assert await hot_state.claim("lease", "me", ttl_s=10.0, renew=True)
        await hot_state.put({"livebar:A": b"x"}, ttl_s=10.0)
        await hot_state.claim("other", "me", ttl_s=10.0)
        await hot_state.release("other", "me")
        await fake_time.elapse(0.01)
    assert len(hot_state) == 2
    assert len(hot_state._due) == len(hot_state._seconds) <= 12
    assert sum(map(len, hot_state._due.values())) == 2


async def test_full_hot_state_refuses_new_keys_until_something_expires(fake_time: FakeTime) -> None:
    hot_state = MemoryHotState(monotonic=fake_time, max_keys=3)
    await hot_state.put({"a": b"1"}, ttl_s=5.0)
    await hot_state.put({"b": b"1", "c": b"1"}, ttl_s=50.0)
    await hot_state.put({"a": b"2", "b": b"2"}, ttl_s=5.0)
    for call in (hot_state.put({"a": b"3", "d": b"3"}, ttl_s=5.0), hot_state.claim("d", "me", ttl_s=5.0)):
        with pytest.raises(Unavailable, match="full"):
            await call
    assert await hot_state.get(["a", "b", "c", "d"]) == [b"2", b"2", b"1", None]
    await fake_time.elapse(6.0)
    assert await hot_state.claim("d", "me", ttl_s=5.0)


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, float("nan"), float("inf")])
async def test_time_to_live_that_is_none_is_refused(ttl_s: float) -> None:
    hot_state = MemoryHotState()
    for call in (
        hot_state.put({"a": b"1"}, ttl_s=ttl_s),
        hot_state.claim("a", "me", ttl_s=ttl_s),
        hot_state.rank("a", [], ttl_s=ttl_s),
    ):
        with pytest.raises(ValueError, match="ttl_s"):
            await call
    assert len(hot_state) == 0


async def test_score_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        await MemoryHotState().rank("a", [Ranked("A", float("nan"))], ttl_s=1.0)


async def test_closed_hot_state_is_unavailable() -> None:
    hot_state = MemoryHotState()
    await hot_state.put({"a": b"1"}, ttl_s=5.0)
    await hot_state.close()
    with pytest.raises(Unavailable):
        await hot_state.get(["a"])


@pytest.mark.anyio
async def test_stream_full_by_bytes_drops_oldest_entries() -> None:
    bus = MemoryBus(capacity_bytes=10_000)
    for _ in range(20):
        await bus.publish("ticks:0", make_batch(symbols=("A",), ts_ns=range(100)))  # 4,300 bytes of columns
    with pytest.raises(PositionLost):
        await anext(bus.read("ticks:0", Position(1, 1)))
    entries = bus.read("ticks:0")
    assert [(await anext(entries))[0].sequence for _ in range(2)] == [19, 20]
