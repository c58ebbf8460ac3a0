"""Replays of tape files: real days against bars that others made of them, and one tape cut in many ways."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tapewatch.documents import Condition, ConditionForm, Rule
from tapewatch.eligibility import load_profile
from tapewatch.engine.columns import MINUTE_NS, SECOND_NS
from tapewatch.engine.indicators import INDICATORS
from tapewatch.engine.metrics import CATALOGUE, PUBLISHED
from tapewatch.errors import ConfigError
from tapewatch.feeds.synthetic import TradingDay, write_day
from tapewatch.nyse import day_of, trading_days
from tapewatch.replay import Replayed, TapeScan, scan_tape, write

BAR_COLUMNS = ("symbol", "ts_ns", "open", "high", "low", "close", "volume", "vwap", "trade_count", "revision")
DAYS_2013 = ("20131007", "20131008", "20131009")
Bar = tuple[float, ...]


def replay(tapes: Sequence[Path], *, profile: str = "alpaca", **options: Any) -> Replayed:
    return scan_tape(tapes, profile=load_profile(profile), **options)


def bars_of(replayed: Replayed, *columns: str) -> dict[tuple[str, int], Bar]:
    bars = replayed.bars
    picked = [getattr(bars, name).tolist() for name in columns]
    keys = [(bars.symbols[s], t) for s, t in zip(bars.symbol.tolist(), bars.ts_ns.tolist(), strict=True)]
    assert len(set(keys)) == len(keys)
    return dict(zip(keys, zip(*picked, strict=True), strict=True))


def table_rows(path: Path, *columns: str) -> dict[tuple[str, int], Any]:
    table = pq.read_table(path, columns=["symbol", "ts_ns", *columns])
    symbol, ts_ns, *rest = (table.column(name).to_pylist() for name in ("symbol", "ts_ns", *columns))
    return dict(zip(zip(symbol, ts_ns, strict=True), zip(*rest, strict=True), strict=True))


def split(tape: Path, folder: Path, at: Sequence[int]) -> list[Path]:
    """The tape as several files, cut before these rows."""
    table = pq.read_table(tape)
    edges = [0, *at, len(table)]
    paths = []
    for start, stop in pairwise(edges):
        paths.append(folder / f"piece-{start:07d}.parquet")
        pq.write_table(table.slice(start, stop - start), paths[-1])
    return paths


def quiet_cuts(tape: Path, count: int) -> list[int]:
    """Places where the tape's time moves on: the row before is the newest so far, and none that comes is older."""
    ts_ns = pq.read_table(tape, columns=["ts_ns"]).column("ts_ns").to_numpy()
    newest = np.maximum.accumulate(ts_ns)
    oldest_to_come = np.minimum.accumulate(ts_ns[::-1])[::-1]
    places = np.flatnonzero(newest[:-1] < oldest_to_come[1:]) + 1
    assert len(places) >= count
    return [int(place) for place in places[np.linspace(0, len(places) - 1, count + 2).astype(int)[1:-1]]]


def files_of(replayed: Replayed, out: Path) -> dict[str, Any]:
    """What a replay writes, without what names the input files and the time that it took."""
    write(replayed, out)
    summary = json.loads((out / "summary.json").read_text())
    for reasons in (summary["rejected"], summary["dropped"]):
        for entry in reasons.values():
            del entry["first"]
    del summary["elapsed_s"]
    return {
        "summary": summary,
        **{name: (out / name).read_bytes() for name in ("alerts.jsonl", "bars.parquet", "indicators.parquet")},
    }


# -- real days ---------------------------------------------------------------------------------------------------------


