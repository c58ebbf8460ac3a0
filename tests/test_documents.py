"""Documents: how JSON becomes one, and what an alert looks like outside."""

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapewatch.documents import (
    Alert,
    Condition,
    Rule,
    RuleDraft,
    Watchlist,
    known,
    load_json,
    load_rule_file,
    load_rules,
    parse_document,
    rfc3339,
    rules_of,
    ruleset,
)
from tapewatch.engine.metrics import CATALOGUE
from tapewatch.engine.rules import Match, RuleSpec
from tapewatch.engine.rules.text import parse_condition
from tapewatch.engine.rules.tree import Fire
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
        when=parse_condition("price > 10 and vwap_1h <= -0.5"),
        cooldown_ns=1_500_000_000,
    )


def test_rule_with_every_field_becomes_what_the_engine_takes() -> None:
    fields = {
        "gate": "volume_day>=100k",
        "rearm": "(price < 9)",
        "severity": "critical",
        "tags": ["gap", "open", "gap"],
    }
    rule = parsed(**fields)
    assert rule.spec() == RuleSpec(
        id="a",
        version=1,
        name="A",
        when=parse_condition("price > 10"),
        gate=parse_condition("volume_day >= 100000"),
        rearm=parse_condition("price < 9"),
        severity="critical",
        tags=("gap", "open"),
    )
    assert (rule.gate, rule.rearm, rule.fire) == ("volume_day >= 100000", "price < 9", "edge")
    assert parsed(fire="once per bar 60m").spec().fire == Fire("bar", 60)


def test_text_and_conditions_fill_each_other() -> None:
    text, form = "price>$10 and not (halted)", {"not": {"metric": "halted", "operator": "==", "value": 1.0}}
    from_text = parse_document(Rule, {"id": "a", "name": "A", "when": text})
    from_json = parsed(conditions=[{"all": [PRICE, form]}])
    for rule in (from_text, from_json):
        assert rule.when == "price > 10 and not halted"
        assert rule.model_dump()["conditions"] == [PRICE, form]
    assert from_text == from_json


def test_stored_rule_of_plain_conditions_is_still_read() -> None:
    stored = {
        "name": "A", "description": "", "conditions": [PRICE], "cooldown": 0.0, "enabled": True, "id": "a",
        "version": 3, "created_at": "2025-03-03T14:30:00.000000000Z", "updated_at": "2025-03-03T14:30:00.000000000Z",
    }  # fmt: skip
    rule = parse_document(Rule, stored)
    assert stored.items() <= rule.model_dump().items()
    assert rule.when == "price > 10"


@pytest.mark.parametrize("text", ["price > 10", "close_day[1] < price for 5m then halted within 1h", "symbol is AAPL"])
def test_rule_is_read_back_from_its_own_json(text: str) -> None:
    rule = parse_document(Rule, {"id": "a", "name": "A", "when": text, "gate": text, "fire": "once per day"})
    assert parse_document(Rule, json.loads(rule.model_dump_json())) == rule
    assert Rule(**{name: getattr(rule, name) for name in Rule.model_fields}) == rule
    assert rule.model_copy(update={"version": 2}).spec().when == rule.spec().when


def test_rule_says_what_it_asks_once() -> None:
    assert parsed(when="(price > $10)").when == "price > 10"
    with pytest.raises(Invalid) as caught:
        parse_document(Rule, {"id": "a", "name": "A", "conditions": [PRICE], "when": "price > 11"}, where="body")
    assert caught.value.where == "body.when"
    assert caught.value.why == "says something else than conditions; to change one of the two, leave the other out"


