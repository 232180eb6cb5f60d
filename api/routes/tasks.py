"""Submissions and tasks: Techcyte's webhook, and the same in our words."""

from __future__ import annotations

import json
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from api.deps import (
    CoreDep,
    CursorQuery,
    IdQuery,
    LimitQuery,
    WhoDep,
    WriterDep,
    limit_rate,
    page_out,
    problems,
    read_body,
    writer,
)
from api.direct import DirectRoute
from api.schemas.base import PageOut
from api.schemas.jobs import JobOut, SubmittedOut, TaskIn, TaskOut
from api.webhook_example import WEBHOOK_EXAMPLE
from mhs_ray.auth.webhook import HEADER, PREFIX, verify_bearer, verify_signature
from mhs_ray.domain.errors import InvalidInputError, UnauthenticatedError
from mhs_ray.domain.ids import encode_id, parse_id
from mhs_ray.domain.models import Principal, Task
from mhs_ray.services.core import Core
from mhs_ray.services.submissions import from_api, from_webhook
from mhs_ray.store.sql.tasks import Submission, Submitted

router = APIRouter(responses=problems())


async def _submit(request: Request, core: Core, submission: Submission) -> Response:
    if not core.room.is_known:
        await run_in_threadpool(core.room.check)
    done: Submitted = await request.app.state.intake.submit(submission)
    told = SubmittedOut(task_id=str(done.task.number), job_ids=list(done.job_ids), created=done.created)
    return Response(told.model_dump_json(), 201 if done.created else 200, media_type="application/json")


@router.post("/webhook", tags=["tasks"], summary="Take Techcyte's webhook", status_code=201, include_in_schema=False)
@router.post(
    "/v1/webhook",
    tags=["tasks"],
    summary="Take Techcyte's webhook",
    status_code=201,
    response_model=SubmittedOut,
    responses={
        200: {"model": SubmittedOut, "description": "this task id had come before; nothing was added"},
        **problems(413, 503, 507),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"type": "object"}, "example": WEBHOOK_EXAMPLE}},
        }
    },
)
async def webhook(request: Request) -> Response:
    """Each scan of the request becomes one job. Committed before the answer; the same `task_id` again adds nothing.

    Signed with the company's webhook secret (`X-MHS-Signature`), with that secret as a bearer token, or as a client.
    """
    core: Core = request.app.state.core
    signature = request.headers.get(HEADER)
    token = request.headers.get("authorization", "").partition(" ")[2].strip()
    by_secret = signature is not None or token.startswith(PREFIX)
    who = None if by_secret else await writer(request)
    body = await read_body(request, core.settings.api.max_body)
    if who is None:
        who = await run_in_threadpool(_sender, request, core, signature, token, body)
    return await _submit(request, core, from_webhook(who, _read(body), core.settings.host))


def _sender(request: Request, core: Core, signature: str | None, token: str, body: bytes) -> Principal:
    try:
        posted = _read(body)
    except InvalidInputError:
        if signature is not None:  # nothing says whose signature it would be
            raise UnauthenticatedError("the body of a signed call is no JSON object with a company_id") from None
        posted = {}
    if signature is not None:
        who = verify_signature(core.companies, signature, posted, body)
    else:
        who = verify_bearer(core.companies, token, posted)
    limit_rate(request, who.client_id)
    return who


def _read(body: bytes) -> dict[str, Any]:
    try:
        posted = json.loads(body, parse_constant=_no_constant)
    except ValueError as error:
        raise InvalidInputError.at("$", f"the body is no JSON: {error}") from None
    except RecursionError:
        raise InvalidInputError.at("$", "the body is nested too deeply") from None
    if not isinstance(posted, dict):
        raise InvalidInputError.at("$", "the body must be a JSON object")
    return posted


async def create_task(request: Request, who: WriterDep, body: TaskIn) -> Response:
    """One job per scan. Committed before the answer."""
    core: Core = request.app.state.core
    submission = from_api(who, host=core.settings.host, **body.model_dump())
    return await _submit(request, core, submission)


router.add_api_route(
    "/v1/tasks",
    create_task,
    methods=["POST"],
    route_class_override=DirectRoute,
    tags=["tasks"],
    summary="Make an AI request",
    status_code=201,
    response_model=SubmittedOut,
    responses={
        200: {"model": SubmittedOut, "description": "this task id had come before; nothing was added"},
        **problems(503, 507),
    },
)


@router.get("/v1/tasks", tags=["tasks"], summary="List tasks")
def list_tasks(
    core: CoreDep,
    who: WhoDep,
    cursor: CursorQuery = None,
    limit: LimitQuery = 50,
    algorithm_id: IdQuery = None,
    origin: Literal["techcyte", "local"] | None = None,
) -> PageOut[TaskOut]:
    """Newest first; without their jobs."""
    page = core.tasks.page(who.company_id, cursor=cursor, limit=limit, algorithm_id=algorithm_id, origin=origin)
    return PageOut[TaskOut].model_validate(page_out(page.map(lambda task: _task_out(task, []))))


@router.get("/v1/tasks/{task_id}", tags=["tasks"], summary="Show a task", responses=problems(404))
def get_task(core: CoreDep, who: WhoDep, task_id: str) -> TaskOut:
    """With its jobs. `task_id`: integer or Techcyte's base64."""
    task = core.tasks.get(who.company_id, parse_id(task_id, "task", "$.task_id"))
    jobs = core.jobs.jobs.of_task(who.company_id, task.id)
    return _task_out(task, [JobOut.of(j) for j in jobs])


def _task_out(task: Task, jobs: list[JobOut]) -> TaskOut:
    return TaskOut(
        task_id=str(task.number), task_id_base64=encode_id("task", task.number),
        case_id=encode_id("humanCase", task.case_number) if task.case_number is not None else None,
        algorithm_id=task.algorithm_id, algorithm_name=task.algorithm_name, origin=task.origin,
        priority=task.priority, description=task.description, created_by=task.created_by,
        triage_category=task.triage_category, triage_score=task.triage_score, created_at=task.created_at, jobs=jobs,
    )  # fmt: skip


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
