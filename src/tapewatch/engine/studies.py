"""Studies of closed candles: averages, oscillators, bands. One table says what each is and computes it.

What runs from candle to candle is in `averages`; the others look at the newest candles. Formulas are those of TA-Lib
0.8 in its default mode, and a study is known from the candle on that gives TA-Lib its first value.
"""

from collections.abc import Callable

import numpy as np

from tapewatch.engine.averages import WILDER, Atr, Directional, Ema, Macd, Rsi, Sma, exponential
from tapewatch.engine.columns import F64
from tapewatch.engine.series import Part, Study, View

_STOCHASTIC, _SLOW = 14, 3
_BAND = 20


def _state(part: Part, row: int = 0) -> Callable[[View], F64]:
    def value(view: View) -> F64:
        state: F64 = view.state(part)[row]
        return state

    return value


def _rsi(view: View) -> F64:
    gain, loss = view.state(Rsi())
    both = gain + loss
    rsi: F64 = 100.0 * gain / np.where(both == 0, 1.0, both)
    return rsi


def _sma(n: int) -> Callable[[View], F64]:
    def value(view: View) -> F64:
        mean: F64 = view.state(Sma(n))[0] / n
        return mean

    return value


def _macd_line(view: View) -> F64:
    fast, slow, _ = view.state(Macd())
    line: F64 = fast - slow
    return line


def _macd_histogram(view: View) -> F64:
    histogram: F64 = _macd_line(view) - view.state(Macd())[2]
    return histogram


def _places(view: View) -> F64:
    """Where the last 5 closes stand in the range of the 14 candles up to theirs, shape (5, symbols); 0 to 100."""
    last, whole = 2 * _SLOW - 1, _STOCHASTIC + 2 * _SLOW - 2
    highest = _highest(view.window("high", whole))
    lowest = -_highest(-view.window("low", whole))
    span = highest - lowest
    return np.where(span > 0, 100.0 * (view.window("close", last) - lowest) / np.where(span > 0, span, 1.0), 0.0)


def _highest(values: F64) -> F64:
    """Of each 14 consecutive rows; those that start among the first rows share the rows that all of them hold."""
    starts = len(values) - _STOCHASTIC + 1
    highest = np.empty((starts, values.shape[1]))
    highest[:] = values[starts - 1 : _STOCHASTIC].max(axis=0)
    for start in range(starts - 2, -1, -1):
        np.maximum(values[start], highest[start + 1], out=highest[start])
    after = values[_STOCHASTIC:]
    for start in range(1, starts):
        np.maximum(highest[start], after[:start].max(axis=0), out=highest[start])
    return highest


def _stochastic(view: View, smoothed: int) -> F64:
    places = view.once(_places, lambda: _places(view))
    for _ in range(smoothed):
        places = (places[:-2] + places[1:-1] + places[2:]) / _SLOW
    newest: F64 = places[0]
    return newest


def _spread(view: View) -> tuple[F64, F64]:
    close = view.window("close", _BAND)
    mean = close.mean(axis=0)
    return mean, np.sqrt(((close - mean) ** 2).mean(axis=0))


def _band(sigmas: float) -> Callable[[View], F64]:
    def value(view: View) -> F64:
        mean, sigma = view.once(_spread, lambda: _spread(view))
        return mean + sigmas * sigma

    return value


def _line_end(view: View) -> F64:
    x = np.arange(_BAND - 1, -1, -1.0)  # the newest candle is the last of the line
    middle = x.mean()
    weights = 1.0 / _BAND + (x[0] - middle) * (x - middle) / ((x - middle) ** 2).sum()
    end: F64 = weights @ view.window("close", _BAND)
    return end


def _mean_volume(n: int) -> Callable[[View], F64]:
    def value(view: View) -> F64:
        mean: F64 = view.window("volume", n).sum(axis=0) / n
        return mean

    return value


def _indicator(side: int) -> Callable[[View], F64]:
    return lambda view: Directional.indicators(view.state(Directional()))[side]


_MACD_CANDLES = Macd.slow + Macd.signal - 1
_STOCHASTIC_CANDLES = _STOCHASTIC + 2 * (_SLOW - 1)

