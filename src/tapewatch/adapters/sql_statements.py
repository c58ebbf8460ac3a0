"""What the statements on every table need: conflicts on INSERT, numbers of any size, texts of what JSON cannot say."""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

Insert: TypeAlias = sqlite.Insert | postgresql.Insert

ROWS = 2_000
"""Rows handed to the database at a time, so that the event loop gets its turn inside a long transaction."""
INT64_MAX = 2**63 - 1
_LIKE_ESCAPE = "/"


def insert(connection: AsyncConnection, table: sa.Table) -> Insert:
    """An INSERT that knows ON CONFLICT, which is left to the dialects although they spell it the same."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def insert_or_replace(connection: AsyncConnection, table: sa.Table, *, unless_greater: str | None = None) -> Insert:
    """By the primary key; with `unless_greater` a stored row stays where this column of it is greater."""
    statement = insert(connection, table)
    keys = table.primary_key.columns
    changed = {column.name: statement.excluded[column.name] for column in table.columns if column.name not in keys}
    where = None if unless_greater is None else statement.excluded[unless_greater] >= table.c[unless_greater]
    return statement.on_conflict_do_update(index_elements=list(keys), set_=changed, where=where)


def int64(value: int) -> int:
    """The nearest number that fits a column: what people ask for may have any size."""
    return max(-INT64_MAX - 1, min(INT64_MAX, value))


def page_size(limit: int) -> int:
    return max(0, min(INT64_MAX, limit))


def between(column: sa.Column[int], start_ns: int | None, end_ns: int | None) -> list[sa.ColumnElement[bool]]:
    conditions: list[sa.ColumnElement[bool]] = []
    if start_ns is not None:
        conditions.append(column >= int64(start_ns) if start_ns <= INT64_MAX else sa.false())
    if end_ns is not None:
        conditions.append(column < int64(end_ns) if end_ns <= INT64_MAX else sa.true())
    return conditions


def null(value: float) -> float | None:
    return None if math.isnan(value) else value


def nan(value: float | str | None) -> float:
    return math.nan if value is None else float(value)


def json_number(value: float) -> float | str | None:
    """JSON knows no infinity; its name is a text that `float` reads back."""
    return str(value) if math.isinf(value) else null(value)


async def delete_some(connection: AsyncConnection, table: sa.Table, *where: sa.ColumnElement[bool], limit: int) -> int:
    """Delete up to so many of these rows, and say how many they were."""
    keys: Sequence[Any] = list(table.primary_key.columns)
    some = sa.select(*keys).where(*where).limit(limit)
    gone = await connection.execute(sa.delete(table).where(sa.tuple_(*keys).in_(some)))
    return gone.rowcount


def holds(column: sa.ColumnElement[str], part: str | sa.BindParameter[str]) -> sa.ColumnElement[bool]:
    """Whether the text has this part, which `like_part` made, ASCII letters in any case: databases differ on all
    others.
    """
    return sa.func.lower(column).like(part, escape=_LIKE_ESCAPE)


def like_part(part: str) -> str:
    """What `holds` compares with."""
    text = ascii_lower(part)
    for special in (_LIKE_ESCAPE, "%", "_"):
        text = text.replace(special, _LIKE_ESCAPE + special)
    return f"%{text}%"


def ascii_lower(text: str) -> str:
    return "".join(c.lower() if c.isascii() else c for c in text)
