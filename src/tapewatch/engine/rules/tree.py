"""The checked tree of a rule: what can be asked of the board, and what the rule says when it comes true.

Everything here is frozen and hashable, so that equal questions of different rules are one. Metrics carry their
canonical names; times of day are minutes since midnight in New York. What a node means is written beside it; truth has
three values (true, false, unknown), joined as Kleene has it. A scan that is left out because nothing can change counts
as one at which all was as at the scan before.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeAlias, get_args

from tapewatch.engine.frozen import Carried

ComparisonOperator = Literal[">", "<", ">=", "<=", "==", "!="]
Severity = Literal["info", "notice", "warning", "critical"]
SEVERITIES: tuple[Severity, ...] = ("info", "notice", "warning", "critical")


# -- values: numbers, unknown (NaN) where any part of them is ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Number:
    value: float


@dataclass(frozen=True, slots=True)
class Operand:
    """A metric of the catalogue; with `back`, of the n-th closed candle before the running one."""

    metric: str
    back: int = 0

    @property
    def name(self) -> str:
        """Its row on the board, such as ``close_5m[1]``."""
        return f"{self.metric}[{self.back}]" if self.back else self.metric


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Dividing by zero, and whatever else has no finite result, is unknown."""

    operator: Literal["+", "-", "*", "/"]
    left: "Value"
    right: "Value"


@dataclass(frozen=True, slots=True)
class Function:
    """``abs`` and ``negate`` take one argument, ``min`` and ``max`` two or more."""

    name: Literal["abs", "min", "max", "negate"]
    arguments: tuple["Value", ...]


Value: TypeAlias = Number | Operand | Arithmetic | Function


# -- conditions: true, false or unknown -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Comparison:
    """Unknown where a side is unknown, whatever the operator."""

    left: Value
    operator: ComparisonOperator
    right: Value


@dataclass(frozen=True, slots=True)
class Between:
    """``low <= value <= high``."""

    value: Value
    low: Value
    high: Value


@dataclass(frozen=True, slots=True)
class Crossing:
    """`left` comes from strictly below `right` to strictly above it (or the other way round).

    The last *strict* side is remembered: a touch alone is no crossing, and does not forget the side. The first side
    seen is learnt; until then, and where a side is unknown, the crossing is unknown. Where a side is the bare `price`,
    its highest and lowest since the last scan count, so that a cross and return inside the interval is seen.
    """

    left: Value
    direction: Literal["above", "below"]
    right: Value


@dataclass(frozen=True, slots=True)
class Attribute:
    """What the symbol is: its name, or its listing ``exchange`` (MIC), ``type`` or ``sector`` from the reference data.
    An attribute that nobody told is unknown. `values` are sorted, without repetition.
    """

    name: Literal["symbol", "exchange", "type", "sector"]
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class InWatchlist:
    """The symbol is on the watchlist, as the ruleset brings it; a list that it does not bring is empty."""

    watchlist: str


@dataclass(frozen=True, slots=True)
class InSession:
    """The running session is one of ``pre``, ``regular``, ``post``, ``closed`` (in this order, each once)."""

    sessions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Not:
    condition: "Condition"