STUDIES: dict[str, Study] = {
    **{
        f"ema_{n}": Study(
            unit="$",
            formula=f"exponential average of {n} closes",
            source="TA-Lib EMA",
            candles=n,
            part=Ema(n),
            value=_state(Ema(n)),
        )
        for n in (9, 20, 21, 50, 200)
    },
    **{
        f"sma_{n}": Study(
            unit="$",
            formula=f"mean of the last {n} closes",
            source="TA-Lib SMA",
            candles=n,
            part=Sma(n),
            value=_sma(n),
        )
        for n in (5, 8, 10, 20, 50, 130, 200)
    },
    "rsi_14": Study(
        unit="index",
        formula="Wilder's relative strength of 14 changes of the close: 100 * mean gain / (mean gain + mean loss)",
        source="TA-Lib RSI",
        candles=WILDER + 1,
        part=Rsi(),
        value=_rsi,
    ),
    "atr_14": Study(
        unit="$",
        formula="Wilder's average of the true range over 14 candles",
        source="TA-Lib ATR",
        candles=WILDER + 1,
        part=Atr(),
        value=_state(Atr()),
    ),
    "atr_ema_14": Study(
        unit="$",
        formula="exponential average of the true range over 14 candles, which begins as the mean of the first 14",
        source="TA-Lib EMA of TRANGE",
        candles=WILDER + 1,
        part=Atr(follow=exponential),
        value=_state(Atr(follow=exponential)),
    ),
    "macd": Study(
        unit="$",
        formula="exponential average of 12 closes less that of 26",
        source="TA-Lib MACD",
        candles=_MACD_CANDLES,
        part=Macd(),
        value=_macd_line,
    ),
    "macd_signal": Study(
        unit="$",
        formula="exponential average of 9 values of the MACD",
        source="TA-Lib MACD",
        candles=_MACD_CANDLES,
        part=Macd(),
        value=_state(Macd(), 2),
    ),
    "macd_histogram": Study(
        unit="$",
        formula="MACD less its signal",
        source="TA-Lib MACD",
        candles=_MACD_CANDLES,
        part=Macd(),
        value=_macd_histogram,
    ),
    "stochastic_k": Study(
        unit="index",
        formula="mean of 3 values of 100 * (close - low) / (high - low), high and low of 14 candles",
        source="TA-Lib STOCH",
        candles=_STOCHASTIC_CANDLES,
        value=lambda view: _stochastic(view, 1),
    ),
    "stochastic_d": Study(
        unit="index",
        formula="mean of 3 values of stochastic K",
        source="TA-Lib STOCH",
        candles=_STOCHASTIC_CANDLES,
        value=lambda view: _stochastic(view, 2),
    ),
    **{
        f"bollinger_{name}": Study(
            unit="$",
            formula=f"mean of the last 20 closes {word} 2 standard deviations of these (of the population)",
            source="TA-Lib BBANDS",
            candles=_BAND,
            value=_band(sigmas),
        )
        for name, word, sigmas in (("upper", "plus", 2.0), ("lower", "less", -2.0))
    },
    **{
        f"di_{name}_14": Study(
            unit="index",
            formula=f"Wilder's {name} directional indicator over 14 candles; 0 where nothing moved",
            source=f"TA-Lib {name.upper()}_DI",
            candles=WILDER + 1,
            part=Directional(),
            value=_indicator(side),
        )
        for side, name in enumerate(("plus", "minus"))
    },
    "adx_14": Study(
        unit="index",
        formula="Wilder's average of 14 values of 100 * abs(+DI - -DI) / (+DI + -DI)",
        source="TA-Lib ADX",
        candles=2 * WILDER,
        part=Directional(),
        value=_state(Directional(), 3),
    ),
    "linreg_20": Study(
        unit="$",
        formula="where the straight line through the last 20 closes (least squares) stands at the newest",
        source="TA-Lib LINEARREG",
        candles=_BAND,
        value=_line_end,
    ),
    **{
        f"candle_volume_avg_{n}": Study(
            unit="shares",
            formula=f"mean volume of the {n} closed candles before the running one",
            source="field",
            candles=n,
            value=_mean_volume(n),
        )
        for n in (2, 10)
    },
}
