"""The Redis adapters under their contracts, against a real server; and what only the bus promises: ids and fences."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis import Redis
from servers import RedisProgram

from tapewatch import wire
from tapewatch.adapters import redis_writers
from tapewatch.adapters.redis import RedisBus
from tapewatch.adapters.redis_hot_state import RENEW, RedisHotState
from tapewatch.adapters.redis_server import RedisServer
from tapewatch.adapters.redis_streams import APPEND
from tapewatch.contracts.bus import BusContract, numbers
from tapewatch.contracts.hot_state import HotStateContract
from tapewatch.contracts.samples import PATIENCE_S, number_of, numbered, soon
from tapewatch.engine.columns import make_batch
from tapewatch.errors import LeaseLost, PositionLost, Unavailable
from tapewatch.ports import Bus, HotState, Position

pytestmark = pytest.mark.anyio


@pytest.fixture
def server(program: RedisProgram) -> RedisProgram:
    """Empty, and shared by the tests of this file."""
    program.empty()
    return program


@pytest.fixture
async def bus(server: RedisProgram) -> AsyncIterator[RedisBus]:
    bus = RedisBus(server.url, epoch=1)
    yield bus
    await bus.close()


@pytest.fixture
async def hot_state(server: RedisProgram) -> AsyncIterator[RedisHotState]:
    hot_state = RedisHotState(server.url)
    yield hot_state
    await hot_state.close()


async def has_served(server: RedisProgram, command: str, times: int) -> None:
    """Wait until the server has done that, counted since it was emptied."""
    with Redis.from_url(server.admin_url) as client:
        async with asyncio.timeout(PATIENCE_S):
            while client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"] < times:  # noqa: ASYNC110  # the server cannot be waited for
                await asyncio.sleep(0.01)


class TestRedisBus(BusContract):
    @pytest.fixture
    async def bus(self, server: RedisProgram) -> AsyncIterator[Bus]:
        bus = RedisBus(server.url, epoch=1, capacity=10, patience_s=0.3)
        yield bus
        await bus.close()

    @pytest.fixture
    def trimmed_after(self) -> int:
        return 60  # the server trims whole nodes of its list, each of 4 kB


class TestRedisHotState(HotStateContract):
    @pytest.fixture
    async def hot_state(self, server: RedisProgram) -> AsyncIterator[HotState]:
        hot_state = RedisHotState(server.url)
        yield hot_state
        await hot_state.close()


async def test_entry_is_kept_under_the_partitions_hash_tag_with_its_position_as_id(
    bus: RedisBus, server: RedisProgram
) -> None:
    await bus.publish("bars.finalized:7", numbered(1))
    await bus.publish("bars.finalized:7", numbered(2))
    with Redis.from_url(server.admin_url) as client:
        assert client.keys("*") == [b"bars.finalized:{7}"]
        rows = client.xrange("bars.finalized:{7}")
    assert [id_ for id_, _ in rows] == [b"1-1", b"1-2"]
    assert [body[b"after"] for _, body in rows] == [b"0-0", b"1-1"]
    assert number_of(wire.decode(rows[1][1][b"entry"])) == 2


class _Lossy:
    """Lets what a script asks for reach the server and loses the reply, or lets nothing through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.then: dict[str, str] = {}
        """By script what happens to its next call."""
        through = RedisServer.each

        async def each(server: RedisServer, script: str, *given: Any, **options: Any) -> list[Any]:
            then = self.then.pop(script, "pass")
            if then == "lose the command":
                raise Unavailable("planted")
            replies = await through(server, script, *given, **options)
            if then == "lose the reply":
                raise Unavailable("planted")
            return replies

        monkeypatch.setattr(RedisServer, "each", each)


@pytest.fixture
def lossy(monkeypatch: pytest.MonkeyPatch) -> _Lossy:
    return _Lossy(monkeypatch)


