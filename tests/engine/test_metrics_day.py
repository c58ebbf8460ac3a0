"""Metrics of the running day in worked examples: changes, ranges, opening ranges, time."""

import math

import numpy as np
import pytest
from naive import MINUTE, SECOND, Item, Mark, Row
from tapes import METRICS, new_york, to_entries

from tapewatch.eligibility import load_profile
from tapewatch.engine.columns import Batch, Facts, Gap, pulse
from tapewatch.engine.scanner import Scanner
from tapewatch.nyse import trading_days

PRE_NS = new_york("2025-03-10 04:00")
OPEN_NS = new_york("2025-03-10 09:30")
CLOSE_NS = new_york("2025-03-10 16:00")


def at(clock: str) -> int:
    whole, _, fraction = clock.partition(".")
    return new_york(f"2025-03-10 {whole}") + round(float(f"0.{fraction}") * SECOND)


def trade(clock: str, price: float, size: float = 100.0, letters: str = "@") -> Row:
    return Row("A", at(clock), price, size, letters)


def scanner_of(*facts: tuple[str, float], scan_interval_ns: int = SECOND) -> Scanner:
    scanner = Scanner(days=trading_days(), profile=load_profile("alpaca"), scan_interval_ns=scan_interval_ns)
    scanner.keep(METRICS)
    if facts:
        values = np.array([[value] for _, value in facts])
        names = tuple(name for name, _ in facts)
        scanner.learn(Facts(day_start_ns=PRE_NS, symbols=("A",), names=names, values=values))
    return scanner


def feed(scanner: Scanner, *tape: Item) -> None:
    for entry in to_entries(tape, set()):
        assert isinstance(entry, Batch)
        scanner.step(entry)


def board(scanner: Scanner) -> dict[str, float]:
    rows = scanner.board_rows(METRICS)
    return dict(zip(METRICS, rows.values[:, rows.symbols.index("A")].tolist(), strict=True))


def known(values: dict[str, float], **expected: float) -> None:
    for name, value in expected.items():
        assert values[name] == pytest.approx(value), name


def unknown(values: dict[str, float], *names: str) -> None:
    assert {name for name in names if not math.isnan(values[name])} == set()


# -- 1, 11: the pre-market ---------------------------------------------------------------------------------------------


def test_gap_before_the_open_is_unknown_and_the_indicative_one_is_not() -> None:
    scanner = scanner_of(("close_prev_day", 20.0))
    feed(scanner, Mark(at("08:00")), trade("08:00:01", 21.0), trade("08:00:02", 22.0), Mark(at("08:00:05")))
    values = board(scanner)
    known(values, change_premarket=2.0, change_premarket_pct=10.0, gap_indicative_pct=10.0, change_day=2.0)
    unknown(values, "gap", "gap_pct", "gap_in_atr", "minutes_since_open", "minutes_to_close")
    unknown(values, "volume_postmarket", "high_postmarket", "low_postmarket", "change_postmarket_pct", "high_regular")
    known(values, time_of_day=480 + 5 / 60, trades_day=2.0)


def test_change_of_the_premarket_waits_for_its_first_trade() -> None:
    scanner = scanner_of(("close_prev_day", 20.0))
    feed(scanner, Mark(at("03:59")), trade("03:59:30", 30.0), Mark(at("05:00")))
    values = board(scanner)
    known(values, price=30.0)
    unknown(values, "change_premarket", "gap_indicative_pct", "high_day", "position_in_range_day")


def test_gap_at_the_open_ends_the_indicative_one() -> None:
    scanner = scanner_of(("close_prev_day", 20.0), ("high_prev_day", 24.0), ("low_prev_day", 19.0))
    feed(scanner, Mark(at("09:29:30")), trade("09:29:30", 21.0), trade("09:30:00", 23.0), Mark(at("09:30:01")))
    values = board(scanner)
    known(values, gap=3.0, gap_pct=15.0, range_prev_day_position=80.0, minutes_since_open=1 / 60)
    unknown(values, "gap_indicative_pct", "change_premarket")


