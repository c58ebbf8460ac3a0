"""What is new at a scan, quotes, bands and halts, and why a value is unknown, in worked examples."""

import math

import numpy as np
import pytest
from naive import SECOND, Item, Mark, Row
from tapes import METRICS, new_york, to_entries

from tapewatch.eligibility import load_profile
from tapewatch.engine.columns import OPEN_END_NS, Batch, Facts, Gap, Kind, make_batch, pulse
from tapewatch.engine.scanner import Scanner
from tapewatch.nyse import trading_days

PRE_NS = new_york("2025-03-10 04:00")
OPEN_NS = new_york("2025-03-10 09:30")


def ns(second: float) -> int:
    return OPEN_NS + round(second * SECOND)


def scanner_of(*metrics: str) -> Scanner:
    scanner = Scanner(days=trading_days(), profile=load_profile("alpaca"))
    scanner.keep(metrics or METRICS)
    return scanner


def feed(scanner: Scanner, *tape: Item) -> None:
    for entry in to_entries(tape, set()):
        assert isinstance(entry, Batch)
        scanner.step(entry)


def trades(scanner: Scanner, *prices: tuple[float, float], until: float) -> None:
    """(second, price) each, and time in whole seconds up to one since the open."""
    for second, price in prices:
        feed(scanner, Mark(ns(math.floor(second))), Row("A", ns(second), price))
    feed(scanner, Mark(ns(until)))


def value(scanner: Scanner, name: str, symbol: str = "A") -> float:
    rows = scanner.board_rows((name,))
    return float(rows.values[0, rows.symbols.index(symbol)])


def known(scanner: Scanner, **expected: float) -> None:
    for name, wanted in expected.items():
        assert value(scanner, name) == pytest.approx(wanted, nan_ok=True), name


# -- new extremes ------------------------------------------------------------------------------------------------------


def test_first_price_of_a_day_is_no_new_high_and_the_next_higher_one_is() -> None:
    scanner = scanner_of()
    feed(scanner, Mark(ns(-1)), Mark(ns(0)))
    trades(scanner, (0.5, 10.0), until=1)
    known(scanner, new_high_day=0, new_low_day=0, new_high_regular=0, new_highs_day=0, high_day_before=math.nan)
    trades(scanner, (1.5, 11.0), (1.6, 10.5), until=2)
    known(scanner, new_high_day=1, new_low_day=0, new_high_regular=1, new_high_premarket=0, new_highs_day=1)
    known(scanner, high_day_before=10.0, low_day_before=10.0, high_day=11.0)
    trades(scanner, (2.5, 11.0), until=3)
    known(scanner, new_high_day=0, new_highs_day=1, high_day_before=11.0)
    trades(scanner, (3.5, 9.0), (3.6, 12.0), until=4)
    known(scanner, new_high_day=1, new_low_day=1, new_low_regular=1, new_highs_day=2, new_lows_day=1)


def test_high_of_the_regular_session_is_told_apart_from_that_of_the_day() -> None:
    scanner = scanner_of()
    feed(scanner, Mark(ns(-10)))
    trades(scanner, (-9.5, 50.0), (-8.5, 51.0), until=-8)
    known(scanner, new_high_premarket=1, new_high_day=1, new_high_regular=0)
    trades(scanner, (0.5, 10.0), until=1)
    known(scanner, new_high_regular=0, new_high_premarket=0)
    trades(scanner, (1.5, 11.0), until=2)
    known(scanner, new_high_regular=1, new_high_day=0, high_day=51.0, high_regular=11.0)


def test_scanner_that_begins_in_the_day_learns_where_things_stand() -> None:
    """Nothing that was reached before it looked for the first time is new."""
    scanner = Scanner(days=trading_days(), profile=load_profile("alpaca"))
    scanner.keep(("price",))
    feed(scanner, Mark(ns(0)))
    trades(scanner, (0.5, 10.0), (1.5, 12.0), until=2.9)
    scanner.keep(("new_high_day", "new_high_52w"))
    assert math.isnan(value(scanner, "new_high_day"))
    scanner.step(pulse(ns(3)))
    known(scanner, new_high_day=0)
    trades(scanner, (3.5, 12.5), until=4)
    known(scanner, new_high_day=1)


