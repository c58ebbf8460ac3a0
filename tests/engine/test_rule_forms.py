"""Conditions as JSON: what each form means, how it is written back, and which field an error names."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from rule_trees import conditions

from tapewatch.engine.columns import SECOND_NS
from tapewatch.engine.metrics import CATALOGUE
from tapewatch.engine.rules import checked
from tapewatch.engine.rules.text import parse_condition
from tapewatch.engine.rules.tree import All, Condition
from tapewatch.errors import Invalid
from tapewatch.rule_forms import ConditionForm, condition_json, condition_of, forms_of

METRICS = ("price", "halted", "gap_pct", "volume_day", "close_day", "time_of_day")
HIGH = {"metric": "price", "operator": ">", "value": 10}
GAPS = {"metric": "gap_pct", "operator": ">=", "value": 4}
of_trees = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def calculated(value: Any) -> dict[str, Any]:
    return {"metric": "price", "operator": ">", "value": value}


FORMS: list[tuple[Any, str]] = [
    (HIGH, "price > 10"),
    *(({**HIGH, "operator": operator}, f"price {operator} 10") for operator in ("<", ">=", "<=", "==", "!=")),
    ({**HIGH, "operator": "crosses_above"}, "price crosses_above 10"),
    ({**HIGH, "operator": "crosses_below"}, "price crosses_below 10"),
    ({**HIGH, "operator": "between", "value": [5, 10]}, "price between 5 and 10"),
    ({"metric": "volume_60m", "operator": ">", "value": 0}, "volume_1h > 0"),
    ({"metric": "time", "operator": ">", "value": 570}, "time > 09:30"),
    ({"metric": "close_day", "back": 1, "operator": ">", "value": 1}, "close_day[1] > 1"),
    ({"metric": "close_day", "back": 0, "operator": ">", "value": 1}, "close_day > 1"),
    ({"metric": "close_day", "back": 1, "operator": "between", "value": [1, 2]}, "close_day[1] between 1 and 2"),
    ({"left": {"abs": {"metric": "gap_pct"}}, "operator": "<", "value": 2}, "abs(gap_pct) < 2"),
    ({"left": 5, "operator": "<", "value": {"metric": "price"}}, "5 < price"),
    ({"left": {"negate": {"metric": "price"}}, "operator": "between", "value": [-2, {"metric": "gap_pct"}]},
     "-price between -2 and gap_pct"),
    (calculated({"metric": "close_day", "back": 1}), "price > close_day[1]"),
    (calculated({"add": [{"metric": "gap_pct"}, 1]}), "price > gap_pct + 1"),
    (calculated({"subtract": [{"metric": "gap_pct"}, 1]}), "price > gap_pct - 1"),
    (calculated({"multiply": [{"metric": "gap_pct"}, {"add": [1, 2]}]}), "price > gap_pct * (1 + 2)"),
    (calculated({"divide": [1, {"metric": "gap_pct"}]}), "price > 1 / gap_pct"),
    (calculated({"negate": 5}), "price > -5"),
    (calculated({"min": [1, {"metric": "gap_pct"}, 3]}), "price > min(1, gap_pct, 3)"),
    (calculated({"max": [1, {"metric": "gap_pct"}]}), "price > max(1, gap_pct)"),
    ({"all": [HIGH, GAPS]}, "price > 10 and gap_pct >= 4"),
    ({"all": [HIGH]}, "price > 10"),
    ({"all": [{"all": [HIGH, GAPS]}, {"metric": "halted", "operator": "==", "value": 1}]},
     "price > 10 and gap_pct >= 4 and halted"),
    ({"any": [HIGH, {"not": GAPS}]}, "price > 10 or not gap_pct >= 4"),
    ({"held": HIGH, "seconds": 30}, "price > 10 for 30s"),
    ({"within": HIGH, "seconds": 0.5}, "price > 10 within 500ms"),
    ({"in_a_row": HIGH, "times": 3}, "price > 10 3 times in a row"),
    ({"then": [HIGH, GAPS], "seconds": 600}, "price > 10 then gap_pct >= 4 within 10m"),
    ({"session": ["regular", "pre", "pre"]}, "session in (pre, regular)"),
    ({"symbol": ["MSFT", "AAPL"]}, "symbol in (AAPL, MSFT)"),
    ({"exchange": ["XNAS"]}, "exchange is XNAS"),
    ({"type": ["ETF", "CS"]}, "type in (CS, ETF)"),
    ({"sector": ["Health Care"]}, 'sector is "Health Care"'),
    ({"watchlist": "tech"}, "symbol in watchlist tech"),
]  # fmt: skip


@pytest.mark.parametrize(("form", "text"), FORMS, ids=[text for _, text in FORMS])
def test_form_says_the_same_as_text(form: Any, text: str) -> None:
    condition = condition_of(form)
    assert condition == parse_condition(text)
    assert condition_of(condition_json(condition)) == condition


@of_trees
@given(conditions(METRICS))
def test_every_tree_is_read_back_from_its_json(condition: Condition) -> None:
    raw = json.loads(json.dumps(condition_json(condition), allow_nan=False))
    assert condition_of(raw) == condition
    assert condition_json(condition_of(raw)) == raw


@of_trees
@given(conditions(METRICS))
def test_models_are_written_as_they_were_read(condition: Condition) -> None:
    raw = json.loads(json.dumps(condition_json(condition)))
    forms = forms_of(condition, most=64)
    parts = raw["all"] if isinstance(condition, All) else [raw]
    assert [form.model_dump() for form in forms] == parts
    assert [json.loads(form.model_dump_json()) for form in forms] == parts


def test_more_conditions_than_a_rule_lists_are_one_of_them() -> None:
    many = parse_condition(" and ".join(f"symbol is A{n}" for n in range(65)))
    (form,) = forms_of(many, most=64)
    assert form.tree() == many


MISTAKES: list[tuple[Any, str, str]] = [
    (None, "", "is not a condition: an object with one of metric, left, all, any, not, held"),
    ([HIGH], "", "is not a condition"),
    ({}, "", "is not a condition"),
    ({"what": 1}, "", "is not a condition"),
    ({"operator": ">", "value": 1}, ".metric", "is missing"),
    ({"metric": "price", "operator": ">"}, ".value", "is missing"),
    ({"metric": "price", "value": 1}, ".operator", "is missing"),
    ({**HIGH, "more": 1}, ".more", "is not a field of this document"),
    ({**HIGH, "all": [HIGH]}, ".all", "is not a field of this document"),
    ({**HIGH, "metric": "prise"}, ".metric", "unknown metric 'prise'; did you mean price?"),
    ({**HIGH, "metric": 5}, ".metric", "input should be a valid string"),
    ({**HIGH, "metric": "a" * 65}, ".metric", "at most 64 characters"),
    ({**HIGH, "operator": "=>"}, ".operator", "input should be '>'"),
    ({**HIGH, "operator": ["between"]}, ".operator", "input should be '>'"),
    ({**HIGH, "value": None}, ".value", "input should be a valid number"),
    ({**HIGH, "value": "10"}, ".value", "input should be a valid number"),
    ({**HIGH, "value": True}, ".value", "input should be a valid number"),
    ({**HIGH, "value": 1e16}, ".value", "less than or equal to 1000000000000000"),
    ({**HIGH, "value": float("nan")}, ".value", "finite number"),
    ({**HIGH, "value": {"sqrt": 2}}, ".value", "is not a value: a number, or an object with one of metric, add"),
    ({**HIGH, "value": {"divide": [{"metric": "price"}, 0]}}, ".value", "divides by zero"),
    ({**HIGH, "value": {"add": [1]}}, ".value.add", "at least 2 items"),
    ({**HIGH, "value": {"add": [1, 2, 3]}}, ".value.add", "at most 2 items"),
    ({**HIGH, "value": {"add": [1, {"metric": "prise"}]}}, ".value.add[1].metric", "did you mean price?"),
    ({**HIGH, "value": [1, 2]}, ".value", "input should be a valid number"),
    ({**HIGH, "operator": "between"}, ".value", "input should be a valid list"),
    ({**HIGH, "operator": "between", "value": [1, 2, 3]}, ".value", "at most 2 items"),
    ({**HIGH, "operator": "between", "value": [2, 1]}, "", "the lower number comes first"),
    ({**HIGH, "back": 1}, ".back", "price has no closed candles to look back at"),
    ({"metric": "close_day", "back": -1, "operator": ">", "value": 1}, ".back", "greater than or equal to 0"),
    ({"metric": "close_day", "back": 999, "operator": ">", "value": 1}, ".back", "reaches back no further than [1]"),
    ({"left": 5, "operator": ">", "value": 3}, "", "compares two numbers"),
    ({"left": 5, "operator": "between", "value": [3, 4]}, "", "compares two numbers"),
    ({"left": 5, "operator": "crosses_above", "value": 3}, "", "compares two numbers"),
    ({"all": []}, ".all", "at least 1 item"),
    ({"all": [HIGH, {"any": [HIGH, {**GAPS, "metric": "x"}]}]}, ".all[1].any[1].metric", "unknown metric 'x'"),
    ({"not": {"not": {"held": HIGH, "seconds": 0}}}, ".not.not.seconds", "greater than or equal to 0.1"),
    ({"held": HIGH, "seconds": 86_401}, ".seconds", "less than or equal to 86400"),
    ({"held": HIGH, "seconds": 0.1005}, ".seconds", "is not a whole number of milliseconds"),
    ({"held": HIGH}, ".seconds", "is missing"),
    ({"in_a_row": HIGH, "times": 1}, ".times", "greater than or equal to 2"),
    ({"in_a_row": HIGH, "times": 2.0}, ".times", "input should be a valid integer"),
    ({"then": [HIGH], "seconds": 5}, ".then", "at least 2 items"),
    ({"session": "regular"}, ".session", "input should be a valid list"),
    ({"session": ["lunch"]}, ".session[0]", "input should be 'pre', 'regular', 'post' or 'closed'"),
    ({"symbol": ["AAPL", "A A"]}, ".symbol[1]", "string should match pattern"),
    ({"symbol": ["A"] * 501}, ".symbol", "at most 500 items"),
    ({"exchange": ["NASDAQ"]}, ".exchange[0]", "string should match pattern"),
    ({"type": ["etf"]}, ".type[0]", "string should match pattern"),
    ({"sector": [" "]}, ".sector[0]", "string should match pattern"),
    ({"sector": ["a\u200bb"]}, ".sector[0]", "has a character that cannot be shown (U+200B)"),
    ({"watchlist": "my list"}, ".watchlist", "string should match pattern"),
]


@pytest.mark.parametrize(("form", "field", "why"), MISTAKES, ids=[json.dumps(m[0])[:50] for m in MISTAKES])
def test_mistake_names_its_field(form: Any, field: str, why: str) -> None:
    with pytest.raises(Invalid) as caught:
        condition_of(form, where="conditions[2]")
    assert caught.value.where == f"conditions[2]{field}"
    assert why in caught.value.why


def test_condition_has_at_most_so_many_parts() -> None:
    assert isinstance(condition_of({"any": [{"all": [HIGH] * 33}, {"not": {"all": [HIGH] * 32}}]}), Condition)
    with pytest.raises(Invalid, match="more than 200 parts"):
        condition_of({"any": [{"all": [HIGH] * 33}, {"all": [HIGH] * 34}]})


def nested(depth: int) -> Any:
    form: Any = HIGH
    for _ in range(depth):
        form = {"not": form}
    return form


def test_condition_has_at_most_so_many_levels() -> None:
    condition_of(nested(checked.MAX_DEPTH - 2))
    for depth in (checked.MAX_DEPTH - 1, 200, 100_000):
        with pytest.raises(Invalid, match="nested deeper than 24 levels"):
            condition_of(nested(depth))


def test_condition_that_contains_itself_is_refused() -> None:
    form: dict[str, Any] = {}
    form["not"] = form
    with pytest.raises(Invalid, match="nested deeper"):
        condition_of(form)


KEYS = sorted({key for form, _ in FORMS for key in form} | {"add", "subtract", "divide", "min", "max", "x"})
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["price", ">", "between"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@of_trees
@given(ANYTHING)
def test_anything_is_a_condition_or_invalid(raw: Any) -> None:
    try:
        condition = condition_of(raw, where="here")
    except Invalid as error:
        assert error.where.startswith("here")  # noqa: PT017  some of these are conditions
    else:
        assert condition_of(condition_json(condition)) == condition


def test_schema_names_every_form_and_metric() -> None:
    schema = TypeAdapter(ConditionForm).json_schema()
    definitions = schema["$defs"]
    fields = {name for definition in definitions.values() for name in definition["properties"]}
    assert {key for form, _ in FORMS for key in form} <= fields
    assert definitions["Condition"]["properties"]["metric"]["enum"] == list(CATALOGUE)
    assert all(definition["additionalProperties"] is False for definition in definitions.values())


def test_seconds_are_nanoseconds_in_the_tree() -> None:
    held = condition_of({"held": HIGH, "seconds": 0.3})
    assert held == checked.held(condition_of(HIGH), 3 * SECOND_NS // 10)
