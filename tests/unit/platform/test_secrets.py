"""Keys and the database's URL from environment, files, a folder and AWS Secrets Manager (moto stands in for AWS)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto import mock_aws
from typer.testing import CliRunner

from mhs_ray.cli.main import app
from mhs_ray.domain.errors import InvalidInputError
from mhs_ray.domain.settings import Settings, load_settings
from mhs_ray.platform import secrets
from mhs_ray.platform.keys import KEY_NAMES
from mhs_ray.platform.secrets import SecretError, keys_of, new_secrets, read_aws_secret, with_secrets

URL = "postgresql://mhs:s3cret@db/mhs"


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.upper().startswith(("MHS_", "AWS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MHS_HOME", str(tmp_path / "home"))
    secrets._from_aws.cache_clear()


@pytest.fixture
def _moto(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with mock_aws():
        yield


def _secret(value: str, name: str = "mhs/prod") -> None:
    boto3.client("secretsmanager", region_name="eu-central-1").create_secret(Name=name, SecretString=value)


def _aws(**more: str) -> Settings:
    return Settings(secrets={"aws_secret": "mhs/prod", "aws_region": "eu-central-1", **more})  # type: ignore[arg-type]


def test_a_file_per_variable_holds_keys_and_database_url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "url").write_text(URL + "\n")
    (tmp_path / "id").write_text("mhs-head\n")
    monkeypatch.setenv("MHS_DATABASE_URL_FILE", str(tmp_path / "url"))
    monkeypatch.setenv("MHS_SECRETS__CLIENT_ID_FILE", str(tmp_path / "id"))
    settings = load_settings()
    assert with_secrets(settings).sql_url == URL
    assert keys_of(settings).client_id == "mhs-head"
    assert "s3cret" not in repr(settings)


@pytest.mark.parametrize(
    ("variable", "value", "word"),
    [
        ("MHS_DATABASE_URL_FILE", "/nowhere/url", "/nowhere/url cannot be read"),
        ("MHS_SECRETS__VAULT_FILE", "/nowhere/vault", "/nowhere/vault cannot be read"),
        ("MHS_SECRETS__VAULT_FILE", os.devnull, "is empty"),
        ("MHS_SECRETS__VALUT_FILE", "/etc/hostname", "Extra inputs"),
    ],
)
def test_a_bad_file_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, word: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidInputError, match=word):
        load_settings()


@pytest.mark.parametrize("name", ["MHS_DATABASE_URL", "MHS_SECRETS__VAULT"])
def test_a_value_and_a_file_of_it_at_once_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    (tmp_path / "x").write_text("in a file")
    monkeypatch.setenv(name, "s3cret")
    monkeypatch.setenv(f"{name}_FILE", str(tmp_path / "x"))
    with pytest.raises(InvalidInputError, match="both set") as caught:
        load_settings()
    assert "s3cret" not in str(caught.value)


def test_a_folder_of_keys_is_what_every_head_uses(tmp_path: Path) -> None:
    made = CliRunner().invoke(app, ["secrets", "new", "--directory", str(tmp_path / "k")])
    assert made.exit_code == 0, made.output
    assert {f.name for f in (tmp_path / "k").iterdir()} == set(KEY_NAMES)
    assert {f.stat().st_mode & 0o777 for f in (tmp_path / "k").iterdir()} == {0o600}
    heads = [keys_of(Settings(home=tmp_path / h, secrets={"directory": tmp_path / "k"})) for h in "ab"]  # type: ignore[arg-type]
    assert heads[0] == heads[1]
    # Ray reads its token from a file, so that one is laid there; no other key touches the disk.
    assert [f.name for f in (tmp_path / "a" / "keys").iterdir() if not f.name.startswith(".")] == ["ray-token"]


def test_a_folder_that_lacks_a_key_never_gets_a_new_one(tmp_path: Path) -> None:
    CliRunner().invoke(app, ["secrets", "new", "--directory", str(tmp_path / "k")])
    (tmp_path / "k" / "vault").unlink()
    with pytest.raises(SecretError, match="lacks vault"):
        keys_of(Settings(home=tmp_path / "h", secrets={"directory": tmp_path / "k"}))  # type: ignore[arg-type]
    assert not (tmp_path / "h" / "keys" / "vault").exists()


def test_a_check_of_keys_leaves_those_of_the_platform_that_runs_as_they_are(tmp_path: Path) -> None:
    home = tmp_path / "home"
    own = keys_of(Settings(home=home))
    before = {f.name: f.read_bytes() for f in (home / "keys").iterdir()}
    CliRunner().invoke(app, ["secrets", "new", "--directory", str(tmp_path / "k")])
    given = {"MHS_SECRETS__DIRECTORY": str(tmp_path / "k")}
    done = CliRunner().invoke(app, ["secrets", "check"], env=given)
    assert (done.exit_code, done.output.count("given")) == (0, len(KEY_NAMES)), done.output
    assert {f.name: f.read_bytes() for f in (home / "keys").iterdir()} == before
    assert keys_of(Settings(home=home)) == own
    elsewhere = CliRunner().invoke(app, ["secrets", "check"], env={"MHS_HOME": str(tmp_path / "new")})
    assert elsewhere.exit_code == 0
    assert not (tmp_path / "new").exists(), "a check makes no keys"
    (tmp_path / "k" / "vault").write_text("no-k3y")
    assert CliRunner().invoke(app, ["secrets", "check"], env=given).exit_code == 1


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SecretError, match="/gone cannot be read"):
        keys_of(Settings(home=tmp_path / "h", secrets={"directory": tmp_path / "gone"}))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["vault", "tokens", "blobs"])
def test_a_key_that_is_none_is_named_and_not_shown(tmp_path: Path, name: str) -> None:
    CliRunner().invoke(app, ["secrets", "new", "--directory", str(tmp_path / "k")])
    (tmp_path / "k" / name).write_text("no-k3y")
    with pytest.raises(SecretError, match=name) as caught:
        keys_of(Settings(home=tmp_path / "h", secrets={"directory": tmp_path / "k"}))  # type: ignore[arg-type]
    assert "no-k3y" not in str(caught.value)


@pytest.mark.usefixtures("_moto")
def test_keys_and_database_url_come_from_secrets_manager_with_moto(tmp_path: Path) -> None:
    keys = new_secrets()
    _secret(json.dumps(keys | {"database-url": URL}))
    settings = _aws()
    found = keys_of(settings)
    assert (found.client_secret, found.platform) == (keys["client-secret"], keys["platform"])
    assert with_secrets(settings).sql_url == URL


@pytest.mark.usefixtures("_moto")
def test_the_environment_goes_before_secrets_manager_with_moto(monkeypatch: pytest.MonkeyPatch) -> None:
    _secret(json.dumps(new_secrets() | {"database-url": URL}))
    monkeypatch.setenv("MHS_DATABASE_URL", "postgresql://other/mhs")
    settings = _aws(client_id="mine")
    assert keys_of(settings).client_id == "mine"
    assert with_secrets(settings).sql_url == "postgresql://other/mhs"


@pytest.mark.usefixtures("_moto")
def test_a_secret_that_is_not_there_says_what_to_do_with_moto() -> None:
    with pytest.raises(SecretError, match=r"ResourceNotFoundException.*mend MHS_SECRETS__AWS_SECRET"):
        keys_of(_aws())


@pytest.mark.usefixtures("_moto")
@pytest.mark.parametrize("value", ["s3cret", "[1]", '{"vault": 7}'])
def test_a_secret_of_another_form_is_refused_and_not_shown_with_moto(value: str) -> None:
    _secret(value)
    with pytest.raises(SecretError, match="no JSON object") as caught:
        keys_of(_aws())
    assert "s3cret" not in str(caught.value)


def test_a_role_without_the_right_is_told_which_one_with_a_stubbed_answer() -> None:
    from botocore.stub import Stubber

    def client(*_: object, **__: object) -> object:
        made = boto3.client("secretsmanager", "eu-west-1", aws_access_key_id="x", aws_secret_access_key="y")
        stub = Stubber(made)
        stub.add_client_error("get_secret_value", "AccessDeniedException", "no", 400)
        stub.activate()
        return made

    with pytest.raises(SecretError, match="lacks secretsmanager:GetSecretValue"):
        read_aws_secret("mhs/prod", None, client)


def test_a_fresh_set_goes_to_a_private_file_and_is_never_written_over(tmp_path: Path) -> None:
    target = tmp_path / "set.json"
    first = CliRunner().invoke(app, ["secrets", "new", str(target)], env={"MHS_DATABASE_URL": URL})
    made = json.loads(target.read_text())
    assert (first.exit_code, target.stat().st_mode & 0o777, set(made)) == (0, 0o600, set(KEY_NAMES))
    assert not [v for v in made.values() if v in first.output]
    again = CliRunner().invoke(app, ["secrets", "new", str(target)])
    assert again.exit_code == 1
    assert json.loads(target.read_text()) == made


def test_the_database_url_goes_in_on_request(tmp_path: Path) -> None:
    target = tmp_path / "set.json"
    done = CliRunner().invoke(app, ["secrets", "new", str(target), "--database-url"], env={"MHS_DATABASE_URL": URL})
    assert done.exit_code == 0
    assert json.loads(target.read_text())["database-url"] == URL
    assert CliRunner().invoke(app, ["secrets", "new", str(tmp_path / "y"), "--database-url"]).exit_code == 1
