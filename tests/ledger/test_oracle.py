"""The oracle says what the documentation says, shares nothing with the engine, and agrees with it on every tape."""

import ast
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import tapewatch.ledger
from tapewatch.documents import Rule, Watchlist, load_rule_file, ruleset
from tapewatch.eligibility import load_profile
from tapewatch.engine.columns import Bars
from tapewatch.engine.scanner import Scanner
from tapewatch.errors import Invalid
from tapewatch.feeds.synthetic import TradingDay, write_day
from tapewatch.ledger.asked import asked, listed
from tapewatch.ledger.booking import Bar
from tapewatch.ledger.conditions import read_eligibility
from tapewatch.ledger.days import MINUTE, SECOND, days_around
from tapewatch.ledger.expected import Expected, alert_id
from tapewatch.ledger.metrics import METRICS
from tapewatch.ledger.oracle import Oracle, expect
from tapewatch.ledger.rules import AskedRule
from tapewatch.ledger.tape import Item, Row, TapeFiles
from tapewatch.nyse import day_of, trading_days
from tapewatch.replay import Replayed, final_bars, scan_tape

RULES = """
watchlist some "Some" = AAPL, BBB, SPY
rule price when price > 10.2
rule day when change_pct_day > 0.5 or gap_pct > 0.5
rule minute when volume_1m > 900
rule five when volume_5m > 2_000 and price > 5 cooldown 90s
rule since-four when volume_day >= 5_000 and volume_session >= 4_000
rule new-high when price > high_day_before cooldown 30s
rule new-low when price crosses_below low_day_before
rule vwap-up when price crosses_above vwap_session
rule vwap-down when price crosses_below vwap_session cooldown 2m
rule over-candle when price > high_1m[1] and close_1m[1] > open_1m[1] and low_1m[2] > 0
rule third when price crosses_above high_1m[3]
rule rsi when rsi_14_1m < 40
rule rsi-again when rsi_14_1m > 60 rearm when rsi_14_1m < 55
rule averages when ema_9_1m crosses_above ema_20_1m
rule above when price > ema_9_1m for 90s
rule second when change_pct_1m > 0.3 cooldown 1m
rule quarter when abs(change_pct_15m) > 0.4 gate volume_1m > 300
rule session when price > 5 fire once per session
rule candle when volume_1m > 500 and session is regular fire once per bar 5m
rule daily when volume_1m > 500 fire once per day
rule level when volume_1m > 1_500 and session is regular fire level cooldown 10s
rule lately when volume_1m > 900 within 30s and price < vwap_session
rule row when change_pct_1m > 0.1 10 times in a row
rule then when price crosses_above high_1m[1] then price < vwap_session within 3m
rule clock when time between 09:35 and 09:50 and price > vwap_session
rule negated when not rsi_14_1m < 60 and minutes_since_open > 12
rule listed when symbol in watchlist some and price > open_day
rule named when symbol in (AAA, BBB) and price != 10
rule sums when price - open_day > 0.01 * open_day and high_session - low_session > max(0.1, 0.001 * price)
rule between when change_from_open_pct between 0.2 and 0.5
"""
Facts = dict[tuple[str, int], Bar]


def rules_of(text: str) -> tuple[list[Rule], list[Watchlist]]:
    return load_rule_file(text, where="test.rules")


def facts(bars: Bars) -> Facts:
    rows = zip(*(getattr(bars, name).tolist() for name in Bar._fields), strict=True)
    keys = zip((bars.symbols[code] for code in bars.symbol.tolist()), bars.ts_ns.tolist(), strict=True)
    return {key: Bar(*row) for key, row in zip(keys, rows, strict=True)}


def assert_same_bars(expected: Facts, found: Facts) -> None:
    """To the last bit; NaN equals NaN."""

    def plain(bars: Facts) -> dict[Any, Any]:
        return {key: tuple(None if math.isnan(value) else value for value in bar) for key, bar in bars.items()}

    assert plain(expected) == plain(found)


def assert_agree(expected: Expected, replayed: Replayed) -> None:
    assert_same_bars(expected.bars, facts(replayed.bars))
    told = [
        (m.alert_id, m.rule.id, m.rule.version, m.symbol, m.fired_at_ns, m.price, m.session) for m in replayed.matches
    ]
    assert told == [tuple(alert) for alert in expected.alerts]
    trades = replayed.summary["trades"]
    assert expected.counts["sent"] == trades["read"]
    assert expected.counts["duplicates"] == trades["duplicate"]
    assert expected.counts["booked"] == trades["used"]
    assert expected.counts["late"] == trades["late"]
    dropped = {reason: item["count"] for reason, item in replayed.summary["dropped"].items() if reason != "duplicate"}
    rejected = {reason: item["count"] for reason, item in replayed.summary["rejected"].items()}
    assert dict(expected.rejected) == {reason: n for reason, n in {**dropped, **rejected}.items() if n}
    assert expected.counts["sent"] == expected.accepted + expected.counts["rejected"] + expected.counts["duplicates"]


