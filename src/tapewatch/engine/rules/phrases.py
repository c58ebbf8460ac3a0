"""What each phrase of rule text becomes: values, conditions, clauses, rules, files.

The parser calls `Build` for each phrase that it has read, innermost first, so that a limit is met while the text is
still being read. What makes no sense is `Invalid` at its line and column.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import Any, Literal, NoReturn, TypeVar, cast

from lark import Token, Transformer

from tapewatch.engine.columns import SECOND_NS
from tapewatch.engine.metrics import CATALOGUE
from tapewatch.engine.rules import checked
from tapewatch.engine.rules.mistakes import unknown_name
from tapewatch.engine.rules.spelling import WrittenRule, WrittenWatchlist
from tapewatch.engine.rules.tree import (
    SEVERITIES,
    All,
    AnyOf,
    Arithmetic,
    ComparisonOperator,
    Condition,
    Fire,
    Function,
    Node,
    Number,
    Operand,
    RuleSpec,
    Severity,
    Value,
)
from tapewatch.errors import Invalid

MAX_SYMBOLS = 5_000
"""Of a watchlist."""
MAX_TAGS = 16
MAX_COOLDOWN_NS = 7 * 24 * 3_600 * SECOND_NS
_MAX_DIGITS = 40

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RuleFile:
    """What a file of rules holds, in its order."""

    rules: tuple[WrittenRule, ...]
    watchlists: tuple[WrittenWatchlist, ...]


def refuse(token: Token, why: str) -> NoReturn:
    raise Invalid(f"line {token.line}, column {token.column}", why)


def _at(token: Token, make: Callable[[], T]) -> T:
    """What `make` makes; what it refuses is refused at the place of `token`."""
    try:
        return make()
    except ValueError as error:
        refuse(token, str(error))


def parse_duration(token: str) -> int:
    """Nanoseconds of ``1h30m``; ValueError for parts out of order."""
    match = _DURATION.fullmatch(token)
    if match is None or len(token) > _MAX_DIGITS:
        raise ValueError(f"{token[:_MAX_DIGITS]!r} is not a time such as 500ms, 30s, 5m, 2h or 1h30m")
    total = Decimal(0)
    for count, unit_ns in zip(match.groups(), _UNITS_NS, strict=True):
        if count:
            total += Decimal(count) * unit_ns
    return round(total)


_PART = r"(?:([0-9]+(?:\.[0-9]+)?){})?"
_DURATION = re.compile("".join(_PART.format(unit) for unit in ("h", "m", "s", "ms")))
_UNITS_NS = (3_600 * SECOND_NS, 60 * SECOND_NS, SECOND_NS, SECOND_NS // 1_000)


@dataclass(frozen=True, slots=True)
class _Part:
    """A value or a condition, with what is needed to judge what stands around it."""

    node: Node
    token: Token
    nodes: int = 1
    depth: int = 1
    unit: str = ""
    """Of a value's metrics: their common unit, ``?`` for none in common, nothing where there are only numbers."""
    mark: tuple[str, Token] | None = None
    """A number was written in this unit, and no metric with it was met yet."""
    open_within: bool = False
    """It holds a ``within`` outside of parentheses."""


_UNIT_NAMES = {"$": "dollars", "%": "per cent", "time": "a time of day"}


def _unit_of(metric: str) -> str:
    return "time" if metric == checked.TIME_OF_DAY else CATALOGUE[metric].unit


def _sized(node: Node, token: Token, *parts: _Part, **more: Any) -> _Part:
    """The part of a node that stands above `parts`."""
    nodes = 1 + sum(part.nodes for part in parts)
    depth = 1 + max((part.depth for part in parts), default=0)
    _at(token, lambda: checked.check_nodes(nodes, depth))
    return _Part(node, token, nodes, depth, **more)


