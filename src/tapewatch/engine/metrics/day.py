"""How far the running day has come: changes, gaps, ranges, distances, pivots."""

from collections.abc import Callable, Iterator

import numpy as np

from tapewatch.engine.board import Board
from tapewatch.engine.calendar import Session
from tapewatch.engine.columns import F64
from tapewatch.engine.metrics.declare import Metric

_PRE = {"session": "pre", "needs": "reference", "facts": ("close_prev_day",), "timeframe": "day"}
_PREV = {"needs": "reference", "timeframe": "day"}


def _changes() -> Iterator[Metric]:
    def premarket(board: Board) -> F64:
        in_session = board.session.session is Session.PRE
        return board.session_close(Session.PRE) if in_session else board.unknown

    def postmarket(board: Board) -> F64:
        in_session = board.session.session is Session.POST
        return board.session_close(Session.POST) if in_session else board.unknown

    yield Metric(
        name="change_day",
        unit="$",
        formula="price - close_prev_day; unknown while suspect_split",
        compute=lambda b: b.price - b.close_prev_unless_suspect(),
        timeframe="day",
        needs="reference",
        facts=("close_prev_day",),
    )
    yield Metric(
        name="change_from_open",
        unit="$",
        formula="price - open_day",
        compute=lambda b: b.price - b["open_day"],
        timeframe="day",
        session="after open",
    )
    before = "last price of today's pre-market"
    yield Metric(
        name="change_premarket",
        unit="$",
        formula=f"{before} - close_prev_day, in the pre-market; unknown while suspect_split",
        compute=lambda b: premarket(b) - b.close_prev_unless_suspect(),
        **_PRE,  # type: ignore[arg-type]  # a table of keywords that several declarations share
    )
    yield Metric(
        name="change_premarket_pct",
        unit="%",
        formula=f"({before} / close_prev_day - 1) * 100, in the pre-market; unknown while suspect_split",
        compute=lambda b: b.pct(premarket(b), b.close_prev_unless_suspect()),
        **_PRE,  # type: ignore[arg-type]  # as above
    )
    close = "close_official_day, or without one the last price of today's regular session"
    yield Metric(
        name="change_postmarket",
        unit="$",
        formula=f"last price of today's post-market - c, in the post-market; c is {close}",
        compute=lambda b: postmarket(b) - b.close_today(),
        timeframe="day",
        session="post",
    )
    yield Metric(
        name="change_postmarket_pct",
        unit="%",
        formula=f"(last price of today's post-market / c - 1) * 100, in the post-market; c is {close}",
        compute=lambda b: b.pct(postmarket(b), b.close_today()),
        timeframe="day",
        session="post",
    )
    yield Metric(
        name="gap",
        unit="$",
        formula="open_day - close_prev_day; unknown before the open and while suspect_split",
        compute=lambda b: b["open_day"] - b.close_prev_unless_suspect(),
        timeframe="day",
        session="after open",
        needs="reference",
        facts=("close_prev_day",),
    )
    yield Metric(
        name="gap_indicative_pct",
        unit="%",
        formula="where gap_pct would stand if the market opened here: change_premarket_pct",
        compute=lambda b: b["change_premarket_pct"],
        published=True,
        **_PRE,  # type: ignore[arg-type]  # as above
    )
    yield Metric(
        name="price_decimal",
        unit="ratio",
        formula="the part of price behind the decimal point, 0 to 1",
        compute=lambda b: b.price - np.floor(b.price),
    )


def _activity() -> Iterator[Metric]:
    yield Metric(
        name="dollar_volume_day",
        unit="$",
        formula="volume_day * vwap_day: trades that count in the volume alone are valued at the VWAP",
        compute=lambda b: b.dollars(b["volume_day"], b["vwap_day"]),
        timeframe="day",
        session="day",
        published=True,
    )
    yield Metric(
        name="trades_day",
        unit="count",
        formula="trades since 04:00 New York that count in the volume",
        compute=lambda b: b.day("count"),
        timeframe="day",
        session="day",
        published=True,
    )
    yield Metric(
        name="vwap_distance",
        unit="$",
        formula="price - vwap_session, signed",
        compute=lambda b: b.price - b["vwap_session"],
        session="day",
    )
    yield Metric(
        name="vwap_day_distance_pct",
        unit="%",
        formula="(price / vwap_day - 1) * 100, signed",
        compute=lambda b: b.pct(b.price, b["vwap_day"]),
        timeframe="day",
        session="day",
        published=True,
    )


def _sessions() -> Iterator[Metric]:
    for name, session, after in (("regular", Session.REGULAR, "after open"), ("postmarket", Session.POST, "post")):
        for which, extreme in (("high", "highest"), ("low", "lowest")):
            yield Metric(
                name=f"{which}_{name}",
                unit="$",
                formula=f"{extreme} price of today's {'regular session' if name == 'regular' else 'post-market'}",
                compute=_session_price(which, session),
                timeframe="day",
                session=after,  # type: ignore[arg-type]  # both are sessions of the declaration
            )
    yield Metric(
        name="volume_postmarket",
        unit="shares",
        formula="volume of today's post-market; unknown before it begins",
        compute=lambda b: b.session_sum("volume", Session.POST) if b.session.session is Session.POST else b.unknown,
        timeframe="day",
        session="post",
    )


