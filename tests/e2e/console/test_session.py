"""Signing in and out, and what a page may not do for those who may not."""

from __future__ import annotations

import re

import httpx
from playwright.sync_api import Page, expect

from api.console.session import COOKIE
from mhs_ray.domain.models import Role
from tests.e2e.console.conftest import SECRET, Site, sign_in


def test_signing_in_leads_back_to_where_one_was_and_signing_out_ends_it(site: Site, stranger: Page) -> None:
    client_id = site.client(Role.LAB_ADMIN, "Bea")
    stranger.goto("/console/jobs?state=failed")
    stranger.get_by_label("Client id").fill(client_id)
    stranger.get_by_label("Client secret").fill("wrong")
    stranger.get_by_role("button", name="Sign in").click()
    expect(stranger.get_by_role("alert")).to_be_visible()
    expect(stranger.get_by_label("Client id")).to_have_value(client_id)
    sign_in(stranger, site, client_id)
    expect(stranger).to_have_url(f"{site.url}/console/jobs?state=failed")
    stranger.get_by_role("button", name="Sign out").click()
    expect(stranger.get_by_role("heading", name="Sign in")).to_be_visible()
    stranger.goto("/console/jobs")
    expect(stranger).to_have_url(re.compile("/console/sign-in"))


def test_a_session_that_ends_under_a_form_keeps_what_was_typed(site: Site, stranger: Page) -> None:
    client_id = site.client(Role.LAB_ADMIN, "Cleo")
    assert site.algorithm.container_id is not None
    image = site.world.containers.get(site.company, site.algorithm.container_id).image_id
    stranger.goto("/console/containers/new")
    sign_in(stranger, site, client_id)
    stranger.get_by_label("Display name").fill("Half done")
    stranger.get_by_label("Image").select_option(value=str(image))
    stranger.context.clear_cookies(name=COOKIE)
    stranger.get_by_role("button", name="Create container").click()
    sign_in(stranger, site, client_id)
    expect(stranger).to_have_url(f"{site.url}/console/containers/new")
    expect(stranger.get_by_label("Display name")).to_have_value("Half done")


def test_a_viewer_is_offered_no_writes_and_cannot_write(site: Site, stranger: Page) -> None:
    stranger.goto("/console/images")
    sign_in(stranger, site, site.client(Role.VIEWER, "Vera"))
    expect(stranger.get_by_role("button", name="Create image")).to_have_count(0)
    for address in (f"/console/scans/{site.scan.id}", f"/console/jobs/{site.failed.id}", "/console/containers"):
        stranger.goto(address)
        expect(stranger.get_by_role("button", name=re.compile("Delete|AI request|Run again|Edit"))).to_have_count(0)
        expect(stranger.get_by_role("link", name="Create container")).to_have_count(0)
    key = stranger.locator('meta[name="form-key"]').get_attribute("content")
    answer = stranger.request.post(
        "/console/images", form={"name": "Mine"}, headers={"X-Form-Key": key or "", "Origin": site.url}
    )
    assert answer.status == 403
    assert "viewer" in answer.text()


def test_a_write_from_another_sites_page_or_without_the_sessions_key_is_refused(site: Site, page: Page) -> None:
    page.goto("/console/images")
    cookies = {c["name"]: c["value"] for c in page.context.cookies()}
    key = page.locator('meta[name="form-key"]').get_attribute("content") or ""
    with httpx.Client(base_url=site.url, cookies=cookies) as http:
        write = {"name": "Forged", "form_key": key}
        assert http.post("/console/images", data=write, headers={"Origin": "https://evil.example"}).status_code == 403
        assert http.post("/console/images", data=write, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
        without = http.post("/console/images", data={"name": "Forged"}, headers={"Origin": site.url})
        assert without.status_code == 403
        assert http.get("/v1/images").status_code == 401, "the cookie is no credential for the API"
        assert "Forged" not in http.get("/console/images").text
        assert http.post("/console/images", data=write, headers={"Origin": site.url}).status_code == 303


def test_the_cookie_is_kept_from_scripts_and_other_sites(site: Site, page: Page) -> None:
    (cookie,) = [c for c in page.context.cookies() if c["name"] == COOKIE]
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Strict"
    assert cookie["path"] == "/console"
    assert SECRET not in cookie["value"]
    page.goto("/console/")
    answer = httpx.get(f"{site.url}/console/sign-in")
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
