"""PostgreSQL is restarted, is gone, and its replies are lost."""

import os
from pathlib import Path

import pytest
from fault_frames import PostgresFrames
from fault_nemesis import Fault
from fault_ordeal import alerts_between, ordeal
from fault_proxy import Loss, Proxy
from fault_system import System
from fault_tapes import Tape
from postgres_server import PostgresProgram

from tapewatch.engine.columns import SECOND_NS

WORKERS = {"bars+indicators": 2, "scanner": 1, "toplists": 1}
GONE_S = float(os.environ.get("TAPEWATCH_POSTGRES_GONE_S", "20"))
"""60 for the whole of what the system must survive."""


@pytest.mark.faults
def test_postgres_is_restarted_and_gone_and_nothing_is_lost_or_doubled(
    timescale: PostgresProgram, database: str, long_tape: Tape, tmp_path: Path
) -> None:
    losses: list[Loss] = []
    # Those who save alerts have a link of their own, so that a COMMIT that is lost on it is one of a write.
    with Proxy(("127.0.0.1", timescale.port), frames=PostgresFrames) as writes:

        def add_alerts(running: System) -> None:
            store = database.replace(f"127.0.0.1:{timescale.port}", f"{writes.host}:{writes.port}")
            running.cluster.add("alerts", store=store, count=2)

        def lose_commits() -> None:
            losses.extend(
                [
                    writes.lose_reply("COMMIT"),
                    writes.lose_reply("COMMIT", then="silence"),
                    writes.lose_request("COMMIT"),
                ]
            )
            for loss in losses:
                loss.wait(30.0)

        restarts = [
            Fault(
                name="restart postgres (fast)",
                begin=lambda: timescale.stop("fast"),
                end=timescale.start,
                hold_s=(1.0, 1.0),
            ),
            Fault(
                name="restart postgres (immediate)",
                begin=lambda: timescale.stop("immediate"),
                end=timescale.start,
                hold_s=(1.0, 1.0),
            ),
        ]
        gone = Fault(
            name=f"postgres gone for {GONE_S:g} s",
            begin=lambda: timescale.stop("fast"),
            end=timescale.start,
            hold_s=(GONE_S, GONE_S),
        )
        with ordeal(
            tmp_path, name="postgres", tape=long_tape, database=database, workers=WORKERS, before=add_alerts
        ) as run:

            def complaints() -> int:
                logs = [member.program.log.read_text() for member in run.cluster.members("alerts")]
                return sum(text.count("where=alerts.store") for text in logs)

            for fault in (*restarts, Fault(name="lose COMMIT", begin=lose_commits), gone):
                before = complaints()
                run.suffer(fault)
                assert complaints() > before, f"nobody who saves alerts noticed: {fault.name}"
            run.judge()
            assert len(losses) == 3
            assert all(loss.lost is not None for loss in losses)
            began_ns, _ = run.times_ns[gone.name]
            meanwhile = alerts_between(run.witness, began_ns + SECOND_NS, began_ns + round(GONE_S * SECOND_NS))
            assert meanwhile > 20, "clients are told although the store is gone"
