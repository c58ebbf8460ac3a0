"""What a store in PostgreSQL tells its caller when the server is away, stops in the middle, or is not as it must be."""

import asyncio
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from postgres_server import READER, PostgresProgram

from tapewatch.adapters import postgres as adapter
from tapewatch.adapters.breaker import LONGEST_WAIT_S
from tapewatch.adapters.sql import SqlStore
from tapewatch.contracts.samples import NOON_NS, make_alert, make_bars, make_rule, soon
from tapewatch.engine.columns import MINUTE_NS
from tapewatch.errors import ConfigError, Unavailable
from tapewatch.ports import AlertQuery, Position

pytestmark = pytest.mark.anyio


async def upgrade(url: str) -> None:
    store = SqlStore(url)
    await store.upgrade()
    await store.close()


@pytest.fixture
async def store(server: PostgresProgram) -> AsyncIterator[SqlStore]:
    store = SqlStore(server.url_of(await server.new_database()))
    await store.upgrade()
    yield store
    await store.close()


async def refused(store: SqlStore, match: str) -> str:
    """The text with which it refuses to upgrade, which is one line."""
    with pytest.raises(ConfigError, match=match) as caught:
        await store.upgrade()
    await store.close()
    assert "\n" not in str(caught.value)
    return "".join(traceback.format_exception(caught.value))


# -- what the operator must mend --------------------------------------------------------------------------------------


async def test_wrong_password_is_a_configuration_error_that_shows_no_password(
    postgres: PostgresProgram, database: str
) -> None:
    wrong = "wr0ng-s3cret"
    text = await refused(SqlStore(postgres.url_of(database, password=wrong)), r"refuses the user tapewatch.*password")
    assert wrong not in text
    assert postgres.password not in text


async def test_unknown_database_and_missing_right_are_configuration_errors(
    postgres: PostgresProgram, database: str
) -> None:
    await refused(SqlStore(postgres.url_of("nowhere")), r"no database nowhere.*db upgrade")
    reader = SqlStore(postgres.url_of(database, user=READER))
    with pytest.raises(ConfigError, match=rf"user {READER}.*lacks a right"):
        await reader.rules()
    await reader.close()


async def test_store_that_was_never_upgraded_says_what_to_run(postgres: PostgresProgram, bare_database: str) -> None:
    store = SqlStore(postgres.url_of(bare_database))
    for call in (
        store.rules(),
        store.bars("A"),
        store.save_bars(make_bars([("A", NOON_NS)]), reader="r"),
        store.save_alerts([make_alert(1)], reader="r"),
        store.take_over("r"),
        store.settle("partitions", "8"),
        store.expire(0),
    ):
        with pytest.raises(ConfigError, match="tapewatch db upgrade"):
            await call
    await store.close()


async def test_store_of_a_newer_release_is_refused_and_left_as_it_is(postgres: PostgresProgram, database: str) -> None:
    await postgres.administer("UPDATE alembic_version SET version_num = '9999'", database=database)
    await refused(SqlStore(postgres.url_of(database)), r"9999.*newer release")
    rows = await postgres.administer("SELECT version_num FROM alembic_version", database=database)
    assert [row[0] for row in rows] == ["9999"]


async def test_server_that_is_too_old_is_refused(
    postgres: PostgresProgram, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "OLDEST_POSTGRESQL", 99)
    await refused(SqlStore(postgres.url_of(database)), r"is PostgreSQL \d+; 99 or newer is needed")


