"""Bars in small worked examples."""

from collections.abc import Sequence

import numpy as np
import pytest
from naive import MINUTE, SECOND, Mark, Row
from tapes import new_york, to_entries

from tapewatch.eligibility import load_profile
from tapewatch.engine.bars import REACH_MINUTES, BarBuilder
from tapewatch.engine.columns import Bars, Batch, Kind, make_batch, pulse
from tapewatch.engine.scanner import Scanner, Step
from tapewatch.nyse import trading_days

TEN_NS = new_york("2025-03-10 10:00")


def make_scanner(profile: str = "alpaca") -> Scanner:
    return Scanner(days=trading_days(), profile=load_profile(profile), board_interval_ns=SECOND)


def play(scanner: Scanner, *tape: Row | Mark) -> list[Bars]:
    bars: list[Bars] = []
    for entry in to_entries(tape, set()):
        assert isinstance(entry, Batch)
        bars += scanner.step(entry).bars
    return bars


def at(seconds: float, price: float, **rest: object) -> Row:
    return Row("A", TEN_NS + round(seconds * SECOND), price, **rest)  # type: ignore[arg-type]


def ohlcv(bars: Bars, row: int = 0) -> Sequence[float]:
    return [float(getattr(bars, name)[row]) for name in ("open", "high", "low", "close", "volume")]


def value(scanner: Scanner, metric: str) -> float:
    return float(scanner.board_rows((metric,)).values[0, 0])


def test_bar_closes_when_the_mark_passes_its_end_by_the_lateness() -> None:
    scanner = make_scanner()
    assert play(scanner, at(1, 10.0), at(2, 12.0), at(3, 9.0), at(59, 11.0), Mark(TEN_NS + 62 * SECOND - 1)) == []
    (bars,) = scanner.step(pulse(TEN_NS + 62 * SECOND)).bars
    assert (bars.symbols, bars.ts_ns.tolist(), bars.revision.tolist()) == (("A",), [TEN_NS], [0])
    assert ohlcv(bars) == [10.0, 12.0, 9.0, 11.0, 400.0]
    assert bars.trade_count.tolist() == [4]
    assert bars.vwap.tolist() == [10.5]


def test_quiet_minute_closes_by_marks_alone_and_has_no_bar() -> None:
    scanner = make_scanner()
    bars = play(scanner, at(1, 10.0), *(Mark(TEN_NS + minutes * MINUTE) for minutes in range(1, 6)), at(301, 11.0))
    assert [b.ts_ns.tolist() for b in bars] == [[TEN_NS]]
    (later,) = scanner.step(pulse(TEN_NS + 7 * MINUTE)).bars
    assert later.ts_ns.tolist() == [TEN_NS + 5 * MINUTE]


def test_minute_of_odd_lots_has_no_bar_but_counts_in_the_day() -> None:
    scanner = make_scanner()
    assert play(scanner, at(1, 10.0, size=7, conditions="@I"), Mark(TEN_NS + 2 * MINUTE)) == []
    assert value(scanner, "volume_day") == 7.0
    assert np.isnan(value(scanner, "price"))
    assert np.isnan(value(scanner, "high_day"))


def test_odd_lot_adds_volume_and_count_but_moves_no_price_and_no_vwap() -> None:
    bars = play(
        make_scanner(), at(1, 10.0), at(2, 99.0, size=7, conditions="@I"), at(3, 20.0), Mark(TEN_NS + 2 * MINUTE)
    )
    assert ohlcv(bars[0]) == [10.0, 20.0, 10.0, 20.0, 207.0]
    assert (bars[0].trade_count.tolist(), bars[0].vwap.tolist(), bars[0].vwap_volume.tolist()) == ([3], [15.0], [200.0])


def test_late_trade_revises_the_closed_bar() -> None:
    scanner = make_scanner()
    (closed,) = play(scanner, at(1, 10.0), at(30, 11.0), Mark(TEN_NS + 2 * MINUTE))
    (revised,) = play(scanner, at(0.5, 8.0, size=50), at(121, 12.0))
    assert ohlcv(closed) == [10.0, 11.0, 10.0, 11.0, 200.0]
    assert ohlcv(revised) == [8.0, 11.0, 8.0, 11.0, 250.0]
    assert (revised.ts_ns.tolist(), revised.revision.tolist()) == ([TEN_NS], [1])
    (again,) = play(scanner, at(59, 9.0), at(59.5, 9.5))
    assert (again.revision.tolist(), again.close.tolist()) == ([3], [9.5])
    assert value(scanner, "price") == 12.0
    assert scanner.tally["late"] == 3


