"""Each page loads, says what it should, and has no serious fault of accessibility."""

from __future__ import annotations

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from mhs_ray.domain.capacity import Capacity
from mhs_ray.domain.models import Role
from tests.e2e.console.conftest import CAPACITY, Site, sign_in

PAGES = {
    "/console/": "Home",
    "/console/images": "Docker Images",
    "/console/images/{image}": "image",
    "/console/containers": "Runnable Containers",
    "/console/containers/new": "Create container",
    "/console/containers/{container}": "Mitosis container",
    "/console/containers/{container}/edit": "Edit container",
    "/console/algorithms": "Case Algorithms",
    "/console/algorithms/{algorithm}": "Mitosis finder",
    "/console/scans": "Scans",
    "/console/scans/{scan}": "Demo slide",
    "/console/cohorts": "Cohorts",
    "/console/cohorts/{cohort}": "Lung",
    "/console/jobs": "Jobs and Logs",
    "/console/jobs/{succeeded}": "Job",
    "/console/jobs/{failed}": "Job",
    "/console/access": "Access",
}


def _address(site: Site, pattern: str) -> str:
    container = site.algorithm.container_id
    assert container is not None
    image = site.world.containers.get(site.company, container).image_id
    return pattern.format(
        image=image, container=container, algorithm=site.algorithm.id, scan=site.scan.id,
        succeeded=site.succeeded.id, failed=site.failed.id, cohort=site.cohort.id,
    )  # fmt: skip


def _serious(page: Page) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [f"{v['id']}: {v['nodes'][0]['html']}" for v in found if v["impact"] in ("serious", "critical")]


@pytest.mark.parametrize("pattern", PAGES)
def test_a_page_loads_without_errors_and_without_serious_faults_of_accessibility(
    site: Site, page: Page, pattern: str
) -> None:
    answer = page.goto(_address(site, pattern))
    assert answer is not None
    assert answer.status == 200
    expect(page.locator("h1")).to_contain_text(PAGES[pattern])
    if page.locator("mhs-viewer").count():
        page.locator("mhs-viewer[data-ready]").wait_for()
    assert _serious(page) == []


def test_the_dark_sign_in_page_has_no_serious_fault(site: Site, stranger: Page) -> None:
    stranger.emulate_media(color_scheme="dark")
    stranger.goto("/console/sign-in")
    assert _serious(stranger) == []


def test_the_apis_own_address_leads_people_to_the_console(site: Site, page: Page) -> None:
    page.goto("/")
    expect(page).to_have_url(f"{site.url}/console/")


def test_an_address_that_leads_nowhere_says_so(page: Page) -> None:
    answer = page.goto("/console/nonsense")
    assert answer is not None
    assert answer.status == 404
    expect(page.locator("h1")).to_contain_text("nothing here")


def test_the_cluster_is_for_operators(site: Site, page: Page, stranger: Page) -> None:
    answer = page.goto("/console/cluster")
    assert answer is not None
    assert answer.status == 403
    expect(page.get_by_role("link", name="Cluster")).to_have_count(0)
    stranger.goto("/console/cluster")
    sign_in(stranger, site, site.client(Role.OPERATOR, "Oskar"))
    expect(stranger).to_have_url(re.compile("/console/cluster"))
    expect(stranger.get_by_role("heading", name="Usage by company")).to_be_visible()
    assert _serious(stranger) == []


def test_a_cohort_is_resumed_and_cancelled_by_its_buttons(site: Site, page: Page) -> None:
    page.goto(f"/console/cohorts/{site.cohort.id}")
    expect(page.get_by_text("cancelled by ann")).to_be_visible()
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_text("It goes on.")).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("cancelled by Ada")).to_be_visible()


def test_an_operator_sees_what_the_autoscaler_does(site: Site, stranger: Page) -> None:
    CAPACITY["g5.2xlarge"] = Capacity(nodes=2, free=1, starting=3, since=None, refused="no capacity in eu-west-1a")
    try:
        stranger.goto("/console/cluster")
        sign_in(stranger, site, site.client(Role.OPERATOR, "Otto"))
        row = stranger.get_by_role("row", name="g5.2xlarge 2 1 3 no capacity in eu-west-1a")
        expect(row).to_be_visible()
        assert _serious(stranger) == []
    finally:
        CAPACITY.clear()
