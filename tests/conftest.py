"""Fixtures that more than one area uses: the real engines of this machine and an image for them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from mhs_ray.engines.build import image_tools
from mhs_ray.engines.docker import DockerEngine
from mhs_ray.engines.podman import PodmanEngine
from tests.engines_fixtures import private_dockerd, private_podman, small_rootfs

SMALL_IMAGE = "localhost/mhs-small:test"
_PLATFORMS = {"chaos", "e2e", "e2e/cluster", "e2e/hostile", "e2e/platform"}
_BY_NAME = {
    "torch": "a base image with PyTorch takes minutes",
    "partition": "cutting a host off takes minutes, and `make chaos` does it",
}


class _ByFolder(LoadScopeScheduling):  # type: ignore[misc]
    """Of the processes that share the tests, one runs all that start whole platforms, and each other folder is one's.

    So platforms, engines and servers start once, and never two platforms beside each other.
    """

    def _split_scope(self, nodeid: str) -> str:
        folder = "/".join(nodeid.partition("::")[0].split("/")[1:-1][:2])
        return "platforms" if folder in _PLATFORMS else folder


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _ByFolder(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is asked for by name only."""
    for mark, reason in _BY_NAME.items():
        if mark not in str(config.option.markexpr):
            for item in items:
                if item.get_closest_marker(mark):
                    item.add_marker(pytest.mark.skip(reason=f"{reason}: pytest -m {mark}"))


@pytest.fixture(scope="session")
def small_rootfs_tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_rootfs(tmp_path_factory.mktemp("rootfs"))


@pytest.fixture(scope="session")
def podman_engine(small_rootfs_tar: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodmanEngine]:
    """podman on a storage of its own that holds `small_image`."""
    if shutil.which("podman") is None:
        pytest.skip("no podman on this machine: apt-get install podman catatonit")
    with private_podman() as args:
        engine = PodmanEngine(args, folder=tmp_path_factory.mktemp("podman"))
        image_tools(engine).import_rootfs(small_rootfs_tar, SMALL_IMAGE)
        yield engine


@pytest.fixture(scope="session")
def docker_engine(small_rootfs_tar: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerEngine]:
    """A Docker daemon of our own that holds `small_image`."""
    if shutil.which("dockerd") is None:
        pytest.skip("no dockerd on this machine: apt-get install docker.io catatonit")
    with private_dockerd() as host:
        engine = DockerEngine(host, folder=tmp_path_factory.mktemp("docker"))
        image_tools(engine).import_rootfs(small_rootfs_tar, SMALL_IMAGE)
        yield engine


@pytest.fixture(params=["podman", "docker"])
def engine(request: pytest.FixtureRequest) -> PodmanEngine | DockerEngine:
    """Each engine in turn; use it where a behaviour must be the same on both."""
    found: PodmanEngine | DockerEngine = request.getfixturevalue(f"{request.param}_engine")
    return found


@pytest.fixture(scope="session")
def small_image() -> str:
    """Tag of an image in every engine above: /bin/sh, small tools, Python (set PYTHONHOME=/usr/local)."""
    return SMALL_IMAGE