def both(tapes: Sequence[Path], profile: str, text: str = RULES) -> tuple[Expected, Replayed]:
    rules, watchlists = rules_of(text)
    expected = expect(tapes, map(asked, rules), eligibility=profile, watchlists=listed(watchlists))
    assert not expected.unchecked
    return expected, scan_tape(tapes, profile=load_profile(profile), rules=ruleset(1, rules, watchlists))


# -- independent ------------------------------------------------------------------------------------------------------


def test_oracle_imports_nothing_of_the_product_but_the_names_of_errors() -> None:
    folder = Path(tapewatch.ledger.__file__).parent
    seen, waiting = set(), ["oracle"]
    while waiting:
        name = waiting.pop()
        seen.add(name)
        for node in ast.walk(ast.parse((folder / f"{name}.py").read_text("utf-8"))):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                imported.append(node.module or "")
            for module in imported:
                if module.startswith("tapewatch.ledger."):
                    waiting += {module.removeprefix("tapewatch.ledger.")} - seen
                else:
                    assert not module.startswith("tapewatch") or module == "tapewatch.errors", f"{name}: {module}"
                    assert module != "numpy", name
    assert seen == {"oracle", "booking", "conditions", "days", "expected", "metrics", "pauses", "rules", "tape"}


# -- it agrees --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """From three minutes before the open to nineteen after it."""
    path = tmp_path_factory.mktemp("tape") / "day.parquet"
    pre, opened, closed, post = day_of("2025-03-03")
    day = TradingDay(pre_ns=pre, open_ns=opened, close_ns=closed, post_ns=post)
    start, end = opened - 3 * MINUTE, opened + 19 * MINUTE
    write_day(path, seed=5, symbols=15, trades=18_000, day=day, start_ns=start, end_ns=end)
    return path


def test_synthetic_tape_gives_what_the_replay_gives(synthetic: Path) -> None:
    expected, replayed = both([synthetic], "alpaca")
    assert_agree(expected, replayed)
    assert len(expected.bars) > 150
    assert {alert.rule_id for alert in expected.alerts} > {"price", "then", "row", "lately", "candle"}
    assert expected.rejected["correction"] > 0


def wild_rows(seed: int, *, start_ns: int, seconds: int) -> list[Row]:
    """Prints in disorder: late ones, letters of all kinds, twins, sizes of zero, clocks that jump."""
    dice = random.Random(seed)
    rows: list[Row] = []
    price = dict.fromkeys(("AAA", "BBB", "CCC", "ZVZZT"), 10.0)
    now = start_ns
    while now < start_ns + seconds * SECOND:
        now += dice.randrange(SECOND)
        symbol = dice.choice(list(price))
        price[symbol] = round(max(1.0, price[symbol] * (1 + dice.gauss(0, 0.002))), 2)
        late = dice.choice((1, 50, 100, 2_000)) * SECOND if dice.random() < 0.05 else 0
        spike = 7_200 * SECOND if dice.random() < 0.006 else 0
        rows.append(
            Row(
                symbol,
                now - late + spike,
                price[symbol] if dice.random() > 0.02 else dice.choice((0.0, -1.0, math.inf, math.nan)),
                dice.choice((100.0, 200.0, 0.0, 50.5, math.nan)) if dice.random() < 0.3 else 100.0,
                dice.choice(LETTERS),
                dice.choice("ABC") if dice.random() > 0.05 else dice.choice(("", "O")),
                dice.choice("NQDZP"),
                dice.randrange(1, 100_000) if dice.random() > 0.2 else 0,
            )
        )
        if dice.random() < 0.02:
            rows.append(rows[-1])
    return rows


LETTERS = ("@", "@", "@", " ", *"BWQM9", *(f"@ {letter}" for letter in "FITZP4LU?"), "@ TI")


