"""Jobs and Logs: the list with its filters, bulk retry and cancel, and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Annotated, Any, Final
from urllib.parse import parse_qsl, urlencode

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse

from api.console import formats
from api.console.pages import ConsoleRoute, go, is_partial, page
from api.console.rows import JobRow, job_rows
from api.console.session import VisitorDep, WriteDep, safe_next
from api.deps import CoreDep
from mhs_ray.domain.errors import ConflictError, InvalidInputError, MhsError, NotFoundError
from mhs_ray.domain.failures import FailureClass, FailureCode
from mhs_ray.domain.ids import parse_id
from mhs_ray.domain.states import ACTIVE, TERMINAL, JobState
from mhs_ray.services.core import Core
from mhs_ray.store.sql.jobs import JobFilter
from mhs_ray.store.sql.overview import Overview

router = APIRouter(include_in_schema=False, route_class=ConsoleRoute)
_GROUPS: Final = {
    "active": tuple(sorted(ACTIVE)),
    "unfinished": (JobState.QUEUED, *sorted(ACTIVE)),
    "ended": tuple(sorted(TERMINAL)),
    "went wrong": (JobState.FAILED, JobState.TIMED_OUT),
}
_WRONG: Final = (JobState.FAILED, JobState.TIMED_OUT)
_FIELDS: Final = (
    "q", "state", "container", "algorithm", "scan", "task", "who", "failure", "failure_code", "after", "before",
)  # fmt: skip
_BULK_MAX: Final = 500
Text = Annotated[str, Query(max_length=200)]


class Filters:
    """The list's filters as they stand in the address: every combination can be kept as a link."""

    def __init__(
        self, request: Request, q: Text = "", state: Text = "", container: Text = "", algorithm: Text = "",
        scan: Text = "", task: Text = "", who: Text = "", failure: Text = "", failure_code: Text = "",
        after: Text = "", before: Text = "",
    ) -> None:  # fmt: skip
        values = locals()
        self.given = {name: str(values[name]).strip() for name in _FIELDS}
        self._zone = formats.zone(request.cookies.get("mhs_tz", ""))

    @property
    def query(self) -> str:
        """The filters that are set, as a query."""
        return urlencode({name: value for name, value in self.given.items() if value})

    def wanted(self) -> JobFilter:
        """Return what the store filters by; what cannot be is left out."""
        g = self.given
        states = _GROUPS.get(g["state"]) or ((g["state"],) if g["state"] in set(JobState) else ())
        return JobFilter(
            states=tuple(str(s) for s in states),
            container_id=_number(g["container"]),
            algorithm=g["algorithm"] or None,
            scan_id=_number(g["scan"]),
            task_number=_task(g["task"]),
            created_by=g["who"] or None,
            failure_class=g["failure"] if g["failure"] in set(FailureClass) else None,
            failure_code=g["failure_code"] if g["failure_code"] in set(FailureCode) else None,
            created_after=self._day(g["after"]),
            created_before=self._day(g["before"], end=True),
            search=g["q"] or None,
        )

    def _day(self, text: str, *, end: bool = False) -> datetime | None:
        try:
            day = datetime.fromisoformat(text).replace(tzinfo=self._zone)
            return day + timedelta(days=1) if end else day
        except (ValueError, OverflowError):
            return None


FiltersDep = Annotated[Filters, Depends(Filters)]


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 15 else None


def _task(text: str) -> int | None:
    try:
        return parse_id(text, "task") if text else None
    except InvalidInputError:
        return None


@router.get("/console/jobs")
def jobs(
    request: Request, core: CoreDep, seen: VisitorDep, filters: FiltersDep,
    cursor: Annotated[str | None, Query(max_length=100)] = None,
) -> Response:  # fmt: skip
    """The list, newest first."""
    company, overview = seen.who.company_id, Overview(core.db)
    found = core.jobs.jobs.page(company, filters.wanted(), cursor=cursor, limit=50)
    rows = job_rows(core, company, found.items)
    query = filters.query
    shared: dict[str, Any] = {
        "rows": rows,
        "positions": overview.queue_positions([r.job.id for r in rows if r.job.state is JobState.QUEUED]),
        "older": f"/console/jobs?{query}{'&' if query else ''}{urlencode({'cursor': found.next_cursor or ''})}",
        "next_cursor": found.next_cursor,
    }
    if cursor and is_partial(request):
        return page(request, "_job_rows.html", **shared)
    scan = _number(filters.given["scan"])
    return page(
        request, "jobs.html", f=filters.given, filter_query=query, choices=overview.choices(company), cursor=cursor,
        states=[*_GROUPS, *JobState], failure_classes=[c.value for c in FailureClass],
        scan_name=overview.scan_names(company, [scan]).get(scan, str(scan)) if scan else "",
        retry_all=filters.given["state"] in {"failed", "timed out", "went wrong"} or bool(filters.given["failure"]),
        **shared,
    )  # fmt: skip


