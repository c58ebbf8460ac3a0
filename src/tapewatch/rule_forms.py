"""The JSON of conditions: JSON to checked tree and back.

The models are the check and the schema of the API at once. `Condition` is the plain form, ``{"metric": ..., "operator":
..., "value": ...}``; every other form is an object that its first key names.
"""

from typing import Annotated, Any, Literal, TypeAlias, TypeVar, cast

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag, TypeAdapter, WithJsonSchema, model_validator

from tapewatch.engine.columns import SECOND_NS
from tapewatch.engine.metrics import CATALOGUE
from tapewatch.engine.rules import checked, tree
from tapewatch.errors import Invalid
from tapewatch.strict import TAG, Document, Identifier, Symbol, Text, parse_form, refuse_field

MAX_JSON_DEPTH = 80
"""Of objects and lists inside each other: more than a tree within the limits needs."""
_MAX_JSON_PARTS = 20_000
CompareOperator = Literal[">", "<", ">=", "<=", "==", "!=", "crosses_above", "crosses_below"]


class _Form(Document):
    model_config = ConfigDict(serialize_by_alias=True)


# -- values -----------------------------------------------------------------------------------------------------------

MetricName = Annotated[
    str,
    Field(max_length=checked.MAX_IDENTIFIER),
    AfterValidator(lambda name: checked.operand(name).metric),
    WithJsonSchema({"type": "string", "enum": list(CATALOGUE)}),
]
Back = Annotated[
    int,
    Field(
        ge=0, le=1_000, description="the n-th closed candle before the running one", exclude_if=lambda back: back == 0
    ),
]
NumberForm = Annotated[float, Field(ge=-checked.MAX_MAGNITUDE, le=checked.MAX_MAGNITUDE)]
F = TypeVar("F", bound="MetricValue | _OfMetric")


def _check_back(form: F) -> F:
    try:
        checked.operand(form.metric, form.back)
    except ValueError as error:
        refuse_field(type(form), "back", str(error), form.back)
    return form


class MetricValue(_Form):
    metric: MetricName
    back: Back = 0

    _check = model_validator(mode="after")(_check_back)

    def tree(self) -> tree.Value:
        return tree.Operand(self.metric, self.back)


Pair = Annotated[list["ValueForm"], Field(min_length=2, max_length=2)]
Several = Annotated[list["ValueForm"], Field(min_length=2, max_length=checked.MAX_NODES)]


class Sum(_Form):
    values: Pair = Field(alias="add")

    def tree(self) -> tree.Value:
        return _arithmetic("+", self.values)


class Difference(_Form):
    values: Pair = Field(alias="subtract")

    def tree(self) -> tree.Value:
        return _arithmetic("-", self.values)


class Product(_Form):
    values: Pair = Field(alias="multiply")

    def tree(self) -> tree.Value:
        return _arithmetic("*", self.values)


class Quotient(_Form):
    values: Pair = Field(alias="divide")

    def tree(self) -> tree.Value:
        return _arithmetic("/", self.values)

    @model_validator(mode="after")
    def _makes_sense(self) -> "Quotient":
        self.tree()
        return self


class Negative(_Form):
    value: "ValueForm" = Field(alias="negate")

    def tree(self) -> tree.Value:
        return checked.function("negate", [_value(self.value)])


class Magnitude(_Form):
    value: "ValueForm" = Field(alias="abs")

    def tree(self) -> tree.Value:
        return checked.function("abs", [_value(self.value)])


class Least(_Form):
    values: Several = Field(alias="min")

    def tree(self) -> tree.Value:
        return checked.function("min", map(_value, self.values))


class Greatest(_Form):
    values: Several = Field(alias="max")

    def tree(self) -> tree.Value:
        return checked.function("max", map(_value, self.values))


_VALUES: dict[str, type[_Form]] = {
    "metric": MetricValue,
    "add": Sum,
    "subtract": Difference,
    "multiply": Product,
    "divide": Quotient,
    "negate": Negative,
    "abs": Magnitude,
    "min": Least,
    "max": Greatest,
}
_VALUE_NAMES = {model: name for name, model in _VALUES.items()}


def _kind_of_value(raw: Any) -> str | None:
    if isinstance(raw, _Form):
        name = _VALUE_NAMES.get(type(raw))
    elif isinstance(raw, dict):
        name = next((name for name in _VALUES if name in raw), None)
    else:
        name = "number"
    return name and TAG + name


