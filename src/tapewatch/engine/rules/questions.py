"""Conditions of any shape, compiled: each distinct one is asked once a scan, of all symbols.

An answer is two rows of truth values: where the condition is true, and where it is not false. Between them lies
unknown. With these two, Kleene's logic is plain: `not` swaps and inverts them, `and` and `or` join them side by side.

Conditions that remember (crossings, durations, sequences) keep arrays with an element a symbol. They belong to the
rules that began at the same ruleset: a rule never profits from what an equal one of somebody else had seen before it.

Scans at which nothing could have changed may be left out. Whoever remembers takes each of them for one that was made:
what had been true went on being true.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tapewatch.engine.columns import F64, I64, Bool
from tapewatch.engine.frozen import Carried
from tapewatch.engine.rules.leaves import COMPARE
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
    Then,
    Value,
    Within,
    conditions_below,
    walk,
)

PRICE = Operand("price")
HIGHEST, LOWEST = "highest_since_scan", "lowest_since_scan"
"""Rows with the path of the price since the last scan."""
_MEMORY = (Crossing, Held, Within, InARow, Then)
LONG_AGO = np.iinfo(np.int64).min // 2


class Answer(NamedTuple):
    """Shape (symbols,) each."""

    true: Bool
    possible: Bool
    """True or unknown."""


@dataclass(slots=True, kw_only=True)
class Scene:
    """What one scan sees."""

    number: int
    """One more with each scan."""
    values: F64
    """Shape (rows, symbols)."""
    row_of: Mapping[str, int]
    now_ns: int
    symbols: Sequence[str]
    session: str
    labels: Mapping[str, Sequence[str]]
    labels_version: int
    watchlists: Mapping[str, frozenset[str]]
    made_ns: int
    """The scan that was made before this one."""
    before_ns: int
    """The scan before this one, made or left out: later than `made_ns` after a pause."""
    computed: dict[Value, F64] = field(default_factory=dict)
    """Values of this scan that were computed from rows."""

    def remake(self, _: None) -> None:
        self.computed = {}

    def row(self, name: str) -> F64:
        values: F64 = self.values[self.row_of[name]]
        return values

    def value(self, value: Value) -> F64:
        """Shape (symbols,), or () for a number."""
        match value:
            case Number(number):
                return np.asarray(number)
            case Operand():
                return self.row(value.name)
        known = self.computed.get(value)
        if known is None:
            known = self._compute(value)
            self.computed[value] = known
        return known

    def _compute(self, value: Arithmetic | Function) -> F64:
        if isinstance(value, Arithmetic):
            found = _ARITHMETIC[value.operator](self.value(value.left), self.value(value.right))
        else:
            arguments = [self.value(argument) for argument in value.arguments]
            found = _FUNCTIONS[value.name](*arguments[:2])
            for argument in arguments[2:]:
                found = _FUNCTIONS[value.name](found, argument)
        return np.where(np.isfinite(found), found, np.nan)

    def path(self, value: Value) -> tuple[F64, F64]:
        """Lowest and highest since the last scan, where that is known; else the value itself twice."""
        now = self.value(value)
        if value != PRICE:
            return now, now
        low, high = self.row(LOWEST), self.row(HIGHEST)
        return np.where(np.isnan(low), now, low), np.where(np.isnan(high), now, high)


_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "negate": np.negative,
    "min": np.minimum,
    "max": np.maximum,
}


class Question:
    """A compiled condition; asked again in the same scan, it answers what it answered."""

    __slots__ = ("_answer", "_ask", "_scan")

    def __init__(self, ask: Callable[[Scene], Answer]) -> None:
        self._ask = ask
        self._scan = -1
        self._answer: Answer | None = None

    def __call__(self, scene: Scene) -> Answer:
        if self._answer is None or self._scan != scene.number:
            self._answer = self._ask(scene)
            self._scan = scene.number
        return self._answer

    def memory(self, scan: int) -> "Memory | None":
        """What it cannot find out again: what it remembers, and what it answered at this scan."""
        return (self._ask, self._answer if self._scan == scan else None) if isinstance(self._ask, _KEEPING) else None

    def recall(self, memory: "Memory", scan: int) -> None:
        """Take what an equal one remembered."""
        kept, self._answer = memory
        self._scan = scan
        if type(kept) is not type(self._ask):
            raise ValueError("a question has the memory of another")
        vars(self._ask).update(vars(kept))


def remembers(condition: Condition) -> bool:
    """Whether its answer depends on earlier scans."""
    return any(isinstance(part, _MEMORY) for part in walk(condition))


def settles_after_ns(condition: Condition, scan_interval_ns: int) -> int:
    """For how long it may change its mind when no value changes any more: one that remembers waits for its parts."""

    def whole(duration_ns: int) -> int:
        interval_ns = scan_interval_ns or 1
        return -(-duration_ns // interval_ns) * interval_ns

    match condition:
        case Held(part, duration_ns=wait_ns) | Within(part, duration_ns=wait_ns):
            return settles_after_ns(part, scan_interval_ns) + whole(wait_ns)
        case InARow(part, times=times):
            return settles_after_ns(part, scan_interval_ns) + times * scan_interval_ns
        case Then(first, second, within_ns=wait_ns):
            first_ns, second_ns = (settles_after_ns(part, scan_interval_ns) for part in (first, second))
            return max(first_ns + whole(wait_ns), second_ns)
    return max((settles_after_ns(part, scan_interval_ns) for part in conditions_below(condition)), default=0)


def reads_path(condition: Condition) -> bool:
    """Whether it asks for the path of the price between two scans."""
    return any(isinstance(part, Crossing) and PRICE in {part.left, part.right} for part in walk(condition))


class Questions:
    """Compiles; equal conditions become one. Those that remember are one among rules of the same `generation`."""

    def __init__(self, previous: "Questions | None" = None) -> None:
        self._known: dict[tuple[Condition, int], Question] = {}
        self._previous = previous._known if previous is not None else {}  # noqa: SLF001  # one of its own kind
        self.remembering: list[Question] = []
        """To be asked at every scan, whether or not anybody wants to know."""

    def ended(self) -> None:
        """No more is compiled: what nobody named is forgotten."""
        self._previous = {}

    def memories(self, scan: int) -> list["Memory"]:
        """Of all that cannot find out again what they know, in the order in which they were compiled."""
        return [memory for question in self._known.values() if (memory := question.memory(scan)) is not None]

    def recall(self, memories: "list[Memory]", scan: int) -> None:
        """Go on from the memories of an equal plan's questions."""
        keeping = [question for question in self._known.values() if question.memory(scan) is not None]
        for question, memory in zip(keeping, memories, strict=True):
            question.recall(memory, scan)

    def of(self, condition: Condition, generation: int) -> Question:
        """The question of this condition, for a rule of that generation."""
        memory = remembers(condition)
        key = condition, generation if memory else -1
        question = self._known.get(key)
        if question is None:
            parts = [self.of(part, generation) for part in conditions_below(condition)]
            question = self._previous.get(key) or Question(_compile(condition, parts))
            self._known[key] = question
            if memory:
                self.remembering.append(question)
        return question


