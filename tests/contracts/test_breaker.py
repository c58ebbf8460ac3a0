"""Who asks a server that is away is told so at once."""

import asyncio
import socket
import time
from collections.abc import Iterator

import pytest

from tapewatch.adapters import postgres
from tapewatch.adapters.breaker import FAILURES, FIRST_WAIT_S, LONGEST_WAIT_S, Breaker
from tapewatch.adapters.sql import SqlStore
from tapewatch.errors import Unavailable
from tapewatch.telemetry import CIRCUIT_OPEN

pytestmark = pytest.mark.anyio


class Server:
    """Away or there, and how often it was asked."""

    def __init__(self) -> None:
        self.now_s, self.away, self.asked = 0.0, True, 0
        self.breaker = Breaker("server", failures=(OSError,), now_s=lambda: self.now_s)

    async def ask(self) -> str:
        async with self.breaker.attempt():
            self.asked += 1
            if self.away:
                raise ConnectionRefusedError
            return "yes"

    async def fail(self, times: int) -> None:
        for _ in range(times):
            with pytest.raises(ConnectionRefusedError):
                await self.ask()


async def test_circuit_opens_after_failures_in_a_row_and_nobody_asks_until_its_time() -> None:
    server = Server()
    await server.fail(FAILURES)
    assert server.breaker.is_open
    assert CIRCUIT_OPEN.labels(of="server")._value.get() == 1
    asked = server.asked
    await server.fail(10)
    assert server.asked == asked


async def test_one_caller_tries_again_and_closes_it() -> None:
    server = Server()
    await server.fail(FAILURES)
    server.now_s, server.away = FIRST_WAIT_S, False
    assert await server.ask() == "yes"
    assert not server.breaker.is_open
    assert CIRCUIT_OPEN.labels(of="server")._value.get() == 0
    server.away = True
    await server.fail(FAILURES - 1)
    assert not server.breaker.is_open


async def test_waits_grow_up_to_the_longest() -> None:
    server = Server()
    await server.fail(FAILURES)
    waited_s = []
    for _ in range(5):
        before_s, asked = server.now_s, server.asked
        while server.asked == asked:
            server.now_s += 0.25
            await server.fail(1)
        waited_s.append(server.now_s - before_s)
    assert waited_s == [0.5, 1.0, 2.0, LONGEST_WAIT_S, LONGEST_WAIT_S]


async def test_only_one_caller_tries_at_a_time_and_one_who_gives_up_counts_as_no_answer() -> None:
    server = Server()
    await server.fail(FAILURES)
    server.now_s = FIRST_WAIT_S
    silent = asyncio.Event()

    async def wait() -> None:
        async with server.breaker.attempt():
            await silent.wait()

    trying = asyncio.create_task(wait())
    await asyncio.sleep(0)
    asked = server.asked
    await server.fail(1)
    trying.cancel()
    await asyncio.wait({trying})
    await server.fail(1)
    assert server.asked == asked
    server.now_s += 2 * FIRST_WAIT_S
    await server.fail(1)
    assert server.asked == asked + 1


async def test_other_errors_do_not_open_it() -> None:
    breaker = Breaker("server", failures=(OSError,))
    for _ in range(2 * FAILURES):
        with pytest.raises(ValueError, match="mine"):
            async with breaker.attempt():
                raise ValueError("mine")
    assert not breaker.is_open


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


async def test_store_that_never_answers_is_asked_a_few_times_and_then_refuses_at_once(
    silent_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "CONNECT_S", 0.2)
    store = SqlStore(f"postgresql://somebody@127.0.0.1:{silent_port}/nothing")
    try:
        for _ in range(FAILURES + 1):
            started = time.perf_counter()
            with pytest.raises(Unavailable, match="does not answer in time"):
                await store.ruleset_number()
        assert time.perf_counter() - started < 0.1
    finally:
        await store.close()