def _together(*values: _Part) -> tuple[str, tuple[str, Token] | None]:
    """Unit and mark of values that are added or compared: a number written in a unit must meet a metric in it."""
    units = {value.unit for value in values if value.unit}
    marks = [value.mark for value in values if value.mark]
    for unit, token in marks:
        others = (units or {marks[0][0]}) - {unit}
        if others:
            met = " and ".join(sorted(_UNIT_NAMES.get(other, other) for other in others - {"?"}))
            beside = f"it stands beside {met}" if met else "no metric beside it has this unit"
            refuse(token, f"{str(token)!r} is {_UNIT_NAMES[unit]}, but {beside}")
    common = "" if not units else units.pop() if len(units) == 1 else "?"
    return common, (marks[0] if marks and not common else None)


def _settle(*values: _Part) -> None:
    """The sides of a comparison: no mark may be left."""
    _, mark = _together(*values)
    if mark is not None:
        unit, token = mark
        refuse(token, f"{str(token)!r} is {_UNIT_NAMES[unit]}, but no metric beside it has this unit")


def _value(part: _Part) -> Value:
    if not isinstance(part.node, (Number, Operand, Arithmetic, Function)):
        refuse(part.token, "a condition cannot be calculated with or compared; join conditions with and, or, not")
    return part.node


def _condition(part: _Part) -> _Part:
    """A condition, or the flag that stands for one."""
    node = part.node
    if not isinstance(node, (Number, Operand, Arithmetic, Function)):
        return part
    if isinstance(node, Operand) and checked.is_flag(node):
        return _Part(checked.flag(node), part.token, 3, 2)
    said = f"{node.name} is not a condition" if isinstance(node, Operand) else "a value is not a condition"
    example = node.name if isinstance(node, Operand) else "price"
    refuse(part.token, f"{said} by itself; compare it, such as {example} > 5")


def _asked(part: _Part) -> tuple[_Part, Condition]:
    part = _condition(part)
    return part, cast("Condition", part.node)


def _unquoted(token: Token) -> str:
    if token.type != "STRING":
        return str(token)
    return re.sub(r"\\(.)", r"\1", token[1:-1])


@dataclass(slots=True)
class _Draft:
    """A rule while its clauses are read."""

    token: Token
    id: str
    name: str
    clauses: dict[str, Any] = field(default_factory=dict)


