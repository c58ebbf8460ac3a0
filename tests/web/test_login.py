"""The built page before a `tapewatch up` that has users: it asks who is there, stays logged in, and lets go."""

import asyncio
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tapewatch.client import Refused, connect

pytestmark = pytest.mark.browser

PASSWORD = "a long line that nobody guesses"  # noqa: S105  # of a user of this test


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of an installation with a user."""
    folder = tmp_path_factory.mktemp("up")
    password = folder / "password"
    password.write_text(f"{PASSWORD}\n")
    for name, role in (("ada", "trader"), ("bob", "viewer")):
        command = [
            "user",
            "add",
            name,
            "--role",
            role,
            "--password-file",
            str(password),
            "--data-dir",
            str(folder / "data"),
        ]
        subprocess.run([sys.executable, "-m", "tapewatch", *command], check=True, capture_output=True)
    return folder


def log_in(page: Page, name: str = "ada", password: str = PASSWORD) -> None:
    sheet = page.get_by_role("form", name="Log in")
    sheet.get_by_label("Name").fill(name)
    sheet.get_by_label("Password").fill(password)
    sheet.get_by_role("button", name="Log in").click()


def expect_market(page: Page, name: str = "ada") -> None:
    expect(page.get_by_role("group", name="Who is logged in")).to_contain_text(name)
    expect(page.locator("[data-light=socket]")).to_have_text("Connected", timeout=20_000)
    page.wait_for_selector(".lists tbody tr", timeout=20_000)
    expect(page.get_by_role("form", name="Log in")).to_have_count(0)


def test_page_shows_nothing_before_the_login_and_the_market_after_it(page: Page, context: BrowserContext) -> None:
    expect(page.get_by_role("form", name="Log in")).to_be_visible()
    expect(page.locator("main")).to_have_count(0)
    log_in(page, password="another line that is not it")  # noqa: S106
    expect(page.get_by_role("form", name="Log in").get_by_role("alert")).to_contain_text(
        "The name or the password is wrong."
    )
    log_in(page)
    expect_market(page)
    expect(page.get_by_role("region", name="Rules").get_by_role("button", name="New rule")).to_be_enabled()
    kept = page.evaluate("JSON.stringify({...localStorage, ...sessionStorage}) + document.cookie")
    assert "eyJ" not in kept
    assert all(cookie["httpOnly"] for cookie in context.cookies())
    if path := os.environ.get("TAPEWATCH_SCREENSHOT"):
        page.screenshot(path=path)


def test_page_loaded_again_is_still_logged_in_and_another_tab_too(
    page: Page, context: BrowserContext, address: str
) -> None:
    log_in(page)
    expect_market(page)
    page.reload()
    expect_market(page)
    other = context.new_page()
    other.goto(address)
    expect_market(other)
    page.reload()
    expect_market(page)


def test_log_out_ends_every_tab_and_the_next_user_sees_their_own(
    page: Page, context: BrowserContext, address: str
) -> None:
    log_in(page)
    expect_market(page)
    other = context.new_page()
    other.goto(address)
    expect_market(other)
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("form", name="Log in")).to_be_visible()
    expect(page.locator("main")).to_have_count(0)
    expect(other.get_by_role("form", name="Log in")).to_be_visible(timeout=15_000)
    log_in(page, "bob")
    expect_market(page, "bob")


def test_python_client_comes_in_with_a_token_and_not_without(address: str) -> None:
    url = address.replace("http", "ws") + "/ws"
    answer = httpx.post(f"{address}/api/v1/auth/login", json={"name": "ada", "password": PASSWORD}).raise_for_status()

    async def welcomed(token: str | None) -> int:
        async with asyncio.timeout(10), connect(url, token=token, proxy=None) as client:
            return client.connects

    with ThreadPoolExecutor(1) as elsewhere:  # the browser has this thread's loop
        assert elsewhere.submit(asyncio.run, welcomed(answer.json()["access_token"])).result() == 1
        for token in (None, "none"):
            with pytest.raises(Refused, match="wants a"):
                elsewhere.submit(asyncio.run, welcomed(token)).result()