@pytest.mark.market_data
def test_bars_of_real_days_equal_the_alpaca_oracle(market_data: Path) -> None:
    tapes = [market_data / f"trades/trades_{day}.parquet" for day in DAYS_2013]
    tapes.append(market_data / "trades_taq2018/trades_XXX_20180102.parquet")
    exact = ("open", "high", "low", "close", "volume", "trade_count")
    replayed = replay(tapes)
    oracle_path = market_data / "bars/oracle_alpaca_rule_1m.parquet"
    of_2026 = {key for key, (source,) in table_rows(oracle_path, "source").items() if source == "trades_taq_ns"}
    oracle = {key: bar for key, bar in table_rows(oracle_path, *exact).items() if key not in of_2026}
    assert len(oracle) == 5_443
    assert bars_of(replayed, *exact) == oracle
    vwap = table_rows(oracle_path, "vwap")
    for key, (value,) in bars_of(replayed, "vwap").items():
        assert value == pytest.approx(vwap[key][0], rel=1e-9, nan_ok=True), key
    assert replayed.summary["trades"]["read"] == 300_245 + 528_268 + 518_727 + 39_470
    assert replayed.summary["trades"]["rejected"] == 0


@pytest.mark.market_data
def test_bars_of_nanosecond_day_equal_the_alpaca_oracle(market_data: Path) -> None:
    exact = ("open", "high", "low", "close", "volume", "trade_count")
    oracle_path = market_data / "bars/oracle_alpaca_rule_1m.parquet"
    of_2026 = {key for key, (source,) in table_rows(oracle_path, "source").items() if source == "trades_taq_ns"}
    oracle = {key: bar for key, bar in table_rows(oracle_path, *exact).items() if key in of_2026}
    replayed = replay([market_data / "trades_taq_ns/trades_20260401.parquet"], keep_test_symbols=True)
    assert len(oracle) == 4
    assert bars_of(replayed, *exact) == oracle


@pytest.mark.market_data
def test_regular_bars_of_real_days_equal_the_published_ones(market_data: Path) -> None:
    exact = ("open", "high", "low", "close", "volume")
    tapes = [market_data / f"trades/trades_{day}.parquet" for day in DAYS_2013]
    ours = bars_of(replay(tapes, profile="algoseek"), *exact)
    edges = [day_of(f"{day[:4]}-{day[4:6]}-{day[6:]}") for day in DAYS_2013]
    published = table_rows(market_data / "bars/provider_bars_1m.parquet", *exact)

    def regular(bars: dict[tuple[str, int], Bar]) -> dict[tuple[str, int], Bar]:
        return {k: bar for k, bar in bars.items() if any(opened <= k[1] < closed for _, opened, closed, _ in edges)}

    of_theirs, of_ours = regular(published), regular(ours)
    assert len(of_theirs) == 3_509
    assert len(set(of_theirs) ^ set(of_ours)) <= 2
    same = sum(of_ours.get(key) == bar for key, bar in of_theirs.items())
    assert same / len(of_theirs) >= 0.99


@pytest.mark.market_data
def test_summary_of_modern_tape_counts_its_odd_lots(market_data: Path) -> None:
    path = market_data / "trades_taq2018/trades_XXX_20180102.parquet"
    summary = replay([path]).summary
    conditions = pq.read_table(path, columns=["conditions"]).column("conditions").to_pylist()
    assert summary["noted"]["odd_lot"] == sum("I" in letters for letters in conditions) == 17_592
    assert summary["trades"]["read"] == len(conditions) == 39_470
    assert summary["trades"]["used"] == 39_470 - sum(bool(set(letters) & set("MQ9")) for letters in conditions)
    assert summary["bars"] == 425
    assert summary["trades"]["unknown_condition"] == 0


@pytest.mark.market_data
def test_summary_of_nanosecond_tape_leaves_test_symbols_out_unless_asked(market_data: Path) -> None:
    path = market_data / "trades_taq_ns/trades_20260401.parquet"
    without, with_them = replay([path]).summary, replay([path], keep_test_symbols=True).summary
    assert without["dropped"]["test_symbol"]["count"] == 18
    assert without["dropped"]["test_symbol"]["first"] == "trades_20260401.parquet row 0"
    assert with_them["dropped"] == {}
    assert (without["symbols"], with_them["symbols"]) == (5, 8)
    assert without["noted"] == {"corrected": 0, "fractional_size": 1, "odd_lot": 6, "zero_size": 0}
    assert with_them["noted"] == {"corrected": 0, "fractional_size": 1, "odd_lot": 6, "zero_size": 6}


