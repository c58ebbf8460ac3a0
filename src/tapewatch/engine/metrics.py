"""The metric catalogue: one declaration a metric. Names carry their unit and, last, their window.

Values live on the board as float64; NaN means unknown, and unknown never fires a rule.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

Unit = Literal["$", "%", "shares", "ratio", "index", "flag"]


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    unit: Unit
    formula: str
    """In words, for the reader of the reference page."""


WINDOWS = ("1m", "5m", "15m", "1h")
WINDOW_MINUTES = {"1m": 1, "5m": 5, "15m": 15, "1h": 60}


def _catalogue() -> list[Metric]:
    m = [
        Metric("price", "$", "last price that a trade was allowed to set"),
        Metric("halted", "flag", "1 from a halt until its resume, else 0"),
        Metric(
            "close_prev_day",
            "$",
            "close of the previous trading day, in today's shares: from the reference data, else the official close "
            "that its tape named, else the last price of its regular session",
        ),
        Metric("open_day", "$", "first price of today's regular session; unknown before it"),
        Metric("open_official_day", "$", "official open as today's tape names it; unknown before"),
        Metric("close_official_day", "$", "official close as today's tape names it, corrected ones included"),
        Metric("high_day", "$", "highest price since 04:00 New York"),
        Metric("low_day", "$", "lowest price since 04:00 New York"),
        Metric("volume_day", "shares", "volume since 04:00 New York"),
        Metric("high_session", "$", "highest price of the running session (pre-market, regular or post-market)"),
        Metric("low_session", "$", "lowest price of the running session"),
        Metric("volume_session", "shares", "volume of the running session"),
        Metric("high_premarket", "$", "highest price of today's pre-market; kept for the rest of the day"),
        Metric("low_premarket", "$", "lowest price of today's pre-market; kept for the rest of the day"),
        Metric("volume_premarket", "shares", "volume of today's pre-market; kept for the rest of the day"),
        Metric("high_prev_day", "$", "highest price of the previous trading day, in today's shares"),
        Metric("low_prev_day", "$", "lowest price of the previous trading day, in today's shares"),
        Metric("volume_prev_day", "shares", "volume of the previous trading day, in today's shares"),
        *(
            Metric(
                f"avg_daily_volume_{n}d", "shares", f"mean volume of the last {n} full trading days, in today's shares"
            )
            for n in (10, 20, 30)
        ),
        Metric("high_52w", "$", "highest price of the 365 days before today, in today's shares"),
        Metric("low_52w", "$", "lowest price of the 365 days before today, in today's shares"),
        Metric(
            "suspect_split",
            "flag",
            "1 when today's first price over close_prev_day is within 2 % of an integer of 2 or more, or of the "
            "reciprocal of one, and no known split explains it",
        ),
        Metric(
            "gap_pct", "%", "(open_day / close_prev_day - 1) * 100; unknown before the open and while suspect_split"
        ),
        Metric("change_pct_day", "%", "(price / close_prev_day - 1) * 100; unknown while suspect_split"),
        Metric("change_from_open_pct", "%", "(price / open_day - 1) * 100"),
    ]
    for w in WINDOWS:
        grain = "second" if w in {"1m", "5m"} else "5 seconds"
        m.append(
            Metric(
                f"change_pct_{w}",
                "%",
                f"(price / p - 1) * 100, p the last price before {w} ago by the clock, that instant rounded "
                f"down to a whole {grain}",
            )
        )
        m.append(
            Metric(
                f"volume_{w}", "shares", f"volume of the {WINDOW_MINUTES[w]} clock minutes that end with the live one"
            )
        )
    for w in WINDOWS[1:]:
        n = WINDOW_MINUTES[w]
        m += [
            Metric(f"volume_avg_{w}", "shares", f"mean volume a minute over the {n} clock minutes before the live one"),
            Metric(
                f"relative_volume_{w}",
                "ratio",
                "volume of the last 60 seconds (the live minute, and of the one before the share that is not yet over) "
                f"/ volume_avg_{w}",
            ),
            Metric(
                f"vwap_{w}",
                "$",
                f"sum(price*size)/sum(size) over the {n} clock minutes that end with the live one, of trades that may "
                "set both high/low and volume",
            ),
        ]
    m += [
        Metric("vwap_session", "$", "the same since the start of the running session"),
        Metric("vwap_day", "$", "the same since 04:00 New York"),
        Metric("vwap_distance_pct", "%", "(price / vwap_session - 1) * 100, signed"),
        Metric("rsi_14_1m", "index", "Wilder's RSI over 14 closed one-minute bars"),
        *(
            Metric(f"ema_{n}_1m", "$", f"EMA of the last {n} closed one-minute closes, seeded with their SMA")
            for n in (20, 50, 200)
        ),
        *(Metric(f"sma_{n}_1m", "$", f"mean of the last {n} closed one-minute closes") for n in (20, 50, 200)),
        Metric("atr_14_1m", "$", "Wilder's ATR over 14 closed one-minute bars"),
    ]
    return m


CATALOGUE: dict[str, Metric] = {metric.name: metric for metric in _catalogue()}


def canonical_metric(name: str) -> str:
    """The catalogue's spelling: ``_60m`` is ``_1h`` and ``_1d`` is ``_day``. ValueError names what comes close."""
    canonical = name
    for alias, suffix in (("_60m", "_1h"), ("_1d", "_day")):
        if canonical.endswith(alias):
            canonical = canonical.removesuffix(alias) + suffix
    if canonical in CATALOGUE:
        return canonical
    close = get_close_matches(name, CATALOGUE, n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    shown = name if len(name) <= 64 else name[:61] + "..."
    raise ValueError(f"unknown metric {shown!r}{hint}")
