"""Scans pause while nothing can change. What other rules there are decides when they do, and must not be heard."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from naive import Item, Mark
from tapes import DAYS, HOUR, METRICS, VENDORS, Style, make_rules, make_tape, spec, to_entries, trading_days

from tapewatch.engine.columns import MINUTE_NS, OPEN_END_NS, SECOND_NS, Batch, Gap, Kind, make_batch, pulse
from tapewatch.engine.metrics import CATALOGUE
from tapewatch.engine.rules import Match, Ruleset
from tapewatch.engine.rules.tree import (
    All,
    AnyOf,
    Attribute,
    Condition,
    Crossing,
    Fire,
    Held,
    InARow,
    InSession,
    Not,
    Number,
    Operand,
    RuleSpec,
    Then,
    Within,
    compare,
)
from tapewatch.engine.scanner import Scanner

Entry = Batch | Ruleset | Gap
FOUR, OPEN_NS = 240.0, DAYS.days[0][1]
CLOCK = RuleSpec(id="clock", version=1, name="clock", when=compare("time_of_day", ">", FOUR))
"""It keeps scans awake from 04:00 to 20:00."""
AWAKE = [metric.name for metric in CATALOGUE.values() if metric.freshness == "clock" or "usual" in metric.keeps]
LAZY = (*(name for name in METRICS if name not in AWAKE), "rsi_14_5m", "close_5m", "high_1h")
ONCE = (Fire(), Fire(), Fire("session"))
BY_CLOCK = (*ONCE, Fire("level"), Fire("bar", 5), Fire("bar", 1440))


def rule(name: str, when: Condition, **more: Any) -> RuleSpec:
    return RuleSpec(id=name, version=1, name=name, when=when, **more)


def above(price: float) -> Condition:
    return compare("price", ">", price)


def below(price: float) -> Condition:
    return compare("price", "<", price)


def a_scanner(scan_ns: int = SECOND_NS) -> Scanner:
    return Scanner(days=trading_days(), profile=VENDORS[0].profile, scan_interval_ns=scan_ns)


def again(scanner: Scanner) -> Scanner:
    return Scanner.thaw(
        scanner.freeze(),
        days=trading_days(),
        profile=VENDORS[0].profile,
        scan_interval_ns=scanner.scan_interval_ns,
    )


def at(second: float) -> int:
    """After 09:30."""
    return OPEN_NS + round(second * SECOND_NS)


def a_print(second: float, price: float, *, conditions: str = "", symbol: str = "A") -> Batch:
    return make_batch(
        symbols=(symbol,),
        conditions=(conditions,),
        symbol=[0],
        ts_ns=[at(second)],
        price=[price],
        size=[100.0],
        tape=[ord("C")],
        exchange=[ord("Q")],
    )


def fired(
    rules: Sequence[RuleSpec], entries: Iterable[Entry], *, thaw: bool = False
) -> tuple[dict[str, list[float]], int]:
    """By rule, the seconds after 09:30 at which those but the clock's fired; and how many scans that took."""
    scanner, scans = a_scanner(), 0
    seconds: dict[str, list[float]] = {}
    scanner.apply(Ruleset(number=1, rules=tuple(rules)))
    for entry in entries:
        matches, made = take(scanner, entry, (CLOCK,) if CLOCK in rules else ())
        scans += made
        for match in matches:
            seconds.setdefault(match.rule.id, []).append((match.fired_at_ns - OPEN_NS) / SECOND_NS)
        if thaw:
            scanner = again(scanner)
    return seconds, scans


def take(scanner: Scanner, entry: Entry, more: tuple[RuleSpec, ...]) -> tuple[list[Match], int]:
    """What rules but the clock's said, and how many scans were made; `more` are in each ruleset."""
    if isinstance(entry, Gap):
        scanner.gap(entry)
    elif isinstance(entry, Ruleset):
        scanner.apply(replace(entry, rules=(*entry.rules, *more)))
    else:
        step = scanner.step(entry)
        return [match for match in step.matches if match.rule.id != "clock"], step.scans
    return [], 0


NOON = 9_000
RISE_AND_FALL = [pulse(at(-1)), a_print(0.5, 11.0), pulse(at(5_000)), pulse(at(NOON)), a_print(NOON + 0.5, 9.0)]
"""11 at 09:30, and nothing more until 9 at 12:00:00.5."""
WAS_ABOVE, BELOW = Within(above(10.0), 30 * SECOND_NS), below(9.5)


@pytest.mark.parametrize(
    "when", [All((WAS_ABOVE, BELOW)), Then(above(10.0), BELOW, 30 * SECOND_NS), Then(above(10.0), BELOW, SECOND_NS)]
)
@pytest.mark.parametrize("more", [[], [CLOCK]])
def test_price_that_falls_after_a_pause_was_high_a_second_before(*, when: Condition, more: list[RuleSpec]) -> None:
    assert fired([rule("r", when), *more], [*RISE_AND_FALL, pulse(at(NOON + 3))])[0] == {"r": [NOON + 1]}


