"""The exchange's hours: clock changes, half days, holidays, weekends, and what a new day does to the board."""

import numpy as np
import pytest
from naive import MINUTE, SECOND
from tapes import new_york

from tapewatch.eligibility import load_profile
from tapewatch.engine.calendar import Phase, Session, TradingDays
from tapewatch.engine.columns import Kind, make_batch, pulse
from tapewatch.engine.rules import Ruleset, RuleSpec, compare
from tapewatch.engine.scanner import Scanner
from tapewatch.errors import ConfigError
from tapewatch.nyse import day_of, trade_date, trading_days


@pytest.mark.parametrize(
    ("clock", "session"),
    [
        ("03:59:59", Session.CLOSED),
        ("04:00:00", Session.PRE),
        ("09:29:59", Session.PRE),
        ("09:30:00", Session.REGULAR),
        ("15:59:59", Session.REGULAR),
        ("16:00:00", Session.POST),
        ("19:59:59", Session.POST),
        ("20:00:00", Session.CLOSED),
    ],
)
@pytest.mark.parametrize(
    "date",
    [
        *(f"2025-03-{day:02d}" for day in (3, 4, 5, 6, 7, 10, 11, 12, 13, 14)),  # clocks go forward on the 9th
        *(f"2025-10-{day}" for day in (27, 28, 29, 30, 31)),
        *(f"2025-11-{day:02d}" for day in (3, 4, 5, 6, 7)),  # and back on the 2nd
    ],
)
def test_session_at_its_edges_follows_new_york_clock(date: str, clock: str, session: Session) -> None:
    at = trading_days().at(new_york(f"{date} {clock}"))
    assert at.session is session


def test_sessions_in_summer_start_an_hour_earlier_in_utc() -> None:
    winter, summer = day_of("2025-03-07"), day_of("2025-03-10")
    assert winter[1] % (24 * 60 * MINUTE) == (14 * 60 + 30) * MINUTE
    assert summer[1] % (24 * 60 * MINUTE) == (13 * 60 + 30) * MINUTE


@pytest.mark.parametrize(
    ("before", "after", "hours"), [("2025-03-07", "2025-03-10", -1), ("2025-10-31", "2025-11-03", 1)]
)
def test_weekend_of_the_clock_change_is_an_hour_shorter_or_longer(before: str, after: str, hours: int) -> None:
    friday, monday = day_of(before), day_of(after)
    days = trading_days()
    night = days.at(friday[3])
    assert (night.session, night.start_ns, night.end_ns) == (Session.CLOSED, friday[3], monday[0])
    assert night.end_ns - night.start_ns == (56 + hours) * 60 * MINUTE
    assert [edge - start for edge, start in zip(monday, friday, strict=True)] == [(72 + hours) * 60 * MINUTE] * 4


@pytest.mark.parametrize("date", ["2023-11-24", "2024-07-03", "2024-11-29", "2024-12-24", "2025-11-28"])
def test_half_day_closes_at_one_and_post_market_runs_to_eight(date: str) -> None:
    edges = tuple(new_york(f"{date} {clock}") for clock in ("04:00", "09:30", "13:00", "20:00"))
    assert day_of(date) == edges
    days = trading_days()
    assert days.at(edges[2] - 1).session is Session.REGULAR
    assert days.at(edges[2]).session is Session.POST
    assert days.at(new_york(f"{date} 15:59")).session is Session.POST


def test_half_days_close_makes_the_previous_close_of_the_next_day() -> None:
    scanner = Scanner(days=trading_days(), profile=load_profile("alpaca"), board_interval_ns=60 * SECOND)
    for clock, price in (("12:59:59", 10.0), ("13:00:00", 11.0), ("15:59:59", 12.0)):
        ts_ns = new_york(f"2024-11-29 {clock}")
        scanner.step(pulse(ts_ns))
        scanner.step(
            make_batch(
                symbols=("A",), conditions=("@",), symbol=[0], ts_ns=[ts_ns], price=[price], size=[100], tape=[ord("C")]
            )
        )
    scanner.step(pulse(new_york("2024-11-29 16:05")))
    assert [value(scanner, metric) for metric in ("price", "high_session", "volume_session")] == [12.0, 12.0, 200.0]
    scanner.step(pulse(new_york("2024-12-02 04:00")))
    assert value(scanner, "close_prev_day") == 10.0


