"""The Redis adapters under their contracts, against a real server; and what only they promise: ids, fences, crashes."""

import asyncio
import logging
import traceback
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trustme
from redis import Redis
from servers import RedisProgram, free_port

from tapewatch import wire
from tapewatch.adapters import redis_server
from tapewatch.adapters.redis import RedisBus
from tapewatch.adapters.redis_hot_state import RedisHotState
from tapewatch.contracts.bus import BusContract, numbers
from tapewatch.contracts.hot_state import HotStateContract
from tapewatch.contracts.samples import number_of, numbered, soon
from tapewatch.engine.columns import make_batch
from tapewatch.errors import ConfigError, LeaseLost, PositionLost, TapewatchError, Unavailable
from tapewatch.ports import Bus, HotState, Position, Ranked

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProgram]:
    program = RedisProgram(tmp_path_factory.mktemp("redis"))
    program.start()
    yield program
    program.kill()


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


class TestRedisBus(BusContract):
    @pytest.fixture
    async def bus(self, server: RedisProgram) -> AsyncIterator[Bus]:
        bus = RedisBus(server.url, epoch=1, capacity=10)
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
    with Redis.from_url(server.url) as client:
        assert client.keys("*") == [b"bars.finalized:{7}"]
        rows = client.xrange("bars.finalized:{7}")
    assert [id_ for id_, _ in rows] == [b"1-1", b"1-2"]
    assert [body[b"after"] for _, body in rows] == [b"0-0", b"1-1"]
    assert number_of(wire.decode(rows[1][1][b"entry"])) == 2


class _Lossy:
    """Lets a command reach the server and loses the reply, or lets nothing through."""

    def __init__(self, bus: RedisBus, monkeypatch: pytest.MonkeyPatch) -> None:
        self._append = bus._append
        self.then = "pass"
        monkeypatch.setattr(RedisBus, "_append", self.append)

    async def append(self, *given: object) -> Position | None:
        then, self.then = self.then, "pass"
        if then == "lose the command":
            raise Unavailable("planted")
        last = await self._append(*given)  # type: ignore[arg-type]  # handed on as it came
        if then == "lose the reply":
            raise Unavailable("planted")
        return last


@pytest.fixture
def lossy(bus: RedisBus, monkeypatch: pytest.MonkeyPatch) -> _Lossy:
    return _Lossy(bus, monkeypatch)


@pytest.mark.parametrize("loss", ["lose the command", "lose the reply"])
async def test_write_of_unknown_fate_that_is_tried_again_is_there_once(bus: RedisBus, lossy: _Lossy, loss: str) -> None:
    await bus.publish("ticks:0", numbered(0))
    for _ in range(2):
        lossy.then = loss
        with pytest.raises(Unavailable):
            await bus.publish("ticks:0", numbered(1))
    assert await bus.publish("ticks:0", numbered(1)) == Position(1, 2)
    assert await bus.publish("ticks:0", numbered(2)) == Position(1, 3)
    assert await numbers(bus.read("ticks:0"), 3) == [0, 1, 2]


@pytest.mark.parametrize(("loss", "expected"), [("lose the command", [0, 2]), ("lose the reply", [0, 1, 2])])
async def test_write_of_unknown_fate_that_is_given_up_leaves_no_hole(
    bus: RedisBus, lossy: _Lossy, loss: str, expected: list[int]
) -> None:
    await bus.publish("ticks:0", numbered(0))
    lossy.then = loss
    with pytest.raises(Unavailable):
        await bus.publish("ticks:0", numbered(1))
    assert await bus.publish("ticks:0", numbered(2)) == Position(1, len(expected))
    assert await numbers(bus.read("ticks:0"), len(expected)) == expected


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


async def test_last_entry_of_the_old_writer_may_come_while_the_new_one_opens(
    bus: RedisBus, server: RedisProgram
) -> None:
    await bus.publish("ticks:0", numbered(0))
    newer = RedisBus(server.url, epoch=2)
    newer._writer("ticks:0").open(await newer.last("ticks:{0}"))
    await bus.publish("ticks:0", numbered(1))
    assert await newer.publish("ticks:0", numbered(2)) == Position(2, 1)
    assert await numbers(bus.read("ticks:0"), 3) == [0, 1, 2]
    await newer.close()


