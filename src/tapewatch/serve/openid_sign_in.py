"""Signing in through an OpenID provider: the conversation with it, and who comes in.

Nothing is asked of the provider before somebody wants to sign in, so that one that is away keeps nobody else out. What
its answers must say is `accounts.openid`'s business. How many users there may be is the provider's: everybody whom it
knows comes in, unless the default role is none.
"""

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from http import HTTPStatus
from typing import Any, Generic, Literal, TypeVar

import httpx

from tapewatch.accounts.openid import (
    ATTEMPT_S,
    Attempt,
    Provider,
    ProviderKeys,
    UnknownKey,
    check_id_token,
    display_name_of,
    identity_of,
    names_of,
    role_of,
)
from tapewatch.accounts.openid_settings import OpenIdSettings
from tapewatch.accounts.roles import Role
from tapewatch.accounts.tokens import hashed
from tapewatch.accounts.users import Identity, Profile, User, new_user_id
from tapewatch.engine.columns import SECOND_NS
from tapewatch.errors import Invalid, NotFound, Unauthorized, Unavailable, VersionConflict
from tapewatch.ports import Clock, HotState, Store
from tapewatch.serve.access import Accounts
from tapewatch.serve.attempts import Attempts
from tapewatch.serve.sign_in import Admission, SignIns, place_of
from tapewatch.strict import load_json
from tapewatch.telemetry import ERRORS_TOTAL

ACTOR = "openid"
"""In the audit log: who adds users and gives them the provider's roles."""
ANSWER_S = 5.0
MOST_BYTES = 256 * 1024
"""Of an answer; discovery documents have some 5 kB."""
KEEP_S = 3_600
"""So long discovery document and keys are not asked for again."""
NEW_KEYS_S = 10
"""Keys are not asked for more often, whatever tokens are signed with."""
QUIET_S = 3
"""After a failure; who comes in between is told at once."""
_MOST_AT_ONCE = 32
_DISCOVERY = "/.well-known/openid-configuration"
_WELL_KNOWN = frozenset({"invalid_client", "invalid_grant", "invalid_request", "unauthorized_client", "access_denied"})
_LONGEST_CODE = 4_096

log = logging.getLogger(__name__)
T = TypeVar("T")
Reason = Literal["again", "denied", "refused", "stranger", "unavailable", "wait"]


class SignInFailed(Exception):
    """`reason` is what the page is told; the text is for the log."""

    def __init__(self, reason: Reason, why: str) -> None:
        super().__init__(why)
        self.reason: Reason = reason


class _Kept(Generic[T]):
    """A document of the provider's, fetched when it is needed: once for all who wait, and again when it is old."""

    def __init__(self, fetch: Callable[[], Awaitable[T]], clock: Clock) -> None:
        self._fetch, self._clock = fetch, clock
        self._turn = asyncio.Lock()
        self._value: T | None = None
        self._fetched_ns = self._quiet_until_ns = 0

    async def get(self, *, newer_than_s: float = KEEP_S) -> T:
        """`Unavailable` if there is none, at once while it is quiet after a failure."""
        async with self._turn:
            now_ns = self._clock.now_ns()
            if self._value is not None and now_ns - self._fetched_ns < newer_than_s * SECOND_NS:
                return self._value
            if now_ns < self._quiet_until_ns:
                raise Unavailable("the provider did not answer a moment ago")
            try:
                self._value = await self._fetch()
            except Unavailable:
                self._quiet_until_ns = self._clock.now_ns() + QUIET_S * SECOND_NS
                raise
            self._fetched_ns = self._clock.now_ns()
            return self._value


