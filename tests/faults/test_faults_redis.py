"""Redis dies and comes back, forgets its newest writes, and its replies are lost."""

from pathlib import Path

import pytest
from fault_kinds import everything_lost, member_killed, newest_lost, server_frozen, server_killed
from fault_nemesis import Fault
from fault_ordeal import Ordeal, at_once, ordeal
from fault_proxy import Loss
from fault_redis import RedisNode
from fault_streams import publishes
from fault_tapes import Tape

WORKERS = {"bars+indicators": 1, "scanner": 2, "alerts": 1, "toplists": 1}
TOPICS = ("ticks", "bars.finalized", "alerts", "alerts.filtered")
TAIL_BYTES = 40_000
MUCH_BYTES = 400_000
"""Some seconds of tape, with the boards and bars that were made of it."""


def replies_lost(run: Ordeal, losses: list[Loss]) -> Fault:
    """The next append to a stream of each topic is carried out, and its writer does not hear of it."""

    def begin() -> None:
        losses.extend(run.running.bus_link.lose_reply(publishes(topic)) for topic in TOPICS)
        for loss in losses:
            loss.wait(30.0)

    return Fault(name="lose replies of appends", begin=begin)


@pytest.mark.faults
def test_redis_dies_forgets_and_does_not_answer_and_nothing_is_lost_or_doubled(
    database: str, tape: Tape, tmp_path: Path
) -> None:
    redis = RedisNode(tmp_path / "redis")
    losses: list[Loss] = []
    cut: list[int] = []
    with ordeal(tmp_path, name="redis", tape=tape, database=database, workers=WORKERS, redis=redis) as run:
        forgetting = Fault(name="lose the newest of redis", begin=lambda: cut.append(redis.lose_newest(TAIL_BYTES)))
        run.suffer(
            server_killed("redis", redis, hold_s=(1.0, 1.0)),
            replies_lost(run, losses),
            forgetting,
            at_once(
                "kill ingest-0 and lose the newest of redis",
                member_killed(run.cluster, "ingest", hold_s=(0.5, 0.5)),
                newest_lost(redis, MUCH_BYTES),
            ),
            server_frozen("redis", redis, hold_s=(4.0, 4.0)),
            everything_lost(redis),
        )
        run.judge()
        assert cut == [TAIL_BYTES]
        assert all(loss.lost is not None for loss in losses)
        assert len(losses) == len(TOPICS)
        assert redis.program.starts == 5
        put_back = [member.program.log.read_text() for member in run.cluster.members()]
        assert any("are put back" in text for text in put_back), "nobody put back what Redis had forgotten"
        assert "the tape goes on from the journal" in run.cluster.member("ingest").program.log.read_text()
