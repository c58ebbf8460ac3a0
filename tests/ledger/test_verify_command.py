"""`tapewatch verify` on a store that a replay has filled, sound and tampered with."""

import asyncio
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tapewatch.app.opening import open_store
from tapewatch.commands.verify import verify
from tapewatch.documents import Alert, Rule, load_rule_file, ruleset
from tapewatch.eligibility import load_profile
from tapewatch.engine.daily import DailyBars
from tapewatch.errors import ConfigError, Invalid
from tapewatch.ledger import witnesses
from tapewatch.ledger.days import SECOND
from tapewatch.replay import scan_tape

TEXT = """
rule up when price > 10.05
rule busy when volume_1m > 900 cooldown 2m
rule broad when atr_14_1m > 1
rule asleep disabled when price > 1
"""
app = typer.Typer()
app.command()(verify)


@pytest.fixture
def tape(market: Any, write_tape: Callable[..., Path], open_ns: int) -> Path:
    """Two minutes and a half of the market's trades."""
    rows = [row for row in market.rows if row.kind == "trade" and row.ts_ns < open_ns + 150 * SECOND]
    return write_tape(rows)


@pytest.fixture
def folder(tape: Path, tmp_path: Path) -> Path:
    """A data directory whose store holds what a replay of the tape gave."""
    rules, _ = load_rule_file(TEXT, where="mine.rules")
    replayed = scan_tape([tape], profile=load_profile("alpaca"), rules=ruleset(1, rules))

    async def fill() -> None:
        store = await open_store(tmp_path / "data")
        for rule in rules:
            await store.save_rule(rule)
        await store.save_bars(replayed.bars, reader="bars:0")
        await store.save_alerts([Alert.of(match) for match in replayed.matches], reader="alerts:0")
        await store.close()

    asyncio.run(fill())
    return tmp_path / "data"


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def change(folder: Path, statement: str) -> None:
    with sqlite3.connect(folder / "tapewatch.db") as database:
        assert database.execute(statement).rowcount > 0
    database.close()


def save(folder: Path, *rules: Rule) -> None:
    async def work() -> None:
        store = await open_store(folder)
        for rule in rules:
            await store.save_rule(rule)
        await store.close()

    asyncio.run(work())


def test_sound_store_is_green(tape: Path, folder: Path) -> None:
    result = run(tape, "--data-dir", folder)
    assert result.exit_code == 0, result.output
    assert "everything is as it must be" in result.output
    assert "not checked  rule broad: asks for atr_14_1m" in result.output
    assert "asleep" not in result.output


def test_store_is_read_page_by_page(tape: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witnesses, "_BARS_AT_ONCE", 2)
    monkeypatch.setattr(witnesses, "_ALERTS_AT_ONCE", 3)
    result = run(tape, "--data-dir", folder)
    assert result.exit_code == 0, result.output


def test_json_holds_the_whole_account(tape: Path, folder: Path) -> None:
    said = json.loads(run(tape, "--data-dir", folder, "--json").output)
    assert said["ok"]
    assert said["compared"]["bars"] > 15
    assert said["compared"]["alerts"] > 5
    assert said["wrong"] == {}
    assert said["rows"]["sent"] == said["rows"]["accepted"] > 400
    assert said["in_bars"]["expected"] == said["in_bars"]["found"]


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("UPDATE bars_1m SET close = close + 0.01 WHERE symbol = 'AAA'", "value-mismatch"),
        ("UPDATE bars_1m SET revision = revision + 1 WHERE symbol = 'BBB'", "value-mismatch"),
        ("DELETE FROM bars_1m WHERE symbol = 'QUIET'", "lost"),
        ("UPDATE bars_1m SET symbol = 'EEE', ts_ns = ts_ns + 60000000000 * 3 WHERE symbol = 'QUIET'", "false"),
        ("DELETE FROM bars_1m", "undeclared-gap"),
        ("DELETE FROM alert_history WHERE rule_id = 'busy'", "lost"),
        ("UPDATE alert_history SET price = price + 1 WHERE rule_id = 'up'", "value-mismatch"),
        ("UPDATE alert_history SET rule_id = 'nobody' WHERE rule_id = 'up'", "value-mismatch"),
        ("UPDATE alert_history SET alert_id = 'x' || alert_id WHERE rule_id = 'up'", "false"),
    ],
)
def test_tampering_is_found(statement: str, kind: str, tape: Path, folder: Path) -> None:
    change(folder, statement)
    result = run(tape, "--data-dir", folder)
    assert result.exit_code == 1, result.output
    assert f"\n{kind}: " in result.output
    assert json.loads(run(tape, "--data-dir", folder, "--json").output)["wrong"][kind]["examples"]


