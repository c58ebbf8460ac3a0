"""The figures of the days before today against plain loops over one symbol's days, and against TA-Lib."""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from random import Random
from statistics import fmean, pstdev, stdev

import numpy as np
import pytest
import talib
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tapewatch.documents import day_of_number
from tapewatch.engine.columns import F64
from tapewatch.engine.daily import DAILY_FACTS, DailyBars, daily_facts, make_daily_bars
from tapewatch.engine.daily_metrics import DAILY_METRICS
from tapewatch.engine.daily_studies import SEED_WEIGHT, fading
from tapewatch.engine.splits import SplitSpec

TODAY = 20_150
NAN = math.nan


def weekdays(count: int) -> list[int]:
    """The last trading days before today, the oldest first."""
    days: list[int] = []
    day = TODAY
    while len(days) < count:
        day -= 1
        if day_of_number(day).weekday() < 5:
            days.append(day)
    return days[::-1]


@dataclass(frozen=True, slots=True)
class Candle:
    open: float
    high: float
    low: float
    close: float
    volume: float

    def times(self, factor: float) -> "Candle":
        return Candle(
            self.open * factor, self.high * factor, self.low * factor, self.close * factor, self.volume / factor
        )


History = dict[int, Candle]


def some_history(random: Random, days: Sequence[int], *, traded: float) -> History:
    """A walk in cents, with flat days, dojis and days without a bar."""
    price, history = 20.0, {}
    for day in days:
        if random.random() >= traded:
            continue
        open_ = max(1.0, round(price + random.choice((-0.3, 0.0, 0.0, 0.2)), 2))
        close = max(1.0, round(open_ + random.choice((-1.0, -0.25, -0.01, 0.0, 0.0, 0.01, 0.3, 1.1)), 2))
        high, low = max(open_, close) + random.choice((0.0, 0.2)), min(open_, close) - random.choice((0.0, 0.1))
        history[day] = Candle(open_, high, low, close, float(random.choice((0, 1, 100, 12_345))))
        price = close
    return history


def bars_of(histories: dict[str, History], *, shuffled: Random | None = None) -> DailyBars:
    rows = [(symbol, day, candle) for symbol, history in histories.items() for day, candle in history.items()]
    if shuffled is not None:
        shuffled.shuffle(rows)
    names = ("open", "high", "low", "close", "volume")
    bars = make_daily_bars(
        [row[0] for row in rows],
        [row[1] for row in rows],
        **{name: [getattr(row[2], name) for row in rows] for name in names},
    )
    # Symbols without history have a place, too.
    index = {symbol: place for place, symbol in enumerate(histories)}
    codes = np.array([index[name] for name in bars.symbols], np.int32)
    columns = {name: getattr(bars, name) for name in ("day", *names)}
    return DailyBars(symbols=tuple(histories), symbol=codes[bars.symbol] if rows else bars.symbol, **columns)


