"""The rules again, slowly: one symbol at a time, and nothing remembered that can be asked again.

For each rule and symbol all scans since the rule began are kept as they were. What a node says at one of them is worked
out from these, by the sentence that stands beside the node in `tapewatch.engine.rules.tree`, whose classes are all that
is shared with the engine. Truth is True, False or None, a value is a number or None; None is unknown. Three sentences
leave something open. Here they mean:

* Between is two comparisons joined: false as soon as one of them is false.
* An attribute that is absent or empty is one that nobody told.
* A symbol's history begins at the first scan that holds the symbol, or with the rule if that is later.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from operator import eq, ge, gt, le, lt, ne
from typing import TypeAlias

from tapewatch.engine.rules.tree import (
    All,
    AnyOf,
    Arithmetic,
    Attribute,
    Between,
    Comparison,
    Condition,
    Crossing,
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
)

Truth: TypeAlias = bool | None

MINUTE = 60_000_000_000
BARE_PRICE = Operand("price", 0)
COMPARE = {">": gt, "<": lt, ">=": ge, "<=": le, "==": eq, "!=": ne}


def all_of(truths: Iterable[Truth]) -> Truth:
    truths = list(truths)
    if False in truths:
        return False
    return None if None in truths else True


def any_of(truths: Iterable[Truth]) -> Truth:
    truths = list(truths)
    if True in truths:
        return True
    return None if None in truths else False


def negation(truth: Truth) -> Truth:
    return None if truth is None else not truth


def known(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def compare(left: float | None, operator: str, right: float | None) -> Truth:
    if left is None or right is None:
        return None
    return bool(COMPARE[operator](left, right))


def calculate(operator: str, left: float, right: float) -> float | None:
    if operator == "+":
        return known(left + right)
    if operator == "-":
        return known(left - right)
    if operator == "*":
        return known(left * right)
    return known(left / right) if right else None


@dataclass(frozen=True)
class Seen:
    """A symbol at a scan."""

    now_ns: int
    symbol: str
    values: Mapping[str, float]
    labels: Mapping[str, str]
    session: str
    watchlists: Mapping[str, frozenset[str]]


@dataclass
class Story:
    """What a rule has seen of a symbol, and what it said."""

    scans: list[Seen] = field(default_factory=list)
    answers: list[dict[Condition, Truth]] = field(default_factory=list)
    """Per scan, so that nothing is worked out twice; forgetting them changes nothing."""
    sides: list[dict[Crossing, int]] = field(default_factory=list)
    held: bool = False
    last_match_ns: int | None = None

    def see(self, scan: Seen) -> None:
        self.scans.append(scan)
        self.answers.append({})
        self.sides.append({})

    # -- values --------------------------------------------------------------------------------------------------------

    def value(self, node: Value, at: int) -> float | None:
        """What the node was worth at the scan with this number."""
        match node:
            case Number(value=number):
                return known(number)
            case Operand():
                return known(self.scans[at].values.get(node.name))
            case Arithmetic(operator=operator, left=left, right=right):
                first, second = self.value(left, at), self.value(right, at)
                return None if first is None or second is None else calculate(operator, first, second)
            case Function(name=name, arguments=arguments):
                numbers = []
                for argument in arguments:
                    worth = self.value(argument, at)
                    if worth is None:
                        return None
                    numbers.append(worth)
                if name == "abs":
                    return abs(numbers[0])
                if name == "negate":
                    return -numbers[0]
                return min(numbers) if name == "min" else max(numbers)

    def path(self, node: Value, at: int, now: float) -> tuple[float, float]:
        """Lowest and highest since the scan before; `now` is the node's value."""
        if node != BARE_PRICE:
            return now, now
        values = self.scans[at].values
        low, high = known(values.get("lowest_since_scan")), known(values.get("highest_since_scan"))
        return now if low is None else low, now if high is None else high

    # -- conditions ----------------------------------------------------------------------------------------------------

    def truth(self, node: Condition, at: int) -> Truth:
        """What the node said at the scan with this number."""
        answers = self.answers[at]
        if node not in answers:
            answers[node] = self._truth(node, at)
        return answers[node]

    def _truth(self, node: Condition, at: int) -> Truth:
        scan = self.scans[at]
        match node:
            case Comparison(left=left, operator=operator, right=right):
                return compare(self.value(left, at), operator, self.value(right, at))
            case Between(value=value, low=low, high=high):
                middle = self.value(value, at)
                return all_of([compare(self.value(low, at), "<=", middle), compare(middle, "<=", self.value(high, at))])
            case Crossing():
                return self.crosses(node, at)
            case Attribute(name="symbol", values=values):
                return scan.symbol in values
            case Attribute(name=name, values=values):
                label = scan.labels.get(name, "")
                return label in values if label else None
            case InWatchlist(watchlist=watchlist):
                return scan.symbol in scan.watchlists.get(watchlist, frozenset())
            case InSession(sessions=sessions):
                return scan.session in sessions
            case Not(condition=condition):
                return negation(self.truth(condition, at))
            case All(conditions=conditions):
                return all_of([self.truth(condition, at) for condition in conditions])
            case AnyOf(conditions=conditions):
                return any_of([self.truth(condition, at) for condition in conditions])
            case Held(condition=condition, duration_ns=duration_ns):
                start = self.run_start(condition, at)
                long_enough = start <= at and scan.now_ns - self.scans[start].now_ns >= duration_ns
                return self.lasting(condition, at, start, long_enough=long_enough)
            case InARow(condition=condition, times=times):
                start = self.run_start(condition, at)
                return self.lasting(condition, at, start, long_enough=at - start + 1 >= times)
            case Within(condition=condition, duration_ns=duration_ns):
                return self.once(condition, scan.now_ns - duration_ns, at + 1)
            case Then(first=first, second=second, within_ns=within_ns):
                return all_of([self.truth(second, at), self.once(first, scan.now_ns - within_ns, at)])

    def run_start(self, condition: Condition, at: int) -> int:
        """The first scan of the unbroken run of true that ends at this one; the next scan if it is not true."""
        start = at + 1
        while start > 0 and self.truth(condition, start - 1) is True:
            start -= 1
        return start

    def lasting(self, condition: Condition, at: int, start: int, *, long_enough: bool) -> Truth:
        now = self.truth(condition, at)
        if now is not True or long_enough:
            return now
        return False if start > 0 and self.truth(condition, start - 1) is False else None

    def once(self, condition: Condition, since_ns: int, before: int) -> Truth:
        """Whether the condition was true at a scan from `since_ns` on, of those numbered below `before`."""
        return any_of([self.truth(condition, i) for i in range(before) if self.scans[i].now_ns >= since_ns])

    def crosses(self, node: Crossing, at: int) -> Truth:
        left, right = self.value(node.left, at), self.value(node.right, at)
        side = self.side(node, at - 1)
        if left is None or right is None or side == 0:
            return None
        left_low, left_high = self.path(node.left, at, left)
        right_low, right_high = self.path(node.right, at, right)
        came_above, came_below = left_high > right_low, left_low < right_high
        if node.direction == "above":
            return came_above if side < 0 else came_below and left > right
        return came_below if side > 0 else came_above and left < right

    def side(self, node: Crossing, at: int) -> int:
        """The last strict side up to this scan: 1 is left above right, -1 left below right, 0 neither yet."""
        if at < 0:
            return 0
        if node not in self.sides[at]:
            self.sides[at][node] = self._side(node, at)
        return self.sides[at][node]

    def _side(self, node: Crossing, at: int) -> int:
        before = self.side(node, at - 1)
        left, right = self.value(node.left, at), self.value(node.right, at)
        if left is None or right is None:
            return before
        if left != right:
            return 1 if left > right else -1
        left_low, left_high = self.path(node.left, at, left)
        right_low, right_high = self.path(node.right, at, right)
        if before < 0 and left_high > right_low:
            return 1
        if before > 0 and left_low < right_high:
            return -1
        return before


