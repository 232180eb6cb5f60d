"""A browser's session is told apart from every other token."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from mhs_ray.auth.tokens import AttemptIdentity, Session, Tokens
from mhs_ray.domain.errors import UnauthenticatedError
from mhs_ray.domain.models import Principal, Role

HOUR = timedelta(hours=1)
SESSION = Session(("mhs-a", "mhs-b"), 1, "key")


@pytest.fixture
def tokens() -> Tokens:
    return Tokens({"k1": b"s" * 32})


def test_a_session_comes_back_as_it_was_with_its_end(tokens: Tokens) -> None:
    read = tokens.verify_session(tokens.for_session(SESSION, HOUR))
    assert (read.clients, read.active, read.form_key, read.client_id) == (("mhs-a", "mhs-b"), 1, "key", "mhs-b")
    assert read.expires_at is not None
    assert timedelta(minutes=55) < read.expires_at - datetime.now(UTC) <= HOUR


def test_a_session_is_no_bearer_token_and_a_bearer_token_no_session(tokens: Tokens) -> None:
    with pytest.raises(UnauthenticatedError):
        tokens.verify(tokens.for_session(SESSION, HOUR))
    for other in (
        tokens.for_client(Principal(1, "ann", Role.LAB_ADMIN, "mhs-a"), HOUR),
        tokens.for_attempt(AttemptIdentity(1, 2, 3, 4), HOUR),
    ):
        with pytest.raises(UnauthenticatedError):
            tokens.verify_session(other)


def test_a_session_ends_and_cannot_be_made_elsewhere(tokens: Tokens) -> None:
    with pytest.raises(UnauthenticatedError, match="expired"):
        tokens.verify_session(tokens.for_session(SESSION, timedelta(minutes=-5)))
    with pytest.raises(UnauthenticatedError):
        tokens.verify_session(Tokens({"k1": b"x" * 32}).for_session(SESSION, HOUR))
    for text in ("", "a.b.c", "none"):
        with pytest.raises(UnauthenticatedError):
            tokens.verify_session(text)
