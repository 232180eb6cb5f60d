"""The ECR adapter: moto answers AWS's calls, a real registry that asks for ECR's password keeps the images."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws
from moto.core import DEFAULT_ACCOUNT_ID
from moto.ecr.models import ECRBackend
from moto.sts.models import sts_backends

from mhs_ray.domain.errors import AdmissionError, InvalidInputError, RegistryError
from mhs_ray.domain.models import ImageRef
from mhs_ray.domain.settings import Settings
from mhs_ray.ports import ImageRegistry, PushAccess
from mhs_ray.registry.ecr import PULL_ACTIONS, PUSH_ACTIONS, EcrRegistry
from mhs_ray.registry.instructions import push_instructions
from mhs_ray.services.core import build_core
from tests.core_fixtures import ENDPOINTS
from tests.integration.registry.conftest import free_port
from tests.registry_images import Memory, image, tar

ROLE = f"arn:aws:iam::{DEFAULT_ACCOUNT_ID}:role/mhs-images"
REGION = "eu-central-1"
# bcrypt of moto's one ECR password, "123456789012-auth-token".
HTPASSWD = "AWS:$2b$05$abcdefghijklmnopqrstuu/4ofrUS75HrKu6f.iuRo0I/XlrmpqlC"
SOON = timedelta(hours=12)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real docker-registry with ECR's kind of login."""
    folder = tmp_path_factory.mktemp("ecr")
    port = free_port()
    (folder / "htpasswd").write_text(HTPASSWD + "\n")
    config = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port}"},
        "auth": {"htpasswd": {"realm": "ecr", "path": str(folder / "htpasswd")}},
    }
    (folder / "config.yml").write_text(json.dumps(config))
    server = subprocess.Popen(["docker-registry", "serve", str(folder / "config.yml")], stderr=subprocess.DEVNULL)
    try:
        transport = httpx.HTTPTransport(retries=20)
        with httpx.Client(transport=transport, trust_env=False) as http:
            assert http.get(f"http://127.0.0.1:{port}/v2/").status_code == 401
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture(autouse=True)
def _aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with mock_aws():
        yield


@pytest.fixture
def registry(address: str) -> Iterator[EcrRegistry]:
    made = EcrRegistry(address, ROLE, prefix="mhs/", tls=False, region=REGION)
    yield made
    made.close()


def push(access: PushAccess, source: Memory, digest: str) -> None:
    with httpx.Client(auth=(access.username, access.password), trust_env=False) as http:
        root = f"http://{access.registry}/v2/{access.repository}/"
        for name, data in source.blobs.items():
            where = http.post(root + "blobs/uploads/").headers["location"]
            assert http.put(where, params=dict(httpx.URL(where).params) | {"digest": name}, content=data).is_success
        manifest = source.manifests[digest]
        put = http.put(
            f"{root}manifests/{access.tag}", content=manifest.body, headers={"Content-Type": manifest.media_type}
        )
        assert put.is_success, put.text


def pushed(registry: EcrRegistry, image_id: int, text: str = "x") -> str:
    source = Memory()
    digest = image(source, [tar([("app/main.py", text.encode() * 100)])])
    push(registry.push_access(image_id, 1, datetime.now(UTC) + SOON), source, digest)
    return digest


def session_policy() -> list[dict[str, Any]]:
    policy = sts_backends[DEFAULT_ACCOUNT_ID]["global"].assumed_roles[-1].policy
    statements: list[dict[str, Any]] = json.loads(policy)["Statement"]
    return statements


def test_the_adapter_is_an_image_registry_with_moto(registry: EcrRegistry) -> None:
    port: ImageRegistry = registry
    assert port.pushed(0) is None