@pytest.mark.parametrize("profile", ["alpaca", "massive", "sip"])
def test_wild_tape_gives_what_the_replay_gives(profile: str, write_tape: Any) -> None:
    rows = wild_rows(1, start_ns=day_of("2025-03-03")[1] - 100 * SECOND, seconds=700)
    codes = random.Random(1).choices((0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 7, 8, 10, 99), k=len(rows))
    expected, replayed = both([write_tape(rows, correction=codes)], profile)
    assert_agree(expected, replayed)
    assert len(expected.alerts) > 100
    refused = {"price", "size", "test_symbol", "correction", "correction_code", "ts_ns_spike", "too_late"}
    assert refused <= set(expected.rejected)
    assert expected.counts["duplicates"] > 0


@pytest.mark.parametrize("profile", ["alpaca", "sip"])
def test_close_night_and_next_morning_give_what_the_replay_gives(profile: str, write_tape: Any) -> None:
    close_ns, pre_ns = day_of("2025-03-03")[2], day_of("2025-03-04")[0]
    evening = wild_rows(2, start_ns=close_ns - 100 * SECOND, seconds=200)
    morning = wild_rows(3, start_ns=pre_ns - 60 * SECOND, seconds=120)
    text = """
    rule day when change_pct_day > 0.5 or change_pct_day < -0.5
    rule new-high when price crosses_above high_day_before
    rule volume when volume_day > 500
    rule before when price > high_1m[1]
    """
    expected, replayed = both([write_tape(morning, "b.parquet"), write_tape(evening, "a.parquet")], profile, text)
    assert_agree(expected, replayed)
    assert {alert.rule_id for alert in expected.alerts} == {"day", "new-high", "volume", "before"}


def test_files_that_overlap_are_merged_as_the_replay_merges_them(write_tape: Any) -> None:
    rows = wild_rows(4, start_ns=day_of("2025-03-03")[1], seconds=200)
    tapes = [write_tape(rows[0::2], "even.parquet"), write_tape(rows[1::2], "odd.parquet")]
    assert_agree(*both(tapes, "alpaca"))


def test_flags_of_a_vendor_give_what_the_replay_gives(write_tape: Any) -> None:
    rows = wild_rows(6, start_ns=day_of("2025-03-03")[1] - 60 * SECOND, seconds=300)
    dice = random.Random(6)
    flags = dice.choices((0x1, 0x1, 0x1, 0x20, 0x40, 0x80, 0x2000, 0x4000000, 0x1000000, 0x20000001), k=len(rows))
    tape = write_tape(rows, cond_flags=flags, suspicious=[dice.random() < 0.05 for _ in rows])
    assert_agree(*both([tape], "algoseek"))


def test_withdrawn_and_corrected_prints_give_what_the_engine_gives(market: Any) -> None:
    """Such rows come from live feeds; a tape file marks them as what they were."""
    expected = market.expected()
    scanner = Scanner(days=trading_days(), profile=load_profile("alpaca"))
    scanner.apply(ruleset(1, market.rules))
    steps = [scanner.step(batch) for batch in market.batches()]
    assert sum(len(step.withdrawn) for step in steps) == expected.counts["amended"] == 2
    assert_same_bars(expected.bars, facts(final_bars([bars for step in steps for bars in step.bars])))
    matches = [match for step in steps for match in step.matches]
    assert [match.alert_id for match in matches] == [alert.alert_id for alert in expected.alerts]


def test_half_day_and_clock_change_are_the_exchange_s() -> None:
    for date in ("2024-11-29", "2025-03-10", "2025-07-03"):
        edges = day_of(date)
        days = days_around(edges[0], edges[3])
        assert tuple(next(day for day in days.days if day.pre == edges[0])) == edges


def test_alert_ids_are_the_documented_hash() -> None:
    assert alert_id("r", 3, "AAPL", 17) == "320d58ddbf85c40c5b4081515d21c54e"


# -- bars, from the documentation -------------------------------------------------------------------------------------


def bars_of(rows: Sequence[Row], as_marked: Any, profile: str = "alpaca") -> dict[tuple[str, int], Bar]:
    oracle = Oracle(
        days=days_around(rows[0].ts_ns, rows[0].ts_ns), eligibility=read_eligibility(profile), amendable=True
    )
    oracle.take(as_marked(rows))
    return oracle.expected().bars


def at(open_ns: int, seconds: float, price: float, size: float = 100.0, conditions: str = "@", **more: Any) -> Row:
    return Row("AAA", open_ns + round(seconds * SECOND), price, size, conditions, **{"exchange": "Q", **more})


def test_late_print_revises_and_one_too_late_does_not(open_ns: int, as_marked: Any) -> None:
    rows = [at(open_ns, 1, 10), at(open_ns, 70, 11), at(open_ns, 30, 12), at(open_ns, 1950, 11), at(open_ns, 31, 99)]
    first = bars_of(rows, as_marked)["AAA", open_ns]
    assert first == Bar(10, 12, 10, 12, 200, 11, 2, 1)