# -- the slow version -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Naive:
    """One symbol in today's shares, and the trading days with what is known of them."""

    bars: History
    market: History
    days: list[int]
    covered: dict[int, bool]
    full: dict[int, bool]

    def ago(self, days: int) -> int | None:
        return self.days[-days] if days <= len(self.days) else None

    def close_at(self, days: int) -> float:
        for age in range(days, days + 5):
            day = self.ago(age)
            if day is None or not self.covered[day]:
                return NAN
            if day in self.bars:
                return self.bars[day].close
        return NAN

    def known_days(self) -> list[int]:
        """Those since the newest hole, the oldest first."""
        known: list[int] = []
        for day in reversed(self.days):
            if not self.covered[day]:
                break
            known.insert(0, day)
        return known

    def last(self, count: int) -> list[Candle]:
        """The last bars; empty where there are fewer."""
        bars = [self.bars[day] for day in self.known_days() if day in self.bars]
        return bars[-count:] if len(bars) >= count and not math.isnan(self.close_at(1)) else []

    def window(self, count: int) -> list[Candle]:
        """The bars of the last days; empty where they are not all known or the symbol is younger."""
        days = self.days[-count:]
        old = [day for day in self.bars if day <= days[0]]
        if len(days) < count or not all(self.covered[day] for day in days) or not old:
            return []
        return [self.bars[day] for day in days if day in self.bars]

    def figures(self) -> dict[str, float]:
        yesterday = self.days[-1]
        prev = self.bars.get(yesterday) if self.covered[yesterday] else None
        out = {f"{name}_prev_day": getattr(prev, name, NAN) for name in ("open", "high", "low", "volume")}
        out["close_prev_day"] = self.close_at(1)
        out["change_pct_prev_day"] = (prev.close / self.close_at(2) - 1) * 100 if prev else NAN
        for n in (5, 10, 20, 30, 63):
            out[f"avg_daily_volume_{n}d"] = self.mean_volume(n)
        for name, n in {"5d": 5, "10d": 10, "20d": 20, "3mo": 63, "6mo": 126}.items():
            window = self.window(n)
            out[f"high_{name}"] = max((bar.high for bar in window), default=NAN)
            out[f"low_{name}"] = min((bar.low for bar in window), default=NAN)
        for name, n in {"3mo": 63, "6mo": 126, "1y": 252}.items():
            out[f"biggest_range_pct_{name}"] = max(
                ((bar.high - bar.low) / bar.low * 100 for bar in self.window(n)), default=NAN
            )
        year = [day for day in self.days if day >= TODAY - 365]
        whole = all(self.covered[day] for day in year) and self.days[0] <= TODAY - 360
        out["high_52w"] = max((self.bars[day].high for day in year if day in self.bars and whole), default=NAN)
        out["low_52w"] = min((self.bars[day].low for day in year if day in self.bars and whole), default=NAN)
        for name, n in {"2d": 2, "5d": 5, "10d": 10, "20d": 20, "year": 252}.items():
            out[f"close_{name}_ago"] = self.close_at(n)
        this_year = day_of_number(TODAY).year
        out["close_last_year"] = self.close_at(1 + sum(day_of_number(day).year == this_year for day in self.days))
        for n in (8, 10, 20, 50, 200):
            closes = self.closes(n)
            out[f"sma_{n}_day"] = fmean(closes) if closes else NAN
        for n in (9, 21, 50):
            out[f"ema_{n}_day"] = average(self.closes(len(fading(n, 2 / (n + 1)))), n, 2 / (n + 1))
        out["rsi_14_day"] = self.rsi()
        wilder, exponential = len(fading(14, 1 / 14)) + 1, len(fading(14, 2 / 15)) + 1
        out["atr_14_day"] = average(true_ranges(self.last(wilder)), 14, 1 / 14)
        out["atr_ema_14_day"] = average(true_ranges(self.last(exponential)), 14, 2 / 15)
        closes = self.closes(20)
        for name, sigmas in (("upper", 2), ("lower", -2)):
            out[f"bollinger_{name}_day"] = fmean(closes) + sigmas * pstdev(closes) if closes else NAN
        closes = self.closes(21)
        changes = [(b / a - 1) * 100 for a, b in itertools.pairwise(closes)]
        out["stdev_change_day"] = pstdev(changes) if changes else NAN
        out["volatility_year_pct"] = self.volatility()
        out["consecutive_candles_day"] = self.candles()
        out["beta_1y"] = self.beta()
        return out

    def closes(self, count: int) -> list[float]:
        return [bar.close for bar in self.last(count)]

    def mean_volume(self, n: int) -> float:
        days = [day for day in self.days if self.full[day]][-n:]
        since = [day for day in self.days if day >= days[0]] if days else []
        if len(days) < n or not all(self.covered[day] for day in since) or not any(d <= days[0] for d in self.bars):
            return NAN
        return fmean(self.bars[day].volume if day in self.bars else 0.0 for day in days)

    def rsi(self) -> float:
        closes = self.closes(len(fading(14, 1 / 14)) + 1)
        changes = [b - a for a, b in itertools.pairwise(closes)]
        gain = average([max(change, 0.0) for change in changes], 14, 1 / 14)
        loss = average([max(-change, 0.0) for change in changes], 14, 1 / 14)
        return 0.0 if gain + loss == 0 else 100 * gain / (gain + loss)

    def volatility(self) -> float:
        count = min(253, sum(day in self.bars for day in self.known_days()))
        closes = self.closes(count)
        returns = [math.log(b / a) for a, b in itertools.pairwise(closes)]
        return stdev(returns) * math.sqrt(252) * 100 if len(returns) >= 60 else NAN

    def candles(self) -> float:
        if math.isnan(self.close_at(1)):
            return NAN
        known = self.known_days()
        signs = [np.sign(self.bars[day].close - self.bars[day].open) for day in known if day in self.bars]
        run = 0
        for sign in reversed(signs):
            if sign == 0 or sign != signs[-1]:
                break
            run += 1
        unbroken = run == len(signs)
        older = any(day <= known[0] for day in self.bars)
        return NAN if unbroken and older else float(run * signs[-1])

    def beta(self) -> float:
        days = self.known_days()[-253:]
        pairs = [
            (self.bars[b].close / self.bars[a].close - 1, self.market[b].close / self.market[a].close - 1)
            for a, b in itertools.pairwise(days)
            if {a, b} <= self.bars.keys() and {a, b} <= self.market.keys()
        ]
        if len(pairs) < 60:
            return NAN
        own, market = fmean(pair[0] for pair in pairs), fmean(pair[1] for pair in pairs)
        variance = sum((m - market) ** 2 for _, m in pairs)
        return sum((o - own) * (m - market) for o, m in pairs) / variance if variance else NAN


