"""A tape played by a provider's replay server, over real sockets and with faults, gives the bars of its replay."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tapewatch.clock import SystemClock
from tapewatch.eligibility import load_profile
from tapewatch.engine.bars import BarBuilder
from tapewatch.engine.columns import MINUTE_NS, OPEN_END_NS, SECOND_NS, Bars, Batch, Gap, pulse
from tapewatch.feeds.failover import FailoverFeed
from tapewatch.feeds.providers import ProviderOptions, open_feed
from tapewatch.feeds.servers.access import Credentials
from tapewatch.feeds.servers.alpaca import AlpacaServer
from tapewatch.feeds.servers.databento import DatabentoServer
from tapewatch.feeds.servers.massive import MassiveServer
from tapewatch.nyse import day_of, trading_days
from tapewatch.ports import Snapshot
from tapewatch.replay import final_bars, scan_tape
from tapewatch.roles.ingest import Ingest

pytestmark = pytest.mark.anyio

SERVERS: dict[str, Any] = {"alpaca": AlpacaServer, "massive": MassiveServer, "databento": DatabentoServer}
FAULTS = ["duplicate:p=0.05", "reorder:window=3,p=0.05", "drop:every=7000"]
OPEN_NS = day_of("2025-03-03")[1]
WITHIN_S = 60.0


class HastyClock(SystemClock):
    """Waits a fiftieth of what it is asked to."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / 50)


class NoRules:
    """All that ingest asks of a store."""

    async def ruleset_number(self) -> int:
        return 0

    async def rules(self) -> Snapshot:
        return Snapshot(0, [], [])

    async def shown_metrics(self) -> tuple[str, ...]:
        return ()


def feed_of(provider: str, url: str) -> FailoverFeed:
    feed = open_feed(ProviderOptions(name=provider, url=url), clock=SystemClock(), days=trading_days())
    return FailoverFeed(feed, None, SystemClock())


