"""The built page in a real browser, over a real `tapewatch up`: lists move, alerts appear, nobody complains."""

import os
import re
import time
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import BrowserContext, ConsoleMessage, Page, expect

pytestmark = pytest.mark.browser

LISTS_TEXT = "[...document.querySelectorAll('.lists tbody')].map((body) => body.innerText).join()"


@pytest.fixture
def complaints() -> list[str]:
    """What the browser had to say against the page: errors and warnings on its console, exceptions."""
    return []


@pytest.fixture
def page(context: BrowserContext, address: str, complaints: list[str]) -> Page:
    page = context.new_page()

    def on_console(message: ConsoleMessage) -> None:
        # A request that fails is an error here too. A draft that is not yet a rule is refused as it is typed.
        is_draft = message.location["url"].endswith("/rules/validate") and "422" in message.text
        if message.type in {"error", "warning"} and not is_draft:
            complaints.append(message.text)

    page.on("console", on_console)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    page.wait_for_selector(".lists tbody tr", timeout=20_000)
    return page


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


@pytest.fixture
def forgotten(address: str) -> Iterator[None]:
    """No rule of a test is left to the next."""
    yield
    for rule in httpx.get(f"{address}/api/v1/rules").raise_for_status().json()["items"]:
        httpx.delete(f"{address}/api/v1/rules/{rule['id']}").raise_for_status()


@pytest.mark.usefixtures("forgotten")
def test_rule_written_in_rows_is_saved_switched_off_and_deleted(page: Page, complaints: list[str]) -> None:
    rules = page.get_by_role("region", name="Rules")
    rules.get_by_role("button", name="New rule").click()
    sheet = page.get_by_role("dialog", name="New rule")
    sheet.get_by_label("Name of the rule").fill("Far above")
    sheet.get_by_label("Metric").fill("change_pct_d")
    sheet.get_by_role("listbox").get_by_role("option").first.click()
    sheet.get_by_label("Value").fill("900")
    sheet.get_by_role("button", name="Create").click()
    switch = rules.get_by_role("checkbox", name="Far above is on")
    expect(switch).to_be_checked()
    expect(rules.get_by_text("change_pct_day > 900")).to_be_visible()
    switch.click()
    expect(switch).not_to_be_checked()
    rules.get_by_role("button", name="Delete Far above").click()
    rules.get_by_role("button", name="Delete?").click()
    expect(switch).to_have_count(0)
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert complaints == []


@pytest.mark.usefixtures("forgotten")
def test_rule_written_as_text_is_completed_corrected_saved_and_alerts(page: Page, complaints: list[str]) -> None:
    rules = page.get_by_role("region", name="Rules")
    rules.get_by_role("button", name="New rule").click()
    sheet = page.get_by_role("dialog", name="New rule")
    sheet.get_by_label("Name of the rule").fill("<b>Busy</b>")
    sheet.get_by_text("Text", exact=True).click()
    text = sheet.get_by_label("Text of the rule")
    text.press_sequentially("pric")
    choice = sheet.get_by_role("listbox").get_by_role("option").first
    expect(choice).to_contain_text("last price that a trade was allowed to set")
    expect(choice).to_contain_text("$")
    text.press("Enter")
    expect(text).to_have_value("price ")
    text.press_sequentially("> 0\nand volme_day > 1_000")
    expect(sheet.get_by_role("button", name="Line 2, column 5")).to_be_visible()
    expect(sheet.locator(".mistake pre")).to_have_text("and volme_day > 1_000\n    ^")
    expect(sheet.locator(".copy .wrong")).to_have_text("volme_day")
    expect(sheet.get_by_role("button", name="Create")).to_be_disabled()
    sheet.get_by_role("button", name="Write volume_day", exact=True).click()
    expect(sheet.get_by_role("status", name="Check")).to_contain_text("Valid")
    expect(text).to_have_value("price > 0\nand volume_day > 1_000")
    sheet.get_by_label("Severity").select_option("warning")
    sheet.get_by_label("Tags").fill("busy, #test")
    sheet.get_by_role("button", name="Create").click()

    alert = page.locator(".alerts li").filter(has_text="<b>Busy</b>").first
    expect(alert.locator(".severity")).to_have_text("warning")
    alerts = page.get_by_role("region", name="Alerts")
    alerts.get_by_label("Least severity").select_option("critical")
    expect(alerts.locator("li")).to_have_count(0)
    alerts.get_by_label("Least severity").select_option("warning")
    alerts.get_by_label("Tag").select_option("#busy")
    symbol = alert.locator(".symbol").inner_text()
    alerts.get_by_label("Filter alerts").fill(symbol)
    alert.get_by_role("button", name=f"Why {symbol}").click()
    why = page.get_by_role("dialog", name=f"Why {symbol}")
    expect(why.locator("pre")).to_have_text("price > 0 and volume_day > 1000")
    operand = why.get_by_role("listitem").filter(has_text="volume_day")
    expect(operand).to_contain_text(re.compile(r"[\d.]+[KMB]? shares.* old"))
    page.keyboard.press("Escape")
    expect(why).to_have_count(0)
    assert complaints == []


