"""Where Redis is: one server, the master that Sentinels name, or the nodes of a Cluster.

====================================================  ==================================================
``redis://user:password@host:6379/0``                 one server; ``rediss://`` with TLS
``redis+sentinel://user:password@a:26379,b/name/0``   the master called ``name``, as the Sentinels say
``redis+cluster://user:password@a:6379,b:6380``       a Cluster, found through any of these nodes
====================================================  ==================================================

``rediss+sentinel://`` and ``rediss+cluster://`` are with TLS. Options of TLS follow as a query, such as
``?ssl_ca_certs=/etc/ca.pem``. Sentinels are spoken to without a password, or with that of ``sentinel_user`` and
``sentinel_password`` in the query.
"""

from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from redis.asyncio.connection import SSLConnection, parse_url

from tapewatch.errors import ConfigError

_SHAPE = (
    "a Redis URL reads redis://user:password@host:6379/0, redis+sentinel://user:password@host:26379,host/master/0 or "
    "redis+cluster://user:password@host:6379,host, or with rediss for TLS"
)
_SENTINEL = {"sentinel_user": "username", "sentinel_password": "password"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    kind: Literal["server", "sentinel", "cluster"]
    name: str
    """As people may see it, without secrets."""
    hosts: tuple[tuple[str, int], ...]
    """Of the server, the Sentinels, or some nodes of the Cluster."""
    master: str
    settings: dict[str, Any]
    """How a connection to a server is made, as the driver calls it."""
    sentinel_settings: dict[str, Any]
    secrets: frozenset[str]


def parsed(url: str) -> Address:
    """`ConfigError` with a text that holds nothing of it."""
    try:
        parts = urlsplit(url)
        scheme, _, kind = parts.scheme.partition("+")
        options = parse_qsl(parts.query, strict_parsing=bool(parts.query))
        credentials, at, places = parts.netloc.rpartition("@")
        default = 26379 if kind == "sentinel" else 6379
        hosts = tuple(_host(place, default) for place in places.split(","))
    except ValueError:  # its text may hold the password
        raise ConfigError(_SHAPE) from None
    path = parts.path.strip("/").split("/") if parts.path.strip("/") else []
    master = unquote(path.pop(0)) if kind == "sentinel" and path else ""
    database = path.pop(0) if path and kind != "cluster" else "0"
    sound = scheme in {"redis", "rediss"} and kind in {"", "sentinel", "cluster"} and all(host for host, _ in hosts)
    if not sound or path or not database.isdecimal() or (kind == "sentinel") != bool(master):
        raise ConfigError(_SHAPE)
    if kind == "" and len(hosts) > 1:
        raise ConfigError(_SHAPE)
    for option, _ in options:
        if not option.startswith("ssl_") and not (kind == "sentinel" and option in _SENTINEL):
            raise ConfigError(f"a Redis URL takes options of TLS (ssl_…) only, not {option}")
    tls = urlencode([(option, value) for option, value in options if option.startswith("ssl_")])
    one = f"{scheme}://{credentials}{at}{_text(*hosts[0])}/{database}?{tls}"
    settings: dict[str, Any] = dict(parse_url(one))
    for given in ("host", "port"):
        settings.pop(given, None)
    if settings.pop("connection_class", None) is SSLConnection:
        settings |= {"ssl": True, "ssl_check_hostname": True}
    unnamed = {name: value for name, value in settings.items() if name not in {"username", "password", "db"}}
    sentinel_settings = unnamed | {_SENTINEL[option]: value for option, value in options if option in _SENTINEL}
    password = credentials.partition(":")[2]
    secrets = {password, unquote(password), sentinel_settings.get("password", "")} - {""}
    shown = ",".join(_text(*host) for host in hosts)
    return Address(
        kind="sentinel" if kind == "sentinel" else "cluster" if kind == "cluster" else "server",
        name=f"{parts.scheme}://{shown}"
        + {"": f"/{database}", "sentinel": f"/{quote(master)}/{database}", "cluster": ""}[kind],
        hosts=hosts,
        master=master,
        settings=settings,
        sentinel_settings=sentinel_settings,
        secrets=frozenset(secrets),
    )


def _host(place: str, default: int) -> tuple[str, int]:
    parts = urlsplit(f"//{place}")
    port = default if parts.port is None else parts.port
    if not port:
        raise ValueError("port 0")
    return parts.hostname or "", port


def _text(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