@dataclass(frozen=True, slots=True)
class All:
    conditions: tuple["Condition", ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """True when one of them is."""

    conditions: tuple["Condition", ...]


@dataclass(frozen=True, slots=True)
class Held:
    """True at every scan for at least `duration_ns`: since a scan that lies so long ago, or longer, it has been nothing
    else. False when false; when true for a shorter time, what it was before that time: false or unknown (never seen).
    """

    condition: "Condition"
    duration_ns: int


@dataclass(frozen=True, slots=True)
class Within:
    """True at this scan or at one of the last `duration_ns`, the edge included; else unknown if it was unknown at one
    of these, else false.
    """

    condition: "Condition"
    duration_ns: int


@dataclass(frozen=True, slots=True)
class InARow:
    """True at this scan and the `times - 1` before it. False when false; when true for fewer scans, what it was before
    them: false or unknown (never seen).
    """

    condition: "Condition"
    times: int


@dataclass(frozen=True, slots=True)
class Then:
    """`second` is true now, and `first` was true at an *earlier* scan, at most `within_ns` ago: the conjunction of
    `second` and of ``Within(first)`` without the present scan.
    """

    first: "Condition"
    second: "Condition"
    within_ns: int


Condition: TypeAlias = (
    Comparison
    | Between
    | Crossing
    | Attribute
    | InWatchlist
    | InSession
    | Not
    | All
    | AnyOf
    | Held
    | Within
    | InARow
    | Then
)
Node: TypeAlias = Value | Condition


def parts(node: Node) -> tuple[Node, ...]:
    """The nodes directly below."""
    match node:
        case Arithmetic(left=left, right=right) | Comparison(left=left, right=right) | Crossing(left=left, right=right):
            return left, right
        case Function(arguments=arguments):
            return arguments
        case Between(value=value, low=low, high=high):
            return value, low, high
        case Not(condition=condition) | Held(condition=condition) | Within(condition=condition):
            return (condition,)
        case InARow(condition=condition):
            return (condition,)
        case All(conditions=conditions) | AnyOf(conditions=conditions):
            return conditions
        case Then(first=first, second=second):
            return first, second
    return ()


def conditions_below(condition: Condition) -> tuple[Condition, ...]:
    """The conditions directly below; none below one that is made of values."""
    match condition:
        case All(conditions) | AnyOf(conditions):
            return conditions
        case Not(part) | Held(part) | Within(part) | InARow(part):
            return (part,)
        case Then(first, second):
            return first, second
    return ()


def walk(node: Node) -> Iterator[Node]:
    """The node and all below it, parents first, from left to right."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += reversed(parts(node))


def compare(metric: str, operator: ComparisonOperator, number: float) -> Comparison:
    """``metric operator number``, the plainest of conditions."""
    return Comparison(Operand(metric), operator, Number(number))


def operands(*nodes: Node | None) -> tuple[Operand, ...]:
    """Each operand once, in the order in which they are read."""
    found = (part for node in nodes if node is not None for part in walk(node) if isinstance(part, Operand))
    return tuple(dict.fromkeys(found))


def watchlists(*conditions: Condition | None) -> tuple[str, ...]:
    """Each list that they name once, in the order in which they are named."""
    named = (node for condition in conditions if condition is not None for node in walk(condition))
    return tuple(dict.fromkeys(node.watchlist for node in named if isinstance(node, InWatchlist)))


# -- rules ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fire:
    """When a rule that is true for a symbol fires.

    ``edge``: when it becomes true, not having been true since it was last known to be false (or, with `RuleSpec.rearm`,
    since that was last true). ``level``: at every scan. ``bar``: at the first scan of each candle of `bar_minutes`
    (counted from 04:00 New York; 1,440 is the day) at which it is true. ``session``: the same for each session.
    While the market is closed and nothing changes, scans pause, and ``level`` and ``bar`` are silent.
    """

    mode: Literal["edge", "level", "bar", "session"] = "edge"
    bar_minutes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSpec:
    """When `when` holds, as `fire` says, and `gate` is true at that scan. A fire that the gate or the cooldown
    suppresses is spent: the rule must be armed again. After a match the symbol cannot match again for `cooldown_ns` of
    event time.
    """

    id: str
    version: int
    name: str
    when: Condition
    gate: Condition | None = None
    rearm: Condition | None = None
    """With ``edge``: the rule is armed again at a scan at which this is true and `when` is not."""
    fire: Fire = Fire()
    cooldown_ns: int = 0
    severity: Severity = "info"
    tags: tuple[str, ...] = ()
    owner: str = "local"
    """A user's id, which its matches carry: the engine asks all rules alike."""
    shared: bool = False

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """Those that it has of `when`, `gate` and `rearm`."""
        return tuple(condition for condition in (self.when, self.gate, self.rearm) if condition is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruleset:
    """Rule snapshot `number`: it takes effect at its place on the tape, so that a replay applies it there too."""

    number: int
    rules: tuple[RuleSpec, ...]
    watchlists: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """The lists that the rules name, by id."""
    shown: tuple[str, ...] = ()
    """Rows that boards have beside the published metrics, because users' toplists ask for them; sorted."""


class Match(NamedTuple):
    """A rule came true for a symbol at a scan."""

    alert_id: str
    rule: RuleSpec
    symbol: str
    fired_at_ns: int
    """Event time of the scan that saw it."""
    price: float
    values: dict[str, float]
    """Each operand's value at that scan."""
    session: str
    ages_s: Mapping[str, float] = MappingProxyType({})
    """How old each operand's value was, in seconds of event time; NaN where nothing can be said."""


def alert_id(rule: RuleSpec, symbol: str, fired_at_ns: int) -> str:
    """Derived, never drawn: the same event has the same id however often and wherever it is computed."""
    key = f"{rule.id}\x1f{rule.version}\x1f{symbol}\x1f{fired_at_ns}"
    return blake2b(key.encode(), digest_size=16).hexdigest()


TREE_CARRIED = tuple(map(Carried, (*get_args(Node), Fire, RuleSpec, Ruleset, Match)))
