"""The built page before a `tapewatch up` with an OpenID provider: away to it, back, and in."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openid_mock import openid_mock
from playwright.sync_api import BrowserContext, Page, expect
from servers import free_port

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of an installation with an admin."""
    folder = tmp_path_factory.mktemp("up")
    command = ["user", "add", "root", "--role", "admin", "--no-password", "--data-dir", str(folder / "data")]
    subprocess.run([sys.executable, "-m", "tapewatch", *command], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def issuer(folder: Path) -> Iterator[str]:
    with openid_mock(folder) as issuer:
        ann = {"preferred_username": "ann", "groups": ["desk"]}
        httpx.put(f"{issuer}/users/248289761001", json=ann, trust_env=False).raise_for_status()
        yield issuer


@pytest.fixture(scope="module")
def options(folder: Path, issuer: str) -> list[str]:
    port, secret = free_port(), folder / "client-secret"
    secret.write_text("any will do\n")
    secret.chmod(0o600)
    return [
        *("--port", str(port), "--public-url", f"http://127.0.0.1:{port}"),
        *("--oidc-issuer", issuer, "--oidc-client-id", "tapewatch", "--oidc-name", "Example"),
        *("--oidc-secret-file", str(secret)),
        *("--oidc-role-claim", "groups", "--oidc-role", "desk=trader", "--oidc-default-role", "none"),
    ]


def sign_in(page: Page, issuer: str, subject: str) -> None:
    page.get_by_role("button", name="Sign in with Example").click()
    page.wait_for_url(f"{issuer}/**")
    page.get_by_placeholder("sub").fill(subject)
    page.get_by_role("button", name="Authorize").click()


def test_user_of_the_provider_is_in_and_stays_so(
    page: Page, context: BrowserContext, address: str, issuer: str
) -> None:
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    sign_in(page, issuer, "248289761001")
    expect(page.get_by_role("group", name="Who is logged in")).to_contain_text("ann", timeout=20_000)
    expect(page.locator("[data-light=socket]")).to_have_text("Connected", timeout=20_000)
    expect(page.get_by_role("region", name="Rules").get_by_role("button", name="New rule")).to_be_enabled()
    assert page.url == f"{address}/"
    page.reload()
    expect(page.get_by_role("group", name="Who is logged in")).to_contain_text("ann", timeout=20_000)
    cookies = context.cookies(f"{address}/api/v1/auth")
    assert [cookie["name"] for cookie in cookies] == ["tapewatch_refresh"]
    assert cookies[0]["httpOnly"]
    assert not [url for url in requested if "eyJ" in url or cookies[0]["value"] in url]


def test_stranger_is_told_and_asked_again(page: Page, address: str, issuer: str) -> None:
    sign_in(page, issuer, "somebody-else")
    sheet = page.get_by_role("form", name="Log in")
    expect(sheet.get_by_role("alert")).to_contain_text("You have no account here.", timeout=20_000)
    assert page.url == f"{address}/"
    expect(sheet.get_by_role("button", name="Sign in with Example")).to_be_visible()
