"""What happens under a page while somebody looks at it, the dark theme, and every kind of report."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from mhs_ray.auth.tokens import AttemptIdentity
from mhs_ray.domain.models import Role
from mhs_ray.domain.states import JobEvent, JobState
from mhs_ray.results.examples import examples
from mhs_ray.store.sql import tables as t
from tests.api_fixtures import HOUR
from tests.e2e.console.conftest import Site, sign_in
from tests.e2e.console.test_pages import PAGES, _address


@pytest.mark.parametrize("pattern", PAGES)
def test_a_page_is_readable_in_the_dark(site: Site, page: Page, pattern: str) -> None:
    page.emulate_media(color_scheme="dark")
    page.goto(_address(site, pattern))
    assert page.evaluate("getComputedStyle(document.body).backgroundColor !== 'rgb(255, 255, 255)'")
    found = Axe().run(page, options={"runOnly": {"type": "rule", "values": ["color-contrast"]}}).response
    assert [node["html"] for v in found["violations"] for node in v["nodes"]] == []


def test_the_theme_that_was_chosen_stays(site: Site, page: Page) -> None:
    page.goto("/console/")
    page.get_by_role("button", name="Light/dark").click()
    chosen = page.locator("html").get_attribute("data-theme")
    page.goto("/console/jobs")
    expect(page.locator("html")).to_have_attribute("data-theme", chosen or "")


@pytest.mark.parametrize("kind", sorted(examples()))
def test_each_kind_of_result_is_shown(site: Site, page: Page, kind: str) -> None:
    job = site.run()
    body: dict[str, Any] = examples()[kind]
    body["scanResults"][0]["scanId"] = str(job.scan_number)
    who = AttemptIdentity(job.company_id, job.task_number, job.id, job.attempt)
    headers = {"Authorization": f"Bearer {site.core.tokens.for_attempt(who, HOUR)}"}
    answer = httpx.post(f"{site.url}/api/v3/external/results/{job.task_number}", json=body, headers=headers)
    assert answer.status_code == 201, answer.text
    for event in (JobEvent.EXITED, JobEvent.SUCCEEDED):
        site.world.jobs.transition(job.id, event, attempt=1)
    page.goto(f"/console/jobs/{job.id}")
    assert page.locator(".widget").count() >= 1
    page.locator("mhs-viewer[data-ready]").wait_for()
    found = Axe().run(page, context=["#results"]).response["violations"]
    assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []


def test_a_lost_connection_is_told_and_the_page_recovers(site: Site, browser: Browser, page: Page) -> None:
    # A page of its own: the browser reports the failed requests on its console, and rightly so.
    context = browser.new_context(base_url=site.url, storage_state=page.context.storage_state())
    page = context.new_page()
    page.goto("/console/jobs")
    banner = page.locator("#banner")
    context.route("**/console/**", lambda route: route.abort())
    expect(banner).to_contain_text("connection is lost")
    job = site.submit()
    context.unroute("**/console/**")
    expect(page.locator(f"#job-{job.id}")).to_be_visible()
    expect(banner).not_to_contain_text("lost")
    context.close()
    site.core.jobs.jobs.transition(job.id, JobEvent.CANCELLED)


def test_a_session_that_ends_under_a_list_is_told_with_the_way_back(site: Site, stranger: Page) -> None:
    client_id = site.client(Role.LAB_USER, "Dan")
    stranger.goto("/console/jobs?q=Mitosis")
    sign_in(stranger, site, client_id)
    stranger.context.clear_cookies(name="mhs_session")
    expect(stranger.locator("#banner")).to_contain_text("session has ended")
    stranger.locator("#banner").get_by_role("link").click()
    sign_in(stranger, site, client_id)
    expect(stranger).to_have_url(f"{site.url}/console/jobs?q=Mitosis")


def test_a_link_from_another_site_leads_to_the_page_without_signing_in_again(site: Site, page: Page) -> None:
    elsewhere = site.url.replace("127.0.0.1", "localhost")
    page.goto(f"{elsewhere}/healthz")
    page.evaluate("url => { location.href = url; }", f"{site.url}/console/jobs?state=failed")
    expect(page.get_by_role("heading", name="Jobs and Logs")).to_be_visible()
    expect(page).to_have_url(f"{site.url}/console/jobs?state=failed")


def test_polling_does_not_take_a_choice_of_jobs_away(site: Site, page: Page) -> None:
    jobs = [site.submit(), site.submit()]
    page.goto("/console/jobs?state=queued")
    for job in jobs:
        page.get_by_label(f"Choose job {job.id}", exact=True).check()
    expect(page.locator("[data-chosen]")).to_have_text("2")
    page.wait_for_timeout(3500)  # a poll's time: nothing may be asked for while something is chosen
    expect(page.locator("[data-chosen]")).to_have_text("2")
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.get_by_role("status").first).to_contain_text("2 jobs cancelled")
    assert {site.world.jobs.find(j.id).state for j in jobs} == {JobState.CANCELLED}


def test_a_client_that_is_revoked_is_out_at_its_next_page(site: Site, stranger: Page) -> None:
    client_id = site.client(Role.LAB_ADMIN, "Gus")
    stranger.goto("/console/")
    sign_in(stranger, site, client_id)
    with site.core.db.write() as conn:
        conn.execute(sa.update(t.clients).where(t.clients.c.id == client_id).values(revoked_at=datetime.now(UTC)))
    stranger.goto("/console/jobs")
    expect(stranger).to_have_url(re.compile("/console/sign-in"))


def test_an_upload_that_was_cut_off_goes_on_where_it_stopped(site: Site, page: Page) -> None:
    page.goto("/console/scans")
    key = page.locator('meta[name="form-key"]').get_attribute("content") or ""
    begun = page.request.post(
        "/console/scans/upload", form={"filename": "cut.svs"}, headers={"X-Form-Key": key, "Origin": site.url}
    ).json()
    data = site.slide.read_bytes()
    half = len(data) // 2
    answer = httpx.put(begun["url"], content=data[:half], headers={"Content-Range": f"bytes 0-{half - 1}/{len(data)}"})
    assert answer.status_code == 202
    page.get_by_role("button", name="Upload").click()
    # What the page keeps of an upload: which file it was, and which scan.
    page.evaluate(
        """id => document.addEventListener('change', ({ target: { files: [f] } }) => {
            localStorage.setItem('mhs-uploads', JSON.stringify({ [`${f.name}/${f.size}/${f.lastModified}`]: id }));
        }, { capture: true, once: true })""",
        begun["id"],
    )
    sent: list[str] = []
    page.on("request", lambda r: sent.append(r.headers.get("content-range", "")) if r.method == "PUT" else None)
    page.locator("#files").set_input_files(site.slide)
    page.get_by_role("link", name="Open the scan").click()
    expect(page).to_have_url(f"{site.url}/console/scans/{begun['id']}")
    assert sent[0].startswith(f"bytes {half}-")


def test_a_list_shows_thumbnails(site: Site, page: Page) -> None:
    page.goto("/console/scans?name=Demo")
    picture = page.locator("td.thumb img").first
    expect(picture).to_be_visible()
    page.wait_for_function("() => document.querySelector('td.thumb img').naturalWidth > 100")


def test_the_env_of_a_secret_stays_when_its_field_is_left_empty(site: Site, page: Page) -> None:
    container = site.world.container(site.company, name="With a secret")
    page.goto(f"/console/containers/{container.id}/edit")
    page.get_by_label("Display name").fill("Renamed, secret kept")
    expect(page.get_by_label("Value of variable 2")).to_have_value("")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("heading", name="Renamed, secret kept")).to_be_visible()
    kept = {v.name: v.value for v in site.world.containers.get(site.company, container.id).env}
    assert kept == {"THRESHOLD": "0.5", "API_KEY": "env-s3cret"}
