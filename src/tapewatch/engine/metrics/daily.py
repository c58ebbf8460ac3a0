"""What the reference data say of the days before, and how the running day stands to them."""

from collections.abc import Callable, Iterator

import numpy as np

from tapewatch.engine.board import Board
from tapewatch.engine.columns import F64
from tapewatch.engine.daily_metrics import DAILY_METRICS
from tapewatch.engine.metrics.declare import Metric, Session, Unit

_PUBLISHED = {
    "high_prev_day",
    "low_prev_day",
    "volume_prev_day",
    "rsi_14_day",
    "avg_daily_volume_10d",
    "avg_daily_volume_20d",
    "avg_daily_volume_30d",
    "high_52w",
    "low_52w",
}
_RANGES = ("5d", "10d", "20d", "3mo", "6mo", "52w")
_CLOSES_AGO = {"2d": 2, "5d": 5, "10d": 10, "20d": 20}


def _fact(name: str) -> Callable[[Board], F64]:
    return lambda board: board.fact(name)


def _facts() -> Iterator[Metric]:
    for name, daily in DAILY_METRICS.items():
        if name == "close_prev_day":  # the tape may tell it too
            continue
        yield Metric(
            name=name,
            unit=daily.unit,
            formula=f"{daily.formula}, in today's shares" if daily.unit in {"$", "shares"} else daily.formula,
            compute=_fact(name),
            timeframe="day",
            warm_up="" if daily.warm_up_days < 2 else f"{daily.warm_up_days} trading days",
            freshness="day",
            source="" if daily.source == "daily bars" else "the listing's reference data",
            needs="reference",
            facts=(name,),
            published=name in _PUBLISHED,
        )


def _made_of(
    name: str,
    unit: Unit,
    formula: str,
    facts: tuple[str, ...],
    compute: Callable[[Board], F64],
    *,
    session: Session = "any",
    published: bool = False,
) -> Metric:
    """A metric of the running day and these facts."""
    return Metric(
        name=name,
        unit=unit,
        formula=formula,
        compute=compute,
        timeframe="day",
        session=session,
        needs="reference",
        facts=facts,
        published=published,
    )


def _volumes() -> Iterator[Metric]:
    yield _made_of(
        "volume_pct_of_avg",
        "%",
        "volume_day / avg_daily_volume_20d * 100",
        ("avg_daily_volume_20d",),
        lambda b: b.ratio(b["volume_day"], b.fact("avg_daily_volume_20d")) * 100.0,
        session="day",
        published=True,
    )
    yield _made_of(
        "volume_pct_of_prev_day",
        "%",
        "volume_day / volume_prev_day * 100",
        ("volume_prev_day",),
        lambda b: b.ratio(b["volume_day"], b.fact("volume_prev_day")) * 100.0,
        session="day",
    )


def _changes() -> Iterator[Metric]:
    for window, days in _CLOSES_AGO.items():
        yield _change(f"change_pct_{window}", f"close_{window}_ago", f"the close {days} trading days before today")
    yield _change("change_pct_1y", "close_year_ago", "the close a year of trading days before today")
    yield _change("change_pct_ytd", "close_last_year", "the last close of the previous calendar year")


def _change(name: str, fact: str, meaning: str) -> Metric:
    def compute(board: Board) -> F64:
        change = board.pct(board.price, board.fact(fact))
        return np.where(board["suspect_split"] == 1.0, np.nan, change)

    return _made_of(
        name, "%", f"(price / {fact} - 1) * 100, from {meaning}; unknown while suspect_split", (fact,), compute
    )


def _measures() -> Iterator[Metric]:
    """The running day by what a day is usually like."""
    atr, sigma, close = "atr_14_day", "stdev_change_day", "close_prev_day"
    yield _made_of(
        "relative_range_day",
        "%",
        f"range_day / {atr} * 100",
        (atr,),
        lambda b: b.ratio(b["range_day"], b.fact(atr)) * 100.0,
        session="day",
    )
    yield _made_of(
        "change_in_atr_day",
        "ratio",
        f"change_day / {atr}",
        (atr, close),
        lambda b: b.ratio(b["change_day"], b.fact(atr)),
    )
    yield _made_of(
        "change_in_sigma_day",
        "sigma",
        f"change_pct_day / {sigma}",
        (sigma, close),
        lambda b: b.ratio(b["change_pct_day"], b.fact(sigma)),
    )
    yield _made_of(
        "change_from_open_in_atr",
        "ratio",
        f"change_from_open / {atr}",
        (atr,),
        lambda b: b.ratio(b["change_from_open"], b.fact(atr)),
        session="after open",
    )
    yield _made_of(
        "gap_in_atr",
        "ratio",
        f"gap / {atr}",
        (atr, close),
        lambda b: b.ratio(b["gap"], b.fact(atr)),
        session="after open",
    )
    yield _made_of(
        "atr_pct_day",
        "%",
        f"{atr} / {close} * 100",
        (atr, close),
        lambda b: b.ratio(b.fact(atr), b.close_prev) * 100.0,
    )


def _levels() -> Iterator[Metric]:
    averages = [n for n in DAILY_METRICS if n.startswith(("sma_", "ema_")) and n.endswith("_day")]
    for level in (*averages, "high_52w", "low_52w"):
        name = f"{level}_distance_pct" if level in averages else f"distance_from_{level}_pct"
        yield _made_of(name, "%", f"(price / {level} - 1) * 100, signed", (level,), _distance(level))
    for window in _RANGES:
        yield _position(f"position_in_range_{window}", f"low_{window}", f"high_{window}")
    yield _position("bollinger_position_day", "bollinger_lower_day", "bollinger_upper_day")


def _distance(level: str) -> Callable[[Board], F64]:
    return lambda board: board.pct(board.price, board.fact(level))


def _position(name: str, low: str, high: str) -> Metric:
    formula = f"(price - {low}) / ({high} - {low}) * 100: below 0 and above 100 outside of it"
    return _made_of(name, "%", formula, (low, high), lambda b: b.position(b.price, b.fact(low), b.fact(high)))


METRICS = (*_facts(), *_volumes(), *_changes(), *_measures(), *_levels())
