"""`mhs compare` and `mhs replay` as clients of the API, as far as they need no container engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mhs_ray.auth.clients import hash_secret
from mhs_ray.cli.main import app
from mhs_ray.domain.models import Job, Role
from mhs_ray.domain.states import JobEvent
from tests.unit.api.conftest import Lab


@pytest.fixture(autouse=True)
def signed_in(lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    client_id = f"mhs-cli-{lab.id}"
    lab.server.core.clients.add(client_id, lab.id, "Ada", Role.LAB_USER, hash_secret("s3cret-of-ada"))
    values = {"URL": lab.server.url, "CLIENT_ID": client_id, "CLIENT_SECRET": "s3cret-of-ada", "HOME": str(tmp_path)}
    for name, value in values.items():
        monkeypatch.setenv(f"MHS_{name}", value)
    monkeypatch.chdir(tmp_path)


def mhs(*words: str) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(app, [*words, "--json"])
    return done.exit_code, json.loads(done.stdout.strip().splitlines()[-1])


def ended(lab: Lab, cells: int) -> Job:
    """Return a job that posted `cells` points and succeeded."""
    job = lab.job()
    points = [
        {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [100 * i, 50]},
            "properties": {"annotation_type": "cell"},
        }
        for i in range(cells)
    ]
    scan = {"scanId": str(job.scan_number), "geojson": {"type": "FeatureCollection", "features": points}}
    with lab.server.container(job) as container:
        answer = container.post(f"/api/v3/external/results/{job.task_number}", json={"scanResults": [scan]})
    assert answer.status_code == 201, answer.text
    for event in (JobEvent.EXITED, JobEvent.SUCCEEDED):
        lab.world.jobs.transition(job.id, event, attempt=job.attempt)
    return job


def test_ended_jobs_are_compared(lab: Lab, tmp_path: Path) -> None:
    one, same, fewer = ended(lab, 4), ended(lab, 4), ended(lab, 2)
    code, found = mhs("compare", f"jobs:{one.id}", f"jobs:{same.id}", "--identical")
    assert (code, found["faults"]) == (0, [])
    code, found = mhs("compare", f"task:{one.task_number}", f"jobs:{fewer.id}", "--max-count-change", "10")
    assert code == 9
    assert found["slides"][0]["count"] == {"a": 4, "b": 2, "change": -50.0}
    assert (tmp_path / "mhs-compare-output" / "slide-1.png").exists()  # on an empty ground: the slide is elsewhere


def test_a_job_that_runs_is_neither_compared_nor_replayed(lab: Lab) -> None:
    job = lab.job()
    for words in (("compare", f"jobs:{job.id}", f"jobs:{job.id}"), ("replay", str(job.id))):
        code, found = mhs(*words)
        assert code == 1
        assert found["type"] == "/problems/conflict"


def test_a_replay_asks_for_what_the_platform_does_not_give(lab: Lab) -> None:
    job = ended(lab, 1)
    code, found = mhs("replay", str(job.id))
    assert (code, [e["path"] for e in found["errors"]]) == (1, ["--env"])
    assert "API_KEY is secret" in found["errors"][0]["message"]
    code, found = mhs("replay", str(job.id), "--env", "API_KEY=mine-s3cret")
    assert (code, [e["path"] for e in found["errors"]]) == (1, ["--scan"])
    assert "mine-s3cret" not in json.dumps(found)
