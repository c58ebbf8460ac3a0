"""No command is answered with the reply to another, whatever was cancelled before it: thousands of every kind, of which
half are cancelled, before they are sent, while they are on their way or after.
"""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

import pytest
from redis import Redis
from servers import RedisProgram

from tapewatch.adapters.redis import RedisBus
from tapewatch.adapters.redis_hot_state import RedisHotState
from tapewatch.contracts.samples import number_of, numbered
from tapewatch.ports import Position, Ranked

pytestmark = pytest.mark.anyio

THINGS = 40
"""Of each kind, no two alike, so that the reply about one is wrong about any other."""
AT_ONCE = 20
ROUNDS = 400
LONGEST_S = 0.005
"""About as long as those that are asked at once take together."""
TTL_S = 600.0


class _Questions:
    """Calls of the adapters that have one right answer each, whatever was asked before."""

    def __init__(self, hot_state: RedisHotState, bus: RedisBus) -> None:
        self._hot_state, self._bus = hot_state, bus
        self.values_answered = 0
        self.published: dict[Position, int] = {}
        self._numbers = iter(range(1_000_000))
        self.kinds: list[Callable[[int, int], Awaitable[bool]]] = [
            self._values, self._put, self._held, self._claimed, self._not_swapped,
            self._ranking, self._rank, self._tails, self._newest, self._lag, self._publish,
        ]  # fmt: skip

    async def prepare(self) -> None:
        await self._hot_state.put({f"value:{n}": str(n).encode() for n in range(THINGS)}, ttl_s=TTL_S)
        await self._hot_state.hold([f"claim:{n}" for n in range(0, THINGS, 2)], "even", ttl_s=TTL_S)
        await self._hot_state.hold([f"claim:{n}" for n in range(1, THINGS, 2)], "odd", ttl_s=TTL_S)
        for n in range(THINGS):
            await self._hot_state.rank(f"ranking:{n}", _ranking_of(n), ttl_s=TTL_S)
            for _ in range(n + 1):
                await self._bus.publish(f"ticks:{n}", numbered(n))
        await self._bus.reached("reader", {f"ticks:{n}": Position(1, 1) for n in range(THINGS)})

    async def _values(self, one: int, other: int) -> bool:
        values = await self._hot_state.get([f"value:{one}", f"value:{other}"])
        self.values_answered += 1
        return values == [str(one).encode(), str(other).encode()]

    async def _put(self, one: int, other: int) -> bool:
        again = {f"value:{n}": str(n).encode() for n in (one, other)}
        return await self._returns_nothing(self._hot_state.put(again, ttl_s=TTL_S))

    async def _held(self, one: int, other: int) -> bool:
        held = await self._hot_state.hold([f"claim:{one}", f"claim:{other}"], "even", ttl_s=TTL_S)
        return held == [one % 2 == 0, other % 2 == 0]

    async def _claimed(self, one: int, _other: int) -> bool:
        return await self._hot_state.claim(f"claim:{one}", "odd", ttl_s=TTL_S, renew=True) is (one % 2 == 1)

    async def _not_swapped(self, one: int, _other: int) -> bool:
        return not await self._hot_state.swap(f"value:{one}", b"another", b"wrong", ttl_s=TTL_S)

    async def _ranking(self, one: int, _other: int) -> bool:
        return await self._hot_state.ranking(f"ranking:{one}", limit=3) == _ranking_of(one)

    async def _rank(self, one: int, _other: int) -> bool:
        return await self._returns_nothing(self._hot_state.rank(f"ranking:{one}", _ranking_of(one), ttl_s=TTL_S))

    async def _tails(self, one: int, _other: int) -> bool:
        return await self._bus.tail(f"ticks:{one}") == Position(1, one + 1)

    async def _newest(self, one: int, _other: int) -> bool:
        found = await self._bus.newest(f"ticks:{one}", 1)
        return [(at, number_of(entry)) for at, entry in found] == [(Position(1, one + 1), one)]

    async def _lag(self, one: int, other: int) -> bool:
        lags = await self._bus.lag("reader", [f"ticks:{one}", f"ticks:{other}"])
        return lags == {f"ticks:{n}": n for n in (one, other)}

    async def _publish(self, _one: int, _other: int) -> bool:
        number = next(self._numbers)
        position = await self._bus.publish("alerts:0", numbered(number))
        return self.published.setdefault(position, number) == number

    async def _returns_nothing(self, call: Awaitable[None]) -> bool:
        await call
        return True


def _ranking_of(n: int) -> list[Ranked]:
    return [Ranked(f"S{n}", n + 0.5), Ranked("ALL", -1.0)]


async def test_no_reply_goes_to_another_command_whatever_was_cancelled(program: RedisProgram) -> None:
    program.empty()
    random, loop = Random(86), asyncio.get_running_loop()
    hot_state, bus = RedisHotState(program.url), RedisBus(program.url)
    questions = _Questions(hot_state, bus)
    await questions.prepare()
    answers = 0
    for _ in range(ROUNDS):
        asking = [
            asyncio.ensure_future(random.choice(questions.kinds)(random.randrange(THINGS), random.randrange(THINGS)))
            for _ in range(AT_ONCE)
        ]
        for task in random.sample(asking, AT_ONCE // 2):
            loop.call_later(random.uniform(0.0, LONGEST_S), task.cancel)
        found = await asyncio.gather(*asking, return_exceptions=True)
        whole = [answer for answer in found if not isinstance(answer, asyncio.CancelledError)]
        assert [answer for answer in whole if answer is not True] == []
        answers += len(whole)

    assert ROUNDS * AT_ONCE / 2 <= answers < ROUNDS * AT_ONCE
    with Redis.from_url(program.url) as client:
        assert client.info("commandstats")["cmdstat_mget"]["calls"] > questions.values_answered  # others were cancelled
    stored = {position: number_of(entry) for position, entry in await bus.newest("alerts:0", ROUNDS * AT_ONCE)}
    assert questions.published.items() <= stored.items()
    await hot_state.close()
    await bus.close()
