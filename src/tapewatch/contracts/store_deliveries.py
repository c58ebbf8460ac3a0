"""What every `Store` keeps its word about: subscriptions, channels with their secrets, and the outbox."""

import asyncio
from collections import Counter
from typing import Any

import msgspec
import pytest

from tapewatch.contracts.samples import HOSTILE_TEXTS, INT64_MAX, NOON_NS, make_rule, make_watchlist
from tapewatch.delivery_documents import Channel, Delivery, Subscription, Told, read_channel, read_subscription
from tapewatch.documents import DAY_S
from tapewatch.engine.columns import SECOND_NS
from tapewatch.errors import Forbidden, LeaseLost, NotFound, VersionConflict
from tapewatch.ports import DEAD_DAYS, MOST_CHANNELS, SENT_DAYS, AuditQuery, DeliveryQuery, Position, Store

SECRET = "a secret that nobody is told"  # noqa: S105  # of nobody
DAY_NS = DAY_S * SECOND_NS


def make_channel(channel_id: str, **changes: Any) -> Channel:
    return read_channel(
        {
            "id": channel_id,
            "owner": "local",
            "name": f"Channel {channel_id}",
            "settings": {"kind": "webhook", "url": "https://hooks.example.com/in?a='b", "secret": SECRET},
            "created_at": "2013-10-07T12:00:01.000000000Z",
            "updated_at": "2013-10-07T12:00:01.000000000Z",
            **changes,
        }
    )


def make_subscription(subscription_id: str, **changes: Any) -> Subscription:
    return read_subscription(
        {
            "id": subscription_id,
            "owner": "local",
            "name": f"Subscription {subscription_id} «'\";-- 100% :x ? 🚀»",
            "what": {"all": True},
            "channels": ["c"],
            "quiet_hours": {"from": "22:00", "to": "07:00", "time_zone": "America/New_York"},
            "created_at": "2013-10-07T12:00:01.000000000Z",
            "updated_at": "2013-10-07T12:00:01.000000000Z",
            **changes,
        }
    )


def make_delivery(number: int, **changes: Any) -> Delivery:
    delivery = Delivery(
        delivery_id=f"d{number:05}",
        channel_id="c",
        owner="local",
        alert_id=f"a{number}",
        rule_id="gapper",
        symbol="AAPL",
        subscriptions=("s",),
        at_ns=NOON_NS + number,
        next_try_ns=NOON_NS + number,
        body={"alert_id": f"a{number}", "texts": list(HOSTILE_TEXTS[:-1]), "price": None},
    )
    return msgspec.structs.replace(delivery, **changes)


class StoreDeliveries:
    """Part of `StoreContract`."""

    async def test_channel_is_given_back_with_its_secret_and_the_audit_log_never_has_it(self, store: Store) -> None:
        saved = await store.save_channel(make_channel("c"), actor="ann")
        assert saved == await store.channel("c") == make_channel("c")
        assert saved.settings.stored()["secret"] == SECRET
        changed = make_channel("c", version=2, name="New", settings={**saved.settings.stored(), "secret": SECRET + "!"})
        await store.save_channel(changed, actor="ann")
        await store.delete_channel("c", actor="root")
        entries = await store.audit(AuditQuery(kind="channel"))
        assert [(entry.actor, entry.action, entry.version) for entry in entries] == [
            ("root", "delete", 2),
            ("ann", "change", 2),
            ("ann", "create", 1),
        ]
        assert entries[1].after == {"name": "New"}
        assert SECRET not in str(entries)
        with pytest.raises(NotFound):
            await store.channel("c")
        with pytest.raises(VersionConflict):
            await store.save_channel(make_channel("c"))

    async def test_subscription_lives_by_versions(self, store: Store) -> None:
        first = await store.save_subscription(make_subscription("s"))
        assert first == await store.subscription("s") == make_subscription("s")
        for version in (1, 3):
            with pytest.raises(VersionConflict):
                await store.save_subscription(make_subscription("s", version=version))
        # The owner is that of the first version.
        second = await store.save_subscription(make_subscription("s", version=2, owner="bob", created_at="x"))
        assert (second.owner, second.created_at) == ("local", first.created_at)
        await store.delete_subscription("s")
        for gone in (store.subscription("s"), store.delete_subscription("s")):
            with pytest.raises(NotFound):
                await gone
        with pytest.raises(VersionConflict):
            await store.save_subscription(make_subscription("s", version=3))

    async def test_documents_of_an_owner_are_only_theirs(self, store: Store) -> None:
        for name, owner in (("b", "ann"), ("a", "ann"), ("c", "bob")):
            await store.save_subscription(make_subscription(name, owner=owner))
            await store.save_channel(make_channel(name, owner=owner))
        assert [each.id for each in await store.subscriptions("ann")] == ["a", "b"]
        assert [each.id for each in await store.channels("bob")] == ["c"]
        assert [each.id for each in await store.channels()] == ["a", "b", "c"]
        assert await store.subscriptions("nobody") == []

    async def test_of_many_that_create_at_once_as_many_succeed_as_there_is_room(self, store: Store) -> None:
        for number in range(MOST_CHANNELS - 1):
            await store.save_channel(make_channel(f"c{number}"))
        more = (store.save_channel(make_channel(f"n{number}")) for number in range(10))
        outcomes = await asyncio.gather(*more, return_exceptions=True)
        assert Counter(type(outcome) for outcome in outcomes) == {Channel: 1, Forbidden: 9}
        await store.save_channel(make_channel("other", owner="bob"))
        await store.delete_channel("c0")
        await store.save_channel(make_channel("again"))

    async def test_channel_that_a_subscription_names_stays_and_one_that_goes_leaves_nothing_waiting(
        self, store: Store
    ) -> None:
        await store.save_channel(make_channel("c"))
        await store.save_subscription(make_subscription("s"))
        await store.save_deliveries([make_delivery(1), make_delivery(2, state="held")], reader="r")
        with pytest.raises(VersionConflict, match="s"):
            await store.delete_channel("c")
        assert (await store.channel("c")).version == 1
        await store.delete_subscription("s")
        await store.delete_channel("c")
        assert {each.state for each in await store.deliveries(DeliveryQuery())} == {"dead"}
        assert await store.count_waiting(["c"]) == {}

    async def test_routing_number_rises_with_all_that_routing_depends_on(self, store: Store) -> None:
        numbers = [await store.routing_number()]
        for change in (
            lambda: store.save_channel(make_channel("c")),
            lambda: store.save_subscription(make_subscription("s")),
            lambda: store.save_subscription(make_subscription("s", version=2)),
            lambda: store.delete_subscription("s"),
            lambda: store.delete_channel("c"),
            lambda: store.save_watchlist(make_watchlist("w")),
            lambda: store.delete_watchlist("w"),
            lambda: store.save_rule(make_rule("r")),
            lambda: store.delete_rule("r"),
        ):
            await change()
            numbers.append(await store.routing_number())
        assert numbers == sorted(set(numbers))


