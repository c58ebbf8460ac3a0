"""The usual volume against a slow version that keeps every day, and what counts as a usual day."""

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tapes import new_york

from tapewatch.engine.columns import F64, I64, MINUTE_NS
from tapewatch.engine.symbols import Index
from tapewatch.engine.usual import CLOSE_QUARTER, OPEN_QUARTER, QUARTER_NS, QUARTERS, UsualVolume

START_NS = new_york("2025-03-10 04:00")
DAY_NS = 86_400 * 1_000_000_000
WHOLE = [float(place * 100) for place in range(1, QUARTERS + 1)]
Day = list[float]
"""Volume since 04:00 at the end of each quarter."""


def at(clock: str) -> int:
    return new_york(f"2025-03-10 {clock}")


def one_day(usual: UsualVolume, start_ns: int, *volumes: Day, skip: frozenset[int] = frozenset()) -> None:
    usual.begin_day(start_ns)
    for quarter in range(QUARTERS):
        if quarter not in skip:
            now = [volume[quarter] for volume in volumes] + [0.0] * (usual.capacity - len(volumes))
            usual.mark(start_ns + (quarter + 1) * QUARTER_NS, np.array(now))


def some_day(random: Random) -> Day:
    total, day = 0.0, []
    quiet = random.random() < 0.3
    for _ in range(QUARTERS):
        total += 0.0 if quiet or random.random() < 0.5 else float(random.randrange(1_000))
        day.append(total)
    return day


def learned(*days: Day, **options: int | bool) -> UsualVolume:
    """With 10 March 2025 running."""
    usual = UsualVolume(1, **options)  # type: ignore[arg-type]  # days and fewest are int, the others bool
    for place, volume in enumerate(days):
        one_day(usual, START_NS - (len(days) - place) * DAY_NS, volume)
        usual.end_day(full=True)
    usual.begin_day(START_NS)
    return usual


def naive_mean(days: list[Day], limit: int, base: int | None) -> tuple[Day, int]:
    """Of the days from the first on which it traded, and of how many: each new one weighs one in so many, at most in
    `limit`.
    """
    since = [[volume - (day[base] if base is not None else 0.0) for volume in day] for day in days]
    last = CLOSE_QUARTER - 1 if base is not None else QUARTERS - 1
    while since and since[0][last] <= 0:
        since.pop(0)
    mean = [0.0] * QUARTERS
    for count, day in enumerate(since, start=1):
        mean = [m + (v - m) / min(count, limit) for m, v in zip(mean, day, strict=True)]
    return mean, len(since)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(0, 12), limit=st.integers(1, 6), fewest=st.integers(1, 3))
def test_means_are_those_of_a_loop_over_the_days(seed: int, count: int, limit: int, fewest: int) -> None:
    random = Random(seed)
    usual = UsualVolume(2, days=limit, fewest=fewest)
    whole: list[list[Day]] = [[], []]
    regular: list[list[Day]] = [[], []]
    for place in range(count):
        start_ns = START_NS - (count - place) * DAY_NS
        days = [some_day(random), some_day(random)]
        full = random.random() < 0.8
        gap = random.choice((None, (0, 1), (OPEN_QUARTER, OPEN_QUARTER + 1), (CLOSE_QUARTER, 60), (-3, 0), (64, 70)))
        skip = random.choice((frozenset(), frozenset(), frozenset({3}), frozenset({OPEN_QUARTER + 2})))
        halted = np.array([random.random() < 0.1, False])
        one_day(usual, start_ns, *days, skip=skip)
        gaps = [] if gap is None else [(start_ns + gap[0] * QUARTER_NS, start_ns + gap[1] * QUARTER_NS)]
        usual.end_day(full=full, gaps=gaps, halted=halted)
        lacking = {*skip, *range(*gap)} if gap is not None else set(skip)
        for symbol in range(2):
            if full and not halted[symbol]:
                if not any(0 <= quarter < QUARTERS for quarter in lacking):
                    whole[symbol].append(days[symbol])
                if not any(OPEN_QUARTER <= quarter < CLOSE_QUARTER for quarter in lacking):
                    regular[symbol].append(days[symbol])
    usual.begin_day(START_NS)
    for symbol in range(2):
        for of, base, first, last in (
            (whole[symbol], None, 0, QUARTERS),
            (regular[symbol], OPEN_QUARTER - 1, OPEN_QUARTER, CLOSE_QUARTER),
        ):
            mean, counted = naive_mean(of, limit, base)
            for quarter in range(first, last):
                expected = mean[quarter] if counted >= fewest else math.nan
                now_ns = START_NS + (quarter + 1) * QUARTER_NS
                known = float(usual.expected(now_ns, regular=base is not None)[symbol])
                assert known == pytest.approx(expected, rel=1e-5, abs=1e-2, nan_ok=True)


