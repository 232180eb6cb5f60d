"""All that matters is done with the keyboard alone: no test here touches the mouse."""

from __future__ import annotations

import re

from playwright.sync_api import Locator, Page, expect

from tests.e2e.console.conftest import Site
from tests.e2e.platform.harness import eventually

_LONGEST_WAY = 120


def _tab_to(page: Page, target: Locator, key: str = "Tab") -> None:
    """Press Tab until `target` has the focus, as somebody does who cannot point."""
    for _ in range(_LONGEST_WAY):
        if target.evaluate("element => element === document.activeElement"):
            ring = target.evaluate(
                "e => getComputedStyle(e).outlineStyle !== 'none' || getComputedStyle(e).boxShadow !== 'none'"
            )
            assert ring, "where the focus is can be seen"
            return
        page.keyboard.press(key)
    raise AssertionError(f"{target} is not reached by {key}")


def _number(page: Page, what: str) -> float:
    return float(page.evaluate(what))


def test_the_content_is_reached_by_the_first_link_of_a_page(page: Page) -> None:
    page.goto("/console/images")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_an_image_is_created_and_a_dialog_gives_the_focus_back(page: Page) -> None:
    page.goto("/console/images")
    opener = page.get_by_role("button", name="Create image")
    _tab_to(page, opener)
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(opener).to_be_focused()
    page.keyboard.press("Enter")
    _tab_to(page, dialog.get_by_label("Name"))
    page.keyboard.type("By keyboard")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="By keyboard")).to_be_visible()


def test_a_container_is_made(page: Page) -> None:
    page.goto("/console/containers/new")
    _tab_to(page, page.get_by_label("Display name"))
    page.keyboard.type("Keyed in")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_label("g4dn.2xlarge")).to_be_checked()
    add = page.get_by_role("button", name="Add variable")
    _tab_to(page, add)
    page.keyboard.press("Enter")
    expect(page.get_by_label("Name of variable 1")).to_be_focused()
    page.keyboard.type("MODE")
    page.keyboard.press("Tab")
    page.keyboard.type("fast")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(page.get_by_label("Value of variable 1")).to_have_attribute("type", "password")
    _tab_to(page, page.get_by_role("button", name="Create container"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Keyed in")).to_be_visible()
    expect(page.locator("main")).to_contain_text("g4dn.2xlarge")
    expect(page.locator("main")).not_to_contain_text("fast")


def test_the_viewer_zooms_and_moves_and_the_ai_request_is_a_button_too(site: Site, page: Page) -> None:
    page.goto(f"/console/scans/{site.scan.id}")
    page.locator("mhs-viewer[data-ready]").wait_for()
    canvas = page.get_by_role("application")
    _tab_to(page, canvas)
    viewport = "document.querySelector('mhs-viewer').osd.viewport"
    zoom, x = _number(page, f"{viewport}.getZoom()"), _number(page, f"{viewport}.getCenter().x")
    page.keyboard.press("+")
    eventually(lambda: _number(page, f"{viewport}.getZoom()") > zoom, "the slide is closer")
    page.keyboard.press("ArrowRight")
    eventually(lambda: _number(page, f"{viewport}.getCenter().x") > x, "the slide moved")
    page.keyboard.press("0")
    eventually(lambda: _number(page, f"{viewport}.getZoom()") == zoom, "the whole slide is seen")
    _tab_to(page, page.get_by_role("button", name="AI request"), "Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="AI request")).to_be_visible()


def test_the_log_is_read_and_searched_and_jobs_are_filtered(site: Site, page: Page) -> None:
    page.goto(f"/console/jobs/{site.succeeded.id}")
    page.locator("mhs-viewer[data-ready]").wait_for()
    box = page.get_by_label("Search in the log")
    _tab_to(page, box)
    page.keyboard.type("line 700 of")
    page.keyboard.press("Enter")
    expect(page.locator("mhs-log .log-line.here")).to_contain_text("line 700 of the model")
    view = page.get_by_role("region", name="Log lines")
    _tab_to(page, view)
    page.keyboard.press("End")
    expect(view).to_contain_text("line 1499 of the model")
    page.goto("/console/jobs")
    _tab_to(page, page.get_by_label("Search"))
    page.keyboard.type("Mitosis")
    expect(page).to_have_url(re.compile("q=Mitosis"))
    expect(page.get_by_label("Search")).to_be_focused()
