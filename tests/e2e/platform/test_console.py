"""The contract's whole story as a lab user clicks it, with a real push, on the real platform."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from api.console import assets
from tests.e2e.platform.clients import Client
from tests.e2e.platform.conftest import write_context
from tests.e2e.platform.harness import Platform

_WITHIN_MS = 90_000


@pytest.fixture
def page(platform: Platform) -> Iterator[Page]:
    """A browser at the platform's own address; an error on its console fails the test."""
    chromium = shutil.which("chromium")
    if chromium is None or assets.missing():
        pytest.skip(f"apt-get install chromium, and {assets.MEND}")
    errors: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-quic", "--disable-background-networking"]
        )
        found = browser.new_page(base_url=platform.endpoints["api_url"], viewport={"width": 1280, "height": 900})
        found.set_default_timeout(_WITHIN_MS)
        found.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        found.on("pageerror", lambda e: errors.append(str(e)))
        yield found
        browser.close()
    assert errors == []


def test_from_create_image_over_docker_push_to_the_annotations_on_the_slide(
    platform: Platform, docker: Client, context: Path, slide: Path, page: Page
) -> None:
    keys = platform.home / "keys"
    page.goto("/")
    page.get_by_label("Client id").fill((keys / "client-id").read_text().strip())
    page.get_by_label("Client secret").fill((keys / "client-secret").read_text().strip())
    page.get_by_role("button", name="Sign in").click()

    page.get_by_role("link", name="Docker Images", exact=True).click()
    page.get_by_role("button", name="Create image").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name").fill("Clicked detector")
    dialog.get_by_role("button", name="Create image").click()
    page.get_by_role("button", name="Docker Push Instructions").click()
    expect(page.locator("#push-4")).to_be_visible()
    write_context(context, "stdlib_lab")
    for number in range(1, 5):
        command = page.locator(f"#push-{number}").inner_text()
        done = docker.follow(command, context)
        assert done.returncode == 0, f"{command.split(' --password')[0]}: {done.stderr}"
    page.keyboard.press("Escape")
    expect(page.locator("#image .badge").first).to_have_text("uploaded", timeout=_WITHIN_MS)
    expect(page.locator("#image")).to_contain_text("sha256:")

    page.get_by_role("link", name="Create one").click()
    page.get_by_label("Display name").fill("Clicked container")
    expect(page.get_by_label("Image")).to_have_value(re.compile(r"\d+"))
    page.get_by_role("button", name="Create container").click()
    page.get_by_role("link", name="Make one").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name").fill("Clicked mitoses")
    dialog.get_by_role("button", name="Create case algorithm").click()
    expect(page.get_by_role("heading", name="Clicked mitoses")).to_be_visible()

    page.get_by_role("link", name="Scans", exact=True).click()
    page.get_by_role("button", name="Upload").click()
    page.locator("#files").set_input_files(slide)
    page.get_by_role("link", name="Open the scan").click()
    page.locator("mhs-viewer[data-ready=slide]").wait_for()
    page.get_by_role("button", name="AI request").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("AI model").select_option(label="Clicked mitoses")
    dialog.get_by_role("button", name="Send request").click()

    expect(page.locator("#job .badge").first).to_have_text("succeeded", timeout=_WITHIN_MS)
    expect(page.locator("mhs-log .log-view")).to_contain_text("container exited with code 0")
    expect(page.locator("#results")).to_contain_text("one mitosis")
    page.locator("mhs-viewer[data-ready=annotations]").wait_for()
    layers = page.locator("mhs-viewer .layers")
    expect(layers.get_by_label("mitosis")).to_be_checked()
    expect(layers.get_by_label("cell")).to_be_checked()
    drawn = page.evaluate(
        """() => {
            const canvas = document.querySelector('mhs-viewer canvas.overlay');
            const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
            return data.some((value, i) => i % 4 === 3 && value);
        }"""
    )
    assert drawn, "the annotations lie over the slide"
    with page.expect_download() as told:
        page.get_by_role("link", name="Debug zip").click()
    assert told.value.path().read_bytes().startswith(b"PK")
