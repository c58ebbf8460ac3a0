"""What must exist, as the oracle says it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

from tapewatch.ledger.booking import Bar
from tapewatch.ledger.days import Days

_ACCEPTED = (
    "booked",
    "without_effect",
    "record",
    "of_others",
    "amended",
    "amendments_unknown",
    "amendments_refused",
)


class ExpectedAlert(NamedTuple):
    alert_id: str
    rule_id: str
    rule_version: int
    symbol: str
    fired_at_ns: int
    price: float
    session: str


@dataclass
class Expected:
    """What must exist."""

    bars: dict[tuple[str, int], Bar]
    """By symbol and start of the minute."""
    alerts: list[ExpectedAlert]
    """In the order of firing."""
    rules: frozenset[tuple[str, int]]
    """Ids and versions of the rules that were judged."""
    unchecked: dict[str, str]
    """Rules that were not, and why."""
    counts: Counter[str]
    """What became of the rows: sent, rejected, duplicates, and what `Book.tally` counts."""
    rejected: Counter[str]
    """The rejected ones, by reason."""
    symbols: frozenset[str]
    began_ns: int
    ended_ns: int
    """The first and the last mark."""
    days: Days
    reads: Mapping[tuple[str, int], frozenset[str]] = field(default_factory=dict)
    """What each judged rule looks at."""
    cooldown_ns: Mapping[tuple[str, int], int] = field(default_factory=dict)
    pauses: Mapping[tuple[str, int, str], Sequence[tuple[int, int]]] = field(default_factory=dict)
    """By rule, version and symbol: stretches in which scans may have paused. What fires in them is not judged."""

    @property
    def accepted(self) -> int:
        """Rows that were taken in, whatever came of them."""
        return sum(self.counts[what] for what in _ACCEPTED)


def alert_id(rule_id: str, version: int, symbol: str, fired_at_ns: int) -> str:
    """The name of an alert: sixteen bytes of BLAKE2b over its four parts, joined by the unit separator."""
    return blake2b("\x1f".join([rule_id, str(version), symbol, str(fired_at_ns)]).encode(), digest_size=16).hexdigest()
