"""What every `Store` keeps its word about: rules and watchlists with their versions, and who changed them."""

import asyncio
import time
from collections.abc import Awaitable
from typing import Any

import pytest

from tapewatch.contracts.samples import make_alert, make_rule, make_rule_of_every_node, make_watchlist
from tapewatch.documents import Rule
from tapewatch.engine.columns import SECOND_NS
from tapewatch.errors import NotFound, VersionConflict
from tapewatch.ports import AUDIT_DAYS, AlertQuery, AuditEntry, AuditQuery, Store

ON = "price > 1 and symbol in watchlist {}"


class StoreRules:
    """Part of `StoreContract`."""

    async def test_rule_arrives_as_it_was(self, store: Store) -> None:
        for rule in (
            make_rule("a", name="«\"'%;--»", enabled=False, cooldown=0.1 + 0.2),
            make_rule_of_every_node("b"),
        ):
            assert await store.save_rule(rule) == rule
            stored = await store.rule(rule.id)
            assert stored == rule
            assert stored.spec() == rule.spec()

    async def test_rules_are_by_id_and_the_newest_of_each(self, store: Store) -> None:
        assert (await store.rules()).rules == []
        for rule_id in ("b", "a", "c"):
            await store.save_rule(make_rule(rule_id))
        changed = await store.save_rule(make_rule("a", version=2, name="changed"))
        await store.delete_rule("b")
        assert (await store.rules()).rules == [changed, await store.rule("c")]

    async def test_created_at_stays_that_of_version_one(self, store: Store) -> None:
        first = await store.save_rule(make_rule("a"))
        given = make_rule("a", version=2)
        stored = await store.save_rule(given)
        assert stored == given.model_copy(update={"created_at": first.created_at})
        assert stored.updated_at == given.updated_at != first.updated_at
        assert await store.rule("a") == stored

    async def test_version_that_does_not_follow_is_a_conflict_and_changes_nothing(self, store: Store) -> None:
        for version in (2, 7):
            with pytest.raises(VersionConflict, match="a"):
                await store.save_rule(make_rule("a", version=version))
        await store.save_rule(make_rule("a"))
        kept = await store.save_rule(make_rule("a", version=2))
        before = await store.rules()
        for version in (1, 2, 4):
            with pytest.raises(VersionConflict, match="a"):
                await store.save_rule(make_rule("a", version=version, name="too late"))
        assert await store.rules() == before
        assert await store.rule("a") == kept

    async def test_of_fifty_that_create_one_id_at_once_one_wins(self, store: Store) -> None:
        await self._one_wins(store, [make_rule("a", name=f"author {n}") for n in range(50)])

    async def test_of_fifty_that_change_one_version_at_once_one_wins(self, store: Store) -> None:
        await store.save_rule(make_rule("a"))
        await self._one_wins(store, [make_rule("a", version=2, name=f"author {n}") for n in range(50)])

    async def _one_wins(self, store: Store, candidates: list[Rule]) -> None:
        outcomes = await asyncio.gather(*(store.save_rule(rule) for rule in candidates), return_exceptions=True)
        won = [outcome for outcome in outcomes if isinstance(outcome, Rule)]
        assert len(won) == 1
        assert all(isinstance(outcome, (Rule, VersionConflict)) for outcome in outcomes)
        assert await store.rule("a") == won[0]

    async def test_ruleset_number_rises_with_every_change_and_only_then(self, store: Store) -> None:
        numbers = [await store.ruleset_number()]
        for change in (
            store.save_rule(make_rule("a")),
            store.save_rule(make_rule("b")),
            store.save_rule(make_rule("a", version=2)),
            store.delete_rule("b"),
        ):
            await change
            numbers.append(await store.ruleset_number())
            assert (await store.rules()).number == numbers[-1]
        assert numbers == sorted(set(numbers))
        with pytest.raises(VersionConflict):
            await store.save_rule(make_rule("a", version=2))
        with pytest.raises(NotFound):
            await store.delete_rule("b")
        assert await store.ruleset_number() == numbers[-1]

    async def test_ruleset_number_counts_changes_made_at_once(self, store: Store) -> None:
        before = await store.ruleset_number()
        await asyncio.gather(*(store.save_rule(make_rule(f"r{n:02}")) for n in range(30)))
        number, rules, _ = await store.rules()
        assert number >= before + 30
        assert [rule.id for rule in rules] == [f"r{n:02}" for n in range(30)]

    async def test_number_and_rules_are_of_the_same_moment(self, store: Store) -> None:
        before = await store.ruleset_number()
        saving = asyncio.gather(*(store.save_rule(make_rule(f"r{n}")) for n in range(20)))
        known: dict[int, int] = {}
        while not saving.done():
            number, rules, _ = await store.rules()
            assert known.setdefault(number, len(rules)) == len(rules)
            assert number > before or not rules
        await saving

    async def test_rule_that_is_not_there_is_not_found(self, store: Store) -> None:
        with pytest.raises(NotFound, match="nope"):
            await store.rule("nope")
        with pytest.raises(NotFound, match="nope"):
            await store.delete_rule("nope")

    async def test_deleted_rule_is_gone_and_its_alerts_stay(self, store: Store) -> None:
        await store.save_rule(make_rule("gapper"))
        await store.save_alerts([make_alert(1, rule_id="gapper")], reader="alerts:0")
        await store.delete_rule("gapper")
        with pytest.raises(NotFound):
            await store.rule("gapper")
        with pytest.raises(NotFound):
            await store.delete_rule("gapper")
        assert (await store.rules()).rules == []
        assert await store.alerts(AlertQuery(rule_id="gapper")) == [make_alert(1, rule_id="gapper")]

    async def test_deleted_rule_cannot_be_changed_or_its_id_used_again(self, store: Store) -> None:
        # Its versions stay, and alerts speak of them: version 1 of this id already means something.
        await store.save_rule(make_rule("a"))
        await store.delete_rule("a")
        for version in (1, 2):
            with pytest.raises(VersionConflict):
                await store.save_rule(make_rule("a", version=version))
        assert (await store.rules()).rules == []

    async def test_versions_of_a_rule_stay_newest_first_after_its_end_too(self, store: Store) -> None:
        with pytest.raises(NotFound, match="a"):
            await store.rule_versions("a")
        first = await store.save_rule(make_rule("a"))
        versions = [first]
        for version in range(2, 8):
            versions.insert(0, await store.save_rule(make_rule("a", version=version, name=f"name {version}")))
        await store.save_rule(make_rule("b"))
        for deleted in (False, True):
            if deleted:
                await store.delete_rule("a")
            assert await store.rule_versions("a") == versions
            assert await store.rule_versions("a", limit=2, offset=1) == versions[1:3]
            assert await store.rule_versions("a", limit=10**30, offset=10**30) == []
            assert await store.rule_versions("a", limit=0) == []
            for rule in versions:
                assert await store.rule("a", rule.version) == rule
            for version in (0, 8, -1, 10**30):
                with pytest.raises(NotFound, match="a"):
                    await store.rule("a", version)

    # Watchlists

    async def test_watchlist_arrives_as_it_was(self, store: Store) -> None:
        long = [f"S{n:04}" for n in reversed(range(5_000))]
        for watchlist in (
            make_watchlist("b", name="«\"'%;--»"),
            make_watchlist("a", symbols=long),
            make_watchlist("c", symbols=[]),
        ):
            assert await store.save_watchlist(watchlist) == watchlist
            assert await store.watchlist(watchlist.id) == watchlist
        assert [watchlist.id for watchlist in await store.watchlists()] == ["a", "b", "c"]

    async def test_watchlist_has_versions_as_a_rule_has(self, store: Store) -> None:
        with pytest.raises(VersionConflict, match="a"):
            await store.save_watchlist(make_watchlist("a", version=2))
        first = await store.save_watchlist(make_watchlist("a"))
        given = make_watchlist("a", version=2, name="other")
        second = await store.save_watchlist(given)
        assert second == given.model_copy(update={"created_at": first.created_at})
        for version in (1, 2, 4):
            with pytest.raises(VersionConflict, match="a"):
                await store.save_watchlist(make_watchlist("a", version=version))
        assert await store.watchlists() == [second]
        await store.delete_watchlist("a")
        for version in (1, 3):
            with pytest.raises(VersionConflict, match="a"):
                await store.save_watchlist(make_watchlist("a", version=version))
        for call in (store.watchlist("a"), store.delete_watchlist("a"), store.watchlist("nope")):
            with pytest.raises(NotFound):
                await call
        assert await store.watchlists() == []

    async def test_snapshot_brings_the_lists_that_enabled_rules_name(self, store: Store) -> None:
        lists = {name: make_watchlist(name, symbols=[name]) for name in ("mine", "gate", "rearm", "other")}
        for watchlist in lists.values():
            await store.save_watchlist(watchlist)

        async def brought() -> list[str]:
            watchlists = (await store.rules()).watchlists
            assert watchlists == [lists[watchlist.id] for watchlist in watchlists]
            return [watchlist.id for watchlist in watchlists]

        assert await brought() == []
        await store.save_rule(make_rule("a", when=ON.format("mine"), gate=ON.format("gate"), rearm=ON.format("rearm")))
        await store.save_rule(make_rule("b", when=ON.format("mine")))
        assert await brought() == ["gate", "mine", "rearm"]
        await store.save_rule(make_rule("a", version=2, when=ON.format("nowhere")))
        assert await brought() == ["mine"]
        await store.save_rule(make_rule("b", version=2, when=ON.format("mine"), enabled=False))
        assert await brought() == []
        await store.save_rule(make_rule("b", version=3, when=ON.format("mine")))
        assert await brought() == ["mine"]
        await store.delete_rule("b")
        assert await brought() == []

    async def test_list_raises_the_rulesets_number_when_an_enabled_rule_names_it(self, store: Store) -> None:
        async def raised(change: Awaitable[object]) -> bool:
            before = await store.ruleset_number()
            await change
            return await store.ruleset_number() > before

        assert not await raised(store.save_watchlist(make_watchlist("mine")))
        await store.save_rule(make_rule("a", when=ON.format("mine"), gate=ON.format("to-come")))
        assert await raised(store.save_watchlist(make_watchlist("mine", version=2)))
        assert await raised(store.save_watchlist(make_watchlist("to-come")))
        assert not await raised(store.save_watchlist(make_watchlist("other")))
        await store.save_rule(make_rule("a", version=2, when=ON.format("mine"), enabled=False))
        assert not await raised(store.save_watchlist(make_watchlist("mine", version=3)))
        assert not await raised(store.delete_watchlist("mine"))

    async def test_list_that_enabled_rules_name_cannot_be_deleted(self, store: Store) -> None:
        await store.save_watchlist(make_watchlist("mine"))
        for n in range(5):
            await store.save_rule(make_rule(f"r{n}", when=ON.format("mine")))
        with pytest.raises(VersionConflict, match=r"mine.*r0, r1, r2 and 2 more"):
            await store.delete_watchlist("mine")
        assert await store.watchlist("mine") == make_watchlist("mine")
        assert [entry.kind for entry in await store.audit(AuditQuery())] == ["rule"] * 5 + ["watchlist"]
        for n in range(4):
            await store.delete_rule(f"r{n}")
        with pytest.raises(VersionConflict, match=r"mine.*: r4$"):
            await store.delete_watchlist("mine")
        await store.save_rule(make_rule("r4", version=2, when="price > 1"))
        await store.delete_watchlist("mine")

    async def test_list_never_goes_while_a_rule_begins_to_name_it(self, store: Store) -> None:
        for n in range(10):
            await store.save_watchlist(make_watchlist(f"w{n}"))
        deleting = [store.delete_watchlist(f"w{n}") for n in range(10)]
        naming = [store.save_rule(make_rule(f"r{n}", when=ON.format(f"w{n}"))) for n in range(10)]
        pairs = zip(deleting, naming, strict=True)
        calls = [call for n, pair in enumerate(pairs) for call in (pair if n % 2 else pair[::-1])]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        # A store that has many writers chooses who is first; of those that asked to delete too late each is told.
        refused = sum(isinstance(outcome, VersionConflict) for outcome in outcomes)
        assert all(outcome is None or isinstance(outcome, (Rule, VersionConflict)) for outcome in outcomes)
        kept = await store.watchlists()
        assert kept == (await store.rules()).watchlists
        assert len(kept) == refused


