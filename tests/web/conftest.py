"""What tests of the page share: a `tapewatch up` that serves it, and a browser, for each file."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

import tapewatch

ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")
START_S = 60.0
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")
BROWSER_ARGUMENTS = (
    "--no-sandbox",  # continuous integration runs as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the installation's data are to be, in `data`."""
    return tmp_path_factory.mktemp("up")


@pytest.fixture(scope="module")
def options() -> list[str]:
    """Of its `tapewatch up`, besides the usual ones."""
    return []


@pytest.fixture(scope="module")
def address(folder: Path, options: list[str]) -> Iterator[str]:
    """Where a `tapewatch up` of its own, on synthetic trades, serves the page."""
    if not (Path(tapewatch.__file__).parent / "serve" / "ui" / "index.html").is_file():
        pytest.fail("the page is not built: run `make web`")
    output = folder / "output.txt"
    command = ["--port", "0", "--symbols", "500", "--data-dir", str(folder / "data"), *options]
    with (
        output.open("wb") as sink,
        subprocess.Popen(
            [sys.executable, "-m", "tapewatch", "up", *command],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        ) as server,
    ):
        try:
            yield _wait_for_address(server, output)
        finally:
            server.terminate()
            try:
                server.wait(timeout=15)
            except subprocess.TimeoutExpired:
                server.kill()


def _wait_for_address(server: subprocess.Popen[bytes], output: Path) -> str:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        if found := ADDRESS.search(output.read_text(errors="replace")):
            return found[0]
        time.sleep(0.05)
    pytest.fail(f"tapewatch up printed no address; it printed:\n{output.read_text(errors='replace')}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.fail("Chromium is missing: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=BROWSER_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, address: str) -> Page:
    page = context.new_page()
    page.goto(address)
    return page
