"""Every role is killed in turn, while the tape plays."""

from pathlib import Path

import pytest
from fault_judge import resumes_of
from fault_kinds import member_killed
from fault_ordeal import SERVED_S, ordeal
from fault_tapes import Tape

WORKERS = {"bars": 2, "indicators": 2, "scanner": 2, "alerts": 2, "toplists": 1}
SHARED = ("bars", "indicators", "scanner", "alerts")
KILLED = ("ingest", *SHARED, "toplists", "gateway", "api")


@pytest.mark.faults
def test_every_role_is_killed_in_turn_and_nothing_is_lost_or_doubled(
    database: str, long_tape: Tape, tmp_path: Path
) -> None:
    with ordeal(tmp_path, name="killed", tape=long_tape, database=database, workers=WORKERS) as run:
        before = {role: run.cluster.member(role).program.pid for role in KILLED}
        run.suffer(*(member_killed(run.cluster, role, hold_s=(0.5, 0.5)) for role in KILLED))
        run.judge()
        for role in KILLED:
            program = run.cluster.member(role).program
            assert program.starts >= 2
            assert program.pid != before[role]
        assert len(resumes_of(run.witness)) >= 1
        for role in ("ingest", *SHARED):
            moved = [stretch for stretch in run.handed_over[f"kill {role}-0"] if stretch.role == role]
            assert moved, f"nobody took over from {role}-0"
        assert run.watch.longest_unowned(*SHARED).seconds < SERVED_S
