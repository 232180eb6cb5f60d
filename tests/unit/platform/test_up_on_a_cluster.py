"""What `mhs up` asks of settings before it joins a cluster's Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mhs_ray.domain.errors import ConflictError
from mhs_ray.domain.settings import Settings
from mhs_ray.platform.ports import choose_ports
from mhs_ray.platform.up import ray_environment, up

ADDRESS = "127.0.0.1:6379"


@pytest.mark.parametrize(
    ("cluster", "blobs", "names"),
    [
        ({"placement": "single"}, {"kind": "s3"}, "MHS_CLUSTER__PLACEMENT"),
        ({"placement": "label"}, {"kind": "local"}, "MHS_BLOBS__FOLDER"),
    ],
)
def test_settings_that_nodes_could_not_work_with_are_refused_before_anything_starts(
    tmp_path: Path, cluster: dict[str, Any], blobs: dict[str, Any], names: str
) -> None:
    settings = Settings.model_validate(
        {"home": tmp_path / "h", "cluster": {**cluster, "ray_address": ADDRESS}, "blobs": blobs}
    )
    with pytest.raises(ConflictError, match=names):
        up(settings, lambda _text: None)
    assert not (tmp_path / "h" / "run" / "endpoints.json").exists()


def test_a_ray_that_is_joined_keeps_its_own_ports(tmp_path: Path) -> None:
    settings = Settings.model_validate(
        {"home": tmp_path, "cluster": {"placement": "label", "ray_address": ADDRESS, "dashboard_port": 1}}
    )
    assert set(choose_ports(settings)) == {"api", "blobs", "registry"}


def test_a_joined_ray_s_own_token_and_addresses_count(tmp_path: Path) -> None:
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/etc/ray/token"}
    joined = ray_environment(tmp_path, own, joins="10.0.0.5:6379")
    assert joined["RAY_AUTH_TOKEN_PATH"] == "/etc/ray/token"
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in joined
    slow = ray_environment(tmp_path, {**own, "RAY_health_check_period_ms": "9000"})
    assert slow["RAY_health_check_period_ms"] == "9000"
    alone = ray_environment(tmp_path, own)
    assert alone["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "keys" / "ray-token")
    assert alone["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
