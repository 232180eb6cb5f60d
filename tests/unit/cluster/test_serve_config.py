"""The Serve config is what Ray takes, and names what exists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from ray.serve.schema import ServeDeploySchema

from api.app import Api, build

CONFIG = Path(__file__).parents[3] / "cluster" / "serve.yaml"


def _config() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    return config


def test_ray_accepts_the_config_whole() -> None:
    deployed = ServeDeploySchema.model_validate(_config())
    assert [a.name for a in deployed.applications] == ["mhs"]


def test_the_config_names_the_application_and_its_deployment() -> None:
    (application,) = _config()["applications"]
    assert application["import_path"] == f"{build.__module__}:{build.__name__}"
    deployment: Any = Api
    assert [d["name"] for d in application["deployments"]] == [deployment.name]


def test_a_replica_takes_more_than_rays_default_of_five_requests() -> None:
    (deployment,) = _config()["applications"][0]["deployments"]
    assert deployment["max_ongoing_requests"] >= 1000