def test_postmarket_is_measured_from_the_official_close_or_else_the_last_regular_price() -> None:
    rows: list[Item] = [trade("15:59:59", 10.0), Mark(at("16:05")), trade("16:05:01", 11.0), Mark(at("16:05:02"))]
    scanner = scanner_of()
    feed(scanner, Mark(at("15:59")), *rows)
    known(
        board(scanner), change_postmarket=1.0, change_postmarket_pct=10.0, volume_postmarket=100.0, high_postmarket=11.0
    )
    feed(scanner, Row("A", at("16:06"), 8.0, 1.0, "M", "C", "trade", "Q"), Mark(at("16:06:01")))
    known(board(scanner), close_official_day=8.0, change_postmarket=3.0, change_postmarket_pct=37.5)


# -- ranges ------------------------------------------------------------------------------------------------------------


def test_ranges_divide_by_the_low_and_a_range_of_nothing_has_no_position() -> None:
    scanner = scanner_of(("atr_14_day", 4.0))
    feed(scanner, Mark(OPEN_NS), trade("09:30:01", 10.0), Mark(at("09:30:02")))
    values = board(scanner)
    known(values, range_day=0.0, range_pct_day=0.0, range_5m=0.0)
    unknown(values, "position_in_range_day", "position_in_range_5m", "pullback_from_high_pct", "bounce_from_low_pct")
    feed(scanner, trade("09:30:03", 12.0), trade("09:30:04", 8.0), trade("09:30:05", 9.0), Mark(at("09:30:06")))
    values = board(scanner)
    known(values, range_day=4.0, range_pct_day=50.0, position_in_range_day=25.0, below_high_day=3.0, above_low_day=1.0)
    known(values, distance_from_high_day_pct=-25.0, distance_from_low_day_pct=12.5, relative_range_day=100.0)
    known(values, pullback_from_high_pct=150.0, bounce_from_low_pct=50.0, change_from_open=-1.0)
    known(values, window_high_1m=12.0, window_low_1m=8.0, range_pct_1m=50.0, position_in_range_1h=25.0, trades_1m=4.0)


def test_window_extremes_run_by_the_clock() -> None:
    scanner = scanner_of()
    feed(scanner, Mark(OPEN_NS))
    for minute, price in enumerate((10.0, 14.0, 6.0, 11.0, 12.0)):
        feed(
            scanner, Row("A", OPEN_NS + minute * MINUTE + SECOND, price), Mark(OPEN_NS + minute * MINUTE + 30 * SECOND)
        )
    known(board(scanner), window_high_1m=12.0, window_low_1m=12.0, window_high_2m=12.0, window_low_2m=11.0)
    known(board(scanner), window_high_5m=14.0, window_low_5m=6.0, volume_2m=200.0, trades_5m=5.0)
    feed(scanner, Mark(OPEN_NS + 6 * MINUTE + SECOND))
    known(board(scanner), window_high_5m=12.0, window_low_5m=6.0, volume_2m=0.0, dollar_volume_2m=0.0)
    unknown(board(scanner), "window_high_2m", "range_2m", "range_pct_1m")


def test_window_of_two_open_minutes_counts_each_once() -> None:
    """For two seconds after a minute's end it is not closed yet."""
    scanner = scanner_of()
    feed(scanner, Mark(OPEN_NS), trade("09:30:10", 10.0), Mark(at("09:31:00")), trade("09:31:00", 12.0))
    for clock in ("09:31:01", "09:31:03"):
        feed(scanner, Mark(at(clock)))
        values = board(scanner)
        known(values, volume_1m=100.0, volume_2m=200.0, volume_5m=200.0, volume_1h=200.0, trades_2m=2.0, vwap_2m=11.0)
        known(values, window_low_1m=12.0, window_low_2m=10.0, window_high_5m=12.0)


