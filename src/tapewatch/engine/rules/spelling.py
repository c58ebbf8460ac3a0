"""Rules as text: the one way in which a tree is written, with no more parentheses than it needs.

`text` reads back the same tree. What is not in canonical form (see `checked`) is written so that its canonical form is
read.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from tapewatch.engine.columns import SECOND_NS
from tapewatch.engine.rules.checked import TIME_OF_DAY, is_flag
from tapewatch.engine.rules.tree import (
    All,
    AnyOf,
    Arithmetic,
    Attribute,
    Between,
    Comparison,
    Condition,
    Crossing,
    Fire,
    Held,
    InARow,
    InSession,
    InWatchlist,
    Not,
    Number,
    Operand,
    RuleSpec,
    Then,
    Value,
    Within,
)

_SUM, _PRODUCT, _SIGNED = 0, 1, 2
_SEQUENCE, _OR, _AND, _NOT, _LASTING, _TEST = range(6)
_MS_NS = SECOND_NS // 1_000
_MS_UNITS = ((3_600_000, "h"), (60_000, "m"), (1_000, "s"), (1, "ms"))
_BARE = re.compile(r"(?!not\b)[A-Za-z0-9][A-Za-z0-9.\-^+=$_:]*", re.IGNORECASE)
_BARE_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")


@dataclass(frozen=True, slots=True)
class WrittenRule:
    """A rule as a file holds it."""

    spec: RuleSpec
    description: str = ""
    enabled: bool = True
    line: int = 0
    """Where it begins in its file, from 1."""


@dataclass(frozen=True, slots=True)
class WrittenWatchlist:
    """A watchlist as a file holds it."""

    id: str
    name: str
    symbols: tuple[str, ...]
    line: int = 0
    shared: bool = False


def format_condition(condition: Condition) -> str:
    """On one line."""
    return _spelt(condition).text


def format_rule(rule: WrittenRule) -> str:
    """Clause by clause, ending with a line end. What has its default is left out."""
    spec = rule.spec
    lines = [f"rule {spec.id}" + (f" {_quoted(spec.name)}" if spec.name != spec.id else "")]
    if rule.description:
        lines.append(f"description {_quoted(rule.description)}")
    if isinstance(spec.when, All):
        first, *rest = (_inside(condition, _NOT) for condition in spec.when.conditions)
        lines += [f"when {first}", *(f" and {condition}" for condition in rest)]
    else:
        lines.append(f"when {format_condition(spec.when)}")
    if spec.gate is not None:
        lines.append(f"gate {format_condition(spec.gate)}")
    if spec.rearm is not None:
        lines.append(f"rearm when {format_condition(spec.rearm)}")
    if spec.fire != Fire():
        lines.append(f"fire {format_fire(spec.fire)}")
    if spec.cooldown_ns:
        lines.append(f"cooldown {format_duration(spec.cooldown_ns)}")
    if spec.severity != "info":
        lines.append(f"severity {spec.severity}")
    if spec.tags:
        lines.append(f"tags {', '.join(spec.tags)}")
    if not rule.enabled:
        lines.append("disabled")
    if spec.shared:
        lines.append("shared")
    return "\n  ".join(lines) + "\n"


def format_watchlist(watchlist: WrittenWatchlist) -> str:
    """On one line, with its line end."""
    name = f" {_quoted(watchlist.name)}" if watchlist.name != watchlist.id else ""
    shared = " shared" if watchlist.shared else ""
    return f"watchlist {watchlist.id}{name}{shared} = {_listed(watchlist.symbols) if watchlist.symbols else '()'}\n"


def format_fire(fire: Fire) -> str:
    match fire.mode:
        case "session":
            return "once per session"
        case "bar" if fire.bar_minutes == 1_440:
            return "once per day"
        case "bar":
            return f"once per bar {format_duration(fire.bar_minutes * 60 * SECOND_NS)}"
    return fire.mode


def format_duration(duration_ns: int) -> str:
    """Such as ``1h30m``."""
    milliseconds, rest = divmod(duration_ns, _MS_NS)
    if rest or not duration_ns:
        return f"{duration_ns / SECOND_NS:.9f}".rstrip("0").rstrip(".") + "s"
    text = ""
    for size, unit in _MS_UNITS:
        count, milliseconds = divmod(milliseconds, size)
        text += f"{count}{unit}" if count else ""
    return text


# -- values -----------------------------------------------------------------------------------------------------------


def _value(value: Value, level: int) -> str:
    """At least as tight as `level`."""
    match value:
        case Number(value=number):
            return _number(number)
        case Operand():
            return value.name
        case Arithmetic(operator=operator, left=left, right=right):
            own = _SUM if operator in {"+", "-"} else _PRODUCT
            # The parser groups from the left: what groups from the right keeps its parentheses.
            text = f"{_value(left, own)} {operator} {_value(right, own + 1)}"
            return f"({text})" if own < level else text
    if value.name == "negate":
        return f"-{_value(value.arguments[0], _SIGNED)}"
    return f"{value.name}({', '.join(_value(argument, _SUM) for argument in value.arguments)})"


def _number(number: float) -> str:
    return str(int(number)) if number.is_integer() and abs(number) <= 1e15 else repr(number)


def _sides(*values: Value) -> list[str]:
    """Of a comparison: numbers beside the time of day are written as times."""
    if Operand(TIME_OF_DAY) not in values:
        return [_value(value, _SUM) for value in values]
    return [_clock(value.value) if isinstance(value, Number) else _value(value, _SUM) for value in values]


def _clock(minutes: float) -> str:
    """``09:30`` or ``15:59:30`` where that is the same number, else the number."""
    if not 0 <= minutes < 1_440:
        return _number(minutes)
    seconds = round(minutes * 60)
    hour, minute, second = seconds // 3_600, seconds // 60 % 60, seconds % 60
    if hour > 23 or hour * 60 + minute + second / 60 != minutes:
        return _number(minutes)
    return f"{hour:02d}:{minute:02d}" + (f":{second:02d}" if second else "")


# -- conditions -------------------------------------------------------------------------------------------------------


class _Spelt(NamedTuple):
    text: str
    level: int
    open_within: bool = False
    """It holds a ``within`` outside of parentheses."""


def _inside(condition: Condition, level: int) -> str:
    spelt = _spelt(condition)
    return spelt.text if spelt.level >= level else f"({spelt.text})"


def _spelt(condition: Condition) -> _Spelt:
    match condition:
        case All(conditions=conditions):
            return _joined(" and ", conditions, _AND)
        case AnyOf(conditions=conditions):
            return _joined(" or ", conditions, _OR)
        case Not(condition=inner):
            test = _test(inner, negated=True)
            return _Spelt(test, _TEST) if test is not None else _around("not ", inner, "", _NOT, inside=_NOT)
        case Held(condition=inner, duration_ns=duration_ns):
            return _around("", inner, f" for {format_duration(duration_ns)}", _LASTING, inside=_LASTING)
        case Within(condition=inner, duration_ns=duration_ns):
            spelt = _around("", inner, f" within {format_duration(duration_ns)}", _LASTING, inside=_LASTING)
            return spelt._replace(open_within=True)
        case InARow(condition=inner, times=times):
            return _around("", inner, f" {times} times in a row", _LASTING, inside=_LASTING)
        case Then(first=first, second=second, within_ns=within_ns):
            steps = f"{_step(first, _SEQUENCE)} then {_step(second, _OR)}"
            return _Spelt(f"{steps} within {format_duration(within_ns)}", _SEQUENCE)
        case Comparison(left=Operand() as operand, operator="==", right=Number(value=1.0)) if is_flag(operand):
            return _Spelt(operand.name, _TEST)
        case Comparison(left=left, operator=operator, right=right):
            a, b = _sides(left, right)
            return _Spelt(f"{a} {operator} {b}", _TEST)
        case Crossing(left=left, direction=direction, right=right):
            a, b = _sides(left, right)
            return _Spelt(f"{a} crosses_{direction} {b}", _TEST)
    text = _test(condition, negated=False)
    if text is None:
        raise TypeError(f"not a condition: {condition!r}")
    return _Spelt(text, _TEST)


def _test(condition: Condition, *, negated: bool) -> str | None:
    """A test that has its own word for not; None for what has none."""
    no = "not " if negated else ""
    match condition:
        case Between(value=value, low=low, high=high):
            a, b, c = _sides(value, low, high)
            return f"{a} {no}between {b} and {c}"
        case Attribute(name=name, values=values):
            return _membership(name, values, no)
        case InSession(sessions=sessions):
            return _membership("session", sessions, no)
        case InWatchlist(watchlist=watchlist):
            return f"symbol {no}in watchlist {_bare(watchlist, _BARE_IDENTIFIER)}"
    return None


def _membership(name: str, values: tuple[str, ...], no: str) -> str:
    return f"{name} is {no}{_listed(values)}" if len(values) == 1 else f"{name} {no}in ({_listed(values)})"


def _joined(word: str, conditions: tuple[Condition, ...], level: int) -> _Spelt:
    spelt = [_spelt(condition) for condition in conditions]
    bare = [part.level > level for part in spelt]
    texts = [part.text if fits else f"({part.text})" for part, fits in zip(spelt, bare, strict=True)]
    within = any(part.open_within and fits for part, fits in zip(spelt, bare, strict=True))
    return _Spelt(word.join(texts), level, within)


def _around(before: str, inner: Condition, after: str, level: int, *, inside: int) -> _Spelt:
    spelt = _spelt(inner)
    if spelt.level < inside:
        return _Spelt(f"{before}({spelt.text}){after}", level)
    return _Spelt(f"{before}{spelt.text}{after}", level, spelt.open_within)


def _step(condition: Condition, level: int) -> str:
    spelt = _spelt(condition)
    return f"({spelt.text})" if spelt.open_within or spelt.level < level else spelt.text


def _listed(values: Iterable[str]) -> str:
    return ", ".join(_bare(value, _BARE) for value in values)


def _bare(name: str, pattern: re.Pattern[str]) -> str:
    return name if pattern.fullmatch(name) else _quoted(name)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
