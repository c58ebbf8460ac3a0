"""Each node of a rule in a table that can be read: one symbol, a scan each second; plan and naive interpreter agree."""

from collections.abc import Sequence

import pytest
from rule_stories import (
    BEFORE,
    CLOSE,
    NAN,
    PRICE,
    SESSIONS,
    START_NS,
    VWAP,
    Scan,
    Step,
    above,
    level,
    play,
    rule,
    seconds,
)

from tapewatch.engine.rules.tree import (
    All,
    AnyOf,
    Arithmetic,
    Attribute,
    Between,
    Comparison,
    ComparisonOperator,
    Condition,
    Crossing,
    Fire,
    Function,
    Held,
    InARow,
    InSession,
    InWatchlist,
    Not,
    Number,
    Ruleset,
    RuleSpec,
    Then,
    Value,
    Within,
)


def fired(
    spec: RuleSpec,
    *,
    at_s: Sequence[float] | None = None,
    sessions: Sequence[tuple[str, int]] = (),
    days_s: Sequence[int] = (),
    exchanges: Sequence[str] = (),
    **columns: Sequence[float],
) -> list[int]:
    """At which scans the rule fires; the first is number 0. Columns are rows of the board, by name."""
    rows = {{"close": "close_5m[1]", "before": "price[1]"}.get(name, name): column for name, column in columns.items()}
    count = len(next(iter(rows.values())))
    steps: list[Step] = [Ruleset(number=1, rules=(spec,), watchlists={"mine": frozenset({"A"})})]
    for i in range(count):
        session, session_start_s = sessions[i] if sessions else ("regular", 0)
        steps.append(
            Scan(
                START_NS + seconds(at_s[i] if at_s else i + 1),
                {"A": {name: float(column[i]) for name, column in rows.items()}},
                {"A": {"exchange": exchanges[i]}} if exchanges else {"A": {}},
                session,
                START_NS + seconds(session_start_s),
                START_NS + seconds(days_s[i] if days_s else 0),
                tells_changes=True,
            )
        )
    return [i for i, matches in enumerate(play(steps)) if matches]


@pytest.mark.parametrize(
    ("operator", "scans"),
    [(">", [2]), ("<", [0]), (">=", [1, 2]), ("<=", [0, 1]), ("==", [1]), ("!=", [0, 2])],
)
def test_comparison_with_unknown_is_not_true(operator: ComparisonOperator, scans: list[int]) -> None:
    when = Comparison(PRICE, operator, VWAP)
    others = [scan for scan in range(3) if scan not in scans]
    assert fired(level(when), price=[1, 2, 3, 2, NAN], vwap_day=[2, 2, 2, NAN, NAN]) == scans
    assert fired(level(Not(when)), price=[1, 2, 3, 2, NAN], vwap_day=[2, 2, 2, NAN, NAN]) == others


@pytest.mark.parametrize(
    ("operator", "scans"),
    [(">", [2]), ("<", [0]), (">=", [1, 2]), ("<=", [0, 1]), ("==", [1]), ("!=", [0, 2])],
)
def test_comparison_with_a_number(operator: ComparisonOperator, scans: list[int]) -> None:
    when = Comparison(PRICE, operator, Number(2.0))
    others = [scan for scan in range(3) if scan not in scans]
    assert fired(level(when), price=[1, 2, 3, NAN]) == scans
    assert fired(level(Comparison(Number(2.0), operator, PRICE)), price=[3, 2, 1, NAN]) == scans
    assert fired(level(Not(when)), price=[1, 2, 3, NAN]) == others


def test_between_includes_its_ends() -> None:
    assert fired(level(Between(PRICE, Number(2.0), VWAP)), price=[1, 2, 3, 4, 5, 3], vwap_day=[4, 4, 4, 4, 4, NAN]) == [
        1,
        2,
        3,
    ]


def test_between_is_false_when_one_side_says_so() -> None:
    when = Not(Between(PRICE, Number(2.0), VWAP))
    assert fired(level(when), price=[1, 3, NAN], vwap_day=[NAN, NAN, 4]) == [0]


def test_operand_of_a_closed_candle_is_another_row() -> None:
    assert fired(level(Comparison(PRICE, ">", CLOSE)), price=[3, 3, 3], close=[2, 4, NAN]) == [0]


