"""What an operator says of an OpenID provider, checked once. It imports little: every command reads it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from tapewatch.accounts.roles import ROLES, Role
from tapewatch.errors import ConfigError

LONGEST_SUBJECT = 255
"""Characters, as the standard has it."""
_ORIGIN = re.compile(r"https?://[^/?]+")
_SCOPE = re.compile(r"[!#-\[\]-~]{1,100}")


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenIdSettings:
    """Signing in through an OpenID provider. The client's secret is in `secret_file` or in TAPEWATCH_OIDC_SECRET; a
    client without one proves itself by PKCE alone.
    """

    issuer: str
    """As the provider writes it, with or without the slash at its end."""
    client_id: str
    public_url: str
    """The page's origin as browsers know it, such as https://scan.example.com."""
    name: str = ""
    """On the button; "": the issuer's host."""
    secret_file: Path | None = None
    scopes: tuple[str, ...] = ("profile", "email")
    """Besides openid."""
    default_role: Role | None = "viewer"
    """Of whom no role is known; None: they do not come in."""
    role_claim: str | None = None
    roles: Mapping[str, Role] = field(default_factory=dict)
    """By the values of the claim."""

    def __post_init__(self) -> None:
        if not is_web_address(self.issuer, plain=True) or "?" in self.issuer:
            raise ConfigError(
                f"--oidc-issuer: {self.issuer!r} is not an address such as https://id.example.com; http is for this "
                "machine alone"
            )
        if not is_web_address(self.public_url, plain=True) or not _ORIGIN.fullmatch(self.public_url):
            raise ConfigError(
                f"--public-url: {self.public_url!r} is not the origin of the page, such as https://scan.example.com; "
                "http is for this machine alone"
            )
        for option, text, most in (
            ("--oidc-client-id", self.client_id, 200),
            ("--oidc-name", self.shown_name, 60),
            ("--oidc-role-claim", self.role_claim or "roles", 200),
            *(("--oidc-role", value, 200) for value in self.roles),
        ):
            if not 0 < len(text) <= most or not text.isprintable():
                raise ConfigError(f"{option}: {text[:60]!r} is not 1 to {most} characters that can be shown")
        for scope in self.scopes:
            if not _SCOPE.fullmatch(scope):
                raise ConfigError(f"--oidc-scope: {scope!r} is not a scope such as groups")
        if bool(self.roles) != (self.role_claim is not None):
            raise ConfigError("--oidc-role-claim and --oidc-role go together")

    @property
    def shown_name(self) -> str:
        return self.name or urlsplit(self.issuer).hostname or ""

    @property
    def is_secure(self) -> bool:
        """Whether browsers come over TLS."""
        return self.public_url.startswith("https:")


def openid_settings(
    *,
    issuer: str | None,
    client_id: str | None,
    public_url: str | None,
    secret_file: Path | None,
    name: str | None,
    scopes: Sequence[str],
    default_role: str,
    role_claim: str | None,
    roles: Sequence[str],
) -> OpenIdSettings | None:
    """As the command line has it; None without a provider."""
    if issuer is None:
        for option, given in (
            ("--oidc-client-id", client_id),
            ("--oidc-secret-file", secret_file),
            ("--oidc-name", name),
            ("--oidc-scope", scopes),
            ("--oidc-role-claim", role_claim),
            ("--oidc-role", roles),
            ("--public-url", public_url),
        ):
            if given:
                raise ConfigError(f"{option} goes with --oidc-issuer")
        return None
    if client_id is None:
        raise ConfigError("--oidc-client-id is missing: what the provider calls this installation")
    if public_url is None:
        raise ConfigError("--public-url is missing: where the provider sends browsers back to")
    mapped: dict[str, Role] = {}
    for pair in roles:
        value, _, role = pair.rpartition("=")
        mapped[value] = _role(role, option="--oidc-role", example="scanner-admins=admin")
    return OpenIdSettings(
        issuer=issuer,
        client_id=client_id,
        public_url=_origin(public_url),
        name=name or "",
        secret_file=secret_file,
        scopes=tuple(scopes) or ("profile", "email"),
        default_role=None
        if default_role == "none"
        else _role(default_role, option="--oidc-default-role", example="viewer, or none"),
        role_claim=role_claim,
        roles=mapped,
    )


def _origin(address: str) -> str:
    """As browsers name it: without a path, without the port that goes without saying; other texts as they are."""
    try:
        parts = urlsplit(address)
        default = {"https": 443, "http": 80}.get(parts.scheme)
        port = "" if parts.port in {None, default} else f":{parts.port}"
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    except ValueError:
        return address
    is_origin = host and parts.username is None and parts.path in {"", "/"} and not (parts.query or parts.fragment)
    return f"{parts.scheme}://{host}{port}" if is_origin else address


def _role(text: str, *, option: str, example: str) -> Role:
    if text not in ROLES:
        raise ConfigError(f"{option}: {text!r} is none of the roles {', '.join(ROLES)}; write it as {example}")
    return text


def is_web_address(text: str, *, plain: bool) -> bool:
    """An address that begins with https://; with `plain` also http:// on this machine."""
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return False
    if len(text) > 2_000 or not text.isascii() or not text.isprintable() or " " in text or "\\" in text:
        return False
    if not host or parts.username is not None or parts.fragment:
        return False
    return parts.scheme == "https" or (plain and parts.scheme == "http" and _is_here(host))


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
