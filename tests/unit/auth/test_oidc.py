"""Tokens of an OpenID provider: whose they are, what is refused, and keys that rotate."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from mhs_ray.auth import oidc
from mhs_ray.auth.oidc import Outsiders, client_id_of
from mhs_ray.domain.errors import ForbiddenError, MhsError, OverloadedError, UnauthenticatedError
from mhs_ray.domain.models import Principal, Role
from mhs_ray.domain.sections import IssuerSettings
from mhs_ray.store.sql.companies import Companies
from tests.oidc_fixtures import OpenIdProvider, open_id_provider
from tests.store_fixtures import World, sqlite_db


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with sqlite_db(tmp_path) as db:
        yield World(db)


@pytest.fixture
def provider() -> Iterator[OpenIdProvider]:
    with open_id_provider() as found:
        found.claims = {"company_id": "1052", "role": ["staff", "Lab User"], "name": "Ada Lovelace"}
        yield found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("mhs_ray.auth.oidc.time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def verify(world: World, provider: OpenIdProvider) -> Callable[[str], Principal]:
    world.company("North Lab", external_id="1052")
    settings = IssuerSettings(issuer=provider.url, audience="mhs", roles={"chief": Role.OPERATOR})
    outsiders = Outsiders([settings], world.clients, Companies(world.db))

    def ask(token: str) -> Principal:
        found = outsiders.provider_of(token)
        assert found is not None
        return outsiders.verify(found, token)

    return ask


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
def test_a_providers_token_names_a_client_of_a_company(
    world: World, provider: OpenIdProvider, verify: Callable[[str], Principal], algorithm: str
) -> None:
    provider.add_key("k2", algorithm)
    who = verify(provider.token("k2", algorithm))
    company = world.clients.ensure_company("North Lab")
    assert who == Principal(company, "Ada Lovelace", Role.LAB_USER, client_id_of(provider.url, "user-1"))
    (kept,) = world.clients.listed(company)
    assert (kept.id, kept.role, kept.created_by) == (who.client_id, Role.LAB_USER, "single sign-on")


@pytest.mark.parametrize(("claims", "error", "words"), [
    ({"exp": 1}, UnauthenticatedError, "expired"),
    ({"exp": None}, UnauthenticatedError, "malformed"),
    ({"iss": "https://elsewhere.example.com"}, AssertionError, ""),
    ({"aud": "another"}, UnauthenticatedError, "another audience"),
    ({"company_id": "77"}, ForbiddenError, "company is not known"),
    ({"company_id": None}, ForbiddenError, "company is not known"),
    ({"company_id": {"a": 1}}, ForbiddenError, "company is not known"),
    ({"role": "janitor"}, ForbiddenError, "none of the roles"),
    ({"role": "Operator"}, ForbiddenError, "none of the roles"),  # only a name that the settings list makes one
])  # fmt: skip
def test_a_token_that_does_not_fit_is_refused_with_its_reason(
    provider: OpenIdProvider, verify: Callable[[str], Principal], claims: dict[str, Any], error: type[Exception],
    words: str,
) -> None:  # fmt: skip
    with pytest.raises(error, match=words):
        verify(provider.token("k1", **claims))


def test_an_operator_is_who_the_settings_say(provider: OpenIdProvider, verify: Callable[[str], Principal]) -> None:
    assert verify(provider.token("k1", role="chief")).role is Role.OPERATOR


def test_a_forged_signature_and_a_swapped_algorithm_are_refused(
    provider: OpenIdProvider, verify: Callable[[str], Principal]
) -> None:
    good = provider.token("k1")
    head, body, signature = good.split(".")
    payload = jwt.decode(good, options={"verify_signature": False})
    forged = [
        f"{head}.{body}.{signature[:-8]}AAAAAAAA",
        jwt.encode(payload, "a" * 32, algorithm="HS256", headers={"kid": "k1"}),
        jwt.encode(payload, None, algorithm="none", headers={"kid": "k1"}),
        f"{head}.{body}.",
    ]
    for token in forged:
        with pytest.raises(UnauthenticatedError):
            verify(token)
    assert verify(good)


def test_keys_rotate_and_an_unknown_one_has_the_set_fetched_at_most_twice_a_minute(
    provider: OpenIdProvider, verify: Callable[[str], Principal], clock: list[float]
) -> None:
    verify(provider.token("k1"))
    assert provider.asked_for_keys == 1
    provider.add_key("k2")
    newer = provider.token("k2")
    with pytest.raises(UnauthenticatedError, match="not one of its issuer's"):
        verify(newer)  # the set was fetched just now
    clock[0] += 31
    assert verify(newer)
    assert provider.asked_for_keys == 2
    old = provider.token("k1", jti="another")
    del provider.keys["k1"]
    clock[0] += 700
    with pytest.raises(UnauthenticatedError):
        verify(old)  # withdrawn by its issuer


def test_known_keys_count_while_the_provider_is_down_and_not_for_ever(
    provider: OpenIdProvider, verify: Callable[[str], Principal], clock: list[float]
) -> None:
    verify(provider.token("k1"))
    provider.down = True
    clock[0] += 3600
    assert verify(provider.token("k1", jti="2"))
    clock[0] += 90_000
    with pytest.raises(OverloadedError, match="keys cannot be had"):
        verify(provider.token("k1", jti="3"))


def test_a_provider_that_was_never_reached_is_said(
    provider: OpenIdProvider, verify: Callable[[str], Principal]
) -> None:
    provider.down = True
    with pytest.raises(OverloadedError):
        verify(provider.token("k1"))


def test_who_was_revoked_here_stays_out_and_a_new_role_counts(
    world: World, provider: OpenIdProvider, verify: Callable[[str], Principal], clock: list[float]
) -> None:
    who = verify(provider.token("k1"))
    assert verify(provider.token("k1", role="Viewer", jti="2")).role is Role.VIEWER
    found = world.clients.lookup(who.client_id)
    assert found is not None
    assert found[0].role is Role.VIEWER
    world.clients.revoke(who.company_id, who.client_id)
    with pytest.raises(UnauthenticatedError, match="revoked"):
        verify(provider.token("k1", jti="3"))


def test_no_secret_opens_a_client_that_signs_in_elsewhere(
    world: World, provider: OpenIdProvider, verify: Callable[[str], Principal]
) -> None:
    from mhs_ray.auth.clients import ClientVerifier

    who = verify(provider.token("k1"))
    for secret in ("", "x", who.client_id):
        with pytest.raises(MhsError, match="wrong"):
            ClientVerifier(world.clients).verify(who.client_id, secret)


def test_a_token_is_remembered_no_longer_than_it_is_good(
    provider: OpenIdProvider, verify: Callable[[str], Principal], clock: list[float]
) -> None:
    token = provider.token("k1", exp=int(time.time()) - oidc.LEEWAY_S + 5)
    verify(token)
    clock[0] += 10
    provider.keys.clear()  # nothing but the memory would let it in
    clock[0] += 700
    with pytest.raises(MhsError):
        verify(token)