@pytest.mark.parametrize(
    ("value", "result"),
    [
        (Arithmetic("+", PRICE, VWAP), 8.0),
        (Arithmetic("-", PRICE, VWAP), 4.0),
        (Arithmetic("*", PRICE, VWAP), 12.0),
        (Arithmetic("/", PRICE, VWAP), 3.0),
        (Function("abs", (Arithmetic("-", VWAP, PRICE),)), 4.0),
        (Arithmetic("+", Function("negate", (PRICE,)), VWAP), -4.0),
        (Function("min", (PRICE, VWAP, Number(4.0))), 2.0),
        (Function("max", (PRICE, VWAP, Number(9.0))), 9.0),
    ],
)
def test_arithmetic(value: Value, result: float) -> None:
    assert fired(level(Comparison(value, "==", Number(result))), price=[6, 6, 6], vwap_day=[2, NAN, 2]) == [0, 2]


@pytest.mark.parametrize(
    "value",
    [
        Arithmetic("/", PRICE, VWAP),
        Arithmetic("*", Number(1e308), Arithmetic("/", PRICE, VWAP)),
        Arithmetic("-", Number(1.0), Arithmetic("/", PRICE, VWAP)),
        Function("max", (Number(9.0), Arithmetic("/", PRICE, VWAP))),
    ],
)
def test_what_has_no_finite_result_is_unknown(value: Value) -> None:
    anything = AnyOf((above(0, value), Not(above(0, value))))
    assert fired(level(anything), price=[1, 1, -1, 0, 1], vwap_day=[1, 0, 0, 0, -0.0]) == [0]


def test_too_large_is_unknown() -> None:
    huge = Arithmetic("*", PRICE, Number(1e308))
    assert fired(level(above(0, huge)), price=[1, 10]) == [0]
    assert fired(level(Not(above(0, huge))), price=[-1, -10]) == [0]


def test_joined_as_kleene_has_it() -> None:
    yes, no = Comparison(PRICE, "==", PRICE), Comparison(PRICE, "!=", PRICE)
    unknown = above(0, VWAP)
    table: list[tuple[Condition, bool]] = [
        (All((yes, unknown)), False),
        (Not(All((yes, unknown))), False),
        (Not(All((no, unknown))), True),
        (AnyOf((yes, unknown)), True),
        (AnyOf((no, unknown)), False),
        (Not(AnyOf((no, unknown))), False),
        (Not(unknown), False),
    ]
    for when, true in table:
        assert fired(level(when), price=[1], vwap_day=[NAN]) == ([0] if true else []), when


# -- crossings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vwap_day", "above_at", "below_at"),
    [
        ([9, 11], [1], []),
        ([11, 9], [], [1]),
        ([11, 11, 11], [], []),  # the first side is learnt
        ([9, 10, 9, 10], [], []),  # a touch is none
        ([9, 10, 10, 11], [3], []),  # a touch does not forget the side
        ([11, 10, 11], [], []),
        ([11, 10, 9], [], [2]),
        ([10, 11, 9], [], [2]),  # beginning at the line, no side is known yet
        ([10, 9, 11], [2], []),
        ([9, NAN, 11], [2], []),  # the side outlives the unknown
        ([NAN, 11, 9, 11], [3], [2]),
        ([9, 11, 12, 9, 11], [1, 4], [3]),
    ],
)
def test_crossing_of_values(vwap_day: list[float], above_at: list[int], below_at: list[int]) -> None:
    assert fired(level(Crossing(VWAP, "above", Number(10.0))), vwap_day=vwap_day) == above_at
    assert fired(level(Crossing(VWAP, "below", Number(10.0))), vwap_day=vwap_day) == below_at
    assert fired(level(Crossing(Number(10.0), "below", VWAP)), vwap_day=vwap_day) == above_at
    assert fired(level(Crossing(Number(10.0), "above", VWAP)), vwap_day=vwap_day) == below_at


@pytest.mark.parametrize(
    ("price", "lowest", "highest", "above_at", "below_at"),
    [
        ([9, 9, 9], [9, 9, 9], [9, 11, 9], [1], []),  # above and back within the interval
        ([11, 11, 11], [11, 9, 11], [11, 11, 11], [1], [1]),  # below and back: both
        ([9, 9, 9], [9, 9, 9], [9, 10, 9], [], []),  # only touched
        ([9, 10, 9], [9, 9, 9], [9, 11, 10], [1], [2]),  # above, then back to the line: it is above until below
        ([9, 10, 11], [9, 9, 10], [9, 10, 11], [2], []),
        ([11, 10, 11], [11, 9, 10], [11, 11, 11], [2], [1]),
        ([9, 11, 9], [NAN, NAN, NAN], [NAN, NAN, NAN], [1], [2]),  # no path is known: the price alone
        ([9, 9], [9, 9], [12, 12], [1], []),  # no crossing before the first side
    ],
)
def test_crossing_of_the_price_counts_the_path_since_the_last_scan(
    price: list[float], lowest: list[float], highest: list[float], above_at: list[int], below_at: list[int]
) -> None:
    def asked(when: Condition) -> list[int]:
        return fired(level(when), price=price, lowest_since_scan=lowest, highest_since_scan=highest)

    assert asked(Crossing(PRICE, "above", Number(10.0))) == above_at
    assert asked(Crossing(Number(10.0), "below", PRICE)) == above_at