class StoreOutbox:
    """Part of `StoreContract`."""

    async def test_delivery_exists_once_and_comes_back_as_it_was(self, store: Store) -> None:
        first, second = make_delivery(1, at_ns=INT64_MAX), make_delivery(2, state="held", subscriptions=())
        assert await store.save_deliveries([first, second, first], reader="r") == [first, second]
        assert await store.save_deliveries([make_delivery(1), make_delivery(3)], reader="r") == [make_delivery(3)]
        assert await store.delivery(first.delivery_id) == first
        assert await store.delivery(second.delivery_id) == second
        with pytest.raises(NotFound):
            await store.delivery("nothing")

    async def test_deliveries_and_position_are_one_and_an_earlier_owner_is_refused_whole(self, store: Store) -> None:
        first = await store.take_over("deliveries:0")
        await store.save_deliveries([make_delivery(1)], reader="deliveries:0", position=Position(1, 5))
        await store.save_deliveries([], reader="deliveries:0", position=Position(1, 6), owner=first.owner)
        second = await store.take_over("deliveries:0")
        assert second.position == Position(1, 6)
        with pytest.raises(LeaseLost):
            await store.save_deliveries(
                [make_delivery(2)], reader="deliveries:0", position=Position(1, 7), owner=first.owner
            )
        assert await store.position("deliveries:0") == Position(1, 6)
        assert await store.deliveries(DeliveryQuery()) == [make_delivery(1)]

    async def test_due_is_told_by_channel_and_oldest_first(self, store: Store) -> None:
        later = NOON_NS + 1_000
        await store.save_deliveries(
            [
                make_delivery(3),
                make_delivery(1),
                make_delivery(2, next_try_ns=later),
                make_delivery(4, state="held", next_try_ns=later),
                make_delivery(5, channel_id="other", state="held", next_try_ns=later),
                make_delivery(6, channel_id="sent", state="sent"),
            ],
            reader="r",
        )
        assert await store.due_channels(NOON_NS) == []
        assert await store.due_channels(NOON_NS + 10) == ["c"]
        assert await store.due_channels(later) == ["c", "other"]
        due = await store.waiting_deliveries("c", state="pending", due_ns=NOON_NS + 10)
        assert [each.delivery_id for each in due] == ["d00001", "d00003"]
        oldest = await store.waiting_deliveries("c", state="pending", limit=2)
        assert [each.delivery_id for each in oldest] == ["d00001", "d00002"]
        assert await store.count_waiting(["c", "other", "sent", "none"]) == {"c": 4, "other": 1}
        assert await store.count_waiting([]) == {}

    async def test_of_many_that_claim_at_once_one_has_the_attempt(self, store: Store) -> None:
        await store.save_deliveries([make_delivery(1)], reader="r")
        claims = (store.claim_delivery(make_delivery(1), until_ns=NOON_NS + 50) for _ in range(8))
        assert sum(await asyncio.gather(*claims)) == 1
        claimed = await store.delivery("d00001")
        assert (claimed.attempts, claimed.next_try_ns) == (1, NOON_NS + 50)
        assert await store.claim_delivery(claimed, until_ns=NOON_NS + 60)

    async def test_attempt_ends_in_another_or_for_good(self, store: Store) -> None:
        await store.save_deliveries([make_delivery(1)], reader="r")
        await store.finish_delivery("d00001", state="pending", at_ns=1, error="HTTP 500", next_try_ns=NOON_NS + 9)
        failed = await store.delivery("d00001")
        assert (failed.state, failed.error, failed.next_try_ns) == ("pending", "HTTP 500", NOON_NS + 9)
        await store.finish_delivery("d00001", state="sent", at_ns=NOON_NS + 10)
        await store.finish_delivery("d00001", state="dead", at_ns=NOON_NS + 11, error="late")
        sent = await store.delivery("d00001")
        assert (sent.state, sent.error, sent.sent_ns) == ("sent", "", NOON_NS + 10)

    async def test_what_is_folded_is_told_in_its_digest_and_all_of_it_or_nothing(self, store: Store) -> None:
        await store.save_deliveries([make_delivery(n, state="held") for n in range(600)], reader="r")
        await store.save_deliveries([make_delivery(700)], reader="r")
        digest = make_delivery(900, kind="digest")
        folded = [f"d{n:05}" for n in range(600)]
        assert not await store.fold_deliveries(digest, [*folded, "d00800"])
        assert await store.fold_deliveries(digest, folded)
        assert not await store.fold_deliveries(digest, folded)
        one = await store.delivery("d00001")
        assert (one.state, one.digest_id) == ("digested", "d00900")
        assert await store.count_waiting(["c"]) == {"c": 2}
        assert await store.delivery("d00900") == digest

    async def test_dead_and_sent_can_be_sent_again_and_what_waits_cannot(self, store: Store) -> None:
        for number, state in enumerate(("dead", "sent", "pending", "held", "digested")):
            await store.save_deliveries([make_delivery(number, state=state, attempts=8, error="e")], reader="r")
        for number in (0, 1):
            again = await store.replay_delivery(f"d{number:05}", now_ns=77)
            assert (again.state, again.attempts, again.error, again.next_try_ns) == ("pending", 0, "", 77)
        for number in (2, 3, 4):
            with pytest.raises(VersionConflict):
                await store.replay_delivery(f"d{number:05}", now_ns=77)
        with pytest.raises(NotFound):
            await store.replay_delivery("nothing", now_ns=77)

    async def test_pages_are_newest_first_and_filtered(self, store: Store) -> None:
        states = ("dead", "pending")
        saved = [
            make_delivery(n, state=states[n % 2], owner=f"o{n % 3}", channel_id=f"c{n % 5}", at_ns=NOON_NS + n // 2)
            for n in range(30)
        ]
        await store.save_deliveries(saved, reader="r")
        newest = sorted(saved, key=lambda each: (each.at_ns, each.delivery_id), reverse=True)
        found: list[Delivery] = []
        before = None
        while page := await store.deliveries(DeliveryQuery(before=before, limit=7)):
            found += page
            before = (page[-1].at_ns, page[-1].delivery_id)
        assert found == newest
        mine = await store.deliveries(DeliveryQuery(owner="o1", state="dead"))
        assert mine == [each for each in newest if (each.owner, each.state) == ("o1", "dead")]
        channel = await store.deliveries(DeliveryQuery(channel_id="c2"))
        assert channel == [each for each in newest if each.channel_id == "c2"]

    async def test_told_is_what_timing_needs(self, store: Store) -> None:
        await store.save_deliveries(
            [
                make_delivery(3, subscriptions=("s", "t"), state="sent"),
                make_delivery(2, state="held", next_try_ns=99),
                make_delivery(1),
                make_delivery(4, kind="digest"),
            ],
            reader="r",
        )
        assert await store.told_since(NOON_NS + 2) == [
            Told(("s",), "gapper", "AAPL", NOON_NS + 2, 99),
            Told(("s", "t"), "gapper", "AAPL", NOON_NS + 3, 0),
        ]

    async def test_what_is_over_is_forgotten_and_what_waited_for_too_long_is_dead(self, store: Store) -> None:
        now_ns = NOON_NS + 100 * DAY_NS
        old = {"sent": SENT_DAYS, "digested": SENT_DAYS, "dead": DEAD_DAYS, "pending": SENT_DAYS, "held": SENT_DAYS}
        for number, (state, days) in enumerate(old.items()):
            for older in (0, 1):
                at_ns = now_ns - days * DAY_NS + (-1 if older else 1)
                await store.save_deliveries([make_delivery(number * 2 + older, state=state, at_ns=at_ns)], reader="r")
        await store.expire(now_ns)
        left = {each.delivery_id: each.state for each in await store.deliveries(DeliveryQuery())}
        assert left == {
            **{f"d{number * 2:05}": state for number, state in enumerate(old)},
            "d00007": "dead",
            "d00009": "dead",
        }
