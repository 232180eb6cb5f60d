"""Every page of the documentation and its notebooks, run as they are written."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from mhs_ray.client import Client
from tests.docs_pages import DOCS, blocks, run_pages
from tests.e2e.platform.docs_runner import Reader
from tests.e2e.platform.docs_setting import SETTINGS
from tests.e2e.platform.harness import Platform

pytestmark = pytest.mark.timeout(600)
TUTORIAL = DOCS / "tutorial.md"
NOTEBOOKS = sorted(DOCS.rglob("*.ipynb"))


@pytest.fixture(scope="session")
def reader(platform: Platform, folder: Path, zoo: int, request: pytest.FixtureRequest) -> Reader:
    """Somebody who has done the tutorial. zoo: the platform has this image, too."""
    assert request.config.cache is not None
    cache = platform.home / "cache"
    if not cache.exists():  # the base image's packages are fetched once, for every test that needs them
        cache.symlink_to(request.config.cache.mkdir("mhs-base-image"))
    place = folder / "reader"
    place.mkdir()
    place.chmod(0o755)
    found = Reader(platform, place)
    found.read(TUTORIAL)
    found.docker("tag", "my-docker-image:latest", "tutorial-model:latest")
    return found


def test_the_tutorial_leads_from_nothing_to_results(reader: Reader, platform: Platform) -> None:
    shell = [b for b in blocks(TUTORIAL) if b.is_shell and b.is_run]
    assert len(reader.ran) >= len(shell)
    [algorithm] = platform.get("/v1/algorithms", name="My algorithm")["items"]
    [job] = platform.get("/v1/jobs", algorithm="My algorithm", state="succeeded")["items"]
    assert job["algorithm_name"] == algorithm["name"]
    features = json.loads((reader.folder / "places.geojson").read_text())["features"]
    assert len(features) == reader.names["places"].num_rows > 0
    assert {f["properties"]["annotation_type"] for f in features} == {"tissue"}
    assert f"Found {len(features)} places above 0.2" in platform.lines(job["id"])


@pytest.mark.parametrize("page", [p for p in run_pages() if p != TUTORIAL], ids=lambda p: p.stem)
def test_a_page_does_what_it_says(reader: Reader, page: Path) -> None:
    before = len(reader.ran)
    reader.begin(page)
    SETTINGS.get(page.stem, lambda _: None)(reader)
    reader.read(page)
    assert len(reader.ran) > before
    assert reader.platform.ray("/api/version").status_code == 200, "a page spoilt the platform for what comes after it"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs_from_its_first_cell_to_its_last(reader: Reader, path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    with reader.settled():
        NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")


def test_the_clients_calls_fit_the_real_platform(reader: Reader) -> None:
    with reader.settled(), Client() as mhs:
        job = next(mhs.jobs(1, algorithm="My algorithm", state=["succeeded"]))
        assert job["task_id"] not in {d["task_id"] for d in mhs.deliveries()}, "it did not come from Techcyte"
        assert [e["event"] for e in mhs.job_events(job["id"])][-1] == "succeeded"
        [row] = mhs.results_table(job_id=job["id"]).to_pylist()
        assert row["features"] == mhs.features(job_id=job["id"]).num_rows
        # A page ran the job again: the task has the results of both.
        assert mhs.features(task_id=job["task_id"])["job"].unique().to_pylist().count(job["id"]) == 1
        assert mhs.job_results(job["id"], geojson=False)["scanResults"][0]["geojson"] is None
        debug = reader.here / "debug.zip"
        with debug.open("wb") as out:
            assert mhs.save_debug_file(job["id"], out) == debug.stat().st_size > 0
