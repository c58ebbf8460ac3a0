"""Prices and levels of the running day and its sessions."""

from collections.abc import Callable

from tapewatch.engine.board import Board
from tapewatch.engine.calendar import Session
from tapewatch.engine.columns import F64
from tapewatch.engine.metrics.declare import Metric
from tapewatch.engine.newest import OUTLIER_SHARE
from tapewatch.engine.official import CLOSE, OPEN


def _yesterday(fact: str) -> Callable[[Board, int], F64]:
    """The day's candle before the running one."""
    return lambda board, _back: board.fact(fact)


METRICS = (
    Metric(
        name="price",
        unit="$",
        formula="last price that a trade was allowed to set",
        compute=lambda b: b.price,
        published=True,
    ),
    Metric(
        name="outlier",
        unit="flag",
        formula=(
            f"1 while the newest trade that may set price lies {OUTLIER_SHARE * 100:g} % or more off each of the two "
            "before it (off the one, while there is no other), else 0"
        ),
        compute=lambda b: b.outlier(),
        warm_up="2 trades",
        keeps=("newest",),
    ),
    Metric(
        name="halted",
        unit="flag",
        formula="1 from a halt until its resume, else 0",
        compute=lambda b: b.halted,
        freshness="status",
        published=True,
    ),
    Metric(
        name="close_prev_day",
        unit="$",
        formula=(
            "close of the previous trading day, in today's shares: from the reference data, else the official close "
            "that its tape named, else the last price of its regular session"
        ),
        compute=lambda b: b.close_prev,
        freshness="day",
        needs="reference",
        facts=("close_prev_day",),
        published=True,
    ),
    Metric(
        name="open_day",
        unit="$",
        formula="first price of today's regular session; unknown before it",
        compute=lambda b: b.session_price("open", Session.REGULAR),
        timeframe="day",
        session="after open",
        back=1,
        compute_back=_yesterday("open_prev_day"),
        published=True,
    ),
    Metric(
        name="close_day",
        unit="$",
        formula="price, as the close of the day's running candle; close_day[1] is close_prev_day",
        compute=lambda b: b.price,
        timeframe="day",
        back=1,
        compute_back=lambda b, _back: b.close_prev,
    ),
    Metric(
        name="open_official_day",
        unit="$",
        formula="official open as today's tape names it; unknown before",
        compute=lambda b: b.official(OPEN),
        timeframe="day",
        session="after open",
        published=True,
    ),
    Metric(
        name="close_official_day",
        unit="$",
        formula="official close as today's tape names it, corrected ones included",
        compute=lambda b: b.official(CLOSE),
        timeframe="day",
        session="after open",
        published=True,
    ),
    Metric(
        name="high_day",
        unit="$",
        formula="highest price since 04:00 New York",
        compute=lambda b: b.day("high"),
        timeframe="day",
        session="day",
        back=1,
        compute_back=_yesterday("high_prev_day"),
        published=True,
    ),
    Metric(
        name="low_day",
        unit="$",
        formula="lowest price since 04:00 New York",
        compute=lambda b: b.day("low"),
        timeframe="day",
        session="day",
        back=1,
        compute_back=_yesterday("low_prev_day"),
        published=True,
    ),
    Metric(
        name="volume_day",
        unit="shares",
        formula="volume since 04:00 New York",
        compute=lambda b: b.day("volume"),
        timeframe="day",
        session="day",
        back=1,
        compute_back=_yesterday("volume_prev_day"),
        published=True,
    ),
    Metric(
        name="high_session",
        unit="$",
        formula="highest price of the running session (pre-market, regular or post-market)",
        compute=lambda b: b.running("high"),
        session="day",
        published=True,
    ),
    Metric(
        name="low_session",
        unit="$",
        formula="lowest price of the running session",
        compute=lambda b: b.running("low"),
        session="day",
        published=True,
    ),
    Metric(
        name="volume_session",
        unit="shares",
        formula="volume of the running session",
        compute=lambda b: b.running("volume"),
        session="day",
        published=True,
    ),
    Metric(
        name="high_premarket",
        unit="$",
        formula="highest price of today's pre-market; kept for the rest of the day",
        compute=lambda b: b.session_price("high", Session.PRE),
        session="day",
        published=True,
    ),
    Metric(
        name="low_premarket",
        unit="$",
        formula="lowest price of today's pre-market; kept for the rest of the day",
        compute=lambda b: b.session_price("low", Session.PRE),
        session="day",
        published=True,
    ),
    Metric(
        name="volume_premarket",
        unit="shares",
        formula="volume of today's pre-market; kept for the rest of the day",
        compute=lambda b: b.session_sum("volume", Session.PRE),
        session="day",
        published=True,
    ),
    Metric(
        name="suspect_split",
        unit="flag",
        formula=(
            "1 when today's first price over close_prev_day is within 2 % of an integer of 2 or more, or of the "
            "reciprocal of one, and no known split explains it"
        ),
        compute=lambda b: b.suspect_split(),
        freshness="day",
        published=True,
    ),
    Metric(
        name="gap_pct",
        unit="%",
        formula="(open_day / close_prev_day - 1) * 100; unknown before the open and while suspect_split",
        compute=lambda b: b.pct(b["open_day"], b.close_prev_unless_suspect()),
        timeframe="day",
        session="after open",
        needs="reference",
        facts=("close_prev_day",),
        published=True,
    ),
    Metric(
        name="change_pct_day",
        unit="%",
        formula="(price / close_prev_day - 1) * 100; unknown while suspect_split",
        compute=lambda b: b.pct(b.price, b.close_prev_unless_suspect()),
        timeframe="day",
        needs="reference",
        facts=("close_prev_day",),
        published=True,
    ),
    Metric(
        name="change_from_open_pct",
        unit="%",
        formula="(price / open_day - 1) * 100",
        compute=lambda b: b.pct(b.price, b["open_day"]),
        timeframe="day",
        session="after open",
        published=True,
    ),
    Metric(
        name="vwap_session",
        unit="$",
        formula=(
            "sum(price*size)/sum(size) since the start of the running session, of trades that may set both high/low "
            "and volume"
        ),
        compute=lambda b: b.ratio(b.running("value"), b.running("weight")),
        session="day",
        published=True,
    ),
    Metric(
        name="vwap_day",
        unit="$",
        formula="sum(price*size)/sum(size) of the same trades since 04:00 New York",
        compute=lambda b: b.ratio(b.day("value"), b.day("weight")),
        timeframe="day",
        session="day",
        published=True,
    ),
    Metric(
        name="vwap_distance_pct",
        unit="%",
        formula="(price / vwap_session - 1) * 100, signed",
        compute=lambda b: b.pct(b.price, b["vwap_session"]),
        session="day",
        source="ChartsWatcher, with the sign that it leaves out",
        published=True,
    ),
)
