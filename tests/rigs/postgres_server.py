"""A PostgreSQL server for tests, with TimescaleDB: on a free loopback port, in a folder of its own, ended by its own
process id.
"""

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import asyncpg
import psutil
import pytest
from servers import free_port

START_S = 15.0
ROOM_BYTES = 4 * 2**30
TOP = Path(__file__).parent.parent.parent
UNPACKED = TOP / ".services" / "postgresql"
ROLES = TOP / "deploy" / "postgres"
ADMIN, OWNER, APP, READER = "postgres", "tapewatch_owner", "tapewatch_app", "tapewatch_reader"


def programs() -> Path:
    """The folder of `postgres` and `initdb`."""
    folder = Path(os.environ.get("TAPEWATCH_POSTGRES_BIN") or UNPACKED).resolve()
    if not (folder / "postgres").is_file():
        pytest.fail("these tests start PostgreSQL with TimescaleDB, which is not there: run `make servers`")
    return folder


def _roomy_memory() -> str | None:
    """A new database is a thousand small files, of which disks are no friends; None where memory holds no files."""
    memory = Path("/dev/shm")  # noqa: S108 - what is made in it has a name that nobody can guess
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > ROOM_BYTES else None


class PostgresProgram:
    """`postgres` that asks for passwords. Its databases have the users of ``deploy/postgres``: an owner, who may do
    nothing else, one who reads and writes rows, and a reader. A killed one comes back with everything that was
    committed.
    """

    def __init__(self, *, timescaledb: bool = True, standby_of: "PostgresProgram | None" = None) -> None:
        self._programs = programs()
        self._timescaledb = timescaledb
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        self._as_nobody: dict[str, Any] = {}
        # PostgreSQL refuses to run as root, and nobody else may look into root's folders: neither here nor at tmp_path.
        self._folder = Path(tempfile.mkdtemp(prefix="tapewatch-postgres-", dir=_roomy_memory()))
        if os.geteuid() == 0:
            self._as_nobody = {"user": "nobody", "group": "nogroup", "extra_groups": []}
            shutil.chown(self._folder, "nobody", "nogroup")
        self.port = free_port()
        self.password: str = standby_of.password if standby_of else secrets.token_urlsafe(24)
        self.admin_password: str = standby_of.admin_password if standby_of else secrets.token_urlsafe(24)
        try:
            if standby_of is None:
                self._make()
            else:
                self._copy(standby_of)
        except BaseException:
            self.remove()
            raise

    def url_of(self, database: str, *, password: str | None = None, user: str = OWNER) -> str:
        return f"postgresql://{user}:{quote(password or self.password)}@127.0.0.1:{self.port}/{database}"

    def app_url_of(self, database: str) -> str:
        """As everybody uses it who does not upgrade it."""
        return self.url_of(database, user=APP)

    def admin_url_of(self, database: str) -> str:
        return self.url_of(database, user=ADMIN, password=self.admin_password)

    def runs(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._folder / "data"], stdout=log, stderr=log, **self._options()
            )
        until_s = time.monotonic() + START_S
        while subprocess.run(
            [self._programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)], check=False
        ).returncode:
            if time.monotonic() > until_s or self._process.poll() is not None:
                pytest.fail(f"postgres does not answer; it said: {self.log()}")
            time.sleep(0.01)

    def stop(self, how: Literal["fast", "immediate"] = "fast") -> None:
        """fast: transactions are rolled back, and clients told. immediate: as in a crash."""
        self._end(signal.SIGINT if how == "fast" else signal.SIGQUIT)

    def kill(self) -> None:
        """SIGKILL for all of its processes: nothing is tidied up, and nobody is told."""
        for process in self._processes():
            process.kill()
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        for process in self._processes():
            process.suspend()

    def thaw(self) -> None:
        for process in self._processes():
            process.resume()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        self.freeze()
        try:
            yield
        finally:
            self.thaw()

    def speak_tls(self, certificate: bytes, key: bytes) -> None:
        """From its next start on, with those who ask for it."""
        for name, content in (("server.crt", certificate), ("server.key", key)):
            path = self._folder / "data" / name
            path.write_bytes(content)
            path.chmod(0o600)
            if self._as_nobody:
                shutil.chown(path, "nobody", "nogroup")
        with (self._folder / "data" / "postgresql.conf").open("a") as file:
            file.write("ssl = on\n")

    def remove(self) -> None:
        self.stop("immediate")
        shutil.rmtree(self._folder)

    def log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")[-2_000:]

    async def new_database(self, *, template: str = "template0") -> str:
        """The name of a new one, which is as the template is."""
        self._databases += 1
        name = f"test_{self._databases}"
        await self.administer(f"CREATE DATABASE {name} OWNER {OWNER} TEMPLATE {template} STRATEGY FILE_COPY")
        if template == "template0":
            await asyncio.to_thread(self.run_script, ROLES / "roles.sql", name)
        return name

    def run_script(self, script: Path, database: str) -> None:
        """As the administrator, with psql."""
        arguments = ("-q", "-v", "ON_ERROR_STOP=1", "-f", "-", self.admin_url_of(database))
        self._run("psql", *arguments, stdin=script.read_text())

    async def drop_database(self, name: str) -> None:
        await self.administer(f"DROP DATABASE {name} WITH (FORCE)")

    async def administer(self, *statements: str, database: str = ADMIN) -> list[Any]:
        """Run them as the administrator; what the last one gave."""
        connection = await asyncpg.connect(self.admin_url_of(database))
        try:
            rows: list[Any] = []
            for statement in statements:
                rows = await connection.fetch(statement)
            return rows
        finally:
            await connection.close()

    def _make(self) -> None:
        settings = [
            "listen_addresses = '127.0.0.1'",
            f"unix_socket_directories = '{self._folder}'",
            "max_connections = 60",
            "jit = off",
            # What was committed outlives the server, though not the machine.
            "fsync = off",
            "full_page_writes = off",
            "autovacuum = off",
            "timescaledb.telemetry_level = off",
            # Its workers would be in a database that is to be copied.
            "timescaledb.max_background_workers = 0",
        ]
        if self._timescaledb:
            settings.append("shared_preload_libraries = 'timescaledb'")
        # The password stands in a file, because a command line can be read by everybody.
        with tempfile.NamedTemporaryFile("w") as password:
            password.write(self.admin_password)
            password.flush()
            if self._as_nobody:
                shutil.chown(password.name, "nobody", "nogroup")
            self._run(
                "initdb", "-D", self._folder / "data", "-U", ADMIN, f"--pwfile={password.name}", "-A", "scram-sha-256",
                "-E", "UTF8", "--locale=C.UTF-8", "--no-sync",
            )  # fmt: skip
        with (self._folder / "data" / "postgresql.conf").open("a") as file:
            file.write("\n".join([*settings, f"port = {self.port}", ""]))
        self.start()
        self._run(
            "psql", "-q", "-v", "ON_ERROR_STOP=1", self.admin_url_of(ADMIN),
            stdin="".join(f"CREATE ROLE {user} LOGIN PASSWORD '{self.password}';" for user in (OWNER, APP, READER)),
        )  # fmt: skip

    def _copy(self, primary: "PostgresProgram") -> None:
        self._run("pg_basebackup", "-D", self._folder / "data", "-R", "-c", "fast", "-d", primary.admin_url_of(ADMIN))
        with (self._folder / "data" / "postgresql.conf").open("a") as file:
            file.write(f"port = {self.port}\nunix_socket_directories = '{self._folder}'\n")
        self.start()

    def _run(self, program: str, *arguments: str | Path, stdin: str = "") -> None:
        done = subprocess.run(
            [self._programs / program, *arguments], input=stdin.encode(), capture_output=True, check=False,
            **self._options(),
        )  # fmt: skip
        if done.returncode:
            pytest.fail(f"{program} failed: {done.stderr.decode(errors='replace')}")

    def _options(self) -> dict[str, Any]:
        return {"cwd": "/", "env": {"LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"}, **self._as_nobody}

    def _processes(self) -> list[psutil.Process]:
        """The server first, so that it starts no others meanwhile."""
        if self._process is None:
            return []
        server = psutil.Process(self._process.pid)
        return [server, *server.children(recursive=True)]

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            others = self._processes()[1:] if self._process.poll() is None else []
            self._process.send_signal(number)
            self._process.wait()
            psutil.wait_procs(others, timeout=START_S)
            self._process = None