def test_volume_grows_evenly_between_quarter_hours() -> None:
    usual = learned(WHOLE, fewest=1)
    assert usual.expected(at("04:00"))[0] == 0.0
    assert usual.expected(at("04:15"))[0] == 100.0
    assert usual.expected(at("04:18"))[0] == pytest.approx(120.0)
    assert usual.expected(at("20:00"))[0] == usual.expected(at("20:30"))[0] == 6_400.0
    assert usual.expected(at("09:30"), regular=True)[0] == 0.0
    assert usual.expected(at("09:36"), regular=True)[0] == pytest.approx(40.0)
    assert usual.expected(at("16:00"), regular=True)[0] == usual.expected(at("18:00"), regular=True)[0] == 2_600.0
    assert usual.expected_between(at("04:00"), at("04:30"))[0] == 200.0
    assert usual.expected_between(at("10:10"), at("10:25"))[0] == pytest.approx(100.0)
    assert usual.expected_between(at("19:45"), at("20:45"))[0] == 100.0


def test_what_is_before_the_day_or_the_open_is_unknown() -> None:
    usual = learned(WHOLE, fewest=1)
    assert math.isnan(usual.expected(at("04:00") - 1)[0])
    assert math.isnan(usual.expected(at("09:29"), regular=True)[0])
    assert math.isnan(usual.expected_between(at("03:59"), at("04:04"))[0])
    usual.end_day(full=True)
    assert math.isnan(usual.expected(at("10:00"))[0])


def test_few_days_are_not_usual() -> None:
    assert math.isnan(learned(*[WHOLE] * 4).expected(at("10:00"))[0])
    assert learned(*[WHOLE] * 5).expected(at("10:00"))[0] == 2_400.0


def test_old_days_fade() -> None:
    double = [2 * volume for volume in WHOLE]
    assert learned(WHOLE, double, days=20, fewest=1).expected(at("20:00"))[0] == pytest.approx(9_600.0)
    faded = learned(*[WHOLE] * 30, *[double] * 14, days=20).expected(at("20:00"))[0]
    assert faded == pytest.approx(6_400.0 * (2 - 0.95**14), rel=1e-5)
    assert 1.5 < faded / 6_400 < 1.52


def test_half_days_and_halted_days_count_only_when_asked_for() -> None:
    for option in ("half_days", "halted_days"):
        for wanted in (False, True):
            usual = learned(WHOLE, fewest=1, **{option: wanted})
            one_day(usual, START_NS, [0.0] * QUARTERS)
            usual.end_day(full=option != "half_days", halted=np.array([option == "halted_days"]))
            usual.begin_day(START_NS + DAY_NS)
            assert usual.expected(at("20:00") + DAY_NS)[0] == (3_200.0 if wanted else 6_400.0)


def test_day_that_began_late_counts_since_the_open_alone() -> None:
    usual = UsualVolume(1, fewest=1)
    one_day(usual, START_NS, WHOLE, skip=frozenset(range(8)))
    usual.end_day(full=True, gaps=[(START_NS, at("06:07"))])
    usual.begin_day(START_NS + DAY_NS)
    assert math.isnan(usual.expected(at("10:00") + DAY_NS)[0])
    assert usual.expected(at("10:00") + DAY_NS, regular=True)[0] == 200.0
    assert usual.expected_between(at("10:00") + DAY_NS, at("10:05") + DAY_NS)[0] == pytest.approx(100 / 3)
    assert math.isnan(usual.expected_between(at("09:00") + DAY_NS, at("10:00") + DAY_NS)[0])


def test_day_that_was_not_ended_is_forgotten() -> None:
    usual = learned(WHOLE, fewest=1)
    one_day(usual, START_NS, [0.0] * QUARTERS)
    usual.begin_day(START_NS + DAY_NS)
    usual.end_day(full=True)
    usual.begin_day(START_NS + 2 * DAY_NS)
    assert usual.expected(at("20:00") + 2 * DAY_NS)[0] == 6_400.0