def average(values: Sequence[float], n: int, alpha: float) -> float:
    if not values:
        return NAN
    mean = fmean(values[:n])
    for value in values[n:]:
        mean += alpha * (value - mean)
    return mean


def true_ranges(bars: Sequence[Candle]) -> list[float]:
    return [
        max(bar.high - bar.low, abs(bar.high - prev.close), abs(bar.low - prev.close))
        for prev, bar in itertools.pairwise(bars)
    ]


def in_todays_shares(history: History, splits: Sequence[SplitSpec], symbol: str) -> History:
    out = {}
    for day, candle in history.items():
        for split in splits:
            if split.symbol == symbol and day < split.ex_day <= TODAY:
                candle = candle.times(split.factor)  # noqa: PLW2901  # one split after the other
        out[day] = candle
    return out


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    days=st.one_of(st.integers(1, 30), st.integers(58, 68), st.integers(245, 320)),
    traded=st.sampled_from([1.0, 0.97, 0.6]),
    holes=st.lists(st.integers(1, 320), max_size=2),
    age=st.one_of(st.just(320), st.integers(0, 300)),
    quiet=st.sampled_from([0, 0, 0, 1, 4, 5, 7]),
    split_ages=st.lists(st.integers(-3, 300), max_size=2),
)
@example(seed=1, days=310, traded=1.0, holes=[], age=320, quiet=0, split_ages=[])
@example(seed=2, days=310, traded=1.0, holes=[1], age=320, quiet=0, split_ages=[])
@example(seed=3, days=310, traded=0.97, holes=[282], age=320, quiet=1, split_ages=[100, 0])
@example(seed=4, days=3, traded=1.0, holes=[], age=2, quiet=0, split_ages=[])
def test_figures_are_those_of_a_loop_over_the_days(
    seed: int, days: int, traded: float, holes: list[int], age: int, quiet: int, split_ages: list[int]
) -> None:
    random = Random(seed)
    calendar = weekdays(days)
    of_a = [day for n, day in enumerate(reversed(calendar), start=1) if quiet < n <= age]
    histories = {
        "A": some_history(random, sorted(of_a), traded=traded),
        "SPY": some_history(random, calendar, traded=0.99),
        "NONE": {},
    }
    covered = {day: len(calendar) - place not in holes for place, day in enumerate(calendar)}
    full = {day: random.random() > 0.03 for day in calendar}
    splits = [SplitSpec("A", TODAY - n, random.choice((0.25, 3.0))) for n in dict.fromkeys(split_ages)]
    values = daily_facts(
        bars_of(histories, shuffled=random),
        splits=splits,
        today=TODAY,
        days=np.array(calendar, np.int32),
        full=np.array([full[day] for day in calendar]),
        covered=np.array([covered[day] for day in calendar]),
    )
    market = in_todays_shares(histories["SPY"], splits, "SPY")
    for place, (symbol, history) in enumerate(histories.items()):
        naive = Naive(in_todays_shares(history, splits, symbol), market, calendar, covered, full)
        expected = naive.figures()
        assert {*expected, "market_cap", "shares_outstanding"} == set(DAILY_FACTS)
        for name, value in expected.items():
            known = float(values[DAILY_FACTS.index(name), place])
            assert known == pytest.approx(value, rel=1e-9, abs=1e-9, nan_ok=True), (symbol, name)


