"""Processes that are started as deploy/k8s starts them, with their secrets in files: what the system shows of them to
others, and what they say when they crash, holds no secret.
"""

import asyncio
import os
import resource
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from manifests import mounted_secrets, workload
from servers import free_port

PATIENCE_S = 30.0
CRASH = """
from tapewatch import cli
from tapewatch.app.status import ProcessStatus


async def report(self, bus):
    raise RuntimeError("a fault of ours")


ProcessStatus.report = report
cli.main()
"""


class Mounted:
    """Secrets as files of their owner alone, each in a folder of its name."""

    def __init__(self, folder: Path, *, bus: str, stores: dict[str, str]) -> None:
        """`stores`: the address of the store in the secret of that name."""
        self.folder = folder
        self.password = secrets.token_urlsafe(18)
        self.signing = secrets.token_hex(32)
        self.key = secrets.token_urlsafe(18)
        for name, text in {
            **{
                f"{secret}/config.toml": f'bus = "{bus}"\nstore = "{store}"\npartitions = 1\nsymbols = 20\n'
                for secret, store in stores.items()
            },
            "tapewatch-signing/secret": f"{self.signing}\n",
            "tapewatch-admin/password": f"{self.password}\n",
            "tapewatch-provider/keys.toml": f'APCA_API_KEY_ID = "{self.key}"\nAPCA_API_SECRET_KEY = "{self.key}"\n',
        }.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(0o400)

    def command(self, name: str) -> tuple[list[str], dict[str, str]]:
        """Arguments and environment of a workload's container."""
        container = workload(name)
        places = {there: self.folder / secret for there, secret in mounted_secrets(name).items()}

        def here(word: str) -> str:
            there, slash, file = word.rpartition("/")
            return f"{places[there]}/{file}" if slash and there in places else word

        own = {variable["name"]: here(variable["value"]) for variable in container["env"]}
        if "TAPEWATCH_HOST" in own:
            own |= {"TAPEWATCH_HOST": "127.0.0.1", "TAPEWATCH_PORT": "0", "TAPEWATCH_PROBE_PORT": str(free_port())}
        own |= {"TAPEWATCH_DATA_DIR": str(self.folder / "data"), "PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1"}
        if "PYTHONPATH" in os.environ:
            own["PYTHONPATH"] = os.environ["PYTHONPATH"]
        return [here(word) for word in container["args"]], own


@pytest.fixture(scope="module")
def mounted(servers: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mounted, set[str]]]:
    """The files, and what is planted in them. The store was upgraded and the first account made as the jobs do it."""
    servers.redis.empty()
    name = asyncio.run(servers.postgres.new_database())
    stores = {"tapewatch-owner": servers.postgres.url_of(name), "tapewatch-config": servers.postgres.app_url_of(name)}
    files = Mounted(tmp_path_factory.mktemp("secrets"), bus=servers.redis.url, stores=stores)
    planted = {files.password, files.signing, files.key, servers.redis.password, servers.postgres.password}
    for job, says in (("upgrade", "the store at --store is up to date"), ("first-admin", "may sign in, as admin")):
        arguments, environment = files.command(job)
        done = subprocess.run(
            [sys.executable, "-m", "tapewatch", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert says in done.stdout, done.stderr
        assert not [secret for secret in planted if secret in done.stdout + done.stderr]
    yield files, planted
    asyncio.run(servers.postgres.drop_database(name))


@contextmanager
def started(said: Path, arguments: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with said.open("wb") as sink:
        process = subprocess.Popen([sys.executable, *arguments], env=environment, stdout=sink, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def wait_for(happened: Callable[[], bool], said: Path) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < until_s, said.read_text()
        time.sleep(0.05)


def answers(port: str) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).is_success
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("role", ["ingest", "api"])
def test_system_shows_no_secret_of_a_process(mounted: tuple[Mounted, set[str]], tmp_path: Path, role: str) -> None:
    files, planted = mounted
    arguments, environment = files.command(role)
    said = tmp_path / "said"
    with started(said, ["-m", "tapewatch", *arguments], environment) as process:
        wait_for(lambda: process.poll() is not None or answers(environment["TAPEWATCH_PROBE_PORT"]), said)
        assert process.poll() is None, said.read_text()
        shown = Path(f"/proc/{process.pid}")
        seen = (shown / "environ").read_bytes() + (shown / "cmdline").read_bytes()
        metrics = httpx.get(f"http://127.0.0.1:{environment['TAPEWATCH_PROBE_PORT']}/metrics", trust_env=False).text
        core = resource.prlimit(process.pid, resource.RLIMIT_CORE)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0, said.read_text()
    assert b"TAPEWATCH_CONFIG" in seen  # or the wrong process was looked at
    assert core == (0, 0)
    told = seen.decode() + metrics + said.read_text()
    assert not [secret for secret in planted if secret in told]


def test_process_that_crashes_tells_no_secret(mounted: tuple[Mounted, set[str]], tmp_path: Path) -> None:
    files, planted = mounted
    arguments, environment = files.command("api")
    said = tmp_path / "said"
    with started(said, ["-c", CRASH, *arguments], environment) as process:
        assert process.wait(PATIENCE_S) == 1, said.read_text()
    told = said.read_text()
    assert "Traceback (most recent call last)" in told
    assert "RuntimeError: a fault of ours" in told
    assert not [secret for secret in planted if secret in told]
    assert not list(tmp_path.glob("core*"))
