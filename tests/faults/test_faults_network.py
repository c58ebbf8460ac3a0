"""Cables are cut, links are slow, entries come twice, and a client does not keep up."""

import asyncio
from pathlib import Path

import pytest
from fault_frames import PostgresFrames
from fault_kinds import cable_cut, link_slow
from fault_nemesis import Fault
from fault_netns import namespace
from fault_ordeal import PARTITIONS, SERVED_S, at_once, ordeal, repeated_alerts
from fault_proxy import Proxy
from fault_redis import RedisNode
from fault_streams import redeliver
from fault_system import System
from fault_tapes import Tape
from postgres_server import PostgresProgram

from tapewatch.adapters.redis import RedisBus

WORKERS = {"bars+indicators": 1, "scanner": 1, "alerts": 1, "toplists": 1}
TWICE = ("ticks", "alerts", "alerts.filtered", "bars.finalized")
_NEWEST = 20
_PACE_S = 0.25


async def publish_twice(url: str, again: list[int]) -> None:
    """The newest entries of streams whose readers must know them; their writers are fenced by it."""
    bus = RedisBus(url)
    try:
        for stream in (f"{topic}:{p}" for topic in TWICE for p in range(PARTITIONS)):
            again += [len(await redeliver(bus, stream, newest=_NEWEST))]
    finally:
        await bus.close()


@pytest.mark.faults
def test_cables_are_cut_links_slow_and_entries_come_twice_and_nothing_is_lost_or_doubled(
    timescale: PostgresProgram, database: str, tape: Tape, tmp_path: Path
) -> None:
    again: list[int] = []
    with namespace() as there, Proxy(("127.0.0.1", timescale.port), host=there.outside, frames=PostgresFrames) as far:
        redis = RedisNode(tmp_path / "redis", hosts=("127.0.0.1", there.outside))

        def add_far_scanner(running: System) -> None:
            running.cluster.add(
                "scanner",
                bus=redis.url_at(there.outside, redis.port),
                store=database.replace(f"127.0.0.1:{timescale.port}", f"{far.host}:{far.port}"),
                namespace=there,
            )

        with ordeal(
            tmp_path, name="network", tape=tape, database=database, workers=WORKERS, redis=redis, before=add_far_scanner
        ) as run:
            quick, slow = run.running.witnesses
            slow.pace(_PACE_S)
            cut = cable_cut("scanner-0", there, hold_s=(6.0, 6.0))
            run.suffer(
                cut,
                at_once(
                    "slow links",
                    link_slow("redis", run.running.bus_link, latency_s=0.05, jitter_s=0.05, hold_s=(5.0, 5.0)),
                    link_slow("postgres", run.running.store_link, latency_s=0.05, jitter_s=0.05),
                ),
                Fault(name="entries come twice", begin=lambda: asyncio.run(publish_twice(redis.url, again))),
            )
            behind = len(quick.ids()) - len(slow.ids())
            slow.pace(0.0)
            run.judge()
            assert behind > 20, "the slow client kept up"
            assert sum(again) > 3 * PARTITIONS
            moved = [stretch for stretch in run.handed_over[cut.name] if stretch.role == "scanner"]
            assert moved, "nobody took the place of the scanner that was cut off"
            assert run.watch.longest_unowned("scanner").seconds < SERVED_S
            for topic in ("alerts", "alerts.filtered"):
                assert asyncio.run(repeated_alerts(redis.url, topic)) > 0, f"no entry of {topic} came twice"
