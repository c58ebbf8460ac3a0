"""oidc-provider-mock, an OpenID provider that is not ours, as a process on a free port."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

START_S = 30.0
_PORT = re.compile(r"http://127\.0\.0\.1:(\d+)")


@contextmanager
def openid_mock(folder: Path) -> Iterator[str]:
    """Its issuer. It lets in whoever is named at its form, and takes any client."""
    said = folder / "provider.txt"
    with (
        said.open("wb") as sink,
        subprocess.Popen(
            [sys.executable, "-m", "oidc_provider_mock", "--port", "0", "--require-nonce", "true"],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
        ) as provider,
    ):
        try:
            yield f"http://localhost:{_port(provider, said)}"
        finally:
            provider.kill()


def _port(provider: subprocess.Popen[bytes], said: Path) -> str:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and provider.poll() is None:
        if found := _PORT.search(said.read_text(errors="replace")):
            return found[1]
        time.sleep(0.05)
    pytest.fail(f"oidc-provider-mock did not start; it said:\n{said.read_text(errors='replace')}")
