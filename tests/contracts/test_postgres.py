"""The SQL store in TimescaleDB under its contract, and what only it promises: chunks, licences, many writers."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from postgres_server import OWNER, PostgresProgram
from sqlalchemy import Connection

from tapewatch.adapters import postgres_timescale
from tapewatch.adapters.sql import SqlStore
from tapewatch.adapters.sql_tables import metadata
from tapewatch.contracts.samples import NOON_NS, bar_rows, make_alert, make_bars, make_rule, soon
from tapewatch.contracts.store import OpenStore, StoreContract
from tapewatch.documents import DAY_S
from tapewatch.engine.columns import MINUTE_NS, SECOND_NS
from tapewatch.engine.rules import All, RuleSpec, alert_id, compare
from tapewatch.errors import LeaseLost
from tapewatch.ports import BAR_DAYS, AlertQuery, Position, Store

pytestmark = pytest.mark.anyio
DAY_NS = DAY_S * SECOND_NS


class TestTimescaleStore(StoreContract):
    """As the user who may read and write rows and nothing else: the owner has upgraded it."""

    @pytest.fixture
    def open_store(self, postgres: PostgresProgram, database: str) -> OpenStore:
        async def open_store() -> Store:
            return SqlStore(postgres.app_url_of(database))

        return open_store


class TestPostgresStore(StoreContract):
    """The same tables without chunks."""

    @pytest.fixture
    def open_store(self, postgres: PostgresProgram, bare_database: str) -> OpenStore:
        async def open_store() -> Store:
            return SqlStore(postgres.url_of(bare_database) + "?timescaledb=off")

        return open_store


@pytest.fixture
async def store(postgres: PostgresProgram, database: str) -> AsyncIterator[SqlStore]:
    store = SqlStore(postgres.url_of(database))
    yield store
    await store.close()


@pytest.fixture
async def other(postgres: PostgresProgram, database: str) -> AsyncIterator[SqlStore]:
    """Another process's."""
    other = SqlStore(postgres.url_of(database))
    yield other
    await other.close()


async def test_migrations_lead_to_the_tables_of_the_metadata(store: SqlStore) -> None:
    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    async with store._database.read() as connection:
        assert await connection.run_sync(differences) == []


async def test_all_texts_sort_by_their_bytes_and_history_is_in_chunks(postgres: PostgresProgram, database: str) -> None:
    collations = await postgres.administer(
        "SELECT DISTINCT collation_name FROM information_schema.columns"
        " WHERE table_schema = 'public' AND data_type = 'text'",
        database=database,
    )
    assert [row[0] for row in collations] == ["C"]
    chunked = await postgres.administer(
        "SELECT hypertable_name, column_name, integer_interval FROM timescaledb_information.dimensions ORDER BY 1",
        database=database,
    )
    assert [tuple(row) for row in chunked] == [
        ("alert_history", "fired_at_ns", 7 * DAY_NS),
        ("bars_1m", "ts_ns", DAY_NS),
    ]


def test_id_of_an_alert_is_of_its_time_so_that_both_are_as_unique_as_it_is() -> None:
    rule = RuleSpec(id="r", version=1, name="r", when=All((compare("price", ">", 1.0),)))
    ids = {alert_id(rule, "A", NOON_NS + n) for n in range(1_000)}
    assert len(ids) == 1_000
    assert alert_id(rule, "A", NOON_NS) in ids


async def test_stores_may_upgrade_one_database_at_once(postgres: PostgresProgram, bare_database: str) -> None:
    stores = [SqlStore(postgres.url_of(bare_database)) for _ in range(4)]
    await soon(asyncio.gather(*(store.upgrade() for store in stores)))
    assert await stores[0].rules() == (0, [], [])
    for store in stores:
        await store.close()


async def test_tables_that_were_plain_get_their_chunks_later_and_keep_their_rows(
    postgres: PostgresProgram, bare_database: str
) -> None:
    url = postgres.url_of(bare_database)
    plain = SqlStore(url + "?timescaledb=off")
    await plain.upgrade()
    bars = make_bars([("A", NOON_NS + n * DAY_NS) for n in range(5)])
    await plain.save_bars(bars, reader="bars:0")
    await plain.save_alerts([make_alert(1)], reader="alerts:0")
    await plain.close()
    store = SqlStore(url)
    await store.upgrade()
    assert bar_rows(await store.bars("A")) == bar_rows(bars)
    assert await store.alerts(AlertQuery()) == [make_alert(1)]
    chunks = await postgres.administer("SELECT show_chunks('bars_1m')", database=bare_database)
    assert len(chunks) == 5
    await store.close()


