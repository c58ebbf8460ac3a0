"""What a process waits for is told for as long as it waits, and not a moment longer."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, NoReturn

import pytest

from tapewatch.clock import SystemClock
from tapewatch.engine.columns import pulse
from tapewatch.errors import PositionLost, Unavailable
from tapewatch.patience import patiently, read_on, waits
from tapewatch.ports import Entry, Position

pytestmark = pytest.mark.anyio


class Server:
    """Away at first; then each call hangs until it is `back`."""

    def __init__(self) -> None:
        self.calls = 0
        self.back = asyncio.Event()

    async def answer(self) -> int:
        self.calls += 1
        if self.calls == 1:
            raise Unavailable("it is away")
        await self.back.wait()
        return self.calls

    async def asked_again(self) -> None:
        async with asyncio.timeout(5):
            while self.calls < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.005)


async def test_what_is_waited_for_is_told_until_the_server_is_back() -> None:
    server = Server()
    waiting = asyncio.create_task(patiently(server.answer, clock=SystemClock(), where="store"))
    await server.asked_again()
    assert waits() == {"store": "it is away"}
    server.back.set()
    assert await waiting == 2
    assert waits() == {}


async def test_waiter_that_is_sent_away_in_the_middle_of_a_try_waits_no_more() -> None:
    server = Server()
    waiting = asyncio.create_task(patiently(server.answer, clock=SystemClock(), where="store"))
    await server.asked_again()
    waiting.cancel()
    await asyncio.wait({waiting})
    assert waits() == {}


async def test_waiter_whose_trouble_becomes_another_waits_no_more() -> None:
    tries = iter((Unavailable("it is away"), ValueError("a bug")))

    async def answer() -> NoReturn:
        raise next(tries)

    with pytest.raises(ValueError, match="a bug"):
        await patiently(answer, clock=SystemClock(), where="store")
    assert waits() == {}


async def test_one_of_two_that_wait_at_a_place_does_not_end_the_waiting_of_the_other() -> None:
    first, second = Server(), Server()
    tasks = [
        asyncio.create_task(patiently(server.answer, clock=SystemClock(), where="store")) for server in (first, second)
    ]
    await asyncio.gather(first.asked_again(), second.asked_again())
    first.back.set()
    await tasks[0]
    assert waits() == {"store": "it is away"}
    second.back.set()
    await tasks[1]
    assert waits() == {}


class Trimmed:
    """A stream that keeps two entries, and has gone on while its reader was away."""

    def __init__(self) -> None:
        self.kept = [(Position(1, 1), pulse(1))]

    async def read(self, stream: str, after: Position | None = None) -> AsyncIterator[tuple[Position, Entry]]:
        for position, entry in self.kept:
            yield position, entry
        if after is None:
            self.kept = [(Position(1, sequence), pulse(sequence)) for sequence in (4, 5)]
            raise PositionLost(f"{stream} has gone on")


async def test_reader_that_lost_its_place_goes_on_with_what_is_kept_up_to_the_newest() -> None:
    bus: Any = Trimmed()
    reading = read_on(bus, "board:0", clock=SystemClock(), where="test", newest_only=True)
    assert [(await anext(reading))[0].sequence for _ in range(3)] == [1, 4, 5]
