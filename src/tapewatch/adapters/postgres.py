"""What only PostgreSQL knows: many writers at once, rows by COPY, and bounds on how long anything may take.

Transactions are READ COMMITTED. What must not change between a look and a write is locked by its row (`own` in
`sql_readers`, `_lock` in `sql_rules`); upgrades come one after the other by an advisory lock. Nothing waits without
end: the server ends statements, waits for locks and transactions whose client fell silent, and the client gives up on
a server that fell silent. Each of these is `Unavailable`, and every write may be repeated.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import asyncpg
import msgspec
import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncTransaction, create_async_engine
from sqlalchemy.pool import NullPool

from tapewatch.adapters import migrations, postgres_timescale
from tapewatch.adapters.breaker import Breaker
from tapewatch.adapters.postgres_errors import FAILURES, place, translated
from tapewatch.adapters.sql_database import NotAtOnce, Reading
from tapewatch.adapters.sql_statements import insert_or_replace
from tapewatch.errors import ConfigError, TapewatchError

T = TypeVar("T")

CONNECTIONS = 5
"""Of one process at the most."""
CONNECT_S = 5.0
STATEMENT_S = 8.0
LOCK_S = 5.0
SILENT_CLIENT_S = 10.0
"""How long a transaction may wait for its client, which may have been stopped while it holds a lock."""
ANSWER_S = 10.0
"""How long a server may take to answer at all; more than `STATEMENT_S`, so that the server's own word comes first."""
ROLLBACK_S = 1.0
UPGRADE_S = 3_600.0
"""How long a step of an upgrade may take, or wait for an upgrade that another process makes."""
OLDEST_POSTGRESQL = 14
OPTIONS = frozenset(
    {"host", "port", "passfile", "sslmode", "sslrootcert", "sslcert", "sslkey", "target_session_attrs", "timescaledb"}
)
UPGRADE_LOCK = int.from_bytes(b"tapewatc")


