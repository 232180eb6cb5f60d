"""Jobs: lists, stories, cancel and rerun."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request

from api.audited import AuditedRoute
from api.deps import CoreDep, CursorQuery, IdPath, IdQuery, LimitQuery, TextQuery, WhoDep, WriterDep, page_out, problems
from api.schemas.base import PageOut
from api.schemas.jobs import JobEventOut, JobOut, TileProgressOut
from mhs_ray.attempt.tiles import read_progress
from mhs_ray.domain.capacity import Capacity, why_waiting
from mhs_ray.domain.errors import InvalidInputError
from mhs_ray.domain.failures import FailureClass
from mhs_ray.domain.ids import parse_id
from mhs_ray.domain.models import Job
from mhs_ray.domain.states import JobState
from mhs_ray.store.sql.jobs import JobFilter

router = APIRouter(route_class=AuditedRoute, responses=problems())


@router.get("/v1/jobs", tags=["jobs"], summary="List jobs")
def list_jobs(
    core: CoreDep,
    who: WhoDep,
    cursor: CursorQuery = None,
    limit: LimitQuery = 50,
    state: Annotated[list[JobState] | None, Query()] = None,
    container_id: IdQuery = None,
    algorithm: TextQuery = None,
    scan_row_id: IdQuery = None,
    task_id: Annotated[str | None, Query(max_length=60)] = None,
    created_by: TextQuery = None,
    failure_class: FailureClass | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
) -> PageOut[JobOut]:
    """Newest first."""
    wanted = JobFilter(
        states=tuple(state or ()),
        container_id=container_id,
        algorithm=algorithm,
        scan_id=scan_row_id,
        task_number=parse_id(task_id, "task", "$.task_id") if task_id else None,
        created_by=created_by,
        failure_class=failure_class,
        created_after=_aware(created_after, "$.created_after"),
        created_before=_aware(created_before, "$.created_before"),
    )
    page = core.jobs.jobs.page(who.company_id, wanted, cursor=cursor, limit=limit)
    return PageOut[JobOut].model_validate(page_out(page.map(JobOut.of)))


def _aware(at: datetime | None, path: str) -> datetime | None:
    if at is not None and at.tzinfo is None:
        raise InvalidInputError.at(path, "give the time with its zone, e.g. 2026-01-31T12:00:00Z")
    return at


@router.get("/v1/jobs/{job_id}", tags=["jobs"], summary="Show a job", responses=problems(404))
def get_job(request: Request, core: CoreDep, who: WhoDep, job_id: IdPath) -> JobOut:
    """State, failure card, image digest, resources used, and the place in the queue while it is queued."""
    job = core.jobs.jobs.get(who.company_id, job_id)
    position = core.jobs.jobs.queue_position(job_id) if job.state is JobState.QUEUED else None
    wait = core.jobs.jobs.expected_wait(who.company_id, position) if position is not None else None
    out = JobOut.of(job, position, wait, waits_because(job, request.app.state.capacity))
    if job.attempt and (tiles := read_progress(core.blobs, job_id, job.attempt)):
        out.tiles = TileProgressOut.model_validate(tiles)
    return out


def waits_because(job: Job, capacity: Callable[[], Mapping[str, Capacity]]) -> str | None:
    """Return what a job without a node waits for, None where nobody knows more than its state says."""
    if job.state is JobState.QUEUED and job.failure is not None:
        return f"it is tried again after a pause; the last attempt ended so: {job.failure.cause}"
    if job.state is not JobState.WAITING:
        return None
    here = capacity().get(job.instance_type)
    return why_waiting(job.instance_type, here, datetime.now(UTC)) if here else None


@router.get("/v1/jobs/{job_id}/events", tags=["jobs"], summary="Tell a job's story", responses=problems(404))
def get_events(core: CoreDep, who: WhoDep, job_id: IdPath) -> list[JobEventOut]:
    """Every change of state with its time, node and cause, oldest first."""
    return [JobEventOut.model_validate(e) for e in core.jobs.jobs.events(who.company_id, job_id)]


@router.post("/v1/jobs/{job_id}/cancel", tags=["jobs"], summary="Cancel a job", responses=problems(404, 409))
def cancel_job(core: CoreDep, who: WriterDep, job_id: IdPath) -> JobOut:
    """In every state but the final ones. A running container is stopped."""
    return JobOut.of(core.jobs.cancel(who, job_id))


@router.post(
    "/v1/jobs/{job_id}/rerun",
    tags=["jobs"],
    status_code=201,
    summary="Run an ended job again",
    responses=problems(404, 409, 507),
)
def rerun_job(core: CoreDep, who: WriterDep, job_id: IdPath) -> JobOut:
    """As a new job, with the image digest and the variables that the first one had."""
    core.room.check()
    return JobOut.of(core.jobs.rerun(who, job_id))
