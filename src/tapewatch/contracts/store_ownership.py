"""What every `Store` keeps its word about: whose rules, lists and alerts they are, who sees which, and how many."""

import asyncio
import random

import pytest

from tapewatch.contracts.samples import NOON_NS, make_alert, make_rule, make_watchlist
from tapewatch.documents import Alert, Rule, Watchlist
from tapewatch.errors import QuotaReached, VersionConflict
from tapewatch.ports import AlertQuery, Store

USERS = ("local", "ann", "bob", "nobody")


def seen(alerts: list[Alert], query: AlertQuery) -> list[Alert]:
    """What the query asks for, alert by alert."""
    found = [
        alert
        for alert in alerts
        if (query.viewer is None or alert.shared or alert.owner == query.viewer)
        and query.symbol in {None, alert.symbol}
        and query.rule_id in {None, alert.rule_id}
        and (query.since_ns is None or alert.fired_at_ns >= query.since_ns)
        and (query.until_ns is None or alert.fired_at_ns < query.until_ns)
        and (query.before is None or (alert.fired_at_ns, alert.alert_id) < query.before)
    ]
    return sorted(found, key=lambda alert: (alert.fired_at_ns, alert.alert_id), reverse=True)[: query.limit]


class StoreOwnership:
    """Part of `StoreContract`."""

    async def test_owner_sharing_and_stamps_of_an_alert_are_kept(self, store: Store) -> None:
        alerts = [
            make_alert(1, owner="ann", shared=True, scanned_ns=5, filtered_ns=2**63 - 1),
            make_alert(2, owner="bob", scanned_ns=7),
            make_alert(3),
        ]
        await store.save_alerts(alerts, reader="alerts:0")
        assert await store.alerts(AlertQuery()) == alerts[::-1]
        for alert in alerts:
            assert await store.alert(alert.alert_id) == alert
        assert [alert.owner for alert in await store.alerts(AlertQuery(viewer="bob"))] == ["bob", "ann"]
        assert await store.annotate_alerts("AAPL", since_ns=0, note="n", reader="alerts:0") == [
            alert.annotated("n") for alert in alerts
        ]

    async def test_viewer_sees_what_a_look_at_each_alert_would_let_them_see(self, store: Store) -> None:
        drawn = random.Random(7)  # noqa: S311  # the same in every run
        alerts = [
            make_alert(
                number,
                owner=drawn.choice(USERS[:3]),
                shared=drawn.random() < 0.2,
                symbol=drawn.choice("AB"),
                rule_id=drawn.choice(("r0", "r1")),
                fired_at_ns=NOON_NS + drawn.randrange(40),
            )
            for number in range(200)
        ]
        await store.save_alerts(alerts, reader="alerts:0")
        for _ in range(150):
            query = AlertQuery(
                symbol=drawn.choice((None, "A", "C")),
                rule_id=drawn.choice((None, "r1")),
                since_ns=drawn.choice((None, NOON_NS + drawn.randrange(40))),
                until_ns=drawn.choice((None, NOON_NS + drawn.randrange(40))),
                before=drawn.choice((None, (NOON_NS + drawn.randrange(40), f"{drawn.randrange(200):032x}"))),
                limit=drawn.choice((0, 1, 7, 1_000)),
                viewer=drawn.choice((None, *USERS)),
            )
            assert await store.alerts(query) == seen(alerts, query)

    async def test_pages_of_a_viewer_walk_all_that_they_see_once(self, store: Store) -> None:
        alerts = [
            make_alert(n, owner=USERS[n % 3], shared=n % 5 == 0, fired_at_ns=NOON_NS + n // 10) for n in range(60)
        ]
        await store.save_alerts(alerts, reader="alerts:0")
        for viewer in USERS:
            query, walked = AlertQuery(viewer=viewer, limit=7), list[Alert]()
            while page := await store.alerts(query):
                walked += page
                query = query._replace(before=(page[-1].fired_at_ns, page[-1].alert_id))
            assert walked == seen(alerts, AlertQuery(viewer=viewer, limit=1_000))

    async def test_owner_is_that_of_the_first_version_and_sharing_that_of_the_newest(self, store: Store) -> None:
        await store.save_rule(make_rule("r", owner="ann"))
        changed = await store.save_rule(make_rule("r", version=2, owner="bob", shared=True))
        assert (changed.owner, changed.shared) == ("ann", True)
        assert await store.rule("r") == changed == (await store.rules()).rules[0]
        assert (changed.spec().owner, changed.spec().shared) == ("ann", True)
        await store.save_watchlist(make_watchlist("w", owner="ann"))
        second = await store.save_watchlist(make_watchlist("w", version=2, owner="bob", shared=True))
        assert (second.owner, second.shared) == ("ann", True)
        assert await store.watchlist("w") == second

    async def test_id_of_another_user_is_taken(self, store: Store) -> None:
        await store.save_rule(make_rule("r", owner="ann"))
        await store.save_watchlist(make_watchlist("w", owner="ann"))
        with pytest.raises(VersionConflict):
            await store.save_rule(make_rule("r", owner="bob"))
        with pytest.raises(VersionConflict):
            await store.save_watchlist(make_watchlist("w", owner="bob"))

    async def test_quota_counts_what_a_user_has_and_not_what_was_deleted(self, store: Store) -> None:
        for n in range(3):
            await store.save_rule(make_rule(f"a{n}", owner="ann", enabled=n > 0), most=3)
        await store.save_rule(make_rule("b0", owner="bob"), most=3)
        number = await store.ruleset_number()
        with pytest.raises(QuotaReached, match="3 rules"):
            await store.save_rule(make_rule("a3", owner="ann"), most=3)
        assert await store.ruleset_number() == number
        assert (await store.save_rule(make_rule("a0", version=2, owner="ann"), most=3)).version == 2
        await store.delete_rule("a1")
        await store.save_rule(make_rule("a3", owner="ann"), most=3)
        await store.save_rule(make_rule("a4", owner="ann"))
        with pytest.raises(VersionConflict):  # which id is taken is told before how many there are
            await store.save_rule(make_rule("b0", owner="ann"), most=3)

    async def test_of_fifty_that_create_the_last_one_at_once_one_wins(self, store: Store) -> None:
        most = 4
        for n in range(most - 1):
            await store.save_rule(make_rule(f"r{n}", owner="ann"), most=most)
            await store.save_watchlist(make_watchlist(f"w{n}", owner="ann"), most=most)
        rules = [store.save_rule(make_rule(f"more{n}", owner="ann"), most=most) for n in range(50)]
        lists = [store.save_watchlist(make_watchlist(f"more{n}", owner="ann"), most=most) for n in range(50)]
        outcomes = await asyncio.gather(*rules, *lists, return_exceptions=True)
        assert sum(isinstance(outcome, Rule) for outcome in outcomes) == 1
        assert sum(isinstance(outcome, Watchlist) for outcome in outcomes) == 1
        assert sum(isinstance(outcome, QuotaReached) for outcome in outcomes) == 98
        assert len((await store.rules()).rules) == len(await store.watchlists()) == most

    async def test_list_named_by_rules_of_others_goes_once_it_is_not_shared_and_names_none_of_them(
        self, store: Store
    ) -> None:
        when = "symbol in watchlist w"
        await store.save_watchlist(make_watchlist("w", owner="ann", shared=True))
        await store.save_rule(make_rule("secret", owner="bob", when=when))
        await store.save_rule(make_rule("mine", owner="ann", when=when))
        with pytest.raises(VersionConflict, match="mine") as caught:
            await store.delete_watchlist("w")
        assert "secret" not in str(caught.value)
        await store.delete_rule("mine")
        with pytest.raises(VersionConflict, match="1 enabled rules of others"):
            await store.delete_watchlist("w")
        number = await store.ruleset_number()
        await store.save_watchlist(make_watchlist("w", version=2, owner="ann"))
        assert await store.ruleset_number() > number
        await store.delete_watchlist("w")
        assert await store.watchlists() == []
