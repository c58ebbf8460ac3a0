"""A real Redis server that comes back without its newest entries: the writer that lives puts them back, and nobody who
reads loses one or sees one twice.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from followers import Follower, published
from redis import Redis
from servers import RedisProgram

from tapewatch.adapters import redis_writers
from tapewatch.adapters.redis import RedisBus
from tapewatch.contracts.bus import numbers
from tapewatch.contracts.samples import numbered, soon
from tapewatch.errors import LeaseLost, PositionLost
from tapewatch.ports import Position

pytestmark = pytest.mark.anyio
CUT_BYTES = 9_000
"""Of the server's log: a dozen entries."""


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[RedisProgram]:
    mortal = RedisProgram(tmp_path)
    mortal.start()
    yield mortal
    mortal.kill()


@pytest.fixture
async def writer(mortal: RedisProgram) -> AsyncIterator[RedisBus]:
    writer = RedisBus(mortal.url)
    yield writer
    await writer.close()


@pytest.fixture
async def elsewhere(mortal: RedisProgram) -> AsyncIterator[RedisBus]:
    """Another process, as far as the server can see."""
    elsewhere = RedisBus(mortal.url)
    yield elsewhere
    await elsewhere.close()


async def test_entries_cut_off_the_servers_log_are_put_back_before_anything_is_published(
    mortal: RedisProgram, writer: RedisBus, elsewhere: RedisBus
) -> None:
    streams = ["ticks:0", "ticks:1", "alerts:0"]
    followers = [Follower(bus, stream) for bus in (writer, elsewhere) for stream in streams]
    for number in range(30):
        positions = await writer.publish_all(dict.fromkeys(streams, numbered(number)))
    for follower in followers:
        await follower.has(30)
    mortal.kill()
    mortal.cut(CUT_BYTES)
    mortal.start()
    late = Follower(elsewhere, "ticks:0")
    await late.has(30)
    assert {stream: await elsewhere.tail(stream) for stream in streams} == positions
    assert writer.put_back > 3
    for number in range(30, 40):
        await published(writer, streams, number)
    for follower in (*followers, late, Follower(elsewhere, "ticks:1")):
        assert await follower.has(40) == list(range(40))
        await follower.stop()


async def test_entries_lost_twice_while_the_writer_publishes_are_there_once_and_in_order(
    mortal: RedisProgram, writer: RedisBus, elsewhere: RedisBus
) -> None:
    streams = ["ticks:0", "ticks:1"]
    await writer.take_over("ticks:0")
    followers = [Follower(elsewhere, stream) for stream in streams]

    async def publish_all() -> None:
        for number in range(200):
            await published(writer, streams, number)
            await asyncio.sleep(0.005)

    publishing = asyncio.ensure_future(publish_all())
    for reached in (40, 100):
        await followers[0].has(reached)
        mortal.kill()
        mortal.cut(CUT_BYTES)
        mortal.start()
    await publishing
    assert writer.put_back > 0
    for follower in (*followers, Follower(elsewhere, "ticks:0"), Follower(elsewhere, "ticks:1")):
        assert await follower.has(200) == list(range(200))
        await follower.stop()


async def test_emptied_server_gets_everything_back_that_is_remembered(
    mortal: RedisProgram, writer: RedisBus, elsewhere: RedisBus
) -> None:
    positions = [await writer.publish("ticks:0", numbered(number)) for number in range(5)]
    reader = elsewhere.read("ticks:0", positions[2])
    mortal.empty()
    assert await writer.publish("ticks:0", numbered(5)) == Position(1, 6)
    assert await numbers(reader, 3) == [3, 4, 5]
    assert await numbers(elsewhere.read("ticks:0"), 6) == [0, 1, 2, 3, 4, 5]
    await elsewhere.reached("bars", {"ticks:0": positions[2]})
    assert await elsewhere.lag("bars", ["ticks:0"]) == {"ticks:0": 3}


async def test_much_is_put_back_piece_by_piece(
    mortal: RedisProgram, writer: RedisBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_writers, "PIECE_BYTES", 500)
    for number in range(50):
        await writer.publish("ticks:0", numbered(number))
    mortal.empty()
    await writer.publish("ticks:0", numbered(50))
    assert writer.put_back == 50
    assert await numbers(writer.read("ticks:0"), 51) == list(range(51))


async def test_what_was_lost_is_not_put_back_behind_a_newer_writer(
    mortal: RedisProgram, writer: RedisBus, elsewhere: RedisBus
) -> None:
    for number in range(3):
        position = await writer.publish("ticks:0", numbered(number))
    with Redis.from_url(mortal.admin_url) as client:
        client.delete("ticks:{0}")
    await elsewhere.take_over("ticks:0")
    await elsewhere.publish("ticks:0", numbered(100))
    with pytest.raises(LeaseLost, match="another writer"):
        await writer.publish("ticks:0", numbered(3))
    assert writer.put_back == 0
    assert await numbers(writer.read("ticks:0"), 1) == [100]
    with pytest.raises(PositionLost):
        await soon(anext(writer.read("ticks:0", position)))
