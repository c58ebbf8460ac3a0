"""The role deliveries over the embedded adapters and a receiver that speaks TLS."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hooks import NAME, Names, Receiver, answer, here, make_tls, receiving

from tapewatch.accounts.users import User
from tapewatch.adapters.memory import MemoryBus
from tapewatch.adapters.sql import SqlStore
from tapewatch.channels import webhook
from tapewatch.channels.apprise_channel import AppriseSender
from tapewatch.channels.sending import Senders
from tapewatch.channels.webhook import WebhookSender
from tapewatch.contracts.samples import make_alert, make_rule, make_watchlist
from tapewatch.contracts.store_deliveries import SECRET, make_channel, make_subscription
from tapewatch.deliveries.pace import MOST_ATTEMPTS
from tapewatch.documents import Alert, rfc3339
from tapewatch.engine.columns import SECOND_NS
from tapewatch.errors import Unavailable
from tapewatch.ports import Alerts, DeliveryQuery, Position
from tapewatch.roles.deliveries import DEAD_IN_A_ROW, DeliveriesRole

pytestmark = pytest.mark.anyio

START_NS = 1_741_000_000 * SECOND_NS


class Hand:
    """A clock that the test moves; who sleeps looks again soon."""

    def __init__(self) -> None:
        self.ns = START_NS

    def now_ns(self) -> int:
        return self.ns

    def pass_s(self, seconds: float) -> None:
        self.ns += round(seconds * SECOND_NS)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.005))


@pytest.fixture
def clock() -> Hand:
    return Hand()


@pytest.fixture(scope="module")
def tls() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    return make_tls()


@pytest.fixture
async def receiver(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> AsyncIterator[Receiver]:
    async with receiving(tls[0]) as receiver:
        yield receiver


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    store = SqlStore(tmp_path / "store.db")
    await store.upgrade()
    await store.save_rule(make_rule("gapper"))
    yield store
    await store.close()


@pytest.fixture
def make_role(
    bus: MemoryBus, store: SqlStore, clock: Hand, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> Callable[..., DeliveriesRole]:
    def make(**options: Any) -> DeliveriesRole:
        addresses = here(Names({NAME: [["127.0.0.1"]]}))
        senders = Senders(webhook=WebhookSender(addresses, clock, tls=tls[1]), others=AppriseSender(addresses, clock))
        return DeliveriesRole(bus=bus, store=store, clock=clock, sender=senders, **options)

    return make


@asynccontextmanager
async def at_work(role: DeliveriesRole) -> AsyncIterator[DeliveriesRole]:
    task = asyncio.create_task(role.run())
    try:
        yield role
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def hook(channel_id: str, receiver: Receiver, **changes: Any) -> Any:
    url = f"https://{NAME}:{receiver.port}/{channel_id}"
    return make_channel(channel_id, settings={"kind": "webhook", "url": url, "secret": SECRET}, **changes)


def told(**changes: Any) -> Any:
    return make_subscription("s", **{"quiet_hours": None, "digest": None, **changes})


def fired(number: int, clock: Hand, **changes: Any) -> Alert:
    return make_alert(number, received_ns=clock.ns, **changes)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while True:
            found = condition()
            if await found if asyncio.iscoroutine(found) else found:
                return
            await asyncio.sleep(0.002)


def bodies(receiver: Receiver) -> list[dict[str, Any]]:
    return [json.loads(body) for _, body in receiver.requests]


async def states(store: SqlStore) -> dict[str, str]:
    return {each.delivery_id: each.state for each in await store.deliveries(DeliveryQuery())}


async def publish(bus: MemoryBus, *alerts: Alert, p: int = 0) -> Position:
    return await bus.publish(f"alerts.filtered:{p}", Alerts(alerts))


async def test_alert_is_told_once_to_those_that_it_is_for(
    *, bus: MemoryBus, store: SqlStore, clock: Hand, receiver: Receiver, make_role: Callable[..., DeliveriesRole]
) -> None:
    await store.save_channel(hook("c", receiver))
    await store.save_channel(hook("bobs", receiver, owner="bob"))
    await store.save_watchlist(make_watchlist("mine", symbols=["AAPL"]))
    await store.save_subscription(told(what={"watchlists": ["mine"], "rules": ["gapper"]}))
    # Another's subscription sees no alerts of our rules, and nobody's leads to another's channel.
    await store.save_subscription(told().model_copy(update={"id": "t", "owner": "bob", "channels": ["bobs"]}))
    await store.save_subscription(told().model_copy(update={"id": "u", "channels": ["bobs", "c"]}))
    async with at_work(make_role(partitions=2)) as role:
        alert = fired(1, clock)
        await publish(bus, alert, fired(2, clock, symbol="MSFT"))
        await publish(bus, alert.annotated("A print before this alert was cancelled."), p=1)
        await until(lambda: len(receiver.requests) == 2)
        await publish(bus, fired(3, clock, rule_id="of nobody"))
        await until(lambda: role.kept_back.get("unknown_rule") == 1)
        await asyncio.sleep(0.05)
        assert len(receiver.requests) == 2
    first, second = sorted(bodies(receiver), key=lambda body: body["alert"]["symbol"])
    assert first["alert"] == alert.as_json()
    assert (first["subscriptions"], second["subscriptions"]) == (["s", "u"], ["u"])
    assert {headers["request"].split()[1] for headers, _ in receiver.requests} == {"/c"}
    assert set((await states(store)).values()) == {"sent"}


@pytest.mark.parametrize("how", ["disabled", "deleted"])
async def test_channel_of_somebody_who_was_shut_out_is_told_nothing_more(
    *,
    bus: MemoryBus,
    store: SqlStore,
    clock: Hand,
    receiver: Receiver,
    make_role: Callable[..., DeliveriesRole],
    how: str,
) -> None:
    for name, role in (("root", "admin"), ("bob", "trader"), ("ann", "trader")):
        await store.add_user(User(user_id=name, name=name, role=role, password_hash="", created_at_ns=1))  # type: ignore[arg-type]
    await store.save_rule(make_rule("shared", owner="root", shared=True))
    await store.save_rule(make_rule("bobs", owner="bob", shared=True))
    for owner in ("bob", "ann"):
        await store.save_channel(hook(f"of-{owner}", receiver, owner=owner))
        await store.save_subscription(
            make_subscription(f"s-{owner}", owner=owner, channels=[f"of-{owner}"], quiet_hours=None, digest=None)
        )
    async with at_work(make_role()) as working:
        await publish(bus, fired(1, clock, rule_id="shared", owner="root"))
        await until(lambda: len(receiver.requests) == 2)
        await (store.change_user("bob", disabled=True) if how == "disabled" else store.delete_user("bob"))
        number = await store.accounts_number()
        await until(lambda: working._routing is not None and working._routing[1] == number)  # it looks each second
        clock.pass_s(10)
        # What bob's shared rule finds is nobody's business any more, either.
        await publish(bus, fired(2, clock, rule_id="bobs", owner="bob", rule_version=1))
        await publish(bus, fired(3, clock, rule_id="shared", owner="root"))
        await until(lambda: len(receiver.requests) == 3)
        await asyncio.sleep(0.1)
    assert sorted(headers["request"].split()[1] for headers, _ in receiver.requests) == [
        "/of-ann",
        "/of-ann",
        "/of-bob",
    ]
    assert [told["alert"]["rule_id"] for told in bodies(receiver)] == ["shared"] * 3


async def test_failed_delivery_is_tried_again_with_the_same_key_and_late_ones_say_so(
    *, bus: MemoryBus, store: SqlStore, clock: Hand, receiver: Receiver, make_role: Callable[..., DeliveriesRole]
) -> None:
    receiver.answers = [answer(500), answer(429, "Retry-After: 100"), answer(200)]
    await store.save_channel(hook("c", receiver))
    await store.save_subscription(told())
    async with at_work(make_role()):
        await publish(bus, fired(1, clock))
        await until(lambda: _failed(store, "HTTP 500"))
        await asyncio.sleep(0.05)
        assert len(receiver.requests) == 1  # not before its time
        clock.pass_s(6)
        await until(lambda: _failed(store, "HTTP 429"))
        clock.pass_s(90)
        await asyncio.sleep(0.05)
        assert len(receiver.requests) == 2  # the receiver asked for more
        clock.pass_s(20)
        await until(lambda: len(receiver.requests) == 3)
        await until(lambda: _all_are(store, "sent"))
    assert len({headers["idempotency-key"] for headers, _ in receiver.requests}) == 1
    assert [body["attempt"] for body in bodies(receiver)] == [1, 2, 3]
    assert bodies(receiver)[2]["late_s"] == 116
    assert len({headers["x-tapewatch-signature"] for headers, _ in receiver.requests}) == 3


async def _failed(store: SqlStore, why: str) -> bool:
    return why in {each.error for each in await store.deliveries(DeliveryQuery())}


async def _all_are(store: SqlStore, *wanted: str) -> bool:
    return set((await states(store)).values()) == set(wanted)


async def test_endless_failure_ends_in_dead_letters_and_a_channel_that_is_off_with_a_notice(
    *, bus: MemoryBus, store: SqlStore, clock: Hand, receiver: Receiver, make_role: Callable[..., DeliveriesRole]
) -> None:
    receiver.answers = [answer(500)]
    await store.save_channel(hook("c", receiver))
    await store.save_subscription(told())

    async def off() -> bool:
        clock.pass_s(1_200)
        return not (await store.channel("c")).enabled

    async with at_work(make_role()) as role:
        await publish(bus, *(fired(n, clock, symbol=f"S{n}") for n in range(DEAD_IN_A_ROW)))
        await until(off)
        await until(lambda: not role._channels["c"].enabled)
        channel = await store.channel("c")
        assert "HTTP 500" in channel.notice
        assert set((await states(store)).values()) == {"dead"}
        assert len(receiver.requests) == DEAD_IN_A_ROW * MOST_ATTEMPTS
        # Nothing is queued for it any more, and a dead letter can be sent again once it is on.
        await publish(bus, fired(9, clock))
        await until(lambda: role.kept_back.get("channel_off") == 1)
        receiver.answers = [answer(200)]
        (dead, *_) = await states(store)
        await store.replay_delivery(dead, now_ns=clock.ns)
        await asyncio.sleep(0.05)
        assert len(receiver.requests) == DEAD_IN_A_ROW * MOST_ATTEMPTS
        await store.save_channel(channel.model_copy(update={"enabled": True, "notice": "", "version": 3}))
        clock.pass_s(1_200)
        await until(lambda: len(receiver.requests) == DEAD_IN_A_ROW * MOST_ATTEMPTS + 1)
        assert receiver.requests[-1][0]["idempotency-key"] == dead
        await until(lambda: _all_are(store, "sent", "dead"))


async def test_slow_receiver_does_not_delay_another(
    *,
    bus: MemoryBus,
    store: SqlStore,
    clock: Hand,
    receiver: Receiver,
    tls: tuple[ssl.SSLContext, ssl.SSLContext],
    make_role: Callable[..., DeliveriesRole],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(webhook, "ANSWER_S", 30.0)  # longer than the test has patience
    async with AsyncExitStack() as stack:
        slow = await stack.enter_async_context(receiving(tls[0]))
        slow.hangs = True
        await store.save_channel(hook("slow", slow))
        await store.save_channel(hook("c", receiver))
        await store.save_subscription(told(channels=["slow", "c"]))
        async with at_work(make_role()):
            for number in range(10):
                await publish(bus, fired(number, clock, symbol=f"S{number}"))
            await until(lambda: len(receiver.requests) == 10)
            assert len(slow.requests) <= 1


async def test_storm_is_one_digest(
    *, bus: MemoryBus, store: SqlStore, clock: Hand, receiver: Receiver, make_role: Callable[..., DeliveriesRole]
) -> None:
    await store.save_channel(hook("c", receiver))
    await store.save_subscription(told(digest={"more_than": 3, "within_s": 60}))
    async with at_work(make_role()):
        await publish(bus, *(fired(n, clock, symbol=f"S{n}") for n in range(50)))
        await until(lambda: len(receiver.requests) == 3)
        clock.pass_s(61)
        await until(lambda: len(receiver.requests) == 4)
        await until(lambda: _all_are(store, "sent", "digested"))
    digest = bodies(receiver)[3]
    assert (digest["type"], digest["digest"]["count"], digest["digest"]["reason"]) == ("digest", 47, "gathered")
    assert digest["digest"]["rules"] == [{"rule_id": "gapper", "rule_name": "Gapper", "count": 47}]
    assert len(digest["digest"]["alerts"]) == 20


async def test_quiet_hours_end_in_a_digest(
    *, bus: MemoryBus, store: SqlStore, clock: Hand, receiver: Receiver, make_role: Callable[..., DeliveriesRole]
) -> None:
    at = rfc3339(clock.ns)[11:16]
    hour = int(at[:2])
    quiet = {"from": f"{hour:02}:00", "to": f"{(hour + 1) % 24:02}:00", "time_zone": "UTC"}
    await store.save_channel(hook("c", receiver))
    await store.save_subscription(told(quiet_hours=quiet))
    async with at_work(make_role()):
        await publish(bus, fired(1, clock), fired(2, clock, symbol="MSFT"))
        await until(lambda: _all_are(store, "held"))
        await asyncio.sleep(0.05)
        assert receiver.requests == []
        clock.pass_s(3_600)
        await until(lambda: len(receiver.requests) == 1)
        await publish(bus, fired(3, clock))
        await until(lambda: len(receiver.requests) == 2)
    assert [body["type"] for body in bodies(receiver)] == ["digest", "alert"]


async def test_more_than_a_channel_may_be_told_in_a_minute_is_a_digest(
    *, bus: MemoryBus, store: SqlStore, clock: Hand, receiver: Receiver, make_role: Callable[..., DeliveriesRole]
) -> None:
    await store.save_channel(hook("c", receiver, rate_per_minute=4))
    await store.save_subscription(told())
    async with at_work(make_role()):
        await publish(bus, *(fired(n, clock, symbol=f"S{n}") for n in range(4)))
        await until(lambda: len(receiver.requests) == 4)
        await publish(bus, *(fired(n, clock, symbol=f"S{n}") for n in range(4, 34)))
        await until(lambda: _count(store, 34))
        await asyncio.sleep(0.05)
        assert len(receiver.requests) == 4
        clock.pass_s(61)
        await until(lambda: len(receiver.requests) == 5)
        await until(lambda: _all_are(store, "sent", "digested"))
    assert bodies(receiver)[4]["digest"]["count"] == 30
    assert bodies(receiver)[4]["digest"]["reason"] == "behind"


async def _count(store: SqlStore, wanted: int) -> bool:
    return len(await states(store)) == wanted


async def test_full_queue_keeps_the_newest_and_counts_the_others(
    *, bus: MemoryBus, store: SqlStore, clock: Hand, receiver: Receiver, make_role: Callable[..., DeliveriesRole]
) -> None:
    receiver.answers = [answer(500)]
    await store.save_channel(hook("c", receiver))
    await store.save_subscription(told())
    async with at_work(make_role(most_waiting=20)) as role:
        for number in range(30):
            end = await publish(bus, *(fired(number * 10 + n, clock, symbol=f"S{n}") for n in range(10)))
            clock.pass_s(0.01)
        await until(lambda: role.positions == [end])
        waiting = (await store.count_waiting(["c"]))["c"]
        assert waiting <= 22
        pending = await store.waiting_deliveries("c", state="pending", limit=100)
        told_in_all = sum(each.body["count"] if each.kind == "digest" else 1 for each in pending)
        assert told_in_all == 300


async def test_successor_sends_what_was_decided_once_and_goes_on_behind_it(
    *, bus: MemoryBus, store: SqlStore, clock: Hand, receiver: Receiver, make_role: Callable[..., DeliveriesRole]
) -> None:
    await store.save_channel(hook("c", receiver, enabled=True))
    await store.save_subscription(told(cooldown=60))
    receiver.answers = [answer(503)]
    async with at_work(make_role()):
        await publish(bus, fired(1, clock))
        await until(lambda: len(receiver.requests) == 1)
    assert await store.position("deliveries:0") is not None
    receiver.answers = [answer(200)]
    clock.pass_s(30)
    await publish(bus, fired(2, clock))  # within the cooldown that the first one knew
    clock.pass_s(40)
    await publish(bus, fired(3, clock))
    async with at_work(make_role()) as role:
        await until(lambda: len(receiver.requests) >= 3)
        await until(lambda: _all_are(store, "sent"))
        assert role.kept_back == {"cooldown": 1}
    keys = [headers["idempotency-key"] for headers, _ in receiver.requests]
    assert len(keys) == 3
    assert len(set(keys)) == 2


async def test_store_that_is_away_is_waited_for(
    *,
    bus: MemoryBus,
    store: SqlStore,
    clock: Hand,
    receiver: Receiver,
    make_role: Callable[..., DeliveriesRole],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await store.save_channel(hook("c", receiver))
    await store.save_subscription(told())
    save, refused = store.save_deliveries, 0

    async def away(*arguments: Any, **more: Any) -> Any:
        nonlocal refused
        refused += 1
        if refused < 4:
            raise Unavailable("away")
        return await save(*arguments, **more)

    monkeypatch.setattr(store, "save_deliveries", away)
    async with at_work(make_role()):
        await publish(bus, fired(1, clock))
        await until(lambda: len(receiver.requests) == 1)
    assert refused >= 4