@pytest.mark.market_data
def test_real_day_in_pieces_out_of_order_gives_the_same_files(market_data: Path, tmp_path: Path) -> None:
    tape = market_data / f"trades/trades_{DAYS_2013[0]}.parquet"
    rules, minute_ns = many_rules(20), 60 * SECOND_NS
    expected = files_of(replay([tape], rules=rules, scan_interval_ns=minute_ns), tmp_path / "whole")
    assert expected["summary"]["alerts"] > 100
    pieces = split(tape, tmp_path, quiet_cuts(tape, 4))
    other = replay(pieces[::-1], rules=rules, scan_interval_ns=minute_ns)
    assert files_of(other, tmp_path / "reversed") == expected


# -- synthetic days ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An hour around the open of a made-up day: 40 symbols, late prints and cancelled trades among them."""
    path = tmp_path_factory.mktemp("tape") / "day.parquet"
    pre_ns, open_ns, close_ns, post_ns = day_of("2025-03-10")
    day = TradingDay(pre_ns=pre_ns, open_ns=open_ns, close_ns=close_ns, post_ns=post_ns)
    start_ns, end_ns = open_ns - 15 * MINUTE_NS, open_ns + 45 * MINUTE_NS
    rows = write_day(path, seed=7, symbols=40, trades=20_000, day=day, start_ns=start_ns, end_ns=end_ns)
    assert rows > 15_000
    return path


def many_rules(count: int) -> list[Rule]:
    """Rules of one to three conditions over the published metrics, with thresholds that a market of tens of dollars
    crosses.
    """
    thresholds = {
        "$": 35.0, "%": 0.05, "shares": 1_500.0, "ratio": 1.1, "index": 55.0, "flag": 0.0,
        "count": 2.0, "seconds": 5.0, "minutes": 10.0, "sigma": 1.0,
    }  # fmt: skip
    metrics = [CATALOGUE[name] for name in PUBLISHED]
    rules = []
    for i in range(count):
        picked = [metrics[(i * (k + 3) + k * 17) % len(metrics)] for k in range(1 + i % 3)]
        conditions: list[ConditionForm] = [
            Condition(metric=m.name, operator="<=" if (i + k) % 3 == 2 else ">", value=thresholds[m.unit] * (1 + i % 2))
            for k, m in enumerate(picked)
        ]
        rules.append(Rule(id=f"rule-{i:03d}", name=f"Rule {i}", conditions=conditions, cooldown=float(i % 4) * 30))
    return rules


def test_replay_writes_files_with_the_columns_that_people_rely_on(tape: Path, tmp_path: Path) -> None:
    replayed = replay([tape], rules=many_rules(20))
    write(replayed, tmp_path)
    bars, indicators = pq.read_table(tmp_path / "bars.parquet"), pq.read_table(tmp_path / "indicators.parquet")
    assert tuple(bars.column_names) == BAR_COLUMNS
    assert tuple(indicators.column_names) == ("symbol", "ts_ns", *INDICATORS)
    wanted = [f"{kind}_{n}_1m" for kind in ("ema", "sma") for n in (20, 50, 200)]
    assert {"rsi_14_1m", "atr_14_1m", "vwap_5m", "vwap_15m", "vwap_1h", *wanted} <= set(indicators.column_names)
    assert bars.select(["symbol", "ts_ns"]).equals(indicators.select(["symbol", "ts_ns"]))
    keys = list(zip(bars.column("symbol").to_pylist(), bars.column("ts_ns").to_pylist(), strict=True))
    assert keys == sorted(set(keys))
    alerts = [json.loads(line) for line in (tmp_path / "alerts.jsonl").read_text().splitlines()]
    assert len(alerts) == len(replayed.matches) == json.loads((tmp_path / "summary.json").read_text())["alerts"] > 0
    fields = {"alert_id", "rule_id", "rule_version", "symbol", "fired_at", "price", "values", "session"}
    assert all(fields <= set(alert) for alert in alerts)
    assert len({alert["alert_id"] for alert in alerts}) == len(alerts)
    assert {path.name for path in tmp_path.iterdir()} == {
        "bars.parquet", "indicators.parquet", "alerts.jsonl", "summary.json",
    }  # fmt: skip


