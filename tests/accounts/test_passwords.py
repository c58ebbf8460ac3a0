"""Passwords: which are taken, how they are kept, and that a name nobody has takes as long."""

import asyncio
import statistics
import time

import pytest
from argon2 import PasswordHasher

from tapewatch.accounts.passwords import Passwords, check_password
from tapewatch.errors import Invalid, Unavailable

pytestmark = pytest.mark.anyio
PASSWORD = "correct horse battery"  # noqa: S105  # of tests


@pytest.mark.parametrize(
    "password", ["a" * 12, "ü" * 256, "twelve chars", "\N{SNOWMAN}" * 20, " leading and trailing "]
)
def test_password_of_any_letters_is_taken(password: str) -> None:
    assert check_password(password) == password


@pytest.mark.parametrize("password", ["", "a" * 11, "a" * 257, "a" * 12 + "\n", "a" * 12 + "\0", "a" * 12 + "\ud800"])
def test_password_that_is_refused_is_not_repeated(password: str) -> None:
    with pytest.raises(Invalid) as caught:
        check_password(password)
    assert caught.value.where == "password"
    assert not password or password not in str(caught.value)


async def test_password_is_kept_as_argon2id_with_a_salt() -> None:
    passwords = Passwords()
    first, second = await passwords.hashed(PASSWORD), await passwords.hashed(PASSWORD)
    assert first.startswith("$argon2id$v=19$m=47104,t=2,p=1$")
    assert first != second
    assert await passwords.is_password(PASSWORD, first)
    assert await passwords.is_password(PASSWORD, second)
    assert not await passwords.is_password(PASSWORD + "!", first)
    assert not await passwords.is_password("", first)
    assert not await passwords.is_password("\ud800", first)
    assert not passwords.is_outdated(first)


async def test_letters_composed_in_another_way_are_the_same_password() -> None:
    passwords = Passwords()
    assert await passwords.is_password("cafe\u0301 au lait", await passwords.hashed(check_password("café au lait")))
    assert await passwords.is_password("café au lait", await passwords.hashed("cafe\u0301 au lait"))


async def test_other_parameters_are_outdated_and_still_good() -> None:
    old = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash(PASSWORD)
    assert Passwords().is_outdated(old)
    assert await Passwords().is_password(PASSWORD, old)


async def test_what_is_no_hash_is_no_password() -> None:
    assert not await Passwords().is_password(PASSWORD, "plain")
    assert Passwords().is_outdated("plain")


async def test_name_that_nobody_has_takes_as_long() -> None:
    passwords = Passwords()
    known = await passwords.hashed(PASSWORD)
    took: dict[str | None, list[float]] = {known: [], None: []}
    for _ in range(7):
        for stored, times in took.items():
            began = time.perf_counter()
            assert not await passwords.is_password("another password", stored)
            times.append(time.perf_counter() - began)
    assert 0.5 < statistics.median(took[None]) / statistics.median(took[known]) < 2


async def test_too_many_at_once_are_sent_away() -> None:
    passwords = Passwords(time_cost=1, memory_kib=64)
    results = await asyncio.gather(*(passwords.hashed(PASSWORD) for _ in range(50)), return_exceptions=True)
    assert sum(isinstance(result, str) for result in results) == 32
    assert all(isinstance(result, (str, Unavailable)) for result in results)
    assert await passwords.hashed(PASSWORD)
