"""The quantities of which metrics are made: of all symbols, at one instant.

They read the scanner's state and change nothing in it. A metric says in words and in one line what it makes of them
(`engine.metrics`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np

from tapewatch.engine.bars import BarBuilder
from tapewatch.engine.calendar import Session, SessionAt
from tapewatch.engine.columns import F64, I64, MINUTE_NS, SECOND_NS, Bool
from tapewatch.engine.daily import DAILY_FACTS
from tapewatch.engine.extremes import OPENING_MINUTES
from tapewatch.engine.splits import suspect_split
from tapewatch.engine.state import SymbolState
from tapewatch.engine.timeframes import RELATIVE, RUNNING, TIMEFRAME_METRICS

INDEX_FUNDS = ("SPY", "QQQ", "DIA")
"""The funds whose trades stand for an index."""


class Quantities(ABC):
    """Each has shape (capacity,) unless it says otherwise, and nobody writes to it."""

    def __init__(self, bars: BarBuilder, state: SymbolState) -> None:
        self._bars = bars
        self._state = state
        self._covered = True
        self._memo: dict[str, F64] = {}
        self.now_ns = 0
        self.minute = 0
        """The live minute: the one that holds the instant just before now."""
        self.session = SessionAt(Session.CLOSED, 0, 0, 0)
        self.day_start_ns = self.day_minute = 0

    def _at(self, now_ns: int, day_start_ns: int) -> None:
        self.now_ns = now_ns
        self.minute = (now_ns - 1) // MINUTE_NS
        self.session = self._bars.session_of(self.minute)
        self.day_start_ns, self.day_minute = day_start_ns, day_start_ns // MINUTE_NS
        self._covered = not self._bars.lacks(now_ns)
        self._memo.clear()

    @abstractmethod
    def __getitem__(self, name: str) -> F64:
        """A metric, computed once a refresh."""

    def once(self, key: str, compute: Callable[[], F64]) -> F64:
        """What several metrics are made of, computed once a refresh; `key` is no metric's name."""
        known = self._memo.get(key)
        if known is None:
            known = self._memo[key] = compute()
        return known

    # -- the symbol now -----------------------------------------------------------------------------------------------

    @property
    def price(self) -> F64:
        return self._state.price

    def outlier(self) -> F64:
        """1 where the newest price is far off the two before it."""
        return self._state.newest.outlier()

    @property
    def halted(self) -> F64:
        return self._state.halts.halted

    @property
    def close_prev(self) -> F64:
        return self._state.close_prev

    @property
    def unknown(self) -> F64:
        """Unknown for every symbol."""
        return np.full(self._bars.symbols.capacity, np.nan)

    def everywhere(self, value: float) -> F64:
        """The same for every symbol."""
        return np.full(self._bars.symbols.capacity, value)

    def price_ago(self, minutes: int) -> F64:
        """The last price so many minutes ago by the clock."""
        ago_ns = self.now_ns - minutes * MINUTE_NS
        if self._bars.gapped(ago_ns, ago_ns + 1):
            return self.unknown
        return self._state.history.ago(self.now_ns, minutes)

    def fact(self, name: str) -> F64:
        """One of `DAILY_FACTS`."""
        row: F64 = self._state.facts[DAILY_FACTS.index(name)]
        return row

    def recursive(self, name: str) -> F64:
        """One of `indicators.RECURSIVE`."""
        return self._state.recursive.values(name, slice(None))

    def candle(self, name: str, back: int = 0) -> F64:
        """One of `timeframes.TIMEFRAME_METRICS`; what looks at the running candle is unknown where a gap reaches in."""
        timeframes = self._state.timeframes
        metric = TIMEFRAME_METRICS[name]
        if not back and (metric.stem in RUNNING or metric.stem == RELATIVE):
            start_ns, _ = timeframes.span_ns(metric.timeframe)
            if self._bars.gapped(start_ns, self.now_ns):
                return self.unknown
        return timeframes.row(name, back, self.now_ns)

    def usual_volume(self, *, regular: bool = False) -> F64:
        """What a symbol has usually traded by now, since 04:00 or since 09:30."""
        usual = self._state.usual
        return self.unknown if usual is None else usual.expected(self.now_ns, regular=regular)

    def usual_volume_of(self, minutes: int) -> F64:
        """What it usually trades in the clock minutes that end with the live one, as far as they are over."""
        usual, start_ns = self._state.usual, (self.minute - minutes + 1) * MINUTE_NS
        return self.unknown if usual is None else usual.expected_between(start_ns, self.now_ns)

    def of_symbol(self, symbol: str, name: str) -> F64:
        """One symbol's metric for every symbol; unknown if the tape has not named it."""
        symbols = self._bars.symbols
        return self.everywhere(self[name][symbols.index(symbol)]) if symbol in symbols else self.unknown

    # -- quotes, bands, halts -----------------------------------------------------------------------------------------

    def quote(self, column: str) -> F64:
        """A side of the quote; unknown while the market is closed or the symbol halted, and where it is stale."""
        if self.session.session is Session.CLOSED:
            return self.unknown
        return np.where(self._quoted(), getattr(self._state.quotes, column), np.nan)

    def quote_age_s(self) -> F64:
        if self.session.session is Session.CLOSED:
            return self.unknown
        return self._since_s(np.where(self._quoted(), self._state.quotes.ts_ns, -1))

    def band(self, column: str) -> F64:
        """A price band; unknown outside the regular session."""
        if self.session.session is not Session.REGULAR:
            return self.unknown
        band: F64 = getattr(self._state.quotes, column)
        return band

    def halts(self) -> F64:
        return self._state.halts.count

    def since_halt_s(self, column: str) -> F64:
        """Since today's newest halt began (``halted_ns``) or ended (``resumed_ns``)."""
        if self.session.session is Session.CLOSED:
            return self.unknown
        return self._since_s(getattr(self._state.halts, column))

    def _quoted(self) -> Bool:
        return self._state.quotes.current(self.now_ns, self._state.halts.halted)

    def _since_s(self, ts_ns: I64) -> F64:
        """Seconds; none is negative, and unknown where the time is."""
        return np.where(ts_ns >= 0, np.maximum(self.now_ns - ts_ns, 0) / SECOND_NS, np.nan)

    # -- the clock ----------------------------------------------------------------------------------------------------

    @property
    def open_ns(self) -> int | None:
        """When the running day's regular session began; None before it."""
        if self.session.session in {Session.CLOSED, Session.PRE}:
            return None
        return int(self._bars.days.open_ns[self.session.day])

    def price_age_s(self) -> F64:
        """Unknown while the market is closed."""
        if self.session.session is Session.CLOSED:
            return self.unknown
        return self._since_s(np.where(np.isnan(self.price), -1, self._state.price_ts))

    def minutes_since(self, edge: str) -> float:
        """Minutes since an edge of the running day (``pre``, ``open``, ``close``); NaN while the market is closed."""
        if self.session.session is Session.CLOSED:
            return np.nan
        edge_ns = int(getattr(self._bars.days, f"{edge}_ns")[self.session.day])
        return (self.now_ns - edge_ns) / MINUTE_NS

    # -- minutes by the clock -----------------------------------------------------------------------------------------

    def over_minutes(self, column: str, minutes: int) -> F64:
        """Over the clock minutes that end with the live one: a sum (volume, value, weight, count), or the extreme
        (high, low) of these minutes; unknown where a gap reaches in.
        """
        first = self.minute - minutes + 1
        if self._bars.gapped(first * MINUTE_NS, self.now_ns):
            return self.unknown
        return self.once(f"{column} over {minutes}", lambda: self._span(column, first, self.minute))

    def volume_average(self, minutes: int) -> F64:
        """Volume a minute over the clock minutes before the live one; unknown until the day is that old."""
        if not self.observed(minutes):
            return self.unknown
        return self._span("volume", self.minute - minutes, self.minute - 1) / minutes

    def last_60_seconds(self, minutes: int, *, column: str = "volume") -> F64:
        """Volume (or count) of the live minute, and of the one before for the share of it that lies within 60 seconds;
        unknown until the day is so many minutes old.
        """
        if not self.observed(minutes):
            return self.unknown
        values = getattr(self._bars.candles, column)
        elapsed = (self.now_ns - self.minute * MINUTE_NS) / MINUTE_NS
        before = values[self._bars.row(self.minute - 1)]
        total: F64 = values[self._bars.row(self.minute)] + (1.0 - elapsed) * before
        return total

    def largest_trade(self) -> F64:
        """Of the live minute and the one before."""
        if self._bars.gapped((self.minute - 1) * MINUTE_NS, self.now_ns):
            return self.unknown
        return self._state.largest.of(range(self.minute - 1, self.minute + 1))

    def opening_range(self, which: str, minutes: int) -> F64:
        """``high`` or ``low`` of the regular session's first minutes; unknown until they are over, and where the tape
        lacks some of them.
        """
        first_ns = self.open_ns
        if first_ns is None or self.now_ns < first_ns + minutes * MINUTE_NS or not self._holds(first_ns, minutes):
            return self.unknown
        settled: F64 = getattr(self._state.opening, which)[OPENING_MINUTES.index(minutes)]
        first = first_ns // MINUTE_NS
        moving = self._state.spans.over(which, max(first, self._state.settled_to + 1), first + minutes - 1)
        return known_price(np.maximum(settled, moving) if which == "high" else np.minimum(settled, moving))

    def observed(self, minutes: int) -> bool:
        """The tape, and the day, hold so many minutes before the live one, without a gap."""
        first = self.minute - minutes
        return (
            self._bars.first_minute is not None
            and first >= max(self._bars.first_minute, self.day_minute)
            and not self._bars.gapped(first * MINUTE_NS, self.now_ns)
        )

    def _holds(self, first_ns: int, minutes: int) -> bool:
        return (
            self._bars.first_minute is not None
            and self._bars.first_minute <= first_ns // MINUTE_NS
            and not self._bars.gapped(first_ns, first_ns + minutes * MINUTE_NS)
        )

    def _span(self, column: str, first: int, last: int) -> F64:
        over = self._state.spans.over(column, first, last)
        return known_price(over) if column in {"high", "low"} else over

    # -- sessions and the day -----------------------------------------------------------------------------------------

    def session_price(self, column: str, row: int) -> F64:
        """A session's open, high or low; unknown before its first print that may set it."""
        values: F64 = getattr(self._state.sessions, column)[row]
        return known_price(values)

    def session_sum(self, column: str, row: int) -> F64:
        """A session's volume, value, weight or count; zero before its first print."""
        sums: F64 = getattr(self._state.sessions, column)[row]
        return sums

    def session_close(self, row: int) -> F64:
        """A session's last price; unknown before its first."""
        close: F64 = self._state.sessions.close[row]
        return close

    def close_today(self) -> F64:
        """The official close, or else the regular session's last price."""
        official = self["close_official_day"]
        return np.where(np.isnan(official), self.session_close(Session.REGULAR), official)

    def running(self, column: str) -> F64:
        """Of the running session; unknown while the market is closed."""
        row = int(self.session.session)
        if row == Session.CLOSED:
            return self.unknown
        return self.session_price(column, row) if column in {"high", "low"} else self.session_sum(column, row)

    def day(self, column: str) -> F64:
        """Of pre-market, regular session and post-market together."""
        rows: F64 = getattr(self._state.sessions, column)[Session.PRE :]
        if column in {"high", "low"}:
            return known_price(rows.max(axis=0) if column == "high" else rows.min(axis=0))
        total: F64 = rows[0] + rows[1] + rows[2]
        return total

    def official(self, row: int) -> F64:
        """The day's official open or close."""
        return self._bars.official.of_day(row, self.day_start_ns)

    def suspect_split(self) -> F64:
        """1 where the day's first price looks like a split that nobody told."""
        first = self.session_price("open", Session.PRE)
        opening = np.where(np.isnan(first), self["open_day"], first)
        return suspect_split(opening, self.close_prev).astype(np.float64)

    def close_prev_unless_suspect(self) -> F64:
        return np.where(self["suspect_split"] == 1.0, np.nan, self.close_prev)

    # -- what was new at the newest scan ------------------------------------------------------------------------------

    def new_extreme(self, which: str, session: int | None = None) -> F64:
        """1 where the newest scan saw a new ``high`` or ``low`` of the day (None) or of a session, else 0."""
        extremes = self._state.extremes
        return extremes.new(which, session).astype(np.float64) if extremes.scanned else self.unknown

    def new_extreme_beyond(self, which: str, level: F64) -> F64:
        """1 where the newest scan saw the day's extreme move, or the day's first price, and it lies beyond `level`."""
        extremes = self._state.extremes
        if not extremes.scanned:
            return self.unknown
        now, before = extremes.of(which, None), extremes.of(which, None, before=True)
        moved = (now > np.maximum(before, level)) if which == "high" else (now < np.minimum(before, level))
        return np.where(np.isnan(level), np.nan, moved & np.isfinite(now))

    def extreme_before(self, which: str) -> F64:
        """The day's extreme as it stood at the scan before the newest one."""
        extremes = self._state.extremes
        return known_price(extremes.of(which, None, before=True)) if extremes.scanned else self.unknown

    def count_new(self, which: str) -> F64:
        """Scans of the day that saw a new extreme."""
        extremes = self._state.extremes
        if not extremes.scanned:
            return self.unknown
        return extremes.highs if which == "high" else extremes.lows

    def path(self, column: str) -> F64:
        """``highest`` or ``lowest`` of the prices between the scan before the newest one and that one."""
        values: F64 = getattr(self._state.path, column)
        return values

    # -- arithmetic ---------------------------------------------------------------------------------------------------

    @staticmethod
    def ratio(numerator: F64, denominator: F64) -> F64:
        """Unknown where the denominator is not positive."""
        return np.where(denominator > 0, numerator / denominator, np.nan)

    @staticmethod
    def pct(value: F64, base: F64) -> F64:
        """How far `value` lies above `base`, in percent of it."""
        return (value / base - 1.0) * 100.0

    @staticmethod
    def dollars(volume: F64, vwap: F64) -> F64:
        """Volume at the VWAP; nothing where nothing traded."""
        return np.where(volume == 0.0, 0.0, volume * vwap)

    @staticmethod
    def exceeds(value: F64, level: F64) -> F64:
        """1 where `value` is above `level`, else 0; unknown where one of them is."""
        return np.where(np.isnan(value) | np.isnan(level), np.nan, value > level)

    @staticmethod
    def position(value: F64, low: F64, high: F64) -> F64:
        """Where `value` lies between `low` (0) and `high` (100); unknown where these are one."""
        return np.where(high > low, (value - low) / (high - low) * 100.0, np.nan)


def split_back(name: str) -> tuple[str, int]:
    """``close_5m[1]`` as the metric's name and 1; 0 without brackets, and -1 with anything else between them."""
    metric, bracket, rest = name.partition("[")
    if not bracket:
        return name, 0
    digits = rest.removesuffix("]")
    return metric, int(digits) if rest.endswith("]") and digits.isdecimal() and digits[0] != "0" else -1


def known_price(values: F64) -> F64:
    """NaN for the infinite extreme of no prints."""
    return np.where(np.isfinite(values), values, np.nan)
