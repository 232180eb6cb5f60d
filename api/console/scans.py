"""Scans: list, upload, the viewer with its tiles, and the AI request."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from api.console.faults import by_field
from api.console.images import CursorFilter, NameFilter, older
from api.console.pages import ConsoleRoute, go, page
from api.console.rows import job_rows
from api.console.session import VisitorDep, WriteDep
from api.deps import CoreDep, IdPath
from mhs_ray.domain.errors import ConflictError, InvalidInputError, MhsError, SlideError
from mhs_ray.domain.ids import parse_id
from mhs_ray.domain.models import Priority, Provider, ScanStatus
from mhs_ray.services.core import Core
from mhs_ray.services.policy import url_policy
from mhs_ray.services.slide_views import SlideViews
from mhs_ray.services.submissions import from_api
from mhs_ray.slides.cache import CacheLimits, SlideCache
from mhs_ray.slides.deepzoom import TILE
from mhs_ray.slides.fetch import FetchLimits
from mhs_ray.store.blobs.local import LocalBlobs
from mhs_ray.store.sql.jobs import JobFilter

router = APIRouter(prefix="/console/scans", include_in_schema=False, route_class=ConsoleRoute)
REQUEST_TYPES = ("AI analysis",)


def views_of(request: Request) -> SlideViews:
    """Return this replica's open slides."""
    state = request.app.state
    if not hasattr(state, "slide_views"):
        core: Core = state.core
        settings = core.settings

        def cache() -> SlideCache:
            return SlideCache(
                settings.node_dir / "slides",
                limits=CacheLimits(max_bytes=settings.slides.cache),
                fetch_limits=FetchLimits(max_bytes=settings.slides.max_slide),
                policy=url_policy(settings, core.endpoints),
            )

        state.slide_views = SlideViews(core.scans, core.blobs, cache)
    views: SlideViews = state.slide_views
    return views


# ------------------------------------------------------------ list and registration


@router.get("")
def scans(
    request: Request,
    core: CoreDep,
    seen: VisitorDep,
    name: NameFilter = "",
    status: str = "",
    cursor: CursorFilter = None,
) -> Response:
    """The list."""
    return _list(request, core, seen.who.company_id, name, status, cursor)


def _list(
    request: Request, core: Core, company: int, name: str = "", status: str = "", cursor: str | None = None,
    *, register: dict[str, str] | None = None, faults: dict[str, str] | None = None,
) -> Response:  # fmt: skip
    status = status if status in set(ScanStatus) else ""
    text = name.strip()
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None
    listed = core.scans.scans
    found = listed.page(company, cursor=cursor, limit=50, name=text or None, status=status or None, number=None)
    if number is not None and not found.items:
        found = listed.page(company, cursor=cursor, limit=50, name=None, status=status or None, number=number)
    return page(
        request, "scans.html", 422 if faults else 200, page=found, name=name, status=status, statuses=list(ScanStatus),
        older=older("/console/scans", found.next_cursor, name=name, status=status), faults=faults,
        register=register or {"how": "url", "where": "", "name": "", "number": ""},
        resumable=isinstance(core.blobs, LocalBlobs), paths=core.settings.cluster.placement == "single",
        connect=_blob_origin(core),
    )  # fmt: skip


def _blob_origin(core: Core) -> str:
    parts = urlsplit(core.blobs.sign("scans/0/0/slide", "PUT", timedelta(seconds=60)))
    return f"{parts.scheme}://{parts.netloc}"


@router.post("/register")
def register(request: Request, core: CoreDep, write: WriteDep) -> Response:
    """Register a slide by URL, or by its path on the platform's machine."""
    form = write.form
    typed = {key: form.text(key) for key in ("how", "where", "name", "number")}
    try:
        number = parse_id(typed["number"], "scan", "$.number") if typed["number"] else None
        if not typed["where"]:
            raise InvalidInputError.at("$.where", "say where the slide is")
        add = core.scans.add_path if typed["how"] == "path" else core.scans.add_url
        made = add(write.who, typed["where"], typed["name"] or None, number)
    except InvalidInputError as error:
        faults = by_field(error, {"$.path": "where", "$.url": "where"})
        return _list(request, core, write.who.company_id, register=typed, faults=faults)
    except SlideError as error:
        return _list(request, core, write.who.company_id, register=typed, faults={"where": f"{error}."})
    return go(f"/console/scans/{made.id}", "Registered.")


