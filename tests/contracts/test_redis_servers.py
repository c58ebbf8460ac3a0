"""Real Redis servers that are away, full, old, strange or not ours, and the hot state on one."""

import asyncio
import traceback
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trustme
from redis import Redis
from redis.exceptions import ConnectionError  # noqa: A004  # the driver's name
from servers import RedisProgram, free_port

from tapewatch.adapters import redis_server
from tapewatch.adapters.redis import RedisBus
from tapewatch.adapters.redis_hot_state import RedisHotState
from tapewatch.adapters.redis_server import RedisServer
from tapewatch.contracts.bus import numbers
from tapewatch.contracts.samples import numbered, soon
from tapewatch.errors import ConfigError, TapewatchError, Unavailable
from tapewatch.ports import Position, Ranked

pytestmark = pytest.mark.anyio


@pytest.fixture
def server(program: RedisProgram) -> RedisProgram:
    """Empty, and shared by the tests of this file."""
    program.empty()
    return program


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[RedisProgram]:
    """A server that the test may kill."""
    mortal = RedisProgram(tmp_path)
    mortal.start()
    yield mortal
    mortal.kill()


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


async def test_killed_server_is_unavailable_and_everything_goes_on_when_it_is_back(
    mortal: RedisProgram, caplog: pytest.LogCaptureFixture
) -> None:
    bus, hot_state = RedisBus(mortal.url, epoch=1), RedisHotState(mortal.url)
    listener = bus.listen("a")
    reader, waiter = bus.read("ticks:0"), bus.read("ticks:0")
    for number in range(3):
        await bus.publish("ticks:0", numbered(number))
    assert await numbers(reader, 1) == [0]
    assert await numbers(waiter, 3) == [0, 1, 2]
    await hot_state.put({"a": b"1"}, ttl_s=60.0)
    assert await hot_state.claim("lease", "me", ttl_s=60.0)
    waiting = asyncio.ensure_future(anext(waiter))
    await asyncio.sleep(0.1)

    mortal.kill()
    problems: list[BaseException] = []
    for call in (
        waiting,
        bus.publish("ticks:0", numbered(3)),
        bus.tail("ticks:0"),
        bus.notify("a", b"lost"),
        anext(bus.read("ticks:0")),
        hot_state.get(["a"]),
        hot_state.put({"b": b"1"}, ttl_s=1.0),
        hot_state.claim("lease", "me", ttl_s=60.0, renew=True),
        hot_state.release("lease", "you"),
        hot_state.rank("r", [Ranked("A", 1.0)], ttl_s=1.0),
        hot_state.ranking("r", limit=1),
    ):
        with pytest.raises(Unavailable) as raised:
            await soon(call)
        problems.append(raised.value)
    for problem in problems:
        assert mortal.password not in "".join(traceback.format_exception(problem))
    assert any("is away" in str(problem) for problem in problems)

    mortal.start()
    assert await bus.publish("ticks:0", numbered(3)) == Position(1, 4)
    assert await numbers(reader, 3) == [1, 2, 3]
    assert await numbers(waiter, 1) == [3]
    assert await hot_state.get(["a"]) == [b"1"]
    assert not await hot_state.claim("lease", "you", ttl_s=60.0)
    await bus.notify("a", b"again")
    assert await soon(anext(listener)) == b"again"
    assert mortal.password not in caplog.text
    await bus.close()
    await hot_state.close()


async def test_server_that_stands_still_is_unavailable_in_time(mortal: RedisProgram) -> None:
    bus = RedisBus(mortal.url, epoch=1, timeout_s=0.3)
    await bus.publish("ticks:0", numbered(0))
    mortal.freeze()
    try:
        for call in (bus.publish("ticks:0", numbered(1)), bus.tail("ticks:0"), anext(bus.read("ticks:0"))):
            async with asyncio.timeout(2.0):
                with pytest.raises(Unavailable, match="does not answer in time"):
                    await call
    finally:
        mortal.thaw()
    assert await bus.publish("ticks:0", numbered(1)) == Position(1, 2)
    assert await numbers(bus.read("ticks:0"), 2) == [0, 1]
    await bus.close()


