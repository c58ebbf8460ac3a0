"""Daily facts against a slow version of themselves, and what is withheld when the history has holes."""

from collections.abc import Sequence

import numpy as np
import pytest

from tapewatch.engine.daily import (
    DAILY_COLUMNS,
    DAILY_FACTS,
    DailyBars,
    daily_facts,
    join_daily_bars,
    make_daily_bars,
)
from tapewatch.engine.splits import SplitSpec
from tapewatch.errors import Invalid

TODAY = 20_150
DAYS = np.array([day for day in range(TODAY - 365, TODAY) if day % 7 not in {2, 3}], np.int32)
ALL = np.ones(len(DAYS), np.bool_)


def history(days: Sequence[int], symbol: str = "A", seed: int = 1) -> DailyBars:
    random = np.random.default_rng(seed)
    n = len(days)
    close = random.uniform(5, 50, n)
    return make_daily_bars(
        [symbol] * n,
        list(days),
        open=close,
        high=close * random.uniform(1, 1.1, n),
        low=close * random.uniform(0.9, 1, n),
        close=close,
        volume=random.integers(0, 10_000, n).astype(np.float64),
    )


def facts_of(bars: DailyBars, splits: Sequence[SplitSpec] = (), **options: object) -> dict[str, float]:
    given = {"today": TODAY, "days": DAYS, "full": ALL, "covered": ALL, **options}
    values = daily_facts(bars, splits=splits, **given)  # type: ignore[arg-type]
    return dict(zip(DAILY_FACTS, values[:, 0].tolist(), strict=True))


