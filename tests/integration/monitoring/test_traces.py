"""One trace per job, from submission to delivery, told by three processes that share nothing but the job's id."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from mhs_ray.domain.failures import Failure, FailureCode
from mhs_ray.domain.sections import TelemetrySettings
from mhs_ray.domain.states import JobEvent
from mhs_ray.services.core import build_courier
from mhs_ray.store.sql import tables as t
from mhs_ray.telemetry.traces import Traces, open_traces
from tests.api_fixtures import Server, api_server
from tests.integration.monitoring.otlp import Collector, Seen, collector
from tests.techcyte_server import FakeTechcyte, fake_techcyte

LOST = Failure(FailureCode.NODE_LOST, "a cause with a url-s3cret", "mend")


@pytest.fixture
def collected() -> Iterator[Collector]:
    with collector() as found:
        yield found


@pytest.fixture
def techcyte() -> Iterator[FakeTechcyte]:
    with fake_techcyte() as found:
        yield found


@pytest.fixture
def server(tmp_path: Path, collected: Collector, techcyte: FakeTechcyte) -> Iterator[Server]:
    telemetry = {"otlp_endpoint": collected.url, "otlp_token": "otlp-s3cret"}
    with api_server(tmp_path, techcyte={"base_url": techcyte.url}, telemetry=telemetry) as found:
        yield found


def _run(server: Server) -> int:
    """Take a Techcyte job through a lost attempt and a good one, and deliver its result; return its id."""
    core, world = server.core, server.world
    company = world.company("North Patients' Lab")
    algorithm = world.algorithm(company)
    submission = world.submission(
        company, algorithm, world.scan(company, name="patient-s3cret.svs"), origin="techcyte", number=185714,
        case_number=4711, techcyte_jwt="jwt-s3cret",
    )  # fmt: skip
    [job_id] = core.tasks.submit(submission).job_ids
    for attempt, ending in ((1, JobEvent.RETRIED), (2, JobEvent.SUCCEEDED)):
        assert [j.id for j in world.claim()] == [job_id]
        world.jobs.transition(job_id, JobEvent.PLACED, attempt=attempt, node="gpu-1")
        world.jobs.transition(job_id, JobEvent.STARTED, attempt=attempt)
        if ending is JobEvent.RETRIED:
            world.jobs.transition(job_id, ending, attempt=attempt, failure=LOST, retry_in_s=0)
            continue
        job = world.jobs.find(job_id)
        body = {"scanResults": [{"scanId": str(job.scan_number), "results": {"note": "finding-s3cret"}}]}
        with server.container(job) as model:
            assert model.post(f"/api/v3/external/results/{job.task_number}", json=body).status_code == 201
        world.jobs.transition(job_id, JobEvent.EXITED, attempt=attempt, resources={"slide_cached": True})
        world.jobs.transition(job_id, ending, attempt=attempt)
    return job_id


def _deliver(server: Server, traces: Traces) -> None:
    courier = build_courier(server.core, traces.delivered)
    assert courier is not None
    courier.start()
    end = time.monotonic() + 20
    while True:
        with server.core.db.read() as conn:
            states = list(conn.execute(sa.select(t.deliveries.c.state)).scalars())
        if states and set(states) == {"delivered"}:
            break
        assert time.monotonic() < end, states
        time.sleep(0.05)
    courier.close()


def test_a_job_is_one_trace_from_submission_to_delivery(server: Server, collected: Collector, tmp_path: Path) -> None:
    job_id = _run(server)
    traces = open_traces(server.core.settings.telemetry, server.core.keys.platform, "dispatcher", server.core.db)
    assert traces is not None
    assert traces.look() == 2
    assert traces.look() == 0, "nothing is told twice"
    _deliver(server, traces)
    traces.close()
    end = time.monotonic() + 20
    while not any(s.name == "results POST" for s in collected.spans.values()):
        assert time.monotonic() < end, "the API sends in batches, every 5 s"
        time.sleep(0.1)

    [trace] = {s.trace for s in collected.spans.values()}
    found = collected.by_name(trace)
    root = found[f"job {job_id}"]
    assert root.parent == ""
    assert root.attributes["mhs.outcome"] == "succeeded"

    def parent(name: str) -> str:
        return collected.spans[found[name].parent].name

    for name, above in {
        "submission": f"job {job_id}", "attempt 1": f"job {job_id}", "attempt 2": f"job {job_id}",
        "delivery": f"job {job_id}", "results POST": "run",
    }.items():  # fmt: skip
        assert parent(name) == above
    for number in (1, 2):
        phases = [s for s in collected.spans.values() if s.parent == found[f"attempt {number}"].id]
        assert sorted(p.name for p in phases) == ["placement", "prepare", "queue", "run"]
        assert sum(p.seconds for p in phases) <= found[f"attempt {number}"].seconds + 0.01
    assert found["attempt 1"].failed
    assert found["attempt 1"].attributes["mhs.failure.code"] == "node-lost"
    assert not found["attempt 2"].failed
    assert found["attempt 2"].attributes["mhs.slide_cached"] is True
    post: Seen = found["results POST"]
    assert collected.spans[post.parent].parent == found["attempt 2"].id, "it is of the attempt that posted"
    assert {s.service for s in collected.spans.values()} == {"mhs-dispatcher", "mhs-api"}
    assert collected.tokens == {"Bearer otlp-s3cret"}
    # Nothing of a patient, a slide, a person or a secret.
    sent = b" ".join(collected.raw)
    scan = str(server.world.jobs.find(job_id).scan_number).encode()
    for private in (b"s3cret", b"185714", b"4711", b"North", scan):
        assert private not in sent.replace(b"otlp-s3cret", b""), private


def test_a_job_that_is_cancelled_in_the_queue_or_before_its_container_ran_has_the_spans_that_it_reached(
    server: Server, collected: Collector
) -> None:
    world = server.world
    job_id = world.queued(world.company())
    world.claim()
    world.jobs.transition(job_id, JobEvent.PLACED, attempt=1, node="gpu-1")
    world.jobs.transition(job_id, JobEvent.CANCELLED)
    traces = open_traces(server.core.settings.telemetry, "p", "dispatcher", server.core.db)
    assert traces is not None
    traces.look()
    traces.close()
    assert sorted(s.name for s in collected.spans.values()) == sorted(
        [f"job {job_id}", "submission", "attempt 1", "queue", "placement", "prepare"]
    )


def test_without_a_collector_nothing_is_traced_and_a_dead_one_holds_nothing_up(server: Server) -> None:
    core = server.core
    assert open_traces(TelemetrySettings(), "p", "api", core.db) is None
    dead = TelemetrySettings(
        otlp_endpoint="http://127.0.0.1:9", otlp_token=SecretStr("x"), otlp_timeout=timedelta(seconds=1)
    )
    traces = open_traces(dead, "p", "api", core.db)
    assert traces is not None
    began = datetime.now(UTC)
    with traces.posting(1, 1):
        pass
    assert datetime.now(UTC) - began < timedelta(seconds=1)
    with pytest.raises(ValueError, match="mine"), traces.posting(1, 1):
        raise ValueError("mine")
    traces.close()
