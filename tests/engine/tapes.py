"""Random tapes for the engine's properties: what a market does, and what no market should."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from random import Random
from zoneinfo import ZoneInfo

import numpy as np
from naive import (
    MINUTE,
    SECOND,
    Item,
    Mark,
    NaiveDays,
    NaiveRule,
    Row,
    Rules,
    Words,
    algoseek,
    alpaca,
    each_apart,
    massive,
    sip,
)

from tapewatch.eligibility import load_profile
from tapewatch.engine.calendar import Phase, TradingDays
from tapewatch.engine.columns import Batch, Facts, Kind, make_batch
from tapewatch.engine.conditions import Effect, Profile
from tapewatch.engine.daily import DAILY_FACTS
from tapewatch.engine.metrics import CATALOGUE, FAMILIES, candles, usual
from tapewatch.engine.rules.tree import All, Ruleset, RuleSpec, compare

NEW_YORK = ZoneInfo("America/New_York")
HOUR = 60 * MINUTE
METRICS = tuple(
    name for family in FAMILIES if family not in {candles, usual} for name in (metric.name for metric in family.METRICS)
)
"""What the naive engine knows; candles and usual volumes have references of their own."""
KINDS = {
    "trade": Kind.TRADE,
    "cancel": Kind.CANCEL,
    "close_prev": Kind.CLOSE_PREV,
    "halt": Kind.HALT,
    "resume": Kind.RESUME,
    "bid": Kind.BID,
    "ask": Kind.ASK,
    "band_low": Kind.BAND_LOW,
    "band_high": Kind.BAND_HIGH,
}


def new_york(text: str) -> int:
    """Nanoseconds of a New York wall time such as ``2025-03-07 09:30``."""
    return int(datetime.fromisoformat(text).replace(tzinfo=NEW_YORK).timestamp()) * SECOND


def day(date: str, close: str = "16:00") -> tuple[int, int, int, int]:
    pre, opened, closed, post = (new_york(f"{date} {clock}") for clock in ("04:00", "09:30", close, "20:00"))
    return pre, opened, closed, post


# Over the weekend between the second and the third New York changes its clocks.
DAYS = NaiveDays(
    [
        day("2025-03-06"),
        day("2025-03-07", close="13:00"),
        day("2025-03-10"),
        day("2025-03-11"),
    ]
)


def trading_days() -> TradingDays:
    pre, opened, closed, post = np.array(DAYS.days, np.int64).T
    return TradingDays(pre_ns=pre, open_ns=opened, close_ns=closed, post_ns=post)


def _apart(conditions: str, tape: str, phase: Phase) -> Effect:
    del tape, phase
    effect = Effect(0)
    for letter, bit in zip("ohlv", (Effect.OPEN, Effect.HIGH_LOW, Effect.LAST, Effect.VOLUME), strict=True):
        effect |= bit if letter in conditions else Effect(0)
    return effect


@dataclass(frozen=True)
class Vendor:
    """A way to judge conditions, twice: the engine's profile and the naive words."""

    name: str
    conditions: Sequence[str]

    @property
    def profile(self) -> Profile:
        return (
            Profile(name="apart", column="conditions", effect=_apart)
            if self.name == "apart"
            else load_profile(self.name)
        )

    def judge(self, conditions: str, tape: str, phase: str) -> Words:
        judges = {"alpaca": alpaca, "algoseek": algoseek, "apart": each_apart, "massive": massive, "sip": sip}
        return judges[self.name](conditions, tape, phase)


VENDORS = (
    Vendor("alpaca", ("@", " ", "", "@F", " FT", "@TI", "B", "@I", "@4", "M", " Q", "9", "@Z", "?", "@ð", "7V", "@O")),
    Vendor("algoseek", ("0x1", "0x1", "0x21", "0x40", "0x80", "0x2000", "0x2001", "0x1000000", "0x1 suspicious")),
    Vendor(
        "sip", ("@", "@", "L", "P", "@Z", "4", "9", "@T", "U", "TI", "B", "M", "Q", "LZ", "?", "G", "ZI", "LT", "I9")
    ),
    Vendor("massive", ("@", "@", "@T", "TI", "P", "@Z", "4", "9", "U", "B", "M", " Q", "?", "L", "T9")),
    Vendor("apart", ("ohlv", "ohlv", "o", "h", "l", "v", "hv", "olv", "")),
)