def without(*places: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    mask = ALL.copy()
    mask[list(places)] = False
    return mask


def test_facts_are_those_of_a_loop_over_the_days() -> None:
    random = np.random.default_rng(5)
    full = random.random(len(DAYS)) > 0.05
    splits = [SplitSpec("A", TODAY, 0.5), SplitSpec("A", TODAY - 12, 3.0), SplitSpec("A", TODAY + 1, 7.0)]
    for seed in range(5):
        traded = [day for day in DAYS.tolist() if seed == 0 or random.random() > 0.2]
        bars = history(traded, seed=seed)
        rows = {int(day): row for row, day in enumerate(bars.day)}

        def factor(day: int) -> float:
            return 1.5 if day < TODAY - 12 else 0.5

        known = facts_of(bars, splits, full=full)
        newest = max(rows)
        assert known["close_prev_day"] == pytest.approx(bars.close[rows[newest]] * factor(newest))
        if DAYS[-1] in rows:
            assert known["high_prev_day"] == pytest.approx(bars.high[rows[int(DAYS[-1])]] * 0.5)
            assert known["volume_prev_day"] == pytest.approx(bars.volume[rows[int(DAYS[-1])]] / 0.5)
        for n in (5, 10, 20, 30, 63):
            window = DAYS[full][-n:].tolist()
            volumes = [bars.volume[rows[day]] / factor(day) if day in rows else 0.0 for day in window]
            assert known[f"avg_daily_volume_{n}d"] == pytest.approx(np.mean(volumes))
        assert known["high_52w"] == pytest.approx(max(bars.high[row] * factor(day) for day, row in rows.items()))
        assert known["low_52w"] == pytest.approx(min(bars.low[row] * factor(day) for day, row in rows.items()))


def test_year_is_the_365_days_before_today() -> None:
    days = np.arange(TODAY - 370, TODAY, dtype=np.int32)
    whole = np.ones(len(days), np.bool_)
    for age, counts in ((365, True), (366, False)):
        high = np.where(days == TODAY - age, 100.0, 10.0)
        flat = np.full(len(days), 10.0)
        bars = make_daily_bars(["A"] * len(days), days, open=flat, high=high, low=flat, close=flat, volume=flat)
        known = facts_of(bars, days=days, full=whole, covered=whole)
        assert (known["high_52w"], known["low_52w"]) == (100.0 if counts else 10.0, 10.0)


def test_previous_day_without_history_withholds_what_hangs_on_it() -> None:
    known = facts_of(history(DAYS[:-1].tolist()), covered=without(-1))
    assert [name for name, value in known.items() if not np.isnan(value)] == [
        *(f"close_{ago}_ago" for ago in ("2d", "5d", "10d", "20d", "year")),
        "close_last_year",
    ]


def test_symbol_that_did_not_trade_yesterday_keeps_its_last_close_for_a_week() -> None:
    for quiet, is_known in ((1, True), (4, True), (5, False)):
        bars = history(DAYS[:-quiet].tolist())
        known = facts_of(bars)
        assert np.isnan(known["high_prev_day"])
        assert bool(known["close_prev_day"] == bars.close[-1]) is is_known


def test_close_from_before_a_hole_in_the_history_is_not_taken() -> None:
    bars = history(DAYS[:-2].tolist())
    assert facts_of(bars)["close_prev_day"] == bars.close[-1]
    assert np.isnan(facts_of(bars, covered=without(-2))["close_prev_day"])


def test_hole_in_the_history_withholds_only_windows_that_reach_it() -> None:
    bars = history(DAYS.tolist())
    known = facts_of(bars, covered=without(-15))
    reaching = ("avg_daily_volume_20d", "avg_daily_volume_30d", "high_52w", "high_20d", "low_3mo", "sma_20_day")
    assert np.isnan([known[name] for name in reaching]).all()
    others = ("avg_daily_volume_10d", "high_10d", "low_10d", "sma_10_day", "close_20d_ago", "close_last_year")
    assert not np.isnan([known[name] for name in others]).any()
    recent = DAYS[-40:]
    short = facts_of(history(recent.tolist()), days=recent, full=ALL[-40:], covered=ALL[-40:])
    assert not np.isnan(short["avg_daily_volume_30d"])
    assert np.isnan([short["high_52w"], short["low_52w"]]).all()


def test_new_listing_has_no_average_before_it_is_old_enough() -> None:
    known = facts_of(history(DAYS[-15:].tolist()))
    assert not np.isnan(known["avg_daily_volume_10d"])
    assert np.isnan([known["avg_daily_volume_20d"], known["avg_daily_volume_30d"]]).all()
    assert not np.isnan(known["high_52w"])


def test_half_days_and_halted_days_stay_out_of_the_average() -> None:
    bars = history(DAYS.tolist())
    volume = bars.volume
    half = facts_of(bars, full=without(-1))
    assert half["avg_daily_volume_10d"] == pytest.approx(volume[-11:-1].mean())
    halted = np.zeros((len(DAYS), 1), np.bool_)
    halted[-3:] = True
    assert facts_of(bars, halted=halted)["avg_daily_volume_10d"] == pytest.approx(volume[-10:-3].mean())
    halted[-6:] = True
    assert np.isnan(facts_of(bars, halted=halted)["avg_daily_volume_10d"])


def test_bar_on_a_day_without_trading_does_not_count() -> None:
    saturday = int(DAYS[-1]) + 1
    while saturday in DAYS:
        saturday += 1
    with_it = join_daily_bars([history(DAYS.tolist()), history([saturday])])
    assert facts_of(with_it) == pytest.approx(facts_of(history(DAYS.tolist())), rel=0, abs=0, nan_ok=True)


def test_without_a_calendar_or_history_everything_is_unknown() -> None:
    none = DAYS[:0]
    assert np.isnan(list(facts_of(history([1, 2]), days=none, full=ALL[:0], covered=ALL[:0]).values())).all()
    empty = DailyBars(symbols=("A",), **{name: getattr(history([]), name) for name in DAILY_COLUMNS})
    assert np.isnan(list(facts_of(empty).values())).all()


def test_first_row_that_breaks_a_rule_is_named() -> None:
    bars = join_daily_bars([history([20_000, 20_001]), history([20_000], "B")])
    assert bars.symbols == ("A", "B")
    bars.check()
    low = bars.low.copy()
    low[2] = np.nan
    close = bars.close.copy()
    close[1] = -1.0
    wrong = DailyBars(
        **{name: getattr(bars, name) for name in ("symbols", *DAILY_COLUMNS)} | {"low": low, "close": close}
    )
    with pytest.raises(Invalid, match=r"^here row 2, column close: -1.0 of A is not a price"):
        wrong.check("here", first_row=1)
    assert [wrong.symbols[i] for i in wrong.sound().symbol] == ["A"]
