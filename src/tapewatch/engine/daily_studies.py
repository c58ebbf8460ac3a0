"""What the days before today come to, computed for many symbols at once.

Prices and volumes are in today's shares, dividends are not taken out. Days are trading days. Figures "of the last n
bars" run over a symbol's own bars in order, and a day without one is no bar; they stop at the newest day that the
history does not cover, and are unknown for a symbol without a `close_prev_day`. Figures "of the last n days" go by the
calendar, and are unknown for a symbol that is not known to have been listed on the first of them.

Averages that never forget are cut off where it no longer matters: EMA and Wilder averages are what TA-Lib (0.8, default
mode) gives for just as many bars as it takes for their seed to weigh less than `SEED_WEIGHT`. So they do not depend on
how much history there is, and are unknown with less.
"""

from dataclasses import dataclass
from functools import cached_property
from math import floor, log

import numpy as np

from tapewatch.engine.columns import F64, I32, Bool

YEAR_DAYS = 365
SEED_WEIGHT = 1e-4
YEAR_BARS = 252
FEWEST_RETURNS = 60
"""That a volatility and a beta need."""
WILDER = 14
BOLLINGER_BARS = 20
CHANGE_BARS = 20
CLOSE_WITHIN = 5
"""Trading days that a close may be old."""


def fading(n: int, alpha: float) -> F64:
    """Weights, the oldest first, of an average that starts with the mean of `n` values and then moves by the share
    `alpha` towards each new one, over as few values as leave the seed a weight below `SEED_WEIGHT`.
    """
    keep = 1.0 - alpha
    steps = floor(log(SEED_WEIGHT) / log(keep)) + 1
    return np.concatenate([np.full(n, keep**steps / n), alpha * keep ** np.arange(steps - 1, -1, -1)])


EMA_WEIGHTS = {n: fading(n, 2 / (n + 1)) for n in (9, WILDER, 21, 50)}
WILDER_WEIGHTS = fading(WILDER, 1 / WILDER)
_BARS = max(YEAR_BARS + 1, *(len(weights) for weights in EMA_WEIGHTS.values()))
"""As many bars as any figure looks at."""


def known_at_end(covered: Bool) -> int:
    """How many at the end are true without a hole."""
    holes = np.flatnonzero(~covered)
    return len(covered) - (int(holes[-1]) + 1 if len(holes) else 0)