async def test_postgresql_without_timescaledb_is_a_store_only_if_that_was_asked_for() -> None:
    server = PostgresProgram(timescaledb=False)
    try:
        name = await server.new_database()
        await refused(SqlStore(server.url_of(name)), r"without TimescaleDB.*timescaledb=off")
        left = await server.administer("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", database=name)
        assert left == []
        store = SqlStore(server.url_of(name) + "?timescaledb=off")
        await store.upgrade()
        await store.save_alerts([make_alert(1)], reader="alerts:0")
        assert await store.expire(NOON_NS) == 0
        assert await store.alerts(AlertQuery()) == [make_alert(1)]
        await store.close()
    finally:
        server.remove()


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("postgresql://u@h", "names no database"),
        ("postgresql://u@h/d?timescaledb=maybe", "on or off"),
        ("postgresql://u@h/d?color=red&size=3", "not known: color, size"),
        ("mysql://u:s3cret@h/d", "mysql.*postgresql://"),
    ],
)
def test_address_that_cannot_be_a_store_is_refused(url: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        SqlStore(url)
    assert "s3cret" not in str(caught.value)


async def test_certificate_is_checked_where_the_address_says_so(tmp_path: Path) -> None:
    issuer, other = trustme.CA(), trustme.CA()
    identity = issuer.issue_cert("127.0.0.1")
    for name, authority in (("issuer", issuer), ("other", other)):
        authority.cert_pem.write_to_path(str(tmp_path / name))
    server = PostgresProgram()
    try:
        url = server.url_of(await server.new_database()) + "?sslmode=verify-full&sslrootcert="
        server.stop()
        server.speak_tls(identity.cert_chain_pems[0].bytes(), identity.private_key_pem.bytes())
        server.start()
        store = SqlStore(f"{url}{tmp_path / 'issuer'}")
        await store.upgrade()
        async with store._database.read() as connection:
            tls = await connection.exec_driver_sql("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
            assert tls.scalar_one() is True
        await store.close()
        await refused(SqlStore(f"{url}{tmp_path / 'other'}"), r"certificate.*not trusted")
        await refused(SqlStore(f"{url}{tmp_path / 'missing'}"), r"certificate or key.*not there")
        await refused(SqlStore(server.url_of("x") + "?sslmode=maybe"), r"makes no sense.*sslmode")
    finally:
        server.remove()


# -- what passes ------------------------------------------------------------------------------------------------------


async def test_stopped_server_is_unavailable_and_served_again_after_a_start(
    store: SqlStore, server: PostgresProgram
) -> None:
    await store.save_rule(make_rule("a"))
    server.stop()
    for call in (store.rules(), store.save_rule(make_rule("b")), store.take_over("r"), store.upgrade()):
        with pytest.raises(Unavailable):
            await soon(call)
    with pytest.raises(Unavailable, match="cannot be reached"):
        await store.rules()
    server.start()
    await asyncio.sleep(LONGEST_WAIT_S)  # of the circuit breaker
    assert await store.rule("a") == make_rule("a")
    await store.save_rule(make_rule("b"))


async def test_restart_while_nobody_asks_goes_unnoticed(store: SqlStore, server: PostgresProgram) -> None:
    await asyncio.gather(*(store.rules() for _ in range(20)))
    await asyncio.to_thread(server.stop, "immediate")
    await asyncio.to_thread(server.start)
    await asyncio.gather(*(store.rules() for _ in range(20)))
    await store.save_rule(make_rule("a"))


async def test_server_killed_again_and_again_loses_nothing_that_was_confirmed(
    store: SqlStore, server: PostgresProgram
) -> None:
    confirmed, enough = asyncio.Event(), asyncio.Event()
    failures: list[Unavailable] = []

    async def write_until_enough() -> int:
        minute = 0
        while not enough.is_set():
            rows = [(f"S{n}", NOON_NS + minute * MINUTE_NS) for n in range(300)]
            try:
                await store.save_bars(make_bars(rows), reader="bars:0", position=Position(1, minute))
                await store.save_alerts([make_alert(minute)], reader="alerts:0", position=Position(1, minute))
            except Unavailable as error:
                failures.append(error)
                await asyncio.sleep(0.01)
            else:
                minute += 1
                confirmed.set()
        return minute

    writing = asyncio.ensure_future(write_until_enough())
    for _ in range(3):
        confirmed.clear()
        await soon(confirmed.wait())
        before = await store.position("alerts:0")
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        after = await soon(until_it_answers(store))
        assert before is not None
        assert after is not None
        assert after >= before
    enough.set()
    written = await soon(writing)
    assert failures
    for symbol in ("S0", "S299"):
        assert len(await store.bars(symbol)) == written
    assert len(await store.alerts(AlertQuery(limit=written + 1))) == written


async def until_it_answers(store: SqlStore) -> Position | None:
    while True:
        try:
            return await store.position("alerts:0")
        except Unavailable:
            await asyncio.sleep(0.01)


async def until_saved(store: SqlStore) -> None:
    while await store.position("alerts:0") is None:  # noqa: ASYNC110 - the server does not tell
        await asyncio.sleep(0.01)


@asynccontextmanager
async def lost_confirmations(port: int) -> AsyncIterator[int]:
    """A port behind which the server is, until somebody commits: it commits, and the confirmation never arrives."""
    tasks: set[asyncio.Task[None]] = set()

    async def forward(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *others: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(65_536):
            if others and b"COMMIT" in data:
                others[0].close()
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", port)
        for pair in ((reader, to_server, writer), (from_server, writer)):
            task = asyncio.ensure_future(forward(*pair))
            tasks.add(task)

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listener:
        yield listener.sockets[0].getsockname()[1]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_write_whose_confirmation_was_lost_is_unavailable_and_harmless_to_repeat(
    postgres: PostgresProgram, database: str
) -> None:
    direct = SqlStore(postgres.url_of(database))
    async with lost_confirmations(postgres.port) as port:
        store = SqlStore(postgres.url_of(database).replace(f":{postgres.port}/", f":{port}/"))
        bars = make_bars([("A", NOON_NS)])
        with pytest.raises(Unavailable):
            await soon(store.save_bars(bars, reader="bars:0", position=Position(1, 1)))
        with pytest.raises(Unavailable):
            await soon(store.save_alerts([make_alert(1)], reader="alerts:0", position=Position(1, 1)))
        await soon(store.close())
    await soon(until_saved(direct))
    await direct.save_bars(bars, reader="bars:0", position=Position(1, 1))
    assert await direct.save_alerts([make_alert(1)], reader="alerts:0", position=Position(1, 1)) == []
    assert len(await direct.bars("A")) == len(await direct.alerts(AlertQuery())) == 1
    await direct.close()


async def test_server_that_falls_silent_is_unavailable_in_bounded_time(
    server: PostgresProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = await server.new_database()
    await upgrade(server.url_of(name))
    monkeypatch.setattr(adapter, "ANSWER_S", 0.3)
    monkeypatch.setattr(adapter, "CONNECT_S", 0.3)
    hasty = SqlStore(server.url_of(name))
    await hasty.rules()
    with server.frozen():
        began_s = time.monotonic()
        for call in (
            hasty.rules(),
            hasty.save_bars(make_bars([("A", NOON_NS)]), reader="r", position=Position(1, 1)),
            hasty.take_over("r"),
        ):
            with pytest.raises(Unavailable):
                await soon(call)
        assert time.monotonic() - began_s < 10
    assert (await hasty.rules()).number == 0
    await hasty.close()


async def test_too_many_connections_and_read_only_servers_are_unavailable(
    postgres: PostgresProgram, database: str
) -> None:
    store = SqlStore(postgres.url_of(database))
    for setting, match in (("CONNECTION LIMIT 0", "too many"), ("SET default_transaction_read_only = on", "read-only")):
        await postgres.administer(f"ALTER DATABASE {database} {setting}")
        with pytest.raises(Unavailable, match=match):
            await store.save_rule(make_rule("a"))
        await postgres.administer(f"ALTER DATABASE {database} CONNECTION LIMIT -1")
    await store.close()


async def test_lock_that_is_held_for_long_is_unavailable(
    postgres: PostgresProgram, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "LOCK_S", 0.1)
    store = SqlStore(postgres.url_of(database))
    async with store._database.write() as connection:
        await connection.exec_driver_sql("SELECT number FROM ruleset_number FOR UPDATE")
        with pytest.raises(Unavailable, match="another writer"):
            await store.save_rule(make_rule("a"))
    await store.save_rule(make_rule("a"))
    await store.close()


async def test_owner_that_was_stopped_in_the_middle_of_a_write_does_not_hold_its_reader(
    postgres: PostgresProgram, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "SILENT_CLIENT_S", 0.2)
    store = SqlStore(postgres.url_of(database))
    owner = (await store.take_over("bars:0")).owner

    async def stop_in_the_middle() -> None:
        async with store._database.write() as connection:
            await connection.exec_driver_sql("UPDATE reader_positions SET epoch = 1, sequence = 1")
            assert (await soon(store.take_over("bars:0"))).owner > owner
            await connection.exec_driver_sql("UPDATE reader_positions SET epoch = 1, sequence = 2")

    with pytest.raises(store._database.failures) as caught:
        await stop_in_the_middle()
    assert isinstance(store._database.translated(caught.value), Unavailable)
    assert await store.position("bars:0") is None
    await store.close()


async def test_writers_that_wait_for_each_other_are_parted_and_one_of_them_is_unavailable(
    postgres: PostgresProgram, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqlStore(postgres.url_of(database))
    for reader in ("a", "b"):
        await store.take_over(reader)
    both = asyncio.Barrier(2)

    async def cross(*readers: str) -> None:
        async with store._database.write() as connection:
            for reader in readers:
                await connection.exec_driver_sql(f"UPDATE reader_positions SET owner = 9 WHERE reader = '{reader}'")  # noqa: S608 - ours
                if reader == readers[0]:
                    await both.wait()

    outcomes = await soon(asyncio.gather(cross("a", "b"), cross("b", "a"), return_exceptions=True))
    (failed,) = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    assert isinstance(store._database.translated(failed), Unavailable)
    await store.close()