@pytest.mark.parametrize(
    ("side", "scans"),
    [(PRICE, [1]), (Arithmetic("+", PRICE, Number(0.0)), []), (Function("max", (PRICE, PRICE)), []), (BEFORE, [])],
)
def test_only_the_bare_price_has_a_path(side: Value, scans: list[int]) -> None:
    spec = level(Crossing(side, "above", Number(10.0)))
    assert fired(spec, price=[9, 9], before=[9, 9], lowest_since_scan=[9, 9], highest_since_scan=[9, 12]) == scans


def test_crossing_is_unknown_until_a_side_is_known() -> None:
    when = Not(Crossing(VWAP, "above", Number(10.0)))
    assert fired(level(when), vwap_day=[10, 9, 9, NAN, 9, 11]) == [2, 4]


# -- what the symbol and the session are ------------------------------------------------------------------------------


def test_attributes_that_nobody_told_are_unknown() -> None:
    listed = Attribute("exchange", ("ARCX", "XNAS"))
    exchanges = ["XNAS", "XNYS", "", "ARCX"]
    assert fired(level(listed), price=[1, 1, 1, 1], exchanges=exchanges) == [0, 3]
    assert fired(level(Not(listed)), price=[1, 1, 1, 1], exchanges=exchanges) == [1]
    assert fired(level(AnyOf((listed, Not(listed)))), price=[1, 1]) == []


def test_symbol_and_watchlist_are_always_known() -> None:
    assert fired(level(Attribute("symbol", ("A", "B"))), price=[NAN]) == [0]
    assert fired(level(Not(Attribute("symbol", ("B",)))), price=[NAN]) == [0]
    assert fired(level(InWatchlist("mine")), price=[NAN]) == [0]
    assert fired(level(Not(InWatchlist("nobody's"))), price=[NAN]) == [0]


def test_ruleset_brings_its_watchlists() -> None:
    spec = level(InWatchlist("mine"))

    def scan(second: int) -> Scan:
        return Scan(START_NS + seconds(second), {"A": {}, "B": {}}, {"A": {}, "B": {}}, tells_changes=True)

    said = play(
        [
            Ruleset(number=1, rules=(spec,), watchlists={"mine": frozenset({"A"})}),
            scan(1),
            Ruleset(number=2, rules=(spec,), watchlists={"mine": frozenset({"B"})}),
            scan(2),
            Ruleset(number=3, rules=(spec,)),
            scan(3),
        ]
    )
    assert [[match.symbol for match in matches] for matches in said] == [["A"], ["B"], []]


def test_session_is_one_of_these() -> None:
    sessions = [(name, 0) for name in SESSIONS]
    assert fired(level(InSession(("pre", "post"))), price=[1, 1, 1, 1], sessions=sessions) == [0, 2]


# -- time -------------------------------------------------------------------------------------------------------------


def test_held_counts_from_the_first_true_scan() -> None:
    when = Held(above(10), seconds(2))
    assert fired(level(when), price=[9, 11, 11, 11, 11, 9, 11, 11, 11]) == [3, 4, 8]


def test_held_counts_from_the_first_scan_of_all() -> None:
    assert fired(level(Held(above(10), seconds(2))), price=[11, 11, 11, 11]) == [2, 3]


def test_held_begins_again_after_the_unknown() -> None:
    assert fired(level(Held(above(10), seconds(2))), price=[11, 11, NAN, 11, 11, 11]) == [5]


def test_held_for_a_shorter_time_is_what_it_was_before() -> None:
    not_held = Not(Held(above(10), seconds(3)))
    assert fired(level(not_held), price=[11, 11, 9, 11, 11, 11, 11, NAN, 11]) == [2, 3, 4, 5]


def test_held_looks_at_scans_not_at_seconds() -> None:
    assert fired(level(Held(above(10), seconds(60))), price=[11, 11, 11], at_s=[1, 60.999999999, 61]) == [2]