def test_late_trades_move_the_windows_of_closed_minutes() -> None:
    scanner = scanner_of()
    feed(scanner, Mark(OPEN_NS), trade("09:30:01", 10.0), Mark(at("09:33:30")))
    known(board(scanner), window_high_5m=10.0, volume_5m=100.0, opening_range_high_2m=10.0)
    feed(scanner, trade("09:31:30", 15.0), Mark(at("09:33:31")))
    known(board(scanner), window_high_5m=15.0, volume_5m=200.0, opening_range_high_2m=15.0, opening_range_high_1m=10.0)


def test_dollar_volume_values_odd_lots_at_the_vwap() -> None:
    scanner = scanner_of()
    feed(scanner, Mark(OPEN_NS), trade("09:30:01", 10.0), trade("09:30:02", 99.0, 10.0, "@I"), Mark(at("09:30:03")))
    known(board(scanner), volume_day=110.0, vwap_day=10.0, dollar_volume_day=1_100.0, dollar_volume_5m=1_100.0)


# -- 8: opening ranges -------------------------------------------------------------------------------------------------


def test_opening_range_is_unknown_until_it_is_over_and_then_stays() -> None:
    scanner = scanner_of()
    feed(scanner, Mark(at("09:29:30")), trade("09:29:59", 50.0), trade("09:30:30", 10.0), Mark(at("09:34:30")))
    feed(scanner, trade("09:34:59.9", 14.0), Mark(at("09:34:59.95")))
    known(board(scanner), opening_range_high_1m=10.0, opening_range_low_2m=10.0)
    unknown(board(scanner), "opening_range_high_5m", "opening_range_low_5m")
    feed(scanner, trade("09:35:00", 20.0), Mark(at("09:35")))
    known(board(scanner), opening_range_high_5m=14.0, opening_range_low_5m=10.0)
    unknown(board(scanner), "opening_range_high_10m", "opening_range_high_30m", "opening_range_high_1h")
    feed(scanner, Mark(at("10:29")), trade("10:29:00", 5.0), Mark(at("10:30")))
    known(board(scanner), opening_range_low_1h=5.0, opening_range_high_1h=20.0, opening_range_low_30m=10.0)
    feed(scanner, Mark(at("15:00")), trade("15:00:00", 90.0), Mark(at("19:59")))
    known(board(scanner), opening_range_low_1h=5.0, opening_range_high_1h=20.0, opening_range_high_1m=10.0)
    feed(scanner, Mark(at("20:30")))
    unknown(board(scanner), "opening_range_low_1h", "opening_range_high_1m")


def test_opening_range_is_unknown_where_the_tape_lacks_some_of_it() -> None:
    scanner = scanner_of()
    feed(scanner, Mark(at("09:32")), trade("09:32:01", 10.0), Mark(at("09:50")))
    unknown(board(scanner), "opening_range_high_1m", "opening_range_high_15m")
    scanner = scanner_of()
    feed(scanner, Mark(at("09:29:30")), trade("09:30:01", 10.0), Mark(at("09:50")))
    known(board(scanner), opening_range_high_5m=10.0)
    scanner.gap(Gap(at("09:33"), at("09:34"), "network"))
    known(board(scanner), opening_range_high_2m=10.0)
    unknown(board(scanner), "opening_range_high_5m", "opening_range_high_15m")


# -- 9, 13: change and running -----------------------------------------------------------------------------------------


def test_change_takes_the_last_price_before_so_many_minutes_ago() -> None:
    scanner = scanner_of()
    feed(scanner, Mark(OPEN_NS), trade("09:30:10", 10.0), Mark(at("09:31")), Mark(at("10:00")), trade("10:00:01", 12.0))
    feed(scanner, Mark(at("11:31")), Mark(at("11:40:00")))
    known(board(scanner), price=12.0, change_2h=2.0, change_pct_2h=20.0, change_1h=0.0, change_10m=0.0)
    unknown(board(scanner), "change_4h", "change_pct_4h")
    feed(scanner, Mark(at("13:31")), trade("13:31:01", 15.0), Mark(at("13:32")))
    known(board(scanner), change_4h=5.0, change_pct_4h=50.0, change_2h=3.0, change_1m=3.0)