MISTAKES: dict[str, tuple[dict[str, Any], str, str]] = {
    "neither": ({"conditions": None}, "conditions", "input should be a valid list"),
    "no conditions": ({"conditions": []}, "conditions", "at least 1 item"),
    "too many conditions": ({"conditions": [PRICE] * 65}, "conditions", "at most 64 items"),
    "deep conditions": ({"conditions": [{"all": [[[[]]] * 3]}]}, "conditions[0].all[0]", "is not a condition"),
    "wrong condition": ({"conditions": [PRICE, {"all": [{"metric": "prise"}]}]}, "conditions[1].all[0].metric",
                        "unknown metric 'prise'; did you mean price?"),
    "large conditions": ({"conditions": [{"any": [PRICE] * 33}] * 3}, "conditions", "more than 200 parts"),
    "long conditions": ({"conditions": [{"symbol": [f"{n:024}" for n in range(400)]}]}, "conditions",
                        "are longer than 8,000 characters as text"),
    "empty text": ({"when": ""}, "when", "at least 1 character"),
    "wrong text": ({"when": "price => 3"}, "when", "line 1, column 7: found '=>'"),
    "long text": ({"when": "halted" + " " * 8_000}, "when", "at most 8000 characters"),
    "wrong gate": ({"gate": "price"}, "gate", "line 1, column 1: price is not a condition by itself"),
    "wrong rearm": ({"rearm": "5 > 3"}, "rearm", "line 1, column 1: compares two numbers"),
    "rearm without an edge": ({"rearm": "halted", "fire": "level"}, "rearm", "only with fire edge"),
    "wrong fire": ({"fire": "twice"}, "fire", "line 1, column 1: found 'twice'; expected edge, level or once"),
    "wrong severity": ({"severity": "loud"}, "severity", "'info', 'notice', 'warning' or 'critical'"),
    "wrong tag": ({"tags": ["a b"]}, "tags[0]", "should match pattern"),
    "too many tags": ({"tags": [f"t{n}" for n in range(17)]}, "tags", "at most 16 items"),
    "control characters": ({"when": "price > 3\x00"}, "when", "cannot be shown (U+0000)"),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "field", "why"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_in_a_rule_names_its_field(fields: dict[str, Any], field: str, why: str) -> None:
    base = {} if "when" in fields else {"conditions": [PRICE]}
    with pytest.raises(Invalid) as caught:
        parse_document(Rule, {"id": "a", "name": "A", **base, **fields}, where="body")
    assert caught.value.where == f"body.{field}"
    assert why in caught.value.why


def test_rule_must_ask_something() -> None:
    with pytest.raises(Invalid, match=r"^conditions: is missing; give conditions, or when as text$"):
        parse_document(RuleDraft, {"name": "A"})


def test_many_conditions_of_a_text_are_one_in_json() -> None:
    text = " and ".join(f"symbol is not A{n}" for n in range(65))
    rule = parse_document(Rule, {"id": "a", "name": "A", "when": text})
    assert len(rule.conditions) == 1
    assert parsed(conditions=rule.model_dump()["conditions"]).when == text


def test_ruleset_holds_the_enabled_rules_in_their_order() -> None:
    rules = [parsed(id="b"), parsed(id="a", enabled=False), parsed(id="c")]
    assert [spec.id for spec in ruleset(7, rules).rules] == ["b", "c"]
    assert ruleset(7, rules).number == 7


def watchlist(**fields: Any) -> Watchlist:
    return parse_document(Watchlist, {"id": "tech", "name": "Tech", "symbols": ["MSFT", "AAPL"], **fields})


def test_ruleset_brings_the_lists_that_its_rules_name() -> None:
    asked: dict[str, dict[str, Any]] = {
        "a": {"when": "symbol in watchlist tech"},
        "b": {"gate": "symbol not in watchlist penny and price > 3"},
        "c": {"rearm": "symbol in watchlist missing"},
        "d": {"when": "symbol in watchlist off", "enabled": False},
    }
    rules = [
        parse_document(Rule, {"id": name, "name": name, "when": "halted", **fields}) for name, fields in asked.items()
    ]
    lists = [watchlist(), watchlist(id="penny", symbols=[]), watchlist(id="off"), watchlist(id="unasked")]
    assert ruleset(1, rules, lists).watchlists == {"tech": frozenset({"AAPL", "MSFT"}), "penny": frozenset()}
    assert ruleset(1, rules).watchlists == {}


def test_rule_that_names_a_list_which_its_owner_does_not_see_is_not_asked() -> None:
    owners = {"own": "ann", "shared-with": "bob", "hidden-from": "bob"}
    named = {"own": "tech", "shared-with": "shared", "hidden-from": "tech"}
    rules = [
        parse_document(Rule, {"id": name, "name": name, "when": f"symbol in watchlist {named[name]}", "owner": owner})
        for name, owner in owners.items()
    ]
    lists = [watchlist(owner="ann"), watchlist(id="shared", owner="ann", shared=True)]
    asked = ruleset(1, rules, lists)
    assert [spec.id for spec in asked.rules] == ["own", "shared-with"]
    assert set(asked.watchlists) == {"tech", "shared"}
    assert set(ruleset(1, rules[2:], lists).watchlists) == set()


def test_watchlist_holds_each_symbol_once() -> None:
    assert watchlist(symbols=["B", "A", "B"]).symbols == ["B", "A"]
    assert len(watchlist(symbols=[f"A{n}" for n in range(5_000)]).symbols) == 5_000


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"symbols": [f"A{n}" for n in range(5_001)]}, "symbols"),
        ({"symbols": ["A", "a b"]}, "symbols[1]"),
        ({"symbols": "AAPL"}, "symbols"),
        ({"id": "my list"}, "id"),
        ({"name": ""}, "name"),
        ({"name": "a\u202eb"}, "name"),
        ({"more": 1}, "more"),
    ],
)
def test_mistake_in_a_watchlist_names_its_field(fields: dict[str, Any], where: str) -> None:
    with pytest.raises(Invalid) as caught:
        watchlist(**fields)
    assert caught.value.where == where


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