@pytest.mark.parametrize("loss", ["lose the command", "lose the reply"])
async def test_write_of_unknown_fate_that_is_tried_again_is_there_once(bus: RedisBus, lossy: _Lossy, loss: str) -> None:
    await bus.publish("ticks:0", numbered(0))
    for _ in range(2):
        lossy.then[APPEND] = loss
        with pytest.raises(Unavailable):
            await bus.publish("ticks:0", numbered(1))
    assert await bus.publish("ticks:0", numbered(1)) == Position(1, 2)
    assert await bus.publish("ticks:0", numbered(2)) == Position(1, 3)
    assert await numbers(bus.read("ticks:0"), 3) == [0, 1, 2]


@pytest.mark.parametrize("loss", ["lose the command", "lose the reply"])
async def test_first_write_after_taking_over_may_be_tried_again(bus: RedisBus, lossy: _Lossy, loss: str) -> None:
    await bus.publish("ticks:0", numbered(0))
    await bus.take_over("ticks:0")
    for _ in range(2):
        lossy.then[APPEND] = loss
        with pytest.raises(Unavailable):
            await bus.publish("ticks:0", numbered(1))
    position = await bus.publish("ticks:0", numbered(1))
    assert position.sequence == 1
    assert await bus.publish("ticks:0", numbered(2)) == Position(position.epoch, 2)
    assert await numbers(bus.read("ticks:0"), 3) == [0, 1, 2]


@pytest.mark.parametrize(
    ("loss", "expected", "epoch_is_kept"),
    [("lose the command", [0, 2, 3], False), ("lose the reply", [0, 1, 2, 3], True)],
)
async def test_write_of_unknown_fate_that_is_given_up_leaves_no_hole_and_its_position_to_nobody(
    bus: RedisBus, lossy: _Lossy, loss: str, expected: list[int], *, epoch_is_kept: bool
) -> None:
    await bus.publish("ticks:0", numbered(0))
    lossy.then[APPEND] = loss
    with pytest.raises(Unavailable):
        await bus.publish("ticks:0", numbered(1))
    position = await bus.publish("ticks:0", numbered(2))
    assert position == Position(1, 3) if epoch_is_kept else position > Position(2, 0)
    assert await bus.publish("ticks:0", numbered(3)) == Position(position.epoch, position.sequence + 1)
    assert await numbers(bus.read("ticks:0"), len(expected)) == expected


@pytest.mark.parametrize("loss", ["lose the command", "lose the reply"])
async def test_entries_of_unknown_fate_for_many_streams_are_there_once_when_tried_again(
    bus: RedisBus, lossy: _Lossy, loss: str
) -> None:
    streams = [f"ticks:{number}" for number in range(5)]
    await bus.publish_all(dict.fromkeys(streams[:3], numbered(0)))
    for number in (1, 2):
        lossy.then[APPEND] = loss
        with pytest.raises(Unavailable):
            await bus.publish_all(dict.fromkeys(streams, numbered(number)))
        await bus.publish_all(dict.fromkeys(streams, numbered(number)))
    for stream in streams:
        expected = [0, 1, 2] if stream in streams[:3] else [1, 2]
        assert await bus.tail(stream) == Position(1, len(expected))
        assert await numbers(bus.read(stream), len(expected)) == expected


async def test_stream_whose_neighbour_failed_has_its_entry_once_when_all_are_tried_again(
    bus: RedisBus, server: RedisProgram
) -> None:
    given = {f"ticks:{stream}": numbered(0) for stream in range(3)}
    await bus.publish_all(given)
    other = RedisBus(server.url, epoch=2)
    await other.publish("ticks:1", numbered(100))
    await other.close()
    for _ in range(2):
        with pytest.raises(LeaseLost, match="ticks:1 has another writer"):
            await bus.publish_all(given)
    await bus.take_over("ticks:1")
    positions = await bus.publish_all(given)
    assert positions.pop("ticks:1").sequence == 1
    assert positions == {"ticks:0": Position(1, 2), "ticks:2": Position(1, 2)}
    assert await bus.publish("ticks:0", numbered(0)) == Position(1, 3)
    assert await numbers(bus.read("ticks:2"), 2) == [0, 0]


