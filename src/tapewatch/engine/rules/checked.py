"""How a checked tree is made: one canonical form for equal questions, and the limits of a condition.

The text and the JSON of a rule both build their trees with these functions. Each raises ValueError with a phrase for
the person who wrote the rule; where in the rule it was is known to the caller.
"""

import math
import re
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final, Literal, cast

from tapewatch.engine.columns import SECOND_NS
from tapewatch.engine.metrics import CATALOGUE, canonical_metric
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
    Node,
    Not,
    Number,
    Operand,
    Then,
    Value,
    Within,
    parts,
    walk,
)

MAX_NODES = 200
MAX_DEPTH = 24
"""Of nodes below each other, the topmost and the lowest included."""
MAX_MAGNITUDE = 1e15
MAX_LISTED = 500
MAX_IDENTIFIER = 64
MIN_DURATION_NS = SECOND_NS // 10
MAX_DURATION_NS = 24 * 3_600 * SECOND_NS
MILLISECOND_NS = SECOND_NS // 1_000
MIN_TIMES, MAX_TIMES = 2, 1_000
BAR_MINUTES = (1, 2, 5, 10, 15, 30, 60, 240, 1_440)
SESSIONS = ("pre", "regular", "post", "closed")
TIME_OF_DAY = "time_of_day"
_METRIC_ALIASES = {"time": TIME_OF_DAY}

IDENTIFIER_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}$"
SYMBOL_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9.\-^+=$_:]{0,23}$"
EXCHANGE_PATTERN = r"^[A-Z0-9]{4}$"
TYPE_PATTERN = r"^[A-Z0-9_]{1,16}$"
MAX_SECTOR = 200
AttributeName = Literal["symbol", "exchange", "type", "sector"]
_ATTRIBUTES: Final = {
    "symbol": (re.compile(SYMBOL_PATTERN), "a symbol such as AAPL"),
    "exchange": (re.compile(EXCHANGE_PATTERN), "the MIC of an exchange such as XNAS"),
    "type": (re.compile(TYPE_PATTERN), "a type of security such as CS or ETF"),
}
_IDENTIFIER = re.compile(IDENTIFIER_PATTERN)


