"""What is kept of users, of their sign-ins and of the tokens that they gave to programs."""

import re
import secrets
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, NamedTuple
from zoneinfo import available_timezones

from pydantic import AfterValidator, Field

from tapewatch.accounts.roles import Role, Scope
from tapewatch.errors import Invalid
from tapewatch.strict import Document, Finite, Text

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.@+\-]{0,63}$"
NEVER_NS = 2**63 - 1
"""When something ends that has no end."""
MOST_SESSIONS = 20
"""Of a user at once; a further sign-in ends the one that was used longest ago."""
MOST_TOKENS = 50
"""Of a user at once."""

zones = cache(available_timezones)


def _zone(value: str) -> str:
    if value not in zones():
        raise ValueError("is not a time zone such as America/New_York")
    return value


_PLAIN = Field(json_schema_extra={"format": "plain-text"})
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
_EXACT = Field(ge=-(2**53), le=2**53)
Preference = (
    bool | Annotated[int, _EXACT] | Annotated[Finite, _EXACT] | Annotated[Text, _PLAIN, Field(max_length=500)] | None
)
Preferences = Annotated[
    dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]{1,64}$")], Preference], Field(max_length=100)
]
Zone = Annotated[str, Field(max_length=64, json_schema_extra={"format": "time-zone"}), AfterValidator(_zone)]


class Profile(Document):
    """What users say of themselves. Nothing in it decides what they may."""

    display_name: Annotated[Text, _PLAIN, Field(max_length=100)] = ""
    time_zone: Zone = "America/New_York"
    preferences: Preferences = Field(default={})
    """Such as the page's theme; the product does not read them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    user_id: str
    name: str
    """Two that differ only in capitals are the same."""
    role: Role
    password_hash: str = field(repr=False)
    """"": nobody signs in with a password."""
    created_at_ns: int
    disabled: bool = False
    epoch: int = 1
    """Rises with each change of password, role or `disabled`; what was given out before is no longer good."""
    profile: Profile = field(default_factory=Profile, repr=False)


class Identity(NamedTuple):
    """Somebody whom an OpenID provider knows. Names and addresses change hands there; this pair does not."""

    issuer: str
    subject: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SignIn:
    """A user's session on one device, from signing in to the end of its refresh token."""

    session_id: str
    user_id: str
    refresh_hash: str = field(repr=False)
    """SHA-256 of the only refresh token that is good now."""
    created_at_ns: int
    expires_ns: int
    used_at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiToken:
    """What a program shows in place of a password."""

    token_id: str
    user_id: str
    name: str
    secret_hash: str = field(repr=False)
    """SHA-256 of the secret, in hex."""
    scopes: frozenset[Scope] | None
    """None: all that the user's role has."""
    created_at_ns: int
    expires_ns: int = NEVER_NS
    used_at_ns: int | None = None
    revoked: bool = False


def new_user_id() -> str:
    """Never used again, so that what the audit log says of it stays true."""
    return f"u{secrets.token_hex(8)}"


def check_name(name: str, *, where: str = "name") -> str:
    if not re.fullmatch(NAME_PATTERN[1:-1], name):
        raise Invalid(where, "must be 1 to 64 letters, digits or . _ @ + -, and begin with a letter or digit")
    return name