def test_late_trade_completes_a_minute_that_had_no_bar() -> None:
    scanner = make_scanner()
    assert play(scanner, at(1, 10.0, conditions="@I"), Mark(TEN_NS + 2 * MINUTE)) == []
    (bars,) = play(scanner, at(2, 10.5))
    assert ohlcv(bars) == [10.5, 10.5, 10.5, 10.5, 200.0]
    assert bars.revision.tolist() == [1]


@pytest.mark.parametrize(("minutes", "booked"), [(REACH_MINUTES, True), (REACH_MINUTES + 1, False)])
def test_late_trade_counts_as_far_back_as_the_reach(minutes: int, booked: bool) -> None:  # noqa: FBT001
    scanner = make_scanner()
    bars = play(scanner, at(1, 10.0), Mark(TEN_NS + 5 * SECOND), at(-minutes * 60, 9.0))
    assert [b.ts_ns.tolist() for b in bars] == ([[TEN_NS - minutes * MINUTE]] if booked else [])
    assert scanner.tally["too_late"] == (not booked)


@pytest.mark.parametrize(("minutes", "refused"), [(1, 0), (2, 1)])
def test_trade_ahead_of_the_marks_by_two_minutes_is_refused(minutes: int, refused: int) -> None:
    scanner = make_scanner()
    play(scanner, at(1, 10.0), Mark(TEN_NS + 5 * SECOND), at(minutes * 60, 9.0))
    assert scanner.tally["future"] == refused


def test_open_and_close_follow_time_and_then_arrival() -> None:
    bars = play(
        make_scanner(),
        at(5, 10.0),
        at(5, 11.0),
        at(2, 12.0),
        at(2, 13.0),
        at(59, 14.0),
        at(59, 15.0),
        at(58, 16.0),
        Mark(TEN_NS + 2 * MINUTE),
    )
    assert ohlcv(bars[0])[:4] == [12.0, 16.0, 10.0, 15.0]


def test_print_at_four_falls_into_the_minute_of_four_with_alpaca() -> None:
    close_ns = new_york("2025-03-10 16:00")
    tape = (Row("A", close_ns - SECOND, 10.0), Row("A", close_ns, 11.0, 5_000.0, "@6"), Mark(close_ns + 3 * MINUTE))
    bars = play(make_scanner(), *tape)
    assert [b.ts_ns.tolist() for b in bars] == [[close_ns - MINUTE], [close_ns]]
    assert [ohlcv(b)[3:] for b in bars] == [[10.0, 100.0], [11.0, 5_000.0]]


def test_closing_print_is_booked_in_the_last_minute_with_algoseek() -> None:
    close_ns = new_york("2025-03-10 16:00")
    scanner = make_scanner("algoseek")
    tape = (
        Row("A", close_ns - SECOND, 10.0, 100.0, "0x1"),
        Row("A", close_ns + 20 * SECOND, 11.0, 5_000.0, "0x80"),
        Mark(close_ns + 3 * MINUTE),
    )
    (bars,) = play(scanner, *tape)
    assert (bars.ts_ns.tolist(), ohlcv(bars)) == ([close_ns - MINUTE], [10.0, 11.0, 10.0, 11.0, 5_100.0])


def test_official_open_sets_the_open_whatever_traded_before_it() -> None:
    open_ns = new_york("2025-03-10 09:30")
    tape = (
        Row("A", open_ns + SECOND, 10.0, 100.0, "0x1"),
        Row("A", open_ns + 3 * SECOND, 12.0, 900.0, "0x40"),
        Row("A", open_ns + 4 * SECOND, 11.0, 100.0, "0x1"),
        Mark(open_ns + 3 * MINUTE),
    )
    (bars,) = play(make_scanner("algoseek"), *tape)
    assert ohlcv(bars) == [12.0, 12.0, 10.0, 11.0, 1_100.0]


