"""The dispatcher on a cluster in memory: what starts, how it ends, and that nothing is lost in a crash."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from mhs_ray.attempt.order import ContainerExit, Outcome
from mhs_ray.auth.tokens import AttemptIdentity
from mhs_ray.dispatch.dispatcher import AttemptKey, Dispatcher
from mhs_ray.domain.env import EnvVar
from mhs_ray.domain.failures import Failure, FailureCode
from mhs_ray.domain.models import Job
from mhs_ray.domain.states import JobEvent, JobState
from mhs_ray.services.core import Core
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.results import NewResult, Poster
from mhs_ray.testing import MemoryCluster, Phase
from tests.core_fixtures import core_in, world_of

S = JobState
PULL_FAILED = Failure(FailureCode.PULL_FAILED, "the registry does not answer", "wait")


def _exit(code: int = 0, **values: Any) -> Outcome:
    facts = {"oom_killed": False, "timed_out": False, "stopped": False, "log_tail": ("last words",), **values}
    return Outcome(ContainerExit(code, **facts), None, {"cpu_s": 2.5})


class Platform:
    """One dispatcher over one database and one cluster; `crash` makes a new one over the same."""

    def __init__(self, core: Core, gpus: dict[str, int]) -> None:
        self.core, self.world, self.cluster = core, world_of(core), MemoryCluster(gpus)
        self.dispatcher = Dispatcher(core, self.cluster)
        self.company = self.world.company("lab")
        self.algorithm = self.world.algorithm(self.company)

    def crash(self) -> None:
        self.dispatcher = Dispatcher(self.core, self.cluster)

    def submit(self, **container: Any) -> int:
        algorithm = self.algorithm
        if container:
            algorithm = self.world.algorithm(self.company, self.world.container(self.company, **container))
        return self.world.queued(self.company, algorithm)

    def running(self, **container: Any) -> AttemptKey:
        """Return a fresh job's attempt, with its container running."""
        job_id = self.submit(**container)
        assert self.dispatcher.dispatch() == 1
        ((placed),) = self.cluster.place(self.dispatcher)
        assert placed == (job_id, 1)
        self.dispatcher.started(placed)
        return placed

    def end(self, key: AttemptKey, outcome: Outcome) -> Job:
        self.cluster.end(key, outcome)
        self.cluster.collect(self.dispatcher)
        return self.job(key[0])

    def job(self, job_id: int) -> Job:
        return self.world.jobs.find(job_id)

    def post_results(self, key: AttemptKey) -> None:
        job = self.job(key[0])
        new = NewResult(job.scan_number, "d", {}, None, None, None, {}, None, 0)
        assert self.world.results.store(Poster(job.company_id, job.task_number, *key), None, [new]) == 1

    def make_due(self) -> None:
        """Let every backoff pass."""
        with self.core.db.write() as conn:
            conn.execute(sa.update(t.jobs).values(not_before=datetime.now(UTC) - timedelta(seconds=1)))

    def events(self, job_id: int) -> list[str]:
        return [str(e.event) for e in self.world.jobs.events(self.company, job_id)]


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    with core_in(tmp_path, cluster={"max_waiting": 3}) as core:
        yield Platform(core, {"g4dn.xlarge": 2})


# ------------------------------------------------------------ ends


def test_a_job_whose_container_posts_and_exits_with_0_succeeds(platform: Platform) -> None:
    key = platform.running()
    platform.post_results(key)
    job = platform.end(key, _exit())
    assert (job.state, job.node, job.resources) == (S.SUCCEEDED, "node-g4dn.xlarge", {"cpu_s": 2.5})
    assert platform.events(job.id) == ["submitted", "dispatched", "placed", "started", "exited", "succeeded"]
    assert platform.cluster.known == {}, "its GPU is free again"


@pytest.mark.parametrize(
    ("outcome", "state", "code"),
    [
        (_exit(), S.FAILED, FailureCode.NO_RESULTS),
        (_exit(1), S.FAILED, FailureCode.EXIT_CODE),
        (_exit(137, oom_killed=True), S.FAILED, FailureCode.OUT_OF_MEMORY),
        (_exit(143, timed_out=True), S.TIMED_OUT, FailureCode.TIME_LIMIT),
    ],
)
def test_a_models_failure_ends_the_job_with_its_card(
    platform: Platform, outcome: Outcome, state: JobState, code: FailureCode
) -> None:
    key = platform.running()
    job = platform.end(key, outcome)
    assert job.failure is not None
    assert (job.state, job.failure.code, job.failure.excerpt) == (state, code, "last words")
    assert platform.dispatcher.dispatch() == 0


