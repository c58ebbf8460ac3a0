"""The outcome of a COMMIT that the client did not hear of, with a real server."""

import asyncio
from collections.abc import Iterator

import asyncpg
import pytest
from fault_frames import PostgresFrames
from fault_proxy import Proxy, Then
from postgres_server import PostgresProgram

PATIENCE_S = 10.0


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresProgram]:
    server = PostgresProgram(timescaledb=False)
    yield server
    server.remove()


@pytest.fixture
def between(server: PostgresProgram) -> Iterator[Proxy]:
    with Proxy(("127.0.0.1", server.port), frames=PostgresFrames) as proxy:
        yield proxy


async def commit_through(proxy: Proxy, server: PostgresProgram) -> int:
    """Insert a row in a transaction whose COMMIT must fail for the client; how many rows there are then."""
    database = await server.new_database()
    direct = server.url_of(database)
    through = await asyncpg.connect(direct.replace(f":{server.port}/", f":{proxy.port}/"))
    await through.execute("CREATE TABLE t (n int)")
    await through.execute("INSERT INTO t VALUES (1)")
    transaction = through.transaction()
    await transaction.start()
    await through.executemany("INSERT INTO t VALUES ($1)", [(2,), (3,)])
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await asyncio.wait_for(transaction.commit(), timeout=1.0)
    through.terminate()
    watching = await asyncpg.connect(direct)
    try:
        rows = await watching.fetchval("SELECT count(*) FROM t")
    finally:
        await watching.close()
    return int(rows)


@pytest.mark.anyio
@pytest.mark.parametrize("then", ["cut", "silence"])
async def test_lost_reply_of_a_commit_leaves_it_committed(between: Proxy, server: PostgresProgram, then: Then) -> None:
    loss = between.lose_reply("COMMIT", then=then)
    assert await commit_through(between, server) == 3
    assert loss.wait(PATIENCE_S).name == "COMMIT"


@pytest.mark.anyio
async def test_lost_commit_is_rolled_back(between: Proxy, server: PostgresProgram) -> None:
    loss = between.lose_request("COMMIT")
    assert await commit_through(between, server) == 1
    assert loss.wait(PATIENCE_S).words[0].startswith(b"COMMIT")
