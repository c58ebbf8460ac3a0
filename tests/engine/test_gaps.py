"""Gaps: where trades may be missing, nothing is taken for quiet."""

import math

import numpy as np
import pytest
from tapes import new_york, trading_days

from tapewatch.eligibility import load_profile
from tapewatch.engine.columns import MINUTE_NS, OPEN_END_NS, SECOND_NS, Facts, Gap, make_batch, pulse
from tapewatch.engine.rules.tree import Ruleset, RuleSpec, compare
from tapewatch.engine.scanner import Scanner

OPEN_NS = new_york("2025-03-06 09:30")
PRE_NS = new_york("2025-03-06 04:00")


def ns(second: float) -> int:
    return OPEN_NS + round(second * SECOND_NS)


def scanner_with_rule() -> Scanner:
    scanner = Scanner(days=trading_days(), profile=load_profile("alpaca"), board_interval_ns=SECOND_NS)
    rule = RuleSpec(id="r", version=1, name="r", when=compare("price", ">", 10.0))
    scanner.apply(Ruleset(number=1, rules=(rule,)))
    return scanner


def trade(scanner: Scanner, second: float, price: float) -> None:
    scanner.step(pulse(ns(second)))
    scanner.step(
        make_batch(symbols=("A",), conditions=("@",), symbol=[0], ts_ns=[ns(second)], price=[price], size=[100.0])
    )


def value(scanner: Scanner, name: str) -> float:
    return float(scanner.board_rows((name,)).values[0, 0])


def test_open_gap_keeps_the_lists_and_stops_the_rules() -> None:
    scanner = scanner_with_rule()
    trade(scanner, 1, 9.0)
    scanner.gap(Gap(ns(1), OPEN_END_NS, "network"))
    trade(scanner, 2, 11.0)
    step = scanner.step(pulse(ns(5)))
    assert step.matches == []
    assert [board.covered for board in step.boards] == [False] * 3
    assert value(scanner, "price") == 11.0
    scanner.gap(Gap(ns(1), ns(5), "network"))
    step = scanner.step(pulse(ns(6)))
    assert [match.symbol for match in step.matches] == ["A"]
    assert [board.covered for board in step.boards] == [True]


def test_windows_that_reach_into_a_gap_are_unknown_until_they_do_not() -> None:
    scanner = scanner_with_rule()
    trade(scanner, 1, 9.0)
    scanner.gap(Gap(ns(30), ns(90), "silent"))
    for minute in range(2, 9):
        trade(scanner, 60 * minute + 1, 11.0)
        scanner.step(pulse(ns(60 * minute + 10)))
        seconds = 60 * minute + 10
        assert math.isnan(value(scanner, "volume_5m")) == (minute <= 5), minute
        assert math.isnan(value(scanner, "volume_1m")) == (minute <= 1), minute
        assert math.isnan(value(scanner, "change_pct_5m")) == (seconds - 300 < 1 or 30 <= seconds - 300 < 90), minute
        assert value(scanner, "price") == 11.0


def test_gap_that_was_filled_is_no_gap() -> None:
    scanner = scanner_with_rule()
    for minute in range(4):
        trade(scanner, 60 * minute + 1, 9.0)
    scanner.gap(Gap(ns(30), ns(90), "silent"))
    scanner.step(pulse(ns(200)))
    assert math.isnan(value(scanner, "volume_5m"))
    scanner.gap(Gap(ns(30), ns(30), "silent"))
    assert value(scanner, "volume_5m") == 400.0
    assert scanner.bars.gaps == {}


def test_gaps_of_a_long_life_are_bounded() -> None:
    scanner = scanner_with_rule()
    for n in range(3000):
        scanner.gap(Gap(ns(n), ns(n + 0.5), "network"))
    assert len(scanner.bars.gaps) == 1000
    assert scanner.bars.gapped(ns(2999), ns(2999.1))


def facts(day_start_ns: int, close: float) -> Facts:
    return Facts(
        day_start_ns=day_start_ns,
        symbols=("NEW", "A"),
        names=("close_prev_day", "high_52w"),
        values=np.array([[5.0, close], [7.0, 99.0]]),
    )


def test_reference_data_hold_from_the_day_that_they_are_of() -> None:
    scanner = scanner_with_rule()
    scanner.learn(facts(PRE_NS, 10.0))
    trade(scanner, 1, 11.0)
    scanner.step(pulse(ns(3)))
    assert value(scanner, "change_pct_day") == pytest.approx(10.0)
    assert value(scanner, "high_52w") == 99.0
    assert scanner.board_rows(("price",)).symbols == ("A",)
    tomorrow = new_york("2025-03-07 04:00")
    scanner.learn(facts(tomorrow, 5.5))
    assert value(scanner, "close_prev_day") == 10.0
    scanner.step(pulse(tomorrow + MINUTE_NS))
    assert value(scanner, "close_prev_day") == 5.5


def test_metrics_of_reference_data_are_unknown_without_them() -> None:
    scanner = scanner_with_rule()
    trade(scanner, 1, 11.0)
    scanner.step(pulse(ns(3)))
    for name in ("change_pct_day", "gap_pct", "high_52w", "avg_daily_volume_20d", "close_prev_day"):
        assert math.isnan(value(scanner, name)), name


@pytest.mark.parametrize(("first", "suspect"), [(20.1, 1.0), (5.0, 1.0), (30.0, 1.0), (12.0, 0.0), (25.0, 0.0)])
def test_change_that_looks_like_an_unknown_split_is_withheld(first: float, suspect: float) -> None:
    scanner = scanner_with_rule()
    scanner.learn(facts(PRE_NS, 10.0))
    trade(scanner, 1, first)
    scanner.step(pulse(ns(3)))
    assert value(scanner, "suspect_split") == suspect
    assert math.isnan(value(scanner, "change_pct_day")) == bool(suspect)
    assert math.isnan(value(scanner, "gap_pct")) == bool(suspect)


def test_facts_of_a_day_that_has_passed_change_nothing() -> None:
    scanner = scanner_with_rule()
    trade(scanner, 1, 11.0)
    scanner.learn(facts(new_york("2025-03-05 04:00"), 10.0))
    scanner.step(pulse(ns(3)))
    assert math.isnan(value(scanner, "close_prev_day"))
