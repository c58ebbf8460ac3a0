"""Dry runs of a server: on which tape, with which answer, and that their process never outlives whoever asked."""

import asyncio
import multiprocessing
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tapewatch import dry_runs
from tapewatch.adapters.sql import SqlStore
from tapewatch.backtest import dry_run
from tapewatch.clock import SystemClock
from tapewatch.documents import Rule, Watchlist, ruleset
from tapewatch.dry_runs import DryRuns
from tapewatch.eligibility import load_profile
from tapewatch.engine.columns import MINUTE_NS, SECOND_NS
from tapewatch.errors import Invalid, TapewatchError, Unavailable
from tapewatch.feeds.synthetic import TradingDay, write_day
from tapewatch.nyse import day_of
from tapewatch.serve.services import DryRunReport

pytestmark = pytest.mark.anyio

DAYS = ("2025-03-10", "2025-03-11")
MOVERS = Rule(id="draft", name="Movers", when="change_pct_1m > 0.2", cooldown=60.0)


def write_minutes(path: Path, day: str, *, seed: int, minutes: int = 10) -> Path:
    """The end of a regular session, of a few symbols."""
    pre_ns, open_ns, close_ns, post_ns = day_of(day)
    whole = TradingDay(pre_ns=pre_ns, open_ns=open_ns, close_ns=close_ns, post_ns=post_ns)
    start_ns = close_ns - minutes * MINUTE_NS
    write_day(path, seed=seed, symbols=8, trades=1_500, day=whole, start_ns=start_ns, end_ns=close_ns)
    return path


@pytest.fixture(scope="module")
def tapes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("tapes")
    return [write_minutes(folder / f"{day}.parquet", day, seed=seed) for seed, day in enumerate(DAYS)]


@pytest.fixture
async def store(empty_database: Path, tmp_path: Path) -> AsyncIterator[SqlStore]:
    store = SqlStore(shutil.copy(empty_database, tmp_path / "tried.db"))
    yield store
    await store.close()


@pytest.fixture
def try_on(store: SqlStore, tmp_path: Path) -> Any:
    """A dry run of a rule over these tapes."""

    def tried(rule: Rule, tapes: list[Path]) -> Any:
        runs = DryRuns(store, data_dir=tmp_path, tapes=tapes, profile="alpaca", scan_interval_ns=SECOND_NS)
        return runs([rule])

    return tried


def children() -> list[Any]:
    return [child for child in multiprocessing.active_children() if child.name == "dry run"]


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_answer_is_that_of_a_dry_run_in_the_same_process(try_on: Any, tapes: list[Path]) -> None:
    report: DryRunReport = await try_on(MOVERS, tapes[:1])
    (expected,) = dry_run(ruleset(1, [MOVERS]), tapes[:1], profile=load_profile("alpaca")).rules
    assert report.fires == expected.fires
    assert list(report.fires) == [DAYS[0]]
    assert sum(report.fires.values()) > 0
    assert report.symbols == expected.score.symbols
    assert 0 < report.symbols_share == expected.share <= 1
    assert report.examples == expected.examples
    assert report.examples[0].values["change_pct_1m"] > 0.2
    assert report.too_broad == ""
    assert report.measured_s >= 0
    assert report.seconds > 0
    assert children() == []


async def test_rule_that_is_too_broad_or_switched_off_is_tried_all_the_same(try_on: Any, tapes: list[Path]) -> None:
    rule = Rule(id="draft", name="All", when="price > 0", fire="level", enabled=False)
    report: DryRunReport = await try_on(rule, tapes[:1])
    assert report.symbols == 8
    assert report.symbols_share == 1.0
    assert report.fires[DAYS[0]] > 1_000
    assert report.too_broad
    assert len(report.examples) == 20


async def test_rule_knows_the_watchlists_that_it_names(try_on: Any, tapes: list[Path], store: SqlStore) -> None:
    everything: DryRunReport = await try_on(MOVERS, tapes[:1])
    symbol = everything.examples[0].symbol
    await store.save_watchlist(Watchlist(id="mine", name="Mine", symbols=[symbol]))
    listed = Rule(id="draft", name="Listed", when="change_pct_1m > 0.2 and symbol in watchlist mine", cooldown=60.0)
    report: DryRunReport = await try_on(listed, tapes[:1])
    assert {alert.symbol for alert in report.examples} == {symbol}
    assert report.symbols == 1
    assert 0 < sum(report.fires.values()) < sum(everything.fires.values())


async def test_process_ends_with_whoever_asked(try_on: Any, tapes: list[Path], eventually: Any) -> None:
    asked = asyncio.create_task(try_on(MOVERS, tapes))
    await eventually(lambda: any(child.pid is not None for child in children()))
    (child,) = children()
    assert lives(child.pid)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert not lives(child.pid)
    assert children() == []


