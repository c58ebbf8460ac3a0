"""What a rule costs: counted from its tree, each node once, and never less for asking more."""

import pytest

from tapewatch.contracts.samples import make_rule_of_every_node
from tapewatch.engine.rules.cost import MAX_COST_US, Cost, cost
from tapewatch.engine.rules.text import parse_condition
from tapewatch.engine.rules.tree import watchlists


def cost_of(when: str, gate: str = "", rearm: str = "") -> Cost:
    return cost(*(parse_condition(text) if text else None for text in (when, gate, rearm)))  # type: ignore[arg-type]  # the first is given


def test_plain_rule_costs_little_for_each_comparison() -> None:
    one, three = cost_of("price > 1"), cost_of("price > 1 and volume_day > 2 and price > 1 and price < 3")
    assert (one.comparisons, one.remembering, one.metrics) == (1, 0, ("price",))
    assert three.comparisons == 3
    assert three.metrics == ("price", "volume_day")
    assert three.scan_us == pytest.approx(3 * one.scan_us)
    assert three.memory_bytes == one.memory_bytes


@pytest.mark.parametrize(
    ("more", "less"),
    [
        ("not price > 1", "price > 1"),
        ("price > 1 or volume_day > 2", "price > 1 and volume_day > 2"),
        ("price crosses_above 5", "price > 5"),
        ("price > 1 for 30s", "price > 1"),
        ("price > 1 within 30s", "price > 1"),
        ("price > 1 3 times in a row", "price > 1"),
        ("(price > 1 then volume_day > 2 within 5m)", "not (price > 1 and volume_day > 2)"),
        ("price / volume_day > 1", "price - volume_day > 1"),
        ("max(price, open_day, close_day) > 1", "max(price, open_day) > 1"),
        ("price > 1 and symbol in watchlist mine", "price > 1"),
    ],
)
def test_richer_question_costs_more(more: str, less: str) -> None:
    assert cost_of(more).scan_us > cost_of(less).scan_us


def test_memory_is_that_of_nodes_that_remember() -> None:
    plain = cost_of("price > 1").memory_bytes
    for text in ("price > 1 for 30s", "price > 1 within 30s", "price crosses_above 5"):
        assert cost_of(text).memory_bytes > plain
        assert cost_of(text).remembering == 1
    assert cost_of("not price > 1").memory_bytes == plain


def test_equal_parts_are_counted_once_and_gate_and_rearm_too() -> None:
    when = "price > 1 for 30s"
    assert cost_of(when, gate=when) == cost_of(when)
    gated = cost_of("price > 1", gate="volume_day > 2 for 30s", rearm="open_day > 3")
    assert gated.metrics == ("price", "volume_day", "open_day")
    assert (gated.comparisons, gated.remembering) == (3, 1)
    assert gated.scan_us > cost_of("price > 1", gate="volume_day > 2").scan_us > cost_of("price > 1").scan_us


def test_largest_rules_are_beyond_the_budget_and_rich_ones_are_not() -> None:
    crossings = " or ".join(f"price crosses_above {n}" for n in range(66))
    assert cost_of(crossings).scan_us > MAX_COST_US
    spec = make_rule_of_every_node("a").spec()
    assert cost(spec.when, spec.gate, spec.rearm).scan_us < MAX_COST_US / 4


def test_watchlists_are_named_once_each_in_order() -> None:
    spec = make_rule_of_every_node("a").spec()
    assert watchlists(spec.when, spec.gate, spec.rearm) == ("mine", "gate")
    assert watchlists(parse_condition("price > 1"), None) == ()
