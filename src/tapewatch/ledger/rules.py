"""Rules for the oracle: from JSON to questions about one stock, which remember what they must.

A question is put to a stock only at scans at which its answer may be another: after a print of the stock, when
something leaves a window, when a candle closes, and when the question itself asked to be woken. In between the answer
stands.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import eq, ge, gt, le, lt, ne
from typing import Any, TypeAlias

from tapewatch.ledger.booking import NAN
from tapewatch.ledger.days import MINUTE, NEVER, SECOND
from tapewatch.ledger.metrics import CANDLES, CLOCK, METRICS, MOST_BACK, Look, closed_candle

Truth: TypeAlias = bool | None
"""None is unknown."""
_COMPARE = {">": gt, "<": lt, ">=": ge, "<=": le, "==": eq, "!=": ne}
_ONCE = re.compile(r"once per bar (\d+)(m|h)")


class NotChecked(Exception):
    """Why the oracle cannot say when a rule fires."""


@dataclass(frozen=True, kw_only=True)
class AskedRule:
    """A rule as the oracle takes it: conditions in the JSON of rule documents."""

    id: str
    version: int
    when: Any
    gate: Any = None
    rearm: Any = None
    fire: str = "edge"
    cooldown_s: float = 0.0


@dataclass
class Seen:
    """What questions see of a stock at a scan."""

    look: Look
    clock: Mapping[str, float]
    memory: list[Any]
    scan_before: int
    """The scan before this one."""
    wake: Callable[[int], None]
    """Ask again at the first scan at or after this instant."""


ValueOf: TypeAlias = Callable[[Seen], float]
Question: TypeAlias = Callable[[Seen], Truth]


def all_of(truths: Iterable[Truth]) -> Truth:
    truths = list(truths)
    return False if False in truths else None if None in truths else True


def any_of(truths: Iterable[Truth]) -> Truth:
    truths = list(truths)
    return True if True in truths else None if None in truths else False


@dataclass
class Asking:
    """A rule's questions."""

    rule: AskedRule
    place: int
    scan_ns: int
    watchlists: Mapping[str, frozenset[str]]
    reads: set[str] = field(default_factory=set)
    clock: list[Callable[[Mapping[str, float]], Truth]] = field(default_factory=list)
    """Comparisons of the time of day: when one of them changes, every stock is asked."""
    slots: int = 0
    """What it remembers of a stock."""
    when: Question = field(init=False)
    gate: Question | None = field(init=False)
    rearm: Question | None = field(init=False)
    mode: str = field(init=False)
    bar_ns: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.mode = self.rule.fire.split(" ", maxsplit=1)[0]
        if self.mode == "once":
            self._once(self.rule.fire)
        self.when = self.condition(self.rule.when)
        self.gate = None if self.rule.gate is None else self.condition(self.rule.gate)
        self.rearm = None if self.rule.rearm is None else self.condition(self.rule.rearm)

    def _once(self, fire: str) -> None:
        match = _ONCE.fullmatch(fire)
        if match:
            self.mode, self.bar_ns = "bar", int(match[1]) * {"m": MINUTE, "h": 60 * MINUTE}[match[2]]
        elif fire == "once per day":
            self.mode, self.bar_ns = "bar", 1_440 * MINUTE
        elif fire == "once per session":
            self.mode = "session"
        else:
            raise NotChecked(f"fires {fire}")

    def _slot(self) -> int:
        self.slots += 1
        return self.slots - 1

    # -- values -------------------------------------------------------------------------------------------------------

    def value(self, form: Any) -> ValueOf:
        if isinstance(form, int | float):
            number = float(form)
            return lambda _: number
        if "metric" in form:
            return self._metric(form["metric"], form.get("back", 0))
        ((name, inner),) = form.items()
        parts = [self.value(part) for part in (inner if isinstance(inner, list) else [inner])]
        return _computed(name, parts)

    def _metric(self, name: str, back: int) -> ValueOf:
        if name in CLOCK:
            raise NotChecked(f"computes with {name}")
        if back and name in CANDLES and back <= MOST_BACK:
            of = closed_candle(name, back)
            self.reads.add("closed candles")
        elif not back and name in METRICS:
            of = METRICS[name]
            self.reads.add(name)
        else:
            raise NotChecked(f"asks for {name}{f'[{back}]' if back else ''}")
        return lambda seen: of(seen.look)

    # -- conditions ---------------------------------------------------------------------------------------------------

    def condition(self, form: Any) -> Question:
        if "operator" in form:
            return self._comparison(form)
        if "session" in form:
            return lambda seen: seen.look.session.name in form["session"]
        if "symbol" in form:
            return lambda seen: seen.look.stock.symbol in form["symbol"]
        if "watchlist" in form:
            listed = self.watchlists.get(form["watchlist"], frozenset())
            return lambda seen: seen.look.stock.symbol in listed
        if "all" in form or "any" in form:
            parts = [self.condition(part) for part in form.get("all", form.get("any"))]
            joined = all_of if "all" in form else any_of
            return lambda seen: joined([part(seen) for part in parts])
        if "not" in form:
            inner = self.condition(form["not"])
            return lambda seen: None if (truth := inner(seen)) is None else not truth
        if "held" in form:
            return self._held(self.condition(form["held"]), round(form["seconds"] * SECOND))
        if "in_a_row" in form:
            return self._held(self.condition(form["in_a_row"]), (form["times"] - 1) * self.scan_ns)
        if "within" in form:
            return self._within(self.condition(form["within"]), round(form["seconds"] * SECOND))
        if "then" in form:
            first, second = (self.condition(part) for part in form["then"])
            return self._then(first, second, round(form["seconds"] * SECOND))
        raise NotChecked(f"asks for {next(iter(form))}")

    def _comparison(self, form: Any) -> Question:
        operator, right = form["operator"], form["value"]
        left = {"metric": form["metric"], "back": form.get("back", 0)} if "metric" in form else form["left"]
        if isinstance(left, dict) and left.get("metric") in CLOCK:
            return self._clock_comparison(left["metric"], operator, right)
        if operator == "between":
            value, low, high = self.value(left), *(self.value(bound) for bound in right)
            return lambda seen: all_of(
                [_compared(low(seen), "<=", value(seen)), _compared(value(seen), "<=", high(seen))]
            )
        if operator.startswith("crosses_"):
            return self._crossing(left, right, above=operator == "crosses_above")
        first, second = self.value(left), self.value(right)
        return lambda seen: _compared(first(seen), operator, second(seen))

    def _clock_comparison(self, name: str, operator: str, right: Any) -> Question:
        bounds = right if operator == "between" else [right]
        if operator.startswith("crosses_") or not all(isinstance(bound, int | float) for bound in bounds):
            raise NotChecked(f"computes with {name}")

        def of_clock(clock: Mapping[str, float]) -> Truth:
            if operator == "between":
                return all_of([_compared(bounds[0], "<=", clock[name]), _compared(clock[name], "<=", bounds[1])])
            return _compared(clock[name], operator, bounds[0])

        self.clock.append(of_clock)
        return lambda seen: of_clock(seen.clock)

    def _crossing(self, left: Any, right: Any, *, above: bool) -> Question:
        """From strictly below to strictly above, or the other way round."""
        self.reads.add("crossing")
        slot, first, second = self._slot(), self.value(left), self.value(right)

        def asked(seen: Seen) -> Truth:
            side = seen.memory[slot] or 0
            a, b = first(seen), second(seen)
            if math.isnan(a) or math.isnan(b):
                return None
            a_low, a_high = _path(left, seen, a)
            b_low, b_high = _path(right, seen, b)
            rose, fell = side < 0 and a_high > b_low, side > 0 and a_low < b_high
            seen.memory[slot] = (1 if a > b else -1) if a != b else 1 if rose else -1 if fell else side
            if side == 0:
                return None
            crosses = rose or (fell and a > b) if above else fell or (rose and a < b)
            if crosses:
                seen.wake(seen.look.now + 1)  # at the next scan it does not any more
            return crosses

        return asked

    def _held(self, inner: Question, duration_ns: int) -> Question:
        """True at every scan for so long. It remembers since when, and what was before: True is never that."""
        slot = self._slot()

        def asked(seen: Seen) -> Truth:
            since, before = seen.memory[slot] or (NEVER, None)
            truth, now = inner(seen), seen.look.now
            if truth is not True:
                seen.memory[slot] = NEVER, truth
                return truth
            since = min(since, now)
            seen.memory[slot] = since, before
            if now - since >= duration_ns:
                return True
            seen.wake(since + duration_ns)
            return False if before is False else None

        return asked

    def _remembered(self, inner: Question) -> Callable[[Seen], tuple[Truth, int, int]]:
        """What `inner` says, and the newest scans before this one at which it was true, and unknown."""
        slot = self._slot()

        def asked(seen: Seen) -> tuple[Truth, int, int]:
            was, true_ns, unknown_ns = seen.memory[slot] or ("never asked", -NEVER, -NEVER)
            if was is True:  # and so it was up to the scan before
                true_ns = seen.scan_before
            elif was is None:
                unknown_ns = seen.scan_before
            truth = inner(seen)
            seen.memory[slot] = truth, true_ns, unknown_ns
            return truth, true_ns, unknown_ns

        return asked

    def _within(self, inner: Question, duration_ns: int) -> Question:
        remembered = self._remembered(inner)

        def asked(seen: Seen) -> Truth:
            truth, true_ns, unknown_ns = remembered(seen)
            return any_of([truth, _lately(seen, true_ns, unknown_ns, duration_ns)])

        return asked

    def _then(self, first: Question, second: Question, within_ns: int) -> Question:
        remembered = self._remembered(first)

        def asked(seen: Seen) -> Truth:
            truth, true_ns, unknown_ns = remembered(seen)
            if truth is not False and seen.scan_before != (true_ns if truth else unknown_ns):
                seen.wake(seen.look.now + 1)  # to the next scan it is an earlier one
            return all_of([second(seen), _lately(seen, true_ns, unknown_ns, within_ns)])

        return asked