async def test_hold_whose_reply_was_lost_may_be_asked_again(hot_state: RedisHotState, lossy: _Lossy) -> None:
    lossy.then[RENEW] = "lose the reply"
    with pytest.raises(Unavailable):
        await hot_state.hold(["a", "b"], "me", ttl_s=60.0)
    assert await hot_state.hold(["a", "b"], "you", ttl_s=60.0) == [False, False]
    assert await hot_state.hold(["a", "b"], "me", ttl_s=60.0) == [True, True]


async def test_cancelled_write_leaves_no_hole_and_no_broken_connection(bus: RedisBus) -> None:
    await bus.publish("ticks:0", numbered(0))
    for wait_s in (0.0, 0.0001, 0.0002, 0.0005, 0.001):
        writing = asyncio.ensure_future(bus.publish("ticks:0", numbered(1)))
        await asyncio.sleep(wait_s)
        writing.cancel()
        await asyncio.wait({writing})
        await bus.publish("ticks:0", numbered(1))
    tail = await bus.publish("ticks:0", numbered(2))
    assert await numbers(bus.read("ticks:0"), tail.sequence) == [0, *[1] * (tail.sequence - 2), 2]


async def test_writes_at_once_from_many_tasks_are_contiguous(bus: RedisBus) -> None:
    positions = await asyncio.gather(*(bus.publish("ticks:0", numbered(number)) for number in range(50)))
    assert sorted(positions) == [Position(1, sequence) for sequence in range(1, 51)]


async def test_older_writer_is_fenced_and_readers_go_on_across_epochs(bus: RedisBus, server: RedisProgram) -> None:
    await bus.publish("ticks:0", numbered(0))
    reader = bus.read("ticks:0")
    assert await numbers(reader, 1) == [0]
    after = await bus.publish("ticks:0", numbered(1))
    newer = RedisBus(server.url, epoch=2)
    assert await newer.publish("ticks:0", numbered(2)) == Position(2, 1)
    for _ in range(2):
        with pytest.raises(LeaseLost, match=r"ticks:0 has another writer: it ends at 2-1"):
            await bus.publish("ticks:0", numbered(99))
    assert await numbers(reader, 2) == [1, 2]
    assert await numbers(bus.read("ticks:0", after), 1) == [2]
    late = RedisBus(server.url, epoch=1)
    with pytest.raises(LeaseLost):
        await late.publish("ticks:0", numbered(99))
    assert await newer.publish("ticks:0", numbered(3)) == Position(2, 2)
    for other in (newer, late):
        await other.close()


async def test_last_entry_of_the_old_writer_may_come_while_the_new_one_takes_over(
    bus: RedisBus, server: RedisProgram
) -> None:
    await bus.publish("ticks:0", numbered(0))
    newer = RedisBus(server.url)
    await newer.take_over("ticks:0")
    await bus.publish("ticks:0", numbered(1))
    position = await newer.publish("ticks:0", numbered(2))
    assert position.sequence == 1
    assert await numbers(bus.read("ticks:0"), 3) == [0, 1, 2]
    with pytest.raises(LeaseLost, match="ticks:0 has another writer"):
        await bus.publish("ticks:0", numbered(99))
    await newer.close()


async def test_writer_that_was_fenced_stays_so_until_it_takes_over_again(bus: RedisBus, server: RedisProgram) -> None:
    other = RedisBus(server.url)
    writers = [bus, other] * 3
    for number, writer in enumerate(writers):
        await writer.take_over("ticks:0")
        await writer.publish("ticks:0", numbered(number))
        for _ in range(2):
            with pytest.raises(LeaseLost, match="another writer"):
                await writers[number - 1].publish("ticks:0", numbered(99)) if number else await other.publish(
                    "ticks:0", numbered(99)
                )
    assert await numbers(bus.read("ticks:0"), 6) == list(range(6))
    await other.close()


async def test_writer_that_gave_an_entry_up_does_not_take_the_stream_back(
    bus: RedisBus, server: RedisProgram, lossy: _Lossy
) -> None:
    await bus.take_over("ticks:0")
    await bus.publish("ticks:0", numbered(0))
    newer = RedisBus(server.url)
    await newer.take_over("ticks:0")
    lossy.then[APPEND] = "lose the command"
    with pytest.raises(Unavailable):
        await bus.publish("ticks:0", numbered(1))
    await newer.publish("ticks:0", numbered(2))
    for _ in range(2):
        with pytest.raises(LeaseLost, match="another writer"):
            await bus.publish("ticks:0", numbered(3))
    assert await numbers(bus.read("ticks:0"), 2) == [0, 2]
    await newer.close()


