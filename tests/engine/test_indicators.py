"""Indicators against TA-Lib's figures, against plain loops, and against themselves after a revision."""

from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import MINUTE, indicators
from tapes import new_york

from tapewatch.engine.columns import Bars
from tapewatch.engine.indicators import INDICATORS, RECURSIVE, Indicators, Recursive, by_minute
from tapewatch.nyse import trading_days

Candle = tuple[float, float, float]
ONE = np.zeros(1, np.intp)
FIRST_NS = new_york("2025-03-10 09:30")


def column(value: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([value])


def close(engine: Recursive, minute: int, candle: Candle) -> None:
    engine.close(ONE, minute, *map(column, candle))


def values(engine: Recursive) -> dict[str, float]:
    return {name: float(engine.values(name, ONE)[0]) for name in RECURSIVE}


def some_candle(random: Random, before: float) -> Candle:
    close_ = max(1.0, round(before + random.choice((-0.5, -0.01, 0.0, 0.0, 0.02, 0.5)), 2))
    return close_ + random.choice((0, 0.1)), close_ - random.choice((0, 0.2)), close_


def some_candles(random: Random, count: int) -> list[Candle]:
    candles = [(20.0, 20.0, 20.0)]
    while len(candles) < count:
        candles.append(some_candle(random, candles[-1][2]))
    return candles


def minute_bars(rows: Sequence[tuple[str, int, float, float, int]]) -> Bars:
    """(symbol, minute from the open, price, volume, revision)."""
    symbols = tuple(dict.fromkeys(row[0] for row in rows))
    prices, volumes = np.array([row[2] for row in rows]), np.array([row[3] for row in rows])
    return Bars(
        symbols=symbols,
        symbol=np.array([symbols.index(row[0]) for row in rows], np.int32),
        ts_ns=np.array([FIRST_NS + row[1] * MINUTE for row in rows], np.int64),
        open=prices,
        high=prices,
        low=prices,
        close=prices,
        volume=volumes,
        vwap=np.where(volumes > 0, prices, np.nan),
        vwap_volume=volumes,
        trade_count=np.ones(len(rows), np.int64),
        revision=np.array([row[4] for row in rows], np.int64),
    )


@pytest.mark.market_data
def test_indicators_of_provider_bars_equal_talib(market_data: Path) -> None:
    bars = pq.read_table(market_data / "bars/provider_bars_1m.parquet").to_pylist()
    reference = pq.read_table(market_data / "reference_indicators.parquet").to_pylist()
    candles = {(bar["symbol"], bar["ts_ns"]): (bar["high"], bar["low"], bar["close"]) for bar in bars}
    talib = {
        "rsi_14_1m": "talib_rsi14",
        "atr_14_1m": "talib_atr14",
        **{f"{kind}_{n}_1m": f"talib_{kind}{n}" for kind in ("ema", "sma") for n in (20, 50, 200)},
    }
    assert set(talib) == set(RECURSIVE)
    series, engine, compared = "", Recursive(1), 0
    for row in reference:
        if row["series"] != series:
            series, engine = row["series"], Recursive(1)
        close(engine, row["ts_ns"] // MINUTE, candles[row["symbol"], row["ts_ns"]])
        for name, value in values(engine).items():
            expected = row[talib[name]]
            wanted = np.nan if expected is None else expected
            assert value == pytest.approx(wanted, rel=1e-9, abs=1e-9, nan_ok=True), (series, row["ts_ns"], name)
            compared += 1
    assert compared == len(reference) * len(RECURSIVE) > 100_000


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 260))
def test_indicators_of_random_bars_equal_plain_loops(seed: int, count: int) -> None:
    candles = some_candles(Random(seed), count)
    engine = Recursive(1)
    for minute, candle in enumerate(candles):
        close(engine, minute, candle)
    expected = indicators(candles)
    for name, value in values(engine).items():
        assert value == pytest.approx(expected[name], rel=1e-9, nan_ok=True), name


def test_flat_market_has_rsi_zero_as_talib_says() -> None:
    engine = Recursive(1)
    for minute in range(40):
        close(engine, minute, (10.0, 10.0, 10.0))
    assert values(engine)["rsi_14_1m"] == 0.0
    assert values(engine)["atr_14_1m"] == 0.0
    assert values(engine)["ema_20_1m"] == values(engine)["sma_20_1m"] == 10.0


def test_rising_market_has_rsi_hundred() -> None:
    engine = Recursive(1)
    for minute in range(15):
        close(engine, minute, (10.0 + minute, 10.0 + minute, 10.0 + minute))
    assert values(engine)["rsi_14_1m"] == 100.0


@pytest.mark.parametrize(
    ("name", "bars"),
    [("rsi_14_1m", 15), ("atr_14_1m", 15), *((f"{k}_{n}_1m", n) for k in ("ema", "sma") for n in (20, 50, 200))],
)
def test_indicator_is_unknown_until_it_has_its_bars(name: str, bars: int) -> None:
    engine = Recursive(1)
    for minute, candle in enumerate(some_candles(Random(3), bars)):
        assert np.isnan(values(engine)[name])
        close(engine, minute, candle)
    assert not np.isnan(values(engine)[name])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 300), revisions=st.integers(1, 20))
