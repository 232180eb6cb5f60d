"""The rows that the simulation keeps in memory make the same steps as those in SQL."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mhs_ray.domain.errors import MhsError
from mhs_ray.domain.failures import Failure, FailureCode
from mhs_ray.domain.models import Priority
from mhs_ray.domain.states import JobEvent
from mhs_ray.store.sql.tasks import PRIORITY_RANK
from tests.simulation.stores import MemoryJob, MemoryJobs
from tests.store_fixtures import World

LOST = Failure(FailureCode.NODE_LOST, "lost", "wait")
EXIT = Failure(FailureCode.EXIT_CODE, "exit 1", "mend it", "", 1)
EVENTS = sorted(set(JobEvent) - {JobEvent.DISPATCHED, JobEvent.EXPIRED})
# Mostly what jobs go through, so that they get far.
WEIGHTS = [4 if e in (JobEvent.PLACED, JobEvent.STARTED, JobEvent.EXITED, JobEvent.RETRIED) else 1 for e in EVENTS]


def _outcome(call: Any) -> Any:
    try:
        return call()
    except MhsError as error:
        return type(error)


@pytest.mark.parametrize("seed", range(3))
def test_a_random_life_of_a_queue_is_the_same_in_memory_and_in_sql(world: World, seed: int) -> None:
    rng = random.Random(seed)
    companies = {world.company(max_active_jobs=cap): cap for cap in (None, 2)}
    algorithms = {c: world.algorithm(c) for c in companies}
    memory = MemoryJobs(companies, lambda: datetime.now(UTC))
    for _ in range(150):
        match rng.choice(["submit", "claim", "event", "event", "event", "event"]):
            case "submit":
                company, priority = rng.choice(list(companies)), rng.choice(list(Priority))
                job_id = world.queued(company, algorithms[company], priority)
                past = datetime.now(UTC) - timedelta(hours=1)
                memory.add(MemoryJob(job_id, company, PRIORITY_RANK[priority], past, past))
            case "claim":
                limit, now = rng.randint(0, 4), datetime.now(UTC)
                ours = [j.id for j in memory.claim(limit, 6, now)]
                assert [j.id for j in world.jobs.claim(limit, 6, now)] == ours
            case _ if memory.rows:
                job = memory.rows[rng.choice(list(memory.rows))]
                event = rng.choices(EVENTS, WEIGHTS)[0]
                values: dict[str, Any] = {}
                if event is not JobEvent.CANCELLED:
                    values["attempt"] = max(0, job.attempt - rng.choice([0, 0, 0, 1]))
                if event in (JobEvent.RETRIED, JobEvent.FAILED):
                    values |= {"failure": rng.choice([LOST, EXIT]), "retry_in_s": rng.choice([0, 3600])}
                in_sql = _outcome(lambda: world.jobs.transition(job.id, event, **values))  # noqa: B023
                assert _outcome(lambda: memory.transition(job.id, event, **values)) == in_sql  # noqa: B023
    for job in memory.rows.values():
        row = world.jobs.row(job.id)
        assert (job.state, job.attempt, job.platform_failures, job.model_failures) == (
            row.state, row.attempt, row.platform_failures, row.model_failures,
        )  # fmt: skip
        assert (job.started_at is None, job.ended_at is None) == (row.started_at is None, row.ended_at is None)
        assert world.jobs.find(job.id).failure == job.failure
