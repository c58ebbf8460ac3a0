"""What the price did after each alert.

Minute bars and alerts go in, as a replay or the live product makes them, in any order between the two. The resolution
is one minute, and nothing looks ahead:

- The price after N minutes is the close of the last minute bar that ends at or before `fired_at_ns` plus N minutes. It
  is up to a minute older than its name says, never younger. While no bar has ended after the alert, the alert's own
  price stands. Beyond the post-market's end of the alert's trading day it is unknown.
- The price at the close is the last one of the day's regular session; unknown for alerts from the close on.
- Best and worst are the highest high and the lowest low of minute bars that *begin* at or after the alert, up to the
  close of the regular session; for alerts from the close on, up to the end of the post-market. The rest of the alert's
  own minute is left out, because a bar does not tell which of its prices came after the alert.

A revised bar takes the place of the one before, so equal bars and alerts give equal outcomes however they were cut.
Whose price or day is not known has no outcome. Who calls decides what is kept of the alerts that have left.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from tapewatch.engine.bars import REACH_MINUTES
from tapewatch.engine.calendar import TradingDays
from tapewatch.engine.columns import F64, I32, I64, MINUTE_NS, Bars, Bool
from tapewatch.engine.rules.tree import Match
from tapewatch.engine.symbols import Index, SymbolTable

AFTER_MINUTES = (1, 5, 15, 60)
HORIZONS = (*(f"{minutes}m" for minutes in AFTER_MINUTES), "close")
OUTCOMES = (*(f"return_pct_{horizon}" for horizon in HORIZONS), "best_pct", "worst_pct")
"""What is known of an alert, in percent of its price: the rows of `Followed.values`."""
MOST_OPEN = 200_000
"""Alerts followed at once. One more is counted as `unfollowed`, and its outcome stays unknown."""
_CLOSE, _BEST, _WORST = len(AFTER_MINUTES), len(HORIZONS), len(HORIZONS) + 1
_HELD_MINUTES = REACH_MINUTES + 4
"""Minutes that a revision may still change, and some for alerts that come after their bars."""


class RuleKey(NamedTuple):
    id: str
    version: int


class Fired(NamedTuple):
    """An alert, as far as it matters here."""

    rule: RuleKey
    symbol: str
    fired_at_ns: int
    price: float

    @classmethod
    def of(cls, match: Match) -> "Fired":
        return cls(RuleKey(match.rule.id, match.rule.version), match.symbol, match.fired_at_ns, match.price)


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """Alerts and their outcomes, in columns of shape (n,)."""

    rules: tuple[RuleKey, ...]
    symbols: tuple[str, ...]
    number: I64
    """The how-many-th alert it was, from 0."""
    rule: I32
    """Index into `rules`."""
    symbol: I32
    """Index into `symbols`."""
    fired_at_ns: I64
    price: F64
    day: I64
    """Index of its trading day; one that ends as it fires is still its day."""
    followed: Bool
    """False: it came when too many were open, or too late, or on a day that the calendar does not know."""
    values: F64
    """Shape (len(OUTCOMES), n), percent; NaN is unknown. Best and worst are those up to now."""

    def __len__(self) -> int:
        return len(self.number)

    def take(self, index: Index | Bool) -> "Followed":
        columns = {name: getattr(self, name)[index] for name in _COLUMNS}
        return replace(self, values=self.values[:, index], **columns)


_COLUMNS = ("number", "rule", "symbol", "fired_at_ns", "price", "day", "followed")


def join(parts: Sequence[Followed]) -> Followed:
    """All of them, by number. They must come from one `Outcomes`."""
    if not parts:
        return _nobody()
    order = np.argsort(np.concatenate([part.number for part in parts]), kind="stable")
    columns: dict[str, Any] = {name: np.concatenate([getattr(p, name) for p in parts])[order] for name in _COLUMNS}
    return Followed(
        rules=max((part.rules for part in parts), key=len),
        symbols=max((part.symbols for part in parts), key=len),
        values=np.concatenate([part.values for part in parts], axis=1)[:, order],
        **columns,
    )


def _nobody() -> Followed:
    return Followed(
        rules=(),
        symbols=(),
        number=np.zeros(0, np.int64),
        rule=np.zeros(0, np.int32),
        symbol=np.zeros(0, np.int32),
        fired_at_ns=np.zeros(0, np.int64),
        price=np.zeros(0),
        day=np.zeros(0, np.int64),
        followed=np.zeros(0, np.bool_),
        values=np.zeros((len(OUTCOMES), 0)),
    )


class Outcomes:
    """Follows alerts until the bars of their trading day can no longer be revised; then they leave.

    Time is the newest bar's end, or what `reach` was told. Bars of all symbols must come about together: a minute can
    no longer change once others are `_HELD_MINUTES` ahead.
    """

    def __init__(self, days: TradingDays, *, most_open: int = MOST_OPEN) -> None:
        self._days = days
        self._most_open = most_open
        self.tally: Counter[str] = Counter()
        """``too_many`` and ``too_late`` alerts, which are not followed; ``repeated`` ones; ``late_bars``."""
        self.reached_ns = 0
        """All minutes before have closed."""
        self._symbols = SymbolTable()
        self._rules: dict[RuleKey, int] = {}
        self._window = np.full((3, _HELD_MINUTES, self._symbols.capacity), np.nan)
        """Close, high and low of the minutes that can change, at minute modulo their number."""
        self._revision = np.full((_HELD_MINUTES, self._symbols.capacity), -1, np.int32)
        self._settled_to = self._newest = -1
        """Minutes up to the first are in the alerts' values for good, those up to the second are in the window."""
        self._alerts = _nobody()
        """The open ones; their `values` are prices, not yet percent, as of `_settled_to`."""
        self._count = 0
        self._known: set[tuple[int, int, int]] = set()
        """(rule, symbol, fired_at_ns) of the open ones."""
        self._left: list[Followed] = []
        self._traded: dict[int, Bool] = {}
        """Trading day -> which symbols had a bar in its sessions."""
        self._counted: dict[int, int] = {}
        """The same of days that are over, as numbers."""

    def __len__(self) -> int:
        """Alerts that are open."""
        return len(self._alerts)

    # -- what goes in -------------------------------------------------------------------------------------------------

    def fired(self, alerts: Iterable[Fired]) -> None:
        """Follow these. One that is open already is left out; no other is known again."""
        fresh: dict[tuple[int, int, int], float] = {}
        alerts = list(alerts)
        strangers = tuple(alert.symbol for alert in alerts if alert.symbol not in self._symbols)
        if strangers:  # else the table keeps its translation of the bars' symbols
            self._symbols.translate(strangers)
            self._make_room()
        for alert in alerts:
            rule = self._rules.setdefault(alert.rule, len(self._rules))
            key = (rule, self._symbols.index(alert.symbol), alert.fired_at_ns)
            if key in self._known or key in fresh:
                self.tally["repeated"] += 1
            else:
                fresh[key] = alert.price
        if not fresh:
            return
        rules, symbols, fired_at_ns = (np.array(column, np.int64) for column in zip(*fresh, strict=True))
        price = np.array(list(fresh.values()))
        price = np.where((price > 0) & (price < np.inf), price, np.nan)
        # A scan at 20:00 has seen what came before 20:00: its day is the one that ends.
        day = self._days.trade_day(fired_at_ns - 1)
        known = (day < len(self._days.post_ns)) & (fired_at_ns // MINUTE_NS > self._settled_to)
        room = np.cumsum(known) <= self._most_open - len(self)
        self.tally["too_late"] += int(np.count_nonzero(~known))
        self.tally["too_many"] += int(np.count_nonzero(known & ~room))
        came = Followed(
            rules=tuple(self._rules),
            symbols=self._symbols.names,
            number=np.arange(self._count, self._count + len(fresh)),
            rule=rules.astype(np.int32),
            symbol=symbols.astype(np.int32),
            fired_at_ns=fired_at_ns,
            price=price,
            day=day,
            followed=known & room,
            values=np.full((len(OUTCOMES), len(fresh)), np.nan),
        )
        self._count += len(fresh)
        if not came.followed.all():
            self._left.append(came.take(~came.followed))
            came = came.take(came.followed)
        self._open(came)

    def bars(self, bars: Bars) -> None:
        """Closed and revised minutes, in the order in which they became so."""
        if not len(bars):
            return
        translation = self._symbols.translate(bars.symbols)
        self._make_room()
        symbol, minute = translation[bars.symbol], bars.ts_ns // MINUTE_NS
        peak = np.maximum.accumulate(minute)
        edges = [0, *(np.flatnonzero(np.diff(peak)) + 1).tolist(), len(peak)]
        for start, stop in pairwise(edges):
            here = slice(start, stop)
            self.reach((int(peak[start]) + 1) * MINUTE_NS)
            self._newest = max(self._newest, int(peak[start]))
            self._keep(
                symbol[here],
                minute[here],
                bars.revision[here],
                np.stack([bars.close[here], bars.high[here], bars.low[here]]),
            )

    def reach(self, watermark_ns: int) -> None:
        """All minutes that end at or before this instant have closed, and their bars were here."""
        reached = watermark_ns // MINUTE_NS
        if reached * MINUTE_NS <= self.reached_ns:
            return
        self.reached_ns = reached * MINUTE_NS
        settled_to = max(reached - _HELD_MINUTES, self._settled_to)
        for minute in range(self._settled_to + 1, min(settled_to, self._newest) + 1):
            self._fold(self._alerts, minute)
            row = minute % _HELD_MINUTES
            self._window[:, row] = np.nan
            self._revision[row] = -1
        self._settled_to = settled_to
        self._leave()

    # -- what comes out -----------------------------------------------------------------------------------------------

    def open(self) -> Followed:
        """The open alerts as they stand; the arrays are the caller's own."""
        alerts = replace(self._alerts, values=self._alerts.values.copy())
        for minute in range(self._settled_to + 1, self._newest + 1):
            self._fold(alerts, minute)
        return self._told(alerts)

    def left(self) -> Followed:
        """Those that left, or were never followed, since the last call."""
        parts, self._left = self._left, []
        return join(parts)

    def traded(self) -> dict[int, int]:
        """Trading day -> how many symbols had a bar in its sessions, for the days of bars so far."""
        return self._counted | {day: int(np.count_nonzero(traded)) for day, traded in sorted(self._traded.items())}

    # -- inside -------------------------------------------------------------------------------------------------------

    def _open(self, came: Followed) -> None:
        if not len(came):
            return
        self._known.update(zip(came.rule.tolist(), came.symbol.tolist(), came.fired_at_ns.tolist(), strict=True))
        regular = came.fired_at_ns >= self._days.open_ns[came.day]
        regular &= came.fired_at_ns < self._days.close_ns[came.day]
        came.values[:_CLOSE] = came.price
        came.values[_CLOSE, regular] = came.price[regular]
        self._alerts = join([self._alerts, came])

    def _keep(self, symbol: Index, minute: I64, revision: I64, prices: F64) -> None:
        """Put bars into the window; of one bar the highest revision stays."""
        reachable = minute > self._settled_to
        if not reachable.all():
            self.tally["late_bars"] += int(np.count_nonzero(~reachable))
            symbol, minute, revision = symbol[reachable], minute[reachable], revision[reachable]
            prices = prices[:, reachable]
        cell = (minute % _HELD_MINUTES) * self._symbols.capacity + symbol
        order = np.lexsort((np.arange(len(cell)), revision, cell))
        last = np.ones(len(order), np.bool_)
        last[:-1] = cell[order][1:] != cell[order][:-1]
        order = order[last]
        order = order[revision[order] >= self._revision.reshape(-1)[cell[order]]]
        self._revision.reshape(-1)[cell[order]] = revision[order]
        self._window.reshape(3, -1)[:, cell[order]] = prices[:, order]
        self._note_traded(symbol, minute)

    def _note_traded(self, symbol: Index, minute: I64) -> None:
        days, start_ns = self._days, minute * MINUTE_NS
        day = days.trade_day(start_ns)
        for each in np.unique(day[day < len(days.pre_ns)]).tolist():
            traded = self._traded.get(each, np.zeros(0, np.bool_))
            if len(traded) < self._symbols.capacity:
                traded = np.concatenate([traded, np.zeros(self._symbols.capacity - len(traded), np.bool_)])
            traded[symbol[(day == each) & (start_ns >= days.pre_ns[each])]] = True
            if traded.any():
                self._traded[each] = traded

    def _fold(self, alerts: Followed, minute: int) -> None:
        """Let the bars of a minute act upon those alerts of its trading day after which they end."""
        values, window = alerts.values, self._window[:, minute % _HELD_MINUTES]
        start_ns, end_ns = minute * MINUTE_NS, (minute + 1) * MINUTE_NS
        day = int(self._days.trade_day(np.array(start_ns)))
        if not len(alerts) or day >= len(self._days.post_ns):
            return
        close = window[0, alerts.symbol]
        at = np.flatnonzero(~np.isnan(close) & (alerts.day == day) & (alerts.fired_at_ns < end_ns))
        if not len(at):
            return
        close, fired_at_ns = close[at], alerts.fired_at_ns[at]
        age_ns = end_ns - fired_at_ns
        for row, minutes in enumerate(AFTER_MINUTES):
            young = age_ns <= minutes * MINUTE_NS
            values[row, at[young]] = close[young]
        open_ns, close_ns = int(self._days.open_ns[day]), int(self._days.close_ns[day])
        if open_ns <= start_ns < close_ns:
            values[_CLOSE, at] = close
        begun = fired_at_ns <= start_ns
        if start_ns >= close_ns:
            begun &= fired_at_ns >= close_ns
        at = at[begun]
        symbol = alerts.symbol[at]
        values[_BEST, at] = np.fmax(values[_BEST, at], window[1, symbol])
        values[_WORST, at] = np.fmin(values[_WORST, at], window[2, symbol])

    def _told(self, alerts: Followed) -> Followed:
        """Prices as percent, and unknown where the tape has not come or the day is over. Writes on the values."""
        values = alerts.values
        close_ns, post_ns = self._days.close_ns[alerts.day], self._days.post_ns[alerts.day]
        for row, minutes in enumerate(AFTER_MINUTES):
            due_ns = alerts.fired_at_ns + minutes * MINUTE_NS
            values[row, (due_ns > post_ns) | (due_ns // MINUTE_NS * MINUTE_NS > self.reached_ns)] = np.nan
        values[_CLOSE, (alerts.fired_at_ns >= close_ns) | (close_ns > self.reached_ns)] = np.nan
        return replace(
            alerts,
            rules=tuple(self._rules),
            symbols=self._symbols.names,
            values=(values / alerts.price - 1) * 100,
        )

    def _leave(self) -> None:
        """Days and alerts of which no minute can change any more."""
        post_ns, settled_ns = self._days.post_ns, (self._settled_to + 1) * MINUTE_NS
        for day in [day for day in self._traded if post_ns[day] <= settled_ns]:
            self._counted[day] = int(np.count_nonzero(self._traded.pop(day)))
        gone = post_ns[self._alerts.day] <= settled_ns
        if not gone.any():
            return
        self._left.append(self._told(self._alerts.take(gone)))
        self._alerts = stay = self._alerts.take(~gone)
        self._known = set(zip(stay.rule.tolist(), stay.symbol.tolist(), stay.fired_at_ns.tolist(), strict=True))

    def _make_room(self) -> None:
        capacity = self._symbols.capacity
        width = self._window.shape[2]
        if capacity > width:
            window = np.full((3, _HELD_MINUTES, capacity), np.nan)
            revision = np.full((_HELD_MINUTES, capacity), -1, np.int32)
            window[:, :, :width], revision[:, :width] = self._window, self._revision
            self._window, self._revision = window, revision
