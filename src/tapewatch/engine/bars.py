"""One-minute bars from the tape: live, closed, revised.

A cancel or a correction makes the candle of its minute again from the trades that are kept; what is no longer kept, or
older than the reach of revisions, stands. A gap on the tape marks the minutes that it touches.

Two minutes are open at once. Minute M closes when the watermark passes its end by `lateness_ns`; a print that comes
later revises the closed bar as long as it is not older than `REACH_MINUTES`. Time comes from the tape's marks only.

The ring holds the last minutes of all symbols; a late print is booked in the same way as one in time.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from tapewatch.engine.calendar import Session, SessionAt, TradingDays
from tapewatch.engine.candles import Candles, Prints
from tapewatch.engine.columns import (
    F64,
    I64,
    MINUTE_NS,
    OPEN_END_NS,
    SECOND_NS,
    U8,
    U16,
    Bars,
    Batch,
    Bool,
    Gap,
    Kind,
    concat_bars,
)
from tapewatch.engine.conditions import (
    ASKS,
    CONDITION_CARRIED,
    TAPE_CLASS,
    TAPES,
    Effect,
    EffectTable,
    ListingMarkets,
    Profile,
)
from tapewatch.engine.frozen import Carried, Frozen, Whitelist, freeze
from tapewatch.engine.kept import KeptTrades, Print
from tapewatch.engine.lasts import Lasts
from tapewatch.engine.official import OfficialPrices
from tapewatch.engine.symbols import SYMBOL_CARRIED, Index, SymbolTable
from tapewatch.errors import Invalid

REACH_MINUTES = 30
NEVER_NS = 2**62
LATENESS_NS = 2 * SECOND_NS
KEPT_TRADES = 1 << 19
"""Trades that can still be withdrawn, unless the caller says otherwise: 20 MB."""
_GAPS = 1_000
_DAYS = 1 << 20
"""More than any calendar has."""
_KEPT_BYTES = 64
T = TypeVar("T")
_ANY = int(Effect.OPEN | Effect.HIGH_LOW | Effect.LAST | Effect.VOLUME)
_NAMES = int(Effect.NAMES_OPEN | Effect.NAMES_CLOSE)
_SPECIAL = int(Effect.OFFICIAL_OPEN | Effect.OFFICIAL_CLOSE | Effect.UNKNOWN) | _NAMES


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch translated once: the engine's own symbol indices, and where each row's effects stand in the table."""

    kind: U8
    plain: bool
    """All rows are trades."""
    symbol: Index
    code: Index
    """tape class * conditions + condition."""
    codes: int
    """TAPES * conditions: what a phase is multiplied with."""
    table: U16
    ts_ns: I64
    price: F64
    size: F64
    tape: U8
    exchange: U8
    trade_id: I64

    def pick(self, index: Index | slice) -> "Rows":
        """Some of the rows."""
        kind = self.kind[index]
        return Rows(
            kind=kind,
            plain=self.plain or not kind.any(),
            symbol=self.symbol[index],
            code=self.code[index],
            codes=self.codes,
            table=self.table,
            ts_ns=self.ts_ns[index],
            price=self.price[index],
            size=self.size[index],
            tape=self.tape[index],
            exchange=self.exchange[index],
            trade_id=self.trade_id[index],
        )


@dataclass(frozen=True, slots=True)
class Run:
    """What one run of rows did: its prints with an effect, and the closed bars that it revised."""

    symbol: Index
    minute: I64
    effect: U16
    prints: Prints
    revised: dict[int, Index]
    """Closed minute -> symbols whose bar changed."""


@dataclass(frozen=True, slots=True)
class Amendment:
    """A print that was cancelled or corrected; the candle of its minute has been made again."""

    minute: int
    was: Print
    now: Print | None
    """None: it never happened."""
    revised: dict[int, Index]
    """Its minute and symbol, if the minute has closed."""
    had_bar: bool


