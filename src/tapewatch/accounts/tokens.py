"""Tokens: what is signed, what is drawn by lot, and how both are checked.

An access token is a JWT that lives fifteen minutes and is signed with HS256, the one algorithm there is: what a token
says of its own algorithm or key decides nothing. Refresh tokens and API tokens are random, and only their SHA-256 is
kept: they have 256 bits, so there is nothing to guess. Who may still come in, `serve.access` decides.
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import jwt

from tapewatch.engine.columns import SECOND_NS
from tapewatch.errors import ConfigError, Invalid, Unauthorized
from tapewatch.strict import load_json

ISSUER = "tapewatch"
ACCESS_S = 15 * 60
REFRESH_S = 30 * 24 * 3600
LONGEST_TOKEN = 4_096
"""Characters: nothing longer is decoded."""
_ALGORITHM = "HS256"
_HEADER = {"alg": _ALGORITHM, "typ": "JWT"}
_CLAIMS: Mapping[str, type] = {
    "iss": str,
    "aud": str,
    "sub": str,
    "exp": int,
    "iat": int,
    "jti": str,
    "sid": str,
    "typ": str,
    "epoch": int,
}
_SKEW_S = 30
"""So far the clocks of two machines of an installation may be apart."""
_LEAST_SECRET = 32
_LEAST_LETTERS = 10
"""Different ones: a word repeated is no secret."""
_PUBLISHED = re.compile(
    r"change.?me|your.?(?:256|384|512|super|secret|jwt|own)|replace.?(?:me|this)|secret.at.least|example|insecure"
    r"|qwertyuiopasdfghjklzxcvbnm|09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7"
    r"|gX2x!aP|supersecret|password",
    re.IGNORECASE,
)
"""Of documentation that many copy: tutorials of JWT, of web frameworks, sample environments."""
_API_TOKEN = re.compile(r"tw_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
_REFRESH_TOKEN = re.compile(r"([0-9a-f]{32})\.([A-Za-z0-9_-]{43})")
_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


@dataclass(frozen=True, slots=True)
class Claims:
    """What an access token says, once it is known to be ours and in time."""

    user_id: str
    session_id: str
    epoch: int
    expires_ns: int


@dataclass(frozen=True, slots=True)
class _Key:
    secret: bytes = field(repr=False)
    until_ns: int | None = None


class Keys:
    """The secrets of an installation: the first signs, the others verify until a stated time."""

    def __init__(self, newest: str, older: Mapping[str, int] | None = None, *, where: str = "secret") -> None:
        """`older`: secret -> the time in ns from which on it no longer verifies. `ConfigError` for a weak one."""
        self._newest = _Key(_strong(newest, where))
        self._older = [_Key(_strong(secret, where), until_ns) for secret, until_ns in (older or {}).items()]

    @classmethod
    def parse(cls, text: str, *, where: str = "TAPEWATCH_SECRET") -> "Keys":
        """A secret; below it a line for each older one, ``SECRET until 2026-08-01T00:00:00Z``."""
        newest, *rest = [line.strip() for line in text.strip().splitlines() if line.strip()] or [""]
        older: dict[str, int] = {}
        for line in rest:
            secret, until, when = line.rpartition(" until ")
            try:
                moment = datetime.fromisoformat(when.strip())
                older[secret.strip()] = (moment - _EPOCH) // timedelta(microseconds=1) * 1_000
            except (ValueError, TypeError):  # a time without its zone is the latter
                until = ""
            if not until:
                raise ConfigError(f"{where}: below the first secret, a line is: SECRET until 2026-08-01T00:00:00Z")
        if " " in newest:
            raise ConfigError(f"{where}: the first line is the secret that signs, without spaces")
        return cls(newest, older, where=where)

    def sign(self, *, user_id: str, session_id: str, epoch: int, audience: str, now_ns: int) -> str:
        """An access token that is good from now for `ACCESS_S`."""
        issued = now_ns // SECOND_NS
        claims = {
            "iss": ISSUER,
            "aud": audience,
            "sub": user_id,
            "exp": issued + ACCESS_S,
            "iat": issued,
            "jti": secrets.token_hex(8),
            "sid": session_id,
            "typ": "access",
            "epoch": epoch,
        }
        return jwt.encode(claims, self._newest.secret, algorithm=_ALGORITHM)

    def derived(self, purpose: str) -> bytes:
        """A key for something else than tokens, of the newest secret alone."""
        return hmac.digest(self._newest.secret, f"tapewatch {purpose}".encode(), "sha256")

    def read(self, token: str, *, audience: str, now_ns: int) -> Claims:
        """`Unauthorized` unless it is one of ours, for this installation, and in time."""
        if len(token) > LONGEST_TOKEN or not token.isascii():
            raise Unauthorized
        _check_header(token)
        claims = self._verified(token, audience, now_ns)
        if claims.keys() - {"nbf"} != _CLAIMS.keys() or claims["typ"] != "access":
            raise Unauthorized
        if any(type(claims[name]) is not kind for name, kind in _CLAIMS.items()):
            raise Unauthorized
        now_s = now_ns / SECOND_NS
        begins = claims.get("nbf", claims["iat"])
        if type(begins) is not int or max(begins, claims["iat"]) > now_s + _SKEW_S:
            raise Unauthorized
        if not claims["iat"] < claims["exp"] <= claims["iat"] + ACCESS_S or claims["exp"] <= now_s:
            raise Unauthorized
        return Claims(claims["sub"], claims["sid"], claims["epoch"], claims["exp"] * SECOND_NS)

    def _verified(self, token: str, audience: str, now_ns: int) -> dict[str, Any]:
        # Times are checked by our own clock, and strictly: the library would take "1" and 1.5 for a time.
        options: Any = {"verify_exp": False, "verify_nbf": False, "verify_iat": False, "require": list(_CLAIMS)}
        options["strict_aud"] = True
        for key in (self._newest, *self._older):
            if key.until_ns is not None and now_ns >= key.until_ns:
                continue
            try:
                with warnings.catch_warnings():
                    found: dict[str, Any] = jwt.decode(
                        token, key.secret, algorithms=[_ALGORITHM], audience=audience, issuer=ISSUER, options=options
                    )
            except (jwt.InvalidTokenError, ValueError, TypeError, RecursionError):
                continue
            return found
        raise Unauthorized


def _check_header(token: str) -> None:
    """Nothing but the algorithm and the type: no key of the sender's, no extension that we would have to understand."""
    head, _, _ = token.partition(".")
    try:
        header = load_json(base64.b64decode(head + "=" * (-len(head) % 4), altchars=b"-_", validate=True))
    except (Invalid, binascii.Error, ValueError):
        raise Unauthorized from None
    if not isinstance(header, dict) or {"typ": "JWT", **header} != _HEADER:
        raise Unauthorized


