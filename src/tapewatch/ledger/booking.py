"""Prints into minutes and sessions, one by one: the bars, and what the day has come to.

The sums are made in the order of arrival, so that they can be compared to the last bit.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tapewatch.ledger.conditions import MAY, Eligibility, Words
from tapewatch.ledger.days import MINUTE, SECOND, Days
from tapewatch.ledger.tape import Row

LATENESS = 2 * SECOND
"""A minute closes so long after its end."""
REACH = 30
"""Minutes for which a closed bar is still revised."""
_GRACE = 10 * SECOND
NAN = float("nan")


class Print(NamedTuple):
    ts_ns: int
    price: float
    size: float
    words: Words
    exchange: str
    trade_id: int | str


class Bar(NamedTuple):
    """A bar as it finally stands."""

    open: float
    high: float
    low: float
    close: float
    volume: float
    vwap: float
    """NaN without a print that may set both high/low and volume."""
    trade_count: int
    revision: int


@dataclass(slots=True)
class Pile:
    """What prints come to; NaN where none was allowed to say it."""

    first: float = NAN
    first_ts: int = 2**63
    high: float = NAN
    low: float = NAN
    close: float = NAN
    close_ts: int = -1
    volume: float = 0.0
    value: float = 0.0
    weight: float = 0.0
    count: int = 0
    revision: int = 0

    def add(self, p: Print) -> None:
        words = p.words
        if "official_open" in words:  # it stands before everything else of its minute
            self.first, self.first_ts = p.price, -1
        elif "open" in words and p.ts_ns < self.first_ts:
            self.first, self.first_ts = p.price, p.ts_ns
        if "high_low" in words:
            self.high = p.price if math.isnan(self.high) or p.price > self.high else self.high
            self.low = p.price if math.isnan(self.low) or p.price < self.low else self.low
        if "last" in words and p.ts_ns >= self.close_ts:
            self.close, self.close_ts = p.price, p.ts_ns
        if "volume" in words:
            self.volume += p.size
            self.count += 1
            if "high_low" in words:
                self.value += p.price * p.size
                self.weight += p.size

    @property
    def vwap(self) -> float:
        return self.value / self.weight if self.weight else NAN

    def bar(self) -> Bar | None:
        """None without all four prices and a volume."""
        if math.isnan(self.first) or math.isnan(self.high) or math.isnan(self.close) or not self.volume > 0:
            return None
        return Bar(self.first, self.high, self.low, self.close, self.volume, self.vwap, self.count, self.revision)


@dataclass(slots=True)
class Stock:
    """What is known of a symbol; it exists from its first row on."""

    symbol: str
    minutes: dict[int, Pile] = field(default_factory=dict)
    prints: dict[int, list[Print]] = field(default_factory=dict)
    """By minute, where prints may be withdrawn."""
    sessions: dict[str, Pile] = field(default_factory=dict)
    """Of the running day."""
    price: float = NAN
    price_ts: int = -1
    close_prev: float = NAN
    official: dict[str, tuple[int, float]] = field(default_factory=dict)
    """``open`` and ``close``: the day and the price of the newest record."""
    newest_last: dict[bool, tuple[int, str]] = field(default_factory=dict)
    """The day and the venue of the newest last price: False of the tape's own series, True of both."""
    moves: list[float] = field(default_factory=list)
    """What the last price became since the newest scan."""
    path: list[float] = field(default_factory=list)
    """The same as the newest scan sees it."""
    past: tuple[list[int], list[float]] = field(default_factory=lambda: ([], []))
    """The newest mark before each change of the last price, and the price after it."""
    closed: list[int] = field(default_factory=list)
    """Minutes whose bar has closed, in order."""
    memory: dict[int, list[Any]] = field(default_factory=dict)
    """What each rule remembers, by its place."""
    amended: bool = False
    """A print of it was withdrawn or corrected."""


class Booked(NamedTuple):
    """What a row did."""

    stock: Stock
    minutes: tuple[int, ...]
    """In which something changed."""
    last: bool
    """The last price may have moved."""


