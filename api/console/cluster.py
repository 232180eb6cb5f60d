"""Cluster: for operators."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from api.console.pages import ConsoleRoute, page
from api.console.session import VisitorDep
from api.deps import CoreDep
from mhs_ray.domain.capacity import Capacity
from mhs_ray.domain.errors import ForbiddenError
from mhs_ray.store.sql.overview import Overview, Placed

router = APIRouter(include_in_schema=False, route_class=ConsoleRoute)
log = logging.getLogger(__name__)
_PERIODS: Final = {"1": "24 hours", "7": "7 days", "30": "30 days", "365": "a year"}


@dataclass(frozen=True, slots=True)
class _Node:
    name: str
    id: str
    alive: bool
    instance_type: str
    address: str
    gpus: float
    cpus: float
    memory_bytes: float
    jobs: list[Placed]


@router.get("/console/cluster")
async def cluster(
    request: Request, core: CoreDep, seen: VisitorDep, days: Annotated[str, Query(max_length=4)] = "30"
) -> Response:
    """Nodes by instance type, what runs where, the queue, and usage by company."""
    if not seen.sees_cluster:
        raise ForbiddenError("the cluster is shown to operators only")
    view, problem = list[dict[str, Any]](), ""
    try:
        view = await run_in_threadpool(request.app.state.nodes)
    except Exception as error:
        log.warning("the cluster cannot be asked: %s", error)
        problem = "Ray does not answer; what the database knows is shown."
    known = await run_in_threadpool(request.app.state.capacity)
    scaling = {kind: c for kind, c in known.items() if c.nodes or c.starting or c.refused is not None}
    return await run_in_threadpool(_render, request, core, seen, view, problem, days, scaling)


def _render(
    request: Request, core: CoreDep, seen: VisitorDep, view: Sequence[Mapping[str, Any]], problem: str, days: str,
    scaling: Mapping[str, Capacity],
) -> Response:  # fmt: skip
    overview = Overview(core.db)
    placed, queued = overview.placed(), overview.queued()
    company = None if seen.is_operator else seen.who.company_id
    if company is not None:
        placed = [p for p in placed if p.company_id == company]
    days = days if days in _PERIODS else "30"
    nodes = [_node(n, placed) for n in view]
    known = {p.id for n in nodes for p in n.jobs}
    return page(
        request, "cluster.html", nodes=nodes, elsewhere=[p for p in placed if p.id not in known],
        queued=queued,
        usage=overview.usage(datetime.now(UTC) - timedelta(days=int(days)), company), days=days, periods=_PERIODS,
        problem=problem, scaling=scaling, dashboard=core.endpoints.dashboard_url,
        placement=core.settings.cluster.placement,
    )  # fmt: skip


def _node(facts: Mapping[str, Any], placed: list[Placed]) -> _Node:
    short = str(facts["id"])[:8]
    # A job names its node "host (start of Ray's node id)".
    jobs = [p for p in placed if p.node and f"({short})" in p.node]
    return _Node(
        facts["name"], short, facts["alive"], facts["instance_type"], facts["address"], facts["gpus"], facts["cpus"],
        facts["memory_bytes"], jobs,
    )  # fmt: skip
