"""Who asks, and what they may: the check of every request of the API.

`ACCESS` says which scope an operation needs; what has no row is refused. `Accounts` is the view of users, sign-ins and
tokens that a serving process keeps, so that a request costs no question to the store. It decides nothing about objects:
what somebody sees of another's is for the operations (`Principal.sees`).
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fastapi import Request

from tapewatch.accounts.roles import LOCAL, Principal, Scope
from tapewatch.accounts.tokens import Keys, is_secret, parse_api_token
from tapewatch.accounts.users import NEVER_NS, ApiToken, SignIn, User
from tapewatch.engine.columns import SECOND_NS
from tapewatch.errors import Forbidden, Unauthorized, Unavailable
from tapewatch.patience import pause
from tapewatch.ports import Bus, Clock, Store
from tapewatch.telemetry import ERRORS_TOTAL

ACCESS: Mapping[str, Scope | None] = MappingProxyType({
    "read_health": None,
    "read_readiness": None,
    "log_in": None,
    "refresh_access": None,
    "log_out": None,
    "list_sign_in_methods": None,
    "begin_openid": None,
    "finish_openid": None,
    "read_profile": "account:read",
    "replace_profile": "account:write",
    "change_password": "account:write",
    "list_tokens": "account:read",
    "create_token": "account:write",
    "revoke_token": "account:write",
    "list_users": "users:read",
    "read_user": "users:read",
    "create_user": "users:write",
    "change_user": "users:write",
    "reset_password": "users:write",
    "delete_user": "users:write",
    "list_rules": "rules:read",
    "read_rule": "rules:read",
    "list_rule_versions": "rules:read",
    "read_rule_version": "rules:read",
    "explain_rule": "rules:read",
    "list_near_misses": "rules:read",
    "validate_rule": "rules:read",
    "try_rule": "rules:write",
    "create_rule": "rules:write",
    "replace_rule": "rules:write",
    "delete_rule": "rules:write",
    "roll_rule_back": "rules:write",
    "enable_rule": "rules:write",
    "disable_rule": "rules:write",
    "list_templates": "market:read",
    "read_template": "market:read",
    "list_watchlists": "watchlists:read",
    "read_watchlist": "watchlists:read",
    "create_watchlist": "watchlists:write",
    "replace_watchlist": "watchlists:write",
    "delete_watchlist": "watchlists:write",
    "list_alerts": "alerts:read",
    "read_alert": "alerts:read",
    "explain_alert": "alerts:read",
    "export_alerts": "alerts:read",
    "acknowledge_alert": "alerts:write",
    "unacknowledge_alert": "alerts:write",
    "note_alert": "alerts:write",
    "list_channels": "channels:read",
    "read_channel": "channels:read",
    "list_subscriptions": "channels:read",
    "read_subscription": "channels:read",
    "list_deliveries": "channels:read",
    "read_delivery": "channels:read",
    "create_channel": "channels:write",
    "replace_channel": "channels:write",
    "delete_channel": "channels:write",
    "test_channel": "channels:write",
    "create_subscription": "channels:write",
    "replace_subscription": "channels:write",
    "delete_subscription": "channels:write",
    "mute_subscription": "channels:write",
    "replay_delivery": "channels:write",
    "list_symbols": "market:read",
    "read_symbol": "market:read",
    "list_bars": "market:read",
    "list_indicators": "market:read",
    "list_metrics": "market:read",
    "list_toplists": "toplists:read",
    "read_system_toplist": "toplists:read",
    "list_user_toplists": "toplists:read",
    "read_user_toplist": "toplists:read",
    "read_user_rankings": "toplists:read",
    "create_user_toplist": "toplists:write",
    "replace_user_toplist": "toplists:write",
    "delete_user_toplist": "toplists:write",
    "read_scoreboard": "alerts:read",
    "list_changes": "audit:read",
    "read_status": "system:read",
    "read_quality": "system:read",
})  # fmt: skip
"""By the name of a route, which is that of its function. None: open to all."""
CHANNEL = "accounts.updated"
LOOK_S = 2.0
"""So often the number is asked for; a notice comes sooner."""
_NOTE_USE_NS = 60 * SECOND_NS
"""The last use of a token is known to the minute."""
_SCHEME = "bearer "


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Somebody who has shown who they are."""

    principal: Principal
    expires_ns: int
    """When what they showed ends: an access token after fifteen minutes, an API token when it says."""
    session_id: str
    """Of the sign-in, or the API token's id."""
    epoch: int = 0
    """Of the user, when they were let in."""


