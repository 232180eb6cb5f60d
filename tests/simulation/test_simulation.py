"""The dispatcher under random fault schedules on a virtual clock (`make chaos` runs many more, and a whole site)."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mhs_ray.domain import steps
from mhs_ray.domain.states import JobState
from mhs_ray.store.sql.transitions import Change
from tests.simulation.simulate import Plan, Simulation, large, many
from tests.simulation.stores import MemoryJobs, MemoryResults

RATES = st.sampled_from([0.0, 0.01, 0.05, 0.2])
PLANS = st.builds(
    Plan,
    jobs=st.integers(1, 25), nodes=st.integers(1, 8), companies=st.integers(1, 3), max_waiting=st.integers(1, 8),
    crash=st.sampled_from([0.0, 0.005, 0.05]), down=RATES, lost=RATES, twice=RATES, late=RATES, worker_deaths=RATES,
    splits=RATES, platform=RATES, node_losses_h=st.sampled_from([0.0, 10.0, 60.0]), cancels=RATES,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(plan=PLANS, seed=st.integers(0, 2**32))
def test_whatever_fails_every_job_ends_once_with_at_most_one_result(plan: Plan, seed: int) -> None:
    Simulation(plan, seed).run()


def test_hundreds_of_schedules_with_every_kind_of_fault_lose_nothing() -> None:
    done = many(150, seed=1)
    assert done["ended"] == done["accepted"]
    assert set(done["faults"]) == {
        "cancel", "database down", "dispatcher crash", "message late", "message lost", "message twice",
        "network split", "node loss", "worker death",
    }  # fmt: skip


def test_a_site_works_its_queue_off() -> None:
    done = large(seed=1, jobs=2_000, nodes=100)
    assert done["ended"] == 2_000


def test_without_faults_every_job_has_one_attempt() -> None:
    simulation = Simulation(Plan(jobs=40, nodes=4), seed=3)
    simulation.run()
    assert {j.attempt for j in simulation.jobs.rows.values()} == {1}


# ------------------------------------------------------------ the simulation finds what it is for

HARD = Plan(
    jobs=40, nodes=6, splits=0.4, lost=0.2, late=0.3, twice=0.3, node_losses_h=60, crash=0.01, worker_deaths=0.2
)


def _breaks(seeds: range = range(30)) -> bool:
    for seed in seeds:
        try:
            Simulation(HARD, seed).run(limit_s=40 * 3600)
        except Exception:
            return True
    return False


def test_it_notices_a_gateway_that_takes_stale_results() -> None:
    def post(self: Any, job_id: int, attempt: int) -> bool:
        return self.taken.setdefault(job_id, attempt) == attempt

    with patch.object(MemoryResults, "post", post):
        assert _breaks()


def test_it_notices_transitions_without_fencing() -> None:
    real = steps.step

    def unfenced(job: Any, event: Any, *, attempt: int | None = None, **kwargs: Any) -> Any:
        return real(job, event, attempt=None, **kwargs)

    with patch("tests.simulation.stores.step", unfenced):
        assert _breaks()


def test_it_notices_a_lost_job() -> None:
    real = MemoryJobs.transition

    def forgetful(self: MemoryJobs, job_id: int, event: Any, **kwargs: Any) -> Change:
        change = real(self, job_id, event, **kwargs)
        if change.changed and change.after is JobState.QUEUED:
            self._again.clear()  # the queue forgets whom it should try again
        return change

    with patch.object(MemoryJobs, "transition", forgetful):
        assert _breaks()


def test_it_notices_a_cap_that_does_not_hold() -> None:
    real = MemoryJobs.claim

    def greedy(self: MemoryJobs, limit: int, waiting_limit: int, now: datetime, **how: Any) -> Any:
        caps, self.caps = self.caps, dict.fromkeys(self.caps)
        try:
            return real(self, limit, waiting_limit, now, **how)
        finally:
            self.caps = caps

    with patch.object(MemoryJobs, "claim", greedy):
        assert _breaks()


def test_a_schedule_is_the_same_each_time() -> None:
    plan = Plan.random(random.Random(11))
    runs = [Simulation(plan, 11).run() for _ in range(2)]
    assert runs[0] == runs[1]
    assert Counter(runs[0]["faults"]) == Counter(runs[1]["faults"])
