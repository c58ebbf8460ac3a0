"""The engine again, slowly: one tick at a time, lists and dictionaries, nothing remembered that can be counted again.

It shares no code with `tapewatch.engine`; rows, rules and calendars come in as plain numbers and words. What a metric
means is taken from the catalogue's formulas. Where a formula leaves something open, this says what is meant:

* A window is known once the tape (and, for averages, the day) reaches back far enough.
* Day metrics count pre-market, regular session and post-market; the night belongs to no day.
* A scan at t sees the rows that arrived before a mark reached t. Its live minute is the one that ends at or holds t.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import pairwise

from naive_metrics import Look

SECOND = 1_000_000_000
MINUTE = 60 * SECOND
NAN = float("nan")
WINDOWS = {"1m": 1, "5m": 5, "15m": 15, "1h": 60}
CLOSED, PRE, REGULAR, POST = "closed", "pre", "regular", "post"


@dataclass(frozen=True)
class Row:
    symbol: str
    ts_ns: int
    price: float = 10.0
    size: float = 100.0
    conditions: str = "@"
    tape: str = "C"
    kind: str = "trade"
    exchange: str = ""


@dataclass(frozen=True)
class Mark:
    ns: int


@dataclass(frozen=True)
class NaiveRule:
    id: str
    version: int
    conditions: tuple[tuple[str, str, float], ...]
    cooldown_ns: int = 0


@dataclass(frozen=True)
class Rules:
    """A ruleset takes effect here."""

    rules: tuple[NaiveRule, ...]


Item = Row | Mark | Rules
Words = frozenset[str]
Judge = Callable[[str, str, str], Words]
"""(conditions, tape, phase) -> words among open, high_low, last, volume, official_open, official_close; names_open and
names_close; and what the trades before decide: open_if_first, last_if_first, last_if_same_venue, until_end, extended.
"""
EVERYTHING: Words = frozenset({"open", "high_low", "last", "volume"})


# -- who may move what -------------------------------------------------------------------------------------------------


def alpaca(conditions: str, tape: str, _phase: str) -> Words:
    """Alpaca's minute table: letter by letter, the strictest wins; an unknown letter counts in the volume only."""
    names = {"M": "names_close", "9": "names_close", "Q": "names_open"}

    def one(letter: str, tape: str) -> Words:
        if letter in names:
            return frozenset()
        if letter in " @ADEFKLOTXY561" or (letter == "B" and tape == "C"):
            return EVERYTHING
        return frozenset({"volume"})

    allowed = EVERYTHING
    for letter in conditions or " ":
        for possible in [tape] if tape else ["A", "C"]:
            allowed &= one(letter, possible)
    return allowed | {names[letter] for letter in conditions if letter in names}


def sip(conditions: str, tape: str, phase: str) -> Words:
    """The plans' consolidated tables, letter by letter; the strictest wins, and every condition of each holds."""
    outside = phase in (CLOSED, PRE, POST)

    def one(letter: str, tape: str) -> Words:
        cta = tape in "AB"
        if letter in (" @EFKXO56" if cta else " @ABDFKOSXY156"):
            return EVERYTHING
        if letter in ("PZ4" if cta else "GPZ4"):
            return EVERYTHING | {"open_if_first", "last_if_first"}
        if letter == "L":
            return EVERYTHING | {"open_if_first", "last_if_same_venue" if cta else "until_end"}
        if letter == "9" and phase == POST:
            return frozenset({"last", "high_low", "official_close", "names_close"})
        if letter == "9":
            return frozenset({"open", "last", "high_low", "open_if_first", "names_close"})
        if letter == "T" and outside:
            return EVERYTHING | {"extended"}
        if letter == "U" and outside:
            return EVERYTHING | {"extended", "open_if_first", "last_if_first"}
        if letter in "MQ":
            return frozenset({"names_close" if letter == "M" else "names_open"})
        return frozenset({"volume"})

    readings = [one(letter, possible) for letter in conditions or " " for possible in ([tape] if tape else "AC")]
    allowed = EVERYTHING.intersection(*readings)
    words = allowed | (frozenset().union(*readings) - EVERYTHING)
    if "last" not in allowed:
        words &= EVERYTHING | {"names_open", "names_close"}
        if any("open_if_first" in reading for reading in readings):
            words -= {"open"}
    return words


