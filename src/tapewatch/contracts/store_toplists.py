"""What every `Store` keeps its word about: users' toplists."""

import asyncio
from typing import Any

import pytest

from tapewatch.contracts.samples import make_toplist
from tapewatch.engine.metrics import CATALOGUE
from tapewatch.errors import NotFound, VersionConflict
from tapewatch.ports import MAX_SHOWN_METRICS, MAX_TOPLISTS, MAX_TOPLISTS_OF_ONE, AuditQuery, Store
from tapewatch.toplist_documents import Filters, Toplist


class StoreToplists:
    """Part of `StoreContract`."""

    async def test_toplist_arrives_as_it_was(self, store: Store) -> None:
        for toplist in (
            make_toplist("b", name="«\"'%;--»", enabled=False),
            make_toplist("a", filters=Filters(when='price > 1 and sector is "R & D\'s"', price_min=0.1 + 0.2)),
        ):
            assert await store.save_toplist(toplist) == toplist
            stored = await store.toplist(toplist.id)
            assert stored == toplist
            assert stored.ranked_by == toplist.ranked_by

    async def test_toplists_are_by_id_and_of_their_owners(self, store: Store) -> None:
        for toplist_id, owner in (("c", "ann"), ("a", "bob"), ("b", "ann")):
            await store.save_toplist(make_toplist(toplist_id, owner=owner))
        assert [one.id for one in await store.toplists()] == ["a", "b", "c"]
        assert [one.id for one in await store.toplists(owner="ann")] == ["b", "c"]
        assert await store.toplists(owner="nobody") == []
        await store.delete_toplist("b")
        assert [one.id for one in await store.toplists(owner="ann")] == ["c"]

    async def test_toplist_has_versions_as_a_rule_has(self, store: Store) -> None:
        with pytest.raises(VersionConflict, match="a"):
            await store.save_toplist(make_toplist("a", version=2))
        first = await store.save_toplist(make_toplist("a"))
        given = make_toplist("a", version=2, name="other")
        second = await store.save_toplist(given)
        assert second == given.model_copy(update={"created_at": first.created_at})
        for version in (1, 2, 4):
            with pytest.raises(VersionConflict, match="a"):
                await store.save_toplist(make_toplist("a", version=version))
        assert await store.toplists() == [second]
        await store.delete_toplist("a")
        for version in (1, 3):
            with pytest.raises(VersionConflict, match="a"):
                await store.save_toplist(make_toplist("a", version=version))
        for call in (store.toplist("a"), store.delete_toplist("a"), store.toplist("nope")):
            with pytest.raises(NotFound):
                await call

    async def test_toplists_number_rises_with_every_change_and_only_then(self, store: Store) -> None:
        numbers = [await store.toplists_number()]
        for change in (
            store.save_toplist(make_toplist("a")),
            store.save_toplist(make_toplist("b")),
            store.save_toplist(make_toplist("a", version=2)),
            store.delete_toplist("b"),
        ):
            await change
            numbers.append(await store.toplists_number())
        assert numbers == sorted(set(numbers))
        with pytest.raises(VersionConflict):
            await store.save_toplist(make_toplist("a", version=2))
        with pytest.raises(NotFound):
            await store.delete_toplist("b")
        assert await store.toplists_number() == numbers[-1]

    async def test_rows_that_boards_lack_raise_the_rulesets_number_while_a_list_asks_for_them(
        self, store: Store
    ) -> None:
        async def after(version: int, **changes: Any) -> tuple[tuple[str, ...], bool]:
            before = await store.ruleset_number()
            await store.save_toplist(make_toplist("a", version=version, **changes))
            return await store.shown_metrics(), await store.ruleset_number() > before

        asking = Filters(when="close_5m[1] > 1 and price > 2")
        assert await after(1) == ((), False)
        assert await after(2, filters=asking) == (("close_5m[1]",), True)
        assert await after(3, filters=asking, name="other") == (("close_5m[1]",), False)
        assert await after(4, filters=asking, columns=["beta_1y"]) == (("beta_1y", "close_5m[1]"), True)
        assert await after(5, filters=asking, columns=["beta_1y"], enabled=False) == ((), True)
        assert await after(6, columns=["beta_1y"]) == (("beta_1y",), True)
        before = await store.ruleset_number()
        await store.delete_toplist("a")
        assert await store.shown_metrics() == ()
        assert await store.ruleset_number() > before

    async def test_lists_cannot_ask_for_more_rows_than_boards_may_have(self, store: Store) -> None:
        for n in range(MAX_SHOWN_METRICS // 20):
            await store.save_toplist(make_toplist(f"t{n}", columns=_rows(20 * n, 20)))
        assert len(await store.shown_metrics()) == MAX_SHOWN_METRICS
        with pytest.raises(VersionConflict, match="100 metrics"):
            await store.save_toplist(make_toplist("more", columns=_rows(MAX_SHOWN_METRICS, 1)))
        await store.save_toplist(make_toplist("known", columns=_rows(3, 4)))
        await store.save_toplist(make_toplist("off", columns=_rows(MAX_SHOWN_METRICS, 1), enabled=False))
        assert [one.id for one in await store.toplists()] == ["known", "off", *(f"t{n}" for n in range(5))]

    async def test_owner_has_fifty_toplists_at_most(self, store: Store) -> None:
        for n in range(MAX_TOPLISTS_OF_ONE):
            await store.save_toplist(make_toplist(f"t{n}", owner="ann"))
        with pytest.raises(VersionConflict, match="ann has 50 toplists"):
            await store.save_toplist(make_toplist("more", owner="ann"))
        await store.save_toplist(make_toplist("t0", version=2, owner="ann"))
        await store.save_toplist(make_toplist("other", owner="bob"))
        await store.delete_toplist("t0")
        outcomes = await asyncio.gather(
            *(store.save_toplist(make_toplist(f"n{n}", owner="ann")) for n in range(5)), return_exceptions=True
        )
        assert sum(isinstance(outcome, Toplist) for outcome in outcomes) == 1

    async def test_installation_has_five_hundred_toplists_at_most(self, store: Store) -> None:
        for n in range(MAX_TOPLISTS):
            await store.save_toplist(make_toplist(f"t{n}", owner=f"u{n % 20}"))
        with pytest.raises(VersionConflict, match="500 toplists"):
            await store.save_toplist(make_toplist("more", owner="ann"))
        assert len(await store.toplists()) == MAX_TOPLISTS

    async def test_changes_of_toplists_are_in_the_audit_log(self, store: Store) -> None:
        await store.save_toplist(make_toplist("a"), actor="ann")
        await store.save_toplist(make_toplist("a", version=2, name="new"))
        await store.delete_toplist("a", actor="bob")
        entries = (await store.audit(AuditQuery(kind="toplist")))[::-1]
        assert [(e.subject, e.action, e.version, e.actor) for e in entries] == [
            ("a", "create", 1, "ann"),
            ("a", "change", 2, "local"),
            ("a", "delete", 2, "bob"),
        ]
        assert entries[1].after == {"name": "new"}


def _rows(start: int, count: int) -> list[str]:
    """Metrics that boards do not always have."""
    names = [name for name, metric in CATALOGUE.items() if not metric.published and metric.freshness != "scan"]
    return names[start : start + count]
