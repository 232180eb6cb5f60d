"""Who has access, as an admin and as an operator see it; and signing in at an identity provider."""

from __future__ import annotations

import re

import httpx
from playwright.sync_api import Page, expect

from mhs_ray.domain.models import Role
from tests.e2e.console.conftest import Site, sign_in
from tests.e2e.console.test_pages import _serious


def test_a_client_is_made_its_secret_shown_once_and_revoked(site: Site, page: Page) -> None:
    page.goto("/console/")
    page.get_by_role("link", name="Access").click()
    page.get_by_role("button", name="Create API client").click()
    dialog = page.get_by_role("dialog", name="Create API client")
    dialog.get_by_label("Name").fill("Slide scanner")
    dialog.get_by_label("Role").select_option("Viewer")
    dialog.get_by_role("button", name="Create API client").click()
    expect(page.get_by_role("heading", name="Slide scanner was made")).to_be_visible()
    client_id, secret = (page.locator(i).inner_text() for i in ("#made-id", "#made-secret"))
    assert _serious(page) == []
    assert httpx.get(f"{site.url}/v1/me", auth=(client_id, secret)).json()["role"] == "Viewer"
    page.goto("/console/access")
    assert secret not in page.content()
    page.on("dialog", lambda asked: asked.accept())
    page.get_by_role("button", name="Revoke Slide scanner").click()
    expect(page.get_by_role("status").filter(has_text="Slide scanner was revoked")).to_be_visible()
    assert httpx.get(f"{site.url}/v1/me", auth=(client_id, secret)).status_code == 401
    did = page.get_by_role("region", name="Who did what").or_(page.locator("section[aria-labelledby=audit]"))
    expect(did.first).to_contain_text("revoke client")
    expect(did.first).to_contain_text("create client")
    expect(did.first).to_contain_text(f"/console/access/clients/{client_id}")


def test_a_webhooks_secret_is_made_and_good_at_once(site: Site, page: Page) -> None:
    page.goto("/console/access")
    page.get_by_role("button", name="Create the secret").click()
    secret = page.locator("#webhook-secret").inner_text()
    answer = httpx.post(f"{site.url}/v1/webhook", json={}, headers={"Authorization": f"Bearer {secret}"})
    assert answer.status_code == 422, "let in, and told what is missing"


def test_access_is_for_admins(site: Site, stranger: Page) -> None:
    stranger.goto("/console/access")
    sign_in(stranger, site, site.client(Role.LAB_USER, "Uwe"))
    expect(stranger.locator("h1")).to_contain_text("You may not do this")
    expect(stranger.get_by_role("link", name="Access")).to_have_count(0)


def test_an_operator_switches_a_company_off_and_on(site: Site, stranger: Page) -> None:
    site.world.company("West Lab")
    stranger.goto("/console/access")
    sign_in(stranger, site, site.client(Role.OPERATOR, "Olga"))
    stranger.on("dialog", lambda asked: asked.accept())
    stranger.get_by_role("button", name="Switch off for West Lab").click()
    expect(stranger.get_by_role("button", name="Switch on for West Lab")).to_be_visible()
    stranger.get_by_role("button", name="Create company").click()
    dialog = stranger.get_by_role("dialog", name="Create company")
    dialog.get_by_label("Company name").fill("West Lab")
    dialog.get_by_role("button", name="Create company").click()
    expect(stranger.get_by_role("alert")).to_contain_text("There is a company of this name")
    expect(stranger.get_by_label("Company name")).to_have_value("West Lab")
    assert _serious(stranger) == []


def test_a_person_signs_in_at_the_identity_provider_and_comes_back_to_where_they_were(
    site: Site, stranger: Page
) -> None:
    site.provider.claims = {"company_id": "1052", "role": "Lab User", "name": "Sara Sso"}
    stranger.goto("/console/jobs?state=failed")
    stranger.get_by_role("link", name="Sign in with the lab's directory").click()
    expect(stranger).to_have_url(re.compile(r"/console/jobs\?state=failed"))
    expect(stranger.get_by_text("Sara Sso")).to_be_visible()
    assert "code=" not in stranger.url
    site.provider.claims["company_id"] = "unknown"
    stranger.get_by_role("button", name="Sign out").click()
    stranger.get_by_role("link", name="Sign in with the lab's directory").click()
    expect(stranger.get_by_text("company is not known to this platform")).to_be_visible()


def test_an_answer_that_this_browser_did_not_ask_for_is_refused(site: Site, stranger: Page) -> None:
    answer = stranger.goto("/console/oidc/callback?code=x&state=y")
    assert answer is not None
    assert answer.status == 401
    stranger.goto("/console/sign-in")
    stranger.evaluate("fetch('/console/oidc/start/0?next=/console/', {redirect: 'manual'})")
    answer = stranger.goto("/console/oidc/callback?code=x&state=forged")
    assert answer is not None
    assert answer.status == 401
    expect(stranger.get_by_text("begin again")).to_be_visible()