def massive(conditions: str, tape: str, phase: str) -> Words:
    """Massive's update rules, by letter; Form T sets prices outside regular hours."""
    names = {"M": "names_close", "9": "names_close", "Q": "names_open"}

    def one(letter: str, tape: str) -> Words:
        if letter in " @ADEFKLOSXY156" or (letter == "B" and tape == "C"):
            return EVERYTHING
        if letter == "T" and phase in (CLOSED, PRE, POST):
            return EVERYTHING
        if letter in "GPZ4":
            return frozenset({"high_low", "volume"})
        if letter == "9":
            return frozenset({"open", "high_low", "last"})
        return frozenset() if letter in "MQ" else frozenset({"volume"})

    readings = [one(letter, possible) for letter in conditions or " " for possible in ([tape] if tape else "AC")]
    return EVERYTHING.intersection(*readings) | {names[letter] for letter in conditions if letter in names}


def algoseek(conditions: str, _tape: str, phase: str) -> Words:
    """AlgoSeek's rule, as the market data's notes tell it."""
    flags, suspicious = int(conditions.split(" ", maxsplit=1)[0], 16), conditions.endswith("suspicious")
    words: set[str] = set()
    official = flags == 0x80 or (flags == 0x40 and phase == "opening")
    if not flags & 0x5000000 and (official or not flags & 0xC0):
        words.add("volume")
    words |= {name for bit, name in ((0x4000000, "names_open"), (0x1000000, "names_close")) if flags & bit}
    if suspicious:
        return frozenset(words)
    price = {"open", "high_low", "last"}
    if phase in ("opening", "regular"):
        if flags == 0x1:
            words |= price
        if flags == 0x40 and phase == "opening":
            words |= price | {"official_open"}
    elif flags & 0x2000:
        words |= price
    if flags == 0x80 and phase == "post":
        words |= price | {"official_close"}
    return frozenset(words)


def lists(tape: str, exchange: str) -> bool:
    """Whether this market lists the tape's symbols."""
    return bool(exchange) and exchange in {"A": "N", "B": "PAZV", "C": "QT"}.get(tape, "")


def each_apart(conditions: str, _tape: str, _phase: str) -> Words:
    """A made-up vendor whose letters are the effects: o, h, l, v."""
    names = {"o": "open", "h": "high_low", "l": "last", "v": "volume"}
    return frozenset(names[letter] for letter in conditions if letter in names)


# -- the calendar ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NaiveDays:
    """(pre, open, close, post) of each trading day, in nanoseconds."""

    days: Sequence[tuple[int, int, int, int]]

    def session(self, ts_ns: int) -> tuple[str, int]:
        """The session of an instant, and when it began."""
        at = bisect_right(self.days, (ts_ns, math.inf, math.inf, math.inf)) - 1
        if at < 0:
            return CLOSED, -(2**62)
        pre, opened, closed, post = self.days[at]
        if ts_ns < opened:
            return PRE, pre
        if ts_ns < closed:
            return REGULAR, opened
        if ts_ns < post:
            return POST, closed
        return CLOSED, post

    def phase(self, minute: int) -> str:
        session, start = self.session(minute * MINUTE)
        return "opening" if session == REGULAR and start == minute * MINUTE else session

    def start_of_day(self, ts_ns: int) -> int:
        """04:00 of the newest trading day at an instant."""
        return self.days[bisect_right(self.days, (ts_ns, math.inf, math.inf, math.inf)) - 1][0]

    def trade_day(self, ts_ns: int) -> int:
        """The trading day that a trade belongs to: after 20:00 the next one."""
        return sum(post <= ts_ns for *_, post in self.days)

    def next_day(self, ts_ns: int) -> int:
        """04:00 of the first trading day after an instant."""
        return next((day[0] for day in self.days if day[0] > ts_ns), 2**62)


