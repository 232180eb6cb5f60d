"""The IAM documents hold what our code calls of S3, ECR, STS and Secrets Manager, and no more. moto stands in for AWS.

What Ray's provider calls of EC2 is in test_aws_file.py.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest
from moto import mock_aws

from mhs_ray.domain.models import ImageRef
from mhs_ray.platform.secrets import read_aws_secret
from mhs_ray.registry.ecr import PULL_ACTIONS, PUSH_ACTIONS, EcrRegistry
from mhs_ray.store.blobs.s3 import S3Blobs
from tests.iam import ACCOUNT, BUCKET, POLICIES, REGION, Calls, allows, policy, recorded

BLOB = f"arn:aws:s3:::{BUCKET}/mhs/jobs/1/log"
ADDRESS = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com"
S3_ACTIONS = {
    "PutObject": "s3:PutObject", "CreateMultipartUpload": "s3:PutObject", "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject", "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "GetObject": "s3:GetObject", "HeadObject": "s3:GetObject", "DeleteObject": "s3:DeleteObject",
    "ListObjectsV2": "s3:ListBucket",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with mock_aws():
        yield


def _repository(name: str) -> str:
    return f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/{name}"


def _s3(role: str, asked: Calls) -> None:
    document = policy(role)
    for _, operation, parameters in asked.made:
        action = S3_ACTIONS[operation]
        if action == "s3:ListBucket":
            assert allows(document, action, f"arn:aws:s3:::{BUCKET}", {"s3:prefix": parameters["Prefix"]}), operation
        else:
            assert allows(document, action, f"arn:aws:s3:::{BUCKET}/{parameters['Key']}"), operation


@pytest.mark.parametrize("path", sorted(POLICIES.glob("*.json")), ids=lambda p: p.stem)
def test_every_document_is_valid_and_allows_no_whole_service(path: Any) -> None:
    document = policy(path.stem)
    assert document["Version"] == "2012-10-17"
    for statement in document["Statement"]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert not [a for a in actions if "*" in a]
        if statement.get("Resource") == "*":  # AWS knows no narrower resource for these
            assert all(a.startswith("ec2:Describe") or a == "ecr:GetAuthorizationToken" for a in actions)
    if not path.stem.startswith("trust-"):
        made = boto3.client("iam").create_policy(PolicyName=path.stem, PolicyDocument=json.dumps(document))
        assert made["Policy"]["PolicyName"] == path.stem
    else:
        boto3.client("iam").create_role(RoleName=path.stem, AssumeRolePolicyDocument=json.dumps(document))


def test_head_and_nodes_may_do_with_blobs_what_the_code_does_with_moto() -> None:
    boto3.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    store = S3Blobs.connect(BUCKET, "mhs/", region=REGION)
    with recorded() as node:
        store.put("jobs/1/log", b"line")
        store.put("jobs/1/debug", io.BytesIO(b"x" * (17 << 20)))  # in parts
    with recorded() as head:
        store.open("jobs/1/log").read()
        list(store.list("jobs/1/"))
        store.sign("jobs/1/log", "GET", timedelta(minutes=5))
        store.delete("jobs/1/log")
    assert {"s3:CreateMultipartUpload", "s3:HeadObject"} <= node.operations()
    assert {"s3:ListObjectsV2", "s3:GetObject", "s3:DeleteObject"} <= head.operations()
    _s3("node", node)
    _s3("head", node)
    _s3("head", head)


@pytest.mark.parametrize("role", ["head", "node"])
def test_other_peoples_objects_are_out_of_reach(role: str) -> None:
    document = policy(role)
    assert allows(document, "s3:GetObject", BLOB)
    assert not allows(document, "s3:GetObject", f"arn:aws:s3:::{BUCKET}/other/x")
    assert not allows(document, "s3:GetObject", "arn:aws:s3:::other/mhs/x")
    assert not allows(document, "s3:ListBucket", f"arn:aws:s3:::{BUCKET}", {"s3:prefix": "other/"})
    assert not allows(document, "s3:ListBucket", f"arn:aws:s3:::{BUCKET}")


def test_a_node_can_write_blobs_and_nothing_else() -> None:
    granted = {a for s in policy("node")["Statement"] for a in s["Action"]}
    assert granted == {"s3:AbortMultipartUpload", "s3:GetObject", "s3:PutObject"}


def test_the_head_may_do_in_ecr_what_the_adapter_does_with_moto() -> None:
    registry = EcrRegistry(ADDRESS, f"arn:aws:iam::{ACCOUNT}:role/mhs-images", prefix="mhs/", max_severity="HIGH")
    boto3.client("ecr").create_repository(repositoryName="mhs/trusted/7")
    with recorded() as asked:
        registry.push_access(7, 1, datetime.now(UTC) + timedelta(hours=12))
        registry.pull_credential(ImageRef(ADDRESS, "mhs/trusted/7", "sha256:" + "0" * 64))
        registry._ensure("mhs/trusted/8", "IMMUTABLE")
        registry.remove(7)
    registry.close()
    document = policy("head")
    told = set()
    for service, operation, parameters in asked.made:
        action = f"{service}:{operation}"
        told.add(action)
        if service == "sts":
            assert allows(document, action, parameters["RoleArn"])
        elif operation == "GetAuthorizationToken":
            assert allows(document, action, "*")
        else:
            assert allows(document, action, _repository(parameters["repositoryName"])), action
    scans = {"ecr:DescribeImageScanFindings", "ecr:StartImageScan"}
    granted = {
        a for s in document["Statement"] for a in ([s["Action"]] if isinstance(s["Action"], str) else s["Action"])
    }
    ours = {a for a in granted if a.startswith(("ecr:", "sts:"))}
    assert ours == told | scans | set(PUSH_ACTIONS)  # reading and copying goes by the registry's protocol


def test_the_head_keeps_to_its_repositories_role_and_secret() -> None:
    document = policy("head")
    for action in (*PUSH_ACTIONS, "ecr:DeleteRepository"):
        assert allows(document, action, _repository("mhs/quarantine/1"))
        assert not allows(document, action, _repository("other/1"))
    assert not allows(document, "sts:AssumeRole", f"arn:aws:iam::{ACCOUNT}:role/admin")
    with recorded() as asked:
        boto3.client("secretsmanager").create_secret(Name="mhs/prod", SecretString="{}")
        assert read_aws_secret("mhs/prod", REGION) == {}
    assert "secretsmanager:GetSecretValue" in asked.operations()
    root = f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret"
    assert allows(document, "secretsmanager:GetSecretValue", f"{root}:mhs/prod-AbCdEf")
    assert not allows(document, "secretsmanager:GetSecretValue", f"{root}:other-AbCdEf")
    assert not allows(policy("node"), "secretsmanager:GetSecretValue", f"{root}:mhs/prod-AbCdEf")


def test_the_role_that_credentials_are_cut_from_has_what_they_need_and_cannot_touch_trusted_images() -> None:
    document = policy("images")
    assert allows(document, "ecr:GetAuthorizationToken", "*")
    for action in PUSH_ACTIONS:
        assert allows(document, action, _repository("mhs/quarantine/1"))
        assert allows(document, action, _repository("mhs/trusted/1")) == (action in PULL_ACTIONS)
    assert policy("trust-head")["Statement"][0]["Principal"] == {"AWS": f"arn:aws:iam::{ACCOUNT}:role/mhs-head"}
