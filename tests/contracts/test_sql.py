"""The SQL store under its contract, and what only it promises: durability settings, migrations, translated errors."""

import asyncio
import json
import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine

from tapewatch.adapters import migrations, sqlite
from tapewatch.adapters.sql import SqlStore
from tapewatch.adapters.sql_alerts import read_alerts
from tapewatch.adapters.sql_database import CoreReading, NotAtOnce
from tapewatch.adapters.sql_tables import bars_1m, metadata
from tapewatch.contracts.samples import NOON_NS, bar_rows, make_alert, make_bars, make_rule, make_watchlist, soon
from tapewatch.contracts.store import OpenStore, StoreContract
from tapewatch.documents import Rule, parse_document
from tapewatch.engine.columns import BAR_COLUMNS, MINUTE_NS
from tapewatch.engine.rules import All, compare
from tapewatch.errors import ConfigError, QuotaReached, Unavailable
from tapewatch.ports import AlertQuery, AuditQuery, Position, Store

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    # People put data where they like; a URL, a driver and Alembic's options read these letters in their own ways.
    directory = tmp_path / "100% of #data? & more"
    directory.mkdir()
    return directory / "tape watch.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqlStore]:
    store = SqlStore(path)
    await store.upgrade()
    yield store
    await store.close()


class TestSqliteStore(StoreContract):
    @pytest.fixture
    def open_store(self, path: Path) -> OpenStore:
        async def open_store() -> Store:
            return SqlStore(path)

        return open_store


class TestSqliteStoreByUrl(StoreContract):
    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        async def open_store() -> Store:
            return SqlStore(f"sqlite:///{tmp_path}/store.db")

        return open_store


async def test_migrations_lead_to_the_tables_of_the_metadata(store: SqlStore, path: Path) -> None:
    engine = create_engine("sqlite://", creator=lambda: sqlite3.connect(path))
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_bars_table_has_the_columns_of_bars() -> None:
    assert tuple(bars_1m.columns.keys()) == BAR_COLUMNS


async def test_upgrade_leaves_logging_alone(path: Path) -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers), logging.getLogger("alembic").level, logging.root.manager.disable)
    known = logging.getLogger("tapewatch.test_upgrade")
    store = SqlStore(path)
    await store.upgrade()
    await store.close()
    assert (root.level, list(root.handlers), logging.getLogger("alembic").level, logging.root.manager.disable) == before
    assert not known.disabled


async def test_stores_of_one_file_may_upgrade_it_at_once(path: Path) -> None:
    async def upgrade(store: SqlStore) -> None:
        # The very first use of a file may be Unavailable to others for a moment, which the port allows.
        while True:
            try:
                return await store.upgrade()
            except Unavailable:
                await asyncio.sleep(0.01)

    stores = [SqlStore(path) for _ in range(4)]
    await soon(asyncio.gather(*(upgrade(store) for store in stores)))
    assert await stores[0].rules() == (0, [], [])
    for store in stores:
        await store.close()


async def test_store_of_a_newer_release_is_refused_in_one_line_and_left_as_it_is(store: SqlStore, path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    with pytest.raises(ConfigError, match=r"9999.*newer release") as caught:
        await store.upgrade()
    assert "\n" not in str(caught.value)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("9999",)]


def _upgrade_to(revision: str, upgrade: Callable[[Config, str], None], config: Config, _: str) -> None:
    upgrade(config, revision)


def make_older_store(path: Path, revision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = create_engine("sqlite://", creator=lambda: sqlite3.connect(path))
    with engine.begin() as connection, monkeypatch.context() as older:
        older.setattr(command, "upgrade", partial(_upgrade_to, revision, command.upgrade))
        migrations.upgrade(connection)
    engine.dispose()


async def test_store_of_before_notes_keeps_its_alerts_and_takes_notes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_older_store(path, "0002", monkeypatch)
    kept = make_alert(1, ages_s={}, severity="info", tags=())
    with closing(sqlite3.connect(path)) as old:
        old.execute(
            "INSERT INTO alert_history VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                *(kept.alert_id, kept.rule_id, kept.rule_version, kept.rule_name, kept.symbol, kept.fired_at_ns),
                *(kept.price, json.dumps(kept.values), kept.session, kept.received_ns),
            ],
        )
        old.commit()
    store = SqlStore(path)
    await store.upgrade()
    assert await store.alerts(AlertQuery()) == [kept]
    (annotated,) = await store.annotate_alerts(kept.symbol, since_ns=0, note="cancelled", reader="alerts:0")
    assert await store.alert(kept.alert_id) == annotated
    assert annotated.note == "cancelled"
    await store.close()


