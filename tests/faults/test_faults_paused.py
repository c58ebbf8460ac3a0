"""Workers come and go while the tape plays, and processes stand still for so long that others take their place."""

from pathlib import Path

import pytest
from fault_kinds import member_paused
from fault_nemesis import Fault
from fault_ordeal import SERVED_S, Ordeal, alerts_between, at_once, ordeal
from fault_processes import until
from fault_tapes import Tape

from tapewatch.engine.columns import SECOND_NS

WORKERS = {"bars": 1, "indicators": 1, "scanner": 1, "alerts": 1, "toplists": 1}
SCALED = ("scanner", "bars")
PAUSE = (10.0, 10.0)
_SCALED_S = 40.0


def scaled(run: Ordeal, to: int) -> Fault:
    def begin() -> None:
        for role in SCALED:
            run.cluster.scale(role, to)
        until(
            lambda: all(run.watch.owners_of(role) == to for role in SCALED), f"{to} share the work", within_s=_SCALED_S
        )

    return Fault(name=f"scale scanner and bars to {to}", begin=begin)


@pytest.mark.faults
def test_workers_come_and_go_and_stand_still_and_nothing_is_lost_or_doubled(
    database: str, long_tape: Tape, tmp_path: Path
) -> None:
    with ordeal(tmp_path, name="paused and scaled", tape=long_tape, database=database, workers=WORKERS) as run:
        ingest = member_paused(run.cluster, "ingest", hold_s=PAUSE)
        workers = at_once(
            "pause scanner-0, bars-0 and gateway-0",
            *(member_paused(run.cluster, role, hold_s=PAUSE) for role in (*SCALED, "gateway")),
        )
        run.suffer(ingest, scaled(run, 4), scaled(run, 2), workers)
        run.judge()
        for to in (4, 2):
            since_ns, until_ns = run.times_ns[f"scale scanner and bars to {to}"]
            assert run.handed_over[f"scale scanner and bars to {to}"]
            longest = run.watch.longest_silence("scanner", since_ns=since_ns, until_ns=until_ns)
            assert longest.seconds < SERVED_S, longest
        moved = {stretch.role for stretch in run.handed_over[workers.name]}
        assert moved >= set(SCALED), "nobody took the place of those that stood still"
        assert run.watch.longest_unowned(*SCALED).seconds < SERVED_S
        assert run.cluster.restarts == 0
        for role in ("ingest", *SCALED, "gateway"):
            assert run.cluster.member(role).program.starts == (2 if role == "ingest" else 1), (
                "it stood still, and lived"
            )
        began_ns, _ = run.times_ns[workers.name]
        there, away = (
            alerts_between(witness, began_ns + SECOND_NS, began_ns + 9 * SECOND_NS)
            for witness in reversed(run.running.witnesses)
        )
        assert there > 0, "clients of the other gateway are told meanwhile"
        assert away == 0, "the gateway did not stand still"
