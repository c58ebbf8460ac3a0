"""Frozen and thawed engines against those that were never interrupted: all that they say, and what they are."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from random import Random
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from naive import Mark
from rule_stories import Compiled, some_condition, some_story
from tapes import (
    DAYS,
    METRICS,
    STYLES,
    VENDORS,
    Style,
    Vendor,
    facts_of,
    make_rules,
    make_tape,
    spec,
    to_entries,
    to_facts,
    trading_days,
)

from tapewatch.engine.bars import BarBuilder
from tapewatch.engine.columns import OPEN_END_NS, SECOND_NS, Bars, Batch, Facts, Gap, Kind, make_batch, pulse
from tapewatch.engine.frozen import Frozen, Whitelist, freeze
from tapewatch.engine.indicators import Indicators, by_minute
from tapewatch.engine.metrics import CATALOGUE, PUBLISHED
from tapewatch.engine.rules.explain import explain, near_misses
from tapewatch.engine.rules.plan import RULE_CARRIED, Plan
from tapewatch.engine.rules.tree import Condition, Fire, Number, Operand, Ruleset, RuleSpec, compare
from tapewatch.engine.scanner import Scanner, Step

SEEDS = st.integers(0, 2**32 - 1)
Keep = tuple[str, ...]
Entry = Batch | Ruleset | Gap | Facts | Keep
KEPT = 1 << 10
FIRES = (Fire(), Fire("level"), Fire("bar", 1), Fire("bar", 5), Fire("bar", 1440), Fire("session"))
WATCHLISTS = {"mine": frozenset({"QQ", "BB"}), "yours": frozenset({"AA", "SPY"})}


def bounded(examples: int) -> settings:
    return settings(
        max_examples=examples, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
    )


# -- random tapes with everything on them -----------------------------------------------------------------------------


def of_market(node: Any) -> Any:
    """A condition of a story, about prices as the tapes have them."""
    if isinstance(node, Number):
        return Number(20.0 + 20.0 * node.value)
    if isinstance(node, Operand):
        return Operand("close_1m", 1) if node == Operand("price", 1) else node
    if isinstance(node, tuple):
        return tuple(map(of_market, node))
    if is_dataclass(node) and not isinstance(node, type):
        return replace(node, **{field.name: of_market(getattr(node, field.name)) for field in fields(node)})
    return node


def some_rules(random: Random) -> list[RuleSpec]:
    flat = [spec(rule) for rule in make_rules(random, 10, (*METRICS, "rsi_14_5m", "close_1m", "vwap_day"))]
    return [*flat, *(complex_rule(random, f"complex-{i}") for i in range(8))]


def complex_rule(random: Random, name: str) -> RuleSpec:
    def condition() -> Condition:
        made: Condition = of_market(some_condition(random))
        return made

    return RuleSpec(
        id=name,
        version=1,
        name=name,
        when=condition(),
        gate=condition() if random.random() < 0.3 else None,
        rearm=condition() if random.random() < 0.3 else None,
        fire=random.choice(FIRES),
        cooldown_ns=random.choice((0, 0, 5, 90)) * SECOND_NS,
    )


def with_amendments(batches: Sequence[Batch | Ruleset], random: Random) -> Iterator[Batch]:
    """Each trade with an id, some of them withdrawn or corrected later on, some twice."""
    before: list[tuple[int, int, int]] = []
    for batch in batches:
        assert isinstance(batch, Batch)
        ids = np.arange(len(batch)) + len(before) + 1
        kind, symbol, exchange = batch.kind.copy(), batch.symbol.copy(), batch.exchange.copy()
        for row in range(len(batch)):
            if kind[row] == Kind.TRADE and before and random.random() < 0.1:
                kind[row] = random.choice((Kind.CANCEL, Kind.CORRECTION))
                symbol[row], exchange[row], ids[row] = random.choice(before[-20:])
            before.append((int(symbol[row]), int(exchange[row]), int(ids[row])))
        yield replace(batch, kind=kind, symbol=symbol, exchange=exchange, trade_id=ids)


def some_entries(random: Random, style: Style, vendor: Vendor, rows: int) -> list[Entry]:
    tape = make_tape(random, style, vendor, rows=rows, symbols=random.choice((1, 3, 6)), wild=True)
    cuts = {position for position in range(len(tape)) if random.random() < 0.2}
    entries: list[Entry] = list(with_amendments(to_entries(tape, cuts), random))
    marks = [item.ns for item in tape if isinstance(item, Mark)]
    rules = some_rules(random)
    later: list[Entry] = [replace(facts, labels=labels(random, facts)) for facts in to_facts(facts_of(random))]
    for number in range(random.choice((0, 1, 3))):
        some = random.sample(rules, random.randrange(len(rules)))
        if some and random.random() < 0.5:
            some[0] = replace(some[0], version=number + 2)
        later.append(Ruleset(number=number + 2, rules=tuple(some), watchlists=WATCHLISTS))
    for _ in range(random.choice((0, 0, 2))):
        start = random.choice(marks)
        end = random.choice((OPEN_END_NS, start + 90 * SECOND_NS, start + 9 * 3_600 * SECOND_NS))
        later += [Gap(start, end, "network"), Gap(start, random.choice((start, end, start + SECOND_NS)), "network")]
    if random.random() < 0.5:
        later.append(tuple(random.sample(list(CATALOGUE), 40)))
    places = sorted(random.randrange(len(entries) + 1) for _ in later)
    for place, entry in reversed(list(zip(places, later, strict=True))):
        entries.insert(place, entry)
    if random.random() < 0.15:
        entries.insert(0, tuple(CATALOGUE))
    return [Ruleset(number=1, rules=tuple(rules), watchlists=WATCHLISTS), *entries]


def labels(random: Random, facts: Facts) -> dict[str, tuple[str, ...]]:
    return {"exchange": tuple(random.choice(("XNAS", "XNYS", "")) for _ in facts.symbols)}


# -- what engines say -------------------------------------------------------------------------------------------------


def take(scanner: Scanner, entry: Entry) -> Step:
    if isinstance(entry, Batch):
        return scanner.step(entry)
    if isinstance(entry, Ruleset):
        scanner.apply(entry)
    elif isinstance(entry, Gap):
        scanner.gap(entry)
    elif isinstance(entry, Facts):
        scanner.learn(entry)
    else:
        scanner.keep(entry)
    return Step()


def told(value: Any) -> Any:
    """For comparisons to the bit, NaN included."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if is_dataclass(value) and not isinstance(value, type):
        return type(value).__name__, [told(getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, list | tuple):
        return [told(part) for part in value]
    return repr(value)


def explained(scanner: Scanner) -> Any:
    plan, board = scanner.plan, scanner.board
    return [
        (
            [
                repr(explain(plan, rule.id, symbol, reason=board.reason, age_s=board.age_s))
                for symbol in (*scanner.symbols.names, "nobody")
            ],
            repr(near_misses(plan, rule.id, reason=board.reason)),
        )
        for rule in plan.ruleset.rules
    ]


def plan_again(plan: Plan) -> Plan:
    again: Plan = Frozen(plan_bytes(plan), RULES).thaw({})
    return again


def plan_bytes(plan: Plan) -> bytes:
    return freeze(plan, RULES, about={}, count=0, capacity=0, sealed=plan.sealed(RULES))


RULES = Whitelist(RULE_CARRIED, {})


# -- interrupted and not ----------------------------------------------------------------------------------------------


@bounded(15)
@given(
    seed=SEEDS,
    rows=st.integers(1, 80),
    style=st.sampled_from(STYLES),
    vendor=st.sampled_from(VENDORS),
    boards=st.booleans(),
    share=st.sampled_from((0.05, 0.2, 0.5)),
)
def test_thawed_scanner_goes_on_as_if_nothing_had_happened(
    seed: int,
    rows: int,
    style: Style,
    vendor: Vendor,
    boards: bool,  # noqa: FBT001
    share: float,
) -> None:
    random = Random(seed)
    made_with: dict[str, Any] = {
        "days": trading_days(),
        "profile": vendor.profile,
        "scan_interval_ns": style.scan_ns,
        "board_interval_ns": style.scan_ns if boards else 0,
        "lateness_ns": random.choice((0, 2, 59)) * SECOND_NS,
        "kept_trades": random.choice((0, 7, KEPT)),
    }
    whole, thawed = Scanner(**made_with), Scanner(**made_with)
    for entry in some_entries(random, style, vendor, rows):
        if random.random() < share:
            state = thawed.freeze()
            assert state == whole.freeze()
            thawed = Scanner.thaw(state, **made_with)
            assert thawed.freeze() == state
            if random.random() < 0.3:
                assert explained(thawed) == explained(whole)
        assert told(take(thawed, entry)) == told(take(whole, entry))
        assert thawed.tally == whole.tally
    assert thawed.freeze() == whole.freeze()
    assert explained(thawed) == explained(whole)
    for scanner in (whole, thawed):
        scanner.keep(CATALOGUE)
    for names in (PUBLISHED, tuple(CATALOGUE)):
        assert told(thawed.board_rows(names)) == told(whole.board_rows(names))
    assert (thawed.cooled_down, thawed.plan.gated) == (whole.cooled_down, whole.plan.gated)
    assert thawed.labels == whole.labels
    assert thawed.labels_version == whole.labels_version


@bounded(25)
@given(seed=SEEDS, rows=st.integers(1, 200), style=st.sampled_from(STYLES), vendor=st.sampled_from(VENDORS))
def test_thawed_bars_and_indicators_go_on_as_if_nothing_had_happened(
    seed: int, rows: int, style: Style, vendor: Vendor
) -> None:
    random = Random(seed)
    made_with: dict[str, Any] = {"days": trading_days(), "profile": vendor.profile, "kept_trades": KEPT}
    whole, thawed = BarBuilder(**made_with), BarBuilder(**made_with)
    indicators, again = Indicators(trading_days()), Indicators(trading_days())
    for entry in some_entries(random, style, vendor, rows):
        if random.random() < 0.3:
            assert whole.freeze() == thawed.freeze()
            thawed = BarBuilder.thaw(thawed.freeze(), **made_with)
            assert indicators.freeze() == again.freeze()
            again = Indicators.thaw(again.freeze(), days=trading_days())
        if isinstance(entry, Gap):
            whole.gap(entry)
            thawed.gap(entry)
        if not isinstance(entry, Batch):
            continue
        bars, same = whole.step(entry), thawed.step(entry)
        assert told(bars) == told(same)
        for minute in by_minute(bars):
            assert told(indicators.update(minute)) == told(again.update(minute))
    assert whole.tally == thawed.tally
    assert whole.gaps == thawed.gaps
    assert whole.freeze() == thawed.freeze()


@bounded(60)
@given(seed=SEEDS, rules=st.integers(1, 8), symbols=st.sampled_from((1, 3, 70)), scans=st.integers(1, 40))
def test_thawed_plan_remembers_all_that_rules_remember(seed: int, rules: int, symbols: int, scans: int) -> None:
    random = Random(seed)
    whole, thawed = Compiled(), Compiled()

    def all_said(compiled: Compiled) -> Any:
        plan = compiled._plan  # the tests' own
        assert plan is not None
        names = () if plan.scene is None else plan.scene.symbols
        return [
            repr(explain(plan, rule.id, name, reason=lambda *_: "why", age_s=lambda *_: 0.0))
            for rule in plan.ruleset.rules
            for name in random.sample(list(names), min(3, len(names)))
        ]

    for step in some_story(random, rules=rules, symbols=symbols, scans=scans):
        if isinstance(step, Ruleset):
            whole.apply(step)
            thawed.apply(step)
        else:
            assert told(thawed.scan(step)) == told(whole.scan(step))
        assert whole._plan is not None  # the tests' own
        assert thawed._plan is not None
        if random.random() < 0.5:
            assert plan_bytes(thawed._plan) == plan_bytes(whole._plan)
            thawed._plan = plan_again(thawed._plan)
            sampled = random.getstate()
            said = all_said(thawed)
            random.setstate(sampled)
            assert said == all_said(whole)
    assert plan_bytes(thawed._plan) == plan_bytes(whole._plan)  # type: ignore[arg-type]  # as above


# -- bars that come twice ---------------------------------------------------------------------------------------------


@bounded(25)
@given(seed=SEEDS, rows=st.integers(1, 200), style=st.sampled_from(STYLES), vendor=st.sampled_from(VENDORS))
def test_bars_that_come_again_change_no_indicator(seed: int, rows: int, style: Style, vendor: Vendor) -> None:
    """Whoever resumes publishes what it had published since its state was saved: the same bars in the same order."""
    random = Random(seed)
    builder = BarBuilder(days=trading_days(), profile=vendor.profile, kept_trades=KEPT)
    once, twice = Indicators(trading_days()), Indicators(trading_days())
    published: list[Bars] = []
    for entry in some_entries(random, style, vendor, rows):
        if not isinstance(entry, Batch):
            continue
        for minute in by_minute(builder.step(entry)):
            published.append(minute)
            assert told(once.update(minute)) == told(twice.update(minute))
            while random.random() < 0.3:
                for again in published[-random.randrange(1, 12) :]:
                    assert not len(twice.update(again).symbol)
    assert once.freeze() == twice.freeze()


def test_only_the_bars_of_a_piece_that_are_new_are_taken() -> None:
    builder = BarBuilder(days=trading_days(), profile=VENDORS[0].profile)
    tape = make_tape(Random(3), STYLES[0], VENDORS[0], rows=200, symbols=6, wild=False)
    pieces = [
        minute
        for entry in to_entries(tape, set())
        if isinstance(entry, Batch)
        for minute in by_minute(builder.step(entry))
        if len(minute) > 2
    ]
    indicators = Indicators(trading_days())
    first = pieces[0]
    assert indicators.update(first.take(np.arange(2))).symbol.tolist() == first.symbol[:2].tolist()
    assert indicators.update(first).symbol.tolist() == first.symbol[2:].tolist()
    revised = replace(first, revision=first.revision + 2)
    assert len(indicators.update(revised).symbol) == len(first)
    assert not len(indicators.update(replace(first, revision=first.revision + 1)).symbol)


# -- a stretch of tape that was lost ----------------------------------------------------------------------------------


def test_rules_are_not_asked_within_a_stretch_that_was_lost_and_are_after_it() -> None:
    start_ns = DAYS.days[0][1]

    def at(second: int) -> int:
        return start_ns + second * SECOND_NS

    scanner = Scanner(days=trading_days(), profile=VENDORS[0].profile, board_interval_ns=SECOND_NS)
    level = RuleSpec(id="r", version=1, name="r", when=compare("price", ">", 10.0), fire=Fire("level"))
    scanner.apply(Ruleset(number=1, rules=(level,)))
    scanner.step(pulse(at(0)))
    scanner.step(make_batch(symbols=("A",), symbol=[0], ts_ns=[at(1)], price=[11.0], size=[100.0]))
    assert len(scanner.step(pulse(at(3))).matches) == 3
    made_with = {"days": trading_days(), "profile": VENDORS[0].profile, "board_interval_ns": SECOND_NS}
    scanner = Scanner.thaw(scanner.freeze(), **made_with)  # type: ignore[arg-type]  # by name
    scanner.gap(Gap(at(3), at(2 * 3_600), "nobody"))
    within = scanner.step(pulse(at(2 * 3_600)))
    assert within.matches == []
    assert not any(board.covered for board in within.boards)
    after = scanner.step(pulse(at(2 * 3_600 + 3)))
    assert [match.fired_at_ns for match in after.matches] == [at(2 * 3_600 + second) for second in (1, 2, 3)]
    assert all(board.covered for board in after.boards)
