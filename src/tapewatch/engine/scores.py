"""How the alerts of a rule fared together, and which rules fire too often to be read."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tapewatch.engine.columns import F64, I32, I64
from tapewatch.engine.outcomes import OUTCOMES, Followed, RuleKey, join

MOST_A_DAY = 500
LARGEST_SHARE = 0.2
FEWEST_SYMBOLS = 50
"""Of a market of fewer symbols a rule may well fire for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One outcome over the alerts of a rule of which it is known, in percent; NaN when it is known of none."""

    known: int
    positive_pct: float
    """Share of those above zero."""
    mean_pct: float
    median_pct: float
    highest_pct: float
    lowest_pct: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleScore:
    rule: RuleKey
    alerts: int
    unfollowed: int
    """Alerts whose outcome nobody followed; see `Followed.followed`."""
    symbols: int
    """Distinct symbols."""
    symbol_days: int
    """Distinct pairs of symbol and trading day."""
    outcomes: dict[str, Score]
    """By name, in the order of `OUTCOMES`."""

    def as_json(self, *, days: int) -> dict[str, Any]:
        """The public form, with alerts a day over so many trading days; unknown numbers are null."""
        return {
            "rule_id": self.rule.id,
            "rule_version": self.rule.version,
            "alerts": self.alerts,
            "alerts_per_day": self.alerts / max(1, days),
            "unfollowed": self.unfollowed,
            "symbols": self.symbols,
            "outcomes": {
                name: {field: None if np.isnan(value) else value for field, value in asdict(score).items()}
                for name, score in self.outcomes.items()
            },
        }

    @classmethod
    def silent(cls, rule: RuleKey) -> "RuleScore":
        """Of a rule that never fired."""
        return cls(
            rule=rule, alerts=0, unfollowed=0, symbols=0, symbol_days=0, outcomes=dict.fromkeys(OUTCOMES, UNKNOWN)
        )


class Scores:
    """How the alerts of each rule fared. Outcomes of alerts that were followed are kept, eight numbers an alert."""

    def __init__(self) -> None:
        self._parts: list[Followed] = []
        self._unfollowed: Counter[int] = Counter()
        self._pairs = np.zeros(0, np.int64)

    def add(self, followed: Followed) -> None:
        """Take alerts that have left, from one and the same `Outcomes`."""
        if not len(followed):
            return
        missed = followed.take(~followed.followed)
        self._unfollowed.update(missed.rule.tolist())
        self._pairs = _distinct(self._pairs, _pairs(missed))
        # Without a row this still tells the names of rules.
        self._parts.append(followed.take(followed.followed))

    def plus(self, still: Followed) -> "Scores":
        """Another one, in which alerts that are open count as they stand now."""
        both = Scores()
        both._parts, both._unfollowed, both._pairs = [*self._parts], self._unfollowed.copy(), self._pairs
        both.add(still)
        return both

    def table(self) -> dict[RuleKey, RuleScore]:
        """Per rule that fired, in the order in which they first did."""
        rows = join(self._parts)
        rules = len(rows.rules)
        alerts = np.bincount(rows.rule, minlength=rules)
        columns = [_scored(rows.rule, values, rules) for values in rows.values]
        pairs = _distinct(self._pairs, _pairs(rows))
        symbol_days = np.bincount(pairs >> _RULE_SHIFT, minlength=rules)
        of_symbols = _distinct((pairs >> _RULE_SHIFT << _SYMBOL_BITS) | (pairs & ((1 << _SYMBOL_BITS) - 1)))
        symbols = np.bincount(of_symbols >> _SYMBOL_BITS, minlength=rules)
        return {
            key: RuleScore(
                rule=key,
                alerts=int(alerts[i]) + self._unfollowed[i],
                unfollowed=self._unfollowed[i],
                symbols=int(symbols[i]),
                symbol_days=int(symbol_days[i]),
                outcomes={name: column[i] for name, column in zip(OUTCOMES, columns, strict=True)},
            )
            for i, key in enumerate(rows.rules)
            if symbol_days[i]
        }


_SYMBOL_BITS, _DAY_BITS = 24, 20
_RULE_SHIFT = _SYMBOL_BITS + _DAY_BITS


def _pairs(rows: Followed) -> I64:
    """(rule, day, symbol) of each, packed."""
    rule, symbol = rows.rule.astype(np.int64), rows.symbol.astype(np.int64)
    return (rule << _RULE_SHIFT) | (rows.day << _SYMBOL_BITS) | symbol


def _distinct(*parts: I64) -> I64:
    """Each once, ascending; np.unique takes ten times as long."""
    ordered = np.sort(np.concatenate(parts))
    first = np.ones(len(ordered), np.bool_)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first]


def _scored(rule: I32, values: F64, rules: int) -> list[Score]:
    """One outcome, per rule. Sums run from the lowest to the highest, so the order of the alerts does not matter."""
    known = ~np.isnan(values)
    rule, values = rule[known], values[known]
    order = np.argsort(values)
    order = order[np.argsort(rule[order], kind="stable")]
    rule, values = rule[order], values[order]
    edges = np.searchsorted(rule, np.arange(rules + 1))
    scores = []
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        count, of_rule = stop - start, values[start:stop]
        if not count:
            scores.append(UNKNOWN)
            continue
        middle = of_rule[(count - 1) // 2 : count // 2 + 1]
        above = count - int(np.searchsorted(of_rule, 0.0, side="right"))
        scores.append(
            Score(
                known=count,
                positive_pct=100 * above / count,
                mean_pct=float(of_rule.mean()),
                median_pct=float(middle.mean()),
                highest_pct=float(of_rule[-1]),
                lowest_pct=float(of_rule[0]),
            )
        )
    return scores


_NAN = float("nan")
UNKNOWN = Score(known=0, positive_pct=_NAN, mean_pct=_NAN, median_pct=_NAN, highest_pct=_NAN, lowest_pct=_NAN)


def too_broad(*, alerts: int, symbol_days: int, traded: dict[int, int]) -> str:
    """Why a rule is too broad to be read by a person; empty when it is not. `traded` as `Outcomes.traded` has it."""
    a_day = alerts / max(1, len(traded))
    if a_day > MOST_A_DAY:
        return f"fires {a_day:,.0f} times a day (more than {MOST_A_DAY})"
    market = sum(traded.values())
    if market >= FEWEST_SYMBOLS * len(traded) and symbol_days > LARGEST_SHARE * market:
        return (
            f"fires for {symbol_days / market:.0%} of the symbols that trade in a day (more than {LARGEST_SHARE:.0%})"
        )
    return ""
