"""Supervision: attempts in growing and jittered steps, a circuit, a fallback, and gaps that say what nobody covered."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from tapewatch.engine.columns import OPEN_END_NS, SECOND_NS, Bars, Batch, Gap, make_batch, pulse
from tapewatch.errors import FeedLost, FeedRefused
from tapewatch.feeds.failover import FailoverFeed
from tapewatch.ports import FeedStatus
from tapewatch.telemetry import FEED_CONNECTS_TOTAL, FEED_LOSSES_TOTAL

pytestmark = pytest.mark.anyio
START_NS = 1_741_012_200 * SECOND_NS
READY = make_batch()
REASONS = ("network", "closed", "silent", "slow_consumer", "connection_limit", "protocol")


class Stage:
    """A feed on which the test plays: each call of `batches` is a connection that takes what is put next."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rejected: Mapping[str, int] = MappingProxyType({"price": 1})
        self.connected = 0
        self.open = 0
        self.next: asyncio.Queue[Any] = asyncio.Queue()

    async def batches(self) -> AsyncIterator[Batch | Gap | Bars]:
        self.connected += 1
        self.open += 1
        try:
            while (item := await self.next.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.open -= 1

    def play(self, *items: Any) -> None:
        for item in items:
            self.next.put_nowait(item)


def at(second: float, price: float = 10.0, *, marks: bool = True) -> Batch:
    """One trade, with the mark before it."""
    ts_ns = START_NS + round(second * SECOND_NS)
    return make_batch(
        symbols=("A",), ts_ns=[ts_ns], price=[price], size=[1.0], marks_row=[0] * marks, marks_ns=[ts_ns] * marks
    )


def quiet(second: float) -> Batch:
    return pulse(START_NS + round(second * SECOND_NS))


def gap(start_s: float, end_s: float | None, reason: str) -> Gap:
    end_ns = OPEN_END_NS if end_s is None else START_NS + round(end_s * SECOND_NS)
    return Gap(START_NS + round(start_s * SECOND_NS), end_ns, reason)


class Watch:
    """Reads a supervised pair for ever."""

    def __init__(self, feed: FailoverFeed, clock: Any) -> None:
        self.feed, self.clock = feed, clock
        self.items: list[Batch | Gap | Bars] = []
        self.error: Exception | None = None
        self.done = False

    async def run(self) -> None:
        try:
            async for item in self.feed.batches():
                self.items.append(item)
        except Exception as error:  # noqa: BLE001
            self.error = error
        self.done = True

    async def settle(self) -> None:
        await self.clock.jump(0.0)
        await self.clock.jump(0.0)

    @property
    def gaps(self) -> list[Gap]:
        return [item for item in self.items if isinstance(item, Gap)]

    @property
    def prices(self) -> list[float]:
        return [price for item in self.items if isinstance(item, Batch) for price in item.price.tolist()]

    @property
    def marks(self) -> list[int]:
        return [mark for item in self.items if isinstance(item, Batch) for mark in item.marks_ns.tolist()]

    def status(self, role: int = 0) -> FeedStatus:
        return self.feed.status()[role]


@asynccontextmanager
async def watching(primary: Stage, fallback: Stage | None, clock: Any) -> AsyncIterator[Watch]:
    watch = Watch(FailoverFeed(primary, fallback, clock), clock)
    task = asyncio.create_task(watch.run())
    await watch.settle()
    try:
        yield watch
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert primary.open == 0
        assert fallback is None or fallback.open == 0


@pytest.fixture
def primary() -> Stage:
    return Stage("one")


@pytest.fixture
def fallback() -> Stage:
    return Stage("two")


# -- attempts ----------------------------------------------------------------------------------------------------------


async def test_waits_grow_from_one_second_to_sixty_within_their_jitter(primary: Stage, clock: Any) -> None:
    async with watching(primary, None, clock) as watch:
        for attempt in range(9):
            assert primary.connected == attempt + 1
            longest_s = min(2**attempt, 60)
            clock.asked_s.clear()
            primary.play(FeedLost("away"))
            await watch.settle()
            (asked_s,) = clock.asked_s
            assert longest_s / 2 <= asked_s <= longest_s
            assert watch.status().state == "lost"
            await clock.jump(asked_s - 0.05)
            assert primary.connected == attempt + 1
            await clock.jump(0.1)
        assert watch.status().failures == 9
        assert watch.error is None
        assert watch.items == []


async def test_jitter_spreads_the_attempts(clock: Any) -> None:
    asked: set[float] = set()
    for _ in range(20):
        stage = Stage("one")
        async with watching(stage, None, clock) as watch:
            clock.asked_s.clear()
            stage.play(FeedLost("away"))
            await watch.settle()
            asked.update(clock.asked_s)
    assert len(asked) > 15
    assert max(asked) - min(asked) > 0.2


async def test_waits_begin_anew_after_ten_seconds_of_data(primary: Stage, clock: Any) -> None:
    async with watching(primary, None, clock) as watch:
        for _ in range(5):
            primary.play(FeedLost("away"))
            await watch.settle()
            await clock.jump(60)
        assert watch.status().failures == 5
        primary.play(at(1))
        await watch.settle()
        await clock.jump(9.9)
        primary.play(at(2))
        await watch.settle()
        assert watch.status().failures == 5
        await clock.jump(0.2)
        primary.play(at(3))
        await watch.settle()
        assert watch.status().failures == 0
        clock.asked_s.clear()
        primary.play(FeedLost("away"))
        await watch.settle()
        assert clock.asked_s[0] <= 1.0


async def test_connection_that_only_says_hello_does_not_begin_the_waits_anew(primary: Stage, clock: Any) -> None:
    async with watching(primary, None, clock) as watch:
        for attempt in range(4):
            clock.asked_s.clear()
            primary.play(READY, FeedLost("away"))
            await watch.settle()
            assert clock.asked_s[0] >= 2**attempt / 2
            await clock.jump(60)


async def test_connection_limit_is_never_hammered(primary: Stage, clock: Any) -> None:
    async with watching(primary, None, clock) as watch:
        for _ in range(8):
            clock.asked_s.clear()
            primary.play(FeedLost("one is enough", reason="connection_limit"))
            await watch.settle()
            assert 10 <= clock.asked_s[0] <= 60
            await clock.jump(60)


@pytest.mark.parametrize("reason", REASONS)
async def test_each_reason_reconnects_and_is_told(primary: Stage, clock: Any, reason: Any) -> None:
    losses = FEED_LOSSES_TOTAL.labels(feed="one", reason=reason)
    connects = FEED_CONNECTS_TOTAL.labels(feed="one")
    before = losses._value.get(), connects._value.get()
    async with watching(primary, None, clock) as watch:
        primary.play(at(1), FeedLost("gone", reason=reason))
        await watch.settle()
        status = watch.status()
        assert (status.state, status.reason, status.problem) == ("lost", reason, "gone")
        await clock.jump(60)
        assert watch.status().state == "connecting"
        primary.play(at(3))
        await watch.settle()
        status = watch.status()
        assert (status.state, status.reason, status.problem) == ("running", "", "")
        assert (status.connects, status.rows, dict(status.losses)) == (2, 2, {reason: 1})
        assert watch.gaps == [gap(1, None, reason), gap(1, 3, reason)]
    assert losses._value.get() - before[0] == 1
    assert connects._value.get() - before[1] == 2


async def test_bug_in_a_feed_gets_out(primary: Stage, clock: Any) -> None:
    async with watching(primary, None, clock) as watch:
        primary.play(at(1), ZeroDivisionError())
        await watch.settle()
        assert isinstance(watch.error, ZeroDivisionError)


async def test_end_of_the_data_is_the_end(primary: Stage, fallback: Stage, clock: Any) -> None:
    async with watching(primary, fallback, clock) as watch:
        primary.play(at(1), None)
        await watch.settle()
        assert watch.done
        assert watch.error is None


# -- coverage ----------------------------------------------------------------------------------------------------------


async def test_gap_opens_at_the_last_row_and_ends_at_the_first_newer_one(primary: Stage, clock: Any) -> None:
    async with watching(primary, None, clock) as watch:
        primary.play(READY, at(1), at(2), quiet(9), FeedLost("gone"))
        await watch.settle()
        assert watch.feed.gap == gap(2, None, "network")
        await clock.jump(1)
        primary.play(READY, at(1.5), at(2))  # late ones, and the last one again: they prove nothing
        await watch.settle()
        assert watch.gaps == [gap(2, None, "network")]
        primary.play(at(30))
        await watch.settle()
        assert watch.gaps[1:] == [gap(2, 30, "network")]
        assert watch.feed.gap is None
        assert watch.items.index(watch.gaps[1]) == len(watch.items) - 2  # before the row that proves it


async def test_loss_before_the_first_row_of_all_is_no_gap(primary: Stage, clock: Any) -> None:
    async with watching(primary, None, clock) as watch:
        primary.play(READY, FeedLost("gone"))
        await watch.settle()
        await clock.jump(1)
        primary.play(READY, at(1))
        await watch.settle()
        assert watch.gaps == []
        assert watch.prices == [10.0]


async def test_losses_without_a_row_between_them_are_one_gap(primary: Stage, clock: Any) -> None:
    async with watching(primary, None, clock) as watch:
        primary.play(at(1))
        for _ in range(3):
            primary.play(FeedLost("gone"))
            await watch.settle()
            await clock.jump(60)
            primary.play(READY)
        assert watch.gaps == [gap(1, None, "network")]


async def test_gap_of_a_feed_is_passed_on_unless_the_other_one_covers(
    primary: Stage, fallback: Stage, clock: Any
) -> None:
    hole = gap(1, 2, "overflow")
    async with watching(primary, fallback, clock) as watch:
        primary.play(at(1), hole, at(2))
        await watch.settle()
        assert watch.gaps == [hole]
        primary.play(FeedLost("mute", reason="silent"))
        await watch.settle()
        await clock.jump(0.01)
        fallback.play(at(5))
        await watch.settle()
        await clock.jump(1)
        primary.play(at(6), gap(6, 7, "overflow"), at(7))
        await watch.settle()
        assert watch.prices == [10.0] * 5
        assert watch.gaps == [hole, gap(2, None, "silent"), gap(2, 5, "silent")]


# -- refusal -----------------------------------------------------------------------------------------------------------


async def test_only_feed_that_refuses_ends_it_all(primary: Stage, clock: Any) -> None:
    async with watching(primary, None, clock) as watch:
        primary.play(at(1), FeedRefused("no such key"))
        await watch.settle()
        assert isinstance(watch.error, FeedRefused)
        assert "no such key" in str(watch.error)
        assert watch.gaps == [gap(1, None, "refused")]
        assert watch.status().state == "refused"


async def test_primary_that_refuses_is_left_alone_and_the_fallback_goes_on(
    primary: Stage, fallback: Stage, clock: Any
) -> None:
    async with watching(primary, fallback, clock) as watch:
        primary.play(FeedRefused("no such key"))
        await watch.settle()
        fallback.play(at(1), at(2), FeedLost("gone"))
        await watch.settle()
        await clock.jump(600)
        fallback.play(at(3))
        await watch.settle()
        assert primary.connected == 1
        assert fallback.connected == 2
        assert watch.prices == [10.0] * 3
        assert watch.gaps == [gap(2, None, "network"), gap(2, 3, "network")]
        assert [status.state for status in watch.feed.status()] == ["refused", "running"]


async def test_fallback_that_refuses_leaves_the_primary_to_its_attempts(
    primary: Stage, fallback: Stage, clock: Any
) -> None:
    async with watching(primary, fallback, clock) as watch:
        primary.play(FeedLost("mute", reason="silent"))
        await watch.settle()
        fallback.play(FeedRefused("not paid"))
        await watch.settle()
        assert watch.status(1).state == "refused"
        for _ in range(8):  # no circuit without anybody to step in
            await clock.jump(60)
            primary.play(FeedLost("mute", reason="silent"))
            await watch.settle()
            assert watch.status().circuit == "closed"
        await clock.jump(60)
        primary.play(at(1))
        await watch.settle()
        assert watch.prices == [10.0]
        assert fallback.connected == 1


async def test_both_refusing_ends_it_all(primary: Stage, fallback: Stage, clock: Any) -> None:
    async with watching(primary, fallback, clock) as watch:
        primary.play(FeedRefused("no such key"))
        await watch.settle()
        assert watch.error is None
        fallback.play(FeedRefused("not paid"))
        await watch.settle()
        assert isinstance(watch.error, FeedRefused)
        assert "no such key" in str(watch.error)
        assert "not paid" in str(watch.error)


# -- the fallback ------------------------------------------------------------------------------------------------------


async def fail_five_times(watch: Watch, primary: Stage) -> None:
    for _ in range(5):
        primary.play(FeedLost("away"))
        await watch.settle()
        if watch.status().circuit == "closed":
            await watch.clock.jump(watch.clock.asked_s[-1])


async def test_fallback_is_cold_while_the_primary_runs(primary: Stage, fallback: Stage, clock: Any) -> None:
    async with watching(primary, fallback, clock) as watch:
        for second in range(60):
            primary.play(at(second))
            await clock.jump(1)
        assert fallback.connected == 0
        assert watch.status(1).state == "waiting"


async def test_short_loss_does_not_call_the_fallback(primary: Stage, fallback: Stage, clock: Any) -> None:
    async with watching(primary, fallback, clock) as watch:
        primary.play(at(1), FeedLost("gone"))
        await watch.settle()
        await clock.jump(14)
        primary.play(READY)
        await watch.settle()
        await clock.jump(60)
        assert fallback.connected == 0


async def test_primary_that_stays_away_for_fifteen_seconds_calls_the_fallback(
    primary: Stage, fallback: Stage, clock: Any
) -> None:
    async with watching(primary, fallback, clock) as watch:
        primary.play(at(1), FeedLost("gone"))
        await watch.settle()
        await clock.jump(14.9)
        assert fallback.connected == 0
        await clock.jump(0.2)
        assert fallback.connected == 1


async def test_silent_primary_calls_the_fallback_at_once(primary: Stage, fallback: Stage, clock: Any) -> None:
    async with watching(primary, fallback, clock) as watch:
        primary.play(at(1), FeedLost("mute", reason="silent"))
        await watch.settle()
        assert fallback.connected == 1


async def test_five_failures_within_thirty_seconds_open_the_circuit_for_a_minute(
    primary: Stage, fallback: Stage, clock: Any
) -> None:
    async with watching(primary, fallback, clock) as watch:
        await fail_five_times(watch, primary)
        status = watch.status()
        assert (status.state, status.circuit, status.failures) == ("open", "open", 5)
        assert fallback.connected == 1
        await clock.jump(59.9)
        assert primary.connected == 5
        await clock.jump(0.2)
        assert primary.connected == 6
        assert watch.status().circuit == "half_open"
        primary.play(FeedLost("still away"))
        await watch.settle()
        assert watch.status().circuit == "open"  # one failure of a trial is enough
        await clock.jump(59.9)
        assert primary.connected == 6
        await clock.jump(0.2)
        assert primary.connected == 7


async def test_five_failures_over_a_longer_time_leave_the_circuit_closed(
    primary: Stage, fallback: Stage, clock: Any
) -> None:
    async with watching(primary, fallback, clock) as watch:
        for _ in range(6):
            primary.play(FeedLost("away"))
            await watch.settle()
            await clock.jump(60)
        assert watch.status().circuit == "closed"


async def test_primary_comes_back_beside_the_fallback_without_a_gap(
    primary: Stage, fallback: Stage, clock: Any
) -> None:
    async with watching(primary, fallback, clock) as watch:
        primary.play(at(0, 0.5))
        await fail_five_times(watch, primary)
        fallback.play(READY, at(10, 1.0))
        await watch.settle()
        assert watch.gaps == [gap(0, None, "network"), gap(0, 10, "network")]
        await clock.jump(60)
        assert watch.status().circuit == "half_open"
        fallback.play(at(70, 2.0))
        primary.play(READY, at(71, 3.0))
        await watch.settle()
        assert (primary.open, fallback.open) == (1, 1)
        assert watch.status().circuit == "half_open"  # it has not proved itself yet
        await clock.jump(10)
        fallback.play(at(70.5, 4.0))  # it lags behind
        primary.play(at(81, 5.0))
        await watch.settle()
        assert watch.status().circuit == "closed"
        assert fallback.open == 1  # what came before the primary's first row is still its work
        fallback.play(at(71, 6.0))
        primary.play(at(81.5, 7.0))
        await watch.settle()
        assert fallback.open == 0
        assert watch.status(1).state == "waiting"
        primary.play(at(82, 8.0))
        await watch.settle()
        assert sorted(watch.prices) == [0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
        assert len(watch.gaps) == 2
        assert (np.diff(watch.marks) > 0).all()


async def test_quiet_fallback_need_not_trade_to_be_let_go(primary: Stage, fallback: Stage, clock: Any) -> None:
    async with watching(primary, fallback, clock) as watch:
        primary.play(at(0), FeedLost("mute", reason="silent"))
        await watch.settle()
        fallback.play(at(20))
        await clock.jump(1)
        primary.play(at(21))
        await watch.settle()
        await clock.jump(10)
        primary.play(at(31))
        fallback.play(quiet(31))
        await watch.settle()
        assert fallback.open == 0


async def test_fallback_lost_before_it_came_as_far_leaves_a_gap_up_to_the_primary(
    primary: Stage, fallback: Stage, clock: Any
) -> None:
    async with watching(primary, fallback, clock) as watch:
        primary.play(at(0), FeedLost("mute", reason="silent"))
        await watch.settle()
        fallback.play(at(20))
        await clock.jump(1)
        primary.play(at(25))
        await watch.settle()
        fallback.play(FeedLost("gone"))
        await watch.settle()
        assert watch.gaps[2:] == [gap(20, 25, "network")]


async def test_trial_that_fails_leaves_the_fallback_and_no_gap(primary: Stage, fallback: Stage, clock: Any) -> None:
    async with watching(primary, fallback, clock) as watch:
        primary.play(at(0))
        await fail_five_times(watch, primary)
        fallback.play(at(10))
        await clock.jump(60)
        primary.play(at(70), FeedLost("gone again"))
        fallback.play(at(71))
        await watch.settle()
        assert watch.status().circuit == "open"
        assert fallback.open == 1
        assert len(watch.gaps) == 2


async def test_delayed_fallback_ends_the_gap_when_its_own_time_gets_there(
    primary: Stage, fallback: Stage, clock: Any
) -> None:
    async with watching(primary, fallback, clock) as watch:
        primary.play(at(1000), FeedRefused("expired"))
        await watch.settle()
        fallback.play(at(100), at(999))
        await watch.settle()
        assert watch.gaps == [gap(1000, None, "refused")]
        assert watch.marks == [START_NS + 1000 * SECOND_NS]  # time does not go back
        fallback.play(at(1001))
        await watch.settle()
        assert watch.gaps[1:] == [gap(1000, 1001, "refused")]
        assert watch.prices == [10.0] * 4


async def test_status_tells_what_people_ask(primary: Stage, fallback: Stage, clock: Any) -> None:
    async with watching(primary, fallback, clock) as watch:
        primary.play(READY, at(1), at(2))
        await watch.settle()
        await clock.jump(3)
        one, two = watch.feed.status()
        assert (one.name, one.role, one.state, one.rows, one.connects) == ("one", "primary", "running", 2, 1)
        assert one.last_data_age_s == 3.0
        assert one.rejected == {"price": 1}
        assert (two.name, two.role, two.state, two.last_data_age_s) == ("two", "fallback", "waiting", None)
        assert watch.feed.name == "one"
        assert watch.feed.rejected == {"price": 2}


async def test_reader_that_is_slow_holds_the_feeds_up(primary: Stage, clock: Any) -> None:
    feed = FailoverFeed(primary, None, clock)
    items = feed.batches()
    primary.play(*(at(second) for second in range(100)))
    await anext(items)
    for _ in range(50):
        await clock.jump(0.0)
    assert primary.next.qsize() > 85
    await items.aclose()  # type: ignore[attr-defined]
    assert primary.open == 0