@dataclass(frozen=True, kw_only=True)
class Past:
    """The days before `today` of some symbols. Matrices have shape (days, symbols); NaN is no bar. Not without days."""

    today: int
    days: I32
    full: Bool
    """Days that were not cut short."""
    covered: Bool
    """Days of which the history is there."""
    normal: Bool
    """Shape (days, symbols): false where a symbol was halted."""
    open: F64
    high: F64
    low: F64
    close: F64
    volume: F64
    market: F64
    """Shape (days,): closes of the market."""

    @property
    def unknown(self) -> F64:
        return np.full(self.close.shape[1], np.nan)

    @cached_property
    def known(self) -> int:
        """Days up to today without a hole in the history."""
        return known_at_end(self.covered)

    @cached_property
    def traded(self) -> Bool:
        return ~np.isnan(self.close)

    @cached_property
    def first(self) -> I32:
        """Row of each symbol's first bar; the number of days where it has none."""
        return np.where(self.traded.any(axis=0), self.traded.argmax(axis=0), len(self.days)).astype(np.int32)

    @cached_property
    def close_prev(self) -> F64:
        return self.close_before(1)

    @cached_property
    def bars(self) -> dict[str, F64]:
        """The newest bars of each symbol as open, high, low and close of shape (`_BARS`, symbols), the newest last and
        NaN before the oldest.
        """
        rows = slice(len(self.days) - self.known, None)
        traded, stale = self.traded[rows], np.isnan(self.close_prev)
        holed = np.flatnonzero((traded[:-1] & ~traded[1:]).any(axis=0))
        order = np.argsort(traded[:, holed], axis=0, kind="stable")
        columns = {}
        for name in ("open", "high", "low", "close"):
            days = getattr(self, name)[rows]
            column = np.full((max(_BARS, len(days)), days.shape[1]), np.nan)
            column[len(column) - len(days) :] = days
            if len(days):
                column[len(column) - len(days) :, holed] = np.take_along_axis(days[:, holed], order, axis=0)
            column[:, stale] = np.nan
            columns[name] = column[-_BARS:]
        return columns

    @cached_property
    def true_range(self) -> F64:
        """Of each bar but the oldest."""
        high, low, prev = self.bars["high"][1:], self.bars["low"][1:], self.bars["close"][:-1]
        return np.maximum(high - low, np.maximum(np.abs(high - prev), np.abs(low - prev)))

    # -- by the calendar ----------------------------------------------------------------------------------------------

    def prev_day(self, column: str) -> F64:
        values: F64 = getattr(self, column)[-1]
        return values.copy() if self.covered[-1] else self.unknown

    def close_before(self, days: int) -> F64:
        """The last close up to that many days before today, not older than five trading days."""
        end = len(self.days) - days + 1
        out = self.unknown
        if end > 0:
            start = max(0, end - CLOSE_WITHIN)
            for close in self.close[end - known_at_end(self.covered[start:end]) : end]:
                out = np.where(np.isnan(close), out, close)
        return out

    def close_last_year(self) -> F64:
        years = np.append(self.days, self.today).astype("datetime64[D]").astype("datetime64[Y]")
        this_year = int(np.count_nonzero(years[:-1] == years[-1]))
        return self.close_before(this_year + 1)

    def change_prev_day(self) -> F64:
        return (self.prev_day("close") / self.close_before(2) - 1.0) * 100.0

    def mean_volume(self, n: int) -> F64:
        window, out = np.flatnonzero(self.full)[-n:], self.unknown
        if len(window) < n or not self.covered[window[0] :].all():
            return out
        normal = self.normal[window]
        counted = normal.sum(axis=0)
        known = (self.first <= window[0]) & (counted * 2 >= n)
        total = (np.nan_to_num(self.volume[window]) * normal).sum(axis=0)
        out[known] = total[known] / counted[known]
        return out

    def high_of(self, n: int) -> F64:
        return self._of_days(n, np.fmax.reduce(self.high[-n:], axis=0))

    def low_of(self, n: int) -> F64:
        return self._of_days(n, np.fmin.reduce(self.low[-n:], axis=0))

    def range_pct(self, n: int) -> F64:
        return self._of_days(n, np.fmax.reduce((self.high[-n:] / self.low[-n:] - 1.0) * 100.0, axis=0))

    def _of_days(self, n: int, found: F64) -> F64:
        """Where the last `n` days are known and the symbol was listed on the first of them."""
        if self.known < n:
            return self.unknown
        return np.where(self.first <= len(self.days) - n, found, np.nan)

    def extreme_year(self, values: F64, *, high: bool) -> F64:
        """The highest (or lowest) of the 365 days before today, or since the listing."""
        year = self.days >= self.today - YEAR_DAYS
        if not self.covered[year].all() or self.days[0] > self.today - YEAR_DAYS + CLOSE_WITHIN:
            return self.unknown
        found: F64 = (np.fmax if high else np.fmin).reduce(values[year], axis=0, initial=np.nan)
        return found

    # -- bar by bar ---------------------------------------------------------------------------------------------------

    def sma(self, n: int) -> F64:
        mean: F64 = self.bars["close"][-n:].mean(axis=0)
        return mean

    def ema(self, n: int) -> F64:
        return _weigh(EMA_WEIGHTS[n], self.bars["close"])

    def atr(self, weights: F64) -> F64:
        return _weigh(weights, self.true_range)

    def rsi(self) -> F64:
        change = np.diff(self.bars["close"][-len(WILDER_WEIGHTS) - 1 :], axis=0)
        gain = _weigh(WILDER_WEIGHTS, np.maximum(change, 0.0))
        both = gain + _weigh(WILDER_WEIGHTS, np.maximum(-change, 0.0))
        return 100.0 * gain / np.where(both == 0, 1.0, both)

    def bollinger(self, sigmas: float) -> F64:
        close = self.bars["close"][-BOLLINGER_BARS:]
        apart = close - close[-1]  # of equal closes exactly zero
        band: F64 = close[-1] + apart.mean(axis=0) + sigmas * apart.std(axis=0)
        return band

    def stdev_change(self) -> F64:
        close = self.bars["close"][-CHANGE_BARS - 1 :]
        sigma: F64 = ((close[1:] / close[:-1] - 1.0) * 100.0).std(axis=0)
        return sigma

    def volatility(self) -> F64:
        close = self.bars["close"][-YEAR_BARS - 1 :]
        returns = np.log(close[1:] / close[:-1])
        count = np.count_nonzero(~np.isnan(returns), axis=0)
        mean = np.nansum(returns, axis=0) / count
        variance = np.nansum((returns - mean) ** 2, axis=0) / (count - 1)
        return np.where(count >= FEWEST_RETURNS, np.sqrt(variance * YEAR_BARS) * 100.0, np.nan)

    def candles_in_a_row(self) -> F64:
        """Unknown where they reach back to the first day of the history that is known."""
        body = np.sign(self.bars["close"] - self.bars["open"])[::-1]
        same = np.logical_and.accumulate(body == body[0], axis=0)
        run = np.count_nonzero(same, axis=0)
        bars = np.count_nonzero(~np.isnan(body), axis=0)
        since_listing = self.first > len(self.days) - self.known
        return np.where((body[0] == 0) | (run < bars) | since_listing, run * body[0], np.nan)

    def beta(self) -> F64:
        """Over returns from one trading day to the next of which both closes are known."""
        rows = min(self.known, YEAR_BARS + 1)
        own, market = self.close[len(self.days) - rows :], self.market[len(self.days) - rows :, None]
        own, market = own[1:] / own[:-1] - 1.0, market[1:] / market[:-1] - 1.0
        common = ~np.isnan(own) & ~np.isnan(market)
        count = np.count_nonzero(common, axis=0)
        own, market = np.where(common, own, 0.0), np.where(common, market, 0.0)
        apart = np.where(common, market - market.sum(axis=0) / count, 0.0)
        variance = (apart * apart).sum(axis=0)
        slope: F64 = (apart * own).sum(axis=0) / variance
        return np.where((count >= FEWEST_RETURNS) & (variance > 0), slope, np.nan)


def _weigh(weights: F64, values: F64) -> F64:
    """The weighted sum of the last rows; unknown where one of them is."""
    total: F64 = np.einsum("r,rs->s", weights, values[-len(weights) :])
    return total
