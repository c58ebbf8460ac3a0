"""What a person or a program that asks may do.

A role is a set of scopes; a token of the API may have fewer. Scopes say which operations are open, ownership says on
which objects: what is another's is as good as not there.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

Role = Literal["viewer", "trader", "operator", "admin"]
Scope = Literal[
    "market:read",
    "rules:read",
    "rules:write",
    "alerts:read",
    "alerts:write",
    "toplists:read",
    "toplists:write",
    "watchlists:read",
    "watchlists:write",
    "channels:read",
    "channels:write",
    "account:read",
    "account:write",
    "system:read",
    "audit:read",
    "users:read",
    "users:write",
]
"""What belongs to a user is named by what it is; `market` is what everybody sees: symbols, bars, metrics, templates."""

ROLES: tuple[Role, ...] = get_args(Role)
SCOPES: tuple[Scope, ...] = get_args(Scope)
_VIEWER: frozenset[Scope] = frozenset(
    {
        "market:read",
        "rules:read",
        "alerts:read",
        "toplists:read",
        "watchlists:read",
        "channels:read",
        "account:read",
        "account:write",
        "system:read",
    }
)
_TRADER: frozenset[Scope] = _VIEWER | {
    "rules:write",
    "alerts:write",
    "toplists:write",
    "watchlists:write",
    "channels:write",
}
_OF_ROLE: dict[Role, frozenset[Scope]] = {
    "viewer": _VIEWER,
    "trader": _TRADER,
    "operator": _TRADER | {"audit:read", "users:read"},
    "admin": frozenset(SCOPES),
}


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks."""

    user_id: str
    role: Role
    scopes: frozenset[Scope]
    """At most those of the role."""

    @classmethod
    def of(cls, user_id: str, role: Role, *, scopes: Iterable[Scope] | None = None) -> "Principal":
        """With all that the role may, or with those of `scopes` that it may."""
        own = _OF_ROLE[role]
        return cls(user_id, role, own if scopes is None else own & frozenset(scopes))

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes

    def sees(self, owner: str, *, shared: bool = False) -> bool:
        """Whether an object of that owner is there for them."""
        return shared or self.changes(owner)

    def changes(self, owner: str) -> bool:
        return owner == self.user_id or self.role == "admin"


LOCAL = Principal.of("local", "admin")
"""The one user of a process on loopback that has no accounts."""
