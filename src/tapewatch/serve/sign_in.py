"""Signing in: a name and a password become an access token and a refresh token, which is good once. What a provider
says of somebody, which `openid_sign_in` checks, becomes the same.

Whether a name exists shows in nothing: not in the text, not in the time, not in how often it may be tried.
"""

import ipaddress
from dataclasses import dataclass, field
from http import HTTPStatus

from starlette.exceptions import HTTPException

from tapewatch.accounts.passwords import Passwords
from tapewatch.accounts.tokens import (
    ACCESS_S,
    REFRESH_S,
    hashed,
    new_refresh_token,
    new_session_id,
    parse_refresh_token,
)
from tapewatch.accounts.users import SignIn, User
from tapewatch.engine.columns import SECOND_NS
from tapewatch.errors import NotFound, Unauthorized, Unavailable
from tapewatch.ports import Clock, HotState, Store
from tapewatch.serve.access import Accounts
from tapewatch.serve.attempts import Attempts

_REFUSED = "the name or the password is wrong"


@dataclass(frozen=True, slots=True)
class Admission:
    """What somebody who has signed in takes away."""

    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    expires_s: int = ACCESS_S


class SignIns:
    """Five failures of an account and twenty of an address are free, then each makes the next attempt wait: up to a
    minute for an account, whose owner waits too, and up to fifteen for an address.
    """

    def __init__(self, store: Store, accounts: Accounts, clock: Clock, passwords: Passwords, hot: HotState) -> None:
        self._store, self._accounts, self._clock, self._passwords = store, accounts, clock, passwords
        self._of_account = Attempts("account", hot, free=5, longest_s=60)
        self._of_address = Attempts("address", hot, free=20, longest_s=900)

    async def sign_in(self, name: str, password: str, *, address: str) -> Admission:
        """`Unauthorized`, or 429 with Retry-After."""
        await self.ready()
        return await self.admit(await self._proven(name, password, address))

    async def admit(self, user: User) -> Admission:
        """Begin a session of somebody who has proved who they are. `Unauthorized` if they were disabled meanwhile."""
        now_ns = self._clock.now_ns()
        session_id = new_session_id()
        refresh_hash, refresh_token = new_refresh_token(session_id)
        session = SignIn(
            session_id=session_id,
            user_id=user.user_id,
            refresh_hash=refresh_hash,
            created_at_ns=now_ns,
            expires_ns=now_ns + REFRESH_S * SECOND_NS,
            used_at_ns=now_ns,
        )
        try:
            await self._store.begin_session(session)
        except NotFound:  # disabled a moment ago
            raise Unauthorized(_REFUSED) from None
        await self._accounts.changed()
        return self._admission(user, session_id, refresh_token)

    async def renew(self, refresh_token: str) -> Admission:
        """`Unauthorized` unless it is the newest one of its session."""
        await self.ready()
        session_id, secret = await self._known(refresh_token)
        next_hash, next_token = new_refresh_token(session_id)
        try:
            session = await self._store.renew_session(
                session_id, refresh_hash=hashed(secret), next_hash=next_hash, now_ns=self._clock.now_ns()
            )
            user = await self._store.user(session.user_id)
        except NotFound:
            await self._accounts.changed()
            raise Unauthorized from None
        return self._admission(user, session_id, next_token)

    async def sign_out(self, refresh_token: str) -> None:
        """Its session ends; nothing if it had."""
        try:
            session_id, secret = await self._known(refresh_token)
            session = await self._store.renew_session(
                session_id,
                refresh_hash=hashed(secret),
                next_hash=new_refresh_token(session_id)[0],
                now_ns=self._clock.now_ns(),
            )
            await self._store.end_session(session_id, actor=session.user_id)
        except Unauthorized:
            return
        except NotFound:
            pass  # it was an old one, and has ended the session
        await self._accounts.changed()

    async def confirm(self, user: User, password: str, *, address: str) -> None:
        """Somebody who is signed in says the password again: as in `sign_in`."""
        await self._proven(user.name, password, address)

    async def ready(self) -> None:
        """`Unavailable` where nobody can sign in."""
        if self._accounts.keys is None:
            raise Unavailable("this server has no secret to sign with: set TAPEWATCH_SECRET or --secret-file")
        await self._accounts.ready()

    async def _proven(self, name: str, password: str, address: str) -> User:
        now_ns = self._clock.now_ns()
        account, place = name.lower(), place_of(address)
        wait_s = await self._begin(account, place, now_ns)
        if wait_s:
            headers = {"Retry-After": str(wait_s)}
            raise HTTPException(HTTPStatus.TOO_MANY_REQUESTS, f"too many attempts: wait {wait_s} s", headers)
        try:
            user: User | None = await self._store.user_named(name)
        except NotFound:
            user = None
        known = await self._passwords.is_password(password, None if user is None else user.password_hash)
        if user is None or not known or user.disabled:
            raise Unauthorized(_REFUSED)
        await self._of_account.forget(account)
        await self._of_address.take_back(place)
        if self._passwords.is_outdated(user.password_hash):
            after = await self._passwords.hashed(password)
            await self._store.rehash_password(user.user_id, user.password_hash, after)
        return user

    async def _begin(self, account: str, place: str, now_ns: int) -> int:
        """0, and the attempt counts; or how long it must wait, and it does not."""
        wait_s = max(await self._of_account.wait_s(account, now_ns), await self._of_address.wait_s(place, now_ns))
        if wait_s:
            return wait_s
        wait_s = await self._of_account.begin(account, now_ns)
        if not wait_s:
            wait_s = await self._of_address.begin(place, now_ns)
            if wait_s:  # many at once
                await self._of_account.take_back(account)
        return wait_s

    async def _known(self, refresh_token: str) -> tuple[str, str]:
        """Its parts, if the session is one that lives: what is made up costs no write."""
        parts = parse_refresh_token(refresh_token)
        if parts is None:
            raise Unauthorized
        if not self._accounts.has_session(parts[0]):
            await self._accounts.look()
        if not self._accounts.has_session(parts[0]):
            raise Unauthorized
        return parts

    def _admission(self, user: User, session_id: str, refresh_token: str) -> Admission:
        if self._accounts.keys is None:
            raise Unauthorized
        access_token = self._accounts.keys.sign(
            user_id=user.user_id,
            session_id=session_id,
            epoch=user.epoch,
            audience=self._accounts.audience,
            now_ns=self._clock.now_ns(),
        )
        return Admission(access_token, refresh_token)


def place_of(address: str) -> str:
    """Of IPv6 the network: a single machine has as many addresses as it likes."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address
