"""Minute bars in SQL, on a connection of the caller's: how columns become rows and rows columns.

How many rows are written at once is left to the database (`sqlite.py`, `postgres.py`).
"""

from operator import itemgetter
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from tapewatch.adapters.sql_database import Reading
from tapewatch.adapters.sql_statements import INT64_MAX, delete_some, int64, null, page_size
from tapewatch.adapters.sql_tables import bars_1m
from tapewatch.engine.columns import BAR_COLUMNS, Bars

UNKNOWN_COLUMNS = ("open", "high", "low", "close", "volume", "vwap", "vwap_volume")

# Made once, for to make it takes as long as to read a hundred bars.
_NEWEST = (
    sa.select(*(bars_1m.c[name] for name in BAR_COLUMNS[1:]))
    .where(
        bars_1m.c.symbol == sa.bindparam("symbol"),
        bars_1m.c.close.is_not(None),
        bars_1m.c.ts_ns.between(sa.bindparam("first_ns"), sa.bindparam("last_ns")),
    )
    .order_by(bars_1m.c.ts_ns.desc())
    .limit(sa.bindparam("most"))
)


def bar_rows(bars: Bars) -> list[tuple[Any, ...]]:
    """Rows in the order of the primary key, which visits each page once. Of several revisions of one bar there is the
    greatest, and of equal ones the last: the others would be replaced.
    """
    columns: dict[str, list[Any]] = {name: getattr(bars, name).tolist() for name in BAR_COLUMNS}
    columns["symbol"] = [bars.symbols[index] for index in columns["symbol"]]
    for name in UNKNOWN_COLUMNS:
        if np.isnan(getattr(bars, name)).any():
            columns[name] = [null(value) for value in columns[name]]
    rows = sorted(zip(*columns.values(), strict=True), key=itemgetter(0, 1, -1))
    newest = {row[:2]: row for row in rows}
    return rows if len(newest) == len(rows) else list(newest.values())


def read_bars(reading: Reading, symbol: str, *, start_ns: int | None, end_ns: int | None, limit: int) -> Bars:
    first_ns = -INT64_MAX - 1 if start_ns is None else start_ns
    last_ns = INT64_MAX if end_ns is None else end_ns - 1
    is_there = first_ns <= INT64_MAX and last_ns >= -INT64_MAX - 1
    most = page_size(limit) if is_there else 0
    asked = {"symbol": symbol, "first_ns": int64(first_ns), "last_ns": int64(last_ns), "most": most}
    rows = reading.rows(_NEWEST, asked)
    columns = zip(*reversed(rows), strict=True) if rows else [()] * len(BAR_COLUMNS[1:])
    arrays: dict[str, Any] = {
        name: np.array(column, np.float64 if name in UNKNOWN_COLUMNS else np.int64)
        for name, column in zip(BAR_COLUMNS[1:], columns, strict=True)
    }
    return Bars(symbols=(symbol,), symbol=np.zeros(len(rows), np.int32), **arrays)


async def symbols_with_bars_before(connection: AsyncConnection, oldest_ns: int) -> list[str]:
    # One step of the index a symbol, instead of all of its millions of rows.
    first = sa.select(sa.func.min(bars_1m.c.symbol).label("symbol")).cte("names", recursive=True)
    following = sa.select(sa.func.min(bars_1m.c.symbol)).where(bars_1m.c.symbol > first.c.symbol).scalar_subquery()
    names = first.union_all(sa.select(following).where(first.c.symbol.is_not(None)))
    has_older = sa.exists().where(bars_1m.c.symbol == names.c.symbol, bars_1m.c.ts_ns < oldest_ns)
    return list((await connection.execute(sa.select(names.c.symbol).where(has_older))).scalars())


async def delete_some_bars(connection: AsyncConnection, symbol: str, oldest_ns: int, *, limit: int) -> int:
    """Of this symbol up to so many of those before `oldest_ns`; says how many."""
    return await delete_some(connection, bars_1m, bars_1m.c.symbol == symbol, bars_1m.c.ts_ns < oldest_ns, limit=limit)