def hint(word: str, known: Iterable[str]) -> str:
    """`` did you mean ...?`` for a word that comes close to known ones, else nothing."""
    close = get_close_matches(word[:MAX_IDENTIFIER], list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def unseen(text: str) -> int | None:
    """The place of the first character that cannot be shown, tabs and line ends excepted."""
    if text.isascii() and text.isprintable():
        return None
    for place, character in enumerate(text):
        if character not in "\n\t" and unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Cn"}:
            return place
    return None


# -- values -----------------------------------------------------------------------------------------------------------


def number(value: float) -> Number:
    if not math.isfinite(value) or abs(value) > MAX_MAGNITUDE:
        raise ValueError("a number must be finite and no larger than 1e15")
    return Number(float(value) + 0.0)  # -0.0 becomes 0.0


def operand(name: str, back: int = 0) -> Operand:
    metric = _METRIC_ALIASES.get(name) or canonical_metric(name)
    if metric not in CATALOGUE:  # an alias of a metric that this catalogue lacks
        raise ValueError(f"unknown metric {name!r}")
    reach = CATALOGUE[metric].back
    if back and not reach:
        raise ValueError(f"{metric} has no closed candles to look back at")
    if not 0 <= back <= reach:
        raise ValueError(f"{metric} reaches back no further than [{reach}]")
    return Operand(metric, back)


def arithmetic(operator: Literal["+", "-", "*", "/"], left: Value, right: Value) -> Arithmetic:
    if operator == "/" and right == Number(0.0):
        raise ValueError("divides by zero, which is never known")
    return Arithmetic(operator, left, right)


def function(name: str, arguments: Iterable[Value]) -> Value:
    """A number that is negated is a negative number."""
    given = tuple(arguments)
    if name not in {"abs", "min", "max", "negate"}:
        raise ValueError(f"there is no function {name[:MAX_IDENTIFIER]!r}{hint(name, ('abs', 'min', 'max'))}")
    if name in {"abs", "negate"}:
        if len(given) != 1:
            raise ValueError(f"{name} takes one value, not {len(given)}")
        if name == "negate" and isinstance(given[0], Number):
            return number(-given[0].value)
    elif len(given) < 2:
        raise ValueError(f"{name} takes two values or more")
    return Function(cast("Literal['abs', 'min', 'max', 'negate']", name), given)


# -- conditions -------------------------------------------------------------------------------------------------------


def comparison(left: Value, operator: ComparisonOperator, right: Value) -> Comparison:
    _ask_a_metric(left, right)
    return Comparison(left, operator, right)


def between(value: Value, low: Value, high: Value) -> Between:
    _ask_a_metric(value, low, high)
    if isinstance(low, Number) and isinstance(high, Number) and low.value > high.value:
        raise ValueError(f"nothing is between {low.value:g} and {high.value:g}: the lower number comes first")
    return Between(value, low, high)


def crossing(left: Value, direction: Literal["above", "below"], right: Value) -> Crossing:
    _ask_a_metric(left, right)
    return Crossing(left, direction, right)


def _ask_a_metric(*values: Value) -> None:
    if not any(isinstance(node, Operand) for value in values for node in walk(value)):
        raise ValueError("compares two numbers; at least one side must be made of metrics")


def flag(value: Operand) -> Comparison:
    """A metric that is a flag, standing alone."""
    return Comparison(value, "==", Number(1.0))


def is_flag(node: Node) -> bool:
    return isinstance(node, Operand) and CATALOGUE[node.metric].unit == "flag"


def attribute(name: AttributeName, values: Iterable[str]) -> Attribute:
    given = tuple(values)
    _check_count(given)
    for value in given:
        if name == "sector":
            if not value.strip() or len(value) > MAX_SECTOR or unseen(value) is not None or {"\n", "\t"} & set(value):
                raise ValueError(f"a sector is a text of 1 to {MAX_SECTOR} characters")
        else:
            pattern, meaning = _ATTRIBUTES[name]
            if not pattern.fullmatch(value):
                raise ValueError(f"{value[:MAX_IDENTIFIER]!r} is not {meaning}")
    if name == "sector":
        given = tuple(unicodedata.normalize("NFC", value) for value in given)
    return Attribute(name, tuple(sorted(set(given))))


def in_session(names: Iterable[str]) -> InSession:
    given = tuple(names)
    _check_count(given)
    for name in given:
        if name not in SESSIONS:
            raise ValueError(f"there is no session {name[:MAX_IDENTIFIER]!r}; sessions are {', '.join(SESSIONS)}")
    return InSession(tuple(name for name in SESSIONS if name in given))


def in_watchlist(name: str) -> InWatchlist:
    return InWatchlist(identifier(name))


def identifier(name: str) -> str:
    if not _IDENTIFIER.fullmatch(name):
        raise ValueError(
            f"{name[:MAX_IDENTIFIER]!r} is not an identifier: 1 to {MAX_IDENTIFIER} letters, digits, _, . and -, a "
            "letter or digit first"
        )
    return name


def _check_count(values: tuple[str, ...]) -> None:
    if not 1 <= len(values) <= MAX_LISTED:
        raise ValueError(f"a list holds 1 to {MAX_LISTED} values, not {len(values)}")


def negated(condition: Condition) -> Not:
    return Not(condition)


def all_of(conditions: Iterable[Condition]) -> Condition:
    """Flat: a conjunction inside a conjunction is part of it, and one condition is itself."""
    return _joined(All, conditions)


def any_of(conditions: Iterable[Condition]) -> Condition:
    return _joined(AnyOf, conditions)


def _joined(kind: type[All] | type[AnyOf], conditions: Iterable[Condition]) -> Condition:
    flat: list[Condition] = []
    for condition in conditions:
        if isinstance(condition, kind):
            flat += condition.conditions
        else:
            flat.append(condition)
    if not flat:
        raise ValueError("holds no condition")
    return flat[0] if len(flat) == 1 else kind(tuple(flat))


def held(condition: Condition, duration_ns: int) -> Held:
    return Held(condition, _duration(duration_ns))


def within(condition: Condition, duration_ns: int) -> Within:
    return Within(condition, _duration(duration_ns))


def in_a_row(condition: Condition, times: int) -> InARow:
    if not MIN_TIMES <= times <= MAX_TIMES:
        raise ValueError(f"a number of times in a row is {MIN_TIMES} to {MAX_TIMES:,}")
    return InARow(condition, times)


def then(first: Condition, second: Condition, within_ns: int) -> Then:
    return Then(first, second, _duration(within_ns))


def _duration(duration_ns: int) -> int:
    if not MIN_DURATION_NS <= duration_ns <= MAX_DURATION_NS:
        raise ValueError("a time is 100ms to 24h")
    if duration_ns % MILLISECOND_NS:
        raise ValueError("a time is a whole number of milliseconds")
    return duration_ns


def fire_once_per_bar(minutes: int) -> Fire:
    if minutes not in BAR_MINUTES:
        raise ValueError(f"there are bars of {', '.join(map(str, BAR_MINUTES[:-1]))} minutes and of a day")
    return Fire("bar", minutes)


def check_size(condition: Condition) -> None:
    """Refuse what is too large or too deep, whatever made it. It does not recurse."""
    waiting: list[tuple[Node, int]] = [(condition, 1)]
    nodes = 0
    while waiting:
        node, depth = waiting.pop()
        nodes += 1
        check_nodes(nodes, depth)
        waiting += [(part, depth + 1) for part in parts(node)]


def check_nodes(nodes: int, depth: int) -> None:
    if nodes > MAX_NODES:
        raise ValueError(f"the condition has more than {MAX_NODES} parts")
    if depth > MAX_DEPTH:
        raise ValueError(f"the condition is nested deeper than {MAX_DEPTH} levels")
