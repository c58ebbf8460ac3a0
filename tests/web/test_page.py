"""The built page in a real browser, over a real `tapewatch up`: lists move, alerts appear, nobody complains."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

import tapewatch

pytestmark = pytest.mark.browser

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
LISTS_TEXT = "[...document.querySelectorAll('.lists tbody')].map((body) => body.innerText).join()"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a `tapewatch up` of its own, on synthetic trades, serves the page."""
    if not (Path(tapewatch.__file__).parent / "serve" / "ui" / "index.html").is_file():
        pytest.fail("the page is not built: run `make web`")
    folder = tmp_path_factory.mktemp("up")
    output = folder / "output.txt"
    options = ["--port", "0", "--symbols", "500", "--data-dir", str(folder / "data")]
    with (
        output.open("wb") as sink,
        subprocess.Popen(
            [sys.executable, "-m", "tapewatch", "up", *options],
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
def complaints() -> list[str]:
    """What the browser had to say against the page: errors and warnings on its console, exceptions."""
    return []


@pytest.fixture
def page(browser: Browser, address: str, complaints: list[str]) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()

    def on_console(message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:  # a request that fails is an error here too
            complaints.append(message.text)

    page.on("console", on_console)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    page.wait_for_selector(".lists tbody tr", timeout=20_000)
    yield page
    context.close()


def test_page_of_a_running_market_moves_within_three_seconds(page: Page, complaints: list[str]) -> None:
    before = page.evaluate(LISTS_TEXT)
    page.wait_for_function(f"(before) => {LISTS_TEXT} !== before", arg=before, timeout=3_000)
    expect(page.locator("[data-light=socket]")).to_have_text("Connected")
    expect(page.locator("[data-light=feed]")).to_have_text("Feed synthetic")
    expect(page.locator("[data-light=data]")).to_have_text("Data live")
    expect(page.locator(".feed p")).to_have_count(0)
    assert complaints == []


def test_rule_created_by_another_program_alerts_on_the_page_within_two_seconds(
    page: Page, address: str, complaints: list[str]
) -> None:
    name = "<i>Any</i> price & nothing else"  # markup must arrive as text
    expect(page.locator("[data-light=socket]")).to_have_text("Connected")
    draft = {"name": name, "conditions": [{"metric": "price", "operator": ">", "value": 0}], "cooldown": 3_600}
    answer = httpx.post(f"{address}/api/v1/rules", json=draft).raise_for_status()
    alert = page.locator(".alerts li").filter(has_text=name).first
    alert.wait_for(timeout=2_000)
    expect(alert.locator("time")).to_have_text(re.compile(r"^\d\d:\d\d:\d\d\.\d{3}$"))
    if path := os.environ.get("TAPEWATCH_SCREENSHOT"):
        page.screenshot(path=path)
    httpx.delete(f"{address}/api/v1/rules/{answer.json()['id']}").raise_for_status()
    assert complaints == []


def test_rule_written_on_the_page_is_saved_switched_off_and_deleted(page: Page, complaints: list[str]) -> None:
    rules = page.get_by_role("region", name="Rules")
    rules.get_by_role("button", name="New rule").click()
    rules.get_by_label("Name of the rule").fill("Far above")
    rules.get_by_label("Metric").select_option("change_pct_day")
    rules.get_by_label("Value").fill("900")
    rules.get_by_role("button", name="Create").click()
    switch = rules.get_by_role("checkbox", name="Far above is on")
    expect(switch).to_be_checked()
    switch.click()
    expect(switch).not_to_be_checked()
    rules.get_by_role("button", name="Delete Far above").click()
    rules.get_by_role("button", name="Delete?").click()
    expect(switch).to_have_count(0)
    assert complaints == []


def test_symbol_opened_by_keyboard_shows_its_metrics_and_chart(page: Page, complaints: list[str]) -> None:
    page.locator(".lists .symbol").first.focus()
    page.keyboard.press("Enter")
    drawer = page.get_by_role("dialog")
    expect(drawer.get_by_role("row", name="volume_day")).to_be_visible()
    expect(drawer.locator("canvas").first).to_be_visible()
    page.keyboard.press("Escape")
    expect(drawer).to_have_count(0)
    assert complaints == []


@pytest.mark.parametrize("width", [360, 768, 1280, 3840])
def test_page_of_any_width_does_not_scroll_sideways(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_chosen_list_and_rows_survive_a_reload(page: Page, complaints: list[str]) -> None:
    panel = page.locator(".lists > section").first
    panel.get_by_label("List").select_option("Volume")
    panel.get_by_label("Window").select_option("day")
    panel.get_by_label("Rows").select_option("25 rows")
    page.reload()
    expect(panel).to_have_attribute("data-list", "volume_day")
    expect(panel.locator("tbody tr")).to_have_count(25)
    assert complaints == []
