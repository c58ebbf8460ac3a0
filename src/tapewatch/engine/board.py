"""The board: the current value of every metric for every symbol, computed for an instant when asked.

A metric is a row of float64; NaN is unknown. Only the rows that somebody wants are computed. The board reads the
scanner's state and changes nothing in it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tapewatch.engine.bars import BarBuilder
from tapewatch.engine.calendar import SESSION_NAMES, Session, SessionAt
from tapewatch.engine.candles import Candles
from tapewatch.engine.columns import F64, MINUTE_NS, OPEN_END_NS, Bool
from tapewatch.engine.daily import DAILY_FACTS
from tapewatch.engine.history import PriceHistory
from tapewatch.engine.indicators import RECURSIVE, Recursive
from tapewatch.engine.metrics import CATALOGUE, WINDOW_MINUTES
from tapewatch.engine.official import CLOSE, OPEN
from tapewatch.engine.splits import suspect_split


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardRows:
    """A partition's board at one scan: what toplists are made of."""

    ts_ns: int
    """Event time of the scan."""
    session: str
    symbols: tuple[str, ...]
    metrics: tuple[str, ...]
    values: F64
    """Shape (len(metrics), len(symbols)); NaN is unknown."""
    covered: bool = True
    """Trades arrive. While they do not, the values are those of before, and no rule is asked."""


def merge_boards(boards: Sequence[BoardRows]) -> BoardRows:
    """The boards of all partitions at one scan as one."""
    if len(boards) == 1:
        return boards[0]
    return replace(
        boards[0],
        symbols=tuple(symbol for board in boards for symbol in board.symbols),
        values=np.concatenate([board.values for board in boards], axis=1),
    )


@dataclass(slots=True)
class SymbolState:
    """What a scanner keeps per symbol beside bars: the running day."""

    sessions: Candles
    """One row per `Session`, of the running day."""
    recursive: Recursive
    history: PriceHistory
    price: F64
    price_ts: np.ndarray[tuple[int], np.dtype[np.int64]]
    close_prev: F64
    halted: F64
    facts: F64
    """Shape (len(DAILY_FACTS), capacity): what the reference data say of the running day; NaN is unknown."""
    seen: Bool
    """A row of the symbol has arrived; the others are only names in a feed's dictionary."""
    closed_sums: dict[tuple[str, int, int], F64] = field(default_factory=dict)
    """Sums over closed minutes of the ring, by (column, first minute, last minute); emptied when these change."""