@pytest.mark.usefixtures("forgotten")
def test_rule_tells_why_not_and_what_came_near_and_rolls_back(page: Page, address: str, complaints: list[str]) -> None:
    draft = {"id": "huge", "name": "Huge", "when": "price > 0 and volume_day > 1e12", "cooldown": 60.0}
    httpx.post(f"{address}/api/v1/rules", json=draft).raise_for_status()
    _wait_until_asked(address, "huge")
    page.reload()
    rules = page.get_by_role("region", name="Rules")
    rules.get_by_role("button", name="Why Huge").click()
    sheet = page.get_by_role("dialog", name="Huge")
    near = sheet.get_by_role("region", name="Near misses").locator("tbody tr").first
    expect(near).to_contain_text("volume_day > ")
    near.get_by_role("button", name="Why not").click()
    findings = sheet.get_by_role("group", name="when")
    expect(findings.locator(".finding.no .finding.no")).to_contain_text("lacks +")
    expect(findings.locator(".finding.no .finding.yes")).to_contain_text("price > 0")
    before = sheet.get_by_text(re.compile("^scan of")).inner_text()
    expect(sheet.get_by_text(re.compile("^scan of"))).not_to_have_text(before, timeout=4_000)
    near.locator(".symbol").click()
    drawer = page.get_by_role("dialog", name=re.compile("in detail"))
    expect(drawer.get_by_role("row", name=re.compile("^volume_day"))).to_be_visible()
    page.keyboard.press("Escape")
    expect(drawer).to_have_count(0)
    expect(sheet).to_be_visible()

    sheet.get_by_role("tab", name="Edit").click()
    sheet.get_by_text("Text", exact=True).click()
    text = sheet.get_by_label("Text of the rule")
    text.fill("price > 0 and volume_day > 2e12")
    page.keyboard.press("Escape")
    expect(sheet.get_by_role("alertdialog")).to_contain_text("not saved")
    sheet.get_by_role("button", name="Keep writing").click()
    sheet.get_by_role("button", name="Save", exact=True).click()
    expect(sheet.get_by_text("Version 2")).to_be_visible()
    sheet.get_by_role("tab", name="Versions").click()
    newest = sheet.get_by_role("listitem", name="Version 2")
    expect(newest.locator("del")).to_have_text("1_000_000_000_000")
    expect(newest.locator("ins")).to_have_text("2_000_000_000_000")
    sheet.get_by_role("listitem", name="Version 1").get_by_role("button", name="Roll back").click()
    expect(sheet.get_by_role("listitem", name="Version 3")).to_contain_text("in use")
    sheet.get_by_role("tab", name="Edit").click()
    expect(text).to_have_value("price > 0 and volume_day > 1_000_000_000_000")
    assert complaints == []


@pytest.mark.usefixtures("forgotten")
def test_rule_that_another_program_changes_meanwhile_is_not_overwritten_unasked(
    page: Page, address: str, complaints: list[str]
) -> None:
    rule = {"name": "Far above", "when": "change_pct_day > 900"}
    answer = httpx.post(f"{address}/api/v1/rules", json=rule).raise_for_status()
    page.reload()
    page.get_by_role("region", name="Rules").get_by_role("button", name="Far above", exact=True).click()
    sheet = page.get_by_role("dialog", name="Far above")
    sheet.get_by_label("Value").fill("800")
    theirs = {"name": "Far above", "when": "change_pct_day > 700"}
    httpx.put(f"{address}/api/v1/rules/{answer.json()['id']}", json=theirs).raise_for_status()
    expect(sheet.get_by_role("alert")).to_contain_text("Version 2 was saved elsewhere", timeout=15_000)
    sheet.get_by_role("button", name="keep mine").click()
    sheet.get_by_role("button", name="Save", exact=True).click()
    expect(sheet.get_by_text("Version 3")).to_be_visible()
    expect(sheet.get_by_label("Value")).to_have_value("800")
    assert complaints == []


