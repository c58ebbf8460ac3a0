"""deliveries: alerts to the channels that subscriptions name.

It reads `alerts.filtered:{p}`, decides, and puts what is to be told into the outbox, together with its position. Beside
that each channel has a queue and a budget of its own: a receiver that is slow or away delays no other. What is in the
outbox is tried again after a crash; a receiver knows a repeat by its `Idempotency-Key`.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
import structlog

from tapewatch.accounts.roles import LOCAL
from tapewatch.channels.sending import Sender, SendFailed
from tapewatch.deliveries.deciding import Deciding
from tapewatch.deliveries.digests import DigestReason, digest_of
from tapewatch.deliveries.matching import Matching, Rights
from tapewatch.deliveries.messages import late_s
from tapewatch.deliveries.pace import MOST_ATTEMPTS, Pace, retry_after_s
from tapewatch.delivery_documents import MAX_COOLDOWN_S, Channel, Delivery, DeliveryState, Subscription
from tapewatch.documents import Rule, Watchlist, rfc3339
from tapewatch.engine.columns import SECOND_NS
from tapewatch.errors import Unavailable, VersionConflict
from tapewatch.patience import patiently
from tapewatch.ports import Alerts, Bus, Clock, Position, Store
from tapewatch.roles.recovery import Hole, Recovery
from tapewatch.telemetry import DELIVERIES_TOTAL, ERRORS_TOTAL

CHANNEL = "deliveries.updated"
"""Subscriptions or channels changed, or a delivery is to be sent again."""
MOST_WAITING = 1_000
"""Deliveries of a channel; past that the older half becomes a digest."""
DEAD_IN_A_ROW = 3
"""After so many dead letters a channel is switched off."""
_EACH_S = 1.0
_POSITION_EACH_NS = 5 * SECOND_NS
_CLAIM_NS = 60 * SECOND_NS
"""An attempt that says nothing for so long has died with its process."""
_LONGEST_PAUSE_S = 60.0
_AT_ONCE = 50
_LONGEST_REST_S = 5.0
"""A channel that waits for its pace looks again at what has come meanwhile."""

log = structlog.get_logger("tapewatch")
T = TypeVar("T")


@dataclass(slots=True)
class _Receiver:
    """What is remembered of a channel."""

    pace: Pace = field(default_factory=Pace)
    not_before_ns: int = 0
    failures: int = 0
    """In a row."""
    dead: int = 0
    """In a row."""
    task: asyncio.Task[None] | None = None


class DeliveriesRole:
    """One works. `resumes`: its bus outlives it; else it begins with what the streams retain."""

    def __init__(
        self,
        *,
        bus: Bus,
        store: Store,
        clock: Clock,
        sender: Sender,
        partitions: int = 1,
        resumes: bool = True,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        self._bus, self._store, self._clock, self._sender = bus, store, clock, sender
        self._most_waiting = most_waiting
        self._recoveries = [
            Recovery(f"deliveries:{p}", f"alerts.filtered:{p}", bus=bus, clock=clock, store=store if resumes else None)
            for p in range(partitions)
        ]
        self._deciding = Deciding()
        self._channels: dict[str, Channel] = {}
        self._receivers: dict[str, _Receiver] = {}
        self._rule_ids: frozenset[str] = frozenset()
        """All that were there when they were read last, those of users who were shut out too."""
        self._routing: tuple[int, int] | None = None
        self._reading = asyncio.Lock()
        self._news = asyncio.Event()

    @property
    def positions(self) -> list[Position | None]:
        """By partition, the newest entry that was decided."""
        return [recovery.position for recovery in self._recoveries]

    @property
    def kept_back(self) -> dict[str, int]:
        """Alerts that were not told although somebody subscribed to them, by reason."""
        return dict(self._deciding.kept_back)

    async def run(self) -> None:
        """Until the bus closes."""
        await self._read_routes()
        since_ns = self._clock.now_ns() - MAX_COOLDOWN_S * SECOND_NS
        told = await self._patiently(lambda: self._store.told_since(since_ns))
        self._deciding.timing.remember(told, await self._patiently(self._store.subscriptions))
        async with asyncio.TaskGroup() as tasks:
            beside = [
                tasks.create_task(self._listen(), name="deliveries news"),
                tasks.create_task(self._send_all(), name="deliveries sender"),
            ]
            async with asyncio.TaskGroup() as following:
                for recovery in self._recoveries:
                    following.create_task(self._follow(recovery), name=f"deliveries {recovery.stream}")
            for task in beside:
                task.cancel()

    # -- what comes in ------------------------------------------------------------------------------------------------

    async def _follow(self, recovery: Recovery) -> None:
        await recovery.begin()
        saved_ns = self._clock.now_ns()
        saved = recovery.position
        async with aclosing(recovery.entries()) as entries:  # type: ignore[type-var]  # a generator
            async for found in entries:
                if isinstance(found, Hole):
                    continue
                position, entry = found
                deliveries = await self._decide(entry) if isinstance(entry, Alerts) else []
                now_ns = self._clock.now_ns()
                if deliveries or now_ns >= saved_ns + _POSITION_EACH_NS:
                    await self._save(recovery, deliveries, position)
                    saved, saved_ns = position, now_ns
                recovery.position = position
        if recovery.position != saved:
            try:
                await self._store.save_deliveries(
                    [], reader=recovery.reader, position=recovery.position, owner=recovery.owner
                )
            except Unavailable:  # the same is decided once more, and exists already
                ERRORS_TOTAL.labels(where="deliveries.store").inc()

    async def _decide(self, entry: Alerts) -> list[Delivery]:
        """A rule that nobody knows yet may be newer than what was read of them."""
        if not all(alert.rule_id in self._rule_ids for alert in entry.alerts):
            await self._read_routes()
        return self._deciding.deliveries_of(entry.alerts)

    async def _save(self, recovery: Recovery, deliveries: Sequence[Delivery], position: Position) -> None:
        new = await self._patiently(
            lambda: self._store.save_deliveries(
                deliveries, reader=recovery.reader, position=position, owner=recovery.owner
            )
        )
        if new:
            for delivery in new:
                DELIVERIES_TOTAL.labels(state=delivery.state).inc()
            await self._make_room({delivery.channel_id for delivery in new})
            self._news.set()

    async def _make_room(self, channel_ids: set[str]) -> None:
        waiting = await self._patiently(lambda: self._store.count_waiting(sorted(channel_ids)))
        for channel_id, count in waiting.items():
            if count <= self._most_waiting:
                continue
            # What is being sent, or failed a moment ago, is not due and stays as it is.
            now_ns, half = self._clock.now_ns(), count - self._most_waiting // 2
            held = await self._waiting(channel_id, "held", None, half)
            due = await self._waiting(channel_id, "pending", now_ns, half)
            oldest = sorted(held + due, key=lambda each: (each.at_ns, each.delivery_id))[:half]
            await self._fold(oldest, "full")

    # -- what is known of subscriptions and channels ------------------------------------------------------------------

    async def _read_routes(self) -> None:
        async with self._reading:
            number = (
                await self._patiently(self._store.routing_number),
                await self._patiently(self._store.accounts_number),
            )
            if number == self._routing:
                return
            users = (await self._patiently(lambda: self._store.accounts(self._clock.now_ns()))).users
            # As `serve.access.Accounts.is_active`: what belongs to somebody who was shut out goes nowhere.
            active = {LOCAL.user_id, *(user.user_id for user in users if not user.disabled)}

            def goes_out(owner: str) -> bool:
                return not users or owner in active

            subscriptions = [s for s in await self._patiently(self._store.subscriptions) if goes_out(s.owner)]
            channels = [c for c in await self._patiently(self._store.channels) if goes_out(c.owner)]
            every = (await self._patiently(self._store.rules)).rules
            rules = [rule for rule in every if goes_out(rule.owner)]
            watchlists = await self._patiently(self._store.watchlists)
            self._deciding.matching = await asyncio.to_thread(_matching, subscriptions, rules, watchlists)
            self._rule_ids = frozenset(rule.id for rule in every)
            self._channels = {channel.id: channel for channel in channels}
            self._deciding.channels = {channel.id: channel.owner for channel in channels if channel.enabled}
            for channel_id in [known for known in self._receivers if known not in self._channels]:
                if self._receivers[channel_id].task is None:
                    del self._receivers[channel_id]
            self._routing = number

    async def _listen(self) -> None:
        while True:
            try:
                async for _ in self._bus.listen(CHANNEL):
                    self._news.set()
            except Unavailable:
                ERRORS_TOTAL.labels(where="deliveries.listen").inc()
            await self._clock.sleep(_EACH_S)

    # -- what goes out ------------------------------------------------------------------------------------------------

    async def _send_all(self) -> None:
        """A task for each channel that has something to be told."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._news.clear()
                now_ns = self._clock.now_ns()
                due = await self._patiently(lambda: self._store.due_channels(self._clock.now_ns()))
                await self._read_routes()  # after that, so that what is due goes where its channel leads now
                for channel_id in due:
                    channel = self._channels.get(channel_id)
                    receiver = self._receivers.setdefault(channel_id, _Receiver())
                    if channel is None or not channel.enabled or receiver.task is not None:
                        continue
                    if receiver.not_before_ns <= now_ns:
                        receiver.task = tasks.create_task(
                            self._work_off(channel_id, receiver), name=f"deliveries {channel_id}"
                        )
                sleeping = asyncio.ensure_future(self._clock.sleep(_EACH_S))
                waking = asyncio.ensure_future(self._news.wait())
                try:
                    await asyncio.wait({sleeping, waking}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    sleeping.cancel()
                    waking.cancel()

    async def _work_off(self, channel_id: str, receiver: _Receiver) -> None:
        """Until nothing is due, or an attempt failed."""
        try:
            while True:
                channel = self._channels.get(channel_id)
                if channel is None or not channel.enabled:
                    return
                wait_ns = receiver.pace.wait_ns(channel.rate, self._clock.now_ns())
                if wait_ns:
                    await self._clock.sleep(min(wait_ns / SECOND_NS, _LONGEST_REST_S))
                    continue
                for delivery in await self._next(channel):
                    if receiver.pace.wait_ns(channel.rate, self._clock.now_ns()):
                        break
                    if not await self._attempt(channel, delivery, receiver):
                        return
                else:
                    if not await self._waiting(channel_id, "pending", self._clock.now_ns(), 1):
                        return
        finally:
            receiver.task = None

    async def _next(self, channel: Channel) -> list[Delivery]:
        """What is due, oldest first: gathered into a digest where that is due, or where it is more than the channel may
        be told in a minute.
        """
        now_ns = self._clock.now_ns()
        held = await self._waiting(channel.id, "held", now_ns, self._most_waiting)
        if held:
            await self._fold(held, "gathered")
        due = await self._waiting(channel.id, "pending", now_ns, channel.rate + 1)
        if len(due) > channel.rate:
            all_due = await self._waiting(channel.id, "pending", now_ns, self._most_waiting)
            await self._fold([each for each in all_due if each.kind != "test"], "behind")
            due = await self._waiting(channel.id, "pending", now_ns, channel.rate + 1)
        return due[:_AT_ONCE]

    async def _attempt(self, channel: Channel, delivery: Delivery, receiver: _Receiver) -> bool:
        """Whether the channel goes on at once."""
        now_ns = self._clock.now_ns()
        if not await self._patiently(lambda: self._store.claim_delivery(delivery, until_ns=now_ns + _CLAIM_NS)):
            return True
        receiver.pace.sent(now_ns)
        delivery = msgspec.structs.replace(delivery, attempts=delivery.attempts + 1)
        try:
            await self._sender.send(channel, delivery)
        except SendFailed as failure:
            await self._failed(channel, delivery, receiver, failure)
            return False
        receiver.failures = receiver.dead = 0
        at_ns = self._clock.now_ns()
        await self._patiently(
            lambda: self._store.finish_delivery(delivery.delivery_id, state="sent", at_ns=at_ns),
        )
        late = late_s(delivery, now_ns=at_ns)
        DELIVERIES_TOTAL.labels(state="sent" if late is None else "sent_late").inc()
        return True

    async def _failed(self, channel: Channel, delivery: Delivery, receiver: _Receiver, failure: SendFailed) -> None:
        """The delivery waits, and so does its channel: others of it would fail, too."""
        attempts, now_ns = delivery.attempts, self._clock.now_ns()
        chance = random.random()  # noqa: S311  # jitter needs no secrecy
        wait_s = max(retry_after_s(attempts, chance=chance), failure.retry_after_s or 0.0)
        dead = failure.permanent or attempts >= MOST_ATTEMPTS
        receiver.failures += 1
        pause_s = failure.retry_after_s or min(retry_after_s(receiver.failures, chance=chance), _LONGEST_PAUSE_S)
        receiver.not_before_ns = now_ns + round(pause_s * SECOND_NS)
        next_ns = 0 if dead else now_ns + round(wait_s * SECOND_NS)
        state: DeliveryState = "dead" if dead else "pending"
        ERRORS_TOTAL.labels(where="deliveries.send").inc()
        log.warning(
            "a delivery failed", channel=channel.id, kind=channel.kind, attempts=attempts, state=state, why=str(failure)
        )
        await self._patiently(
            lambda: self._store.finish_delivery(
                delivery.delivery_id,
                state=state,
                at_ns=now_ns,
                error=str(failure),
                next_try_ns=next_ns,
            )
        )
        if dead:
            DELIVERIES_TOTAL.labels(state="dead").inc()
            receiver.dead += 1
            if receiver.dead >= DEAD_IN_A_ROW:
                await self._switch_off(channel, str(failure))

    async def _switch_off(self, channel: Channel, why: str) -> None:
        """With a notice for its owner. What waits stays until it is switched on again, or for a week."""
        now_ns = self._clock.now_ns()
        notice = f"switched off at {rfc3339(now_ns)[:19]}Z: {DEAD_IN_A_ROW} deliveries in a row failed; the last: {why}"
        changed = channel.model_copy(
            update={"enabled": False, "notice": notice, "version": channel.version + 1, "updated_at": rfc3339(now_ns)}
        )
        try:
            await self._patiently(lambda: self._store.save_channel(changed, actor="deliveries"))
        except VersionConflict:  # its owner has changed it: then it may work
            return
        log.warning("a channel was switched off", channel=channel.id, why=why)
        self._receivers[channel.id].dead = 0
        await self._read_routes()

    # -- the outbox ---------------------------------------------------------------------------------------------------

    async def _fold(self, deliveries: Sequence[Delivery], reason: DigestReason) -> None:
        if not deliveries:
            return
        digest = digest_of(deliveries, reason, now_ns=self._clock.now_ns())
        if await self._patiently(
            lambda: self._store.fold_deliveries(digest, [each.delivery_id for each in deliveries])
        ):
            DELIVERIES_TOTAL.labels(state="digested").inc(len(deliveries))

    async def _waiting(self, channel_id: str, state: DeliveryState, due_ns: int | None, limit: int) -> list[Delivery]:
        return await self._patiently(
            lambda: self._store.waiting_deliveries(channel_id, state=state, due_ns=due_ns, limit=limit)
        )

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        return await patiently(ask, clock=self._clock, where="deliveries.store")


def _matching(
    subscriptions: Sequence[Subscription], rules: Sequence[Rule], watchlists: Sequence[Watchlist]
) -> Matching:
    return Matching(
        subscriptions,
        rules={rule.id: _rights(rule) for rule in rules},
        watchlists=[(watchlist, _rights(watchlist)) for watchlist in watchlists],
    )


def _rights(document: Rule | Watchlist) -> Rights:
    return Rights(document.owner, shared=document.shared)
