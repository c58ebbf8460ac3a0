"""Rule text: what it means, how it is written back, and what is said of text that cannot be read."""

import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rule_trees import conditions

from tapewatch.engine.columns import SECOND_NS
from tapewatch.engine.metrics import CATALOGUE
from tapewatch.engine.rules import checked
from tapewatch.engine.rules.spelling import WrittenRule, WrittenWatchlist, format_duration
from tapewatch.engine.rules.text import (
    MAX_FILE,
    MAX_TEXT,
    RuleFile,
    format_condition,
    format_fire,
    format_rule,
    format_watchlist,
    parse_condition,
    parse_duration,
    parse_fire,
    parse_rules,
)
from tapewatch.engine.rules.tree import (
    All,
    AnyOf,
    Arithmetic,
    Attribute,
    Between,
    Comparison,
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
    Operand,
    RuleSpec,
    Then,
    Within,
)
from tapewatch.errors import Invalid

METRICS = ("price", "halted", "gap_pct", "volume_day", "close_day", "time_of_day", "rsi_14_1m")
MINUTE_NS = 60 * SECOND_NS
of_trees = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

price, gap, volume = Operand("price"), Operand("gap_pct"), Operand("volume_day")
HIGH = Comparison(price, ">", Number(10.0))
GAPS = Comparison(gap, ">=", Number(4.0))
BUSY = Comparison(volume, ">", Number(1e6))
HALTED = Comparison(Operand("halted"), "==", Number(1.0))
A, B, C = "price > 10", "gap_pct >= 4", "volume_day > 1000000"