@pytest.mark.parametrize("thaw", [False, True])
def test_what_was_true_in_a_pause_went_on_being_true(*, thaw: bool) -> None:
    second = SECOND_NS
    expected: dict[Condition, list[float]] = {
        All((Not(Within(above(10.0), 2 * second)), BELOW)): [NOON + 3],
        All((Within(Held(above(10.0), 20 * second), 5 * second), BELOW)): [NOON + 1],
        All((Within(InARow(above(10.0), 5), 5 * second), BELOW)): [NOON + 1],
        Within(Not(Within(above(10.0), 5 * second)), second): [NOON + 6],
        # Memories of memories: each runs out after the other.
        Held(Within(compare("volume_15m", ">", 0.0), 1_800 * second), 2_400 * second): [2_401, NOON + 2_401],
    }
    rules = [rule(f"r{place}", when) for place, when in enumerate(expected)]
    entries = [*RISE_AND_FALL, pulse(at(NOON + 30)), pulse(at(NOON + 2_410))]
    alone, few = fired(rules, entries, thaw=thaw)
    beside, many = fired([*rules, CLOCK], entries, thaw=thaw)
    assert alone == beside == {f"r{place}": seconds for place, seconds in enumerate(expected.values())}
    assert few < many


def test_condition_that_was_unknown_in_a_pause_is_not_false_after_it() -> None:
    """Nobody has told the previous close: whether the change was above is unknown for five seconds more."""
    first = rule("r", Not(Within(compare("change_pct_day", ">", 15.0), 5 * SECOND_NS)))
    previous = make_batch(
        symbols=("A",), symbol=[0], ts_ns=[at(NOON)], price=[11.0], size=[0.0], kind=[Kind.CLOSE_PREV]
    )
    entries = [pulse(at(-1)), a_print(0.5, 11.0), pulse(at(NOON)), previous, pulse(at(NOON + 30))]
    assert fired([first], entries)[0] == fired([first, CLOCK], entries)[0] == {"r": [NOON + 6]}


def test_memories_of_memories_run_out_before_scans_pause() -> None:
    """Volume of an hour is gone after an hour; then 20 minutes of that, and then 10 of this."""
    gone = Held(compare("volume_1h", "==", 0.0), 20 * 60 * SECOND_NS)
    when = Not(Within(Not(gone), 10 * 60 * SECOND_NS))
    entries = [pulse(at(-1)), a_print(0.5, 11.0), pulse(at(12_000))]
    alone, beside = fired([rule("r", when)], entries), fired([rule("r", when), CLOCK], entries)
    assert alone[0] == beside[0]
    (second,) = alone[0]["r"]
    assert 5_400 <= second <= 5_520
    assert alone[1] < beside[1]


@pytest.mark.parametrize(
    "entry",
    [
        Ruleset(number=2, rules=(rule("later", Held(above(10.0), 20 * SECOND_NS)),)),
        Ruleset(number=2, rules=(rule("later", compare("change_pct_5m", ">", -1.0)),)),
        a_print(NOON, 0.0, symbol="B"),
    ],
)
def test_what_begins_in_a_pause_is_followed_up(entry: Entry) -> None:
    """A new rule, a row that asks for a record of prices, and a symbol that has no price yet."""
    there = rule("there", AnyOf((Held(Attribute("symbol", ("B",)), 20 * SECOND_NS), above(20.0))))
    entries = [*RISE_AND_FALL[:4], entry, pulse(at(NOON + 310))]
    alone, beside = fired([there], entries), fired([there, CLOCK], entries)
    assert alone[0] == beside[0]
    ((second,),) = alone[0].values()
    assert NOON + 20 <= second <= NOON + 301
    assert alone[1] < beside[1]


def test_session_that_begins_in_a_pause_is_remembered() -> None:
    when = All((Held(InSession(("regular",)), 20 * SECOND_NS), above(10.0)))
    entries = [pulse(at(-10_000)), a_print(-9_999.5, 11.0), pulse(at(600))]
    alone, beside = fired([rule("r", when)], entries), fired([rule("r", when), CLOCK], entries)
    assert alone[0] == beside[0] == {"r": [21]}
    assert alone[1] < beside[1]


# -- any rules, any tape ----------------------------------------------------------------------------------------------

STYLES = (
    Style((0, 0.3, 2, 7), (3_700, 4_200, 2 * 3_600 + 1), 0.08, 20 * SECOND_NS),
    Style((0, 0.5, 20, 45), (3_700, 4_500, 7 * 3_600), 0.08, 30 * SECOND_NS),
    Style((0, 5, 25, 60), (3_800, 5 * 3_600, 15 * 3_600, 60 * 3_600), 0.08, 60 * SECOND_NS),
)


