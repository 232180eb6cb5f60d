"""Who calls: clients with secrets, tokens of clients and of attempts."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
import sqlalchemy as sa

from mhs_ray.auth.clients import ClientVerifier, hash_secret, new_client
from mhs_ray.auth.tokens import API, ATTEMPT, AttemptIdentity, Tokens
from mhs_ray.domain.errors import UnauthenticatedError
from mhs_ray.domain.models import Principal, Role
from mhs_ray.store.sql import tables as t
from tests.store_fixtures import World, sqlite_db

KEYS = {"k1": b"1" * 32, "k2": b"2" * 32}
HOUR = timedelta(hours=1)
WHO = AttemptIdentity(1, 185714, 7, 2)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with sqlite_db(tmp_path) as db:
        yield World(db)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The verifier's clock; set its first element."""
    now = [1000.0]
    monkeypatch.setattr("mhs_ray.auth.clients.time.monotonic", lambda: now[0])
    return now


def _revoke(world: World, client_id: str) -> None:
    with world.db.write() as conn:
        conn.execute(sa.update(t.clients).where(t.clients.c.id == client_id).values(revoked_at=datetime.now(UTC)))


# ------------------------------------------------------------ clients


def test_a_client_is_known_by_its_id_and_secret(world: World) -> None:
    client_id, secret, hashed = new_client()
    assert secret not in hashed
    company = world.company()
    world.clients.put(client_id, company, "lims", Role.LAB_USER, hashed)
    verifier = ClientVerifier(world.clients)
    for _ in range(2):  # the second time from memory
        assert verifier.verify(client_id, secret) == Principal(company, "lims", Role.LAB_USER, client_id)
    for wrong in ((client_id, "nope"), ("mhs-nobody", secret), (client_id, ""), ("", ""), ("a\x00b", secret)):
        with pytest.raises(UnauthenticatedError, match="the client id or the client secret is wrong"):
            verifier.verify(*wrong)


def test_two_clients_never_share_an_id_or_a_secret() -> None:
    first, second = new_client(), new_client()
    assert not set(first) & set(second)


def test_a_revoked_client_is_out_after_a_minute_by_secret_and_by_token(world: World, clock: list[float]) -> None:
    world.clients.put("mhs-1", world.company(), "lims", Role.LAB_ADMIN, hash_secret("s3cret"))
    verifier = ClientVerifier(world.clients)
    verifier.verify("mhs-1", "s3cret")
    assert verifier.current("mhs-1").role is Role.LAB_ADMIN
    _revoke(world, "mhs-1")
    clock[0] += 61
    with pytest.raises(UnauthenticatedError):
        verifier.verify("mhs-1", "s3cret")
    with pytest.raises(UnauthenticatedError, match="revoked"):
        verifier.current("mhs-1")


def test_a_new_role_counts_for_tokens_that_were_issued_before(world: World, clock: list[float]) -> None:
    company = world.company()
    world.clients.put("mhs-1", company, "lims", Role.LAB_ADMIN, "hash")
    verifier = ClientVerifier(world.clients)
    assert verifier.current("mhs-1").may_write
    world.clients.put("mhs-1", company, "lims", Role.VIEWER, "hash")
    clock[0] += 61
    assert not verifier.current("mhs-1").may_write


def test_a_client_is_added_once_and_a_revoked_one_does_not_come_back(world: World) -> None:
    company = world.company()
    assert world.clients.add("mhs-1", company, "local", Role.LAB_ADMIN, "hash")
    _revoke(world, "mhs-1")
    assert not world.clients.add("mhs-1", company, "local", Role.LAB_ADMIN, "hash")
    assert world.clients.lookup("mhs-1") is None


# ------------------------------------------------------------ tokens


def test_a_token_says_who_holds_it() -> None:
    tokens = Tokens(KEYS)
    assert tokens.verify(tokens.for_attempt(WHO, HOUR)) == WHO
    client = Principal(3, "lims", Role.LAB_USER, "mhs-1")
    assert tokens.verify(tokens.for_client(client, HOUR)) == client


def test_the_newest_key_signs_and_older_ones_verify_until_they_are_removed() -> None:
    old = Tokens({"k1": KEYS["k1"]}).for_attempt(WHO, HOUR)
    both = Tokens(KEYS)
    assert jwt.get_unverified_header(both.for_attempt(WHO, HOUR))["kid"] == "k2"
    assert both.verify(old) == WHO
    with pytest.raises(UnauthenticatedError, match="retired"):
        Tokens({"k2": KEYS["k2"]}).verify(old)


def _forged(**changes: Any) -> str:
    now = datetime.now(UTC)
    claims = {
        "company": 1, "task": 1, "job": 1, "attempt": 1, "iss": "mhs-ray", "aud": ATTEMPT, "sub": "x", "iat": now,
        "exp": now + HOUR,
    }  # fmt: skip
    key = changes.pop("key", KEYS["k2"])
    headers = {"kid": changes.pop("kid", "k2")}
    claims = {name: value for name, value in {**claims, **changes}.items() if value is not None}
    return jwt.encode(claims, key, algorithm="HS256", headers=headers)


def _unsigned() -> str:
    header = base64.urlsafe_b64encode(json.dumps({"alg": "none", "kid": "k2"}).encode()).decode().rstrip("=")
    return f"{header}.{_forged().split('.')[1]}."


@pytest.mark.parametrize(
    "token",
    [
        "", "x", "a.b.c", "é.é.é", "\x00", "." * 100, _unsigned(), _forged(key=b"3" * 32), _forged(kid="k9"),
        _forged(iss="somebody"), _forged(aud="another"), _forged(exp=None), _forged(sub=None), _forged(aud=None),
        _forged(iat=datetime.now(UTC) + timedelta(days=2)), _forged()[:-3] + "AAA",
    ],
)  # fmt: skip
def test_a_forged_or_broken_token_is_nobodys(token: str) -> None:
    with pytest.raises(UnauthenticatedError) as caught:
        Tokens(KEYS).verify(token)
    assert not token or len(token) < 5 or token not in str(caught.value)


def test_an_expired_token_says_so_but_a_minute_of_clock_skew_is_forgiven() -> None:
    tokens = Tokens(KEYS)
    assert tokens.verify(tokens.for_attempt(WHO, timedelta(seconds=-30))) == WHO
    with pytest.raises(UnauthenticatedError, match="expired"):
        tokens.verify(tokens.for_attempt(WHO, timedelta(seconds=-90)))


def test_a_containers_token_is_no_clients_token_under_another_name() -> None:
    token = Tokens(KEYS).for_attempt(WHO, HOUR)
    claims = jwt.decode(token, KEYS["k2"], algorithms=["HS256"], audience=ATTEMPT)
    assert claims["aud"] != API
    assert isinstance(Tokens(KEYS).verify(token), AttemptIdentity)
