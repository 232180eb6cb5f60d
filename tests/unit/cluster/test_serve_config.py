"""The Serve config is what Ray takes, and names what exists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from api import app
from api.app import Api, build
from mhs_ray.actors import dispatcher, registrar
from mhs_ray.platform.endpoints import Endpoints

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


@pytest.mark.parametrize(("url", "started"), [("http://10.0.0.4:8080", ["dispatcher", "registrar"]), (None, [])])
def test_the_first_replica_on_a_cluster_starts_what_stands_beside_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str | None, started: list[str]
) -> None:
    monkeypatch.setenv("MHS_HOME", str(tmp_path))
    if url is not None:
        monkeypatch.setenv("MHS_CLUSTER__PLACEMENT", "label")
        monkeypatch.setenv("MHS_API__INTERNAL_URL", url)
    else:
        Endpoints("http://a", "http://b", "c:1", "d", "e").save(tmp_path)
    seen: list[str] = []
    found: list[Endpoints] = []
    monkeypatch.setattr(dispatcher, "start_dispatcher", lambda: seen.append("dispatcher"))
    monkeypatch.setattr(registrar, "start_registrar", lambda: seen.append("registrar"))
    monkeypatch.setattr("api.app.build_core_patiently", lambda _settings, endpoints, _wake: found.append(endpoints))
    monkeypatch.setattr("mhs_ray.actors.loopback.keep_replica_at", lambda _host: None)
    monkeypatch.setattr("mhs_ray.actors.metrics.http_observer", lambda: None)
    app._on_ray()
    assert seen == started
    assert [e.api_url for e in found] == [url or "http://a"]
