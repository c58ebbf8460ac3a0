"""`tapewatch run` with something wrong: one line that says what, and exit status 2."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tapewatch.accounts.users import User
from tapewatch.adapters.sql import SqlStore

pytestmark = pytest.mark.anyio

MISSING = "redis://127.0.0.1:1/0"


def run(*arguments: str, **environment: str) -> tuple[int, str]:
    """Exit status, and what it printed as an error."""
    done = subprocess.run(
        [sys.executable, "-m", "tapewatch", "run", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "/usr/bin:/bin", **environment},
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("broker",), "'broker' is not a role"),
        (("bars",), "--bus (or TAPEWATCH_BUS) is missing"),
        (("bars", "--bus", MISSING), "--store (or TAPEWATCH_STORE) is missing"),
        (("bars", "--bus", "http://x", "--store", "postgresql://u@h/d"), "a Redis URL reads"),
        (("bars", "--bus", MISSING, "--store", "mysql://u@h/d"), "mysql"),
        (("bars", "--bus", MISSING, "--store", "s", "--partitions", "0"), "--partitions"),
        (("bars", "--bus", MISSING, "--store", "s", "--shard", "8/8"), "--shard"),
        (("api", "--bus", MISSING, "--store", "s", "--shard", "1/2"), "--shard goes with"),
        (("bars", "--config", "/nowhere.toml"), "/nowhere.toml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_wrong_options_are_one_line(arguments: tuple[str, ...], says: str) -> None:
    status, errors = run(*arguments)
    assert status == 2
    assert errors.startswith("tapewatch: ")
    assert errors.count("\n") == 1
    assert says in errors


def test_file_of_options_that_knows_another_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "tapewatch.toml"
    path.write_text('buss = "redis://x"\n')
    status, errors = run("bars", "--config", str(path))
    assert (status, "'buss', which is no option of" in errors) == (2, True)


class TestServers:
    @pytest.fixture
    async def store_url(self, servers: Any) -> Any:
        name = await servers.postgres.new_database(template=servers.template)
        yield servers.postgres.url_of(name)
        await servers.postgres.drop_database(name)

    async def refused(self, *arguments: str) -> str:
        status, errors = await asyncio.to_thread(run, *arguments)
        assert (status, errors.count("\n")) == (2, 1), errors
        return errors

    async def test_wrong_password_of_redis(self, servers: Any, store_url: str) -> None:
        said = await self.refused("bars", "--bus", servers.redis.url_of("guess"), "--store", store_url)
        assert "refuses the user or the password" in said
        assert "guess" not in said

    async def test_wrong_password_of_the_database(self, servers: Any) -> None:
        url = servers.postgres.url_of("postgres", password="guess")  # noqa: S106  # that is the point
        said = await self.refused("bars", "--bus", servers.redis.url, "--store", url)
        assert "password" in said
        assert "guess" not in said

    async def test_other_number_of_partitions(self, servers: Any, store_url: str) -> None:
        store = SqlStore(store_url)
        await store.settle("partitions", "16")
        await store.close()
        said = await self.refused("bars", "--bus", servers.redis.url, "--store", store_url, "--partitions", "8")
        assert "this installation has 16 partitions, not 8" in said

    async def test_store_of_a_newer_release(self, servers: Any, store_url: str) -> None:
        database = store_url.rpartition("/")[2]
        await servers.postgres.administer("UPDATE alembic_version SET version_num = '9999'", database=database)
        said = await self.refused("bars", "--bus", servers.redis.url, "--store", store_url)
        assert "newer" in said

    async def test_address_that_others_reach_without_an_account(self, servers: Any, store_url: str) -> None:
        said = await self.refused("api", "--bus", servers.redis.url, "--store", store_url, "--host", "0.0.0.0")
        assert "accounts come first: tapewatch user add NAME --role admin" in said

    async def test_accounts_without_a_secret(self, servers: Any, store_url: str) -> None:
        store = SqlStore(store_url)
        await store.add_user(User(user_id="u", name="ann", role="admin", password_hash="x", created_at_ns=1))  # noqa: S106
        await store.close()
        said = await self.refused("gateway", "--bus", servers.redis.url, "--store", store_url)
        assert "TAPEWATCH_SECRET (or --secret-file) is missing" in said
