"""Minute bars in SQL, on a connection of the caller's: how columns become rows and rows columns.

How many rows are written at once is left to the database (`sqlite.py`, `postgres.py`).
"""

from operator import itemgetter
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from tapewatch.adapters.sql_statements import between, delete_some, null, page_size
from tapewatch.adapters.sql_tables import bars_1m
from tapewatch.engine.columns import BAR_COLUMNS, Bars

UNKNOWN_COLUMNS = ("open", "high", "low", "close", "volume", "vwap", "vwap_volume")


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


def read_bars(connection: sa.Connection, symbol: str, *, start_ns: int | None, end_ns: int | None, limit: int) -> Bars:
    newest = (
        sa.select(*(bars_1m.c[name] for name in BAR_COLUMNS[1:]))
        .where(bars_1m.c.symbol == symbol, bars_1m.c.close.is_not(None), *between(bars_1m.c.ts_ns, start_ns, end_ns))
        .order_by(bars_1m.c.ts_ns.desc())
        .limit(page_size(limit))
    )
    rows = connection.execute(newest).all()
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
