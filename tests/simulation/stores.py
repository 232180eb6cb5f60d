"""The rows of the dispatcher in memory: the same steps and the same fair share as in SQL, on a virtual clock."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from mhs_ray.domain.errors import ConflictError, TransitionError
from mhs_ray.domain.failures import Failure
from mhs_ray.domain.fairshare import Share, choose
from mhs_ray.domain.states import JobEvent, JobState
from mhs_ray.domain.steps import step
from mhs_ray.store.sql.transitions import Change

_POSTING = (JobState.PREPARING, JobState.RUNNING, JobState.COLLECTING)


@dataclass(eq=False)
class MemoryJob:
    """What the dispatcher reads of a job and of its row."""

    id: int
    company_id: int
    priority: int
    not_before: datetime
    created_at: datetime
    instance_type: str = "g4dn.xlarge"
    state: JobState = JobState.QUEUED
    attempt: int = 0
    platform_failures: int = 0
    model_failures: int = 0
    max_model_retries: int = 0
    retry_exit_codes: tuple[int, ...] = ()
    time_limit_s: int = 5400
    started_at: datetime | None = None
    ended_at: datetime | None = None
    usable_until: datetime | None = None
    failure: Failure | None = None
    node: str | None = None
    resources: Mapping[str, Any] = field(default_factory=dict)
    story: list[tuple[JobEvent, JobState, int]] = field(default_factory=list)
    scan_number: int = 1
    container_name: str = "c"


class MemoryJobs:
    """`Jobs` as the dispatcher uses it. caps: of active jobs, by company. now: the clock."""

    def __init__(self, caps: Mapping[int, int | None], now: Callable[[], datetime]) -> None:
        self.caps, self._now = dict(caps), now
        self.rows: dict[int, MemoryJob] = {}
        self.active_rows: dict[int, MemoryJob] = {}
        self.active_of: dict[int, int] = dict.fromkeys(caps, 0)
        self._queues: dict[int, list[tuple[int, int]]] = {c: [] for c in caps}  # may hold rows that left the queue
        self._again: list[tuple[datetime, int]] = []
        self.waiting = 0

    def add(self, job: MemoryJob) -> None:
        self.rows[job.id] = job
        heapq.heappush(self._queues[job.company_id], (job.priority, job.id))

    def find(self, job_id: int) -> MemoryJob:
        return self.rows[job_id]

    row = find

    def active(self) -> list[MemoryJob]:
        return list(self.active_rows.values())

    def next_due(self) -> datetime | None:
        heads = [self._head(c) for c in self._queues]
        due = [self.rows[i].not_before for i in heads if i is not None]
        due += [self._again[0][0]] if self._again else []
        return min(due, default=None)

    def expire(self, now: datetime, failure: Callable[[Any], Failure]) -> list[int]:
        return []

    def claim(self, limit: int, waiting_limit: int, now: datetime, *, by_type: bool = False) -> list[MemoryJob]:
        assert not by_type  # the simulated cluster is one machine that stands in for every type
        while self._again and self._again[0][0] <= now:  # their backoff is over
            job = self.rows[heapq.heappop(self._again)[1]]
            heapq.heappush(self._queues[job.company_id], (job.priority, job.id))
        shares = []
        for company in self._queues:
            head = self._head(company)
            if head is not None:
                best = self.rows[head].priority
                shares.append(Share(company, best, self.active_of[company], self.caps[company]))
        chosen = choose(shares, min(limit, waiting_limit - self.waiting), self._first)
        jobs = []
        for job_id in chosen:
            job = self.rows[job_id]
            self._set(job, {"state": JobState.WAITING})
            job.attempt += 1
            job.node = job.started_at = job.failure = None
            job.story.append((JobEvent.DISPATCHED, JobState.WAITING, job.attempt))
            jobs.append(job)
        return jobs

    def transition(
        self,
        job_id: int,
        event: JobEvent,
        *,
        attempt: int | None = None,
        node: str | None = None,
        cause: str = "",
        failure: Failure | None = None,
        retry_in_s: float | None = None,
        resources: Mapping[str, Any] | None = None,
    ) -> Change:
        job = self.rows[job_id]
        try:
            made = step(
                job, event, now=self._now(), attempt=attempt, node=node, failure=failure, retry_in_s=retry_in_s,
                resources=resources,
            )  # fmt: skip
        except TransitionError:
            if event is JobEvent.CANCELLED:
                raise ConflictError("too late") from None
            raise
        if made.told:
            self._set(job, made.values)
            job.story.append((event, made.after, job.attempt))
            if made.after is JobState.QUEUED:
                heapq.heappush(self._again, (job.not_before, job.id))
        return Change(job_id, made.before, made.after, job.attempt)

    def _set(self, job: MemoryJob, values: Mapping[str, Any]) -> None:
        before = job.state
        for name, value in values.items():
            setattr(job, name, value)
        self.waiting += (job.state is JobState.WAITING) - (before is JobState.WAITING)
        change = job.state.is_active - before.is_active
        self.active_of[job.company_id] += change
        if change > 0:
            self.active_rows[job.id] = job
        elif change < 0:
            del self.active_rows[job.id]

    def _due(self, job_id: int) -> bool:
        job = self.rows[job_id]
        return job.state is JobState.QUEUED and job.not_before <= self._now()

    def _head(self, company: int) -> int | None:
        queue = self._queues[company]
        while queue and not self._due(queue[0][1]):  # claimed, ended, or it comes back by `_again`
            heapq.heappop(queue)
        return queue[0][1] if queue else None

    def _first(self, company: int, count: int) -> list[tuple[int, int]]:
        queue, taken, seen = self._queues[company], [], set()
        while queue and len(taken) < count:
            entry = heapq.heappop(queue)
            if entry[1] not in seen and self._due(entry[1]):
                seen.add(entry[1])
                taken.append(entry)
        for entry in taken:
            heapq.heappush(queue, entry)
        return taken


class MemoryResults:
    """The gateway's ledger: who may post, and what was taken."""

    def __init__(self, jobs: MemoryJobs) -> None:
        self._jobs = jobs
        self.taken: dict[int, int] = {}  # job → attempt
        self.refused = 0

    def post(self, job_id: int, attempt: int) -> bool:
        """Take a result as `Results.store` does; returns whether anything was stored."""
        job = self._jobs.rows[job_id]
        alive = job.attempt == attempt and job.state in _POSTING
        if not alive or job_id in self.taken:
            self.refused += not alive
            return False
        self.taken[job_id] = attempt
        return True

    def standing(self, job_id: int) -> tuple[bool, None]:
        return job_id in self.taken, None
