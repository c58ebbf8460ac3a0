"""The checked tree of a rule, and what it says when it comes true."""

from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, NamedTuple

Operator = Literal[">", "<", ">=", "<=", "==", "!="]


@dataclass(frozen=True, slots=True)
class Comparison:
    """`metric operator value`. Unknown (NaN) on the left makes it unknown, whatever the operator."""

    metric: str
    operator: Operator
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSpec:
    """All of `conditions` must hold. After a match the symbol cannot match again for `cooldown_ns` of event time."""

    id: str
    version: int
    name: str
    conditions: tuple[Comparison, ...]
    cooldown_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruleset:
    """Rule snapshot `number`: it takes effect at its place on the tape, so that a replay applies it there too."""

    number: int
    rules: tuple[RuleSpec, ...]


class Match(NamedTuple):
    """A rule came true for a symbol at a scan."""

    alert_id: str
    rule: RuleSpec
    symbol: str
    fired_at_ns: int
    """Event time of the scan that saw it."""
    price: float
    values: dict[str, float]
    """Each operand's value at that scan."""
    session: str


def alert_id(rule: RuleSpec, symbol: str, fired_at_ns: int) -> str:
    """Derived, never drawn: the same event has the same id however often and wherever it is computed."""
    key = f"{rule.id}\x1f{rule.version}\x1f{symbol}\x1f{fired_at_ns}"
    return blake2b(key.encode(), digest_size=16).hexdigest()
