"""The compiled plan: what the naive interpreter says, rules that come and go, and boards of thousands."""

import time
from collections.abc import Iterator
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from naive_rules import NaiveRules
from rule_stories import (
    CLOSE,
    NAN,
    OPERATORS,
    PRICE,
    ROWS,
    START_NS,
    VWAP,
    Scan,
    Step,
    above,
    play,
    read,
    rule,
    seconds,
    some_rules,
    some_story,
)

from tapewatch.engine.columns import F64, Bool
from tapewatch.engine.rules import Match, Plan
from tapewatch.engine.rules import plan as plan_module
from tapewatch.engine.rules.plan import MOST_MATCHES
from tapewatch.engine.rules.tree import (
    All,
    Comparison,
    Crossing,
    Fire,
    Held,
    InARow,
    Number,
    Operand,
    Ruleset,
    Within,
)


def bounded(examples: int) -> settings:
    return settings(
        max_examples=examples, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
    )


@given(st.randoms(use_true_random=False), st.integers(1, 4), st.integers(1, 3), st.integers(1, 8))
@bounded(300)
def test_plan_says_what_the_naive_interpreter_says(random: Random, rules: int, symbols: int, scans: int) -> None:
    play(some_story(random, rules=rules, symbols=symbols, scans=scans))


@given(
    st.integers(0, 2**32 - 1), st.integers(1, 12), st.sampled_from((1, 2, 3, 4, 5, 63, 64, 65, 70)), st.integers(10, 40)
)
@bounded(100)
def test_plan_says_what_the_naive_interpreter_says_on_wider_boards(
    seed: int, rules: int, symbols: int, scans: int
) -> None:
    play(some_story(Random(seed), rules=rules, symbols=symbols, scans=scans))


@given(st.integers(0, 2**32 - 1), st.integers(2, 8), st.integers(1, 5), st.integers(5, 20))
@bounded(40)
def test_other_rules_change_nothing_about_a_rule(seed: int, rules: int, symbols: int, scans: int) -> None:
    random = Random(seed)
    steps = some_story(random, rules=rules, symbols=symbols, scans=scans)
    mine = random.choice([rule.id for step in steps if isinstance(step, Ruleset) for rule in step.rules])
    alone = [
        replace(step, rules=tuple(rule for rule in step.rules if rule.id == mine))
        if isinstance(step, Ruleset)
        else step
        for step in steps
    ]
    among_others = [[match for match in matches if match.rule.id == mine] for matches in play(steps)]
    assert [read(matches) for matches in play(alone)] == [read(matches) for matches in among_others]


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 5), st.integers(5, 20))
@bounded(40)
def test_equal_rules_of_two_users_match_alike(seed: int, rules: int, symbols: int, scans: int) -> None:
    steps = [
        replace(step, rules=tuple(spec for rule in step.rules for spec in (rule, replace(rule, id=f"{rule.id}-too"))))
        if isinstance(step, Ruleset)
        else step
        for step in some_story(Random(seed), rules=rules, symbols=symbols, scans=scans)
    ]
    for matches in play(steps):
        said = [(match.rule.id, match.rule.version, match.symbol) for match in matches]
        ours = [match for match in said if not match[0].endswith("-too")]
        assert [(f"{name}-too", version, symbol) for name, version, symbol in ours] == [
            match for match in said if match[0].endswith("-too")
        ]


# -- rules come and go


def prices(second: int, *of: float) -> Scan:
    values = {f"S{i}": {"price": price} for i, price in enumerate(of)}
    return Scan(START_NS + seconds(second), values, {name: {} for name in values}, tells_changes=True)


def test_rule_that_comes_later_has_its_own_past() -> None:
    """The same question, asked since another scan."""
    first, second = rule(Held(above(10), seconds(3)), name="first"), rule(Held(above(10), seconds(3)), name="second")
    steps: list[Step] = [Ruleset(number=1, rules=(first,)), prices(1, 11), prices(2, 11)]
    steps += [Ruleset(number=2, rules=(second, first)), *(prices(second, 11) for second in range(3, 8))]
    said = [[match.rule.id for match in matches] for matches in play(steps)]
    assert said == [[], [], [], ["first"], [], ["second"], []]


def test_rule_that_went_and_came_back_begins_again() -> None:
    spec, other = rule(above(10)), rule(above(20), name="other")
    steps: list[Step] = [
        Ruleset(number=1, rules=(spec,)),
        prices(1, 11),
        Ruleset(number=2, rules=(other,)),
        prices(2, 11),
        Ruleset(number=3, rules=(other, spec)),
        prices(3, 11),
        Ruleset(number=4, rules=(replace(spec, version=2), other)),
        prices(4, 11),
    ]
    assert [bool(matches) for matches in play(steps)] == [True, False, True, True]


