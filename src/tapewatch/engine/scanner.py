"""The scanner: reads the tape, keeps the board, asks the rules.

A pure state machine. Time is the tape's marks; what happens at an instant happens when the watermark passes it, in this
order: a minute closes, prices are sampled, rules are asked. A scan at instant t has seen the prints that arrived before
the watermark reached t. Cutting the tape into other batches changes nothing.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from tapewatch.engine.bars import (
    KEPT_TRADES,
    LATENESS_NS,
    NEVER_NS,
    REACH_MINUTES,
    Amendment,
    BarBuilder,
    Rows,
    Run,
    thawed,
)
from tapewatch.engine.board import BOARD_CARRIED, Board, BoardRows
from tapewatch.engine.calendar import SESSION_NAMES, Session, TradingDays
from tapewatch.engine.candles import latest
from tapewatch.engine.columns import F64, LABELS, MINUTE_NS, OPEN_END_NS, SECOND_NS, Bars, Batch, Facts, Gap, Kind
from tapewatch.engine.conditions import Effect, Profile
from tapewatch.engine.daily import DAILY_FACTS
from tapewatch.engine.frozen import Carried, Frozen, Whitelist, freeze
from tapewatch.engine.metrics import CATALOGUE, PUBLISHED, Kept
from tapewatch.engine.official import CLOSE
from tapewatch.engine.quantities import split_back
from tapewatch.engine.rules import Match, Plan, Ruleset
from tapewatch.engine.rules.plan import RULE_CARRIED
from tapewatch.engine.state import STATE_CARRIED, STATE_NAMES, SymbolState
from tapewatch.engine.symbols import Index
from tapewatch.engine.usual import UsualVolume

_LONGEST_WINDOW_NS = 62 * MINUTE_NS
_LONG_WINDOW_NS = 242 * MINUTE_NS
_REACHES: dict[Kept, int] = {"prices 5m": 5, "prices 1h": 60, "prices 4h": 240}
"""What of the price history is meant, by how far it reaches back in minutes."""
_FEW_SYMBOLS = 1024
_FULL_SESSION_NS = 390 * MINUTE_NS


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
    """`scan_interval_ns` 0: never scan (bars only). `board_interval_ns` 0: no boards in the steps. Boards are made
    `board_offset_ns` after multiples of their interval, when no scan is.
    """

    def __init__(
        self,
        *,
        days: TradingDays,
        profile: Profile,
        scan_interval_ns: int = SECOND_NS,
        board_interval_ns: int = 0,
        board_offset_ns: int = 0,
        lateness_ns: int = LATENESS_NS,
        kept_trades: int = KEPT_TRADES,
    ) -> None:
        self.bars = BarBuilder(days=days, profile=profile, lateness_ns=lateness_ns, minutes=64, kept_trades=kept_trades)
        self.symbols = self.bars.symbols
        self.scan_interval_ns = scan_interval_ns
        self.board_interval_ns = board_interval_ns
        self.board_offset_ns = board_offset_ns
        self.watermark_ns = 0
        self.tally = self.bars.tally
        self._state = SymbolState.of(self.bars)
        self.board = Board(self.bars, self._state, catalogue=CATALOGUE)
        self.labels: dict[str, list[str]] = {name: [] for name in LABELS}
        """By name, what the symbol of each index is (its exchange, type and sector); empty for unknown."""
        self.labels_version = 0
        """One more each time that they change."""
        self._facts: list[Facts] = []
        """Reference data of days that have not begun."""
        self.plan = Plan(Ruleset(number=0, rules=()))
        """The rules, and what the last scan made of them."""
        self._asked: frozenset[str] = frozenset()
        self._keeps: frozenset[Kept] = frozenset()
        self._wants_state = self._reads_clock = self._reads_usual = False
        self._longest_ns = self._memory_ns = 0
        """After so long without a change somebody has looked when all windows, and the memory of rules, had run out;
        the memory of rules alone.
        """
        self._began_ns = self._day_start_ns = self._next_day_ns = 0
        self._next_scan_ns = self._next_board_ns = self._next_sample_ns = NEVER_NS
        self._dirty = False
        self._last_change_ns = 0
        """Event time up to which something happened from which metrics still move for as long as windows reach."""
        self._heals_ns = 0
        """When the last gap whose end is known ends, maybe ahead: what is unknown within becomes known again."""
        self._settles_ns = 0
        """Up to when rules may change their mind because they are new, or the session is."""
        self._scanned_session = -1
        self._scanned: F64 | None = None
        self._set_wants()

    # -- as bytes -----------------------------------------------------------------------------------------------------

    def freeze(self) -> bytes:
        """All that it knows; `thaw` makes one of it that goes on as this one would."""
        about = {
            **self.bars.about(),
            "scan_interval_ns": self.scan_interval_ns,
            "board_interval_ns": self.board_interval_ns,
            "board_offset_ns": self.board_offset_ns,
        }
        count, capacity = len(self.symbols), self.symbols.capacity
        return freeze(
            self, _WHITELIST, about=about, count=count, capacity=capacity, sealed=self.plan.sealed(_WHITELIST)
        )

    @classmethod
    def thaw(
        cls,
        state: bytes,
        *,
        days: TradingDays,
        profile: Profile,
        scan_interval_ns: int = SECOND_NS,
        board_interval_ns: int = 0,
        board_offset_ns: int = 0,
        lateness_ns: int = LATENESS_NS,
        kept_trades: int = KEPT_TRADES,
    ) -> "Scanner":
        """`Invalid` for bytes that are damaged, of another engine, or of one that was made with other arguments."""
        frozen = Frozen(state, _WHITELIST)
        frozen.check(
            {
                "scan_interval_ns": scan_interval_ns,
                "board_interval_ns": board_interval_ns,
                "board_offset_ns": board_offset_ns,
                "lateness_ns": lateness_ns,
                "kept_trades": kept_trades,
            }
        )
        return thawed(frozen, cls, days=days, profile=profile, kept_trades=kept_trades, catalogue=CATALOGUE)

    # -- rules --------------------------------------------------------------------------------------------------------

    def apply(self, ruleset: Ruleset) -> None:
        """Take a ruleset at this place of the tape. Rules that stay in the same version keep their edges and
        cooldowns; a new one fires at the next scan for whatever it is true of.
        """
        self.plan = Plan(ruleset, previous=self.plan)
        self._set_wants()

    def keep(self, metrics: Iterable[str]) -> None:
        """Keep from now on what these metrics are made of, and scan, though no rule asks for them: `board_rows` knows
        them then.
        """
        self._asked |= frozenset(metrics)
        self._set_wants()

    def gap(self, gap: Gap) -> None:
        """Trades may be missing from here on, or are no longer; see `Gap`."""
        self.bars.gap(gap)
        self._dirty = True
        self._last_change_ns = max(self._last_change_ns, self.watermark_ns)
        if gap.end_ns < OPEN_END_NS:
            self._heals_ns = max(self._heals_ns, gap.end_ns)

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
                self._state.resize(self.symbols.capacity)
            for name, values in zip(facts.names, facts.values, strict=True):
                if name in DAILY_FACTS:
                    self._state.facts[DAILY_FACTS.index(name), symbol] = values
            self._label(facts, symbol)
            close = self._state.facts[DAILY_FACTS.index("close_prev_day")]
            known = np.flatnonzero(~np.isnan(close))
            self._state.close_prev[known] = close[known]
            self._dirty = True
            self._last_change_ns = max(self._last_change_ns, self.watermark_ns)
        self._facts = [facts for facts in self._facts if facts.day_start_ns > self._day_start_ns]

    def _label(self, facts: Facts, symbol: Index) -> None:
        for name, texts in facts.labels.items():
            known = self.labels.setdefault(name, [])
            known += [""] * (len(self.symbols) - len(known))
            for index, text in zip(symbol.tolist(), texts, strict=True):
                self.labels_version += known[index] != text
                known[index] = text

    @property
    def ruleset(self) -> Ruleset:
        return self.plan.ruleset

    @property
    def _boarded(self) -> tuple[str, ...]:
        """The rows of the boards in the steps."""
        return (*PUBLISHED, *self.plan.ruleset.shown)

    @property
    def cooled_down(self) -> int:
        """Matches that a cooldown suppressed."""
        return self.plan.cooled_down

    def _set_wants(self) -> None:
        known_rows = self.plan.metrics <= self.board.row_of.keys()
        self.board.want(self.plan.metrics)
        wanted = self.plan.metrics | self._asked | frozenset(self._boarded if self.board_interval_ns else ())
        declared = [CATALOGUE[split_back(name)[0]] for name in wanted]
        # What was kept once is kept on: with a hole in it, it would be wrong and not unknown.
        self._keeps |= {kept for metric in declared for kept in metric.keeps}
        for kept, reach in _REACHES.items():
            if kept in self._keeps:
                self._state.history.keep(reach)
        self._wants_state |= bool(wanted)
        self._state.timeframes.want({name for metric in declared for name in metric.candles})
        if "usual" in self._keeps and self._state.usual is None:
            self._state.usual = UsualVolume(self.symbols.capacity)
            if self.bars.first_minute is not None:
                self._begin_usual()
        self._reads_usual = any("usual" in metric.keeps for metric in declared)
        asked = [CATALOGUE[split_back(name)[0]] for name in self.plan.metrics | self._asked]
        # Boards may pause while nothing trades: they say what time it is of.
        by_clock = self._reads_usual or any(metric.freshness == "clock" for metric in asked)
        self._reads_clock = self.plan.fires_by_clock or by_clock
        far = "prices 4h" in self._keeps or any(metric.timeframe == "4h" for metric in declared)
        longest_ns = _LONG_WINDOW_NS if far else _LONGEST_WINDOW_NS
        self._memory_ns = self.plan.horizon_ns(self.scan_interval_ns)
        self._longest_ns = longest_ns + self._memory_ns + max(self.scan_interval_ns, self.board_interval_ns)
        self.plan.bind(self.board.row_of)
        self._scanned = None
        self._dirty = True
        if self.bars.first_minute is not None:
            self._schedule(max(self.watermark_ns, self._began_ns))
            # What a row is made of may be kept only from now on.
            self._stay_awake(self._next_scan_ns, self._memory_ns if known_rows else self._longest_ns)

    def _stay_awake(self, scan_ns: int, reach_ns: int) -> None:
        """At this scan begins what rules may remember for so long."""
        if scan_ns < NEVER_NS:
            self._settles_ns = max(self._settles_ns, scan_ns + reach_ns + self.scan_interval_ns)

    def _schedule(self, now_ns: int) -> None:
        def after(interval_ns: int, *, wanted: bool, offset_ns: int = 0) -> int:
            return ((now_ns - offset_ns) // interval_ns + 1) * interval_ns + offset_ns if wanted else NEVER_NS

        self._next_scan_ns = after(
            self.scan_interval_ns or 1,
            wanted=bool(self.scan_interval_ns and (self.plan.ruleset.rules or self._asked)),
        )
        self._next_board_ns = after(
            self.board_interval_ns or 1, wanted=bool(self.board_interval_ns), offset_ns=self.board_offset_ns
        )
        self._next_sample_ns = after(SECOND_NS, wanted=bool(self._state.history))

    # -- the tape -----------------------------------------------------------------------------------------------------

    def step(self, batch: Batch) -> Step:
        """Take one batch: book its rows, and do at each mark what has become due."""
        out = Step()
        rows = self.bars.rows(batch)
        if self.symbols.capacity > len(self._state.price):
            self._state.resize(self.symbols.capacity)
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

    def board_rows(self, names: Iterable[str] = PUBLISHED) -> BoardRows:
        """The board as it stands at the watermark."""
        return self.board.rows(tuple(names), self.watermark_ns, day_start_ns=self._day_start_ns)

    def _begin(self, ts_ns: int) -> None:
        self.bars.begin(ts_ns)
        self._began_ns = self._last_change_ns = ts_ns
        self._state.settled_to = self.bars.open_minute - REACH_MINUTES - 1
        days = self.bars.days
        at = days.at(ts_ns)
        today = at.day if at.session else at.day - 1
        self._day_start_ns = int(days.pre_ns[today]) if 0 <= today < len(days.pre_ns) else at.start_ns
        self._next_day_ns = int(days.pre_ns[today + 1]) if today + 1 < len(days.pre_ns) else NEVER_NS
        self._schedule(ts_ns)
        self._learn()
        self._begin_usual()

    def _begin_usual(self) -> None:
        """The running day's volumes are noted at each quarter hour from now on."""
        if self._state.usual is not None:
            self._state.usual.begin_day(self._day_start_ns, since_ns=max(self.watermark_ns, self._began_ns))

    @property
    def _next_quarter_ns(self) -> int:
        return NEVER_NS if self._state.usual is None else self._state.usual.next_mark_ns

    def _end_usual(self) -> None:
        """The day is over: count it in, with what is known of it."""
        usual, days = self._state.usual, self.bars.days
        if usual is None:
            return
        day = int(np.searchsorted(days.pre_ns, self._day_start_ns))
        known = day < len(days.pre_ns) and int(days.pre_ns[day]) == self._day_start_ns
        full = known and int(days.close_ns[day] - days.open_ns[day]) >= _FULL_SESSION_NS
        gaps = [*self.bars.gaps.items(), (0, self._began_ns)]
        usual.end_day(full=full, gaps=gaps, halted=self._state.halts.count > 0)

    @property
    def _next_look_ns(self) -> int:
        """When somebody looks at the board, or a day begins."""
        return min(
            self._next_sample_ns, self._next_scan_ns, self._next_board_ns, self._next_quarter_ns, self._next_day_ns
        )

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
                out.boards.append(self.board.rows(self._boarded, now, day_start_ns=self._day_start_ns))
                self._next_board_ns += self.board_interval_ns
                if self._next_scan_ns == NEVER_NS:  # nobody else looks
                    self._looked(now)
            if self._state.usual is not None and now == self._next_quarter_ns:
                self._state.usual.mark(now, self.board.day("volume"))
            if now == self._next_day_ns:
                self._roll_day()
            if not self._dirty and self._quiet(self._next_event_ns):
                self._sleep_until(watermark_ns)

    def _quiet(self, now_ns: int) -> bool:
        """Nothing has traded for longer than any window reaches back, the session is the one that was scanned, and
        nobody reads the clock (which says nothing while the market is closed): no metric can change before the next
        print or the end of the session, and no rule its mind.
        """
        healed_ns = self._heals_ns if self._heals_ns <= now_ns else 0
        if now_ns <= max(max(self._last_change_ns, healed_ns) + self._longest_ns, self._settles_ns):
            return False
        at = self.bars.session_of((now_ns - 1) // MINUTE_NS)
        return at.start_ns == self._scanned_session and not (self._reads_clock and at.session)

    def _sleep_until(self, watermark_ns: int) -> None:
        """Nothing before then needs to be looked at."""
        session = self.bars.session_of((self._next_event_ns - 1) // MINUTE_NS)
        heals_ns = self._heals_ns if self._heals_ns >= self._next_event_ns else NEVER_NS
        wake_ns = min(watermark_ns, session.end_ns, heals_ns, self._next_quarter_ns, self._next_day_ns)
        for name, interval_ns, offset_ns in (
            ("_next_scan_ns", self.scan_interval_ns, 0),
            ("_next_board_ns", self.board_interval_ns, self.board_offset_ns),
            ("_next_sample_ns", SECOND_NS, 0),
        ):
            due_ns = getattr(self, name)
            if due_ns < wake_ns:
                setattr(self, name, (wake_ns - offset_ns) // interval_ns * interval_ns + offset_ns)

    def _close_minute(self, watermark_ns: int, out: Step) -> None:
        skipped = self.bars.skips_to(watermark_ns)
        if skipped is not None:
            self._settle(skipped - REACH_MINUTES - 1)
            self.bars.skip_empty(watermark_ns)
        self._state.spans.clear()
        if self.bars.next_close_ns > watermark_ns:
            return
        minute = self.bars.open_minute
        closed = self.bars.close_minute()
        self._settle(minute - REACH_MINUTES)
        self._state.timeframes.close(minute, closed.symbol.astype(np.intp))
        if len(closed):
            if "studies" in self._keeps:
                self._state.recursive.close(
                    closed.symbol.astype(np.intp), minute, closed.high, closed.low, closed.close
                )
            out.bars.append(closed)

    def _scan(self, now_ns: int, out: Step) -> None:
        session = self.bars.session_of((now_ns - 1) // MINUTE_NS)
        if not self._dirty and self._quiet(now_ns):
            return
        if session.start_ns != self._scanned_session:
            self._stay_awake(now_ns, self._longest_ns if self._reads_usual else self._memory_ns)
        if "extremes" in self._keeps:
            self._state.extremes.scan(self._state.sessions)
        if "path" in self._keeps:
            self._state.path.scan(self._state.price)
        values = self.board.refresh(now_ns, day_start_ns=self._day_start_ns)
        changed = None
        if not self._dirty or values.shape[1] <= _FEW_SYMBOLS:
            if self._scanned is not None and self._scanned.shape == values.shape:
                changed = (self._scanned.view(np.int64) != values.copy().view(np.int64)).any(axis=1)
            self._scanned = values = values.copy()
        else:
            self._scanned = None
        for texts in self.labels.values():
            texts.extend([""] * (len(self.symbols) - len(texts)))
        out.scans += 1
        matches = self.plan.scan(
            values,
            changed=changed,
            now_ns=now_ns,
            symbols=self.symbols.names,
            price=self._state.price,
            session=SESSION_NAMES[session.session],
            session_start_ns=session.start_ns,
            day_start_ns=self._day_start_ns,
            candle_ns=self.bars.open_minute * MINUTE_NS,
            labels=self.labels,
            labels_version=self.labels_version,
            before_ns=now_ns - self.scan_interval_ns,
        )
        for _, of_rule in groupby(matches, key=lambda match: id(match.rule)):
            out.matches += self._aged(list(of_rule))
        self._looked(now_ns)

    def _aged(self, matches: list[Match]) -> Iterator[Match]:
        """Matches of one rule, with how old their operands are."""
        symbols = np.array([self.symbols.index(match.symbol) for match in matches])
        names = tuple(matches[0].values)
        ages = [self.board.ages_s(name, symbols).tolist() for name in names]
        for place, match in enumerate(matches):
            yield match._replace(ages_s={name: of[place] for name, of in zip(names, ages, strict=True)})

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
        self._meet(rows.symbol[start:stop])
        if not rows.plain:
            self._book_status(rows, start, stop)
        named = self.bars.official.count
        for change in self.bars.book(rows, start, stop):
            self._dirty = True
            if change.revised:
                for minute, revised in change.revised.items():
                    self._state.spans.revise(revised)
                    self.tally["unrevised_indicators"] += self._state.timeframes.revise(minute, revised)
                self._revise(self.bars.revised_bars(change), out)
            if isinstance(change, Amendment):
                self._amend(change, out)
            else:
                self._take(change)
        if self.bars.official.count > named:
            self._touch()

    def _meet(self, symbol: Index) -> None:
        """A symbol exists from its first row on, whatever that row does."""
        if not self._state.seen[symbol].all():
            self._state.seen[symbol] = True
            self._touch()

    def _touch(self) -> None:
        """Something has changed, and metrics may still move for as long as windows reach from here."""
        self._dirty = True
        self._last_change_ns = max(self._last_change_ns, self.bars.next_close_ns)

    def _take(self, run: Run) -> None:
        # A late print moves metrics from its arrival on, and minutes close soon after the marks.
        self._last_change_ns = max(self._last_change_ns, int(run.prints.ts_ns.max()), self.bars.next_close_ns)
        if self._wants_state:
            self._book_session(run)

    def _revise(self, parts: list[Bars], out: Step) -> None:
        out.bars += parts
        if "studies" in self._keeps:
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
        if "extremes" in self._keeps:
            state.extremes.amend(was.symbol, state.sessions)
        if "largest" in self._keeps:
            kept = self.bars.kept.minute(was.symbol, change.minute)
            sizes = self.bars.kept.size[kept[self.bars.kept.effect[kept] & Effect.VOLUME != 0]]
            state.largest.amend(was.symbol, change.minute, float(sizes.max(initial=-np.inf)))
        state.path.forget(was.symbol)
        if "newest" in self._keeps:
            kept = self.bars.kept.of(was.symbol)
            lasts = kept[self.bars.kept.effect[kept] & Effect.LAST != 0]
            state.newest.amend(
                was.symbol,
                was_ns=was.ts_ns,
                was=was.price,
                ts_ns=self.bars.kept.ts_ns[lasts],
                price=self.bars.kept.price[lasts],
            )
        if not was.effect & Effect.LAST:
            return
        if state.history:
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
            sessions.fold(row, self._state.settled, row, here)
        first = max(self._state.settled_to + 1, self._day_start_ns // MINUTE_NS)
        for minute in range(first, self.bars.open_minute + 2):
            sessions.fold(int(self.bars.session_of(minute).session), self.bars.candles, self.bars.row(minute), here)

    def _settle(self, to: int) -> None:
        """Minutes up to `to` are out of reach of revisions: join them to the day before their place is taken."""
        state, candles = self._state, self.bars.candles
        first = max(
            self._state.settled_to + 1,
            self._day_start_ns // MINUTE_NS,
            self.bars.open_minute + 2 - self.bars.candles.rows,
        )
        for minute in range(first, min(to, self.bars.open_minute + 1) + 1):
            at, row = self.bars.session_of(minute), self.bars.row(minute)
            state.settled.fold(int(at.session), candles, row)
            if at.session is Session.REGULAR:
                state.opening.settle(minute - at.start_ns // MINUTE_NS, candles.high[row], candles.low[row])
        self._state.settled_to = max(self._state.settled_to, to)

    def _book_session(self, run: Run) -> None:
        symbol, minute, prints = run.symbol, run.minute, run.prints
        state = self._state
        if "largest" in self._keeps:
            counted = prints.volumes
            state.largest.add(symbol[counted], minute[counted], prints.size[counted])
        if "path" in self._keeps:
            state.path.add(
                symbol[prints.lasts],
                prints.price[prints.lasts],
                prints.ts_ns[prints.lasts],
                times=state.price_ts,
                ordered=prints.ordered,
            )
        if "newest" in self._keeps:
            lasts = prints.lasts
            state.newest.add(symbol[lasts], prints.price[lasts], prints.ts_ns[lasts], ordered=prints.ordered)
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

    def _book_status(self, rows: Rows, start: int, stop: int) -> None:
        """What the tape says of symbols beside trades: previous closes, halts and resumes, quotes and bands."""
        kind, symbol = rows.kind[start:stop], rows.symbol[start:stop]
        if not kind.any():  # only elsewhere in the batch: how the tape is cut must not matter
            return
        ts_ns, price, size = rows.ts_ns[start:stop], rows.price[start:stop], rows.size[start:stop]
        known = np.flatnonzero((kind == Kind.CLOSE_PREV) & (price > 0) & (price < np.inf))
        self._state.close_prev[symbol[known]] = price[known]
        self._state.halts.book(kind, symbol, ts_ns, day_start_ns=self._day_start_ns)
        moved = bool((kind < Kind.BID).any())
        if "quotes" in self._keeps:
            moved |= self._state.quotes.book(kind, symbol, ts_ns, price, size)
        if moved:
            self._touch()

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
        self._end_usual()
        state.begin_day()
        self._day_start_ns = self._next_day_ns
        self._last_change_ns = max(self._last_change_ns, self._day_start_ns)
        self._learn()
        self._begin_usual()
        following = int(np.searchsorted(days.pre_ns, self._day_start_ns, side="right"))
        self._next_day_ns = int(days.pre_ns[following]) if following < len(days.pre_ns) else NEVER_NS
        self._dirty = True


_WHITELIST = Whitelist((Carried(Scanner), Carried(Facts), *BOARD_CARRIED, *STATE_CARRIED, *RULE_CARRIED), STATE_NAMES)
