"""Extremes that no candle remembers: what was new at the newest scan, the path of the price since the one before it,
opening ranges, and the largest trade of a minute.
"""

from typing import Any

import numpy as np

from tapewatch.engine.calendar import Session
from tapewatch.engine.candles import Candles
from tapewatch.engine.columns import F64, I64, Bool
from tapewatch.engine.frozen import Carried
from tapewatch.engine.symbols import Index

OPENING_MINUTES = (1, 2, 5, 10, 15, 30, 60)
_RECENT_MINUTES = 4


class NewExtremes:
    """Highs and lows of the day's sessions as they stood at the newest scan and at the one before it.

    The first scan learns them, and so does the first price of a day or session: there is nothing to exceed.
    """

    def __init__(self, capacity: int) -> None:
        self.scanned = False
        """There has been a scan to compare with; until then everything is unknown."""
        self.high, self.high_before = np.full((2, 3, capacity), -np.inf)
        """Pre-market, regular session, post-market."""
        self.low, self.low_before = np.full((2, 3, capacity), np.inf)
        self.highs, self.lows = np.zeros((2, capacity))
        """Scans of the day at which its high (low) was new."""

    def scan(self, sessions: Candles) -> None:
        """A scan looks at the sessions."""
        high, low = sessions.high[Session.PRE :].copy(), sessions.low[Session.PRE :].copy()
        self.high_before, self.low_before = (self.high, self.low) if self.scanned else (high, low)
        self.high, self.low, self.scanned = high, low, True
        self.highs += self.new("high")
        self.lows += self.new("low")

    def of(self, which: str, session: int | None, *, before: bool = False) -> F64:
        """``high`` or ``low`` of a session, or (None) of the day, infinite without a price; shape (capacity,)."""
        rows: F64 = getattr(self, f"{which}_before" if before else which)
        one: F64
        if session is not None:
            one = rows[session - Session.PRE]
        else:
            one = rows.max(axis=0) if which == "high" else rows.min(axis=0)
        return one

    def new(self, which: str, session: int | None = None) -> Bool:
        """Where the newest scan saw an extreme that exceeds one from before it."""
        now, before = self.of(which, session), self.of(which, session, before=True)
        exceeds: Bool = ((now > before) if which == "high" else (now < before)) & np.isfinite(before)
        return exceeds

    def amend(self, symbol: int, sessions: Candles) -> None:
        """A print was withdrawn or corrected: what it alone had reached was never reached."""
        for rows in (self.high, self.high_before):
            rows[:, symbol] = np.minimum(rows[:, symbol], sessions.high[Session.PRE :, symbol])
        for rows in (self.low, self.low_before):
            rows[:, symbol] = np.maximum(rows[:, symbol], sessions.low[Session.PRE :, symbol])

    def begin_day(self) -> None:
        scanned = self.scanned
        self.__dict__.update(NewExtremes(len(self.highs)).__dict__)
        self.scanned = scanned

    def resize(self, capacity: int) -> None:
        grown = NewExtremes(capacity)
        _carry(self, grown, ("high", "high_before", "low", "low_before", "highs", "lows"))
        grown.scanned = self.scanned
        self.__dict__.update(grown.__dict__)


class Path:
    """Between which prices the last price moved from one scan to the next."""

    def __init__(self, capacity: int) -> None:
        self.highest, self.lowest = np.full((2, capacity), np.nan)
        """As the newest scan saw them."""
        self._high, self._low = np.full(capacity, -np.inf), np.full(capacity, np.inf)

    def add(self, at: Index, price: F64, ts_ns: I64, *, times: I64, ordered: bool) -> None:
        """These prints came; `times` says when each symbol's last price was set before them."""
        if not ordered and len(at):
            setting = _setting(at, ts_ns, times)
            at, price = at[setting], price[setting]
        np.maximum.at(self._high, at, price)
        np.minimum.at(self._low, at, price)

    def scan(self, price: F64) -> None:
        self.highest, self.lowest = np.fmax(self._high, price), np.fmin(self._low, price)
        self.highest[np.isnan(price)] = self.lowest[np.isnan(price)] = np.nan
        self._high.fill(-np.inf)
        self._low.fill(np.inf)

    def forget(self, symbol: int) -> None:
        """A print was withdrawn or corrected: of this interval only the price that stands now is certain."""
        self._high[symbol], self._low[symbol] = -np.inf, np.inf

    def resize(self, capacity: int) -> None:
        grown = Path(capacity)
        _carry(self, grown, ("highest", "lowest", "_high", "_low"))
        self.__dict__.update(grown.__dict__)