STARTS = (
    "2025-03-06 15:58:57",  # the close
    "2025-03-07 03:58:30",  # the day rolls
    "2025-03-07 09:28:01",  # the open
    "2025-03-07 12:57:00",  # an early close
    "2025-03-07 19:58:03",  # the night before a weekend in which clocks change
    "2025-03-10 11:00:00",
)


@dataclass(frozen=True)
class Style:
    """How a tape moves. `steps_s` are the usual distances of rows, `gap_s` the rare ones."""

    steps_s: tuple[float, ...]
    gaps_s: tuple[float, ...]
    gap_share: float
    scan_ns: int


STYLES = (
    Style((0, 0, 0.001, 0.3, 1), (5, 30), 0.05, SECOND),
    Style((0, 0.2, 3, 12, 20), (70, 130), 0.06, 5 * SECOND),
    Style((0, 5, 25, 60), (600, 1900, 2700, 3500), 0.03, 60 * SECOND),
    Style((0, 10, 45, 90), (3700, 4200, 7 * 3600, 15 * 3600, 60 * 3600), 0.015, 300 * SECOND),
)


def make_tape(random: Random, style: Style, vendor: Vendor, *, rows: int, symbols: int, wild: bool) -> list[Item]:
    """Rows and marks from a starting point on. `wild` adds what a broken feed sends."""
    names = ["QQ", "AA", "SPY", *(f"{letter}{letter}" for letter in "BYCXDWE")][:symbols]
    now = new_york(random.choice(STARTS)) + random.choice((0, 0, 500_000_000))
    prices = {name: float(random.randrange(10, 90)) for name in names}
    lag = random.choice((0, 0, SECOND, 7 * SECOND))
    mark_share, pulse_s = random.choice((0.1, 0.5, 1.0)), random.choice((7, 45, 400, 10**6))
    tape: list[Item] = []
    marked = -(2**63)

    def mark(ns: int) -> None:
        nonlocal marked
        if ns >= marked:
            tape.append(Mark(ns))
            marked = ns

    if random.random() < 0.3:
        mark(now - lag)
    for _ in range(rows):
        gap = random.random() < style.gap_share
        step = round(random.choice(style.gaps_s if gap else style.steps_s) * SECOND)
        if gap and step < 2 * HOUR:
            for ns in range(now + pulse_s * SECOND, now + step, pulse_s * SECOND):
                mark(ns - lag)
        now += step
        if random.random() < mark_share:
            mark(now - lag)
        name = random.choice(names)
        prices[name] = max(1.0, round(prices[name] + random.choice((-0.5, -0.01, 0, 0, 0.01, 0.02, 1)), 2))
        late = random.choice((0, 0, 0, 0, 0, 0, 0.5, 1, 3, 62, 200)) * SECOND
        if random.random() < 0.05:
            late = random.choice((-70, -600, 1000, 1750, 1800, 1861, 1900, 7200)) * SECOND
        price, size, kind = prices[name], float(random.choice((1, 5, 100, 100, 250, 0.5))), "trade"
        if wild and random.random() < 0.1:
            price = random.choice((math.nan, 0.0, -1.0, math.inf, -math.inf, price))
            size = random.choice((math.nan, 0.0, -1.0, math.inf, size))
            kind = random.choice(("trade", "trade", "close_prev", "halt", "resume", "cancel", "bid", "ask", "band_low"))
        elif random.random() < 0.15:
            kind = random.choice(("bid", "bid", "ask", "ask", "band_low", "band_high", "halt", "resume", "resume"))
        conditions = random.choice(vendor.conditions) if random.random() < 0.4 else vendor.conditions[0]
        listed, exchange = random.choice(("A", "B", "C", "C", "")), random.choice(("N", "P", "Q", "T", "D", ""))
        tape.append(Row(name, int(now - late), price, size, conditions, listed, kind, exchange))
    for seconds in (1, 61, 185):
        mark(now + seconds * SECOND - lag)
    return tape


def make_rules(random: Random, count: int, metrics: Sequence[str] = METRICS) -> tuple[NaiveRule, ...]:
    return tuple(_make_rule(random, f"rule-{i}", metrics) for i in range(count))


def _make_rule(random: Random, name: str, metrics: Sequence[str]) -> NaiveRule:
    conditions = []
    for _ in range(random.choice((1, 1, 2, 3))):
        metric = random.choice(metrics)
        conditions.append((metric, random.choice((">", "<", ">=", "<=", "==", "!=")), _threshold(random, metric)))
    return NaiveRule(name, 1, tuple(conditions), random.choice((0, 0, 5, 90, 4000)) * SECOND)


