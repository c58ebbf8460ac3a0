"""The ready-made rules are sound, cheap, described, and each is shown to fire and to stay silent."""

from importlib.resources import files
from pathlib import Path

import pytest

from tapewatch.documents import load_rule_file
from tapewatch.engine.rules.cost import cost
from tapewatch.engine.rules.text import parse_rules
from tapewatch.scenarios import Scenario, find_scenarios
from tapewatch.templates import templates

IDS = list(templates())
SCENARIOS = Path(__file__).parent / "scenarios" / "templates"
MOST_US = 500.0
"""A scan of ten thousand symbols; a tenth of what any rule may take."""


@pytest.fixture(scope="module")
def scenarios() -> list[Scenario]:
    return find_scenarios([SCENARIOS])


def test_there_are_templates_for_the_field() -> None:
    assert len(IDS) >= 24
    tags = {tag for rule in templates().values() for tag in rule.tags}
    assert {"gap", "breakout", "opening-range", "vwap", "volume", "candle", "reversal", "halt", "quotes"} <= tags


def test_no_two_templates_share_an_id_or_a_name() -> None:
    themes = [file for file in files("tapewatch.templates").iterdir() if file.name.endswith(".rules")]
    written = [rule.spec for theme in themes for rule in parse_rules(theme.read_text(encoding="utf-8")).rules]
    assert sorted(spec.id for spec in written) == sorted(IDS)
    assert len({spec.name for spec in written}) == len(IDS)


@pytest.mark.parametrize("name", IDS)
def test_template_says_what_it_is_for(name: str) -> None:
    rule = templates()[name]
    assert rule.name != rule.id
    assert rule.description.count(". ") == 1, "two sentences: what it is for, and its limits"
    assert rule.description.endswith(".")
    assert rule.tags
    assert rule.enabled


@pytest.mark.parametrize("name", IDS)
def test_canonical_text_of_a_template_is_stable(name: str) -> None:
    rule = templates()[name]
    again, watchlists = load_rule_file(rule.written(), where="again.rules")
    assert again == [rule]
    assert watchlists == []
    assert again[0].written() == rule.written()


@pytest.mark.parametrize("name", IDS)
def test_template_costs_little(name: str) -> None:
    spec = templates()[name].spec()
    assert cost(spec.when, spec.gate, spec.rearm).scan_us <= MOST_US


@pytest.mark.parametrize("name", IDS)
def test_template_cannot_flood(name: str) -> None:
    rule = templates()[name]
    assert rule.fire != "level" or rule.cooldown > 0


@pytest.mark.parametrize("name", IDS)
def test_template_is_shown_to_fire_with_values_and_to_stay_silent(name: str, scenarios: list[Scenario]) -> None:
    (scenario,) = [scenario for scenario in scenarios if name in {rule.id for rule in scenario.rules}]
    expected = [alert for at in scenario.expect for alert in at.alerts or () if alert.rule_id == name]
    assert expected
    assert all(alert.values for alert in expected)
    assert scenario.no_other_alerts
    fired = {alert.symbol for alert in expected}
    assert {row.symbol for row in scenario.tape} - fired or any(at.alerts == () for at in scenario.expect)