@pytest.mark.parametrize(
    "date",
    [
        "2025-01-09",  # a day of mourning
        "2024-11-28",
        "2025-04-18",  # Good Friday, a working day elsewhere
        "2025-07-04",
        "2025-12-25",
        "2025-03-08",
        "2025-03-09",
        "2025-11-02",
    ],
)
def test_holiday_and_weekend_are_closed_all_day(date: str) -> None:
    days = trading_days()
    for hour in range(24):
        assert days.at(new_york(f"{date} {hour:02d}:30")).session is Session.CLOSED
    with pytest.raises(ConfigError, match=date):
        day_of(date)


def test_closed_time_belongs_to_the_next_trading_day() -> None:
    days = trading_days()
    friday = days.at(new_york("2025-03-07 12:00"))
    weekend = days.at(new_york("2025-03-08 12:00"))
    assert weekend.day == friday.day + 1
    assert (weekend.start_ns, weekend.end_ns) == (new_york("2025-03-07 20:00"), new_york("2025-03-10 04:00"))
    assert days.at(new_york("2025-03-10 04:00")).day == weekend.day


@pytest.mark.parametrize(
    ("clock", "date"),
    [
        ("2025-03-06 00:00:00", "2025-03-06"),
        ("2025-03-06 04:00:00", "2025-03-06"),
        ("2025-03-06 19:59:59", "2025-03-06"),
        ("2025-03-06 20:00:00", "2025-03-07"),
        ("2025-03-07 03:59:59", "2025-03-07"),
        ("2025-03-07 19:59:59", "2025-03-07"),
        ("2025-03-07 20:00:00", "2025-03-10"),  # Friday night, and clocks change on Sunday
        ("2025-03-08 12:00:00", "2025-03-10"),
        ("2025-03-09 20:00:00", "2025-03-10"),
        ("2025-10-31 20:00:00", "2025-11-03"),
        ("2024-11-27 20:00:00", "2024-11-29"),  # before Thanksgiving: the day after it, a half day
        ("2024-11-28 20:00:00", "2024-11-29"),
        ("2024-11-29 13:00:00", "2024-11-29"),
        ("2024-11-29 19:59:59", "2024-11-29"),
        ("2024-11-29 20:00:00", "2024-12-02"),
        ("2025-04-17 20:00:00", "2025-04-21"),  # before Good Friday
        ("2024-12-31 20:00:00", "2025-01-02"),
    ],
)
def test_trade_of_the_night_belongs_to_the_next_trading_day(clock: str, date: str) -> None:
    assert trade_date(new_york(clock)) == date


def test_trade_day_of_many_instants_agrees_with_the_session_of_each() -> None:
    days = trading_days()
    instants = np.arange(new_york("2025-03-05 00:00"), new_york("2025-03-18 00:00"), 30 * MINUTE)
    assert days.trade_day(instants).tolist() == [days.at(int(ns)).day for ns in instants]


def test_trade_date_after_the_last_known_day_is_refused() -> None:
    last_ns = int(trading_days().post_ns[-1])
    assert trade_date(last_ns - 1)
    with pytest.raises(ConfigError, match="no trading day is known after"):
        trade_date(last_ns)


def test_night_is_closed_and_counts_in_no_day() -> None:
    scanner = Scanner(days=trading_days(), profile=load_profile("sip"), board_interval_ns=60 * SECOND)
    for clock, price in (("2025-03-10 15:00", 10.0), ("2025-03-10 21:00", 20.0), ("2025-03-11 03:00", 30.0)):
        ts_ns = new_york(clock)
        scanner.step(pulse(ts_ns))
        scanner.step(
            make_batch(
                symbols=("A",), conditions=("@",), symbol=[0], ts_ns=[ts_ns], price=[price], size=[100], tape=[ord("C")]
            )
        )
    scanner.step(pulse(new_york("2025-03-11 03:59:00")))
    assert scanner.board_rows(("price",)).session == "closed"
    assert [value(scanner, m) for m in ("price", "high_day", "volume_day")] == [30.0, 10.0, 100.0]
    scanner.step(pulse(new_york("2025-03-11 04:00")))
    assert [value(scanner, m) for m in ("price", "close_prev_day", "volume_day")] == [30.0, 10.0, 0.0]


