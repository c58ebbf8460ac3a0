"""What every `Store` keeps its word about: readers, their owners, positions and states, and what is settled once."""

import asyncio
from collections.abc import Callable, Coroutine

import pytest

from tapewatch.contracts.samples import HOSTILE_TEXTS, INT64_MAX, NOON_NS, make_alert, make_bars, soon
from tapewatch.engine.columns import MINUTE_NS
from tapewatch.errors import LeaseLost
from tapewatch.ports import AlertQuery, Position, Saved, Store


class StorePositions:
    """Part of `StoreContract`."""

    async def test_position_of_an_unknown_reader_is_none(self, store: Store) -> None:
        assert await store.position("bars:0") is None

    async def test_position_is_that_of_the_readers_last_effect(self, store: Store) -> None:
        await store.save_bars(make_bars([("A", NOON_NS)]), reader="bars:0", position=Position(1, 5))
        await store.save_alerts([make_alert(1)], reader="alerts:0", position=Position(2, 7))
        assert await store.position("bars:0") == Position(1, 5)
        assert await store.position("alerts:0") == Position(2, 7)
        await store.save_bars(make_bars([("A", NOON_NS)]), reader="bars:0", position=Position(2, 1))
        assert await store.position("bars:0") == Position(2, 1)

    async def test_effect_without_a_position_leaves_it(self, store: Store) -> None:
        await store.save_bars(make_bars([("A", NOON_NS)]), reader="bars:0")
        assert await store.position("bars:0") is None
        await store.save_alerts([make_alert(1)], reader="bars:0", position=Position(1, 5))
        await store.save_alerts([make_alert(2)], reader="bars:0")
        assert await store.position("bars:0") == Position(1, 5)

    async def test_position_moves_when_nothing_was_to_be_saved(self, store: Store) -> None:
        await store.save_bars(make_bars([]), reader="bars:0", position=Position(1, 5))
        assert await store.position("bars:0") == Position(1, 5)
        assert await store.save_alerts([], reader="alerts:0", position=Position(1, 6)) == []
        assert await store.position("alerts:0") == Position(1, 6)
        await store.save_alerts([make_alert(1)], reader="alerts:0", position=Position(1, 7))
        assert await store.save_alerts([make_alert(1)], reader="alerts:0", position=Position(1, 8)) == []
        assert await store.position("alerts:0") == Position(1, 8)
        for sequence, changed in ((9, 1), (10, 0)):
            position = Position(1, sequence)
            annotated = await store.annotate_alerts("AAPL", since_ns=0, note="n", reader="alerts:0", position=position)
            assert len(annotated) == changed
            assert await store.position("alerts:0") == position

    async def test_reader_of_position_and_effect_never_sees_one_without_the_other(self, store: Store) -> None:
        async def save_all() -> None:
            for number in range(1, 21):
                bars = make_bars([("A", NOON_NS + number * MINUTE_NS)])
                await store.save_bars(bars, reader="bars:0", position=Position(1, number))

        saving = asyncio.ensure_future(save_all())
        while not saving.done():
            position = await store.position("bars:0")
            bars = await store.bars("A")
            assert len(bars) >= (position.sequence if position else 0)
        await saving