class OpenIdProvider:
    """One provider. Errors name what was asked for, never a code, a token or the secret."""

    def __init__(self, config: OpenIdSettings, clock: Clock, *, secret: str | None) -> None:
        self.config = config
        self._clock, self._secret = clock, secret
        self._described = _Kept(self._fetch_description, clock)
        self._keys = _Kept(self._fetch_keys, clock)
        self._redeeming = 0

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context()

    async def describe(self) -> Provider:
        """`Unavailable`, also for a description that cannot be used."""
        return await self._described.get()

    async def redeem(self, code: str, attempt: Attempt) -> dict[str, Any]:
        """The checked claims of the ID token that the code stands for. `Unauthorized`, `Unavailable`."""
        if self._redeeming >= _MOST_AT_ONCE:
            raise Unavailable("too many sign in at once")
        self._redeeming += 1
        try:
            token = await self._id_token(code, attempt)
            try:
                return await self._checked(token, attempt, await self._keys.get())
            except UnknownKey:
                return await self._checked(token, attempt, await self._keys.get(newer_than_s=NEW_KEYS_S))
        finally:
            self._redeeming -= 1

    async def _checked(self, token: str, attempt: Attempt, keys: ProviderKeys) -> dict[str, Any]:
        # In a thread: a key of the largest size takes a millisecond.
        return await asyncio.to_thread(
            check_id_token,
            token,
            keys=keys,
            issuer=self.config.issuer,
            client_id=self.config.client_id,
            nonce=attempt.nonce,
            now_ns=self._clock.now_ns(),
        )

    async def _id_token(self, code: str, attempt: Attempt) -> str:
        provider = await self.describe()
        form, headers = provider.token_request(self.config, attempt, code=code, secret=self._secret)
        status, body = await self._ask("the token endpoint", provider.token_endpoint, form=form, headers=headers)
        try:
            answer = load_json(body)
        except Invalid:
            answer = None
        fields = answer if isinstance(answer, dict) else {}
        if 400 <= status < 500 and status != HTTPStatus.TOO_MANY_REQUESTS:
            said = fields.get("error")
            raise Unauthorized(f"the token endpoint refused ({said if said in _WELL_KNOWN else f'HTTP {status}'})")
        if status != HTTPStatus.OK:
            raise _away(f"the token endpoint answered HTTP {status}")
        token = fields.get("id_token")
        if not isinstance(token, str):
            raise Unauthorized("the token endpoint sent no ID token")
        return token

    async def _fetch_description(self) -> Provider:
        raw = await self._get("the discovery document", self.config.issuer.removesuffix("/") + _DISCOVERY)
        try:
            return Provider.parse(raw, issuer=self.config.issuer)
        except Invalid as error:
            raise _away(f"the discovery document cannot be used: {error}") from None

    async def _fetch_keys(self) -> ProviderKeys:
        raw = await self._get("the key set", (await self.describe()).jwks_uri)
        try:
            return await asyncio.to_thread(ProviderKeys.parse, raw)
        except Invalid as error:
            raise _away(f"the key set cannot be used: {error}") from None

    async def _get(self, what: str, url: str) -> bytes:
        status, body = await self._ask(what, url)
        if status != HTTPStatus.OK:
            raise _away(f"{what} was answered with HTTP {status}")
        return body

    async def _ask(
        self, what: str, url: str, *, form: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and body, in bounded time and size; redirects are not followed."""
        body = bytearray()
        asked = {"Accept": "application/json", "Accept-Encoding": "identity", **(headers or {})}
        try:
            async with (
                asyncio.timeout(ANSWER_S),
                httpx.AsyncClient(verify=self._tls, trust_env=url.startswith("https:"), timeout=ANSWER_S) as client,
                client.stream("GET" if form is None else "POST", url, data=form, headers=asked) as answer,
            ):
                if answer.headers.get("content-encoding", "identity").lower() != "identity":
                    raise _away(f"{what} came compressed, which was not asked for")
                async for piece in answer.aiter_raw():
                    body += piece
                    if len(body) > MOST_BYTES:
                        raise _away(f"{what} is longer than {MOST_BYTES >> 10} kB")
        except TimeoutError:
            raise _away(f"{what} did not come within {ANSWER_S:.0f} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError) as error:  # whose words may name what was sent
            raise _away(f"{what} cannot be asked for ({type(error).__name__})") from None
        return answer.status_code, bytes(body)


def _away(why: str) -> Unavailable:
    ERRORS_TOTAL.labels(where="openid").inc()
    log.warning("the OpenID provider: %s", why)
    return Unavailable(why)


class OpenIdSignIns:
    """Twenty failures of an address are free, then each makes the next attempt wait, as with passwords."""

    def __init__(
        self,
        provider: OpenIdProvider,
        sign_ins: SignIns,
        *,
        store: Store,
        accounts: Accounts,
        hot: HotState,
        clock: Clock,
    ) -> None:
        self.config = provider.config
        self._provider, self._sign_ins = provider, sign_ins
        self._store, self._accounts, self._hot, self._clock = store, accounts, hot, clock
        self._of_address = Attempts("openid", hot, free=20, longest_s=900)

    async def begin(self) -> tuple[str, str]:
        """Where the browser goes, and the cookie that it takes along. `Unavailable`."""
        await self._sign_ins.ready()
        try:
            provider = await self._provider.describe()
        except Unavailable:
            raise Unavailable(f"{self.config.shown_name} cannot be reached now; a password still works") from None
        attempt = Attempt.begin(self._key, now_ns=self._clock.now_ns())
        return provider.authorization_url(self.config, attempt), attempt.cookie

    async def finish(self, answer: Mapping[str, str], cookie: str, *, address: str) -> Admission:
        """`answer`: what the provider had the browser bring along. `SignInFailed`."""
        try:
            await self._sign_ins.ready()
            attempt = self._attempt(answer, cookie)
            return await self._sign_ins.admit(await self._proven(answer, attempt, place_of(address)))
        except Unauthorized as error:
            raise SignInFailed("refused", str(error)) from None
        except Unavailable as error:
            raise SignInFailed("unavailable", str(error)) from None

    @property
    def _key(self) -> bytes:
        if self._accounts.keys is None:
            raise Unavailable("this server has no secret to sign with")
        return self._accounts.keys.derived("openid attempts")

    def _attempt(self, answer: Mapping[str, str], cookie: str) -> Attempt:
        """The one that this browser began, and no other: nobody signs somebody else in."""
        attempt = Attempt.read(cookie, self._key, now_ns=self._clock.now_ns())
        if attempt is None or not attempt.is_state(answer.get("state", "")):
            raise SignInFailed("again", "it was not begun in this browser, or too long ago")
        return attempt

    async def _proven(self, answer: Mapping[str, str], attempt: Attempt, place: str) -> User:
        provider, code = await self._provider.describe(), answer.get("code", "")
        if answer.get("iss", None if provider.names_itself else provider.issuer) != provider.issuer:
            raise Unauthorized("another provider has answered")
        if not await self._hot.claim(f"openid:{hashed(attempt.state)}", "used", ttl_s=2 * ATTEMPT_S):
            raise SignInFailed("again", "this answer was used before")
        if "error" in answer:
            said = answer["error"]
            raise SignInFailed("denied", f"the provider says {said if said in _WELL_KNOWN else 'an error'}")
        if not 0 < len(code) <= _LONGEST_CODE:
            raise Unauthorized("the answer has no code")
        if await self._of_address.begin(place, self._clock.now_ns()):
            raise SignInFailed("wait", "too many failures from one address")
        try:
            claims = await self._provider.redeem(code, attempt)
        except Unavailable:
            await self._of_address.take_back(place)
            raise
        user = await self._user(identity_of(claims), claims)
        await self._of_address.take_back(place)
        return user

    async def _user(self, identity: Identity, claims: Mapping[str, Any]) -> User:
        role = role_of(claims, self.config)
        try:
            user = await self._store.user_of(identity)
        except NotFound:
            if role is None:
                raise _stranger(identity, "has no account") from None
            return await self._added(identity, role, claims)
        if user.disabled:
            raise _stranger(identity, "is disabled")
        if self.config.role_claim is None or role == user.role:
            return user
        if role is None:
            raise _stranger(identity, "has no role any more")
        try:
            return await self._store.change_user(user.user_id, role=role, actor=ACTOR)
        except VersionConflict:
            log.warning("%s stays admin, being the last one; the provider says %s", user.name, role)
            return user

    async def _added(self, identity: Identity, role: Role, claims: Mapping[str, Any]) -> User:
        profile = Profile(display_name=display_name_of(claims))
        for name in names_of(claims):
            user = User(
                user_id=new_user_id(),
                name=name,
                role=role,
                password_hash="",
                created_at_ns=self._clock.now_ns(),
                profile=profile,
            )
            try:
                return await self._store.add_user(user, identity=identity, actor=ACTOR)
            except VersionConflict:
                pass  # the name is another's
            try:
                return await self._store.user_of(identity)  # or they have come in through another window
            except NotFound:
                continue
        raise Unauthorized("there is no name left for this user")


def _stranger(identity: Identity, why: str) -> SignInFailed:
    issuer, subject = identity
    return SignInFailed("stranger", f"subject {subject!r} of {issuer} {why}; see tapewatch user link")