@pytest.mark.usefixtures("forgotten")
def test_template_fills_the_editor_and_what_is_unsaved_is_asked_for(page: Page, complaints: list[str]) -> None:
    page.get_by_role("region", name="Rules").get_by_role("button", name="New rule").click()
    sheet = page.get_by_role("dialog", name="New rule")
    sheet.get_by_role("button", name="Start from a template").click()
    sheet.get_by_label("Search templates").fill("running up")
    sheet.get_by_role("button", name="Use Running up").click()
    expect(sheet.get_by_label("Name of the rule")).to_have_value("Running up")
    expect(sheet.get_by_label("Gate", exact=True)).to_have_value(re.compile("price between 1 and 500"))
    expect(sheet.get_by_role("status", name="Check")).to_contain_text("Valid")
    page.keyboard.press("Escape")
    sheet.get_by_role("button", name="Discard it").click()
    expect(sheet).to_have_count(0)
    assert complaints == []


def test_dry_run_shows_days_examples_and_that_a_rule_is_too_broad(page: Page, complaints: list[str]) -> None:
    example = {"alert_id": "a", "symbol": "AAPL", "fired_at": "2025-03-04T14:30:01.000000000Z", "price": 120.5}
    answer = {
        "fires": [{"date": "2025-03-03", "fires": 1_000}, {"date": "2025-03-04", "fires": 1_400}],
        "symbols": 310,
        "symbols_share": 0.31,
        "examples": [example],
        "seconds": 2.5,
        "warnings": ["too broad: it fires 1,200 times a day (more than 500)"],
    }
    # How long a real one takes depends on the tape that is stored.
    page.route("**/api/v1/rules/dry-run", lambda route: route.fulfill(json=answer))
    page.get_by_role("region", name="Rules").get_by_role("button", name="New rule").click()
    sheet = page.get_by_role("dialog", name="New rule")
    run = sheet.get_by_role("button", name="Dry run")
    expect(run).to_be_disabled()
    sheet.get_by_label("Value").fill("0")
    run.click()
    result = sheet.get_by_role("group", name="Result of the dry run")
    expect(result).to_contain_text("1,200 alerts a day on 310 symbols, 31.0 % of those that trade")
    expect(result).to_contain_text("too broad")
    expect(result.get_by_role("row", name=re.compile("2025-03-04 1,400"))).to_be_visible()
    expect(result.get_by_role("listitem")).to_contain_text(re.compile("2025-03-04 09:30:01.*AAPL.*120.50"))
    sheet.get_by_label("Value").fill("1")
    expect(result).to_contain_text("of the rule as it was")
    assert complaints == []


@pytest.mark.usefixtures("forgotten")
def test_scoreboard_counts_the_alerts_of_each_rule(page: Page, address: str, complaints: list[str]) -> None:
    draft = {"id": "any-price", "name": "Any price", "when": "price > 0", "cooldown": 3_600.0}
    httpx.post(f"{address}/api/v1/rules", json=draft).raise_for_status()
    page.locator(".alerts li").filter(has_text="Any price").first.wait_for()
    page.get_by_role("button", name="Scoreboard").click()
    board = page.get_by_role("dialog", name="Scoreboard")
    row = board.get_by_role("row", name=re.compile("Any price"))
    expect(row).to_be_visible(timeout=15_000)
    expect(row.get_by_role("cell").first).to_have_text(re.compile(r"^[\d,]+$"))
    expect(row.locator("td[title='60 min: not known yet']")).to_be_visible()  # no hour has passed
    row.get_by_role("button", name="Any price").click()
    expect(
        page.get_by_role("dialog", name="Any price").get_by_role("row", name=re.compile("Version 1"))
    ).to_be_visible()
    assert complaints == []