def test_mark_off_the_quarter_hours_of_the_day_is_refused() -> None:
    usual = UsualVolume(1)
    with pytest.raises(ValueError, match="no day has begun"):
        usual.mark(START_NS + QUARTER_NS, np.zeros(1))
    usual.begin_day(START_NS)
    for now_ns in (START_NS, START_NS + QUARTER_NS - 1, at("20:15")):
        with pytest.raises(ValueError, match="is not a quarter hour"):
            usual.mark(now_ns, np.zeros(1))


def test_symbol_that_appears_during_the_day_had_not_traded_before() -> None:
    usual = UsualVolume(1, fewest=1)
    usual.begin_day(START_NS)
    for quarter in range(QUARTERS):
        if quarter == 30:
            usual.resize(3)
        now = WHOLE[quarter]
        usual.mark(START_NS + (quarter + 1) * QUARTER_NS, np.array([now, now, 0.0][: usual.capacity]))
    usual.end_day(full=True)
    usual.begin_day(START_NS + DAY_NS)
    known = usual.expected(at("11:30") + DAY_NS), usual.expected(at("20:00") + DAY_NS)
    assert known[0].tolist()[:2] == [3_000.0, 0.0]
    assert known[1].tolist()[:2] == [6_400.0, 6_400.0]
    assert math.isnan(known[1][2])


def test_symbol_that_appears_after_a_missed_mark_does_not_know_that_day() -> None:
    usual = UsualVolume(1, fewest=1)
    one_day(usual, START_NS, WHOLE, skip=frozenset({3, *range(40, QUARTERS)}))
    usual.resize(2)
    for quarter in range(40, QUARTERS):
        usual.mark(START_NS + (quarter + 1) * QUARTER_NS, np.array([WHOLE[quarter]] * 2))
    usual.end_day(full=True)
    usual.begin_day(START_NS + DAY_NS)
    assert np.isnan(usual.expected(at("20:00") + DAY_NS)).all()
    assert usual.expected(at("16:00") + DAY_NS, regular=True).tolist() == [2_600.0, 4_800.0]


def minute_bars(random: Random, symbols: int, count: int) -> tuple[Index, I64, F64]:
    minutes = np.array([random.randrange(-60, 1_000) for _ in range(count)])
    symbol = np.array([random.randrange(symbols) for _ in range(count)], np.intp)
    return symbol, START_NS + minutes * MINUTE_NS, np.array([float(random.randrange(5_000)) for _ in range(count)])


def test_day_learned_from_minute_bars_is_the_day_that_was_marked() -> None:
    for seed in range(3):
        symbol, ts_ns, volume = minute_bars(Random(seed), 3, 400)
        from_bars, marked = UsualVolume(3, fewest=1), UsualVolume(3, fewest=1)
        from_bars.learn_day(symbol, ts_ns, volume, start_ns=START_NS, full=True)
        marked.begin_day(START_NS)
        for quarter in range(1, QUARTERS + 1):
            until = (ts_ns >= START_NS) & (ts_ns < START_NS + quarter * QUARTER_NS)
            marked.mark(
                START_NS + quarter * QUARTER_NS, np.array([volume[until & (symbol == each)].sum() for each in range(3)])
            )
        marked.end_day(full=True)
        every = np.arange(3)
        for name in ("day", "day_count", "regular", "regular_count"):
            known = getattr(from_bars.known(every), name)
            assert known.tobytes() == getattr(marked.known(every), name).tobytes()


def test_what_one_knows_another_can_learn() -> None:
    usual = learned(*[WHOLE] * 6)
    other = UsualVolume(4)
    other.learn(np.array([2]), usual.known(np.array([0])))
    other.begin_day(START_NS)
    assert other.expected(at("12:20"))[2] == usual.expected(at("12:20"))[0] == pytest.approx(3_333.333, rel=1e-6)
    assert np.isnan(other.expected(at("12:20"))[[0, 1, 3]]).all()


def test_split_makes_more_shares_of_what_was_usual() -> None:
    usual = learned(*[WHOLE] * 6)
    usual.rescale(np.array([0]), np.array([4.0]))
    assert usual.expected(at("20:00"))[0] == 25_600.0
    assert usual.expected(at("16:00"), regular=True)[0] == 10_400.0


def test_ten_thousand_symbols_take_less_than_12_mb() -> None:
    usual = UsualVolume(10_000)
    arrays = [usual._today, *(array for curve in (usual._day, usual._regular) for array in (curve.mean, curve.count))]
    assert sum(array.nbytes for array in arrays) == 10_000 * 624 < 12_000_000
