"""What an event changes in a job's row. Pure, so that every store, and the simulation, makes the same steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from mhs_ray.domain.failures import Failure, FailureClass, FailureCode
from mhs_ray.domain.states import JobEvent, JobState, advance


class Standing(Protocol):
    """What of a row decides: where the job is, which attempt is its newest, what it failed on so far."""

    @property
    def state(self) -> str: ...  # noqa: D102
    @property
    def attempt(self) -> int: ...  # noqa: D102
    @property
    def started_at(self) -> datetime | None: ...  # noqa: D102
    @property
    def platform_failures(self) -> int: ...  # noqa: D102
    @property
    def model_failures(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Step:
    """A change of a row: the columns that get a new value. told: it is a line of the job's story."""

    before: JobState
    after: JobState
    values: Mapping[str, Any] = field(default_factory=dict)
    told: bool = False


def step(
    job: Standing,
    event: JobEvent,
    *,
    now: datetime,
    attempt: int | None = None,
    node: str | None = None,
    failure: Failure | None = None,
    retry_in_s: float | None = None,
    resources: Mapping[str, Any] | None = None,
) -> Step:
    """Return what `event` changes; nothing for a stale attempt's word, or one that comes late.

    attempt: the one that says so, None for a person or the platform. Raises TransitionError.
    """
    before = JobState(job.state)
    if attempt is not None and attempt != job.attempt:
        return Step(before, before)
    after = advance(before, event)
    if before is after and not (event is JobEvent.PLACED and before.is_active):
        return Step(before, after)
    values: dict[str, Any] = {"state": after}
    if node:
        values["node"] = node
    if resources:
        values["resources"] = dict(resources)
    if event is JobEvent.STARTED and job.started_at is None:
        values["started_at"] = now
    if after.is_terminal:
        values["ended_at"] = now
        values["failure"] = failure
    if event is JobEvent.RETRIED and failure is not None:
        if failure.code is not FailureCode.PREEMPTED:  # which may come any number of times
            platform = failure.failure_class is FailureClass.PLATFORM
            kind, count = (
                ("platform_failures", job.platform_failures) if platform else ("model_failures", job.model_failures)
            )
            values[kind] = count + 1
        values |= {"failure": failure, "not_before": now + timedelta(seconds=retry_in_s or 0)}
    return Step(before, after, values, told=True)
