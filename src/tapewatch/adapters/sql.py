"""The store in SQL: bars, alerts, rules, lists, reference data and readers' positions, durable when a call returns.

Owns connections, transactions and the translation of the database's errors. It never retries (the caller waits and
does), never caches a row, and creates no table outside `upgrade`.

Statements are SQLAlchemy Core over the tables of `sql_tables`; what only SQLite knows is in `_url`, `_insert`,
`_translated` and the names that say so. Writes go one at a time, because SQLite has one writer, and each takes the
write lock before it reads, so that no writer finds halfway that another was first. Reads run beside them on their own
connections and see the last commit. A call that finds all connections busy waits for one.
"""

import asyncio
import math
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import date
from functools import partial, wraps
from operator import itemgetter
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import aiosqlite
import numpy as np
import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from tapewatch.adapters import migrations, sql_reference, sql_rules
from tapewatch.adapters.sql_rules import RULES, WATCHLISTS, Change
from tapewatch.adapters.sql_tables import alert_history, bars_1m, reader_positions
from tapewatch.clock import SystemClock
from tapewatch.documents import Alert, Rule, Security, Split, Watchlist
from tapewatch.engine.columns import BAR_COLUMNS, Bars
from tapewatch.engine.daily import DailyBars
from tapewatch.errors import ConfigError, NotFound, TapewatchError, Unavailable
from tapewatch.ports import AlertQuery, AuditEntry, AuditQuery, Clock, Position, Snapshot

P = ParamSpec("P")
T = TypeVar("T")

CONNECTIONS = 5
BUSY_S = 5.0
"""How long a write waits for another process that writes to the same file."""
ROWS = 2_000
"""Rows handed to the database at a time, so that the event loop gets its turn inside a long transaction."""
UNKNOWN_COLUMNS = ("open", "high", "low", "close", "volume", "vwap", "vwap_volume")
INT64_MAX = 2**63 - 1


