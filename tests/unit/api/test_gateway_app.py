"""The gateway that `mhs test` serves is the API's own, whatever its routes come to need."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from starlette.testclient import TestClient

from api.gateway_app import build
from mhs_ray.auth.tokens import AttemptIdentity
from mhs_ray.domain.states import JobEvent
from tests.core_fixtures import core_in, world_of


def test_an_attempt_posts_and_reads_with_its_token(tmp_path: Path) -> None:
    with core_in(tmp_path / "home") as core:
        world = world_of(core)
        job = world.jobs.find(world.queued(world.company()))
        world.claim()
        world.jobs.transition(job.id, JobEvent.PLACED, attempt=1, node="here")
        token = core.tokens.for_attempt(AttemptIdentity(job.company_id, job.task_number, job.id, 1), timedelta(hours=1))
        client = TestClient(build(core), headers={"Authorization": f"Bearer {token}"})
        path = f"/api/v3/external/results/{job.task_number}"
        bad = client.post(path, json={"scanResults": [{"scanId": str(job.scan_number), "results": {"summary": 7}}]})
        assert bad.status_code == 422
        assert bad.json()["errors"][0]["path"] == "$.scanResults[0].results.summary"
        good = client.post(path, json={"scanResults": [{"scanId": str(job.scan_number), "results": {}}]})
        assert (good.status_code, good.json()) == (201, None)
        assert client.patch(f"/api/v3/external/case/{job.task_number}", json={}).status_code == 204
        assert len(client.get(f"/api/v3/external/case_evaluations/{job.task_number}").json()) == 1
        assert client.post("/api/v3/token", data={"client_id": "no", "client_secret": "body"}).status_code == 401
        assert client.get("/v1/jobs").status_code == 404