# -- bars --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Print:
    ts_ns: int
    price: float
    size: float
    words: Words


@dataclass(frozen=True)
class NaiveBar:
    open: float
    high: float
    low: float
    close: float
    volume: float
    vwap: float
    trade_count: int
    revision: int


@dataclass(frozen=True)
class Facts:
    """What a pile of prints comes to; NaN where no print was allowed to say it."""

    first: float = NAN
    official: float = NAN
    high: float = NAN
    low: float = NAN
    close: float = NAN
    volume: float = 0.0
    value: float = 0.0
    weight: float = 0.0
    """Dollars and shares behind the VWAP."""
    count: int = 0

    @property
    def vwap(self) -> float:
        return self.value / self.weight if self.weight else NAN


class Pile:
    """Prints of one symbol in one minute or session, in the order of arrival; gone through again after each new one."""

    def __init__(self) -> None:
        self.prints: list[Print] = []
        self.late = 0
        self._facts, self._of = Facts(), 0

    @property
    def facts(self) -> Facts:
        if self._of != len(self.prints):
            self._facts, self._of = tell(self.prints), len(self.prints)
        return self._facts

    def bar(self) -> NaiveBar | None:
        """None without all four prices and a volume."""
        f = self.facts
        opened = f.first if math.isnan(f.official) else f.official
        if math.isnan(opened) or math.isnan(f.high) or math.isnan(f.close) or not f.volume > 0:
            return None
        return NaiveBar(opened, f.high, f.low, f.close, f.volume, f.vwap, f.count, self.late)


def tell(prints: Sequence[Print]) -> Facts:
    first = official = high = low = close = NAN
    first_ts, close_ts = 2**63, -(2**63)
    volume = value = weight = 0.0
    count = 0
    for p in prints:
        if "open" in p.words and p.ts_ns < first_ts:
            first, first_ts = p.price, p.ts_ns
        if "official_open" in p.words:
            official = p.price
        if "high_low" in p.words:
            high = p.price if math.isnan(high) or p.price > high else high
            low = p.price if math.isnan(low) or p.price < low else low
        if "last" in p.words and p.ts_ns >= close_ts:
            close, close_ts = p.price, p.ts_ns
        if "volume" in p.words:
            volume, count = volume + p.size, count + 1
            if "high_low" in p.words:
                value, weight = value + p.price * p.size, weight + p.size
    return Facts(first, official, high, low, close, volume, value, weight, count)


# -- indicators: over the whole list, from the start, each time --------------------------------------------------------


def sma(closes: Sequence[float], n: int) -> float:
    return math.fsum(closes[-n:]) / n if len(closes) >= n else NAN


def ema(closes: Sequence[float], n: int) -> float:
    if len(closes) < n:
        return NAN
    value = math.fsum(closes[:n]) / n
    for close in closes[n:]:
        value = 2 / (n + 1) * close + (1 - 2 / (n + 1)) * value
    return value


def rsi(closes: Sequence[float], n: int = 14) -> float:
    if len(closes) <= n:
        return NAN
    changes = [b - a for a, b in pairwise(closes)]
    gain = sum(max(c, 0.0) for c in changes[:n]) / n
    loss = sum(max(-c, 0.0) for c in changes[:n]) / n
    for c in changes[n:]:
        gain = (gain * (n - 1) + max(c, 0.0)) / n
        loss = (loss * (n - 1) + max(-c, 0.0)) / n
    return 100 * gain / (gain + loss) if gain + loss else 0.0


def atr(bars: Sequence[tuple[float, float, float]], n: int = 14) -> float:
    """`bars` are (high, low, close)."""
    ranges = [
        max(high - low, abs(high - before), abs(low - before)) for (_, _, before), (high, low, _) in pairwise(bars)
    ]
    if len(ranges) < n:
        return NAN
    value = sum(ranges[:n]) / n
    for r in ranges[n:]:
        value = (value * (n - 1) + r) / n
    return value


