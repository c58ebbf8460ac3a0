"""The board: the current value of every metric for every symbol, computed for an instant when asked.

A metric is a row of float64; NaN is unknown. Only the rows that somebody wants are computed, by what their declarations
say (`engine.metrics`) of the quantities that these are made of (`engine.quantities`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tapewatch.engine.bars import BarBuilder
from tapewatch.engine.calendar import SESSION_NAMES
from tapewatch.engine.columns import F64, MINUTE_NS, SECOND_NS
from tapewatch.engine.frozen import Carried
from tapewatch.engine.quantities import INDEX_FUNDS, Quantities, split_back
from tapewatch.engine.state import SymbolState
from tapewatch.engine.symbols import Index

if TYPE_CHECKING:  # the catalogue is written in the board's words
    from tapewatch.engine.metrics.declare import Metric

_SESSIONS = {
    "any": SESSION_NAMES,
    "day": ("pre", "regular", "post"),
    "after open": ("regular", "post"),
    "pre": ("pre",),
    "regular": ("regular",),
    "post": ("post",),
}
"""By what a metric says of its session: the sessions in which it can be known."""


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
    """The boards of all partitions at one scan as one. A row that some of them lack is unknown there."""
    if len(boards) == 1:
        return boards[0]
    metrics = tuple(dict.fromkeys(name for board in boards for name in board.metrics))
    return replace(
        boards[0],
        symbols=tuple(symbol for board in boards for symbol in board.symbols),
        metrics=metrics,
        values=np.concatenate([_rows_of(board, metrics) for board in boards], axis=1),
        covered=all(board.covered for board in boards),
    )


def _rows_of(board: BoardRows, metrics: tuple[str, ...]) -> F64:
    if board.metrics == metrics:
        return board.values
    row_of = {name: row for row, name in enumerate(board.metrics)}
    values = np.vstack([board.values, np.full((1, len(board.symbols)), np.nan)])
    found: F64 = values[[row_of.get(name, -1) for name in metrics]]
    return found


class Board(Quantities):
    """`values[row_of[name]]` after `refresh`."""

    def __init__(self, bars: BarBuilder, state: SymbolState, *, catalogue: "Mapping[str, Metric]") -> None:
        super().__init__(bars, state)
        self._catalogue = catalogue
        self.names: tuple[str, ...] = ()
        self.row_of: dict[str, int] = {}
        self.values: F64 = np.zeros((0, 0))

    def remake(self, _: None) -> None:
        """The next refresh fills it."""
        self._memo = {}
        self._blank()

    def want(self, names: Iterable[str]) -> None:
        """Keep rows for just these metrics (in the catalogue's order) from now on; ``close_5m[1]`` is the one of the
        closed candle before the running one. ValueError for what the catalogue lacks.
        """
        wanted = {name: split_back(name) for name in names}
        for name, (metric, back) in wanted.items():
            declared = self._catalogue.get(metric)
            if declared is None or not 0 <= back <= declared.back:
                raise ValueError(f"the board has no metric {name!r}")
        places = {metric: place for place, metric in enumerate(self._catalogue)} if wanted else {}
        self.names = tuple(sorted(wanted, key=lambda name: (places[wanted[name][0]], wanted[name][1])))
        self.row_of = {name: row for row, name in enumerate(self.names)}
        self._blank()

    def _blank(self) -> None:
        self.values = np.full((len(self.names), self._bars.symbols.capacity), np.nan)

    def refresh(self, now_ns: int, *, day_start_ns: int) -> F64:
        """Compute all wanted rows at `now_ns`, which every booked print precedes; shape (names, symbols). While no
        trades arrive, all is unknown.
        """
        if self.values.shape[1] < self._bars.symbols.capacity:
            self._blank()
        self._at(now_ns, day_start_ns)
        count = len(self._bars.symbols)
        if not self._covered:
            self.values[:, :count] = np.nan
            return self.values[:, :count]
        with np.errstate(invalid="ignore", divide="ignore"):
            for row, name in enumerate(self.names):
                self.values[row, :count] = self[name][:count]
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
                values[row] = self[name][seen]
        values.setflags(write=False)
        return BoardRows(
            ts_ns=now_ns,
            session=SESSION_NAMES[self.session.session],
            symbols=symbols,
            metrics=names,
            values=values,
            covered=self._covered,
        )

    def __getitem__(self, name: str) -> F64:
        """A metric, computed once a refresh."""
        known = self._memo.get(name)
        if known is None:
            metric, back = split_back(name)
            declared = self._catalogue[metric]
            if back and declared.compute_back is not None:
                known = declared.compute_back(self, back)
            else:
                known = declared.compute(self)
            self._memo[name] = known
        return known

    # -- why, and how old: for explanations ---------------------------------------------------------------------------

    def reason(self, name: str, symbol: int) -> str:
        """Why a metric of this symbol is unknown at the board's instant; only to be asked where it is."""
        metric, state = self._catalogue[split_back(name)[0]], self._state
        if not self._covered or self._lacks_trades(metric):
            return "gap"
        if SESSION_NAMES[self.session.session] not in _SESSIONS[metric.session]:
            return "not in session"
        if any(np.isnan(self._known_fact(fact)[symbol]) for fact in metric.facts):
            return "no reference data"
        if metric.needs == "index":
            fund = next(word for word in metric.name.upper().split("_") if word in INDEX_FUNDS)
            symbols = self._bars.symbols
            if fund not in symbols or np.isnan(self.price[symbols.index(fund)]):
                return "no trade yet"
        if metric.needs == "quotes" and (why := self._without_quote(metric, symbol)):
            return why
        if metric.warm_up and self._too_young(metric):
            return "warming"
        if np.isnan(state.price[symbol]):
            return "no trade yet"
        if metric.freshness == "candle" or "newest" in metric.keeps:
            return "warming"
        if metric.freshness == "scan" and not state.extremes.scanned:
            return "warming"
        asks_back = any(kept.startswith("prices") for kept in metric.keeps)
        return "warming" if asks_back and np.isnan(self.price_ago(metric.minutes)[symbol]) else "no value"

    def age_s(self, name: str, symbol: int) -> float:
        """Of one symbol; see `ages_s`."""
        return float(self.ages_s(name, np.array([symbol]))[0])

    def ages_s(self, name: str, symbols: Index) -> F64:
        """Seconds since the newest trade, quote, closed candle or morning that the metric of these symbols is made of;
        NaN where that cannot be told.
        """
        base, back = split_back(name)
        metric, state = self._catalogue[base], self._state
        since_ns = state.price_ts[symbols]
        if metric.freshness == "clock":
            since_ns = np.full(len(symbols), self.now_ns)
        elif metric.freshness == "quote":
            since_ns = state.quotes.ts_ns[symbols]
        elif metric.freshness == "status":
            since_ns = np.maximum(state.halts.halted_ns[symbols], state.halts.resumed_ns[symbols])
        elif metric.freshness == "day":
            since_ns = np.full(len(symbols), self.day_start_ns)
        elif metric.freshness == "candle" or (back and metric.candles):
            length = metric.minutes or 1
            closed = self.day_minute + (self._bars.open_minute - self.day_minute) // length * length
            since_ns = np.full(len(symbols), closed * MINUTE_NS)
        return np.where(since_ns >= 0, np.maximum(self.now_ns - since_ns, 0) / SECOND_NS, np.nan)

    def _known_fact(self, name: str) -> F64:
        return self.close_prev if name == "close_prev_day" else self.fact(name)

    def _lacks_trades(self, metric: "Metric") -> bool:
        """A gap reaches into its window."""
        minutes = metric.minutes
        if minutes and metric.session == "after open":
            open_ns = self.open_ns
            return open_ns is not None and not self._holds(open_ns, minutes)
        return bool(minutes) and self._bars.gapped((self.minute - minutes) * MINUTE_NS, self.now_ns)

    def _too_young(self, metric: "Metric") -> bool:
        """The tape, or the day, does not reach back so far."""
        minutes, first = metric.minutes, self._bars.first_minute
        if metric.session == "after open" and self.open_ns is not None:
            return self.now_ns < self.open_ns + minutes * MINUTE_NS
        since = self.day_minute if metric.freshness != "second" else 0
        return first is None or (minutes > 0 and self.minute - minutes < max(first, since))

    def _without_quote(self, metric: "Metric", symbol: int) -> str:
        """Why quotes say nothing of a symbol; empty if they do."""
        quotes, halts = self._state.quotes, self._state.halts
        if metric.freshness == "status":
            return "no quotes" if np.isnan(quotes.band_low[symbol]) and np.isnan(quotes.band_high[symbol]) else ""
        if quotes.ts_ns[symbol] < 0:
            return "no quotes"
        if halts.halted[symbol]:
            return "halted"
        return "" if quotes.current(self.now_ns, halts.halted)[symbol] else "stale"


BOARD_CARRIED = (Carried(Board, given=("_catalogue",), remade=("_memo", "values")),)
