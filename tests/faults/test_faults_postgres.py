"""PostgreSQL is restarted, is gone, and its replies are lost."""

import os
from pathlib import Path

import pytest
from fault_nemesis import Fault
from fault_ordeal import alerts_between, ordeal
from fault_proxy import Loss
from fault_tapes import Tape
from postgres_server import PostgresProgram

from tapewatch.engine.columns import SECOND_NS

WORKERS = {"bars+indicators": 2, "scanner": 1, "alerts": 2, "toplists": 1}
GONE_S = float(os.environ.get("TAPEWATCH_POSTGRES_GONE_S", "20"))
"""60 for the whole of what the system must survive."""


@pytest.mark.faults
def test_postgres_is_restarted_and_gone_and_nothing_is_lost_or_doubled(
    timescale: PostgresProgram, database: str, long_tape: Tape, tmp_path: Path
) -> None:
    losses: list[Loss] = []
    with ordeal(tmp_path, name="postgres", tape=long_tape, database=database, workers=WORKERS) as run:
        link = run.running.store_link

        def lose_commits() -> None:
            losses.extend(
                [link.lose_reply("COMMIT"), link.lose_reply("COMMIT", then="silence"), link.lose_request("COMMIT")]
            )
            for loss in losses:
                loss.wait(30.0)

        gone = Fault(
            name=f"postgres gone for {GONE_S:g} s",
            begin=lambda: timescale.stop("fast"),
            end=timescale.start,
            hold_s=(GONE_S, GONE_S),
        )
        run.suffer(
            Fault(
                name="restart postgres (fast)",
                begin=lambda: timescale.stop("fast"),
                end=timescale.start,
                hold_s=(0.0, 0.0),
            ),
            Fault(
                name="restart postgres (immediate)",
                begin=lambda: timescale.stop("immediate"),
                end=timescale.start,
                hold_s=(0.0, 0.0),
            ),
            Fault(name="lose replies of COMMIT", begin=lose_commits),
            gone,
        )
        run.judge()
        assert len(losses) == 3
        assert all(loss.lost is not None for loss in losses)
        began_ns, _ = run.times_ns[gone.name]
        meanwhile = alerts_between(run.witness, began_ns + SECOND_NS, began_ns + round(GONE_S * SECOND_NS))
        assert meanwhile > 20, "clients are told although the store is gone"