def test_opening_phase_is_the_first_regular_minute_alone() -> None:
    days = trading_days()
    phases = [days.at(ns).phase(ns // MINUTE) for ns in (new_york(f"2025-03-10 09:{m}") for m in (29, 30, 31))]
    assert phases == [Phase.PRE, Phase.OPENING, Phase.REGULAR]


def test_every_trading_day_has_its_sessions_in_order_on_whole_minutes() -> None:
    days = trading_days()
    edges = np.column_stack([days.pre_ns, days.open_ns, days.close_ns, days.post_ns]).reshape(-1)
    assert (np.diff(edges) > 0).all()
    assert (edges % MINUTE == 0).all()
    year = [new_york("2024-01-01 00:00"), new_york("2025-01-01 00:00")]
    assert np.diff(np.searchsorted(days.open_ns, year)) == [252]


@pytest.mark.parametrize(("pre", "opened"), [(0, 0), (60, 30), (0, 90 * SECOND)])
def test_days_out_of_order_or_off_the_minute_are_refused(pre: int, opened: int) -> None:
    def column(ns: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.array([ns], np.int64)

    with pytest.raises(ValueError, match="ascend"):
        TradingDays(
            pre_ns=column(pre), open_ns=column(opened), close_ns=column(300 * MINUTE), post_ns=column(400 * MINUTE)
        )


def traded_then_quiet(*, until_ns: int) -> Scanner:
    """One trade of 10 dollars at noon of Friday 2025-03-07, then nothing but time."""
    scanner = Scanner(days=trading_days(), profile=load_profile("alpaca"), scan_interval_ns=60 * SECOND)
    rule = RuleSpec(id="r", version=1, name="r", when=compare("volume_day", ">", 1e9))
    scanner.apply(Ruleset(number=1, rules=(rule,)))
    noon_ns = new_york("2025-03-07 12:00")
    scanner.step(
        make_batch(
            symbols=("A", "QUIET"),
            conditions=("@", "@T"),
            symbol=[0, 1],
            kind=[Kind.TRADE, Kind.HALT],
            ts_ns=[noon_ns, noon_ns],
            price=[10.0, 0.0],
            size=[100, 0],
            tape=[ord("C")] * 2,
        )
    )
    scanner.step(pulse(until_ns))
    return scanner


def value(scanner: Scanner, metric: str, symbol: str = "A") -> float:
    board = scanner.board_rows((metric,))
    return float(board.values[0, board.symbols.index(symbol)])


def test_day_rolls_at_four_without_any_trade() -> None:
    monday_ns = new_york("2025-03-10 04:00")
    before, after = traded_then_quiet(until_ns=monday_ns - 1), traded_then_quiet(until_ns=monday_ns)
    assert (value(before, "volume_day"), value(before, "high_day"), value(before, "open_day")) == (100.0, 10.0, 10.0)
    assert np.isnan(value(before, "close_prev_day"))
    assert value(after, "close_prev_day") == 10.0
    assert value(after, "volume_day") == 0.0
    assert np.isnan([value(after, metric) for metric in ("high_day", "low_day", "open_day", "vwap_day")]).all()
    assert value(after, "price") == 10.0
    assert value(after, "change_pct_day") == 0.0
    assert np.isnan(value(after, "close_prev_day", "QUIET"))


def test_day_rolls_over_a_day_without_trade_and_keeps_previous_close() -> None:
    scanner = traded_then_quiet(until_ns=new_york("2025-03-13 10:00"))
    assert value(scanner, "close_prev_day") == 10.0


def test_premarket_extremes_stay_after_the_open() -> None:
    scanner = Scanner(days=trading_days(), profile=load_profile("alpaca"), board_interval_ns=60 * SECOND)
    trades = [("2025-03-10 08:00", 12.0), ("2025-03-10 08:01", 9.0), ("2025-03-10 09:30:01", 10.0)]
    for clock, price in trades:
        ts_ns = new_york(clock)
        scanner.step(
            make_batch(
                symbols=("A",),
                conditions=("@",),
                symbol=[0],
                ts_ns=[ts_ns],
                price=[price],
                size=[100],
                tape=[ord("C")],
                marks_row=[0],
                marks_ns=[ts_ns],
            )
        )
    scanner.step(pulse(new_york("2025-03-10 09:30:05")))
    metrics = ("high_premarket", "low_premarket", "volume_premarket", "high_day", "low_day", "volume_day")
    assert [value(scanner, metric) for metric in metrics] == [12.0, 9.0, 200.0, 12.0, 9.0, 300.0]
    assert [value(scanner, m) for m in ("high_session", "low_session", "volume_session")] == [10.0, 10.0, 100.0]
    assert value(scanner, "open_day") == 10.0