def indicators(bars: Sequence[tuple[float, float, float]]) -> dict[str, float]:
    closes = [close for _, _, close in bars]
    return {
        "rsi_14_1m": rsi(closes),
        "atr_14_1m": atr(bars),
        **{f"ema_{n}_1m": ema(closes, n) for n in (20, 50, 200)},
        **{f"sma_{n}_1m": sma(closes, n) for n in (20, 50, 200)},
    }


# -- rules -------------------------------------------------------------------------------------------------------------

_HOLDS: dict[str, Callable[[float, float], bool]] = {
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
    ">=": lambda a, b: a >= b,
    "<=": lambda a, b: a <= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}


def truth(rule: NaiveRule, values: dict[str, float]) -> bool | None:
    """True, False or unknown: false if one part is false, else unknown if one part is unknown."""
    unknown = False
    for metric, operator, threshold in rule.conditions:
        value = values[metric]
        if math.isnan(value):
            unknown = True
        elif not _HOLDS[operator](value, threshold):
            return False
    return None if unknown else True


@dataclass(frozen=True)
class NaiveMatch:
    alert_id: str
    rule_id: str
    symbol: str
    at_ns: int
    price: float
    values: dict[str, float]
    session: str


class Memory:
    """Edges and cooldowns of one ruleset after the other."""

    def __init__(self) -> None:
        self.rules: tuple[NaiveRule, ...] = ()
        self.true: dict[tuple[str, int, str], bool] = {}
        self.fired: dict[tuple[str, int, str], int] = {}
        self.cooled_down = 0

    def apply(self, rules: tuple[NaiveRule, ...]) -> None:
        self.rules = rules
        kept = {(rule.id, rule.version) for rule in rules}
        self.true = {key: true for key, true in self.true.items() if key[:2] in kept}
        self.fired = {key: ns for key, ns in self.fired.items() if key[:2] in kept}

    def scan(self, board: dict[str, dict[str, float]], now_ns: int, session: str) -> list[NaiveMatch]:
        matches = []
        for rule in self.rules:
            for symbol in sorted(board):
                key = (rule.id, rule.version, symbol)
                now = truth(rule, board[symbol])
                before = self.true.get(key, False)
                if now is not None:
                    self.true[key] = now
                if now is not True or before:
                    continue
                if rule.cooldown_ns and key in self.fired and now_ns - self.fired[key] < rule.cooldown_ns:
                    self.cooled_down += 1
                    continue
                self.fired[key] = now_ns
                words = f"{rule.id}\x1f{rule.version}\x1f{symbol}\x1f{now_ns}"
                matches.append(
                    NaiveMatch(
                        alert_id=blake2b(words.encode(), digest_size=16).hexdigest(),
                        rule_id=rule.id,
                        symbol=symbol,
                        at_ns=now_ns,
                        price=board[symbol]["price"],
                        values={metric: board[symbol][metric] for metric, _, _ in rule.conditions},
                        session=session,
                    )
                )
        return matches


NOTHING = dict.fromkeys((PRE, REGULAR, POST, "day"), (NAN, NAN))


# -- everything together -----------------------------------------------------------------------------------------------


