"""What Prometheus scrapes. It tells of all companies together, so only operators and Prometheus' own token read it."""

from __future__ import annotations

import hmac
import logging
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from prometheus_client import CONTENT_TYPE_LATEST

from api.deps import CoreDep, caller
from mhs_ray.domain.errors import ForbiddenError
from mhs_ray.domain.models import Principal, Role
from mhs_ray.services.core import Core

router = APIRouter(include_in_schema=False)
log = logging.getLogger(__name__)


@router.get("/metrics")
async def metrics(request: Request, core: CoreDep) -> Response:
    """The platform's metrics in Prometheus' text format."""
    await _authorize(request, core)
    parts: dict[str, str] = await request.app.state.readiness()

    def render() -> bytes:
        nodes: list[dict[str, Any]] | None = None
        try:
            nodes = request.app.state.nodes()
        except Exception as error:
            log.warning("metrics: the cluster cannot be asked: %s", type(error).__name__)
        body: bytes = request.app.state.metrics.render(parts, nodes)
        return body

    return Response(await run_in_threadpool(render), media_type=CONTENT_TYPE_LATEST)


@router.get("/metrics/nodes")
async def metrics_nodes(request: Request, core: CoreDep) -> list[dict[str, Any]]:
    """Where Ray's nodes export theirs, as Prometheus' HTTP service discovery reads it."""
    await _authorize(request, core)
    exporting = [n for n in await run_in_threadpool(request.app.state.nodes) if n["alive"] and n["metrics_port"]]
    return [{"targets": [f"{n['address']}:{n['metrics_port']}"], "labels": {}} for n in exporting]


async def _authorize(request: Request, core: Core) -> None:
    header = request.headers.get("authorization", "")
    # The token is a file's, so that metrics are there also while the database is away.
    if hmac.compare_digest(header.encode(), f"Bearer {core.keys.metrics}".encode()):
        return
    who = await caller(request)
    if not isinstance(who, Principal) or who.role is not Role.OPERATOR:
        raise ForbiddenError("metrics are for operators, and for Prometheus with the token in keys/metrics-token")
