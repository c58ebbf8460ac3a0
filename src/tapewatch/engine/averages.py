"""Averages that run from candle to candle, and what is made of them: RSI, ATR, MACD, directional movement.

Formulas and seeds are those of TA-Lib 0.8 in its default mode:

* exponential (EMA): the first value is the mean of the first n, then ``e += 2 / (n + 1) * (x - e)``;
* Wilder's: the first value is the mean of the first n, then ``((n - 1) * a + x) / n``;
* simple (SMA): the mean of the last n, from a running sum.

What depends on the candle before (a change, a true range) begins with the second candle.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tapewatch.engine.columns import F64, I64
from tapewatch.engine.frozen import Carried
from tapewatch.engine.series import Bar

WILDER = 14

Follow = Callable[[F64, F64, int], F64]


def wilder(average: F64, x: F64, n: int) -> F64:
    return ((n - 1) * average + x) / n


def exponential(average: F64, x: F64, n: int) -> F64:
    return average + 2.0 / (n + 1) * (x - average)


def seeded(i: I64, average: F64, x: F64, n: int, follow: Follow) -> F64:
    """One step of an average that begins as the mean of its first n values; until then it is their sum. Before value 0
    (`i` < 0), nothing.
    """
    result = follow(average, x, n)
    cold = np.flatnonzero(i < n)
    if len(cold):
        began = i[cold]
        summed = average[cold] + np.where(began < 0, 0.0, x[cold])
        result[cold] = np.where(began == n - 1, summed / n, summed)
    return result


@dataclass(frozen=True)
class Rsi:
    n: int = WILDER
    rows = 2
    blank = 0.0
    closes = 1

    def step(self, state: F64, i: I64, bar: Bar) -> None:
        state[0] = seeded(i - 1, state[0], np.maximum(bar.change, 0.0), self.n, wilder)
        state[1] = seeded(i - 1, state[1], np.maximum(-bar.change, 0.0), self.n, wilder)


@dataclass(frozen=True)
class Atr:
    follow: Follow = wilder
    n: int = WILDER
    rows = 1
    blank = 0.0
    closes = 1

    def step(self, state: F64, i: I64, bar: Bar) -> None:
        state[0] = seeded(i - 1, state[0], bar.true_range, self.n, self.follow)


@dataclass(frozen=True)
class Sma:
    n: int
    rows = 1
    blank = 0.0

    @property
    def closes(self) -> int:
        return self.n

    def step(self, state: F64, i: I64, bar: Bar) -> None:
        state[0] += bar.close - np.where(i >= self.n, bar.close_ago(self.n), 0.0)


@dataclass(frozen=True)
class Ema:
    n: int
    rows = 1
    blank = 0.0
    closes = 0

    def step(self, state: F64, i: I64, bar: Bar) -> None:
        state[0] = seeded(i, state[0], bar.close, self.n, exponential)


@dataclass(frozen=True)
class Macd:
    """The two averages begin together, with candle `slow`; the line's own average nine candles on."""

    fast: int = 12
    slow: int = 26
    signal: int = 9
    rows = 3
    blank = 0.0
    closes = 0

    def step(self, state: F64, i: I64, bar: Bar) -> None:
        state[0] = seeded(i - (self.slow - self.fast), state[0], bar.close, self.fast, exponential)
        state[1] = seeded(i, state[1], bar.close, self.slow, exponential)
        state[2] = seeded(i - (self.slow - 1), state[2], state[0] - state[1], self.signal, exponential)


@dataclass(frozen=True)
class Directional:
    """Wilder's +DM, -DM and true range as running sums, and the ADX."""

    n: int = WILDER
    rows = 4
    blank = 0.0
    closes = 1

    def step(self, state: F64, i: I64, bar: Bar) -> None:
        up, down = bar.high - bar.ago("high", 1), bar.ago("low", 1) - bar.low
        moves = (np.where((up > 0) & (up > down), up, 0.0), np.where((down > 0) & (down > up), down, 0.0))
        for row, x in enumerate((*moves, bar.true_range)):
            decayed = np.where(i < self.n, state[row], state[row] - state[row] / self.n)
            state[row] = decayed + np.where(i < 1, 0.0, x)
        plus, minus = self.indicators(state)
        both = plus + minus
        flat = both == 0
        dx = 100.0 * np.abs(plus - minus) / np.where(flat, 1.0, both)
        began = i - self.n
        averaged = seeded(began, state[3], dx, self.n, wilder)
        state[3] = np.where(flat & (began >= self.n), state[3], averaged)

    @staticmethod
    def indicators(state: F64) -> tuple[F64, F64]:
        """+DI and -DI; 0 where nothing moved."""
        moved = np.where(state[2] == 0, 1.0, state[2])
        return 100.0 * state[0] / moved, 100.0 * state[1] / moved


AVERAGE_CARRIED = tuple(Carried(part, by_value=True) for part in (Rsi, Atr, Sma, Ema, Macd, Directional))
FOLLOWS: dict[str, Follow] = {"wilder": wilder, "exponential": exponential}