@router.post("/console/jobs/bulk")
def bulk(request: Request, core: CoreDep, write: WriteDep) -> Response:
    """Retry or cancel the chosen jobs, or retry all that match the filters and went wrong."""
    form, query = write.form, write.form.text("query")
    action = form.text("action")
    back = safe_next(f"/console/jobs?{query}" if query else "/console/jobs")
    if action == "retry-all":
        ids = _matching(core, write.who.company_id, request, query)
    else:
        ids = sorted({int(i) for i in form.every("job") if i.isascii() and i.isdigit() and len(i) <= 15})[:_BULK_MAX]
    done, refused = 0, list[str]()
    for job_id in ids:
        try:
            if action == "cancel":
                core.jobs.cancel(write.who, job_id)
            else:
                core.jobs.rerun(write.who, job_id)
            done += 1
        except (ConflictError, NotFoundError) as error:
            refused.append(str(error))
    word = "cancelled" if action == "cancel" else "queued again"
    text = f"{done} job{'' if done == 1 else 's'} {word}."
    if refused:
        text += f" {len(refused)} could not be: {refused[0]}" + (", and others alike." if len(refused) > 1 else ".")
    return go(back, text)


def _matching(core: Core, company: int, request: Request, query: str) -> list[int]:
    """Return the jobs of the filters that went wrong and were not run again since, up to the limit."""
    given = {k: v for k, v in parse_qsl(query) if k in _FIELDS}
    wanted = Filters(request, **given).wanted()
    states = tuple(s for s in wanted.states if s in _WRONG) or tuple(str(s) for s in _WRONG)
    wanted = replace(wanted, states=states)
    return [j.id for j in core.jobs.jobs.page(company, wanted, cursor=None, limit=_BULK_MAX).items]


@router.get("/console/jobs.csv")
def csv_of(core: CoreDep, seen: VisitorDep, filters: FiltersDep) -> StreamingResponse:
    """All jobs that fit, for a spreadsheet."""
    headers = {"Content-Disposition": 'attachment; filename="jobs.csv"', "Cache-Control": "no-store"}
    lines = _csv(core, seen.who.company_id, filters.wanted())
    return StreamingResponse(lines, media_type="text/csv; charset=utf-8", headers=headers)


_COLUMNS: Final = (
    "job", "state", "task", "scan_id", "scan", "algorithm", "container", "image_digest", "instance_type", "priority",
    "attempt", "node", "created_by", "created_at", "started_at", "ended_at", "waited_s", "duration_s", "failure_class",
    "failure_code", "cause",
)  # fmt: skip


def _csv(core: Core, company: int, wanted: JobFilter) -> Iterator[str]:
    yield ",".join(_COLUMNS) + "\r\n"
    cursor = None
    while True:
        found = core.jobs.jobs.page(company, wanted, cursor=cursor, limit=500)
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        writer.writerows([_cell(v) for v in _values(row)] for row in job_rows(core, company, found.items))
        yield buffer.getvalue()
        cursor = found.next_cursor
        if cursor is None:
            return


def _values(row: JobRow) -> list[Any]:
    j = row.job
    return [
        j.id, j.state.value, j.task_number, j.scan_number, row.scan_name, j.algorithm_name, j.container_name,
        j.image_digest, j.instance_type, j.priority.value, j.attempt, j.node, j.created_by, j.created_at, j.started_at,
        j.ended_at, row.waited, row.duration, j.failure.failure_class.value if j.failure else None,
        j.failure.code.value if j.failure else None, j.failure.cause if j.failure else None,
    ]  # fmt: skip


def _cell(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    if isinstance(value, float):
        return f"{value:.3f}"
    text = "" if value is None else str(value)
    # A spreadsheet takes such a text for a formula and runs it.
    return f"'{text}" if text[:1] in {"=", "+", "-", "@", "\t", "\r"} else text


@router.post("/console/jobs/{job_id}/cancel")
def cancel(core: CoreDep, write: WriteDep, job_id: int) -> Response:
    """End a job that has not ended."""
    return _one(job_id, lambda: core.jobs.cancel(write.who, job_id), "Cancelled.")


@router.post("/console/jobs/{job_id}/retry")
def retry(core: CoreDep, write: WriteDep, job_id: int) -> Response:
    """Queue an ended job anew."""
    try:
        job = core.jobs.rerun(write.who, job_id)
    except ConflictError as error:
        return go(f"/console/jobs/{job_id}", f"Not retried: {error}.")
    return go(f"/console/jobs/{job.id}", f"This is job {job_id} once more, with the image digest and variables it had.")


def _one(job_id: int, act: Any, text: str) -> Response:
    try:
        act()
    except NotFoundError:
        raise
    except MhsError as error:
        text = f"{error}."
    return go(f"/console/jobs/{job_id}", text)
