"""Patterns on candles made by hand, hits and near misses, and against TA-Lib where the definition is the same."""

from collections.abc import Sequence

import numpy as np
import pytest
import talib

from tapewatch.engine.columns import F64
from tapewatch.engine.patterns import PATTERNS
from tapewatch.engine.series import COLUMNS, Series, View

Candle = tuple[float, float, float, float]
"""Open, high, low, close."""
UP: Candle = (10.0, 11.0, 10.0, 11.0)
DOWN: Candle = (11.0, 11.0, 10.0, 10.0)
DOJI: Candle = (10.0, 11.0, 9.5, 10.0)
FALLING: list[Candle] = [(14, 14, 13, 13), (13, 13, 12, 12), (12, 12, 11, 11), (11, 11, 10, 10)]
RISING: list[Candle] = [(7, 8, 7, 8), (8, 9, 8, 9), (9, 10, 9, 10), (10, 11, 10, 11)]
HAMMER: Candle = (9.8, 10.0, 9.0, 10.0)


def after(candles: Sequence[Candle], stem: str) -> float:
    """The pattern after these candles."""
    series, one = Series(1, columns=COLUMNS, depth=24, reach=4), np.zeros(1, np.intp)
    part = PATTERNS[stem].part
    series.run(() if part is None else (part,))
    for minute, (o, h, low, c) in enumerate(candles):
        series.close(one, minute, *(np.array([float(x)]) for x in (h, low, c, o, 100.0, 1.0)))
    return float(PATTERNS[stem].of(View(series, one))[0])


def bars(highs_and_lows: Sequence[tuple[float, float]]) -> list[Candle]:
    return [(low, high, low, high) for high, low in highs_and_lows]


@pytest.mark.parametrize(
    ("stem", "candles"),
    [
        ("doji", [DOJI]),
        ("doji", [(10.0, 11.0, 9.0, 10.2)]),  # a tenth of the range
        ("hammer", [*FALLING, HAMMER]),
        ("hammer", [*FALLING, (10.0, 10.1, 9.0, 9.7)]),  # a red one
        ("hanging_man", [*RISING, HAMMER]),
        ("engulfing_bull", [(10, 10.2, 9.4, 9.5), (9.4, 10.2, 9.3, 10.1)]),
        ("engulfing_bull", [(10, 10, 9.5, 9.5), (9.5, 10.1, 9.5, 10.1)]),  # one end is equal
        ("engulfing_bear", [(9.5, 10, 9.4, 10), (10.1, 10.2, 9.3, 9.4)]),
        ("piercing", [(10, 10, 8.9, 9), (8.8, 9.7, 8.8, 9.6)]),
        ("dark_cloud", [(9, 10.1, 9, 10), (10.2, 10.2, 9.3, 9.4)]),
        ("harami_bull", [(10, 10, 9, 9), (9.3, 9.6, 9.2, 9.6)]),
        ("harami_bull", [(10, 10, 9, 9), (9, 9.6, 8.5, 9.6)]),  # one end is equal; shadows do not matter
        ("harami_bear", [(9, 10, 9, 10), (9.6, 9.7, 9.2, 9.3)]),
        ("inside_bar", bars([(11, 9), (10.9, 9.1)])),
        ("nr7", bars([(11, 9)] * 6 + [(10, 8.1)])),
        ("wide_range_bar", bars([(11, 10)] * 10 + [(12.1, 10)])),
        ("green_candle", [UP]),
        ("red_candle", [DOWN]),
        ("continuation_up", [(10, 12, 10, 12), (11.8, 12.1, 11.1, 11.5), (11.6, 12.5, 11.5, 12.3)]),
        ("continuation_up", [(10.5, 12, 10, 11.5), (11.8, 12, 11, 11.5), (12, 12.1, 12, 12.1)]),  # just so
        ("continuation_down", [(12, 12, 10, 10), (10.2, 10.9, 9.9, 10.5), (10.4, 10.5, 9.5, 9.7)]),
    ],
)
def test_candles_show_the_pattern(stem: str, candles: list[Candle]) -> None:
    assert after(candles, stem) == 1.0


