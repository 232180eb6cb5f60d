"""What ``mhs init`` writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
    assert {"plain", "tiles", "warm"} <= set(template_names())


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