def _threshold(random: Random, metric: str) -> float:
    unit = CATALOGUE[metric].unit
    if unit == "flag":
        return random.choice((0.0, 1.0))
    # Between the numbers that occur, so that the last bits of a sum decide nothing.
    return {
        "$": random.choice((20.3333, 40.3333, 60.3333)),
        "%": random.choice((-1.23456, -0.0123456, 0.0123456, 1.23456)),
        "shares": random.choice((0.123, 99.9123, 333.3123, 2000.3123)),
        "ratio": random.choice((0.0123, 0.83456, 1.53456)),
        "index": random.choice((30.1234, 50.1234, 70.1234)),
        "count": random.choice((0.5, 1.5, 3.7)),
        "seconds": random.choice((0.7123, 31.7123, 400.7123)),
        "minutes": random.choice((0.7123, 240.7123, 570.7123)),
        "sigma": random.choice((-0.5123, 0.5123)),
    }[unit]


def facts_of(random: Random) -> dict[int, dict[str, dict[str, float]]]:
    """Reference data of every day of `DAYS`, some of them unknown."""
    names = random.sample(DAILY_FACTS, len(DAILY_FACTS) - 8)
    return {
        pre: {name: {fact: round(random.uniform(5.0, 90.0), 3) for fact in names} for name in ("QQ", "SPY", "BB", "ZZ")}
        for pre, *_ in DAYS.days
    }


def to_facts(told: Mapping[int, Mapping[str, Mapping[str, float]]]) -> list[Facts]:
    """The same as entries of the tape."""
    out = []
    for day_start_ns, symbols in told.items():
        names = tuple(dict.fromkeys(name for facts in symbols.values() for name in facts))
        values = np.array([[facts.get(name, math.nan) for facts in symbols.values()] for name in names])
        out.append(Facts(day_start_ns=day_start_ns, symbols=tuple(symbols), names=names, values=values))
    return out


def spec(rule: NaiveRule) -> RuleSpec:
    return RuleSpec(
        id=rule.id,
        version=rule.version,
        name=rule.id,
        when=All(tuple(compare(*condition) for condition in rule.conditions)),  # type: ignore[arg-type]  # operators are words here
        cooldown_ns=rule.cooldown_ns,
    )


def to_entries(tape: Sequence[Item], cuts: set[int], random: Random | None = None) -> list[Batch | Ruleset]:
    """The tape as entries, cut before these positions; with `random`, each batch has dictionaries of its own order."""
    rows = [item for item in tape if isinstance(item, Row)]
    symbols = tuple(dict.fromkeys(row.symbol for row in rows))
    conditions = tuple(dict.fromkeys(row.conditions for row in rows)) or ("",)
    entries: list[Batch | Ruleset] = []
    part: list[Row | Mark] = []

    def flush() -> None:
        nonlocal symbols, conditions
        if part:
            if random is not None:
                symbols = tuple(random.sample(symbols, len(symbols)))
                conditions = tuple(random.sample(conditions, len(conditions)))
            entries.append(_to_batch(part, symbols, conditions))
            part.clear()

    for position, item in enumerate(tape):
        if position in cuts:
            flush()
        if isinstance(item, Rules):
            flush()
            entries.append(Ruleset(number=position, rules=tuple(map(spec, item.rules))))
        else:
            part.append(item)
    flush()
    return entries


def _to_batch(part: Sequence[Row | Mark], symbols: tuple[str, ...], conditions: tuple[str, ...]) -> Batch:
    rows = [item for item in part if isinstance(item, Row)]
    marks = [
        (len([r for r in part[:at] if isinstance(r, Row)]), m.ns) for at, m in enumerate(part) if isinstance(m, Mark)
    ]
    return make_batch(
        symbols=symbols,
        conditions=conditions,
        symbol=[symbols.index(row.symbol) for row in rows],
        condition=[conditions.index(row.conditions) for row in rows],
        kind=[KINDS[row.kind] for row in rows],
        ts_ns=[row.ts_ns for row in rows],
        price=[row.price for row in rows],
        size=[row.size for row in rows],
        tape=[ord(row.tape) if row.tape else 0 for row in rows],
        exchange=[ord(row.exchange) if row.exchange else 0 for row in rows],
        marks_row=[row for row, _ in marks],
        marks_ns=[ns for _, ns in marks],
    )
