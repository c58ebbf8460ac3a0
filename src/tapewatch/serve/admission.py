"""Whose a WebSocket is: its user's token is checked before anything else is heard, may be renewed, and is watched, so
that the socket ends with the session.

It owns the limits on sockets of one user and on those that are nobody's yet. It knows no alerts and keeps no token.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tapewatch.accounts.roles import LOCAL, Principal
from tapewatch.documents import rfc3339
from tapewatch.engine.columns import SECOND_NS
from tapewatch.errors import Unauthorized, Unavailable
from tapewatch.ports import Clock
from tapewatch.serve.alert_log import frame_of
from tapewatch.serve.client import Client

SUBPROTOCOL = "tapewatch.v1"
FIRST_MESSAGE_S = 5.0
MAX_UNKNOWN = 100
"""Sockets of which nobody knows yet whose they are."""
MAX_OF_USER = 10
EXPIRING_NS = 60 * SECOND_NS
"""So long before its end a token is said to expire."""
GRACE_NS = 25 * SECOND_NS
"""So long after it, a socket that nobody renewed is closed."""
WATCH_S = 1.0
NOBODY = Principal("", "viewer", frozenset())
FOREVER_NS = 2**63 - 1
_BEARER = "bearer."
_CHECK_S = 5.0
_WATCHED_AT_ONCE = 250
"""Sockets that are looked at in one turn of the loop."""


class Session(Protocol):
    """What a good token stands for."""

    @property
    def principal(self) -> Principal: ...
    @property
    def expires_ns(self) -> int: ...
    @property
    def session_id(self) -> str: ...


class Accounts(Protocol):
    """Who knows the users."""

    @property
    def required(self) -> bool:
        """False: everybody is LOCAL, and no token is asked for. It becomes true with the first user."""

    async def ready(self) -> None:
        """Until it is known whether they are required. `Unavailable` if nobody can say now."""

    async def authenticate(self, bearer: str) -> Session:
        """`Unauthorized` if the token is not good, whatever the reason."""

    def still_valid(self, session: Any) -> bool:
        """Whether a session that `authenticate` gave goes on: not after logout, for a disabled user, or with a password
        of before. Asked each second for each socket; its expiry is looked after here.
        """


@dataclass(slots=True)
class _Seat:
    session: Session
    was_told: bool = False
    """That its token expires soon."""


class Admission:
    """`expect` a client, `admit` it by its token, `forget` it at its end; `watch` runs beside. Without accounts each is
    LOCAL's as soon as it is expected.
    """

    def __init__(
        self,
        accounts: Accounts | None,
        clock: Clock,
        *,
        max_unknown: int = MAX_UNKNOWN,
        max_of_user: int = MAX_OF_USER,
        watch_s: float = WATCH_S,
    ) -> None:
        self._accounts = accounts
        self._clock = clock
        self._max_unknown, self._max_of_user = max_unknown, max_of_user
        self._watch_s = watch_s
        self._unknown: dict[Client, str] = {}
        self._local: set[Client] = set()
        self._seats: dict[Client, _Seat] = {}
        self._of_user: Counter[str] = Counter()

    @property
    def required(self) -> bool:
        return self._accounts is not None and self._accounts.required

    async def ready(self) -> None:
        """Until `expect` may be called. `Unavailable` if that cannot be said now."""
        if self._accounts is None:
            return
        try:
            async with asyncio.timeout(_CHECK_S):
                await self._accounts.ready()
        except TimeoutError as error:
            raise Unavailable("whether there are users is not known yet") from error

    def expect(self, client: Client, address: str) -> bool:
        """Count a client whose user is not known yet; False if there is no room for it. Full, the address with most of
        them gives its oldest up for any other, so that it cannot keep the rest of the world out.
        """
        if not self.required:
            self._local.add(client)
            client.principal = LOCAL
            return True
        if len(self._unknown) >= self._max_unknown:
            by_address = Counter(self._unknown.values())
            crowded, most = by_address.most_common(1)[0]
            if by_address[address] >= most:
                return False
            oldest = next(other for other, where in self._unknown.items() if where == crowded)
            oldest.end(1013, "try again later")
            del self._unknown[oldest]
        self._unknown[client] = address
        return True

    async def admit(self, client: Client, token: str) -> None:
        """Make it a client of the token's user, and tell it so; or end it."""
        try:
            session = await self._session_of(token)
        except Unauthorized:
            client.end(4401, "token refused")
            return
        except (Unavailable, TimeoutError):
            client.end(1013, "try again later")
            return
        user = session.principal.user_id
        if self._of_user[user] >= self._max_of_user:
            client.end(4429, "too many connections")
        elif not client.ending.done():
            self._of_user[user] += 1
            self._unknown.pop(client, None)
            self._take(client, session)

    async def renew(self, client: Client, token: str) -> tuple[str, str] | None:
        """Go on with another token of the same user; otherwise what to complain of, as code and message."""
        if client in self._local:
            client.reply(_authenticated(LOCAL, FOREVER_NS))
            return None
        try:
            session = await self._session_of(token)
        except Unauthorized:
            return "bad_token", "the token is refused"
        except (Unavailable, TimeoutError):
            return "unavailable", "the token cannot be checked now"
        if client not in self._seats or session.principal.user_id != client.principal.user_id:
            return "bad_token", "the token is another user's"
        self._take(client, session)
        return None

    def forget(self, client: Client) -> None:
        self._unknown.pop(client, None)
        self._local.discard(client)
        seat = self._seats.pop(client, None)
        if seat is not None:
            user = seat.session.principal.user_id
            self._of_user[user] -= 1
            if not self._of_user[user]:
                del self._of_user[user]

    async def watch(self) -> None:
        """End what must end; for ever, where there are accounts."""
        while self._accounts is not None:
            await self._clock.sleep(self._watch_s)
            now_ns = self._clock.now_ns()
            if self._accounts.required:
                for client in self._local:  # the first user exists
                    client.end(4401, "authenticate first")
            for nth, (client, seat) in enumerate([*self._seats.items()], start=1):
                if not nth % _WATCHED_AT_ONCE:
                    await asyncio.sleep(0)
                if not self._accounts.still_valid(seat.session):
                    client.end(4401, "session ended")
                else:
                    _look_at(client, seat, now_ns)

    async def _session_of(self, token: str) -> Session:
        if self._accounts is None:
            raise Unauthorized
        async with asyncio.timeout(_CHECK_S):
            return await self._accounts.authenticate(token)

    def _take(self, client: Client, session: Session) -> None:
        self._seats[client] = _Seat(session)
        client.principal = session.principal
        client.reply(_authenticated(session.principal, session.expires_ns))


def _look_at(client: Client, seat: _Seat, now_ns: int) -> None:
    left_ns = seat.session.expires_ns - now_ns
    if left_ns < -GRACE_NS:
        client.end(4401, "token expired")
    elif left_ns < EXPIRING_NS and not seat.was_told:
        seat.was_told = True
        client.reply(frame_of("token_expiring", {"expires_at": rfc3339(seat.session.expires_ns)}))


def chosen_subprotocol(offered: Sequence[str]) -> str | None:
    return SUBPROTOCOL if SUBPROTOCOL in offered else None


def offered_token(offered: Sequence[str]) -> str | None:
    """The token among the subprotocols that a client offers."""
    if SUBPROTOCOL not in offered:
        return None
    return next((name.removeprefix(_BEARER) for name in offered if name.startswith(_BEARER)), None)


def _authenticated(principal: Principal, expires_ns: int) -> str:
    data = {
        "user": principal.user_id,
        "role": principal.role,
        "scopes": sorted(principal.scopes),
        "expires_at": None if expires_ns == FOREVER_NS else rfc3339(expires_ns),
    }
    return frame_of("authenticated", data)