async def test_rules_of_before_rule_text_are_the_same_rules_and_can_be_changed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_older_store(path, "0003", monkeypatch)
    times = {"created_at": "2025-01-02T00:00:00.000000000Z", "updated_at": "2025-01-02T00:00:00.000000000Z"}
    old_rule = {
        "name": "Movers",
        "description": "",
        "conditions": [
            {"metric": "change_pct_5m", "operator": ">", "value": 2.0},
            {"metric": "price", "operator": "!=", "value": 1e15},
        ],
        "cooldown": 60.0,
        "enabled": True,
        "id": "movers",
        "version": 1,
        **times,
    }
    with closing(sqlite3.connect(path)) as old:
        old.execute("INSERT INTO rules VALUES ('movers', 1, ?, 0)", [times["created_at"]])
        old.execute("INSERT INTO rule_versions VALUES ('movers', 1, ?)", [json.dumps(old_rule)])
        old.execute("UPDATE ruleset_number SET number = 1")
        old.commit()
    store = SqlStore(path)
    await store.upgrade()
    text = "change_pct_5m > 2 and price != 1000000000000000"
    expected = parse_document(Rule, {"id": "movers", "name": "Movers", "when": text, "cooldown": 60.0, **times})
    assert await store.rules() == (1, [expected], [])
    assert await store.rule("movers") == await store.rule("movers", 1) == expected
    assert expected.spec().when == All((compare("change_pct_5m", ">", 2.0), compare("price", "!=", 1e15)))
    changed = await store.save_rule(expected.model_copy(update={"version": 2, "name": "Faster"}))
    assert await store.rule_versions("movers") == [changed, expected]
    (entry,) = await store.audit(AuditQuery())
    assert (entry.before, entry.after) == ({"name": "Movers"}, {"name": "Faster"})
    await store.delete_rule("movers")
    await store.close()


async def test_what_was_there_before_owners_is_the_local_user_s_and_can_be_changed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_older_store(path, "0005", monkeypatch)
    kept = make_alert(1)
    rule, watchlist = make_rule("r"), make_watchlist("w")
    new = {"owner", "shared"}
    with closing(sqlite3.connect(path)) as old:
        old.execute(
            "INSERT INTO alert_history VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                *(kept.alert_id, kept.rule_id, kept.rule_version, kept.rule_name, kept.symbol, kept.fired_at_ns),
                *(kept.price, json.dumps(kept.values), kept.session, kept.received_ns, kept.note),
                *(json.dumps(kept.ages_s), kept.severity, json.dumps(kept.tags)),
            ],
        )
        for table, document in (("rule", rule), ("watchlist", watchlist)):
            old.execute(f"INSERT INTO {table}s VALUES (?, 1, ?, 0)", [document.id, document.created_at])  # noqa: S608  # two fixed names
            was = json.dumps(document.model_dump(mode="json", exclude=new))
            old.execute(f"INSERT INTO {table}_versions VALUES (?, 1, ?)", [document.id, was])  # noqa: S608
        old.commit()
    store = SqlStore(path)
    await store.upgrade()
    assert await store.alerts(AlertQuery()) == await store.alerts(AlertQuery(viewer="local")) == [kept]
    assert await store.alerts(AlertQuery(viewer="ann")) == []
    assert (await store.rules()).rules == [rule]
    assert await store.watchlists() == [watchlist]
    assert (rule.owner, rule.shared, kept.owner, kept.shared) == ("local", False, "local", False)
    shared = await store.save_rule(make_rule("r", version=2, shared=True, owner="ann"))
    assert (shared.owner, shared.shared) == ("local", True)
    with pytest.raises(QuotaReached):
        await store.save_watchlist(make_watchlist("w2"), most=1)
    await store.close()