async def test_process_that_was_only_starting_when_it_was_cancelled_is_not_left_behind(
    try_on: Any, tapes: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pids: list[int] = []
    spawned = multiprocessing.get_context("spawn").Process
    start, begun, loop = spawned.start, asyncio.Event(), asyncio.get_running_loop()

    def slow_start(process: Any) -> None:
        loop.call_soon_threadsafe(begun.set)
        start(process)
        pids.append(process.pid)

    monkeypatch.setattr(spawned, "start", slow_start)
    asked = asyncio.create_task(try_on(MOVERS, tapes))
    await asyncio.wait_for(begun.wait(), 10)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    (pid,) = pids
    assert not lives(pid)


async def test_process_that_is_killed_is_no_answer(try_on: Any, tapes: list[Path], eventually: Any) -> None:
    asked = asyncio.create_task(try_on(MOVERS, tapes))
    await eventually(lambda: any(child.pid is not None for child in children()))
    for child in children():
        child.kill()
    with pytest.raises(Unavailable, match="ended without an answer"):
        await asked


async def test_error_of_the_process_arrives_as_it_is(try_on: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(TapewatchError) as expected:
        dry_run(ruleset(1, [MOVERS]), [broken], profile=load_profile("alpaca"))
    with pytest.raises(type(expected.value)) as arrived:
        await try_on(MOVERS, [broken])
    assert str(arrived.value) == str(expected.value)
    assert "broken.parquet" in str(arrived.value)
    assert children() == []


async def test_error_with_a_place_keeps_it(try_on: Any, tmp_path: Path) -> None:
    (tmp_path / "synthetic-day.part").mkdir()
    with pytest.raises(Invalid) as arrived:
        await try_on(MOVERS, [])
    assert arrived.value.where.endswith("synthetic-day.parquet")
    assert arrived.value.why.startswith("cannot be written")


async def test_recordings_come_before_the_tapes_of_a_replay_and_these_before_a_synthetic_day(
    try_on: Any, tmp_path: Path, tapes: list[Path]
) -> None:
    whole = write_minutes(tmp_path / "synthetic-day.parquet", dry_runs.SYNTHETIC_DAY, seed=3)
    written_ns = whole.stat().st_mtime_ns
    assert list((await try_on(MOVERS, [])).fires) == [dry_runs.SYNTHETIC_DAY]
    (tmp_path / "tapes").mkdir()
    assert list((await try_on(MOVERS, tapes[:1])).fires) == [DAYS[0]]
    (tmp_path / "tapes" / "yesterday.parquet").write_bytes(tapes[1].read_bytes())
    assert list((await try_on(MOVERS, tapes[:1])).fires) == [DAYS[1]]
    assert whole.stat().st_mtime_ns == written_ns


def test_synthetic_day_is_written_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_runs, "_SYMBOLS", 5)
    monkeypatch.setattr(dry_runs, "_TRADES", 2_000)
    (tmp_path / "synthetic-day.part").write_bytes(b"of a dry run that was cancelled")
    path = dry_runs._synthetic_day(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    was = path.stat()
    assert dry_runs._synthetic_day(tmp_path) == path
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (was.st_ino, was.st_mtime_ns)
    times = pq.read_table(path, columns=["ts_ns"]).column("ts_ns")
    pre_ns, _, _, post_ns = day_of(dry_runs.SYNTHETIC_DAY)
    assert len(times) > 1_000
    assert pre_ns <= times[0].as_py() < times[-1].as_py() < post_ns


async def test_running_system_answers_while_a_dry_run_goes_on(
    running: Any, scripted: Any, market: Any, tmp_path: Path, tapes: list[Path], eventually: Any
) -> None:
    folder = tmp_path / "tapes"
    folder.mkdir()
    (folder / tapes[0].name).write_bytes(tapes[0].read_bytes())
    async with running(scripted([market.prints(0, {"AAPL": 1.0})]), clock=SystemClock()) as up:
        draft = {"name": "Movers", "when": MOVERS.when, "cooldown": 60.0}
        asked = asyncio.create_task(up.api.post("/api/v1/rules/dry-run", json=draft, timeout=60))
        await eventually(lambda: any(child.pid is not None for child in children()))
        assert (await up.get("rules"))["total"] == 0
        assert not asked.done()
        answer = await asked
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert said["fires"] == [{"date": DAYS[0], "fires": len(said["examples"])}]
    assert said["examples"][0]["values"]["change_pct_1m"] > 0.2
    assert 0 < said["symbols_share"] <= 1
    assert said["measured_s"] is not None