def _lately(seen: Seen, true_ns: int, unknown_ns: int, duration_ns: int) -> Truth:
    """Whether something was true at an earlier scan that lies no longer ago."""
    since = seen.look.now - duration_ns
    for ns in (true_ns, unknown_ns):
        if ns >= since:
            seen.wake(ns + duration_ns + 1)
    return True if true_ns >= since else None if unknown_ns >= since else False


def _path(form: Any, seen: Seen, now: float) -> tuple[float, float]:
    """Lowest and highest since the scan before: of the bare price, else what it is now."""
    path = seen.look.stock.path
    if isinstance(form, dict) and form.get("metric") == "price" and not form.get("back") and path:
        return min(path), max(path)
    return now, now


def _compared(left: float, operator: str, right: float) -> Truth:
    if math.isnan(left) or math.isnan(right):
        return None
    return bool(_COMPARE[operator](left, right))


def _computed(name: str, parts: Sequence[ValueOf]) -> ValueOf:
    def divided(a: float, b: float) -> float:
        return a / b if b else NAN

    operations: dict[str, Callable[..., float]] = {
        "add": lambda a, b: a + b,
        "subtract": lambda a, b: a - b,
        "multiply": lambda a, b: a * b,
        "divide": divided,
        "negate": lambda a: -a,
        "abs": abs,
        "min": min,
        "max": max,
    }
    if name not in operations:
        raise NotChecked(f"computes {name}")
    operation = operations[name]

    def value(seen: Seen) -> float:
        values = [part(seen) for part in parts]
        if any(map(math.isnan, values)):
            return NAN
        result = operation(*values)
        return result if math.isfinite(result) else NAN

    return value