async def test_full_server_is_unavailable(mortal: RedisProgram) -> None:
    bus, hot_state = RedisBus(mortal.url, epoch=1), RedisHotState(mortal.url)
    with Redis.from_url(mortal.admin_url) as client:
        client.config_set("maxmemory", 1)
    for call in (bus.publish("ticks:0", numbered(0)), hot_state.put({"a": b"1"}, ttl_s=1.0)):
        with pytest.raises(Unavailable, match="maxmemory"):
            await call
    with Redis.from_url(mortal.admin_url) as client:
        client.config_set("maxmemory", 0)
    assert await bus.publish("ticks:0", numbered(0)) == Position(1, 1)
    await bus.close()
    await hot_state.close()


async def test_server_that_evicts_is_warned_of(mortal: RedisProgram, caplog: pytest.LogCaptureFixture) -> None:
    with Redis.from_url(mortal.admin_url) as client:
        client.config_set("maxmemory", 100_000_000)
        client.config_set("maxmemory-policy", "allkeys-lru")
    hot_state = RedisHotState(mortal.url)
    await hot_state.get(["a"])
    await hot_state.get(["a"])
    await hot_state.close()
    assert [record.message.partition(": ")[0] for record in caplog.records] == [
        f"redis://127.0.0.1:{mortal.port}/0 evicts when it is full (allkeys-lru)"
    ]


async def every_call(url: str) -> list[TapewatchError]:
    """What each way to the server raises."""
    bus, hot_state = RedisBus(url, epoch=1), RedisHotState(url)
    listener = bus.listen("a")
    problems = []
    for call in (
        anext(listener),
        bus.publish("ticks:0", numbered(0)),
        anext(bus.read("ticks:0")),
        bus.tail("ticks:0"),
        hot_state.get(["a"]),
        hot_state.claim("a", "me", ttl_s=1.0),
    ):
        with pytest.raises(TapewatchError) as raised:
            await soon(call)
        problems.append(raised.value)
    await bus.close()
    await hot_state.close()
    return problems


@pytest.mark.parametrize("wrong", ["wrong-s3cret", ""])
async def test_wrong_password_is_one_clear_line_without_it(
    server: RedisProgram, wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    for problem in await every_call(server.url_of(wrong)):
        assert isinstance(problem, ConfigError)
        assert str(problem) == f"redis://127.0.0.1:{server.port}/0 refuses the user or the password of its URL"
        assert "s3cret" not in "".join(traceback.format_exception(problem))
    assert "s3cret" not in caplog.text


async def test_server_that_is_too_old_is_refused(server: RedisProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_server, "OLDEST", (99, 1))
    for problem in await every_call(server.url):
        assert isinstance(problem, ConfigError)
        assert "needs 99.1 or newer" in str(problem)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:pa:s3cret@host:notaport/0",
        "redis://:s3cret@:6379",
        "http://:s3cret@localhost",
        "redis://:s3cret@[::1/0",
        "redis://:s3cret@localhost/notadb",
        "redis://:s3cret@localhost/0?socket_timeout=1",
        "redis://:s3cret@localhost/0?password",
        "s3cret",
    ],
)
async def test_url_that_makes_no_sense_is_refused_without_its_password(url: str) -> None:
    for make in (lambda: RedisBus(url, epoch=1), lambda: RedisHotState(url)):
        with pytest.raises(ConfigError, match="Redis URL") as raised:
            make()
        assert "s3cret" not in "".join(traceback.format_exception(raised.value))


async def test_user_who_may_not_write_is_told(server: RedisProgram) -> None:
    with Redis.from_url(server.admin_url) as client:
        client.execute_command("ACL", "SETUSER", "reader", "on", ">s3cret", "~*", "&*", "+@read", "+info")
    url = f"redis://reader:s3cret@127.0.0.1:{server.port}/0"
    hot_state = RedisHotState(url)
    assert await hot_state.get(["a"]) == [None]
    values = {"a": b"value-s3cret"}
    with pytest.raises(ConfigError, match="does not let this user do what the hot state needs") as raised:
        await hot_state.put(values, ttl_s=1.0)
    assert "s3cret" not in "".join(traceback.format_exception(raised.value))
    await hot_state.close()


async def test_tls_is_spoken_and_the_certificate_is_checked(tmp_path: Path) -> None:
    authority = trustme.CA()
    identity, issuer = tmp_path / "identity.pem", tmp_path / "issuer.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(identity)
    authority.cert_pem.write_to_path(issuer)
    server = RedisProgram(tmp_path, tls=(identity, issuer))
    server.start()
    try:
        bus = RedisBus(server.url, epoch=1)
        listener = bus.listen("a")
        assert await bus.publish("ticks:0", numbered(0)) == Position(1, 1)
        assert await numbers(bus.read("ticks:0"), 1) == [0]
        await bus.notify("a", b"1")
        assert await soon(anext(listener)) == b"1"
        await bus.close()
        for url in (server.url.partition("?")[0], server.url_of(server.password, host="localhost")):
            for problem in await every_call(url):
                assert isinstance(problem, ConfigError)
                assert "certificate that is not trusted" in str(problem)
    finally:
        server.kill()


