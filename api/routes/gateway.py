"""``/api/v3``: what a model container calls, as Techcyte answers it (techcyte-contract §3 and §1)."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import timedelta
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Header, Request, Response
from fastapi.concurrency import run_in_threadpool

from api.audited import AuditedRoute
from api.deps import CallerDep, CoreDep, basic_credentials, limit_rate, problems, read_body
from api.schemas.access import TokenOut
from api.schemas.results import EvaluationOut
from mhs_ray.auth.tokens import AttemptIdentity
from mhs_ray.domain.errors import InvalidInputError, UnauthenticatedError
from mhs_ray.domain.models import Principal
from mhs_ray.results.triage import CasePatchBody
from mhs_ray.results.wire import ResultsBody
from mhs_ray.telemetry.traces import Traces

router = APIRouter(prefix="/api/v3", tags=["results gateway"], route_class=AuditedRoute, responses=problems())
_TOKEN_LIFE = timedelta(hours=12)
_FORM = {
    "schema": {
        "type": "object",
        "properties": {name: {"type": "string"} for name in ("grant_type", "client_id", "client_secret")},
    },
    "example": {"grant_type": "client_credentials", "client_id": "mhs-0f3c", "client_secret": "…"},
}


def _body(model: type[Any]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _note_client(request: Request, who: AttemptIdentity | Principal) -> None:
    """What a container posts is its job's story; what somebody posts by hand is audited."""
    if isinstance(who, Principal):
        request.state.writer = who


@router.post(
    "/external/results/{task_id}",
    status_code=201,
    summary="Post results",
    responses=problems(404, 413, 502),
    openapi_extra=_body(ResultsBody),
)
async def post_results(request: Request, core: CoreDep, who: CallerDep, task_id: str) -> None:
    """All or nothing; a second request for a scan that has its result is answered alike and stores nothing."""
    _note_client(request, who)
    poster = await run_in_threadpool(core.gateway.authorize, who, task_id)
    body = await read_body(request, core.settings.api.max_results_body)
    traces: Traces | None = request.app.state.traces
    with traces.posting(poster.job_id, poster.attempt) if traces else nullcontext():
        await run_in_threadpool(core.gateway.post, poster, body)


@router.patch(
    "/external/case/{task_id}",
    status_code=204,
    summary="Set the triage of a case",
    responses=problems(404, 413),
    openapi_extra=_body(CasePatchBody),
)
async def patch_case(request: Request, core: CoreDep, who: CallerDep, task_id: str) -> Response:
    """Omitted fields stay as they are."""
    _note_client(request, who)
    poster = await run_in_threadpool(core.gateway.authorize, who, task_id)
    body = await read_body(request, core.settings.api.max_body)
    await run_in_threadpool(core.gateway.patch_case, poster, body)
    return Response(status_code=204)


@router.get(
    "/external/case_evaluations/{task_id}",
    summary="List evaluations of the task's case",
    responses=problems(404),
    response_model=list[EvaluationOut],
)
def get_evaluations(core: CoreDep, who: CallerDep, task_id: str) -> list[dict[str, Any]]:
    """Every evaluation of the case; `workflow` is not part of details."""
    return core.gateway.evaluations(core.gateway.authorize(who, task_id, write=False))


@router.post(
    "/token", summary="Trade API keys for a token", responses=problems(413),
    openapi_extra={"requestBody": {"content": {"application/x-www-form-urlencoded": _FORM}}},
)  # fmt: skip
async def post_token(
    request: Request, core: CoreDep, authorization: Annotated[str | None, Header()] = None
) -> TokenOut:
    """For local testing: HTTP Basic `id:secret`, or form fields `client_id` and `client_secret`."""
    form = parse_qs((await read_body(request, 16 * 1024)).decode("utf-8", "replace"))
    grant = form.get("grant_type", ["client_credentials"])[0]
    if grant != "client_credentials":
        raise InvalidInputError.at("$.grant_type", "only client_credentials is taken")
    if authorization and authorization[:6].lower() == "basic ":
        client_id, secret = basic_credentials(authorization)
    elif "client_id" in form and "client_secret" in form:
        client_id, secret = form["client_id"][0], form["client_secret"][0]
    else:
        raise UnauthenticatedError("send HTTP Basic id:secret, or the form fields client_id and client_secret")
    who = await run_in_threadpool(core.verifier.verify, client_id, secret)
    limit_rate(request, who.client_id)
    token = core.tokens.for_client(who, _TOKEN_LIFE)
    return TokenOut(access_token=token, expires_in=int(_TOKEN_LIFE.total_seconds()))