RULE_FILE = """\
watchlist tech "Technology" shared = AAPL, MSFT
rule mine "My rule"
  description "why"
  when price > 10
   and symbol in watchlist tech
  gate volume_day > 1M
  fire once per bar 5m
  cooldown 90s
  severity notice
  tags a, b
  disabled
rule other
  when halted
  rearm when price > 5
  shared
"""


@pytest.mark.parametrize("where", ["mine.rules", "mine.txt"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b"\r\n"])
def test_file_of_rule_text_is_read(where: str, start: bytes) -> None:
    rules, watchlists = load_rule_file(start + RULE_FILE.encode(), where=where)
    assert [rule.model_dump(exclude={"conditions", "created_at", "updated_at"}) for rule in rules] == [
        {
            "id": "mine", "name": "My rule", "description": "why", "when": "price > 10 and symbol in watchlist tech",
            "gate": "volume_day > 1000000", "rearm": "", "fire": "once per bar 5m", "cooldown": 90.0,
            "severity": "notice", "tags": ["a", "b"], "enabled": False, "shared": False, "owner": "local", "version": 1,
        },
        {
            "id": "other", "name": "other", "description": "", "when": "halted", "gate": "", "rearm": "price > 5",
            "fire": "edge", "cooldown": 0.0, "severity": "info", "tags": [], "enabled": True, "shared": True,
            "owner": "local", "version": 1,
        },
    ]  # fmt: skip
    assert watchlists == [watchlist(name="Technology", symbols=["AAPL", "MSFT"], shared=True)]
    written = "".join([*(watchlist.written() for watchlist in watchlists), *(rule.written() for rule in rules)])
    assert load_rule_file(written, where=where) == (rules, watchlists)


@pytest.mark.parametrize("where", ["mine.json", "mine"])
def test_file_of_json_is_read(where: str) -> None:
    rules = [{"conditions": [PRICE]}]
    expected = load_rules(json.dumps(rules), where=where)
    assert load_rule_file(json.dumps(rules), where=where) == (expected, [])
    assert load_rule_file(json.dumps({"rules": rules}).encode(), where=where) == (expected, [])
    lists = [{"id": "tech", "name": "Tech", "symbols": ["AAPL"]}]
    assert load_rule_file(json.dumps({"rules": rules, "watchlists": lists}), where=where) == (
        expected,
        [watchlist(symbols=["AAPL"])],
    )
    assert load_rule_file(json.dumps({"watchlists": lists}), where=where)[0] == []