# ------------------------------------------------------------ upload: begun here, sent to the blob store, ended here


@router.post("/upload")
def begin_upload(core: CoreDep, write: WriteDep) -> Response:
    """Return where a file's bytes are to be PUT; `scan` goes on with an upload that was cut off."""
    form = write.form
    try:
        if form.text("scan").isdigit():
            scan, url, _ = core.scans.resume_upload(write.who, int(form.text("scan")))
        else:
            scan, url, _ = core.scans.begin_upload(write.who, form.text("filename"), None, None)
    except MhsError as error:
        return _refused(error)
    return JSONResponse({"id": scan.id, "url": url})


@router.post("/{scan_id}/complete")
def complete(core: CoreDep, write: WriteDep, scan_id: IdPath) -> Response:
    """Open what was uploaded; one that is no slide is removed again, and the answer says why."""
    try:
        scan = core.scans.complete_upload(write.who, scan_id)
    except MhsError as error:
        return _refused(error)
    return JSONResponse({"id": scan.id, "href": f"/console/scans/{scan.id}"})


def _refused(error: MhsError) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 409 if isinstance(error, ConflictError) else 422)


# ------------------------------------------------------------ one scan


@router.get("/{scan_id}")
def scan(request: Request, core: CoreDep, seen: VisitorDep, scan_id: IdPath) -> Response:
    """The viewer, what is known of the slide, and its jobs."""
    return _detail(request, core, seen.who.company_id, scan_id)


def _detail(
    request: Request, core: Core, company: int, scan_id: int, fields: dict[str, Any] | None = None,
    faults: dict[str, str] | None = None,
) -> Response:  # fmt: skip
    found = core.scans.scans.get(company, scan_id)
    jobs = core.jobs.jobs.page(company, JobFilter(scan_id=scan_id), cursor=None, limit=20)
    algorithms = core.algorithms.algorithms.page(company, cursor=None, limit=500, name=None).items
    others = core.scans.scans.page(company, cursor=None, limit=200, name=None, status=ScanStatus.READY, number=None)
    chosen = [found, *(s for s in others.items if s.id != found.id)]
    return page(
        request, "scan.html", 422 if faults else 200, scan=found, jobs=job_rows(core, company, jobs.items),
        algorithms=[a for a in algorithms if a.provider is Provider.MHS], scans=chosen, faults=faults,
        request_types=REQUEST_TYPES, priorities=[p.value for p in Priority],
        f=fields
        or {"algorithm": "", "scans": [str(scan_id)], "description": "", "assigned_to": "", "priority": "clinical"},
    )  # fmt: skip


@router.post("/{scan_id}/request")
async def ai_request(request: Request, core: CoreDep, write: WriteDep, scan_id: IdPath) -> Response:
    """An AI request on one or more scans: one job each."""
    form = write.form
    fields: dict[str, Any] = {
        "algorithm": form.text("algorithm"), "scans": form.every("scan"), "description": form.text("description"),
        "assigned_to": form.text("assigned_to"), "priority": form.text("priority"),
    }  # fmt: skip
    try:
        if not fields["algorithm"].isdigit():
            raise InvalidInputError.at("$.algorithm_id", "choose an AI model")
        priority = next((p for p in Priority if p.value == fields["priority"]), Priority.CLINICAL)
        submission = from_api(
            write.who, host=core.settings.host, algorithm_id=int(fields["algorithm"]), algorithm=None,
            scan_ids=[int(s) for s in fields["scans"] if s.isdigit()], task_id=None, case_id=None, priority=priority,
            description=fields["description"][:10_000],
        )  # fmt: skip
        asked = {"request_type": form.text("request_type"), "assigned_to": fields["assigned_to"][:200]}
        done = await request.app.state.intake.submit(replace(submission, request=asked))
    except InvalidInputError as error:
        faults: dict[str, str] = {}
        for name, text in by_field(error, {"$.algorithm_id": "algorithm", "$.scan_ids": "scans"}).items():
            field = "scans" if name.startswith("scan_ids") else name
            faults[field] = f"{faults[field]} {text}" if field in faults else text
        return await run_in_threadpool(_detail, request, core, write.who.company_id, scan_id, fields, faults)
    if len(done.job_ids) == 1:
        return go(f"/console/jobs/{done.job_ids[0]}")
    return go(f"/console/jobs?task={done.task.number}", f"{len(done.job_ids)} jobs are queued.")


