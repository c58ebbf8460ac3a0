"""Why a rule fired, or did not: verdicts, operands and near misses of one plan after a few scans."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from tapewatch.engine.columns import MINUTE_NS, SECOND_NS
from tapewatch.engine.rules import Plan, Ruleset, RuleSpec
from tapewatch.engine.rules.explain import Explanation, NearMiss, explain, near_misses
from tapewatch.engine.rules.text import parse_condition
from tapewatch.engine.rules.tree import Fire

SYMBOLS = ("AAA", "BBB", "CCC", "DDD")
START_NS = 1_741_012_200 * SECOND_NS
NAN = math.nan


class Board:
    """A plan of one rule, scanned with the values of a few symbols."""

    def __init__(self, when: str, **rule: object) -> None:
        parsed = {
            name: parse_condition(value) if isinstance(value, str) and name in {"gate", "rearm"} else value
            for name, value in rule.items()
        }
        self.spec = RuleSpec(id="r", version=3, name="r", when=parse_condition(when), **parsed)  # type: ignore[arg-type]
        self.plan = Plan(Ruleset(number=1, rules=(self.spec,)))
        self.rows = {name: row for row, name in enumerate(sorted(self.plan.metrics))}
        self.plan.bind(self.rows)
        self.now_ns = START_NS

    def scan(self, session: str = "regular", **values: Sequence[float]) -> "Board":
        matrix = np.full((len(self.rows), len(SYMBOLS)), NAN)
        for name, row in values.items():
            matrix[self.rows[name], : len(row)] = row
        self.now_ns += SECOND_NS
        self.plan.scan(matrix, now_ns=self.now_ns, symbols=SYMBOLS, price=np.full(len(SYMBOLS), 10.0), session=session)
        return self

    def explain(self, symbol: str) -> Explanation:
        found = explain(self.plan, "r", symbol, reason=lambda name, _: f"no {name}", age_s=lambda _, place: place + 0.5)
        assert found is not None
        return found

    def near(self, limit: int = 20) -> list[NearMiss]:
        found = near_misses(self.plan, "r", reason=lambda name, _: f"no {name}", limit=limit)
        assert found is not None
        return found


def test_fired_tells_each_operand_with_value_and_age() -> None:
    found = Board("price > 10 and volume_day >= 1k").scan(price=[11, 9], volume_day=[2000, 5000]).explain("AAA")
    assert found.verdict == "fired"
    assert (found.rule.version, found.at_ns, found.session) == (3, START_NS + SECOND_NS, "regular")
    assert found.when is not None
    assert [(part.text, part.true) for part in found.when.parts] == [("price > 10", True), ("volume_day >= 1000", True)]
    (reading,) = found.when.parts[0].readings
    assert (reading.name, reading.value, reading.unknown, reading.age_s) == ("price", 11.0, "", 0.5)


def test_false_names_what_does_not_hold_and_how_far_it_is() -> None:
    found = Board("price > 10 and volume_day >= 1k").scan(price=[11, 9], volume_day=[2000, 5000]).explain("BBB")
    assert (found.verdict, found.why) == ("false", "Not true: price > 10.")
    assert found.when is not None
    assert [part.lacks for part in found.when.parts] == [1.0, None]


def test_unknown_names_the_operand_and_the_reason() -> None:
    found = Board("price > 10 and rsi_14_1m < 30").scan(price=[11], rsi_14_1m=[]).explain("AAA")
    assert (found.verdict, found.why) == ("unknown", "Unknown: rsi_14_1m (no rsi_14_1m).")


def test_known_to_be_false_beats_unknown() -> None:
    assert Board("price > 10 and rsi_14_1m < 30").scan(price=[9]).explain("AAA").verdict == "false"


def test_still_true_is_held_until_it_was_false() -> None:
    found = Board("price > 10").scan(price=[11]).scan(price=[12]).explain("AAA")
    assert found.verdict == "held"
    assert "known to be false first" in found.why


@pytest.mark.parametrize(("fire", "says"), [(Fire("bar", 5), "once in a bar"), (Fire("session"), "once in a session")])
def test_once_a_period_is_held_until_the_next(fire: Fire, says: str) -> None:
    found = Board("price > 10", fire=fire).scan(price=[11]).scan(price=[9]).scan(price=[11]).explain("AAA")
    assert found.verdict == "held"
    assert says in found.why


def test_gate_that_is_not_true_is_named() -> None:
    found = Board("price > 10", gate="volume_session >= 50k").scan(price=[11], volume_session=[100]).explain("AAA")
    assert (found.verdict, found.why) == ("gated", "True, but the gate is not: volume_session >= 50000.")
    assert found.gate is not None
    assert found.gate.lacks == 49_900.0


def test_cooldown_tells_how_long_it_lasts() -> None:
    board = Board("price > 10", cooldown_ns=MINUTE_NS).scan(price=[11]).scan(price=[9]).scan(price=[11])
    found = board.explain("AAA")
    assert found.verdict == "cooldown"
    assert "another 58 s" in found.why


def test_waiting_for_a_duration_is_unknown_at_first_and_false_after_a_false() -> None:
    board = Board("price > 10 for 30s").scan(price=[11, 9]).scan(price=[11, 11])
    assert board.explain("AAA").verdict == "unknown"
    assert board.explain("BBB").verdict == "false"


def test_explaining_asks_nothing_of_what_remembers() -> None:
    board = Board("price crosses_above vwap_session").scan(
        price=[9], vwap_session=[10], highest_since_scan=[9], lowest_since_scan=[9]
    )
    for _ in range(3):
        assert board.explain("AAA").verdict == "unknown"
    board.scan(price=[11], vwap_session=[10], highest_since_scan=[11], lowest_since_scan=[9])
    for _ in range(3):
        assert board.explain("AAA").verdict == "fired"


def test_not_asked_before_the_first_scan_and_of_a_symbol_without_trades() -> None:
    board = Board("price > 10")
    assert (board.explain("AAA").verdict, board.explain("AAA").why) == (
        "not asked",
        "Not asked: no scan has been made yet.",
    )
    assert "no trade of the symbol" in board.scan(price=[11]).explain("ZZZ").why


def test_a_rule_that_is_not_there_is_none() -> None:
    plan = Board("price > 10").plan
    assert explain(plan, "other", "AAA", reason=lambda *_: "", age_s=lambda *_: 0.0) is None
    assert near_misses(plan, "other", reason=lambda *_: "") is None


def test_near_misses_are_sorted_by_distance_and_leave_out_hits_and_far_misses() -> None:
    board = Board("price > 10 and volume_day >= 1k").scan(price=[11, 9.5, 9.9, 9], volume_day=[2000, 5000, 5000, 10])
    assert [(miss.symbol, miss.missing, miss.true) for miss in board.near()] == [
        ("CCC", "price > 10", False),
        ("BBB", "price > 10", False),
    ]
    assert [miss.lacks for miss in board.near()] == pytest.approx([0.1, 0.5])
    assert board.near()[0].lacks_pct == pytest.approx(1.0)
    assert [miss.symbol for miss in board.near(limit=1)] == ["CCC"]


def test_near_miss_by_an_unknown_tells_the_reason_and_comes_last() -> None:
    board = Board("price > 10 and rsi_14_1m < 30").scan(price=[11, 9], rsi_14_1m=[NAN, 20])
    assert [(miss.symbol, miss.true, miss.unknown) for miss in board.near()] == [
        ("BBB", False, ""),
        ("AAA", None, "rsi_14_1m: no rsi_14_1m"),
    ]


def test_near_miss_of_a_condition_without_a_distance_has_none() -> None:
    board = Board("price > 10 and (rsi_14_1m < 30 or volume_day > 5k)").scan(price=[11], rsi_14_1m=[50], volume_day=[1])
    (miss,) = board.near()
    assert (miss.symbol, math.isnan(miss.lacks), miss.missing) == ("AAA", True, "rsi_14_1m < 30 or volume_day > 5000")
