"""The rest of what the pages offer, each once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from api.console import assets
from mhs_ray.attempt.tiles import progress_key
from mhs_ray.auth.clients import hash_secret
from mhs_ray.domain.env import EnvVar
from mhs_ray.domain.models import Role
from mhs_ray.domain.states import JobEvent
from tests.e2e.console.conftest import SECRET, Site, sign_in


def test_jobs_are_cancelled_and_retried_in_bulk(site: Site, page: Page) -> None:
    first, second = site.submit(), site.submit()
    page.goto("/console/jobs")
    for job in (first, second):
        page.get_by_label(f"Choose job {job.id}", exact=True).check()
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.get_by_text("2 jobs cancelled.")).to_be_visible()
    for job in (first, second):
        page.get_by_label(f"Choose job {job.id}", exact=True).check()
    page.get_by_role("button", name="Retry", exact=True).click()
    expect(page.get_by_text("2 jobs queued again.")).to_be_visible()


def test_an_image_is_renamed_and_deleted(page: Page) -> None:
    page.goto("/console/images")
    page.get_by_role("button", name="Create image").click()
    page.get_by_role("dialog").get_by_label("Name").fill("Short-lived")
    page.get_by_role("dialog").get_by_role("button", name="Create image").click()
    page.get_by_role("button", name="Rename").click()
    page.get_by_role("dialog").get_by_label("Name").fill("Renamed")
    page.get_by_role("dialog").get_by_role("button", name="Rename").click()
    expect(page.get_by_role("heading", name="Renamed")).to_be_visible()
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete image").click()
    expect(page.get_by_text("Renamed is deleted.")).to_be_visible()


def test_a_container_keeps_its_secret_when_it_is_edited_and_says_what_depends_on_it(site: Site, page: Page) -> None:
    container = site.algorithm.container_id
    page.goto(f"/console/containers/{container}/edit")
    page.get_by_label("Time limit in minutes").fill("20")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("main")).to_contain_text("20 min")
    assert container is not None
    kept = {v.name: v.value for v in site.world.containers.get(site.company, container).env if not v.secret}
    assert kept == {"THRESHOLD": "0.5"}
    expect(page.locator("main")).to_contain_text("API_KEY")
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("dialog")).to_contain_text("Mitosis finder")
    expect(page.get_by_role("button", name="Delete container")).to_have_count(0)


def test_a_container_is_tested_on_a_scan(site: Site, page: Page) -> None:
    page.goto(f"/console/containers/{site.algorithm.container_id}")
    page.get_by_role("button", name="Test on a scan").click()
    page.get_by_label("Scan", exact=True).select_option(str(site.scan.id))
    page.get_by_role("button", name="Start test").click()
    expect(page).to_have_url(re.compile(r"/console/jobs/\d+$"))
    expect(page.locator("main")).to_contain_text("research")


def test_a_scan_is_registered_by_its_path_and_a_wrong_one_is_said_beside_the_field(site: Site, page: Page) -> None:
    page.goto("/console/scans")
    page.get_by_role("button", name="Register by URL or path").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("By").select_option("path")
    dialog.get_by_label("URL or path").fill("/nowhere/slide.svs")
    dialog.get_by_role("button", name="Register").click()
    where = page.get_by_role("dialog").get_by_label("URL or path")
    expect(where).to_have_attribute("aria-invalid", "true")
    expect(where).to_have_value("/nowhere/slide.svs")
    where.fill(str(site.slide))
    page.get_by_role("dialog").get_by_role("button", name="Register").click()
    expect(page).to_have_url(re.compile(r"/console/scans/\d+"))
    page.locator("mhs-viewer[data-ready]").wait_for()


@pytest.mark.parametrize("kind", ["JSON", "Parquet"])
def test_a_result_is_downloaded(site: Site, page: Page, kind: str) -> None:
    page.goto(f"/console/jobs/{site.succeeded.id}")
    with page.expect_download() as told:
        page.get_by_role("link", name=kind, exact=True).click()
    data = told.value.path().read_bytes()
    assert data.startswith(b"PAR1") if kind == "Parquet" else b"mitosisCount" in data


def test_one_browser_works_for_two_companies_and_sees_one_at_a_time(site: Site, stranger: Page) -> None:
    site.core.clients.add("mhs-south", site.world.company("South Lab"), "Sue", Role.LAB_ADMIN, hash_secret(SECRET))
    stranger.goto("/console/")
    sign_in(stranger, site, site.client(Role.LAB_ADMIN, "Dora"))
    stranger.get_by_role("link", name="Add another company").click()
    sign_in(stranger, site, "mhs-south")
    expect(stranger.locator(".who")).to_contain_text("South Lab")
    answer = stranger.goto(f"/console/jobs/{site.succeeded.id}")
    assert answer is not None
    assert answer.status == 404
    stranger.get_by_role("button", name="Switch company").click()
    expect(stranger.locator(".who b")).to_have_text("North Lab")
    answer = stranger.goto(f"/console/jobs/{site.succeeded.id}")
    assert answer is not None
    assert answer.status == 200


def test_without_its_fetched_files_the_console_says_so_and_still_works(
    site: Site, page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets, "VENDOR", tmp_path)
    page.goto(f"/console/scans/{site.scan.id}")
    expect(page.get_by_role("alert")).to_contain_text("make setup")
    expect(page.locator(".stage-note")).to_contain_text("the viewer's files are missing")
    page.goto("/console/jobs?state=failed")
    expect(page.locator(f"#job-{site.failed.id}")).to_be_visible()


def test_a_tile_feed_is_asked_for_in_a_field_of_its_own(site: Site, page: Page) -> None:
    assert site.algorithm.container_id is not None
    image = site.world.containers.get(site.company, site.algorithm.container_id).image_id
    page.goto(f"/console/containers/new?image={image}")
    page.get_by_label("Display name").fill("Fed with tiles")
    page.get_by_label("Tile feed").fill("size=224 mpp=zero")
    page.get_by_role("button", name="Create container").click()
    expect(page.locator("#fault-tiles")).to_contain_text("is no number")
    page.get_by_label("Tile feed").fill("size=224 mpp=0.5 tissue")
    page.get_by_role("button", name="Create container").click()
    expect(page.get_by_role("row", name="MHS_TILES size=224 mpp=0.5 tissue")).to_be_visible()
    page.get_by_role("link", name="Edit").click()
    expect(page.get_by_label("Tile feed")).to_have_value("size=224 mpp=0.5 tissue")
    expect(page.get_by_label("Name of variable 1")).to_have_count(0)
    page.get_by_label("Tile feed").fill("")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("MHS_TILES")).to_have_count(0)


def test_a_jobs_page_shows_how_far_its_tiles_are(site: Site, page: Page) -> None:
    container = site.world.container(site.company, env=[EnvVar("MHS_TILES", "size=224")])
    request = site.world.submission(site.company, site.world.algorithm(site.company, container), site.scan)
    job_id = site.world.tasks.submit(request).job_ids[0]
    site.world.claim()
    site.world.jobs.transition(job_id, JobEvent.PLACED, attempt=1, node="node-a")
    site.world.jobs.transition(job_id, JobEvent.STARTED, attempt=1)
    site.core.blobs.put(progress_key(job_id, 1), b'{"done": 120, "planned": 4800, "left_s": 61.0}')
    page.goto(f"/console/jobs/{job_id}")
    expect(page.get_by_role("progressbar", name="Tiles read")).to_be_visible()
    expect(page.get_by_text("120 of 4\u202f800")).to_be_visible()
    site.core.blobs.put(progress_key(job_id, 1), b'{"done": 4800, "planned": 4800, "left_s": 0.0}')
    expect(page.get_by_text("4\u202f800 of 4\u202f800")).to_be_visible()
    site.world.jobs.transition(job_id, JobEvent.CANCELLED, attempt=1)