_LOCAL = Session(principal=LOCAL, expires_ns=NEVER_NS, session_id="local")


def who(request: Request) -> Principal:
    """Who sent a request that has been let in. `Unauthorized` in an operation that is open to all."""
    return session_of(request).principal


class Accounts:
    """`follow` keeps it current; without, it is as of its first use and of the changes made here.

    `loopback`: the process listens there only, and without users everybody is the one local user. Without `keys` no
    access token is good; API tokens are.
    """

    def __init__(
        self, store: Store, clock: Clock, *, bus: Bus, keys: Keys | None = None, loopback: bool = True
    ) -> None:
        self.keys = keys
        self.audience = ""
        """The installation's own name, so that a token of another one is none of ours."""
        self._store, self._clock, self._bus = store, clock, bus
        self._loopback = loopback
        self._number: int | None = None
        self._users: dict[str, User] = {}
        self._sessions: dict[str, SignIn] = {}
        self._tokens: dict[str, ApiToken] = {}
        self._used: dict[str, int] = {}
        self._looking = asyncio.Lock()
        self._asked = self._answered = 0

    @property
    def required(self) -> bool:
        """Whether requests must say who asks. True until the store was read, which `ready` waits for."""
        return not self._loopback or self._number is None or bool(self._users)

    async def ready(self) -> None:
        """The store has been read once."""
        if self._number is None:
            await self.look()

    async def authenticate(self, bearer: str) -> Session:
        """Whose token this is: an access token or one of the API; "" is none. `Unauthorized` for all that is not good.

        Without accounts everybody is local, whatever they send.
        """
        await self.ready()
        if not self.required:
            return _LOCAL
        find = self._claimed(bearer)
        found = find()
        if found is None:
            await self.look()  # it may be newer than the view
            found = find()
        if found is None:
            raise Unauthorized
        return found

    def _claimed(self, bearer: str) -> Callable[[], Session | None]:
        given = parse_api_token(bearer)
        if given is not None:
            return lambda: self._of_token(*given)
        if self.keys is None:
            raise Unauthorized
        claims = self.keys.read(bearer, audience=self.audience, now_ns=self._clock.now_ns())

        def find() -> Session | None:
            user, session = self._users.get(claims.user_id), self._sessions.get(claims.session_id)
            if user is None or session is None or session.user_id != user.user_id or claims.epoch != user.epoch:
                return None
            principal = Principal.of(user.user_id, user.role)
            return self._let_in(
                Session(
                    principal=principal, expires_ns=claims.expires_ns, session_id=claims.session_id, epoch=claims.epoch
                )
            )

        return find

    def _of_token(self, token_id: str, secret: str) -> Session | None:
        token = self._tokens.get(token_id)
        now_ns = self._clock.now_ns()
        if token is None or not is_secret(secret, token.secret_hash) or token.expires_ns <= now_ns:
            return None
        user = self._users.get(token.user_id)
        if user is None:
            return None
        self._used[token_id] = now_ns
        principal = Principal.of(user.user_id, user.role, scopes=token.scopes)
        return self._let_in(
            Session(principal=principal, expires_ns=token.expires_ns, session_id=token_id, epoch=user.epoch)
        )

    def _let_in(self, session: Session) -> Session | None:
        return session if self.still_valid(session) else None

    def still_valid(self, session: Session) -> bool:
        """Neither signed out nor revoked, and the user as they were: role, password, not disabled. It says nothing of
        `expires_ns`, and is as current as the view.
        """
        if session is _LOCAL:
            return not self.required
        user = self._users.get(session.principal.user_id)
        if user is None or user.disabled or user.epoch != session.epoch:
            return False
        return session.session_id in self._sessions or session.session_id in self._tokens

    def is_active(self, user_id: str) -> bool:
        """Whether what belongs to them goes out. What was there before the first account was made stays alive: admins
        see it.
        """
        user = self._users.get(user_id)
        return user_id == LOCAL.user_id or not self.required or (user is not None and not user.disabled)

    def has_session(self, session_id: str) -> bool:
        """A sign-in that has not ended, as far as the view knows."""
        return session_id in self._sessions

    async def look(self) -> None:
        """Read the store if its number has changed. Who calls while that goes on shares the next reading."""
        self._asked += 1
        mine = self._asked
        async with self._looking:
            if self._answered >= mine:
                return
            answers = self._asked
            if not self.audience:
                self.audience = await self._store.settle("installation", secrets.token_hex(16))
            if await self._store.accounts_number() != self._number:
                view = await self._store.accounts(self._clock.now_ns())
                self._users = {user.user_id: user for user in view.users}
                self._sessions = {session.session_id: session for session in view.sessions}
                self._tokens = {token.token_id: token for token in view.tokens}
                self._number = view.number
            self._answered = answers

    async def changed(self) -> None:
        """After a change that was made here: others are told, and the own view is current."""
        try:
            await self._bus.notify(CHANNEL, b"{}")
        except Unavailable:  # they look by themselves
            ERRORS_TOTAL.labels(where="accounts.notify").inc()
        with suppress(Unavailable):  # the change is stored; the next look sees it
            await self.look()

    async def follow(self) -> None:
        """Until the bus closes."""
        async with asyncio.TaskGroup() as tasks:
            looking = tasks.create_task(self._look_often(), name="accounts by number")
            try:
                await self._listen()
            finally:
                looking.cancel()

    async def _listen(self) -> None:
        wait_s = 0.1
        while True:
            try:
                async for _ in self._bus.listen(CHANNEL):
                    await self.look()
                    wait_s = 0.1
            except Unavailable:
                ERRORS_TOTAL.labels(where="accounts.listen").inc()
                wait_s = await pause(self._clock, wait_s)
            else:
                return

    async def _look_often(self) -> None:
        noted: dict[str, int] = {}
        while True:
            try:
                await self.look()
                due = {name: at for name, at in self._used.items() if at - noted.get(name, 0) >= _NOTE_USE_NS}
                if due:
                    await self._store.note_tokens_used(due)
                    noted = {name: at for name, at in (noted | due).items() if name in self._tokens}
                    self._used = {name: at for name, at in self._used.items() if due.get(name) != at}
            except Unavailable:
                ERRORS_TOTAL.labels(where="accounts.look").inc()
            await self._clock.sleep(LOOK_S)