def facts_of(history: History, *, days: int = 320, market: DailyBars | None = None) -> dict[str, float]:
    calendar = weekdays(days)
    whole = np.ones(days, np.bool_)
    values = daily_facts(
        bars_of({"A": history}),
        splits=[],
        today=TODAY,
        days=np.array(calendar, np.int32),
        full=whole,
        covered=whole,
        market=market,
    )
    return dict(zip(DAILY_FACTS, values[:, 0].tolist(), strict=True))


def test_studies_are_those_of_talib() -> None:
    for seed in range(5):
        history = some_history(Random(seed), weekdays(320), traded=1.0)
        known = facts_of(history)

        def column(name: str, count: int = 320, *, of: History = history) -> F64:
            return np.array([getattr(bar, name) for bar in of.values()])[-count:]

        close = column("close")
        upper, mean, lower = talib.BBANDS(close, 20, 2.0, 2.0)
        expected = {f"sma_{n}_day": talib.SMA(close, n)[-1] for n in (8, 10, 20, 50, 200)} | {
            "bollinger_upper_day": upper[-1],
            "bollinger_lower_day": lower[-1],
            "sma_20_day": mean[-1],
        }
        for n in (9, 21, 50):
            bars = DAILY_METRICS[f"ema_{n}_day"].warm_up_days
            expected[f"ema_{n}_day"] = talib.EMA(column("close", bars), n)[-1]
        bars = DAILY_METRICS["rsi_14_day"].warm_up_days
        high, low, close = (column(name, bars) for name in ("high", "low", "close"))
        expected["rsi_14_day"] = talib.RSI(close, 14)[-1]
        expected["atr_14_day"] = talib.ATR(high, low, close, 14)[-1]
        bars = DAILY_METRICS["atr_ema_14_day"].warm_up_days
        ranges = talib.TRANGE(high[-bars:], low[-bars:], close[-bars:])
        expected["atr_ema_14_day"] = talib.EMA(ranges[1:], 14)[-1]
        assert {name: known[name] for name in expected} == pytest.approx(expected, rel=1e-9)


def test_older_history_would_change_the_averages_by_less_than_their_seed_weighs() -> None:
    history = some_history(Random(7), weekdays(320), traded=1.0)
    known = facts_of(history)
    close = np.array([bar.close for bar in history.values()])
    spread = close.max() - close.min()
    for n in (9, 21, 50):
        assert known[f"ema_{n}_day"] == pytest.approx(talib.EMA(close, n)[-1], abs=SEED_WEIGHT * spread)


def test_each_figure_is_unknown_for_a_symbol_younger_than_its_warm_up() -> None:
    days = weekdays(320)
    market = bars_of({"SPY": some_history(Random(2), days, traded=1.0)})
    for name, metric in DAILY_METRICS.items():
        if metric.warm_up_days > 1:
            history = some_history(Random(3), days[-metric.warm_up_days :], traded=1.0)
            assert not math.isnan(facts_of(history, market=market)[name]), name
            del history[min(history)]
            assert math.isnan(facts_of(history, market=market)[name]), name


