"""The replay feed: what every feed promises, and tape time against a clock that the test holds."""

import math
from contextlib import aclosing
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from held import START_NS, HeldClock, write_tape

from tapewatch.contracts.feed import FeedContract, OpenFeed, collect, plain
from tapewatch.engine.columns import MINUTE_NS, ROW_COLUMNS, SECOND_NS, Batch
from tapewatch.errors import FeedRefused, Invalid
from tapewatch.feeds.replay import ReplayFeed
from tapewatch.feeds.synthetic import SyntheticFeed, TradingDay
from tapewatch.feeds.tape_file import TapeReader
from tapewatch.ports import Resumable

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


def rest_of(whole: dict[str, list[Any]], rows: int) -> dict[str, list[Any]]:
    """What is behind the first so many rows: their columns, and the marks that stand from there on."""
    rest = {name: whole[name][rows:] for name in ROW_COLUMNS}
    marks = [(row - rows, ns) for row, ns in zip(whole["marks_row"], whole["marks_ns"], strict=True) if row >= rows]
    return {**rest, "marks_row": [row for row, _ in marks], "marks_ns": [ns for _, ns in marks]}


class ResumableContract:
    """Give `open_feed`, as for `FeedContract`."""

    @pytest.mark.anyio
    async def test_resumed_feed_gives_what_is_behind_the_rows_and_their_marks(self, open_feed: OpenFeed) -> None:
        batches = await collect(open_feed())
        whole = plain(batches)
        total = len(whole["ts_ns"])
        between = list(accumulate(map(len, batches)))
        for rows in sorted(
            {0, 1, 7, 499, 500, total // 2, total - 1, total, *between[:: len(between) // 6 + 1], *between[-2:]}
        ):
            feed = open_feed()
            assert isinstance(feed, Resumable)
            feed.resume(rows)
            assert plain(await collect(feed)) == rest_of(whole, rows), rows

    @pytest.mark.anyio
    async def test_feed_that_was_broken_off_between_two_batches_goes_on_as_if_it_had_not(
        self, open_feed: OpenFeed
    ) -> None:
        whole = plain(await collect(open_feed()))
        feed = open_feed()
        assert isinstance(feed, Resumable)
        parts: list[Batch] = []
        while True:
            feed.resume(sum(map(len, parts)))
            count = len(parts)
            async with aclosing(feed.batches()) as items:  # type: ignore[type-var]  # feeds are generators
                async for item in items:
                    assert isinstance(item, Batch)
                    parts.append(item)
                    if len(parts) - count == 40:
                        break
            if len(parts) - count < 40:
                break
        joined = plain(parts)
        assert all(joined[name] == whole[name] for name in ROW_COLUMNS)
        marks = dict.fromkeys(zip(joined["marks_row"], joined["marks_ns"], strict=True))
        assert list(marks) == list(zip(whole["marks_row"], whole["marks_ns"], strict=True))

    @pytest.mark.anyio
    async def test_feed_plays_from_the_start_again_after_it_was_resumed_once(self, open_feed: OpenFeed) -> None:
        feed = open_feed()
        assert isinstance(feed, Resumable)
        whole = plain(await collect(feed))
        feed.resume(100)
        assert len(plain(await collect(feed))["ts_ns"]) == len(whole["ts_ns"]) - 100
        assert plain(await collect(feed)) == whole

    @pytest.mark.anyio
    async def test_feed_with_fewer_rows_than_were_played_is_refused(self, open_feed: OpenFeed) -> None:
        feed = open_feed()
        assert isinstance(feed, Resumable)
        total = len(plain(await collect(feed))["ts_ns"])
        feed.resume(total + 5)
        with pytest.raises(FeedRefused, match=r"are others|is another"):
            await collect(feed)
        with pytest.raises(ValueError, match="beginning"):
            feed.resume(-1)


class TestResumedReplayAtOnce(ResumableContract):
    @pytest.fixture
    def open_feed(self, tape: Path) -> OpenFeed:
        return lambda: ReplayFeed([tape], clock=HeldClock(), speed=math.inf)


class TestResumedReplayPaced(ResumableContract):
    @pytest.fixture
    def open_feed(self, tape: Path) -> OpenFeed:
        return lambda: ReplayFeed([tape], clock=HeldClock(), speed=10.0)


class TestResumedSyntheticFeed(ResumableContract):
    @pytest.fixture
    def open_feed(self) -> OpenFeed:
        day = replace(DAY, close_ns=START_NS + 90 * SECOND_NS, post_ns=START_NS + 90 * SECOND_NS)
        return lambda: SyntheticFeed(
            seed=3, start_ns=START_NS, clock=HeldClock(), symbols=10, ticks_per_s=20.0, days=[day], batch_s=0.25
        )


@pytest.mark.anyio
async def test_resumed_replay_knows_repeated_trades_of_before_and_counts_what_is_rejected(tmp_path: Path) -> None:
    path = write_tape(tmp_path / "tape.parquet", [n * 0.01 for n in range(1_000)])
    table = pq.read_table(path)
    ids = [n % 600 + 1 for n in range(1_000)]  # the last 400 come for the second time
    times = [table.column("ts_ns")[n % 600].as_py() for n in range(1_000)]
    table = table.set_column(1, "ts_ns", pa.array(times)).append_column("trade_id", pa.array(ids))
    pq.write_table(table, path)
    feed = ReplayFeed([path], clock=HeldClock(), speed=math.inf)
    whole = plain(await collect(feed))
    assert len(whole["ts_ns"]) == 600
    feed.resume(500)
    assert plain(await collect(feed)) == rest_of(whole, 500)


@pytest.mark.anyio
async def test_resumed_replay_is_paced_from_the_first_row_that_it_gives(tmp_path: Path) -> None:
    tape = write_tape(tmp_path / "tape.parquet", [0, 1, 2, 3_000, 2_990, 3_001, 3_003])
    for rows, expected in ((2, [0, 5, 5, 6, 8]), (3, [0, 0, 1, 3]), (4, [0, 1, 3]), (6, [0])):
        clock = HeldClock()
        feed = ReplayFeed([tape], clock=clock, speed=1.0)
        feed.resume(rows)
        begun_ns = clock.ns
        seen = [(clock.ns - begun_ns) / SECOND_NS async for batch in feed.batches() for _ in range(len(batch))]
        assert seen == pytest.approx(expected), rows


@pytest.mark.anyio
async def test_resumed_replay_goes_on_over_a_chunk_of_which_nothing_was_kept(tmp_path: Path) -> None:
    good = write_tape(tmp_path / "a.parquet", [0.0, 1.0])
    bad = write_tape(tmp_path / "b.parquet", [10.0, 11.0])
    table = pq.read_table(bad)
    pq.write_table(table.set_column(2, "price", pa.array([-1.0, -1.0])), bad)
    last = write_tape(tmp_path / "c.parquet", [20.0, 21.0])
    feed = ReplayFeed([good, bad, last], clock=HeldClock(), speed=math.inf)
    feed.resume(3)
    assert plain(await collect(feed))["ts_ns"] == [START_NS + 21 * SECOND_NS]
