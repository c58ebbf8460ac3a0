"""Documents: how JSON becomes one, and what an alert looks like outside."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapewatch.documents import (
    Alert,
    Condition,
    Rule,
    RuleDraft,
    known,
    load_json,
    load_rules,
    parse_document,
    rfc3339,
    rules_of,
    ruleset,
)
from tapewatch.engine.metrics import CATALOGUE
from tapewatch.engine.rules import Comparison, Match, RuleSpec
from tapewatch.errors import Invalid

PRICE = {"metric": "price", "operator": ">", "value": 10}


def parsed(**fields: Any) -> Rule:
    return parse_document(Rule, {"id": "a", "name": "A", "conditions": [PRICE], **fields})


def test_rule_becomes_what_the_engine_takes() -> None:
    rule = parsed(conditions=[PRICE, {"metric": "vwap_60m", "operator": "<=", "value": -0.5}], cooldown=1.5, version=3)
    assert rule.spec() == RuleSpec(
        id="a",
        version=3,
        name="A",
        conditions=(Comparison("price", ">", 10.0), Comparison("vwap_1h", "<=", -0.5)),
        cooldown_ns=1_500_000_000,
    )


def test_ruleset_holds_the_enabled_rules_in_their_order() -> None:
    rules = [parsed(id="b"), parsed(id="a", enabled=False), parsed(id="c")]
    assert [spec.id for spec in ruleset(7, rules).rules] == ["b", "c"]
    assert ruleset(7, rules).number == 7


def test_text_is_kept_in_one_normal_form() -> None:
    assert parsed(name="Cafe\u0301").name == "Caf\u00e9"


def test_document_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parsed().name = "B"


@pytest.mark.parametrize(
    ("alias", "metric"), [("volume_60m", "volume_1h"), ("change_pct_1d", "change_pct_day"), ("volume_1d", "volume_day")]
)
def test_alias_of_a_metric_is_read_as_its_name(alias: str, metric: str) -> None:
    assert Condition(metric=alias, operator=">", value=1).metric == metric


@pytest.mark.parametrize("metric", CATALOGUE)
def test_every_metric_may_stand_in_a_condition(metric: str) -> None:
    assert Condition(metric=metric, operator="!=", value=0.0).metric == metric


def test_draft_has_no_id_of_its_own() -> None:
    with pytest.raises(Invalid, match=r"^id: is not a field of this document$"):
        parse_document(RuleDraft, {"id": "a", "name": "A", "conditions": [PRICE]})


def test_error_names_the_way_to_the_field() -> None:
    with pytest.raises(Invalid) as caught:
        parse_document(Rule, {"id": "a", "name": "A", "conditions": [PRICE, {**PRICE, "value": None}]}, where="body")
    assert caught.value.where == "body.conditions[1].value"
    assert caught.value.why == "input should be a valid number"


# -- JSON -------------------------------------------------------------------------------------------------------------


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_json_of_anything_is_read_back(value: Any) -> None:
    assert load_json(json.dumps(value)) == value


@given(st.binary(max_size=50))
def test_any_bytes_are_json_or_invalid(data: bytes) -> None:
    try:
        load_json(data, where="file")
    except Invalid as error:
        assert error.where == "file"  # noqa: PT017  bytes that are JSON raise nothing


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*Rule.model_fields, *PRICE, "x"]), inner),
        max_leaves=20,
    )
)
def test_any_tree_is_rules_or_invalid(tree: Any) -> None:
    try:
        rules_of(tree)
    except Invalid as error:
        assert error.why  # noqa: PT017  some trees are rules


def test_rules_without_ids_are_named_by_their_place() -> None:
    text = json.dumps({"rules": [{"conditions": [PRICE]}, {"id": "mine", "conditions": [PRICE]}]})
    assert [(rule.id, rule.name) for rule in load_rules(text, where="file")] == [
        ("rule-1", "rule 1"),
        ("mine", "mine"),
    ]


def test_no_rules_are_a_list_of_none() -> None:
    assert load_rules("[]", where="file") == []


def test_place_of_a_rule_is_after_the_file() -> None:
    with pytest.raises(Invalid) as caught:
        load_rules(json.dumps([{"conditions": [PRICE]}, {"conditions": 5}]), where="mine.json")
    assert caught.value.where == "mine.json: rules[1].conditions"


# -- alerts -----------------------------------------------------------------------------------------------------------


def test_alert_is_json_also_where_a_number_is_unknown() -> None:
    rule = parsed().spec()
    match = Match(
        alert_id="id",
        rule=rule,
        symbol="AAA",
        fired_at_ns=1_381_152_601_000_000_001,
        price=math.nan,
        values={"price": math.nan, "volume_day": 5.0},
        session="regular",
    )
    public = Alert.of(match, received_ns=5).as_json()
    assert json.loads(json.dumps(public, allow_nan=False)) == {
        "alert_id": "id",
        "rule_id": "a",
        "rule_version": 1,
        "rule_name": "A",
        "symbol": "AAA",
        "fired_at": "2013-10-07T13:30:01.000000001Z",
        "price": None,
        "values": {"price": None, "volume_day": 5.0},
        "session": "regular",
        "note": None,
    }


@pytest.mark.parametrize(
    ("ts_ns", "text"), [(0, "1970-01-01T00:00:00.000000000Z"), (-1, "1969-12-31T23:59:59.999999999Z")]
)
def test_instant_is_written_with_nanoseconds(ts_ns: int, text: str) -> None:
    assert rfc3339(ts_ns) == text


def test_known_number_is_itself() -> None:
    assert known(0.0) == 0.0
    assert known(math.nan) is None
