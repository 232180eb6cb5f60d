"""The page of one job: its story, failure card, live log, resources, and its results over the slide."""

from __future__ import annotations

import gzip
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, BinaryIO, Final, cast

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse, StreamingResponse

from api.console.charts import usage_curves
from api.console.formats import TONES
from api.console.pages import ConsoleRoute, is_partial, page
from api.console.rows import job_row
from api.console.session import VisitorDep
from api.console.widgets import widgets_of
from api.deps import CoreDep, IdPath
from api.routes.jobs import waits_because
from api.routes.logs import get_log
from api.routes.results import get_job_results
from mhs_ray.attempt.log_search import count_lines, search_log
from mhs_ray.attempt.tiles import read_progress
from mhs_ray.domain.errors import NotFoundError
from mhs_ray.domain.models import Job, JobEventRecord, Principal
from mhs_ray.domain.states import JobState
from mhs_ray.domain.tile_feed import VARIABLE
from mhs_ray.services.core import Core
from mhs_ray.services.jobs import debug_key
from mhs_ray.store.sql.containers import open_env
from mhs_ray.store.sql.results import StoredResult

router = APIRouter(prefix="/console/jobs", include_in_schema=False, route_class=ConsoleRoute)
_MAX_LINES: Final = 2000
AttemptQuery = Annotated[int | None, Query(ge=1, le=1_000_000)]


@dataclass(frozen=True, slots=True)
class _Step:
    """A line of the timeline. took: seconds until the next one, or up to now."""

    event: JobEventRecord
    tone: str
    took: float | None
    new_attempt: bool


def _steps(events: list[JobEventRecord]) -> list[_Step]:
    steps = []
    for i, event in enumerate(events):
        after = events[i + 1].at if i + 1 < len(events) else None
        took = None if after is None else max(0.0, (after - event.at).total_seconds())
        new_attempt = event.attempt > (events[i - 1].attempt if i else 0)
        tone = "bad" if event.event == "retried" else TONES.get(event.state, "off")
        steps.append(_Step(event, tone, took, new_attempt))
    return steps


@router.get("/{job_id}")
def job(request: Request, core: CoreDep, seen: VisitorDep, job_id: IdPath, attempt: AttemptQuery = None) -> Response:
    """Everything about one job."""
    company = seen.who.company_id
    found = core.jobs.jobs.get(company, job_id)
    if attempt is not None and attempt > found.attempt:
        raise NotFoundError("attempt", f"{attempt} of job {job_id}")
    shown = attempt or found.attempt
    raw = core.jobs.jobs.row(job_id)
    result = core.jobs.results.of_job(company, job_id)
    scan = core.scans.scans.get(company, found.scan_id)
    env = open_env(core.db, raw.env)
    response = page(
        request, "job.html", job=found, row=job_row(found, scan.name),
        steps=_steps(core.jobs.jobs.events(company, job_id)),
        task=core.tasks.get(company, found.task_number), asked=core.tasks.request(company, found.task_number),
        position=core.jobs.jobs.queue_position(job_id) if found.state is JobState.QUEUED else None,
        waits_because=waits_because(found, request.app.state.capacity),
        env=env, time_limit_s=raw.time_limit_s, attempt=shown, scan=scan,
        curves=usage_curves(core.blobs, job_id, shown) if shown else [], result=result,
        widgets=widgets_of(result) if result else [], places=_has_places(result),
        debug=bool(shown) and core.blobs.stat(debug_key(job_id, shown)) is not None,
        lines=count_lines(core.blobs, job_id, shown) if shown else 0,
        tiles=read_progress(core.blobs, job_id, shown) if shown and any(v.name == VARIABLE for v in env) else None,
        dashboard=core.endpoints.dashboard_url if seen.is_operator else "",
    )  # fmt: skip
    if is_partial(request) and found.state.is_terminal:
        response.headers["HX-Trigger"] = "job-ended"
    return response


def _has_places(result: StoredResult | None) -> bool:
    """Say whether anything of a result has a place on the slide."""
    if result is None:
        return False
    report = (result.workflow or {}).get("report") or {}
    return bool(result.features) or bool(report.get("type"))


# ------------------------------------------------------------ log


def _attempt_of(core: Core, who: Principal, job_id: int, attempt: int | None) -> tuple[Job, int]:
    found = core.jobs.jobs.get(who.company_id, job_id)
    if attempt is not None and attempt > found.attempt:
        raise NotFoundError("attempt", f"{attempt} of job {job_id}")
    return found, attempt or found.attempt


