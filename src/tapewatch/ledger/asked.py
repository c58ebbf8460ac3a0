"""Rules as people save them, as the oracle takes them: conditions in the JSON of rule documents."""

from collections.abc import Iterable
from typing import Any

from tapewatch.documents import Rule, Watchlist
from tapewatch.ledger.rules import AskedRule
from tapewatch.rule_forms import condition_json


def asked(rule: Rule) -> AskedRule:
    """The rule for the oracle."""
    spec = rule.spec()

    def form(condition: Any) -> Any:
        return None if condition is None else condition_json(condition)

    return AskedRule(
        id=rule.id,
        version=rule.version,
        when=form(spec.when),
        gate=form(spec.gate),
        rearm=form(spec.rearm),
        fire=rule.fire,
        cooldown_s=rule.cooldown,
    )


def listed(watchlists: Iterable[Watchlist]) -> dict[str, frozenset[str]]:
    """What is on each list."""
    return {watchlist.id: frozenset(watchlist.symbols) for watchlist in watchlists}


def same_question(one: Rule, other: Rule) -> bool:
    """Whether two versions of a rule fire alike."""
    names = ("when", "gate", "rearm", "fire", "cooldown")
    return all(getattr(one, name) == getattr(other, name) for name in names)
