"""All of the console as one router."""

from __future__ import annotations

from fastapi import APIRouter, Request

from api.console import access, algorithms, cluster, cohorts, containers, home, images, job, jobs, oidc, scans
from api.console.pages import ConsoleRoute
from mhs_ray.domain.errors import NotFoundError

router = APIRouter(include_in_schema=False)
for part in (home, oidc, images, containers, algorithms, scans, cohorts, jobs, job, cluster, access):
    router.include_router(part.router)

_rest = APIRouter(route_class=ConsoleRoute, include_in_schema=False)


@_rest.get("/console/{rest:path}")
def nothing(request: Request, rest: str) -> None:
    """An address of the console that leads nowhere."""
    raise NotFoundError("page", request.url.path)


router.include_router(_rest)
