"""Each template as its user has it: `mhs init`, then `mhs test --build`: a real build and a real run.

The PyTorch template runs here on the base without PyTorch, where its model computes with NumPy: a base with Debian's
PyTorch takes 1.1 GB and minutes to make. With PyTorch: pytest -m torch.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from mhs_ray.cli.main import app
from mhs_ray.engines import select
from mhs_ray.engines.build import image_tools
from mhs_ray.engines.podman import PodmanEngine
from mhs_ray.platform.base_image import DEFAULT_PACKAGES, DEFAULT_TAG, make_base_image
from tests.engines_fixtures import _unmount_below

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
_TORCH_TAG = "localhost/mhs-base-torch:bookworm"
_SERIES = """
import sys; sys.path.insert(0, ".")
from pathlib import Path
from PIL import Image
from tests.test_series import picture, write_level
whole = picture(1200, 840)
for level, shrink in ((0, 1), (1, 4)):
    drawn = whole.resize((1200 // shrink, 840 // shrink), Image.NEAREST)
    write_level(Path(sys.argv[1]) / f"{level}.dcm", drawn, 0.5 * shrink)
"""

Try = Callable[..., tuple[int, dict[str, Any], Path]]


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="mt-", dir="/tmp"))
    made.chmod(0o711)
    yield made
    _unmount_below(made)
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def mhs(podman_engine: PodmanEngine, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Try:
    """Run `mhs … --json` on the tests' own engine; return exit code, document, and the folder of a template."""
    monkeypatch.setenv("MHS_HOME", str(home))
    monkeypatch.setenv("MHS_JOBS__SCRATCH", "256MiB")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(select, "pick_engine", lambda *args, **options: podman_engine)

    def run(*words: str) -> tuple[int, dict[str, Any], Path]:
        done = CliRunner().invoke(app, [*words, "--json"])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, json.loads(done.stdout.strip().splitlines()[-1]), tmp_path

    return run


@pytest.fixture
def base(podman_engine: PodmanEngine, base_cache: Path) -> str:
    make_base_image(image_tools(podman_engine), base_cache, progress=lambda line: None)
    return f"BASE_IMAGE={DEFAULT_TAG}"


def begin(mhs: Try, template: str) -> Path:
    code, _, folder = mhs("init", "lab", "--template", template)
    assert code == 0
    return folder / "lab"


def test_the_plain_template_passes(mhs: Try, base: str) -> None:
    begin(mhs, "plain")
    code, found, folder = mhs("test", "--build", "lab", "--build-arg", base, "--demo-slide", "--gpus", "none")
    assert (code, found["state"], found["results_valid"], found["faults"]) == (0, "succeeded", True, [])
    assert found["summary"]["annotations"] == {"mitosis": 4}
    assert {p.name for p in (folder / "mhs-test-output").iterdir()} == {
        "job.log", "results.json", "results.geojson", "results.png", "debug.zip",
    }  # fmt: skip


def test_the_tiles_template_is_fed(mhs: Try, base: str) -> None:
    begin(mhs, "tiles")
    words = ("test", "--build", "lab", "--build-arg", base, "--demo-slide", "-e", "MHS_TILES=size=256 mpp=0.5")
    code, found, _ = mhs(*words)
    assert (code, found["state"]) == (0, "succeeded"), found["failure"]
    assert found["features"] == 20
    assert found["case_results"] == {"tiles": 96}
    assert "tiles: 96 of 96 were read" in Path(found["files"]["log"]).read_text()


def check_stain(found: dict[str, Any]) -> None:
    """The demo's slide is of the picture that the model learned from, so colour deconvolution can judge it."""
    assert found["features"] > 20
    results = json.loads(Path(found["files"]["results"]).read_text())
    numbers = results["scanResults"][0]["results"]
    assert 10 < numbers["positive_percent"] < 90
    marked = sum(f["properties"]["area_um2"] for f in results["scanResults"][0]["geojson"]["features"])
    assert marked == pytest.approx(numbers["positive_area_um2"], rel=0.25)  # small ones are left out, holes are filled
    drawn = np.asarray(Image.open(found["files"]["picture"]).convert("RGB"))
    assert drawn.std() > 10


def test_the_pytorch_template_runs_its_model_where_there_is_no_pytorch(mhs: Try, base: str) -> None:
    begin(mhs, "torch")
    code, found, _ = mhs("test", "--build", "lab", "--build-arg", base, "--demo-slide", "--gpus", "none")
    assert (code, found["state"]) == (0, "succeeded"), found["failure"]
    assert "Computing on numpy" in Path(found["files"]["log"]).read_text()
    check_stain(found)


@pytest.mark.torch
def test_the_pytorch_template_runs_with_pytorch(mhs: Try, podman_engine: PodmanEngine, base_cache: Path) -> None:
    tools = image_tools(podman_engine)
    packages = [*DEFAULT_PACKAGES, "python3-torch"]
    make_base_image(tools, base_cache, _TORCH_TAG, packages, lambda line: None)
    lab = begin(mhs, "torch")
    words = ("--build", "lab", "--build-arg", f"BASE_IMAGE={_TORCH_TAG}", "--demo-slide", "--gpus", "none")
    code, found, _ = mhs("test", *words)
    assert (code, found["state"]) == (0, "succeeded"), found["failure"]
    log = Path(found["files"]["log"]).read_text()
    assert "CUDA is not available. Falling back to the CPU." in log
    assert "Computing on cpu" in log
    check_stain(found)
    # The template's own tests once more in there: PyTorch and NumPy must give the same.
    (lab / ".dockerignore").unlink()
    with (lab / "Dockerfile").open("a") as dockerfile:
        dockerfile.write("COPY tests tests\nRUN python3 -m unittest discover -v -s tests -t .\n")
    tools.build(lab, "localhost/mhs-torch-tests:test", {"BASE_IMAGE": _TORCH_TAG})


def test_the_dicom_template_reads_every_level_of_a_series(mhs: Try, base: str) -> None:
    lab = begin(mhs, "dicom")
    series = lab.parent / "series"
    series.mkdir()
    subprocess.run([sys.executable, "-c", _SERIES, str(series)], cwd=lab, check=True, timeout=120)
    words = ("test", "--build", "lab", "--build-arg", base, "--scan", str(series), "--gpus", "none")
    code, found, _ = mhs(*words)
    assert (code, found["state"]) == (0, "succeeded"), found["failure"]
    assert (found["slide"]["format"], found["features"]) == ("dicom", 1)
    assert found["case_results"] == {"pieces": 1, "levels": 2, "tissue_mm2": pytest.approx(0.028, rel=0.05)}