async def test_hole_between_epochs_is_a_lost_position(bus: RedisBus, server: RedisProgram) -> None:
    first = await bus.publish("ticks:0", numbered(0))
    await bus.publish("ticks:0", numbered(1))
    newer = RedisBus(server.url, epoch=2)
    await newer.publish("ticks:0", numbered(2))
    with Redis.from_url(server.admin_url) as client:
        client.xdel("ticks:{0}", "1-2")
    with pytest.raises(PositionLost, match=r"ticks:0 holds nothing that follows 1-1 directly; its next entry is 2-1"):
        await soon(anext(newer.read("ticks:0", first)))
    await newer.close()


async def test_stream_is_bounded_by_bytes(server: RedisProgram) -> None:
    bus = RedisBus(server.url, epoch=1, capacity_bytes=100_000)
    entry = make_batch(symbols=("A",), ts_ns=range(200))
    size = len(wire.encode(entry))
    for _ in range(60):
        await bus.publish("ticks:0", entry)
    with Redis.from_url(server.admin_url) as client:
        kept = client.xlen("ticks:{0}")
    await bus.close()
    assert 100_000 // size <= kept <= 100_000 // size + 1


async def test_topic_keeps_what_it_may_keep(server: RedisProgram) -> None:
    bus = RedisBus(server.url, epoch=1, capacity_by_topic={"board": 2})
    entry = make_batch(symbols=("A",), ts_ns=range(200))
    for _ in range(9):
        await bus.publish("board:0", entry)
        await bus.publish("ticks:0", entry)
    with Redis.from_url(server.admin_url) as client:
        assert (client.xlen("board:{0}"), client.xlen("ticks:{0}")) == (2, 9)
    await bus.close()


async def test_server_that_lost_more_than_is_remembered_stops_writer_and_readers(
    server: RedisProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_writers, "REMEMBERED_BYTES", 0)
    bus = RedisBus(server.url, patience_s=0.3)
    tail = [await bus.publish("ticks:0", numbered(number)) for number in range(3)][-1]
    reader = bus.read("ticks:0", tail)
    waiting = asyncio.ensure_future(anext(reader))
    await has_served(server, "xread", 2)
    server.empty()
    with pytest.raises(PositionLost, match="ticks:0 ends at 0-0"):
        await soon(waiting)
    for _ in range(2):
        with pytest.raises(LeaseLost, match="lost entries"):
            await bus.publish("ticks:0", numbered(3))
    await bus.take_over("ticks:0")
    assert await bus.publish("ticks:0", numbered(3)) > tail
    with pytest.raises(PositionLost, match="holds nothing that follows 1-3 directly"):
        await soon(anext(reader))
    await bus.close()


async def test_entry_that_cannot_be_read_is_left_out_counted_and_logged(
    bus: RedisBus, server: RedisProgram, caplog: pytest.LogCaptureFixture
) -> None:
    await bus.publish("ticks:0", numbered(0))
    with Redis.from_url(server.admin_url) as client:
        client.xadd("ticks:{0}", {"after": "1-1", "entry": b"\x00\xff"}, id="1-2")
        client.xadd("ticks:{0}", {"after": "1-2", "entry": wire.encode(numbered(2))}, id="1-3")
    assert await numbers(bus.read("ticks:0"), 2) == [0, 2]
    assert bus.unreadable == 1
    assert "ticks:0 1-2 cannot be read" in caplog.text


async def test_cancelled_wait_keeps_the_readers_place(bus: RedisBus) -> None:
    reader, listener = bus.read("ticks:0"), bus.listen("a")
    for _ in range(3):
        for iterator in (reader, listener):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await anext(iterator)
    assert not bus._readers._fetching
    await bus.publish("ticks:0", numbered(5))
    await bus.notify("a", b"5")
    assert await numbers(reader, 1) == [5]
    assert await soon(anext(listener)) == b"5"