def test_an_image_goes_from_push_to_trusted_by_digest_with_moto(registry: EcrRegistry, address: str) -> None:
    digest = pushed(registry, 7)
    assert registry.pushed(7) == digest
    admission = registry.admit(7, digest)
    assert admission.digest == digest
    assert admission.details["entrypoint"]
    ref = registry.promote(7, digest, 1)
    assert ref == ImageRef(address, "mhs/trusted/7", digest)
    assert registry.promote(7, digest, 1) == ref  # a second time, as after a crash
    repositories = boto3.client("ecr", REGION).describe_repositories()["repositories"]
    told = {r["repositoryName"]: (r["imageTagMutability"], r["imageScanningConfiguration"]) for r in repositories}
    scanned = {"scanOnPush": True}
    assert told == {"mhs/quarantine/7": ("MUTABLE", scanned), "mhs/trusted/7": ("IMMUTABLE", scanned)}


def test_blobs_are_copied_where_the_registry_does_not_mount_with_moto(registry: EcrRegistry) -> None:
    digest = pushed(registry, 8, "copied")
    client = registry._http
    real = client._call

    def without_mount(method: str, repository: str, path: str, **more: Any) -> httpx.Response:
        more.pop("params", None)
        return real(method, repository, path, **more)

    client._call = without_mount  # type: ignore[method-assign]
    ref = registry.promote(8, digest, 1)
    assert client.head_manifest(ref.repository, digest) == digest
    manifest = client.manifest(ref.repository, digest)
    assert manifest is not None
    for descriptor in json.loads(manifest.body)["layers"]:
        with client.blob(ref.repository, descriptor["digest"]) as pieces:
            assert sum(map(len, pieces)) == descriptor["size"]


def test_a_push_credential_opens_one_quarantine_repository_with_moto(registry: EcrRegistry) -> None:
    until = datetime.now(UTC) + SOON
    access = registry.push_access(11, 3, until)
    token, rest = session_policy()
    assert token == {"Effect": "Allow", "Action": "ecr:GetAuthorizationToken", "Resource": "*"}
    assert rest["Resource"] == f"arn:aws:ecr:{REGION}:{DEFAULT_ACCOUNT_ID}:repository/mhs/quarantine/11"
    assert set(rest["Action"]) == set(PUSH_ACTIONS)
    assert not [a for a in rest["Action"] if "Delete" in a or "*" in a]
    assert access.expires_at <= until
    assert push_instructions(access)[3] == f"docker push {access.registry}/mhs/quarantine/11:image-11"
    assert access.password not in repr(access)


def test_a_pull_credential_reads_one_trusted_repository_with_moto(registry: EcrRegistry, address: str) -> None:
    digest = pushed(registry, 12)
    ref = registry.promote(12, digest, 1)
    login = registry.pull_credential(ref)
    assert session_policy()[1] == {
        "Effect": "Allow",
        "Action": list(PULL_ACTIONS),
        "Resource": f"arn:aws:ecr:{REGION}:{DEFAULT_ACCOUNT_ID}:repository/mhs/trusted/12",
    }
    url = f"http://{address}/v2/mhs/trusted/12/manifests/{digest}"
    accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
    assert httpx.get(url, auth=(login.username, login.password), headers=accept, trust_env=False).is_success


def _scan(monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any] | str) -> list[str]:
    """Have moto give this answer for scans; it keeps images apart from the real registry's."""
    asked: list[str] = []

    def describe(*_: Any, **__: Any) -> Any:
        if isinstance(answer, str):
            from moto.ecr.exceptions import ScanNotFoundException

            raise ScanNotFoundException("sha256:x", "repository", DEFAULT_ACCOUNT_ID)
        return answer

    def start(*_: Any, **__: Any) -> dict[str, Any]:
        asked.append("started")
        return {"imageScanStatus": {"status": "IN_PROGRESS"}}

    monkeypatch.setattr(ECRBackend, "describe_image_scan_findings", describe)
    monkeypatch.setattr(ECRBackend, "start_image_scan", start)
    return asked