@router.post("/{scan_id}/delete")
def delete(request: Request, core: CoreDep, write: WriteDep, scan_id: IdPath) -> Response:
    """Remove one that no job used."""
    found = core.scans.scans.get(write.who.company_id, scan_id)
    try:
        core.scans.delete(write.who, scan_id)
    except ConflictError as error:
        return _detail(request, core, write.who.company_id, scan_id, faults=by_field(error))
    return go("/console/scans", f"{found.name} is deleted.")


# ------------------------------------------------------------ pixels

_KEEP = {"Cache-Control": "private, max-age=86400, immutable"}


@router.get("/{scan_id}/slide.json")
def slide_facts(request: Request, core: CoreDep, seen: VisitorDep, scan_id: IdPath) -> Response:
    """Size and scale for the viewer; fetches a slide that is not on this machine first."""
    try:
        facts = views_of(request).facts(seen.who, scan_id)
    except MhsError as error:
        return _refused(error)
    mpp = facts.mpp
    return JSONResponse(
        {
            "width": facts.width, "height": facts.height, "tile": TILE, "power": facts.objective_power,
            "mpp": [mpp.x, mpp.y] if mpp else None,
        }
    )  # fmt: skip


@router.get("/{scan_id}/dz.dzi")
def dzi(request: Request, core: CoreDep, seen: VisitorDep, scan_id: IdPath) -> Response:
    """The Deep Zoom descriptor, for viewers other than ours."""
    facts = views_of(request).facts(seen.who, scan_id)
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        f'<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" Format="jpeg" Overlap="0" TileSize="{TILE}">'
        f'<Size Width="{facts.width}" Height="{facts.height}"/></Image>'
    )
    return Response(xml, media_type="application/xml", headers=_KEEP)


@router.get("/{scan_id}/dz_files/{level}/{column}_{row}.jpeg")
def tile(
    request: Request, core: CoreDep, seen: VisitorDep, scan_id: IdPath, level: int, column: int, row: int
) -> Response:
    """One tile."""
    try:
        data = views_of(request).tile(seen.who, scan_id, level, column, row)
    except SlideError as error:
        return Response(str(error), 404 if error.reason == "no-such-tile" else 422, media_type="text/plain")
    return Response(data, media_type="image/jpeg", headers=_KEEP)


@router.get("/{scan_id}/thumbnail.jpeg")
def thumbnail(request: Request, core: CoreDep, seen: VisitorDep, scan_id: IdPath) -> Response:
    """A small picture; an empty one where the slide would have to be fetched first."""
    try:
        data = views_of(request).thumbnail(seen.who, scan_id)
    except (SlideError, ConflictError):
        data = None
    if data is None:
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 48"><rect width="72" height="48" fill="#eef0f3"/>'
            '<rect x="14" y="14" width="44" height="20" rx="2" fill="none" stroke="#868e9a"/></svg>'
        )
        return Response(svg, media_type="image/svg+xml", headers={"Cache-Control": "private, max-age=30"})
    return Response(data, media_type="image/jpeg", headers=_KEEP)