class Recorder:
    """A bus with one reader: what was put on the tape, as bars."""

    def __init__(self) -> None:
        self.builder = BarBuilder(days=trading_days(), profile=load_profile("alpaca"), kept_trades=50_000)
        self.parts: list[Bars] = []
        self.gaps: list[Gap] = []
        self.newest_ns = 0

    async def publish(self, stream: str, entry: Any) -> None:
        if stream != "ticks:0":
            return
        if isinstance(entry, Batch):
            self.parts.append(self.builder.step(entry))
            self.newest_ns = max(self.newest_ns, int(entry.ts_ns.max(initial=0)))
        elif isinstance(entry, Gap):
            self.gaps.append(entry)

    async def publish_all(self, entries: Any) -> None:
        for stream, entry in entries.items():
            await self.publish(stream, entry)

    async def listen(self, _channel: str) -> Any:
        await asyncio.Event().wait()
        yield b""

    def finish(self) -> Bars:
        self.parts.append(self.builder.step(pulse((self.newest_ns // MINUTE_NS + 2) * MINUTE_NS)))
        return final_bars([part for part in self.parts if len(part)])


async def record(provider: str, url: str, *, done: Callable[[Ingest], bool]) -> tuple[Recorder, Ingest]:
    recorder = Recorder()
    bus: Any = recorder
    store: Any = NoRules()
    ingest = Ingest(feed=feed_of(provider, url), bus=bus, store=store, clock=SystemClock())
    running = asyncio.create_task(ingest.run())
    try:
        async with asyncio.timeout(WITHIN_S):
            while not done(ingest):
                await asyncio.sleep(0.02)
                if running.done():
                    running.result()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return recorder, ingest


def as_rows(bars: Bars) -> dict[tuple[str, int], tuple[float, ...]]:
    names = ("open", "high", "low", "close", "volume", "trade_count")
    columns = [getattr(bars, name).tolist() for name in names]
    keys = [(bars.symbols[s], t) for s, t in zip(bars.symbol.tolist(), bars.ts_ns.tolist(), strict=True)]
    return dict(zip(keys, zip(*columns, strict=True), strict=True))


def synthetic(path: Path, rows: int = 20_000) -> Path:
    """Trades of five symbols over twenty minutes, odd lots, late prints and average prices among them."""
    draw = np.random.default_rng(11)
    at = np.arange(rows)
    symbols = np.array(["AIG", "IBM", "SPY", "QQQ", "T"])[draw.integers(0, 5, rows)]
    table = pa.table(
        {
            "symbol": symbols.tolist(),
            "ts_ns": OPEN_NS + at * 60_000_000 + draw.integers(0, 1000, rows) * 1000,
            "price": np.round(50 + np.cumsum(draw.normal(0, 0.02, rows)), 2),
            "size": draw.integers(1, 400, rows).astype(float),
            "conditions": [("@", "@F", "@TI", "@ZB")[k] for k in draw.choice(4, rows, p=(0.6, 0.2, 0.15, 0.05))],
            "exchange": [("N", "P", "Q", "D")[k] for k in draw.integers(0, 4, rows)],
            "tape": ["A"] * rows,
            "trade_id": (at + 1).tolist(),
        }
    )
    pq.write_table(table, path)
    return path


def without_conditions(tape: Path, path: Path) -> Path:
    """The tape as a provider shows it that sends no sale conditions."""
    table = pq.read_table(tape)
    column = table.schema.get_field_index("conditions")
    pq.write_table(table.set_column(column, "conditions", pa.array(["@"] * len(table))), path)
    return path


async def check(provider: str, tape: Path, tmp_path: Path) -> None:
    like = without_conditions(tape, tmp_path / "plain.parquet") if provider == "databento" else tape
    wanted = scan_tape([like], profile=load_profile("alpaca"))
    trades = wanted.summary["trades"]["read"] - wanted.summary["trades"]["duplicate"]
    async with SERVERS[provider](
        [tape], faults=FAULTS, speed=float("inf"), while_away="hold", credentials=Credentials()
    ) as server:
        recorder, ingest = await record(provider, server.url, done=lambda ingest: ingest.rows >= trades)
    status = ingest.feeds()[0]
    assert ingest.rows == trades
    assert ingest.duplicates > 0
    assert status.losses["network"] >= 2
    assert status.rejected == {}
    recorder_bars = recorder.finish()
    assert recorder.builder.tally["too_late"] == recorder.builder.tally["future"] == 0
    assert as_rows(recorder_bars) == as_rows(wanted.bars)
    assert all(gap.end_ns == OPEN_END_NS for gap in recorder.gaps[::2])
    assert len(recorder.gaps) >= 4


@pytest.mark.parametrize("provider", SERVERS)
async def test_bars_of_a_live_feed_with_faults_are_those_of_the_replay(provider: str, tmp_path: Path) -> None:
    await check(provider, synthetic(tmp_path / "tape.parquet"), tmp_path)


@pytest.mark.market_data
@pytest.mark.parametrize("provider", SERVERS)
async def test_bars_of_a_real_day_through_a_provider_are_those_of_the_replay(
    provider: str, tmp_path: Path, market_data: Path
) -> None:
    day = pq.read_table(market_data / "trades/trades_20131007.parquet")
    opened = int(np.searchsorted(day.column("ts_ns").to_numpy(), day_of("2013-10-07")[1] - 300 * SECOND_NS))
    pq.write_table(day.slice(opened, 25_000), tmp_path / "tape.parquet")
    await check(provider, tmp_path / "tape.parquet", tmp_path)


@pytest.mark.parametrize("provider", SERVERS)
async def test_what_the_provider_withheld_while_we_were_away_is_a_gap(provider: str, tmp_path: Path) -> None:
    tape = synthetic(tmp_path / "tape.parquet", rows=6_000)
    async with SERVERS[provider]([tape], faults=["drop:every=2000"], speed=100.0, while_away="go-on") as server:
        recorder, ingest = await record(
            provider, server.url, done=lambda ingest: ingest.feeds()[0].connects >= 2 and ingest.gap is None
        )
    opened, ended = recorder.gaps[:2]
    assert opened.end_ns == OPEN_END_NS
    assert ended.start_ns == opened.start_ns
    assert ended.end_ns - ended.start_ns > 10 * SECOND_NS
    sent = np.concatenate([one.rows for one in server.sent])
    missing = np.setdiff1d(np.arange(sent.max()), sent)
    assert len(missing) > 100
    ts_ns = pq.read_table(tape).column("ts_ns").to_numpy()[missing]
    inside = (ts_ns >= ended.start_ns - SECOND_NS) & (ts_ns < ended.end_ns)
    assert inside.all()
    assert ingest.rows <= len(sent)


async def test_feed_without_faults_is_read_to_its_end_without_a_gap(tmp_path: Path) -> None:
    tape = synthetic(tmp_path / "tape.parquet", rows=2_000)
    async with AlpacaServer([tape], speed=float("inf")) as server:
        feed = feed_of("alpaca", server.url)
        rows = 0
        items: Any = feed.batches()
        async with asyncio.timeout(WITHIN_S), aclosing(items):
            async for item in items:
                assert not isinstance(item, Gap)
                rows += len(item) if isinstance(item, Batch) else 0
                if rows == 2_000:
                    break


async def test_system_over_a_provider_says_how_it_is_and_runs_on_the_fallback(
    running: Any, eventually: Any, tmp_path: Path
) -> None:
    tape = synthetic(tmp_path / "tape.parquet", rows=4_000)
    async with MassiveServer([tape], speed=10.0) as second, AlpacaServer([tape], speed=10.0) as first:
        feeds = [
            open_feed(ProviderOptions(name=name, url=server.url), clock=SystemClock(), days=trading_days())
            for name, server in (("alpaca", first), ("massive", second))
        ]
        async with running(FailoverFeed(feeds[0], feeds[1], HastyClock())) as up:
            await eventually(lambda: up.system.ingest.rows > 100 and up.system.board.as_of() is not None)
            status = await up.status(lambda told: told["state"] == "running")
            assert status["feed"]["gap"] is None
            assert [(c["name"], c["state"]) for c in status["feed"]["connections"]] == [
                ("alpaca", "running"),
                ("massive", "waiting"),
            ]
            await first.__aexit__()
            await eventually(lambda: up.system.ingest.gap is not None)
            assert up.system.ingest.gap.reason in {"network", "closed"}
            await eventually(lambda: up.system.ingest.gap is None)
            status = await up.status(lambda told: told["state"] == "degraded" and told["feed"]["gap"] is None)
            assert [(c["name"], c["role"], c["state"] == "running") for c in status["feed"]["connections"]] == [
                ("alpaca", "primary", False),
                ("massive", "fallback", True),
            ]
            assert "alpaca" in status["phase"]
