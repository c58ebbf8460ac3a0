"""The oracle: which bars and alerts must exist, from a tape alone.

Rows are taken one by one, in the order of arrival. At each mark what is due happens in the order that docs/metrics.md
gives: a minute closes, rules are asked, the day rolls over. Nothing of the engine is used here, so that a mistake would
have to be made twice to stay unseen. What it does not know it says: `Expected.unchecked` names every rule that it does
not judge.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

from tapewatch.ledger.booking import LATENESS, NAN, Book, Stock
from tapewatch.ledger.conditions import Eligibility, read_eligibility
from tapewatch.ledger.days import MINUTE, NEVER, SECOND, Days, Session, days_around
from tapewatch.ledger.expected import Expected, ExpectedAlert, alert_id
from tapewatch.ledger.metrics import (
    AFTER_AMENDMENTS,
    AMONG_REFERENCE,
    CLOCK,
    WINDOWS,
    Candle,
    Candles,
    Look,
    grain_of,
    of_clock,
)
from tapewatch.ledger.pauses import AWAKE, BY_CLOCK, Doubt
from tapewatch.ledger.rules import AskedRule, Asking, NotChecked, Seen
from tapewatch.ledger.tape import Item, Mark, Row, TapeFiles

MOST_AT_ONCE = 1_000
"""Alerts of one rule at one scan; the first by name."""
_NOBODY = (NAN, NAN)


def expect(
    tapes: Sequence[Path],
    rules: Iterable[AskedRule] = (),
    *,
    eligibility: str = "alpaca",
    watchlists: Mapping[str, frozenset[str]] | None = None,
    scan_interval_ns: int = SECOND,
    symbols: Iterable[str] | None = None,
    reference_known: bool = False,
    keep_test_symbols: bool = False,
    on_progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Expected:
    """What must exist after these tape files, with these rules from the first row on. `symbols`: only of these."""
    profile = read_eligibility(eligibility)
    tape = TapeFiles(tapes, column=profile.column, keep_test_symbols=keep_test_symbols)
    oracle = Oracle(
        rules,
        days=days_around(tape.first_ns, tape.last_ns),
        eligibility=profile,
        watchlists=watchlists,
        scan_interval_ns=scan_interval_ns,
        symbols=symbols,
        reference_known=reference_known,
    )
    oracle.take(tape.items(on_progress))
    expected = oracle.expected()
    expected.counts["sent"] = tape.counted.sent
    expected.counts["rejected"] += sum(tape.counted.rejected.values())
    expected.counts["duplicates"] += tape.counted.duplicates
    expected.rejected.update(tape.counted.rejected)
    return expected


class Oracle:
    """`take` a tape, then ask for what is `expected`. `amendable`: prints of the tape may be withdrawn or corrected."""

    def __init__(
        self,
        rules: Iterable[AskedRule] = (),
        *,
        days: Days,
        eligibility: Eligibility,
        watchlists: Mapping[str, frozenset[str]] | None = None,
        scan_interval_ns: int = SECOND,
        symbols: Iterable[str] | None = None,
        reference_known: bool = False,
        amendable: bool = False,
    ) -> None:
        self._days, self._scan_ns = days, scan_interval_ns
        self._book = Book(days, eligibility, amendable=amendable)
        self._only = None if symbols is None else frozenset(symbols)
        self._askings: list[Asking] = []
        self._unchecked: dict[str, str] = {}
        for rule in rules:
            try:
                asking = Asking(rule, len(self._askings), scan_interval_ns, watchlists or {})
            except NotChecked as why:
                self._unchecked[rule.id] = str(why)
                continue
            told = asking.reads & AMONG_REFERENCE if reference_known else frozenset()
            if told:
                self._unchecked[rule.id] = f"asks for {min(told)}, which reference data may say otherwise"
            else:
                self._askings.append(asking)
        reads = frozenset().union(*(asking.reads for asking in self._askings))
        self._windows = [minutes for name, minutes in WINDOWS.items() if f"volume_{name}" in reads]
        self._changes = [minutes for name, minutes in WINDOWS.items() if f"change_pct_{name}" in reads]
        self._follows = bool(reads & {"crossing", "high_day_before", "low_day_before"})
        self._by_candle = any(
            name == "closed candles" or name.endswith("_14_1m") or name[:3] == "ema" for name in reads
        )
        self._clock = any(asking.clock for asking in self._askings)
        self._alerts: list[ExpectedAlert] = []
        self._duplicates = self._sent = 0
        self._known: set[Any] = set()
        # time
        self._began = self._mark = -1
        self._next_day = self._next_scan = NEVER
        self._next_close = NEVER
        self._closing: dict[int, set[str]] = {}
        """Minutes that have not closed, and who traded in them."""
        # who is asked at the next scan
        self._due: set[str] = set()
        self._everybody = True
        self._wakes: list[tuple[int, str]] = []
        self._session = Session("", 0, 0)
        self._clock_said: dict[int, list[Any]] = {}
        self._periods: dict[int, Any] = {}
        self._candles: dict[str, Candles] = {}
        self._before: dict[str, tuple[float, float]] = {}
        """The day's high and low as the newest scan saw them."""
        self._scan_before = -NEVER
        self._heard: dict[str, int] = {}
        """When the newest print of each stock arrived."""
        self._doubts: dict[tuple[int, str], Doubt] = {}
        """By place of the rule, and symbol."""

    # -- the tape -----------------------------------------------------------------------------------------------------

    def take(self, items: Iterable[Item]) -> None:
        for item in items:
            if isinstance(item, Mark):
                self._begin(item.ns)
                self._reach(item.ns)
            else:
                self._begin(item.ts_ns)
                self._row(item)

    def _begin(self, ns: int) -> None:
        if self._began >= 0:
            return
        book = self._book
        self._began = self._mark = book.now = ns
        book.day_start, self._next_day = self._days.start_of_day(ns), self._days.next_day(ns)
        self._next_scan = (ns // self._scan_ns + 1) * self._scan_ns if self._askings else NEVER
        self._next_close = (book.open_minute() + 1) * MINUTE + LATENESS

    def _row(self, row: Row) -> None:
        self._sent += 1
        if self._only is not None and row.symbol not in self._only:
            self._book.tally["of_others"] += 1
            return
        while self._next_day <= row.ts_ns < (self._book.open_minute() + 2) * MINUTE:
            self._roll()
        new = row.symbol not in self._book.stocks
        booked = self._book.take(row)
        if new:
            self._due.add(row.symbol)
        if booked is None:
            return
        stock = booked.stock
        self._due.add(stock.symbol)
        self._heard[stock.symbol] = self._book.now
        for minute in booked.minutes:
            if minute < self._book.open_minute():
                self._make_candles_again(stock)
            else:
                self._closing.setdefault(minute, set()).add(stock.symbol)
            for window in self._windows:
                self._wake(stock.symbol, (minute + window) * MINUTE + 1)
        if booked.last:
            for window in self._changes:
                grain = grain_of(window)
                self._wake(stock.symbol, (self._book.mark // grain + 1) * grain + window * MINUTE)

    def _wake(self, symbol: str, ns: int) -> None:
        heappush(self._wakes, (ns, symbol))

    def _reach(self, mark_ns: int) -> None:
        """Do what is due, in the order of time; at one instant a minute closes, a scan is made, the day rolls over."""
        while (now := min(self._next_close, self._next_scan, self._next_day)) <= mark_ns:
            self._book.now = max(self._book.now, now)
            if now == self._next_close:
                self._close()
            if now == self._next_scan:
                self._scan(now)
                self._next_scan += self._scan_ns
            if now == self._next_day:
                self._roll()
        self._book.now = max(self._book.now, mark_ns)
        self._book.mark = self._mark = max(self._mark, mark_ns)

    def _roll(self) -> None:
        self._book.roll(self._next_day)
        self._next_day = self._days.next_day(self._next_day)
        self._before = dict.fromkeys(self._before, _NOBODY)
        self._everybody = True

    # -- candles ------------------------------------------------------------------------------------------------------

    def _close(self) -> None:
        minute = self._next_close // MINUTE - 1
        for symbol in self._closing.pop(minute, ()):
            bar = self._book.stocks[symbol].minutes[minute].bar()
            if bar is not None and self._by_candle:
                candles = self._candles.setdefault(symbol, Candles())
                candles.append(Candle(minute, bar.open, bar.high, bar.low, bar.close))
                self._due.add(symbol)
        self._next_close += MINUTE

    def _make_candles_again(self, stock: Stock) -> None:
        if not self._by_candle:
            return
        self._candles[stock.symbol] = candles = Candles()
        for minute in sorted(stock.minutes):
            bar = stock.minutes[minute].bar()
            if bar is not None and minute < self._book.open_minute():
                candles.append(Candle(minute, bar.open, bar.high, bar.low, bar.close))

    # -- scans --------------------------------------------------------------------------------------------------------

    def _scan(self, now: int) -> None:
        while self._wakes and self._wakes[0][0] <= now:
            self._due.add(heappop(self._wakes)[1])
        live_ns = (now - 1) // MINUTE * MINUTE
        if not self._session.start <= live_ns < self._session.end:
            self._session = self._days.session(live_ns)
            self._everybody = True
        clock = self._clock_at(now) if self._clock else {}
        stocks = self._book.stocks
        due = sorted(stocks) if self._everybody else sorted(self._due & stocks.keys())
        self._everybody, self._due = False, set()
        looks: dict[str, Look] = {}
        for asking in self._askings:
            everybody = self._turned(asking, clock)
            self._ask(asking, sorted(stocks) if everybody else due, now, clock, looks)
        for symbol, look in looks.items():
            self._before[symbol] = look.high_day(), look.low_day()
            if look.stock.moves:
                look.stock.moves = []
            if self._follows and (len(look.stock.path) > 1 or self._before[symbol] != look.before):
                self._wake(symbol, now + 1)
        self._scan_before = now

    def _clock_at(self, now: int) -> dict[str, float]:
        """The metrics that are the same for every stock."""
        start = self._book.day_start
        day = next((day for day in self._days.days if day.pre == start), None)
        if day is None:
            return dict.fromkeys(CLOCK, NAN)
        return {name: of_clock(name, now, self._session, day) for name in CLOCK}

    def _turned(self, asking: Asking, clock: Mapping[str, float]) -> bool:
        """Whether every stock must be asked: the time of day said something else, or a new bar or session began."""
        turned = False
        if asking.clock:
            says = [of_clock(clock) for of_clock in asking.clock]
            turned = self._clock_said.get(asking.place) != says
            self._clock_said[asking.place] = says
        if asking.mode in {"bar", "session"}:
            period = (
                (self._book.day_start, (self._book.open_minute() * MINUTE - self._book.day_start) // asking.bar_ns)
                if asking.mode == "bar"
                else self._session.start
            )
            if self._periods.get(asking.place) != period:
                self._periods[asking.place] = period
                for stock in self._book.stocks.values():
                    if asking.place in stock.memory:
                        stock.memory[asking.place][_HELD] = False
                    if (asking.place, stock.symbol) in self._doubts:
                        self._doubts[asking.place, stock.symbol].begin_bar()
                turned = True
        return turned

    def _ask(
        self, asking: Asking, symbols: Sequence[str], now: int, clock: Mapping[str, float], looks: dict[str, Look]
    ) -> None:
        rule, told, maybe = asking.rule, 0, 0
        level, cooldown = asking.mode == "level", round(asking.rule.cooldown_s * SECOND)
        may_sleep = asking.mode in BY_CLOCK and self._session.name == "closed"
        for symbol in symbols:
            stock = self._book.stocks[symbol]
            look = looks.get(symbol) or self._look(stock, now)
            looks[symbol] = look
            memory = stock.memory.setdefault(asking.place, [False, None, *([None] * asking.slots)])
            seen = Seen(look, clock, memory, self._scan_before, _waker(self, symbol))
            seen.memory = slots = memory[_SLOTS:]
            when = asking.when(seen)
            gate = True if asking.gate is None else asking.gate(seen)
            rearm = None if asking.rearm is None else asking.rearm(seen)
            memory[_SLOTS:] = slots
            held = memory[_HELD]
            fires = when is True and (level or not held)
            wakes_until = self._heard.get(symbol, -NEVER) + AWAKE
            asleep = may_sleep and now > wakes_until
            if may_sleep and not asleep:
                self._wake(symbol, wakes_until + 1)
            doubt = self._doubts.get((asking.place, symbol))
            if asleep and doubt is None:
                doubt = self._doubts[asking.place, symbol] = Doubt(self._scan_ns, cooldown)
            unsure = doubt is not None and doubt.falls_on(
                now, asleep=asleep, true=when is True, gate=gate is True, level=level, held=held
            )
            if when is True:
                memory[_HELD] = True
                if level and not asleep:
                    self._wake(symbol, now + 1)
            elif asking.mode == "edge":
                memory[_HELD] = held and (when is None if asking.rearm is None else rearm is not True)
            maybe += unsure
            if unsure or not fires or gate is not True:
                continue
            last = memory[_FIRED]
            if told == MOST_AT_ONCE or (last is not None and now - last < cooldown):
                continue
            if told + maybe >= MOST_AT_ONCE:
                self._doubts.setdefault((asking.place, symbol), Doubt(self._scan_ns, cooldown)).crowds(now)
                continue
            told += 1
            memory[_FIRED] = now
            name = alert_id(rule.id, rule.version, symbol, now)
            self._alerts.append(
                ExpectedAlert(name, rule.id, rule.version, symbol, now, stock.price, self._session.name)
            )

    def _look(self, stock: Stock, now: int) -> Look:
        stock.path = [] if math.isnan(stock.price) else [*stock.moves, stock.price]
        candles = self._candles.get(stock.symbol) or _NO_CANDLES
        look = Look(stock, candles, now, self._session, self._began, _NOBODY)
        if stock.symbol in self._before:
            look.before = self._before[stock.symbol]
        elif self._scan_before < 0:  # nobody has looked before: this is how things stand
            look.before = look.high_day(), look.low_day()
        return look

    # -- what came of it ----------------------------------------------------------------------------------------------

    def expected(self) -> Expected:
        unchecked, askings = dict(self._unchecked), []
        amended = any(stock.amended for stock in self._book.stocks.values())
        for asking in self._askings:
            blind = asking.reads & AFTER_AMENDMENTS if amended else frozenset()
            if blind:
                unchecked[asking.rule.id] = f"asks for {min(blind)}, and prints were withdrawn"
            else:
                askings.append(asking)
        judged = {(asking.rule.id, asking.rule.version): asking for asking in askings}
        tally = self._book.tally
        out = Counter({reason: tally[reason] for reason in ("refused", "too_late", "future") if tally[reason]})
        return Expected(
            bars={(symbol, ts_ns): bar for symbol, ts_ns, bar in self._book.bars()},
            alerts=[alert for alert in self._alerts if (alert.rule_id, alert.rule_version) in judged],
            rules=frozenset(judged),
            unchecked=unchecked,
            counts=Counter(tally) + Counter(sent=self._sent, rejected=sum(out.values())),
            rejected=out,
            symbols=frozenset(self._book.stocks),
            began_ns=self._began,
            ended_ns=self._mark,
            days=self._days,
            reads={key: frozenset(asking.reads) for key, asking in judged.items()},
            cooldown_ns={key: round(asking.rule.cooldown_s * SECOND) for key, asking in judged.items()},
            pauses=self._pauses(askings),
        )

    def _pauses(self, askings: Iterable[Asking]) -> dict[tuple[str, int, str], list[tuple[int, int]]]:
        judged = {asking.place: asking.rule for asking in askings}
        found = {
            (judged[place].id, judged[place].version, symbol): doubt.ended()
            for (place, symbol), doubt in self._doubts.items()
            if place in judged
        }
        return {key: stretches for key, stretches in found.items() if stretches}


_HELD, _FIRED, _SLOTS = 0, 1, 2
_NO_CANDLES = Candles()


def _waker(oracle: Oracle, symbol: str) -> Callable[[int], None]:
    return lambda ns: oracle._wake(symbol, ns)  # noqa: SLF001  # the oracle's own
