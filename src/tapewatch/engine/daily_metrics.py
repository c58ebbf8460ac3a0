"""The figures of the days before today: what each is called, what it is, and which study computes it.

All are in today's shares, as of 04:00.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from tapewatch.engine.columns import F64
from tapewatch.engine.daily_studies import (
    BOLLINGER_BARS,
    CHANGE_BARS,
    EMA_WEIGHTS,
    FEWEST_RETURNS,
    WILDER,
    WILDER_WEIGHTS,
    YEAR_BARS,
    Past,
)

MARKET = "SPY"
"""What betas are measured against."""
_VOLUME_DAYS = (5, 10, 20, 30, 63)
_EXTREME_DAYS = {"5d": 5, "10d": 10, "20d": 20, "3mo": 63, "6mo": 126}
_RANGE_DAYS = {"3mo": 63, "6mo": 126, "1y": YEAR_BARS}
_CLOSES_AGO = {"2d": 2, "5d": 5, "10d": 10, "20d": 20, "year": YEAR_BARS}
_SMA_BARS = (8, 10, 20, 50, 200)
_EMA_BARS = (9, 21, 50)


@dataclass(frozen=True, slots=True, kw_only=True)
class DailyMetric:
    """One figure a symbol and day, for the catalogue and for `daily_facts`."""

    unit: Literal["$", "%", "shares", "ratio", "index", "count"]
    formula: str
    """In words, for the reader of the reference page."""
    warm_up_days: int = 1
    """Bars, or days since the listing, that it takes."""
    source: Literal["daily bars", "listing"] = "daily bars"
    compute: Callable[[Past], F64]


def _unknown(past: Past) -> F64:
    return past.unknown


def _declare() -> dict[str, DailyMetric]:
    def dollars(formula: str, compute: Callable[[Past], F64], *, warm_up_days: int = 1) -> DailyMetric:
        return DailyMetric(unit="$", formula=formula, warm_up_days=warm_up_days, compute=compute)

    def percent(formula: str, compute: Callable[[Past], F64], *, warm_up_days: int) -> DailyMetric:
        return DailyMetric(unit="%", formula=formula, warm_up_days=warm_up_days, compute=compute)

    wilder = len(WILDER_WEIGHTS) + 1
    of_day = {
        "open": "first price of the regular session",
        "high": "highest price",
        "low": "lowest price",
    }
    metrics = {
        "close_prev_day": dollars(
            "last close of the five trading days before today",
            lambda past: past.close_prev,
        ),
        **{
            f"{name}_prev_day": dollars(f"{what} of the previous trading day", partial(Past.prev_day, column=name))
            for name, what in of_day.items()
        },
        "volume_prev_day": DailyMetric(
            unit="shares", formula="volume of the previous trading day", compute=partial(Past.prev_day, column="volume")
        ),
        "change_pct_prev_day": percent(
            "(close of the previous trading day / close_2d_ago - 1) * 100", Past.change_prev_day, warm_up_days=2
        ),
        **{
            f"avg_daily_volume_{n}d": DailyMetric(
                unit="shares",
                formula=f"mean volume of the last {n} full trading days, zero where it did not trade",
                warm_up_days=n,
                compute=partial(Past.mean_volume, n=n),
            )
            for n in _VOLUME_DAYS
        },
        "high_52w": dollars(
            "highest price of the 365 days before today, or since the listing",
            lambda past: past.extreme_year(past.high, high=True),
        ),
        "low_52w": dollars(
            "lowest price of the 365 days before today, or since the listing",
            lambda past: past.extreme_year(past.low, high=False),
        ),
    }
    for name, n in _EXTREME_DAYS.items():
        metrics[f"high_{name}"] = dollars(
            f"highest price of the {n} trading days before today",
            partial(Past.high_of, n=n),
            warm_up_days=n,
        )
        metrics[f"low_{name}"] = dollars(
            f"lowest price of the {n} trading days before today",
            partial(Past.low_of, n=n),
            warm_up_days=n,
        )
    for name, n in _RANGE_DAYS.items():
        metrics[f"biggest_range_pct_{name}"] = percent(
            f"greatest (high - low) / low * 100 of a day, of the {n} trading days before today",
            partial(Past.range_pct, n=n),
            warm_up_days=n,
        )
    for name, n in _CLOSES_AGO.items():
        metrics[f"close_{name}_ago"] = dollars(
            f"close {n} trading days before today; without one the last of the four trading days before it",
            partial(Past.close_before, days=n),
            warm_up_days=n,
        )
    metrics["close_last_year"] = dollars(
        "last close of the last five trading days of the previous calendar year", Past.close_last_year
    )
    for n in _SMA_BARS:
        metrics[f"sma_{n}_day"] = dollars(f"mean of the last {n} daily closes", partial(Past.sma, n=n), warm_up_days=n)
    for n in _EMA_BARS:
        bars = len(EMA_WEIGHTS[n])
        metrics[f"ema_{n}_day"] = dollars(
            f"EMA({n}) of the last {bars} daily closes, seeded with the mean of the first {n}",
            partial(Past.ema, n=n),
            warm_up_days=bars,
        )
    metrics["rsi_14_day"] = DailyMetric(
        unit="index",
        formula=f"Wilder's RSI(14) of the last {wilder} daily closes",
        warm_up_days=wilder,
        compute=Past.rsi,
    )
    metrics["atr_14_day"] = dollars(
        f"Wilder's ATR(14) of the last {wilder} daily bars",
        partial(Past.atr, weights=WILDER_WEIGHTS),
        warm_up_days=wilder,
    )
    bars = len(EMA_WEIGHTS[WILDER]) + 1
    metrics["atr_ema_14_day"] = dollars(
        f"EMA(14) of the true ranges of the last {bars} daily bars, seeded with the mean of the first 14",
        partial(Past.atr, weights=EMA_WEIGHTS[WILDER]),
        warm_up_days=bars,
    )
    for name, sigmas in (("upper", 2.0), ("lower", -2.0)):
        metrics[f"bollinger_{name}_day"] = dollars(
            f"mean of the last {BOLLINGER_BARS} daily closes {'+' if sigmas > 0 else '-'} 2 population standard "
            "deviations of them",
            partial(Past.bollinger, sigmas=sigmas),
            warm_up_days=BOLLINGER_BARS,
        )
    metrics["stdev_change_day"] = percent(
        f"population standard deviation of the last {CHANGE_BARS} changes in percent from one daily close to the next",
        Past.stdev_change,
        warm_up_days=CHANGE_BARS + 1,
    )
    metrics["volatility_year_pct"] = percent(
        f"sample standard deviation of the last {YEAR_BARS} log returns from one daily close to the next (of those "
        f"that there are, {FEWEST_RETURNS} at least) * sqrt({YEAR_BARS}) * 100",
        Past.volatility,
        warm_up_days=FEWEST_RETURNS + 1,
    )
    metrics["consecutive_candles_day"] = DailyMetric(
        unit="count",
        formula="daily candles of one colour in a row up to the newest, + with close > open, - with close < open; 0 "
        "after close = open, which ends a row",
        compute=Past.candles_in_a_row,
    )
    metrics["beta_1y"] = DailyMetric(
        unit="ratio",
        formula=f"slope of daily returns against those of {MARKET}, over those of the last {YEAR_BARS} trading days on "
        f"which both are known, {FEWEST_RETURNS} at least",
        warm_up_days=FEWEST_RETURNS + 1,
        compute=Past.beta,
    )
    metrics["market_cap"] = DailyMetric(
        unit="$",
        formula="market capitalisation as the source of the listing said last",
        warm_up_days=0,
        source="listing",
        compute=_unknown,
    )
    metrics["shares_outstanding"] = DailyMetric(
        unit="shares",
        formula="shares outstanding as the source of the listing said last; a split since then is not applied",
        warm_up_days=0,
        source="listing",
        compute=_unknown,
    )
    return metrics


DAILY_METRICS: dict[str, DailyMetric] = _declare()
