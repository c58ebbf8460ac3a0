"""The scanner: reads the tape, keeps the board, asks the rules.

A pure state machine. Time is the tape's marks; what happens at an instant happens when the watermark passes it, in this
order: a minute closes, prices are sampled, rules are asked. A scan at instant t has seen the prints that arrived before
the watermark reached t. Cutting the tape into other batches changes nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from tapewatch.engine.bars import KEPT_TRADES, LATENESS_NS, NEVER_NS, REACH_MINUTES, Amendment, BarBuilder, Rows, Run
from tapewatch.engine.board import Board, BoardRows, SymbolState
from tapewatch.engine.calendar import SESSION_NAMES, Session, TradingDays
from tapewatch.engine.candles import Candles, latest
from tapewatch.engine.columns import F64, MINUTE_NS, SECOND_NS, Bars, Batch, Facts, Gap, Kind
from tapewatch.engine.conditions import Effect, Profile
from tapewatch.engine.daily import DAILY_FACTS
from tapewatch.engine.history import PriceHistory
from tapewatch.engine.indicators import RECURSIVE, Recursive
from tapewatch.engine.metrics import CATALOGUE
from tapewatch.engine.official import CLOSE
from tapewatch.engine.rules import Match, Plan, Ruleset

_LONGEST_WINDOW_NS = 62 * MINUTE_NS
_FEW_SYMBOLS = 1024


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """A print that was cancelled or corrected after the board had shown it."""

    symbol: str
    ts_ns: int
    price: float
    size: float
    corrected: tuple[float, float] | None
    """Its price and size as they should have been; None if it never happened."""


@dataclass(slots=True)
class Step:
    """What one batch led to."""

    bars: list[Bars] = field(default_factory=list)
    matches: list[Match] = field(default_factory=list)
    scans: int = 0
    boards: list[BoardRows] = field(default_factory=list)
    withdrawn: list[tuple[int, Withdrawn]] = field(default_factory=list)
    """Each with the number of `matches` that came before it."""


class Scanner:
    """`scan_interval_ns` 0: never scan (bars only). `board_interval_ns` 0: no boards in the steps."""

    def __init__(
        self,
        *,
        days: TradingDays,
        profile: Profile,
        scan_interval_ns: int = SECOND_NS,
        board_interval_ns: int = 0,
        lateness_ns: int = LATENESS_NS,
        kept_trades: int = KEPT_TRADES,
    ) -> None:
        self.bars = BarBuilder(days=days, profile=profile, lateness_ns=lateness_ns, minutes=64, kept_trades=kept_trades)
        self.symbols = self.bars.symbols
        self.scan_interval_ns = scan_interval_ns
        self.board_interval_ns = board_interval_ns
        self.watermark_ns = 0
        self.tally = self.bars.tally
        capacity = self.symbols.capacity
        self._state = SymbolState(
            sessions=Candles(len(Session), capacity),
            recursive=Recursive(capacity),
            history=PriceHistory(capacity),
            price=np.full(capacity, np.nan),
            price_ts=np.full(capacity, -1, np.int64),
            close_prev=np.full(capacity, np.nan),
            halted=np.zeros(capacity),
            facts=np.full((len(DAILY_FACTS), capacity), np.nan),
            seen=np.zeros(capacity, np.bool_),
        )
        self.board = Board(self.bars, self._state)
        self._settled = Candles(len(Session), capacity)
        """The running day's sessions up to `_settled_to`: the minutes that nothing can revise any more."""
        self._settled_to = 0
        self._facts: list[Facts] = []
        """Reference data of days that have not begun."""
        self._plan = Plan(Ruleset(number=0, rules=()))
        self._wants_history = self._wants_recursive = self._wants_state = False
        self._longest_ns = _LONGEST_WINDOW_NS + max(scan_interval_ns, board_interval_ns)
        """After so long without a change somebody has looked when all windows had run out."""
        self._began_ns = self._day_start_ns = self._next_day_ns = 0
        self._next_scan_ns = self._next_board_ns = self._next_sample_ns = NEVER_NS
        self._dirty = False
        self._last_change_ns = 0
        """Event time up to which something happened from which metrics still move for as long as windows reach."""
        self._scanned_session = -1
        self._scanned: F64 | None = None
        self._set_wants()

    # -- rules --------------------------------------------------------------------------------------------------------

    def apply(self, ruleset: Ruleset) -> None:
        """Take a ruleset at this place of the tape. Rules that stay in the same version keep their edges and
        cooldowns; a new one fires at the next scan for whatever it is true of.
        """
        self._plan = Plan(ruleset, previous=self._plan)
        self._set_wants()

    def gap(self, gap: Gap) -> None:
        """Trades may be missing from here on, or are no longer; see `Gap`."""
        self.bars.gap(gap)
        self._dirty = True
        self._last_change_ns = max(self._last_change_ns, self.watermark_ns)

    def learn(self, facts: Facts) -> None:
        """Take reference data of the running day, or keep them until their day begins; those of a day that has passed
        say nothing any more.
        """
        self._facts.append(facts)
        if self.bars.first_minute is not None:
            self._learn()

    def _learn(self) -> None:
        """Take what is known of the running day."""
        for facts in self._facts:
            if facts.day_start_ns != self._day_start_ns:
                continue
            symbol = self.symbols.translate(facts.symbols)
            if self.symbols.capacity > len(self._state.price):
                self.bars.make_room()
                self._resize(self.symbols.capacity)
            for name, values in zip(facts.names, facts.values, strict=True):
                if name in DAILY_FACTS:
                    self._state.facts[DAILY_FACTS.index(name), symbol] = values
            close = self._state.facts[DAILY_FACTS.index("close_prev_day")]
            known = np.flatnonzero(~np.isnan(close))
            self._state.close_prev[known] = close[known]
            self._dirty = True
            self._last_change_ns = max(self._last_change_ns, self.watermark_ns)
        self._facts = [facts for facts in self._facts if facts.day_start_ns > self._day_start_ns]

    @property
    def ruleset(self) -> Ruleset:
        return self._plan.ruleset

    @property
    def cooled_down(self) -> int:
        """Matches that a cooldown suppressed."""
        return self._plan.cooled_down

    def _set_wants(self) -> None:
        self.board.want(self._plan.metrics)
        wanted = set(CATALOGUE) if self.board_interval_ns else set(self._plan.metrics)
        # What was kept once is kept on: with a hole in it, it would be wrong and not unknown.
        self._wants_recursive |= not wanted.isdisjoint(RECURSIVE)
        self._wants_history |= any(name.startswith("change_pct_") and name != "change_pct_day" for name in wanted)
        self._wants_state |= bool(wanted)
        self._plan.bind(self.board.row_of)
        self._scanned = None
        self._dirty = True
        if self.bars.first_minute is not None:
            self._schedule(max(self.watermark_ns, self._began_ns))

    def _schedule(self, now_ns: int) -> None:
        def after(interval_ns: int, *, wanted: bool) -> int:
            return (now_ns // interval_ns + 1) * interval_ns if wanted else NEVER_NS

        self._next_scan_ns = after(
            self.scan_interval_ns or 1, wanted=bool(self.scan_interval_ns and self._plan.ruleset.rules)
        )
        self._next_board_ns = after(self.board_interval_ns or 1, wanted=bool(self.board_interval_ns))
        self._next_sample_ns = after(SECOND_NS, wanted=self._wants_history)

    # -- the tape -----------------------------------------------------------------------------------------------------

    def step(self, batch: Batch) -> Step:
        """Take one batch: book its rows, and do at each mark what has become due."""
        out = Step()
        rows = self.bars.rows(batch)
        if self.symbols.capacity > len(self._state.price):
            self._resize(self.symbols.capacity)
        if self.bars.first_minute is None and (len(batch) or len(batch.marks_ns)):
            at_mark = len(batch.marks_ns) and batch.marks_row[0] == 0
            self._begin(int(batch.marks_ns[0] if at_mark else batch.ts_ns[0]))
        start = 0
        for mark in iter(lambda: int(np.searchsorted(batch.marks_ns, self._next_event_ns)), len(batch.marks_ns)):
            stop = int(batch.marks_row[mark])
            self._book(rows, batch, start, stop, out)
            start = max(start, stop)
            self._advance(int(batch.marks_ns[mark]), out)
        self._book(rows, batch, start, len(batch), out)
        if len(batch.marks_ns):
            self.watermark_ns = max(self.watermark_ns, int(batch.marks_ns[-1]))
        return out

    def board_rows(self, names: Iterable[str] = tuple(CATALOGUE)) -> BoardRows:
        """The board as it stands at the watermark."""
        return self.board.rows(tuple(names), self.watermark_ns, day_start_ns=self._day_start_ns)

    def _begin(self, ts_ns: int) -> None:
        self.bars.begin(ts_ns)
        self._began_ns = self._last_change_ns = ts_ns
        self._settled_to = self.bars.open_minute - REACH_MINUTES - 1
        days = self.bars.days
        at = days.at(ts_ns)
        today = at.day if at.session else at.day - 1
        self._day_start_ns = int(days.pre_ns[today]) if 0 <= today < len(days.pre_ns) else at.start_ns
        self._next_day_ns = int(days.pre_ns[today + 1]) if today + 1 < len(days.pre_ns) else NEVER_NS
        self._schedule(ts_ns)
        self._learn()

    @property
    def _next_look_ns(self) -> int:
        """When somebody looks at the board, or a day begins."""
        return min(self._next_sample_ns, self._next_scan_ns, self._next_board_ns, self._next_day_ns)

    @property
    def _next_event_ns(self) -> int:
        return min(self.bars.next_close_ns, self._next_look_ns)

    def _advance(self, watermark_ns: int, out: Step) -> None:
        while (now := self._next_event_ns) <= watermark_ns:
            if now == self.bars.next_close_ns:
                self._close_minute(min(watermark_ns, self._next_look_ns), out)
            if now == self._next_sample_ns:
                self._state.history.sample(now // SECOND_NS, self._state.price)
                self._next_sample_ns += SECOND_NS
            if now == self._next_scan_ns:
                self._scan(now, out)
                self._next_scan_ns += self.scan_interval_ns
            if now == self._next_board_ns:
                out.boards.append(self.board.rows(tuple(CATALOGUE), now, day_start_ns=self._day_start_ns))
                self._next_board_ns += self.board_interval_ns
                if self._next_scan_ns == NEVER_NS:  # nobody else looks
                    self._looked(now)
            if now == self._next_day_ns:
                self._roll_day()
            if not self._dirty and self._quiet(self._next_event_ns):
                self._sleep_until(watermark_ns)

    def _quiet(self, now_ns: int) -> bool:
        """Nothing has traded for longer than any window reaches back, and the session is the one that was scanned: no
        metric can change before the next print or the end of the session.
        """
        return (
            now_ns - self._last_change_ns > self._longest_ns
            and self.bars.session_of((now_ns - 1) // MINUTE_NS).start_ns == self._scanned_session
        )

    def _sleep_until(self, watermark_ns: int) -> None:
        """Nothing before then needs to be looked at."""
        session = self.bars.session_of((self._next_event_ns - 1) // MINUTE_NS)
        wake_ns = min(watermark_ns, session.end_ns, self._next_day_ns)
        for name, interval_ns in (
            ("_next_scan_ns", self.scan_interval_ns),
            ("_next_board_ns", self.board_interval_ns),
            ("_next_sample_ns", SECOND_NS),
        ):
            due_ns = getattr(self, name)
            if due_ns < wake_ns:
                setattr(self, name, wake_ns // interval_ns * interval_ns)

    def _close_minute(self, watermark_ns: int, out: Step) -> None:
        skipped = self.bars.skips_to(watermark_ns)
        if skipped is not None:
            self._settle(skipped - REACH_MINUTES - 1)
            self.bars.skip_empty(watermark_ns)
        self._state.closed_sums.clear()
        if self.bars.next_close_ns > watermark_ns:
            return
        minute = self.bars.open_minute
        closed = self.bars.close_minute()
        self._settle(minute - REACH_MINUTES)
        if len(closed):
            if self._wants_recursive:
                self._state.recursive.close(
                    closed.symbol.astype(np.intp), minute, closed.high, closed.low, closed.close
                )
            out.bars.append(closed)

    def _scan(self, now_ns: int, out: Step) -> None:
        session = self.bars.session_of((now_ns - 1) // MINUTE_NS)
        if not self._dirty and self._quiet(now_ns):
            return
        values = self.board.refresh(now_ns, day_start_ns=self._day_start_ns)
        changed = None
        if not self._dirty or values.shape[1] <= _FEW_SYMBOLS:
            if self._scanned is not None and self._scanned.shape == values.shape:
                changed = (self._scanned.view(np.int64) != values.copy().view(np.int64)).any(axis=1)
            self._scanned = values.copy()
        else:
            self._scanned = None
        out.scans += 1
        out.matches += self._plan.scan(
            values,
            changed=changed,
            now_ns=now_ns,
            symbols=self.symbols.names,
            price=self._state.price,
            session=SESSION_NAMES[session.session],
        )
        self._looked(now_ns)

    def _looked(self, now_ns: int) -> None:
        self._dirty = False
        self._scanned_session = self.bars.session_of((now_ns - 1) // MINUTE_NS).start_ns

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _book(self, rows: Rows, batch: Batch, start: int, stop: int, out: Step) -> None:
        if stop <= start:
            return
        if batch.ts_ns[start:stop].max() >= self._next_day_ns:
            ts_ns = batch.ts_ns[start:stop]
            first = np.flatnonzero((ts_ns >= self._next_day_ns) & (ts_ns < (self.bars.open_minute + 2) * MINUTE_NS))
            if len(first):
                split = start + int(first[0])
                self._book(rows, batch, start, split, out)
                self._roll_day()
                self._book(rows, batch, split, stop, out)
                return
        self._state.seen[rows.symbol[start:stop]] = True
        if not rows.plain:
            self._book_facts(rows, start, stop)
        named = self.bars.official.count
        for change in self.bars.book(rows, start, stop):
            self._dirty = True
            if change.revised:
                self._state.closed_sums.clear()
                self._revise(self.bars.revised_bars(change), out)
            if isinstance(change, Amendment):
                self._amend(change, out)
            else:
                self._take(change)
        self._dirty |= self.bars.official.count > named

    def _take(self, run: Run) -> None:
        # A late print moves metrics from its arrival on, and minutes close soon after the marks.
        self._last_change_ns = max(self._last_change_ns, int(run.prints.ts_ns.max()), self.bars.next_close_ns)
        if self._wants_state:
            self._book_session(run)

    def _revise(self, parts: list[Bars], out: Step) -> None:
        out.bars += parts
        if self._wants_recursive:
            for bars in parts:
                self.tally["unrevised_indicators"] += self._state.recursive.revise(
                    bars.symbol.astype(np.intp), int(bars.ts_ns[0]) // MINUTE_NS, bars.high, bars.low, bars.close
                )

    def _amend(self, change: Amendment, out: Step) -> None:
        """A print is withdrawn or corrected: the candle of its minute is right already, the day's are made again."""
        was, now, state = change.was, change.now, self._state
        withdrawn = Withdrawn(
            symbol=self.symbols.names[was.symbol],
            ts_ns=was.ts_ns,
            price=was.price,
            size=was.size,
            corrected=None if now is None else (now.price, now.size),
        )
        out.withdrawn.append((len(out.matches), withdrawn))
        self._last_change_ns = max(self._last_change_ns, self.bars.next_close_ns)
        if not self._wants_state:
            return
        self._make_day_again(was.symbol)
        if not was.effect & Effect.LAST:
            return
        if self._wants_history:
            right, until_ns = self._price_around(was.symbol, was.ts_ns)
            state.history.replace(was.symbol, was.ts_ns, until_ns, wrong=was.price, right=right)
        if state.price_ts[was.symbol] == was.ts_ns and state.price[was.symbol] == was.price:
            newest = int(np.argmax(state.sessions.close_ts[:, was.symbol]))
            state.price[was.symbol] = state.sessions.close[newest, was.symbol]
            state.price_ts[was.symbol] = state.sessions.close_ts[newest, was.symbol]

    def _price_around(self, symbol: int, ts_ns: int) -> tuple[float, int]:
        """The last price at an instant, as it stands now (NaN: none is kept), and until when it was the last."""
        kept = self.bars.kept
        lasts = kept.of(symbol)[::-1]
        lasts = lasts[kept.effect[lasts] & Effect.LAST != 0]
        times = kept.ts_ns[lasts]
        until_ns = int(times[times > ts_ns].min(initial=NEVER_NS))
        before = lasts[times <= ts_ns]
        return float(kept.price[before[np.argmax(kept.ts_ns[before])]]) if len(before) else np.nan, until_ns

    def _make_day_again(self, symbol: int) -> None:
        """A symbol's sessions from what is settled and the minutes that are not."""
        sessions, here = self._state.sessions, slice(symbol, symbol + 1)
        for row in Session:
            sessions.reset(row, symbol)
            sessions.fold(row, self._settled, row, here)
        first = max(self._settled_to + 1, self._day_start_ns // MINUTE_NS)
        for minute in range(first, self.bars.open_minute + 2):
            sessions.fold(int(self.bars.session_of(minute).session), self.bars.candles, self.bars.row(minute), here)

    def _settle(self, to: int) -> None:
        """Minutes up to `to` are out of reach of revisions: join them to the day before their place is taken."""
        first = max(
            self._settled_to + 1, self._day_start_ns // MINUTE_NS, self.bars.open_minute + 2 - self.bars.candles.rows
        )
        for minute in range(first, min(to, self.bars.open_minute + 1) + 1):
            self._settled.fold(int(self.bars.session_of(minute).session), self.bars.candles, self.bars.row(minute))
        self._settled_to = max(self._settled_to, to)

    def _book_session(self, run: Run) -> None:
        symbol, minute, prints = run.symbol, run.minute, run.prints
        state = self._state
        latest(
            state.price,
            state.price_ts,
            symbol[prints.lasts],
            prints.price[prints.lasts],
            prints.ts_ns[prints.lasts],
            ordered=prints.ordered,
        )
        oldest, newest = int(minute.min()), int(minute.max())
        if oldest * MINUTE_NS < self._day_start_ns:
            today = np.flatnonzero(minute * MINUTE_NS >= self._day_start_ns)
            if not len(today):
                return
            symbol, minute, prints = symbol[today], minute[today], prints.take(today, run.effect)
            oldest = int(minute.min())
        session = self.bars.session_of(oldest)
        if newest * MINUTE_NS < session.end_ns:
            flat = int(session.session) * state.sessions.capacity + symbol
        else:
            minutes, place = np.unique(minute, return_inverse=True)
            row = np.array([int(self.bars.session_of(int(m)).session) for m in minutes])
            flat = row[place] * state.sessions.capacity + symbol
        state.sessions.add(flat, prints)

    def _book_facts(self, rows: Rows, start: int, stop: int) -> None:
        kind, symbol, price = rows.kind[start:stop], rows.symbol[start:stop], rows.price[start:stop]
        if not kind.any():  # only elsewhere in the batch: how the tape is cut must not matter
            return
        known = np.flatnonzero((kind == Kind.CLOSE_PREV) & (price > 0) & (price < np.inf))
        self._state.close_prev[symbol[known]] = price[known]
        status = np.flatnonzero((kind == Kind.HALT) | (kind == Kind.RESUME))
        self._state.halted[symbol[status]] = kind[status] == Kind.HALT
        self._dirty = True

    def _roll_day(self) -> None:
        """A new trading day begins: yesterday's close becomes the previous close, the official one where the tape named
        it, else the last regular price; reference data of the new day have the last word. All session rows start anew.
        It happens at the calendar's instant for every symbol, traded or not.
        """
        state, days = self._state, self.bars.days
        closed = state.sessions.close_ts[Session.REGULAR] >= 0
        state.close_prev[closed] = state.sessions.close[Session.REGULAR][closed]
        official = self.bars.official.of_day(CLOSE, self._day_start_ns)
        named = np.flatnonzero(~np.isnan(official))
        state.close_prev[named] = official[named]
        for row in Session:
            state.sessions.reset(row)
            self._settled.reset(row)
        self._day_start_ns = self._next_day_ns
        self._last_change_ns = max(self._last_change_ns, self._day_start_ns)
        state.facts.fill(np.nan)
        self._learn()
        following = int(np.searchsorted(days.pre_ns, self._day_start_ns, side="right"))
        self._next_day_ns = int(days.pre_ns[following]) if following < len(days.pre_ns) else NEVER_NS
        self._dirty = True

    def _resize(self, capacity: int) -> None:
        state = self._state
        state.sessions.resize(capacity)
        self._settled.resize(capacity)
        state.recursive.resize(capacity)
        state.history.resize(capacity)
        state.closed_sums.clear()
        facts = np.full((len(DAILY_FACTS), capacity), np.nan)
        facts[:, : state.facts.shape[1]] = state.facts
        state.facts = facts
        for name, blank in (
            ("price", np.nan),
            ("price_ts", -1),
            ("close_prev", np.nan),
            ("halted", 0),
            ("seen", False),
        ):
            old = getattr(state, name)
            grown = np.full(capacity, blank, old.dtype)
            grown[: len(old)] = old
            setattr(state, name, grown)