class Build(Transformer[Token, Any]):
    """One method a phrase of the grammar."""

    def condition(self, parts: list[_Part]) -> Condition:
        return _asked(parts[0])[1]

    # values

    def number(self, tokens: list[Token]) -> _Part:
        return _Part(_number(tokens[0], tokens[0]), tokens[0])

    def marked(self, tokens: list[Token]) -> _Part:
        token = tokens[0]
        unit = token[0] if token[0] == "$" else token[-1]
        return _Part(_number(token, token.strip("$% ")), token, mark=(unit, token))

    def time(self, tokens: list[Token]) -> _Part:
        token = tokens[0]
        hours, minutes, seconds = (*(int(part) for part in token.split(":")), 0)[:3]
        if hours > 23 or minutes > 59 or seconds > 59:
            refuse(token, f"{str(token)!r} is not a time of day from 00:00 to 23:59:59")
        return _Part(Number(hours * 60 + minutes + seconds / 60), token, mark=("time", token))

    def metric(self, tokens: list[Token]) -> _Part:
        return _operand(tokens[0], 0)

    def candle(self, tokens: list[Token]) -> _Part:
        name, count = tokens
        back = _count(count)
        if back == 0:
            refuse(count, "[1] is the last closed candle; the running one is written without brackets")
        return _operand(name, back)

    def function(self, children: list[Any]) -> _Part:
        name, arguments = children[0], children[-1]
        word = name.lower()
        values = tuple(_value(argument) for argument in arguments)
        if word == "negate":
            refuse(name, "there is no function 'negate'; write -")
        node = _at(name, lambda: checked.function(word, values))
        unit, mark = _together(*arguments)
        return _sized(node, name, *arguments, unit=unit, mark=mark)

    def arguments(self, children: list[Any]) -> list[_Part]:
        if len(children) == 1:
            return [children[0]]
        children[0].append(children[1])
        if len(children[0]) > checked.MAX_NODES:
            refuse(children[1].token, f"the condition has more than {checked.MAX_NODES} parts")
        return cast("list[_Part]", children[0])

    def parenthesised(self, children: list[Any]) -> _Part:
        part: _Part = children[1]
        if not part.open_within:
            return part
        return _Part(part.node, part.token, part.nodes, part.depth)

    def negate(self, children: list[Any]) -> _Part:
        token, part = children
        value = _value(part)
        node = _at(token, lambda: checked.function("negate", (value,)))
        if isinstance(node, Number):
            return _Part(node, token, mark=part.mark)
        return _sized(node, token, part, unit=part.unit, mark=part.mark)

    def arithmetic(self, children: list[Any]) -> _Part:
        left, operator, right = children
        sign = cast("Literal['+', '-', '*', '/']", str(operator))
        values = _value(left), _value(right)
        node = _at(right.token, lambda: checked.arithmetic(sign, *values))
        if operator in {"+", "-"}:
            unit, mark = _together(left, right)
        else:
            for mark in (left.mark, right.mark):
                if mark is not None:
                    advice = "; two per cent of a price is price * 0.02" if mark[0] == "%" else ""
                    refuse(mark[1], f"{str(mark[1])!r} cannot be multiplied or divided; write the bare number{advice}")
            unit, mark = (left.unit if not right.unit else "?"), None
            if operator == "*" and not left.unit:
                unit = right.unit
        return _sized(node, left.token, left, right, unit=unit, mark=mark)

    # conditions

    def comparison(self, children: list[Any]) -> _Part:
        left, sign, right = children
        operator = cast("ComparisonOperator", "==" if sign == "=" else str(sign))
        values = _value(left), _value(right)
        node = _at(left.token, lambda: checked.comparison(values[0], operator, values[1]))
        _settle(left, right)
        return _sized(node, left.token, left, right)

    def between(self, children: list[Any]) -> _Part:
        value, low, high = children
        values = _value(value), _value(low), _value(high)
        node = _at(value.token, lambda: checked.between(*values))
        _settle(value, low, high)
        return _sized(node, value.token, value, low, high)

    def not_between(self, children: list[Any]) -> _Part:
        return self.not_([self.between(children)])

    def crossing(self, children: list[Any]) -> _Part:
        left, word, right = children
        direction: Literal["above", "below"] = "above" if word.lower().endswith("above") else "below"
        values = _value(left), _value(right)
        node = _at(left.token, lambda: checked.crossing(values[0], direction, values[1]))
        _settle(left, right)
        return _sized(node, left.token, left, right)

    def names(self, children: list[Any]) -> list[Token]:
        if len(children) == 1:
            return [children[0]]
        children[0].append(children[1])
        if len(children[0]) > MAX_SYMBOLS:
            refuse(children[1], f"a list holds at most {MAX_SYMBOLS:,} values")
        return cast("list[Token]", children[0])

    def listed(self, children: list[Any]) -> _Part:
        about, values = children[0], children[-1]
        tokens = values if isinstance(values, list) else [values]
        texts = [_unquoted(token) for token in tokens]
        kind = about.lower()
        if kind == "session":
            return _Part(_at(tokens[0], lambda: checked.in_session(texts)), about)
        for token, text in zip(tokens[: checked.MAX_LISTED], texts, strict=False):
            _at(token, partial(checked.attribute, kind, (text,)))
        return _Part(_at(tokens[-1], lambda: checked.attribute(kind, texts)), about)

    def not_listed(self, children: list[Any]) -> _Part:
        return self.not_([self.listed(children)])

    def in_watchlist(self, tokens: list[Token]) -> _Part:
        about, name = tokens
        if about.lower() != "symbol":
            refuse(about, "a watchlist holds symbols; write symbol in watchlist " + str(name))
        return _Part(_at(name, lambda: checked.in_watchlist(_unquoted(name))), about)

    def not_in_watchlist(self, tokens: list[Token]) -> _Part:
        return self.not_([self.in_watchlist(tokens)])

    def and_(self, children: list[_Part]) -> _Part:
        return self._joined(All, children)

    def or_(self, children: list[_Part]) -> _Part:
        return self._joined(AnyOf, children)

    def _joined(self, kind: type[All] | type[AnyOf], children: list[_Part]) -> _Part:
        left, right = (_condition(child) for child in children)
        flat: list[Condition] = []
        nodes = depth = 1
        for part in (left, right):
            if isinstance(part.node, kind):
                flat += part.node.conditions
                nodes, depth = nodes + part.nodes - 1, max(depth, part.depth)
            else:
                flat.append(cast("Condition", part.node))
                nodes, depth = nodes + part.nodes, max(depth, part.depth + 1)
        _at(right.token, lambda: checked.check_nodes(nodes, depth))
        return _Part(kind(tuple(flat)), left.token, nodes, depth, open_within=left.open_within or right.open_within)

    def not_(self, children: list[_Part]) -> _Part:
        part, node = _asked(children[0])
        return _sized(checked.negated(node), part.token, part, open_within=part.open_within)

    def held(self, children: list[Any]) -> _Part:
        part, node = _asked(children[0])
        made = _at(children[1], lambda: checked.held(node, parse_duration(children[1])))
        return _sized(made, part.token, part, open_within=part.open_within)

    def within(self, children: list[Any]) -> _Part:
        part, node = _asked(children[0])
        made = _at(children[1], lambda: checked.within(node, parse_duration(children[1])))
        return _sized(made, part.token, part, open_within=True)

    def in_a_row(self, children: list[Any]) -> _Part:
        part, node = _asked(children[0])
        made = _at(children[1], lambda: checked.in_a_row(node, _count(children[1])))
        return _sized(made, part.token, part, open_within=part.open_within)

    def then(self, children: list[Any]) -> _Part:
        (first, before), (second, after), duration = _asked(children[0]), _asked(children[1]), children[2]
        if first.open_within:
            refuse(
                first.token, "a step with a within of its own stands in parentheses: (A within 5m) then B within 10m"
            )
        made = _at(duration, lambda: checked.then(before, after, parse_duration(duration)))
        return _sized(made, first.token, first, second)

    # files

    def fire(self, tokens: list[Token]) -> Fire:
        word = tokens[0].lower()
        match word:
            case "edge":
                return Fire("edge")
            case "level":
                return Fire("level")
            case "session":
                return Fire("session")
            case "day":
                return Fire("bar", 1_440)
        bar = tokens[1]
        minutes, rest = divmod(_at(bar, lambda: parse_duration(bar)), 60 * SECOND_NS)
        return _at(bar, lambda: checked.fire_once_per_bar(0 if rest else minutes))

    def watchlist_head(self, tokens: list[Token]) -> list[Token]:
        return tokens

    def watchlist(self, children: list[Any]) -> WrittenWatchlist:
        (keyword, name, *rest), values = children[0], children[-1]
        title = [token for token in rest if token.type == "STRING"]
        identifier = _at(name, lambda: checked.identifier(str(name)))
        symbols = [_at(value, partial(_symbol, _unquoted(value))) for value in values]
        shown = _unquoted(title[0]) if title else identifier
        return WrittenWatchlist(
            identifier,
            shown,
            tuple(dict.fromkeys(symbols)),
            line=cast("int", keyword.line),
            shared=len(rest) > len(title),
        )

    def empty_watchlist(self, children: list[Any]) -> WrittenWatchlist:
        return self.watchlist([children[0], []])

    def rule_head(self, tokens: list[Token]) -> _Draft:
        keyword, name, *title = tokens
        identifier = _at(name, lambda: checked.identifier(str(name)))
        return _Draft(keyword, identifier, _unquoted(title[0]) if title else identifier)

    def rule(self, children: list[Any]) -> _Draft:
        draft: _Draft = children[0]
        if len(children) > 1:
            keyword, value = children[1]
            clause = keyword.lower()
            if clause in draft.clauses:
                refuse(keyword, f"{clause} is given a second time for the rule {draft.id}")
            draft.clauses[clause] = (keyword, value)
        return draft

    def description(self, tokens: list[Token]) -> tuple[Token, str]:
        return tokens[0], _unquoted(tokens[1])

    def when(self, children: list[Any]) -> tuple[Token, Condition]:
        return children[0], _asked(children[-1])[1]

    gate = rearm = when

    def fires(self, tokens: list[Token]) -> tuple[Token, Fire]:
        return tokens[0], self.fire(tokens[1:])

    def cooldown(self, tokens: list[Token]) -> tuple[Token, int]:
        duration_ns = _at(tokens[1], lambda: parse_duration(tokens[1]))
        if duration_ns > MAX_COOLDOWN_NS:
            refuse(tokens[1], "a cooldown is at most 168h, seven days")
        return tokens[0], duration_ns

    def severity(self, tokens: list[Token]) -> tuple[Token, Severity]:
        word = tokens[1].lower()
        if word not in SEVERITIES:
            known = ", ".join(SEVERITIES)
            refuse(tokens[1], f"there is no severity {word!r}; severities are {known}{checked.hint(word, SEVERITIES)}")
        return tokens[0], word

    def tags(self, children: list[Any]) -> list[Token]:
        if len(children) == 1:
            return [children[0]]
        children[0].append(children[1])
        if len(children[0]) > MAX_TAGS:
            refuse(children[1], f"a rule has at most {MAX_TAGS} tags")
        return cast("list[Token]", children[0])

    def tagged(self, children: list[Any]) -> tuple[Token, tuple[str, ...]]:
        keyword, tags = children
        return keyword, tuple(dict.fromkeys(_at(tag, partial(checked.identifier, str(tag))) for tag in tags))

    def disabled(self, tokens: list[Token]) -> tuple[Token, bool]:
        return tokens[0], True

    shared = disabled

    def file(self, items: list[Any]) -> RuleFile:
        rules: dict[str, WrittenRule] = {}
        watchlists: dict[str, WrittenWatchlist] = {}
        for item in items:
            if isinstance(item, WrittenWatchlist):
                if item.id in watchlists:
                    raise Invalid(f"line {item.line}, column 1", f"there is a watchlist {item.id!r} above already")
                watchlists[item.id] = item
            else:
                if item.id in rules:
                    refuse(item.token, f"there is a rule {item.id!r} above already")
                rules[item.id] = _finished(item)
        return RuleFile(tuple(rules.values()), tuple(watchlists.values()))


