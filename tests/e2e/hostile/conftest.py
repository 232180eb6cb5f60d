"""One arena per engine, and the image whose settings all lie."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mhs_ray.domain.instances import INSTANCE_TYPES, InstanceType
from mhs_ray.engines.build import image_tools
from mhs_ray.engines.docker import DockerEngine
from mhs_ray.engines.podman import PodmanEngine
from tests.e2e.hostile.arena import MEMORY, Arena
from tests.engines_fixtures import _unmount_below

_DOCKERFILE = """
FROM localhost/mhs-small:test
ENV LD_PRELOAD=/evil.so NVIDIA_VISIBLE_DEVICES=all HTTPS_PROXY=http://169.254.169.254:80 HOST=evil.example TASK_ID=1
ENV PATH=/bin:/usr/local/bin
LABEL mhs.job=31337 mhs.attempt=9 mhs.platform=somebody-else mhs.role=pause
VOLUME /volume
STOPSIGNAL SIGCONT
HEALTHCHECK --interval=1s CMD ["/bin/touch", "/tmp/health-check-ran"]
USER 0
ENTRYPOINT ["/usr/local/bin/python3", "-S", "-c", "import os; exec(os.environ['PROGRAM'])"]
"""


class _Small(InstanceType):
    """An instance type whose memory a test can fill."""

    @property
    def memory_bytes(self) -> int:
        return MEMORY


@contextmanager
def _arena(engine: PodmanEngine | DockerEngine) -> Iterator[Arena]:
    if os.geteuid() != 0:
        pytest.skip("a sandbox's file system needs root")
    folder = Path(tempfile.mkdtemp(prefix="mh-", dir="/tmp"))
    folder.chmod(0o711)
    context = folder / "image"
    context.mkdir()
    (context / "Dockerfile").write_text(_DOCKERFILE)
    image_tools(engine).build(context, "localhost/mhs-hostile:test")
    arena = Arena(folder, engine, "localhost/mhs-hostile:test")
    try:
        with arena.api():
            yield arena
            arena.is_healthy()
    finally:
        _unmount_below(folder)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def podman_arena(podman_engine: PodmanEngine) -> Iterator[Arena]:
    with _arena(podman_engine) as arena:
        yield arena


@pytest.fixture(scope="session")
def docker_arena(docker_engine: DockerEngine) -> Iterator[Arena]:
    with _arena(docker_engine) as arena:
        yield arena


@pytest.fixture(params=["podman", "docker"])
def arena(request: pytest.FixtureRequest) -> Arena:
    """Each engine in turn."""
    found: Arena = request.getfixturevalue(f"{request.param}_arena")
    return found


@pytest.fixture(autouse=True)
def small_instance_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a test of this folder runs, the smallest type is small enough to be filled."""
    monkeypatch.setitem(INSTANCE_TYPES, "g4dn.xlarge", _Small("g4dn.xlarge", 1, 16, "T4", 16))
