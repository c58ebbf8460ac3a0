"""The Redis adapters under their contracts behind Sentinels; a failover loses nothing and doubles nothing."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from followers import Follower, published
from redis import Redis
from redis_rigs import SentinelRig, until
from servers import free_port

from tapewatch.adapters.redis import RedisBus
from tapewatch.adapters.redis_hot_state import RedisHotState
from tapewatch.contracts.bus import BusContract
from tapewatch.contracts.hot_state import HotStateContract
from tapewatch.contracts.samples import numbered, soon
from tapewatch.errors import ConfigError, Unavailable
from tapewatch.ports import Bus, HotState

pytestmark = pytest.mark.anyio
STREAMS = ("ticks:0", "ticks:1", "alerts:0")


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelRig]:
    rig = SentinelRig(tmp_path_factory.mktemp("sentinel"))
    rig.start()
    yield rig
    rig.kill()


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[SentinelRig]:
    mortal = SentinelRig(tmp_path)
    mortal.start()
    yield mortal
    mortal.kill()


class TestSentinelBus(BusContract):
    @pytest.fixture
    async def bus(self, rig: SentinelRig) -> AsyncIterator[Bus]:
        rig.master.empty()
        bus = RedisBus(rig.url, capacity=10, patience_s=0.3)
        yield bus
        await bus.close()

    @pytest.fixture
    def trimmed_after(self) -> int:
        return 60


class TestSentinelHotState(HotStateContract):
    @pytest.fixture
    async def hot_state(self, rig: SentinelRig) -> AsyncIterator[HotState]:
        rig.master.empty()
        hot_state = RedisHotState(rig.url)
        yield hot_state
        await hot_state.close()


@pytest.fixture
async def writer(mortal: SentinelRig) -> AsyncIterator[RedisBus]:
    writer = RedisBus(mortal.url)
    yield writer
    await writer.close()


@pytest.fixture
async def elsewhere(mortal: SentinelRig) -> AsyncIterator[RedisBus]:
    """Another process, as far as the server can see."""
    elsewhere = RedisBus(mortal.url)
    yield elsewhere
    await elsewhere.close()


async def test_failover_to_a_replica_that_lagged_loses_nothing_and_doubles_nothing(
    mortal: SentinelRig, writer: RedisBus, elsewhere: RedisBus
) -> None:
    hot_state = RedisHotState(mortal.url)
    followers = [Follower(bus, stream) for bus in (writer, elsewhere) for stream in STREAMS]
    for number in range(20):
        await writer.publish_all(dict.fromkeys(STREAMS, numbered(number)))
    first = mortal.master
    mortal.until_replicas_follow()
    assert await hot_state.hold(["lease:0"], "me", ttl_s=60.0) == [True]
    (replica,) = (server for server in mortal.servers if server is not first)
    with Redis.from_url(
        replica.admin_url
    ) as client:  # from now on it hears nothing, and is still a replica that may be chosen
        client.config_set("masterauth", "not the password")
        client.execute_command("CLIENT", "KILL", "TYPE", "master")
        until(lambda: client.info("replication")["master_link_status"] == "down", "the replica is cut off")
    for number in range(20, 35):
        positions = await writer.publish_all(dict.fromkeys(STREAMS, numbered(number)))
    for follower in followers:
        await follower.has(35)
    first.kill()
    late = [Follower(elsewhere, stream) for stream in STREAMS]
    for follower in late:
        assert await follower.has(35) == list(range(35))
    assert mortal.master is replica
    assert {stream: await elsewhere.tail(stream) for stream in STREAMS} == positions
    for number in range(35, 45):
        await published(writer, STREAMS, number)
    assert writer.put_back == 15 * len(STREAMS)
    for follower in (*followers, *late):
        assert await follower.has(45) == list(range(45))
        await follower.stop()
    assert await hot_state.hold(["lease:0"], "you", ttl_s=60.0) in ([True], [False])
    await hot_state.close()


async def test_publishing_through_a_failover_is_unavailable_for_a_while_and_goes_on(
    mortal: SentinelRig, writer: RedisBus, elsewhere: RedisBus
) -> None:
    follower = Follower(elsewhere, "ticks:0")
    refused = asyncio.Event()

    async def publish_all() -> None:
        for number in range(60):
            try:
                await writer.publish("ticks:0", numbered(number))
            except Unavailable:
                refused.set()
                await published(writer, ["ticks:0"], number)
            if number > 20 and not refused.is_set():
                await asyncio.sleep(0.05)

    publishing = asyncio.ensure_future(publish_all())
    await follower.has(20)
    mortal.master.kill()
    await soon(publishing)
    assert refused.is_set()
    for each in (follower, Follower(elsewhere, "ticks:0")):
        assert await each.has(60) == list(range(60))
        await each.stop()


async def test_sentinels_that_are_away_or_know_no_such_master_are_unavailable(rig: SentinelRig) -> None:
    nobody = f"redis+sentinel://:s3cret@127.0.0.1:{free_port()}/tape/0"
    for url in (nobody, rig.url.replace("/tape/", "/other/")):
        hot_state = RedisHotState(url)
        with pytest.raises(Unavailable, match="has no master that a Sentinel knows of") as raised:
            await hot_state.get(["a"])
        assert "s3cret" not in str(raised.value)
        await hot_state.close()


async def test_wrong_password_is_one_clear_line_without_it(rig: SentinelRig) -> None:
    hot_state = RedisHotState(rig.url.replace(rig.password, "wrong-s3cret"))
    with pytest.raises(ConfigError, match="refuses the user or the password") as raised:
        await hot_state.get(["a"])
    assert "s3cret" not in str(raised.value)
    await hot_state.close()
