"""Backtests: the alerts are a replay's, the outcomes are those of its bars, and the command tells both."""

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tapewatch.backtest import Backtest, DryRun, backtest, dry_run, write
from tapewatch.cli import main
from tapewatch.documents import Alert, Rule, load_rules
from tapewatch.eligibility import load_profile
from tapewatch.engine.columns import MINUTE_NS, SECOND_NS, Batch
from tapewatch.engine.outcomes import AFTER_MINUTES, HORIZONS, OUTCOMES
from tapewatch.errors import ConfigError
from tapewatch.feeds.synthetic import TradingDay, write_day
from tapewatch.nyse import day_of
from tapewatch.replay import Replayed, TapeScan, scan_tape

Edges = tuple[int, int, int, int]


def condition(metric: str, operator: str, value: float) -> dict[str, Any]:
    return {"metric": metric, "operator": operator, "value": value}


RULES: list[dict[str, Any]] = [
    {"id": "up", "name": "Up half a percent", "conditions": [condition("change_pct_1m", ">", 0.5)], "cooldown": 60},
    {"id": "never", "name": "A million dollars", "conditions": [condition("price", ">", 1e6)]},
    {"id": "flicker", "name": "Flicker", "conditions": [condition("change_pct_1m", ">", 0)]},
    {"id": "off", "name": "Off", "enabled": False, "conditions": [condition("price", ">", 0)]},
    {"id": "down", "name": "Down half a percent", "version": 3, "conditions": [condition("change_pct_5m", "<", -0.5)]},
]


def rules() -> list[Rule]:
    return load_rules(json.dumps(RULES), where="rules.json")


def run_on(tapes: Sequence[Path], **options: Any) -> Backtest:
    return backtest(rules(), tapes, profile=load_profile("alpaca"), **options)


@pytest.fixture(scope="module")
def edges() -> Edges:
    return day_of("2025-03-10")


@pytest.fixture(scope="module")
def tape(tmp_path_factory: pytest.TempPathFactory, edges: Edges) -> Path:
    """The last forty minutes of a made-up regular session and the half hour after it."""
    path = tmp_path_factory.mktemp("tape") / "day.parquet"
    pre_ns, open_ns, close_ns, post_ns = edges
    day = TradingDay(pre_ns=pre_ns, open_ns=open_ns, close_ns=close_ns, post_ns=post_ns)
    start_ns, end_ns = close_ns - 40 * MINUTE_NS, close_ns + 30 * MINUTE_NS
    write_day(path, seed=7, symbols=40, trades=20_000, day=day, start_ns=start_ns, end_ns=end_ns)
    return path


@pytest.fixture(scope="module")
def tested(tape: Path) -> Backtest:
    return run_on([tape])


@pytest.fixture(scope="module")
def replayed(tape: Path) -> Replayed:
    return scan_tape([tape], profile=load_profile("alpaca"), rules=rules())


def files_of(tested: Backtest, out: Path) -> dict[str, Any]:
    out.mkdir()
    write(tested, out)
    scores = json.loads((out / "scores.json").read_text())
    del scores["elapsed_s"]
    return {"scores": scores, "outcomes": pq.read_table(out / "outcomes.parquet").to_pylist()}


def naive_returns(replayed: Replayed, tape: Path, edges: Edges) -> list[list[float | None]]:
    """Of each alert, from the final bars of a replay, by going through all of them."""
    _, open_ns, close_ns, post_ns = edges
    bars = replayed.bars
    scan = TapeScan([tape], profile=load_profile("alpaca"))
    assert sum(1 for _ in scan.steps())
    reached_ns = scan.scanner.bars.open_minute * MINUTE_NS
    of_symbol: dict[str, list[tuple[int, float, float, float]]] = {}
    columns = (column.tolist() for column in (bars.symbol, bars.ts_ns, bars.close, bars.high, bars.low))
    for symbol, *bar in zip(*columns, strict=True):
        of_symbol.setdefault(bars.symbols[symbol], []).append((bar[0], bar[1], bar[2], bar[3]))
    rows: list[list[float | None]] = []
    for match in replayed.matches:
        mine, at_ns = of_symbol.get(match.symbol, []), match.fired_at_ns
        row: list[float | None] = []
        for minutes in AFTER_MINUTES:
            due_ns = at_ns + minutes * MINUTE_NS
            ended = [close for ts_ns, close, _, _ in mine if at_ns < ts_ns + MINUTE_NS <= due_ns]
            known = due_ns <= post_ns and due_ns // MINUTE_NS * MINUTE_NS <= reached_ns
            row.append([match.price, *ended][-1] if known else None)
        regular = [c for ts_ns, c, _, _ in mine if max(open_ns, at_ns - MINUTE_NS + 1) <= ts_ns < close_ns]
        standing = [match.price] if at_ns >= open_ns else []
        row.append([None, *standing, *regular][-1] if at_ns < close_ns <= reached_ns else None)
        stop_ns = close_ns if at_ns < close_ns else post_ns
        after = [(high, low) for ts_ns, _, high, low in mine if at_ns <= ts_ns < stop_ns]
        row += [max(high for high, _ in after), min(low for _, low in after)] if after else [None, None]
        rows.append([None if price is None else (price / match.price - 1) * 100 for price in row])
    return rows


