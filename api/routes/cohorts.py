"""Cohorts: one container on thousands of slides, as one thing."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query, Response

from api.audited import AuditedRoute
from api.deps import CoreDep, CursorQuery, IdPath, LimitQuery, WhoDep, WriterDep, page_out, problems
from api.schemas.base import PageOut
from api.schemas.cohorts import (
    CohortIn,
    CohortOut,
    CohortRowsIn,
    CohortSlideOut,
    CohortStartIn,
    PricesOut,
    RowFaultOut,
    RowsTakenOut,
)
from mhs_ray.domain.cohorts import SlideState
from mhs_ray.domain.errors import InvalidInputError
from mhs_ray.services.cohorts import ManifestRow

router = APIRouter(route_class=AuditedRoute, responses=problems(), tags=["cohorts"])


@router.post(
    "/v1/cohorts",
    status_code=201,
    summary="Make a cohort",
    responses={200: {"model": CohortOut, "description": "this key had come before"}, **problems(409, 507)},
)
def create_cohort(core: CoreDep, who: WriterDep, response: Response, body: CohortIn) -> CohortOut:
    """A draft: send its rows in pieces, then start it. Image, variables and limits are fixed here."""
    core.room.check()
    cohort, created = core.cohorts.create(who, **body.model_dump())
    response.status_code = 201 if created else 200
    return CohortOut.of(core.cohorts.standing([cohort])[0])


@router.get("/v1/cohorts", summary="List cohorts")
def list_cohorts(core: CoreDep, who: WhoDep, cursor: CursorQuery = None, limit: LimitQuery = 50) -> PageOut[CohortOut]:
    """Newest first."""
    page = core.cohorts.page(who, cursor=cursor, limit=limit)
    return PageOut[CohortOut].model_validate(page_out(page.map(CohortOut.of)))


@router.get("/v1/cohorts/{cohort_id}", summary="Show a cohort", responses=problems(404))
def get_cohort(core: CoreDep, who: WhoDep, cohort_id: IdPath) -> CohortOut:
    """Progress, ETA, cost so far and to come."""
    return CohortOut.of(core.cohorts.get(who, cohort_id))


@router.delete("/v1/cohorts/{cohort_id}", status_code=204, summary="Delete a draft", responses=problems(404, 409))
def delete_cohort(core: CoreDep, who: WriterDep, cohort_id: IdPath) -> None:
    """A cohort that was started stays."""
    core.cohorts.delete(who, cohort_id)


@router.post("/v1/cohorts/{cohort_id}/slides", summary="Send a piece of the manifest", responses=problems(404, 409))
def add_slides(core: CoreDep, who: WriterDep, cohort_id: IdPath, body: CohortRowsIn) -> RowsTakenOut:
    """Each slide is looked at before anything runs. The same piece may be sent again and adds nothing then."""
    rows = [ManifestRow(r.row, r.id, r.slide.strip(), r.labels) for r in body.rows]
    faults = core.cohorts.add(who, cohort_id, rows)
    return RowsTakenOut.of(core.cohorts.get(who, cohort_id).received, faults)


@router.get("/v1/cohorts/{cohort_id}/faults", summary="List a manifest's faults", responses=problems(404))
def get_faults(core: CoreDep, who: WhoDep, cohort_id: IdPath) -> list[RowFaultOut]:
    """Of all rows that came so far."""
    cohort = core.cohorts.get(who, cohort_id).cohort
    return [RowFaultOut.model_validate(f) for f in core.cohorts.faults(cohort)]


@router.get("/v1/cohorts/{cohort_id}/slides", summary="List a cohort's slides", responses=problems(404))
def list_slides(
    core: CoreDep,
    who: WhoDep,
    cohort_id: IdPath,
    cursor: CursorQuery = None,
    limit: LimitQuery = 200,
    state: Annotated[list[SlideState] | None, Query()] = None,
    ended_after: Annotated[datetime | None, Query(description="those that ended then or later")] = None,
) -> PageOut[CohortSlideOut]:
    """The manifest's last row first."""
    if ended_after is not None and ended_after.tzinfo is None:
        raise InvalidInputError.at("$.ended_after", "give the time with its zone, e.g. 2026-01-31T12:00:00Z")
    core.cohorts.cohorts.get(who.company_id, cohort_id)
    page = core.cohorts.cohorts.slides(
        who.company_id, cohort_id, cursor=cursor, limit=limit, states=state or (), ended_after=ended_after
    )
    return PageOut[CohortSlideOut].model_validate(page_out(page.map(CohortSlideOut.of)))


@router.post("/v1/cohorts/{cohort_id}/start", summary="Start a cohort", responses=problems(404, 409))
def start_cohort(core: CoreDep, who: WriterDep, cohort_id: IdPath, body: CohortStartIn) -> CohortOut:
    """Canary first. With faults nothing is started and all of them are told (422)."""
    return CohortOut.of(core.cohorts.start(who, cohort_id, leave_out_bad=body.leave_out_bad))


@router.post("/v1/cohorts/{cohort_id}/cancel", summary="Cancel a cohort", responses=problems(404, 409))
def cancel_cohort(core: CoreDep, who: WriterDep, cohort_id: IdPath) -> CohortOut:
    """Nothing more of it is started, what runs is stopped; results that are there stay."""
    return CohortOut.of(core.cohorts.cancel(who, cohort_id))


@router.post("/v1/cohorts/{cohort_id}/resume", summary="Resume a cohort", responses=problems(404, 409))
def resume_cohort(core: CoreDep, who: WriterDep, cohort_id: IdPath) -> CohortOut:
    """Go on with what a stopped or cancelled cohort has left."""
    return CohortOut.of(core.cohorts.resume(who, cohort_id))


@router.post("/v1/cohorts/{cohort_id}/rerun", summary="Rerun what failed", responses=problems(404, 409))
def rerun_cohort(core: CoreDep, who: WriterDep, cohort_id: IdPath) -> CohortOut:
    """Run its failed slides once more, with the same image and variables."""
    return CohortOut.of(core.cohorts.rerun(who, cohort_id))


@router.get("/v1/prices", summary="Show the price table", responses=problems())
def prices(core: CoreDep, _who: WhoDep) -> PricesOut:
    """What a cohort's cost is reckoned with; set with `MHS_COHORTS__PRICES`."""
    return PricesOut(currency=core.settings.cohorts.currency, per_hour=core.settings.cohorts.prices)
