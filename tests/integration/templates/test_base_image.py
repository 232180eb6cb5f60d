"""The real base image, and the template built and run on it, with both engines and no registry."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mhs_ray.attempt.tiles import TileFeedProcess
from mhs_ray.engines.build import image_tools
from mhs_ray.engines.docker import DockerEngine
from mhs_ray.engines.podman import PodmanEngine
from mhs_ray.platform.base_image import DEFAULT_TAG, make_base_image
from mhs_ray.ports import ContainerSpec, Limits, Mount
from mhs_ray.slides.demo import make_demo_slide
from mhs_ray.templates import write_template

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
pytestmark = pytest.mark.engine


@pytest.mark.timeout(600)
def test_a_lab_builds_and_runs_the_template_on_the_base_image(
    engine: PodmanEngine | DockerEngine, base_cache: Path, tmp_path: Path
) -> None:
    images = image_tools(engine)
    told: list[str] = []
    made = make_base_image(images, base_cache, progress=told.append)
    assert told[-1].endswith(f"as {DEFAULT_TAG}")
    newest = max(base_cache.glob("*.tar"), key=lambda tar: tar.stat().st_mtime)
    assert newest.stat().st_size < 350_000_000
    told.clear()
    assert make_base_image(images, base_cache, progress=told.append) == made == images.image_id(DEFAULT_TAG)
    assert told == []

    write_template("plain", tmp_path / "lab")
    # Whatever asked for the network would fail: nothing can be resolved behind these.
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    image = images.build(tmp_path / "lab", "localhost/lab:test", {"BASE_IMAGE": DEFAULT_TAG, **nowhere})

    for slide in ("CMU-1-Small-Region.svs", "sm_image.dcm"):
        if not (DATA / slide).exists():
            pytest.skip(f"{slide} is not there: put the sample slides into shared/data beside the project")
        lines = run(engine, image, DATA / slide)
        assert lines[0].startswith("CUDA is not available: PyTorch is not installed. Falling back to the CPU")
        assert lines[3:6] == [
            "Processing image: /slide",
            "Generated 4 fake annotations",
            f"Visualization saved to {lines[5][23:]}",
        ]
        results = json.loads(lines[6].removeprefix("Results JSON: "))
        assert len(results["scanResults"][0]["geojson"]["features"]) == 4


@pytest.mark.timeout(600)
def test_the_tiles_template_gets_its_tiles_in_a_container(
    engine: PodmanEngine | DockerEngine, base_cache: Path, tmp_path: Path
) -> None:
    images = image_tools(engine)
    make_base_image(images, base_cache, progress=lambda line: None)
    write_template("tiles", tmp_path / "lab")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    image = images.build(tmp_path / "lab", "localhost/lab-tiles:test", {"BASE_IMAGE": DEFAULT_TAG, **nowhere})
    slide = make_demo_slide(tmp_path / "slide.svs", 2048, 1536, mpp=0.25).path
    tmp_path.chmod(0o755)
    name, output, said = "template-tiles", bytearray(), list[str]()
    with TileFeedProcess(slide, "size=128 mpp=0.5", tmp_path / "feed", 1, said.append) as feed:
        spec = ContainerSpec(
            name=name,
            image=image,
            env={"HOME": "/tmp", "SCAN_ID": "7", **feed.env},
            labels={"mhs.test": "template"},
            limits=Limits(cpus=1, memory_bytes=1 << 30),
            mounts=[feed.mount],
            tmpfs={"/tmp": 1 << 28},
        )
        try:
            engine.run(spec, lambda stream, data: output.extend(data), lambda status: None)
        finally:
            engine.remove(name)
    lines = output.decode().splitlines()
    assert lines[:2] == ["Reading 48 tiles of 128 x 128 at 0.5 microns", "Scored 48 tiles"]
    # Errors and output are two streams: which of their lines comes first is not told.
    (told,) = [line for line in lines if line.startswith("Results JSON: ")]
    results = json.loads(told.removeprefix("Results JSON: "))
    assert results["scanResults"][0]["scanId"] == "7"
    assert len(results["scanResults"][0]["geojson"]["features"]) == 20
    assert any("HOST and TASK_ID not set" in line for line in lines)
    assert said[-1] == "tiles: 48 of 48 were read"


def run(engine: PodmanEngine | DockerEngine, image: str, slide: Path) -> list[str]:
    name = f"template-{slide.stem.lower()}"
    output = bytearray()
    spec = ContainerSpec(
        name=name,
        image=image,
        env={"HOME": "/tmp"},
        labels={"mhs.test": "template"},
        limits=Limits(cpus=1, memory_bytes=1 << 30),
        mounts=[Mount(slide, "/slide")],
        tmpfs={"/tmp": 1 << 28},
        command=["/slide"],
    )
    try:
        engine.run(spec, lambda stream, data: output.extend(data), lambda status: None)
        status = engine.inspect(name)
        assert status is not None
        assert status.exit_code == 0, output.decode()
    finally:
        engine.remove(name)
    return output.decode().splitlines()
