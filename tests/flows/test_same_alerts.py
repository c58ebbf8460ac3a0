"""One tape, four ways: live, replayed, backtested and as a dry run, rules give the same alerts with the same values."""

import asyncio
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tapewatch.backtest import backtest, dry_run
from tapewatch.clock import SystemClock
from tapewatch.documents import Alert, Rule, load_rule_file, ruleset
from tapewatch.eligibility import load_profile
from tapewatch.engine.columns import MINUTE_NS
from tapewatch.engine.rules import Match
from tapewatch.feeds.replay import ReplayFeed
from tapewatch.nyse import day_of
from tapewatch.replay import scan_tape

pytestmark = pytest.mark.anyio
PROFILE = load_profile("alpaca")
_PATIENCE_S = 240.0
"""At full speed, and on a machine that does other things, the scanner needs a while for a morning."""

RULES = """
rule above-vwap "Back above VWAP, in a candle's span"
  when price crosses_above vwap_session and relative_volume_5m > 1
  cooldown 5m
rule weak "Weak for a while, then a new high of the candle before"
  when rsi_14_5m < 50 for 30s then price > high_5m[1] within 20m
rule extreme "New extremes of the day"
  when new_high_day or new_low_day
  gate volume_day >= 20k
  fire once per bar 15m
rule range "Out of the opening range"
  when price crosses_above opening_range_high_15m or price crosses_below opening_range_low_15m
  fire once per session
  severity warning
rule run "Running, armed again when it rests"
  when abs(change_pct_1m) > 0.15
  rearm when abs(change_pct_1m) < 0.02
rule steady "Three scans in a row on rising candles"
  when change_pct_5m > 0.2 and consecutive_candles_1m >= 2 3 times in a row
  cooldown 60s
rule plain "Two comparisons, as most rules are"
  when change_pct_15m > 0.3 and price between 5 and 1000
"""


def told(alerts: Iterable[Alert]) -> list[tuple[Any, ...]]:
    """What may not differ, in the order of ids; unknown equals unknown."""
    rows = [
        (
            alert.alert_id,
            alert.rule_id,
            alert.symbol,
            alert.fired_at_ns,
            alert.price,
            alert.session,
            tuple((name, None if math.isnan(value) else value) for name, value in sorted(alert.values.items())),
            tuple((name, None if math.isnan(age) else age) for name, age in sorted(alert.ages_s.items())),
        )
        for alert in alerts
    ]
    return sorted(rows)


@dataclass(frozen=True)
class Morning:
    """Some hours of a real tape, and what a replay of them tells."""

    path: Path
    end_ns: int
    rules: list[Rule]
    alerts: list[tuple[Any, ...]]


@pytest.fixture(scope="module")
def morning(market_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Morning:
    table = pq.read_table(market_data / "trades" / "trades_20131007.parquet")
    ts_ns = table.column("ts_ns").to_numpy()
    open_ns = day_of("2013-10-07")[1]
    # From before the open until five-minute candles have made an RSI and it has moved.
    wanted = (ts_ns >= open_ns - 5 * MINUTE_NS) & (ts_ns < open_ns + 120 * MINUTE_NS)
    path = tmp_path_factory.mktemp("tape") / "morning.parquet"
    pq.write_table(table.filter(wanted), path)
    rules, _ = load_rule_file(RULES, where="test.rules")
    replayed = scan_tape([path], profile=PROFILE, rules=rules)
    assert {match.rule.id for match in replayed.matches} == {rule.id for rule in rules}
    return Morning(path, int(ts_ns[wanted].max()), rules, told(Alert.of(match) for match in replayed.matches))


@pytest.mark.market_data
def test_backtest_and_dry_run_give_the_same_alerts_as_a_replay(morning: Morning) -> None:
    backtested: list[Match] = []
    backtest(ruleset(1, morning.rules), [morning.path], profile=PROFILE, on_matches=backtested.extend)
    assert told(Alert.of(match) for match in backtested) == morning.alerts
    tried = dry_run(morning.rules, [morning.path], profile=PROFILE, most_examples=100_000)
    assert told(alert for rule in tried.rules for alert in rule.examples) == morning.alerts


@pytest.mark.market_data
async def test_live_gives_the_same_alerts_as_a_replay(morning: Morning, running: Any, stored: Any) -> None:
    feed = ReplayFeed([morning.path], clock=SystemClock(), speed=np.inf)
    async with running(feed, before=morning.rules) as up:
        async with asyncio.timeout(_PATIENCE_S):
            while up.system.scanners[0].watermark_ns < morning.end_ns:  # noqa: ASYNC110  # it tells nobody
                await asyncio.sleep(0.05)
        await up.played()
    _, live = await stored(())
    assert told(live) == morning.alerts
