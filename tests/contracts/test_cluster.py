"""The Redis adapters under their contracts on a Cluster of three nodes, and what only a Cluster does to them."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from followers import Follower, published
from redis import Redis
from redis_rigs import ClusterRig
from servers import RedisProgram

from tapewatch.adapters.redis import RedisBus
from tapewatch.adapters.redis_hot_state import RedisHotState
from tapewatch.contracts.bus import BusContract
from tapewatch.contracts.hot_state import HotStateContract
from tapewatch.contracts.samples import number_of, numbered, soon
from tapewatch.errors import ConfigError, Unavailable
from tapewatch.ports import Bus, HotState

pytestmark = pytest.mark.anyio
STREAMS = tuple(f"ticks:{number}" for number in range(8))


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterRig]:
    rig = ClusterRig(tmp_path_factory.mktemp("cluster"))
    rig.start()
    yield rig
    rig.kill()


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[ClusterRig]:
    mortal = ClusterRig(tmp_path)
    mortal.start()
    yield mortal
    mortal.kill()


@pytest.fixture
async def writer(mortal: ClusterRig) -> AsyncIterator[RedisBus]:
    writer = RedisBus(mortal.url)
    yield writer
    await writer.close()


@pytest.fixture
async def elsewhere(mortal: ClusterRig) -> AsyncIterator[RedisBus]:
    """Another process, as far as the servers can see."""
    elsewhere = RedisBus(mortal.url)
    yield elsewhere
    await elsewhere.close()


@pytest.fixture
async def bus(rig: ClusterRig) -> AsyncIterator[RedisBus]:
    rig.empty()
    bus = RedisBus(rig.url)
    yield bus
    await bus.close()


class TestClusterBus(BusContract):
    @pytest.fixture
    async def bus(self, rig: ClusterRig) -> AsyncIterator[Bus]:
        rig.empty()
        bus = RedisBus(rig.url, capacity=10, patience_s=0.3)
        yield bus
        await bus.close()

    @pytest.fixture
    def trimmed_after(self) -> int:
        return 60


class TestClusterHotState(HotStateContract):
    @pytest.fixture
    async def hot_state(self, rig: ClusterRig) -> AsyncIterator[HotState]:
        rig.empty()
        hot_state = RedisHotState(rig.url)
        yield hot_state
        await hot_state.close()


async def test_streams_are_on_several_nodes_and_a_partitions_together(bus: RedisBus, rig: ClusterRig) -> None:
    await bus.publish_all(dict.fromkeys([*STREAMS, "alerts:0"], numbered(0)))
    assert len({rig.node_of(f"ticks:{{{number}}}").port for number in range(8)}) == 3
    with Redis.from_url(rig.node_of("ticks:{0}").admin_url) as client:
        assert client.exists("ticks:{0}", "alerts:{0}") == 2


async def test_partition_that_moves_to_another_node_loses_nothing(bus: RedisBus, rig: ClusterRig) -> None:
    elsewhere = RedisBus(rig.url)
    followers = [Follower(each, stream) for each in (bus, elsewhere) for stream in STREAMS[:3]]
    for number in range(10):
        await published(bus, STREAMS[:3], number)
    source = rig.node_of("ticks:{0}")
    target = next(node for node in rig.nodes if node is not source)
    moving = asyncio.ensure_future(asyncio.to_thread(rig.move, "ticks:{0}", target))
    for number in range(10, 40):
        await published(bus, STREAMS[:3], number)
    await moving
    for number in range(40, 60):
        await published(bus, STREAMS[:3], number)
    assert rig.node_of("ticks:{0}") is target
    for follower in (*followers, Follower(elsewhere, "ticks:0")):
        assert await follower.has(60) == list(range(60))
        await follower.stop()
    await elsewhere.close()
    await asyncio.to_thread(rig.move, "ticks:{0}", source)


async def test_node_that_dies_holds_up_its_own_partitions_only_and_gets_back_what_it_lost(
    mortal: ClusterRig, writer: RedisBus, elsewhere: RedisBus
) -> None:
    followers = [Follower(bus, stream) for bus in (writer, elsewhere) for stream in STREAMS]
    for number in range(20):
        await writer.publish_all(dict.fromkeys(STREAMS, numbered(number)))
    for follower in followers:
        await follower.has(20)
    node = mortal.node_of("ticks:{0}")
    other = next(stream for stream in STREAMS if mortal.node_of(f"ticks:{{{stream[6:]}}}") is not node)
    node.kill()
    node.cut(2_000)
    with pytest.raises(Unavailable):
        await soon(writer.publish_all(dict.fromkeys(STREAMS, numbered(20))))
    ((_, newest),) = await elsewhere.newest(other, 1)
    assert number_of(newest) == 20
    node.start()
    for number in range(20, 30):
        await published(writer, STREAMS, number)
    assert writer.put_back > 0
    for follower in (*followers, *(Follower(elsewhere, stream) for stream in STREAMS)):
        assert await follower.has(30) == list(range(30))
        await follower.stop()


async def test_url_of_a_single_server_does_not_do_for_a_cluster(rig: ClusterRig) -> None:
    key = "lease:0"
    elsewhere = next(node for node in rig.nodes if node is not rig.node_of(key))
    hot_state = RedisHotState(elsewhere.url)
    with pytest.raises(ConfigError, match=r"whose URL begins with redis\+cluster://"):
        await hot_state.claim(key, "me", ttl_s=1.0)
    await hot_state.close()


async def test_single_server_is_no_cluster(tmp_path: Path) -> None:
    server = RedisProgram(tmp_path)
    server.start()
    hot_state = RedisHotState(server.url.replace("redis://", "redis+cluster://").removesuffix("/0"))
    with pytest.raises(ConfigError, match="is no Redis Cluster"):
        await hot_state.get(["a"])
    await hot_state.close()
    server.kill()


async def test_key_by_key_facts_are_on_every_node(rig: ClusterRig) -> None:
    rig.empty()
    hot_state = RedisHotState(rig.url)
    values = {f"livebar:{number}": b"%d" % number for number in range(300)}
    await hot_state.put(values, ttl_s=60.0)
    assert await hot_state.get(list(values)) == list(values.values())
    for node in rig.nodes:
        with Redis.from_url(node.admin_url) as client:
            assert client.dbsize() > 50
    await hot_state.close()