def test_summary_accounts_for_every_row(tape: Path) -> None:
    summary = replay([tape]).summary
    trades, dropped = summary["trades"], sum(entry["count"] for entry in summary["dropped"].values())
    assert trades["read"] == pq.ParquetFile(tape).metadata.num_rows
    assert trades["used"] + trades["without_effect"] + trades["rejected"] + dropped == trades["read"]
    assert summary["bars"] > 0
    assert trades["late"] > 0
    assert summary["dropped"]["correction"]["count"] > 0


def test_replay_twice_gives_the_same_files(tape: Path, tmp_path: Path) -> None:
    one, other = (files_of(replay([tape], rules=many_rules(100)), tmp_path / name) for name in ("one", "other"))
    assert one == other
    assert len(one["alerts.jsonl"].splitlines()) > 100


@pytest.mark.parametrize("rows", [97, 4_096])
def test_replay_of_other_row_groups_gives_the_same_files(tape: Path, tmp_path: Path, rows: int) -> None:
    regrouped = tmp_path / "regrouped.parquet"
    pq.write_table(pq.read_table(tape), regrouped, row_group_size=rows)
    rules = many_rules(100)
    assert files_of(replay([regrouped], rules=rules), tmp_path / "a") == files_of(
        replay([tape], rules=rules), tmp_path / "b"
    )


def test_replay_of_pieces_in_any_order_gives_the_same_files(tape: Path, tmp_path: Path) -> None:
    rules = many_rules(100)
    expected = files_of(replay([tape], rules=rules), tmp_path / "whole")
    pieces = split(tape, tmp_path, quiet_cuts(tape, 3))
    assert files_of(replay(pieces, rules=rules), tmp_path / "pieces") == expected
    assert files_of(replay(pieces[::-1], rules=rules), tmp_path / "reversed") == expected


def test_replay_of_overlapping_files_gives_the_same_in_any_order(tape: Path, tmp_path: Path) -> None:
    """Each symbol in a file of its own, all of the same hour."""
    table = pq.read_table(tape)
    names = np.array(table.column("symbol").to_pylist())
    paths = []
    for third in range(3):
        paths.append(tmp_path / f"third-{third}.parquet")
        mine = np.array([sum(name.encode()) % 3 == third for name in names])
        pq.write_table(table.filter(pa.array(mine)), paths[-1])
    rules = many_rules(30)
    one = files_of(replay(paths, rules=rules), tmp_path / "one")
    assert files_of(replay([paths[2], paths[0], paths[1]], rules=rules), tmp_path / "other") == one
    whole = files_of(replay([tape]), tmp_path / "whole")
    assert one["summary"]["bars"] == whole["summary"]["bars"]


def test_replay_of_one_symbol_equals_its_share_of_the_whole(tape: Path, tmp_path: Path) -> None:
    """Without rules about time, what a symbol does has nothing to do with the others."""
    table = pq.read_table(tape)
    names = table.column("symbol").to_pylist()
    symbol = max(set(names), key=names.count)
    alone = tmp_path / "alone.parquet"
    pq.write_table(table.filter(pa.array([name == symbol for name in names])), alone)
    exact = ("open", "high", "low", "close", "volume", "vwap", "trade_count")
    whole = {key: bar for key, bar in bars_of(replay([tape]), *exact).items() if key[0] == symbol}
    assert bars_of(replay([alone]), *exact) == whole


