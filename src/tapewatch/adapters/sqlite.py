"""What only SQLite knows: one file, one writer, and the settings that make a commit durable.

Short reads run on the event loop itself: handing one to a thread and back costs ten times what it takes. One that is
not over in some milliseconds is given up and begun again beside the loop.

Writes go one at a time, because SQLite has one writer, and each takes the write lock before it reads, so that no writer
finds halfway that another was first. Reads run beside them on their own connections and see the last commit. A call
that finds all connections busy waits for one.
"""

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import aiosqlite
import msgspec
import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.dialects.sqlite import pysqlite
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.sql.compiler import ExpandedState

from tapewatch.adapters import migrations
from tapewatch.adapters.sql_database import NotAtOnce, Query, Reading
from tapewatch.adapters.sql_statements import ROWS, insert_or_replace
from tapewatch.errors import ConfigError, TapewatchError, Unavailable

T = TypeVar("T")

CONNECTIONS = 5
BUSY_S = 5.0
"""How long a write waits for another process that writes to the same file."""
AT_ONCE_STEPS, AT_ONCE_S = 100_000, 0.05
"""What a read may take on the event loop: steps of SQLite's machine, some milliseconds of them, and, with what it waits
for the disk, seconds.
"""
_STEPS = 1_000
"""Between two looks."""
_PREPARED = 500
"""Queries, and texts of them, that are kept; beyond that, all are made again."""
_OURS = (
    *(exc.IntegrityError, exc.ProgrammingError, exc.DataError),
    *(sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.DataError, sqlite3.InterfaceError),
)
"""No fault of the database."""