@dataclass
class SymbolFacts:
    """What is known of a symbol; it exists from its first row on."""

    name: str = ""
    minutes: dict[int, Pile] = field(default_factory=dict)
    sessions: dict[str, Pile] = field(default_factory=dict)
    day: Pile = field(default_factory=Pile)
    price: float = NAN
    price_ts: int = -(2**63)
    path: list[tuple[int, float]] = field(default_factory=list)
    """(the newest mark before the row, the price after it)."""
    lasts: list[tuple[int, str, bool]] = field(default_factory=list)
    """(trading day, venue, extended) of every trade that set a last price."""
    prices: list[tuple[int, float]] = field(default_factory=list)
    """Time and price of every trade that may set a last price, late ones included, in the order of arrival."""
    official: list[tuple[str, int, float]] = field(default_factory=list)
    """(open or close, trading day, price) of every record that named one."""
    close_prev: float = NAN
    halted: bool = False
    halts: list[int] = field(default_factory=list)
    """When each halt of the day began."""
    resumes: list[int] = field(default_factory=list)
    quote: dict[str, float] = field(default_factory=dict)
    """bid, bid_size, ask, ask_size, band_low, band_high: what came last today."""
    quote_ts: int | None = None
    moves: list[float] = field(default_factory=list)
    """What the last price became since the newest scan."""
    seen_path: list[float] = field(default_factory=list)
    """The same as the newest scan saw it, its own price included; empty where nothing is known."""
    seen_extremes: tuple[dict[str, tuple[float, float]], ...] = ()
    """(high, low) by session, and of the day, at the scan before the newest one and at that."""
    new_extremes: tuple[int, int] = (0, 0)
    """Scans of the day at which its high (low) was new."""
    _indicators: tuple[tuple[int, int], dict[str, float]] = ((-1, -1), {})
    rows: int = 0