def test_rule_that_stays_keeps_sides_times_edges_and_cooldowns() -> None:
    rules = (
        rule(Crossing(PRICE, "above", Number(10.0)), name="crossing"),
        rule(Held(above(10), seconds(1)), name="held"),
        rule(InARow(above(10), 3), name="in a row"),
        rule(Within(Comparison(PRICE, "<", Number(10.0)), seconds(1)), name="within", fire=Fire("level")),
        rule(above(10), name="cooldown", fire=Fire("level"), cooldown_ns=seconds(2)),
    )
    steps: list[Step] = []
    for i, price in enumerate([9.0, 11.0, 11.0, 11.0]):
        turned = rules[i:] + rules[:i]
        steps += [Ruleset(number=i + 1, rules=turned), prices(i + 1, price)]
    said = [sorted(match.rule.id for match in matches) for matches in play(steps)]
    assert said == [["within"], ["cooldown", "crossing", "within"], ["held"], ["cooldown", "in a row"]]


def test_matches_come_by_rule_and_then_by_name() -> None:
    rules = (rule(above(10), name="z"), rule(above(5), name="a"))
    names = ["T", "A", "ZZ", "B"]
    values = {name: {"price": price} for name, price in zip(names, [11.0, 12.0, 6.0, 13.0], strict=True)}
    said = play([Ruleset(number=1, rules=rules), Scan(START_NS + 1, values, {name: {} for name in names})])
    found = [(match.rule.id, match.symbol) for match in said[0]]
    assert found == [("z", "A"), ("z", "B"), ("z", "T"), ("a", "A"), ("a", "B"), ("a", "T"), ("a", "ZZ")]


def test_match_tells_all_operands_of_the_rule() -> None:
    spec = rule(above(10), gate=Comparison(CLOSE, "<", PRICE), rearm=above(7, VWAP))
    values = {"A": {"price": 11.0, "close_5m[1]": 10.5, "vwap_day": NAN}}
    (matches,) = play([Ruleset(number=1, rules=(spec,)), Scan(START_NS + 7, values, {"A": {}}, "pre")])
    (match,) = matches
    assert match.price == 11.0
    assert match.values == pytest.approx({"price": 11.0, "close_5m[1]": 10.5, "vwap_day": NAN}, nan_ok=True)
    assert (match.session, match.fired_at_ns) == ("pre", START_NS + 7)


def ask(plan: Plan, board: F64, names: tuple[str, ...], now_ns: int) -> list[Match]:
    """At a board whose first row is the price."""
    return plan.scan(
        board.copy(),
        now_ns=now_ns,
        symbols=names,
        price=board[0].copy(),
        session="regular",
        session_start_ns=START_NS,
        day_start_ns=START_NS,
        labels={},
        labels_version=0,
    )


def test_suppressed_fires_are_counted_through_rulesets() -> None:
    rules = (
        rule(above(10), name="cooled", cooldown_ns=seconds(10), fire=Fire("level")),
        rule(above(10), name="gated", gate=above(20), fire=Fire("level")),
    )
    plan = None
    for second in range(4):
        if plan is None or second == 2:
            plan = Plan(Ruleset(number=second, rules=rules), previous=plan)
            plan.bind({"price": 0})
        ask(plan, np.array([[11.0]]), ("A",), START_NS + seconds(second + 1))
    assert plan is not None
    assert (plan.cooled_down, plan.gated) == (3, 4)


def test_no_rule_tells_more_than_so_many_matches_at_once() -> None:
    """The first by name; the others are spent."""
    names = tuple(f"S{i:05}" for i in range(MOST_MATCHES + 5, 0, -1))
    plan = Plan(Ruleset(number=1, rules=(rule(above(10), name="a"), rule(above(20), name="b"))))
    plan.bind({"price": 0})
    board = np.full((1, len(names)), 11.0)
    board[0, 0] = 21.0
    matches = ask(plan, board, names, START_NS + 1)
    told = [(match.rule.id, match.symbol) for match in matches]
    assert told == [("a", name) for name in sorted(names)[:MOST_MATCHES]] + [("b", names[0])]
    assert plan.crowded == {"a": 5}
    assert ask(plan, board, names, START_NS + 2) == []


# -- big boards -------------------------------------------------------------------------------------------------------


def moving_boards(rows: int, columns: int, scans: int) -> Iterator[F64]:
    """Small whole numbers, of which some change and some become unknown."""
    rng = np.random.default_rng(5)
    board = rng.integers(0, 10, (rows, columns)).astype(np.float64)
    for _ in range(scans):
        moved = rng.random(board.shape) < 0.05
        board[moved] = rng.choice([*range(10), NAN], int(moved.sum()))
        yield board


