"""Accounts whose tokens a test mints and ends as it likes, and a clock that it moves."""

import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass

from tapewatch.accounts.roles import Principal, Role, Scope
from tapewatch.clock import SystemClock
from tapewatch.engine.columns import SECOND_NS
from tapewatch.errors import Unauthorized, Unavailable


class MovedClock(SystemClock):
    """Ahead of the machine's by as much as it was moved."""

    def __init__(self) -> None:
        self.ahead_ns = 0

    def now_ns(self) -> int:
        return time.time_ns() + self.ahead_ns

    def move(self, seconds: float) -> None:
        self.ahead_ns += int(seconds * SECOND_NS)


@dataclass(frozen=True)
class MintedSession:
    principal: Principal
    expires_ns: int
    session_id: str


class MintedAccounts:
    def __init__(self, clock: MovedClock) -> None:
        self.required = True
        self.is_away = False
        self.asked: list[str] = []
        self._clock = clock
        self._sessions: dict[str, MintedSession] = {}

    def mint(
        self, user: str = "ada", role: Role = "trader", *, scopes: Iterable[Scope] | None = None, lasts_s: float = 900
    ) -> str:
        token = secrets.token_urlsafe(24)
        expires_ns = self._clock.now_ns() + int(lasts_s * SECOND_NS)
        self._sessions[token] = MintedSession(Principal.of(user, role, scopes=scopes), expires_ns, token[:8])
        return token

    def end(self, *tokens: str) -> None:
        """Logout, a disabled user, another password: to a gateway they are the same."""
        for token in tokens:
            del self._sessions[token]

    def expires_ns(self, token: str) -> int:
        return self._sessions[token].expires_ns

    async def ready(self) -> None:
        if self.is_away:
            raise Unavailable("the store is away")

    async def authenticate(self, bearer: str) -> MintedSession:
        self.asked.append(bearer)
        if self.is_away:
            raise Unavailable("the store is away")
        session = self._sessions.get(bearer)
        if session is None or session.expires_ns <= self._clock.now_ns():
            raise Unauthorized("the token does not hold")
        return session

    def still_valid(self, session: MintedSession) -> bool:
        return session in self._sessions.values()
