"""The rights of ``deploy/redis/tapewatch.acl``, with which all other tests run: what the user may not do."""

from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import NoPermissionError, RedisError
from servers import USER, RedisProgram

from tapewatch.adapters.redis_limits import close_limits, limits_storage

ALLOWED_OF_DANGEROUS = {"info", "client|unblock"}
SCRIPTS = {"eval", "evalsha", "script|load"}


@pytest.fixture
def admin(program: RedisProgram) -> Iterator["Redis"]:
    with Redis.from_url(program.admin_url, decode_responses=True) as client:
        yield client


@pytest.fixture
def user(program: RedisProgram) -> Iterator["Redis"]:
    with Redis.from_url(program.url, decode_responses=True) as client:
        yield client


def commands_of(admin: "Redis", category: str) -> dict[str, int]:
    """Each with the number of words that it takes at the least."""
    connection: Any = admin.connection_pool.get_connection()
    connection.send_command("ACL", "CAT", category)
    names = set(connection.read_response())
    connection.send_command("COMMAND")
    words = {info[0]: abs(info[1]) for info in _all(connection.read_response())}
    admin.connection_pool.release(connection)
    assert names <= words.keys()
    return {name: words[name] for name in names}


def _all(commands: list[Any]) -> Iterator[list[Any]]:
    """With their parts: of ``CLIENT`` for one ``CLIENT UNBLOCK``, which is called ``client|unblock``."""
    for command in commands:
        yield command
        yield from _all(command[9])


def is_refused(admin: "Redis", name: str, words: int) -> bool:
    given = name.split("|")
    client: Any = admin
    said = client.execute_command("ACL", "DRYRUN", USER, *given, *["1"] * max(words - len(given), 0))
    return "no permissions" in said


@pytest.mark.parametrize("category", ["admin", "dangerous", "scripting"])
def test_commands_of_administrators_are_refused_on_the_servers_own_list(admin: "Redis", category: str) -> None:
    known = commands_of(admin, category)
    assert len(known) > 5
    let_in = {name for name, words in known.items() if not is_refused(admin, name, words)}
    assert let_in == (SCRIPTS if category == "scripting" else ALLOWED_OF_DANGEROUS & set(known))


def test_refusals_are_the_servers(user: "Redis") -> None:
    client: Any = user
    for command in (("CONFIG", "GET", "*"), ("FLUSHALL",), ("KEYS", "*"), ("ACL", "LIST"), ("FUNCTION", "LIST")):
        with pytest.raises(NoPermissionError):
            client.execute_command(*command)


def test_scripts_have_no_more_rights_than_their_user(user: "Redis", admin: "Redis") -> None:
    user.set("kept", "1")
    for command in ("'FLUSHALL'", "'KEYS', '*'", "'CONFIG', 'SET', 'maxmemory', '1'", "'RENAME', 'kept', 'gone'"):
        with pytest.raises(RedisError, match=r"can't run this command|not allowed from script"):
            user.eval(f"return redis.call({command})", 0)
    assert admin.get("kept") == "1"


def test_without_the_password_nobody_gets_in(program: RedisProgram, admin: "Redis") -> None:
    for url in (program.url_of("guess"), program.url_of(""), program.url_of("guess", user="")):
        with (
            Redis.from_url(url) as stranger,
            pytest.raises(RedisError, match=r"WRONGPASS|NOAUTH|invalid username|Auth"),
        ):
            stranger.ping()
    users: Any = admin.acl_list()
    assert [line for line in users if "nopass" in line] == []
    assert any(line.startswith(f"user {USER} on ") for line in users)


@pytest.mark.anyio
async def test_windows_of_rate_limits_are_counted_with_these_rights(program: RedisProgram) -> None:
    storage = limits_storage(program.url)
    assert await storage.check()
    assert [await storage.incr("window", 60) for _ in range(3)] == [1, 2, 3]
    await close_limits(storage)
