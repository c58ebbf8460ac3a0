"""A feed's time: marks where it passes a tenth of a second, and no single row that takes the clock with it."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapewatch.engine.columns import SECOND_NS, Batch, Kind, make_batch
from tapewatch.feeds.marks import JUMP_NS, PULSE_NS, LiveTime, TapeTime, first_after, spikes

START_NS = 1_741_012_200 * SECOND_NS
HOUR_NS = 3600 * SECOND_NS


def rows(*times_ns: int, **columns: Any) -> Batch:
    return make_batch(
        symbols=("A",), ts_ns=times_ns, price=[10.0] * len(times_ns), size=[1.0] * len(times_ns), **columns
    )


def marks(batch: Batch) -> list[tuple[int, int]]:
    return list(zip(batch.marks_row.tolist(), batch.marks_ns.tolist(), strict=True))


def test_mark_stands_before_each_row_that_takes_time_past_a_tenth() -> None:
    time = TapeTime()
    first = time.mark(rows(START_NS + 1, START_NS + 2, START_NS + PULSE_NS + 7))
    assert marks(first) == [(0, START_NS), (2, START_NS + PULSE_NS)]
    late = time.mark(rows(START_NS + 5, START_NS + PULSE_NS + 8, START_NS + 3 * PULSE_NS))
    assert marks(late) == [(2, START_NS + 3 * PULSE_NS)]
    assert time.late == 1


@given(
    steps=st.lists(st.integers(-SECOND_NS, SECOND_NS), min_size=1, max_size=60),
    cuts=st.sets(st.integers(1, 59), max_size=10),
)
def test_tape_cut_into_other_batches_has_the_same_marks(steps: list[int], cuts: set[int]) -> None:
    times = (START_NS + np.cumsum(steps)).tolist()
    whole = marks(TapeTime().mark(rows(*times)))
    for time in (TapeTime(), LiveTime()):
        pieces: list[tuple[int, int]] = []
        edges = [0, *sorted(cut for cut in cuts if cut < len(times)), len(times)]
        for start, stop in pairwise(edges):
            piece = rows(*times[start:stop])
            piece = time.take(piece)[0] if isinstance(time, LiveTime) else time.mark(piece)
            pieces += [(row + start, ns) for row, ns in marks(piece)]
        assert pieces == whole


def naive_spikes(times: list[int], before_ns: int, next_ns: int) -> list[bool]:
    """Messages (neighbours of one time) over an hour ahead of the message before, of the one after, and of all that
    were believed.
    """
    groups: list[list[int]] = []
    for ts_ns in times:
        if groups and groups[-1][0] == ts_ns:
            groups[-1].append(ts_ns)
        else:
            groups.append([ts_ns])
    heads = [group[0] for group in groups]
    wild: list[bool] = []
    steep = []
    for i, ts_ns in enumerate(heads):
        following = heads[i + 1] if i + 1 < len(heads) else next_ns
        previous = heads[i - 1] if i else (before_ns if before_ns >= 0 else following)
        steep.append(ts_ns - previous > JUMP_NS and ts_ns - following > JUMP_NS)
    run = before_ns if before_ns >= 0 else (heads[1] if len(heads) > 1 else next_ns)
    for ts_ns, is_steep, group in zip(heads, steep, groups, strict=True):
        wild += [is_steep and ts_ns - run > JUMP_NS] * len(group)
        if not is_steep:
            run = max(run, ts_ns)
    return wild


@given(
    hours=st.lists(st.integers(0, 5), min_size=0, max_size=12),
    before=st.sampled_from([-1, 0, 2, 4]),
    following=st.integers(0, 5),
)
def test_spikes_are_those_of_a_slow_and_obvious_search(hours: list[int], before: int, following: int) -> None:
    times = [START_NS + hour * 2 * HOUR_NS for hour in hours]
    before_ns = -1 if before < 0 else START_NS + before * 2 * HOUR_NS
    next_ns = START_NS + following * 2 * HOUR_NS
    found = spikes(np.array(times, np.int64), before_ns=before_ns, next_ns=next_ns)
    assert found.tolist() == naive_spikes(times, before_ns, next_ns)


@pytest.mark.parametrize("wild_ns", [HOUR_NS + 4, 20 * HOUR_NS, 300_000 * HOUR_NS])
@pytest.mark.parametrize("cuts", [[], [3], [2], [2, 3], [1, 2, 3]])
def test_one_wild_time_is_left_out_wherever_it_stands_in_a_batch(wild_ns: int, cuts: list[int]) -> None:
    times = [START_NS, START_NS + 1, START_NS + wild_ns, START_NS + 2, START_NS + 3]
    time = LiveTime()
    kept: list[int] = []
    false: list[int] = []
    edges = [0, *cuts, len(times)]
    for start, stop in pairwise(edges):
        batch, wild = time.take(rows(*times[start:stop]))
        kept += batch.ts_ns.tolist()
        false += wild.ts_ns.tolist()
        assert all(ns <= START_NS for ns in batch.marks_ns.tolist())
    assert false == [START_NS + wild_ns]
    assert kept == [ns for ns in times if ns != START_NS + wild_ns]


def test_wild_quote_is_two_rows_and_both_are_left_out() -> None:
    time = LiveTime()
    wild_ns = START_NS + 2 * HOUR_NS
    batch, false = time.take(rows(START_NS, wild_ns, wild_ns, kind=[Kind.TRADE, Kind.BID, Kind.ASK]))
    assert (len(batch), len(false)) == (1, 0)
    batch, false = time.take(rows(START_NS + 1))
    assert (batch.ts_ns.tolist(), false.kind.tolist()) == ([START_NS + 1], [Kind.BID, Kind.ASK])


def test_row_after_a_night_waits_for_the_next_and_then_both_come() -> None:
    time = LiveTime()
    time.take(rows(START_NS))
    morning_ns = START_NS + 13 * HOUR_NS
    assert len(time.take(rows(morning_ns))[0]) == 0
    batch, false = time.take(rows(morning_ns + SECOND_NS))
    assert len(false) == 0
    assert batch.ts_ns.tolist() == [morning_ns, morning_ns + SECOND_NS]
    assert marks(batch) == [(0, morning_ns), (1, morning_ns + SECOND_NS)]


def test_first_row_of_all_is_believed() -> None:
    assert len(LiveTime().take(rows(START_NS))[0]) == 1


def test_time_goes_on_only_after_the_first_row() -> None:
    time = LiveTime()
    assert time.advance(SECOND_NS) is None
    time.take(rows(START_NS + 1))
    assert time.advance(PULSE_NS - 2) is None
    pulse = time.advance(1)
    assert pulse is not None
    assert (len(pulse), pulse.marks_ns.tolist()) == (0, [START_NS + PULSE_NS])


def test_coverage_begins_again_at_the_first_row_that_is_newer() -> None:
    assert first_after(rows(3, 5, 9, 7), 5) == 9
    assert first_after(rows(3, 5), 5) is None