def _setting(at: Index, ts_ns: I64, times: I64) -> Index:
    """Which of these prints became their symbol's last price when they came: none before them was later."""
    order = np.argsort(at, kind="stable")
    of, ts = at[order], ts_ns[order]
    since = ts - ts.min()
    offset = np.cumsum(np.diff(of, prepend=of[:1]) != 0) * (int(since.max()) + 1)
    newest = np.maximum.accumulate(since + offset) - offset
    chosen: Index = order[(since == newest) & (ts >= times[of])]
    return chosen


class OpeningRanges:
    """Highs and lows of the regular session's first minutes, as far as nothing can revise them any more."""

    def __init__(self, capacity: int) -> None:
        self.high = np.full((len(OPENING_MINUTES), capacity), -np.inf)
        self.low = np.full((len(OPENING_MINUTES), capacity), np.inf)

    def settle(self, since_open: int, high: F64, low: F64) -> None:
        """Minute number `since_open` (from 0) of the regular session."""
        for row, minutes in enumerate(OPENING_MINUTES):
            if since_open < minutes:
                np.maximum(self.high[row], high, out=self.high[row])
                np.minimum(self.low[row], low, out=self.low[row])

    def begin_day(self) -> None:
        self.high.fill(-np.inf)
        self.low.fill(np.inf)

    def resize(self, capacity: int) -> None:
        grown = OpeningRanges(capacity)
        _carry(self, grown, ("high", "low"))
        self.__dict__.update(grown.__dict__)


class LargestTrades:
    """The largest trade that counts in the volume, of each of the newest minutes."""

    def __init__(self, capacity: int) -> None:
        self._size = np.full((_RECENT_MINUTES, capacity), -np.inf)
        self._minute = np.full(_RECENT_MINUTES, -1)

    def add(self, at: Index, minute: I64, size: F64) -> None:
        for one in np.unique(minute).tolist():
            row = one % _RECENT_MINUTES
            if self._minute[row] < one:
                self._minute[row] = one
                self._size[row] = -np.inf
            if self._minute[row] == one:
                rows = np.flatnonzero(minute == one)
                np.maximum.at(self._size[row], at[rows], size[rows])

    def amend(self, symbol: int, minute: int, size: float) -> None:
        """A minute's largest is this, now that one of its trades was withdrawn or corrected."""
        row = minute % _RECENT_MINUTES
        if self._minute[row] == minute:
            self._size[row, symbol] = size

    def of(self, minutes: range) -> F64:
        """Over these minutes, two at most; NaN without a trade."""
        rows = [minute % _RECENT_MINUTES for minute in minutes if self._minute[minute % _RECENT_MINUTES] == minute]
        if not rows:
            return np.full(self._size.shape[1], np.nan)
        largest: F64 = self._size[rows].max(axis=0)
        return np.where(largest > 0, largest, np.nan)

    def resize(self, capacity: int) -> None:
        grown = LargestTrades(capacity)
        _carry(self, grown, ("_size",))
        grown._minute = self._minute
        self.__dict__.update(grown.__dict__)


def _carry(old: Any, grown: Any, names: tuple[str, ...]) -> None:
    for name in names:
        was = getattr(old, name)
        getattr(grown, name)[..., : was.shape[-1]] = was


EXTREME_CARRIED = tuple(map(Carried, (NewExtremes, Path, OpeningRanges, LargestTrades)))