def test_declared_gap_leaves_out_what_it_touches(tape: Path, folder: Path) -> None:
    change(folder, "DELETE FROM bars_1m WHERE ts_ns = (SELECT max(ts_ns) FROM bars_1m)")
    assert run(tape, "--data-dir", folder).exit_code == 1
    said = json.loads(
        run(tape, "--data-dir", folder, "--gap", "2025-03-03T14:32:10Z/2025-03-03T14:32:20Z", "--json").output
    )
    assert said["ok"]
    assert said["left_out"]["bars"] >= 6
    assert said["left_out"]["alerts"] > 0
    assert said["rows"]["declared_lost"] > 0
    assert said["rows"]["sent"] == said["rows"]["accepted"] + said["rows"]["declared_lost"]


def test_part_of_the_tape_can_be_checked(tape: Path, folder: Path) -> None:
    change(
        folder, "UPDATE bars_1m SET high = high + 1 WHERE symbol = 'AAA' AND ts_ns = (SELECT min(ts_ns) FROM bars_1m)"
    )
    assert run(tape, "--data-dir", folder).exit_code == 1
    assert run(tape, "--data-dir", folder, "--symbols", "BBB,CCC").exit_code == 0
    assert run(tape, "--data-dir", folder, "--symbols", "AAA").exit_code == 1
    assert run(tape, "--data-dir", folder, "--from", "2025-03-03T14:31:00Z").exit_code == 0
    assert run(tape, "--data-dir", folder, "--until", "2025-03-03T14:31:00Z").exit_code == 1


def test_alerts_of_an_earlier_version_are_counted_and_not_judged(tape: Path, folder: Path) -> None:
    rules, _ = load_rule_file(TEXT, where="mine.rules")
    changed = rules[0].model_validate({"id": "up", "name": "up", "when": "price > 1000000", "version": 2})
    save(folder, changed)
    said = json.loads(run(tape, "--data-dir", folder, "--json").output)
    assert said["ok"], said
    assert said["not_checked"]["alerts"]["up version 1"] > 0


def test_rules_of_a_file_are_taken_in_the_version_that_the_store_has(tape: Path, folder: Path, tmp_path: Path) -> None:
    rules, _ = load_rule_file(TEXT, where="mine.rules")
    save(folder, Rule.model_validate({"id": "up", "name": "up", "when": "price > 1000000", "version": 2}))
    path = tmp_path / "mine.rules"
    path.write_text(TEXT, encoding="utf-8")
    result = run(tape, "--data-dir", folder, "--rules", path)
    assert result.exit_code == 0, result.output
    assert "of rule up" not in result.output
    assert rules[0].version == 1


def test_another_profile_or_interval_is_another_truth(tape: Path, folder: Path) -> None:
    assert run(tape, "--data-dir", folder, "--scan-interval", "500ms").exit_code == 1
    assert run(tape, "--data-dir", folder, "--eligibility", "massive").exit_code == 0  # these letters mean the same


def test_reference_data_in_the_store_are_respected(tape: Path, folder: Path) -> None:
    rules, _ = load_rule_file("rule gap when gap_pct > 1", where="gap.rules")
    save(folder, *rules)
    assert "not checked  rule gap" not in run(tape, "--data-dir", folder).output

    async def work() -> None:
        store = await open_store(folder)
        await store.save_daily_bars(daily())
        await store.close()

    asyncio.run(work())
    assert (
        "rule gap: asks for gap_pct, which reference data may say otherwise" in run(tape, "--data-dir", folder).output
    )


def daily() -> DailyBars:
    import numpy as np

    prices = {name: np.array([10.0]) for name in ("open", "high", "low", "close", "volume")}
    return DailyBars(symbols=("AAA",), symbol=np.zeros(1, np.int32), day=np.array([20_147], np.int32), **prices)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--data-dir", "nowhere"], "there is no store"),
        (["--store", "sqlite://x", "--data-dir", "y"], "either"),
        (["--from", "noon"], "is not a time"),
        (["--from", "2025-03-03T14:31:00"], "lacks its zone"),
        (["--from", "2025-03-03T14:31:00Z", "--until", "2025-03-03T14:30:00Z"], "later than"),
        (["--gap", "2025-03-03T14:31:00Z"], "is not a time"),
        (["--gap", "2025-03-03T14:31:00Z/2025-03-03T14:30:00Z"], "ends before"),
        (["--scan-interval", "1ms"], "--scan-interval"),
    ],
)
def test_mistakes_are_told_in_a_line(more: list[str], why: str, tape: Path) -> None:
    result = run(tape, *more)
    assert isinstance(result.exception, ConfigError)
    assert why in str(result.exception)


def test_file_that_is_no_tape_is_refused(folder: Path, tmp_path: Path) -> None:
    assert isinstance(run(tmp_path / "none.parquet", "--data-dir", folder).exception, Invalid)
    result = run(tmp_path / "x.parquet", "--data-dir", folder, "--eligibility", "nobody")
    assert isinstance(result.exception, ConfigError)