class PostgresDatabase:
    """`Database` at the URL. With ``?timescaledb=off`` its tables are plain ones."""

    failures = FAILURES

    def __init__(self, url: URL) -> None:
        unknown = sorted(set(url.query) - OPTIONS)
        if unknown:
            raise ConfigError(f"the store's address has options that are not known: {', '.join(unknown)}")
        if not url.database:
            raise ConfigError("the store's address names no database: postgresql://USER@HOST/DATABASE")
        wanted = url.query.get("timescaledb", "on")
        if wanted not in ("on", "off"):
            raise ConfigError("the store's address says timescaledb=..., which is on or off")
        self._url = url
        self._timescaledb = wanted == "on"
        self._breaker = Breaker("store", failures=(OSError, asyncpg.CannotConnectNowError))
        plain = url.set(drivername="postgresql").difference_update_query(["timescaledb"])
        self._address = plain.render_as_string(hide_password=False)
        self._engine = create_async_engine(
            url.set(drivername="postgresql+asyncpg", query={}),
            async_creator=self._connect,
            pool_size=CONNECTIONS,
            max_overflow=0,
            pool_timeout=ANSWER_S,
            json_deserializer=msgspec.json.decode,
        )
        sa.event.listen(self._engine.sync_engine, "checkout", _replace_if_closed)

    async def upgrade(self) -> None:
        """A user who does not own the tables finds that they are this release's, or is told who has to upgrade them."""
        engine = create_async_engine(
            self._engine.url, async_creator=partial(self._connect, patient=True), poolclass=NullPool
        )
        try:
            async with engine.begin() as connection:
                await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(UPGRADE_LOCK)))
                await connection.run_sync(migrations.upgrade)
                if self._timescaledb and await postgres_timescale.are_ours(connection):
                    await postgres_timescale.make_hypertables(connection, self._url)
        finally:
            await engine.dispose()

    def write(self) -> AbstractAsyncContextManager[AsyncConnection]:
        return self._transaction()

    def read(self) -> AbstractAsyncContextManager[AsyncConnection]:
        return self._transaction()

    def read_at_once(self, read: Callable[[Reading], T]) -> T:  # noqa: ARG002
        raise NotAtOnce

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncConnection]:
        async with self._engine.connect() as connection:
            transaction = await connection.begin()
            try:
                yield connection
                await transaction.commit()
            except BaseException:
                await _undo(connection, transaction)
                raise

    @asynccontextmanager
    async def bounded(self, connection: AsyncConnection, seconds: float) -> AsyncIterator[None]:
        await connection.exec_driver_sql(f"SET LOCAL statement_timeout = {_milliseconds(seconds)}")
        yield

    async def replace(
        self,
        connection: AsyncConnection,
        table: sa.Table,
        rows: Sequence[tuple[Any, ...]],
        *,
        unless_greater: str | None = None,
    ) -> None:
        if not rows:
            return
        names = table.columns.keys()
        staged = sa.table(f"staged_{table.name}", *(sa.column(name) for name in names))
        await connection.exec_driver_sql(
            f"CREATE TEMPORARY TABLE IF NOT EXISTS {staged.name} (LIKE {table.name}) ON COMMIT DELETE ROWS"
        )
        driver = await _driver(connection)
        await driver.copy_records_to_table(staged.name, records=rows, columns=names)
        statement = insert_or_replace(connection, table, unless_greater=unless_greater)
        await connection.execute(statement.from_select(names, sa.select(staged), include_defaults=False))

    async def drop_chunks(self, connection: AsyncConnection, oldest_ns: Mapping[str, int]) -> bool:
        return await postgres_timescale.drop_chunks(connection, oldest_ns)

    def translated(self, error: Exception) -> TapewatchError | None:
        return translated(error, self._url)

    async def close(self) -> None:
        await self._engine.dispose()

    async def _connect(self, *, patient: bool = False) -> Any:
        """A patient one waits for statements and locks of any length, but for no silent client."""
        async with self._breaker.attempt():
            connection = await self._connect_once(patient=patient)
        version = connection.get_server_version()
        if version.major < OLDEST_POSTGRESQL:
            await connection.close()
            raise ConfigError(
                f"the store {place(self._url)} is PostgreSQL {version.major}; {OLDEST_POSTGRESQL} or newer is needed"
            )
        # A server may confirm what is not on its disk yet; a store does not.
        await connection.execute(
            "SELECT set_config('synchronous_commit', 'on', false)"
            " WHERE current_setting('synchronous_commit') IN ('off', 'local')"
        )
        return connection

    async def _connect_once(self, *, patient: bool) -> Any:
        return await asyncpg.connect(
            self._address,
            timeout=CONNECT_S,
            command_timeout=UPGRADE_S if patient else ANSWER_S,
            server_settings={
                "application_name": "tapewatch",
                "default_transaction_isolation": "read committed",
                "statement_timeout": _milliseconds(UPGRADE_S if patient else STATEMENT_S),
                "lock_timeout": _milliseconds(UPGRADE_S if patient else LOCK_S),
                "idle_in_transaction_session_timeout": _milliseconds(SILENT_CLIENT_S),
                "tcp_keepalives_idle": "10",
                "tcp_keepalives_interval": "5",
                "tcp_keepalives_count": "3",
                "jit": "off",  # it costs more than these queries
            },
        )


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1_000))


async def _undo(connection: AsyncConnection, transaction: AsyncTransaction) -> None:
    """Roll back; without a server to talk to, end the connection, which the server takes for the same."""
    driver = await _driver(connection)
    try:
        async with asyncio.timeout(ROLLBACK_S):
            if driver is not None and not driver.is_closed():
                await transaction.rollback()
                return
    except FAILURES:
        pass
    if driver is not None:
        driver.terminate()
    await connection.invalidate()


async def _driver(connection: AsyncConnection) -> Any:
    """The connection that asyncpg made; None if there is none any longer."""
    if connection.invalidated:
        return None
    return (await connection.get_raw_connection()).driver_connection


def _replace_if_closed(connection: Any, _record: object, _proxy: object) -> None:
    """Of connections that ended while nobody used them, for the server was restarted, nobody needs to hear."""
    if connection.driver_connection.is_closed():
        raise exc.DisconnectionError