def test_nothing_runs_with_fewer_than_three_prints_in_a_minute() -> None:
    scanner = scanner_of()
    feed(scanner, Mark(OPEN_NS), trade("09:30:01", 10.0), Mark(at("09:30:02")), Mark(at("09:32:00")))
    feed(scanner, trade("09:32:10", 10.5), trade("09:32:11", 10.6), Mark(at("09:32:20")))
    known(board(scanner), prints_60s=2.0, change_1m=0.6)
    unknown(board(scanner), "running_60s", "running_60s_pct")
    feed(scanner, trade("09:32:21", 10.8), Mark(at("09:32:30")))
    known(board(scanner), prints_60s=3.0, running_60s=0.8, running_60s_pct=8.0)


def test_largest_trade_of_the_live_minute_and_the_one_before() -> None:
    scanner = scanner_of()
    feed(scanner, Mark(OPEN_NS), trade("09:30:10", 10.0, 7_000.0), trade("09:30:20", 10.0, 300.0), Mark(at("09:31:59")))
    known(board(scanner), largest_trade_1m=7_000.0)
    feed(scanner, trade("09:31:50", 10.0, 50.0, "@I"), Mark(at("09:32:30")))
    known(board(scanner), largest_trade_1m=50.0)
    feed(scanner, Mark(at("09:33:30")))
    unknown(board(scanner), "largest_trade_1m")


# -- the clock ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clock", "time_of_day", "since_open", "to_close"),
    [
        ("03:59:59", math.nan, math.nan, math.nan),
        ("04:00:01", 240 + 1 / 60, math.nan, math.nan),
        ("09:30:00", 570.0, math.nan, math.nan),
        ("09:45:00", 585.0, 15.0, 375.0),
        ("16:00:00", 960.0, 390.0, 0.0),
        ("16:00:30", 960.5, 390.5, math.nan),
        ("20:00:00", 1200.0, 630.0, math.nan),
        ("20:00:01", math.nan, math.nan, math.nan),
    ],
)
def test_clock_of_a_trading_day(clock: str, time_of_day: float, since_open: float, to_close: float) -> None:
    scanner = scanner_of()
    feed(scanner, Mark(at("03:00")), trade("03:00:00", 10.0), Mark(at(clock)))
    values = board(scanner)
    got = [values[name] for name in ("time_of_day", "minutes_since_open", "minutes_to_close")]
    assert got == pytest.approx([time_of_day, since_open, to_close], nan_ok=True)


def test_minutes_to_close_know_half_days() -> None:
    scanner = scanner_of()
    early = new_york("2025-07-03 12:59")
    feed(scanner, Mark(early), Row("A", early, 10.0), Mark(early + 30 * SECOND))
    known(board(scanner), minutes_to_close=0.5)


def test_age_of_the_price_and_its_cents() -> None:
    scanner = scanner_of()
    feed(scanner, Mark(OPEN_NS), trade("09:30:10", 10.25), Mark(at("09:31:40")))
    known(board(scanner), price_age=90.0, price_decimal=0.25)


# -- reference data and the running day --------------------------------------------------------------------------------


def test_floor_pivots() -> None:
    scanner = scanner_of(("close_prev_day", 11.0), ("high_prev_day", 12.0), ("low_prev_day", 7.0))
    feed(scanner, Mark(OPEN_NS), trade("09:30:10", 11.0), Mark(at("09:30:20")))
    known(board(scanner), pivot_day=10.0, resistance_1_day=13.0, support_1_day=8.0, pivot_distance_pct=10.0)
    known(board(scanner), resistance_2_day=15.0, support_2_day=5.0)


