"""TimescaleDB: minute bars and the history of alerts in chunks of time, which are dropped whole.

`make_hypertables` may run at each upgrade: it does what is missing, also after the operator changed the licence. What
only the community licence allows (policies, compression, aggregates) is used where it is allowed; all else works with
the Apache one.

`alert_history` has the key (alert_id, fired_at_ns), for a unique key of a hypertable holds its time. That is no weaker
than the id alone: the id is a digest of a text that the time is part of (`engine.rules.alert_id`), so that equal ids
have equal times.
"""

import logging
from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection

from tapewatch.adapters.postgres_errors import place
from tapewatch.adapters.sql_statements import int64
from tapewatch.documents import DAY_S
from tapewatch.engine.columns import SECOND_NS
from tapewatch.errors import ConfigError
from tapewatch.ports import ALERT_DAYS, BAR_DAYS

OLDEST_TIMESCALEDB = (2, 11)
"""The first whose compressed chunks take a late correction."""
DAY_NS = DAY_S * SECOND_NS
CHUNKS = {"bars_1m": ("ts_ns", DAY_NS), "alert_history": ("fired_at_ns", 7 * DAY_NS)}
"""Some ten million bars a chunk where each symbol trades in each minute, and some fifty chunks of alerts a year."""
NOT_ALLOWED = "0A000"

log = logging.getLogger(__name__)

NOW = (
    """
    CREATE OR REPLACE FUNCTION tapewatch_now_ns() RETURNS bigint LANGUAGE sql STABLE AS
    $$ SELECT (extract(epoch FROM now()) * 1000000000)::bigint $$
    """,
    "SELECT set_integer_now_func('bars_1m', 'tapewatch_now_ns', replace_if_exists => true)",
    "SELECT set_integer_now_func('alert_history', 'tapewatch_now_ns', replace_if_exists => true)",
)
DROP = (
    """
    CREATE OR REPLACE FUNCTION tapewatch_drop_chunks(kept regclass, older_than_ns bigint) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path FROM CURRENT AS
    $$ SELECT drop_chunks(kept, older_than => older_than_ns)
       WHERE kept IN ('bars_1m'::regclass, 'alert_history'::regclass) $$
    """,
    "REVOKE ALL ON FUNCTION tapewatch_drop_chunks FROM PUBLIC",
)
"""Chunks are dropped by their owner alone. A user who may only read and write has the function's leave, see
``deploy/postgres/roles.sql``.
"""
COMPRESS_BARS = """
    ALTER TABLE bars_1m
    SET (timescaledb.compress, timescaledb.compress_segmentby = 'symbol', timescaledb.compress_orderby = 'ts_ns')
"""
COMMUNITY = {
    "retention of bars": [
        f"SELECT add_retention_policy('bars_1m', BIGINT '{BAR_DAYS * DAY_NS}', if_not_exists => true)",
    ],
    "retention of alerts": [
        f"SELECT add_retention_policy('alert_history', BIGINT '{ALERT_DAYS * DAY_NS}', if_not_exists => true)",
    ],
    "compression of bars": [
        COMPRESS_BARS,
        f"SELECT add_compression_policy('bars_1m', BIGINT '{7 * DAY_NS}', if_not_exists => true)",
    ],
    "hourly bars": [
        """
        CREATE MATERIALIZED VIEW IF NOT EXISTS bars_1h WITH (timescaledb.continuous) AS
        SELECT symbol, time_bucket(BIGINT '3600000000000', ts_ns) AS hour_ns, first(open, ts_ns) AS open,
            max(high) AS high, min(low) AS low, last(close, ts_ns) AS close, sum(volume) AS volume,
            sum(trade_count) AS trade_count
        FROM bars_1m WHERE close IS NOT NULL GROUP BY 1, 2 WITH NO DATA
        """,
        """
        SELECT add_continuous_aggregate_policy('bars_1h', start_offset => BIGINT '604800000000000',
            end_offset => BIGINT '3600000000000', schedule_interval => INTERVAL '30 minutes', if_not_exists => true)
        """,
    ],
}


async def are_ours(connection: AsyncConnection) -> bool:
    """The user of the connection owns the tables, and may change them."""
    owned = sa.text("SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = to_regclass('bars_1m')")
    return bool((await connection.execute(owned)).scalar_one())


