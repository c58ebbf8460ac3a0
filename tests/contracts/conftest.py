"""One PostgreSQL server with TimescaleDB for all tests of the store, and a new database for each; a Redis a file."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from postgres_server import PostgresProgram
from servers import RedisProgram

from tapewatch.adapters.sql import SqlStore


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProgram]:
    """A Redis server for the tests of a file."""
    program = RedisProgram(tmp_path_factory.mktemp("redis"))
    program.start()
    yield program
    program.kill()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresProgram]:
    server = PostgresProgram()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def upgraded(postgres: PostgresProgram) -> str:
    """The name of a database with a store in it, to be copied."""

    async def make() -> str:
        name = await postgres.new_database()
        store = SqlStore(postgres.url_of(name))
        await store.upgrade()
        await store.close()
        return name

    return asyncio.run(make())


@pytest.fixture
async def database(postgres: PostgresProgram, upgraded: str) -> AsyncIterator[str]:
    """The name of a new one with a store in it."""
    name = await postgres.new_database(template=upgraded)
    yield name
    await postgres.drop_database(name)


@pytest.fixture
async def bare_database(postgres: PostgresProgram) -> AsyncIterator[str]:
    """The name of a new one with nothing in it."""
    name = await postgres.new_database()
    yield name
    await postgres.drop_database(name)


@pytest.fixture(scope="session")
def second_postgres() -> Iterator[PostgresProgram]:
    server = PostgresProgram()
    yield server
    server.remove()


@pytest.fixture
def server(second_postgres: PostgresProgram) -> Iterator[PostgresProgram]:
    """One that may be stopped."""
    yield second_postgres
    if not second_postgres.runs():
        second_postgres.start()