def test_weights_of_a_fading_average_are_whole_and_the_seed_weighs_next_to_nothing() -> None:
    for n, alpha in ((9, 0.2), (14, 1 / 14), (50, 2 / 51)):
        weights = fading(n, alpha)
        assert weights.sum() == pytest.approx(1.0)
        assert weights[:n].sum() < SEED_WEIGHT <= weights[:n].sum() / (1 - alpha)


def test_flat_symbol_has_no_width_and_an_rsi_of_zero() -> None:
    flat = dict.fromkeys(weekdays(320), Candle(0.1, 0.1, 0.1, 0.1, 5.0))
    known = facts_of(flat)
    assert known["bollinger_upper_day"] == known["bollinger_lower_day"] == 0.1
    for name in ("rsi_14_day", "atr_14_day", "stdev_change_day", "volatility_year_pct", "consecutive_candles_day"):
        assert known[name] == 0.0, name


def test_doji_ends_a_row_of_candles() -> None:
    def row(*bodies: float) -> float:
        days = weekdays(320)[-len(bodies) :]
        candles = [Candle(10.0, 12.0, 8.0, 10.0 + body, 1.0) for body in bodies]
        return facts_of(dict(zip(days, candles, strict=True)))["consecutive_candles_day"]

    assert row(1, -1, 1, 1, 1) == 3
    assert row(1, 1, 0, -1, -1) == -2
    assert row(1, 1, 0) == 0
    assert row(1, 1) == 2


def test_beta_of_a_symbol_that_moves_twice_as_much_as_the_market_is_two() -> None:
    random, days = Random(9), weekdays(320)
    market, own, price, doubled = {}, {}, 100.0, 100.0
    for day in days:
        move = random.uniform(-0.02, 0.02)
        price, doubled = price * (1 + move), doubled * (1 + 2 * move)
        market[day] = Candle(price, price, price, price, 1.0)
        own[day] = Candle(doubled, doubled, doubled, doubled, 1.0)
    assert facts_of(own, market=bars_of({"SPY": market}))["beta_1y"] == pytest.approx(2.0)
    assert math.isnan(facts_of(own)["beta_1y"])
    assert math.isnan(facts_of(own, market=bars_of({"QQQ": market}))["beta_1y"])


def test_last_year_ends_on_its_last_trading_day() -> None:
    days = weekdays(320)
    history = {day: Candle(1.0, 1.0, 1.0, float(day), 1.0) for day in days}
    last = int(facts_of(history)["close_last_year"])
    end = day_of_number(TODAY).replace(month=1, day=1)
    assert end - timedelta(3) <= day_of_number(last) < end
    assert facts_of(history)["close_year_ago"] == days[-252]


def test_symbols_are_worked_on_in_pieces_without_a_trace() -> None:
    days = weekdays(30)
    random, whole = Random(4), np.ones(30, np.bool_)
    histories = {f"S{n}": some_history(random, days, traded=0.9) for n in range(600)}

    def facts(names: Sequence[str], *, shuffled: Random | None = None) -> F64:
        return daily_facts(
            bars_of({name: histories[name] for name in names}, shuffled=shuffled),
            splits=[SplitSpec("S300", days[-5], 0.5)],
            today=TODAY,
            days=np.array(days, np.int32),
            full=whole,
            covered=whole,
        )

    names = tuple(histories)
    alone = np.concatenate([facts(names[:299]), facts(names[299:301]), facts(names[301:])], axis=1)
    np.testing.assert_allclose(facts(names, shuffled=random), alone, rtol=1e-12)


def test_each_figure_is_declared_with_its_unit_formula_and_warm_up() -> None:
    for name, metric in DAILY_METRICS.items():
        assert metric.formula
        assert (metric.unit == "%") == ("_pct" in name or name == "stdev_change_day"), name
        assert (metric.source == "listing") == (metric.warm_up_days == 0), name


def test_page_on_reference_data_names_each_figure() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference-data.md").read_text()
    table = page.split("## Daily figures")[1].split("## ")[0]
    assert set(re.findall(r"`([a-z]+_[a-z0-9_]+)`", table)) == set(DAILY_FACTS)
