"""How JSON from outside becomes a document.

It is read strictly: no NaN, no Infinity, no doubled keys, no unknown field, no control characters, no number where a
text belongs. What is wrong is `Invalid`, whose place is the way to the field.
"""

import json
import math
import unicodedata
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from tapewatch.engine.rules.checked import IDENTIFIER_PATTERN, SYMBOL_PATTERN
from tapewatch.errors import Invalid

TAG = "~"
"""Begins the name of an alternative, which is no part of the way to a field."""
MOST_KEYS = 1_000
"""Of one object: no document has so many, and naming each as unknown would take a second."""


def _plain_text(value: str) -> str:
    normal = unicodedata.normalize("NFC", value)
    for character in normal:
        if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Cn"}:
            raise ValueError(f"has a character that cannot be shown (U+{ord(character):04X})")
    return normal


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("is not a finite number")
    return value


Text = Annotated[str, AfterValidator(_plain_text)]
Identifier = Annotated[str, Field(pattern=IDENTIFIER_PATTERN)]
Symbol = Annotated[str, Field(pattern=SYMBOL_PATTERN)]
Finite = Annotated[float, AfterValidator(_finite)]

T = TypeVar("T")
D = TypeVar("D", bound="Document")


class Document(BaseModel):
    """The strict base of everything that comes from outside."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


def _refuse_constant(name: str) -> float:
    raise Invalid("", f"{name} is not a number that JSON knows")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    if len(pairs) > MOST_KEYS:
        raise Invalid("", f"an object has more than {MOST_KEYS:,} keys")
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
        raise _first(error, where) from None


def parse_form(form: TypeAdapter[T], raw: Any, *, where: str = "") -> T:
    """The same for what is no whole document."""
    try:
        return form.validate_python(raw)
    except ValidationError as error:
        raise _first(error, where) from None


def refuse_field(model: type[BaseModel], name: str, why: str, value: object = None) -> NoReturn:
    """From a validator of the whole `model`: it is this field that is wrong."""
    problem = PydanticCustomError("refused", "{why}", {"why": why})
    raise ValidationError.from_exception_data(model.__name__, [{"type": problem, "loc": (name,), "input": value}])


def _first(error: ValidationError, where: str) -> Invalid:
    first = error.errors(include_url=False)[0]
    return Invalid(_path(where, first["loc"]), _reason(first))


def _path(where: str, location: tuple[int | str, ...]) -> str:
    path = where
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith(TAG):
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
    return text if kind == "refused" else text[0].lower() + text[1:]
