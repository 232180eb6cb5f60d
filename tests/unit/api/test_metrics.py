"""/metrics: who may read it, what it tells, and that nobody's names or ids are in it."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from api.http_watch import HttpWatch
from mhs_ray.domain.failures import Failure, FailureCode
from mhs_ray.domain.models import Role
from mhs_ray.domain.states import JobEvent
from tests.api_fixtures import Server, api_server
from tests.store_fixtures import World
from tests.unit.api.conftest import Lab, problem

Sample = tuple[str, frozenset[tuple[str, str]]]


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Server]:
    with api_server(tmp_path) as server:
        yield server


def scrape(server: Server) -> dict[Sample, float]:
    token = server.core.keys.metrics
    answer = httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        (s.name, frozenset(s.labels.items())): s.value
        for family in text_string_to_metric_families(answer.text)
        for s in family.samples
    }


def value(found: dict[Sample, float], name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def end(world: World, company: int, event: JobEvent, failure: Failure | None = None, cached: bool = True) -> None:
    job = world.running(company)
    if event is not JobEvent.CANCELLED:
        world.jobs.transition(job.id, JobEvent.EXITED, attempt=1, resources={"slide_cached": cached})
    world.jobs.transition(
        job.id, event, attempt=None if event is JobEvent.CANCELLED else 1, failure=failure, retry_in_s=999
    )


def test_only_operators_and_prometheus_own_token_read_them(lab: Lab) -> None:
    url = f"{lab.server.url}/metrics"
    problem(httpx.get(url), 401, "unauthenticated")
    problem(httpx.get(url, headers={"Authorization": "Bearer x"}), 401, "unauthenticated")
    problem(httpx.get(url, headers={"Authorization": "Bearer"}), 401, "unauthenticated")
    problem(lab.http.get("/metrics"), 403, "forbidden")
    with lab.viewer() as viewer:
        problem(viewer.get("/metrics"), 403, "forbidden")
    with lab.server.container(lab.job()) as model:
        problem(model.get("/metrics"), 403, "forbidden")
    with lab.server.user(lab.id, Role.OPERATOR, "Oda") as operator:
        assert operator.get("/metrics").status_code == 200


def test_they_tell_what_the_database_knows(platform: Server) -> None:
    world = platform.world
    company = world.company()
    world.queued(company)
    end(world, company, JobEvent.SUCCEEDED)
    end(world, company, JobEvent.FAILED, Failure(FailureCode.EXIT_CODE, "x", "y"), cached=False)
    end(world, company, JobEvent.RETRIED, Failure(FailureCode.NODE_LOST, "x", "y"))
    end(world, company, JobEvent.CANCELLED)
    world.running(company)
    found = scrape(platform)
    kind = {"instance_type": "g4dn.xlarge"}
    assert value(found, "mhs_jobs", state="queued", **kind) == 1, "what is tried again in 999 s waits as well"
    assert value(found, "mhs_jobs", state="running", **kind) == 1
    assert value(found, "mhs_jobs", state="waiting for a node", **kind) == 1
    for outcome in ("succeeded", "failed", "retried", "cancelled"):
        assert value(found, "mhs_attempts_total", outcome=outcome, **kind) == 1
    assert value(found, "mhs_attempts_total", outcome="timed out", **kind) == 0
    assert value(found, "mhs_attempt_failures_total", code="exit-code", **{"class": "model"}) == 1
    assert value(found, "mhs_attempt_failures_total", code="node-lost", **{"class": "platform"}) == 1
    assert value(found, "mhs_slide_cache_requests_total", result="hit") == 2
    assert value(found, "mhs_slide_cache_requests_total", result="miss") == 1
    assert value(found, "mhs_attempt_run_seconds_count", **kind) == 4
    assert value(found, "mhs_attempt_run_seconds_bucket", le="+Inf", **kind) == 4
    assert value(found, "mhs_part_up", part="database") == 1
    assert value(found, "mhs_dispatcher_leader") == 0, "nobody dispatches here"
    assert value(found, "mhs_intake_open") == 1
    assert value(found, "mhs_credential_expiry_timestamp_seconds", credential="registry-token") > (
        datetime.now(UTC).timestamp()
    )
    again = scrape(platform)
    assert {k: v for k, v in again.items() if k[0].endswith("_total")} == {
        k: v for k, v in found.items() if k[0].endswith("_total")
    }, "a second look counts nothing twice"


def test_no_label_names_a_company_a_person_or_an_id(platform: Server) -> None:
    world = platform.world
    company = world.company("Secret Lab")
    for _ in range(30):
        end(world, company, JobEvent.SUCCEEDED)
    found = scrape(platform)
    text = " ".join(f"{name} {dict(labels)}" for name, labels in found)
    assert "Secret" not in text
    assert "ann" not in re.findall(r"\w+", text)
    assert {name for _, labels in found for name, _ in labels} <= {
        "version", "part", "instance_type", "state", "outcome", "class", "code", "result", "le", "status", "volume",
        "credential",
    }  # fmt: skip
    assert len(found) < 1000


def test_they_tell_prometheus_where_rays_nodes_export_theirs(platform: Server) -> None:
    url = f"{platform.url}/metrics/nodes"
    problem(httpx.get(url), 401, "unauthenticated")
    common = {"address": "10.0.0.7", "metrics_port": 8085}
    platform.nodes[:] = [
        {"alive": True, "instance_type": "g5.2xlarge", **common},
        {"alive": False, "instance_type": "g5.2xlarge", **common},
        {"alive": True, "instance_type": "p9.huge", "address": "10.0.0.8", "metrics_port": 0},
        {"alive": True, "instance_type": "", "address": "10.0.0.9", "metrics_port": 1},
    ]
    answer = httpx.get(url, headers={"Authorization": f"Bearer {platform.core.keys.metrics}"})
    assert [group["targets"] for group in answer.json()] == [["10.0.0.7:8085"], ["10.0.0.9:1"]]
    found = scrape(platform)
    assert value(found, "mhs_nodes", instance_type="g5.2xlarge", state="alive") == 1
    assert value(found, "mhs_nodes", instance_type="g5.2xlarge", state="dead") == 1
    assert value(found, "mhs_nodes", instance_type="other", state="alive") == 1
    assert value(found, "mhs_nodes", instance_type="none", state="alive") == 1


def test_while_the_database_is_away_they_say_so_and_make_nothing_up(platform: Server) -> None:
    for thread in threading.enumerate():
        if thread.name == "metrics":  # what it holds of the database is not ours to take away
            thread.join(20)
    platform.core.db.engine.dispose()
    database = platform.core.settings.home / "mhs.db"
    content = database.read_bytes()
    for name in ("mhs.db-wal", "mhs.db-shm"):
        database.with_name(name).unlink(missing_ok=True)
    database.write_bytes(b"no database" * 1000)
    found = scrape(platform)
    assert value(found, "mhs_part_up", part="database") == 0
    assert not [name for name, _ in found if name.startswith(("mhs_jobs", "mhs_attempts"))]
    platform.core.db.engine.dispose()
    database.write_bytes(content)
    assert value(scrape(platform), "mhs_part_up", part="database") == 1


def test_requests_are_counted_by_route_template_and_status_class() -> None:
    from fastapi import FastAPI

    seen: list[tuple[str, str, str]] = []
    app = FastAPI()
    app.add_middleware(HttpWatch)
    app.state.observe_http = lambda route, method, status, took: seen.append((route, method, status))

    @app.get("/v1/jobs/{job_id}")
    async def job(job_id: int) -> int:
        return job_id

    http = TestClient(app)
    http.get("/v1/jobs/42?signature=s3cret")
    http.get("/v1/jobs/not-a-number")
    http.get("/nowhere/s3cret")
    http.request("BREW", "/v1/jobs/1")
    assert seen == [
        ("/v1/jobs/{job_id}", "GET", "2xx"), ("/v1/jobs/{job_id}", "GET", "4xx"), ("none", "GET", "4xx"),
        ("/v1/jobs/{job_id}", "other", "4xx"),
    ]  # fmt: skip