def test_new_high_of_a_year_exceeds_the_years_and_the_days() -> None:
    scanner = scanner_of()
    facts = Facts(day_start_ns=PRE_NS, symbols=("A",), names=("high_52w", "low_52w"), values=np.array([[20.0], [5.0]]))
    scanner.learn(facts)
    feed(scanner, Mark(ns(0)))
    scanner.step(pulse(ns(1)))
    trades(scanner, (1.5, 21.0), until=2)
    known(scanner, new_high_52w=1, new_high_day=0, new_low_52w=0)
    trades(scanner, (2.5, 20.5), until=3)
    known(scanner, new_high_52w=0)
    trades(scanner, (3.5, 22.0), (3.6, 4.0), until=4)
    known(scanner, new_high_52w=1, new_low_52w=1)


def test_day_begins_without_extremes() -> None:
    scanner = scanner_of()
    feed(scanner, Mark(ns(0)))
    trades(scanner, (0.5, 10.0), (1.5, 12.0), until=2)
    tomorrow = new_york("2025-03-11 04:00")
    feed(scanner, Mark(tomorrow), Row("A", tomorrow + SECOND // 2, 30.0), Mark(tomorrow + SECOND))
    known(scanner, new_high_day=0, new_highs_day=0, high_day_before=math.nan, halts_day=0)


def amend(scanner: Scanner, kind: Kind, trade_id: int, price: float = 0.0) -> None:
    batch = make_batch(
        symbols=("A",),
        conditions=("@",),
        kind=[kind],
        symbol=[0],
        ts_ns=[scanner.watermark_ns],
        price=[price],
        size=[100.0],
        exchange=[ord("Q")],
        trade_id=[trade_id],
    )
    scanner.step(batch)


def test_withdrawn_high_was_never_reached() -> None:
    scanner = scanner_of()
    scanner.step(pulse(ns(0)))
    for trade_id, price in enumerate((10.0, 15.0), start=1):
        amend(scanner, Kind.TRADE, trade_id, price)
        scanner.step(pulse(ns(trade_id)))
    known(scanner, high_day=15.0, new_high_day=1, highest_since_scan=15.0)
    amend(scanner, Kind.CANCEL, 2)
    known(scanner, high_day=10.0, new_high_day=0, price=10.0)
    amend(scanner, Kind.TRADE, 3, 12.0)
    scanner.step(pulse(ns(3)))
    known(scanner, high_day=12.0, new_high_day=1, high_day_before=10.0)
    amend(scanner, Kind.TRADE, 4, 99.0)
    amend(scanner, Kind.CANCEL, 4)
    scanner.step(pulse(ns(4)))
    known(scanner, new_high_day=0, highest_since_scan=12.0, lowest_since_scan=12.0, largest_trade_1m=100.0)


# -- the path ----------------------------------------------------------------------------------------------------------


def test_path_holds_what_the_price_was_between_two_scans() -> None:
    scanner = scanner_of()
    feed(scanner, Mark(ns(0)))
    trades(scanner, (0.2, 10.0), (0.4, 14.0), (0.6, 7.0), (0.8, 9.0), until=1)
    known(scanner, price=9.0, highest_since_scan=14.0, lowest_since_scan=7.0)
    trades(scanner, (1.5, 8.0), until=2)
    known(scanner, highest_since_scan=8.0, lowest_since_scan=8.0)
    trades(scanner, until=3)
    known(scanner, highest_since_scan=8.0, lowest_since_scan=8.0)


def test_late_print_that_was_never_the_last_price_is_not_on_the_path() -> None:
    scanner = scanner_of()
    feed(scanner, Mark(ns(0)))
    late = [Row("A", ns(0.8), 10.0), Row("A", ns(0.2), 99.0), Row("A", ns(0.9), 11.0), Row("A", ns(0.3), 1.0)]
    feed(scanner, *late, Mark(ns(1)))
    known(scanner, highest_since_scan=11.0, lowest_since_scan=10.0, high_day=99.0)


# -- quotes ------------------------------------------------------------------------------------------------------------


def quote(
    scanner: Scanner, second: float, bid: float, ask: float, bid_size: float = 300.0, ask_size: float = 100.0
) -> None:
    rows = Row("A", ns(second), bid, bid_size, kind="bid"), Row("A", ns(second), ask, ask_size, kind="ask")
    feed(scanner, Mark(ns(second)), *rows)


def test_quotes_and_the_price_between_them() -> None:
    scanner = scanner_of()
    quote(scanner, 1, 9.9, 10.1)
    trades(scanner, (1.5, 10.05), until=2)
    known(scanner, bid=9.9, ask=10.1, bid_size=300, ask_size=100, spread=0.2, spread_pct=2.0, bid_ask_ratio=3.0)
    known(scanner, distance_from_mid_pct=0.5, quote_age=1.0, crossed_market=0, locked_market=0)
    quote(scanner, 3, 10.1, 10.1)
    known(scanner, crossed_market=0, locked_market=1, spread=0.0)
    quote(scanner, 4, 10.2, 10.1)
    known(scanner, crossed_market=1, locked_market=0)
    quote(scanner, 5, 0.0, 10.1, bid_size=0.0)
    known(scanner, bid=math.nan, bid_size=0.0, ask=10.1, spread=math.nan, crossed_market=math.nan, bid_ask_ratio=0.0)
    quote(scanner, 6, math.nan, math.inf)
    known(scanner, bid=math.nan, ask=math.nan, bid_size=math.nan)


def test_quotes_of_a_halted_symbol_and_old_ones_are_unknown() -> None:
    scanner = scanner_of()
    quote(scanner, 1, 9.9, 10.1)
    feed(scanner, Mark(ns(601)))
    known(scanner, bid=9.9, quote_age=600.0)
    feed(scanner, Mark(ns(602)))
    known(scanner, bid=math.nan, spread_pct=math.nan, quote_age=math.nan)
    quote(scanner, 700, 9.8, 10.2)
    feed(scanner, Row("A", ns(701), kind="halt"), Mark(ns(702)))
    known(scanner, bid=math.nan, halted=1, halts_day=1, seconds_since_halt=1.0, seconds_since_resume=math.nan)
    feed(scanner, Row("A", ns(703), kind="halt"), Row("A", ns(710), kind="resume"), Mark(ns(715)))
    known(scanner, bid=9.8, halted=0, halts_day=1, seconds_since_halt=14.0, seconds_since_resume=5.0)


def test_day_begins_without_quotes_and_the_band_holds_in_the_regular_session() -> None:
    scanner = scanner_of()
    feed(scanner, Mark(ns(0)), Row("A", ns(0), 9.0, kind="band_low"), Row("A", ns(0), 11.0, kind="band_high"))
    quote(scanner, 0.5, 9.9, 10.1)
    trades(scanner, (0.6, 10.0), until=1)
    known(scanner, band_low=9.0, band_high=11.0, distance_to_band_up_pct=10.0, distance_to_band_down_pct=10.0)
    feed(scanner, Mark(new_york("2025-03-10 16:00:01")))
    known(scanner, band_low=math.nan, distance_to_band_up_pct=math.nan)
    feed(scanner, Mark(new_york("2025-03-11 04:00:01")))
    known(scanner, bid=math.nan, ask_size=math.nan)


# -- why ---------------------------------------------------------------------------------------------------------------


def reason(scanner: Scanner, name: str) -> str:
    assert math.isnan(value(scanner, name)), name
    return scanner.board.reason(name, scanner.symbols.index("A"))


def test_reasons_of_unknown_values() -> None:
    scanner = scanner_of()
    feed(scanner, Mark(ns(0)), Row("A", ns(0.5), 10.0), Mark(ns(1)))
    assert reason(scanner, "change_pct_5m") == "warming"
    assert reason(scanner, "rsi_14_1m") == "warming"
    assert reason(scanner, "opening_range_high_5m") == "warming"
    assert reason(scanner, "volume_avg_5m") == "warming"
    assert reason(scanner, "high_postmarket") == "not in session"
    assert reason(scanner, "gap_indicative_pct") == "not in session"
    assert reason(scanner, "gap_pct") == "no reference data"
    assert reason(scanner, "sma_50_day_distance_pct") == "no reference data"
    assert reason(scanner, "spy_change_pct_day") == "no trade yet"
    assert reason(scanner, "spread_pct") == "no quotes"
    assert reason(scanner, "band_high") == "no quotes"
    assert reason(scanner, "position_in_range_day") == "no value"
    assert reason(scanner, "high_premarket") == "no value"
    quote(scanner, 2, 9.9, 10.1)
    feed(scanner, Row("A", ns(3), kind="halt"), Mark(ns(4)))
    assert reason(scanner, "bid") == "halted"
    feed(scanner, Row("A", ns(5), kind="resume"), Mark(ns(900)))
    assert reason(scanner, "bid") == "stale"
    assert reason(scanner, "running_60s") == "no value"
    scanner.gap(Gap(ns(700), ns(800), "network"))
    assert reason(scanner, "volume_15m") == "gap"
    assert reason(scanner, "window_high_5m") == "gap"
    scanner.gap(Gap(ns(900), OPEN_END_NS, "network"))
    assert reason(scanner, "position_in_range_day") == "gap"


def test_symbol_that_has_not_traded_says_so() -> None:
    scanner = scanner_of()
    feed(scanner, Mark(ns(0)), Row("A", ns(0.5), kind="resume"), Mark(ns(4000)))
    for name in ("price", "vwap_day", "change_pct_5m", "price_age"):
        assert reason(scanner, name) == "no trade yet", name


def test_ages_of_what_values_are_made_of() -> None:
    scanner = scanner_of()
    quote(scanner, 60, 9.9, 10.1)
    feed(scanner, Row("A", ns(70), 10.0), Mark(ns(400)))
    board, symbol = scanner.board, scanner.symbols.index("A")
    scanner.board_rows(("price",))
    ages = {"price": 330.0, "change_pct_day": 330.0, "bid": 340.0, "time_of_day": 0.0, "rsi_14_1m": 40.0}
    for name, age in ages.items():
        assert board.age_s(name, symbol) == pytest.approx(age), name
    assert board.age_s("high_52w", symbol) == (ns(400) - PRE_NS) / SECOND
    assert board.age_s("open_day[1]", symbol) == 330.0
    assert math.isnan(board.age_s("halts_day", symbol))


@pytest.mark.parametrize("metric", METRICS)
def test_every_unknown_value_has_a_reason_and_every_value_an_age(metric: str) -> None:
    reasons = {
        "gap",
        "not in session",
        "no reference data",
        "no quotes",
        "halted",
        "stale",
        "warming",
        "no trade yet",
        "no value",
    }
    scanner = SAMPLE
    for symbol in range(2):
        assert scanner.board.reason(metric, symbol) in reasons
        age = scanner.board.age_s(metric, symbol)
        assert math.isnan(age) or age >= 0


def _sample() -> Scanner:
    scanner = scanner_of()
    feed(scanner, Mark(ns(0)), Row("A", ns(0.5), 10.0), Row("B", ns(0.6), kind="halt"), Mark(ns(1)))
    scanner.board_rows(METRICS)
    return scanner


SAMPLE = _sample()


def test_labels_of_symbols_are_kept_by_their_index() -> None:
    scanner = scanner_of()
    assert scanner.labels_version == 0
    feed(scanner, Mark(ns(0)), Row("B", ns(0.5), 10.0), Mark(ns(1)))
    facts = Facts(
        day_start_ns=PRE_NS,
        symbols=("A", "B"),
        names=(),
        values=np.zeros((0, 2)),
        labels={"exchange": ("XNYS", "XNAS"), "sector": ("", "Energy")},
    )
    scanner.learn(facts)
    assert scanner.labels["exchange"][scanner.symbols.index("B")] == "XNAS"
    assert scanner.labels["exchange"][scanner.symbols.index("A")] == "XNYS"
    assert scanner.labels["sector"][scanner.symbols.index("A")] == ""
    assert set(scanner.labels["type"]) <= {""}
    version = scanner.labels_version
    assert version > 0
    scanner.learn(facts)
    assert scanner.labels_version == version
