"""What people save, and what the product tells them: Rule, RuleDraft, Alert, the reference data Security and Split, and
how JSON becomes one of them.

JSON from outside is read strictly: no NaN, no Infinity, no doubled keys, no unknown field, no control characters, no
number where a text belongs. Everything here is frozen.
"""

import json
import math
import re
import unicodedata
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tapewatch.engine.columns import SECOND_NS
from tapewatch.engine.metrics import canonical_metric
from tapewatch.engine.rules import Comparison, Match, Ruleset, RuleSpec
from tapewatch.engine.splits import SplitSpec
from tapewatch.errors import Invalid

MAX_CONDITIONS = 64
DAY_S = 86_400
MAX_NOTE = 1_000
"""Characters."""


def _plain_text(value: str) -> str:
    normal = unicodedata.normalize("NFC", value)
    for character in normal:
        if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Cn"}:
            raise ValueError(f"has a character that cannot be shown (U+{ord(character):04X})")
    return normal


def _metric(value: str) -> str:
    return canonical_metric(value)


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("is not a finite number")
    return value


Text = Annotated[str, AfterValidator(_plain_text)]
Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}$")]
Operator = Literal[">", "<", ">=", "<=", "==", "!="]


D = TypeVar("D", bound="Document")


class Document(BaseModel):
    """The strict base of everything that comes from outside."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Condition(Document):
    """`metric operator value`, such as ``change_pct_5m > 2``."""

    metric: Annotated[str, Field(max_length=64), AfterValidator(_metric)]
    operator: Operator
    value: Annotated[float, Field(ge=-1e15, le=1e15), AfterValidator(_finite)]


class RuleDraft(Document):
    """A rule as its author writes it: all conditions must hold (AND)."""

    name: Annotated[Text, Field(min_length=1, max_length=120)]
    description: Annotated[Text, Field(max_length=2_000)] = ""
    conditions: Annotated[list[Condition], Field(min_length=1, max_length=MAX_CONDITIONS)]
    cooldown: Annotated[float, Field(ge=0, le=7 * DAY_S, description="seconds of event time per symbol")] = 0.0
    enabled: bool = True


class Rule(RuleDraft):
    """A saved rule. `version` rises with each change; an alert names the version that fired."""

    id: Identifier
    version: Annotated[int, Field(ge=1, le=2**31)] = 1
    created_at: str = ""
    updated_at: str = ""

    def spec(self) -> RuleSpec:
        return RuleSpec(
            id=self.id,
            version=self.version,
            name=self.name,
            conditions=tuple(Comparison(c.metric, c.operator, c.value) for c in self.conditions),
            cooldown_ns=round(self.cooldown * SECOND_NS),
        )


def ruleset(number: int, rules: Iterable[Rule]) -> Ruleset:
    """The enabled rules as the engine takes them."""
    return Ruleset(number=number, rules=tuple(rule.spec() for rule in rules if rule.enabled))


_EPOCH = date(1970, 1, 1)
_FIRST_DATE, _END_DATE = date(1990, 1, 1), date(2100, 1, 1)


def _date(value: Any) -> Any:
    if isinstance(value, str):
        if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
            raise ValueError("is not a date such as 2025-03-03")
        try:
            value = date.fromisoformat(value)
        except ValueError:
            raise ValueError("is not a day of the calendar") from None
    if type(value) is date and not _FIRST_DATE <= value < _END_DATE:
        raise ValueError("is not between 1990 and 2100")
    return value


Day = Annotated[date, BeforeValidator(_date)]
"""A date, or its text such as ``2025-03-03``."""
SYMBOL_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9.\-^+=$_:]{0,23}$"
Symbol = Annotated[str, Field(pattern=SYMBOL_PATTERN)]
Amount = Annotated[float, Field(ge=0, le=1e18), AfterValidator(_finite)]


def day_number(day: date) -> int:
    """Days since 1970-01-01: how the engine counts days."""
    return (day - _EPOCH).days


def day_of_number(number: int) -> date:
    """The date of a `day_number`."""
    return _EPOCH + timedelta(days=int(number))


class Security(Document):
    """What is known of a listed security beside its trades. None is unknown."""

    symbol: Symbol
    name: Annotated[Text, Field(max_length=300)] | None = None
    exchange: Annotated[str, Field(pattern=r"^[A-Z0-9]{4}$", description="MIC of the listing exchange")] | None = None
    tape: Literal["A", "B", "C", "O"] | None = None
    """A NYSE, B other exchanges, C Nasdaq, O over the counter."""
    type: Annotated[str, Field(pattern=r"^[A-Z0-9_]{1,16}$", description="such as CS, ETF, ADRC")] | None = None
    is_test: bool = False
    """An exchange tests its systems with it."""
    active: bool = True
    market_cap: Amount | None = None
    """Dollars."""
    shares_outstanding: Amount | None = None
    sector: Annotated[Text, Field(max_length=200)] | None = None
    round_lot: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    as_of: Day
    """When the source said so."""


class Split(Document):
    """`split_from` old shares become `split_to` new ones at 04:00 of `ex_date`."""

    symbol: Symbol
    ex_date: Day
    split_from: Annotated[float, Field(gt=0, le=1e9), AfterValidator(_finite)]
    split_to: Annotated[float, Field(gt=0, le=1e9), AfterValidator(_finite)]

    def spec(self) -> SplitSpec:
        return SplitSpec(symbol=self.symbol, ex_day=day_number(self.ex_date), factor=self.split_from / self.split_to)


class Alert(msgspec.Struct, frozen=True, omit_defaults=False):
    """A rule came true for a symbol. The id is derived: the same event has the same id however often it is computed."""

    alert_id: str
    rule_id: str
    rule_version: int
    rule_name: str
    symbol: str
    fired_at_ns: int
    price: float
    values: dict[str, float]
    session: str
    received_ns: int = 0
    """Wall clock at which ingest had the trades that led here; 0 in a replay."""
    note: str = ""
    """What was learned after it fired, a line each."""

    @classmethod
    def of(cls, match: Match, *, received_ns: int = 0) -> "Alert":
        return cls(
            alert_id=match.alert_id,
            rule_id=match.rule.id,
            rule_version=match.rule.version,
            rule_name=match.rule.name,
            symbol=match.symbol,
            fired_at_ns=match.fired_at_ns,
            price=match.price,
            values=match.values,
            session=match.session,
            received_ns=received_ns,
        )

    def annotated(self, note: str) -> "Alert":
        """The alert with one more line of note. A line that it has already changes nothing, and beyond `MAX_NOTE`
        characters the text ends in an ellipsis.
        """
        if note in self.note.split("\n"):
            return self
        text = f"{self.note}\n{note}" if self.note else note
        return msgspec.structs.replace(self, note=text if len(text) <= MAX_NOTE else text[: MAX_NOTE - 1] + "…")

    def as_json(self) -> dict[str, Any]:
        """The public form: times as RFC 3339, unknown numbers as null, and so is a note that there is not."""
        return {
            "alert_id": self.alert_id,
            "rule_id": self.rule_id,
            "rule_version": self.rule_version,
            "rule_name": self.rule_name,
            "symbol": self.symbol,
            "fired_at": rfc3339(self.fired_at_ns),
            "price": known(self.price),
            "values": {name: known(value) for name, value in self.values.items()},
            "session": self.session,
            "note": self.note or None,
        }


def known(value: float) -> float | None:
    """The number, or None when it is unknown (NaN)."""
    return None if math.isnan(value) else float(value)


def rfc3339(ts_ns: int) -> str:
    """UTC with nanoseconds, such as ``2013-10-07T13:30:01.000000000Z``."""
    seconds, nanoseconds = divmod(int(ts_ns), 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def _refuse_constant(name: str) -> float:
    raise Invalid("", f"{name} is not a number that JSON knows")


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise Invalid("", f"the key {key!r} appears twice in one object")
        seen[key] = value
    return seen


def load_json(text: str | bytes, *, where: str = "") -> Any:
    """JSON as the standard has it: no NaN, no doubled keys; `Invalid` with line and column otherwise."""
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise Invalid(where, f"not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise Invalid(where, f"not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise Invalid(where, "nested too deeply") from None
    except Invalid as error:
        raise Invalid(where, error.why) from None
    except ValueError:  # an integer of thousands of digits
        raise Invalid(where, "holds a number with too many digits") from None


def parse_document(model: type[D], raw: Any, *, where: str = "") -> D:
    """`raw` as a `model`, or `Invalid` naming the first field that is wrong."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise Invalid(_path(where, first["loc"]), _reason(first)) from None