def flat_rules(count: int) -> list[tuple[Comparison, ...]]:
    random = Random(5)
    return [
        tuple(
            Comparison(Operand(random.choice(ROWS)), random.choice(OPERATORS), Number(float(random.randrange(10))))
            for _ in range(random.randrange(1, 4))
        )
        for _ in range(count)
    ]


def matrix_truth(conditions: tuple[Comparison, ...], board: F64) -> tuple[Bool, Bool]:
    """Where all are true, and where one is false."""
    true, false = np.ones(board.shape[1], np.bool_), np.zeros(board.shape[1], np.bool_)
    for comparison in conditions:
        assert isinstance(comparison.left, Operand)
        assert isinstance(comparison.right, Number)
        left, right = board[ROWS.index(comparison.left.name)], comparison.right.value
        said = {
            ">": left > right,
            "<": left < right,
            ">=": left >= right,
            "<=": left <= right,
            "==": left == right,
            "!=": left != right,
        }[comparison.operator]
        true &= said & ~np.isnan(left)
        false |= ~said & ~np.isnan(left)
    return true, false


WATCHED = (0, 1, 62, 63, 64, 65, 127, 128, 1023, 1024, 1983, 1984, 1999)
"""Columns on both sides of the edges of machine words."""


@pytest.mark.parametrize("bytes_at_once", [None, 1 << 12])
def test_many_flat_rules_on_many_symbols(bytes_at_once: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """All cells against plain arithmetic on the matrix, and columns at word edges against the naive interpreter."""
    if bytes_at_once is not None:
        monkeypatch.setattr(plan_module, "_BLOCK_BYTES", bytes_at_once)
        monkeypatch.setattr(plan_module, "_TABLE_BYTES", bytes_at_once)
    names = tuple(f"S{i}" for i in range(2000))
    flat = flat_rules(300)
    rules = tuple(rule(All(conditions), name=f"r{i}") for i, conditions in enumerate(flat))
    plan, naive = Plan(Ruleset(number=1, rules=rules)), NaiveRules()
    plan.bind({name: row for row, name in enumerate(ROWS)})
    naive.apply(Ruleset(number=1, rules=rules))
    order = sorted(range(len(names)), key=names.__getitem__)
    held = np.zeros((len(rules), len(names)), np.bool_)
    spent_s = 0.0
    for scan, board in enumerate(moving_boards(len(ROWS), len(names), 4)):
        now_ns = START_NS + seconds(scan + 1)
        began_s = time.process_time()
        matches = ask(plan, board, names, now_ns)
        spent_s += time.process_time() - began_s
        expected: list[tuple[str, str]] = []
        crowded = set()
        for i, conditions in enumerate(flat):
            true, false = matrix_truth(conditions, board)
            fires = true & ~held[i]
            held[i] = true | (held[i] & ~false)
            expected += [(f"r{i}", names[s]) for s in order if fires[s]][:MOST_MATCHES]
            if fires.sum() > MOST_MATCHES:
                crowded.add(f"r{i}")
        assert [(match.rule.id, match.symbol) for match in matches] == expected
        cells = {names[s]: dict(zip(ROWS, board[:, s].tolist(), strict=True)) for s in WATCHED}
        by_name = naive.scan(now_ns, cells, {}, "regular", START_NS, START_NS)
        told = [match for match in read(matches) if match[2] in cells and match[0] not in crowded]
        assert told == [match for match in by_name if match[0] not in crowded]
    assert spent_s < 3.0


def test_rules_of_all_kinds_on_many_symbols() -> None:
    """As many as one rule may tell of at once."""
    names = tuple(f"S{i}" for i in range(MOST_MATCHES))
    rules = tuple(replace(spec, id=f"r{i}", version=1, gate=None) for i, spec in enumerate(some_rules(Random(11), 40)))
    plan, naive = Plan(Ruleset(number=1, rules=rules)), NaiveRules()
    plan.bind({name: row for row, name in enumerate((*ROWS, "lowest_since_scan", "highest_since_scan"))})
    naive.apply(Ruleset(number=1, rules=rules))
    watched = [s for s in range(len(names)) if s in WATCHED or s % 25 == 0]
    seen = {names[s] for s in watched}
    count = 0
    for scan, board in enumerate(moving_boards(len(ROWS), len(names), 10)):
        small, now_ns = board % 4, START_NS + seconds(scan + 1)
        matches = read(ask(plan, np.vstack([small, small[:1], small[:1]]), names, now_ns))
        cells = {names[s]: dict(zip(ROWS, small[:, s].tolist(), strict=True)) for s in watched}
        expected = naive.scan(now_ns, cells, {}, "regular", START_NS, START_NS)
        assert [match for match in matches if match[2] in seen] == expected
        count += len(expected)
    assert count > 100