def _session_price(which: str, session: Session) -> Callable[[Board], F64]:
    return lambda board: board.session_price(which, session)


def _ranges() -> Iterator[Metric]:
    yield Metric(
        name="range_day",
        unit="$",
        formula="high_day - low_day",
        compute=lambda b: b["high_day"] - b["low_day"],
        timeframe="day",
        session="day",
    )
    yield Metric(
        name="range_pct_day",
        unit="%",
        formula="(high_day / low_day - 1) * 100",
        compute=lambda b: b.pct(b["high_day"], b["low_day"]),
        timeframe="day",
        session="day",
        source="ChartsWatcher, which divides by the low",
        published=True,
    )
    for span in ("day", "premarket"):
        high, low = f"high_{span}", f"low_{span}"
        yield Metric(
            name=f"position_in_range_{span}",
            unit="%",
            formula=f"(price - {low}) / ({high} - {low}) * 100; unknown where these are one",
            compute=_position(low, high),
            timeframe="day",
            session="day",
            published=span == "day",
        )
        yield Metric(
            name=f"below_{high}",
            unit="$",
            formula=f"{high} - price",
            compute=_difference(high, "price"),
            timeframe="day",
            session="day",
        )
        yield Metric(
            name=f"above_{low}",
            unit="$",
            formula=f"price - {low}",
            compute=_difference("price", low),
            timeframe="day",
            session="day",
        )
        for level in (high, low):
            yield Metric(
                name=f"distance_from_{level}_pct",
                unit="%",
                formula=f"(price / {level} - 1) * 100, signed",
                compute=_distance(level),
                timeframe="day",
                session="day",
                published=level == "high_day",
            )
    yield Metric(
        name="pullback_from_high_pct",
        unit="%",
        formula=(
            "(high_regular - price) / (high_regular - open_day) * 100: the share of the rise from the open that is "
            "given back; unknown where there was none"
        ),
        compute=lambda b: b.ratio(b["high_regular"] - b.price, b["high_regular"] - b["open_day"]) * 100.0,
        timeframe="day",
        session="after open",
    )
    yield Metric(
        name="bounce_from_low_pct",
        unit="%",
        formula=(
            "(price - low_regular) / (open_day - low_regular) * 100: the share of the fall from the open that is made "
            "good; unknown where there was none"
        ),
        compute=lambda b: b.ratio(b.price - b["low_regular"], b["open_day"] - b["low_regular"]) * 100.0,
        timeframe="day",
        session="after open",
    )
    yield Metric(
        name="range_prev_day_position",
        unit="%",
        formula="(open_day - low_prev_day) / (high_prev_day - low_prev_day) * 100: the open in yesterday's range",
        compute=lambda b: b.position(b["open_day"], b.fact("low_prev_day"), b.fact("high_prev_day")),
        session="after open",
        facts=("low_prev_day", "high_prev_day"),
        **_PREV,  # type: ignore[arg-type]  # a table of keywords that several declarations share
    )


def _position(low: str, high: str) -> Callable[[Board], F64]:
    return lambda board: board.position(board.price, board[low], board[high])


def _difference(left: str, right: str) -> Callable[[Board], F64]:
    return lambda board: board[left] - board[right]


def _distance(level: str) -> Callable[[Board], F64]:
    return lambda board: board.pct(board.price, board[level])


def _pivots() -> Iterator[Metric]:
    def level(name: str, formula: str, compute: Callable[[F64, F64, F64], F64]) -> Metric:
        def of_board(board: Board) -> F64:
            high, low = board.fact("high_prev_day"), board.fact("low_prev_day")
            return compute((high + low + board.close_prev) / 3.0, high, low)

        return Metric(
            name=name,
            unit="$",
            formula=formula,
            compute=of_board,
            timeframe="day",
            freshness="day",
            needs="reference",
            facts=("high_prev_day", "low_prev_day", "close_prev_day"),
            source="classic floor pivots",
        )

    yield level("pivot_day", "(high_prev_day + low_prev_day + close_prev_day) / 3", lambda pivot, _high, _low: pivot)
    yield level("resistance_1_day", "2 * pivot_day - low_prev_day", lambda pivot, _high, low: 2.0 * pivot - low)
    yield level(
        "resistance_2_day", "pivot_day + (high_prev_day - low_prev_day)", lambda pivot, high, low: pivot + (high - low)
    )
    yield level("support_1_day", "2 * pivot_day - high_prev_day", lambda pivot, high, _low: 2.0 * pivot - high)
    yield level(
        "support_2_day", "pivot_day - (high_prev_day - low_prev_day)", lambda pivot, high, low: pivot - (high - low)
    )
    yield Metric(
        name="pivot_distance_pct",
        unit="%",
        formula="(price / pivot_day - 1) * 100, signed",
        compute=_distance("pivot_day"),
        timeframe="day",
        needs="reference",
        facts=("high_prev_day", "low_prev_day", "close_prev_day"),
    )


METRICS = (*_changes(), *_activity(), *_sessions(), *_ranges(), *_pivots())