def with_pulses(tape: Sequence[Item], random: Random) -> list[Item]:
    """More marks in long pauses, so that something can happen there."""
    marks = [place for place, item in enumerate(tape) if isinstance(item, Mark)]
    more: dict[int, list[Item]] = {}
    for place, after in pairwise(marks):
        first, last = tape[place], tape[after]
        if isinstance(first, Mark) and isinstance(last, Mark) and last.ns - first.ns > HOUR:
            count = random.randrange(5)
            more[place] = [Mark(ns) for ns in sorted(random.randrange(first.ns, last.ns) for _ in range(count))]
    return [item for place, here in enumerate(tape) for item in (here, *more.get(place, ()))]


def some_condition(random: Random, depth: int, metrics: Sequence[str], scan_ns: int) -> Condition:
    def part() -> Condition:
        return some_condition(random, depth - 1, metrics, scan_ns)

    duration_ns = random.choice((1, 2, 5, 30, 100)) * scan_ns + random.choice((0, 0, -1, scan_ns // 2))
    match random.randrange(12 if depth else 5):
        case 0:
            return random.choice((above, below))(random.choice((20.3, 40.3, 60.3)))
        case 1 | 2:
            return spec(make_rules(random, 1, metrics)[0]).when
        case 3:
            direction: Any = random.choice(("above", "below"))
            return Crossing(Operand("price"), direction, random.choice((Number(40.3), Operand("vwap_day"))))
        case 4:
            return random.choice((InSession(("pre", "regular")), Attribute("symbol", ("AA", "QQ")), above(30.3)))
        case 5:
            return Not(part())
        case 6:
            return random.choice((All, AnyOf))((part(), part()))
        case 7:
            return Held(part(), duration_ns)
        case 8:
            return InARow(part(), random.choice((2, 3, 40)))
        case 9:
            return Then(part(), part(), duration_ns)
        case _:
            return Within(part(), duration_ns)


def some_rules(random: Random, scan_ns: int) -> list[RuleSpec]:
    by_clock = random.random() < 0.2
    metrics = (*CATALOGUE,) if by_clock else LAZY

    def condition() -> Condition:
        return some_condition(random, random.choice((1, 2, 3)), metrics, scan_ns)

    return [
        rule(
            f"r{i}",
            condition(),
            gate=condition() if random.random() < 0.2 else None,
            rearm=condition() if random.random() < 0.2 else None,
            fire=random.choice(BY_CLOCK if by_clock else ONCE),
            cooldown_ns=random.choice((0, 0, 10 * scan_ns)),
        )
        for i in range(random.randrange(1, 12))
    ]


def some_entries(random: Random, style: Style) -> list[Entry]:
    tape = make_tape(random, style, VENDORS[0], rows=random.randrange(5, 40), symbols=3, wild=True)
    tape = with_pulses(tape, random)
    entries: list[Entry] = list(to_entries(tape, {place for place in range(len(tape)) if random.random() < 0.4}))
    if random.random() < 0.3:
        place = random.randrange(len(entries))
        entries.insert(place, Ruleset(number=2, rules=tuple(some_rules(random, style.scan_ns))))
    return entries


def said(match: Match) -> tuple[str, str, str, float, str]:
    return match.alert_id, match.rule.id, match.symbol, match.fired_at_ns / SECOND_NS, repr(match.values)


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32 - 1), style=st.sampled_from(STYLES), gap=st.booleans())
def test_clock_rule_beside_them_changes_no_alert_of_others(
    seed: int,
    style: Style,
    gap: bool,  # noqa: FBT001
) -> None:
    random = Random(seed)
    alone, beside = a_scanner(style.scan_ns), a_scanner(style.scan_ns)
    rules = Ruleset(number=1, rules=tuple(some_rules(random, style.scan_ns)))
    began_ns = None
    for entry in (rules, *some_entries(random, style)):
        ours, theirs = take(alone, entry, ())[0], take(beside, entry, (CLOCK,))[0]
        assert [said(match) for match in ours] == [said(match) for match in theirs]
        if random.random() < 0.2:
            alone = again(alone)
        if gap and began_ns is None and random.random() < 0.05:
            began_ns = alone.watermark_ns
            lost = Gap(began_ns, OPEN_END_NS, "network")
        elif began_ns is not None and random.random() < 0.3:
            lost = Gap(began_ns, max(began_ns, alone.watermark_ns - random.choice((0, MINUTE_NS))), "network")
            began_ns = None
        else:
            continue
        for scanner in (alone, beside):
            scanner.gap(lost)
