"""Entries delivered twice, and the tape and rules that a fault run plays."""

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from fault_frames import RedisFrames, Request
from fault_proxy import Proxy
from fault_redis import RedisNode
from fault_streams import is_fenced, publishes, redeliver
from fault_tapes import DAY, Tape, write_tape

from tapewatch import wire
from tapewatch.adapters.redis import RedisBus
from tapewatch.contracts.samples import number_of, numbered, soon
from tapewatch.documents import load_rule_file
from tapewatch.eligibility import load_profile
from tapewatch.errors import Unavailable
from tapewatch.nyse import day_of
from tapewatch.ports import Bus
from tapewatch.replay import scan_tape


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisNode]:
    node = RedisNode(tmp_path_factory.mktemp("redis"))
    node.start()
    yield node
    node.kill()


@asynccontextmanager
async def bus_of(url: str) -> AsyncIterator[Bus]:
    bus = RedisBus(url)
    try:
        yield bus
    finally:
        await bus.close()


async def numbers(bus: Bus, stream: str, n: int) -> list[int]:
    reader = bus.read(stream)
    return [number_of((await soon(anext(reader)))[1]) for _ in range(n)]


@pytest.mark.anyio
async def test_writer_that_comes_back_delivers_twice_and_fences_the_one_before(node: RedisNode) -> None:
    async with bus_of(node.url) as living, bus_of(node.url) as returning:
        before = [await living.publish("alerts:0", numbered(number)) for number in range(5)]
        after = await redeliver(returning, "alerts:0", newest=3)
        assert await numbers(returning, "alerts:0", 8) == [0, 1, 2, 3, 4, 2, 3, 4]
        assert min(after) > max(before)
        assert await is_fenced(living, "alerts:0", numbered(9))
        assert not await is_fenced(returning, "alerts:0", numbered(5))


@pytest.mark.anyio
async def test_reply_to_an_entry_can_be_lost_by_topic(node: RedisNode) -> None:
    with Proxy(("127.0.0.1", node.port), frames=RedisFrames) as proxy:
        async with bus_of(node.url_at(proxy.host, proxy.port)) as bus:
            await bus.publish("ticks:1", numbered(0))
            loss = proxy.lose_reply(publishes("bars.finalized"))
            await bus.publish("ticks:1", numbered(1))
            assert not loss.happened.is_set()
            with pytest.raises(Unavailable):
                await bus.publish("bars.finalized:1", numbered(7))
            await bus.publish("bars.finalized:1", numbered(7))
            assert any(b"bars.finalized:{1}" in word for word in loss.wait().words)
            assert [number_of(entry) for _, entry in await bus.newest("bars.finalized:1", 9)] == [7]


def test_only_requests_with_an_entry_for_a_stream_count() -> None:
    entry = wire.encode(numbered(1))
    assert publishes()(Request("XADD", (b"XADD", b"ticks:{0}", b"1-1", b"entry", entry)))
    assert not publishes("alerts")(Request("XADD", (b"XADD", b"ticks:{0}", b"1-1", b"entry", entry)))
    assert not publishes("ticks")(Request("EVAL", (b"EVAL", b"return 1", b"1", b"ticks:{0}", b"bars")))


# -- tapes ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tape(tmp_path_factory: pytest.TempPathFactory) -> Tape:
    return write_tape(tmp_path_factory.mktemp("tape"), symbols=60, trades=10_000, wall_s=20.0, speed=120.0)


def test_same_seed_writes_the_same_bytes(tape: Tape, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    again = write_tape(tmp_path, symbols=60, trades=10_000, wall_s=20.0, speed=120.0)
    other = write_tape(tmp_path / "other", symbols=60, trades=10_000, wall_s=20.0, speed=120.0, seed=2)
    assert again.path.read_bytes() == tape.path.read_bytes()
    assert other.path.read_bytes() != tape.path.read_bytes()


def test_tape_takes_its_time_and_has_what_hurts(tape: Tape) -> None:
    table = pq.read_table(tape.path)
    ts_ns = table["ts_ns"].to_numpy()
    arrived_ns = np.maximum.accumulate(ts_ns)
    open_ns = day_of(DAY)[1]
    assert ts_ns.min() >= open_ns
    assert 19 * 120 <= (ts_ns.max() - open_ns) / 1e9 <= 21 * 120
    late_s = (arrived_ns - ts_ns) / 1e9
    assert [int((late_s > least_s).sum()) > 5 for least_s in (2, 60, 600)] == [True, True, True]
    identities = Counter(zip(table["symbol"].to_pylist(), table["trade_id"].to_pylist(), strict=True))
    assert sum(1 for n in identities.values() if n > 1) > 50
    assert sum("I" in words for words in table["conditions"].to_pylist()) > 1_000
    assert {"00", "08", "10"} == set(table["correction"].to_pylist())
    by_symbol = Counter(table["symbol"].to_pylist())
    assert len(by_symbol) == 60
    assert sum(1 for n in by_symbol.values() if n <= 10) >= 10
    # The replay feed makes a batch of each stretch of 50 ms with prints.
    assert tape.entries_per_s == 30
    assert len(np.unique(ts_ns // 50_000_000)) <= 21 * 30


def test_every_rule_fires_and_the_alerts_are_spread_over_the_tape(tape: Tape) -> None:
    rules, watchlists = load_rule_file(tape.rules.read_bytes(), where="fault.rules")
    assert not watchlists
    replayed = scan_tape([tape.path], profile=load_profile("alpaca"), rules=rules)
    fired = Counter(match.rule.id for match in replayed.matches)
    assert set(fired) == {rule.id for rule in rules}
    assert 100 <= fired.total() <= 2_000
    thirds = Counter(
        (match.fired_at_ns - day_of(DAY)[1]) * 3 // (20 * 120 * 1_000_000_000) for match in replayed.matches
    )
    assert all(thirds[third] >= 15 for third in range(3))
    assert replayed.summary["revised_bars"] >= 20
