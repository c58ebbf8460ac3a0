"""The rest of the catalogue, slowly: each metric by itself, from the piles of prints and what the tape said.

It shares no code with `tapewatch.engine`. `naive.Naive` computes the older metrics; a metric that is asked of this
module is looked up in the order: by its whole name, by the words around a window.
"""

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from naive import Facts, Naive, SymbolFacts

SECOND = 1_000_000_000
MINUTE = 60 * SECOND
NAN = float("nan")
MINUTES = {"1m": 1, "2m": 2, "5m": 5, "10m": 10, "15m": 15, "30m": 30, "1h": 60, "2h": 120, "4h": 240}
_WINDOWED = re.compile(rf"([a-z_0-9]+)_({'|'.join(MINUTES)})")
STALE = 600 * SECOND


def divide(a: float, b: float) -> float:
    """Unknown unless what is divided by is positive."""
    return a / b if b > 0 else NAN


def percent(value: float, base: float) -> float:
    return (value / base - 1) * 100 if not math.isnan(base) else NAN


def place(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) * 100 if high > low else NAN


class Look:
    """One symbol at one instant; `known` holds what the caller has computed already."""

    def __init__(self, naive: "Naive", facts: "SymbolFacts", now_ns: int, known: dict[str, float]) -> None:
        self.naive, self.facts, self.now, self.known = naive, facts, now_ns, known
        self.live = (now_ns - 1) // MINUTE
        self.session = naive.days.session(self.live * MINUTE)[0]
        self.price = facts.price

    def __getitem__(self, name: str) -> float:
        if name not in self.known:
            self.known[name] = self._compute(name)
        return self.known[name]

    def _compute(self, name: str) -> float:
        whole: Callable[[], float] | None = getattr(self, f"_{name}", None)
        if whole is not None:
            return whole()
        for family in (self._level, self._new, self._opening, self._reference, self._fund):
            value = family(name)
            if value is not None:
                return value
        windowed = _WINDOWED.fullmatch(name)
        if windowed is None:
            raise KeyError(name)
        method: Callable[[int, str], float] = getattr(self, f"_w_{windowed[1]}")
        return method(MINUTES[windowed[2]], windowed[2])

    # what the definitions are made of

    def told(self, session: str) -> "Facts":
        return self.naive.told(self.facts, session)

    def of_day(self) -> tuple[int, int, int, int]:
        """(pre, open, close, post) of the running day; only to be asked while the market is not closed."""
        return next(day for day in self.naive.days.days if day[0] <= self.live * MINUTE < day[3])

    def minutes(self, first: int, last: int) -> list["Facts"]:
        return [self.facts.minutes[m].facts for m in range(first, last + 1) if m in self.facts.minutes]

    def window(self, n: int) -> list["Facts"]:
        return self.minutes(self.live - n + 1, self.live)

    def observed(self, n: int) -> bool:
        assert self.naive.began is not None
        return self.live - n >= max(self.naive.began, self.naive.day_start) // MINUTE

    def fact(self, name: str) -> float:
        return self.naive.reference(self.facts, name)

    def base(self) -> float:
        """The previous close, unless a split is suspected."""
        return NAN if self["suspect_split"] else self.facts.close_prev

    # windows

    def _w_change(self, n: int, _window: str) -> float:
        return self.price - self.naive.price_ago(self.facts, self.now, n)

    def _w_change_pct(self, n: int, _window: str) -> float:
        return percent(self.price, self.naive.price_ago(self.facts, self.now, n))

    def _w_volume(self, n: int, _window: str) -> float:
        return math.fsum(m.volume for m in self.window(n))

    def _w_trades(self, n: int, _window: str) -> float:
        return float(sum(m.count for m in self.window(n)))

    def _w_vwap(self, n: int, _window: str) -> float:
        return divide(math.fsum(m.value for m in self.window(n)), math.fsum(m.weight for m in self.window(n)))

    def _w_dollar_volume(self, _n: int, window: str) -> float:
        volume = self[f"volume_{window}"]
        return volume * self[f"vwap_{window}"] if volume else 0.0

    def _w_window_high(self, n: int, _window: str) -> float:
        return max((m.high for m in self.window(n) if not math.isnan(m.high)), default=NAN)

    def _w_window_low(self, n: int, _window: str) -> float:
        return min((m.low for m in self.window(n) if not math.isnan(m.low)), default=NAN)

    def _w_range(self, _n: int, window: str) -> float:
        return self[f"window_high_{window}"] - self[f"window_low_{window}"]

    def _w_range_pct(self, _n: int, window: str) -> float:
        return self[f"range_{window}"] / self[f"window_low_{window}"] * 100

    def _w_position_in_range(self, _n: int, window: str) -> float:
        return place(self.price, self[f"window_low_{window}"], self[f"window_high_{window}"])

    def _w_volume_avg(self, n: int, _window: str) -> float:
        before = self.minutes(self.live - n, self.live - 1)
        return math.fsum(m.volume for m in before) / n if self.observed(n) else NAN

    def _w_relative_volume(self, _n: int, window: str) -> float:
        return divide(self._last_60_seconds("volume"), self[f"volume_avg_{window}"])

    def _last_60_seconds(self, column: str) -> float:
        over = (self.now - self.live * MINUTE) / MINUTE
        parts = ((self.live, 1.0), (self.live - 1, 1.0 - over))
        return sum(share * sum(float(getattr(m, column)) for m in self.minutes(at, at)) for at, share in parts)

    # the last minute

    def _outlier(self) -> float:
        prices = [price for _, price in sorted(self.facts.prices, key=lambda each: each[0])]
        if len(prices) < 2:
            return NAN
        return float(all(abs(prices[-1] - price) >= price / 2 for price in prices[-3:-1]))

    def _prints_60s(self) -> float:
        return self._last_60_seconds("count") if self.observed(1) else NAN

    def _running_60s(self) -> float:
        return self["change_1m"] if self["prints_60s"] >= 3 else NAN

    def _running_60s_pct(self) -> float:
        return self["change_pct_1m"] if self["prints_60s"] >= 3 else NAN

    def _largest_trade_1m(self) -> float:
        piles = [self.facts.minutes[m].prints for m in (self.live - 1, self.live) if m in self.facts.minutes]
        return max((p.size for pile in piles for p in pile if "volume" in p.words), default=NAN)

    # the day

    def _change_day(self) -> float:
        return self.price - self.base()

    def _close_day(self) -> float:
        return self.price

    def _change_from_open(self) -> float:
        return self.price - self["open_day"]

    def _change_premarket(self) -> float:
        return self.told("pre").close - self.base() if self.session == "pre" else NAN

    def _change_premarket_pct(self) -> float:
        return percent(self.told("pre").close, self.base()) if self.session == "pre" else NAN

    def _gap_indicative_pct(self) -> float:
        return self["change_premarket_pct"]

    def _close_today(self) -> float:
        official = self["close_official_day"]
        return self.told("regular").close if math.isnan(official) else official

    def _change_postmarket(self) -> float:
        return self.told("post").close - self._close_today() if self.session == "post" else NAN

    def _change_postmarket_pct(self) -> float:
        return percent(self.told("post").close, self._close_today()) if self.session == "post" else NAN

    def _gap(self) -> float:
        return self["open_day"] - self.base()

    def _price_decimal(self) -> float:
        return math.modf(self.price)[0]

    def _dollar_volume_day(self) -> float:
        return self["volume_day"] * self["vwap_day"] if self["volume_day"] else 0.0

    def _trades_day(self) -> float:
        return float(self.facts.day.facts.count)

    def _vwap_distance(self) -> float:
        return self.price - self["vwap_session"]

    def _vwap_day_distance_pct(self) -> float:
        return percent(self.price, self["vwap_day"])

    def _volume_postmarket(self) -> float:
        return self.told("post").volume if self.session == "post" else NAN

    def _range_day(self) -> float:
        return self["high_day"] - self["low_day"]

    def _range_pct_day(self) -> float:
        return self["range_day"] / self["low_day"] * 100

    def _pullback_from_high_pct(self) -> float:
        high, opened = self["high_regular"], self["open_day"]
        return divide(high - self.price, high - opened) * 100

    def _bounce_from_low_pct(self) -> float:
        low, opened = self["low_regular"], self["open_day"]
        return divide(self.price - low, opened - low) * 100

    def _level(self, name: str) -> float | None:
        """high_regular and the like, and where the price stands to a level."""
        extreme = re.fullmatch(r"(high|low)_(regular|postmarket)", name)
        if extreme:
            told = self.told({"regular": "regular", "postmarket": "post"}[extreme[2]])
            return told.high if extreme[1] == "high" else told.low
        span = re.fullmatch(r"position_in_range_(day|premarket)", name)
        if span:
            return place(self.price, self[f"low_{span[1]}"], self[f"high_{span[1]}"])
        if name in ("below_high_day", "below_high_premarket"):
            return self[name.removeprefix("below_")] - self.price
        if name in ("above_low_day", "above_low_premarket"):
            return self.price - self[name.removeprefix("above_")]
        distance = re.fullmatch(r"distance_from_((?:high|low)_(?:day|premarket|52w))_pct", name)
        if distance is None:
            distance = re.fullmatch(r"((?:sma|ema)_\d+_day|vwap_\d+[mh])_distance_pct", name)
        return percent(self.price, self[distance[1]]) if distance else None

    def _opening(self, name: str) -> float | None:
        asked = re.fullmatch(r"opening_range_(high|low)_(\w+)", name)
        if asked is None:
            return None
        n = MINUTES[asked[2]]
        if self.session not in ("regular", "post"):
            return NAN
        opened = self.of_day()[1]
        assert self.naive.began is not None
        if self.now < opened + n * MINUTE or self.naive.began // MINUTE > opened // MINUTE:
            return NAN
        first = self.minutes(opened // MINUTE, opened // MINUTE + n - 1)
        if asked[1] == "high":
            return max((m.high for m in first if not math.isnan(m.high)), default=NAN)
        return min((m.low for m in first if not math.isnan(m.low)), default=NAN)

    # scans

    def _new(self, name: str) -> float | None:
        """What the scan before the newest one saw, and what the newest: a pair of (high, low) by session."""
        which = "high" if "high" in name else "low"
        side = 0 if which == "high" else 1
        sign = 1.0 if which == "high" else -1.0
        asked = re.fullmatch(r"new_(high|low)_(day|regular|premarket|postmarket|52w)", name)
        if asked:
            if not self.facts.seen_extremes:
                return NAN
            part = {"premarket": "pre", "postmarket": "post", "52w": "day"}.get(asked[2], asked[2])
            before, now = (seen[part][side] for seen in self.facts.seen_extremes)
            moved = not math.isnan(now) and (math.isnan(before) or sign * now > sign * before)
            if asked[2] != "52w":
                return float(moved and not math.isnan(before))
            level = self.fact(f"{which}_52w")
            return NAN if math.isnan(level) else float(moved and sign * now > sign * level)
        if name in ("high_day_before", "low_day_before"):
            return self.facts.seen_extremes[0]["day"][side] if self.facts.seen_extremes else NAN
        if name in ("new_highs_day", "new_lows_day"):
            return float(self.facts.new_extremes[side]) if self.facts.seen_extremes else NAN
        return None

    def _highest_since_scan(self) -> float:
        return max(self.facts.seen_path, default=NAN)

    def _lowest_since_scan(self) -> float:
        return min(self.facts.seen_path, default=NAN)

    # the clock

    def _time_of_day(self) -> float:
        return NAN if self.session == "closed" else (self.now - self.of_day()[0] + 240 * MINUTE) / MINUTE

    def _minutes_since_open(self) -> float:
        known = self.session != "closed" and self.now > self.of_day()[1]
        return (self.now - self.of_day()[1]) / MINUTE if known else NAN

    def _minutes_to_close(self) -> float:
        return (self.of_day()[2] - self.now) / MINUTE if self.session == "regular" else NAN

    def _seconds_since(self, ts_ns: int | None) -> float:
        return NAN if ts_ns is None or self.session == "closed" else max(0, self.now - ts_ns) / SECOND

    def _price_age(self) -> float:
        return self._seconds_since(None if math.isnan(self.price) else self.facts.price_ts)

    # quotes, bands, halts

    def _quote(self, name: str) -> float:
        f = self.facts
        current = f.quote_ts is not None and self.now - f.quote_ts <= STALE and not f.halted
        return f.quote.get(name, NAN) if current and self.session != "closed" else NAN

    def _bid(self) -> float:
        return self._quote("bid")

    def _ask(self) -> float:
        return self._quote("ask")

    def _bid_size(self) -> float:
        return self._quote("bid_size")

    def _ask_size(self) -> float:
        return self._quote("ask_size")

    def _quote_age(self) -> float:
        f = self.facts
        current = f.quote_ts is not None and self.now - f.quote_ts <= STALE and not f.halted
        return self._seconds_since(f.quote_ts) if current else NAN

    def _spread(self) -> float:
        return self["ask"] - self["bid"]

    def _spread_pct(self) -> float:
        return 200 * (self["ask"] - self["bid"]) / (self["ask"] + self["bid"])

    def _bid_ask_ratio(self) -> float:
        return divide(self["bid_size"], self["ask_size"])

    def _distance_from_mid_pct(self) -> float:
        return percent(self.price, (self["ask"] + self["bid"]) / 2)

    def _crossed_market(self) -> float:
        return NAN if math.isnan(self["spread"]) else float(self["spread"] < 0)

    def _locked_market(self) -> float:
        return NAN if math.isnan(self["spread"]) else float(self["bid"] == self["ask"])

    def _band_low(self) -> float:
        return self.facts.quote.get("band_low", NAN) if self.session == "regular" else NAN

    def _band_high(self) -> float:
        return self.facts.quote.get("band_high", NAN) if self.session == "regular" else NAN

    def _distance_to_band_up_pct(self) -> float:
        return (self["band_high"] - self.price) / self.price * 100

    def _distance_to_band_down_pct(self) -> float:
        return (self.price - self["band_low"]) / self.price * 100

    def _halts_day(self) -> float:
        return float(len(self.facts.halts))

    def _seconds_since_halt(self) -> float:
        return self._seconds_since(self.facts.halts[-1] if self.facts.halts else None)

    def _seconds_since_resume(self) -> float:
        return self._seconds_since(self.facts.resumes[-1] if self.facts.resumes else None)

    # reference data

    def _reference(self, name: str) -> float | None:
        closes = {f"change_pct_{n}d": f"close_{n}d_ago" for n in (2, 5, 10, 20)}
        closes |= {"change_pct_1y": "close_year_ago", "change_pct_ytd": "close_last_year"}
        if name in closes:
            return NAN if self["suspect_split"] else percent(self.price, self.fact(closes[name]))
        span = re.fullmatch(r"position_in_range_(5d|10d|20d|3mo|6mo|52w)", name)
        if span:
            return place(self.price, self.fact(f"low_{span[1]}"), self.fact(f"high_{span[1]}"))
        return self.fact(name) if name in self.naive.reference_names else None

    def _range_prev_day_position(self) -> float:
        return place(self["open_day"], self.fact("low_prev_day"), self.fact("high_prev_day"))

    def _bollinger_position_day(self) -> float:
        return place(self.price, self.fact("bollinger_lower_day"), self.fact("bollinger_upper_day"))

    def _pivot_day(self) -> float:
        return (self.fact("high_prev_day") + self.fact("low_prev_day") + self.facts.close_prev) / 3

    def _resistance_1_day(self) -> float:
        return self["pivot_day"] + (self["pivot_day"] - self.fact("low_prev_day"))

    def _support_1_day(self) -> float:
        return self["pivot_day"] - (self.fact("high_prev_day") - self["pivot_day"])

    def _resistance_2_day(self) -> float:
        return self["pivot_day"] + self.fact("high_prev_day") - self.fact("low_prev_day")

    def _support_2_day(self) -> float:
        return self["pivot_day"] - self.fact("high_prev_day") + self.fact("low_prev_day")

    def _pivot_distance_pct(self) -> float:
        return percent(self.price, self["pivot_day"])

    def _volume_pct_of_avg(self) -> float:
        return divide(self["volume_day"], self.fact("avg_daily_volume_20d")) * 100

    def _volume_pct_of_prev_day(self) -> float:
        return divide(self["volume_day"], self.fact("volume_prev_day")) * 100

    def _relative_range_day(self) -> float:
        return divide(self["range_day"], self.fact("atr_14_day")) * 100

    def _change_in_atr_day(self) -> float:
        return divide(self["change_day"], self.fact("atr_14_day"))

    def _change_from_open_in_atr(self) -> float:
        return divide(self["change_from_open"], self.fact("atr_14_day"))

    def _gap_in_atr(self) -> float:
        return divide(self["gap"], self.fact("atr_14_day"))

    def _atr_pct_day(self) -> float:
        return divide(self.fact("atr_14_day"), self.facts.close_prev) * 100

    def _change_in_sigma_day(self) -> float:
        return divide(self["change_pct_day"], self.fact("stdev_change_day"))

    # index funds

    def _fund(self, name: str) -> float | None:
        asked = re.fullmatch(r"(spy|qqq|dia)_(change_pct_\w+)", name)
        if asked is None:
            return None
        fund = self.naive.symbols.get(asked[1].upper())
        if fund is None:
            return NAN
        return self.naive.values(fund, self.now, {asked[2]})[asked[2]]

    def _change_vs_spy_pct_day(self) -> float:
        return self["change_pct_day"] - self["spy_change_pct_day"]
