"""Wire types of tasks and jobs."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from pydantic import Field

from api.schemas.base import Body, RowId, Text, Wire
from mhs_ray.domain import models as m
from mhs_ray.domain.failures import FailureClass, FailureCode
from mhs_ray.domain.states import JobState


class TaskIn(Body):
    """An AI request on one or more scans."""

    algorithm_id: RowId | None = None
    algorithm: Text | None = Field(None, description="name of the case algorithm, instead of its id")
    scan_ids: list[RowId] = Field(description="ids (`id`, not `scan_id`) of the scans")
    task_id: str | None = Field(None, description="integer or Techcyte's base64; the same one again adds nothing")
    case_id: str | None = Field(None, examples=["aHVtYW5DYXNlOjI0MjEzNjY="])
    priority: m.Priority = m.Priority.CLINICAL
    description: Text = Field("", max_length=10_000)


class FailureOut(Wire):
    """Why a job failed."""

    failure_class: FailureClass
    code: FailureCode
    cause: str
    mend: str
    excerpt: str
    exit_code: int | None


class TileProgressOut(Wire):
    """How far a container's tile feed is."""

    done: int
    planned: int
    left_s: float | None = Field(None, description="seconds left, if it goes on so")


class JobOut(Wire):
    """One container on one scan of a task."""

    id: int
    state: JobState
    task_id: str
    scan_row_id: int
    scan_id: str
    algorithm_name: str
    container_id: int
    container_name: str
    image_digest: str
    instance_type: str
    priority: m.Priority
    attempt: int
    node: str | None
    failure: FailureOut | None
    resources: dict[str, Any]
    created_by: str
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    queue_position: int | None = None
    expected_wait_s: float | None = Field(None, description="while queued: if things go on as they went lately")
    waits_because: str | None = Field(None, description="while it has no node: what it waits for, in a sentence")
    tiles: TileProgressOut | None = Field(None, description="of a container that is fed tiles; not in lists")

    @classmethod
    def of(
        cls, j: m.Job, queue_position: int | None = None, expected_wait: timedelta | None = None,
        waits_because: str | None = None,
    ) -> JobOut:  # fmt: skip
        """Name task and scan as the contract does."""
        return cls(
            id=j.id, state=j.state, task_id=str(j.task_number), scan_row_id=j.scan_id, scan_id=str(j.scan_number),
            algorithm_name=j.algorithm_name, container_id=j.container_id, container_name=j.container_name,
            image_digest=j.image_digest, instance_type=j.instance_type, priority=j.priority, attempt=j.attempt,
            node=j.node, failure=FailureOut.model_validate(j.failure) if j.failure else None,
            resources=dict(j.resources), created_by=j.created_by, created_at=j.created_at, started_at=j.started_at,
            ended_at=j.ended_at, queue_position=queue_position,
            expected_wait_s=None if expected_wait is None else round(expected_wait.total_seconds(), 1),
            waits_because=waits_because,
        )  # fmt: skip


class TaskOut(Wire):
    """An AI request."""

    task_id: str = Field(examples=["185714"])
    task_id_base64: str = Field(examples=["dGFzazoxODU3MTQ="])
    case_id: str | None
    algorithm_id: int
    algorithm_name: str
    origin: str
    priority: m.Priority
    description: str
    triage_category: str | None = Field(None, description="as the newest posting or PATCH of a container set it")
    triage_score: float | None = None
    created_by: str
    created_at: datetime
    jobs: list[JobOut] = Field([])


class SubmittedOut(Wire):
    """What a submission led to. created: false when the same task id had come before and nothing was added."""

    task_id: str
    job_ids: list[int]
    created: bool


class JobEventOut(Wire):
    """One line of a job's story."""

    seq: int
    attempt: int
    event: str
    state: JobState
    at: datetime
    node: str | None
    cause: str
