"""Which subscriptions an alert is for: the index against asking each of them in turn."""

import time
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tapewatch.contracts.samples import make_alert, make_watchlist
from tapewatch.contracts.store_deliveries import make_subscription
from tapewatch.deliveries.matching import Matching, Rights
from tapewatch.delivery_documents import Subscription
from tapewatch.documents import Alert, Watchlist
from tapewatch.engine.rules.tree import SEVERITIES

NAMES = st.sampled_from(["a", "b", "c", "d"])
SYMBOLS = st.sampled_from(["AAPL", "MSFT", "BRK.B", "SPY"])
OWNERS = st.sampled_from(["ann", "bob", "eve"])
SESSIONS = st.sampled_from(["pre", "regular", "post"])


def some(values: st.SearchStrategy[str]) -> st.SearchStrategy[list[str]]:
    return st.one_of(st.just([]), st.lists(values, max_size=3))


@st.composite
def whats(draw: Any) -> dict[str, Any]:
    what = {
        "rules": draw(some(NAMES)),
        "tags": draw(some(NAMES)),
        "symbols": draw(some(SYMBOLS)),
        "watchlists": draw(some(NAMES)),
    }
    return what if any(what.values()) else {"all": True}


@st.composite
def subscriptions(draw: Any) -> list[Subscription]:
    return [
        make_subscription(
            f"s{number}",
            owner=draw(OWNERS),
            what=draw(whats()),
            enabled=draw(st.sampled_from([True, True, False])),
            channels=draw(st.sampled_from([["c"], ["c"], []])),
            sessions=draw(some(SESSIONS)),
            severity=draw(st.sampled_from(SEVERITIES)),
        )
        for number in range(draw(st.integers(0, 8)))
    ]


def naive(
    subscriptions: list[Subscription],
    alert: Alert,
    rules: dict[str, Rights],
    lists: list[tuple[Watchlist, Rights]],
) -> list[str]:
    found = []
    for one in subscriptions:
        what = one.what
        rule = rules.get(alert.rule_id)
        on = {
            watchlist.id
            for watchlist, rights in lists
            if alert.symbol in watchlist.symbols and (rights.shared or rights.owner == one.owner)
        }
        if (
            rule is not None
            and (rule.shared or rule.owner == one.owner)
            and one.enabled
            and one.channels
            and (alert.rule_id in what.rules or not what.rules)
            and (alert.symbol in what.symbols or not what.symbols)
            and (set(what.tags) & set(alert.tags) or not what.tags)
            and (set(what.watchlists) & on or not what.watchlists)
            and (alert.session in one.sessions or not one.sessions)
            and SEVERITIES.index(alert.severity) >= SEVERITIES.index(one.severity)
        ):
            found.append(one.id)
    return sorted(found)


@given(
    subscriptions=subscriptions(),
    rules=st.dictionaries(NAMES, st.builds(Rights, OWNERS, st.booleans())),
    lists=st.dictionaries(NAMES, st.tuples(st.lists(SYMBOLS), OWNERS, st.booleans())),
    alerts=st.lists(
        st.tuples(NAMES, SYMBOLS, st.lists(NAMES, max_size=3), SESSIONS, st.sampled_from(SEVERITIES)), max_size=6
    ),
)
def test_alert_is_for_those_that_a_walk_through_all_of_them_finds(
    subscriptions: list[Subscription],
    rules: dict[str, Rights],
    lists: dict[str, tuple[list[str], str, bool]],
    alerts: list[tuple[str, str, list[str], str, str]],
) -> None:
    watchlists = [
        (make_watchlist(name, symbols=symbols), Rights(owner, shared))
        for name, (symbols, owner, shared) in lists.items()
    ]
    matching = Matching(subscriptions, rules=rules, watchlists=watchlists)
    for number, (rule_id, symbol, tags, session, severity) in enumerate(alerts):
        alert = make_alert(number, rule_id=rule_id, symbol=symbol, tags=tuple(tags), session=session, severity=severity)
        assert [one.id for one in matching.of(alert)] == naive(subscriptions, alert, rules, watchlists)


def test_one_alert_among_thousands_of_subscriptions_costs_little() -> None:
    many = [
        make_subscription(f"s{n}", owner=f"u{n % 1000}", what={"symbols": [f"S{n % 3000}"]} if n % 2 else {"all": True})
        for n in range(10_000)
    ]
    rules = {f"r{n}": Rights(f"u{n}") for n in range(1000)}
    matching = Matching(many, rules=rules)
    alerts = [make_alert(n, rule_id=f"r{n % 1000}", symbol=f"S{n}") for n in range(2_000)]
    started = time.process_time()
    found = sum(len(matching.of(alert)) for alert in alerts)
    assert found > 0
    assert (time.process_time() - started) / len(alerts) < 0.001