def test_in_a_row_counts_scans() -> None:
    when = InARow(above(10), 3)
    assert fired(level(when), price=[11, 11, 11, 11, 9, 11, 11, NAN, 11, 11, 11]) == [2, 3, 10]
    assert fired(level(Not(when)), price=[11, 11, 9, 11, 11, 11, NAN, 11]) == [2, 3, 4]


def test_within_includes_its_edge() -> None:
    when = Within(above(10), seconds(2))
    assert fired(level(when), price=[9, 11, 9, 9, 9, 9]) == [1, 2, 3]
    assert fired(level(when), price=[11, 9, 9], at_s=[1, 3, 3.000000001]) == [0, 1]


def test_within_is_unknown_while_one_of_its_scans_is() -> None:
    assert fired(level(Not(Within(above(10), seconds(2)))), price=[9, 9, NAN, 9, 9, 9]) == [0, 1, 5]


def test_then_asks_an_earlier_scan() -> None:
    when = Then(above(10), above(5, VWAP), seconds(2))
    assert fired(level(when), price=[11, 9, 9, 9, 9], vwap_day=[6, 6, 6, 6, 6]) == [1, 2]
    assert fired(level(when), price=[9, 9, 11, 11], vwap_day=[6, 6, 6, 6]) == [3]


def test_then_is_false_when_nothing_went_before() -> None:
    assert fired(level(Not(Then(above(10), above(5), seconds(2)))), price=[11, 11, 6, NAN]) == [0]


# -- when a rule fires ------------------------------------------------------------------------------------------------


def test_edge_fires_once_until_it_was_false() -> None:
    assert fired(rule(above(10)), price=[11, 11, NAN, 11, 9, 11, 9, NAN, 11]) == [0, 5, 8]


def test_rearm_decides_alone() -> None:
    spec = rule(above(10), rearm=Comparison(PRICE, "<", Number(8.0)))
    assert fired(spec, price=[11, 9, 11, 7, 9, 11, NAN, 11]) == [0, 5]


def test_rearm_needs_that_the_rule_is_not_true() -> None:
    spec = rule(above(10), rearm=above(5, VWAP))
    assert fired(spec, price=[11, 11, 11, NAN, 11], vwap_day=[6, 6, 4, 6, 6]) == [0, 4]


def test_level_fires_at_every_scan() -> None:
    assert fired(rule(above(10), fire=Fire("level")), price=[11, 11, 9, NAN, 11]) == [0, 1, 4]


def test_bar_fires_once_in_each() -> None:
    spec = rule(above(10), fire=Fire("bar", 1))
    at_s = [1, 30, 60, 60.000000001, 90, 121, 150, 181]
    assert fired(spec, price=[11, 9, 11, 11, 11, 9, 11, NAN], at_s=at_s) == [0, 3, 6]


def test_bars_are_counted_from_the_day_s_beginning() -> None:
    spec = rule(above(10), fire=Fire("bar", 1440))
    assert fired(spec, price=[11, 11, 11, 11], at_s=[1, 70_000, 90_001, 90_002], days_s=[0, 0, 90_000, 90_000]) == [
        0,
        2,
    ]


def test_session_fires_once_in_each() -> None:
    spec = rule(above(10), fire=Fire("session"))
    sessions = [("pre", 0), ("pre", 0), ("regular", 3), ("regular", 3), ("regular", 3), ("regular", 6)]
    assert fired(spec, price=[11, 11, 9, 11, 11, 11], sessions=sessions) == [0, 3, 5]


def test_gate_spends_the_fire() -> None:
    spec = rule(above(10), gate=above(5, VWAP))
    assert fired(spec, price=[11, 11, 9, 11, 9, 11], vwap_day=[4, 6, 6, 6, 6, NAN]) == [3]


def test_gate_remembers_while_nothing_fires() -> None:
    spec = rule(above(10), gate=Held(above(5, VWAP), seconds(3)))
    assert fired(spec, price=[9, 9, 9, 11], vwap_day=[6, 6, 6, 6]) == [3]


def test_cooldown_spends_the_fire_and_is_not_renewed() -> None:
    spec = rule(above(10), cooldown_ns=seconds(4))
    assert fired(spec, price=[11, 9, 11, 9, 11, 9, 11]) == [0, 4]
    assert fired(rule(above(10), cooldown_ns=seconds(4), fire=Fire("level")), price=[11] * 9) == [0, 4, 8]


def test_gated_fire_starts_no_cooldown() -> None:
    spec = rule(above(10), gate=above(5, VWAP), cooldown_ns=seconds(10))
    assert fired(spec, price=[11, 9, 11], vwap_day=[4, 4, 6]) == [2]
