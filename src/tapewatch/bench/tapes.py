"""Figures of replay: from Parquet files to bars, indicators and alerts."""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from tapewatch.documents import Condition, ConditionForm, Rule
from tapewatch.eligibility import load_profile
from tapewatch.feeds.synthetic import TradingDay, write_day
from tapewatch.nyse import day_of
from tapewatch.replay import scan_tape

REPLAY_WHAT = "trades a second from Parquet to closed bars, no rules: 4 million synthetic trades of 2,000 symbols"
REAL_WHAT = (
    "three real days (1.35 million trades of three symbols, in the folder that TAPEWATCH_MARKET_DATA names) with 100 "
    "rules of two conditions, scanned each second"
)
SESSION_WHAT = (
    "a regular session of 10,000 synthetic symbols, 20 million trades, with 100 rules of two conditions, each second"
)


def replays() -> Iterator[float]:
    """Trades a second each."""
    with tempfile.TemporaryDirectory() as folder:
        tape = _synthetic(Path(folder), symbols=2_000, trades=4_000_000)
        for _ in range(3):
            started = time.perf_counter()
            replayed = scan_tape([tape], profile=load_profile("alpaca"))
            yield replayed.summary["trades"]["read"] / (time.perf_counter() - started)


def real_days() -> Iterator[float]:
    """Seconds each; nothing without the data."""
    folder = Path(os.environ.get("TAPEWATCH_MARKET_DATA", "../shared/market-data")) / "trades"
    tapes = sorted(folder.glob("trades_2013*.parquet"))
    for _ in range(3 if tapes else 0):
        started = time.perf_counter()
        scan_tape(tapes, profile=load_profile("alpaca"), rules=hundred_rules())
        yield time.perf_counter() - started


def session() -> Iterator[float]:
    """Seconds, once."""
    with tempfile.TemporaryDirectory() as folder:
        tape = _synthetic(Path(folder), symbols=10_000, trades=20_000_000)
        started = time.perf_counter()
        scan_tape([tape], profile=load_profile("alpaca"), rules=hundred_rules())
        yield time.perf_counter() - started


def hundred_rules() -> list[Rule]:
    return rules_like(100)


def rules_like(count: int) -> list[Rule]:
    """Rules as traders write them: two conditions each, of five kinds, thresholds drawn from a usual range."""
    draw = np.random.default_rng(5)
    kinds: tuple[tuple[tuple[str, Literal["<", ">"], float, float], ...], ...] = (
        (("change_pct_5m", ">", 1.0, 5.0), ("relative_volume_5m", ">", 2.0, 8.0)),
        (("change_pct_1m", "<", -3.0, -0.5), ("price", ">", 5.0, 50.0)),
        (("rsi_14_1m", "<", 10.0, 30.0), ("volume_day", ">", 1e5, 5e6)),
        (("vwap_distance_pct", ">", 1.0, 4.0), ("volume_1m", ">", 2e4, 2e5)),
        (("change_pct_15m", ">", 2.0, 8.0), ("atr_14_1m", ">", 0.05, 0.5)),
    )
    rules = []
    for i in range(count):
        conditions: list[ConditionForm] = [
            Condition(metric=metric, operator=operator, value=float(draw.uniform(low, high)))
            for metric, operator, low, high in kinds[i % len(kinds)]
        ]
        rules.append(Rule(id=f"r{i}", name=f"rule {i}", conditions=conditions, cooldown=60.0))
    return rules


def _synthetic(folder: Path, *, symbols: int, trades: int) -> Path:
    pre_ns, open_ns, close_ns, post_ns = day_of("2025-03-03")
    path = folder / "session.parquet"
    write_day(
        path,
        seed=1,
        symbols=symbols,
        trades=trades,
        day=TradingDay(pre_ns=pre_ns, open_ns=open_ns, close_ns=close_ns, post_ns=post_ns),
        start_ns=open_ns,
        end_ns=close_ns,
    )
    return path