def _compile(condition: Condition, parts: list[Question]) -> Callable[[Scene], Answer]:
    match condition:
        case Comparison():
            return _comparison(condition)
        case Between(value, low, high):
            return _all(
                [Question(_comparison(c)) for c in (Comparison(value, ">=", low), Comparison(value, "<=", high))]
            )
        case Crossing():
            return _Crosses(condition)
        case Attribute() | InWatchlist():
            return _Belongs(condition)
        case InSession(sessions):
            return lambda scene: _everywhere(scene, true=scene.session in sessions)
        case Not():
            return _not(parts[0])
        case All():
            return _all(parts)
        case AnyOf():
            return _any(parts)
        case Held(duration_ns=duration_ns):
            return _Lasts(parts[0], duration_ns=duration_ns)
        case InARow(times=times):
            return _Lasts(parts[0], times=times)
        case Within(duration_ns=duration_ns):
            return _Recently(parts[0], duration_ns)
        case Then(within_ns=within_ns):
            return _Follows(parts[0], parts[1], within_ns)


def _everywhere(scene: Scene, *, true: bool) -> Answer:
    row = np.full(scene.values.shape[1], true)
    return Answer(row, row)


def _comparison(comparison: Comparison) -> Callable[[Scene], Answer]:
    compare, differs = COMPARE[comparison.operator], comparison.operator == "!="

    def ask(scene: Scene) -> Answer:
        left, right = scene.value(comparison.left), scene.value(comparison.right)
        true = np.broadcast_to(compare(left, right), scene.values.shape[1:])
        unknown = np.isnan(left) | np.isnan(right)
        if differs:
            true = true & ~unknown
        return Answer(true, true | unknown)

    return ask


