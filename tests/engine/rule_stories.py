"""Rulesets and scans in a row, told to the compiled plan and to the naive interpreter; and random ones."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from naive_rules import NaiveRules

from tapewatch.engine.columns import MINUTE_NS, SECOND_NS, Bool
from tapewatch.engine.rules import Match, Plan
from tapewatch.engine.rules.tree import (
    All,
    AnyOf,
    Arithmetic,
    Attribute,
    Between,
    Comparison,
    ComparisonOperator,
    Condition,
    Crossing,
    Fire,
    Function,
    Held,
    InARow,
    InSession,
    InWatchlist,
    Not,
    Number,
    Operand,
    Ruleset,
    RuleSpec,
    Then,
    Value,
    Within,
    operands,
    walk,
)

NAN = math.nan
START_NS = 1_789_977_600 * SECOND_NS
"""A day's beginning, as large as the real ones."""
PRICE, VWAP, CLOSE, BEFORE = Operand("price"), Operand("vwap_day"), Operand("close_5m", 1), Operand("price", 1)
HIGHEST, LOWEST = "highest_since_scan", "lowest_since_scan"


# -- the words of these tests --------------------------------------------------------------------------------------


def seconds(count: float) -> int:
    return round(count * SECOND_NS)


def rule(
    when: Condition,
    *,
    name: str = "r",
    gate: Condition | None = None,
    rearm: Condition | None = None,
    fire: Fire = Fire(),  # noqa: B008 - frozen
    cooldown_ns: int = 0,
) -> RuleSpec:
    return RuleSpec(
        id=name, version=1, name="rule", when=when, gate=gate, rearm=rearm, fire=fire, cooldown_ns=cooldown_ns
    )


def level(when: Condition) -> RuleSpec:
    """Fires whenever the condition is true: shows what the condition says."""
    return rule(when, fire=Fire("level"))


def above(number: float, of: Value = PRICE) -> Comparison:
    return Comparison(of, ">", Number(number))


# -- both, side by side -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scan:
    """What both are asked: by symbol, in the order of the board's columns."""

    now_ns: int
    values: dict[str, dict[str, float]]
    labels: dict[str, dict[str, str]]
    session: str = "regular"
    session_start_ns: int = START_NS
    day_start_ns: int = START_NS
    tells_changes: bool = False


Step = Ruleset | Scan


def rows_of(rules: Iterable[RuleSpec]) -> set[str]:
    rows: set[str] = set()
    for rule in rules:
        for question in (rule.when, rule.gate, rule.rearm):
            rows |= {operand.name for operand in operands(question)}
            for node in walk(question) if question is not None else ():
                if isinstance(node, Crossing) and PRICE in (node.left, node.right):
                    rows |= {HIGHEST, LOWEST}
    return rows


class Compiled:
    """A plan with the board that it is bound to: rows in an order of its own, the same memory at each scan."""

    def __init__(self) -> None:
        self._plan: Plan | None = None
        self._row_of: dict[str, int] = {}
        self._board = np.full((0, 0), NAN)
        self._last: Scan | None = None
        self._labels: dict[str, list[str]] = {}
        self._version = 0

    def apply(self, ruleset: Ruleset) -> None:
        self._plan = Plan(ruleset, previous=self._plan)
        assert self._plan.metrics == frozenset(rows_of(ruleset.rules))
        names = [*sorted(self._plan.metrics), "nobody reads this"]
        Random(ruleset.number).shuffle(names)
        self._row_of = {name: row for row, name in enumerate(names)}
        self._plan.bind(self._row_of)
        self._last = None

    def scan(self, scan: Scan) -> list[Match]:
        assert self._plan is not None
        symbols = tuple(scan.values)
        width = 2 * len(symbols) + 1
        if self._board.shape[0] != len(self._row_of) or self._board.shape[1] < len(symbols):
            self._board = np.full((len(self._row_of), width), NAN)
        for name, row in self._row_of.items():
            self._board[row, : len(symbols)] = [scan.values[symbol].get(name, NAN) for symbol in symbols]
        price = np.array([scan.values[symbol].get("price", NAN) for symbol in symbols] + [NAN])
        attributes = {name for labels in scan.labels.values() for name in labels}
        told = {name: [scan.labels[symbol].get(name, "") for symbol in symbols] for name in sorted(attributes)}
        self._version += told != self._labels
        self._labels = told
        matches = self._plan.scan(
            self._board[:, : len(symbols)],
            now_ns=scan.now_ns,
            symbols=symbols,
            price=price,
            session=scan.session,
            session_start_ns=scan.session_start_ns,
            day_start_ns=scan.day_start_ns,
            labels=told,
            labels_version=self._version,
            changed=self._changed(scan) if scan.tells_changes else None,
        )
        self._last = scan
        return list(matches)

    def _changed(self, scan: Scan) -> Bool | None:
        """Which rows differ from the last scan; nothing is said of a board that has another shape."""
        last = self._last
        if last is None or len(last.values) != len(scan.values):
            return None
        changed = np.zeros(len(self._row_of), np.bool_)
        for name, row in self._row_of.items():
            before = [repr(values.get(name, NAN)) for values in last.values.values()]
            changed[row] = before != [repr(values.get(name, NAN)) for values in scan.values.values()]
        return changed