def test_revision_equals_recomputation_from_scratch(seed: int, count: int, revisions: int) -> None:
    """Bars come in order; some are replaced, and some missing ones put in, as far back as half an hour."""
    random = Random(seed)
    engine = Recursive(2)
    both = np.arange(2)
    bars: list[dict[int, Candle]] = [{}, {}]
    due = {random.randrange(count) for _ in range(revisions)}
    for minute, candle in enumerate(some_candles(random, count)):
        for symbol in both.tolist():
            if random.random() < 0.8:
                bars[symbol][minute] = candle
                engine.close(both[symbol : symbol + 1], minute, *map(column, candle))
        if minute in due:
            late = max(0, minute - random.randrange(31))
            revised = some_candle(random, 20.0)
            symbols = both if random.random() < 0.5 else both[:1]
            assert engine.revise(symbols, late, *(np.full(len(symbols), x) for x in revised)) == 0
            for symbol in symbols.tolist():
                bars[symbol][late] = revised
    for symbol in both.tolist():
        expected = indicators([bars[symbol][minute] for minute in sorted(bars[symbol])])
        assert engine.count[symbol] == len(bars[symbol])
        for name in RECURSIVE:
            value = float(engine.values(name, both[symbol : symbol + 1])[0])
            assert value == pytest.approx(expected[name], rel=1e-9, nan_ok=True), (symbol, name)


def test_revision_beyond_the_log_is_counted_and_changes_nothing() -> None:
    engine = Recursive(1)
    for minute, candle in enumerate(some_candles(Random(1), 60)):
        close(engine, minute, candle)
    before = values(engine)
    assert engine.revise(ONE, 5, *map(column, (99.0, 98.0, 98.5))) == 1
    assert values(engine) == pytest.approx(before, nan_ok=True)


def vwaps(engine: Indicators, bars: Bars) -> dict[str, float]:
    rows = engine.update(bars)
    return {name: float(rows.values[INDICATORS.index(name), 0]) for name in INDICATORS if name.startswith("vwap")}


def test_rolling_vwap_counts_clock_minutes_and_not_bars() -> None:
    engine = Indicators(trading_days())
    vwaps(engine, minute_bars([("A", 0, 10.0, 100, 0)]))
    four = vwaps(engine, minute_bars([("A", 4, 20.0, 100, 0)]))
    five = vwaps(engine, minute_bars([("A", 5, 20.0, 100, 0)]))
    assert (four["vwap_5m"], five["vwap_5m"]) == (15.0, 20.0)
    assert five["vwap_15m"] == pytest.approx(50 / 3)
    assert vwaps(engine, minute_bars([("A", 64, 30.0, 100, 0)]))["vwap_1h"] == 25.0
    assert vwaps(engine, minute_bars([("A", 130, 40.0, 100, 0)]))["vwap_1h"] == 40.0


def test_vwap_starts_anew_with_session_and_day() -> None:
    engine = Indicators(trading_days())
    before_open = vwaps(engine, minute_bars([("A", -1, 10.0, 100, 0)]))
    opened = vwaps(engine, minute_bars([("A", 0, 20.0, 100, 0)]))
    assert (before_open["vwap_session"], before_open["vwap_day"]) == (10.0, 10.0)
    assert (opened["vwap_session"], opened["vwap_day"]) == (20.0, 15.0)
    tomorrow = vwaps(engine, minute_bars([("A", 24 * 60, 30.0, 100, 0)]))
    assert (tomorrow["vwap_session"], tomorrow["vwap_day"]) == (30.0, 30.0)


def test_revised_bar_replaces_its_share_of_the_vwap() -> None:
    engine = Indicators(trading_days())
    vwaps(engine, minute_bars([("A", 0, 10.0, 100, 0)]))
    vwaps(engine, minute_bars([("A", 1, 20.0, 100, 0)]))
    revised = vwaps(engine, minute_bars([("A", 1, 40.0, 100, 1)]))
    assert revised == dict.fromkeys(revised, 25.0)


def test_bars_are_split_by_minute_and_the_last_revision_stays() -> None:
    bars = minute_bars([("A", 0, 1.0, 1, 0), ("B", 0, 2.0, 1, 0), ("A", 0, 3.0, 1, 1), ("A", 1, 4.0, 1, 0)])
    pieces = [[(p.symbols[s], c) for s, c in zip(p.symbol, p.close, strict=True)] for p in by_minute(bars)]
    assert pieces == [[("B", 2.0), ("A", 3.0)], [("A", 4.0)]]


def test_indicators_of_many_symbols_survive_growth_of_the_table() -> None:
    engine = Indicators(trading_days())
    engine.update(minute_bars([("A", 0, 10.0, 100, 0)]))
    engine.update(minute_bars([("A", 1, 20.0, 100, 0)] + [(f"S{i}", 1, 5.0, 100, 0) for i in range(150)]))
    assert vwaps(engine, minute_bars([("A", 2, 30.0, 100, 0)]))["vwap_5m"] == 20.0
    assert engine.recursive.count[0] == 3
