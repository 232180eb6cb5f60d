"""A stand per engine, and an image whose program a variable brings along."""

from __future__ import annotations

import shutil
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mhs_ray.cli.trial import Here
from mhs_ray.domain.env import EnvVar
from mhs_ray.domain.sections import JobSettings
from mhs_ray.domain.settings import Settings
from mhs_ray.engines.build import image_tools
from mhs_ray.engines.docker import DockerEngine
from mhs_ray.engines.podman import PodmanEngine
from mhs_ray.local.stand import Stand
from mhs_ray.slides.demo import make_demo_slide
from tests.conftest import SMALL_IMAGE
from tests.engines_fixtures import _unmount_below

LAB = "localhost/mhs-lab:test"
_DOCKERFILE = f"""
FROM {SMALL_IMAGE}
ENV PATH=/bin:/usr/local/bin PYTHONHOME=/usr/local
ENTRYPOINT ["/usr/local/bin/python3", "-S", "-c", "import os; exec(os.environ['PROGRAM'])"]
"""
PRELUDE = textwrap.dedent(
    """
    import json, os, sys, time, urllib.error, urllib.request
    def post(**scan):
        body = {"caseResults": {"cells": 1}, "scanResults": [{"scanId": os.environ["SCAN_ID"], **scan}]}
        url = f"https://api.{os.environ['HOST']}/api/v3/external/results/{os.environ['TASK_ID']}"
        head = {"Authorization": "Bearer " + os.environ["JWT_TOKEN"], "Content-Type": "application/json"}
        try:
            return urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), head)).status
        except urllib.error.HTTPError as error:
            return error.code
    def square(x, y, side, kind="tumor"):
        ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
        return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {"annotation_type": kind}}
    def collection(*features):
        return {"type": "FeatureCollection", "features": list(features)}
    """
)


def program(text: str) -> list[EnvVar]:
    """Return the variables that have the image run `text`."""
    return [EnvVar("PROGRAM", PRELUDE + textwrap.dedent(text))]


@contextmanager
def opened(engine: PodmanEngine | DockerEngine) -> Iterator[Here]:
    folder = Path(tempfile.mkdtemp(prefix="ml-", dir="/tmp"))
    folder.chmod(0o711)
    context = folder / "image"
    context.mkdir()
    (context / "Dockerfile").write_text(_DOCKERFILE)
    image_tools(engine).build(context, LAB)
    settings = Settings(home=folder / "home", jobs=JobSettings(scratch="64MiB", stop_grace="PT1S"))
    try:
        with Stand(settings, engine) as stand:
            yield Here(stand, engine)
        assert not list((folder / "home" / "local" / "runs").iterdir())
        assert not [c.name for c in engine.containers("mhs.platform") if c.name.startswith("mhs-")]
    finally:
        _unmount_below(folder)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def podman_here(podman_engine: PodmanEngine) -> Iterator[Here]:
    with opened(podman_engine) as here:
        yield here


@pytest.fixture(scope="session")
def docker_here(docker_engine: DockerEngine) -> Iterator[Here]:
    with opened(docker_engine) as here:
        yield here


@pytest.fixture
def here(podman_here: Here) -> Here:
    return podman_here


@pytest.fixture(scope="session")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_slide(tmp_path_factory.mktemp("slide") / "slide.svs", 1024, 1024).path


@pytest.fixture
def derived(here: Here, tmp_path: Path) -> Callable[[str], str]:
    """Return the tag of an image that these lines make of the lab's."""

    def build(lines: str) -> str:
        tag = f"localhost/mhs-derived-{tmp_path.name.replace('_', '-').lower()[-40:]}:test"
        (tmp_path / "Dockerfile").write_text(f"FROM {LAB}\n{lines}\n")
        image_tools(here.engine).build(tmp_path, tag)
        return tag

    return build
