"""Which instance types a cluster has: those of its nodes, and those that its autoscaler can start."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from mhs_ray.actors import cluster
from mhs_ray.actors.cluster import RayCluster
from mhs_ray.domain.errors import InvalidInputError
from mhs_ray.domain.instances import INSTANCE_TYPES, LABEL
from mhs_ray.domain.sections import ClusterSettings
from mhs_ray.domain.settings import Settings
from mhs_ray.platform.endpoints import Endpoints
from mhs_ray.services.policy import open_blobs
from mhs_ray.store.blobs.s3 import S3Blobs


def _node(kind: str | None, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "Labels": {LABEL: kind} if kind else {}}


def _offered(monkeypatch: pytest.MonkeyPatch, settings: ClusterSettings, *nodes: dict[str, Any]) -> set[str]:
    monkeypatch.setattr(cluster, "nodes", lambda: list(nodes))
    made = RayCluster(settings, lambda _key, _actor: None)
    return {kind for kind in (*INSTANCE_TYPES, "p5.48xlarge") if made.offers(kind)}


def test_one_machine_stands_in_for_every_type_of_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _offered(monkeypatch, ClusterSettings(), _node(None)) == set(INSTANCE_TYPES)


def test_a_cluster_has_the_types_of_its_nodes_and_those_it_can_start(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ClusterSettings(placement="label", instance_types=("g5.2xlarge",))
    nodes = (_node(None), _node("g4dn.xlarge"), _node("g6.2xlarge", alive=False))
    assert _offered(monkeypatch, settings, *nodes) == {"g5.2xlarge", "g4dn.xlarge"}


def test_a_cluster_without_any_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _offered(monkeypatch, ClusterSettings(placement="label"), _node(None)) == set()


def test_a_node_of_a_cluster_is_told_where_things_are_by_its_settings_and_needs_no_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    sections: dict[str, Any] = {
        "cluster": {"placement": "label"},
        "blobs": {"kind": "s3", "endpoint_url": "http://s3:9000", "public_endpoint_url": "https://s3.example.org"},
        "registry": {"address": "registry.example.org"},
        "secrets": {"directory": tmp_path / "not-there"},
    }
    with pytest.raises(InvalidInputError, match="MHS_API__INTERNAL_URL"):
        Endpoints.of(Settings(home=tmp_path, **sections))
    settings = Settings(home=tmp_path, api={"internal_url": "http://10.0.0.4:8080"}, **sections)  # type: ignore[arg-type]
    found = Endpoints.of(settings)
    assert (found.api_url, found.registry, found.blobs_url) == (
        "http://10.0.0.4:8080", "registry.example.org", "http://s3:9000",
    )  # fmt: skip
    blobs = open_blobs(settings, found, None)
    assert isinstance(blobs, S3Blobs)

    assert blobs.sign("a/b", "GET", timedelta(minutes=1)).startswith("https://s3.example.org/")
    assert list(tmp_path.iterdir()) == []