def assert_outcomes(tested: Backtest, expected: list[list[float | None]]) -> None:
    told = [[None if math.isnan(v) else v for v in row] for row in tested.rows.values.T.tolist()]
    assert told == expected


# -- the same alerts, and what became of them --------------------------------------------------------------------------


def test_alerts_are_those_of_a_replay(tested: Backtest, replayed: Replayed, tmp_path: Path) -> None:
    write(tested, tmp_path)
    table = pq.read_table(tmp_path / "outcomes.parquet")
    assert table.column_names == ["alert_id", "rule_id", "rule_version", "symbol", "fired_at_ns", "price", *OUTCOMES]
    matches = replayed.matches
    assert table.column("alert_id").to_pylist() == [match.alert_id for match in matches]
    assert table.column("price").to_pylist() == [match.price for match in matches]
    assert len({match.rule.id for match in matches}) == 3


def test_outcomes_are_those_of_the_final_bars(tested: Backtest, replayed: Replayed, tape: Path, edges: Edges) -> None:
    expected = naive_returns(replayed, tape, edges)
    assert_outcomes(tested, expected)
    known = [sum(value is not None for value in column) for column in zip(*expected, strict=True)]
    assert all(0 < count < len(expected) for count in known), known


@pytest.mark.market_data
def test_alerts_and_outcomes_of_a_real_day_are_those_of_its_replay(market_data: Path) -> None:
    tape = market_data / "trades_taq2018/trades_XXX_20180102.parquet"
    options: dict[str, Any] = {"profile": load_profile("alpaca"), "scan_interval_ns": 5 * SECOND_NS}
    texts = [
        {"id": "up", "conditions": [condition("change_pct_5m", ">", 0.1)]},
        {"id": "busy", "conditions": [condition("volume_1m", ">", 20_000)], "cooldown": 300},
    ]
    asked = load_rules(json.dumps(texts), where="rules.json")
    replayed = scan_tape([tape], rules=asked, **options)
    ids: list[str] = []
    tested = backtest(asked, [tape], on_matches=lambda matches: ids.extend(m.alert_id for m in matches), **options)
    assert ids == [match.alert_id for match in replayed.matches]
    assert min(score.alerts for score in tested.scores) > 10
    assert_outcomes(tested, naive_returns(replayed, tape, day_of("2018-01-02")))


@pytest.mark.parametrize("rows", [997, 10_000])
def test_tape_in_other_pieces_gives_the_same(tape: Path, tested: Backtest, tmp_path: Path, rows: int) -> None:
    table = pq.read_table(tape)
    regrouped = tmp_path / "regrouped.parquet"
    pq.write_table(table, regrouped, row_group_size=rows)
    assert files_of(run_on([regrouped]), tmp_path / "a") == files_of(tested, tmp_path / "b")


