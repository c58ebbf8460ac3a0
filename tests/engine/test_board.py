"""The board in worked examples: change by the clock, windows, averages, distance, halts."""

import math

import pytest
from naive import MINUTE, SECOND, Item, Mark, NaiveRule, Row, Rules
from tapes import new_york, spec, to_entries

from tapewatch.eligibility import load_profile
from tapewatch.engine.columns import Batch
from tapewatch.engine.rules import Ruleset
from tapewatch.engine.scanner import Scanner
from tapewatch.engine.toplists import MARKS, marks
from tapewatch.nyse import trading_days

TEN_NS = new_york("2025-03-10 10:00")


def board_of(tape: list[Item]) -> dict[str, float]:
    """All metrics of the tape's only symbol at its last mark."""
    scanner = Scanner(days=trading_days(), profile=load_profile("alpaca"), board_interval_ns=SECOND)
    for entry in to_entries(tape, set()):
        assert isinstance(entry, Batch)
        scanner.step(entry)
    board = scanner.board_rows()
    assert board.symbols == ("A",)
    return dict(zip(board.metrics, board.values[:, 0].tolist(), strict=True))


def every_second(seconds: int, *, until_s: float) -> list[Item]:
    """A trade in the middle of each second, a cent dearer than the last; marks on the whole seconds and at the end."""
    tape: list[Item] = []
    for second in range(seconds):
        tape.append(Mark(TEN_NS + second * SECOND))
        tape.append(Row("A", TEN_NS + second * SECOND + SECOND // 2, price_of(second), 10.0))
    return [*tape, Mark(TEN_NS + round(until_s * SECOND))]


def price_of(second: int) -> float:
    return 10.0 + second / 100


@pytest.mark.parametrize("until_s", [3_726, 3_729.999, 3_730])
def test_change_by_the_clock_takes_the_price_at_its_grain(until_s: float) -> None:
    seconds = math.ceil(until_s)
    board = board_of(every_second(seconds, until_s=until_s))
    for window, minutes, grain_s in (("1m", 1, 1), ("5m", 5, 1), ("15m", 15, 5), ("1h", 60, 5)):
        instant_s = math.floor((until_s - minutes * 60) / grain_s) * grain_s
        before = price_of(instant_s - 1)  # the last trade before that instant
        assert board[f"change_pct_{window}"] == pytest.approx((price_of(seconds - 1) / before - 1) * 100, rel=1e-9), (
            window
        )


def test_change_is_unknown_until_the_tape_reaches_back_so_far() -> None:
    board = board_of(every_second(301, until_s=301))
    assert not math.isnan(board["change_pct_1m"])
    assert not math.isnan(board["change_pct_5m"])
    assert math.isnan(board["change_pct_15m"])
    assert math.isnan(board["change_pct_1h"])
    assert math.isnan(board_of(every_second(300, until_s=300))["change_pct_5m"])


def test_relative_volume_weighs_the_minute_before_by_its_share() -> None:
    tape = every_second(7 * 60 + 15, until_s=7 * 60 + 15)
    tape.insert(-1, Row("A", TEN_NS + 7 * MINUTE + 14 * SECOND, 10.0, 1_000.0))
    board = board_of(tape)
    assert board["volume_1m"] == 1_150.0
    assert board["volume_5m"] == 4 * 600 + 1_150.0
    assert board["volume_avg_5m"] == 600.0
    assert board["relative_volume_5m"] == pytest.approx((1_150 + 0.75 * 600) / 600)
    assert math.isnan(board["volume_avg_15m"])
    assert math.isnan(board["relative_volume_1h"])


def test_vwap_distance_is_signed() -> None:
    rows: list[Item] = [Mark(TEN_NS), Row("A", TEN_NS, 10.0, 300.0), Row("A", TEN_NS + 1, 6.0, 100.0)]
    board = board_of([*rows, Mark(TEN_NS + SECOND)])
    assert board["vwap_session"] == board["vwap_day"] == board["vwap_5m"] == 9.0
    assert board["vwap_distance_pct"] == board["vwap_day_distance_pct"] == pytest.approx(-100 / 3)
    assert board["vwap_1m_distance_pct"] == board["vwap_1h_distance_pct"] == pytest.approx(-100 / 3)


def test_vwap_distance_of_a_window_forgets_what_left_the_window() -> None:
    later = TEN_NS + 5 * MINUTE
    rows: list[Item] = [Mark(TEN_NS), Row("A", TEN_NS, 10.0, 300.0), Mark(later)]
    board = board_of([*rows, Row("A", later, 6.0, 100.0), Row("A", later + 1, 12.0, 100.0), Mark(later + SECOND)])
    assert board["vwap_5m_distance_pct"] == pytest.approx((12 / 9 - 1) * 100)
    assert board["vwap_15m_distance_pct"] == pytest.approx((12 / 9.6 - 1) * 100)
    nothing = board_of(rows)
    assert math.isnan(nothing["vwap_1m_distance_pct"])
    assert nothing["vwap_15m_distance_pct"] == 0.0


def test_market_that_stands_still_is_stale_after_a_minute_and_has_boards_as_long_as_time_goes_on() -> None:
    scanner = Scanner(days=trading_days(), profile=load_profile("alpaca"), board_interval_ns=10 * SECOND)
    tape: list[Item] = [Mark(TEN_NS), Row("A", TEN_NS + SECOND // 2, 10.0)]
    tape += [Mark(TEN_NS + second * SECOND) for second in range(1, 4_001)]
    stale = {}
    for entry in to_entries(tape, set(range(2, len(tape), 400))):
        assert isinstance(entry, Batch)
        for board in scanner.step(entry).boards:
            rows = (board.values[board.metrics.index(name)] for name in MARKS)
            stale[(board.ts_ns - TEN_NS) // SECOND] = bool(marks(*rows, covered=board.covered)[0][0])
    assert stale == {second: second > 60 for second in range(10, 4_001, 10)}


def test_gap_and_day_change_are_measured_from_the_previous_close() -> None:
    board = board_of(
        [
            Mark(TEN_NS),
            Row("A", TEN_NS, 20.0, kind="close_prev"),
            Row("A", TEN_NS, 21.0),
            Row("A", TEN_NS + 1, 25.2),
            Mark(TEN_NS + SECOND),
        ]
    )
    assert board["gap_pct"] == pytest.approx(5.0)
    assert board["change_pct_day"] == pytest.approx(26.0)
    assert board["change_from_open_pct"] == pytest.approx(20.0)


@pytest.mark.parametrize(("kinds", "halted"), [(["halt"], 1.0), (["halt", "resume"], 0.0), (["resume", "halt"], 1.0)])
def test_halt_lasts_until_its_resume(kinds: list[str], halted: float) -> None:
    rows: list[Item] = [Row("A", TEN_NS + at, kind=kind) for at, kind in enumerate(kinds)]
    board = board_of([Mark(TEN_NS), *rows, Mark(TEN_NS + SECOND)])
    assert board["halted"] == halted
    assert math.isnan(board["price"])


def test_rule_is_armed_again_between_two_trades_of_a_large_quiet_market() -> None:
    """What the board was before a trade, it is again a second later; the scan in between must not be forgotten."""
    names = [f"S{i:04d}" for i in range(1_100)]
    scanner = Scanner(days=trading_days(), profile=load_profile("alpaca"))
    scanner.apply(Ruleset(number=1, rules=(spec(NaiveRule("busy", 1, (("volume_1m", ">", 50.0),))),)))
    tape: list[Item] = [Mark(TEN_NS), *(Row(name, TEN_NS + SECOND // 2, size=10.0) for name in names)]
    bursts_s = (119, 125)
    for second in range(1, 130):
        tape.append(Mark(TEN_NS + second * SECOND))
        if second in bursts_s:
            tape.append(Row(names[7], TEN_NS + second * SECOND + SECOND // 2))
    fired = []
    for entry in to_entries(tape, set()):
        assert isinstance(entry, Batch)
        fired += [(m.symbol, (m.fired_at_ns - TEN_NS) // SECOND) for m in scanner.step(entry).matches]
    assert fired == [(names[7], second + 1) for second in bursts_s]


def firings(tape: list[Item]) -> list[tuple[str, float]]:
    """(rule, seconds since ten) of a scanner without a board, which keeps only what its rules ask for."""
    scanner = Scanner(days=trading_days(), profile=load_profile("alpaca"))
    fired = []
    for entry in to_entries(tape, set()):
        if isinstance(entry, Ruleset):
            scanner.apply(entry)
        else:
            fired += [(m.rule.id, (m.fired_at_ns - TEN_NS) / SECOND) for m in scanner.step(entry).matches]
    return fired


def test_late_trade_moves_the_change_of_an_hour_from_its_arrival_on() -> None:
    """It came 25 minutes late and was the last, so the price of an hour ago changes 85 minutes after it."""
    arrived_ns = TEN_NS + 25 * MINUTE
    tape: list[Item] = [Rules((NaiveRule("back", 1, (("change_pct_1h", "<", 0.1),)),))]
    tape += [Mark(TEN_NS), Row("A", TEN_NS, 10.0)]
    tape += [Mark(TEN_NS + minute * MINUTE) for minute in range(1, 26)]
    tape += [Row("A", TEN_NS + SECOND, 12.0)]
    tape += [Mark(arrived_ns + minute * MINUTE) for minute in range(1, 120)]
    assert firings(tape) == [("back", 25 * 60 + 3_605)]


def test_prices_are_remembered_while_no_rule_asks_for_change() -> None:
    change = Rules((NaiveRule("change", 1, (("change_pct_5m", ">", 10.0),)),))
    price = Rules((NaiveRule("price", 1, (("price", ">", 1e9),)),))
    tape: list[Item] = [change, Mark(TEN_NS), Row("A", TEN_NS, 10.0), Mark(TEN_NS + 10 * SECOND), price]
    tape += [Mark(TEN_NS + MINUTE), Row("A", TEN_NS + MINUTE, 12.0), Mark(TEN_NS + 320 * SECOND), change]
    tape += [Mark(TEN_NS + second * SECOND) for second in range(321, 420)]
    assert firings(tape) == [("change", 321.0)]
