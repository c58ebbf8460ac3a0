"""Hostile rule text: whatever it is, it is a rule or `Invalid`, in time that grows with its length."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rule_trees import conditions

from tapewatch.documents import load_rule_file
from tapewatch.engine.rules.text import (
    MAX_TEXT,
    format_condition,
    format_fire,
    format_rule,
    format_watchlist,
    parse_condition,
    parse_fire,
    parse_rules,
)
from tapewatch.engine.rules.tree import Condition
from tapewatch.errors import Invalid

METRICS = ("price", "halted", "gap_pct", "close_day", "time_of_day")
fuzzing = settings(max_examples=75, deadline=None, suppress_health_check=[HealthCheck.too_slow])

WORDS = """
    price halted gap_pct close_day time prise and or not then within for times in a row is crosses_above crosses below
    between symbol exchange type sector session watchlist AAPL XNAS CS regular tech rule when gate rearm fire edge once
    per bar day cooldown severity warning tags disabled description level abs min max
    > < >= == != = => && ( ) [ ] , + - * / 1 2 10 1k 5% $5 09:30 30s 5m 1h 500ms "Tech" " ' #
"""
TOKENS = (*WORDS.split(), "(", ")", "\n", "\u00e9", "\u0430", "\u200b", "\x00", "\\")
token_soup = st.lists(st.sampled_from(TOKENS), max_size=30).map(" ".join)


@st.composite
def mutations(draw: st.DrawFn) -> str:
    """A valid text, with a few characters or words changed, left out or moved."""
    text = format_condition(draw(conditions(METRICS, leaves=4)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 6)))
        text = text[:start] + draw(st.sampled_from(TOKENS) | st.text(max_size=3)) + text[end:]
    return text


def check_condition(text: str) -> None:
    try:
        condition: Condition = parse_condition(text)
    except Invalid as error:
        assert error.why  # noqa: PT017  some of these are conditions
    else:
        canonical = format_condition(condition)
        assert parse_condition(canonical) == condition
        assert format_condition(parse_condition(canonical)) == canonical


def check_file(text: str) -> None:
    try:
        file = parse_rules(text)
    except Invalid as error:
        assert error.why  # noqa: PT017  some of these are files
    else:
        again = parse_rules("".join([*map(format_watchlist, file.watchlists), *map(format_rule, file.rules)]))
        assert [rule.spec for rule in again.rules] == [rule.spec for rule in file.rules]


def check_fire(text: str) -> None:
    try:
        assert parse_fire(format_fire(parse_fire(text))) == parse_fire(text)
    except Invalid as error:
        assert error.why  # noqa: PT017  some of these are ways of firing


@fuzzing
@given(token_soup | mutations() | st.text(max_size=60) | st.text("price>()5 and\"'#\n", max_size=40))
def test_any_text_is_a_condition_or_invalid(text: str) -> None:
    check_condition(text)
    check_fire(text)


@fuzzing
@given(
    st.lists(token_soup | mutations().map("rule a when {}".format), max_size=3).map("\n".join)
    | st.lists(st.sampled_from(["rule a", "rule b", "when halted", "when price > 3", "gate halted", "fire level",
                                "rearm when halted", "watchlist x = A", "disabled", "tags a, b", "cooldown 5m",
                                'description "x"', "severity info", "# when", "(", "and halted"]), max_size=8)
    .map("\n".join)
)  # fmt: skip
def test_any_text_is_a_file_or_invalid(text: str) -> None:
    check_file(text)


@fuzzing
@given(
    st.binary(max_size=60) | (token_soup | st.text(max_size=40)).map(lambda text: text.encode(errors="surrogatepass"))
)
def test_any_bytes_are_a_rule_file_or_invalid(data: bytes) -> None:
    for where in ("mine.rules", "mine.json", "mine"):
        try:
            load_rule_file(data, where=where)
        except Invalid as error:
            assert error.where.startswith(where)  # noqa: PT017  nothing and comments are files


HOSTILE = [
    "__import__('os')",
    "price.__class__ > 1",
    "price > 1 if halted else 2",
    "lambda: price > 1",
    "[price for price in price]",
    "{price} > 1",
    'f"{price}" > 1',
    "exec(price) > 1",
    "price > 0x10",
    "price > 1j",
    "price > nan",
    "price > inf",
    "price > -inf",
    "price > 1e400",
    "price > 0/0",
    "price ** 2 > 1",
    "price > price[1000000000]",
    "close_day[1000000000] > 1",
    "price > 1 for 1000000000s",
    "price > 1 within 99999999999999999999999999999999999999999999999h",
    "\u0441lose_5m > 1",  # a Cyrillic letter
    "price > \uff11\uff10",  # full-width digits
    "price > \u0661",  # an Arabic digit
    "price > 1\u00a0",  # a space that is none
    "pri\u200bce > 1",
    "price > 1 \u202e",
    "price > 1\x00",
    "price > 1\x1b[2J",
    "price > 1\r",
    "price\u2028> 1",
    'sector is "a\u202eb"',
    "price > 1 # \u2066",
    "symbol in (A*)",
    'symbol is "(a+)+$"',
    'symbol is "../../x"',
    'symbol is "A\nB"',
    "symbol is <img>",
    "price > 1; drop table rules",
    "price > 1 -- comment",
    "x" * MAX_TEXT,
    "prise" * 12 + " > 1",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:30]))
def test_hostile_text_is_refused(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_condition(text)
    assert len(str(caught.value)) < 400
    assert caught.value.where.startswith("line ")


def cpu_s(work: Callable[[], Any]) -> float:
    """The least processor time of several runs."""
    times = []
    for _ in range(4):
        start = time.process_time()
        with suppress(Invalid):
            work()
        times.append(time.process_time() - start)
    return min(times)


GROWING: dict[str, tuple[Callable[[str], Any], Callable[[int], str]]] = {
    "values in a list": (parse_condition, lambda n: f"symbol in ({', '.join(['A'] * n)}"),
    "opened": (parse_condition, lambda n: "(" * n),
    "opened and closed": (parse_condition, lambda n: "(" * n + "halted" + ")" * n),
    "not": (parse_condition, lambda n: "not " * n),
    "signs": (parse_condition, lambda n: "price > " + "-" * n),
    "and": (parse_condition, lambda n: "halted and " * n),
    "sums": (parse_condition, lambda n: "price + " * n),
    "for": (parse_condition, lambda n: "halted" + " for 1s" * n),
    "functions": (parse_condition, lambda n: "abs(" * n),
    "digits": (parse_condition, lambda n: "price > " + "1_" * n),
    "a name": (parse_condition, lambda n: "p" * n),
    "quotes": (parse_condition, lambda n: 'sector is "' + '\\"' * n),
    "blanks": (parse_condition, lambda n: "5" + " " * n),
    "rules": (parse_rules, lambda n: "\n".join(f"rule r{i} when price > {i} and halted" for i in range(n // 8))),
    "clauses": (parse_rules, lambda n: "rule a " + "tags a " * n),
    "symbols": (parse_rules, lambda n: "watchlist a = " + ", ".join(f"A{i}" for i in range(n))),
    "quoted": (parse_rules, lambda n: 'rule a "' + "x" * n),
    "comments": (parse_rules, lambda n: "# x\n" * n),
}


@pytest.mark.parametrize("shape", GROWING)
def test_time_grows_with_the_length(shape: str) -> None:
    parse, text_of = GROWING[shape]
    room = (MAX_TEXT if parse is parse_condition else 16_000) // len(text_of(100)) * 100
    parse_condition("halted")
    short, long = text_of(room // 8), text_of(room)
    # Eight times the text may take three times eight as long: far from the 64 times of a square.
    assert cpu_s(lambda: parse(long)) < 24 * cpu_s(lambda: parse(short)) + 0.005


def test_longest_hostile_text_is_refused_at_once() -> None:
    for shape, (parse, text_of) in GROWING.items():
        if parse is parse_condition:
            text = text_of(MAX_TEXT // len(text_of(100)) * 100)
            assert cpu_s(lambda text=text: parse_condition(text)) < 0.2, shape  # type: ignore[misc]  # bound at once