def _finished(draft: _Draft) -> WrittenRule:
    given = {clause: value for clause, (_, value) in draft.clauses.items()}
    if "when" not in given:
        refuse(draft.token, f"the rule {draft.id} has no when, such as: when price > 10")
    fire = given.get("fire", Fire())
    if "rearm" in given and fire.mode != "edge":
        refuse(draft.clauses["rearm"][0], "rearm can stand only with fire edge")
    spec = RuleSpec(
        id=draft.id,
        version=1,
        name=draft.name,
        when=given["when"],
        gate=given.get("gate"),
        rearm=given.get("rearm"),
        fire=fire,
        cooldown_ns=given.get("cooldown", 0),
        severity=given.get("severity", "info"),
        tags=given.get("tags", ()),
        shared="shared" in given,
    )
    return WrittenRule(
        spec,
        description=given.get("description", ""),
        enabled="disabled" not in given,
        line=cast("int", draft.token.line),
    )


_SUFFIXES = {"k": "e3", "K": "e3", "M": "e6", "B": "e9"}


def _number(token: Token, digits: str) -> Number:
    text = digits.replace("_", "")
    text = text[:-1] + _SUFFIXES[text[-1]] if text[-1] in _SUFFIXES else text
    return _at(token, lambda: checked.number(float(text)))


def _count(token: Token) -> int:
    if len(token) > 9:
        refuse(token, "this number is too large")
    return int(token)


def _operand(token: Token, back: int) -> _Part:
    name = str(token)
    try:
        node = checked.operand(name, back)
    except ValueError as error:
        refuse(token, unknown_name(name, error))
    return _Part(node, token, unit=_unit_of(node.metric))


def _symbol(text: str) -> str:
    return checked.attribute("symbol", (text,)).values[0]