def _strong(secret: str, where: str) -> bytes:
    raw = secret.encode()
    if len(raw) < _LEAST_SECRET:
        raise ConfigError(f"{where}: a secret has at least {_LEAST_SECRET} bytes; make one with: openssl rand -hex 32")
    if _PUBLISHED.search(secret) or len(set(secret)) < _LEAST_LETTERS:
        raise ConfigError(f"{where}: this is an example that everybody knows; make one with: openssl rand -hex 32")
    return raw


def hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def is_secret(secret: str, stored_hash: str) -> bool:
    """In a time that does not depend on where they differ."""
    return hmac.compare_digest(hashed(secret), stored_hash)


def new_api_token() -> tuple[str, str, str]:
    """Its id, the hash of its secret, and the token itself, which is shown once."""
    token_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    return token_id, hashed(secret), f"tw_{token_id}_{secret}"


def parse_api_token(token: str) -> tuple[str, str] | None:
    """Its id and its secret."""
    match = _API_TOKEN.fullmatch(token)
    return None if match is None else (match[1], match[2])


def new_session_id() -> str:
    return secrets.token_hex(16)


def new_refresh_token(session_id: str) -> tuple[str, str]:
    """The hash of its secret, and the token."""
    secret = secrets.token_urlsafe(32)
    return hashed(secret), f"{session_id}.{secret}"


def parse_refresh_token(token: str) -> tuple[str, str] | None:
    """The session's id and the secret."""
    match = _REFRESH_TOKEN.fullmatch(token)
    return None if match is None else (match[1], match[2])