def test_running_day_is_measured_by_what_days_are_like() -> None:
    facts = {
        "close_prev_day": 10.0,
        "atr_14_day": 0.5,
        "stdev_change_day": 4.0,
        "avg_daily_volume_20d": 1_000.0,
        "volume_prev_day": 400.0,
        "close_5d_ago": 8.0,
        "sma_50_day": 9.6,
        "low_20d": 8.0,
        "high_20d": 16.0,
        "high_52w": 20.0,
    }
    scanner = scanner_of(*facts.items())
    feed(scanner, Mark(OPEN_NS), trade("09:30:10", 11.0), trade("09:30:11", 12.0), Mark(at("09:30:20")))
    values = board(scanner)
    known(values, change_in_atr_day=4.0, change_in_sigma_day=5.0, gap_in_atr=2.0, change_from_open_in_atr=2.0)
    known(values, volume_pct_of_avg=20.0, volume_pct_of_prev_day=50.0, change_pct_5d=50.0, atr_pct_day=5.0)
    known(values, sma_50_day_distance_pct=25.0, position_in_range_20d=50.0, distance_from_high_52w_pct=-40.0)
    unknown(values, "change_pct_10d", "position_in_range_5d", "distance_from_low_52w_pct", "ema_9_day_distance_pct")


def test_candle_of_the_day_before_is_the_reference_data_of_the_day() -> None:
    facts = {
        "open_prev_day": 9.0,
        "high_prev_day": 12.0,
        "low_prev_day": 8.0,
        "close_prev_day": 10.0,
        "volume_prev_day": 5.0,
    }
    scanner = scanner_of(*facts.items())
    feed(scanner, Mark(OPEN_NS), trade("09:30:10", 11.0), Mark(at("09:30:20")))
    names = ("open_day[1]", "high_day[1]", "low_day[1]", "close_day[1]", "volume_day[1]", "close_day")
    assert scanner.board_rows(names).values[:, 0].tolist() == [9.0, 12.0, 8.0, 10.0, 5.0, 11.0]
    scanner.board.want(["close_day[1]", "price", "close_day"])
    assert scanner.board.names == ("price", "close_day", "close_day[1]")
    for name in ("close_day[2]", "close_day[0]", "price[1]", "close_day[x]", "close_day[1", "nothing"):
        with pytest.raises(ValueError, match="no metric"):
            scanner.board.want([name])


# -- index funds -------------------------------------------------------------------------------------------------------


def test_index_context_is_the_same_for_every_symbol() -> None:
    scanner = scanner_of(("close_prev_day", 10.0))
    spy = Row("SPY", OPEN_NS, 400.0, kind="close_prev")
    rows: list[Item] = [spy, Row("SPY", at("09:30:10"), 404.0), trade("09:30:11", 10.5), Mark(at("09:30:20"))]
    feed(scanner, Mark(OPEN_NS), *rows)
    known(board(scanner), spy_change_pct_day=1.0, change_vs_spy_pct_day=4.0)
    unknown(board(scanner), "spy_change_pct_5m", "qqq_change_pct_day", "dia_change_pct_5m")
    feed(scanner, Mark(at("09:36:00")), Row("SPY", at("09:36:00"), 408.04), Mark(at("09:36:01")))
    known(board(scanner), spy_change_pct_5m=1.0)


def test_quiet_market_is_looked_at_while_somebody_reads_the_clock() -> None:
    """More than an hour without a trade: without the clock nobody would look."""
    for metrics, looked in ((("minutes_since_open",), 7_200), (("price",), 0)):
        scanner = Scanner(days=trading_days(), profile=load_profile("alpaca"))
        scanner.keep(metrics)
        feed(scanner, Mark(OPEN_NS), trade("09:30:10", 10.0), Mark(at("10:40")))
        assert scanner.step(pulse(at("12:40"))).scans == looked
    scanner.keep(("minutes_since_open",))
    scanner.step(pulse(at("20:00:30")))
    assert scanner.step(pulse(at("23:00"))).scans <= 1
