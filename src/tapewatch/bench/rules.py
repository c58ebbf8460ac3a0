"""Figures of the rule engine alone: many rules, many symbols, and what a rule costs to compile."""

import time
from collections.abc import Iterator

import numpy as np

from tapewatch.engine.columns import SECOND_NS
from tapewatch.engine.metrics import CATALOGUE
from tapewatch.engine.rules import All, Comparison, Plan, Ruleset, RuleSpec, compare
from tapewatch.engine.rules.text import parse_condition
from tapewatch.engine.rules.tree import ComparisonOperator

SIZES = (
    (1_000, 1_000, 0),
    (10_000, 100, 0),
    (10_000, 1_000, 0),
    (10_000, 10_000, 0),
    (10_000, 100_000, 500),
    (100_000, 1_000, 0),
)
"""Symbols, rules, and shapes that the rules are drawn from (0: each has its own)."""
COMPILE_WHAT = "one rule of seven conditions from its text to a plan that can be asked"
METRICS = 40
_OPERATORS: tuple[ComparisonOperator, ...] = (">", "<", ">=", "<=")
_TEXT = (
    "change_pct_5m > 2 and relative_volume_5m > 1.5 and not halted and price between 5 and 50 "
    "and (price crosses_above vwap_session or rsi_14_1m < 30 for 30s)"
)


def what(symbols: int, rules: int, templates: int) -> str:
    """In words."""
    kind = f"of {templates} shapes with thresholds of their own" if templates else "each of its own shape"
    return (
        f"asking {rules:,} rules, {kind}, of {symbols:,} symbols: three comparisons each, true of one symbol in 3,000, "
        f"about; every value of {METRICS} metrics has changed since the last scan, 2 % are unknown"
    )


def full_scans(symbols: int, rules: int, templates: int = 0) -> Iterator[float]:
    """Milliseconds each. `templates`: so many shapes with thresholds of their own; 0: each rule has its own shape."""
    draw = np.random.default_rng(3)
    names = tuple(CATALOGUE)[:METRICS]
    values = draw.normal(size=(METRICS, symbols))
    values[:, draw.random(symbols) < 0.02] = np.nan

    def shape() -> list[tuple[str, ComparisonOperator]]:
        return [(names[draw.integers(METRICS)], _OPERATORS[draw.integers(4)]) for _ in range(3)]

    def threshold(operator: ComparisonOperator) -> float:
        size = abs(float(draw.normal(1.5, 0.3)))
        return size if operator.startswith(">") else -size

    shapes = [shape() for _ in range(templates)]
    specs = []
    for i in range(rules):
        wanted = shapes[i % templates] if templates else shape()
        comparisons: tuple[Comparison, ...] = tuple(compare(name, op, threshold(op)) for name, op in wanted)
        specs.append(RuleSpec(id=f"r{i}", version=1, name=f"r{i}", when=All(comparisons)))
    plan = Plan(Ruleset(number=1, rules=tuple(specs)))
    plan.bind({name: row for row, name in enumerate(names)})
    known = tuple(f"S{i:06d}" for i in range(symbols))
    price = np.ones(symbols)
    for second in range(8):
        values += draw.normal(size=values.shape) * 0.003
        started = time.perf_counter()
        plan.scan(values, now_ns=second * SECOND_NS, symbols=known, price=price, session="regular")
        elapsed_ms = (time.perf_counter() - started) * 1e3
        if second:  # at the first, all that is true fires
            yield elapsed_ms


def compiles() -> Iterator[float]:
    """Milliseconds each."""
    parse_condition("price > 1")  # the grammar is read once
    for i in range(200):
        started = time.perf_counter()
        when = parse_condition(f"{_TEXT} and volume_day > {i}")
        plan = Plan(Ruleset(number=1, rules=(RuleSpec(id="r", version=1, name="r", when=when),)))
        plan.bind({name: row for row, name in enumerate(plan.metrics)})
        yield (time.perf_counter() - started) * 1e3