MEANINGS: list[tuple[str, Condition]] = [
    # comparisons
    (A, HIGH),
    ("10 < price", Comparison(Number(10.0), "<", price)),
    ("price = 10", Comparison(price, "==", Number(10.0))),
    ("price == 10", Comparison(price, "==", Number(10.0))),
    ("price!=10", Comparison(price, "!=", Number(10.0))),
    ("price <= vwap_session", Comparison(price, "<=", Operand("vwap_session"))),
    ("volume_60m > 0", Comparison(Operand("volume_1h"), ">", Number(0.0))),
    ("price between 5 and 50", Between(price, Number(5.0), Number(50.0))),
    ("price not between 5 and 50", Not(Between(price, Number(5.0), Number(50.0)))),
    ("close_day[1] > close_day", Comparison(Operand("close_day", 1), ">", Operand("close_day"))),
    ("close_day [ 1 ] > 2", Comparison(Operand("close_day", 1), ">", Number(2.0))),
    # numbers
    ("volume_day > 1_000_000", BUSY),
    ("volume_day > 1M", BUSY),
    ("volume_day > 1000k", BUSY),
    ("volume_day > 1_000K", BUSY),
    ("volume_day > 0.001B", BUSY),
    ("volume_day > 1e6", BUSY),
    ("volume_day > 1.1M", Comparison(volume, ">", Number(1_100_000.0))),
    ("price > .5", Comparison(price, ">", Number(0.5))),
    ("price > 5.", Comparison(price, ">", Number(5.0))),
    ("price > -5", Comparison(price, ">", Number(-5.0))),
    ("price > --5", Comparison(price, ">", Number(5.0))),
    ("price > -0", Comparison(price, ">", Number(0.0))),
    # units
    ("price > $10", HIGH),
    ("price > $ 10", HIGH),
    ("gap_pct >= 4%", GAPS),
    ("gap_pct >= 4 %", GAPS),
    ("$5 < price - vwap_session", Comparison(Number(5.0), "<", Arithmetic("-", price, Operand("vwap_session")))),
    ("price > vwap_session + $0.05",
     Comparison(price, ">", Arithmetic("+", Operand("vwap_session"), Number(0.05)))),
    ("price * 2 > $10", Comparison(Arithmetic("*", price, Number(2.0)), ">", Number(10.0))),
    ("max(price, $5) > 3", Comparison(Function("max", (price, Number(5.0))), ">", Number(3.0))),
    ("gap_pct between -2% and 2%", Between(gap, Number(-2.0), Number(2.0))),
    # the time of day
    ("time > 09:30", Comparison(Operand("time_of_day"), ">", Number(570.0))),
    ("time_of_day < 15:59:30", Comparison(Operand("time_of_day"), "<", Number(959.5))),
    ("time between 9:45 and 11:00", Between(Operand("time_of_day"), Number(585.0), Number(660.0))),
    ("time - 09:30 < 30", Comparison(Arithmetic("-", Operand("time_of_day"), Number(570.0)), "<", Number(30.0))),
    # arithmetic: from the left, the sign first
    ("price - 1 - 2 > 0",
     Comparison(Arithmetic("-", Arithmetic("-", price, Number(1.0)), Number(2.0)), ">", Number(0.0))),
    ("price - (1 - 2) > 0",
     Comparison(Arithmetic("-", price, Arithmetic("-", Number(1.0), Number(2.0))), ">", Number(0.0))),
    ("price + 2 * gap_pct > 0",
     Comparison(Arithmetic("+", price, Arithmetic("*", Number(2.0), gap)), ">", Number(0.0))),
    ("(price + 2) / gap_pct > 0",
     Comparison(Arithmetic("/", Arithmetic("+", price, Number(2.0)), gap), ">", Number(0.0))),
    ("-price * 2 < 0",
     Comparison(Arithmetic("*", Function("negate", (price,)), Number(2.0)), "<", Number(0.0))),
    ("-(price * 2) < 0",
     Comparison(Function("negate", (Arithmetic("*", price, Number(2.0)),)), "<", Number(0.0))),
    ("abs(gap_pct) >= 4", Comparison(Function("abs", (gap,)), ">=", Number(4.0))),
    ("MIN(price, gap_pct, 3) > 1", Comparison(Function("min", (price, gap, Number(3.0))), ">", Number(1.0))),
    # crossings
    ("price crosses_above vwap_session", Crossing(price, "above", Operand("vwap_session"))),
    ("price crosses below 10", Crossing(price, "below", Number(10.0))),
    ("price CROSSES\n above 10", Crossing(price, "above", Number(10.0))),
    # flags
    ("halted", HALTED),
    ("(halted)", HALTED),
    ("not halted", Not(HALTED)),
    ("halted == 0", Comparison(Operand("halted"), "==", Number(0.0))),
    # and, or, not
    (f"{A} and {B} and {C}", All((HIGH, GAPS, BUSY))),
    (f"({A} and {B}) and {C}", All((HIGH, GAPS, BUSY))),
    (f"{A} and ({B} and {C})", All((HIGH, GAPS, BUSY))),
    (f"{A} or {B} and {C}", AnyOf((HIGH, All((GAPS, BUSY))))),
    (f"({A} or {B}) and {C}", All((AnyOf((HIGH, GAPS)), BUSY))),
    (f"{A} OR ({B} Or {C})", AnyOf((HIGH, GAPS, BUSY))),
    (f"not {A} and {B}", All((Not(HIGH), GAPS))),
    (f"NOT ({A} and {B})", Not(All((HIGH, GAPS)))),
    (f"not not {A}", Not(Not(HIGH))),
    (f"((({A})))", HIGH),
    # time
    (f"{A} for 30s", Held(HIGH, 30 * SECOND_NS)),
    (f"{A} within 5m", Within(HIGH, 5 * MINUTE_NS)),
    (f"{A} 3 times in a row", InARow(HIGH, 3)),
    (f"{A} for 1h30m within 500ms", Within(Held(HIGH, 90 * MINUTE_NS), SECOND_NS // 2)),
    (f"{A} for 1.5s", Held(HIGH, SECOND_NS * 3 // 2)),
    (f"not {A} for 30s", Not(Held(HIGH, 30 * SECOND_NS))),
    (f"(not {A}) for 30s", Held(Not(HIGH), 30 * SECOND_NS)),
    (f"{A} and {B} for 30s", All((HIGH, Held(GAPS, 30 * SECOND_NS)))),
    (f"({A} and {B}) for 30s", Held(All((HIGH, GAPS)), 30 * SECOND_NS)),
    ("halted 2 times in a row", InARow(HALTED, 2)),
    # sequences
    (f"{A} then {B} within 10m", Then(HIGH, GAPS, 10 * MINUTE_NS)),
    (f"{A} then {B} within 10m then {C} within 5m",
     Then(Then(HIGH, GAPS, 10 * MINUTE_NS), BUSY, 5 * MINUTE_NS)),
    (f"{A} then ({B} then {C} within 5m) within 10m",
     Then(HIGH, Then(GAPS, BUSY, 5 * MINUTE_NS), 10 * MINUTE_NS)),
    (f"{A} and {B} then {C} or halted within 10m",
     Then(All((HIGH, GAPS)), AnyOf((BUSY, HALTED)), 10 * MINUTE_NS)),
    (f"{A} then not {B} for 30s within 10m",
     Then(HIGH, Not(Held(GAPS, 30 * SECOND_NS)), 10 * MINUTE_NS)),
    (f"({A} within 1m) then ({B} within 2m) within 10m",
     Then(Within(HIGH, MINUTE_NS), Within(GAPS, 2 * MINUTE_NS), 10 * MINUTE_NS)),
    (f"({A} then {B} within 10m) and halted", All((Then(HIGH, GAPS, 10 * MINUTE_NS), HALTED))),
    # the symbol
    ("symbol in (MSFT, AAPL, MSFT)", Attribute("symbol", ("AAPL", "MSFT"))),
    ("symbol is AAPL", Attribute("symbol", ("AAPL",))),
    ("symbol is not AAPL", Not(Attribute("symbol", ("AAPL",)))),
    ("symbol not in (AAPL)", Not(Attribute("symbol", ("AAPL",)))),
    ("symbol in (BRK.B, BF-A, NOT, AND, in)", Attribute("symbol", ("AND", "BF-A", "BRK.B", "NOT", "in"))),
    ('symbol is "NOT"', Attribute("symbol", ("NOT",))),
    ("exchange in (XNYS, XNAS)", Attribute("exchange", ("XNAS", "XNYS"))),
    ("type is CS", Attribute("type", ("CS",))),
    ('sector in ("Health Care", Technology)', Attribute("sector", ("Health Care", "Technology"))),
    (r'sector is "say \"so\" \\"', Attribute("sector", ('say "so" \\',))),
    ("session in (regular, pre)", InSession(("pre", "regular"))),
    ("session is not closed", Not(InSession(("closed",)))),
    ("symbol in watchlist tech", InWatchlist("tech")),
    ('symbol not in watchlist "my-list"', Not(InWatchlist("my-list"))),
    # layout
    (f"  # why\n{A} # and\n\tand\r\n{B}\n", All((HIGH, GAPS))),
]  # fmt: skip


@pytest.mark.parametrize(("text", "condition"), MEANINGS, ids=[text for text, _ in MEANINGS])
def test_text_means(text: str, condition: Condition) -> None:
    assert parse_condition(text) == condition
    assert parse_condition(format_condition(condition)) == condition


CANONICAL = [
    "price > 10",
    "volume_day >= 100000",
    "price > 1e-07",
    "halted",
    "not halted",
    "halted == 0",
    "time_of_day > 09:30",
    "time_of_day not between 09:30 and 15:59:30",
    "time_of_day - 570 < 30",
    "price - (1 - gap_pct) > 0",
    "(price + 1) * 2 > -3",
    "price / (gap_pct * 2) > 0",
    "-abs(gap_pct) < --price",
    "price > 10 or gap_pct >= 4 and (halted or price < 5)",
    "not (halted and price > 10)",
    "symbol is not AAPL and session in (pre, post)",
    'symbol in (A, B, "NOT")',
    'sector is "Health Care"',
    "price crosses_above vwap_session",
    "(price > 10 or halted) for 1m30s within 1h 3 times in a row",
    "(not halted) for 30s",
    "not halted for 30s",
    "price not between 5 and 50 for 30s",
    "price > 10 then halted within 10m then gap_pct >= 4 within 5m",
    "price > 10 then (halted within 1s) within 10m",
    "(price > 10 or halted within 1s) then halted within 10m",
    "(price > 10 then halted within 10m) and gap_pct >= 4",
]


@pytest.mark.parametrize("text", CANONICAL)
def test_canonical_text_is_written_as_it_was_read(text: str) -> None:
    assert format_condition(parse_condition(text)) == text


@of_trees
@given(conditions(METRICS))
def test_every_tree_is_read_back_from_its_text(condition: Condition) -> None:
    text = format_condition(condition)
    assert parse_condition(text) == condition
    assert format_condition(parse_condition(text)) == text


def pairs_of_parentheses(text: str) -> list[tuple[int, int]]:
    opened, pairs = [], []
    for match in re.finditer(r'"(?:[^"\\]|\\.)*"|[()]', text):
        if match.group(0) == "(":
            opened.append(match.start())
        elif match.group(0) == ")":
            pairs.append((opened.pop(), match.start()))
    return pairs


@of_trees
@given(conditions(METRICS))
def test_no_parentheses_are_written_that_could_be_left_out(condition: Condition) -> None:
    text = format_condition(condition)
    for start, end in pairs_of_parentheses(text):
        shorter = f"{text[:start]} {text[start + 1 : end]} {text[end + 1 :]}"
        try:
            assert parse_condition(shorter) != condition, shorter
        except Invalid:
            continue  # they were needed


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_metric_can_be_named(name: str) -> None:
    assert parse_condition(f"{name} > 0.5") == Comparison(Operand(name), ">", Number(0.5))


@given(st.integers(0, 7 * 24 * 3_600 * SECOND_NS))
def test_every_duration_is_read_back_from_its_text(duration_ns: int) -> None:
    assert parse_duration(format_duration(duration_ns)) == duration_ns


# -- errors -----------------------------------------------------------------------------------------------------------

MISTAKES: list[tuple[str, int, int, str]] = [
    # what is missing
    ("", 1, 1, "found the end of the text; expected a condition such as price > 10"),
    ("price >", 1, 8, "expected a metric or a number"),
    ("price > 10 and", 1, 15, "expected a condition such as price > 10"),
    ("price > 10\nand or halted", 2, 5, "found 'or'; expected a condition"),
    ("(price > 10", 1, 12, "the parenthesis of line 1, column 1 is not closed"),
    ("halted and (\n(price > 10)", 2, 13, "the parenthesis of line 1, column 12 is not closed"),
    ("price > 10)", 1, 11, "this closing parenthesis was never opened"),
    ('sector is "Tech', 1, 11, "this quote is never closed"),
    ("price > 10 for", 1, 15, "expected a time such as 30s or 5m"),
    ("price > 10 then halted", 1, 23, "a sequence is written A then B within 10m"),
    ("price > 10 halted", 1, 12, "found 'halted'; expected and, or"),
    ("price 10", 1, 7, "expected a comparison such as >"),
    ("price > 10 3 in a row", 1, 12, "found '3'; expected and"),
    ("price > 10 3 times in row", 1, 14, "expected times in a row"),
    ("rule > 10", 1, 1, "found 'rule'; expected a condition"),
    ("price", 1, 1, "price is not a condition by itself; compare it, such as price > 5"),
    ("halted and price", 1, 12, "price is not a condition by itself"),
    ("symbol", 1, 7, "expected is or in"),
    ("close_day[ > 3", 1, 12, "expected a whole number"),
    # what is misspelt
    ("prise > 10", 1, 1, "unknown metric 'prise'; did you mean price?"),
    ("Price > 10", 1, 1, "did you mean price?"),
    ("price > 10 adn halted", 1, 12, "did you mean and?"),
    ("price > 10 wihtin 5m", 1, 12, "did you mean within?"),
    ("price betwen 5 and 10", 1, 7, "did you mean between"),
    ("price > 10 four 30s", 1, 12, "did you mean for"),
    ("nott halted", 1, 1, "did you mean not?"),
    ("symbol iz AAPL", 1, 8, "found 'iz'; expected is or in"),
    ("symbl is AAPL", 1, 1, "did you mean symbol?"),
    ("avg(price, 2) > 3", 1, 1, "there is no function 'avg'"),
    ("maxx(price, 2) > 3", 1, 1, "did you mean max?"),
    # what other languages say
    ("price => 10", 1, 7, "found '=>'; expected a comparison"),
    ("price => 10", 1, 7, "write >="),
    ("price =< 10", 1, 7, "write <="),
    ("price <> 10", 1, 7, "write !="),
    ("price === 10", 1, 7, "write =="),
    ("price ≥ 10", 1, 7, "write >="),
    ("price > 10 && halted", 1, 12, "write and"),
    ("price > 10 || halted", 1, 12, "write or"),
    ("!halted", 1, 1, "write not"),
    ("price above 10", 1, 7, "write >"),
    ("price crosses vwap_session", 1, 7, "write crosses_above or crosses_below"),
    ("price is 10", 1, 7, "write =="),
    ("symbol = AAPL", 1, 8, "write is, such as symbol is AAPL"),
    ("5 < price < 50", 1, 11, "join comparisons with and"),
    ("sector is 'Tech'", 1, 11, 'write "'),
    # numbers and times
    ("volume_day > 5m", 1, 14, "a million is 1M"),
    ("volume_day > 5x", 1, 14, "numbers are written 1500, 1_500, 1.5k, 2M or 1e6"),
    ("volume_day > 1__0", 1, 14, "numbers are written"),
    ("price > 30s", 1, 9, "a time can stand only behind for, within and cooldown"),
    ("price > 1e999", 1, 9, "a number must be finite and no larger than 1e15"),
    ("price > 1.1e15", 1, 9, "no larger than 1e15"),
    ("price > NaN", 1, 9, "unknown metric 'NaN'"),
    ("price > 10 for 30", 1, 16, "times are written 500ms, 30s, 5m, 2h or 1h30m"),
    ("price > 10 for 5 minutes", 1, 16, "times are written"),
    ("price > 10 for 30m1h", 1, 16, "is not a time such as"),
    ("price > 10 for 99ms", 1, 16, "a time is 100ms to 24h"),
    ("price > 10 within 24h1ms", 1, 19, "a time is 100ms to 24h"),
    ("price > 10 for 100.5ms", 1, 16, "whole number of milliseconds"),
    ("price > 10 1 times in a row", 1, 12, "2 to 1,000"),
    ("price > 10 1001 times in a row", 1, 12, "2 to 1,000"),
    ("price > 10 99999999999 times in a row", 1, 12, "too large"),
    ("time > 24:00", 1, 8, "is not a time of day from 00:00 to 23:59:59"),
    ("time > 09:60", 1, 8, "is not a time of day"),
    # units
    ("price > 2%", 1, 9, "'2%' is per cent, but it stands beside dollars"),
    ("volume_day > $5", 1, 14, "'$5' is dollars, but it stands beside shares"),
    ("price > 09:30", 1, 9, "'09:30' is a time of day, but it stands beside dollars"),
    ("price > gap_pct + $1", 1, 19, "'$1' is dollars, but it stands beside per cent"),
    ("gap_pct * price > 2%", 1, 19, "no metric beside it has this unit"),
    ("price > close_prev_day * 2%", 1, 26, "two per cent of a price is price * 0.02"),
    ("price between 5% and 10", 1, 15, "'5%' is per cent"),
    ("$5 > 3%", 1, 1, "compares two numbers"),
    # sense
    ("5 > 3", 1, 1, "compares two numbers"),
    ("price / 0 > 3", 1, 9, "divides by zero"),
    ("price / -0.0 > 3", 1, 9, "divides by zero"),
    ("halted and 1 + 2 == 3", 1, 12, "compares two numbers"),
    ("5 crosses_above 3", 1, 1, "compares two numbers"),
    ("abs(-5) between 1 and 3", 1, 1, "compares two numbers"),
    ("price between 50 and 5", 1, 1, "the lower number comes first"),
    ("price[1] > 5", 1, 1, "price has no closed candles to look back at"),
    ("close_day[0] > 5", 1, 11, "[1] is the last closed candle"),
    ("close_day[9999] > 5", 1, 1, "close_day reaches back no further than [1]"),
    ("abs(price, 2) > 3", 1, 1, "abs takes one value, not 2"),
    ("min(price) > 3", 1, 1, "min takes two values or more"),
    ("negate(price) > 3", 1, 1, "write -"),
    ("(price > 5) + 3 > 1", 1, 2, "a condition cannot be calculated with or compared"),
    ("(price > 5) > 1", 1, 2, "a condition cannot be calculated with or compared"),
    ("price > 10 within 5m then halted within 10m", 1, 1, "stands in parentheses"),
    ("halted or price > 10 within 5m then halted within 10m", 1, 1, "stands in parentheses"),
    ("not halted within 5m then halted within 10m", 1, 5, "stands in parentheses"),
    ("halted and price > 10 within 5m then halted within 10m", 1, 1, "stands in parentheses"),
    ("halted within 5m for 30s then halted within 10m", 1, 1, "stands in parentheses"),
    ("halted within 5m 2 times in a row then halted within 10m", 1, 1, "stands in parentheses"),
    ("halted then price > 10 within 5m and halted", 1, 34, "found 'and'"),
    # names
    ("symbol in ()", 1, 12, "expected a name such as AAPL"),
    ("symbol is AAPL!", 1, 15, "found '!'"),
    (f"symbol is {'A' * 25}", 1, 11, "is not a symbol such as AAPL"),
    ("exchange is NASDAQ", 1, 13, "is not the MIC of an exchange"),
    ("type in (CS, etf)", 1, 14, "is not a type of security"),
    ("session is lunch", 1, 12, "sessions are pre, regular, post, closed"),
    ("exchange in watchlist tech", 1, 1, "write symbol in watchlist tech"),
    ('symbol in watchlist "my list"', 1, 21, "is not an identifier"),
    (f"symbol in watchlist {'a' * 65}", 1, 21, "is not an identifier"),
    ('sector is ""', 1, 11, "a sector is a text of 1 to 200 characters"),
]


@pytest.mark.parametrize(("text", "line", "column", "why"), MISTAKES, ids=[f"{m[0]!r} {m[3][:12]}" for m in MISTAKES])
def test_mistake_is_explained_at_its_place(text: str, line: int, column: int, why: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_condition(text)
    assert caught.value.where == f"line {line}, column {column}"
    assert why in caught.value.why


# -- limits -----------------------------------------------------------------------------------------------------------


def test_text_may_be_as_long_as_the_limit() -> None:
    assert parse_condition("halted" + " " * (MAX_TEXT - 6)) == HALTED
    with pytest.raises(Invalid, match=r"^is longer than 8,000 characters$"):
        parse_condition("halted" + " " * (MAX_TEXT - 5))


def test_condition_has_at_most_so_many_parts() -> None:
    fits = parse_condition(" and ".join(["halted"] * 66))
    assert isinstance(fits, All)
    assert len(fits.conditions) == 66  # 66 comparisons of three nodes each, and the conjunction
    with pytest.raises(Invalid, match="more than 200 parts"):
        parse_condition(" and ".join(["halted"] * 67))
    with pytest.raises(Invalid, match="more than 200 parts"):
        parse_condition(f"max({', '.join(['price'] * 1_000)}) > 1")


def test_condition_has_at_most_so_many_levels() -> None:
    deepest = "not " * (checked.MAX_DEPTH - 2) + "halted"
    assert format_condition(parse_condition(deepest)) == deepest
    with pytest.raises(Invalid, match="nested deeper than 24 levels"):
        parse_condition("not " + deepest)
    with pytest.raises(Invalid, match="nested deeper than 24 levels"):
        parse_condition("price" + " + 1" * checked.MAX_DEPTH + " > 3")


def test_parentheses_that_change_nothing_are_no_levels() -> None:
    assert parse_condition("(" * 100 + "halted" + ")" * 100) == HALTED


def test_list_holds_at_most_so_many_values() -> None:
    names = [f"A{n}" for n in range(501)]
    fits = parse_condition(f"symbol in ({', '.join(names[:500])})")
    assert isinstance(fits, Attribute)
    assert len(fits.values) == 500
    with pytest.raises(Invalid, match="1 to 500 values, not 501"):
        parse_condition(f"symbol in ({','.join(names)})")


def test_file_is_at_most_a_megabyte() -> None:
    assert parse_rules("#" * MAX_FILE) == RuleFile((), ())
    with pytest.raises(Invalid, match="longer than 1,000,000 characters"):
        parse_rules("#" * (MAX_FILE + 1))


def test_condition_in_a_file_is_no_longer_than_one_alone() -> None:
    with pytest.raises(Invalid, match=r"line 1, column \d+: the condition is longer than 8,000 characters"):
        parse_rules("rule a when halted" + " " * MAX_TEXT + "and halted")
    with pytest.raises(Invalid, match="longer than 8,000"):
        parse_rules("rule a when halted gate symbol in (" + ", ".join(["AAAAAAAAAAAAAAAAAAAAAAAA"] * 400) + ")")


# -- fire -------------------------------------------------------------------------------------------------------------

FIRES = {
    "edge": Fire(),
    "level": Fire("level"),
    "once per session": Fire("session"),
    "once per day": Fire("bar", 1_440),
    **{
        f"once per bar {spelt}": Fire("bar", minutes)
        for spelt, minutes in [
            ("1m", 1), ("2m", 2), ("5m", 5), ("10m", 10), ("15m", 15), ("30m", 30), ("1h", 60), ("4h", 240),
        ]
    },
}  # fmt: skip


@pytest.mark.parametrize(("text", "fire"), FIRES.items())
def test_way_of_firing_is_read_and_written(text: str, fire: Fire) -> None:
    assert parse_fire(text.upper().replace("M", "m").replace("H", "h") if "bar" in text else text.upper()) == fire
    assert format_fire(fire) == text


def test_bar_has_other_spellings() -> None:
    assert parse_fire("once  per bar 60m") == parse_fire("once per bar 1h")
    assert parse_fire("once per bar 24h") == parse_fire("once per day")


@pytest.mark.parametrize(
    "text", ["", "often", "once", "once per", "once per bar", "once per bar 3m", "once per bar 90s"]
)
def test_other_ways_of_firing_are_refused(text: str) -> None:
    with pytest.raises(Invalid):
        parse_fire(text)


# -- files ------------------------------------------------------------------------------------------------------------

FILE = """\
# Mornings
watchlist tech = AAPL, MSFT
watchlist not-mine "Not mine" = NOT, RULE, "NOT"

rule gap-and-go "Gap and go"
  description "why \\"one\\" would want it"
  when gap_pct >= 4
   and price > 10  # and not before
  gate volume_day > 1M
  rearm when price < 10
  fire edge
  cooldown 5m
  severity warning
  tags gap, momentum
  disabled

rule plain when halted
rule other fire once per day when symbol in watchlist tech
"""
RULES = (
    WrittenRule(
        RuleSpec(
            id="gap-and-go",
            version=1,
            name="Gap and go",
            when=All((GAPS, HIGH)),
            gate=BUSY,
            rearm=Comparison(price, "<", Number(10.0)),
            cooldown_ns=5 * MINUTE_NS,
            severity="warning",
            tags=("gap", "momentum"),
        ),
        description='why "one" would want it',
        enabled=False,
        line=5,
    ),
    WrittenRule(RuleSpec(id="plain", version=1, name="plain", when=HALTED), line=17),
    WrittenRule(
        RuleSpec(id="other", version=1, name="other", when=InWatchlist("tech"), fire=Fire("bar", 1_440)), line=18
    ),
)
WATCHLISTS = (
    WrittenWatchlist("tech", "tech", ("AAPL", "MSFT"), line=2),
    WrittenWatchlist("not-mine", "Not mine", ("NOT", "RULE"), line=3),
)


def test_file_is_read() -> None:
    assert parse_rules(FILE) == RuleFile(RULES, WATCHLISTS)


def test_empty_file_holds_no_rules() -> None:
    assert parse_rules("# nothing\n") == RuleFile((), ())


def test_rule_is_written_clause_by_clause() -> None:
    assert format_rule(RULES[0]) == (
        'rule gap-and-go "Gap and go"\n'
        '  description "why \\"one\\" would want it"\n'
        "  when gap_pct >= 4\n"
        "   and price > 10\n"
        "  gate volume_day > 1000000\n"
        "  rearm when price < 10\n"
        "  cooldown 5m\n"
        "  severity warning\n"
        "  tags gap, momentum\n"
        "  disabled\n"
    )


def test_watchlist_is_written_on_a_line() -> None:
    assert format_watchlist(WATCHLISTS[1]) == 'watchlist not-mine "Not mine" = "NOT", RULE\n'
    empty = WrittenWatchlist("none", "none", ())
    assert parse_rules(format_watchlist(empty)).watchlists == (WrittenWatchlist("none", "none", (), line=1),)


def unplaced(file: RuleFile) -> list[Any]:
    """What a file says, wherever its lines are."""
    return [(r.spec, r.description, r.enabled) for r in file.rules] + [
        (w.id, w.name, w.symbols) for w in file.watchlists
    ]


names = st.text("abcAB 09\"\\#'()é", min_size=1, max_size=10)
asked = st.sampled_from([condition for _, condition in MEANINGS])
identifiers = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,10}", fullmatch=True)


@st.composite
def written_rules(draw: st.DrawFn) -> WrittenRule:
    fire = draw(st.sampled_from(list(FIRES.values())))
    spec = RuleSpec(
        id=draw(identifiers),
        version=1,
        name=draw(names),
        when=draw(asked),
        gate=draw(st.none() | asked),
        rearm=draw(st.none() | asked) if fire.mode == "edge" else None,
        fire=fire,
        cooldown_ns=draw(st.integers(0, 7 * 24 * 3_600 * SECOND_NS)),
        severity=draw(st.sampled_from(["info", "notice", "warning", "critical"])),
        tags=tuple(dict.fromkeys(draw(st.lists(identifiers, max_size=3)))),
    )
    return WrittenRule(spec, description=draw(st.just("") | names), enabled=draw(st.booleans()))


@of_trees
@given(st.lists(written_rules(), max_size=3, unique_by=lambda rule: rule.spec.id))
def test_every_file_is_read_back_from_its_text(rules: list[WrittenRule]) -> None:
    watchlists = (WrittenWatchlist("tech", "Tech", ("AAPL", "not", "rule")),)
    text = "\n".join(map(format_rule, rules)) + "".join(map(format_watchlist, watchlists))
    assert unplaced(parse_rules(text)) == unplaced(RuleFile(tuple(rules), watchlists))


FILE_MISTAKES: list[tuple[str, int, int, str]] = [
    ("price > 10", 1, 1, "found 'price'; expected a rule or a watchlist"),
    ("rul a when halted", 1, 1, "did you mean rule?"),
    ("rule\n  when halted", 2, 8, "found 'halted'"),
    ("rule a", 1, 1, "the rule a has no when"),
    ("rule a gate halted\nrule b when halted", 1, 1, "the rule a has no when"),
    ("rule a\n  when halted\n  when halted", 3, 3, "when is given a second time for the rule a"),
    ("rule a when halted tags x tags y", 1, 27, "tags is given a second time"),
    ("rule a\n  when halted\n  cooldwn 5m", 3, 3, "did you mean cooldown?"),
    ("rule a\n  when prise > 3", 2, 8, "unknown metric 'prise'; did you mean price?"),
    ("rule a\n  when (price > 3\n  gate halted", 3, 3, "the parenthesis of line 2, column 8 is not closed"),
    ("rule a\n  when halted and\n  gate halted", 3, 3, "found 'gate'; expected a condition"),
    ("rule a\n  when price\n  gate halted", 2, 8, "price is not a condition by itself"),
    ("rule a when halted\nrule a when halted", 2, 1, "there is a rule 'a' above already"),
    ("watchlist a = A\nwatchlist a = B", 2, 1, "there is a watchlist 'a' above already"),
    ("watchlist a A", 1, 13, "expected a text in double quotes, shared or ="),
    ("watchlist a =", 1, 14, "expected a name such as AAPL"),
    (f"watchlist a = B, {'A' * 25}", 1, 18, "is not a symbol such as AAPL"),
    ("rule a when halted rearm when halted fire level", 1, 20, "rearm can stand only with fire edge"),
    ("rule a when halted rearm halted", 1, 26, "expected when"),
    ("rule a when halted severity bad", 1, 29, "severities are info, notice, warning, critical"),
    ("rule a when halted severity warnin", 1, 29, "did you mean warning?"),
    ("rule a when halted cooldown 169h", 1, 29, "a cooldown is at most 168h, seven days"),
    ("rule a when halted cooldown 5", 1, 29, "times are written"),
    ("rule a when halted fire once per bar 7m", 1, 38, "there are bars of 1, 2, 5"),
    ("rule a when halted fire twice", 1, 25, "expected edge, level or once"),
    (f"rule a when halted tags {', '.join('abcdefghijklmnopq')}", 1, 73, "a rule has at most 16 tags"),
    (f"rule {'a' * 65} when halted", 1, 6, "is not an identifier"),
    ("rule a when halted description none", 1, 32, "expected a text in double quotes"),
    ('rule a "x\n" when halted', 1, 8, "this quote is never closed"),
]


@pytest.mark.parametrize(
    ("text", "line", "column", "why"), FILE_MISTAKES, ids=[f"{m[0][:40]!r} {m[3][:12]}" for m in FILE_MISTAKES]
)
def test_mistake_in_a_file_is_explained_at_its_place(text: str, line: int, column: int, why: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_rules(text)
    assert caught.value.where == f"line {line}, column {column}"
    assert why in caught.value.why
