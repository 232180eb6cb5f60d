"""The manifests are what KubeRay and Kubernetes take, and say the same as the code and as each other."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml

from mhs_ray.domain.instances import INSTANCE_TYPES, LABEL
from mhs_ray.domain.settings import load_settings
from mhs_ray.platform.endpoints import Endpoints
from tests.unit.cluster.kuberay_schema import RESOURCES

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "cluster" / "kuberay"
KUBERNETES = "1.34"


def _documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def _cluster() -> dict[str, Any]:
    (document,) = _documents("raycluster.yaml")
    spec: dict[str, Any] = document["spec"]
    return spec


def _pods(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "head", spec["headGroupSpec"]["template"]
    for group in spec["workerGroupSpecs"]:
        yield group["groupName"], group["template"]


def _validate_pod(template: dict[str, Any]) -> None:
    whole = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
    kubernetes_validate.validate(whole, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayservice.yaml"])
def test_kuberay_takes_the_manifest(name: str) -> None:
    (document,) = _documents(name)
    jsonschema.validate(document, RESOURCES[document["kind"]])
    assert document["spec"].get("rayClusterConfig", document["spec"])["rayVersion"] == ray.__version__


def test_kubernetes_takes_every_pod() -> None:
    for _, template in _pods(_cluster()):
        _validate_pod(template)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda p: p.stem)
def test_kubernetes_takes_what_is_its_own(path: Path) -> None:
    for document in _documents(path.name):
        if document["kind"] not in RESOURCES:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        ((), "enableInTreeAutoscalng", True), (("workerGroupSpecs", 1), "minReplica", 0),
        (("gcsFaultToleranceOptions",), "backend", "sqlite"), (("workerGroupSpecs", 1, "resources"), "GPU", 1),
    ],
)  # fmt: skip
def test_a_typo_in_a_manifest_is_found(path: tuple[Any, ...], key: str, value: Any) -> None:
    document = copy.deepcopy(_documents("raycluster.yaml")[0])
    at = document["spec"]
    for part in path:
        at = at[part]
    at[key] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, RESOURCES["RayCluster"])


def test_a_typo_in_a_pod_is_found() -> None:
    template = copy.deepcopy(_cluster()["headGroupSpec"]["template"])
    template["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        _validate_pod(template)


def test_each_instance_type_has_a_group_of_its_label_size_and_machine_from_zero() -> None:
    groups = {g["labels"].get(LABEL): g for g in _cluster()["workerGroupSpecs"]}
    assert groups.pop(None)["groupName"] == "tiles"
    assert groups.keys() == INSTANCE_TYPES.keys()
    for kind, group in groups.items():
        t, pod = INSTANCE_TYPES[kind], group["template"]["spec"]
        assert group["resources"] == {"CPU": str(t.vcpu), "GPU": "1"}
        assert (group["minReplicas"], group["replicas"]) == (0, 0)
        assert pod["nodeSelector"] == {"node.kubernetes.io/instance-type": kind}
        (container,) = pod["containers"]
        asked = container["resources"]["requests"]
        assert asked["nvidia.com/gpu"] == container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        # More than half of a machine each: one pod a node, so that a privileged one sees no other's GPU.
        assert t.vcpu / 2 < int(asked["cpu"]) < t.vcpu
        assert t.memory_gb / 2 < int(asked["memory"].removesuffix("Gi")) < t.memory_gb


def test_only_pods_that_start_models_are_privileged_and_none_has_keys_but_the_head() -> None:
    for name, template in _pods(_cluster()):
        pod = template["spec"]
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context.get("privileged", False) == (name not in {"head", "tiles"})
            assert context.get("privileged") or context["capabilities"] == {"drop": ["ALL"]}
        secrets = {v["secret"]["secretName"] for v in pod["volumes"] if "secret" in v}
        assert secrets == ({"mhs-keys"} if name == "head" else set())
        assert not pod.get("hostNetwork")
        assert not pod.get("hostPID")
        assert not [v for v in pod["volumes"] if "hostPath" in v]


def test_podman_keeps_its_images_off_the_pods_own_overlay() -> None:
    for name, template in _pods(_cluster()):
        if name not in {"head", "tiles"}:
            mounts = {m["mountPath"]: m["name"] for m in template["spec"]["containers"][0]["volumeMounts"]}
            kinds = {v["name"]: v for v in template["spec"]["volumes"]}
            assert "emptyDir" in kinds[mounts["/var/lib/containers"]]
            assert mounts["/etc/cdi"] == template["spec"]["initContainers"][0]["volumeMounts"][0]["name"]


def test_the_service_is_the_cluster_with_the_serve_config() -> None:
    (service,) = _documents("rayservice.yaml")
    assert service["spec"]["rayClusterConfig"] == _cluster()
    assert yaml.safe_load(service["spec"]["serveConfigV2"]) == yaml.safe_load((ROOT / "cluster/serve.yaml").read_text())
    # `None` in YAML is the text: a new cluster beside the old one would end its jobs.
    assert service["spec"]["upgradeStrategy"] == {"type": "None"}


def test_the_settings_are_settings_and_name_where_the_api_is(monkeypatch: pytest.MonkeyPatch) -> None:
    config, *others = _documents("settings.yaml")
    for name, value in config["data"].items():
        monkeypatch.setenv(name, value.replace("REPLACE_ACCOUNT", "123456789012"))
    settings = load_settings()
    assert set(settings.cluster.instance_types) == INSTANCE_TYPES.keys()
    endpoints = Endpoints.of(settings)
    (service,) = [d for d in others if d["kind"] == "Service"]
    assert endpoints.api_url == f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    labels = _cluster()["headGroupSpec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    accounts = {d["metadata"]["name"] for d in others if d["kind"] == "ServiceAccount"}
    assert {template["spec"]["serviceAccountName"] for _, template in _pods(_cluster())} == accounts
    serve = yaml.safe_load((ROOT / "cluster/serve.yaml").read_text())
    assert service["spec"]["ports"][0]["targetPort"] == serve["http_options"]["port"]


def test_workers_reach_neither_metadata_nor_networks_inside_and_nobody_reaches_workers() -> None:
    policies = {p["metadata"]["name"]: p["spec"] for p in _documents("network-policies.yaml")}
    worker = policies["mhs-worker"]
    blocks = [to["ipBlock"] for rule in worker["egress"] for to in rule["to"] if "ipBlock" in to]
    assert [b["cidr"] for b in blocks] == ["0.0.0.0/0"]
    assert {"169.254.0.0/16", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"} <= set(blocks[0]["except"])
    assert all("namespaceSelector" not in peer for rule in worker["ingress"] for peer in rule["from"])
    covered = {s["podSelector"]["matchLabels"]["mhs.io/part"] for s in policies.values()}
    assert {t["metadata"]["labels"]["mhs.io/part"] for _, t in _pods(_cluster())} == covered
