"""The users of ``deploy/postgres``: what each may do in a store, and what is refused."""

from collections.abc import AsyncIterator

import asyncpg
import pytest
from postgres_server import APP, OWNER, READER, ROLES, PostgresProgram

from tapewatch.adapters.sql import SqlStore
from tapewatch.adapters.sql_tables import metadata
from tapewatch.contracts.samples import NOON_NS, bar_rows, make_alert, make_bars, make_rule
from tapewatch.documents import DAY_S
from tapewatch.engine.columns import SECOND_NS
from tapewatch.errors import ConfigError
from tapewatch.ports import BAR_DAYS, AlertQuery, AuditQuery

pytestmark = pytest.mark.anyio
DAY_NS = DAY_S * SECOND_NS
TABLES = [*metadata.tables, "alembic_version"]
HISTORY = ["bars_1m", "alert_history", "alert_marks", "audit_log"]


@pytest.fixture
async def name(postgres: PostgresProgram) -> AsyncIterator[str]:
    """Of a database as the scripts leave it, with the tables that its owner made."""
    name = await postgres.new_database()
    owner = SqlStore(postgres.url_of(name))
    await owner.upgrade()
    await owner.close()
    postgres.run_script(ROLES / "reader.sql", name)
    yield name
    await postgres.drop_database(name)


async def may(postgres: PostgresProgram, name: str, user: str, statement: str) -> bool:
    connection = await asyncpg.connect(postgres.url_of(name, user=user))
    try:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(statement)
        await transaction.rollback()
    except asyncpg.InsufficientPrivilegeError:
        return False
    finally:
        await connection.close()
    return True


async def test_who_reads_and_writes_rows_can_do_nothing_else(postgres: PostgresProgram, database: str) -> None:
    tried = [
        *(f"DROP TABLE {table} CASCADE" for table in TABLES),
        *(f"TRUNCATE {table} CASCADE" for table in TABLES),
        *(f"ALTER TABLE {table} OWNER TO {APP}" for table in TABLES),
        "CREATE TABLE more (id int)",
        "CREATE SCHEMA more",
        "CREATE FUNCTION more() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE EXTENSION hstore",
        "DROP EXTENSION timescaledb CASCADE",
        "CREATE ROLE more",
        f"ALTER ROLE {OWNER} PASSWORD 'mine'",
        f"SET ROLE {OWNER}",
        "COPY rules TO PROGRAM 'cat'",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT drop_chunks('bars_1m', older_than => 9223372036854775807)",
        "DROP FUNCTION tapewatch_drop_chunks",
    ]
    assert [statement for statement in tried if await may(postgres, database, APP, statement)] == []
    assert await may(postgres, database, OWNER, "DROP TABLE rules CASCADE")


async def test_reader_reads_history_and_nothing_else(postgres: PostgresProgram, name: str) -> None:
    readable = [table for table in TABLES if await may(postgres, name, READER, f"SELECT 1 FROM {table}")]  # noqa: S608 - ours
    assert sorted(readable) == sorted(HISTORY)
    for table in HISTORY:
        assert not await may(postgres, name, READER, f"DELETE FROM {table}")  # noqa: S608 - ours
    assert not await may(postgres, name, READER, "CREATE TEMPORARY TABLE t (id int)")


async def test_stranger_does_not_get_in(postgres: PostgresProgram, name: str) -> None:
    await postgres.administer(f"CREATE ROLE passer_by LOGIN PASSWORD '{postgres.password}'")
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="permission denied for database"):
        await asyncpg.connect(postgres.url_of(name, user="passer_by"))
    await postgres.administer("DROP ROLE passer_by")


async def test_all_roles_together_are_a_store(
    postgres: PostgresProgram, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = SqlStore(postgres.app_url_of(name), replica_url=postgres.url_of(name, user=READER))
    await store.upgrade()
    days = [NOON_NS + day * DAY_NS for day in range(10)]
    bars = make_bars([("A", ts_ns) for ts_ns in days])
    await store.save_bars(bars, reader="bars:0")
    await store.save_alerts([make_alert(1)], reader="alerts:0")
    await store.save_rule(make_rule("a"))
    assert bar_rows(await store.bars("A")) == bar_rows(bars)
    assert await store.alerts(AlertQuery()) == [make_alert(1)]
    assert len(await store.audit(AuditQuery())) == 1
    await store.expire(0, tape_ns=days[4] + BAR_DAYS * DAY_NS)
    assert (await store.bars("A")).ts_ns.tolist() == days[4:]
    assert len(await postgres.administer("SELECT show_chunks('bars_1m')", database=name)) == 6
    await store.close()
    assert "from the primary" not in caplog.text


async def test_upgrade_that_is_needed_is_the_owners(postgres: PostgresProgram, bare_database: str) -> None:
    store = SqlStore(postgres.app_url_of(bare_database))
    with pytest.raises(ConfigError, match=rf"user {APP} .* lacks a right: .*their owner: tapewatch db upgrade"):
        await store.upgrade()
    await store.close()
    left = await postgres.administer("SELECT 1 FROM pg_tables WHERE schemaname = 'public'", database=bare_database)
    assert left == []


async def test_scripts_may_be_run_again(postgres: PostgresProgram, name: str) -> None:
    for script in ("roles.sql", "reader.sql"):
        postgres.run_script(ROLES / script, name)
    (owner,) = await postgres.administer(
        f"SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = '{name}'"  # noqa: S608 - ours
    )
    assert owner[0] == OWNER
