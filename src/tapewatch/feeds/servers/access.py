"""Where replay servers listen, and whom they let in: loopback sockets and credentials."""

import asyncio
import contextlib
import hmac
import os
import socket
import struct
from dataclasses import dataclass, field

from tapewatch.errors import ConfigError

_SEND_BUFFER = 256 * 1024
"""Bytes that the system takes for a client before it counts as slow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a client must bring; None accepts anything. Never shown."""

    key: str | None = field(default=None, repr=False)
    secret: str | None = field(default=None, repr=False)

    @classmethod
    def from_environment(cls) -> "Credentials":
        """`TAPEWATCH_SERVE_KEY` and `TAPEWATCH_SERVE_SECRET`, where they are set."""
        return cls(
            key=os.environ.get("TAPEWATCH_SERVE_KEY") or None, secret=os.environ.get("TAPEWATCH_SERVE_SECRET") or None
        )

    def accept(self, key: str | None, secret: str | None = None) -> bool:
        """Whether this is the key, and the secret where one is set and the provider has one."""
        return _fits(self.key, key) and (secret is None or _fits(self.secret, secret))


def _fits(wanted: str | None, given: str | None) -> bool:
    return wanted is None or (given is not None and hmac.compare_digest(wanted.encode(), given.encode()))


def listen(host: str, port: int) -> socket.socket:
    """Port 0 takes a free one. `ConfigError` if the address is not of this machine's loopback, or not free."""
    if host not in {"127.0.0.1", "localhost", "::1"}:
        raise ConfigError(f"--host: {host!r} is not a loopback address")
    if not 0 <= port <= 65_535:
        raise ConfigError(f"--port: {port} is not a port (0 to 65535)")
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(f"--port: cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}") from None
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)  # inherited by what it accepts
    return listener


def address(listener: socket.socket) -> str:
    """As it stands in a URL: ``127.0.0.1:8901``."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reset(transport: asyncio.WriteTransport) -> None:
    """End a TCP connection as a crash or a pulled plug would: a reset, without a goodbye."""
    with contextlib.suppress(OSError, AttributeError):  # it is closed already
        wire = transport.get_extra_info("socket")
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
