"""What is given to `ray job submit`, on the platform's own Ray: its files, its exit code, its end in Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.e2e.platform.harness import Platform

pytestmark = pytest.mark.timeout(300)
MODEL = """
class Redness:
    def __call__(self, pixels):
        return {"score": pixels[..., 0].mean(axis=(1, 2)), "embedding": pixels.mean(axis=(1, 2))}
"""


@dataclass(frozen=True)
class RayJob:
    """An ended Ray job: exit code of `ray job submit`, all that it said, and what Ray keeps of it."""

    code: int
    said: str
    kept: dict[str, Any]

    @property
    def document(self) -> Any:
        """The JSON that the script printed last on stdout."""
        return json.loads([line for line in self.said.splitlines() if line.startswith("{")][-1])


def submit(platform: Platform, name: str, working_dir: Path, *entrypoint: str) -> RayJob:
    """Submit as a person does, with the dashboard's address and Ray's token, and stay to the end."""
    env = {
        **os.environ,
        "RAY_API_SERVER_ADDRESS": platform.endpoints["dashboard_url"],
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(platform.home / "keys" / "ray-token"),
    }
    ray = Path(sys.executable).with_name("ray")
    done = subprocess.run(
        [ray, "job", "submit", "--submission-id", name, "--working-dir", working_dir, "--", *entrypoint],
        env=env, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    kept = platform.ray(f"/api/jobs/{name}")
    assert kept.status_code == 200, done.stdout + done.stderr
    return RayJob(done.returncode, done.stdout + done.stderr, kept.json())


@pytest.fixture
def work(tmp_path: Path, slide: Path) -> Path:
    """A working directory, and slides beside it that containers' users can reach."""
    tmp_path.chmod(0o755)
    whole = slide.read_bytes()
    for n in range(3):
        (tmp_path / f"s{n}.svs").write_bytes(whole + os.urandom(8))  # each is content that no job had before
    (tmp_path / "half.svs").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def test_a_cohort_as_a_ray_job_writes_its_results_and_succeeds(platform: Platform, zoo: int, work: Path) -> None:
    platform.container(zoo, "Ray job zoo", env=[{"name": "BEHAVIOUR", "value": "mark"}])
    rows = [f"S{n},{work.parent}/s{n}.svs,lung" for n in range(3)]
    (work / "ray-job.csv").write_text("\n".join(["id,slide,site", *rows]) + "\n")
    out = work.parent / "out"
    words = (
        "python", "-m", "jobs.run_cohort", "--manifest", "ray-job.csv", "--container", "Ray job zoo", "--canary", "1",
        "--out", str(out),
    )  # fmt: skip
    job = submit(platform, "cohort-good", work, *words)
    assert (job.code, job.kept["status"]) == (0, "SUCCEEDED"), job.said
    cohort = job.document
    assert (cohort["state"], cohort["counts"]["succeeded"], cohort["key"]) == ("done", 3, "ray-job")
    slides = pq.read_table(out / "slides.parquet").to_pylist()
    assert [(r["id"], r["state"], r["site"]) for r in slides] == [(f"S{n}", "succeeded", "lung") for n in range(3)]
    for n in range(3):
        [feature] = json.loads((out / "geojson" / f"S{n}.geojson").read_text())["features"]
        assert feature["properties"]["score"] == 0.5
        assert pq.read_table(out / "features" / f"slide=S{n}" / "part-0.parquet").num_rows == 1
    assert len(json.loads((out / "qupath" / "project.qpproj").read_text())["images"]) == 3


def test_a_bad_manifest_fails_the_ray_job_with_every_fault_and_runs_nothing(
    platform: Platform, zoo: int, work: Path
) -> None:
    container = platform.container(zoo, "Never runs", env=[{"name": "BEHAVIOUR", "value": "mark"}])
    here = work.parent
    rows = [f"A,{here}/s0.svs", f"B,{here}/nowhere.svs", f"A,{here}/s1.svs", "D,", f"E,{here}/s2.svs,one,too,many"]
    (work / "bad.csv").write_text("\n".join(["id,slide", *rows]) + "\n")
    words = ("--manifest", "bad.csv", "--container", str(container), "--out", str(here / "out"))
    job = submit(platform, "cohort-bad", work, "python", "-m", "jobs.run_cohort", *words)
    assert (job.code, job.kept["status"]) == (1, "FAILED"), job.said
    assert job.kept["driver_exit_code"] == 2
    faults = [line for line in job.said.splitlines() if line.startswith("run_cohort: row ")]
    for row in (2, 3, 4, 5):
        assert any(f.startswith(f"run_cohort: row {row}") for f in faults), (row, faults)
    assert platform.get("/v1/jobs", container_id=container)["items"] == []
    assert not (here / "out").exists()


def test_a_slide_that_fails_fails_the_ray_job_after_all_others_ran(platform: Platform, zoo: int, work: Path) -> None:
    container = platform.container(zoo, "Half a cohort", env=[{"name": "BEHAVIOUR", "value": "mark"}])
    here = work.parent
    (work / "half.csv").write_text(f"id,slide\nS,{here}/s0.svs\nH,{here}/half.svs\n")
    words = ("--manifest", "half.csv", "--container", str(container), "--canary", "0", "--out", str(here / "out"))
    job = submit(platform, "cohort-half", work, "python", "-m", "jobs.run_cohort", *words)
    assert (job.code, job.kept["status"], job.kept["driver_exit_code"]) == (1, "FAILED", 1), job.said
    states = {r["id"]: r["state"] for r in pq.read_table(here / "out" / "slides.parquet").to_pylist()}
    assert states == {"S": "succeeded", "H": "failed"}


def test_a_callable_over_tiles_as_a_ray_job_scores_every_slide_but_the_bad_one(platform: Platform, work: Path) -> None:
    here = work.parent
    (work / "redness_of_tiles.py").write_text(MODEL)
    rows = [f"{here}/s0.svs,one", f"{here}/half.svs,two"]
    (work / "slides.csv").write_text("\n".join(["slide,name", *rows]) + "\n")
    words = (
        "python", "-m", "jobs.infer_tiles", "--slides", "slides.csv", "--model", "redness_of_tiles:Redness", "--out",
        str(here / "out"), "--size", "256", "--tissue", "--readers", "1", "--memory-mib", "64",
    )  # fmt: skip
    job = submit(platform, "tiles", work, *words)
    assert (job.code, job.kept["status"], job.kept["driver_exit_code"]) == (1, "FAILED", 1), job.said
    told = job.document
    assert (told["done"], list(told["errors"])) == (["one"], ["two"]), job.said
    table = pq.read_table(here / "out" / "one.parquet")
    assert table.num_rows == told["tiles"] > 0
    assert {"slide", "level", "x", "y", "mpp", "score", "embedding"} <= set(table.column_names)
    assert len(json.loads((here / "out" / "one.geojson").read_text())["features"]) == table.num_rows