@router.get("/{job_id}/log/lines")
def log_lines(
    core: CoreDep, seen: VisitorDep, job_id: IdPath, attempt: AttemptQuery = None,
    start: Annotated[int, Query(ge=0, le=10**12)] = 0, count: Annotated[int, Query(ge=1, le=_MAX_LINES)] = 500,
) -> Response:  # fmt: skip
    """Some lines of a log: [[time, source, text], …], from line `start` on."""
    found, number = _attempt_of(core, seen.who, job_id, attempt)
    lines = islice(core.jobs.log_of(found, number, start), count) if number else ()
    return JSONResponse(
        {"attempt": number, "start": start, "lines": [(line.at, line.source[0], line.text) for line in lines]},
        headers={"Cache-Control": "no-store"},
    )


@router.get("/{job_id}/log/search")
def log_search(
    core: CoreDep, seen: VisitorDep, job_id: IdPath, q: Annotated[str, Query(min_length=1, max_length=500)],
    attempt: AttemptQuery = None,
) -> Response:  # fmt: skip
    """Numbers of the lines that hold `q`."""
    _, number = _attempt_of(core, seen.who, job_id, attempt)
    hits = search_log(core.blobs, job_id, number, q)
    return JSONResponse({"lines": hits.lines, "more": hits.more}, headers={"Cache-Control": "no-store"})


@router.get("/{job_id}/log/stream")
async def log_stream(
    request: Request, core: CoreDep, seen: VisitorDep, job_id: IdPath, attempt: AttemptQuery = None,
    offset: Annotated[int, Query(ge=0, le=10**12)] = 0,
    last_event_id: Annotated[str | None, Header(max_length=40)] = None,
) -> Response:  # fmt: skip
    """New lines as server-sent events, until the job has ended."""
    return await get_log(
        request, core, seen.who, job_id, follow=True, attempt=attempt, offset=offset, last_event_id=last_event_id
    )


@router.get("/{job_id}/log.txt")
async def log_text(
    request: Request, core: CoreDep, seen: VisitorDep, job_id: IdPath, attempt: AttemptQuery = None,
    timestamps: bool = True, save: bool = False,
) -> Response:  # fmt: skip
    """The whole log as plain text."""
    response = await get_log(
        request, core, seen.who, job_id, attempt=attempt, timestamps=timestamps, last_event_id=None
    )
    if save:
        response.headers["Content-Disposition"] = f'attachment; filename="job-{job_id}.log"'
    return response


# ------------------------------------------------------------ results


@router.get("/{job_id}/annotations.geojson")
def places(request: Request, core: CoreDep, seen: VisitorDep, job_id: IdPath) -> Response:
    """What has a place on the slide, for the viewer; compressed, as it is large and repetitive."""
    result = core.jobs.result(seen.who, job_id)
    etag = f'"{result.digest[:32]}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache", "Vary": "Accept-Encoding"}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    spool = cast(BinaryIO, tempfile.SpooledTemporaryFile(max_size=8 << 20))  # noqa: SIM115 (closed by _pieces)
    core.jobs.export([result], "geojson", spool)
    spool.seek(0)
    if "gzip" in request.headers.get("accept-encoding", ""):
        packed = cast(BinaryIO, tempfile.SpooledTemporaryFile(max_size=8 << 20))  # noqa: SIM115 (likewise)
        with spool, gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1, mtime=0) as out:
            shutil.copyfileobj(spool, out, 1 << 20)
        packed.seek(0)
        spool = packed
        headers["Content-Encoding"] = "gzip"
    return StreamingResponse(_pieces(spool), media_type="application/geo+json", headers=headers)


def _pieces(spool: BinaryIO) -> Iterator[bytes]:
    with spool:
        while piece := spool.read(1 << 18):
            yield piece


@router.get("/{job_id}/results.{kind}")
def results(core: CoreDep, seen: VisitorDep, job_id: IdPath, kind: str) -> Response:
    """Download the result: JSON in the contract's words, GeoJSON, or GeoParquet."""
    if kind not in {"json", "geojson", "parquet"}:
        raise NotFoundError("result as", kind)
    response = get_job_results(core, seen.who, job_id, kind)  # type: ignore[arg-type]
    response.headers["Content-Disposition"] = f'attachment; filename="job-{job_id}.{kind}"'
    return response


@router.get("/{job_id}/debug.zip")
def debug(core: CoreDep, seen: VisitorDep, job_id: IdPath, attempt: AttemptQuery = None) -> Response:
    """Download what the container uploaded to DEBUG_FILE_UPLOAD_URL."""
    return RedirectResponse(core.jobs.debug_url(seen.who, job_id, attempt), 307)
