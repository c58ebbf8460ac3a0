"""The replay feed: what every feed promises, and tape time against a clock that the test holds."""

import math
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from held import START_NS, HeldClock, write_tape

from tapewatch.contracts.feed import FeedContract, OpenFeed, collect, plain
from tapewatch.engine.columns import MINUTE_NS, SECOND_NS
from tapewatch.errors import Invalid
from tapewatch.feeds.replay import ReplayFeed
from tapewatch.feeds.synthetic import SyntheticFeed, TradingDay
from tapewatch.feeds.tape_file import TapeReader

DAY = TradingDay(
    pre_ns=START_NS, open_ns=START_NS + MINUTE_NS, close_ns=START_NS + 3 * MINUTE_NS, post_ns=START_NS + 4 * MINUTE_NS
)


@pytest.fixture
def tape(tmp_path: Path) -> Path:
    """Two minutes of trades, a bad price and a late one among them."""
    path = write_tape(tmp_path / "tape.parquet", [n * 0.037 + (-70 if n % 500 == 499 else 0) for n in range(3_300)])
    table = pq.read_table(path)
    prices = table.column("price").to_pylist()
    prices[7] = -1.0
    pq.write_table(table.set_column(2, "price", pa.array(prices)), path)
    return path


class TestReplayFeedAtOnce(FeedContract):
    @pytest.fixture
    def open_feed(self, tape: Path) -> OpenFeed:
        return lambda: ReplayFeed([tape], clock=HeldClock(), speed=math.inf)


class TestReplayFeedPaced(FeedContract):
    @pytest.fixture
    def open_feed(self, tape: Path) -> OpenFeed:
        return lambda: ReplayFeed([tape], clock=HeldClock(), speed=10.0)


class TestSyntheticFeed(FeedContract):
    @pytest.fixture
    def open_feed(self) -> OpenFeed:
        return lambda: SyntheticFeed(
            seed=3, start_ns=START_NS, clock=HeldClock(), symbols=30, ticks_per_s=50.0, days=[DAY], batch_s=0.25
        )


async def arrivals(tape: Path, *, speed: float) -> list[tuple[float, float]]:
    """(seconds of the tape, seconds of the clock since the start) of each row, as it comes."""
    clock = HeldClock()
    feed = ReplayFeed([tape], clock=clock, speed=speed)
    begun_ns = clock.ns
    return [
        ((ts_ns - START_NS) / SECOND_NS, (clock.ns - begun_ns) / SECOND_NS)
        async for batch in feed.batches()
        for ts_ns in batch.ts_ns.tolist()
    ]


@pytest.mark.anyio
@pytest.mark.parametrize("speed", [0.5, 1.0, 4.0])
async def test_replay_at_a_speed_keeps_the_distances_of_the_tape(tmp_path: Path, speed: float) -> None:
    tape = write_tape(tmp_path / "tape.parquet", [n * 0.1 for n in range(100)])
    for tape_s, clock_s in await arrivals(tape, speed=speed):
        assert clock_s == pytest.approx(tape_s / speed, abs=1e-6)


@pytest.mark.anyio
async def test_replay_shortens_a_quiet_stretch_to_five_seconds(tmp_path: Path) -> None:
    tape = write_tape(tmp_path / "tape.parquet", [0, 1, 3_000, 3_001])
    assert [clock_s for _, clock_s in await arrivals(tape, speed=1.0)] == pytest.approx([0, 1, 6, 7])


@pytest.mark.anyio
async def test_replay_plays_a_late_row_at_once_and_goes_on(tmp_path: Path) -> None:
    tape = write_tape(tmp_path / "tape.parquet", [0, 1, 2, -100, 3, 4])
    seen = await arrivals(tape, speed=1.0)
    assert [clock_s for _, clock_s in seen] == pytest.approx([0, 1, 2, 2, 3, 4])


@pytest.mark.anyio
async def test_replay_never_plays_ahead_of_its_clock(tape: Path) -> None:
    clock_s = [clock for _, clock in await arrivals(tape, speed=2.0)]
    assert all(later >= sooner for sooner, later in pairwise(clock_s))
    assert clock_s[-1] == pytest.approx(3_299 * 0.037 / 2.0, rel=0.05)


@pytest.mark.anyio
async def test_replay_at_once_is_the_tape_as_the_reader_has_it(tape: Path) -> None:
    feed = ReplayFeed([tape], clock=HeldClock(), speed=math.inf)
    assert plain(await collect(feed)) == plain(list(TapeReader([tape]).batches()))
    assert feed.rejected == {"price": 1}


@pytest.mark.anyio
async def test_paced_replay_has_the_rows_of_the_tape_and_plays_again_from_the_start(tape: Path) -> None:
    feed = ReplayFeed([tape], clock=HeldClock(), speed=100.0)
    rows = [plain(await collect(feed))["ts_ns"] for _ in range(2)]
    assert rows[0] == rows[1] == plain(list(TapeReader([tape]).batches()))["ts_ns"]
    assert feed.rejected == {"price": 1}


@pytest.mark.parametrize("speed", [0.0, -1.0])
def test_replay_backwards_or_standing_is_refused(tape: Path, speed: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        ReplayFeed([tape], clock=HeldClock(), speed=speed)


def test_replay_of_a_missing_file_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="no such file"):
        ReplayFeed([tmp_path / "nowhere.parquet"], clock=HeldClock())


@pytest.mark.anyio
async def test_paced_replay_ends_with_the_marks_that_close_the_last_minutes(tmp_path: Path) -> None:
    path = write_tape(tmp_path / "tape.parquet", [0.0, 1.0, 2.0])
    batches = [batch async for batch in ReplayFeed([path], clock=HeldClock(), speed=1.0).batches()]
    assert len(batches[-1]) == 0
    assert batches[-1].marks_ns[-1] == START_NS + 2 * MINUTE_NS


@pytest.mark.anyio
async def test_late_row_first_in_a_chunk_does_not_hurry_the_tape(tmp_path: Path) -> None:
    rows = 1 << 17  # a chunk of the reader
    seconds = [10.0 + n / rows for n in range(rows)] + [1.0, *(11.0 + n for n in range(20))]
    path = write_tape(tmp_path / "tape.parquet", seconds)
    clock = HeldClock()
    started_ns = clock.ns
    async for _ in ReplayFeed([path], clock=clock, speed=1.0).batches():
        pass
    assert (clock.ns - started_ns) / SECOND_NS == pytest.approx(20.0, abs=0.2)
