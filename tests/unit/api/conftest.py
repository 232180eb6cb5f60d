"""One server for all tests of the API; every test has a company of its own on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from mhs_ray.domain.models import Job, Role
from tests.api_fixtures import Server, api_server
from tests.store_fixtures import World


@dataclass
class Lab:
    """A company and its people."""

    server: Server
    id: int
    http: httpx.Client

    @property
    def world(self) -> World:
        return self.server.world

    def viewer(self) -> httpx.Client:
        return self.server.user(self.id, Role.VIEWER, "Vera")

    def job(self, **task: Any) -> Job:
        """Return a job whose attempt runs."""
        job_id = self.world.submit(self.id, **task).job_ids[0]
        return self.run(job_id)

    def run(self, job_id: int) -> Job:
        from mhs_ray.domain.states import JobEvent

        while self.world.jobs.find(job_id).attempt == 0 or self.world.jobs.find(job_id).state == "queued":
            assert self.world.claim(), "the job is not taken"
        job = self.world.jobs.find(job_id)
        self.world.jobs.transition(job_id, JobEvent.PLACED, attempt=job.attempt, node="node-a")
        self.world.jobs.transition(job_id, JobEvent.STARTED, attempt=job.attempt)
        return self.world.jobs.find(job_id)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with api_server(tmp_path_factory.mktemp("home"), slides={"allow_private": True}) as found:
        yield found


@pytest.fixture
def lab(server: Server) -> Iterator[Lab]:
    company = server.world.company()
    with server.user(company) as http:
        yield Lab(server, company, http)


@pytest.fixture
def other_lab(server: Server) -> Iterator[Lab]:
    company = server.world.company()
    with server.user(company, name="Eve") as http:
        yield Lab(server, company, http)


def problem(answer: httpx.Response, status: int, kind: str) -> list[str]:
    """Check that an answer is this problem document; return the paths of its faults."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["type"] == f"/problems/{kind}"
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    assert all(f["message"] for f in body["errors"])
    return [f["path"] for f in body["errors"]]
