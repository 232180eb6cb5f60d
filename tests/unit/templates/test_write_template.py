"""What ``mhs init`` writes."""

from __future__ import annotations

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.measure

import mhs_ray.templates
from mhs_ray.domain.errors import ConflictError, NotFoundError
from mhs_ray.templates import template_names, write_template


def test_the_template_is_written_whole_and_its_own_tests_pass(tmp_path: Path) -> None:
    written = {str(p) for p in write_template("plain", tmp_path / "new" / "lab")}
    assert {"main.py", "results_client.py", "Dockerfile", ".dockerignore", "requirements.txt", "README.md"} <= written
    assert not [p for p in written if "__pycache__" in p]
    run = subprocess.run(
        [sys.executable, "-m", "unittest", "discover", "-s", "tests", "-t", "."],
        cwd=tmp_path / "new" / "lab", capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


def test_an_empty_folder_may_be_there_already(tmp_path: Path) -> None:
    assert write_template("plain", tmp_path)


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("mine")
    with pytest.raises(ConflictError, match="is not empty; name a folder"):
        write_template("plain", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["main.py"]
    assert (tmp_path / "main.py").read_text() == "mine"


def test_a_file_in_its_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "lab").write_text("x")
    with pytest.raises(ConflictError, match="is a file"):
        write_template("plain", tmp_path / "lab")


@pytest.mark.parametrize("name", ["nothing", "../templates/plain", "", "__pycache__"])
def test_an_unknown_template_is_answered_with_those_there_are(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFoundError, match="plain"):
        write_template(name, tmp_path / "lab")
    assert template_names() == ["plain", "tiles", "warm", "torch", "dicom"]


def test_the_tiles_template_is_the_plain_one_with_a_feed(tmp_path: Path) -> None:
    files = {str(f) for f in write_template("tiles", tmp_path / "m")}
    assert {"main.py", "mhs_tiles.py", "results_client.py", "Dockerfile", "tests/test_score_tiles.py"} <= files
    assert "tests/test_process_image.py" not in files
    assert "open_tiles" in (tmp_path / "m" / "main.py").read_text()
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "tests"], cwd=tmp_path / "m", capture_output=True)
    assert done.returncode == 0, done.stdout


def test_the_warm_template_is_the_plain_one_in_a_loop(tmp_path: Path) -> None:
    files = {str(f) for f in write_template("warm", tmp_path / "m")}
    assert {"main.py", "serve.py", "mhs_warm.py", "results_client.py", "Dockerfile", "tests/test_warm.py"} <= files
    assert '"serve.py"' in (tmp_path / "m" / "Dockerfile").read_text()
    done = subprocess.run(
        [sys.executable, "-m", "unittest", "discover", "-s", "tests", "-t", "."],
        cwd=tmp_path / "m",
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("name", "own"), [("torch", "tests/test_model.py"), ("dicom", "tests/test_series.py")])
def test_each_further_template_is_written_whole_and_its_own_tests_pass(tmp_path: Path, name: str, own: str) -> None:
    files = {str(f) for f in write_template(name, tmp_path / "m")}
    assert {"main.py", "contours.py", "results_client.py", "Dockerfile", "slide.py", own} <= files
    assert "tests/test_process_image.py" not in files
    command = [sys.executable, "-m", "unittest", "discover", "-s", "tests", "-t", "."]
    done = subprocess.run(command, cwd=tmp_path / "m", capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["torch", "dicom"])
def test_what_is_around_the_model_is_the_plain_templates_own(name: str) -> None:
    here = Path(mhs_ray.templates.__file__).parent
    plain, other = (
        {
            node.name: ast.unparse(node)
            for node in ast.parse((here / which / "main.py").read_text()).body
            if isinstance(node, ast.FunctionDef)
        }
        for which in ("plain", name)
    )
    for function in plain.keys() - {"process_image", "make_results", "main"}:
        assert other[function] == plain[function]


def test_every_template_is_listed_and_the_list_names_no_other() -> None:
    here = Path(mhs_ray.templates.__file__).parent
    assert set(template_names()) == {p.name for p in here.iterdir() if p.is_dir() and p.name[0] not in "_."}


def test_outlines_hold_every_connected_area_and_fill_its_holes(tmp_path: Path) -> None:
    files = write_template("dicom", tmp_path / "m")
    assert Path("contours.py") in files
    outlines = runpy.run_path(str(tmp_path / "m" / "contours.py"))["outlines"]
    mask = np.zeros((5, 6), bool)
    mask[1:3, 1:4] = mask[3, 4] = True  # they touch at a corner only
    assert outlines(mask) == [
        ([[1, 1], [4, 1], [4, 3], [1, 3], [1, 1]], 6),
        ([[4, 3], [5, 3], [5, 4], [4, 4], [4, 3]], 1),
    ]
    ring = np.ones((5, 5), bool)
    ring[2, 2] = False
    assert outlines(ring) == [([[0, 0], [5, 0], [5, 5], [0, 5], [0, 0]], 25)]
    random = np.random.default_rng(0)
    for _ in range(100):
        mask = random.random((9, 11)) < random.choice([0.3, 0.5, 0.7])
        assert len(outlines(mask)) == skimage.measure.label(mask, connectivity=1).max()
    assert outlines(np.zeros((3, 3), bool)) == []