async def test_hole_between_epochs_is_a_lost_position(bus: RedisBus, server: RedisProgram) -> None:
    first = await bus.publish("ticks:0", numbered(0))
    await bus.publish("ticks:0", numbered(1))
    newer = RedisBus(server.url, epoch=2)
    await newer.publish("ticks:0", numbered(2))
    with Redis.from_url(server.url) as client:
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
    with Redis.from_url(server.url) as client:
        kept = client.xlen("ticks:{0}")
    await bus.close()
    assert 100_000 // size <= kept <= 100_000 // size + 1


async def test_topic_keeps_what_it_may_keep(server: RedisProgram) -> None:
    bus = RedisBus(server.url, epoch=1, capacity_by_topic={"board": 2})
    entry = make_batch(symbols=("A",), ts_ns=range(200))
    for _ in range(9):
        await bus.publish("board:0", entry)
        await bus.publish("ticks:0", entry)
    with Redis.from_url(server.url) as client:
        assert (client.xlen("board:{0}"), client.xlen("ticks:{0}")) == (2, 9)
    await bus.close()


async def test_server_that_lost_confirmed_entries_stops_writer_and_readers(bus: RedisBus, server: RedisProgram) -> None:
    tail = [await bus.publish("ticks:0", numbered(number)) for number in range(3)][-1]
    waiting = asyncio.ensure_future(anext(bus.read("ticks:0", tail)))
    await asyncio.sleep(0.05)
    server.empty()
    with pytest.raises(PositionLost, match="ticks:0 ends at 0-0"):
        await soon(waiting)
    with pytest.raises(LeaseLost, match="lost entries"):
        await bus.publish("ticks:0", numbered(3))


async def test_entry_that_cannot_be_read_is_left_out_counted_and_logged(
    bus: RedisBus, server: RedisProgram, caplog: pytest.LogCaptureFixture
) -> None:
    await bus.publish("ticks:0", numbered(0))
    with Redis.from_url(server.url) as client:
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
    assert not bus._fetching
    await bus.publish("ticks:0", numbered(5))
    await bus.notify("a", b"5")
    assert await numbers(reader, 1) == [5]
    assert await soon(anext(listener)) == b"5"


async def test_reader_waits_through_silence(server: RedisProgram) -> None:
    bus = RedisBus(server.url, epoch=1, timeout_s=0.6)
    reader = bus.read("ticks:0", await bus.publish("ticks:0", numbered(0)))
    waiting = asyncio.ensure_future(numbers(reader, 1))
    await asyncio.sleep(1.0)  # several blocking reads that found nothing
    await bus.publish("ticks:0", numbered(1))
    assert await soon(waiting) == [1]
    await bus.close()


async def test_listener_waits_through_silence(server: RedisProgram) -> None:
    bus = RedisBus(server.url, epoch=1, timeout_s=0.2)
    bus._notices._silence_s = 0.05
    listener = bus.listen("a")
    waiting = asyncio.ensure_future(anext(listener))
    await asyncio.sleep(0.5)  # several times asked whether the server is there
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
    with Redis.from_url(server.url) as client:
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
    with Redis.from_url(mortal.url) as client:
        client.config_set("maxmemory", 1_000_000)
    for call in (bus.publish("ticks:0", numbered(0)), hot_state.put({"a": b"1"}, ttl_s=1.0)):
        with pytest.raises(Unavailable, match="maxmemory"):
            await call
    with Redis.from_url(mortal.url) as client:
        client.config_set("maxmemory", 0)
    assert await bus.publish("ticks:0", numbered(0)) == Position(1, 1)
    await bus.close()
    await hot_state.close()


async def test_server_that_evicts_is_warned_of(mortal: RedisProgram, caplog: pytest.LogCaptureFixture) -> None:
    with Redis.from_url(mortal.url) as client:
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
    with Redis.from_url(server.url) as client:
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
    with Redis.from_url(server.url) as client:
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
    with Redis.from_url(server.url) as client:
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


async def test_closed_hot_state_is_unavailable(hot_state: RedisHotState) -> None:
    await hot_state.put({"a": b"1"}, ttl_s=5.0)
    await hot_state.close()
    for call in (hot_state.get([]), hot_state.ranking("a", limit=0)):
        with pytest.raises(Unavailable, match="the hot state is closed"):
            await call


@pytest.mark.parametrize("wrong", [{"capacity": 0}, {"notices": 0}, {"capacity_by_topic": {"board": 0}}, {"epoch": 0}])
def test_bus_without_room_or_epoch_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"at least one|an epoch"):
        RedisBus("redis://localhost", **{"epoch": 1, **wrong})  # type: ignore[arg-type]  # wrong on purpose