@pytest.mark.parametrize(
    ("stem", "candles"),
    [
        ("doji", [(10.0, 11.0, 9.0, 10.21)]),
        ("doji", [(10.0, 10.0, 10.0, 10.0)]),  # a single price
        ("hammer", [*RISING, HAMMER]),  # after a rise
        ("hammer", [*FALLING, (9.8, 10.03, 9.41, 10.0)]),  # the lower shadow is too short
        ("hammer", [*FALLING, (9.8, 10.2, 9.0, 10.0)]),  # the upper one too long
        ("hammer", [*FALLING, (10.0, 10.0, 9.0, 10.0)]),  # no body
        ("hanging_man", [*FALLING, HAMMER]),
        ("hanging_man", [UP, UP, UP, UP, HAMMER]),  # neither rise nor fall
        ("engulfing_bull", [(10, 10.2, 9.4, 9.5), (9.6, 10.2, 9.3, 10.1)]),
        ("engulfing_bull", [(10, 10, 9.5, 9.5), (9.5, 10, 9.5, 10)]),  # both ends are equal
        ("engulfing_bull", [(9.5, 10, 9.5, 10), (9.4, 10.1, 9.4, 10.1)]),  # of one colour
        ("engulfing_bull", [DOJI, (9.9, 10.6, 9.8, 10.5)]),
        ("engulfing_bear", [(9.5, 10, 9.4, 10), (9.9, 10.2, 9.3, 9.4)]),
        ("piercing", [(10, 10, 8.9, 9), (8.9, 9.7, 8.8, 9.6)]),  # opens at the low
        ("piercing", [(10, 10, 8.9, 9), (8.8, 9.5, 8.8, 9.5)]),  # closes at the middle
        ("piercing", [(10, 10, 8.9, 9), (8.8, 10.1, 8.8, 10)]),  # closes at the open
        ("dark_cloud", [(9, 10.1, 9, 10), (10.1, 10.2, 9.3, 9.4)]),
        ("dark_cloud", [(9, 10.1, 9, 10), (10.2, 10.2, 8.9, 9.0)]),
        ("harami_bull", [(10, 10, 9, 9), (8.9, 9.6, 8.9, 9.6)]),
        ("harami_bull", [(10, 10, 9, 9), (9.6, 9.7, 9.2, 9.3)]),  # of one colour
        ("harami_bear", [(9, 10, 9, 10), (10, 10, 9, 9)]),  # as long as the first
        ("inside_bar", bars([(11, 9), (11, 9.1)])),
        ("inside_bar", bars([(11, 9), (10.9, 9)])),
        ("nr7", bars([(11, 9)] * 5 + [(10, 8.1), (10, 8.1)])),
        ("wide_range_bar", bars([(11, 10)] * 10 + [(12, 10)])),
        ("green_candle", [DOJI]),
        ("red_candle", [DOJI]),
        ("continuation_up", [(10.6, 12, 10, 11.5), (11.8, 12, 11, 11.5), (12, 12.1, 12, 12.1)]),  # a short first body
        ("continuation_up", [(10, 12, 10, 12), (11.8, 12.2, 11.1, 11.5), (11.6, 12.5, 11.5, 12.3)]),  # a wide rest
        ("continuation_up", [(10, 12, 10, 12), (11.5, 11.6, 10.9, 11.5), (11.6, 12.5, 11.5, 12.3)]),  # a deep one
        ("continuation_up", [(10, 12, 10, 12), (11.8, 12.1, 11.2, 11.5), (11.6, 12.5, 11.5, 12.1)]),  # no break
        ("continuation_down", [(12, 12, 10, 10), (10.2, 10.9, 9.9, 10.5), (10.4, 10.5, 9.5, 9.9)]),
    ],
)
def test_candles_just_miss_the_pattern(stem: str, candles: list[Candle]) -> None:
    assert after(candles, stem) == 0.0


@pytest.mark.parametrize(
    ("candles", "expected"),
    [
        ([UP], 1),
        ([UP, UP, UP], 3),
        ([UP, UP, DOWN], -1),
        ([UP, DOWN, DOWN], -2),
        ([UP, UP, DOJI], 0),
        ([UP, UP, DOJI, UP], 1),
        ([DOWN, DOJI, DOWN, DOWN], -2),
    ],
)
def test_candles_of_one_colour_are_counted(candles: list[Candle], expected: int) -> None:
    assert after(candles, "consecutive_candles") == expected


def test_shadows_are_measured_by_the_body() -> None:
    candle = (10.0, 13.0, 9.0, 12.0)
    assert [after([candle], f"{side}_shadow_ratio") for side in ("lower", "upper")] == [0.5, 0.5]
    assert after([(12.0, 13.0, 9.0, 11.0)], "lower_shadow_ratio") == 2.0
    assert after([candle], "candle_range") == 4.0
    assert np.isnan([after([DOJI], f"{side}_shadow_ratio") for side in ("lower", "upper")]).all()