ValueForm: TypeAlias = Annotated[
    Annotated[NumberForm, Tag("~number")]
    | Annotated[MetricValue, Tag("~metric")]
    | Annotated[Sum, Tag("~add")]
    | Annotated[Difference, Tag("~subtract")]
    | Annotated[Product, Tag("~multiply")]
    | Annotated[Quotient, Tag("~divide")]
    | Annotated[Negative, Tag("~negate")]
    | Annotated[Magnitude, Tag("~abs")]
    | Annotated[Least, Tag("~min")]
    | Annotated[Greatest, Tag("~max")],
    Discriminator(
        _kind_of_value,
        custom_error_type="refused",
        custom_error_message=f"is not a value: a number, or an object with one of {', '.join(_VALUES)}",
    ),
]


def _value(form: Any) -> tree.Value:
    return checked.number(form) if isinstance(form, int | float) else cast("tree.Value", form.tree())


def _arithmetic(operator: Literal["+", "-", "*", "/"], values: list[Any]) -> tree.Value:
    left, right = map(_value, values)
    return checked.arithmetic(operator, left, right)


# -- conditions -------------------------------------------------------------------------------------------------------


def _compared(left: tree.Value, operator: CompareOperator, right: tree.Value) -> tree.Condition:
    if operator == "crosses_above":
        return checked.crossing(left, "above", right)
    if operator == "crosses_below":
        return checked.crossing(left, "below", right)
    return checked.comparison(left, operator, right)


class _OfMetric(_Form):
    metric: MetricName
    back: Back = 0

    def _left(self) -> tree.Value:
        return tree.Operand(self.metric, self.back)

    _check = model_validator(mode="after")(_check_back)


class Condition(_OfMetric):
    """`metric operator value`, such as ``change_pct_5m > 2``."""

    operator: CompareOperator
    value: ValueForm

    def tree(self) -> tree.Condition:
        return _compared(self._left(), self.operator, _value(self.value))


class MetricBetween(_OfMetric):
    """The lower and the upper bound belong to the range."""

    operator: Literal["between"]
    value: Pair

    def tree(self) -> tree.Condition:
        return checked.between(self._left(), *map(_value, self.value))

    @model_validator(mode="after")
    def _makes_sense(self) -> "MetricBetween":
        self.tree()
        return self


class ValueCondition(_Form):
    """`left operator value` for a left side that is no bare metric."""

    left: ValueForm
    operator: CompareOperator
    value: ValueForm

    def tree(self) -> tree.Condition:
        return _compared(_value(self.left), self.operator, _value(self.value))

    @model_validator(mode="after")
    def _makes_sense(self) -> "ValueCondition":
        self.tree()
        return self


class ValueBetween(_Form):
    left: ValueForm
    operator: Literal["between"]
    value: Pair

    def tree(self) -> tree.Condition:
        return checked.between(_value(self.left), *map(_value, self.value))

    @model_validator(mode="after")
    def _makes_sense(self) -> "ValueBetween":
        self.tree()
        return self


Conditions = Annotated[list["ConditionForm"], Field(min_length=1, max_length=checked.MAX_NODES)]


def _whole_milliseconds(seconds: float) -> float:
    if round(seconds * SECOND_NS) % checked.MILLISECOND_NS:
        raise ValueError("is not a whole number of milliseconds")
    return seconds


Seconds = Annotated[
    float,
    Field(ge=checked.MIN_DURATION_NS / SECOND_NS, le=checked.MAX_DURATION_NS / SECOND_NS, description="of event time"),
    AfterValidator(_whole_milliseconds),
]


def _ns(seconds: float) -> int:
    return round(seconds * SECOND_NS)


class AllOf(_Form):
    conditions: Conditions = Field(alias="all")

    def tree(self) -> tree.Condition:
        return checked.all_of(form.tree() for form in self.conditions)


class AnyOf(_Form):
    conditions: Conditions = Field(alias="any")

    def tree(self) -> tree.Condition:
        return checked.any_of(form.tree() for form in self.conditions)


class Negation(_Form):
    condition: "ConditionForm" = Field(alias="not")

    def tree(self) -> tree.Condition:
        return checked.negated(self.condition.tree())


class HeldFor(_Form):
    """True at every scan for so long."""

    condition: "ConditionForm" = Field(alias="held")
    seconds: Seconds

    def tree(self) -> tree.Condition:
        return checked.held(self.condition.tree(), _ns(self.seconds))


class WithinLast(_Form):
    """True at a scan that lies no longer ago."""

    condition: "ConditionForm" = Field(alias="within")
    seconds: Seconds

    def tree(self) -> tree.Condition:
        return checked.within(self.condition.tree(), _ns(self.seconds))