async def test_reader_waits_through_silence(server: RedisProgram) -> None:
    bus = RedisBus(server.url, epoch=1, timeout_s=0.2)
    reader = bus.read("ticks:0", await bus.publish("ticks:0", numbered(0)))
    waiting = asyncio.ensure_future(numbers(reader, 1))
    await has_served(server, "xread", 4)  # all but the first waited, and found nothing
    await bus.publish("ticks:0", numbered(1))
    assert await soon(waiting) == [1]
    await bus.close()


async def test_listener_waits_through_silence(server: RedisProgram) -> None:
    bus = RedisBus(server.url, epoch=1, timeout_s=0.2)
    bus._notices._silence_s = 0.05
    listener = bus.listen("a")
    waiting = asyncio.ensure_future(anext(listener))
    await has_served(server, "ping", 3)  # asked whether it is there
    await bus.notify("a", b"1")
    assert await soon(waiting) == b"1"
    await bus.close()


async def test_listener_drops_its_oldest_notices_counts_them_and_warns_once(
    server: RedisProgram, caplog: pytest.LogCaptureFixture
) -> None:
    bus = RedisBus(server.url, epoch=1, notices=3)
    slow, quick = bus.listen("a"), bus.listen("a")
    for number in range(10):
        await bus.notify("a", b"%d" % number)
        assert await soon(anext(quick)) == b"%d" % number
    assert [await soon(anext(slow)) for _ in range(3)] == [b"7", b"8", b"9"]
    assert bus.notices_dropped == 7
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["a listener of a is slow; its oldest notices are dropped"]
    await bus.close()


async def test_channel_without_a_listener_is_left_and_can_be_joined_again(bus: RedisBus, server: RedisProgram) -> None:
    keep = bus.listen("kept")
    for _ in range(3):
        listener = bus.listen("a")
        await bus.notify("a", b"1")
        assert await soon(anext(listener)) == b"1"
        del listener
    with Redis.from_url(server.admin_url) as client:
        async with asyncio.timeout(10):
            while client.pubsub_channels() != [b"kept"]:  # noqa: ASYNC110  # the server cannot be waited for
                await asyncio.sleep(0.01)
        del keep
        async with asyncio.timeout(10):
            while client.pubsub_channels():  # noqa: ASYNC110  # the same
                await asyncio.sleep(0.01)
    listener = bus.listen("a")
    await bus.notify("a", b"2")
    assert await soon(anext(listener)) == b"2"


async def test_closed_bus_is_unavailable_and_its_readers_end_at_once(bus: RedisBus) -> None:
    await bus.publish("ticks:0", numbered(0))
    early = bus.read("ticks:0")
    await bus.close()
    for iterator in (early, bus.read("ticks:9"), bus.listen("a")):
        with pytest.raises(StopAsyncIteration):
            await anext(iterator)
    for call in (bus.publish("ticks:0", numbered(1)), bus.notify("a", b""), bus.tail("ticks:0")):
        with pytest.raises(Unavailable, match="the bus is closed"):
            await call


@pytest.mark.parametrize("wrong", [{"capacity": 0}, {"notices": 0}, {"capacity_by_topic": {"board": 0}}, {"epoch": 0}])
def test_bus_without_room_or_epoch_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"at least one|an epoch"):
        RedisBus("redis://localhost", **{"epoch": 1, **wrong})  # type: ignore[arg-type]  # wrong on purpose


async def test_readers_that_come_at_any_moment_miss_nothing(bus: RedisBus) -> None:
    async def read(turns: int) -> list[int]:
        for _ in range(turns):
            await asyncio.sleep(0)
        return await numbers(bus.read("ticks:0"), 200)

    await bus.publish("ticks:0", numbered(0))
    readers = [asyncio.ensure_future(read(11 * late)) for late in range(100)]
    for number in range(1, 200):
        await bus.publish("ticks:0", numbered(number))
    assert await asyncio.gather(*readers) == [list(range(200))] * 100
