"""Health, problem pages, and what the registry calls: its token realm and its notifications."""

from __future__ import annotations

import json
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, PlainTextResponse

from api.deps import CoreDep, basic_credentials, read_body
from api.errors import KINDS
from api.schemas.platform import AliveOut, HealthOut
from mhs_ray.domain.errors import (
    ForbiddenError,
    InvalidInputError,
    MhsError,
    NotFoundError,
    OverloadedError,
    UnauthenticatedError,
)
from mhs_ray.registry.notifications import authentic, pushed_images
from mhs_ray.registry.tokens import error_body
from mhs_ray.services.core import Core

router = APIRouter()


@router.get("/healthz", tags=["platform"], summary="Is this replica alive?")
async def healthz() -> AliveOut:
    """Answers as long as the replica can answer at all."""
    return AliveOut()


@router.get(
    "/readyz",
    tags=["platform"],
    summary="Can the platform do its work?",
    response_model=HealthOut,
    responses={503: {"model": HealthOut, "description": "a part is missing"}},
)
async def readyz(request: Request) -> JSONResponse:
    """Asks the database, the blob store, the registry and the dispatcher now."""
    parts: dict[str, str] = await request.app.state.readiness()
    ready = all(state == "ok" for state in parts.values())
    return JSONResponse(HealthOut(ready=ready, parts=parts).model_dump(), 200 if ready else 503)


@router.get("/problems/{slug}", include_in_schema=False)
def problem_page(slug: str) -> PlainTextResponse:
    """What a problem's ``type`` leads to."""
    for kind in KINDS:
        if kind.slug == slug:
            return PlainTextResponse(
                f"{kind.title} (HTTP {kind.status}). The `detail` and `errors` of the answer say more.\n"
            )
    raise NotFoundError("problem", slug)


@router.get("/registry/token", include_in_schema=False)
@router.post("/registry/token", include_in_schema=False)
async def registry_token(
    request: Request,
    core: CoreDep,
    service: Annotated[str | None, Query()] = None,
    scope: Annotated[list[str] | None, Query()] = None,
    authorization: Annotated[str | None, Header()] = None,
) -> JSONResponse:
    """The registry's realm (OCI distribution, auth.token): a ``docker login``'s password for a bearer token."""
    try:
        return JSONResponse(await _registry_token(request, core, service, scope or [], authorization))
    except MhsError as error:  # in the registry's own words: docker shows them to who pushes
        statuses = {UnauthenticatedError: 401, ForbiddenError: 403, InvalidInputError: 400, OverloadedError: 503}
        return JSONResponse(error_body(error), statuses.get(type(error), 500))


async def _registry_token(
    request: Request, core: Core, service: str | None, scopes: list[str], authorization: str | None
) -> dict[str, Any]:
    if authorization and authorization[:6].lower() == "basic ":
        user, password = basic_credentials(authorization)
    else:  # OAuth2 form of the same, as Docker and containerd send it
        form = parse_qs((await read_body(request, 64 * 1024)).decode("utf-8", "replace"))
        user, password = form.get("username", [""])[0], form.get("password", form.get("refresh_token", [""]))[0]
        service, scopes = form.get("service", [service])[0], form.get("scope", scopes)
    if not password:
        raise UnauthenticatedError("log in first: the password is in the image's Docker Push Instructions")
    return await run_in_threadpool(core.registry_tokens.token_response, user, password, service, scopes)


@router.post("/registry/events", include_in_schema=False)
async def registry_events(
    request: Request, core: CoreDep, authorization: Annotated[str | None, Header()] = None
) -> Response:
    """The registry says that something was pushed: a hint to ask it, nothing more."""
    if not authentic(authorization, core.keys.registry_events):
        raise UnauthenticatedError("not the registry")
    try:
        told = json.loads(await read_body(request, 4 << 20))
    except (ValueError, RecursionError):
        raise InvalidInputError.at("$", "the body is no JSON") from None
    ids = pushed_images(told)
    if ids:
        request.app.state.pushed(sorted(ids))
    return Response(status_code=204)
