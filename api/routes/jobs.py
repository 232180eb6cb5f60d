"""Tasks and jobs: submissions, lists, stories, logs, results."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from typing import Annotated, Any, BinaryIO, Literal, cast

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse, StreamingResponse

from api import schemas as s
from api.deps import CoreDep, CursorQuery, LimitQuery, WhoDep, WriterDep, problems, read_body
from api.routes.catalog import IdPath, page_out
from api.webhook_example import WEBHOOK_EXAMPLE
from mhs_ray.attempt.logbook import LogLine
from mhs_ray.domain.errors import InvalidInputError, NotFoundError
from mhs_ray.domain.failures import FailureClass
from mhs_ray.domain.ids import encode_id, parse_id
from mhs_ray.domain.models import Principal, Task
from mhs_ray.domain.states import JobState
from mhs_ray.services.core import Core
from mhs_ray.services.submissions import from_api, from_webhook
from mhs_ray.store.sql.jobs import JobFilter
from mhs_ray.store.sql.results import StoredResult
from mhs_ray.store.sql.tasks import Submission, Submitted

router = APIRouter(responses=problems())
_FOLLOW_S = 0.3  # how often a followed log is looked at; nobody looks when nobody follows
_KEEPALIVE_S = 15.0


# ------------------------------------------------------------ submissions


async def _submit(request: Request, core: Core, submission: Submission, response: Response) -> s.SubmittedOut:
    done: Submitted = await request.app.state.intake.submit(submission)
    response.status_code = 201 if done.created else 200
    return s.SubmittedOut(task_id=str(done.task.number), job_ids=list(done.job_ids), created=done.created)


@router.post("/webhook", tags=["tasks"], summary="Take Techcyte's webhook", status_code=201, include_in_schema=False)
@router.post(
    "/v1/webhook",
    tags=["tasks"],
    summary="Take Techcyte's webhook",
    status_code=201,
    responses={
        200: {"model": s.SubmittedOut, "description": "this task id had come before; nothing was added"},
        **problems(413, 503),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"type": "object"}, "example": WEBHOOK_EXAMPLE}},
        }
    },
)
async def webhook(request: Request, response: Response, core: CoreDep, who: WriterDep) -> s.SubmittedOut:
    """Each scan of the request becomes one job. Committed before the answer; the same `task_id` again adds nothing."""
    body = await read_body(request, core.settings.api.max_body)
    try:
        posted = json.loads(body)
    except ValueError as error:
        raise InvalidInputError.at("$", f"the body is no JSON: {error}") from None
    except RecursionError:
        raise InvalidInputError.at("$", "the body is nested too deeply") from None
    if not isinstance(posted, dict):
        raise InvalidInputError.at("$", "the body must be a JSON object")
    return await _submit(request, core, from_webhook(who, posted, core.settings.host), response)


@router.post(
    "/v1/tasks",
    tags=["tasks"],
    summary="Make an AI request",
    status_code=201,
    responses={
        200: {"model": s.SubmittedOut, "description": "this task id had come before; nothing was added"},
        **problems(503),
    },
)
async def create_task(
    request: Request, response: Response, core: CoreDep, who: WriterDep, body: s.TaskIn
) -> s.SubmittedOut:
    """One job per scan. Committed before the answer."""
    submission = from_api(who, host=core.settings.host, **body.model_dump())
    return await _submit(request, core, submission, response)


@router.get("/v1/tasks", tags=["tasks"], summary="List tasks")
def list_tasks(
    core: CoreDep,
    who: WhoDep,
    cursor: CursorQuery = None,
    limit: LimitQuery = 50,
    algorithm_id: Annotated[int | None, Query(ge=1, le=s.MAX_ROW_ID)] = None,
    origin: Literal["techcyte", "local"] | None = None,
) -> s.PageOut[s.TaskOut]:
    """Newest first; without their jobs."""
    page = core.tasks.page(who.company_id, cursor=cursor, limit=limit, algorithm_id=algorithm_id, origin=origin)
    return s.PageOut[s.TaskOut].model_validate(page_out(page.map(lambda task: _task_out(task, []))))


@router.get("/v1/tasks/{task_id}", tags=["tasks"], summary="Show a task", responses=problems(404))
def get_task(core: CoreDep, who: WhoDep, task_id: str) -> s.TaskOut:
    """With its jobs. `task_id`: integer or Techcyte's base64."""
    task = core.tasks.get(who.company_id, parse_id(task_id, "task", "$.task_id"))
    jobs = core.jobs.jobs.of_task(who.company_id, task.id)
    return _task_out(task, [s.JobOut.of(j) for j in jobs])


@router.get(
    "/v1/tasks/{task_id}/results", tags=["results"], summary="Get the results of a task", responses=problems(404)
)
def get_task_results(
    core: CoreDep, who: WhoDep, task_id: str, format: Literal["json", "geojson", "parquet"] = "json"
) -> Response:
    """All scans. JSON in the contract's words, GeoJSON in level-0 pixels, or GeoParquet."""
    number = parse_id(task_id, "task", "$.task_id")
    return _results(core, core.jobs.results.of_task(who.company_id, number), format, f"task-{number}")


