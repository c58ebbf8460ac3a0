"""Rate limits over Redis: processes count together, and a server that is away limits nobody."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from limits.aio.storage import Storage
from servers import RedisProgram

from tapewatch.adapters.redis_limits import close_limits, limits_storage
from tapewatch.errors import ConfigError
from tapewatch.serve.rate_limits import RateLimits

pytestmark = pytest.mark.anyio


@pytest.fixture
async def storages(program: RedisProgram) -> AsyncIterator[list[Storage]]:
    """Those of two processes."""
    program.empty()
    storages = [limits_storage(program.url) for _ in range(2)]
    yield storages
    for storage in storages:
        await close_limits(storage)


async def test_two_processes_share_one_window(storages: list[Storage]) -> None:
    one, two = (RateLimits(storage, user=5, address=100) for storage in storages)
    counted = [await limits.count("user", "me") for limits in (one, two, one, two, one, two)]
    assert [standing and (standing.passed, standing.left) for standing in counted] == [
        *((True, left) for left in (4, 3, 2, 1, 0)),
        (False, 0),
    ]
    other = await two.count("user", "other")
    assert other is not None
    assert (other.passed, other.left) == (True, 4)
    assert 1 <= other.more_in_s <= 60


async def test_of_many_at_once_just_as_many_pass_as_may(storages: list[Storage]) -> None:
    limits = [RateLimits(storage, user=10, address=100) for storage in storages]
    counted = await asyncio.gather(*(limits[n % 2].count("user", "me") for n in range(40)))
    assert sum(standing is not None and standing.passed for standing in counted) == 10


async def test_server_that_is_away_limits_nobody_and_costs_little() -> None:
    storage = limits_storage("redis://127.0.0.1:1/0")
    started = time.monotonic()
    assert await RateLimits(storage, user=1, address=1).count("user", "me") is None
    assert time.monotonic() - started < 2
    await close_limits(storage)


def test_each_kind_of_address_has_its_storage() -> None:
    kinds = [
        type(limits_storage(url)).__name__
        for url in (
            "redis://user:secret@127.0.0.1:1/3",
            "redis+sentinel://user:secret@127.0.0.1:1,[::1]:2/main/3",
            "redis+cluster://user:secret@127.0.0.1:1,127.0.0.1:2",
        )
    ]
    assert kinds == ["RedisStorage", "RedisSentinelStorage", "RedisClusterStorage"]
    with pytest.raises(ConfigError):
        limits_storage("http://x")