def test_odd_lots_count_in_the_volume_and_make_no_bar_alone(open_ns: int, as_marked: Any) -> None:
    rows = [at(open_ns, 1, 10), at(open_ns, 2, 99, 7, "@ I"), at(open_ns, 61, 98, 7, "@ I"), at(open_ns, 200, 10)]
    bars = bars_of(rows, as_marked)
    assert bars["AAA", open_ns] == Bar(10, 10, 10, 10, 107, 10, 2, 0)
    assert ("AAA", open_ns + MINUTE) not in bars


def test_official_prints_are_no_trades(open_ns: int, as_marked: Any) -> None:
    rows = [at(open_ns, 1, 10), at(open_ns, 2, 55, 0, "M"), at(open_ns, 3, 66, 10, "Q"), at(open_ns, 4, 10)]
    assert bars_of(rows, as_marked)["AAA", open_ns] == Bar(10, 10, 10, 10, 200, 10, 2, 0)


def test_corrected_close_is_the_last_print_of_the_session(as_marked: Any) -> None:
    close_ns = day_of("2025-03-03")[2]
    rows = [at(close_ns, -30, 10), at(close_ns, -1, 11), at(close_ns, 20, 12, 0, "9"), at(close_ns, 30, 11)]
    assert bars_of(rows, as_marked, "sip")["AAA", close_ns - MINUTE] == Bar(10, 12, 10, 12, 200, 10.5, 2, 1)


def test_a_withdrawn_bar_is_none(open_ns: int, as_marked: Any) -> None:
    rows = [at(open_ns, 1, 10, trade_id=5), at(open_ns, 90, 10), at(open_ns, 91, 0, trade_id=5, kind="cancel")]
    assert list(bars_of(rows, as_marked)) == [("AAA", open_ns + MINUTE)]


def test_trades_are_known_by_day_exchange_and_id(open_ns: int, write_tape: Any) -> None:
    one = at(open_ns, 1, 10, trade_id=5)
    reported = at(open_ns, 1, 10, exchange="D", trade_id=5)
    rows = [one, one._replace(ts_ns=open_ns + 2 * SECOND, price=11.0), one._replace(exchange="N")]
    rows += [reported, reported._replace(price=11.0), reported]
    tape = TapeFiles([write_tape(rows)])
    kept = [item for item in tape.items() if isinstance(item, Row)]
    assert kept == [rows[0], rows[2], rows[3], rows[4]]
    assert tape.counted.duplicates == 2


def test_file_that_is_no_tape_is_refused(tmp_path: Path, write_tape: Any, open_ns: int) -> None:
    path = tmp_path / "no.parquet"
    path.write_bytes(b"nothing")
    with pytest.raises(Invalid, match="not a tape file"):
        TapeFiles([path])
    with pytest.raises(Invalid, match="lacks the column cond_flags"):
        TapeFiles([write_tape([at(open_ns, 1, 10)])], column="cond_flags")


# -- rules ------------------------------------------------------------------------------------------------------------


def oracle_of(rules: Sequence[Any], **settings: Any) -> Oracle:
    ns = day_of("2025-03-03")[1]
    return Oracle(rules, days=days_around(ns, ns), eligibility=read_eligibility("alpaca"), **settings)


@pytest.mark.parametrize(
    ("when", "why"),
    [
        ("atr_14_1m > 1", "asks for atr_14_1m"),
        ("bid > 1", "asks for bid"),
        ("high_5m[1] > 1", "asks for high_5m[1]"),
        ("close_1m > 1", "asks for close_1m"),
        ("exchange is XNAS", "asks for exchange"),
        ("time > price", "computes with time_of_day"),
        ("price > 1 and not (type is ETF)", "asks for type"),
    ],
)
def test_rule_outside_of_what_it_knows_is_named(when: str, why: str, market: Any) -> None:
    rules, _ = rules_of(f"rule known when price > 10\nrule strange when {when}")
    expected = market.expected(rules=rules)
    assert expected.rules == {("known", 1)}
    assert list(expected.unchecked) == ["strange"]
    assert expected.unchecked["strange"] == why


def test_rule_is_not_judged_where_reference_data_know_better() -> None:
    rules, _ = rules_of("rule day when change_pct_day > 1\nrule plain when price > 1")
    expected = oracle_of([asked(rule) for rule in rules], reference_known=True).expected()
    assert expected.rules == {("plain", 1)}
    assert "reference data" in expected.unchecked["day"]


