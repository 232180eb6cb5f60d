"""Cohorts: the list, and one with its progress, cost and failures."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from api.console.images import CursorFilter, older
from api.console.pages import ConsoleRoute, go, page
from api.console.session import VisitorDep, WriteDep
from api.deps import CoreDep, IdPath
from mhs_ray.cohorts.follow import money
from mhs_ray.domain.cohorts import CohortState, SlideState
from mhs_ray.domain.errors import ConflictError

router = APIRouter(prefix="/console/cohorts", include_in_schema=False, route_class=ConsoleRoute)
_SHOWN = 50


@router.get("")
def cohorts(request: Request, core: CoreDep, seen: VisitorDep, cursor: CursorFilter = None) -> Response:
    """The list, newest first."""
    found = core.cohorts.page(seen.who, cursor=cursor, limit=_SHOWN)
    return page(
        request, "cohorts.html", page=found, older=older("/console/cohorts", found.next_cursor), money=money
    )  # fmt: skip


@router.get("/{cohort_id}")
def cohort(
    request: Request, core: CoreDep, seen: VisitorDep, cohort_id: IdPath,
    state: Annotated[str, Query(max_length=20)] = "", cursor: CursorFilter = None,
) -> Response:  # fmt: skip
    """One cohort."""
    found = core.cohorts.get(seen.who, cohort_id)
    state = state if state in set(SlideState) else ""
    slides = core.cohorts.cohorts.slides(
        seen.who.company_id, cohort_id, cursor=cursor, limit=_SHOWN, states=(state,) if state else ()
    )
    total = max(1, found.tally.total)
    return page(
        request, "cohort.html", c=found.cohort, tally=found.tally, f=found.forecast, slides=slides, state=state,
        failures=core.cohorts.cohorts.failure_codes(cohort_id), states=[s.value for s in SlideState], money=money,
        done=found.tally.ended, percent=round(100 * found.tally.ended / total),
        older=older(f"/console/cohorts/{cohort_id}", slides.next_cursor, state=state),
        actions=_actions(found.cohort.state, found.tally.failed), cursor=cursor,
    )  # fmt: skip


def _actions(state: CohortState, failed: int) -> list[tuple[str, str]]:
    """Return (address, label) of what can be done with a cohort now."""
    found = []
    if state in (CohortState.STOPPED, CohortState.CANCELLED):
        found.append(("resume", "Resume"))
    if state in (CohortState.DONE, CohortState.RUNNING) and failed:
        found.append(("rerun", f"Rerun {failed} failed"))
    if state.is_open or state is CohortState.STOPPED:
        found.append(("cancel", "Cancel"))
    return found


@router.post("/{cohort_id}/{action}")
def act(core: CoreDep, write: WriteDep, cohort_id: IdPath, action: str) -> Response:
    """Cancel, resume or rerun it."""
    does = {"cancel": core.cohorts.cancel, "resume": core.cohorts.resume, "rerun": core.cohorts.rerun}.get(action)
    told = {"cancel": "Cancelled: what runs is stopped.", "resume": "It goes on.", "rerun": "What failed runs again."}
    if does is None:
        return go(f"/console/cohorts/{cohort_id}")
    try:
        does(write.who, cohort_id)
    except ConflictError as error:
        return go(f"/console/cohorts/{cohort_id}", f"{error}.")
    return go(f"/console/cohorts/{cohort_id}", told[action])