class StoreOwners:
    """Part of `StoreContract`."""

    async def test_first_owner_of_a_reader_finds_nothing(self, store: Store) -> None:
        owner, position, state = await store.take_over("bars:0")
        assert owner > 0
        assert (position, state) == (None, None)
        assert await store.position("bars:0") is None

    async def test_each_owner_has_a_greater_token_and_finds_what_the_one_before_left(self, store: Store) -> None:
        first = await store.take_over("bars:0")
        bars = make_bars([("A", NOON_NS)])
        await store.save_bars(bars, reader="bars:0", position=Position(1, 5), owner=first.owner)
        second = await store.take_over("bars:0")
        assert (second.position, second.state) == (Position(1, 5), None)
        await store.save_state("bars:0", b"half a bar", position=Position(1, 7), owner=second.owner)
        third = await store.take_over("bars:0")
        assert third == Saved(third.owner, Position(1, 7), b"half a bar")
        assert first.owner < second.owner < third.owner

    async def test_readers_have_owners_of_their_own(self, store: Store) -> None:
        bars, alerts = await store.take_over("bars:0"), await store.take_over("alerts:0")
        for _ in range(3):
            await store.take_over("alerts:1")
        await store.save_bars(make_bars([("A", NOON_NS)]), reader="bars:0", owner=bars.owner)
        await store.save_alerts([make_alert(1)], reader="alerts:0", owner=alerts.owner)

    async def test_of_many_that_take_over_at_once_each_has_its_own_token_and_the_greatest_may_write(
        self, store: Store
    ) -> None:
        owners = [saved.owner for saved in await asyncio.gather(*(store.take_over("bars:0") for _ in range(20)))]
        assert len(set(owners)) == 20
        for owner in sorted(owners)[:-1]:
            with pytest.raises(LeaseLost):
                await store.save_bars(make_bars([("A", NOON_NS)]), reader="bars:0", owner=owner)
        await store.save_bars(make_bars([("A", NOON_NS)]), reader="bars:0", owner=max(owners))

    async def test_earlier_owner_is_refused_whole(self, store: Store) -> None:
        lost = (await store.take_over("reader")).owner
        await store.save_alerts([make_alert(1)], reader="reader", position=Position(1, 1), owner=lost)
        await store.save_state("reader", b"mine", position=Position(1, 1), owner=lost)
        current = (await store.take_over("reader")).owner
        later = Position(1, 2)
        writes: tuple[Callable[[int | None], Coroutine[object, object, object]], ...] = (
            lambda owner: store.save_bars(make_bars([("A", NOON_NS)]), reader="reader", position=later, owner=owner),
            lambda owner: store.save_alerts([make_alert(2)], reader="reader", position=later, owner=owner),
            lambda owner: store.annotate_alerts(
                "AAPL", since_ns=0, note="late", reader="reader", position=later, owner=owner
            ),
            lambda owner: store.save_state("reader", b"late", position=later, owner=owner),
        )
        for write in writes:
            for owner in (lost, 0, current + 1):
                with pytest.raises(LeaseLost, match="reader"):
                    await write(owner)
        assert len(await store.bars("A")) == 0
        assert await store.alerts(AlertQuery()) == [make_alert(1)]
        assert await store.position("reader") == Position(1, 1)
        for write in writes:
            await write(current)
        assert await store.position("reader") == later
        assert len(await store.alerts(AlertQuery())) == 2
        saved = await store.take_over("reader")
        assert (saved.position, saved.state) == (later, b"late")

    async def test_owner_of_a_reader_that_nobody_took_over_is_refused(self, store: Store) -> None:
        with pytest.raises(LeaseLost):
            await store.save_alerts([make_alert(1)], reader="alerts:0", position=Position(1, 1), owner=1)
        assert await store.alerts(AlertQuery()) == []
        assert await store.position("alerts:0") is None

    async def test_write_without_an_owner_is_not_checked_and_leaves_the_owner(self, store: Store) -> None:
        owner = (await store.take_over("bars:0")).owner
        await store.save_bars(make_bars([("A", NOON_NS)]), reader="bars:0", position=Position(1, 5))
        await store.save_state("bars:0", b"state", position=Position(1, 6))
        await store.save_bars(make_bars([("A", NOON_NS)]), reader="bars:0", position=Position(1, 7), owner=owner)
        assert await store.position("bars:0") == Position(1, 7)

    async def test_owner_whose_writes_race_with_a_take_over_leaves_whole_ones(self, store: Store) -> None:
        begun = asyncio.Event()

        async def save_until_lost(owner: int) -> int:
            saved = 0
            while True:
                bars = make_bars([("A", NOON_NS + (saved + 1) * MINUTE_NS)])
                try:
                    await store.save_bars(bars, reader="r", position=Position(1, saved + 1), owner=owner)
                except LeaseLost:
                    break
                saved += 1
                begun.set()
            return saved

        first = await store.take_over("r")
        saving = asyncio.ensure_future(save_until_lost(first.owner))
        await soon(begun.wait())
        found = await store.take_over("r")
        assert found.position == Position(1, await soon(saving))
        assert len(await store.bars("A")) == found.position.sequence


class StoreStates:
    """Part of `StoreContract`."""

    async def test_state_arrives_as_it_was_with_its_position(self, store: Store) -> None:
        states = [b"", b"\0", bytes(range(256)), *(text.encode() for text in HOSTILE_TEXTS), b"\xff" * 3_000_000]
        for number, state in enumerate(states):
            position = Position(INT64_MAX, INT64_MAX - number)
            await store.save_state("scan:0", state, position=position)
            assert await store.position("scan:0") == position
            saved = await store.take_over("scan:0")
            assert (saved.position, saved.state) == (position, state)

    async def test_state_keeps_the_position_that_it_belongs_to_while_effects_move_on(self, store: Store) -> None:
        owner = (await store.take_over("bars:0")).owner
        await store.save_state("bars:0", b"at ten", position=Position(1, 10), owner=owner)
        await store.save_bars(make_bars([("A", NOON_NS)]), reader="bars:0", position=Position(1, 15), owner=owner)
        assert await store.position("bars:0") == Position(1, 15)
        saved = await store.take_over("bars:0")
        assert (saved.position, saved.state) == (Position(1, 10), b"at ten")


class StoreSettled:
    """Part of `StoreContract`."""

    async def test_first_value_stays_and_is_given_to_everybody(self, store: Store) -> None:
        assert await store.settle("partitions", "8") == "8"
        assert await store.settle("partitions", "16") == "8"
        assert await store.settle("other", "16") == "16"
        for number, text in enumerate(HOSTILE_TEXTS):
            assert await store.settle(f"text {number}", text) == text

    async def test_of_many_that_settle_at_once_all_are_given_the_same(self, store: Store) -> None:
        given = await asyncio.gather(*(store.settle("partitions", str(n)) for n in range(20)))
        assert len(set(given)) == 1