class SqliteDatabase:
    """`Database` in the file that the URL names. One that it makes is for its owner alone: secrets of channels are in
    it, and what proves passwords.
    """

    failures = (exc.DBAPIError, exc.TimeoutError, sqlite3.Error)

    def __init__(self, url: URL) -> None:
        if not url.database or url.database == ":memory:" or "mode" in url.query:
            # Connections to a memory database share one transaction or none at all, and neither is a store.
            raise ConfigError("the store must be a file; a temporary directory serves for a trial")
        self._url = url.set(drivername="sqlite+aiosqlite")
        self._engine = create_async_engine(
            self._url,
            async_creator=self._connect,
            pool_size=CONNECTIONS,
            max_overflow=0,
            json_deserializer=msgspec.json.decode,
        )
        self._stopping: set[asyncio.Future[Any]] = set()
        sa.event.listen(self._engine.sync_engine, "connect", _configure)
        sa.event.listen(self._engine.sync_engine, "begin", _begin)
        self._writing = asyncio.Lock()

        self._near: _Near | None = None
        self._near_steps, self._near_until_s = 0, 0.0

    async def upgrade(self) -> None:
        async with self.write() as connection:
            await connection.run_sync(migrations.upgrade)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        async with self._writing, self._engine.connect() as connection:
            await connection.execution_options(tapewatch_writes=True)
            async with connection.begin():
                yield connection

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        async with self._engine.connect() as connection:
            yield connection

    def read_at_once(self, read: Callable[[Reading], T]) -> T:
        if self._near is None:
            self._near = _Near(self._url, self._near_takes_long)
        self._near_steps, self._near_until_s = 0, time.monotonic() + AT_ONCE_S
        try:
            with self._near.transaction():
                return read(self._near)
        except sqlite3.OperationalError as error:
            if _code(error) in {sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_BUSY}:
                raise NotAtOnce from None
            raise

    @asynccontextmanager
    async def bounded(self, connection: AsyncConnection, seconds: float) -> AsyncIterator[None]:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        # It may be called while another thread is at a statement; that is what it is for.
        ending = asyncio.get_running_loop().call_later(seconds, driver._conn.interrupt)  # noqa: SLF001  # its own is a coroutine
        try:
            yield
        finally:
            ending.cancel()

    async def replace(
        self,
        connection: AsyncConnection,
        table: sa.Table,
        rows: Sequence[tuple[Any, ...]],
        *,
        unless_greater: str | None = None,
    ) -> None:
        # Text for the driver: ten thousand rows a minute are worth sparing Core's work on each of them.
        statement = insert_or_replace(connection, table, unless_greater=unless_greater)
        text = str(statement.compile(dialect=connection.dialect, column_keys=table.columns.keys()))
        for start in range(0, len(rows), ROWS):
            await connection.exec_driver_sql(text, list(rows[start : start + ROWS]))

    async def drop_chunks(self, connection: AsyncConnection, oldest_ns: Mapping[str, int]) -> bool:  # noqa: ARG002
        return False

    def translated(self, error: Exception) -> TapewatchError | None:
        if isinstance(error, exc.TimeoutError):
            return Unavailable("all connections to the store are busy")
        where = f"the store {self._url.database}"
        cause, code = getattr(error, "orig", error), _code(error)
        if code in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}:
            return ConfigError(f"{where} cannot be opened for writing: {cause}")
        if code == sqlite3.SQLITE_INTERRUPT:
            return Unavailable("the query took too long and was ended; ask for less")
        if code in {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}:
            return ConfigError(f"{where} is not a database or is damaged: {cause}; restore a backup")
        if code == sqlite3.SQLITE_ERROR and ("no such table" in str(cause) or "no such column" in str(cause)):
            return ConfigError(f"{where} lacks tables of this release: run `tapewatch db upgrade`")
        if code == sqlite3.SQLITE_ERROR or isinstance(error, _OURS):
            return None
        return Unavailable(f"{where} does not answer: {cause}")

    async def close(self) -> None:
        if self._near is not None:
            self._near.close()
        await self._engine.dispose()
        while self._stopping:
            await asyncio.wait(self._stopping)

    def _near_takes_long(self) -> bool:
        # By what was done more than by the clock: a process that waits for its turn would begin its reads anew.
        self._near_steps += _STEPS
        return self._near_steps > AT_ONCE_STEPS or time.monotonic() > self._near_until_s

    async def _connect(self) -> aiosqlite.Connection:
        if self._url.database and not self._url.database.startswith("file:"):
            with suppress(OSError):  # what is wrong with the place, SQLite says
                os.close(os.open(self._url.database, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        arguments, options = self._engine.dialect.create_connect_args(self._url)
        return await _Connection(partial(sqlite3.connect, *arguments, **options), self._stopping)


class _Near:
    """`Reading` on a connection of the driver's: Core would take ten times as long to run a statement as SQLite."""

    dialect = "sqlite"

    def __init__(self, url: URL, takes_long: Callable[[], bool]) -> None:
        self._spoken = pysqlite.dialect(json_deserializer=msgspec.json.decode)
        arguments, options = self._spoken.create_connect_args(url.set(drivername="sqlite"))
        self._driver = sqlite3.connect(arguments[0], **{**options, "isolation_level": None})
        self._driver.execute("PRAGMA busy_timeout = 0")
        self._driver.execute("PRAGMA query_only = ON")
        self._driver.set_progress_handler(takes_long, _STEPS)
        self._prepared: dict[Query, _Prepared] = {}
        self._texts: dict[tuple[Query, tuple[int, ...]], ExpandedState] = {}
        """By query and how many values those of its parameters have that expand."""

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self._driver.execute("BEGIN")
        try:
            yield
        finally:
            self._driver.rollback()

    def rows(self, query: Query, values: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        prepared = self._prepared.get(query)
        if prepared is None:
            _make_room(self._prepared)
            prepared = self._prepared[query] = _Prepared(query, self._spoken)
        given = {**prepared.compiled.params, **values}
        sizes = tuple([len(given[name]) for name in prepared.expanding])
        text = self._texts.get((query, sizes))
        if text is None:
            _make_room(self._texts)
            text = self._texts[query, sizes] = prepared.compiled.construct_expanded_state(given)
        for name, names in text.parameter_expansion.items():
            given |= zip(names, given[name], strict=True)
        found = self._driver.execute(text.statement, [given[name] for name in text.positiontup or ()]).fetchall()
        return prepared.converted(found)

    def close(self) -> None:
        self._driver.close()


class _Prepared:
    """A query as the driver takes it, and how what it finds becomes what the columns' types say."""

    def __init__(self, query: Query, dialect: sa.Dialect) -> None:
        self.compiled = query.compile(dialect=dialect)
        self.expanding = [name for bind, name in self.compiled.bind_names.items() if bind.expanding]
        types = [column.type.dialect_impl(dialect) for column in query.selected_columns]
        convertors = enumerate(kind.result_processor(dialect, None) for kind in types)
        self._convertors = [(place, convert) for place, convert in convertors if convert is not None]

    def converted(self, found: list[tuple[Any, ...]]) -> Sequence[Sequence[Any]]:
        if not self._convertors:
            return found
        rows = list(map(list, found))
        for place, convert in self._convertors:
            for row in rows:
                row[place] = convert(row[place])
        return rows


def _make_room(kept: dict[Any, Any]) -> None:
    if len(kept) >= _PREPARED:
        kept.clear()


class _Connection(aiosqlite.Connection):
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


def _code(error: Exception) -> int:
    code: int = getattr(getattr(error, "orig", error), "sqlite_errorcode", sqlite3.SQLITE_OK)
    return code & 0xFF


def _configure(connection: Any, _: object) -> None:
    # The driver would begin transactions by its own rules, which leave reads outside of them; `_begin` does it.
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


def _begin(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("tapewatch_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