async def make_hypertables(connection: AsyncConnection, url: URL) -> None:
    await _make_extension(connection, url)
    for table, (column, chunk_ns) in CHUNKS.items():
        await connection.execute(
            sa.text(
                "SELECT create_hypertable(CAST(:table AS regclass), CAST(:column AS name),"
                " chunk_time_interval => CAST(:chunk_ns AS bigint), create_default_indexes => false,"
                " if_not_exists => true, migrate_data => true)"
            ),
            {"table": table, "column": column, "chunk_ns": chunk_ns},
        )
    for statement in DROP:
        await connection.exec_driver_sql(statement)
    licence = (await connection.execute(sa.text("SELECT current_setting('timescaledb.license', true)"))).scalar_one()
    if licence == "timescale":
        await use_community_features(connection)


async def use_community_features(connection: AsyncConnection) -> list[str]:
    """Those that the server allows; of a feature there is all or nothing."""
    for statement in NOW:
        await connection.exec_driver_sql(statement)
    allowed: list[str] = []
    done = {COMPRESS_BARS} if await _compresses(connection) else set()  # compressed chunks forbid to set it again
    for feature, statements in COMMUNITY.items():
        try:
            async with connection.begin_nested():
                for statement in statements:
                    if statement not in done:
                        await connection.exec_driver_sql(statement)
        except exc.DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != NOT_ALLOWED:
                raise
            log.info("the licence of TimescaleDB does not allow %s", feature)
        else:
            allowed.append(feature)
    return allowed


async def drop_chunks(connection: AsyncConnection, oldest_ns: Mapping[str, int]) -> bool:
    """False where the tables have no chunks. What is older but shares a chunk with what is not goes with that."""
    extension = await connection.execute(sa.text("SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'"))
    if extension.first() is None:
        return False
    known = sa.text(
        "SELECT count(*) FROM timescaledb_information.hypertables"
        " WHERE hypertable_schema = current_schema() AND hypertable_name = ANY(CAST(:tables AS text[]))"
    )
    if (await connection.execute(known, {"tables": list(oldest_ns)})).scalar_one() != len(oldest_ns):
        return False
    for table, older_than_ns in oldest_ns.items():
        await connection.execute(
            sa.text("SELECT tapewatch_drop_chunks(CAST(:table AS regclass), CAST(:older_than_ns AS bigint))"),
            {"table": table, "older_than_ns": int64(older_than_ns)},
        )
    return True


async def _make_extension(connection: AsyncConnection, url: URL) -> None:
    version = sa.text("SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'")
    found = (await connection.execute(version)).scalar_one_or_none()
    if found is None:
        available = sa.text("SELECT 1 FROM pg_available_extensions WHERE name = 'timescaledb'")
        if (await connection.execute(available)).first() is None or not await _is_preloaded(connection):
            raise ConfigError(
                f"the store {place(url)} is PostgreSQL without TimescaleDB: install it and name it in"
                " shared_preload_libraries, or add ?timescaledb=off to the store's address"
            )
        await connection.execute(sa.text("CREATE EXTENSION IF NOT EXISTS timescaledb"))
        found = (await connection.execute(version)).scalar_one()
    if tuple(map(int, found.split("-")[0].split(".")[:2])) < OLDEST_TIMESCALEDB:
        oldest = ".".join(map(str, OLDEST_TIMESCALEDB))
        raise ConfigError(f"the store {place(url)} has TimescaleDB {found}; {oldest} or newer is needed")


async def _is_preloaded(connection: AsyncConnection) -> bool:
    # A server that lacks the library ends the session which asks for the extension. Its settings are there before it.
    setting = sa.text("SELECT 1 FROM pg_settings WHERE name LIKE 'timescaledb%' LIMIT 1")
    return (await connection.execute(setting)).first() is not None


async def _compresses(connection: AsyncConnection) -> bool:
    enabled = sa.text(
        "SELECT compression_enabled FROM timescaledb_information.hypertables"
        " WHERE hypertable_schema = current_schema() AND hypertable_name = 'bars_1m'"
    )
    return bool((await connection.execute(enabled)).scalar_one())