def _not(part: Question) -> Callable[[Scene], Answer]:
    def ask(scene: Scene) -> Answer:
        true, possible = part(scene)
        return Answer(~possible, ~true)

    return ask


def _all(parts: list[Question]) -> Callable[[Scene], Answer]:
    def ask(scene: Scene) -> Answer:
        answers = [part(scene) for part in parts]
        return Answer(
            np.logical_and.reduce([answer.true for answer in answers]),
            np.logical_and.reduce([answer.possible for answer in answers]),
        )

    return ask


def _any(parts: list[Question]) -> Callable[[Scene], Answer]:
    def ask(scene: Scene) -> Answer:
        answers = [part(scene) for part in parts]
        return Answer(
            np.logical_or.reduce([answer.true for answer in answers]),
            np.logical_or.reduce([answer.possible for answer in answers]),
        )

    return ask


class _Belongs:
    """Depends on nothing but the symbol."""

    def __init__(self, condition: Attribute | InWatchlist) -> None:
        self._condition = condition
        self._seen: tuple[int, int, frozenset[str]] | None = None
        self._answer = Answer(np.zeros(0, np.bool_), np.zeros(0, np.bool_))

    def __call__(self, scene: Scene) -> Answer:
        members = self._members(scene)
        seen = len(scene.symbols), scene.labels_version, members
        if self._seen != seen:
            self._answer = self._look(scene, members)
            self._seen = seen
        return self._answer

    def _members(self, scene: Scene) -> frozenset[str]:
        if isinstance(self._condition, InWatchlist):
            return scene.watchlists.get(self._condition.watchlist, frozenset())
        return frozenset(self._condition.values)

    def _look(self, scene: Scene, members: frozenset[str]) -> Answer:
        count = len(scene.symbols)
        if isinstance(self._condition, InWatchlist) or self._condition.name == "symbol":
            names: Sequence[str] = scene.symbols
        else:
            told = scene.labels.get(self._condition.name, ())
            names = [*told[:count], *[""] * (count - len(told))]
        true = np.fromiter((name in members for name in names), np.bool_, count)
        unknown = np.fromiter((not name for name in names), np.bool_, count)
        return Answer(true & ~unknown, true | unknown)


# -- memory: arrays with an element a symbol, grown when there are more -----------------------------------------------


def _grown(array: NDArray[Any], count: int, blank: int) -> NDArray[Any]:
    if len(array) >= count:
        return array
    grown = np.full(max(count, 2 * len(array)), blank, array.dtype)
    grown[: len(array)] = array
    return grown


class _Crosses:
    def __init__(self, crossing: Crossing) -> None:
        upper, lower = (crossing.left, crossing.right)
        if crossing.direction == "below":  # to fall below something is to be crossed by it
            upper, lower = lower, upper
        self._upper, self._lower = upper, lower
        self._side = np.zeros(0, np.int8)
        """Of `upper`: 1 above `lower`, -1 below it, 0 not known yet."""

    def __call__(self, scene: Scene) -> Answer:
        count = scene.values.shape[1]
        self._side = _grown(self._side, count, 0)
        side = self._side[:count]
        over, under = scene.value(self._upper), scene.value(self._lower)
        (over_low, over_high), (under_low, under_high) = scene.path(self._upper), scene.path(self._lower)
        known = np.broadcast_to(~(np.isnan(over) | np.isnan(under)), (count,))
        rose = (side < 0) & (over_high > under_low)
        dipped = (side > 0) & (over_low < under_high)
        true = known & (rose | (dipped & (over > under)))
        answer = Answer(true, true | ~known | (side == 0))
        level = over == under
        new = np.where(over > under, 1, np.where(over < under, -1, np.where(rose, 1, np.where(dipped, -1, side))))
        side[:] = np.where(known | level, new, side)
        return answer


