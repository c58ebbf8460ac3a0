"""Notifications of the browser: asked for at a click, a few of a storm, and a way to the alert."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

pytestmark = pytest.mark.browser

STUB = """
(answer) => {
  window.asked = 0;
  window.shown = [];
  window.Notification = class {
    static permission = sessionStorage.getItem('granted') ? 'granted' : 'default';
    static async requestPermission() {
      window.asked += 1;
      if (answer === 'granted') sessionStorage.setItem('granted', 'yes');
      return (window.Notification.permission = answer);
    }
    constructor(title, options) {
      if (window.Notification.permission !== 'granted') throw new TypeError('not granted');
      window.shown.push({ title, body: options.body, tag: options.tag, it: this, at: performance.now() });
    }
    close() { this.closed = true; }
  };
  window.focus = () => { window.focused = true; };
}
"""
Visit = Callable[[str], Page]


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[Visit]:
    """The page in a browser whose person answers so."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})

    def visit(answer: str) -> Page:
        page = context.new_page()
        page.add_init_script(f"({STUB})('{answer}')")
        page.goto(address)
        page.wait_for_selector(".lists tbody tr", timeout=20_000)
        expect(page.locator("[data-light=socket]")).to_have_text("Connected")
        return page

    yield visit
    context.close()


@pytest.fixture
def fire(address: str) -> Iterator[Callable[..., None]]:
    """Save a rule that fires at the next second."""
    made: list[str] = []

    def fire(name: str, when: str, severity: str) -> None:
        draft = {"name": name, "when": when, "severity": severity, "cooldown": 3_600}
        made.append(httpx.post(f"{address}/api/v1/rules", json=draft).raise_for_status().json()["id"])

    yield fire
    for rule in made:
        httpx.delete(f"{address}/api/v1/rules/{rule}").raise_for_status()


@pytest.fixture
def traded(address: str) -> Callable[[], str]:
    """A symbol that has traded, once the page shows lists."""

    def traded() -> str:
        listed = httpx.get(f"{address}/api/v1/toplists/system/volume_day", params={"limit": 1}).raise_for_status()
        return str(listed.json()["rankings"][0]["symbol"])

    return traded


def shown(page: Page) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = page.evaluate("window.shown.map(({ it, ...told }) => told)")
    return found


def box(page: Page) -> Any:
    return page.get_by_role("checkbox", name="Notify me")


def test_nothing_is_asked_before_a_click_and_an_alert_leads_to_its_sheet(
    visit: Visit, fire: Callable[..., None], traded: Callable[[], str]
) -> None:
    page = visit("granted")
    symbol = traded()
    expect(box(page)).not_to_be_checked()
    fire("Unheard", f"symbol in ({symbol}) and price > 0", "critical")
    page.locator(".alerts li").filter(has_text="Unheard").first.wait_for(timeout=5_000)
    assert page.evaluate("[window.asked, window.shown.length]") == [0, 0]

    box(page).click()
    expect(box(page)).to_be_checked()
    expect(page.get_by_text("while this page is open")).to_be_visible()
    assert page.evaluate("window.asked") == 1
    fire("Heard", f"symbol in ({symbol}) and price > 0", "info")
    page.wait_for_function("() => window.shown.length === 1", timeout=5_000)
    (told,) = shown(page)
    assert told["title"] == f"{symbol}: Heard"
    assert told["body"].endswith(", info")
    page.evaluate("window.shown[0].it.onclick()")
    expect(page.get_by_role("dialog")).to_contain_text("Heard")
    assert page.evaluate("[window.focused, window.shown[0].it.closed]") == [True, True]


def test_choice_is_kept_and_only_warnings_are_told(
    visit: Visit, fire: Callable[..., None], traded: Callable[[], str]
) -> None:
    page = visit("granted")
    box(page).click()
    page.get_by_role("combobox", name="Notify me of").select_option("warning")
    page.reload()
    expect(page.locator("[data-light=socket]")).to_have_text("Connected")
    expect(box(page)).to_be_checked()
    expect(page.get_by_role("combobox", name="Notify me of")).to_have_value("warning")
    symbol = traded()
    fire("Quiet", f"symbol in ({symbol}) and price > 0", "notice")
    fire("Loud", f"symbol in ({symbol}) and price > 0", "warning")
    page.locator(".alerts li").filter(has_text="Quiet").first.wait_for(timeout=5_000)
    page.wait_for_function("() => window.shown.length > 0", timeout=5_000)
    assert [told["title"] for told in shown(page)] == [f"{symbol}: Loud"]
    assert page.evaluate("window.asked") == 0
    box(page).click()
    page.reload()
    expect(box(page)).not_to_be_checked()


def test_storm_is_a_few_notifications_and_a_summary(visit: Visit, fire: Callable[..., None]) -> None:
    page = visit("granted")
    box(page).click()
    fire("Everything", "price > 0", "info")
    page.wait_for_function("() => window.shown.some(({ title }) => title.endsWith('more alerts'))", timeout=15_000)
    told = shown(page)
    first = next(place for place, each in enumerate(told) if each["title"].endswith("more alerts"))
    assert first == 3
    assert int(told[first]["title"].split()[0].replace(",", "")) > 50
    assert told[first]["body"].endswith(", Everything")


def test_browser_that_refuses_is_told_in_words(visit: Visit) -> None:
    page = visit("denied")
    box(page).click()
    alert = page.get_by_role("group", name="Notifications").get_by_role("alert")
    expect(alert).to_contain_text("The browser refuses notifications of this page")
    expect(box(page)).not_to_be_checked()
    page.reload()
    expect(box(page)).not_to_be_checked()
    expect(alert).to_have_count(0)