def test_a_slide_that_cannot_be_read_is_not_tried_again(platform: Platform) -> None:
    platform.submit()
    platform.dispatcher.dispatch()
    (key,) = platform.cluster.place(platform.dispatcher)
    failure = Failure(FailureCode.SLIDE_EXPIRED, "the URL has expired", "submit again")
    job = platform.end(key, Outcome(None, failure, {}))
    assert (job.state, job.failure) == (S.FAILED, failure)
    assert "started" not in platform.events(job.id)


def test_a_model_that_asks_for_it_is_run_again(platform: Platform) -> None:
    key = platform.running(retry_exit_codes=[75], max_model_retries=1)
    assert platform.end(key, _exit(75)).state is S.QUEUED
    platform.make_due()
    platform.dispatcher.dispatch()
    (again,) = platform.cluster.place(platform.dispatcher)
    assert again == (key[0], 2)
    assert platform.end(again, _exit(75)).state is S.FAILED


def test_results_that_are_there_before_a_failure_are_named_and_nothing_runs_again(platform: Platform) -> None:
    key = platform.running()
    platform.post_results(key)
    platform.cluster.lose(key)
    platform.dispatcher.lost(key, "the node died")
    job = platform.job(key[0])
    assert job.state is S.FAILED
    assert job.failure is not None
    assert job.failure.cause == "the node died; the results that it had posted were kept"


def test_a_container_that_we_stopped_is_not_blamed_on_the_model(platform: Platform) -> None:
    key = platform.running()
    job = platform.end(key, _exit(143, stopped=True))
    assert job.state is S.QUEUED
    assert platform.world.jobs.row(job.id).model_failures == 0


# ------------------------------------------------------------ retries


def test_a_platform_failure_is_tried_again_after_a_pause_and_then_given_up(platform: Platform) -> None:
    job_id = platform.submit()
    for attempt in (1, 2, 3, 4):
        platform.make_due()
        assert platform.dispatcher.dispatch() == 1
        (key,) = platform.cluster.place(platform.dispatcher)
        assert key == (job_id, attempt)
        job = platform.end(key, Outcome(None, PULL_FAILED, {}))
        if attempt < 4:
            assert job.state is S.QUEUED
            assert platform.dispatcher.dispatch() == 0, "its pause is not over"
    assert (job.state, job.failure) == (S.FAILED, PULL_FAILED)
    due = [platform.events(job_id).count(e) for e in ("retried", "failed")]
    assert due == [3, 1]


def test_a_lost_node_costs_an_attempt_and_the_next_one_succeeds(platform: Platform) -> None:
    key = platform.running()
    platform.cluster.lose(key)
    platform.dispatcher.reconcile()
    assert platform.job(key[0]).state is S.QUEUED
    platform.make_due()
    platform.dispatcher.dispatch()
    (again,) = platform.cluster.place(platform.dispatcher)
    platform.post_results(again)
    assert platform.end(again, _exit()).state is S.SUCCEEDED


def test_the_end_of_an_attempt_that_was_given_up_is_ignored(platform: Platform) -> None:
    key = platform.running()
    platform.dispatcher.lost(key, "no word for long")
    for _ in range(2):
        platform.dispatcher.settle(key, _exit(1))
        platform.dispatcher.started(key)
        assert platform.job(key[0]).state is S.QUEUED
        assert platform.dispatcher.order(key, "node-b") is None
    platform.make_due()
    platform.dispatcher.dispatch()
    platform.dispatcher.settle(key, _exit(1))
    platform.dispatcher.started(key)
    assert platform.dispatcher.order(key, "node-b") is None
    job = platform.job(key[0])
    assert (job.state, job.attempt, job.node) == (S.WAITING, 2, None)


def test_settling_twice_changes_nothing(platform: Platform) -> None:
    key = platform.running()
    platform.dispatcher.settle(key, _exit(1))
    before = platform.job(key[0]), platform.events(key[0])
    platform.dispatcher.settle(key, _exit(0))
    platform.dispatcher.lost(key, "gone")
    assert (platform.job(key[0]), platform.events(key[0])) == before


# ------------------------------------------------------------ where it runs


def test_jobs_wait_for_a_gpu_and_start_in_their_order(platform: Platform) -> None:
    jobs = [platform.submit() for _ in range(5)]
    assert platform.dispatcher.dispatch() == 3, "no more wait than may: the autoscaler sees the rest later"
    assert platform.cluster.place(platform.dispatcher) == [(jobs[0], 1), (jobs[1], 1)]
    assert platform.dispatcher.dispatch() == 2
    assert platform.cluster.place(platform.dispatcher) == []
    platform.end((jobs[1], 1), _exit(1))
    assert platform.cluster.place(platform.dispatcher) == [(jobs[2], 1)]