class _Lasts:
    """True for so long, or at so many scans in a row."""

    def __init__(self, part: Question, *, duration_ns: int = 0, times: int = 0) -> None:
        self._part, self._duration_ns, self._times = part, duration_ns, times
        self._since = np.zeros(0, np.int64)
        """When the present run of true began, or how many scans it has; below zero: none."""
        self._false_before = np.zeros(0, np.bool_)

    def __call__(self, scene: Scene) -> Answer:
        true, possible = self._part(scene)
        count = len(true)
        self._since, self._false_before = _grown(self._since, count, -1), _grown(self._false_before, count, 0)
        since: I64 = self._since[:count]
        false_before: Bool = self._false_before[:count]
        if self._times:
            since[:] = np.where(true, np.maximum(since, 0) + 1, -1)
            lasted = true & (since >= self._times)
        else:
            since[:] = np.where(true, np.where(since < 0, scene.now_ns, since), -1)
            lasted = true & (scene.now_ns - since >= self._duration_ns)
        np.copyto(false_before, ~possible, where=~true)
        return Answer(lasted, lasted | (possible & ~true) | (true & ~false_before))


class _Memory:
    """When a condition was true, and when it was unknown. It is noted at every scan that is made."""

    def __init__(self) -> None:
        self._true_ns = np.zeros(0, np.int64)
        self._unknown_ns = np.zeros(0, np.int64)

    def pass_by(self, scene: Scene) -> None:
        """Note at the scans that were left out what was noted at the one before them."""
        if scene.made_ns < scene.before_ns:
            for noted_ns in (self._true_ns, self._unknown_ns):
                noted_ns[noted_ns == scene.made_ns] = scene.before_ns

    def note(self, answer: Answer, now_ns: int) -> None:
        self._grow(len(answer.true))
        count = len(answer.true)
        self._true_ns[:count][answer.true] = now_ns
        self._unknown_ns[:count][answer.possible & ~answer.true] = now_ns

    def since(self, start_ns: int, count: int) -> Answer:
        """True at one of the noted scans from `start_ns` on."""
        self._grow(count)
        true = self._true_ns[:count] >= start_ns
        return Answer(true, true | (self._unknown_ns[:count] >= start_ns))

    def _grow(self, count: int) -> None:
        self._true_ns = _grown(self._true_ns, count, LONG_AGO)
        self._unknown_ns = _grown(self._unknown_ns, count, LONG_AGO)


class _Recently:
    def __init__(self, part: Question, duration_ns: int) -> None:
        self._part, self._duration_ns, self._memory = part, duration_ns, _Memory()

    def __call__(self, scene: Scene) -> Answer:
        answer = self._part(scene)
        self._memory.pass_by(scene)
        self._memory.note(answer, scene.now_ns)
        return self._memory.since(scene.now_ns - self._duration_ns, len(answer.true))


class _Follows:
    def __init__(self, first: Question, second: Question, within_ns: int) -> None:
        self._first, self._second, self._within_ns, self._memory = first, second, within_ns, _Memory()

    def __call__(self, scene: Scene) -> Answer:
        first, second = self._first(scene), self._second(scene)
        self._memory.pass_by(scene)
        before = self._memory.since(scene.now_ns - self._within_ns, len(first.true))
        self._memory.note(first, scene.now_ns)
        return Answer(second.true & before.true, second.possible & before.possible)


Keeping = _Crosses | _Lasts | _Recently | _Follows | _Belongs
_KEEPING = (_Crosses, _Lasts, _Recently, _Follows, _Belongs)
Memory = tuple[Keeping, Answer | None]

QUESTION_CARRIED = (
    Carried(Scene, remade=("computed",)),
    Carried(Answer),
    Carried(_Memory),
    # Compiled anew, these take over what another one remembered.
    Carried(_Crosses, remade=("_upper", "_lower")),
    Carried(_Lasts, remade=("_part", "_duration_ns", "_times")),
    Carried(_Recently, remade=("_part", "_duration_ns")),
    Carried(_Follows, remade=("_first", "_second", "_within_ns")),
    Carried(_Belongs, remade=("_condition",)),
)