async def test_old_chunks_are_dropped_whole(store: SqlStore, postgres: PostgresProgram, database: str) -> None:
    days = [NOON_NS + day * DAY_NS for day in range(10)]
    await store.save_bars(make_bars([("A", ts_ns) for ts_ns in days]), reader="bars:0")
    await store.expire(0, tape_ns=days[4] + BAR_DAYS * DAY_NS)
    assert (await store.bars("A")).ts_ns.tolist() == days[4:]
    assert len(await postgres.administer("SELECT show_chunks('bars_1m')", database=database)) == 6


async def test_features_of_the_other_licence_are_left_out_one_by_one(
    store: SqlStore, postgres: PostgresProgram, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (rights,) = await postgres.administer(f"SELECT rolsuper, rolcreatedb FROM pg_roles WHERE rolname = '{OWNER}'")  # noqa: S608 - ours
    assert tuple(rights) == (False, False)
    (licence,) = await postgres.administer("SHOW timescaledb.license", database=database)
    assert licence[0] == "apache"
    monkeypatch.setitem(postgres_timescale.COMMUNITY, "what everybody has", ["SELECT show_chunks('bars_1m')"])
    async with store._database.write() as connection:
        assert await postgres_timescale.use_community_features(connection) == ["what everybody has"]
    await store.save_bars(make_bars([("A", NOON_NS)]), reader="bars:0")
    assert len(await store.bars("A")) == 1


async def test_writers_of_many_processes_at_once_all_succeed(store: SqlStore, other: SqlStore) -> None:
    async def write(which: SqlStore, name: str) -> None:
        owner = (await which.take_over(f"bars:{name}")).owner
        for minute in range(5):
            rows = [(f"{name}{n}", NOON_NS + minute * MINUTE_NS) for n in range(200)]
            await which.save_bars(make_bars(rows), reader=f"bars:{name}", position=Position(1, minute), owner=owner)
            await which.save_alerts([make_alert(n) for n in range(minute * 20)], reader=f"alerts:{name}")
            await which.save_rule(make_rule(f"{name}-{minute}"))

    await soon(
        asyncio.gather(
            *(write(which, name) for which in (store, other) for name in (f"x{id(which)}", "y", "z"))
            if False
            else (write(store, "a"), write(store, "b"), write(other, "c"), write(other, "d"))
        )
    )
    assert await store.ruleset_number() == 20
    assert len((await store.rules()).rules) == 20
    assert len(await store.alerts(AlertQuery())) == 80
    for name in "abcd":
        assert len(await other.bars(f"{name}199")) == 5


async def test_who_takes_over_waits_for_the_write_under_way_and_finds_its_effect(
    store: SqlStore, other: SqlStore
) -> None:
    owner = (await store.take_over("bars:0")).owner
    bars = make_bars([(f"S{n}", NOON_NS) for n in range(5_000)])
    for minute in range(5):
        position = Position(1, minute)
        saving = asyncio.ensure_future(store.save_bars(bars, reader="bars:0", position=position, owner=owner))
        await asyncio.sleep(0)
        found = await soon(other.take_over("bars:0"))
        (outcome,) = await asyncio.gather(saving, return_exceptions=True)
        assert isinstance(outcome, LeaseLost) if found.position != position else outcome is None
        owner = found.owner


async def test_rows_that_one_process_holds_do_not_stop_others(store: SqlStore) -> None:
    async with store._database.write() as connection:
        await connection.exec_driver_sql("INSERT INTO reader_positions (reader, owner) VALUES ('bars:0', 1)")
        await soon(store.take_over("bars:1"))
        await soon(store.save_bars(make_bars([("A", NOON_NS)]), reader="bars:1", position=Position(1, 1)))
        await soon(store.save_rule(make_rule("a")))
        await soon(store.upgrade())


async def test_what_is_confirmed_is_on_disk_although_the_server_would_confirm_early(
    postgres: PostgresProgram, database: str
) -> None:
    await postgres.administer(f"ALTER DATABASE {database} SET synchronous_commit = off")
    store = SqlStore(postgres.url_of(database))
    async with store._database.write() as connection:
        assert (await connection.exec_driver_sql("SHOW synchronous_commit")).scalar_one() == "on"
    await store.close()


async def test_newest_first_queries_walk_an_index(store: SqlStore) -> None:
    alerts = [make_alert(n, symbol=f"S{n % 50}", rule_id=f"r{n % 50}") for n in range(3_000)]
    await store.save_alerts(alerts, reader="a")
    for where in (f"fired_at_ns < {alerts[9].fired_at_ns}", "symbol = 'S1'", "rule_id = 'r1'", "alert_id = 'a'"):
        query = f"SELECT * FROM alert_history WHERE {where} ORDER BY fired_at_ns DESC, alert_id DESC LIMIT 5"  # noqa: S608 - ours
        async with store._database.read() as connection:
            await connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            plan = (await connection.exec_driver_sql(f"EXPLAIN {query}")).scalars().all()
        assert any("Index Scan" in row for row in plan), where
