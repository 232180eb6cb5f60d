"""cluster/aws.yaml is what Ray and EC2 take; a file with a fault is told where it is. moto stands in for AWS."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.aws.utils import client_cache, resource_cache
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_NODE_NAME, TAG_RAY_NODE_STATUS, TAG_RAY_USER_NODE_TYPE

from mhs_ray.actors.cluster_file import check_cluster_file
from mhs_ray.domain.instances import GIB, INSTANCE_TYPES, LABEL
from mhs_ray.domain.settings import load_settings
from tests.iam import ACCOUNT, REGION, Calls, allows, policy, recorded

ROOT = Path(__file__).parents[3]
FILE = ROOT / "cluster" / "aws.yaml"


def _config() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return config


def _filled(**values: str) -> dict[str, Any]:
    text = FILE.read_text().replace("REPLACE_ACCOUNT", ACCOUNT)
    for name in ("AMI", "SUBNET_A", "SUBNET_B", "SECURITY_GROUP"):
        text = text.replace(f"REPLACE_{name}", values.get(name, f"x-{name.lower()}"))
    config: dict[str, Any] = yaml.safe_load(text)
    return config


def _write(folder: Path, config: dict[str, Any]) -> Path:
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


# ---------------------------------------------------------------- node types


def test_each_instance_type_has_a_spot_and_an_on_demand_node_type_of_its_size() -> None:
    found = {}
    for name, node in _config()["available_node_types"].items():
        kind = node["labels"].get(LABEL)
        if kind is not None:
            found[name] = (kind, node["labels"]["ray.io/market-type"], node["resources"], node["node_config"])
            assert (node.get("min_workers", 0), node["node_config"]["InstanceType"]) == (0, kind)
            assert ("InstanceMarketOptions" in node["node_config"]) == (found[name][1] == "spot")
    markets = {(kind, market) for kind, market, _, _ in found.values()}
    assert markets == {(kind, market) for kind in INSTANCE_TYPES for market in ("spot", "on-demand")}
    for kind, _, resources, _ in found.values():
        t = INSTANCE_TYPES[kind]
        assert (resources["CPU"], resources["GPU"], resources["memory"]) == (t.vcpu, 1, t.memory_gb * GIB // 4)


def test_tile_readers_have_a_node_type_without_a_gpu_that_is_taken_first() -> None:
    types = _config()["available_node_types"]
    assert types["tiles"]["resources"]["GPU"] == 0
    assert types["tiles"]["resources"]["CPU"] > 0
    assert all(types["tiles"]["priority"] > t["priority"] for n, t in types.items() if n not in {"tiles", "head"})
    assert types["head"]["resources"]["CPU"] == 0  # no tile reader beside the database's clients
    assert all(t["priority"] > types[f"{n}-od"]["priority"] for n, t in types.items() if f"{n}-od" in types)


def test_the_settings_of_the_nodes_are_settings_and_name_the_types_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for line in (ROOT / "cluster/aws/mhs.env").read_text().splitlines() if line and line[0] != "#"]
    for line in lines:
        name, _, value = line.partition("=")
        monkeypatch.setenv(name, value.replace("REPLACE_ACCOUNT", ACCOUNT))
    settings = load_settings()
    offered = {n["labels"].get(LABEL) for n in _config()["available_node_types"].values()} - {None}
    assert set(settings.cluster.instance_types) == offered
    assert (settings.cluster.placement, settings.registry.kind, settings.blobs.kind) == ("label", "ecr", "s3")
    assert not [line for line in lines if "PASSWORD" in line or "SECRETS__VAULT" in line or "DATABASE_URL" in line]


# ---------------------------------------------------------------- a file with a fault


def _findings(folder: Path, config: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {f.where: (f.message, f.mend) for f in check_cluster_file(_write(folder, config)) if f.needed}


def test_a_filled_file_has_no_fault(tmp_path: Path) -> None:
    assert _findings(tmp_path, _filled()) == {}


def test_what_nobody_replaced_is_named_once_each() -> None:
    told = [f.message for f in check_cluster_file(FILE) if f.needed]
    assert len(told) == 6
    assert all("REPLACE_" in message for message in told)


_TYPES = "$.available_node_types"


@pytest.mark.parametrize(
    ("path", "key", "value", "where", "words"),
    [
        ((), "max_wokers", 3, "$.max_wokers", "did you mean max_workers?"),
        ((), "max_workers", "many", "$.max_workers", "'many' is not of type 'integer'"),
        (("available_node_types", "g5.2xlarge"), "min_worker", 0, f"{_TYPES}.g5.2xlarge.min_worker", "min_workers?"),
        (("available_node_types", "g5.2xlarge"), "max_workers", 0, f"{_TYPES}.g5.2xlarge.max_workers", "is 0"),
        (
            ("available_node_types", "g5.2xlarge", "labels"), LABEL, "g5.2xlrge",
            f"{_TYPES}.g5.2xlarge.labels.{LABEL}", "did you mean g5.2xlarge?",
        ),
        (
            ("available_node_types", "tiles", "labels"), "mhs.io/instance_type", "g5.2xlarge",
            f"{_TYPES}.tiles.labels.mhs.io/instance_type", "did you mean mhs.io/instance-type?",
        ),
        (
            ("available_node_types", "g5.2xlarge", "resources"), "GPU", 4,
            f"{_TYPES}.g5.2xlarge.resources.GPU", "an attempt asks for one GPU",
        ),
        (
            ("available_node_types", "g5.2xlarge", "node_config"), "InstanceType", "g5.4xlarge",
            f"{_TYPES}.g5.2xlarge.node_config.InstanceType", "its label says g5.2xlarge",
        ),
        (
            ("available_node_types", "g5.2xlarge", "node_config"), "SecurityGroupIDs", ["sg-1"],
            f"{_TYPES}.g5.2xlarge.node_config.SecurityGroupIDs", "did you mean SecurityGroupIds?",
        ),
        (
            ("available_node_types", "g5.2xlarge", "node_config"), "EbsOptimized", "yes",
            f"{_TYPES}.g5.2xlarge.node_config", "EC2 would refuse it",
        ),
        ((), "head_node_type", "haed", "$", "`head_node_type` must be one of"),
        ((), "head_start_ray_commands", ["ray start --head"], "$.head_start_ray_commands", "--autoscaling-config"),
        ((), "worker_start_ray_commands", ["true"], "$.worker_start_ray_commands", "starts no Ray"),
    ],
)  # fmt: skip
def test_a_typo_is_told_where_it_is_and_what_was_meant(
    tmp_path: Path, path: tuple[str, ...], key: str, value: Any, where: str, words: str
) -> None:
    config = copy.deepcopy(_filled())
    at = config
    for part in path:
        at = at[part]
    at[key] = value
    found = _findings(tmp_path, config)
    assert where in found, found
    assert words in " ".join(found[where])


def test_a_missing_type_or_profile_is_told(tmp_path: Path) -> None:
    config = _filled()
    for name in ("g6e.2xlarge", "g6e.2xlarge-od"):
        del config["available_node_types"][name]
    del config["available_node_types"]["head"]["node_config"]["IamInstanceProfile"]
    told = [f"{f.where}: {f.message}" for f in check_cluster_file(_write(tmp_path, config))]
    assert any("no node type is a g6e.2xlarge" in t for t in told)
    assert f"{_TYPES}.head.node_config.IamInstanceProfile: is missing" in told


@pytest.mark.parametrize(
    ("text", "words"),
    [("a: [1", "line 2"), ("- 1", "holds no mapping"), ("kind: RayCluster", "kubectl apply --dry-run=server")],
)
def test_what_is_no_cluster_file_is_told(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text + "\n")
    (found,) = check_cluster_file(path)
    assert words in f"{found.where} {found.message} {found.mend}"
    (gone,) = check_cluster_file(tmp_path / "gone.yaml")
    assert "cannot be read" in gone.message


# ---------------------------------------------------------------- a dry run of `ray up`


@pytest.fixture
def _aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with mock_aws():
        yield
    for cache in (resource_cache, client_cache):
        cache.cache_clear()


def _account() -> dict[str, str]:
    """Make what the operator makes by hand; return it by the name of its place in the file."""
    ec2, iam = boto3.client("ec2", REGION), boto3.client("iam", REGION)
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnets = [
        ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{i}.0/24", AvailabilityZone=f"{REGION}{zone}")["Subnet"][
            "SubnetId"
        ]
        for i, zone in enumerate("ab")
    ]
    group = ec2.create_security_group(GroupName="mhs", Description="mhs", VpcId=vpc)["GroupId"]
    ec2.create_key_pair(KeyName="mhs")
    for name in ("mhs-head", "mhs-node"):
        iam.create_instance_profile(InstanceProfileName=name)
    return {"AMI": "ami-12c6146b", "SUBNET_A": subnets[0], "SUBNET_B": subnets[1], "SECURITY_GROUP": group}


def _tags(kind: str, node_type: str) -> dict[str, str]:
    return {
        TAG_RAY_NODE_KIND: kind, TAG_RAY_USER_NODE_TYPE: node_type,
        TAG_RAY_NODE_NAME: f"ray-mhs-{kind}", TAG_RAY_NODE_STATUS: "uninitialized",
    }  # fmt: skip


@pytest.mark.usefixtures("_aws")
def test_ray_up_prepares_and_launches_each_node_type_with_moto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = _filled(**_account())
    with recorded({"DescribeInstanceTypes": {"InstanceTypes": []}}) as asked:  # Ray looks up sizes that the file has
        resolved = _bootstrap_config(config, no_config_cache=True)
        provider = AWSNodeProvider(resolved["provider"], resolved["cluster_name"])
        head = provider.create_node(resolved["available_node_types"]["head"]["node_config"], _tags("head", "head"), 1)
        assert provider.non_terminated_nodes({TAG_RAY_NODE_KIND: "head"}) == list(head)
    _held_to("operator", asked)
    started: list[str] = []
    with recorded() as asked:
        for name, node in resolved["available_node_types"].items():
            if name != "head":
                made = provider.create_node(node["node_config"], _tags("worker", name), 1)
                started += made
        workers = provider.non_terminated_nodes({TAG_RAY_NODE_KIND: "worker"})
        assert len(workers) == len(resolved["available_node_types"]) - 1
        assert set(workers) == set(started)
        provider.set_node_tags(workers[0], {TAG_RAY_NODE_STATUS: "up-to-date"})
        provider.terminate_nodes(workers)
    _held_to("head", asked)
    types = {
        i["InstanceType"]
        for r in boto3.client("ec2", REGION).describe_instances()["Reservations"]
        for i in r["Instances"]
    }
    assert types == {"m6i.2xlarge", "c6id.2xlarge", *INSTANCE_TYPES}


def _held_to(role: str, asked: Calls) -> None:
    """Every call is allowed as it was made, and no EC2 or IAM action is allowed that nobody makes."""
    document = policy(role)
    used = set()
    for service, operation, parameters in asked.made:
        action = f"{service}:{operation}"
        used.add(action)
        if operation.startswith("Describe"):
            assert allows(document, action, "*"), action
        elif operation == "RunInstances":
            used |= {"iam:PassRole", "ec2:CreateTags"}
            _launch_allowed(document, parameters)
        else:
            (ids,) = [parameters[k] for k in ("Resources", "InstanceIds") if k in parameters]
            for instance in ids:
                arn = f"arn:aws:ec2:{REGION}:{ACCOUNT}:instance/{instance}"
                assert allows(document, action, arn, {"aws:ResourceTag/ray-cluster-name": "mhs"}), action
                assert not allows(document, action, arn, {"aws:ResourceTag/ray-cluster-name": "other"})
                assert not allows(document, action, arn)
    granted = {
        a for s in document["Statement"] for a in ([s["Action"]] if isinstance(s["Action"], str) else s["Action"])
    }
    compute = {a for a in granted if a.startswith(("ec2:", "iam:"))}
    # `ray down`, by the operator, ends what `ray up` started.
    assert compute - used <= ({"ec2:TerminateInstances"} if role == "operator" else set())


def _launch_allowed(document: dict[str, Any], parameters: dict[str, Any]) -> None:
    root = f"arn:aws:ec2:{REGION}:{ACCOUNT}"
    tags = {t["Key"]: t["Value"] for s in parameters["TagSpecifications"] for t in s["Tags"]}
    instance = {
        "ec2:InstanceType": parameters["InstanceType"],
        "aws:RequestTag/ray-cluster-name": tags["ray-cluster-name"],
    }
    assert allows(document, "ec2:RunInstances", f"{root}:instance/i-1", instance)
    assert not allows(
        document, "ec2:RunInstances", f"{root}:instance/i-1", {**instance, "ec2:InstanceType": "p5.48xlarge"}
    )
    assert allows(document, "ec2:CreateTags", f"{root}:instance/i-1", {"ec2:CreateAction": "RunInstances"})
    for other in ("subnet", "security-group", "key-pair", "network-interface", "volume", "spot-instances-request"):
        assert allows(document, "ec2:RunInstances", f"{root}:{other}/x"), other
    assert allows(document, "ec2:RunInstances", f"arn:aws:ec2:{REGION}::image/{parameters['ImageId']}")
    role = parameters["IamInstanceProfile"]["Arn"].replace("instance-profile", "role")
    to_ec2 = {"iam:PassedToService": "ec2.amazonaws.com"}
    assert allows(document, "iam:PassRole", role, to_ec2)
    assert not allows(document, "iam:PassRole", role, {"iam:PassedToService": "lambda.amazonaws.com"})
    assert not allows(document, "iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/admin", to_ec2)
