"""Copies of a store in PostgreSQL: a replica that history is read from, and a backup."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres_server import ADMIN, PostgresProgram, programs

from tapewatch.adapters.sql import SqlStore
from tapewatch.contracts.samples import NOON_NS, bar_rows, make_alert, make_bars, make_rule, soon
from tapewatch.errors import ConfigError, Unavailable
from tapewatch.ports import AlertQuery, AuditQuery, Position

pytestmark = pytest.mark.anyio


@pytest.fixture
def standby(server: PostgresProgram) -> Iterator[PostgresProgram]:
    standby = PostgresProgram(standby_of=server)
    yield standby
    standby.remove()


async def until_replayed(store: SqlStore) -> None:
    while not await store.alerts(AlertQuery()):  # noqa: ASYNC110 - the server does not tell
        await asyncio.sleep(0.01)


async def test_history_is_read_from_the_replica_while_it_answers(
    server: PostgresProgram, standby: PostgresProgram, caplog: pytest.LogCaptureFixture
) -> None:
    name = await server.new_database()
    store = SqlStore(server.url_of(name), replica_url=standby.url_of(name))
    await store.upgrade()
    await store.save_bars(make_bars([("A", NOON_NS)]), reader="bars:0")
    await store.save_rule(make_rule("a"))
    await store.save_alerts([make_alert(1)], reader="alerts:0")
    await soon(until_replayed(store))

    server.stop()
    assert len(await store.bars("A")) == len(await store.audit(AuditQuery())) == 1
    assert await store.alert(make_alert(1).alert_id) == make_alert(1)
    with pytest.raises(Unavailable):
        await store.rules()
    server.start()

    await standby.administer("SELECT pg_wal_replay_pause()")
    await store.save_alerts([make_alert(2)], reader="alerts:0")
    assert await store.alerts(AlertQuery()) == [make_alert(1)]
    assert await store.alert(make_alert(2).alert_id) == make_alert(2)
    await standby.administer("SELECT pg_wal_replay_resume()")

    servers = f"host=127.0.0.1,127.0.0.1&port={standby.port},{server.port}&target_session_attrs=read-write"
    either = SqlStore(server.url_of(name).replace(f"127.0.0.1:{server.port}", "") + f"?{servers}")
    await either.save_rule(make_rule("b"))
    await either.close()
    behind = SqlStore(standby.url_of(name))
    with pytest.raises(Unavailable, match="read-only"):
        await behind.save_rule(make_rule("c"))
    await behind.close()

    standby.stop("immediate")
    assert len(await store.alerts(AlertQuery())) == 2
    assert "history is read from the primary" in caplog.text
    await store.close()


def test_store_in_a_file_has_no_replica() -> None:
    for primary, replica in (("x.db", "y.db"), ("x.db", f"postgresql://u@h/{ADMIN}"), ("postgresql://u@h/d", "x.db")):
        with pytest.raises(ConfigError, match="no replica"):
            SqlStore(primary, replica_url=replica)


async def test_backup_by_pg_dump_is_restored_as_the_same_store(
    postgres: PostgresProgram, database: str, bare_database: str, tmp_path: Path
) -> None:
    store = SqlStore(postgres.url_of(database))
    bars = make_bars([("A", NOON_NS), ("A", NOON_NS + 10**15)])
    await store.save_bars(bars, reader="bars:0", position=Position(1, 5))
    await store.save_alerts([make_alert(1)], reader="alerts:0")
    await store.save_rule(make_rule("a"))
    snapshot = await store.rules()
    await store.close()

    def run(program: str, *arguments: str | Path) -> None:
        done = subprocess.run([programs() / program, *arguments], capture_output=True, check=False, env={**os.environ})
        assert done.returncode == 0, done.stderr.decode()

    backup = tmp_path / "tapewatch.dump"
    await asyncio.to_thread(run, "pg_dump", "-Fc", "-f", backup, postgres.admin_url_of(database))
    await postgres.administer(
        "CREATE EXTENSION timescaledb", "SELECT timescaledb_pre_restore()", database=bare_database
    )
    await asyncio.to_thread(run, "pg_restore", "-d", postgres.admin_url_of(bare_database), backup)
    await postgres.administer("SELECT timescaledb_post_restore()", database=bare_database)

    restored = SqlStore(postgres.url_of(bare_database))
    await restored.upgrade()
    assert bar_rows(await restored.bars("A")) == bar_rows(bars)
    assert await restored.alerts(AlertQuery()) == [make_alert(1)]
    assert await restored.rules() == snapshot
    assert await restored.position("bars:0") == Position(1, 5)
    await restored.save_bars(make_bars([("A", NOON_NS + 2 * 10**15)]), reader="bars:0")
    assert await restored.expire(NOON_NS + 10**18, tape_ns=NOON_NS + 10**18) >= 0
    assert len(await restored.bars("A")) == 0
    await restored.close()
