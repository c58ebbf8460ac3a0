"""Real servers for tests: each listens on a free loopback port, keeps its files in a folder of the test, and is ended
by its own process id.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError

START_S = 15.0
USER = "tapewatch"
_RIGHTS = Path(__file__).parent.parent.parent / "deploy" / "redis" / "tapewatch.acl"


def user_line(password: str) -> str:
    """The line of a configuration that makes the user with whose rights everything is tried."""
    rights = [line for line in _RIGHTS.read_text().splitlines() if not line.startswith("#")]
    return f"user {USER} on >{password} {' '.join(rights)}"


class RedisProgram:
    """`redis-server` with a password of its own and an append-only file, so that a killed one comes back as it was. Its
    user for tapewatch has the rights of ``deploy/redis/tapewatch.acl``.
    """

    def __init__(
        self, folder: Path, *, tls: tuple[Path, Path] | None = None, settings: Sequence[str] = (), password: str = ""
    ) -> None:
        """With `tls` (a certificate with its key, in one file, and that of its issuer) it speaks TLS only. `settings`
        are further lines of its configuration.
        """
        program = shutil.which("redis-server")
        if program is None:
            pytest.fail("these tests start redis-server, which is not installed: apt-get install redis-server")
        self.program = program
        self._folder = folder
        self._tls = tls
        self._process: subprocess.Popen[bytes] | None = None
        self.settings = settings
        self.password = password or secrets.token_urlsafe(24)
        self.port = free_port()

    @property
    def url(self) -> str:
        return self.url_of(self.password)

    @property
    def admin_url(self) -> str:
        """As one who may do everything."""
        return self.url_of(self.password, user="")

    def url_of(self, password: str, *, host: str = "127.0.0.1", user: str = USER) -> str:
        if self._tls is None:
            return f"redis://{user}:{password}@{host}:{self.port}/0"
        return f"rediss://{user}:{password}@{host}:{self.port}/0?ssl_ca_certs={self._tls[1]}"

    def start(self) -> None:
        ports = [f"port {self.port}"]
        if self._tls is not None:
            identity, issuer = self._tls
            ports = ["port 0", f"tls-port {self.port}", f"tls-cert-file {identity}", f"tls-key-file {identity}"]
            ports += [f"tls-ca-cert-file {issuer}", "tls-auth-clients no"]
        settings = [*ports, "bind 127.0.0.1", f"dir {self._folder}", 'save ""', "appendonly yes", *self.settings]
        # The password stands in a file, because a command line can be read by everybody.
        configuration = self._folder / "redis.conf"
        people = [f"requirepass {self.password}", user_line(self.password)]
        configuration.write_text("\n".join([*settings, *people, ""]))
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen([self.program, str(configuration)], stdout=log, stderr=log)
        self._wait_until_it_answers()

    def kill(self) -> None:
        """SIGKILL: nothing is tidied up."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def cut(self, size: int) -> None:
        """Lose the last bytes of what a killed server wrote, as a machine that loses its power does."""
        (log,) = self._folder.glob("appendonlydir/*.incr.aof")
        os.truncate(log, log.stat().st_size - size)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def empty(self) -> None:
        with Redis.from_url(self.admin_url) as client:
            client.flushall()
            client.config_resetstat()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _wait_until_it_answers(self) -> None:
        until_s = time.monotonic() + START_S
        while True:
            try:
                with Redis.from_url(self.admin_url) as client:
                    client.ping()
            except RedisError as error:
                if time.monotonic() > until_s or (self._process is not None and self._process.poll() is not None):
                    log = (self._folder / "log").read_text(errors="replace")[-2_000:]
                    pytest.fail(f"redis-server does not answer ({error}); it said: {log}")
                time.sleep(0.01)
            else:
                return


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
