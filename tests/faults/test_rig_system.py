"""The rig starts the product, and without faults nothing is missing: what a fault run is compared with."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_kinds import link_slow, member_killed
from fault_nemesis import Nemesis, all_ready, next_alert
from fault_system import System, system
from fault_tapes import write_tape
from postgres_server import PostgresProgram

from tapewatch.documents import load_rule_file
from tapewatch.eligibility import load_profile
from tapewatch.replay import scan_tape

BEGIN_S, PLAY_S = 120.0, 120.0
WORKERS = {"bars+indicators+scanner+alerts+toplists": 1}


@pytest.fixture(scope="module")
def database() -> Iterator[PostgresProgram]:
    server = PostgresProgram()
    yield server
    server.remove()


@pytest.fixture
def running(database: PostgresProgram, tmp_path: Path) -> Iterator[System]:
    tape = write_tape(tmp_path, symbols=60, trades=5_000, wall_s=15.0, speed=120.0)
    url = database.url_of(asyncio.run(database.new_database()))
    with system(tmp_path, tape=tape, database=url, partitions=2, workers=WORKERS, gateways=1) as running:
        yield running


def expected(running: System) -> int:
    """How many alerts the engine alone makes of the tape."""
    rules, _ = load_rule_file(running.tape.rules.read_bytes(), where="fault.rules")
    return len(scan_tape([running.tape.path], profile=load_profile("alpaca"), rules=rules).matches)


def test_whole_system_plays_the_tape_through_a_kill_and_a_slow_link_and_the_witness_has_every_alert(
    running: System, tmp_path: Path
) -> None:
    running.begin(within_s=BEGIN_S)
    nemesis = Nemesis(
        seed=3,
        faults=[
            member_killed(running.cluster, "gateway"),
            link_slow("redis", running.bus_link, latency_s=0.05, jitter_s=0.05),
        ],
        signs={"ready": all_ready(running.cluster), "alert": next_alert(running.witnesses[0])},
        log=tmp_path / "nemesis.ndjson",
        cluster=running.cluster,
        patience_s=60.0,
    )
    suffered = nemesis.run(nemesis.schedule(seconds=10.0, pause_s=(0.5, 1.0))[:2])
    print(nemesis.report())  # noqa: T201  # figures, for those who run with -s
    assert all(one.recovered_s["ready"] is not None for one in suffered)
    running.wait_played(within_s=PLAY_S)
    (witness,) = running.witnesses
    stored = running.stored_ids()
    assert sorted(witness.ids()) == sorted(stored)
    assert len(stored) == expected(running) > 50
    assert witness.losses() == []