def read(matches: Iterable[Match]) -> list[tuple[str, int, str, str]]:
    return [(match.rule.id, match.rule.version, match.symbol, match.alert_id) for match in matches]


def play(steps: Sequence[Step]) -> list[list[Match]]:
    """Both must say the same at every scan; the plan's matches, per scan."""
    compiled, naive = Compiled(), NaiveRules()
    said: list[list[Match]] = []
    for number, step in enumerate(steps):
        if isinstance(step, Ruleset):
            compiled.apply(step)
            naive.apply(step)
            continue
        expected = naive.scan(
            step.now_ns, step.values, step.labels, step.session, step.session_start_ns, step.day_start_ns
        )
        matches = compiled.scan(step)
        assert read(matches) == expected, f"{read(matches)}\nand not {expected}\n{told(steps[: number + 1])}"
        for match in matches:
            values = step.values[match.symbol]
            asked = operands(match.rule.when, match.rule.gate, match.rule.rearm)
            assert match.fired_at_ns == step.now_ns
            assert match.session == step.session
            assert same(match.values, {operand.name: values.get(operand.name, NAN) for operand in asked})
            assert same({"price": match.price}, {"price": values.get("price", NAN)})
        said.append(matches)
    return said


def same(left: Mapping[str, float], right: Mapping[str, float]) -> bool:
    return {name: repr(float(value)) for name, value in left.items()} == {
        name: repr(float(value)) for name, value in right.items()
    }


def told(steps: Iterable[Step]) -> str:
    """A story that failed, to be read."""
    lines = []
    for step in steps:
        if isinstance(step, Ruleset):
            lines += [f"ruleset {step.number}", *(f"  {rule}" for rule in step.rules)]
        else:
            lines.append(f"{(step.now_ns - START_NS) / SECOND_NS:.9f} s {step.session} tells={step.tells_changes}")
            lines += [f"  {symbol}: {values} {step.labels.get(symbol)}" for symbol, values in step.values.items()]
    return "\n".join(lines)


# -- random stories ---------------------------------------------------------------------------------------------------

OPERANDS = (PRICE, PRICE, VWAP, CLOSE, BEFORE)
ROWS = ("price", "vwap_day", "close_5m[1]", "price[1]")
DURATIONS = tuple(s * SECOND_NS for s in (0, 1, 2, 5, 30, 60))
STEPS_NS = (0, 1, SECOND_NS - 1, SECOND_NS, SECOND_NS, 2 * SECOND_NS, 5 * SECOND_NS, MINUTE_NS)
"""From scan to scan; 0 is to the next full minute."""
OPERATORS: tuple[ComparisonOperator, ...] = (">", "<", ">=", "<=", "==", "!=")
SESSIONS = ("pre", "regular", "post", "closed")
EXCHANGES = ("XNAS", "XNYS", "")
FIRES = (Fire(), Fire(), Fire("level"), Fire("bar", 1), Fire("bar", 5), Fire("bar", 1440), Fire("session"))


def some_value(random: Random, depth: int = 2) -> Value:
    kind = random.randrange(8 if depth else 6)
    if kind < 4:
        return random.choice(OPERANDS)
    if kind < 6:
        return Number(random.choice((0.0, 1.0, 2.0, 3.0, 0.1)))
    if kind == 6:
        left, right = some_value(random, depth - 1), some_value(random, depth - 1)
        return Arithmetic(random.choice(("+", "-", "*", "/", "/")), left, right)
    arguments = tuple(some_value(random, depth - 1) for _ in range(random.randrange(1, 4)))
    if len(arguments) == 1:
        return Function(random.choice(("abs", "negate")), arguments)
    return Function(random.choice(("min", "max")), arguments)


def some_flat(random: Random) -> Condition:
    """Comparisons with numbers, as most rules are."""
    conditions = tuple(
        Comparison(random.choice(OPERANDS), random.choice(OPERATORS), Number(float(random.randrange(4))))
        for _ in range(random.randrange(1, 4))
    )
    return All(conditions) if len(conditions) > 1 else conditions[0]