def checked(accounts: Accounts) -> Callable[[Request], Awaitable[None]]:
    """The dependency of every router: the request is let in as somebody, who may do this, or it is refused."""

    async def check(request: Request) -> None:
        scope = _scope_of(request)
        if scope is None:
            return
        session = await accounts.authenticate(bearer_of(request))
        if not session.principal.may(scope):
            raise Forbidden(f"this needs the scope {scope}")
        request.state.session = session
        request.state.principal = session.principal

    return check


def _scope_of(request: Request) -> Scope | None:
    name = request.scope["route"].name
    if name not in ACCESS:
        raise Forbidden("nobody may do this yet")
    return ACCESS[name]


def with_scopes(document: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI document, each operation with what it asks of the token."""
    document["components"]["securitySchemes"] = {
        "bearer": {
            "type": "http",
            "scheme": "bearer",
            "description": "An access token or an API token. Not asked for on loopback before there is an account.",
        }
    }
    for path in document["paths"].values():
        for operation in path.values():
            scope = ACCESS.get(operation["operationId"])
            operation["security"] = [] if scope is None else [{"bearer": [scope]}]
    return document


def bearer_of(request: Request) -> str:
    """The token of the Authorization header; "" without one. `Unauthorized` for another scheme, and for two headers."""
    given = request.headers.getlist("authorization")
    if not given:
        return ""
    scheme, token = given[0][: len(_SCHEME)], given[0][len(_SCHEME) :].strip()
    if len(given) > 1 or scheme.lower() != _SCHEME:
        raise Unauthorized
    return token


def session_of(request: Request) -> Session:
    """What the request was let in with."""
    session: Session | None = getattr(request.state, "session", None)
    if session is None:
        raise Unauthorized
    return session
