"""Studies of closed candles against TA-Lib, and against themselves after a revision."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import pyarrow.parquet as pq
import pytest
import talib
from hypothesis import given, settings
from hypothesis import strategies as st

from tapewatch.engine.averages import Ema, Sma
from tapewatch.engine.columns import F64
from tapewatch.engine.indicators import RECURSIVE, Recursive
from tapewatch.engine.patterns import PATTERNS
from tapewatch.engine.series import COLUMNS, Series, Study, View
from tapewatch.engine.studies import STUDIES

ALL: Mapping[str, Study] = STUDIES | PATTERNS
ONE = np.zeros(1, np.intp)


@dataclass(frozen=True)
class Table:
    """Candles of one symbol in columns, in the order in which a series takes them."""

    high: F64
    low: F64
    close: F64
    open: F64
    volume: F64
    trades: F64

    def row(self, at: int) -> list[F64]:
        return [x[at : at + 1] for x in (self.high, self.low, self.close, self.open, self.volume, self.trades)]


def walk(seed: int, count: int, *, quiet: float = 0.1) -> Table:
    """A random walk on cents; some candles are a single price."""
    random = np.random.default_rng(seed)
    close = np.round(50 + np.cumsum(random.normal(0, 0.1, count)), 2)
    open_ = np.round(np.concatenate([[50.0], close[:-1]]) + random.choice([0.0, 0.0, 0.01, -0.02], count), 2)
    high = np.round(np.maximum(open_, close) + random.choice([0.0, 0.01, 0.08], count), 2)
    low = np.round(np.minimum(open_, close) - random.choice([0.0, 0.02, 0.07], count), 2)
    flat = random.random(count) < quiet
    high[flat] = low[flat] = open_[flat] = close[flat]
    volume, trades = random.integers(1, 9, (2, count)).astype(np.float64)
    return Table(high, low, close, open_, volume * 100.0, trades)


def series_of(*, reach: int = 9, capacity: int = 1, studies: Mapping[str, Study] = ALL) -> Series:
    series = Series(capacity, columns=COLUMNS, depth=20 + reach, reach=reach)
    series.run(study.part for study in studies.values() if study.part is not None)
    return series


def values(series: Series, studies: Mapping[str, Study] = ALL) -> dict[str, float]:
    view = View(series, ONE)
    return {stem: float(study.of(view)[0]) for stem, study in studies.items()}


def histories(tables: Sequence[Table], studies: Mapping[str, Study]) -> list[dict[str, F64]]:
    """Each study after each candle; one symbol a table."""
    lengths = np.array([len(table.close) for table in tables])
    series = series_of(studies=studies, capacity=len(tables))
    rows = {stem: np.full((lengths.max(), len(tables)), np.nan) for stem in studies}
    for at in range(lengths.max()):
        symbols = np.flatnonzero(lengths > at)
        candles = [tables[symbol].row(at) for symbol in symbols.tolist()]
        series.close(symbols, at, *(np.concatenate(column) for column in zip(*candles, strict=True)))
        view = View(series, symbols)
        for stem, study in studies.items():
            rows[stem][at, symbols] = study.of(view)
    return [{stem: row[:length, at] for stem, row in rows.items()} for at, length in enumerate(lengths.tolist())]


def history(table: Table, studies: Mapping[str, Study]) -> dict[str, F64]:
    (only,) = histories([table], studies)
    return only


def by_talib(table: Table) -> dict[str, F64]:
    high, low, close, volume = table.high, table.low, table.close, table.volume
    macd, signal, histogram = talib.MACD(close, 12, 26, 9)
    slow_k, slow_d = talib.STOCH(high, low, close, fastk_period=14, slowk_period=3, slowd_period=3)
    upper, _, lower = talib.BBANDS(close, 20, 2.0, 2.0)
    true_range = talib.TRANGE(high, low, close)
    return {
        **{f"ema_{n}": talib.EMA(close, n) for n in (9, 20, 21, 50, 200)},
        **{f"sma_{n}": talib.SMA(close, n) for n in (5, 8, 10, 20, 50, 130, 200)},
        "rsi_14": talib.RSI(close, 14),
        "atr_14": talib.ATR(high, low, close, 14),
        "atr_ema_14": np.concatenate([[np.nan], talib.EMA(true_range[1:], 14)]),
        "macd": macd,
        "macd_signal": signal,
        "macd_histogram": histogram,
        "stochastic_k": slow_k,
        "stochastic_d": slow_d,
        "bollinger_upper": upper,
        "bollinger_lower": lower,
        "di_plus_14": talib.PLUS_DI(high, low, close, 14),
        "di_minus_14": talib.MINUS_DI(high, low, close, 14),
        "adx_14": talib.ADX(high, low, close, 14),
        "linreg_20": talib.LINEARREG(close, 20),
        **{f"candle_volume_avg_{n}": talib.SMA(volume, n) for n in (2, 10)},
    }


def assert_equal_to_talib(tables: Sequence[Table]) -> None:
    for table, got in zip(tables, histories(tables, STUDIES), strict=True):
        expected = by_talib(table)
        assert expected.keys() == got.keys()
        for stem, values_ in expected.items():
            # TA-Lib's deviation is a difference of large sums: in a flat market millionths of the price are left of it.
            atol = 3e-6 if stem.startswith("bollinger") else 1e-9
            np.testing.assert_allclose(got[stem], values_, rtol=1e-9, atol=atol, err_msg=stem)


def test_studies_of_random_walks_equal_talib() -> None:
    assert_equal_to_talib([walk(seed, 300 + seed, quiet=0.1 * seed) for seed in range(6)])


@pytest.mark.market_data
def test_studies_of_provider_bars_equal_talib(market_data: Path) -> None:
    bars = pq.read_table(market_data / "bars/provider_bars_1m.parquet").sort_by("ts_ns").to_pydict()
    columns = {name: np.array(bars[name], np.float64) for name in ("high", "low", "close", "open", "volume")}
    symbols = np.array(bars["symbol"])
    tables = []
    for symbol in sorted(set(bars["symbol"])):
        of = {name: column[symbols == symbol][:800] for name, column in columns.items()}
        tables.append(Table(**of, trades=of["volume"]))
    assert sum(len(table.close) for table in tables) > 4_000
    assert_equal_to_talib(tables)


def test_bands_are_two_deviations_of_the_population_from_the_mean() -> None:
    table = walk(5, 60)
    for stem, side in (("bollinger_upper", 2), ("bollinger_lower", -2)):
        got = history(table, {stem: STUDIES[stem]})[stem]
        for at in range(19, 60):
            last = table.close[at - 19 : at + 1]
            assert got[at] == pytest.approx(np.mean(last) + side * np.std(last), rel=1e-12)


def test_bands_of_a_flat_market_are_its_price() -> None:
    flat = np.full(25, 10.1)
    got = history(Table(flat, flat, flat, flat, flat, flat), STUDIES)
    assert [got["bollinger_upper"][-1], got["bollinger_lower"][-1]] == pytest.approx([10.1, 10.1], rel=1e-12)
    assert (got["stochastic_k"][-1], got["di_plus_14"][-1], got["rsi_14"][-1]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("stem", [stem for stem in ALL if not stem.startswith(("swing", "lower_", "upper_"))])
def test_study_is_unknown_until_it_has_its_candles(stem: str) -> None:
    table = walk(7, ALL[stem].candles + 1)
    known = ~np.isnan(history(table, {stem: ALL[stem]})[stem])
    assert known.tolist() == [False] * (ALL[stem].candles - 1) + [True, True]


# -- revisions ---------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 90), reach=st.integers(3, 12))
def test_revised_series_equals_a_fresh_run_over_the_right_candles(seed: int, count: int, reach: int) -> None:
    """Candles are replaced, put in and taken out, as far back as can be re-run; some minutes have none."""
    random = Random(seed)
    table, other = walk(seed % 1000, count), walk(seed % 1000 + 1, count)
    series, right = series_of(reach=reach), dict[int, list[F64]]()
    for minute in range(count):
        if random.random() < 0.85:
            right[minute] = table.row(minute)
            series.close(ONE, minute, *right[minute])
        while random.random() < 0.3:
            late = max(0, minute - random.randrange(reach - 2))
            candle = other.row(random.randrange(count))
            if random.random() < 0.3 and late in right:
                candle = [*right[late][:4], candle[4], candle[5]]  # only the volume
            if random.random() < 0.3:
                candle = [np.array([np.nan])] * 6
                right.pop(late, None)
            else:
                right[late] = candle
            assert series.revise(ONE, late, *candle) == 0
    again = series_of(reach=reach)
    for minute in sorted(right):
        again.close(ONE, minute, *right[minute])
    assert series.count[0] == len(right)
    np.testing.assert_array_equal(list(values(series).values()), list(values(again).values()))


def test_bar_that_was_taken_out_does_not_count_as_a_later_one() -> None:
    engine, again = Recursive(1), Recursive(1)
    table, late = walk(11, 60), walk(12, 1)
    for minute in range(60):
        engine.close(ONE, minute, *table.row(minute)[:3])
    for minute in (58, 56, 59):
        engine.revise(ONE, minute, *[np.array([np.nan])] * 3)
    engine.revise(ONE, 57, *late.row(0)[:3])
    for minute in range(56):
        again.close(ONE, minute, *table.row(minute)[:3])
    again.close(ONE, 57, *late.row(0)[:3])
    assert engine.count[0] == again.count[0] == 57
    for name in RECURSIVE:
        np.testing.assert_array_equal(engine.values(name, ONE), again.values(name, ONE), name)


def test_candle_out_of_reach_is_counted_and_changes_nothing() -> None:
    table, series = walk(3, 40), series_of(reach=5)
    for minute in range(40):
        series.close(ONE, minute, *table.row(minute))
    before = values(series)
    assert series.revise(ONE, 20, *walk(4, 1).row(0)) == 1
    np.testing.assert_array_equal(list(values(series).values()), list(before.values()))


def test_taking_out_what_is_not_there_changes_nothing() -> None:
    table, series = walk(3, 40), series_of()
    for minute in range(0, 80, 2):
        series.close(ONE, minute, *table.row(minute // 2))
    before = values(series)
    assert series.revise(ONE, 75, *[np.array([np.nan])] * 6) == 0
    np.testing.assert_array_equal(list(values(series).values()), list(before.values()))


def test_part_that_runs_later_starts_from_the_candles_that_are_kept() -> None:
    table, reach = walk(9, 120), 9
    series, fresh = series_of(reach=reach, studies={}), series_of(reach=reach)
    for minute in range(60):
        series.close(ONE, minute, *table.row(minute))
    series.run(study.part for study in ALL.values() if study.part is not None)
    for minute in range(60 - 20 - reach, 60):
        fresh.close(ONE, minute, *table.row(minute))
    for minute in range(60, 120):
        for each in (series, fresh):
            each.close(ONE, minute, *table.row(minute))
            each.revise(ONE, minute - reach + 3, *table.row(minute - 1))
        got, expected = values(series), values(fresh)
        for stem, study in ALL.items():
            if study.part is not None:
                np.testing.assert_array_equal(got[stem], expected[stem], stem)


def test_part_that_runs_after_a_candle_was_taken_out_knows_only_those_that_stand() -> None:
    table, series, fresh = walk(9, 60), series_of(studies={}), series_of(studies={})
    for minute in range(60):
        series.close(ONE, minute, *table.row(minute))
        if minute < 58:
            fresh.close(ONE, minute, *table.row(minute))
    for minute in (58, 59):
        series.revise(ONE, minute, *[np.array([np.nan])] * 6)
    for each in (series, fresh):
        each.run((Ema(9), Sma(50)))
    kept = [int(View(each, ONE).candles(Ema(9))[0]) for each in (series, fresh)]
    assert kept == [27, 29]
    assert not np.isnan(STUDIES["ema_9"].of(View(series, ONE))[0])
    assert np.isnan(STUDIES["sma_50"].of(View(series, ONE))[0])
    for minute in range(60, 60 + 23):
        series.close(ONE, minute, *table.row(minute - 60))
    last = np.concatenate([table.close[58 - 27 : 58], table.close[:23]])
    assert STUDIES["sma_50"].of(View(series, ONE))[0] == pytest.approx(last.mean(), rel=1e-12)


def test_symbols_of_a_series_do_not_touch_each_other_and_may_become_more() -> None:
    table, series = walk(2, 80), series_of(capacity=2)
    second, third = np.array([1]), np.array([2])
    for minute in range(40):
        series.close(np.arange(2), minute, *(np.repeat(column, 2) for column in table.row(minute)))
    series.resize(5)
    for minute in range(40, 80):
        series.close(second, minute, *table.row(minute))
        series.close(third, minute, *table.row(minute - 40))
    whole, half = history(table, ALL), history(walk(2, 80), ALL)
    for symbol, at in ((0, 39), (1, 79), (2, 39)):
        view = View(series, np.array([symbol]))
        for stem, study in ALL.items():
            expected = (whole if symbol == 1 else half)[stem][at]
            np.testing.assert_array_equal(study.of(view)[0], expected, f"{stem} of {symbol}")
    assert series.count.tolist() == [40, 80, 40, 0, 0]


def test_series_must_keep_what_it_can_revise() -> None:
    with pytest.raises(ValueError, match="kept"):
        Series(1, columns=COLUMNS, depth=5, reach=5)
