"""Query and path parameters, read strictly: an unknown or doubled one is refused, and a number is plain digits.

Pydantic alone would take ``limit=1_000`` and ignore ``limt=5``; a person who mistypes should be told.
"""

import re
from typing import Annotated, Any

from fastapi import Depends, Path, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from tapewatch.errors import Invalid

IDENTIFIER = r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}$"
SYMBOL = r"^[A-Za-z0-9][A-Za-z0-9.\-^+=$_:]{0,23}$"
MAX_OFFSET = 1_000_000


def plain_number(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(r"0|[1-9][0-9]{0,8}", value):
        raise ValueError("must be a whole number in plain digits")
    return value


Limit = Annotated[int, Field(ge=1, le=500), BeforeValidator(plain_number)]
Offset = Annotated[int, Field(ge=0, le=MAX_OFFSET), BeforeValidator(plain_number)]
RuleId = Annotated[str, Path(pattern=IDENTIFIER)]
SymbolName = Annotated[str, Path(pattern=SYMBOL)]
Version = Annotated[int, Path(ge=1, le=999_999_999), BeforeValidator(plain_number)]
AnyId = Annotated[str, Path(pattern=IDENTIFIER)]


def _switch(value: Any) -> Any:
    if value not in {"true", "false"}:
        raise ValueError("must be true or false")
    return value == "true"


Switch = Annotated[bool, BeforeValidator(_switch), WithJsonSchema({"type": "boolean"})]


def some_of(pattern: str, *, most: int = 50) -> Any:
    """A field of words with commas between them, each of which matches `pattern`; see `words`."""
    one = pattern.removeprefix("^").removesuffix("$")
    return Field(pattern=rf"^{one}(?:,{one}){{0,{most - 1}}}$")


def words(text: str | None) -> tuple[str, ...]:
    return () if text is None else tuple(dict.fromkeys(text.split(",")))


class Query(BaseModel):
    """The base of a set of query parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Page(Query):
    limit: Limit = 100
    offset: Offset = 0


def _no_query(request: Request) -> None:
    if not request.scope["query_string"]:
        return
    for name in request.query_params:
        raise Invalid(f"query.{name}", "is not a parameter of this operation")


def _no_doubles(request: Request) -> None:
    if not request.scope["query_string"]:
        return
    seen: set[str] = set()
    for name, _ in request.query_params.multi_items():
        if name in seen:
            raise Invalid(f"query.{name}", "appears twice")
        seen.add(name)


NO_QUERY = Depends(_no_query)
NO_DOUBLES = Depends(_no_doubles)
