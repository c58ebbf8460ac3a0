"""Candle metrics and usual volumes on a scanner's board: what the catalogue makes of them, and how rules see them."""

import math

import numpy as np
import pytest
from tapes import new_york

from tapewatch.eligibility import load_profile
from tapewatch.engine.columns import MINUTE_NS, OPEN_END_NS, SECOND_NS, Batch, Gap, Kind, make_batch, pulse
from tapewatch.engine.rules import Ruleset, RuleSpec
from tapewatch.engine.rules.text import parse_condition
from tapewatch.engine.scanner import Scanner
from tapewatch.nyse import trading_days

OPEN_NS = new_york("2025-03-10 09:30")


def scanner(*metrics: str) -> Scanner:
    made = Scanner(days=trading_days(), profile=load_profile("alpaca"))
    made.keep(metrics)
    return made


def trade(ts_ns: int, price: float, size: float = 100.0, *, symbol: str = "AAA", trade_id: int = 0) -> Batch:
    """One trade, with the watermark right before it and right behind."""
    return make_batch(
        symbols=(symbol,),
        conditions=("@",),
        symbol=[0],
        ts_ns=[ts_ns],
        price=[price],
        size=[size],
        tape=[ord("C")],
        trade_id=[trade_id],
        exchange=[ord("Q")],
        marks_row=[0, 1],
        marks_ns=[ts_ns, ts_ns + 1],
    )


def value(of: Scanner, name: str) -> float:
    rows = of.board_rows((name,))
    return float(rows.values[0, rows.symbols.index("AAA")])


def play_minutes(to: Scanner, prices: list[float], *, start_ns: int = OPEN_NS) -> int:
    """A trade in the middle of each minute; returns the end of the last."""
    for i, price in enumerate(prices):
        to.step(trade(start_ns + i * MINUTE_NS + 30 * SECOND_NS, price))
    end_ns = start_ns + len(prices) * MINUTE_NS
    to.step(pulse(end_ns + 2 * SECOND_NS))
    return end_ns


def test_running_and_closed_candles_are_neighbours_and_a_new_high_is_told() -> None:
    names = ("open_5m", "high_5m", "close_5m[1]", "high_5m[1]", "new_candle_high_5m", "new_candle_low_5m")
    of = scanner(*names)
    end_ns = play_minutes(of, [10, 12, 11, 9, 10.5])
    of.step(trade(end_ns + 5 * SECOND_NS, 11.0))
    assert [value(of, name) for name in names] == [11.0, 11.0, 10.5, 12.0, 0.0, 0.0]
    of.step(trade(end_ns + 6 * SECOND_NS, 12.01))
    assert value(of, "new_candle_high_5m") == 1.0


def test_candle_goes_on_until_its_last_minute_has_closed() -> None:
    of = scanner("close_5m", "close_5m[1]")
    end_ns = play_minutes(of, [10, 11, 12, 13, 14, 20, 21, 22, 23, 24])
    assert value(of, "close_5m[1]") == 24.0
    of.step(trade(end_ns + 5 * MINUTE_NS - SECOND_NS, 30.0))
    of.step(trade(end_ns + 5 * MINUTE_NS + SECOND_NS, 31.0))
    assert (value(of, "close_5m"), value(of, "close_5m[1]")) == (30.0, 24.0)
    of.step(pulse(end_ns + 5 * MINUTE_NS + 2 * SECOND_NS))
    assert (value(of, "close_5m"), value(of, "close_5m[1]")) == (31.0, 30.0)


def test_distances_are_from_the_live_price() -> None:
    names = ("ema_20_1m", "ema_20_1m_distance_pct", "sma_20_2m", "sma_20_2m_distance_pct")
    of = scanner(*names)
    end_ns = play_minutes(of, [10 + i % 3 for i in range(45)])
    of.step(trade(end_ns + 5 * SECOND_NS, 15.0))
    ema, ema_distance, sma, sma_distance = (value(of, name) for name in names)
    assert ema_distance == pytest.approx((15.0 / ema - 1) * 100)
    assert sma_distance == pytest.approx((15.0 / sma - 1) * 100)


def test_running_candle_is_unknown_where_a_gap_reaches_in_and_tells_so() -> None:
    of = scanner("volume_5m", "candle_volume_5m", "close_5m[1]")
    end_ns = play_minutes(of, [10, 11, 12, 13, 14])
    of.step(trade(end_ns + 5 * SECOND_NS, 15.0))
    of.gap(Gap(end_ns + 6 * SECOND_NS, OPEN_END_NS, "silent"))
    of.gap(Gap(end_ns + 6 * SECOND_NS, end_ns + 20 * SECOND_NS, "silent"))
    of.step(trade(end_ns + 30 * SECOND_NS, 16.0))
    assert math.isnan(value(of, "candle_volume_5m"))
    assert of.board.reason("candle_volume_5m", 0) == "gap"
    assert value(of, "close_5m[1]") == 14.0


def test_warming_indicator_says_so() -> None:
    of = scanner("rsi_14_5m")
    play_minutes(of, [10, 11, 12])
    assert math.isnan(value(of, "rsi_14_5m"))
    assert of.board.reason("rsi_14_5m", 0) == "warming"