def test_an_instance_type_that_the_cluster_lacks_fails_at_once_with_advice(platform: Platform) -> None:
    job_id = platform.submit(instance_type="g6e.2xlarge")
    other = platform.submit()
    platform.dispatcher.dispatch()
    job = platform.job(job_id)
    assert job.state is S.FAILED
    assert job.failure is not None
    assert job.failure.code is FailureCode.NO_SUCH_INSTANCE_TYPE
    assert "g6e.2xlarge" in job.failure.cause
    assert platform.cluster.attempts() == [(other, 1)]


def test_a_launch_that_fails_is_a_platform_failure_and_stops_no_other_job(platform: Platform) -> None:
    class Refusing(MemoryCluster):
        def launch(self, key: AttemptKey, label: str, instance_type: str, prefer: str | None = None) -> None:
            if key == (refused, 1):
                raise RuntimeError("no connection to the head")
            super().launch(key, label, instance_type)

    refused, other = platform.submit(), platform.submit()
    platform.cluster = Refusing({"g4dn.xlarge": 1})
    platform.crash()
    assert platform.dispatcher.dispatch() == 2
    assert platform.job(refused).state is S.QUEUED
    assert platform.cluster.attempts() == [(other, 1)]
    platform.make_due()
    assert platform.dispatcher.dispatch() == 1


def test_the_order_holds_what_the_job_was_made_with_and_a_token_for_this_attempt_only(platform: Platform) -> None:
    key = platform.running(env=[EnvVar("A", "1"), EnvVar("K", "k-s3cret", True)])
    order = platform.cluster.known[key].order
    assert order is not None
    assert (order.env, order.secrets) == ({"A": "1", "K": "k-s3cret"}, ("k-s3cret",))
    assert order.slide.urls == ("https://s.example.com/a?sig=url-s3cret",)
    job = platform.job(key[0])
    assert (order.task_number, order.scan_number, order.image.digest) == (
        job.task_number, job.scan_number, job.image_digest,
    )  # fmt: skip
    who = platform.core.tokens.verify(order.jwt_token)
    assert who == AttemptIdentity(job.company_id, job.task_number, job.id, 1)
    for secret in ("k-s3cret", "url-s3cret", order.jwt_token, order.pull.password):
        assert secret not in repr(order)
    assert platform.cluster.known[key].label == f"job {job.id} · scan {job.scan_number} · {job.container_name}"


# ------------------------------------------------------------ cancelling


def test_a_cancelled_job_never_starts_when_it_still_waits(platform: Platform) -> None:
    queued, waiting = platform.submit(), platform.submit()
    platform.world.jobs.transition(queued, JobEvent.CANCELLED)
    platform.dispatcher.dispatch()
    platform.world.jobs.transition(waiting, JobEvent.CANCELLED)
    assert platform.cluster.place(platform.dispatcher) == [], "its attempt asks for its order and gets none"
    assert platform.cluster.attempts() == []
    assert {platform.job(j).state for j in (queued, waiting)} == {S.CANCELLED}


def test_reconciling_removes_a_cancelled_attempt_that_waits_and_stops_one_that_runs(platform: Platform) -> None:
    running = platform.running()
    platform.running()
    waiting = platform.submit()
    platform.dispatcher.dispatch()
    for job_id in (running[0], waiting):
        platform.world.jobs.transition(job_id, JobEvent.CANCELLED)
    platform.dispatcher.reconcile()
    assert (waiting, 1) not in platform.cluster.attempts()
    assert platform.cluster.known[running].stop_asked
    job = platform.end(running, _exit(143, stopped=True))
    assert (job.state, job.failure) == (S.CANCELLED, None)


# ------------------------------------------------------------ crashes


def test_a_crash_between_claim_and_launch_is_mended(platform: Platform) -> None:
    job_id = platform.submit()
    platform.world.claim()
    platform.crash()
    platform.dispatcher.reconcile()
    assert platform.cluster.place(platform.dispatcher) == [(job_id, 1)]


def test_a_crash_after_the_launch_launches_nothing_twice(platform: Platform) -> None:
    job_id = platform.submit()
    platform.dispatcher.dispatch()
    platform.crash()
    platform.dispatcher.reconcile()
    platform.dispatcher.reconcile()
    assert platform.cluster.launches == [(job_id, 1)]
    assert platform.job(job_id).state is S.WAITING


