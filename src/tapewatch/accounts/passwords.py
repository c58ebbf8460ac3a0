"""Passwords: which are accepted, how they are kept (argon2id), and a check that takes as long for a name nobody has."""

import asyncio
import base64
import secrets
import unicodedata

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from tapewatch.errors import Invalid, Unavailable

SHORTEST, LONGEST = 12, 256
_AT_ONCE = 2
"""Each takes 46 MB and a core."""
_MOST_WAITING = 32


def check_password(password: str, *, where: str = "password") -> str:
    """In its composed form, or `Invalid`, which does not repeat it."""
    normal = unicodedata.normalize("NFC", password)
    if not SHORTEST <= len(normal) <= LONGEST:
        raise Invalid(where, f"must have {SHORTEST} to {LONGEST} characters")
    if any(unicodedata.category(character) in {"Cc", "Cs"} for character in normal):
        raise Invalid(where, "has a control character")
    return normal


class Passwords:
    """Hashes and checks, in threads; two at once, 32 wait, and others are sent away with `Unavailable`."""

    def __init__(self, *, time_cost: int = 2, memory_kib: int = 47_104) -> None:
        self._hasher = PasswordHasher(time_cost=time_cost, memory_cost=memory_kib, parallelism=1)
        self._nobodys = (
            f"$argon2id$v=19$m={memory_kib},t={time_cost},p=1${_base64(self._hasher.salt_len)}"
            f"${_base64(self._hasher.hash_len)}"
        )
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._waiting = 0

    async def hashed(self, password: str) -> str:
        """Of a password that `check_password` has passed."""
        return await self._in_turn(unicodedata.normalize("NFC", password), None)

    async def is_password(self, password: str, stored: str | None) -> bool:
        """None: there is nobody of that name; "": they have none. Both take as long to find out."""
        normal = unicodedata.normalize("NFC", password)
        return await self._in_turn(normal, stored or self._nobodys) != "" and bool(stored)

    def is_outdated(self, stored: str) -> bool:
        """Made with other parameters than today's: to be made again when the password is next known."""
        try:
            return self._hasher.check_needs_rehash(stored)
        except InvalidHashError:
            return True

    async def _in_turn(self, password: str, stored: str | None) -> str:
        if self._waiting >= _MOST_WAITING:
            raise Unavailable("too many sign in at once")
        self._waiting += 1
        try:
            async with self._turns:
                return await asyncio.to_thread(self._work, password, stored)
        finally:
            self._waiting -= 1

    def _work(self, password: str, stored: str | None) -> str:
        try:
            raw = password.encode()
        except UnicodeEncodeError:  # half a character, which no password has
            raw = b"\xff"
        if stored is None:
            return self._hasher.hash(raw)
        try:
            return stored if self._hasher.verify(stored, raw) else ""
        except (VerificationError, InvalidHashError):
            return ""


def _base64(n_bytes: int) -> str:
    return base64.b64encode(secrets.token_bytes(n_bytes)).decode().rstrip("=")