@pytest.mark.parametrize("asked", [{}, {"symbol": "A"}, {"rule_id": "r"}])
async def test_page_of_a_viewer_walks_the_indexes_of_what_they_see(store: SqlStore, asked: dict[str, Any]) -> None:
    query = AlertQuery(viewer="ann", before=(NOON_NS, "a"), **asked)
    async with store._database.read() as connection:
        raw = await connection.get_raw_connection()
        told: list[str] = []
        await raw.driver_connection.set_trace_callback(told.append)  # type: ignore[union-attr]  # it is open
        await connection.run_sync(lambda near: read_alerts(CoreReading(near), query))
        await raw.driver_connection.set_trace_callback(None)  # type: ignore[union-attr]  # it is open
        (statement,) = [text for text in told if "UNION ALL" in text]
        explained = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}")
        plan = [row.detail for row in explained]
    walked = [step for step in plan if "alert_history" in step]
    ending = "".join(f"_{name}" for name in asked)
    assert [step.split("INDEX ")[1].split(" ")[0] for step in walked] == [
        f"ix_alert_history_{kind}{ending}" for kind in ("owned", "shared")
    ]
    assert not [step for step in plan if "TEMP B-TREE" in step]


async def test_readers_of_before_owners_keep_their_positions(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_older_store(path, "0004", monkeypatch)
    with closing(sqlite3.connect(path)) as old:
        old.execute("INSERT INTO reader_positions VALUES ('bars:0', 3, 4)")
        old.commit()
    store = SqlStore(path)
    await store.upgrade()
    saved = await store.take_over("bars:0")
    assert (saved.position, saved.state) == (Position(3, 4), None)
    await store.save_bars(make_bars([("A", NOON_NS)]), reader="bars:0", position=Position(3, 5), owner=saved.owner)
    assert await store.position("bars:0") == Position(3, 5)
    await store.close()


async def test_connections_are_durable_and_strict(store: SqlStore) -> None:
    async with store._database.read() as connection:
        pragmas = [
            (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    assert pragmas == ["wal", 2, 1, 5_000]


async def test_newest_first_queries_walk_an_index(store: SqlStore, path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        for where in ("fired_at_ns < 5", "symbol = 'A'", "rule_id = 'r'", "(fired_at_ns, alert_id) < (5, 'a')"):
            query = f"SELECT * FROM alert_history WHERE {where} ORDER BY fired_at_ns DESC, alert_id DESC LIMIT 5"  # noqa: S608
            plan = " ".join(row[3] for row in connection.execute("EXPLAIN QUERY PLAN " + query))
            assert "USING INDEX ix_alert_history" in plan, where
            assert "TEMP B-TREE" not in plan, where


def modes(folder: Path, pattern: str) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in folder.glob(pattern)}


async def test_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    """Secrets of channels are in it."""
    before = os.umask(0)
    try:
        store = SqlStore(tmp_path / "own.db")
        await store.upgrade()
        found = modes(tmp_path, "own.db*")
        await store.close()
    finally:
        os.umask(before)
    assert found == dict.fromkeys(("own.db", "own.db-wal", "own.db-shm"), 0o600)


async def test_store_that_was_never_upgraded_says_what_to_run(path: Path) -> None:
    store = SqlStore(path)
    for call in (
        store.rules(),
        store.ruleset_number(),
        store.watchlists(),
        store.audit(AuditQuery()),
        store.bars("A"),
        store.save_bars(make_bars([("A", NOON_NS)]), reader="r"),
        store.save_alerts([make_alert(1)], reader="r"),
        store.annotate_alerts("A", since_ns=0, note="n", reader="r"),
        store.save_rule(make_rule("a")),
        store.save_watchlist(make_watchlist("a")),
        store.expire(0),
    ):
        with pytest.raises(ConfigError, match="tapewatch db upgrade"):
            await call
    await store.close()


async def test_file_that_cannot_be_opened_is_a_configuration_error(tmp_path: Path) -> None:
    store = SqlStore(tmp_path / "missing" / "store.db")
    with pytest.raises(ConfigError, match=r"missing.*cannot be opened"):
        await store.upgrade()
    await store.close()


@pytest.fixture
def diary(path: Path) -> Path:
    path.write_bytes(b"this is a diary, not a database. " * 100)
    return path


async def test_file_that_is_no_database_is_a_configuration_error(diary: Path) -> None:
    store = SqlStore(diary)
    with pytest.raises(ConfigError, match="not a database"):
        await store.upgrade()
    await store.close()


@pytest.mark.parametrize(
    "location",
    [":memory:", "sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true", "", "://", "mysql://h/d"],
)
def test_location_that_cannot_be_a_store_is_refused(location: str) -> None:
    with pytest.raises(ConfigError):
        SqlStore(location)


async def test_write_while_another_process_writes_is_unavailable_and_works_later(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_S", 0.05)
    store = SqlStore(path)
    await store.upgrade()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="locked"):
            await store.save_rule(make_rule("a"))
        assert await store.rules() == (0, [], [])
        other.execute("ROLLBACK")
    await store.save_rule(make_rule("a"))
    await store.close()


async def test_failed_effect_does_not_move_the_position(store: SqlStore, path: Path) -> None:
    await store.save_alerts([make_alert(1)], reader="r", position=Position(1, 1))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON reader_positions WHEN NEW.sequence = 2"
            " BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
        connection.commit()
    with pytest.raises(Exception, match="no"):
        await store.save_alerts([make_alert(2)], reader="r", position=Position(1, 2))
    with pytest.raises(Exception, match="no"):
        await store.save_bars(make_bars([("A", NOON_NS)]), reader="r", position=Position(1, 2))
    assert await store.position("r") == Position(1, 1)
    assert await store.alerts(AlertQuery()) == [make_alert(1)]
    assert len(await store.bars("A")) == 0


async def test_cancelled_write_leaves_the_store_usable_and_all_or_nothing(store: SqlStore) -> None:
    for minute, delay_s in enumerate((0.0, 0.001, 0.003, 0.006, 0.01, 0.015, 0.02, 0.03)):
        ts_ns = NOON_NS + minute * MINUTE_NS
        bars = make_bars([(f"S{number}", ts_ns) for number in range(6_000)])
        saving = asyncio.ensure_future(store.save_bars(bars, reader=f"r{minute}", position=Position(1, 1)))
        await asyncio.sleep(delay_s)
        saving.cancel()
        await asyncio.gather(saving, return_exceptions=True)
        # Another write comes after whatever became of the cancelled one.
        await soon(store.save_rule(make_rule(f"after-{minute}")))
        saved = await store.position(f"r{minute}") is not None
        for symbol in ("S0", "S5999"):
            assert len(await store.bars(symbol, start_ns=ts_ns)) == saved
    reading = [asyncio.ensure_future(store.bars("S0")) for _ in range(20)]
    await asyncio.sleep(0)
    for task in reading:
        task.cancel()
    await asyncio.gather(*reading, return_exceptions=True)
    await soon(store.bars("S0"))


async def test_ten_thousand_bars_of_a_minute_arrive_whole(store: SqlStore) -> None:
    for minute in range(2):
        bars = make_bars([(f"S{number}", NOON_NS + minute * MINUTE_NS) for number in reversed(range(10_000))])
        await store.save_bars(bars, reader="bars:0", position=Position(1, minute))
    for number in (0, 1_999, 2_000, 9_999):
        expected = make_bars([(f"S{number}", NOON_NS), (f"S{number}", NOON_NS + MINUTE_NS)])
        assert bar_rows(await store.bars(f"S{number}")) == bar_rows(expected)


async def test_close_lets_running_calls_end_and_refuses_later_ones(store: SqlStore) -> None:
    saving = [asyncio.ensure_future(store.save_rule(make_rule(f"r{n}"))) for n in range(10)]
    await asyncio.sleep(0)
    await soon(store.close())
    assert all(task.done() and task.exception() is None for task in saving)
    with pytest.raises(Unavailable, match="closed"):
        await store.rules()
    with pytest.raises(Unavailable, match="closed"):
        await store.save_rule(make_rule("z"))


@pytest.mark.parametrize("bound", ["AT_ONCE_STEPS", "AT_ONCE_S"])
async def test_read_that_takes_long_is_begun_again_beside_the_loop(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    await store.save_alerts([make_alert(n) for n in range(500)], reader="alerts:0")
    expected = await store.alerts(AlertQuery(limit=500))
    monkeypatch.setattr(sqlite, bound, -1)
    with pytest.raises(NotAtOnce):
        store._database.read_at_once(partial(read_alerts, query=AlertQuery(limit=500)))
    assert await store.alerts(AlertQuery(limit=500)) == expected
    monkeypatch.undo()
    assert store._database.read_at_once(partial(read_alerts, query=AlertQuery(limit=500))) == expected


async def test_read_at_once_sees_each_commit_and_changes_nothing(store: SqlStore) -> None:
    for number in range(3):
        await store.save_alerts([make_alert(number)], reader="alerts:0")
        assert len(await store.alerts(AlertQuery())) == number + 1
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        store._database.read_at_once(lambda near: near._driver.execute("DELETE FROM alert_history"))  # type: ignore[attr-defined]  # SQLite's own
    assert len(await store.alerts(AlertQuery())) == 3
