"""Signing in through an OpenID provider: what is sent, and what of the provider's words is believed. No I/O.

The code flow of OpenID Connect Core 1.0 with PKCE (RFC 7636). An attempt to sign in is a cookie of the browser that
began it, from which state, nonce and verifier are derived with the server's secret: nothing is kept here, and who has
the cookie can compute none of them. An ID token is good only if it is signed by one of two asymmetric algorithms with a
key that the provider publishes.
"""

import base64
import binascii
import hashlib
import hmac
import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args
from urllib.parse import quote_plus, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from tapewatch.accounts.openid_settings import LONGEST_SUBJECT, OpenIdSettings, is_web_address
from tapewatch.accounts.roles import ROLES, Role
from tapewatch.accounts.users import NAME_PATTERN, Identity
from tapewatch.engine.columns import SECOND_NS
from tapewatch.errors import Invalid, Unauthorized
from tapewatch.strict import load_json

Algorithm = Literal["RS256", "ES256"]
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)
ATTEMPT_S = 600
"""So long somebody may take at the provider."""
CALLBACK = "/api/v1/auth/openid/callback"
LONGEST_TOKEN = 16_384
"""Characters of an ID token: some name hundreds of groups."""
MOST_KEYS = 100
"""Of a provider; further ones are not looked at."""
_SKEW_S = 60
"""So far the provider's clock may be from ours."""
_KEY_BITS = range(2_048, 8_193)
_LARGEST_EXPONENT = 2**32
_LONGEST_TEXT = 255
_COOKIE = re.compile(r"([A-Za-z0-9_-]{43})\.([0-9]{1,12})\.([A-Za-z0-9_-]{43})")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.@+\-]+")
_TYPES = {"jwt", "application/jwt", "id_token+jwt"}


# -- the attempt ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attempt:
    """Somebody's way to the provider and back, in one browser."""

    cookie: str = field(repr=False)
    state: str = field(repr=False)
    nonce: str = field(repr=False)
    verifier: str = field(repr=False)

    @classmethod
    def begin(cls, key: bytes, *, now_ns: int) -> "Attempt":
        """`key` is the server's own, for this purpose."""
        return cls._of(key, f"{secrets.token_urlsafe(32)}.{now_ns // SECOND_NS + ATTEMPT_S}")

    @classmethod
    def read(cls, cookie: str, key: bytes, *, now_ns: int) -> "Attempt | None":
        """None unless it is one of ours, and in time."""
        match = _COOKIE.fullmatch(cookie)
        if match is None:
            return None
        attempt = cls._of(key, f"{match[1]}.{match[2]}")
        if not hmac.compare_digest(attempt.cookie, cookie) or int(match[2]) * SECOND_NS <= now_ns:
            return None
        return attempt

    @classmethod
    def _of(cls, key: bytes, seed: str) -> "Attempt":
        def derived(purpose: str) -> str:
            return _base64(hmac.digest(key, f"{purpose}:{seed}".encode(), "sha256"))

        return cls(f"{seed}.{derived('cookie')}", derived("state"), derived("nonce"), derived("verifier"))

    @property
    def challenge(self) -> str:
        return _base64(hashlib.sha256(self.verifier.encode()).digest())

    def is_state(self, state: str) -> bool:
        return hmac.compare_digest(self.state.encode(), state.encode("utf-8", "replace"))


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


