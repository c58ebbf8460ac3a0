"""Which subscriptions an alert is for.

Each subscription stands in one index, by what it names that is rarest: a rule, a symbol, a list of symbols, a tag. So
an alert costs as much as the subscriptions that it meets there, not as many as there are.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tapewatch.delivery_documents import Subscription
from tapewatch.documents import Alert, Watchlist
from tapewatch.engine.rules.tree import SEVERITIES


class Rights(NamedTuple):
    """Who may see the alerts of a rule or the symbols of a list."""

    owner: str
    shared: bool = False

    def sees(self, user_id: str) -> bool:
        return self.shared or self.owner == user_id


_EVERYBODY = ""
"""Stands for an owner in the index of what is shared; no user has this id."""


class Matching:
    """Subscriptions of one moment. `rules` tells of each rule whose it is: an alert of another one is for nobody."""

    def __init__(
        self,
        subscriptions: Iterable[Subscription],
        *,
        rules: Mapping[str, Rights],
        watchlists: Iterable[tuple[Watchlist, Rights]] = (),
    ) -> None:
        self._rules = rules
        self._lists = {watchlist.id: (frozenset(watchlist.symbols), rights) for watchlist, rights in watchlists}
        self._index: dict[tuple[str, str, str], list[Subscription]] = {}
        named: set[str] = set()
        for subscription in subscriptions:
            if not subscription.enabled or not subscription.channels:
                continue
            for kind, value in _places(subscription):
                for owner in (subscription.owner, _EVERYBODY):
                    self._index.setdefault((owner, kind, value), []).append(subscription)
                if kind == "watchlist":
                    named.add(value)
        self._lists_of: dict[str, list[str]] = {}
        """Symbol -> the lists that have it and that stand in the index."""
        for name in sorted(named & self._lists.keys()):
            for symbol in self._lists[name][0]:
                self._lists_of.setdefault(symbol, []).append(name)

    def knows(self, rule_id: str) -> bool:
        return rule_id in self._rules

    def of(self, alert: Alert) -> list[Subscription]:
        """Those that the alert is for, by id."""
        rights = self._rules.get(alert.rule_id)
        if rights is None:
            return []
        whose = _EVERYBODY if rights.shared else rights.owner
        places = [("all", ""), ("rule", alert.rule_id), ("symbol", alert.symbol)]
        places += [("tag", tag) for tag in alert.tags]
        places += [("watchlist", name) for name in self._lists_of.get(alert.symbol, ())]
        found = {
            subscription.id: subscription
            for kind, value in places
            for subscription in self._index.get((whose, kind, value), ())
            if self._holds(subscription, alert)
        }
        return [found[name] for name in sorted(found)]

    def _holds(self, subscription: Subscription, alert: Alert) -> bool:
        what = subscription.what
        return (
            (not what.rules or alert.rule_id in what.rules)
            and (not what.symbols or alert.symbol in what.symbols)
            and (not what.tags or not set(what.tags).isdisjoint(alert.tags))
            and (not what.watchlists or any(self._has(name, alert.symbol, subscription) for name in what.watchlists))
            and (not subscription.sessions or alert.session in subscription.sessions)
            and _severity(alert.severity) >= subscription.least_severity
        )

    def _has(self, name: str, symbol: str, subscription: Subscription) -> bool:
        symbols, rights = self._lists.get(name, (frozenset[str](), Rights("")))
        return symbol in symbols and rights.sees(subscription.owner)


def _places(subscription: Subscription) -> list[tuple[str, str]]:
    what = subscription.what
    for kind, values in (
        ("rule", what.rules),
        ("symbol", what.symbols),
        ("watchlist", what.watchlists),
        ("tag", what.tags),
    ):
        if values:
            return [(kind, value) for value in values]
    return [("all", "")]


def _severity(name: str) -> int:
    return SEVERITIES.index(name) if name in SEVERITIES else 0