def _wait_until_asked(address: str, rule_id: str) -> None:
    """Until the scanner has the rule: before, it has nothing to say of it."""
    deadline = time.monotonic() + 10.0
    while httpx.get(f"{address}/api/v1/rules/{rule_id}/near-misses").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_symbol_opened_by_keyboard_shows_its_metrics_and_chart(page: Page, complaints: list[str]) -> None:
    page.locator(".lists .symbol").first.focus()
    page.keyboard.press("Enter")
    drawer = page.get_by_role("dialog")
    expect(drawer.get_by_role("row", name=re.compile("^volume_day"))).to_be_visible()
    expect(drawer.locator("canvas").first).to_be_visible()
    page.keyboard.press("Escape")
    expect(drawer).to_have_count(0)
    assert complaints == []


@pytest.mark.parametrize("width", [360, 768, 1280, 3840])
def test_page_of_any_width_does_not_scroll_sideways(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if page.get_by_role("navigation", name="Views").is_visible():
        page.get_by_role("button", name="rules", exact=True).click()
    page.get_by_role("button", name="New rule").click()
    page.get_by_text("Text", exact=True).click()
    page.get_by_label("Text of the rule").fill("price > 0 and\nvolme_day > 1")
    expect(page.locator(".mistake pre")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".drawer .body").evaluate("(body) => body.scrollWidth <= body.clientWidth")


def test_chosen_list_and_rows_survive_a_reload(page: Page, complaints: list[str]) -> None:
    panel = page.locator(".lists > section").first
    panel.get_by_label("List", exact=True).select_option("Volume")
    panel.get_by_label("Window").select_option("day")
    panel.get_by_label("Rows").select_option("25 rows")
    page.reload()
    expect(panel).to_have_attribute("data-list", "volume_day")
    expect(panel.locator("tbody tr")).to_have_count(25)
    assert complaints == []


def test_list_of_one_s_own_is_made_changed_and_deleted_on_the_page(
    page: Page, address: str, complaints: list[str]
) -> None:
    expect(page.locator("[data-light=socket]")).to_have_text("Connected")
    panel = page.locator(".lists .panel").first
    panel.get_by_label("New list").click()
    sheet = page.get_by_role("dialog", name="New list")
    sheet.get_by_label("Name of the list").fill("Busy & <b>cheap</b>")
    metric = sheet.get_by_label("Metric of the list")
    metric.fill("volume_d")
    expect(sheet.get_by_role("option").first).to_be_visible()  # the catalogue has come
    metric.press("Enter")
    expect(metric).to_have_value("volume_day")
    sheet.get_by_label("Price to").fill("0.01")
    sheet.get_by_label("Condition").fill("price > 1 for 10s")
    sheet.get_by_role("button", name="Create").click()
    expect(sheet.get_by_role("alert")).to_contain_text("cannot be asked by a list")
    assert len(complaints) == 1  # the refusal, which the browser notes
    complaints.clear()
    sheet.get_by_label("Price to").fill("")
    sheet.get_by_label("Condition").fill("price > 1")
    sheet.get_by_label("Colour above zero").fill("#ff00aa")
    column = sheet.get_by_label("Another column")
    column.fill("spread_pct")
    column.press("Enter")
    sheet.get_by_role("button", name="Create").click()
    expect(sheet).to_have_count(0)

    panel = page.locator(".lists .panel", has=page.get_by_label("Change the list"))
    rows = panel.locator("tbody tr")
    expect(rows).to_have_count(15, timeout=10_000)
    expect(panel.locator("thead th")).to_have_text(["#", "Symbol", "Price", "Vol day", "Chg day", "Spread pct"])
    expect(rows.first.locator("td.value")).to_have_css("color", "rgb(255, 0, 170)")
    (stored,) = httpx.get(f"{address}/api/v1/toplists/user").raise_for_status().json()["items"]
    assert (stored["name"], stored["filters"]["when"]) == ("Busy & <b>cheap</b>", "price > 1")

    panel.get_by_label("Change the list").click()
    sheet = page.get_by_role("dialog", name="Busy & <b>cheap</b>")
    sheet.get_by_label("Order of the list").select_option("asc")
    sheet.get_by_label("Remove spread_pct").click()
    sheet.get_by_role("button", name="Save").click()
    expect(panel.locator("thead th")).to_have_text(["#", "Symbol", "Price", "Vol day", "Chg day"])
    panel.get_by_label("Change the list").click()
    sheet.get_by_role("button", name="Delete…").click()
    sheet.get_by_role("button", name="Delete for good?").click()
    expect(page.locator(".lists .empty").first).to_have_text("There is no such list any more.")
    assert httpx.get(f"{address}/api/v1/toplists/user").raise_for_status().json()["total"] == 0
    assert complaints == []
