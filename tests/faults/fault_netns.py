"""Network namespaces: one role's process on a machine of its own, with a cable to this one that can be cut.

A namespace has a pair of addresses out of 10.214.0.0/15, `outside` on this machine and `inside`. A server is reached
from within at `outside`, if it listens there: Redis is given the address as well, anything else gets a `Proxy` on it.
Nothing leaves the machine: there is no route out of the namespace but the cable.

Namespaces are named after the process that made them, and whoever makes one removes those whose maker has died.
"""

import contextlib
import ctypes
import os
import re
import secrets
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from fault_processes import found_program

Direction = Literal["both", "out", "in"]

_NAME = re.compile(r"twf(\d+)-[0-9a-f]{4}")
_NOBODY = "02:00:00:00:00:ee"
"""A hardware address that no end of the cable has: frames for it are dropped on arrival."""
_CLONE_NEWNET = 0x4000_0000


class Namespace:
    """`prefix` put before a command runs it inside, under the same process id."""

    def __init__(self) -> None:
        self.outside = self.inside = ""
        self.name = f"twf{os.getpid()}-{secrets.token_hex(2)}"
        self._cable = f"v{self.name[3:]}"  # 15 letters at most, with a process id of seven

    @property
    def prefix(self) -> list[str]:
        return [_ip_program(), "netns", "exec", self.name]

    def create(self) -> None:
        """`PermissionError` without the right to."""
        sweep()
        self.outside, self.inside = _addresses()
        try:
            _ip("netns", "add", self.name)
        except subprocess.CalledProcessError as error:
            self.remove()
            raise PermissionError(error.stderr.strip()) from None
        try:
            _ip("link", "add", self._cable, "type", "veth", "peer", "name", "eth0", "netns", self.name)
            _ip("address", "add", f"{self.outside}/30", "dev", self._cable)
            _ip("link", "set", self._cable, "up")
            self._ip("address", "add", f"{self.inside}/30", "dev", "eth0")
            self._ip("link", "set", "lo", "up")
            self._ip("link", "set", "eth0", "up")
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Processes inside go on until they are ended, without a cable."""
        for words in (("link", "delete", self._cable), ("netns", "delete", self.name)):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip(*words)

    # -- faults -------------------------------------------------------------------------------------------------------

    def cut(self, direction: Direction = "both") -> None:
        """Silently: what is sent from within (`out`) or to it (`in`) arrives nowhere, and nobody is told."""
        if direction in {"both", "out"}:
            self._ip("neighbour", "replace", self.outside, "lladdr", _NOBODY, "dev", "eth0", "nud", "permanent")
        if direction in {"both", "in"}:
            _ip("neighbour", "replace", self.inside, "lladdr", _NOBODY, "dev", self._cable, "nud", "permanent")

    def unplug(self) -> None:
        """Pull the cable: the process inside is told that the network is unreachable."""
        self._ip("link", "set", "eth0", "down")

    def mend(self) -> None:
        self._ip("link", "set", "eth0", "up")
        for words, run in (((self.outside, "dev", "eth0"), self._ip), ((self.inside, "dev", self._cable), _ip)):
            with contextlib.suppress(subprocess.CalledProcessError):  # none is known, which is as good
                run("neighbour", "delete", *words)

    # -- a look inside ------------------------------------------------------------------------------------------------

    def connect(self, port: int, *, host: str = "127.0.0.1", within_s: float = 2.0) -> socket.socket:
        """A connection made inside, such as to the probes of the process there, which listen on its own loopback."""
        made: list[socket.socket | BaseException] = []

        def make() -> None:
            try:
                _enter(Path("/run/netns") / self.name)
                made.append(socket.create_connection((host, port), within_s))
            except BaseException as error:  # noqa: BLE001  # raised again below, in the caller's thread
                made.append(error)

        # A thread has a network namespace of its own, and a socket stays in the one where it was made.
        thread = threading.Thread(target=make, name=f"inside {self.name}")
        thread.start()
        thread.join()
        if isinstance(made[0], BaseException):
            raise made[0]
        return made[0]

    def _ip(self, *words: str) -> str:
        return _ip("-n", self.name, *words)


@contextlib.contextmanager
def namespace() -> Iterator[Namespace]:
    """A namespace; without the right to make one the test is skipped on a desk, and fails in continuous integration."""
    made = Namespace()
    try:
        made.create()
    except (PermissionError, FileNotFoundError) as error:
        reason = f"network namespaces cannot be made here, which takes root and iproute2: {error}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    try:
        yield made
    finally:
        made.remove()


def sweep() -> None:
    """Remove namespaces whose maker has died; their cables go with them."""
    for line in _ip("netns", "list").splitlines():
        found = _NAME.match(line)
        if found is not None and not Path(f"/proc/{found[1]}").exists():
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", found[0])


def _addresses() -> tuple[str, str]:
    """Two addresses that no interface of this machine has."""
    taken = _ip("-4", "-o", "address", "show")
    while True:
        net = 0x0AD6_0000 + secrets.randbelow(1 << 15) * 4  # 10.214.0.0/15, in blocks of four
        outside, inside = (socket.inet_ntoa(struct.pack("!I", net + host)) for host in (1, 2))
        if f" {outside}/" not in taken:
            return outside, inside


def _enter(namespace_: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with namespace_.open("rb") as file:
        if libc.setns(file.fileno(), _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(namespace_))


def _ip(*words: str) -> str:
    return subprocess.run([_ip_program(), *words], capture_output=True, text=True, check=True).stdout


def _ip_program() -> str:
    return found_program("ip", package="iproute2")