def test_replay_of_an_empty_file_writes_empty_files(tape: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.parquet"
    pq.write_table(pq.read_table(tape).slice(0, 0), empty)
    replayed = replay([empty], rules=many_rules(3))
    write(replayed, tmp_path / "out")
    assert tuple(pq.read_table(tmp_path / "out/bars.parquet").column_names) == BAR_COLUMNS
    assert pq.read_table(tmp_path / "out/indicators.parquet").num_rows == 0
    assert (tmp_path / "out/alerts.jsonl").read_text() == ""
    assert replayed.summary["trades"]["read"] == 0


@pytest.mark.parametrize("interval_ns", [0, -SECOND_NS, SECOND_NS // 3])
def test_scan_interval_that_no_mark_meets_is_refused(tape: Path, interval_ns: int) -> None:
    with pytest.raises(ConfigError, match="scan interval"):
        replay([tape], scan_interval_ns=interval_ns)


def test_progress_ends_at_the_number_of_rows(tape: Path) -> None:
    seen: list[tuple[int, int]] = []
    replay([tape], on_progress=lambda rows, total: seen.append((rows, total)))
    total = pq.ParquetFile(tape).metadata.num_rows
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)


# -- until an instant --------------------------------------------------------------------------------------------------


def until(tapes: Sequence[Path], at_ns: int, **options: Any) -> TapeScan:
    scan = TapeScan(tapes, profile=load_profile("alpaca"), **options)
    scan.until(at_ns)
    return scan


@pytest.mark.parametrize(("interval_ns", "instants"), [(SECOND_NS, 4), (SECOND_NS // 10, 1)])
def test_scan_at_an_instant_finds_what_the_replay_told_of_it(tape: Path, interval_ns: int, instants: int) -> None:
    rules = many_rules(20)
    found = replay([tape], rules=rules, scan_interval_ns=interval_ns).matches
    times = sorted({match.fired_at_ns for match in found})
    for at_ns in times[len(times) // 8 :: len(times) // instants]:
        for asked_ns in (at_ns, at_ns + interval_ns - 1):
            plan = until([tape], asked_ns, rules=rules, scan_interval_ns=interval_ns).scanner.plan
            assert plan.scene is not None
            assert plan.scene.now_ns == at_ns
            assert [match.alert_id for match in plan.matches] == [m.alert_id for m in found if m.fired_at_ns == at_ns]


def test_scan_in_a_silence_of_the_tape_is_made_and_sees_nothing_of_what_follows(tmp_path: Path) -> None:
    open_ns = day_of("2025-03-10")[1]
    path = tmp_path / "sparse.parquet"
    times = [open_ns + SECOND_NS // 2, open_ns + 9 * SECOND_NS // 2, open_ns + 141 * SECOND_NS // 2]
    columns: dict[str, Any] = {"conditions": [" "] * 3, "exchange": ["N"] * 3, "tape": ["A"] * 3}
    pq.write_table(
        pa.table({"symbol": ["AAA"] * 3, "ts_ns": times, "price": [9.0, 11.0, 12.0], "size": [100.0] * 3, **columns}),
        path,
    )
    rules = [Rule(id="ten", name="Ten", conditions=[Condition(metric="price", operator=">", value=10.0)])]
    prices = {}
    for second in (1, 4, 5, 6, 59, 70, 71, 72):
        scene = until([path], open_ns + second * SECOND_NS, rules=rules).scanner.plan.scene
        assert scene is not None
        assert scene.now_ns == open_ns + second * SECOND_NS
        prices[second] = float(scene.row("price")[0])
    assert prices == {1: 9.0, 4: 9.0, 5: 11.0, 6: 11.0, 59: 11.0, 70: 11.0, 71: 12.0, 72: 12.0}
    assert until([path], open_ns, rules=rules).scanner.plan.scene is None  # the tape has not begun
    assert until([path], 0, rules=rules).scanner.plan.scene is None


def test_calendar_covers_the_days_of_the_real_tapes() -> None:
    days = trading_days()
    assert all(day_of(date)[0] in days.pre_ns for date in ("2013-10-07", "2018-01-02", "2025-03-10"))
