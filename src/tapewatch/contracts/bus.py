"""What every `Bus` keeps its word about. The fixtures are named by `BusContract`."""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import fields

import numpy as np
import pytest

from tapewatch.contracts.samples import every_kind_of_entry, number_of, numbered, same, soon
from tapewatch.errors import PositionLost
from tapewatch.ports import Bus, Entry, Position

FLOOD = 5_000
"""More notices than any adapter keeps for a listener that does not listen."""


async def take(reader: AsyncIterator[tuple[Position, Entry]], count: int) -> list[tuple[Position, int]]:
    """The next `count` entries, each by its number."""
    taken = [await soon(anext(reader)) for _ in range(count)]
    return [(position, number_of(entry)) for position, entry in taken]


async def numbers(reader: AsyncIterator[tuple[Position, Entry]], count: int) -> list[int]:
    return [number for _, number in await take(reader, count)]


@pytest.mark.anyio
class BusContract:
    """Give `bus`, open and empty, closed by the fixture; and `trimmed_after`: how many entries of the topic ``ticks``
    make sure that the first is no longer kept (a few dozen is best; ten or more).
    """

    @pytest.fixture
    def bus(self) -> Bus:
        raise NotImplementedError

    @pytest.fixture
    def trimmed_after(self) -> int:
        raise NotImplementedError

    async def test_publish_returns_contiguous_positions(self, bus: Bus) -> None:
        positions = [await bus.publish("ticks:0", numbered(number)) for number in range(5)]
        first = positions[0]
        assert positions == [Position(first.epoch, first.sequence + step) for step in range(5)]

    async def test_tail_is_the_newest_position_and_none_before_the_first(self, bus: Bus) -> None:
        assert await bus.tail("ticks:0") is None
        for number in range(3):
            assert await bus.publish("ticks:0", numbered(number)) == await bus.tail("ticks:0")

    async def test_read_from_nothing_gives_everything_retained_in_order(self, bus: Bus) -> None:
        published = [(await bus.publish("ticks:0", numbered(number)), number) for number in range(5)]
        assert await take(bus.read("ticks:0"), 5) == published

    async def test_read_after_a_position_gives_what_follows_it(self, bus: Bus) -> None:
        positions = [await bus.publish("ticks:0", numbered(number)) for number in range(5)]
        assert await numbers(bus.read("ticks:0", positions[1]), 3) == [2, 3, 4]

    async def test_read_after_the_tail_gives_only_what_is_published_later(self, bus: Bus) -> None:
        await bus.publish("ticks:0", numbered(0))
        reader = bus.read("ticks:0", await bus.tail("ticks:0"))
        await bus.publish("ticks:0", numbered(1))
        assert await numbers(reader, 1) == [1]

    async def test_read_goes_on_live_after_what_was_retained(self, bus: Bus) -> None:
        await bus.publish("ticks:0", numbered(0))
        reader = bus.read("ticks:0")
        assert await numbers(reader, 1) == [0]
        for number in range(1, 6):
            waiting = asyncio.ensure_future(numbers(reader, 1))
            await asyncio.sleep(0.002)
            await bus.publish("ticks:0", numbered(number))
            assert await waiting == [number]

    async def test_reader_of_a_stream_without_entries_waits_for_the_first(self, bus: Bus) -> None:
        waiting = asyncio.ensure_future(numbers(bus.read("ticks:0"), 1))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await bus.publish("ticks:0", numbered(7))
        assert await waiting == [7]

    async def test_readers_do_not_share_positions(self, bus: Bus) -> None:
        for number in range(4):
            await bus.publish("ticks:0", numbered(number))
        one, other = bus.read("ticks:0"), bus.read("ticks:0")
        assert await numbers(one, 3) == [0, 1, 2]
        assert await numbers(other, 4) == [0, 1, 2, 3]
        assert await numbers(one, 1) == [3]

    async def test_many_readers_at_once_each_see_every_entry_once_in_order(self, bus: Bus) -> None:
        readers = [asyncio.ensure_future(numbers(bus.read("ticks:0"), 9)) for _ in range(50)]
        for number in range(9):
            await bus.publish("ticks:0", numbered(number))
            await asyncio.sleep(0)
        assert await asyncio.gather(*readers) == [list(range(9))] * 50

    async def test_streams_are_independent(self, bus: Bus) -> None:
        for number in range(3):
            await bus.publish("ticks:0", numbered(number))
        assert await bus.tail("ticks:1") is None
        await bus.publish("ticks:1", numbered(100))
        await bus.publish("alerts:0", numbered(200))
        assert await numbers(bus.read("ticks:1"), 1) == [100]
        assert await numbers(bus.read("alerts:0"), 1) == [200]
        assert await numbers(bus.read("ticks:0"), 3) == [0, 1, 2]

    async def test_reader_that_stops_can_be_followed_by_one_from_its_position(self, bus: Bus) -> None:
        for number in range(6):
            await bus.publish("ticks:0", numbered(number))
        seen: list[int] = []
        reached: Position | None = None
        async for position, entry in bus.read("ticks:0"):
            reached = position
            seen.append(number_of(entry))
            if len(seen) == 3:
                break
        assert seen + await numbers(bus.read("ticks:0", reached), 3) == [0, 1, 2, 3, 4, 5]

    async def test_read_after_a_trimmed_position_raises_position_lost_and_names_the_stream(
        self, bus: Bus, trimmed_after: int
    ) -> None:
        first = await bus.publish("ticks:3", numbered(0))
        for number in range(1, trimmed_after + 2):
            await bus.publish("ticks:3", numbered(number))
        with pytest.raises(PositionLost, match="ticks:3"):
            await soon(anext(bus.read("ticks:3", first)))

    async def test_reader_that_falls_behind_gets_position_lost_and_slows_nobody(
        self, bus: Bus, trimmed_after: int
    ) -> None:
        await bus.publish("ticks:3", numbered(0))
        slow = bus.read("ticks:3")
        assert await numbers(slow, 1) == [0]
        for number in range(1, trimmed_after + 2):
            await soon(bus.publish("ticks:3", numbered(number)))
        with pytest.raises(PositionLost, match="ticks:3"):
            await soon(anext(slow))

    async def test_read_after_a_position_that_was_never_published_raises_position_lost(self, bus: Bus) -> None:
        # Waiting for it would skip, without a word, whatever is published until the sequence gets there.
        tail = await bus.publish("ticks:3", numbered(0))
        with pytest.raises(PositionLost, match="ticks:3"):
            await soon(anext(bus.read("ticks:3", Position(tail.epoch, tail.sequence + 10))))

    async def test_read_from_nothing_of_a_trimmed_stream_gives_its_newest_without_a_hole(
        self, bus: Bus, trimmed_after: int
    ) -> None:
        for number in range(trimmed_after + 2):
            await bus.publish("ticks:0", numbered(number))
        reader = bus.read("ticks:0")
        seen = await numbers(reader, 1)
        while seen[-1] != trimmed_after + 1:
            seen += await numbers(reader, 1)
        assert seen[0] > 0
        assert seen == list(range(seen[0], trimmed_after + 2))

    async def test_entries_for_many_streams_are_each_appended_to_theirs(self, bus: Bus) -> None:
        await bus.publish("ticks:1", numbered(100))
        given = {f"ticks:{number}": numbered(number) for number in range(8)}
        first = await bus.publish_all(given)
        again = await bus.publish_all(given)
        assert list(first) == list(again) == list(given)
        for number, stream in enumerate(given):
            assert again[stream] == Position(first[stream].epoch, first[stream].sequence + 1)
            assert again[stream] == await bus.tail(stream)
            earlier = [100] if number == 1 else []
            assert await numbers(bus.read(stream), len(earlier) + 2) == [*earlier, number, number]
        assert await bus.publish_all({}) == {}

    async def test_taken_over_stream_goes_on_in_a_later_epoch_without_a_hole(self, bus: Bus) -> None:
        reader = bus.read("ticks:0")
        positions = [await bus.publish("ticks:0", numbered(number)) for number in range(3)]
        assert await numbers(reader, 2) == [0, 1]
        for number in range(3, 6):
            await bus.take_over("ticks:0")
            await bus.take_over("ticks:0")
            assert await bus.tail("ticks:0") == positions[-1]
            positions.append(await bus.publish("ticks:0", numbered(number)))
            assert positions[-1].epoch > positions[-2].epoch
            assert positions[-1].sequence == 1
        positions.append(await bus.publish("ticks:0", numbered(6)))
        assert positions[-1] == Position(positions[-2].epoch, 2)
        assert await numbers(reader, 5) == [2, 3, 4, 5, 6]
        for number, position in enumerate(positions[:-1]):
            assert await take(bus.read("ticks:0", position), 6 - number) == [
                (positions[later], later) for later in range(number + 1, 7)
            ]

    async def test_stream_that_is_taken_over_before_its_first_entry_has_none(self, bus: Bus) -> None:
        await bus.take_over("ticks:0")
        assert await bus.tail("ticks:0") is None
        assert await bus.newest("ticks:0", 3) == []
        position = await bus.publish("ticks:0", numbered(0))
        assert position == await bus.tail("ticks:0")
        assert await numbers(bus.read("ticks:0"), 1) == [0]

    async def test_newest_entries_are_given_oldest_first(self, bus: Bus) -> None:
        positions = []
        for number in range(5):
            if number == 3:
                await bus.take_over("ticks:0")
            positions.append(await bus.publish("ticks:0", numbered(number)))
        for limit, expected in ((1, [4]), (3, [2, 3, 4]), (9, [0, 1, 2, 3, 4])):
            newest = await bus.newest("ticks:0", limit)
            assert [number_of(entry) for _, entry in newest] == expected
            assert [position for position, _ in newest] == positions[-len(expected) :]
        assert await bus.newest("ticks:9", 1) == []

    async def test_lag_is_what_follows_the_position_that_the_reader_said_last(self, bus: Bus) -> None:
        streams = ["ticks:0", "ticks:1", "ticks:2"]
        positions = []
        for number in range(9):
            if number in {3, 6}:
                await bus.take_over("ticks:0")
            positions.append((await bus.publish_all({stream: numbered(number) for stream in streams}))["ticks:0"])
        assert await bus.lag("bars", streams) == {}
        for number, position in enumerate(positions):
            await bus.reached("bars", {"ticks:0": position})
            assert await bus.lag("bars", streams) == {"ticks:0": 8 - number}
        tail = await bus.tail("ticks:1")
        assert tail is not None
        await bus.reached("scanner", {"ticks:0": positions[4], "ticks:1": tail})
        await bus.publish_all({stream: numbered(9) for stream in streams})
        assert await bus.lag("scanner", streams) == {"ticks:0": 5, "ticks:1": 1}
        assert await bus.lag("bars", streams) == {"ticks:0": 1}
        assert await bus.lag("nobody", streams) == {}

    async def test_what_a_reader_said_moves_no_reader(self, bus: Bus) -> None:
        reader = bus.read("ticks:0")
        positions = [await bus.publish("ticks:0", numbered(number)) for number in range(3)]
        assert await numbers(reader, 1) == [0]
        await bus.reached("bars", {"ticks:0": positions[2]})
        assert await numbers(reader, 2) == [1, 2]
        assert await numbers(bus.read("ticks:0"), 3) == [0, 1, 2]

    async def test_dropping_what_a_reader_has_not_reached_is_said_once_in_the_log(
        self, bus: Bus, trimmed_after: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        first = await bus.publish("ticks:3", numbered(0))
        await bus.reached("bars", {"ticks:3": first})
        for number in range(1, 2 * trimmed_after):
            await bus.publish("ticks:3", numbered(number))
        told = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
        assert told == ["ticks:3 drops entries that bars has not reached"]
        assert await bus.lag("bars", ["ticks:3"]) == {"ticks:3": 2 * trimmed_after - 1}

    async def test_dropping_what_every_reader_has_reached_is_not_worth_a_word(
        self, bus: Bus, trimmed_after: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        for number in range(2 * trimmed_after):
            position = await bus.publish("ticks:3", numbered(number))
            await bus.reached("bars", {"ticks:3": position})
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]

    async def test_every_kind_of_entry_arrives_as_it_was(self, bus: Bus) -> None:
        for number, entry in enumerate(every_kind_of_entry()):
            stream = f"ticks:{number}"
            await bus.publish(stream, entry)
            _, arrived = await soon(anext(bus.read(stream)))
            assert same(arrived, entry), type(entry).__name__

    async def test_reader_cannot_change_the_columns_it_was_handed(self, bus: Bus) -> None:
        for number, entry in enumerate(every_kind_of_entry()):
            await bus.publish(f"ticks:{number}", entry)
            _, arrived = await soon(anext(bus.read(f"ticks:{number}")))
            for field in fields(arrived):
                value = getattr(arrived, field.name)
                assert not (isinstance(value, np.ndarray) and value.flags.writeable), field.name

    async def test_listener_hears_notices_from_the_moment_of_the_call(self, bus: Bus) -> None:
        await bus.notify("rules.updated", b"before")
        listener = bus.listen("rules.updated")
        await bus.notify("rules.updated", b"one")
        await bus.notify("rules.updated", bytes(range(256)))
        assert [await soon(anext(listener)) for _ in range(2)] == [b"one", bytes(range(256))]

    async def test_waiting_listener_is_woken(self, bus: Bus) -> None:
        listener = bus.listen("rules.updated")
        waiting = asyncio.ensure_future(soon(anext(listener)))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await bus.notify("rules.updated", b"")
        assert await waiting == b""

    async def test_every_listener_of_a_channel_hears_each_notice_and_no_other_channel(self, bus: Bus) -> None:
        listeners = [bus.listen("a") for _ in range(3)]
        elsewhere = bus.listen("b")
        for payload in (b"1", b"2"):
            await bus.notify("a", payload)
        await bus.notify("nobody", b"lost")
        await bus.notify("b", b"3")
        for listener in listeners:
            assert [await soon(anext(listener)) for _ in range(2)] == [b"1", b"2"]
        assert await soon(anext(elsewhere)) == b"3"

    async def test_slow_listener_keeps_the_newest_notices(self, bus: Bus) -> None:
        listener = bus.listen("toplists.updated")
        for number in range(FLOOD):
            await soon(bus.notify("toplists.updated", b"%d" % number))
        heard = [int(await soon(anext(listener)))]
        while heard[-1] != FLOOD - 1:
            heard.append(int(await soon(anext(listener))))
        assert heard == sorted(set(heard))

    async def test_close_ends_waiting_readers_and_listeners(self, bus: Bus) -> None:
        async def drain(iterator: AsyncIterator[object]) -> str:
            async for _ in iterator:
                pass
            return "ended"

        await bus.publish("ticks:0", numbered(0))
        iterators: list[AsyncIterator[object]] = [bus.read("ticks:0"), bus.read("ticks:1"), bus.listen("a")]
        waiting = [asyncio.ensure_future(drain(iterator)) for iterator in iterators]
        await asyncio.sleep(0.01)
        await soon(bus.close())
        assert await soon(asyncio.gather(*waiting)) == ["ended"] * 3

    async def test_close_may_be_called_again(self, bus: Bus) -> None:
        await bus.close()
        await soon(bus.close())
