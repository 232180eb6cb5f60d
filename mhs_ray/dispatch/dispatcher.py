"""The dispatcher: claims what starts next, takes in what nodes say, and settles every attempt.

Rows are the truth. Whatever is done here can be done again after a crash: launching is by a name that exists once,
transitions are fenced by the attempt's number, and `reconcile` compares rows with what the cluster really runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final, Protocol

from mhs_ray.attempt.order import AttemptOrder, Outcome
from mhs_ray.dispatch.orders import job_label, make_order, why_expired
from mhs_ray.domain.failures import Failure, FailureClass, FailureCode, RetryPolicy, decide_retry
from mhs_ray.domain.models import Job
from mhs_ray.domain.states import JobEvent, JobState
from mhs_ray.domain.verdict import judge
from mhs_ray.services.core import Core

log = logging.getLogger(__name__)

BATCH: Final = 64
"""How many jobs are claimed at a time."""

_LOST_MEND: Final = "rerun the job once the cluster is well; the node's own log says what happened to it"

_PREEMPTED_MEND: Final = "nothing to do: the job runs again; long models fare better on on-demand nodes"

AttemptKey = tuple[int, int]
"""(job id, attempt number)."""


class Cluster(Protocol):
    """Where attempts run: Ray, or a simulation of it."""

    def offers(self, instance_type: str) -> bool:
        """Say whether the cluster has, or can start, a node of this type."""

    def launch(self, key: AttemptKey, label: str, instance_type: str, prefer: str | None = None) -> None:
        """Ask for a GPU on a node of this type and run the attempt there. Does nothing if it was launched before.

        prefer: the node to take if it has a GPU free at that moment.
        """

    def stop(self, key: AttemptKey) -> None:
        """End an attempt, waiting or running. Nothing happens if there is none."""

    def forget(self, key: AttemptKey) -> None:
        """Give back what a settled attempt still holds."""

    def attempts(self) -> Collection[AttemptKey]:
        """Return the attempts that wait or run now, as far as can be known."""


class Dispatcher:
    """Synchronous and safe to call from several threads; the actor around it brings the waiting.

    now: the clock; a simulation brings its own. prefer: which node a job had best start on, None for any.
    """

    def __init__(
        self,
        core: Core,
        cluster: Cluster,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        prefer: Callable[[Job], str | None] = lambda _: None,
    ) -> None:
        self._core, self._cluster, self._now, self._prefer = core, cluster, now, prefer
        self._jobs = core.jobs.jobs

    def dispatch(self) -> int:
        """Start what may start now, end what can never; returns how many jobs were taken from the queue."""
        now = self._now()
        self._jobs.expire(now, lambda row: why_expired(self._core, row, now))
        cluster = self._core.settings.cluster
        jobs = self._jobs.claim(BATCH, cluster.max_waiting, now, by_type=cluster.placement == "label")
        for job in jobs:
            self._launch(job)
        return len(jobs)

    def _launch(self, job: Job) -> None:
        key = (job.id, job.attempt)
        if not self._cluster.offers(job.instance_type):
            failure = Failure(
                FailureCode.NO_SUCH_INSTANCE_TYPE,
                f"this cluster has no nodes of type {job.instance_type} and cannot start any",
                "choose another instance type, or ask the operator to add this one to the cluster",
            )
            self.settle(key, Outcome(None, failure, {}))
            return
        try:
            self._cluster.launch(key, job_label(job), job.instance_type, self._prefer(job))
        except Exception as error:
            log.exception("job %s: launching attempt %s failed", job.id, job.attempt)
            cause = f"the attempt could not be launched: {type(error).__name__}"
            failure = Failure(FailureCode.INTERNAL, cause, "look at the dispatcher's log, then rerun the job")
            self.settle(key, Outcome(None, failure, {}))

    def order(self, key: AttemptKey, node: str) -> AttemptOrder | None:
        """Say what the attempt on `node` is to do; None when it is not wanted any more."""
        job = self._jobs.find(key[0])
        if job.attempt != key[1] or not job.state.is_active:
            return None
        change = self._jobs.transition(job.id, JobEvent.PLACED, attempt=key[1], node=node)
        # It may have been cancelled, or given up and claimed anew, since it was looked up.
        return make_order(self._core, job) if change.after.is_active and change.attempt == key[1] else None

    def started(self, key: AttemptKey) -> None:
        """Take in that the container's process runs."""
        self._jobs.transition(key[0], JobEvent.STARTED, attempt=key[1])

    def settle(self, key: AttemptKey, outcome: Outcome) -> None:
        """Take in how an attempt ended and decide what follows. Doing it twice changes nothing."""
        job_id, attempt = key
        job = self._jobs.find(job_id)
        if job.attempt != attempt or job.state.is_terminal or job.state is JobState.QUEUED:
            return
        failure = outcome.failure
        if outcome.exit is not None:
            self._jobs.transition(job_id, JobEvent.STARTED, attempt=attempt)
            ended = outcome.exit
            has_results, rejection = self._core.jobs.results.standing(job_id)
            row = self._jobs.row(job_id)
            failure = judge(
                exit_code=ended.exit_code,
                oom_killed=ended.oom_killed,
                timed_out=ended.timed_out,
                has_results=has_results,
                rejection=rejection,
                log_tail=ended.log_tail,
                instance_type=job.instance_type,
                memory_limit_bytes=outcome.resources.get("memory_limit_bytes"),
                memory_peak_bytes=outcome.resources.get("memory_peak_bytes"),
                time_limit_s=row.time_limit_s,
            )
            if failure is not None and ended.stopped and not ended.timed_out:
                # The job is wanted, else its state were final: we stopped it, so its exit code is not the model's.
                failure = replace(
                    failure, code=FailureCode.NODE_LOST, cause="the platform stopped the container", mend=_LOST_MEND
                )
            if failure is not None and failure.code is FailureCode.TIME_LIMIT:
                self._jobs.transition(
                    job_id, JobEvent.TIMED_OUT, attempt=attempt, failure=failure, resources=outcome.resources
                )
                return
            self._jobs.transition(
                job_id,
                JobEvent.EXITED,
                attempt=attempt,
                cause=f"exit code {ended.exit_code}",
                resources=outcome.resources,
            )
        if failure is None:
            self._jobs.transition(job_id, JobEvent.SUCCEEDED, attempt=attempt, resources=outcome.resources)
        else:
            self._fail(key, failure, outcome)

    def _fail(self, key: AttemptKey, failure: Failure, outcome: Outcome) -> None:
        job_id, attempt = key
        has_results, _ = self._core.jobs.results.standing(job_id)
        delay = None if has_results else self._retry_delay(job_id, attempt, failure)
        if delay is None:
            if has_results and failure.failure_class is FailureClass.PLATFORM:
                failure = replace(failure, cause=f"{failure.cause}; the results that it had posted were kept")
            self._jobs.transition(
                job_id, JobEvent.FAILED, attempt=attempt, failure=failure, resources=outcome.resources
            )
        else:
            self._jobs.transition(
                job_id,
                JobEvent.RETRIED,
                attempt=attempt,
                failure=failure,
                retry_in_s=delay,
                cause=f"{failure.code}: {failure.cause}; tried again in {delay:.0f} s",
                resources=outcome.resources,
            )

    def _retry_delay(self, job_id: int, attempt: int, failure: Failure) -> float | None:
        row = self._jobs.row(job_id)
        settings = self._core.settings.jobs
        policy = RetryPolicy(
            max_platform_attempts=settings.max_platform_attempts,
            backoff_s=settings.backoff.total_seconds(),
            backoff_max_s=settings.backoff_max.total_seconds(),
            model_exit_codes=frozenset(row.retry_exit_codes),
            max_model_retries=row.max_model_retries,
        )
        platform = failure.failure_class is FailureClass.PLATFORM
        return decide_retry(
            failure,
            policy,
            platform_failures=row.platform_failures + platform,
            model_failures=row.model_failures + (not platform),
            seed=job_id * 1000 + attempt,
        ).delay_s

    def lost(self, key: AttemptKey, what: str) -> None:
        """Take in that an attempt is gone without a word: its node or its process died."""
        failure = Failure(FailureCode.NODE_LOST, what, _LOST_MEND)
        self.settle(key, Outcome(None, failure, {}))

    def preempted(self, key: AttemptKey, when: datetime) -> None:
        """Give an attempt back whose node goes at `when`: it is stopped, and the job runs anew elsewhere."""
        what = f"the node is taken away at {when:%H:%M:%S} UTC, and the container still ran"
        self.settle(key, Outcome(None, Failure(FailureCode.PREEMPTED, what, _PREEMPTED_MEND), {}))

    def reconcile(self) -> None:
        """Make rows and cluster agree: stop what is not wanted, launch or settle what should be there and is not."""
        alive = set(self._cluster.attempts())
        wanted: dict[AttemptKey, Job] = {(j.id, j.attempt): j for j in self._jobs.active()}
        for key in alive - wanted.keys():
            log.info("attempt %s of job %s is not wanted any more", key[1], key[0])
            self._cluster.stop(key)
        for key, job in wanted.items():
            if key in alive:
                continue
            if job.state is JobState.WAITING:  # claimed, and then this process died before it asked Ray
                self._launch(job)
            else:
                self.lost(key, "the worker process or its node is gone")
