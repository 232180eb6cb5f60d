"""What a lab user does, clicked through."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from tests.e2e.console.conftest import Site


def test_an_image_is_created_and_its_push_commands_are_shown_with_the_time_they_hold(page: Page) -> None:
    page.goto("/console/images")
    page.get_by_role("button", name="Create image").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name").fill("Nuclei")
    dialog.get_by_role("button", name="Create image").click()
    expect(page).to_have_url(re.compile(r"/console/images/\d+"))
    page.get_by_role("button", name="Docker Push Instructions").click()
    dialog = page.get_by_role("dialog", name="Docker Push Instructions")
    expect(dialog.locator("#push-4")).to_contain_text("push")
    expect(dialog.locator("mhs-countdown")).to_have_text(re.compile(r"11:59:\d\d|12:00:00"))
    dialog.get_by_role("button", name="Copy Build").click()
    expect(dialog.get_by_role("button", name="Copy Build")).to_have_text("Copied")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()


def _image(site: Site) -> int:
    """Return the image that was pushed."""
    assert site.algorithm.container_id is not None
    return site.world.containers.get(site.company, site.algorithm.container_id).image_id


def test_a_container_form_keeps_what_was_typed_and_says_what_is_wrong_beside_the_field(site: Site, page: Page) -> None:
    page.goto("/console/containers/new")
    page.get_by_label("Display name").fill("Nuclei counter")
    page.get_by_label("Image").select_option(str(_image(site)))
    page.get_by_role("radio", name="g5.2xlarge").check(force=True)
    page.get_by_role("button", name="Add variable").click()
    page.get_by_label("Name of variable 1").fill("SCAN_ID")
    page.get_by_label("Value of variable 1").fill("5")
    limit = page.get_by_label("Time limit in minutes")
    limit.fill("100000")
    page.get_by_role("button", name="Create container").click()
    assert not limit.evaluate("field => field.checkValidity()"), "the browser itself holds the form back"
    limit.fill("30")
    page.get_by_role("button", name="Create container").click()
    variable = page.get_by_label("Name of variable 1")
    expect(variable).to_have_attribute("aria-invalid", "true")
    fault = page.locator(f"#{(variable.get_attribute('aria-describedby') or 'none').split()[0]}")
    expect(fault).to_contain_text("SCAN_ID")
    expect(page.get_by_label("Display name")).to_have_value("Nuclei counter")
    expect(page.get_by_role("radio", name="g5.2xlarge")).to_be_checked()
    expect(limit).to_have_value("30")
    page.get_by_label("Name of variable 1").fill("THRESHOLD")
    page.get_by_role("button", name="Create container").click()
    expect(page.get_by_role("heading", name="Nuclei counter")).to_be_visible()
    expect(page.locator("main")).to_contain_text("g5.2xlarge")
    expect(page.locator("main")).to_contain_text("30 min")


def test_a_case_algorithm_is_made_of_a_container(page: Page) -> None:
    page.goto("/console/algorithms")
    page.get_by_role("button", name="Create case algorithm").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name").fill("Nuclei per field")
    dialog.get_by_label("Container").select_option(index=1)
    dialog.get_by_role("button", name="Create case algorithm").click()
    expect(page.get_by_role("heading", name="Nuclei per field")).to_be_visible()
    expect(page.locator("main")).to_contain_text("Model Hosting Service")


def test_a_slide_is_uploaded_from_the_browser_and_its_pixels_are_seen(site: Site, page: Page) -> None:
    page.goto("/console/scans")
    page.get_by_role("button", name="Upload").click()
    page.locator("#files").set_input_files(site.slide)
    page.get_by_role("link", name="Open the scan").click()
    viewer = page.locator("mhs-viewer")
    expect(viewer).to_have_attribute("data-ready", "slide")
    expect(viewer.locator(".scale")).to_contain_text("µm")
    while not page.evaluate("document.querySelector('mhs-viewer').osd.world.getItemAt(0).getFullyLoaded()"):
        page.wait_for_timeout(50)
    brown = page.evaluate(
        """() => {
            const canvas = document.querySelector('mhs-viewer .openseadragon-canvas canvas');
            const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
            let brown = 0;
            for (let i = 0; i < data.length; i += 4) if (data[i] - data[i + 2] > 60 && data[i + 3]) brown += 1;
            return brown / (data.length / 4);
        }"""
    )
    assert brown > 0.05, "stained tissue is brown"
    before = page.evaluate("document.querySelector('mhs-viewer').osd.viewport.getZoom()")
    viewer.get_by_role("button", name="Zoom in").click()
    assert page.evaluate("document.querySelector('mhs-viewer').osd.viewport.getZoom()") > before


def test_what_is_no_slide_is_refused_with_the_reason(page: Page) -> None:
    page.goto("/console/scans")
    page.get_by_role("button", name="Upload").click()
    page.locator("#files").set_input_files({"name": "notes.svs", "mimeType": "", "buffer": b"no slide at all"})
    expect(page.locator(".uploads .fault")).to_be_visible()


def test_an_ai_request_makes_a_job_that_can_be_cancelled_and_run_again(site: Site, page: Page) -> None:
    page.goto(f"/console/scans/{site.scan.id}")
    page.locator("mhs-viewer[data-ready]").wait_for()
    page.locator("mhs-viewer .stage").click(button="right")
    page.get_by_role("menuitem", name="AI request").click()
    dialog = page.get_by_role("dialog", name="AI request")
    dialog.get_by_label("AI model").select_option(label="Mitosis finder")
    dialog.get_by_label("Description").fill("please count")
    dialog.get_by_role("button", name="Send request").click()
    expect(page).to_have_url(re.compile(r"/console/jobs/\d+$"))
    expect(page.locator("main")).to_contain_text("please count")
    expect(page.locator("main")).to_contain_text("queued")
    page.get_by_role("button", name="Cancel job").click()
    expect(page.locator("#job .badge").first).to_have_text("cancelled")
    page.get_by_role("button", name="Run again").click()
    expect(page.locator("#job .badge").first).to_have_text("queued")
    page.get_by_role("button", name="Cancel job").click()
    expect(page.locator("#job .badge").first).to_have_text("cancelled")


def test_the_list_of_jobs_is_filtered_and_the_filter_is_a_link(site: Site, page: Page) -> None:
    page.goto("/console/jobs")
    row = page.locator(f"#job-{site.succeeded.id}")
    expect(row).to_be_visible()
    page.get_by_label("State").select_option("failed")
    expect(row).to_have_count(0)
    expect(page.locator(f"#job-{site.failed.id}")).to_be_visible()
    expect(page).to_have_url(re.compile("state=failed"))
    page.reload()
    expect(page.get_by_label("State")).to_have_value("failed")
    expect(row).to_have_count(0)
    with page.expect_download() as told:
        page.get_by_role("link", name="Download CSV").click()
    lines = told.value.path().read_text().splitlines()
    assert lines[0].startswith("job,state,")
    assert all(line.split(",")[1] == "failed" for line in lines[1:])


def test_a_failed_job_says_why_and_what_to_do(site: Site, page: Page) -> None:
    page.goto(f"/console/jobs/{site.failed.id}")
    card = page.locator("section.failure")
    expect(card).to_contain_text("exit code 3")
    expect(card).to_contain_text("Look at its log")
    expect(page.locator("ol.timeline")).to_contain_text("Failed")
    expect(page.locator("main")).not_to_contain_text("env-s3cret")


def test_the_log_follows_a_running_job_and_the_page_its_end(site: Site, page: Page) -> None:
    job = site.run()
    site.log(job, "first words")
    page.goto(f"/console/jobs/{job.id}")
    log = page.locator("mhs-log .log-view")
    expect(log).to_contain_text("first words")
    site.log(job, "later words", first=1)
    expect(log).to_contain_text("later words")
    site.succeed(job)
    expect(page.locator("#job .badge").first).to_have_text("succeeded")
    expect(page.locator("#results")).to_contain_text("mitosisCount")


def test_a_long_log_is_searched_from_end_to_end(site: Site, page: Page) -> None:
    page.goto(f"/console/jobs/{site.succeeded.id}")
    box = page.get_by_label("Search in the log")
    box.fill("line 1400 of")
    box.press("Enter")
    expect(page.locator("mhs-log .log-view")).to_contain_text("line 1400 of the model")
    assert page.locator("mhs-log .log-lines > *").count() < 200, "only what is in view is in the page"


def test_annotations_lie_over_the_slide_where_they_belong_and_a_class_can_be_hidden(site: Site, page: Page) -> None:
    page.goto(f"/console/jobs/{site.succeeded.id}")
    viewer = page.locator("mhs-viewer[data-ready=annotations]")
    viewer.wait_for()
    viewer.scroll_into_view_if_needed()
    drawn = """([x, y]) => {
        const viewer = document.querySelector('mhs-viewer'), canvas = viewer.querySelector('canvas.overlay');
        const at = viewer.osd.viewport.imageToViewerElementCoordinates(new OpenSeadragon.Point(x, y));
        const ratio = canvas.width / canvas.clientWidth;
        return canvas.getContext('2d').getImageData(Math.round(at.x * ratio), Math.round(at.y * ratio), 1, 1).data[3];
    }"""
    assert page.evaluate(drawn, [1250, 950]) > 0
    assert page.evaluate(drawn, [300, 300]) == 0
    viewer.get_by_label("tumor").uncheck()
    assert page.evaluate(drawn, [1250, 950]) == 0
    with page.expect_download() as told:
        page.get_by_role("link", name="GeoJSON").click()
    assert '"tumor"' in told.value.path().read_text()