def _path(where: str, location: tuple[int | str, ...]) -> str:
    path = where
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else part
    return path


def _reason(error: Any) -> str:
    kind = error["type"]
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind == "extra_forbidden":
        return "is not a field of this document"
    if kind == "missing":
        return "is missing"
    text = str(error["msg"])
    return text[0].lower() + text[1:]


def load_rules(text: str | bytes, *, where: str) -> list[Rule]:
    """The rules of a file: a JSON list, or ``{"rules": [...]}``; see `rules_of`."""
    raw = load_json(text, where=where)
    if isinstance(raw, dict) and set(raw) == {"rules"}:
        raw = raw["rules"]
    try:
        return rules_of(raw)
    except Invalid as error:
        raise Invalid(f"{where}: {error.where}" if error.where else where, error.why) from None


def rules_of(raw: Any) -> list[Rule]:
    """A list of rules. One without an id is named by its place. `Invalid.where` starts at ``rules``."""
    if not isinstance(raw, list):
        raise Invalid("", 'must be a list of rules, or {"rules": [...]}')
    rules: dict[str, Rule] = {}
    for index, item in enumerate(raw):
        place, document = f"rules[{index}]", item
        if isinstance(item, dict):
            named = item.get("id")
            name = named if isinstance(named, str) and named.isprintable() and named else f"rule {index + 1}"
            document = {"id": f"rule-{index + 1}", "name": name, **item}
        rule = parse_document(Rule, document, where=place)
        if rule.id in rules:
            raise Invalid(f"{place}.id", f"{rule.id!r} is already the id of another rule in this file")
        rules[rule.id] = rule
    return list(rules.values())