def test_a_crash_while_jobs_run_leaves_them_running(platform: Platform) -> None:
    key = platform.running()
    platform.crash()
    platform.dispatcher.reconcile()
    assert platform.job(key[0]).state is S.RUNNING
    assert not platform.cluster.known[key].stop_asked
    platform.post_results(key)
    assert platform.end(key, _exit()).state is S.SUCCEEDED


def test_an_attempt_that_ended_while_the_dispatcher_was_away_is_taken_in(platform: Platform) -> None:
    key = platform.running()
    platform.cluster.end(key, _exit(3))
    platform.crash()
    platform.dispatcher.reconcile()
    assert platform.cluster.known[key].phase is Phase.ENDED, "not lost: its outcome waits"
    assert platform.job(key[0]).state is S.RUNNING
    platform.cluster.collect(platform.dispatcher)
    assert platform.job(key[0]).state is S.FAILED


@pytest.mark.parametrize("told", [(), (JobEvent.STARTED,), (JobEvent.STARTED, JobEvent.EXITED)])
def test_a_crash_in_the_middle_of_settling_is_made_good_by_settling_again(
    platform: Platform, told: tuple[JobEvent, ...]
) -> None:
    platform.submit()
    platform.dispatcher.dispatch()
    (key,) = platform.cluster.place(platform.dispatcher)
    for event in told:
        platform.world.jobs.transition(key[0], event, attempt=1)
    platform.crash()
    platform.post_results(key)
    job = platform.end(key, _exit())
    assert job.state is S.SUCCEEDED
    assert platform.events(job.id)[-3:] == ["started", "exited", "succeeded"]
    assert job.started_at is not None


def test_an_attempt_that_nobody_wants_is_stopped(platform: Platform) -> None:
    key = platform.running()
    platform.dispatcher.lost(key, "no word for long")  # it lives on behind a network split
    platform.make_due()
    platform.dispatcher.dispatch()
    platform.dispatcher.reconcile()
    assert platform.cluster.known[key].stop_asked
    assert not platform.cluster.known[(key[0], 2)].stop_asked


def test_an_attempt_that_vanished_after_its_job_was_settled_is_no_loss(platform: Platform) -> None:
    key = platform.running()
    platform.post_results(key)
    platform.dispatcher.settle(key, _exit())
    platform.cluster.lose(key)
    platform.dispatcher.reconcile()
    assert platform.job(key[0]).state is S.SUCCEEDED


def test_the_memory_cluster_holds_a_gpu_until_it_is_forgotten(platform: Platform) -> None:
    one = replace(platform.cluster, gpus={"g4dn.xlarge": 1}, known={}, launches=[])
    platform.cluster = one
    platform.crash()
    first, second = platform.submit(), platform.submit()
    platform.dispatcher.dispatch()
    assert one.place(platform.dispatcher) == [(first, 1)]
    one.end((first, 1), _exit(1))
    assert one.place(platform.dispatcher) == [], "ended, not forgotten"
    one.collect(platform.dispatcher)
    assert one.place(platform.dispatcher) == [(second, 1)]
    one.end((second, 1), _exit())
    with pytest.raises(AssertionError):
        one.end((second, 1), _exit())


def test_a_job_whose_node_is_taken_away_runs_again_however_often_and_its_late_end_counts_for_nothing(
    platform: Platform,
) -> None:
    key = platform.running()
    goes = datetime(2026, 5, 1, 12, 2, tzinfo=UTC)
    for attempt in range(1, 7):  # more often than a platform failure may come
        platform.dispatcher.preempted((key[0], attempt), goes)
        job = platform.job(key[0])
        assert (job.state, job.attempt) == (S.QUEUED, attempt)
        assert job.failure is not None
        assert job.failure.code is FailureCode.PREEMPTED
        assert "12:02:00 UTC" in job.failure.cause
        platform.dispatcher.settle((key[0], attempt), _exit(143, stopped=True))
        assert platform.job(key[0]).state is S.QUEUED
        platform.make_due()
        assert platform.dispatcher.dispatch() == 1
        platform.cluster.end((key[0], attempt), _exit(143, stopped=True))
        platform.cluster.collect(platform.dispatcher)
        ((placed),) = platform.cluster.place(platform.dispatcher)
        platform.dispatcher.started(placed)
    platform.post_results((key[0], 7))
    assert platform.end((key[0], 7), _exit()).state is S.SUCCEEDED