def _whole(
    method: Callable[Concatenate["SqlStore", P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["SqlStore", P], Coroutine[Any, Any, T]]:
    """Run the call to its end even if the caller is cancelled, and translate the database's errors.

    A connection that is cancelled halfway through a statement keeps its locks until somebody collects it, and every
    other writer waits for it in vain.
    """

    @wraps(method)
    async def run(self: "SqlStore", /, *args: P.args, **kwargs: P.kwargs) -> T:
        if self._closed:
            raise Unavailable("the store is closed")
        task = asyncio.ensure_future(method(self, *args, **kwargs))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            return await asyncio.shield(task)
        except (exc.DBAPIError, exc.TimeoutError) as error:
            remedy = _translated(error, self._url)
            if remedy is None:  # a broken invariant of ours, which must not look like the database's fault
                raise
            raise remedy from error

    return run


class SqlStore:
    """`Store` in a SQLite file. `location` is its path, or a URL such as ``sqlite:///data/tapewatch.db``; `clock` tells
    the audit log when something was changed.
    """

    def __init__(self, location: str | Path, *, clock: Clock | None = None) -> None:
        self._url = _url(location)
        self._clock = clock or SystemClock()
        self._engine = create_async_engine(
            self._url, async_creator=self._connect, pool_size=CONNECTIONS, max_overflow=0
        )
        self._stopping: set[asyncio.Future[Any]] = set()
        sa.event.listen(self._engine.sync_engine, "connect", _configure_sqlite)
        sa.event.listen(self._engine.sync_engine, "begin", _begin_sqlite)
        self._writing = asyncio.Lock()
        self._running: set[asyncio.Task[Any]] = set()
        self._closed = False

    @_whole
    async def upgrade(self) -> None:
        async with self._write() as connection:
            await connection.run_sync(migrations.upgrade)

    @_whole
    async def save_bars(self, bars: Bars, *, reader: str, position: Position | None = None) -> None:
        insert = _insert(bars_1m)
        excluded = insert.excluded
        upsert = insert.on_conflict_do_update(
            index_elements=[bars_1m.c.symbol, bars_1m.c.ts_ns],
            set_={name: excluded[name] for name in BAR_COLUMNS[2:]},
            where=excluded.revision >= bars_1m.c.revision,
        )
        # Text for the driver: ten thousand rows a minute are worth sparing Core's work on each of them.
        statement = str(upsert.compile(dialect=self._engine.dialect, column_keys=BAR_COLUMNS))
        rows = _bar_rows(bars)
        async with self._write() as connection:
            for start in range(0, len(rows), ROWS):
                await connection.exec_driver_sql(statement, rows[start : start + ROWS])
            await _save_position(connection, reader, position)

    @_whole
    async def bars(
        self, symbol: str, *, start_ns: int | None = None, end_ns: int | None = None, limit: int = 1000
    ) -> Bars:
        newest = (
            sa.select(*(bars_1m.c[name] for name in BAR_COLUMNS[1:]))
            .where(
                bars_1m.c.symbol == symbol, bars_1m.c.close.is_not(None), *_between(bars_1m.c.ts_ns, start_ns, end_ns)
            )
            .order_by(bars_1m.c.ts_ns.desc())
            .limit(_limit(limit))
        )
        async with self._read() as connection:
            rows = (await connection.execute(newest)).all()
        columns = zip(*reversed(rows), strict=True) if rows else [()] * len(BAR_COLUMNS[1:])
        arrays: dict[str, Any] = {
            name: np.array(column, np.float64 if name in UNKNOWN_COLUMNS else np.int64)
            for name, column in zip(BAR_COLUMNS[1:], columns, strict=True)
        }
        return Bars(symbols=(symbol,), symbol=np.zeros(len(rows), np.int32), **arrays)

    @_whole
    async def save_alerts(
        self, alerts: Sequence[Alert], *, reader: str, position: Position | None = None
    ) -> list[Alert]:
        first: dict[str, Alert] = {}
        for alert in alerts:
            first.setdefault(alert.alert_id, alert)
        insert = _insert(alert_history).on_conflict_do_nothing(index_elements=[alert_history.c.alert_id])
        new: set[str] = set()
        async with self._write() as connection:
            if first:
                inserted = await connection.execute(
                    insert.returning(alert_history.c.alert_id), [_alert_row(alert) for alert in first.values()]
                )
                new.update(inserted.scalars())
            await _save_position(connection, reader, position)
        return [alert for alert_id, alert in first.items() if alert_id in new]

    @_whole
    async def annotate_alerts(
        self, symbol: str, *, since_ns: int, note: str, reader: str, position: Position | None = None
    ) -> list[Alert]:
        table = alert_history.c
        fired = (
            sa.select(alert_history)
            .where(table.symbol == symbol, *_between(table.fired_at_ns, since_ns, None))
            .order_by(table.fired_at_ns, table.alert_id)
        )
        written = sa.update(alert_history).where(table.alert_id == sa.bindparam("of")).values(note=sa.bindparam("now"))
        async with self._write() as connection:
            stored = [_alert(row) for row in (await connection.execute(fired)).mappings()]
            changed = [now for alert in stored if (now := alert.annotated(note)).note != alert.note]
            if changed:
                await connection.execute(written, [{"of": alert.alert_id, "now": alert.note} for alert in changed])
            await _save_position(connection, reader, position)
        return changed

    @_whole
    async def alerts(self, query: AlertQuery) -> list[Alert]:
        table = alert_history.c
        newest = sa.select(alert_history).order_by(table.fired_at_ns.desc(), table.alert_id.desc())
        newest = newest.where(*_between(table.fired_at_ns, query.since_ns, query.until_ns)).limit(_limit(query.limit))
        if query.symbol is not None:
            newest = newest.where(table.symbol == query.symbol)
        if query.rule_id is not None:
            newest = newest.where(table.rule_id == query.rule_id)
        if query.before is not None:
            fired_at_ns, alert_id = query.before
            last_seen = sa.tuple_(sa.literal(_int64(fired_at_ns), sa.BigInteger), sa.literal(alert_id))
            newest = newest.where(sa.tuple_(table.fired_at_ns, table.alert_id) < last_seen)
        async with self._read() as connection:
            return [_alert(row) for row in (await connection.execute(newest)).mappings()]

    @_whole
    async def alert(self, alert_id: str) -> Alert:
        async with self._read() as connection:
            found = await connection.execute(sa.select(alert_history).where(alert_history.c.alert_id == alert_id))
            row = found.mappings().one_or_none()
        if row is None:
            raise NotFound(f"there is no alert {alert_id}")
        return _alert(row)

    @_whole
    async def position(self, reader: str) -> Position | None:
        table = reader_positions.c
        async with self._read() as connection:
            found = await connection.execute(sa.select(table.epoch, table.sequence).where(table.reader == reader))
            row = found.one_or_none()
        return None if row is None else Position(row.epoch, row.sequence)

    @_whole
    async def rules(self) -> Snapshot:
        async with self._read() as connection:
            return await sql_rules.read_snapshot(connection)

    @_whole
    async def ruleset_number(self) -> int:
        async with self._read() as connection:
            return await sql_rules.read_number(connection)

    @_whole
    async def rule(self, rule_id: str, version: int | None = None) -> Rule:
        async with self._read() as connection:
            if version is None:
                return await sql_rules.read_one(connection, RULES, rule_id)
            return await sql_rules.read_version(connection, RULES, rule_id, version)

    @_whole
    async def rule_versions(self, rule_id: str, *, limit: int = 100, offset: int = 0) -> list[Rule]:
        page = {"limit": _limit(limit), "offset": _limit(offset)}
        async with self._read() as connection:
            return await sql_rules.read_versions(connection, RULES, rule_id, **page)

    @_whole
    async def save_rule(self, rule: Rule, *, actor: str = "local") -> Rule:
        async with self._write() as connection:
            return await sql_rules.save_rule(connection, rule, self._change(actor))

    @_whole
    async def delete_rule(self, rule_id: str, *, actor: str = "local") -> None:
        async with self._write() as connection:
            await sql_rules.delete_rule(connection, rule_id, self._change(actor))

    @_whole
    async def watchlists(self) -> list[Watchlist]:
        async with self._read() as connection:
            return await sql_rules.read_all(connection, WATCHLISTS)

    @_whole
    async def watchlist(self, watchlist_id: str) -> Watchlist:
        async with self._read() as connection:
            return await sql_rules.read_one(connection, WATCHLISTS, watchlist_id)

    @_whole
    async def save_watchlist(self, watchlist: Watchlist, *, actor: str = "local") -> Watchlist:
        async with self._write() as connection:
            return await sql_rules.save_watchlist(connection, watchlist, self._change(actor))

    @_whole
    async def delete_watchlist(self, watchlist_id: str, *, actor: str = "local") -> None:
        async with self._write() as connection:
            await sql_rules.delete_watchlist(connection, watchlist_id, self._change(actor))

    @_whole
    async def audit(self, query: AuditQuery) -> list[AuditEntry]:
        async with self._read() as connection:
            return await sql_rules.read_audit(connection, query)

    @_whole
    async def expire(self, now_ns: int) -> int:
        async with self._write() as connection:
            return await sql_rules.expire_audit(connection, now_ns)

    @_whole
    async def save_securities(self, securities: Sequence[Security]) -> None:
        async with self._write() as connection:
            await sql_reference.save_securities(connection, securities)

    @_whole
    async def securities(self) -> list[Security]:
        async with self._read() as connection:
            return await sql_reference.read_securities(connection)

    @_whole
    async def securities_of(self, symbols: Sequence[str]) -> list[Security]:
        async with self._read() as connection:
            return await sql_reference.read_securities_of(connection, symbols)

    @_whole
    async def save_splits(self, splits: Sequence[Split]) -> None:
        async with self._write() as connection:
            await sql_reference.save_splits(connection, splits)

    @_whole
    async def splits(self, *, start: date | None = None) -> list[Split]:
        async with self._read() as connection:
            return await sql_reference.read_splits(connection, start)

    @_whole
    async def save_daily_bars(self, bars: DailyBars) -> None:
        bars.check()
        async with self._write() as connection:
            await sql_reference.save_daily_bars(connection, bars)

    @_whole
    async def daily_bars(
        self, symbols: Sequence[str], *, start: date | None = None, end: date | None = None
    ) -> DailyBars:
        async with self._read() as connection:
            return await sql_reference.read_daily_bars(connection, symbols, start, end)

    @_whole
    async def daily_days(self, *, start: date | None = None) -> list[date]:
        async with self._read() as connection:
            return await sql_reference.read_daily_days(connection, start)

    async def close(self) -> None:
        """Refuse new calls, let the running ones end, and let go of the file."""
        self._closed = True
        while self._running:
            await asyncio.wait(self._running)
        await self._engine.dispose()
        while self._stopping:
            await asyncio.wait(self._stopping)

    def _change(self, actor: str) -> Change:
        return Change(actor, self._clock.now_ns())

    async def _connect(self) -> aiosqlite.Connection:
        arguments, options = self._engine.dialect.create_connect_args(self._url)
        return await _SqliteConnection(partial(sqlite3.connect, *arguments, **options), self._stopping)

    @asynccontextmanager
    async def _write(self) -> AsyncIterator[AsyncConnection]:
        async with self._writing, self._engine.connect() as connection:
            await connection.execution_options(tapewatch_writes=True)
            async with connection.begin():
                yield connection

    @asynccontextmanager
    async def _read(self) -> AsyncIterator[AsyncConnection]:
        async with self._engine.connect() as connection:
            yield connection


def _url(location: str | Path) -> URL:
    if isinstance(location, str) and "://" in location:
        try:
            url = make_url(location)
        except exc.ArgumentError:
            raise ConfigError("the store's address is not a URL that a database could have") from None
        if url.get_backend_name() != "sqlite":
            raise ConfigError(f"the store cannot be in {url.get_backend_name()}; only sqlite:///PATH is built")
        url = url.set(drivername="sqlite+aiosqlite")
    else:
        url = URL.create("sqlite+aiosqlite", database=str(location))
    if not url.database or url.database == ":memory:" or "mode" in url.query:
        # Connections to a memory database share one transaction or none at all, and neither is this contract.
        raise ConfigError("the store must be a file; a temporary directory serves for a trial")
    return url


class _SqliteConnection(aiosqlite.Connection):
    """A connection whose thread `close` can wait for.

    A connection that failed or was cancelled is told to stop and left alone by the driver. Its thread then answers an
    event loop that may be closed meanwhile, which ends in a traceback nobody can place.
    """

    def __init__(self, connector: Callable[[], sqlite3.Connection], stopping: set[asyncio.Future[Any]]) -> None:
        super().__init__(connector, iter_chunk_size=64)
        self._thread.daemon = True  # a program that dies without closing the store must not hang
        self._all_stopping = stopping

    def stop(self) -> asyncio.Future[Any] | None:
        future = super().stop()
        if future is not None:
            self._all_stopping.add(future)
            future.add_done_callback(self._all_stopping.discard)
        return future


def _configure_sqlite(connection: Any, _: object) -> None:
    # The driver would begin transactions by its own rules, which leave reads outside of them; `_begin_sqlite` does it.
    connection.isolation_level = None
    cursor = connection.cursor()
    try:
        cursor.execute(f"PRAGMA busy_timeout = {round(BUSY_S * 1000)}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()
    except BaseException:
        connection.close()  # the pool does not know it yet, and its thread would outlive the event loop
        raise


def _begin_sqlite(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("tapewatch_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _insert(table: sa.Table) -> sqlite.Insert:
    """An INSERT that knows ON CONFLICT, which Core leaves to the dialects (PostgreSQL's is spelled the same)."""
    return sqlite.insert(table)


def _translated(error: exc.DBAPIError | exc.TimeoutError, url: URL) -> TapewatchError | None:
    """The error that tells the caller what to do; None for a mistake in our own statements or rows."""
    if isinstance(error, exc.TimeoutError):
        return Unavailable("all connections to the store are busy")
    cause = error.orig
    code = getattr(cause, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    if code in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}:
        return ConfigError(f"the store {url.database} cannot be opened for writing: {cause}")
    if code in {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}:
        return ConfigError(f"the store {url.database} is not a database or is damaged: {cause}; restore a backup")
    if code == sqlite3.SQLITE_ERROR and "no such table" in str(cause):
        return ConfigError(f"the store {url.database} has no tables yet: run `tapewatch db upgrade`")
    if code == sqlite3.SQLITE_ERROR or isinstance(error, (exc.IntegrityError, exc.ProgrammingError, exc.DataError)):
        return None
    return Unavailable(f"the store {url.database} does not answer: {cause}")


def _bar_rows(bars: Bars) -> list[tuple[Any, ...]]:
    """Rows in the order of the primary key, which visits each page once; revisions of one bar keep their order."""
    columns: dict[str, list[Any]] = {name: getattr(bars, name).tolist() for name in BAR_COLUMNS}
    columns["symbol"] = [bars.symbols[index] for index in columns["symbol"]]
    for name in UNKNOWN_COLUMNS:
        if np.isnan(getattr(bars, name)).any():
            columns[name] = [_null(value) for value in columns[name]]
    return sorted(zip(*columns.values(), strict=True), key=itemgetter(0))


def _alert_row(alert: Alert) -> dict[str, Any]:
    return {
        "alert_id": alert.alert_id,
        "rule_id": alert.rule_id,
        "rule_version": int(alert.rule_version),
        "rule_name": alert.rule_name,
        "symbol": alert.symbol,
        "fired_at_ns": int(alert.fired_at_ns),
        "price": _null(alert.price),
        "values": {name: _json_number(value) for name, value in alert.values.items()},
        "session": alert.session,
        "received_ns": int(alert.received_ns),
        "note": alert.note,
        "ages_s": {name: _json_number(age_s) for name, age_s in alert.ages_s.items()},
        "severity": alert.severity,
        "tags": list(alert.tags),
    }


def _alert(row: Mapping[Any, Any]) -> Alert:
    numbers = {column: {name: _nan(value) for name, value in row[column].items()} for column in ("values", "ages_s")}
    return Alert(**{**row, **numbers, "price": _nan(row["price"]), "tags": tuple(row["tags"])})


def _null(value: float) -> float | None:
    return None if math.isnan(value) else value


def _json_number(value: float) -> float | str | None:
    """JSON knows no infinity; its name is a text that `float` reads back."""
    return str(value) if math.isinf(value) else _null(value)


def _nan(value: float | str | None) -> float:
    return math.nan if value is None else float(value)


def _int64(value: int) -> int:
    """The nearest number that fits a column: what people ask for may have any size."""
    return max(-INT64_MAX - 1, min(INT64_MAX, value))


def _limit(limit: int) -> int:
    return max(0, min(INT64_MAX, limit))


def _between(column: sa.Column[int], start_ns: int | None, end_ns: int | None) -> list[sa.ColumnElement[bool]]:
    conditions: list[sa.ColumnElement[bool]] = []
    if start_ns is not None:
        conditions.append(column >= _int64(start_ns) if start_ns <= INT64_MAX else sa.false())
    if end_ns is not None:
        conditions.append(column < _int64(end_ns) if end_ns <= INT64_MAX else sa.true())
    return conditions


async def _save_position(connection: AsyncConnection, reader: str, position: Position | None) -> None:
    if position is None:
        return
    insert = _insert(reader_positions).values(reader=reader, epoch=position.epoch, sequence=position.sequence)
    await connection.execute(
        insert.on_conflict_do_update(
            index_elements=[reader_positions.c.reader],
            set_={"epoch": insert.excluded.epoch, "sequence": insert.excluded.sequence},
        )
    )