def _task_out(task: Task, jobs: list[s.JobOut]) -> s.TaskOut:
    return s.TaskOut(
        task_id=str(task.number), task_id_base64=encode_id("task", task.number),
        case_id=encode_id("humanCase", task.case_number) if task.case_number is not None else None,
        algorithm_id=task.algorithm_id, algorithm_name=task.algorithm_name, origin=task.origin,
        priority=task.priority, description=task.description, created_by=task.created_by,
        created_at=task.created_at, jobs=jobs,
    )  # fmt: skip


# ------------------------------------------------------------ jobs


@router.get("/v1/jobs", tags=["jobs"], summary="List jobs")
def list_jobs(
    core: CoreDep,
    who: WhoDep,
    cursor: CursorQuery = None,
    limit: LimitQuery = 50,
    state: Annotated[list[JobState] | None, Query()] = None,
    container_id: Annotated[int | None, Query(ge=1, le=s.MAX_ROW_ID)] = None,
    algorithm: Annotated[str | None, Query(max_length=200)] = None,
    scan_row_id: Annotated[int | None, Query(ge=1, le=s.MAX_ROW_ID)] = None,
    task_id: Annotated[str | None, Query(max_length=60)] = None,
    created_by: Annotated[str | None, Query(max_length=200)] = None,
    failure_class: FailureClass | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
) -> s.PageOut[s.JobOut]:
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
    return s.PageOut[s.JobOut].model_validate(page_out(page.map(s.JobOut.of)))


def _aware(at: datetime | None, path: str) -> datetime | None:
    if at is not None and at.tzinfo is None:
        raise InvalidInputError.at(path, "give the time with its zone, e.g. 2026-01-31T12:00:00Z")
    return at


@router.get("/v1/jobs/{job_id}", tags=["jobs"], summary="Show a job", responses=problems(404))
def get_job(core: CoreDep, who: WhoDep, job_id: IdPath) -> s.JobOut:
    """State, failure card, image digest, resources used, and the place in the queue while it is queued."""
    job = core.jobs.jobs.get(who.company_id, job_id)
    position = core.jobs.jobs.queue_position(job_id) if job.state is JobState.QUEUED else None
    return s.JobOut.of(job, position)


@router.get("/v1/jobs/{job_id}/events", tags=["jobs"], summary="Tell a job's story", responses=problems(404))
def get_events(core: CoreDep, who: WhoDep, job_id: IdPath) -> list[s.JobEventOut]:
    """Every change of state with its time, node and cause, oldest first."""
    return [s.JobEventOut.model_validate(e) for e in core.jobs.jobs.events(who.company_id, job_id)]


@router.post("/v1/jobs/{job_id}/cancel", tags=["jobs"], summary="Cancel a job", responses=problems(404, 409))
def cancel_job(core: CoreDep, who: WriterDep, job_id: IdPath) -> s.JobOut:
    """In every state but the final ones. A running container is stopped."""
    return s.JobOut.of(core.jobs.cancel(who, job_id))


@router.post(
    "/v1/jobs/{job_id}/rerun",
    tags=["jobs"],
    status_code=201,
    summary="Run an ended job again",
    responses=problems(404, 409),
)
def rerun_job(core: CoreDep, who: WriterDep, job_id: IdPath) -> s.JobOut:
    """As a new job, with the image digest and the variables that the first one had."""
    return s.JobOut.of(core.jobs.rerun(who, job_id))


# ------------------------------------------------------------ log


@router.get(
    "/v1/jobs/{job_id}/log",
    tags=["jobs"],
    summary="Read a job's log",
    responses={200: {"content": {"text/plain": {}, "text/event-stream": {}}}, **problems(404)},
    response_class=Response,
)
async def get_log(
    request: Request,
    core: CoreDep,
    who: WhoDep,
    job_id: IdPath,
    follow: Annotated[bool, Query(description="server-sent events until the job ends")] = False,
    attempt: Annotated[int | None, Query(ge=1, le=1_000_000, description="the newest when left out")] = None,
    offset: Annotated[int, Query(ge=0, le=10**12, description="line to start at")] = 0,
    timestamps: bool = True,
    last_event_id: Annotated[str | None, Header(max_length=40)] = None,
) -> Response:
    """Plain text, or with `follow=1` events whose `id` is the line's number: a client that comes back sends it as Last-Event-ID."""
    job = await run_in_threadpool(core.jobs.jobs.get, who.company_id, job_id)
    if attempt is not None and attempt > job.attempt:
        raise NotFoundError("attempt", f"{attempt} of job {job_id}")
    if last_event_id and last_event_id.isascii() and last_event_id.isdigit():
        offset = int(last_event_id) + 1
    if follow:
        events = _follow(request, core, who, job_id, attempt, offset, timestamps)
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)
    lines = core.jobs.log_of(job, attempt, offset) if job.attempt else iter(())
    return StreamingResponse((_text(line, timestamps) + "\n" for line in lines), media_type="text/plain; charset=utf-8")