class StoreAudit:
    """Part of `StoreContract`."""

    async def test_every_change_is_in_the_audit_log_newest_first(self, store: Store) -> None:
        began_ns = time.time_ns()
        await store.save_rule(make_rule("a"), actor="ann")
        await store.save_rule(make_rule("a", version=2, name="new", enabled=False))
        await store.delete_rule("a", actor="bob")
        await store.save_watchlist(make_watchlist("w", symbols=["A", "B", "C"]), actor="ann")
        await store.save_watchlist(make_watchlist("w", version=2, symbols=["C", "D", "A"]))
        await store.delete_watchlist("w", actor="bob")
        entries = await store.audit(AuditQuery())
        assert [(e.kind, e.subject, e.action, e.version, e.actor) for e in reversed(entries)] == [
            ("rule", "a", "create", 1, "ann"),
            ("rule", "a", "change", 2, "local"),
            ("rule", "a", "delete", 2, "bob"),
            ("watchlist", "w", "create", 1, "ann"),
            ("watchlist", "w", "change", 2, "local"),
            ("watchlist", "w", "delete", 2, "bob"),
        ]
        assert [entry.entry for entry in entries] == sorted({entry.entry for entry in entries}, reverse=True)
        times = [entry.at_ns for entry in entries]
        assert times == sorted(times, reverse=True)
        assert began_ns <= times[-1] <= times[0] <= time.time_ns()

    async def test_audit_shows_the_fields_that_changed_before_and_after(self, store: Store) -> None:
        rule = await store.save_rule(make_rule("a"))
        await store.save_rule(make_rule("a", version=2, name="new", when="price > 1"))
        await store.save_rule(make_rule("a", version=3, name="new", when="price > 1"))
        await store.delete_rule("a")
        await store.save_watchlist(make_watchlist("w", symbols=["A", "B", "C"]))
        await store.save_watchlist(make_watchlist("w", version=2, symbols=["C", "D", "A", "E"]))
        log = (await store.audit(AuditQuery()))[::-1]
        whole = rule.model_dump(mode="json", exclude={"id", "version", "created_at", "updated_at"})
        price = {"metric": "price", "operator": ">", "value": 1.0}
        new = {"name": "new", "when": "price > 1", "conditions": [price]}
        assert (log[0].before, log[0].after) == ({}, whole)
        assert (log[1].before, log[1].after) == ({name: whole[name] for name in new}, new)
        assert (log[2].before, log[2].after) == ({}, {})
        assert (log[3].before, log[3].after) == (whole | new, {})
        assert log[4].after["symbols"] == ["A", "B", "C"]
        assert (log[5].before, log[5].after) == ({"symbols": ["B"]}, {"symbols": ["D", "E"]})

    async def test_refused_change_is_not_in_the_audit_log(self, store: Store) -> None:
        await store.save_rule(make_rule("a"))
        for call in (store.save_rule(make_rule("a")), store.save_rule(make_rule("b", version=3))):
            with pytest.raises(VersionConflict):
                await call
        for missing in (store.delete_rule("b"), store.delete_watchlist("b")):
            with pytest.raises(NotFound):
                await missing
        assert len(await store.audit(AuditQuery())) == 1

    async def test_audit_is_filtered_and_walked_page_by_page(self, store: Store) -> None:
        for n in range(7):
            await store.save_rule(make_rule(f"r{n % 2}", version=n // 2 + 1))
            await store.save_watchlist(make_watchlist("r0", version=n + 1))
        everything = await store.audit(AuditQuery())
        assert len(everything) == 14

        async def found(**wanted: Any) -> list[AuditEntry]:
            seen: list[AuditEntry] = []
            query = AuditQuery(limit=3, **wanted)
            while page := await store.audit(query):
                assert len(page) <= 3
                seen += page
                query = query._replace(before=page[-1].entry)
            return seen

        assert await found() == everything
        assert await found(kind="rule") == [entry for entry in everything if entry.kind == "rule"]
        assert await found(subject="r0") == [entry for entry in everything if entry.subject == "r0"]
        assert len(await found(subject="r0", kind="rule")) == 4
        since_ns = everything[5].at_ns
        assert await found(since_ns=since_ns) == [entry for entry in everything if entry.at_ns >= since_ns]
        assert await found(since_ns=10**30) == await found(subject="nope") == []
        assert await store.audit(AuditQuery(before=10**30, since_ns=-(10**30), limit=10**30)) == everything
        assert await store.audit(AuditQuery(limit=0)) == []

    async def test_audit_entries_expire_after_ninety_days_and_their_numbers_are_not_used_again(
        self, store: Store
    ) -> None:
        for version in range(1, 4):
            await store.save_rule(make_rule("a", version=version))
        kept = await store.audit(AuditQuery())
        day_ns = 86_400 * SECOND_NS
        assert await store.expire(kept[-1].at_ns + AUDIT_DAYS * day_ns) == 0
        assert await store.audit(AuditQuery()) == kept
        assert await store.expire(kept[-1].at_ns + AUDIT_DAYS * day_ns + 1) == 1
        assert await store.audit(AuditQuery()) == kept[:-1]
        assert await store.expire(kept[0].at_ns + 100 * day_ns) == 2
        assert await store.audit(AuditQuery()) == []
        assert [rule.version for rule in await store.rule_versions("a")] == [3, 2, 1]
        await store.save_rule(make_rule("a", version=4))
        assert (await store.audit(AuditQuery()))[0].entry > kept[0].entry
