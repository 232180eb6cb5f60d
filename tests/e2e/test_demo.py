"""`mhs demo` as a person runs it, with either engine: real registry, real push, real container, real slide."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.engines_fixtures import _unmount_below

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
MHS = Path(sys.executable).with_name("mhs")
NEEDED = ("docker-registry", "debootstrap", "catatonit")


@pytest.fixture(scope="module")
def home(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A platform's home in a short path, which both engines use."""
    if os.geteuid() != 0:
        pytest.skip("the demo makes its base image, which needs root")
    if missing := [p for p in NEEDED if shutil.which(p, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]:
        pytest.skip(f"missing here: apt-get install {' '.join(missing)}")
    # Not below /tmp/pytest-…: Unix sockets need short paths, and containers' users must pass through.
    folder = Path(tempfile.mkdtemp(prefix="mhsd-", dir="/tmp"))
    folder.chmod(0o711)
    # The base image's packages are fetched once, for every test that needs them.
    assert request.config.cache is not None
    (folder / "cache").symlink_to(request.config.cache.mkdir("mhs-base-image"))
    # podman's images of this test lie beside nobody else's.
    (folder / "storage.conf").write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/podman/r"\nrunroot = "{folder}/podman/x"\n'
    )
    yield folder
    subprocess.run([MHS, "down"], env=environment(folder, "auto"), capture_output=True, timeout=120, check=False)
    _unmount_below(folder)
    shutil.rmtree(folder, ignore_errors=True)


def environment(home: Path, engine: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MHS_") and k != "DOCKER_HOST"}
    storage = {"CONTAINERS_STORAGE_CONF": str(home / "storage.conf")}
    return {**kept, **storage, "MHS_HOME": str(home), "MHS_ENGINE": engine}


def of_home(home: Path) -> list[str]:
    """The command lines of every process that works for this home."""
    platform = home / "keys" / "platform"
    names = [str(home)] + ([f"/mhs-{platform.read_text().strip()}"] if platform.exists() else [])
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                variables = (entry / "environ").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if any(n in command for n in names) or f"MHS_HOME={home}\0" in variables:
                found.append(command)
    return found


def run_demo(home: Path, engine: str, cwd: Path, *args: str) -> tuple[dict[str, Any], str]:
    done = subprocess.run(
        [MHS, "demo", "--json", *args], env=environment(home, engine), cwd=cwd, capture_output=True, text=True,
        timeout=800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-2000:]
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return document, done.stderr


@pytest.mark.parametrize("engine", ["podman", "docker"])
def test_the_demo_runs_the_template_on_a_slide_and_leaves_nothing_running(
    home: Path, engine: str, tmp_path: Path
) -> None:
    if shutil.which("podman" if engine == "podman" else "dockerd") is None:
        pytest.skip(f"no {engine} on this machine")
    document, told = run_demo(home, engine, tmp_path)
    assert document["job"]["state"] == "succeeded"
    assert document["engine"] == engine
    assert document["image"]["digest"] == document["job"]["image_digest"]
    assert document["image"]["digest"].startswith("sha256:")
    (scan,) = document["results"]["scanResults"]
    assert scan["scanId"] == document["job"]["scan_id"]
    features = scan["geojson"]["features"]
    assert len(features) == 4
    files = {name: Path(path) for name, path in document["files"].items()}
    assert files["picture"].parent == tmp_path / "demo-output"
    assert len(json.loads(files["geojson"].read_text())["features"]) == 4
    with Image.open(files["picture"]) as picture:
        assert picture.size == (1600, 1200)
        # Where the first square's edge is, the picture shows it and not the slide.
        x, y = features[0]["geometry"]["coordinates"][0][0]
        red, green, blue = picture.getpixel((round(x * 1600 / 8192), round(y * 1200 / 6144)))  # type: ignore[misc]
        assert blue > 150 > red
        assert blue > green
    assert "Results JSON:" in files["log"].read_text()
    for state in ("running", "succeeded"):
        assert f": {state}" in told
    assert of_home(home) == []
    assert (
        subprocess.run([MHS, "status"], env=environment(home, engine), capture_output=True, check=False).returncode == 3
    )


def test_a_demo_that_is_stopped_midway_leaves_nothing_running(home: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [MHS, "demo", "--keep"], env=environment(home, "auto"), cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "starting the API" in line:
            break
    process.send_signal(signal.SIGTERM)
    said = process.stderr.read()
    assert process.wait(120) == 130, said
    deadline = time.monotonic() + 20
    while of_home(home) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert of_home(home) == []
