"""Reference data in SQL: the symbol master, splits and daily history, on a connection of the caller's.

Owns the statements and how rows become documents and columns. Connections, transactions and errors are `sql`'s; how
many daily bars are written at once is left to the database.
"""

import asyncio
from collections.abc import Iterator, Sequence
from datetime import date
from functools import lru_cache
from operator import itemgetter
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from tapewatch.adapters.sql_database import Reading
from tapewatch.adapters.sql_statements import ROWS, ascii_lower, holds, insert_or_replace, like_part, page_size
from tapewatch.adapters.sql_tables import bars_1d, splits, symbols
from tapewatch.documents import Document, Security, Split, day_number, day_of_number, parse_document
from tapewatch.engine.daily import DAILY_COLUMNS, DailyBars
from tapewatch.ports import SecurityQuery

NAMES = 500
"""Symbols of one query: databases bound the parameters of a statement."""
_PARSED = 20_000
"""Rows that are documents already: equal ones are the same document."""
_FIELDS = symbols.columns.keys()
_SOME_SYMBOLS = (
    sa.select(symbols).where(symbols.c.symbol.in_(sa.bindparam("names", expanding=True))).order_by(symbols.c.symbol)
)


async def save_securities(connection: AsyncConnection, securities: Sequence[Security]) -> None:
    await _upsert(connection, symbols, securities)


async def read_securities(connection: AsyncConnection) -> list[Security]:
    rows = (await connection.execute(sa.select(symbols).order_by(symbols.c.symbol))).all()
    found: list[Security] = []
    for start in range(0, len(rows), ROWS):
        found += [_security(*row) for row in rows[start : start + ROWS]]
        await asyncio.sleep(0)
    return found


def read_securities_of(reading: Reading, names: Sequence[str]) -> list[Security]:
    found: list[Security] = []
    for some in _some_names(sorted(set(names))):
        found += [_security(*row) for row in reading.rows(_SOME_SYMBOLS, {"names": some})]
    return found


async def find_securities(connection: AsyncConnection, query: SecurityQuery) -> list[str]:
    table = symbols.c
    wanted = sa.select(table.symbol).order_by(table.symbol).limit(page_size(query.limit))
    if query.text:
        begins = sa.func.lower(table.symbol).startswith(ascii_lower(query.text), autoescape=True)
        wanted = wanted.where(sa.or_(begins, holds(table.name, like_part(query.text))))
    for column, value in ((table.exchange, query.exchange), (table.type, query.type), (table.sector, query.sector)):
        if value:
            wanted = wanted.where(column == value)
    return list((await connection.execute(wanted)).scalars())


async def save_splits(connection: AsyncConnection, given: Sequence[Split]) -> None:
    await _upsert(connection, splits, given)


async def read_splits(connection: AsyncConnection, start: date | None) -> list[Split]:
    wanted = sa.select(splits).order_by(splits.c.ex_date, splits.c.symbol)
    if start is not None:
        wanted = wanted.where(splits.c.ex_date >= start)
    found = (await connection.execute(wanted)).mappings()
    return [parse_document(Split, dict(row), where=f"stored split of {row['symbol']}") for row in found]


def daily_rows(bars: DailyBars) -> list[tuple[Any, ...]]:
    """In the order of the primary key; of several bars of one day there is the last."""
    columns: dict[str, list[Any]] = {name: getattr(bars, name).tolist() for name in DAILY_COLUMNS}
    columns["symbol"] = [bars.symbols[index] for index in columns["symbol"]]
    rows = sorted(zip(*columns.values(), strict=True), key=itemgetter(0, 1))
    return list({row[:2]: row for row in rows}.values())


async def read_daily_bars(
    connection: AsyncConnection, names: Sequence[str], start: date | None, end: date | None
) -> DailyBars:
    place = {name: index for index, name in enumerate(names)}
    rows: list[Any] = []
    for some in _some_names(names):
        wanted = sa.select(*(bars_1d.c[name] for name in DAILY_COLUMNS)).where(bars_1d.c.symbol.in_(some))
        if start is not None:
            wanted = wanted.where(bars_1d.c.day >= day_number(start))
        if end is not None:
            wanted = wanted.where(bars_1d.c.day <= day_number(end))
        rows += (await connection.execute(wanted.order_by(bars_1d.c.symbol, bars_1d.c.day))).all()
    columns: list[Any] = list(zip(*rows, strict=True)) if rows else [()] * len(DAILY_COLUMNS)
    symbol = np.fromiter(map(place.__getitem__, columns[0]), np.int32, len(rows))
    return DailyBars(
        symbols=tuple(names),
        symbol=symbol,
        day=np.array(columns[1], np.int32),
        **{name: np.array(column, np.float64) for name, column in zip(DAILY_COLUMNS[2:], columns[2:], strict=True)},
    )


async def read_daily_days(connection: AsyncConnection, start: date | None) -> list[date]:
    # One step of the index a day, instead of all of its millions of rows.
    first = sa.select(sa.func.min(bars_1d.c.day).label("day"))
    if start is not None:
        first = first.where(bars_1d.c.day >= day_number(start))
    days = first.cte("days", recursive=True)
    following = sa.select(sa.func.min(bars_1d.c.day)).where(bars_1d.c.day > days.c.day).scalar_subquery()
    days = days.union_all(sa.select(following).where(days.c.day.is_not(None)))
    found = await connection.execute(sa.select(days.c.day).where(days.c.day.is_not(None)).order_by(days.c.day))
    return [day_of_number(day) for day in found.scalars()]


def _some_names(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for first in range(0, len(names), NAMES):
        yield names[first : first + NAMES]


@lru_cache(maxsize=_PARSED)
def _security(*row: Any) -> Security:
    """Of a row of `symbols`."""
    return parse_document(Security, dict(zip(_FIELDS, row, strict=True)), where=f"stored security {row[0]}")


async def _upsert(connection: AsyncConnection, table: sa.Table, given: Sequence[Document]) -> None:
    for start in range(0, len(given), ROWS):
        rows = [document.model_dump() for document in given[start : start + ROWS]]
        await connection.execute(insert_or_replace(connection, table), rows)