def _found(**counts: int) -> dict[str, Any]:
    findings = [{"name": f"CVE-{s}", "severity": s} for s in counts]
    return {
        "imageScanStatus": {"status": "COMPLETE"},
        "imageScanFindings": {"findingSeverityCounts": counts, "findings": findings},
    }


@pytest.fixture
def strict(address: str) -> Iterator[EcrRegistry]:
    made = EcrRegistry(address, ROLE, prefix="mhs/", tls=False, region=REGION, max_severity="MEDIUM")
    yield made
    made.close()


def test_severe_findings_refuse_an_image_by_name_with_moto(
    strict: EcrRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = pushed(strict, 21)
    _scan(monkeypatch, _found(CRITICAL=2, HIGH=1, LOW=9))
    with pytest.raises(AdmissionError, match="2 critical, 1 high, such as CVE-CRITICAL, CVE-HIGH"):
        strict.admit(21, digest)


def test_findings_below_the_bar_are_told_in_the_details_with_moto(
    strict: EcrRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = pushed(strict, 22)
    _scan(monkeypatch, _found(MEDIUM=3))
    assert strict.admit(22, digest).details["scan"] == {"MEDIUM": 3}


def test_a_running_scan_is_waited_for_and_a_missing_one_started_with_moto(
    strict: EcrRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = pushed(strict, 23)
    _scan(monkeypatch, {"imageScanStatus": {"status": "IN_PROGRESS"}})
    with pytest.raises(RegistryError, match="still scans"):
        strict.admit(23, digest)
    asked = _scan(monkeypatch, "missing")
    with pytest.raises(RegistryError, match="was asked to scan"):
        strict.admit(23, digest)
    assert asked == ["started"]


def test_an_image_that_cannot_be_scanned_is_refused_with_moto(
    strict: EcrRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = pushed(strict, 24)
    _scan(monkeypatch, {"imageScanStatus": {"status": "FAILED", "description": "UnsupportedImageError"}})
    with pytest.raises(AdmissionError, match="UnsupportedImageError"):
        strict.admit(24, digest)


def test_removing_takes_both_repositories_and_twice_is_once_with_moto(registry: EcrRegistry) -> None:
    digest = pushed(registry, 31)
    registry.promote(31, digest, 1)
    registry.remove(31)
    registry.remove(31)
    assert boto3.client("ecr", REGION).describe_repositories()["repositories"] == []


@pytest.mark.parametrize(
    ("code", "word"),
    [("AccessDeniedException", "lacks sts:AssumeRole"), ("ThrottlingException", "a quota of the account")],
)
def test_a_missing_right_and_a_quota_are_named_with_a_stubbed_answer(address: str, code: str, word: str) -> None:
    def client(service: str, **options: Any) -> Any:
        made = boto3.client(service, **options)
        if service == "sts":

            def refuse(**_: Any) -> None:
                raise ClientError({"Error": {"Code": code, "Message": "no"}}, "AssumeRole")

            made.assume_role = refuse
        return made

    registry = EcrRegistry(address, ROLE, tls=False, region=REGION, client=client)
    with pytest.raises(RegistryError, match=word):
        registry.push_access(1, 1, datetime.now(UTC) + SOON)
    registry.close()


def test_the_settings_choose_the_adapter_and_name_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"MHS_REGISTRY__ADDRESS.*MHS_REGISTRY__ROLE"):
        build_core(Settings(home=tmp_path, registry={"kind": "ecr"}), ENDPOINTS)  # type: ignore[arg-type]
    told = {"kind": "ecr", "address": f"{DEFAULT_ACCOUNT_ID}.dkr.ecr.eu-west-3.amazonaws.com", "role": ROLE}
    core = build_core(Settings(home=tmp_path, registry=told), ENDPOINTS)  # type: ignore[arg-type]
    try:
        assert isinstance(core.registry, EcrRegistry)
        assert core.registry._region == "eu-west-3"
    finally:
        core.db.close()
