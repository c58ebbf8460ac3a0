"""What a stream on a real Redis server keeps, and what others see of its readers."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
from redis import Redis
from servers import RedisProgram

from tapewatch.adapters import redis_writers
from tapewatch.adapters.redis import RedisBus
from tapewatch.adapters.redis_writers import Limits, Writer
from tapewatch.contracts.bus import numbers
from tapewatch.contracts.samples import numbered
from tapewatch.ports import Position

pytestmark = pytest.mark.anyio


@pytest.fixture
def server(program: RedisProgram) -> RedisProgram:
    program.empty()
    return program


@pytest.fixture
async def bus(server: RedisProgram) -> AsyncIterator[RedisBus]:
    bus = RedisBus(server.url)
    yield bus
    await bus.close()


def grow_older(bus: RedisBus, stream: str, seconds: float) -> None:
    """As if what the writer published had been published that much earlier."""
    writer = bus._writers._writers[stream]
    writer.opened_s -= seconds
    for index, held in enumerate(writer.held):
        writer.held[index] = held._replace(at_s=held.at_s - seconds)


async def test_entries_older_than_their_topic_keeps_them_go_with_the_next_one(
    bus: RedisBus, server: RedisProgram
) -> None:
    for number in range(300):
        await bus.publish_all({"ticks:0": numbered(number), "alerts:0": numbered(number)})
    for stream in ("ticks:0", "alerts:0"):
        grow_older(bus, stream, 901.0)
    for number in range(300, 310):
        await bus.publish_all({"ticks:0": numbered(number), "alerts:0": numbered(number)})
    with Redis.from_url(server.admin_url) as client:
        assert client.xlen("ticks:{0}") < 120  # the server trims whole nodes of its list
        assert client.xlen("alerts:{0}") == 310
    seen = await numbers(bus.read("ticks:0"), client_length(server, "ticks:{0}"))
    assert seen[-10:] == list(range(300, 310))


def client_length(server: RedisProgram, key: str) -> int:
    with Redis.from_url(server.admin_url) as client:
        return int(client.xlen(key))


async def test_entries_of_an_earlier_writer_go_by_age_too(bus: RedisBus, server: RedisProgram) -> None:
    for number in range(300):
        await bus.publish("ticks:0", numbered(number))
    newer = RedisBus(server.url)
    await newer.take_over("ticks:0")
    await newer.publish("ticks:0", numbered(300))
    assert client_length(server, "ticks:{0}") == 301
    grow_older(newer, "ticks:0", 901.0)
    await newer.publish("ticks:0", numbered(301))
    assert client_length(server, "ticks:{0}") < 120
    await newer.close()


def test_writer_makes_room_by_number_bytes_and_age() -> None:
    writer = Writer(stream="x", key="x", epoch=1, limits=Limits(entries=4, bytes=100, age_s=60.0))
    writer.open(Position(0, 0), now_s=0.0)
    for number in range(4):
        assert writer.make_room(10, now_s=float(number)) == []
        assert writer.trim == ("MAXLEN", "4")
        writer.took(b"x" * 10, now_s=float(number))
    assert writer.make_room(10, now_s=4.0) == [Position(1, 1)]
    assert writer.trim == ("MINID", "1-2")
    assert writer.make_room(85, now_s=4.0) == [Position(1, 2), Position(1, 3)]
    writer.took(b"x" * 85, now_s=4.0)
    assert writer.make_room(1, now_s=64.5) == [Position(1, 4), Position(1, 5)]
    assert writer.trim == ("MINID", "1-6")


def test_writer_remembers_for_a_while_and_not_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_writers, "REMEMBERED_BYTES", 35)
    writer = Writer(stream="x", key="x", epoch=1, limits=Limits(entries=99, bytes=10_000, age_s=1e6))
    writer.open(Position(0, 0), now_s=0.0)
    positions = [writer.took(b"x" * 10, now_s=float(number)) for number in range(5)]
    assert [row.position for row in writer.missing(Position(1, 2))] == positions[2:]
    assert writer.missing(Position(1, 1)) == []
    writer.took(b"x" * 10, now_s=4.5 + redis_writers.REMEMBERED_S)
    assert [row.position for row in writer.missing(Position(1, 5))] == [Position(1, 6)]
    assert writer.missing(Position(1, 4)) == []
    assert writer.kept_bytes == 10


async def test_readers_are_consumer_groups_whose_lag_the_server_tells(bus: RedisBus, server: RedisProgram) -> None:
    positions = [await bus.publish("ticks:0", numbered(number)) for number in range(5)]
    await bus.take_over("ticks:0")
    positions += [await bus.publish("ticks:0", numbered(number)) for number in range(5, 9)]
    with Redis.from_url(server.admin_url) as client:
        for number, position in enumerate(positions):
            await bus.reached("bars", {"ticks:0": position})
            (group,) = client.xinfo_groups("ticks:{0}")
            assert (group["name"], group["lag"], group["pending"]) == (b"bars", 8 - number, 0)
            assert await bus.lag("bars", ["ticks:0"]) == {"ticks:0": 8 - number}
        await bus.reached("scanner", {"ticks:0": positions[2]})
        lags = {group["name"]: group["lag"] for group in client.xinfo_groups("ticks:{0}")}
    assert lags == {b"bars": 0, b"scanner": 6}


async def test_many_streams_are_reached_in_one_round_trip(bus: RedisBus, server: RedisProgram) -> None:
    streams = [f"ticks:{number}" for number in range(64)]
    positions = await bus.publish_all(dict.fromkeys(streams, numbered(0)))
    await bus.reached("bars", positions)
    await bus.reached("bars", positions)
    await bus.publish_all(dict.fromkeys(streams, numbered(1)))
    assert await bus.lag("bars", [*streams, "ticks:99"]) == dict.fromkeys(streams, 1)
    await bus.reached("bars", {"ticks:98": Position(5, 5)})  # of a stream that is gone
    assert await bus.lag("bars", ["ticks:98"]) == {}


async def test_reader_in_another_process_is_missed_and_one_that_is_gone_is_not(
    server: RedisProgram, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer, elsewhere = RedisBus(server.url, capacity=5), RedisBus(server.url)
    first = await writer.publish("ticks:0", numbered(0))
    await elsewhere.reached("bars", {"ticks:0": first})
    for number in range(1, 8):
        last = await writer.publish("ticks:0", numbered(number))
    assert writer.trimmed_unread == 2
    await elsewhere.reached("bars", {"ticks:0": last})
    monkeypatch.setattr(redis_writers, "ASK_S", 0.0)
    await writer.publish("ticks:0", numbered(8))
    assert writer.trimmed_unread == 2
    monkeypatch.setattr(redis_writers, "SEEN_S", 0.0)
    await asyncio.sleep(0.01)  # the server counts a reader's silence in whole milliseconds
    for number in range(9, 30):
        await writer.publish("ticks:0", numbered(number))
    assert writer.trimmed_unread == 2
    told = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    assert told == ["ticks:0 drops entries that bars has not reached"]
    await writer.close()
    await elsewhere.close()