def test_recent_extremes_are_those_of_ten_candles() -> None:
    candles = bars([(50, 1), *((20 + n, 10 - n / 10) for n in range(5)), *((15, 12) for _ in range(5))])
    assert (after(candles, "recent_high"), after(candles, "recent_low")) == (24.0, 9.6)


@pytest.mark.parametrize(
    ("highs", "expected"),
    [
        ([1, 2, 5, 3, 4], 5.0),
        ([1, 2, 5, 5, 4], np.nan),  # no higher than its neighbour
        ([5, 2, 5, 3, 4], np.nan),  # nor than the one before that
        ([1, 2, 5, 3, 4, 3, 2], 5.0),  # 4 stands out from its neighbours, but 5 is near
        ([1, 2, 5, 3, 2, 4, 3, 3], 4.0),
        ([1, 2, 5, 3, 2, 4, 3], 5.0),  # its second neighbour is missing yet
        ([1, 2, 5, 3, 4, *[4] * 40], 5.0),
    ],
)
def test_swing_stands_out_from_two_candles_on_each_side(highs: list[float], expected: float) -> None:
    candles = bars([(high, high - 0.5) for high in highs])
    upside_down = bars([(-high + 0.5, -high) for high in highs])
    assert after(candles, "swing_high") == pytest.approx(expected, nan_ok=True)
    assert after(upside_down, "swing_low") == pytest.approx(-expected, nan_ok=True)


# -- TA-Lib ------------------------------------------------------------------------------------------------------------


def coarse_walk(seed: int, count: int) -> tuple[F64, F64, F64, F64]:
    """Open, high, low, close on quarters, so that equal prices are frequent."""
    random = np.random.default_rng(seed)
    close = 50 + np.cumsum(random.choice([-0.5, -0.25, 0.0, 0.25, 0.5], count))
    open_ = np.concatenate([[50.0], close[:-1]]) + random.choice([-0.5, -0.25, 0.0, 0.0, 0.25, 0.5], count)
    high = np.maximum(open_, close) + random.choice([0.0, 0.0, 0.25], count)
    low = np.minimum(open_, close) - random.choice([0.0, 0.0, 0.25], count)
    return open_, high, low, close


def flags(stem: str, candles: tuple[F64, F64, F64, F64]) -> F64:
    series, one, out = Series(1, columns=COLUMNS, depth=24, reach=4), np.zeros(1, np.intp), []
    for minute, (o, h, low, c) in enumerate(zip(*candles, strict=True)):
        series.close(one, minute, *(np.array([x]) for x in (h, low, c, o, 100.0, 1.0)))
        out.append(PATTERNS[stem].of(View(series, one))[0])
    return np.array(out)


def test_engulfing_is_that_of_talib_where_both_candles_have_a_colour() -> None:
    candles = coarse_walk(1, 3000)
    theirs = talib.CDLENGULFING(*candles)
    coloured = np.concatenate([[False], (candles[0] != candles[3])[:-1]])
    for stem, sign in (("engulfing_bull", 1), ("engulfing_bear", -1)):
        ours = flags(stem, candles)
        np.testing.assert_array_equal(ours[coloured] == 1, np.sign(theirs)[coloured] == sign)
        assert np.nansum(ours) > 50


@pytest.mark.parametrize(
    ("stem", "function", "sign"),
    [
        ("piercing", talib.CDLPIERCING, 1),
        ("dark_cloud", talib.CDLDARKCLOUDCOVER, -1),
        ("harami_bull", talib.CDLHARAMI, 1),
        ("harami_bear", talib.CDLHARAMI, -1),
    ],
)
def test_what_talib_calls_by_the_name_is_one_of_ours(stem: str, function: object, sign: int) -> None:
    """Theirs asks for long or short bodies on top, its second candle may have any colour, and its harami any length."""
    candles = coarse_walk(2, 6000)
    assert callable(function)
    body = candles[3] - candles[0]
    theirs = (np.sign(function(*candles)) == sign) & (np.sign(body) == sign)
    if stem.startswith("harami"):
        theirs[1:] &= np.abs(body[1:]) < np.abs(body[:-1])
    assert np.count_nonzero(theirs) > 20
    assert (flags(stem, candles)[theirs] == 1).all()
