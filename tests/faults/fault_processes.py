"""Programs under test as processes of the operating system: each with its log in a file, each ended by its own id.

A process started here dies with the test run, however that ends: the kernel kills it when the thread that started it is
gone. So programs are started by the main thread, which lives as long as the run.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

PATIENCE_S = 20.0
LOOK_AGAIN_S = 0.01
_TAIL_BYTES = 4_000
_FIRST_PORT, _LAST_PORT = 20_000, 32_000
"""Below the range from which the kernel takes the ports of outgoing connections: a port stays ours while its server is
away.
"""
_given: set[int] = set()

T = TypeVar("T")


class Program:
    """One program, which may be started many times; `prefix` is the command that puts it into a namespace."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.command = list(command)
        self.prefix = list(prefix)
        self.log = log
        self._env = dict(env or {})
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """Of the process, also after it ended; None before the first start."""
        return None if self._process is None else self._process.pid

    @property
    def running(self) -> bool:
        """A paused process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        if self.running:
            raise RuntimeError(f"{self.name} is running")
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(f"{self.name} would die with this thread; the main thread starts programs")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            log.write(f"--- start {self.starts + 1} of {self.name}\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                [*self.prefix, _setpriv(), "--pdeathsig", "KILL", *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **self._env},
            )
        self.starts += 1

    def kill(self) -> None:
        """SIGKILL: nothing is tidied up. A process that ended is left alone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self, *, within_s: float = PATIENCE_S) -> int | None:
        """SIGTERM, and how it ended. One that does not end in time is killed, and `TimeoutError` tells."""
        if self._process is None:
            return None
        self._process.send_signal(signal.SIGCONT)  # a paused process would not hear
        self._process.terminate()
        try:
            return self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise TimeoutError(f"{self.name} did not end within {within_s:g} s of SIGTERM\n{self.tail()}") from None

    def pause(self) -> None:
        """SIGSTOP. Sockets stay open, and the kernel goes on taking what is sent to them."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def tail(self) -> str:
        """The end of its log."""
        if not self.log.exists():
            return f"{self.name} has no log"
        with self.log.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - _TAIL_BYTES))
            return f"{self.name} ({self._state()}) said:\n{log.read().decode(errors='replace')}"

    def _state(self) -> str:
        if self._process is None:
            return "never started"
        return f"pid {self.pid} runs" if self.running else f"ended with {self.returncode}"


def until(found: Callable[[], T | None], what: str, *, within_s: float = PATIENCE_S) -> T:
    """What `found` gives as soon as it is neither None nor False; `TimeoutError` names what was waited for."""
    until_s = time.monotonic() + within_s
    while True:
        value = found()
        if value is not None and value is not False:
            return value
        if time.monotonic() > until_s:
            raise TimeoutError(f"{what}: not within {within_s:g} s")
        time.sleep(LOOK_AGAIN_S)


def private_port() -> int:
    """A free loopback port that neither this run nor an outgoing connection takes meanwhile."""
    for _ in range(1_000):
        port = _FIRST_PORT + secrets.randbelow(_LAST_PORT - _FIRST_PORT)
        if port in _given:
            continue
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port
    raise RuntimeError("no loopback port is free")


def python(*arguments: str) -> list[str]:
    """The command of a program in the interpreter that runs the tests."""
    return [sys.executable, *arguments]


def found_program(name: str, *, package: str) -> str:
    """The path of an installed program; the error says which Debian package has it."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if path is None:
        raise FileNotFoundError(f"these tests start {name}, which is not installed: apt-get install {package}")
    return path


def _setpriv() -> str:
    return found_program("setpriv", package="util-linux")
