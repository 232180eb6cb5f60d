from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pytest
from cryptography import x509

from mhs_ray.domain.errors import ForbiddenError, InvalidInputError, RegistryError, UnauthenticatedError
from mhs_ray.registry.keys import RegistryKeys
from mhs_ray.registry.tokens import (
    Access,
    PullCredential,
    PushCredential,
    RegistryTokens,
    error_body,
    grant,
    parse_scopes,
)

SOON = datetime(2100, 1, 1, tzinfo=UTC)
PUSH = PushCredential(7, 3, SOON)


@pytest.fixture(scope="module")
def keys() -> RegistryKeys:
    return RegistryKeys.create()


@pytest.fixture
def tokens(keys: RegistryKeys) -> RegistryTokens:
    return RegistryTokens(keys, "mhs", "mhs-registry")


def access_of(answer: dict[str, object]) -> list[dict[str, object]]:
    claims = jwt.decode(str(answer["token"]), options={"verify_signature": False})
    access: list[dict[str, object]] = claims["access"]
    return access


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (["repository:quarantine/7:push,pull"], [Access("quarantine/7", ("push", "pull"))]),
        (["repository:a:pull repository:b:push"], [Access("a", ("pull",)), Access("b", ("push",))]),
        (["repository:a:pull", "repository:a:pull,pull"], [Access("a", ("pull",)), Access("a", ("pull",))]),
        (["repository:host.example:5000/a/b:pull"], [Access("host.example:5000/a/b", ("pull",))]),
        (["repository(plugin):a:push"], [Access("a", ("push",), cls="plugin")]),
        (["registry:catalog:*"], [Access("catalog", ("*",), "registry")]),
        ([], []),
        (["  "], []),
    ],
)
def test_scopes_are_read_as_clients_write_them(text: list[str], expected: list[Access]) -> None:
    assert parse_scopes(text) == expected


@pytest.mark.parametrize(
    "text", ["repository", "repository:a", "repository::pull", "repository:a:", "a b:c:d:", "R:a:pull"]
)
def test_what_is_no_scope_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="is no scope"):
        parse_scopes([text])


def test_endless_scopes_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="at most 20"):
        parse_scopes(["repository:a:pull " * 21])


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("repository:quarantine/7:push,pull", [Access("quarantine/7", ("push", "pull"))]),
        ("repository:quarantine/7:pull", [Access("quarantine/7", ("pull",))]),
        ("repository:quarantine/7:delete,pull", [Access("quarantine/7", ("pull",))]),
        ("repository:quarantine/7:delete", []),
        ("repository:quarantine/7:*", []),
        ("repository(image):quarantine/7:push", [Access("quarantine/7", ("push",))]),
        ("repository(plugin):quarantine/7:push", []),
        ("repository:quarantine/8:push,pull", []),
        ("repository:quarantine/70:push,pull", []),
        ("repository:quarantine/7/x:push,pull", []),
        ("repository:trusted/7:pull", []),
        ("registry:quarantine/7:push", []),
        ("registry:catalog:*", []),
        # a mount from another's repository: the target is given, the source is not
        ("repository:quarantine/8:pull repository:quarantine/7:push,pull", [Access("quarantine/7", ("push", "pull"))]),
    ],
)
def test_a_push_credential_gives_its_own_repository_and_nothing_else(scope: str, expected: list[Access]) -> None:
    assert grant(PUSH, parse_scopes([scope])) == expected


def test_a_pull_credential_gives_pull_on_its_repository_only() -> None:
    credential = PullCredential("trusted/7", SOON)
    asked = parse_scopes(
        ["repository:trusted/7:push,pull,delete repository:trusted/8:pull repository:quarantine/7:pull"]
    )
    assert grant(credential, asked) == [Access("trusted/7", ("pull",))]


def test_a_login_without_a_scope_gets_a_token_that_gives_nothing(tokens: RegistryTokens) -> None:
    password = tokens.push_credential(7, 3, SOON)
    answer = tokens.token_response("AWS", password, "mhs-registry", [])
    assert access_of(answer) == []
    assert answer["token"] == answer["access_token"]
    assert answer["expires_in"] == 300


def test_the_token_is_what_distribution_verifies(tokens: RegistryTokens, keys: RegistryKeys) -> None:
    answer = tokens.token_response(
        "AWS", tokens.push_credential(7, 3, SOON), "mhs-registry", ["repository:quarantine/7:push,pull"]
    )
    header = jwt.get_unverified_header(answer["token"])
    assert header["alg"] == "ES256"
    certificate = x509.load_der_x509_certificate(base64.b64decode(header["x5c"][0]))
    public = certificate.public_key()
    claims = jwt.decode(answer["token"], public, algorithms=["ES256"], audience="mhs-registry", issuer="mhs")  # type: ignore[arg-type]
    assert claims["aud"] == "mhs-registry"
    assert claims["sub"] == "company-3/image-7"
    assert claims["access"] == [{"type": "repository", "name": "quarantine/7", "actions": ["push", "pull"]}]
    assert claims["exp"] - claims["iat"] == 300
    assert keys.certificate_der == base64.b64decode(header["x5c"][0])