@pytest.mark.parametrize(
    ("price", "size", "reason"),
    [
        (np.nan, 1, "rejected_price"),
        (0, 1, "rejected_price"),
        (-1, 1, "rejected_price"),
        (np.inf, 1, "rejected_price"),
        (1, np.nan, "rejected_size"),
        (1, -1, "rejected_size"),
        (1, np.inf, "rejected_size"),
        (1, 0, "without_effect"),
    ],
)
def test_row_that_is_no_trade_changes_nothing_and_is_counted(price: float, size: float, reason: str) -> None:
    scanner = make_scanner()
    assert play(scanner, at(1, price, size=size), Mark(TEN_NS + 2 * MINUTE)) == []
    assert scanner.tally[reason] == 1
    assert value(scanner, "volume_day") == 0.0


def test_bars_of_many_symbols_survive_growth_of_the_table() -> None:
    builder = BarBuilder(days=trading_days(), profile=load_profile("alpaca"))
    names = tuple(f"S{i}" for i in range(200))
    for count in (10, 200):
        builder.step(
            make_batch(
                symbols=names[:count],
                conditions=("@",),
                symbol=range(count),
                ts_ns=[TEN_NS + count] * count,
                price=np.arange(count) + 1.0,
                size=[100] * count,
                tape=[ord("C")] * count,
            )
        )
    bars = builder.step(pulse(TEN_NS + 2 * MINUTE))
    assert bars.close.tolist() == [float(i + 1) for i in range(200)]
    assert bars.volume.tolist() == [200.0] * 10 + [100.0] * 190


@pytest.mark.parametrize("board_interval_ns", [0, SECOND])
def test_windows_after_a_jump_do_not_count_the_hour_before(board_interval_ns: int) -> None:
    scanner = Scanner(days=trading_days(), profile=load_profile("alpaca"), board_interval_ns=board_interval_ns)
    rows = [at(60 * minute, 10.0) for minute in range(10)]
    tape = [item for row in rows for item in (Mark(row.ts_ns), row)]
    later_ns = TEN_NS + 100 * MINUTE
    play(scanner, *tape, Mark(later_ns), Row("A", later_ns, 11.0, 7.0), Mark(later_ns + SECOND))
    assert value(scanner, "volume_1h") == 7.0
    assert value(scanner, "volume_avg_1h") == 0.0


def test_night_costs_no_more_than_its_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = BarBuilder(days=trading_days(), profile=load_profile("alpaca"))
    builder.step(pulse(TEN_NS))
    opened: list[int] = []
    monkeypatch.setattr(builder, "_open", opened.append)
    builder.step(pulse(TEN_NS + 365 * 24 * 60 * MINUTE))
    assert 0 < len(opened) <= builder.candles.rows + 1
    assert builder.open_minute == TEN_NS // MINUTE + 365 * 24 * 60 - 1


def test_rules_taken_before_the_first_mark_do_not_start_in_1970() -> None:
    scanner = make_scanner()
    (row,) = to_entries([at(1, 10.0)], set())
    assert isinstance(row, Batch)
    scanner.step(row)
    scanner.apply(scanner.ruleset)
    step: Step = scanner.step(pulse(TEN_NS + 3 * SECOND))
    assert [board.ts_ns for board in step.boards] == [TEN_NS + s * SECOND for s in (2, 3)]


def test_cancel_is_counted_and_books_nothing() -> None:
    scanner = make_scanner()
    scanner.step(make_batch(symbols=("A",), symbol=[0], kind=[Kind.CANCEL], ts_ns=[TEN_NS], price=[10.0], size=[100]))
    assert scanner.tally["cancels"] == 1
    assert scanner.step(pulse(TEN_NS + 2 * MINUTE)).bars == []


def test_names_without_a_row_are_not_on_the_board() -> None:
    scanner = make_scanner()
    scanner.step(
        make_batch(
            symbols=("NEVER", "A"),
            conditions=("@",),
            symbol=[1],
            ts_ns=[TEN_NS],
            price=[10.0],
            size=[100],
            tape=[ord("C")],
            marks_row=[1],
            marks_ns=[TEN_NS],
        )
    )
    assert scanner.board_rows(("price",)).symbols == ("A",)
