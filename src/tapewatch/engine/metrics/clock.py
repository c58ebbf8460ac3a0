"""The time of day, and how old the last price is."""

from tapewatch.engine.board import Board
from tapewatch.engine.calendar import Session
from tapewatch.engine.columns import F64, MINUTE_NS
from tapewatch.engine.metrics.declare import Metric

_PRE_NS = 240 * MINUTE_NS
"""04:00, when the day begins, since midnight: clocks change on Sundays, when nothing trades."""


def _time_of_day(board: Board) -> F64:
    """One division: it is then the very number that a rule's text gives, at every second of the day."""
    if board.session.session is Session.CLOSED:
        return board.unknown
    return board.everywhere((board.now_ns - board.day_start_ns + _PRE_NS) / MINUTE_NS)


def _since_open(board: Board) -> F64:
    minutes = board.minutes_since("open")
    return board.everywhere(minutes) if minutes > 0.0 else board.unknown


def _to_close(board: Board) -> F64:
    minutes = -board.minutes_since("close")
    return board.everywhere(minutes) if minutes >= 0.0 and board.open_ns is not None else board.unknown


METRICS = (
    Metric(
        name="time_of_day",
        unit="minutes",
        formula="minutes since midnight New York, with their fraction; unknown while the market is closed",
        compute=_time_of_day,
        session="day",
        freshness="clock",
    ),
    Metric(
        name="minutes_since_open",
        unit="minutes",
        formula="minutes since the regular session began, post-market included; unknown before it",
        compute=_since_open,
        session="after open",
        freshness="clock",
        source="ChartsWatcher: minutes in market",
    ),
    Metric(
        name="minutes_to_close",
        unit="minutes",
        formula="minutes until the regular session ends, on half days at 13:00; unknown outside it",
        compute=_to_close,
        session="regular",
        freshness="clock",
    ),
    Metric(
        name="price_age",
        unit="seconds",
        formula="seconds since the trade that set price; unknown while the market is closed",
        compute=lambda b: b.price_age_s(),
        session="day",
        freshness="clock",
        published=True,
    ),
)
