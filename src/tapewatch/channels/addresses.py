"""Which addresses a channel may connect to: public ones, and those that the operator allows.

A user names the host, and we connect from inside the operator's network. So a name is resolved here, all of its
addresses are checked, and whoever sends connects to an address that was checked, not to the name.
"""

import asyncio
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias
from urllib.parse import urlsplit

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network
Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]

HTTPS_PORT = 443
RESOLVE_S = 3.0
_MOST_ASKED = 64
_ASKING = threading.BoundedSemaphore(_MOST_ASKED)
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_INSIDE = (".localhost", ".local", ".internal", ".home.arpa", ".lan", ".intranet", ".corp", ".svc", ".onion")
_NEVER = tuple(
    ip_network(network)
    for network in (
        "168.63.129.16/32",  # a cloud's own services on a public address
        "192.0.0.0/24",  # protocols' own, and a cloud's metadata
        "192.88.99.0/24",  # relays of 6to4
        "::/96",  # IPv4 in IPv6, in all the ways that there are
        "::ffff:0:0/96",
        "::ffff:0:0:0/96",
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "2001::/23",
        "2002::/16",
        "3fff::/20",
        "5f00::/16",
        "fec0::/10",
    )
)


class AddressRefused(Exception):
    """Nobody is connected to it. The text says why, for whoever named it."""


class AddressUnknown(Exception):
    """The name has no address now."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that may be asked, at an address that was checked."""

    host: str
    port: int
    address: str
    path: str
    """With its query."""

    @property
    def url(self) -> str:
        """Of the address, in place of the name."""
        literal = f"[{self.address}]" if ":" in self.address else self.address
        return f"https://{literal}:{self.port}{self.path}"

    @property
    def host_header(self) -> str:
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == HTTPS_PORT else f"{name}:{self.port}"


async def resolve(host: str, port: int) -> Sequence[str]:
    """All IPv4 and IPv6 addresses, in the order in which the system prefers them.

    A name's owner decides how long its servers take, and the system waits much longer than we do. So each question has
    a thread of its own, which nobody waits for: the loop's own threads check passwords.
    """
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[Sequence[str] | None] = loop.create_future()

    def tell(found: Sequence[str] | None) -> None:
        if not answered.done():
            answered.set_result(found)

    def ask() -> None:
        found: Sequence[str] | None = None
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found = list(dict.fromkeys(str(info[4][0]) for info in infos))
        except (OSError, UnicodeError):
            pass
        finally:
            _ASKING.release()
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(tell, found)

    if not _ASKING.acquire(blocking=False):
        raise AddressUnknown(f"{host} cannot be looked up now: {_MOST_ASKED} other names are waited for")
    threading.Thread(target=ask, name="address of a channel", daemon=True).start()
    try:
        async with asyncio.timeout(RESOLVE_S):
            found = await answered
    except TimeoutError:
        found = None
    if found is None:
        raise AddressUnknown(f"{host} cannot be resolved")
    return found


@dataclass(frozen=True, slots=True)
class Addresses:
    """`allowed` networks may be connected to although they are private, on any port and by names without a dot; public
    hosts on `ports`.
    """

    allowed: tuple[Network, ...] = ()
    ports: frozenset[int] = frozenset({HTTPS_PORT})
    resolve: Resolve = resolve

    async def target(self, url: str) -> Target:
        """Where a webhook goes; `AddressRefused` or `AddressUnknown`."""
        try:
            parts = urlsplit(url)
            port = parts.port if parts.port is not None else HTTPS_PORT
            host = (parts.hostname or "").removesuffix(".")
        except ValueError:
            raise AddressRefused("is not a URL such as https://hooks.example.com/alerts") from None
        if parts.scheme != "https":
            raise AddressRefused("must begin with https://")
        if parts.username is not None or parts.password is not None or "\\" in url:
            raise AddressRefused("must not name a user or a password")
        if parts.fragment:
            raise AddressRefused("must not have a fragment (#)")
        address = await self.address_of(host, port)
        path = parts.path or "/"
        return Target(host, port, address, f"{path}?{parts.query}" if parts.query else path)

    async def address_of(self, host: str, port: int) -> str:
        """The address to connect to. All addresses of a name are checked: one that is refused refuses the name."""
        literal = _literal(host)
        if literal is None:
            _check_name(host)
            if not self.allowed and _is_inside(host):
                raise AddressRefused(f"{host} is a name of a private network")
            found = [ip_address(text.partition("%")[0]) for text in await self.resolve(host, port)]
            if not found:
                raise AddressUnknown(f"{host} cannot be resolved")
        else:
            found = [literal]
        for address in found:
            if not self.allows(address):
                raise AddressRefused(f"{host} is not a public address")
        inside = all(self._is_allowed(address) for address in found)
        if not inside and port not in self.ports:
            raise AddressRefused(f"the port {port} is not allowed; {', '.join(map(str, sorted(self.ports)))} is")
        if not inside and literal is None and _is_inside(host):
            raise AddressRefused(f"{host} is a name of a private network")
        return str(found[0])

    def allows(self, address: Address) -> bool:
        return self._is_allowed(address) or is_public(address)

    def _is_allowed(self, address: Address) -> bool:
        return any(address.version == network.version and address in network for network in self.allowed)


def is_public(address: Address) -> bool:
    if any(address.version == network.version and address in network for network in _NEVER):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _is_inside(host: str) -> bool:
    return "." not in host or host.endswith(_INSIDE)


def _literal(host: str) -> Address | None:
    """The address that a host is in itself. Forms that only some programs read as an address are refused."""
    if ":" in host:
        try:
            return ip_address(host.replace("%", ":::"))  # a zone is of this machine, and no part of an address
        except ValueError:
            raise AddressRefused(f"{host[:60]!r} is not an address") from None
    if _NUMBER.fullmatch(host.rpartition(".")[2]):
        try:
            return IPv4Address(host)
        except ValueError:
            raise AddressRefused(f"{host[:60]!r} is not an address such as 203.0.113.7") from None
    return None


def _check_name(host: str) -> None:
    if not 0 < len(host) <= 253 or not all(_LABEL.fullmatch(label) for label in host.split(".")):
        raise AddressRefused(f"{host[:60]!r} is not the name of a host")
