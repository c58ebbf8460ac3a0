"""What a rule needs before anybody runs it: what it names, and what it costs, from figures that were measured.

The figures are microseconds of one core for a scan of ten thousand symbols of which every value changed, for a node of
its kind above what lies below it. Equal nodes of a rule are computed once and counted once. Rules that ask the same
share, so a ruleset costs less than the sum of its rules.
"""

from dataclasses import dataclass

from tapewatch.engine.rules.leaves import leaves_of
from tapewatch.engine.rules.tree import (
    All,
    AnyOf,
    Arithmetic,
    Attribute,
    Between,
    Comparison,
    Condition,
    Crossing,
    Function,
    Held,
    InARow,
    InSession,
    InWatchlist,
    Node,
    Not,
    Number,
    Operand,
    Then,
    Within,
    operands,
    walk,
)

MAX_COST_US = 5_000.0
"""Of a rule, per scan of ten thousand symbols. A scan of all rules should stay well below the second between two."""
MAX_USER_COST_US = 200_000.0
"""Of all rules of a user that are on."""
MAX_USER_MEMORY_BYTES = 256_000_000
"""The same, for what they remember."""

_PLAIN_US = 2.5
"""A comparison of a rule that is nothing but comparisons with numbers: these are asked in blocks of bits."""
_RULE_US = 10.0
"""Any other rule: its answer becomes bits, and the fires among them are found."""
_PART_US = 3.0
"""A condition that is joined with others."""
_US: dict[type[Node], float] = {
    Number: 0.0,
    Operand: 0.0,
    Arithmetic: 22.0,
    Function: 25.0,
    Comparison: 10.0,
    Between: 35.0,
    Crossing: 80.0,
    Attribute: 5.0,
    InWatchlist: 5.0,
    InSession: 3.0,
    Not: 8.0,
    All: 0.0,
    AnyOf: 0.0,
    Held: 42.0,
    InARow: 40.0,
    Within: 25.0,
    Then: 35.0,
}
_DIVISION_US = 75.0

_BITS = 10_000 // 8
"""One bit a symbol, whether the rule may not fire: all that most rules keep."""
_BYTES: dict[type[Node], int] = {
    Crossing: 10_000,  # a side
    Held: 90_000,  # since when, and what it was before
    InARow: 90_000,
    Within: 160_000,  # when it was true, and when unknown
    Then: 160_000,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one rule, for ten thousand symbols."""

    comparisons: int
    remembering: int
    """Nodes whose answer depends on earlier scans."""
    metrics: tuple[str, ...]
    """The rows of the board that it reads, such as ``close_5m[1]``."""
    scan_us: float
    """One core, each scan."""
    memory_bytes: int

    @property
    def refusal(self) -> str:
        """Why no rule may cost so much; empty for one that may."""
        if self.scan_us <= MAX_COST_US:
            return ""
        return (
            f"asks too much: it costs {self.scan_us:,.0f} microseconds a scan of 10,000 symbols, "
            f"and {MAX_COST_US:,.0f} are allowed"
        )


def cost(when: Condition, gate: Condition | None = None, rearm: Condition | None = None) -> Cost:
    conditions = [condition for condition in (when, gate, rearm) if condition is not None]
    nodes = dict.fromkeys(node for condition in conditions for node in walk(condition))
    plain = leaves_of(when)
    asked = nodes if plain is None else dict.fromkeys(node for part in conditions[1:] for node in walk(part))
    scan_us = _RULE_US if plain is None else _PLAIN_US * len(set(plain))
    return Cost(
        comparisons=sum(2 if isinstance(node, Between) else isinstance(node, Comparison | Crossing) for node in nodes),
        remembering=sum(type(node) in _BYTES for node in nodes),
        metrics=tuple(operand.name for operand in operands(*conditions)),
        scan_us=scan_us + sum(map(_node_us, asked)),
        memory_bytes=_BITS + sum(_BYTES.get(type(node), 0) for node in nodes),
    )


def _node_us(node: Node) -> float:
    match node:
        case Arithmetic(operator="/"):
            return _DIVISION_US
        case Function(arguments=arguments):
            return _US[Function] * max(1, len(arguments) - 1)
        case All(conditions=conditions) | AnyOf(conditions=conditions):
            return _PART_US * len(conditions)
    return _US[type(node)]