async def test_nobody_at_the_address_is_unavailable() -> None:
    hot_state = RedisHotState(f"redis://:s3cret@127.0.0.1:{free_port()}/0")
    with pytest.raises(Unavailable, match="is away") as raised:
        await hot_state.get(["a"])
    assert "s3cret" not in "".join(traceback.format_exception(raised.value))
    await hot_state.close()


async def test_key_of_another_program_is_reported(bus: RedisBus, server: RedisProgram) -> None:
    with Redis.from_url(server.admin_url) as client:
        client.set("ticks:{0}", "mine")
    with pytest.raises(ConfigError, match="another program"):
        await bus.publish("ticks:0", numbered(0))


async def test_ranking_with_ties_pages_like_the_sorted_list(hot_state: RedisHotState) -> None:
    given = [Ranked(f"S{number:02}", float(number % 4)) for number in range(40)]
    await hot_state.rank("r", given, ttl_s=60.0)
    down = sorted(given, key=lambda ranked: (-ranked.score, ranked.member))
    up = sorted(given, key=lambda ranked: (ranked.score, ranked.member))
    for limit in (1, 3, 10, 11, 40, 100):
        for offset in (0, 1, 7, 9, 10, 19, 39, 40, 99):
            assert await hot_state.ranking("r", limit=limit, offset=offset) == down[offset : offset + limit]
            rising = await hot_state.ranking("r", limit=limit, offset=offset, descending=False)
            assert rising == up[offset : offset + limit]


async def test_long_ranking_is_replaced_in_one_step_and_expires(hot_state: RedisHotState, server: RedisProgram) -> None:
    for generation in range(2):
        await hot_state.rank("r", [Ranked(f"S{n}", n + generation / 8) for n in range(2_500)], ttl_s=60.0)
    with Redis.from_url(server.admin_url) as client:
        assert client.zcard("r") == 2_500
        assert 0 < client.pttl("r") <= 60_000
    assert await hot_state.ranking("r", limit=1) == [Ranked("S2499", 2499.125)]


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, float("nan"), float("inf")])
async def test_time_to_live_that_is_none_is_refused(hot_state: RedisHotState, ttl_s: float) -> None:
    for call in (
        hot_state.put({"a": b"1"}, ttl_s=ttl_s),
        hot_state.claim("a", "me", ttl_s=ttl_s),
        hot_state.rank("a", [], ttl_s=ttl_s),
    ):
        with pytest.raises(ValueError, match="ttl_s"):
            await call
    assert await hot_state.get(["a"]) == [None]


async def test_what_makes_no_sense_is_refused(hot_state: RedisHotState) -> None:
    with pytest.raises(ValueError, match="finite"):
        await hot_state.rank("a", [Ranked("A", float("nan"))], ttl_s=1.0)
    for limit, offset in ((-1, 0), (1, -1)):
        with pytest.raises(ValueError, match="negative"):
            await hot_state.ranking("a", limit=limit, offset=offset)


@pytest.mark.parametrize("instead", [None, ConnectionError("it broke"), OSError("it broke")])
async def test_cancellation_that_the_driver_swallows_is_one_all_the_same(
    server: RedisProgram, instead: Exception | None
) -> None:
    redis = RedisServer(server.url, what="the test", connect_timeout_s=1.0, timeout_s=1.0)
    inside = asyncio.Event()

    async def call() -> None:
        async with redis.speaking():
            inside.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if instead is not None:
                    raise instead from None

    calling = asyncio.ensure_future(call())
    await soon(inside.wait())
    calling.cancel()
    await asyncio.wait({calling})
    assert calling.cancelled()
    await redis.close()


async def test_closed_hot_state_is_unavailable(hot_state: RedisHotState) -> None:
    await hot_state.put({"a": b"1"}, ttl_s=5.0)
    await hot_state.close()
    for call in (hot_state.get([]), hot_state.ranking("a", limit=0)):
        with pytest.raises(Unavailable, match="the hot state is closed"):
            await call