def test_rows_in_small_batches_give_the_same(tape: Path, tested: Backtest, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = TapeScan.steps

    def cut(scan: TapeScan, on_progress: Any) -> Any:
        whole = scan.reader.batches

        def pieces() -> Iterator[Batch]:
            for batch in whole():
                for at in range(0, max(1, len(batch)), 333):  # the last batch has no row, only a mark
                    yield batch.rows(at, min(at + 333, len(batch)))

        monkeypatch.setattr(scan.reader, "batches", pieces)
        return steps(scan, on_progress)

    monkeypatch.setattr(TapeScan, "steps", cut)
    again = run_on([tape])
    assert again.rows.values.tobytes() == tested.rows.values.tobytes()
    assert again.scores == tested.scores


def test_scores_are_those_of_the_file_of_outcomes(tested: Backtest, tmp_path: Path) -> None:
    files = files_of(tested, tmp_path / "out")
    assert [rule["rule_id"] for rule in files["scores"]["rules"]] == ["up", "never", "flicker", "down"]
    assert files["scores"]["days"] == ["2025-03-10"]
    for rule in files["scores"]["rules"]:
        mine = [row for row in files["outcomes"] if row["rule_id"] == rule["rule_id"]]
        assert rule["alerts"] == rule["alerts_per_day"] == len(mine)
        assert rule["symbols"] == len({row["symbol"] for row in mine})
        for name in OUTCOMES:
            values = [row[name] for row in mine if row[name] is not None]
            score = rule["outcomes"][name]
            assert score["known"] == len(values)
            if values:
                assert score["mean_pct"] == pytest.approx(np.mean(values), abs=1e-12)
                assert score["median_pct"] == pytest.approx(np.median(values), abs=1e-12)
                assert score["positive_pct"] == pytest.approx(100 * np.mean(np.array(values) > 0))


def test_rule_that_is_switched_off_is_not_run_and_one_that_never_fired_is_told(tested: Backtest) -> None:
    assert [rule.id for rule in tested.rules] == ["up", "never", "flicker", "down"]
    warnings = {key.id: why for key, why in tested.warnings().items()}
    assert warnings["never"] == "never fired"
    assert warnings["flicker"].endswith(" times a day (more than 500)")
    assert "up" not in warnings


def test_days_without_an_alert_count_in_the_average(tape: Path, tmp_path: Path, edges: Edges) -> None:
    table = pq.read_table(tape)
    later = tmp_path / "later.parquet"
    shift_ns = day_of("2025-03-11")[0] - edges[0]
    place = table.column_names.index("ts_ns")
    rows = table.slice(0, 400)
    moved = rows.column("ts_ns").to_numpy() + shift_ns
    pq.write_table(rows.set_column(place, "ts_ns", [moved]), later)
    tested = backtest(rules()[:1], [tape, later], profile=load_profile("alpaca"))
    assert list(tested.traded) == ["2025-03-10", "2025-03-11"]
    (rule,) = tested.as_json()["rules"]
    assert rule["alerts_per_day"] == rule["alerts"] / 2


def test_scan_interval_that_no_mark_meets_is_refused(tape: Path) -> None:
    with pytest.raises(ConfigError, match="scan interval"):
        run_on([tape], scan_interval_ns=SECOND_NS // 3)


# -- dry runs ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dry(tape: Path) -> DryRun:
    return dry_run(rules(), [tape], profile=load_profile("alpaca"))


def test_dry_run_counts_by_day_and_shows_the_first_alerts(dry: DryRun, replayed: Replayed) -> None:
    for rule in dry.rules:
        mine = [match for match in replayed.matches if match.rule.id == rule.rule.id]
        assert rule.fires == {"2025-03-10": len(mine)}
        assert rule.examples == tuple(Alert.of(match) for match in mine[:20])
        assert all(alert.values for alert in rule.examples)
    assert [bool(rule.too_broad) for rule in dry.rules] == [False, False, True, False]


def test_dry_run_estimates_what_a_rule_costs(dry: DryRun) -> None:
    assert all(0 <= rule.cost_s < 60 for rule in dry.rules)
    assert any(rule.cost_s > 0 for rule in dry.rules)


def test_dry_run_is_json(dry: DryRun) -> None:
    document = json.loads(json.dumps(dry.as_json(), allow_nan=False))
    assert document["days"] == ["2025-03-10"]
    assert document["rules"][1]["fires"] == {"2025-03-10": 0}
    assert document["rules"][0]["examples"][0]["rule_id"] == "up"


def test_dry_run_ends_when_its_progress_says_so(tape: Path) -> None:
    def stop(_rows: int, _total: int) -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        dry_run(rules(), [tape], profile=load_profile("alpaca"), on_progress=stop)


# -- the command ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def mistake(self) -> str:
        assert self.code == 2, self
        assert (self.out, self.err.count("\n")) == ("", 1), self
        return self.err.removeprefix("tapewatch: ").rstrip("\n")


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    def say(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["tapewatch", "backtest", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Said(ended.value.code, captured.out, captured.err)

    return say


@pytest.fixture
def rule_file(tmp_path: Path) -> Path:
    path = tmp_path / "rules.json"
    path.write_text(json.dumps(RULES))
    return path


def test_command_prints_a_table_with_warnings_and_writes_three_files(
    say: Callable[..., Said], tape: Path, rule_file: Path, tmp_path: Path, replayed: Replayed
) -> None:
    said = say(rule_file, "--tape", tape, "--out", tmp_path / "out")
    assert (said.code, said.err) == (0, "")
    first, *lines = said.out.splitlines()
    assert first.startswith(f"1 day, 2025-03-10; 40 symbols, {pq.read_metadata(tape).num_rows:,} trades, ")
    (header,) = [line.split() for line in lines if line.strip().startswith("rule")]
    assert " ".join(header) == "rule alerts a day symbols after 1m after 5m after 15m after 60m close best worst"
    (up,) = [line.split() for line in lines if line.strip().startswith("Up half")]
    count = sum(match.rule.id == "up" for match in replayed.matches)
    assert up[4:6] == [str(count), f"{count}.0"]
    (never,) = [line.split() for line in lines if line.strip().startswith("A million")]
    assert never[3:] == ["0", "0.0", "0", *["-"] * (len(HORIZONS) + 2)]
    assert "warning: A million dollars: never fired" in lines
    assert any(line.startswith("warning: Flicker: fires ") for line in lines)
    assert lines[-1] == f"alerts.jsonl, outcomes.parquet and scores.json -> {tmp_path / 'out'}"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"alerts.jsonl", "outcomes.parquet", "scores.json"}
    alerts = [json.loads(line) for line in (tmp_path / "out" / "alerts.jsonl").read_text().splitlines()]
    assert alerts == [Alert.of(match).as_json() for match in replayed.matches]


def test_command_prints_the_scores_as_json(say: Callable[..., Said], tape: Path, rule_file: Path) -> None:
    said = say(rule_file, "--tape", tape, "--json")
    printed = json.loads(said.out)
    assert [rule["name"] for rule in printed["rules"]] == [rule["name"] for rule in RULES if rule["id"] != "off"]
    assert printed["alerts"] == sum(rule["alerts"] for rule in printed["rules"])


def test_name_of_a_rule_is_no_markup(say: Callable[..., Said], tape: Path, tmp_path: Path) -> None:
    (tmp_path / "rules.json").write_text(json.dumps([{**RULES[1], "name": "[red]x[/red]"}]))
    assert "warning: [red]x[/red]: never fired" in say(tmp_path / "rules.json", "--tape", tape).out


def test_command_refuses_what_it_cannot_use(
    say: Callable[..., Said], tape: Path, rule_file: Path, tmp_path: Path
) -> None:
    assert "missing option '--tape'" in say(rule_file).mistake
    assert "missing argument 'rules'" in say("--tape", tape).mistake
    missing = tmp_path / "none"
    assert say(rule_file, "--tape", missing).mistake == f"{missing}: no such file"
    assert "cannot be read: No such file" in say(missing, "--tape", tape).mistake
    assert "unknown eligibility profile 'iex'" in say(rule_file, "--tape", tape, "--eligibility", "iex").mistake
    assert "'1sec' is not a duration" in say(rule_file, "--tape", tape, "--scan-interval", "1sec").mistake
    assert say(rule_file, "--tape", tape, "--out", tape).mistake == f"--out: {tape} is a file, not a folder"
    below = say(rule_file, "--tape", tape, "--out", tape / "below").mistake
    assert below == f"--out: cannot write to {tape / 'below'}: Not a directory"


def test_command_refuses_rules_that_are_all_switched_off(say: Callable[..., Said], tape: Path, tmp_path: Path) -> None:
    path = tmp_path / "off.json"
    path.write_text(json.dumps([RULES[3]]))
    assert say(path, "--tape", tape).mistake == f"{path}: holds no rule that is switched on"


def test_command_without_a_single_trade_says_so(
    say: Callable[..., Said], tape: Path, rule_file: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.parquet"
    pq.write_table(pq.read_table(tape).slice(0, 0), empty)
    said = say(rule_file, "--tape", empty, "--out", tmp_path / "out")
    assert said.code == 0
    assert said.out.startswith("no day; 0 symbols, 0 trades, 0 alerts")
    assert pq.read_table(tmp_path / "out" / "outcomes.parquet").num_rows == 0
