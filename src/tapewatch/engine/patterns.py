"""What candles look like: flags of the newest closed candle, its shadows, and the runs and extremes it belongs to.

A flag is 1 or 0. Words used below, of one candle: it is *green* if it closes above its open, *red* if below; its *body*
lies between open and close; its *range* is high less low; its *shadows* are what the range has above and below the
body. "First", "second" and "third" are candles in the order of time, the last named being the newest closed one.

Of TA-Lib's candle functions these take the geometry. Theirs also ask whether a body is "long" or "short", by averages
over the ten candles before; ours do not, so they fire more often and depend on the named candles alone.

* doji: the body is at most a tenth of the range, and there is a range. (CDLDOJI measures by the mean range.)
* hammer: a body; the lower shadow is at least twice the body, the upper one at most a tenth of the range; and prices
  fell before: the close before the candle is below the close three candles earlier. hanging_man: the same candle after
  prices rose. (CDLHAMMER and CDLHANGINGMAN look at one candle before.)
* engulfing_bull: red, then green; the second body covers the first and reaches beyond it on at least one side.
  engulfing_bear: the colours exchanged. (CDLENGULFING, which takes a first candle without a body for a green one.)
* harami_bull: red, then green; the second body lies within the first, which reaches beyond it on at least one side.
  harami_bear: the colours exchanged. (CDLHARAMI also takes a second candle of the same colour, if it is short.)
* piercing: red, then green that opens below the first low and closes above the middle of the first body but below its
  open. dark_cloud: the mirror image. (CDLPIERCING and CDLDARKCLOUDCOVER with penetration 0.5.)
* inside_bar: a lower high and a higher low than the candle before.
* nr7: a smaller range than each of the six candles before.
* wide_range_bar: a range of more than twice the mean range of the ten candles before.
* continuation_up, "1-2-3": a green candle whose body is at least half of its range; then one of at most half that
  range, which stays in the upper half of the first; then a green one that closes above the highs of both.
  continuation_down: the mirror image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tapewatch.engine.columns import F64, I64, Bool
from tapewatch.engine.frozen import Carried
from tapewatch.engine.series import Bar, Part, Study, View

_RECENT = 10
_DOJI = 0.1
_SHADOW = 2.0
_STUB = 0.1
_WIDE = 2.0


@dataclass(frozen=True)
class Streak:
    """Candles of one colour in a row."""

    rows = 1
    blank = 0.0
    closes = 0

    def step(self, state: F64, i: I64, bar: Bar) -> None:
        del i
        colour = np.sign(bar.close - bar.open)
        state[0] = np.where(np.sign(state[0]) == colour, state[0], 0.0) + colour


@dataclass(frozen=True)
class Swing:
    """The newest candle that stands out from the two on each side."""

    side: int
    """1: a high. -1: a low."""
    rows = 1
    blank = np.nan
    closes = 0

    def step(self, state: F64, i: I64, bar: Bar) -> None:
        extremes = [bar.ago("high" if self.side > 0 else "low", back) for back in range(5)]
        middle = extremes.pop(2)
        stands_out = i >= 4
        for beside in extremes:
            stands_out &= (middle - beside) * self.side > 0
        state[0] = np.where(stands_out, middle, state[0])


@dataclass(frozen=True)
class Candle:
    """One closed candle of each of some symbols."""

    open: F64
    high: F64
    low: F64
    close: F64

    @classmethod
    def of(cls, view: View, back: int) -> "Candle":
        """`back` 1 is the newest."""

        def make() -> "Candle":
            o, h, low, c = (view.window(column, back)[back - 1] for column in ("open", "high", "low", "close"))
            return cls(open=o, high=h, low=low, close=c)

        return view.once((cls, back), make)

    @cached_property
    def mirrored(self) -> "Candle":
        """Upside down, so that what holds of rises can be asked of falls."""
        return Candle(open=-self.open, high=-self.low, low=-self.high, close=-self.close)

    @cached_property
    def green(self) -> Bool:
        return self.close > self.open

    @cached_property
    def red(self) -> Bool:
        return self.close < self.open

    @cached_property
    def top(self) -> F64:
        return np.maximum(self.open, self.close)

    @cached_property
    def bottom(self) -> F64:
        return np.minimum(self.open, self.close)

    @cached_property
    def body(self) -> F64:
        return np.abs(self.close - self.open)

    @cached_property
    def range(self) -> F64:
        return self.high - self.low

    @cached_property
    def upper_shadow(self) -> F64:
        return self.high - self.top

    @cached_property
    def lower_shadow(self) -> F64:
        return self.bottom - self.low

    def holds(self, other: "Candle") -> Bool:
        """The other's body lies within this one's, which is the longer."""
        within: Bool = (self.bottom <= other.bottom) & (self.top >= other.top) & (self.body > other.body)
        return within


Shape = Callable[[View], Bool]
Bullish = Callable[[Candle, Candle], Bool]


def _doji(view: View) -> Bool:
    candle = Candle.of(view, 1)
    return (candle.range > 0) & (candle.body <= _DOJI * candle.range)


def _hammer(side: int) -> Shape:
    """`side` 1 after a rise, -1 after a fall."""

    def shape(view: View) -> Bool:
        candle, close = Candle.of(view, 1), view.window("close", 5)
        long_below = (candle.body > 0) & (candle.lower_shadow >= _SHADOW * candle.body)
        turns: Bool = long_below & (candle.upper_shadow <= _STUB * candle.range) & ((close[1] - close[4]) * side > 0)
        return turns

    return shape


def _engulfing(first: Candle, second: Candle) -> Bool:
    return first.red & second.green & second.holds(first)


def _harami(first: Candle, second: Candle) -> Bool:
    return first.red & second.green & first.holds(second)


def _piercing(first: Candle, second: Candle) -> Bool:
    opens_below = first.red & second.green & (second.open < first.low)
    return opens_below & (second.close > (first.open + first.close) / 2) & (second.close < first.open)


def _bull(shape: Bullish) -> Shape:
    return lambda view: shape(Candle.of(view, 2), Candle.of(view, 1))


def _bear(shape: Bullish) -> Shape:
    return lambda view: shape(Candle.of(view, 2).mirrored, Candle.of(view, 1).mirrored)


def _continuation(first: Candle, second: Candle, third: Candle) -> Bool:
    strong = first.green & (first.body >= first.range / 2)
    rests = (second.range <= first.range / 2) & (second.low >= (first.high + first.low) / 2)
    return strong & rests & third.green & (third.close > np.maximum(first.high, second.high))


def _continuation_up(view: View) -> Bool:
    return _continuation(*(Candle.of(view, back) for back in (3, 2, 1)))


def _continuation_down(view: View) -> Bool:
    return _continuation(*(Candle.of(view, back).mirrored for back in (3, 2, 1)))


def _inside(view: View) -> Bool:
    before, candle = Candle.of(view, 2), Candle.of(view, 1)
    return (candle.high < before.high) & (candle.low > before.low)


def _ranges(view: View, candles: int) -> F64:
    ranges: F64 = view.window("high", candles) - view.window("low", candles)
    return ranges


def _narrowest(view: View) -> Bool:
    ranges = _ranges(view, 7)
    narrowest: Bool = ranges[0] < ranges[1:].min(axis=0)
    return narrowest


def _wide(view: View) -> Bool:
    ranges = _ranges(view, 11)
    wide: Bool = ranges[0] > _WIDE * ranges[1:].mean(axis=0)
    return wide


def _shadow_ratio(shadow: Callable[[Candle], F64]) -> Callable[[View], F64]:
    def value(view: View) -> F64:
        candle = Candle.of(view, 1)
        bodiless = candle.body == 0
        return np.where(bodiless, np.nan, shadow(candle) / np.where(bodiless, 1.0, candle.body))

    return value


def _state_of(part: Part) -> Callable[[View], F64]:
    def value(view: View) -> F64:
        state: F64 = view.state(part)[0]
        return state

    return value


def _flag(candles: int, formula: str, shape: Shape, source: str = "field") -> Study:
    return Study(
        unit="flag",
        formula=f"1 if the newest closed candle {formula}, else 0",
        source=source,
        candles=candles,
        value=lambda view: shape(view).astype(np.float64),
    )


PATTERNS: dict[str, Study] = {
    "doji": _flag(1, "has a range, and a body of at most a tenth of it", _doji, "CDLDOJI, by its own range"),
    "hammer": _flag(
        5,
        "has a lower shadow of at least twice its body and an upper one of at most a tenth of its range, after a fall "
        "(the close before it is below the close 3 candles earlier)",
        _hammer(-1),
    ),
    "hanging_man": _flag(
        5,
        "has a lower shadow of at least twice its body and an upper one of at most a tenth of its range, after a rise "
        "(the close before it is above the close 3 candles earlier)",
        _hammer(1),
    ),
    "engulfing_bull": _flag(
        2, "is green and its body covers the red body before it", _bull(_engulfing), "TA-Lib CDLENGULFING"
    ),
    "engulfing_bear": _flag(
        2, "is red and its body covers the green body before it", _bear(_engulfing), "TA-Lib CDLENGULFING"
    ),
    "piercing": _flag(
        2,
        "is green, opens below the low of a red one and closes in the upper half of its body",
        _bull(_piercing),
        "TA-Lib CDLPIERCING, bodies of any length",
    ),
    "dark_cloud": _flag(
        2,
        "is red, opens above the high of a green one and closes in the lower half of its body",
        _bear(_piercing),
        "TA-Lib CDLDARKCLOUDCOVER, bodies of any length",
    ),
    "harami_bull": _flag(2, "is green and its body lies within the red body before it", _bull(_harami)),
    "harami_bear": _flag(2, "is red and its body lies within the green body before it", _bear(_harami)),
    "inside_bar": _flag(2, "has a lower high and a higher low than the one before it", _inside),
    "nr7": _flag(7, "has a smaller range than each of the 6 before it", _narrowest),
    "wide_range_bar": _flag(11, "has a range of more than twice the mean range of the 10 before it", _wide),
    "green_candle": _flag(1, "closed above its open", lambda view: Candle.of(view, 1).green),
    "red_candle": _flag(1, "closed below its open", lambda view: Candle.of(view, 1).red),
    "continuation_up": _flag(
        3,
        "is green and closes above the highs of the two before it: a green one with a body of at least half its range, "
        "and one of at most half that range in its upper half",
        _continuation_up,
    ),
    "continuation_down": _flag(
        3,
        "is red and closes below the lows of the two before it: a red one with a body of at least half its range, and "
        "one of at most half that range in its lower half",
        _continuation_down,
    ),
    "lower_shadow_ratio": Study(
        unit="ratio",
        formula="lower shadow of the newest closed candle / its body; unknown without a body",
        source="field",
        candles=1,
        value=_shadow_ratio(lambda candle: candle.lower_shadow),
    ),
    "upper_shadow_ratio": Study(
        unit="ratio",
        formula="upper shadow of the newest closed candle / its body; unknown without a body",
        source="field",
        candles=1,
        value=_shadow_ratio(lambda candle: candle.upper_shadow),
    ),
    "candle_range": Study(
        unit="$",
        formula="high less low of the newest closed candle",
        source="field",
        candles=1,
        value=lambda view: Candle.of(view, 1).range,
    ),
    "consecutive_candles": Study(
        unit="candles",
        formula="closed candles of one colour in a row, + green, - red; 0 after one that closed where it opened",
        source="field",
        candles=1,
        part=Streak(),
        value=_state_of(Streak()),
    ),
    "recent_high": Study(
        unit="$",
        formula="highest price of the last 10 closed candles",
        source="field",
        candles=_RECENT,
        value=lambda view: view.window("high", _RECENT).max(axis=0),
    ),
    "recent_low": Study(
        unit="$",
        formula="lowest price of the last 10 closed candles",
        source="field",
        candles=_RECENT,
        value=lambda view: view.window("low", _RECENT).min(axis=0),
    ),
    "swing_high": Study(
        unit="$",
        formula="high of the newest closed candle that stands above the highs of the two candles on each side",
        source="field",
        candles=5,
        part=Swing(1),
        value=_state_of(Swing(1)),
    ),
    "swing_low": Study(
        unit="$",
        formula="low of the newest closed candle that stands below the lows of the two candles on each side",
        source="field",
        candles=5,
        part=Swing(-1),
        value=_state_of(Swing(-1)),
    ),
}

PATTERN_CARRIED = (Carried(Streak, by_value=True), Carried(Swing, by_value=True))
