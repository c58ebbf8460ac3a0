"""What every `Store` keeps its word about. The fixtures are named by `StoreContract`; most tests are in its parts."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tapewatch.contracts.samples import (
    NOON_NS,
    bar_rows,
    make_alert,
    make_bars,
    make_rule,
    make_rule_of_every_node,
    make_watchlist,
)
from tapewatch.contracts.store_accounts import StoreSignIns, StoreUsers
from tapewatch.contracts.store_deliveries import StoreDeliveries, StoreOutbox
from tapewatch.contracts.store_history import StoreAlerts, StoreBars
from tapewatch.contracts.store_identities import StoreIdentities
from tapewatch.contracts.store_ownership import StoreOwnership
from tapewatch.contracts.store_readers import StoreOwners, StorePositions, StoreSettled, StoreStates
from tapewatch.contracts.store_reference import StoreReference
from tapewatch.contracts.store_requests import StoreAsked, StoreMarks, StoreOnce
from tapewatch.contracts.store_rules import StoreAudit, StoreRules
from tapewatch.contracts.store_toplists import StoreToplists
from tapewatch.engine.columns import MINUTE_NS
from tapewatch.ports import AlertQuery, AuditQuery, Position, Store

OpenStore = Callable[[], Awaitable[Store]]


@pytest.mark.anyio
class StoreContract(
    StoreBars,
    StoreAlerts,
    StorePositions,
    StoreOwners,
    StoreStates,
    StoreSettled,
    StoreRules,
    StoreAudit,
    StoreOwnership,
    StoreToplists,
    StoreReference,
    StoreUsers,
    StoreSignIns,
    StoreIdentities,
    StoreAsked,
    StoreMarks,
    StoreOnce,
    StoreDeliveries,
    StoreOutbox,
):
    """Give `open_store`: each call opens the same data, empty and without a schema when the test begins. The suite
    upgrades and closes what it opens.
    """

    @pytest.fixture
    def open_store(self) -> OpenStore:
        raise NotImplementedError

    @pytest.fixture
    async def store(self, open_store: OpenStore) -> AsyncIterator[Store]:
        store = await open_store()
        await store.upgrade()
        yield store
        await store.close()

    async def test_upgrade_again_keeps_everything(self, store: Store) -> None:
        await store.save_rule(make_rule("a"))
        await store.save_bars(make_bars([("A", NOON_NS)]), reader="bars:0", position=Position(1, 1))
        await store.upgrade()
        assert await store.rule("a") == make_rule("a")
        assert len(await store.bars("A")) == 1
        assert await store.position("bars:0") == Position(1, 1)

    async def test_everything_is_there_after_closing_and_opening_again(
        self, store: Store, open_store: OpenStore
    ) -> None:
        await store.save_bars(make_bars([("A", NOON_NS)]), reader="bars:0", position=Position(3, 4))
        await store.save_alerts([make_alert(1)], reader="alerts:0", position=Position(5, 6))
        await store.save_rule(make_rule("a"))
        await store.save_rule(make_rule_of_every_node("b"))
        await store.save_rule(make_rule("c"))
        await store.delete_rule("c")
        await store.save_watchlist(make_watchlist("mine"))
        owner = (await store.take_over("scan:0")).owner
        await store.save_state("scan:0", b"state", position=Position(7, 8), owner=owner)
        await store.settle("partitions", "8")
        before, audit = await store.rules(), await store.audit(AuditQuery())
        await store.close()
        again = await open_store()
        try:
            await again.upgrade()
            assert bar_rows(await again.bars("A")) == bar_rows(make_bars([("A", NOON_NS)]))
            assert await again.alerts(AlertQuery()) == [make_alert(1)]
            assert await again.position("bars:0") == Position(3, 4)
            assert await again.position("alerts:0") == Position(5, 6)
            assert await again.rules() == before
            assert await again.audit(AuditQuery()) == audit
            saved = await again.take_over("scan:0")
            assert (saved.position, saved.state) == (Position(7, 8), b"state")
            assert saved.owner > owner
            assert await again.settle("partitions", "16") == "8"
        finally:
            await again.close()

    async def test_close_may_be_called_again(self, store: Store) -> None:
        await store.close()
        await store.close()

    async def test_reads_and_writes_at_once_all_succeed(self, store: Store) -> None:
        async def write(number: int) -> None:
            bars = make_bars([("A", NOON_NS + number * MINUTE_NS)])
            await store.save_bars(bars, reader=f"bars:{number}", position=Position(1, number))
            await store.save_alerts([make_alert(number)], reader=f"alerts:{number}")

        async def read() -> None:
            await store.bars("A")
            await store.alerts(AlertQuery())
            await store.rules()

        await asyncio.gather(*(write(number) for number in range(25)), *(read() for _ in range(25)))
        assert len(await store.bars("A")) == len(await store.alerts(AlertQuery())) == 25