def test_someone_elses_repository_is_refused_in_words_that_name_the_right_one(tokens: RegistryTokens) -> None:
    password = tokens.push_credential(7, 3, SOON)
    with pytest.raises(ForbiddenError, match="pushing to quarantine/7 only") as caught:
        tokens.token_response("AWS", password, "mhs-registry", ["repository:quarantine/8:push,pull"])
    assert error_body(caught.value)["errors"][0]["code"] == "DENIED"
    assert password not in str(caught.value)


@pytest.mark.parametrize(("user", "says"), [(None, "log in as user AWS"), ("root", "log in as user AWS")])
def test_a_wrong_user_is_refused(tokens: RegistryTokens, user: str | None, says: str) -> None:
    with pytest.raises(UnauthenticatedError, match=says):
        tokens.token_response(user, tokens.push_credential(7, 3, SOON), "mhs-registry", [])


def test_foreign_expired_and_damaged_passwords_are_refused(tokens: RegistryTokens) -> None:
    foreign = RegistryTokens(RegistryKeys.create(), "mhs", "mhs-registry").push_credential(7, 3, SOON)
    bearer = tokens.issue("x", [])
    none = jwt.encode(
        {"kind": "push", "image": 7, "company": 3, "exp": SOON, "aud": "mhs-registry"}, "", algorithm="none"
    )
    for password in (foreign, bearer, none, "x", "", None):
        with pytest.raises(UnauthenticatedError):
            tokens.token_response("AWS", password, "mhs-registry", [])
    expired = tokens.push_credential(7, 3, datetime.now(UTC) - timedelta(minutes=5))
    with pytest.raises(UnauthenticatedError, match="take a new one"):
        tokens.token_response("AWS", expired, "mhs-registry", [])


def test_another_service_is_refused(tokens: RegistryTokens) -> None:
    with pytest.raises(ForbiddenError, match="mhs-registry only"):
        tokens.token_response("AWS", tokens.push_credential(7, 3, SOON), "other", [])


def test_a_push_credential_ends_with_its_image(keys: RegistryKeys) -> None:
    there = {(7, 3)}
    tokens = RegistryTokens(keys, "mhs", "mhs-registry", may_push=lambda image, company: (image, company) in there)
    password = tokens.push_credential(7, 3, SOON)
    assert tokens.token_response("AWS", password, None, [])
    there.clear()
    with pytest.raises(ForbiddenError, match="no longer there"):
        tokens.token_response("AWS", password, None, [])


def test_push_and_node_passwords_are_told_apart(tokens: RegistryTokens) -> None:
    credential = tokens.verify_push_credential(tokens.push_credential(7, 3, SOON))
    assert (credential.image_id, credential.company_id, credential.expires_at) == (7, 3, SOON)
    node = tokens.node_token("trusted/7")
    assert tokens.verify(node).subject == "node"
    with pytest.raises(UnauthenticatedError, match="not for pushing"):
        tokens.verify_push_credential(node)
    with pytest.raises(ForbiddenError, match="trusted images only"):
        tokens.node_token("quarantine/7")


def test_keys_are_private_files_that_last(tmp_path: Path) -> None:
    first = RegistryKeys.load_or_create(tmp_path / "keys")
    again = RegistryKeys.load_or_create(tmp_path / "keys")
    assert first.certificate_pem == again.certificate_pem
    assert first.credential_secret == again.credential_secret
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "keys").iterdir()} == {0o600}
    assert "secret" not in repr(first).lower() or first.credential_secret.decode() not in repr(first)


def test_a_certificate_of_another_key_is_made_anew_and_a_damaged_key_is_named(tmp_path: Path) -> None:
    RegistryKeys.load_or_create(tmp_path)
    (tmp_path / "token.crt").write_bytes(RegistryKeys.create().certificate_pem)
    mended = RegistryKeys.load_or_create(tmp_path)
    certificate = x509.load_pem_x509_certificate(mended.certificate_pem)
    assert certificate.public_key() == mended.private_key.public_key()
    (tmp_path / "token.key").write_bytes(b"damaged")
    with pytest.raises(RegistryError, match="cannot be read or made"):
        RegistryKeys.load_or_create(tmp_path)