def some_condition(random: Random, depth: int = 3) -> Condition:
    kind = random.randrange(15 if depth else 7)

    def below() -> Condition:
        return some_condition(random, depth - 1)

    match kind:
        case 0 | 1:
            return Comparison(some_value(random), random.choice(OPERATORS), some_value(random))
        case 2:
            return Between(some_value(random, 1), some_value(random, 1), some_value(random, 1))
        case 3 | 4:
            level = random.choice((Number(1.0), Number(2.0), some_value(random, 1)))
            sides = [random.choice((PRICE, some_value(random, 1))), level]
            random.shuffle(sides)
            return Crossing(sides[0], random.choice(("above", "below")), sides[1])
        case 5:
            return InSession(tuple(name for name in SESSIONS if random.randrange(2)) or ("regular",))
        case 6:
            if random.randrange(2):
                return InWatchlist(random.choice(("mine", "yours", "nobody's")))
            if random.randrange(2):
                return Attribute("exchange", tuple(sorted(random.sample(("XNAS", "XNYS", "ARCX"), 2))))
            return random.choice((Attribute("symbol", ("S0", "S2", "S64")), Attribute("sector", ("Energy",))))
        case 7:
            lasting = random.choice((Held(below(), random.choice(DURATIONS)), InARow(below(), random.randrange(1, 4))))
            return Not(random.choice((below(), lasting)))
        case 8:
            return All(tuple(below() for _ in range(random.randrange(2, 4))))
        case 9:
            return AnyOf(tuple(below() for _ in range(random.randrange(2, 4))))
        case 10 | 11:
            return Held(below(), random.choice(DURATIONS))
        case 12:
            return Within(below(), random.choice(DURATIONS))
        case 13:
            return InARow(below(), random.randrange(1, 4))
        case _:
            return Then(below(), below(), random.choice(DURATIONS))


def some_rules(random: Random, count: int) -> list[RuleSpec]:
    """Rules that share questions, so that what one remembers must not be another's memory."""
    depths = (-1, -1, 0, 0, 1, 1, 1, 2, 3)
    pool = [
        some_flat(random) if depth < 0 else some_condition(random, depth)
        for depth in (random.choice(depths) for _ in range(max(1, count - 1)))
    ]

    def maybe() -> Condition | None:
        return random.choice((None, None, random.choice(pool), some_condition(random, 1)))

    return [
        RuleSpec(
            id=f"r{i // 2}",
            version=i % 2 + 1,
            name="rule",
            when=random.choice(pool),
            gate=maybe(),
            rearm=maybe(),
            fire=random.choice(FIRES),
            cooldown_ns=random.choice((0, 0, *DURATIONS)),
        )
        for i in range(count)
    ]


def some_ruleset(random: Random, number: int, rules: Sequence[RuleSpec]) -> Ruleset:
    """Some of the rules, at most one version of each, in any order."""
    by_id = {rule.id: rule for rule in random.sample(rules, len(rules)) if random.randrange(4)}
    lists = {name: frozenset(f"S{i}" for i in range(70) if random.randrange(2)) for name in ("mine", "yours")}
    return Ruleset(number=number, rules=tuple(by_id.values()), watchlists=lists)


def some_row(random: Random, before: Mapping[str, float]) -> dict[str, float]:
    """A symbol's values: small and whole, so that they often meet; often those of before, now and then unknown."""
    row = {name: before.get(name, NAN) for name in ROWS}
    for name in ROWS:
        if not before or not random.randrange(3):
            row[name] = random.choice((0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 0.3, NAN))
    row[LOWEST] = row[HIGHEST] = row["price"]
    if random.randrange(3):
        row[LOWEST] -= random.choice((0, 0, 1, 2))
        row[HIGHEST] += random.choice((0, 0, 1, 2))
    elif not random.randrange(4):
        row[LOWEST] = row[HIGHEST] = NAN
    return row


def some_story(random: Random, *, rules: int, symbols: int, scans: int) -> list[Step]:
    specs = some_rules(random, rules)
    steps: list[Step] = [some_ruleset(random, 1, specs)]
    names = [f"S{i}" for i in range(symbols)]
    random.shuffle(names)
    count = random.randrange(1, symbols + 1)
    last = Scan(START_NS + 1, {}, {})
    for _ in range(scans):
        for _ in range(random.choice((0, 0, 0, 0, 0, 1, 2))):
            steps.append(some_ruleset(random, len(steps) + 1, specs))
        if not random.randrange(4):
            count = random.randrange(count, symbols + 1)
        step_ns = random.choice(STEPS_NS)
        now_ns = last.now_ns + (step_ns or MINUTE_NS - (last.now_ns - START_NS) % MINUTE_NS)
        values = {name: some_row(random, last.values.get(name, {})) for name in names[:count]}
        if not random.randrange(4):
            values = {name: last.values.get(name, values[name]) for name in values}
        labels = last.labels
        if len(labels) != count or not random.randrange(5):
            untold = not random.randrange(3)
            labels = {
                name: {} if untold else {"exchange": random.choice(EXCHANGES), "type": "CS"} for name in names[:count]
            }
        session, session_start_ns, day_start_ns = last.session, last.session_start_ns, last.day_start_ns
        if not random.randrange(5):
            session, session_start_ns = random.choice(SESSIONS), now_ns - 1
            day_start_ns = random.choice((day_start_ns, day_start_ns, day_start_ns, now_ns - 1))
        tells = bool(random.randrange(2))
        last = Scan(now_ns, values, labels, session, session_start_ns, day_start_ns, tells)
        steps.append(last)
    return steps