class Board:
    """`values[row_of[name]]` after `refresh`."""

    def __init__(self, bars: BarBuilder, state: SymbolState) -> None:
        self._bars = bars
        self._state = state
        self._now_ns = 0
        self._session = SessionAt(Session.CLOSED, 0, 0, 0)
        self._day_start_ns = self._day_minute = 0
        self._covered = True
        self._memo: dict[str, F64] = {}
        self.names: tuple[str, ...] = ()
        self.row_of: dict[str, int] = {}
        self.values: F64 = np.zeros((0, 0))

    def want(self, names: Iterable[str]) -> None:
        """Keep rows for just these metrics (in the catalogue's order) from now on."""
        wanted = set(names)
        self.names = tuple(name for name in CATALOGUE if name in wanted)
        self.row_of = {name: row for row, name in enumerate(self.names)}
        self.values = np.full((len(self.names), self._bars.symbols.capacity), np.nan)

    def refresh(self, now_ns: int, *, day_start_ns: int) -> F64:
        """Compute all wanted rows at `now_ns`, which every booked print precedes; shape (names, symbols). While no
        trades arrive, all is unknown.
        """
        if self.values.shape[1] < self._bars.symbols.capacity:
            self.values = np.full((len(self.names), self._bars.symbols.capacity), np.nan)
        self._at(now_ns, day_start_ns)
        count = len(self._bars.symbols)
        if not self._covered:
            self.values[:, :count] = np.nan
            return self.values[:, :count]
        with np.errstate(invalid="ignore", divide="ignore"):
            for row, name in enumerate(self.names):
                self.values[row, :count] = self._metric(name)[:count]
        unseen = np.flatnonzero(~self._state.seen[:count])
        if len(unseen):
            self.values[:, unseen] = np.nan
        return self.values[:, :count]

    def rows(self, names: tuple[str, ...], now_ns: int, *, day_start_ns: int) -> BoardRows:
        """A frozen copy of these metrics at `now_ns`."""
        self._at(now_ns, day_start_ns)
        symbols, seen = self._bars.symbols.names, np.flatnonzero(self._state.seen)
        if len(seen) < len(symbols):
            symbols = tuple(symbols[i] for i in seen.tolist())
        values = np.empty((len(names), len(symbols)))
        with np.errstate(invalid="ignore", divide="ignore"):
            for row, name in enumerate(names):
                values[row] = self._metric(name)[seen]
        values.setflags(write=False)
        return BoardRows(
            ts_ns=now_ns,
            session=SESSION_NAMES[self._session.session],
            symbols=symbols,
            metrics=names,
            values=values,
            covered=self._covered,
        )

    # -- one metric at a time, each computed once a refresh ------------------------------------------------------------

    def _at(self, now_ns: int, day_start_ns: int) -> None:
        self._now_ns = now_ns
        self._minute = (now_ns - 1) // MINUTE_NS
        self._session = self._bars.session_of(self._minute)
        self._day_start_ns, self._day_minute = day_start_ns, day_start_ns // MINUTE_NS
        self._covered = OPEN_END_NS not in self._bars.gaps.values()
        self._memo.clear()

    def _metric(self, name: str) -> F64:
        known = self._memo.get(name)
        if known is None:
            formula = _FORMULAS.get(name)
            known = formula(self) if formula is not None else self._windowed(*_WINDOWED[name])
            self._memo[name] = known
        return known

    def _windowed(self, stem: str, window: str) -> F64:
        minutes = WINDOW_MINUTES[window]
        if self._gapped(stem, minutes):
            return np.full(self._bars.symbols.capacity, np.nan)
        if stem == "change_pct":
            return _pct(self._metric("price"), self._state.history.ago(self._now_ns, minutes))
        if stem == "volume":
            return self._sum("volume", self._minute - minutes + 1, self._minute)
        if stem == "vwap":
            first = self._minute - minutes + 1
            return _ratio(self._sum("value", first, self._minute), self._sum("weight", first, self._minute))
        observed = self._bars.first_minute is not None and self._minute - minutes >= max(
            self._bars.first_minute, self._day_minute
        )
        if not observed:
            return np.full(self._bars.symbols.capacity, np.nan)
        if stem == "volume_avg":
            return self._sum("volume", self._minute - minutes, self._minute - 1) / minutes
        return _ratio(self._last_60_seconds(), self._metric(f"volume_avg_{window}"))

    def _gapped(self, stem: str, minutes: int) -> bool:
        """Whether trades may be missing where a windowed metric looks."""
        if stem == "change_pct":
            ago_ns = self._now_ns - minutes * MINUTE_NS
            return self._bars.gapped(ago_ns, ago_ns + 1)
        first = self._minute - minutes + (1 if stem in {"volume", "vwap"} else 0)
        return self._bars.gapped(first * MINUTE_NS, self._now_ns)

    def _last_60_seconds(self) -> F64:
        """Volume of the live minute, and of the one before for the share of it that lies within 60 seconds."""
        volume = self._bars.candles.volume
        elapsed = (self._now_ns - self._minute * MINUTE_NS) / MINUTE_NS
        before = volume[self._bars.row(self._minute - 1)]
        total: F64 = volume[self._bars.row(self._minute)] + (1.0 - elapsed) * before
        return total

    def _sum(self, column: str, first: int, last: int) -> F64:
        """Over these minutes: closed ones from a sum that is kept, open ones as they stand."""
        array = getattr(self._bars.candles, column)
        open_minute = self._bars.open_minute
        key = (column, first, min(last, open_minute - 1))
        closed = self._state.closed_sums.get(key)
        if closed is None:
            closed = np.zeros(array.shape[1])
            for minute in range(max(first, open_minute - self._bars.candles.rows + 2), min(last, open_minute - 1) + 1):
                closed += array[self._bars.row(minute)]
            self._state.closed_sums[key] = closed
        total = closed
        for minute in range(max(first, open_minute), last + 1):
            total = total + array[self._bars.row(minute)]
        return total

    def _session_price(self, column: str, row: int) -> F64:
        """A session's open, high or low; unknown before its first print that may set it."""
        values: F64 = getattr(self._state.sessions, column)[row]
        return np.where(np.isfinite(values), values, np.nan)

    def _running(self, column: str) -> F64:
        """Of the running session; unknown while the market is closed."""
        row = int(self._session.session)
        if row == Session.CLOSED:
            return np.full(self._bars.symbols.capacity, np.nan)
        if column in {"high", "low"}:
            return self._session_price(column, row)
        sums: F64 = getattr(self._state.sessions, column)[row]
        return sums

    def _suspect_split(self) -> Bool:
        first = self._session_price("open", Session.PRE)
        return suspect_split(np.where(np.isnan(first), self._metric("open_day"), first), self._metric("close_prev_day"))

    def _close_prev_unless_suspect(self) -> F64:
        return np.where(self._metric("suspect_split") == 1.0, np.nan, self._metric("close_prev_day"))

    def _day(self, column: str) -> F64:
        rows = getattr(self._state.sessions, column)[Session.PRE :]
        if column == "high":
            high: F64 = rows.max(axis=0)
            return np.where(high == -np.inf, np.nan, high)
        if column == "low":
            low: F64 = rows.min(axis=0)
            return np.where(low == np.inf, np.nan, low)
        total: F64 = rows[0] + rows[1] + rows[2]
        return total