@dataclass
class Life:
    """A rule since it began."""

    stories: dict[str, Story] = field(default_factory=dict)
    bar: tuple[int, ...] = ()
    """Of the last scan: the bar or session that it fell into."""


class NaiveRules:
    def __init__(self) -> None:
        self._ruleset = Ruleset(number=0, rules=())
        self._lives: dict[tuple[str, int], Life] = {}

    def apply(self, ruleset: Ruleset) -> None:
        """A rule that stays, in the same version, keeps its memory."""
        self._ruleset = ruleset
        keys = [(rule.id, rule.version) for rule in ruleset.rules]
        self._lives = {key: self._lives.get(key, Life()) for key in keys}

    def scan(
        self,
        now_ns: int,
        values: Mapping[str, Mapping[str, float]],
        labels: Mapping[str, Mapping[str, str]],
        session: str,
        session_start_ns: int,
        day_start_ns: int,
    ) -> list[tuple[str, int, str, str]]:
        """Who matches, as (rule, version, symbol, alert), by the ruleset's order and then the symbols' names."""
        matches = []
        for rule in self._ruleset.rules:
            life = self._lives[rule.id, rule.version]
            bar = bar_of(rule, now_ns, session_start_ns, day_start_ns)
            if bar != life.bar:
                life.bar = bar
                for story in life.stories.values():
                    story.held = False
            for symbol in sorted(values):
                story = life.stories.setdefault(symbol, Story())
                told = labels.get(symbol, {})
                story.see(Seen(now_ns, symbol, values[symbol], told, session, self._ruleset.watchlists))
                if matched(rule, story):
                    matches.append((rule.id, rule.version, symbol, alert_id(rule, symbol, now_ns)))
        return matches


def bar_of(rule: RuleSpec, now_ns: int, session_start_ns: int, day_start_ns: int) -> tuple[int, ...]:
    if rule.fire.mode == "bar":
        return day_start_ns, (now_ns - 1 - day_start_ns) // (rule.fire.bar_minutes * MINUTE)
    return (session_start_ns,) if rule.fire.mode == "session" else ()


def matched(rule: RuleSpec, story: Story) -> bool:
    """Whether the rule says something at the story's last scan."""
    at = len(story.scans) - 1
    when = story.truth(rule.when, at)
    gate = True if rule.gate is None else story.truth(rule.gate, at)
    rearm = None if rule.rearm is None else story.truth(rule.rearm, at)
    fires = when is True and (rule.fire.mode == "level" or not story.held)
    if when is True:
        story.held = True
    elif rule.fire.mode == "edge" and rule.rearm is None:
        story.held = story.held and when is None
    elif rule.fire.mode == "edge":
        story.held = story.held and rearm is not True
    if not fires or gate is not True:
        return False
    now_ns = story.scans[at].now_ns
    if story.last_match_ns is not None and now_ns - story.last_match_ns < rule.cooldown_ns:
        return False
    story.last_match_ns = now_ns
    return True


def alert_id(rule: RuleSpec, symbol: str, now_ns: int) -> str:
    words = (rule.id, str(rule.version), symbol, str(now_ns))
    return blake2b("\x1f".join(words).encode(), digest_size=16).hexdigest()