class TimesInARow(_Form):
    """True at so many scans in a row."""

    condition: "ConditionForm" = Field(alias="in_a_row")
    times: Annotated[int, Field(ge=checked.MIN_TIMES, le=checked.MAX_TIMES)]

    def tree(self) -> tree.Condition:
        return checked.in_a_row(self.condition.tree(), self.times)


class Sequence(_Form):
    """The second is true now, the first was at an earlier scan that lies no longer ago."""

    steps: Annotated[list["ConditionForm"], Field(min_length=2, max_length=2)] = Field(alias="then")
    seconds: Seconds

    def tree(self) -> tree.Condition:
        first, second = self.steps
        return checked.then(first.tree(), second.tree(), _ns(self.seconds))


class Sessions(_Form):
    values: Annotated[
        list[Literal["pre", "regular", "post", "closed"]], Field(min_length=1, max_length=checked.MAX_LISTED)
    ] = Field(alias="session")

    def tree(self) -> tree.Condition:
        return checked.in_session(self.values)


class Symbols(_Form):
    values: Annotated[
        list[Symbol],
        Field(min_length=1, max_length=checked.MAX_LISTED),
    ] = Field(alias="symbol")

    def tree(self) -> tree.Condition:
        return checked.attribute("symbol", self.values)


class Exchanges(_Form):
    values: Annotated[
        list[Annotated[str, Field(pattern=checked.EXCHANGE_PATTERN, description="MIC")]],
        Field(min_length=1, max_length=checked.MAX_LISTED),
    ] = Field(alias="exchange")

    def tree(self) -> tree.Condition:
        return checked.attribute("exchange", self.values)


class Types(_Form):
    values: Annotated[
        list[Annotated[str, Field(pattern=checked.TYPE_PATTERN)]],
        Field(min_length=1, max_length=checked.MAX_LISTED),
    ] = Field(alias="type")

    def tree(self) -> tree.Condition:
        return checked.attribute("type", self.values)


class Sectors(_Form):
    values: Annotated[
        list[Annotated[Text, Field(min_length=1, max_length=checked.MAX_SECTOR, pattern=r"\S")]],
        Field(min_length=1, max_length=checked.MAX_LISTED),
    ] = Field(alias="sector")

    def tree(self) -> tree.Condition:
        return checked.attribute("sector", self.values)


class OnWatchlist(_Form):
    watchlist: Identifier

    def tree(self) -> tree.Condition:
        return checked.in_watchlist(self.watchlist)


_CONDITIONS: dict[str, type[_Form]] = {
    "metric": Condition,
    "metric between": MetricBetween,
    "left": ValueCondition,
    "left between": ValueBetween,
    "all": AllOf,
    "any": AnyOf,
    "not": Negation,
    "held": HeldFor,
    "within": WithinLast,
    "in_a_row": TimesInARow,
    "then": Sequence,
    "session": Sessions,
    "symbol": Symbols,
    "exchange": Exchanges,
    "type": Types,
    "sector": Sectors,
    "watchlist": OnWatchlist,
}
_CONDITION_NAMES = {model: name for name, model in _CONDITIONS.items()}
_KEYS = [name for name in _CONDITIONS if " " not in name]


def _kind_of_condition(raw: Any) -> str | None:
    if isinstance(raw, _Form):
        name = _CONDITION_NAMES.get(type(raw))
    elif isinstance(raw, dict):
        name = next((name for name in _KEYS if name in raw), None)
        if name is None and {"operator", "value"} & set(raw):
            name = "metric"  # whose error says that the metric is missing
        if name in {"metric", "left"} and raw.get("operator") == "between":
            name = f"{name} between"
    else:
        name = None
    return name and TAG + name


ConditionForm: TypeAlias = Annotated[
    Annotated[Condition, Tag("~metric")]
    | Annotated[MetricBetween, Tag("~metric between")]
    | Annotated[ValueCondition, Tag("~left")]
    | Annotated[ValueBetween, Tag("~left between")]
    | Annotated[AllOf, Tag("~all")]
    | Annotated[AnyOf, Tag("~any")]
    | Annotated[Negation, Tag("~not")]
    | Annotated[HeldFor, Tag("~held")]
    | Annotated[WithinLast, Tag("~within")]
    | Annotated[TimesInARow, Tag("~in_a_row")]
    | Annotated[Sequence, Tag("~then")]
    | Annotated[Sessions, Tag("~session")]
    | Annotated[Symbols, Tag("~symbol")]
    | Annotated[Exchanges, Tag("~exchange")]
    | Annotated[Types, Tag("~type")]
    | Annotated[Sectors, Tag("~sector")]
    | Annotated[OnWatchlist, Tag("~watchlist")],
    Discriminator(
        _kind_of_condition,
        custom_error_type="refused",
        custom_error_message=f"is not a condition: an object with one of {', '.join(_KEYS)}",
    ),
]
for _model in (*_VALUES.values(), *_CONDITIONS.values()):
    _model.model_rebuild()
