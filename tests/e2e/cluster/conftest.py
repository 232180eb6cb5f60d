"""One platform on a cluster that Ray's autoscaler grows and shrinks on this machine, for all tests here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mhs_ray.bench._cloud_stage import CloudStage, cloud_stage
from mhs_ray.platform.local_cloud import NodeType
from tests.engines_fixtures import _unmount_below

IDLE_S = 4.0
TYPES = (NodeType("g4dn.xlarge", 2, IDLE_S), NodeType("g5.2xlarge", 2, IDLE_S))
_NEEDED = ("podman", "docker-registry")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="module")
def storage() -> Iterator[Path]:
    """A storage of podman for one module, which this process and all that it starts use; its configuration file."""
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and {', '.join(missing or _NEEDED)}: apt-get install podman docker-registry")
    folder = Path(tempfile.mkdtemp(prefix="ms-", dir="/tmp"))
    config = folder / "storage.conf"
    config.write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/r"\nrunroot = "{folder}/x"\n')
    before, mask = dict(os.environ), os.umask(0o022)
    os.environ["CONTAINERS_STORAGE_CONF"] = str(config)
    try:
        yield config
    finally:
        for words in (("rm", "--force", "--all", "--time", "0"), ("rmi", "--force", "--all")):
            subprocess.run(["podman", *words], capture_output=True, check=False)
        os.environ.clear()
        os.environ.update(before)
        os.umask(mask)
        _unmount_below(folder)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cloud(storage: Path) -> Iterator[CloudStage]:
    """A cluster without nodes, for one module: what it sets in this process's environment is unset again."""
    variables = {
        "MHS_ENGINE": "podman", "MHS_JOBS__STOP_GRACE": "PT1S",
        "MHS_JOBS__BACKOFF": "PT0.2S", "MHS_CLUSTER__GIVE_BACK": "PT15S", "MHS_BLOBS__MIN_FREE": "0",
        # A node that died is found within seconds, as on a cluster that is set up so.
        "RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "2000",
        "RAY_health_check_failure_threshold": "3",
    }  # fmt: skip
    with cloud_stage(TYPES, lambda text: print(text, file=sys.stderr), variables) as stage:
        yield stage
