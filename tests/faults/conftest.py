"""What the fault runs share: a database server of TimescaleDB, and one tape."""

import asyncio
from collections.abc import Iterator

import pytest
from fault_tapes import Tape, write_tape
from postgres_server import PostgresProgram


@pytest.fixture(scope="module")
def timescale() -> Iterator[PostgresProgram]:
    server = PostgresProgram()
    yield server
    server.remove()


@pytest.fixture
def database(timescale: PostgresProgram) -> str:
    """The URL of an empty one."""
    if not timescale.runs():
        timescale.start()
    return timescale.url_of(asyncio.run(timescale.new_database()))


@pytest.fixture(scope="session")
def tape(tmp_path_factory: pytest.TempPathFactory) -> Tape:
    """A minute, in which twenty pass."""
    return write_tape(tmp_path_factory.mktemp("tape"), symbols=120, trades=9_000, wall_s=60.0, speed=20.0)


@pytest.fixture(scope="session")
def long_tape(tmp_path_factory: pytest.TempPathFactory) -> Tape:
    """For faults that take long; what is left of it when they are over is played fast."""
    return write_tape(tmp_path_factory.mktemp("tape"), symbols=120, trades=15_000, wall_s=110.0, speed=20.0)
