"""What a job that has no node yet says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from api.routes.jobs import waits_because
from mhs_ray.domain.capacity import Capacity
from mhs_ray.domain.failures import Failure, FailureCode
from mhs_ray.domain.states import JobState
from tests.unit.api.conftest import Lab

LOST = Failure(FailureCode.NODE_LOST, "the worker process or its node died", "wait")


def _nobody_asks() -> Mapping[str, Capacity]:
    raise AssertionError("only a job that waits for a node is worth a question to the autoscaler")


@pytest.mark.parametrize("state", [s for s in JobState if s is not JobState.WAITING])
def test_only_a_job_that_waits_for_a_node_asks_the_autoscaler(lab: Lab, state: JobState) -> None:
    job = replace(lab.world.jobs.find(lab.world.queued(lab.id)), state=state)
    assert waits_because(job, _nobody_asks) is None


def test_a_waiting_job_tells_what_there_is_of_its_type(lab: Lab) -> None:
    job = replace(lab.world.jobs.find(lab.world.queued(lab.id)), state=JobState.WAITING)
    known = {"g4dn.xlarge": Capacity(nodes=2), "g5.2xlarge": Capacity(starting=1)}
    assert waits_because(job, lambda: known) == "all 2 g4dn.xlarge nodes are busy"
    assert waits_because(job, dict) is None  # the autoscaler does not answer: nothing is made up


def test_a_job_between_two_attempts_tells_what_ended_the_last_one(lab: Lab) -> None:
    job = replace(lab.world.jobs.find(lab.world.queued(lab.id)), failure=LOST)
    assert str(waits_because(job, _nobody_asks)).endswith("the worker process or its node died")


def test_the_api_shows_it(lab: Lab) -> None:
    shown = lab.http.get(f"/v1/jobs/{lab.world.queued(lab.id)}").json()
    assert shown["waits_because"] is None