def _ratio(numerator: F64, denominator: F64) -> F64:
    return np.where(denominator > 0, numerator / denominator, np.nan)


def _pct(value: F64, base: F64) -> F64:
    return (value / base - 1.0) * 100.0


def _recursive(name: str) -> Callable[[Board], F64]:
    return lambda board: board._state.recursive.values(name, slice(None))


def _fact(row: int) -> Callable[[Board], F64]:
    return lambda board: board._state.facts[row]


_FORMULAS: dict[str, Callable[[Board], F64]] = {
    **{name: _recursive(name) for name in RECURSIVE},
    "price": lambda b: b._state.price,
    "halted": lambda b: b._state.halted,
    **{name: _fact(row) for row, name in enumerate(DAILY_FACTS) if name != "close_prev_day"},
    "close_prev_day": lambda b: b._state.close_prev,
    "suspect_split": lambda b: b._suspect_split().astype(np.float64),
    "open_day": lambda b: b._session_price("open", Session.REGULAR),
    "open_official_day": lambda b: b._bars.official.of_day(OPEN, b._day_start_ns),
    "close_official_day": lambda b: b._bars.official.of_day(CLOSE, b._day_start_ns),
    "high_day": lambda b: b._day("high"),
    "low_day": lambda b: b._day("low"),
    "volume_day": lambda b: b._day("volume"),
    "high_session": lambda b: b._running("high"),
    "low_session": lambda b: b._running("low"),
    "volume_session": lambda b: b._running("volume"),
    "high_premarket": lambda b: b._session_price("high", Session.PRE),
    "low_premarket": lambda b: b._session_price("low", Session.PRE),
    "volume_premarket": lambda b: b._state.sessions.volume[Session.PRE],
    "gap_pct": lambda b: _pct(b._metric("open_day"), b._close_prev_unless_suspect()),
    "change_pct_day": lambda b: _pct(b._metric("price"), b._close_prev_unless_suspect()),
    "change_from_open_pct": lambda b: _pct(b._metric("price"), b._metric("open_day")),
    "vwap_session": lambda b: _ratio(b._running("value"), b._running("weight")),
    "vwap_day": lambda b: _ratio(b._day("value"), b._day("weight")),
    "vwap_distance_pct": lambda b: _pct(b._metric("price"), b._metric("vwap_session")),
}
_WINDOWED = {name: tuple(name.rsplit("_", 1)) for name in CATALOGUE if name not in _FORMULAS}
"""Metric -> stem and window, such as change_pct and 5m."""
