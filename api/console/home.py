"""The first page, signing in and out, switching between companies, and the static files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, RedirectResponse

from api.console import session
from api.console.pages import STATIC, ConsoleRoute, go, page
from api.console.rows import job_rows
from api.console.session import VisitorDep, WriteDep
from api.deps import CoreDep
from mhs_ray.domain.errors import (
    ForbiddenError,
    InvalidInputError,
    NotFoundError,
    RateLimitedError,
    UnauthenticatedError,
)
from mhs_ray.domain.states import JobState
from mhs_ray.services.core import Core
from mhs_ray.store.sql.jobs import JobFilter
from mhs_ray.store.sql.overview import Counts, Overview

router = APIRouter(include_in_schema=False, route_class=ConsoleRoute)
_LOOK_BACK = timedelta(days=7)
_LONG_WAIT = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class _Card:
    name: str
    href: str
    count: int
    note: str


@dataclass(frozen=True, slots=True)
class _Waiting:
    count: int
    since: datetime
    age: float
    mend: str


@router.get("/")
def root() -> RedirectResponse:
    """People who open the API's address want the console."""
    return RedirectResponse("/console/", 307)


@router.get("/console")
def console() -> RedirectResponse:
    """The console's own address."""
    return RedirectResponse("/console/", 308)


@router.get("/console/")
def home(request: Request, core: CoreDep, seen: VisitorDep) -> Response:
    """Everything at a glance, and what somebody should look at."""
    overview = Overview(core.db)
    company, now = seen.who.company_id, datetime.now(UTC)
    counts = overview.counts(company)
    jobs = core.jobs.jobs.page(company, JobFilter(), cursor=None, limit=8)
    return page(
        request, "home.html",
        cards=_cards(counts, seen.sees_cluster, overview),
        broken=overview.broken(company),
        failures=overview.failures(company, now - _LOOK_BACK),
        waiting=_waiting(core, company, counts, now),
        jobs=job_rows(core, company, jobs.items),
    )  # fmt: skip


def _cards(counts: Counts, cluster: bool, overview: Overview) -> list[_Card]:
    jobs = counts.jobs
    running = sum(n for state, n in jobs.items() if JobState(state).is_active)
    cards = [
        _Card("Docker Images", "/console/images", sum(counts.images.values()), _listed(counts.images)),
        _Card("Runnable Containers", "/console/containers", counts.containers, "image, instance type, variables"),
        _Card("Case Algorithms", "/console/algorithms", counts.algorithms, "what people pick as AI model"),
        _Card("Scans", "/console/scans", sum(counts.scans.values()), _listed(counts.scans)),
        _Card(
            "Jobs and Logs", "/console/jobs", sum(jobs.values()),
            f"{running} running, {jobs.get(JobState.QUEUED, 0)} queued",
        ),
    ]  # fmt: skip
    if cluster:
        placed = overview.placed()
        cards.append(_Card("Cluster", "/console/cluster", len(placed), "attempts on it now, of all companies"))
    return cards


def _listed(counts: Any) -> str:
    return ", ".join(f"{n} {name}" for name, n in counts.items()) or "none yet"


def _waiting(core: Core, company: int, counts: Counts, now: datetime) -> _Waiting | None:
    queued = counts.jobs.get(JobState.QUEUED, 0)
    since = core.jobs.jobs.oldest_queued(company) if queued else None
    if since is None or now - since < _LONG_WAIT:
        return None
    running = sum(n for state, n in counts.jobs.items() if JobState(state).is_active)
    mend = (
        "They start as running jobs end; each page shows its place in the queue."
        if running
        else "None of yours runs: ask the operator whether the cluster has nodes of their instance type."
    )
    return _Waiting(queued, since, (now - since).total_seconds(), mend)


# ------------------------------------------------------------ signing in


@router.get("/console/sign-in")
def sign_in_page(
    request: Request,
    core: CoreDep,
    next_: Annotated[str | None, Query(alias="next", max_length=2000)] = None,
    add: bool = False,
) -> Response:
    """Asks for a client's id and secret."""
    if add and session.session_of(request, core) is None:
        add = False
    return page(
        request,
        "sign_in.html",
        next=session.safe_next(next_),
        add=add,
        client_id="",
        faults={},
        providers=_providers(core),
    )


@router.post("/console/sign-in")
async def sign_in(request: Request, core: CoreDep) -> Response:
    """Checks them, and leads back to where one was."""
    form = await session.read_form(request)
    target = session.safe_next(form.text("next"))
    client_id = form.text("client_id")
    former = session.session_of(request, core)
    try:
        who = await run_in_threadpool(core.verifier.verify, client_id, form.get("client_secret", "").strip())
    except (UnauthenticatedError, ForbiddenError, RateLimitedError) as error:
        status = 429 if isinstance(error, RateLimitedError) else 403 if isinstance(error, ForbiddenError) else 401
        return page(
            request, "sign_in.html", status, next=target, add=former is not None, client_id=client_id,
            faults={"": _shout(str(error))}, providers=_providers(core),
        )  # fmt: skip
    query = "&" if "?" in target else "?"
    response = go(f"{target}{query}resumed=1")
    session.start(core, response, request, who, former)
    await run_in_threadpool(core.audit.note, who, "sign in", "/console")
    return response


def _providers(core: Core) -> list[tuple[int, str]]:
    return [(n, p.settings.name) for n, p in enumerate(core.outsiders.providers) if p.settings.client_id]


def _shout(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


@router.post("/console/sign-out")
def sign_out(request: Request, write: WriteDep) -> Response:
    """Ends this browser's session."""
    response = go("/console/sign-in")
    session.end(response, request)
    return response


@router.post("/console/switch")
def switch(request: Request, core: CoreDep, write: WriteDep) -> Response:
    """Works as another client that this browser signed in with."""
    wanted = write.form.text("to")
    if wanted not in {str(index) for index, _, _ in write.visitor.others}:
        raise InvalidInputError.at("$.to", "this browser is not signed in there any more")
    response = go("/console/")
    session.put_cookie(core, response, request, replace(write.visitor.session, active=int(wanted), expires_at=None))
    return response


# ------------------------------------------------------------ static files

_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".txt": "text/plain"}


@router.get("/console/static/{tag}/{name:path}")
def static(tag: str, name: str) -> FileResponse:
    """Our scripts and styles; `tag` changes with their content."""
    file = (STATIC / name).resolve()
    if not file.is_relative_to(STATIC) or not file.is_file() or file.suffix not in _TYPES:
        raise NotFoundError("file", name)
    return FileResponse(
        file, media_type=_TYPES[file.suffix], headers={"Cache-Control": "public, max-age=31536000, immutable"}
    )