# -- the provider -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Provider:
    """What its discovery document says, as far as it is used."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    names_itself: bool
    """It says who answers at the callback (RFC 9207), so an answer that does not is not its own."""
    takes_secret_in_body: bool
    """And not in the Authorization header, which is the usual way."""

    @classmethod
    def parse(cls, raw: bytes, *, issuer: str) -> "Provider":
        """`Invalid`, naming the field."""
        document = _object(raw, "discovery document")
        if document.get("issuer") != issuer:
            raise Invalid("issuer", f"is {str(document.get('issuer'))[:200]!r}, not what --oidc-issuer says")
        methods = document.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        return cls(
            issuer,
            _endpoint(document, "authorization_endpoint", issuer),
            _endpoint(document, "token_endpoint", issuer),
            _endpoint(document, "jwks_uri", issuer),
            document.get("authorization_response_iss_parameter_supported") is True,
            isinstance(methods, list) and "client_secret_post" in methods and "client_secret_basic" not in methods,
        )

    def authorization_url(self, config: OpenIdSettings, attempt: Attempt) -> str:
        """Where the browser goes to sign in."""
        query = {
            "response_type": "code",
            "client_id": config.client_id,
            "redirect_uri": redirect_uri(config),
            "scope": " ".join(dict.fromkeys(("openid", *config.scopes))),
            "state": attempt.state,
            "nonce": attempt.nonce,
            "code_challenge": attempt.challenge,
            "code_challenge_method": "S256",
        }
        joint = "&" if urlsplit(self.authorization_endpoint).query else "?"
        return f"{self.authorization_endpoint}{joint}{urlencode(query)}"

    def token_request(
        self, config: OpenIdSettings, attempt: Attempt, *, code: str, secret: str | None
    ) -> tuple[dict[str, str], dict[str, str]]:
        """The form and the headers that turn the code into an ID token."""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri(config),
            "client_id": config.client_id,
            "code_verifier": attempt.verifier,
        }
        if secret is None:
            return form, {}
        if self.takes_secret_in_body:
            return form | {"client_secret": secret}, {}
        pair = f"{quote_plus(config.client_id)}:{quote_plus(secret)}"  # RFC 6749, 2.3.1
        return form, {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def redirect_uri(config: OpenIdSettings) -> str:
    """Of the configured address: what a request says of its host decides nothing."""
    return config.public_url + CALLBACK


def _endpoint(document: Mapping[str, Any], name: str, issuer: str) -> str:
    value = document.get(name)
    if not isinstance(value, str) or not is_web_address(value, plain=issuer.startswith("http:")):
        raise Invalid(name, "is not an address that begins with https://")
    return value


def _object(raw: bytes, where: str) -> dict[str, Any]:
    document = load_json(raw, where=where)
    if not isinstance(document, dict):
        raise Invalid(where, "is not a JSON object")
    return document


# -- its keys ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Key:
    kid: str | None
    algorithm: Algorithm
    public: RSAPublicKey | EllipticCurvePublicKey = field(repr=False)


@dataclass(frozen=True, slots=True)
class ProviderKeys:
    """What signs ID tokens: RSA of 2,048 bits or more, and P-256."""

    keys: tuple[_Key, ...] = ()

    @classmethod
    def parse(cls, raw: bytes) -> "ProviderKeys":
        """Keys of other kinds and for other uses are passed over, as the standard wants it. `Invalid`."""
        listed = _object(raw, "key set").get("keys")
        if not isinstance(listed, list):
            raise Invalid("keys", "is not a list")
        found = (_key(entry) for entry in listed[:MOST_KEYS] if isinstance(entry, dict))
        return cls(tuple(key for key in found if key is not None))

    def of(self, kid: str | None, algorithm: Algorithm) -> list[RSAPublicKey | EllipticCurvePublicKey]:
        """Those that a token with this header may be signed with; some providers with one key do not name it."""
        return [key.public for key in self.keys if key.algorithm == algorithm and kid in {None, key.kid}]


def _key(entry: Mapping[str, Any]) -> _Key | None:
    algorithm: Algorithm = "RS256" if entry.get("kty") == "RSA" else "ES256"
    kid, operations = entry.get("kid"), entry.get("key_ops", ["verify"])
    if entry.get("kty") not in {"RSA", "EC"} or entry.get("use", "sig") != "sig":
        return None
    if entry.get("alg", algorithm) != algorithm or not isinstance(operations, list) or "verify" not in operations:
        return None
    try:
        # Only its public part, whatever else is in there.
        parts = {name: entry[name] for name in ("kty", "n", "e", "crv", "x", "y") if name in entry}
        public = jwt.PyJWK(parts, algorithm=algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError):
        return None
    match public:
        case RSAPublicKey():
            fits = public.key_size in _KEY_BITS and public.public_numbers().e < _LARGEST_EXPONENT
        case EllipticCurvePublicKey():
            fits = isinstance(public.curve, SECP256R1)
        case _:
            fits = False
    return _Key(kid if isinstance(kid, str) else None, algorithm, public) if fits else None


# -- the ID token -----------------------------------------------------------------------------------------------------


class UnknownKey(Unauthorized):
    """None of the keys has signed it: the provider may have newer ones."""


def check_id_token(
    token: str, *, keys: ProviderKeys, issuer: str, client_id: str, nonce: str, now_ns: int
) -> dict[str, Any]:
    """Its claims (OpenID Connect Core, 3.1.3.7), if it is for us and for this attempt. `Unauthorized` says why, for the
    log.
    """
    kid, algorithm = _header(token)
    candidates = keys.of(kid, algorithm)
    if not candidates:
        raise UnknownKey("the ID token is signed with a key that the provider does not publish")
    claims = _verified(token, candidates, algorithm)
    if claims is None:  # without a name, the right key may be a newer one
        raise (UnknownKey if kid is None else Unauthorized)("the ID token was not signed by the provider")
    if claims.get("iss") != issuer:
        raise Unauthorized("the ID token is of another issuer")
    audience = claims.get("aud")
    listed = audience if isinstance(audience, list) else [audience]
    if client_id not in listed:
        raise Unauthorized("the ID token is for another client")
    if claims.get("azp", client_id) != client_id or (len(listed) > 1 and "azp" not in claims):
        raise Unauthorized("the ID token was issued to another client")
    given = claims.get("nonce")
    if not isinstance(given, str) or not hmac.compare_digest(given.encode("utf-8", "replace"), nonce.encode()):
        raise Unauthorized("the ID token is of another sign-in")
    now_s = now_ns / SECOND_NS
    if _time(claims, "exp") <= now_s - _SKEW_S:
        raise Unauthorized("the ID token has expired")
    issued = _time(claims, "iat")
    if issued > now_s + _SKEW_S or ("nbf" in claims and _time(claims, "nbf") > now_s + _SKEW_S):
        raise Unauthorized("the ID token begins later: compare this server's clock with the provider's")
    if issued < now_s - ATTEMPT_S - _SKEW_S:
        raise Unauthorized("the ID token was issued before this sign-in began")
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 1 <= len(subject) <= LONGEST_SUBJECT or not subject.isprintable():
        raise Unauthorized("the ID token names nobody")
    return claims


def _header(token: str) -> tuple[str | None, Algorithm]:
    head, _, _ = token.partition(".")
    if len(token) > LONGEST_TOKEN or not token.isascii():
        raise Unauthorized("the ID token is too long, or no text")
    try:
        header = load_json(base64.b64decode(head + "=" * (-len(head) % 4), altchars=b"-_", validate=True))
    except (Invalid, binascii.Error, ValueError):
        raise Unauthorized("what the provider sent is no ID token") from None
    if not isinstance(header, dict) or "crit" in header or str(header.get("typ", "JWT")).lower() not in _TYPES:
        raise Unauthorized("what the provider sent is no ID token")
    algorithm, kid = header.get("alg"), header.get("kid")
    if algorithm not in ALGORITHMS:
        raise Unauthorized(f"the ID token is signed with {str(algorithm)[:20]!r}, not {' or '.join(ALGORITHMS)}")
    if kid is not None and not isinstance(kid, str):
        raise Unauthorized("the ID token names its key in an unknown way")
    return kid, cast("Algorithm", algorithm)


def _verified(token: str, candidates: list[Any], algorithm: Algorithm) -> dict[str, Any] | None:
    # Only the signature: what the claims must say is checked by our own clock, and more strictly.
    for key in candidates:
        try:
            claims = load_json(jwt.PyJWS().decode(token, key, algorithms=[algorithm]))
        except jwt.InvalidSignatureError:
            continue
        except (jwt.InvalidTokenError, Invalid, ValueError, TypeError):
            break
        if isinstance(claims, dict):
            return claims
    return None


def _time(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Unauthorized(f"the ID token's {name} is no time")
    return float(value)


# -- who that is here -------------------------------------------------------------------------------------------------


def identity_of(claims: Mapping[str, Any]) -> Identity:
    """Of checked claims."""
    return Identity(claims["iss"], claims["sub"])


def role_of(claims: Mapping[str, Any], config: OpenIdSettings) -> Role | None:
    """The strongest that the provider's claim gives, else the default one. None: nobody without a role comes in."""
    value = None if config.role_claim is None else claims.get(config.role_claim)
    values = value if isinstance(value, list) else [value]
    given = {config.roles[one] for one in values if isinstance(one, str) and one in config.roles}
    return max(given, key=ROLES.index, default=config.default_role)


def names_of(claims: Mapping[str, Any]) -> list[str]:
    """What a new user may be called, the best first; the last one is nobody else's. A name proves nothing: who has it
    already stays who they are.
    """
    digest = hashlib.sha256("\0".join(identity_of(claims)).encode()).hexdigest()
    proven = ("email",) if claims.get("email_verified") is True else ()
    for claim in ("preferred_username", *proven, "name"):
        value = claims.get(claim)
        name = _NOT_IN_NAMES.sub("-", value[:_LONGEST_TEXT]).strip("-_.@+")[:64] if isinstance(value, str) else ""
        if re.fullmatch(NAME_PATTERN[1:-1], name):
            return [name, f"{name[:55]}-{digest[:8]}", f"u-{digest[:32]}"]
    return [f"u-{digest[:32]}"]


def display_name_of(claims: Mapping[str, Any]) -> str:
    value = claims.get("name")
    return "".join(c for c in value if c.isprintable())[:100] if isinstance(value, str) else ""
