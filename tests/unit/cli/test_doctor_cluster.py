"""`mhs doctor --cluster`: what is wrong with a cluster's file, its database, registry, blobs, nodes, and what to do."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws
from typer.testing import CliRunner

from mhs_ray.actors import launches
from mhs_ray.cli.main import app

ROOT = Path(__file__).parents[3]
VCPU = "An error occurred (VcpuLimitExceeded) when calling the RunInstances operation: over your vCPU limit of 8"
NONE_LEFT = "An error occurred (InsufficientInstanceCapacity) when calling RunInstances: no Spot capacity"


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.upper().startswith(("MHS_", "AWS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MHS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.setattr(launches, "find_ray", lambda: None)


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def doctor(*arguments: str) -> tuple[int, dict[str, dict[str, str]], str]:
    done = CliRunner().invoke(app, ["doctor", "--cluster", *arguments, "--json"])
    checks = json.loads(done.stdout)["checks"]
    return done.exit_code, {c["name"]: c for c in checks}, done.output


def test_a_file_with_a_typo_is_told_offline(tmp_path: Path) -> None:
    path = tmp_path / "aws.yaml"
    path.write_text((ROOT / "cluster/aws.yaml").read_text().replace("idle_timeout_minutes", "idle_timout_minutes"))
    code, checks, _ = doctor(str(path))
    assert code == 1
    assert checks["$.idle_timout_minutes"]["state"] == "wrong"
    assert checks["$.idle_timout_minutes"]["mend"] == "did you mean idle_timeout_minutes?"


def test_a_file_of_settings_is_looked_at_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "mhs.env"
    text = (ROOT / "cluster/aws/mhs.env").read_text().replace("MHS_SLIDES__CACHE", "MHS_SLIDES__CASH")
    path.write_text(text + "MHS HOME\n")
    code, checks, _ = doctor(str(path))
    assert code == 1
    assert checks["MHS_SLIDES__CASH"]["state"] == "wrong"
    last = len(text.splitlines()) + 1
    assert checks[f"{path}, line {last}"]["detail"] == "is not NAME=VALUE"
    assert [c for c in checks.values() if c["detail"] == "MHS_BLOBS__BUCKET still has the example's value"]
    path.write_text(
        (ROOT / "cluster/aws/mhs.env").read_text().replace("REPLACE_ACCOUNT", "1" * 12).replace("REPLACE_", "x")
    )
    code, checks, _ = doctor(str(path))
    assert (code, checks[str(path)]["state"]) == (0, "ok")


def test_a_good_file_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    path = tmp_path / "aws.yaml"
    path.write_text((ROOT / "cluster/aws.yaml").read_text().replace("REPLACE_", "x-"))
    code, checks, _ = doctor(str(path))
    assert (code, checks[str(path)]["state"]) == (0, "ok")


def test_a_file_without_the_flag_is_wrong_use() -> None:
    done = CliRunner().invoke(app, ["doctor", "cluster/aws.yaml"])
    assert done.exit_code == 1
    assert "goes with --cluster" in done.output


def test_an_unreachable_database_and_registry_are_named_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    port = closed_port()
    monkeypatch.setenv("MHS_DATABASE_URL", f"postgresql://mhs:s3cret@127.0.0.1:{port}/mhs")
    monkeypatch.setenv("MHS_REGISTRY__ADDRESS", f"127.0.0.1:{port}")
    monkeypatch.setenv("MHS_REGISTRY__TLS", "false")
    code, checks, output = doctor()
    assert code == 1
    assert checks["keys"]["state"] == "ok"
    assert f"127.0.0.1:{port}" in checks["database"]["detail"]
    assert "refused" in checks["database"]["detail"]
    assert "the way to it from here" in checks["database"]["mend"]
    assert checks["registry"]["state"] == "wrong"
    assert "cannot be reached" in checks["registry"]["detail"]
    assert checks["Ray"]["mend"].startswith("`ray up cluster/aws.yaml`")
    assert "s3cret" not in output


def test_keys_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "k").mkdir()
    monkeypatch.setenv("MHS_SECRETS__DIRECTORY", str(tmp_path / "k"))
    code, checks, _ = doctor()
    assert code == 1
    assert "lacks vault, tokens" in checks["keys"]["detail"]


@pytest.fixture
def _moto(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        yield


@pytest.mark.usefixtures("_moto")
def test_a_missing_bucket_is_named_with_moto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MHS_BLOBS__KIND", "s3")
    monkeypatch.setenv("MHS_BLOBS__BUCKET", "not-there")
    _, checks, _ = doctor()
    assert "NoSuchBucket; create the bucket or mend the setting" in checks["blobs"]["detail"]


@pytest.mark.usefixtures("_moto")
def test_a_missing_right_is_named_with_moto(monkeypatch: pytest.MonkeyPatch) -> None:
    import botocore.client

    real = botocore.client.BaseClient._make_api_call

    def refuse(self: Any, operation: str, parameters: dict[str, Any]) -> Any:
        if operation in {"GetAuthorizationToken", "PutObject"}:
            code = "AccessDenied" if operation == "PutObject" else "AccessDeniedException"
            raise ClientError({"Error": {"Code": code, "Message": "no"}}, operation)
        return real(self, operation, parameters)

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", refuse)
    boto3.client("s3").create_bucket(Bucket="mhs-b", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    for name, value in {
        "MHS_BLOBS__KIND": "s3", "MHS_BLOBS__BUCKET": "mhs-b", "MHS_REGISTRY__KIND": "ecr",
        "MHS_REGISTRY__ADDRESS": "123456789012.dkr.ecr.eu-central-1.amazonaws.com",
        "MHS_REGISTRY__ROLE": "arn:aws:iam::123456789012:role/mhs-images",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    _, checks, _ = doctor()
    assert "the role lacks ecr:GetAuthorizationToken (cluster/aws/iam/)" in checks["registry"]["detail"]
    assert "AccessDenied; check the credentials" in checks["blobs"]["detail"]


def _status(**failed: str) -> Any:
    """An answer of Ray's autoscaler; the clouds' refusals themselves need a cloud."""
    now = time.time()
    node = SimpleNamespace(ray_node_type_name="tiles")
    return SimpleNamespace(
        active_nodes=[node], idle_nodes=[node], pending_nodes=[], pending_launches=[],
        failed_launches=[
            SimpleNamespace(ray_node_type_name=kind, failed_ts_s=now - 30, request_ts_s=now - 60, details=details)
            for kind, details in failed.items()
        ],
    )  # fmt: skip


def test_no_capacity_and_a_quota_are_told_per_node_type_from_a_faked_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "monitor.log").write_text(
        f"x - Failed to launch 1 nodes of type g5.2xlarge: {NONE_LEFT}\n"
        f"x - Failed to launch 2 nodes of type g6e.2xlarge-od: {VCPU}\n"
    )
    failed = {"g5.2xlarge": "", "g6e.2xlarge-od": ""}
    monkeypatch.setattr(launches, "get_cluster_status", lambda _address: _status(**failed))
    monkeypatch.setattr(launches, "find_ray", lambda: ("127.0.0.1:1", tmp_path))
    code, checks, _ = doctor()
    assert code == 1
    assert checks["Ray"]["detail"] == "nodes: 2 tiles; starting: 0"
    assert checks["node type g5.2xlarge"]["detail"].startswith("no capacity, 30 s ago: An error occurred (Insufficient")
    assert "on-demand twin" in checks["node type g5.2xlarge"]["mend"]
    assert checks["node type g6e.2xlarge-od"]["detail"].startswith("quota, 30 s ago")
    assert "higher quota" in checks["node type g6e.2xlarge-od"]["mend"]


def test_a_ray_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_address: str) -> None:
        raise RuntimeError

    monkeypatch.setattr(launches, "get_cluster_status", refuse)
    monkeypatch.setattr(launches, "find_ray", lambda: ("127.0.0.1:1", None))
    _, checks, _ = doctor()
    assert "does not answer" in checks["Ray"]["detail"]
    assert "RAY_AUTH_TOKEN_PATH" in checks["Ray"]["mend"]