class BarBuilder:
    """`add` books rows, `close_minute` closes the oldest open minute; the caller minds the marks (or uses `step`)."""

    def __init__(
        self,
        *,
        days: TradingDays,
        profile: Profile,
        lateness_ns: int = LATENESS_NS,
        minutes: int = 32,
        kept_trades: int = KEPT_TRADES,
    ) -> None:
        if not 0 <= lateness_ns < MINUTE_NS:
            raise ValueError("lateness must be at least zero and less than a minute")
        if minutes < REACH_MINUTES + 2 or minutes & (minutes - 1):
            raise ValueError(f"minutes must be a power of two and at least {REACH_MINUTES + 2}")
        self.days = days
        self.lateness_ns = lateness_ns
        self.symbols = SymbolTable()
        self.candles = Candles(minutes, self.symbols.capacity)
        self.tally: Counter[str] = Counter()
        """Counts by what became of a row."""
        self.first_minute: int | None = None
        """The minute (since the epoch) in which this tape began."""
        self.open_minute = 0
        """The older of the two open minutes."""
        self.next_close_ns: int = NEVER_NS
        """Event time at which it closes."""
        self.official = OfficialPrices(days=days, profile=profile, capacity=self.symbols.capacity)
        self.kept = KeptTrades(kept_trades)
        self.gaps: dict[int, int] = {}
        """Start -> end, event time, of the stretches in which trades may be missing; the newest thousand."""
        self._table = EffectTable(profile)
        self._lasts = Lasts(days=days, profile=profile, capacity=self.symbols.capacity) if profile.asks else None
        self._mask = minutes - 1
        self._revision = np.full((minutes, self.symbols.capacity), 0)
        self._phase = np.full(minutes, 0, np.intp)
        self._newest_ns = -1
        self.newest_minute = -1
        """The newest minute with a print."""
        self._session: SessionAt | None = None

    # -- as bytes -----------------------------------------------------------------------------------------------------

    def freeze(self) -> bytes:
        """All that it knows; `thaw` makes one of it that goes on as this one would."""
        return freeze(self, _WHITELIST, about=self.about(), count=len(self.symbols), capacity=self.symbols.capacity)

    @classmethod
    def thaw(
        cls,
        state: bytes,
        *,
        days: TradingDays,
        profile: Profile,
        lateness_ns: int = LATENESS_NS,
        minutes: int = 32,
        kept_trades: int = KEPT_TRADES,
    ) -> "BarBuilder":
        """`Invalid` for bytes that are damaged, of another engine, or of one that was made with other arguments."""
        frozen = Frozen(state, _WHITELIST)
        frozen.check({"lateness_ns": lateness_ns, "minutes": minutes, "kept_trades": kept_trades})
        return thawed(frozen, cls, days=days, profile=profile, kept_trades=kept_trades)

    def about(self) -> dict[str, Any]:
        """What it was made with. Of the calendar only the days that it may have met count: the end of what is known
        moves on.
        """
        days = 2 + int(self.days.trade_day(np.array((self.open_minute + 2) * MINUTE_NS)))
        return {
            "profile": _about(self._table.profile),
            "lateness_ns": self.lateness_ns,
            "minutes": self.candles.rows,
            "kept_trades": self.kept.most,
            "calendar": [days, self.days.digest(days)],
        }

    # -- time ---------------------------------------------------------------------------------------------------------

    def begin(self, ts_ns: int) -> None:
        """The first instant of the tape, row or mark: which minutes are open."""
        if self.first_minute is not None:
            return
        self.open_minute = (ts_ns - self.lateness_ns) // MINUTE_NS
        self.first_minute = ts_ns // MINUTE_NS
        for minute in range(self.open_minute - REACH_MINUTES, self.open_minute + 2):
            self._open(minute)
        self.next_close_ns = (self.open_minute + 1) * MINUTE_NS + self.lateness_ns

    def close_minute(self) -> Bars:
        """Close the older open minute and open one more; its bars, in the order of symbols."""
        minute = self.open_minute
        row = minute & self._mask
        bars = self.bars_of(minute, self.candles.all_complete(row, len(self.symbols)))
        self.open_minute = minute + 1
        self._open(minute + 2)
        self.next_close_ns += MINUTE_NS
        return bars

    def skip_empty(self, watermark_ns: int) -> None:
        """Jump over minutes without a print, which close without bars; a night costs no more than a minute."""
        target = self.skips_to(watermark_ns)
        if target is None:
            return
        opened = self.open_minute + 2
        self.open_minute = target
        for minute in range(max(opened, target + 2 - self.candles.rows), target + 2):
            self._open(minute)
        self.next_close_ns = (target + 1) * MINUTE_NS + self.lateness_ns

    def skips_to(self, watermark_ns: int) -> int | None:
        """The open minute after `skip_empty`; None if there is nothing to skip."""
        target = (watermark_ns - self.lateness_ns) // MINUTE_NS
        return None if self.newest_minute >= self.open_minute or target <= self.open_minute else target

    def session_of(self, minute: int) -> SessionAt:
        ts_ns = minute * MINUTE_NS
        if self._session is None or not self._session.start_ns <= ts_ns < self._session.end_ns:
            self._session = self.days.at(ts_ns)
        return self._session

    def row(self, minute: int) -> int:
        return minute & self._mask

    def _open(self, minute: int) -> None:
        row = minute & self._mask
        self.candles.reset(row)
        self._revision[row] = 0
        self._phase[row] = self.session_of(minute).phase(minute)

    # -- rows ---------------------------------------------------------------------------------------------------------

    def rows(self, batch: Batch) -> Rows:
        """Translate a batch; arrays grow here when it brings new symbols."""
        translation = self.symbols.translate(batch.symbols)
        self.make_room()
        conditions = len(batch.conditions)
        code = TAPE_CLASS[batch.tape]
        code *= conditions
        code += batch.condition
        return Rows(
            kind=batch.kind,
            plain=not batch.kind.any(),
            symbol=translation[batch.symbol],
            code=code,
            codes=TAPES * conditions,
            table=self._table.lookup(batch.conditions),
            ts_ns=batch.ts_ns,
            price=batch.price,
            size=batch.size,
            tape=batch.tape,
            exchange=batch.exchange,
            trade_id=batch.trade_id,
        )

    def book(self, rows: Rows, start: int, stop: int) -> Iterator[Run | Amendment]:
        """Book these rows in the order of arrival: runs of trades, and between them what was withdrawn or corrected."""
        if not rows.plain:
            kind = rows.kind[start:stop]
            for at in (np.flatnonzero((kind == Kind.CANCEL) | (kind == Kind.CORRECTION)) + start).tolist():
                run = self.add(rows, start, at) if start < at else None
                amendment = self._amend(rows, at)
                yield from (change for change in (run, amendment) if change is not None)
                start = at + 1
        run = self.add(rows, start, stop) if start < stop else None
        if run is not None:
            yield run

    def add(self, rows: Rows, start: int, stop: int) -> Run | None:
        """Book the trades among these rows; None if none of them has any effect."""
        rows = rows.pick(slice(start, stop))
        if not rows.plain:
            rows = rows.pick(np.flatnonzero(rows.kind == Kind.TRADE))
        price, size = rows.price, rows.size
        valid = (price > 0) & (price < np.inf) & (size > 0) & (size < np.inf)
        if not valid.all():
            rows = rows.pick(self._refuse(valid, price, size))
        if not len(rows.ts_ns):
            return None
        minute = rows.ts_ns // MINUTE_NS
        if minute.min() < self.open_minute - REACH_MINUTES or minute.max() > self.open_minute + 1:
            keep = self._out_of_reach(minute)
            rows, minute = rows.pick(keep), minute[keep]
            if not len(minute):
                return None
        effect = rows.table[self._phase[minute & self._mask] * rows.codes + rows.code]
        if (effect & _SPECIAL).any() or not rows.size.all():
            effect, rows, minute = self._special(effect, rows, minute)
        if self._lasts is not None:
            effect = self._lasts.settle(
                effect, symbol=rows.symbol, ts_ns=rows.ts_ns, minute=minute, exchange=rows.exchange, tape=rows.tape
            )
        return self._book(rows, minute, effect)

    def _book(self, rows: Rows, minute: I64, effect: U16) -> Run | None:
        counted = int(np.count_nonzero(effect & _ANY))
        self.tally["trades"] += len(effect)
        if counted < len(effect):
            self.tally["without_effect"] += len(effect) - counted
            if not counted:
                return None
            keep = np.flatnonzero(effect & _ANY)
            rows, minute, effect = rows.pick(keep), minute[keep], effect[keep]
        symbol, ts_ns = rows.symbol, rows.ts_ns
        self.kept.add(symbol, ts_ns, rows.price, rows.size, effect, rows.exchange, rows.trade_id)
        ordered = bool(ts_ns[0] >= self._newest_ns and np.all(ts_ns[1:] >= ts_ns[:-1]))
        self._newest_ns = max(self._newest_ns, int(ts_ns[-1] if ordered else ts_ns.max()))
        prints = Prints.of(ts_ns=ts_ns, price=rows.price, size=rows.size, effect=effect, ordered=ordered)
        self.tally["volume_only"] += len(effect) - len(prints.extremes)
        flat = (minute & self._mask) * self.candles.capacity + symbol
        self.candles.add(flat, prints)
        revised: dict[int, Index] = {}
        self.newest_minute = max(self.newest_minute, int(minute.max()))
        if minute.min() < self.open_minute:
            late = np.flatnonzero(minute < self.open_minute)
            self.tally["late"] += len(late)
            np.add.at(self._revision.reshape(-1), flat[late], 1)
            for closed in np.unique(minute[late]):
                revised[int(closed)] = np.unique(symbol[late][minute[late] == closed])
        if (effect & Effect.OFFICIAL_OPEN).any():
            self._book_official_opens(flat, effect, prints)
        return Run(symbol=symbol, minute=minute, effect=effect, prints=prints, revised=revised)

    def _amend(self, rows: Rows, at: int) -> Amendment | None:
        """None where nothing can be done, which is counted."""
        symbol, cancelled = int(rows.symbol[at]), rows.kind[at] == Kind.CANCEL
        self.tally["cancels" if cancelled else "corrections"] += 1
        place = self.kept.find(symbol, int(rows.exchange[at]), int(rows.trade_id[at]))
        if place is None:
            self.tally["amendments_unknown"] += 1
            return None
        was = self.kept.at(place)
        minute = was.ts_ns // MINUTE_NS
        row = self.row(minute)
        counted = self.kept.effect[self.kept.minute(symbol, minute)] & Effect.VOLUME
        if minute < self.open_minute - REACH_MINUTES or np.count_nonzero(counted) != self.candles.count[row, symbol]:
            self.tally["amendments_too_late"] += 1
            return None
        now = None if cancelled else self._corrected(rows, at, was)
        if not cancelled and now is None:
            self.tally["amendments_refused"] += 1
            return None
        if now is None:
            self.kept.withdraw(place)
        else:
            self.kept.amend(place, price=now.price, size=now.size, effect=now.effect)
        had_bar = len(self.candles.complete(row, np.array([symbol]))) > 0
        self._make_again(symbol, minute)
        revised: dict[int, Index] = {}
        if minute < self.open_minute:
            self._revision[row, symbol] += 1
            revised[minute] = np.array([symbol], np.intp)
        return Amendment(minute=minute, was=was, now=now, revised=revised, had_bar=had_bar)

    def _corrected(self, rows: Rows, at: int, was: Print) -> Print | None:
        """What a trade should have been; None if it cannot have been that."""
        price, size = float(rows.price[at]), float(rows.size[at])
        if not (0 < price < np.inf and 0 < size < np.inf):
            return None
        phase = self._phase[self.row(was.ts_ns // MINUTE_NS)]
        effect = int(rows.table[phase * rows.codes + rows.code[at]])
        if effect & ASKS:  # what depended on the trades before has been decided
            effect &= ~int(Effect.OPEN | Effect.LAST) | was.effect
        return was._replace(price=price, size=size, effect=effect)

    def _make_again(self, symbol: int, minute: int) -> None:
        row, kept = self.row(minute), self.kept
        self.candles.reset(row, symbol)
        there = kept.minute(symbol, minute)
        if not len(there):
            return
        effect = kept.effect[there]
        prints = Prints.of(
            ts_ns=kept.ts_ns[there], price=kept.price[there], size=kept.size[there], effect=effect, ordered=False
        )
        flat = np.full(len(there), row * self.candles.capacity + symbol)
        self.candles.add(flat, prints)
        if (effect & Effect.OFFICIAL_OPEN).any():
            self._book_official_opens(flat, effect, prints)

    def gap(self, gap: Gap) -> None:
        """Trades may be missing; see `Gap` for what takes whose place."""
        self.gaps[gap.start_ns] = gap.end_ns
        if gap.end_ns <= gap.start_ns:
            del self.gaps[gap.start_ns]
        while len(self.gaps) > _GAPS:
            del self.gaps[min(self.gaps)]

    def gapped(self, start_ns: int, end_ns: int) -> bool:
        """Whether trades with times in [start_ns, end_ns) may be missing."""
        return any(start < end_ns and end > start_ns for start, end in self.gaps.items())

    def lacks(self, now_ns: int) -> bool:
        """Whether the newest trades before an instant may be missing: no more are coming, or it lies in a gap whose end
        is known already, as it is of a stretch of tape that was lost.
        """
        return any(end == OPEN_END_NS or start < now_ns <= end for start, end in self.gaps.items())

    def _book_official_opens(self, flat: Index, effect: U16, prints: Prints) -> None:
        """The official open stands before everything else of its minute."""
        rows = np.flatnonzero(effect & Effect.OFFICIAL_OPEN)
        self.candles.open.reshape(-1)[flat[rows]] = prints.price[rows]
        self.candles.open_ts.reshape(-1)[flat[rows]] = -1

    def _refuse(self, valid: Bool, price: F64, size: F64) -> Index:
        """Positions that stay: valid ones, and records of size zero (an official price may have no volume)."""
        bad_price = ~((price > 0) & (price < np.inf))
        bad_size = ~((size >= 0) & (size < np.inf))
        self.tally["rejected_price"] += int(np.count_nonzero(bad_price))
        self.tally["rejected_size"] += int(np.count_nonzero(bad_size & ~bad_price))
        return np.flatnonzero(valid | ~(bad_price | bad_size))

    def _out_of_reach(self, minute: I64) -> Index:
        too_late = minute < self.open_minute - REACH_MINUTES
        too_early = minute > self.open_minute + 1
        self.tally["too_late"] += int(np.count_nonzero(too_late))
        self.tally["future"] += int(np.count_nonzero(too_early))
        return np.flatnonzero(~(too_late | too_early))

    def _special(self, effect: U16, rows: Rows, minute: I64) -> tuple[U16, Rows, I64]:
        self.tally["unknown_condition"] += int(np.count_nonzero(effect & Effect.UNKNOWN))
        # A print that should count in the volume but has none is an administrative record.
        effect = np.where((rows.size == 0) & (effect & Effect.VOLUME != 0), 0, effect).astype(np.uint16)
        if (effect & _NAMES).any():
            self.official.book(
                effect, symbol=rows.symbol, minute=minute, price=rows.price, exchange=rows.exchange, tape=rows.tape
            )
        closing = np.flatnonzero(effect & Effect.OFFICIAL_CLOSE)
        if len(closing):
            ts_ns = rows.ts_ns.copy()
            for position in closing:
                session = self.session_of(int(minute[position]))
                ts_ns[position] = session.start_ns - 1
            rows, minute = replace(rows, ts_ns=ts_ns), ts_ns // MINUTE_NS
            unreachable = minute < self.open_minute - REACH_MINUTES
            self.tally["too_late"] += int(np.count_nonzero(unreachable))
            effect[unreachable] = 0
        return effect, rows, minute

    # -- bars ---------------------------------------------------------------------------------------------------------

    def bars_of(self, minute: int, symbols: Index) -> Bars:
        """The bars of these symbols in a minute of the ring, as they stand."""
        row = minute & self._mask
        c = self.candles
        weight = c.weight[row, symbols]
        with np.errstate(invalid="ignore", divide="ignore"):
            vwap = c.value[row, symbols] / weight
        return Bars(
            symbols=self.symbols.names,
            symbol=symbols.astype(np.int32),
            ts_ns=np.full(len(symbols), minute * MINUTE_NS, np.int64),
            open=c.open[row, symbols],
            high=c.high[row, symbols],
            low=c.low[row, symbols],
            close=c.close[row, symbols],
            volume=c.volume[row, symbols],
            vwap=vwap,
            vwap_volume=weight,
            trade_count=c.count[row, symbols],
            revision=self._revision[row, symbols],
        )

    def revised_bars(self, run: Run | Amendment) -> list[Bars]:
        """The revised bars of a run; one that still lacks a price is none. A bar that is no longer one comes with NaN
        prices.
        """
        parts = []
        for minute, symbols in run.revised.items():
            complete = self.candles.complete(minute & self._mask, symbols)
            if len(complete):
                parts.append(self.bars_of(minute, complete))
            elif isinstance(run, Amendment) and run.had_bar:
                none = np.full(len(symbols), np.nan)
                parts.append(replace(self.bars_of(minute, symbols), open=none, high=none, low=none, close=none))
        return parts

    def step(self, batch: Batch) -> Bars:
        """Book a batch and close what its marks close: the bars that closed or were revised, in that order."""
        rows = self.rows(batch)
        parts: list[Bars] = []
        start = 0
        if self.first_minute is None:
            if len(batch.marks_ns) and batch.marks_row[0] == 0:
                self.begin(int(batch.marks_ns[0]))
            elif len(batch):
                self.begin(int(batch.ts_ns[0]))
        for mark in iter(lambda: int(np.searchsorted(batch.marks_ns, self.next_close_ns)), len(batch.marks_ns)):
            start = self._add(rows, start, int(batch.marks_row[mark]), parts)
            watermark_ns = int(batch.marks_ns[mark])
            while self.next_close_ns <= watermark_ns:
                self.skip_empty(watermark_ns)
                if self.next_close_ns <= watermark_ns:
                    parts.append(self.close_minute())
        self._add(rows, start, len(batch), parts)
        return concat_bars([part for part in parts if len(part)] or [empty_bars()])

    def _add(self, rows: Rows, start: int, stop: int, parts: list[Bars]) -> int:
        for run in self.book(rows, start, stop) if stop > start else ():
            parts += self.revised_bars(run)
        return max(start, stop)

    def make_room(self) -> None:
        """Arrays grow to what the symbol table wants."""
        capacity = self.symbols.capacity
        if capacity == self.candles.capacity:
            return
        self.candles.resize(capacity)
        self.official.resize(capacity)
        if self._lasts is not None:
            self._lasts.resize(capacity)
        revision = np.full((len(self._revision), capacity), 0)
        revision[:, : self._revision.shape[1]] = self._revision
        self._revision = revision


def empty_bars() -> Bars:
    ints = np.zeros(0, np.int64)
    floats = np.zeros(0)
    return Bars(
        symbols=(),
        symbol=np.zeros(0, np.int32),
        ts_ns=ints,
        open=floats,
        high=floats,
        low=floats,
        close=floats,
        volume=floats,
        vwap=floats,
        vwap_volume=floats,
        trade_count=ints,
        revision=ints,
    )


def thawed(frozen: Frozen, root: type[T], *, days: TradingDays, profile: Profile, kept_trades: int, **given: Any) -> T:
    """The state of bars, or of what is built on them, for this calendar and profile."""
    frozen.check({"profile": _about(profile)})
    match frozen.about.get("calendar"):
        case [int(count), str(digest)] if 0 <= count <= _DAYS and days.digest(count) == digest:
            pass
        case _:
            raise Invalid("state", "is of another calendar")
    given |= {"days": days, "profile": profile, "listing": ListingMarkets(profile)}
    made = frozen.thaw(given, most_bytes=_KEPT_BYTES * kept_trades)
    if not isinstance(made, root):
        raise Invalid("state", f"is not of a {root.__name__}")
    return made


def _about(profile: Profile) -> list[Any]:
    """What tells profiles apart at once; how one judges is compared when the state is made again."""
    return [profile.name, profile.column, profile.asks, sorted(map(list, profile.listing.items()))]


BAR_CARRIED = (
    Carried(BarBuilder, given=("days",)),
    Carried(Candles),
    Carried(OfficialPrices, given=("_days", "_listing")),
    Carried(KeptTrades),
    Carried(Lasts, given=("_days", "_listing")),
    Carried(SessionAt),
    Carried(Session),
    *SYMBOL_CARRIED,
    *CONDITION_CARRIED,
)
_WHITELIST = Whitelist(BAR_CARRIED, {})