def test_cancelled_trade_leaves_the_closed_candle() -> None:
    of = scanner("high_2m[1]", "candle_volume_2m[1]")
    of.step(trade(OPEN_NS + SECOND_NS, 10.0))
    of.step(trade(OPEN_NS + 2 * SECOND_NS, 99.0, trade_id=7))
    of.step(pulse(OPEN_NS + 2 * MINUTE_NS + 3 * SECOND_NS))
    assert (value(of, "high_2m[1]"), value(of, "candle_volume_2m[1]")) == (99.0, 200.0)
    of.step(
        make_batch(
            symbols=("AAA",),
            conditions=("@",),
            symbol=[0],
            kind=[Kind.CANCEL],
            ts_ns=[OPEN_NS + 2 * MINUTE_NS + 4 * SECOND_NS],
            price=[99.0],
            size=[100.0],
            tape=[ord("C")],
            trade_id=[7],
            exchange=[ord("Q")],
            marks_row=[1],
            marks_ns=[OPEN_NS + 2 * MINUTE_NS + 5 * SECOND_NS],
        )
    )
    assert (value(of, "high_2m[1]"), value(of, "candle_volume_2m[1]")) == (10.0, 100.0)


def test_rule_that_comes_late_finds_the_last_hour_of_candles() -> None:
    early, late = scanner("sma_20_2m", "high_30m[1]"), scanner("price")
    for of in (early, late):
        play_minutes(of, [10 + (i * 7) % 5 for i in range(60)])
    late.keep(("sma_20_2m", "high_30m[1]"))
    for of in (early, late):
        of.step(trade(OPEN_NS + 60 * MINUTE_NS + 5 * SECOND_NS, 11.0))
    for name in ("sma_20_2m", "high_30m[1]"):
        assert value(late, name) == value(early, name)
        assert not math.isnan(value(late, name))


def test_alert_tells_how_old_each_operand_is() -> None:
    of = Scanner(days=trading_days(), profile=load_profile("alpaca"))
    when = parse_condition("price > 13 and close_5m[1] > 1 and time > 09:00")
    of.apply(Ruleset(number=1, rules=(RuleSpec(id="r", version=1, name="r", when=when),)))
    end_ns = play_minutes(of, [10, 11, 12, 13, 12.5])
    of.step(trade(end_ns + 10 * SECOND_NS + SECOND_NS // 2, 14.0))
    (match,) = of.step(pulse(end_ns + 12 * SECOND_NS)).matches
    assert match.fired_at_ns == end_ns + 11 * SECOND_NS
    assert match.values == {"price": 14.0, "close_5m[1]": 12.5, "time_of_day": pytest.approx(575 + 11 / 60)}
    assert match.ages_s == {"price": 0.5, "close_5m[1]": 11.0, "time_of_day": 0.0}


def full_day(of: Scanner, date: str, sizes: dict[str, float]) -> None:
    """Trades at these times of a day, which is covered from 04:00 to 20:00."""
    of.step(pulse(new_york(f"{date} 04:00")))
    for time, size in sizes.items():
        of.step(trade(new_york(f"{date} {time}"), 10.0, size))
    of.step(pulse(new_york(f"{date} 20:00") + 1))


DATES = ("2025-03-10", "2025-03-11", "2025-03-12", "2025-03-13", "2025-03-14")
USUAL = ("relative_volume_day", "relative_volume_regular", "volume_vs_usual_15m")


def usual_after(dates: tuple[str, ...]) -> Scanner:
    of = scanner(*USUAL)
    of.step(pulse(new_york("2025-03-10 03:59")))
    for place, date in enumerate(dates):
        full_day(of, date, {"08:00": 100.0, "10:00": 300.0 + 100.0 * place, "15:00": 1_000.0})
    return of


def test_volume_is_compared_with_the_same_time_of_the_days_before() -> None:
    of = usual_after(DATES)
    of.step(pulse(new_york("2025-03-17 04:00")))
    of.step(trade(new_york("2025-03-17 10:10"), 10.0, 900.0))
    of.step(pulse(new_york("2025-03-17 12:00")))
    regular = float(np.mean([300, 400, 500, 600, 700]))
    assert value(of, "relative_volume_day") == pytest.approx(900 / (100 + regular))
    assert value(of, "relative_volume_regular") == pytest.approx(900 / regular)


def test_usual_volume_is_unknown_before_five_full_days() -> None:
    of = usual_after(DATES[:4])
    of.step(pulse(new_york("2025-03-14 04:00")))
    of.step(trade(new_york("2025-03-14 10:10"), 10.0, 900.0))
    of.step(pulse(new_york("2025-03-14 12:00")))
    assert math.isnan(value(of, "relative_volume_day"))


def test_cutting_the_tape_changes_no_usual_volume() -> None:
    whole, pieces = usual_after(DATES), scanner(*USUAL)
    pieces.step(pulse(new_york("2025-03-10 03:59")))
    for place, date in enumerate(DATES):
        for hour in range(4, 20):
            pieces.step(pulse(new_york(f"{date} {hour:02d}:07")))
            size = {8: 100.0, 10: 300.0 + 100.0 * place, 15: 1_000.0}.get(hour)
            if size is not None:
                pieces.step(trade(new_york(f"{date} {hour:02d}:00") + 8 * MINUTE_NS, 10.0, size))
        pieces.step(pulse(new_york(f"{date} 20:00") + 1))
    for of in (whole, pieces):
        of.step(pulse(new_york("2025-03-17 04:00")))
        of.step(trade(new_york("2025-03-17 10:10"), 10.0, 900.0))
        of.step(pulse(new_york("2025-03-17 12:00")))
    assert value(pieces, "relative_volume_day") == value(whole, "relative_volume_day")
