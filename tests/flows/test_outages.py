"""What is away comes back: the store loses nothing, a lost feed is asked again, one that refuses is not."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis

from tapewatch.clock import SystemClock
from tapewatch.engine.columns import OPEN_END_NS, Gap
from tapewatch.errors import FeedLost, FeedRefused, Unavailable
from tapewatch.feeds import failover
from tapewatch.feeds.failover import FailoverFeed
from tapewatch.ports import Store
from tapewatch.telemetry import ERRORS_TOTAL, FEED_LOSSES_TOTAL

pytestmark = pytest.mark.anyio
ANY = {"id": "any", "name": "Any", "conditions": [{"metric": "price", "operator": ">", "value": 110.0}]}


class HastyClock(SystemClock):
    """Waits a fiftieth of what it is asked to, and remembers what that was."""

    def __init__(self) -> None:
        self.asked_s: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.asked_s.append(seconds)
        await asyncio.sleep(seconds / 50)


class Outage:
    """A store that writes nothing while it is away, and tells the order of what it wrote."""

    def __init__(self, store: Store) -> None:
        self.away = False
        self.refused = 0
        self.bar_times: list[int] = []
        self.alert_times: list[int] = []
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def save_bars(self, bars: Any, **options: Any) -> None:
        self._check()
        await self._store.save_bars(bars, **options)
        self.bar_times += [ts for ts, revision in zip(bars.ts_ns.tolist(), bars.revision, strict=True) if not revision]

    async def save_alerts(self, alerts: Any, **options: Any) -> Any:
        self._check()
        saved = await self._store.save_alerts(alerts, **options)
        self.alert_times += [alert.fired_at_ns for alert in alerts]
        return saved

    def _check(self) -> None:
        if self.away:
            self.refused += 1
            raise Unavailable("away")


def errors(where: str) -> float:
    return float(ERRORS_TOTAL.labels(where=where)._value.get())


async def test_store_away_for_a_while_loses_no_bar_and_no_alert(
    running: Any, stored: Any, engine: Any, scripted: Any, market: Any, eventually: Callable[..., Any]
) -> None:
    gate = asyncio.Event()
    before = errors("bars.store"), errors("alerts.store")
    async with running(scripted([gate, *market.afternoon()]), clock=HastyClock(), wrap=Outage) as up:
        store: Outage = up.system.ingest._store
        await up.save_rule(ANY)
        store.away = True
        gate.set()
        await up.played()
        await eventually(lambda: store.refused > 6)
        assert store.bar_times == store.alert_times == []
        assert (await up.api.get("/ready")).status_code == 200
        expected = engine(await up.tape())
        store.away = False
    assert store.bar_times == sorted(store.bar_times)
    assert store.alert_times == sorted(store.alert_times)
    bars, alerts = await stored(market.symbols)
    assert bars == expected.bars
    assert {alert.alert_id for alert in alerts} == {alert.alert_id for alert in expected.alerts}
    assert len(alerts) == len(expected.alerts) > 0
    assert errors("bars.store") > before[0]
    assert errors("alerts.store") > before[1]


async def test_store_that_never_comes_back_does_not_hold_up_the_end(running: Any, scripted: Any, market: Any) -> None:
    gate = asyncio.Event()
    async with running(scripted([gate, *market.afternoon()]), wrap=Outage) as up:
        await up.save_rule(ANY)
        up.system.ingest._store.away = True
        gate.set()
        await up.played()
        started = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - started < 5


async def test_feed_that_is_lost_is_asked_again_in_growing_waits_and_nothing_is_missing(
    running: Any, stored: Any, engine: Any, scripted: Any, market: Any
) -> None:
    tape = market.afternoon()
    lost = [FeedLost("the line is dead")] * 5
    script = [*tape[:40], *lost, *tape[40:100], FeedLost("again"), *tape[100:]]
    clock = HastyClock()
    before = FEED_LOSSES_TOTAL.labels(feed="scripted", reason="network")._value.get()
    async with running(FailoverFeed(scripted(script), None, clock), clock=clock) as up:
        await up.played()
        assert up.system.ingest.state == "ended"
        entries = await up.tape()
    bars, _ = await stored(market.symbols)
    assert bars == engine(entries).bars == engine(tape).bars
    assert FEED_LOSSES_TOTAL.labels(feed="scripted", reason="network")._value.get() == before + 6
    gaps = [entry for entry in entries if isinstance(entry, Gap)]
    assert [(gap.end_ns == OPEN_END_NS, gap.reason) for gap in gaps] == [(True, "network"), (False, "network")] * 2
    step_s = failover.FIRST_WAIT_S
    for doubling in range(5):
        longest_s = step_s * 2**doubling
        assert any(longest_s / 2 <= asked_s <= longest_s for asked_s in clock.asked_s)


async def test_feed_that_refuses_is_left_alone_and_rest_says_so(
    running: Any, scripted: Any, market: Any, eventually: Callable[..., Any]
) -> None:
    feed = scripted([*market.afternoon()[:30], FeedRefused("the key has expired"), *market.afternoon()[30:]])
    async with running(feed) as up:
        await up.played()
        status = await up.status(lambda told: told["state"] == "refused")
        assert status["feed"]["state"] == "refused"
        assert status["feed"]["problem"] == "the key has expired"
        assert "the key has expired" in status["phase"]
        assert (await up.get("symbols/AAPL"))["metrics"]["price"]
        assert (await up.save_rule(ANY))["version"] == 1
        assert len(feed._script) == len(market.afternoon()) - 30


async def test_feed_that_refuses_at_once_is_told_by_who_serves_what_is_stored(
    running: Any, scripted: Any, mode: str
) -> None:
    async with running(scripted([FeedRefused("no such account")])) as up:
        await up.played()
        await up.status(lambda told: told["state"] == "refused")
        answer = await up.api.get("/ready")
        # One process has nothing to scan; an API of many goes on with history, rules and accounts.
        ready = mode == "distributed"
        assert answer.status_code == (200 if ready else 503)
        assert answer.json() == {"ready": ready, "phase": "the feed refused: no such account"}


@pytest.mark.parametrize("mode", ["distributed"], indirect=True)
async def test_entry_that_somebody_slipped_onto_the_tape_is_told_and_left_out(
    running: Any, scripted: Any, market: Any, request: pytest.FixtureRequest
) -> None:
    gate = asyncio.Event()
    script = [market.prints(0, {"AAPL": 120.0}), market.quiet(2), gate, market.prints(5, {"MSFT": 130.0})]
    async with running(scripted([*script, market.quiet(8)])) as up:
        await up.save_rule(ANY)
        end = await up.system.bus.tail("ticks:0")
        with Redis.from_url(request.getfixturevalue("servers").redis.admin_url) as redis:
            after, here = f"{end.epoch}-{end.sequence}", f"{end.epoch}-{end.sequence + 1}"
            redis.xadd("ticks:{0}", {"after": after, "entry": b"not of ours"}, id=here)
        told = await up.status(lambda said: "could not be read" in said["phase"])
        gate.set()
        (alert, *_) = await up.alerts_over_rest(1)
    assert told["state"] == "degraded"
    assert any("entries could not be read" in what for role in told["roles"] for what in role["lost"])
    assert alert["rule_id"] == "any"