class Book:
    """All stocks. The caller minds the time: `now` is the newest instant that a mark has reached."""

    def __init__(self, days: Days, eligibility: Eligibility, *, amendable: bool) -> None:
        self.days, self._eligibility, self._amendable = days, eligibility, amendable
        self.stocks: dict[str, Stock] = {}
        self.tally: Counter[str] = Counter()
        """What became of the rows: booked, volume (those that count in one), without_effect, too_late, future, record,
        and those of amendments.
        """
        self.now = -1
        self.mark = -1
        """The newest mark."""
        self.day_start = 0
        self._phases: dict[int, str] = {}

    def open_minute(self) -> int:
        """The older of the two minutes that have not closed."""
        return (self.now - LATENESS) // MINUTE

    def stock(self, symbol: str) -> Stock:
        if symbol not in self.stocks:
            self.stocks[symbol] = Stock(symbol)
        return self.stocks[symbol]

    def phase(self, minute: int) -> str:
        if minute not in self._phases:
            self._phases[minute] = self.days.phase(minute)
        return self._phases[minute]

    def session_name(self, minute: int) -> str:
        phase = self.phase(minute)
        return "regular" if phase == "opening" else phase

    # -- rows ---------------------------------------------------------------------------------------------------------

    def take(self, row: Row) -> Booked | None:
        """Book a row; None if it changed nothing."""
        stock = self.stock(row.symbol)
        if row.kind != "trade":
            return self._amend(stock, row)
        if not (0 < row.price < math.inf and 0 <= row.size < math.inf):
            self.tally["refused"] += 1
            return None
        ts_ns, minute = row.ts_ns, row.ts_ns // MINUTE
        if not self.open_minute() - REACH <= minute <= self.open_minute() + 1:
            self.tally["future" if minute > self.open_minute() else "too_late"] += 1
            return None
        words = self._eligibility.judge(row.conditions, row.tape, self.phase(minute))
        if row.size == 0 and "volume" in words:
            self.tally["record"] += 1  # it should count in the volume and has none
            return None
        day = self.days.trade_day(minute * MINUTE)
        for name in ("open", "close"):
            if f"names_{name}" in words and self._eligibility.lists(row.tape, row.exchange):
                known_day, _ = stock.official.get(name, (-1, NAN))
                if day >= known_day:
                    stock.official[name] = day, row.price
        if "official_close" in words:
            ts_ns = self.days.session(minute * MINUTE).start - 1
            minute = ts_ns // MINUTE
            if minute < self.open_minute() - REACH:
                self.tally["too_late"] += 1
                return None
        words = self._settled(stock, row, day, words)
        if not words & MAY:
            self.tally["without_effect"] += 1
            return None
        self.tally["booked"] += 1
        self.tally["volume"] += "volume" in words
        return self._book(stock, minute, Print(ts_ns, row.price, row.size, words, row.exchange, row.trade_id))

    def _book(self, stock: Stock, minute: int, p: Print) -> Booked:
        pile = stock.minutes.setdefault(minute, Pile())
        pile.add(p)
        if minute < self.open_minute():
            pile.revision += 1
            self.tally["late"] += 1
        if self._amendable:
            stock.prints.setdefault(minute, []).append(p)
        if minute * MINUTE >= self.day_start:
            # Of a session the first price by time counts, official or not.
            plain = p._replace(words=p.words - {"official_open"}) if "official_open" in p.words else p
            stock.sessions.setdefault(self.session_name(minute), Pile()).add(plain)
        moved = "last" in p.words and p.ts_ns >= stock.price_ts
        if moved:
            stock.price, stock.price_ts = p.price, p.ts_ns
            stock.moves.append(p.price)
            self._note_past(stock)
        return Booked(stock, (minute,), moved)

    def _note_past(self, stock: Stock) -> None:
        marks, prices = stock.past
        if marks and marks[-1] == self.mark:
            prices[-1] = stock.price
        else:
            marks.append(self.mark)
            prices.append(stock.price)

    def _settled(self, stock: Stock, row: Row, day: int, words: Words) -> Words:
        """Without the last price and the open where the trades before do not allow them."""
        if "until_end" in words and row.ts_ns >= self.days.days[day].close + _GRACE:
            words -= {"open", "last", "open_if_first", "last_if_first", "last_if_same_venue"}
        if "last" not in words:
            return words
        extended = "extended" in words
        known_day, venue = stock.newest_last.get(extended, (-1, ""))
        first = known_day < day
        if "open_if_first" in words and not first:
            words -= {"open"}
        if "last_if_first" in words and not first:
            words -= {"last"}
        elif "last_if_same_venue" in words and not first:
            same = bool(row.exchange) and row.exchange == venue
            if not same and not self._eligibility.lists(row.tape, row.exchange):
                words -= {"last"}
        if "last" in words:
            for series in {True, extended}:
                if day >= stock.newest_last.get(series, (-1, ""))[0]:
                    stock.newest_last[series] = day, row.exchange
        return words

    # -- what is withdrawn --------------------------------------------------------------------------------------------

    def _amend(self, stock: Stock, row: Row) -> Booked | None:
        """A cancel or a correction: its minute and the day are made again from the prints that stand."""
        for minute in sorted(stock.prints, reverse=True):
            if minute < self.open_minute() - REACH:
                break
            for place, was in reversed(list(enumerate(stock.prints[minute]))):
                if row.trade_id and (was.trade_id, was.exchange) == (row.trade_id, row.exchange):
                    return self._amend_at(stock, row, minute, place)
        self.tally["amendments_unknown"] += 1
        return None

    def _amend_at(self, stock: Stock, row: Row, minute: int, place: int) -> Booked | None:
        prints = stock.prints[minute]
        was = prints[place]
        if row.kind == "cancel":
            del prints[place]
        else:
            words = self._eligibility.judge(row.conditions, row.tape, self.phase(minute))
            if not (0 < row.price < math.inf and 0 < row.size < math.inf):
                self.tally["amendments_refused"] += 1
                return None
            if words & {"open_if_first", "last_if_first", "last_if_same_venue", "until_end"}:
                words -= {"open", "last"} - was.words  # what depended on the trades before has been decided
            prints[place] = was._replace(price=row.price, size=row.size, words=words)
        self.tally["amended"] += 1
        stock.amended = True
        revision = stock.minutes[minute].revision + (minute < self.open_minute())
        stock.minutes[minute] = pile = Pile(revision=revision)
        for p in prints:
            pile.add(p)
        stock.sessions.clear()
        for other in sorted(m for m in stock.prints if m * MINUTE >= self.day_start):
            for p in stock.prints[other]:
                stock.sessions.setdefault(self.session_name(other), Pile()).add(p)
        stock.moves = [stock.price]
        if "last" in was.words and (stock.price_ts, stock.price) == (was.ts_ns, was.price):
            newest = max(stock.sessions.values(), key=lambda session: session.close_ts, default=Pile())
            stock.price, stock.price_ts = newest.close, newest.close_ts
            stock.moves = [stock.price]
        return Booked(stock, (minute,), last=True)

    # -- time ---------------------------------------------------------------------------------------------------------

    def roll(self, next_start: int) -> None:
        """A new trading day begins: what the day closed at becomes the previous close."""
        today = self.days.trade_day(self.day_start)
        for stock in self.stocks.values():
            if "regular" in stock.sessions and not math.isnan(stock.sessions["regular"].close):
                stock.close_prev = stock.sessions["regular"].close
            named_day, price = stock.official.get("close", (-1, NAN))
            if named_day == today:
                stock.close_prev = price
            stock.sessions.clear()
        self.day_start = next_start

    def bars(self) -> Iterator[tuple[str, int, Bar]]:
        """Every bar as it stands: symbol, start of its minute, bar."""
        for symbol in sorted(self.stocks):
            stock = self.stocks[symbol]
            for minute in sorted(stock.minutes):
                bar = stock.minutes[minute].bar()
                if bar is not None and minute < self.open_minute():
                    yield symbol, minute * MINUTE, bar
