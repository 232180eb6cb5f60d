"""Scans: whole slide images."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query

from api.audited import AuditedRoute
from api.deps import CoreDep, CursorQuery, IdPath, LimitQuery, NameQuery, WhoDep, WriterDep, page_out, problems
from api.schemas.base import PageOut
from api.schemas.scans import ScanIn, ScanOut, SignedUrlOut
from mhs_ray.domain.errors import InvalidInputError
from mhs_ray.domain.ids import parse_id
from mhs_ray.domain.models import ScanStatus

router = APIRouter(prefix="/v1/scans", tags=["scans"], route_class=AuditedRoute, responses=problems())


@router.get("", summary="List scans")
def list_scans(
    core: CoreDep,
    who: WhoDep,
    cursor: CursorQuery = None,
    limit: LimitQuery = 50,
    name: NameQuery = None,
    status: ScanStatus | None = None,
    scan_id: Annotated[str | None, Query(description="the contract's SCAN_ID", max_length=60)] = None,
) -> PageOut[ScanOut]:
    """Newest first."""
    number = parse_id(scan_id, "scan", "$.scan_id") if scan_id else None
    page = core.scans.scans.page(who.company_id, cursor=cursor, limit=limit, name=name, status=status, number=number)
    return PageOut[ScanOut].model_validate(page_out(page.map(ScanOut.of)))


@router.post("", status_code=201, summary="Register a scan", responses=problems(507))
def create_scan(core: CoreDep, who: WriterDep, body: ScanIn) -> ScanOut:
    """By `path` or `url`, or by `filename`: then PUT the file to `upload_url` and POST `/v1/scans/{id}/complete`."""
    number = parse_id(body.scan_id, "scan", "$.scan_id") if body.scan_id is not None else None
    if sum(given is not None for given in (body.url, body.path, body.filename)) != 1:
        raise InvalidInputError.at("$", "give exactly one of url, path and filename")
    if body.path is not None:
        return ScanOut.of(core.scans.add_path(who, body.path, body.name, number))
    if body.url is not None:
        return ScanOut.of(core.scans.add_url(who, body.url, body.name, number))
    core.room.check()
    return ScanOut.of(*core.scans.begin_upload(who, body.filename or "", body.name, number))


@router.get("/{scan_id}", summary="Show a scan", responses=problems(404))
def get_scan(core: CoreDep, who: WhoDep, scan_id: IdPath) -> ScanOut:
    """Status and the facts of the slide."""
    return ScanOut.of(core.scans.scans.get(who.company_id, scan_id))


@router.post("/{scan_id}/complete", summary="Finish an upload", responses=problems(404, 409, 502))
def complete_scan(core: CoreDep, who: WriterDep, scan_id: IdPath) -> ScanOut:
    """Opens the uploaded file; one that is no slide is removed again, and the answer says why."""
    return ScanOut.of(core.scans.complete_upload(who, scan_id))


@router.get("/{scan_id}/url", summary="Get a signed URL of the slide", responses=problems(404, 409))
def get_scan_url(
    core: CoreDep,
    who: WhoDep,
    scan_id: IdPath,
    expires_in: Annotated[int, Query(ge=1, le=7 * 86400, description="seconds")] = 3600,
) -> SignedUrlOut:
    """Serves Range requests; answers 403 after it expired."""
    url, expires_at = core.scans.signed_url(who, scan_id, timedelta(seconds=expires_in))
    return SignedUrlOut(url=url, expires_at=expires_at)


@router.delete("/{scan_id}", status_code=204, summary="Delete a scan", responses=problems(404, 409, 502))
def delete_scan(core: CoreDep, who: WriterDep, scan_id: IdPath) -> None:
    """Refused once a job used it."""
    core.scans.delete(who, scan_id)