def _text(line: LogLine, timestamps: bool) -> str:
    text = f"[mhs] {line.text}" if line.source == "platform" else line.text
    return f"{line.at} {text}" if timestamps else text


async def _follow(
    request: Request, core: Core, who: Principal, job_id: int, attempt: int | None, offset: int, timestamps: bool
) -> AsyncIterator[str]:
    quiet = 0.0
    while not await request.is_disconnected():
        # The state is read before the lines: what was written before the end is then never missed.
        job = await run_in_threadpool(core.jobs.jobs.get, who.company_id, job_id)
        lines: list[LogLine] = []
        if job.attempt:
            lines = await run_in_threadpool(lambda job=job: _some(core.jobs.log_of(job, attempt, offset)))
        for line in lines:
            offset = line.number + 1
            data = {"attempt": attempt or job.attempt, "line": line.number, "source": line.source}
            yield f"id: {line.number}\ndata: {json.dumps(data | {'at': line.at, 'text': line.text})}\n\n"
        if lines:
            quiet = 0.0
            continue
        if job.state.is_terminal or (attempt is not None and attempt < job.attempt):
            yield f"event: end\ndata: {json.dumps({'state': job.state, 'attempt': attempt or job.attempt})}\n\n"
            return
        quiet += _FOLLOW_S
        if quiet >= _KEEPALIVE_S:
            quiet = 0.0
            yield ": still here\n\n"
        await asyncio.sleep(_FOLLOW_S)


def _some(lines: Iterator[LogLine]) -> list[LogLine]:
    return [line for line, _ in zip(lines, range(2000), strict=False)]


# ------------------------------------------------------------ results


@router.get("/v1/jobs/{job_id}/results", tags=["results"], summary="Get a job's results", responses=problems(404))
def get_job_results(
    core: CoreDep, who: WhoDep, job_id: IdPath, format: Literal["json", "geojson", "parquet"] = "json"
) -> Response:
    """JSON in the contract's words (GeoJSON included), GeoJSON in level-0 pixels, or GeoParquet."""
    return _results(core, [core.jobs.result(who, job_id)], format, f"job-{job_id}")


@router.get(
    "/v1/jobs/{job_id}/debug", tags=["results"], summary="Download the debug file", status_code=307,
    response_class=RedirectResponse, responses=problems(404),
)  # fmt: skip
def get_debug(
    core: CoreDep, who: WhoDep, job_id: IdPath, attempt: Annotated[int | None, Query(ge=1, le=1_000_000)] = None
) -> RedirectResponse:
    """What the container uploaded to DEBUG_FILE_UPLOAD_URL."""
    return RedirectResponse(core.jobs.debug_url(who, job_id, attempt))


def _results(core: Core, results: list[StoredResult], kind: str, name: str) -> Response:
    spool = cast(BinaryIO, tempfile.SpooledTemporaryFile(max_size=8 << 20))
    try:
        if kind == "json":
            _write_json(core, results, spool)
        else:
            core.jobs.export(results, kind, spool)
    except BaseException:
        spool.close()
        raise
    media, ending = {
        "json": ("application/json", "json"),
        "geojson": ("application/geo+json", "geojson"),
        "parquet": ("application/vnd.apache.parquet", "parquet"),
    }[kind]
    headers = {"Content-Disposition": f'attachment; filename="{name}.{ending}"'} if kind != "json" else {}
    headers["Content-Length"] = str(spool.tell())
    spool.seek(0)
    return StreamingResponse(_pieces(spool), media_type=media, headers=headers)


def _pieces(spool: BinaryIO) -> Iterator[bytes]:
    with spool:
        while piece := spool.read(1 << 18):
            yield piece


def _write_json(core: Core, results: list[StoredResult], out: BinaryIO) -> None:
    """Write `ResultsOut`; the GeoJSON goes through as it was posted, piece by piece."""
    case = next((r.case_results for r in reversed(results) if r.case_results is not None), None)
    out.write(b'{"caseResults":' + _dump(case) + b',"scanResults":[')
    for i, r in enumerate(results):
        report: dict[str, Any] | None = None if r.report is None else dict(r.report)
        if r.external_url is not None:
            report = {**(report or {}), "external_url": r.external_url}
        head = {
            "scanId": str(r.scan_number), "jobId": r.job_id, "createdAt": r.created_at.isoformat(), "features": r.features,
            "summary": r.summary, "results": report, "qcFailReasons": r.qc_fail_reasons, "workflow": r.workflow,
        }  # fmt: skip
        out.write((b"," if i else b"") + _dump(head)[:-1] + b',"geojson":')
        stored = core.jobs.geojson(r)
        if stored is None:
            out.write(b"null}")
            continue
        with stored:
            while piece := stored.read(1 << 18):
                out.write(piece)
        out.write(b"}")
    out.write(b"]}\n")


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