class Naive:
    """`run` a tape; then ask for `bars`, `matches` and `boards`."""

    def __init__(
        self,
        *,
        days: NaiveDays,
        judge: Judge,
        scan_ns: int,
        lateness_ns: int = 2 * SECOND,
        reach_minutes: int = 30,
        boards: Iterable[str] = (),
        scans: bool = False,
        told: Mapping[int, Mapping[str, Mapping[str, float]]] | None = None,
        reference_names: Iterable[str] = (),
    ) -> None:
        """`boards`: the metrics of the boards to keep; none without. `scans`: also without a rule somebody looks.
        `told`: what reference data say, by the start of the day, symbol and name; `reference_names` are all that they
        may say.
        """
        self.days, self.judge, self.scan_ns = days, judge, scan_ns
        self.lateness_ns, self.reach_minutes, self.wanted = lateness_ns, reach_minutes, set(boards)
        self.scans, self.facts_of_day, self.reference_names = scans, told or {}, frozenset(reference_names)
        self.symbols: dict[str, SymbolFacts] = {}
        self.scanned = False
        """Somebody has looked at extremes and paths."""
        self.memory = Memory()
        self.matches: list[NaiveMatch] = []
        self.boards: dict[int, dict[str, dict[str, float]]] = {}
        self.began: int | None = None
        self.now = 0
        """The newest instant that a mark has reached."""
        self.newest_mark = -(2**63)
        self.day_start = self.next_day = 0
        self.next_scan = 0

    # time

    def open_minute(self) -> int:
        """The older of the two minutes that are not closed."""
        return (self.now - self.lateness_ns) // MINUTE

    def _begin(self, ts_ns: int) -> None:
        if self.began is None:
            self.began = self.now = ts_ns
            self.day_start = self.days.start_of_day(ts_ns)
            self.next_day = self.days.next_day(ts_ns)
            self.next_scan = (ts_ns // self.scan_ns + 1) * self.scan_ns

    def _roll(self) -> None:
        for facts in self.symbols.values():
            last = facts.sessions[REGULAR].facts.close if REGULAR in facts.sessions else NAN
            for close in (last, self.official(facts, "close")):
                facts.close_prev = facts.close_prev if math.isnan(close) else close
            facts.sessions.clear()
            facts.day = Pile()
            facts.halts, facts.resumes, facts.quote, facts.quote_ts = [], [], {}, None
            facts.seen_extremes = tuple(NOTHING for _ in facts.seen_extremes)
            facts.new_extremes = (0, 0)
        self.day_start, self.next_day = self.next_day, self.days.next_day(self.next_day)
        for facts in self.symbols.values():
            close = self.reference(facts, "close_prev_day")
            facts.close_prev = facts.close_prev if math.isnan(close) else close

    def _reach(self, mark_ns: int) -> None:
        while min(self.next_scan, self.next_day) <= mark_ns:
            scan_first = self.next_scan <= self.next_day
            self.now = max(self.now, self.next_scan if scan_first else self.next_day)
            if scan_first:
                self._scan(self.next_scan)
                self.next_scan += self.scan_ns
            else:
                self._roll()
        self.now = max(self.now, mark_ns)
        self.newest_mark = max(self.newest_mark, mark_ns)

    # the tape

    def run(self, tape: Iterable[Item]) -> None:
        for item in tape:
            if isinstance(item, Rules):
                self.memory.apply(item.rules)
            elif isinstance(item, Mark):
                self._begin(item.ns)
                self._reach(item.ns)
            else:
                self._begin(item.ts_ns)
                self._row(item)

    def _row(self, row: Row) -> None:
        if row.symbol not in self.symbols:
            self.symbols[row.symbol] = facts = SymbolFacts(name=row.symbol)
            facts.close_prev = self.reference(facts, "close_prev_day")
            facts.seen_extremes = (NOTHING, NOTHING) if self.scanned else ()
        facts = self.symbols[row.symbol]
        while self.next_day <= row.ts_ns < (self.open_minute() + 2) * MINUTE:
            self._roll()
        if row.kind == "close_prev" and 0 < row.price < math.inf:
            facts.close_prev = row.price
        elif row.kind in ("halt", "resume"):
            if facts.halted != (row.kind == "halt") and row.ts_ns >= self.day_start:
                (facts.resumes if facts.halted else facts.halts).append(row.ts_ns)
            facts.halted = row.kind == "halt"
        elif row.kind in ("band_low", "band_high"):
            facts.quote[row.kind] = row.price if 0 < row.price < math.inf else NAN
        elif row.kind in ("bid", "ask"):
            facts.quote_ts = row.ts_ns
            price_known, size_known = 0 < row.price < math.inf, 0 <= row.size < math.inf
            facts.quote[row.kind] = row.price if price_known and size_known and row.size > 0 else NAN
            told = size_known and (price_known or row.size == 0)
            facts.quote[f"{row.kind}_size"] = row.size if told else NAN
        elif row.kind == "trade":
            self._trade(facts, row)

    def _trade(self, facts: SymbolFacts, row: Row) -> None:
        if not (0 < row.price < math.inf and 0 <= row.size < math.inf):
            return
        ts_ns, minute, oldest = row.ts_ns, row.ts_ns // MINUTE, self.open_minute() - self.reach_minutes
        if not oldest <= minute <= self.open_minute() + 1:
            return
        words = self.judge(row.conditions, row.tape, self.days.phase(minute))
        if row.size == 0 and "volume" in words:
            return  # a record, not a trade
        day = self.days.trade_day(minute * MINUTE)
        for name in ("open", "close"):
            if f"names_{name}" in words and lists(row.tape, row.exchange):
                facts.official.append((name, day, row.price))
        words = self._settle(facts, row, day, words)
        if "official_close" in words:
            ts_ns = self.days.session(ts_ns)[1] - 1
            minute = ts_ns // MINUTE
            if minute < oldest:
                return
        if "last" in words:
            facts.lasts.append((day, row.exchange, "extended" in words))
        if not words & EVERYTHING:
            return
        late = minute < self.open_minute()
        printed = Print(ts_ns, row.price, row.size, words)
        pile = facts.minutes.setdefault(minute, Pile())
        pile.prints.append(printed)
        pile.late += late
        facts.rows += 1
        if minute * MINUTE >= self.day_start:
            session = self.days.session(minute * MINUTE)[0]
            facts.sessions.setdefault(session, Pile()).prints.append(printed)
            if session != CLOSED:
                facts.day.prints.append(printed)
        if "last" in words:
            facts.prices.append((ts_ns, row.price))
        if "last" in words and ts_ns >= facts.price_ts:
            facts.price, facts.price_ts = row.price, ts_ns
            facts.path.append((self.newest_mark, row.price))
            facts.moves.append(row.price)

    def _settle(self, facts: SymbolFacts, row: Row, day: int, words: Words) -> Words:
        """Without the last price and the open where the trades before do not allow them."""
        if "until_end" in words and day < len(self.days.days) and row.ts_ns >= self.days.days[day][2] + 10 * SECOND:
            return words - {"open", "last", "open_if_first", "last_if_first", "last_if_same_venue"}
        before = [last for last in facts.lasts if "extended" in words or not last[2]]
        newest = max((last_day for last_day, _, _ in before), default=-1)
        first = newest < day
        venues = [venue for last_day, venue, _ in before if last_day == newest]
        if "open_if_first" in words and not first:
            words -= {"open"}
        if "last_if_first" in words and not first:
            words -= {"last"}
        elif "last_if_same_venue" in words and not first:
            same = bool(row.exchange) and row.exchange == venues[-1]
            if not same and not lists(row.tape, row.exchange):
                words -= {"last"}
        return words

    # what came of it

    def closed(self, facts: SymbolFacts) -> dict[int, NaiveBar]:
        bars = {minute: facts.minutes[minute].bar() for minute in sorted(facts.minutes) if minute < self.open_minute()}
        return {minute: bar for minute, bar in bars.items() if bar is not None}

    def bars(self) -> dict[tuple[str, int], NaiveBar]:
        return {
            (symbol, minute * MINUTE): bar
            for symbol, facts in self.symbols.items()
            for minute, bar in self.closed(facts).items()
        }

    def _scan(self, now_ns: int) -> None:
        if self.memory.rules or self.scans:
            self._look()
        if not self.wanted and not self.memory.rules:
            return
        asked = {c[0] for rule in self.memory.rules for c in rule.conditions} | {"price"}
        board = self.board(now_ns, asked | self.wanted)
        if self.wanted:
            self.boards[now_ns] = {symbol: {m: row[m] for m in self.wanted} for symbol, row in board.items()}
        session = self.days.session((now_ns - 1) // MINUTE * MINUTE)[0]
        self.matches += self.memory.scan(board, now_ns, session)

    def _look(self) -> None:
        """A scan sees extremes and paths."""
        for facts in self.symbols.values():
            now = {}
            for part in (PRE, REGULAR, POST):
                told = self.told(facts, part)
                now[part] = (told.high, told.low)
            now["day"] = (facts.day.facts.high, facts.day.facts.low)
            before = facts.seen_extremes[-1] if facts.seen_extremes else now
            facts.seen_extremes = (before, now)
            (high, low), (was_high, was_low) = now["day"], before["day"]
            highs, lows = facts.new_extremes
            facts.new_extremes = (highs + (high > was_high), lows + (low < was_low))
            facts.seen_path = [] if math.isnan(facts.price) else [*facts.moves, facts.price]
            facts.moves = []
        self.scanned = True

    def told(self, facts: SymbolFacts, session: str) -> Facts:
        """A session of the running day."""
        return facts.sessions[session].facts if session in facts.sessions else Facts()

    def reference(self, facts: SymbolFacts, name: str) -> float:
        return self.facts_of_day.get(self.day_start, {}).get(facts.name, {}).get(name, NAN)

    def board(self, now_ns: int, metrics: Iterable[str]) -> dict[str, dict[str, float]]:
        asked = set(metrics)
        return {symbol: self.values(facts, now_ns, asked) for symbol, facts in self.symbols.items()}

    def values(self, facts: SymbolFacts, now_ns: int, metrics: set[str]) -> dict[str, float]:
        """At least these metrics."""
        live = (now_ns - 1) // MINUTE
        session = self.days.session(live * MINUTE)[0]
        out = {"price": facts.price, "halted": float(facts.halted), "close_prev_day": facts.close_prev}

        told = {name: facts.sessions[name].facts for name in facts.sessions}
        out["open_day"] = told.get(REGULAR, Facts()).first
        out |= {f"{name}_official_day": self.official(facts, name) for name in ("open", "close")}
        running, pre = told.get(session, Facts()), told.get(PRE, Facts())
        for name, fact in (("day", facts.day.facts), ("session", running), ("premarket", pre)):
            out |= {f"high_{name}": fact.high, f"low_{name}": fact.low, f"volume_{name}": fact.volume}
        out |= {"vwap_day": facts.day.facts.vwap, "vwap_session": running.vwap}
        if session == CLOSED:
            out |= dict.fromkeys(("high_session", "low_session", "volume_session", "vwap_session"), NAN)
        suspect = suspect_split(out["open_day"] if math.isnan(pre.first) else pre.first, out["close_prev_day"])
        out["suspect_split"] = float(suspect)
        out["gap_pct"] = NAN if suspect else pct(out["open_day"], out["close_prev_day"])
        out["change_pct_day"] = NAN if suspect else pct(out["price"], out["close_prev_day"])
        out["change_from_open_pct"] = pct(out["price"], out["open_day"])
        out["vwap_distance_pct"] = pct(out["price"], out["vwap_session"])

        for window, n in WINDOWS.items():
            out[f"change_pct_{window}"] = pct(out["price"], self.price_ago(facts, now_ns, n))
            out[f"volume_{window}"] = self.sums(facts, live - n + 1, live)[0]
            if n == 1:
                continue
            _, value, weight = self.sums(facts, live - n + 1, live)
            out[f"vwap_{window}"] = value / weight if weight else NAN
            known = self.began is not None and live - n >= max(self.began, self.day_start) // MINUTE
            average = self.sums(facts, live - n, live - 1)[0] / n if known else NAN
            elapsed = (now_ns - live * MINUTE) / MINUTE
            recent = self.sums(facts, live, live)[0] + (1 - elapsed) * self.sums(facts, live - 1, live - 1)[0]
            out[f"volume_avg_{window}"] = average
            out[f"relative_volume_{window}"] = recent / average if average > 0 else NAN

        if any(name.startswith(("rsi", "ema", "sma", "atr")) for name in metrics):
            seen = (self.open_minute(), facts.rows)
            if facts._indicators[0] != seen:
                bars = [(bar.high, bar.low, bar.close) for bar in self.closed(facts).values()]
                facts._indicators = (seen, indicators(bars))
            out |= facts._indicators[1]
        look = Look(self, facts, now_ns, out)
        for name in metrics:
            look[name]
        return out

    def official(self, facts: SymbolFacts, name: str) -> float:
        """The running day's official open or close, if a record of its own has named it."""
        named = [(day, price) for what, day, price in facts.official if what == name]
        newest = max((day for day, _ in named), default=-1)
        prices = [price for day, price in named if day == newest == self.days.trade_day(self.day_start)]
        return prices[-1] if prices else NAN

    def sums(self, facts: SymbolFacts, first: int, last: int) -> tuple[float, float, float]:
        volume = value = weight = 0.0
        for minute in range(first, last + 1):
            if minute in facts.minutes:
                told = facts.minutes[minute].facts
                volume, value, weight = volume + told.volume, value + told.value, weight + told.weight
        return volume, value, weight

    def price_ago(self, facts: SymbolFacts, now_ns: int, minutes: int) -> float:
        grain = SECOND if minutes <= 5 else 5 * SECOND if minutes <= 60 else MINUTE
        return self.price_at(facts, (now_ns - minutes * MINUTE) // grain * grain)

    def price_at(self, facts: SymbolFacts, instant_ns: int) -> float:
        """The last price as it was known when the marks reached an instant; unknown at or before the tape's start."""
        if self.began is None or instant_ns // SECOND <= self.began // SECOND:
            return NAN
        price = NAN
        for mark_ns, after in facts.path:
            if mark_ns < instant_ns:
                price = after
        return price


def suspect_split(first: float, close: float) -> bool:
    """The first price is nearly 2, 3, ... times the close, or a half, a third, ... of it."""
    if math.isnan(first) or math.isnan(close):
        return False
    multiple = max(first / close, close / first)
    nearest = round(multiple)
    return nearest >= 2 and abs(multiple - nearest) <= 0.02 * nearest


def pct(value: float, base: float) -> float:
    return (value / base - 1) * 100 if not math.isnan(base) else NAN