def test_rule_on_the_past_is_not_judged_where_prints_were_withdrawn(market: Any) -> None:
    rules, _ = rules_of("rule past when change_pct_1m > 0.1\nrule plain when price > 10")
    expected = market.expected(rules=rules)
    assert expected.rules == {("plain", 1)}
    assert expected.unchecked == {"past": "asks for change_pct_1m, and prints were withdrawn"}


def test_only_the_first_thousand_of_one_scan_are_told(open_ns: int, as_marked: Any) -> None:
    rows = [at(open_ns, 1, 10)._replace(symbol=f"S{i:04}") for i in range(1_200)]
    rule = AskedRule(id="all", version=1, when={"metric": "price", "operator": ">", "value": 1})
    oracle = oracle_of([rule])
    oracle.take(as_marked(rows))
    alerts = oracle.expected().alerts
    assert [alert.symbol for alert in alerts] == [f"S{i:04}" for i in range(1_000)]


def alerts_of(text: str, items: Sequence[Item]) -> list[int]:
    """When each alert fired."""
    rules, _ = rules_of(text)
    oracle = oracle_of([asked(rule) for rule in rules])
    oracle.take(items)
    return [alert.fired_at_ns for alert in oracle.expected().alerts]


@pytest.mark.parametrize("second", [1, 4, 5, 19, 30])
def test_time_of_day_is_reached_at_the_second_that_is_written(second: int, open_ns: int, as_marked: Any) -> None:
    items = as_marked([at(open_ns, 0.5, 10), at(open_ns, 40, 10)])
    assert alerts_of(f"rule t when time >= 09:30:{second:02}", items) == [open_ns + second * SECOND]


def test_other_symbols_move_the_time_and_nothing_else(market: Any) -> None:
    items: list[Item] = market.items
    whole = market.expected()
    oracle = oracle_of([asked(rule) for rule in market.rules], symbols=["AAA"], amendable=True)
    oracle.take(items)
    part = oracle.expected()
    assert part.bars == {key: bar for key, bar in whole.bars.items() if key[0] == "AAA"}
    assert part.alerts == [alert for alert in whole.alerts if alert.symbol == "AAA"]
    assert part.counts["sent"] == part.accepted + part.counts["rejected"]


def test_page_names_every_metric_that_is_checked() -> None:
    page = (Path(__file__).parents[2] / "docs" / "verify.md").read_text("utf-8")
    missing = [name for name in METRICS if f"`{name}`" not in page]
    assert missing == []


# -- real trades ------------------------------------------------------------------------------------------------------

REAL_RULES = """
rule busy when volume_5m > 20_000 and price > vwap_session cooldown 5m
rule new-high when price crosses_above high_day_before
rule averages when ema_9_1m crosses_above ema_20_1m
rule day when change_pct_day > 0.2
"""


@pytest.mark.market_data
@pytest.mark.parametrize("profile", ["alpaca", "massive", "sip"])
def test_modern_trades_give_what_the_replay_gives(profile: str, market_data: Path) -> None:
    rules = REAL_RULES if profile == "alpaca" else ""
    expected, replayed = both([market_data / "trades_taq2018" / "trades_XXX_20180102.parquet"], profile, rules)
    assert_agree(expected, replayed)
    assert len(expected.bars) > 400
    assert len(expected.alerts) > 20 * bool(rules) - 1


@pytest.mark.market_data
@pytest.mark.parametrize("profile", ["alpaca", "sip"])
def test_trades_of_the_daily_file_give_what_the_replay_gives(profile: str, market_data: Path) -> None:
    expected, replayed = both([market_data / "trades_taq_ns" / "trades_20260401.parquet"], profile, REAL_RULES)
    assert_agree(expected, replayed)
    assert expected.rejected["test_symbol"] == 18


@pytest.mark.market_data
def test_a_real_day_gives_what_the_replay_gives(market_data: Path) -> None:
    tape = market_data / "trades" / "trades_20131007.parquet"
    expected, replayed = both([tape], "alpaca", REAL_RULES)
    assert_agree(expected, replayed)
    assert len(expected.bars) > 1_600
    assert len(expected.alerts) > 50


@pytest.mark.market_data
def test_bars_by_a_vendor_s_flags_are_the_replay_s(market_data: Path) -> None:
    tape = market_data / "trades" / "trades_20131007.parquet"
    expected, replayed = both([tape], "algoseek", "")
    assert_agree(expected, replayed)