FILES = {
    "text": ("x.rules", "rule a when price => 3", "x.rules: line 1, column 19", "found '=>'"),
    "text that looks like JSON": ("x.rules", "[]", "x.rules: line 1, column 1", "expected a rule or a watchlist"),
    "text under the name of JSON": ("x.json", "rule a when halted", "x.json", "not valid JSON at line 1, column 1"),
    "long name": ("x.rules", f'\nrule a "{"x" * 121}" when halted', "x.rules: line 2: rule a.name", "at most 120"),
    "no name": ("x", 'rule a "" when halted', "x: line 1: rule a.name", "at least 1 item"),
    "no name of a list": ("x", 'watchlist a "" = A', "x: line 1: watchlist a.name", "at least 1 item"),
    "rule in JSON": ("x", '{"rules": [{"when": "prise > 3"}]}', "x: rules[0].when", "line 1, column 1: unknown metric"),
    "list in JSON": ("x", '{"watchlists": [{"id": "a"}]}', "x: watchlists[0].name", "is missing"),
    "list twice": ("x", json.dumps({"watchlists": [{"id": "a", "name": "a", "symbols": []}] * 2}), "x: watchlists",
                   "two watchlists have the same id"),
    "other JSON": ("x", '{"rules": [], "lists": []}', "x", "must be a list of rules"),
    "not UTF-8": ("x", b"rule a \xff", "x", "not UTF-8 at byte 7"),
    "NaN": ("x", '[{"conditions": [{"metric": "price", "operator": ">", "value": NaN}]}]', "x", "NaN is not a number"),
}  # fmt: skip


@pytest.mark.parametrize(("where", "text", "place", "why"), FILES.values(), ids=FILES)
def test_mistake_in_a_file_names_its_place(where: str, text: str | bytes, place: str, why: str) -> None:
    with pytest.raises(Invalid) as caught:
        load_rule_file(text, where=where)
    assert caught.value.where == place
    assert why in caught.value.why


# -- alerts -----------------------------------------------------------------------------------------------------------


def test_alert_is_json_also_where_a_number_is_unknown() -> None:
    rule = parsed(severity="warning", tags=["gap"]).spec()
    match = Match(
        alert_id="id",
        rule=rule,
        symbol="AAA",
        fired_at_ns=1_381_152_601_000_000_001,
        price=math.nan,
        values={"price": math.nan, "volume_day": 5.0},
        session="regular",
        ages_s={"price": math.nan, "volume_day": 0.5},
    )
    public = Alert.of(match, received_ns=5, scanned_ns=1_000_000_007).as_json()
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
        "ages": {"price": None, "volume_day": 0.5},
        "severity": "warning",
        "tags": ["gap"],
        "owner": "local",
        "shared": False,
        "latency": {
            "received": "1970-01-01T00:00:00.000000005Z",
            "scanned": "1970-01-01T00:00:01.000000007Z",
            "filtered": None,
        },
    }


def test_alert_that_was_saved_without_the_newer_fields_is_read() -> None:
    old = {"alert_id": "id", "rule_id": "a", "rule_version": 1, "rule_name": "A", "symbol": "AAA", "fired_at_ns": 1,
           "price": 1.0, "values": {}, "session": "regular"}  # fmt: skip
    alert = msgspec.convert(old, Alert)
    assert (alert.ages_s, alert.severity, alert.tags) == ({}, "info", ())
    assert (alert.owner, alert.shared, alert.scanned_ns, alert.filtered_ns) == ("local", False, 0, 0)


def test_alert_carries_whose_rule_fired() -> None:
    rule = parsed(owner="ann", shared=True).spec()
    fired = Match(alert_id="id", rule=rule, symbol="A", fired_at_ns=1, price=1.0, values={}, session="regular")
    alert = Alert.of(fired)
    assert (alert.owner, alert.shared) == ("ann", True)


@pytest.mark.parametrize(
    ("ts_ns", "text"), [(0, "1970-01-01T00:00:00.000000000Z"), (-1, "1969-12-31T23:59:59.999999999Z")]
)
def test_instant_is_written_with_nanoseconds(ts_ns: int, text: str) -> None:
    assert rfc3339(ts_ns) == text


def test_known_number_is_itself() -> None:
    assert known(0.0) == 0.0
    assert known(math.nan) is None