_FORM: TypeAdapter[Any] = TypeAdapter(ConditionForm)


# -- JSON to tree and back --------------------------------------------------------------------------------------------


def check_depth(raw: Any) -> Any:
    """`raw` itself, or ValueError where it is nested too deeply to be any condition. It does not recurse."""
    waiting = [(raw, 1)]
    seen = 0
    while waiting:
        value, depth = waiting.pop()
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if depth > MAX_JSON_DEPTH:
            raise ValueError(f"the condition is nested deeper than {checked.MAX_DEPTH} levels")
        seen += len(inner)
        if seen > _MAX_JSON_PARTS:
            raise ValueError(f"the condition has more than {checked.MAX_NODES} parts")
        waiting += [(part, depth + 1) for part in inner if isinstance(part, dict | list)]
    return raw


def condition_of(raw: Any, *, where: str = "") -> tree.Condition:
    """The tree of a condition's JSON. `Invalid.where` names the field that is wrong, such as ``all[0].metric``."""
    try:
        check_depth(raw)
        condition = cast("tree.Condition", parse_form(_FORM, raw, where=where).tree())
        checked.check_size(condition)
    except ValueError as error:
        raise Invalid(where, str(error)) from None
    return condition


def forms_of(condition: tree.Condition, *, most: int) -> list[Any]:
    """The conditions that must hold together; where there would be more than `most`, one that says them all."""
    parts: tuple[tree.Condition, ...] = (condition,)
    if isinstance(condition, tree.All) and len(condition.conditions) <= most:
        parts = condition.conditions
    return [_FORM.validate_python(condition_json(part)) for part in parts]


_OPERATIONS = {"+": "add", "-": "subtract", "*": "multiply", "/": "divide"}


def _value_json(value: tree.Value) -> Any:
    match value:
        case tree.Number(value=number):
            return number
        case tree.Operand():
            return _operand_json(value)
        case tree.Arithmetic(operator=operator, left=left, right=right):
            return {_OPERATIONS[operator]: [_value_json(left), _value_json(right)]}
        case tree.Function(name="min" | "max", arguments=arguments):
            return {value.name: [_value_json(argument) for argument in arguments]}
    return {value.name: _value_json(value.arguments[0])}


def _operand_json(operand: tree.Operand) -> dict[str, Any]:
    return {"metric": operand.metric, "back": operand.back} if operand.back else {"metric": operand.metric}


def condition_json(condition: tree.Condition) -> Any:
    """The JSON of a condition, in one form."""
    match condition:
        case tree.Comparison(left=left, operator=operator, right=right):
            return _comparison_json(left, operator, _value_json(right))
        case tree.Crossing(left=left, direction=direction, right=right):
            return _comparison_json(left, f"crosses_{direction}", _value_json(right))
        case tree.Between(value=value, low=low, high=high):
            return _comparison_json(value, "between", [_value_json(low), _value_json(high)])
        case tree.Attribute(name=name, values=values):
            return {name: list(values)}
        case tree.InWatchlist(watchlist=watchlist):
            return {"watchlist": watchlist}
        case tree.InSession(sessions=sessions):
            return {"session": list(sessions)}
        case tree.Not(condition=inner):
            return {"not": condition_json(inner)}
        case tree.All(conditions=inners):
            return {"all": [condition_json(inner) for inner in inners]}
        case tree.AnyOf(conditions=inners):
            return {"any": [condition_json(inner) for inner in inners]}
        case tree.Held(condition=inner, duration_ns=duration_ns):
            return {"held": condition_json(inner), "seconds": duration_ns / SECOND_NS}
        case tree.Within(condition=inner, duration_ns=duration_ns):
            return {"within": condition_json(inner), "seconds": duration_ns / SECOND_NS}
        case tree.InARow(condition=inner, times=times):
            return {"in_a_row": condition_json(inner), "times": times}
        case tree.Then(first=first, second=second, within_ns=within_ns):
            return {"then": [condition_json(first), condition_json(second)], "seconds": within_ns / SECOND_NS}


def _comparison_json(left: tree.Value, operator: str, right: Any) -> Any:
    side = _operand_json(left) if isinstance(left, tree.Operand) else {"left": _value_json(left)}
    return {**side, "operator": operator, "value": right}
