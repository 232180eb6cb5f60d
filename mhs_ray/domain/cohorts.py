"""Cohorts: one container on very many slides. What may happen to one, what is fed next, and what it will cost. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from mhs_ray.domain.errors import ConflictError
from mhs_ray.domain.failures import FailureClass


class CohortState(StrEnum):
    """Where a cohort is. `stopped` is the platform's doing (its canary failed), `cancelled` a person's."""

    DRAFT = "draft"
    CANARY = "canary"
    RUNNING = "running"
    STOPPED = "stopped"
    DONE = "done"
    CANCELLED = "cancelled"

    @property
    def is_open(self) -> bool:
        """True while slides of it are put into the queue."""
        return self in (CohortState.CANARY, CohortState.RUNNING)


class CohortEvent(StrEnum):
    """What can happen to a cohort."""

    STARTED = "started"
    CANARY_PASSED = "canary passed"
    CANARY_FAILED = "canary failed"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    RESUMED = "resumed"
    RERUN = "rerun"


class SlideState(StrEnum):
    """Where a slide of a cohort is. `duplicate`: its result is there, or comes, from another job of the same work."""

    PENDING = "pending"
    UNDER_WAY = "under way"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DUPLICATE = "duplicate"
    LEFT_OUT = "left out"


_C, _E = CohortState, CohortEvent
TRANSITIONS: Final[Mapping[tuple[CohortState, CohortEvent], CohortState]] = {
    (_C.DRAFT, _E.STARTED): _C.CANARY,
    (_C.CANARY, _E.STARTED): _C.CANARY,  # an interrupted submission is sent again
    (_C.RUNNING, _E.STARTED): _C.RUNNING,
    (_C.DONE, _E.STARTED): _C.DONE,
    (_C.CANARY, _E.CANARY_PASSED): _C.RUNNING,
    (_C.CANARY, _E.CANARY_FAILED): _C.STOPPED,
    (_C.CANARY, _E.FINISHED): _C.DONE,
    (_C.RUNNING, _E.FINISHED): _C.DONE,
    (_C.CANARY, _E.CANCELLED): _C.CANCELLED,
    (_C.RUNNING, _E.CANCELLED): _C.CANCELLED,
    (_C.STOPPED, _E.CANCELLED): _C.CANCELLED,
    (_C.CANCELLED, _E.CANCELLED): _C.CANCELLED,
    (_C.STOPPED, _E.RESUMED): _C.CANARY,
    (_C.CANCELLED, _E.RESUMED): _C.CANARY,
    (_C.CANARY, _E.RERUN): _C.CANARY,
    (_C.RUNNING, _E.RERUN): _C.RUNNING,
    (_C.DONE, _E.RERUN): _C.RUNNING,
}


def advance(state: CohortState, event: CohortEvent) -> CohortState:
    """Return the state after `event`. Raises ConflictError for what cannot happen to a cohort in this state."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        hints = {
            _E.RESUMED: "only a stopped or cancelled cohort can be resumed",
            _E.RERUN: "resume a stopped or cancelled cohort; start a draft",
            _E.CANCELLED: "there is nothing to cancel",
        }
        raise ConflictError(f"the cohort is {state}: {hints.get(event, f'it cannot be {event}')}") from None


@dataclass(frozen=True, slots=True)
class Tally:
    """How many slides of a cohort are where. unread: those of `failed` that failed for the slide's sake."""

    pending: int = 0
    under_way: int = 0
    succeeded: int = 0
    failed: int = 0
    unread: int = 0
    cancelled: int = 0
    duplicate: int = 0
    left_out: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.remaining + self.ended

    @property
    def remaining(self) -> int:
        """Those that still cost something."""
        return self.pending + self.under_way

    @property
    def ended(self) -> int:
        """Those that nothing more will happen to unless somebody asks for it."""
        return self.succeeded + self.failed + self.cancelled + self.duplicate + self.left_out


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do with a cohort now. feed: slides to put into the queue at most; event: what has happened to it."""

    feed: int = 0
    event: CohortEvent | None = None
    reason: str = ""


def plan(state: CohortState, canary: int, window: int, tally: Tally, failure: str) -> Plan:
    """Return what follows from how a cohort's slides stand.

    canary: slides that must succeed before the rest is fed. A slide that is itself bad proves nothing of the
    container: another one takes its place. window: slides in the queue at a time. failure: of the newest slide that
    failed for another reason than itself, for the reason of a stop.
    """
    if not state.is_open:
        return Plan()
    if state is CohortState.CANARY and tally.succeeded < canary:
        if tally.failed > tally.unread:
            told = f"a canary slide failed: {failure}; nothing else was started"
            return Plan(event=CohortEvent.CANARY_FAILED, reason=told)
        if not tally.succeeded and tally.unread >= 2 * canary + 3 and not tally.under_way:
            told = f"none of the first {tally.unread} slides could be used: {failure}; nothing else was started"
            return Plan(event=CohortEvent.CANARY_FAILED, reason=told)
        if not tally.remaining:
            return Plan(event=CohortEvent.FINISHED)
        return Plan(feed=min(tally.pending, window, max(0, canary - tally.succeeded - tally.under_way)))
    if not tally.remaining:
        return Plan(event=CohortEvent.FINISHED)
    passed = CohortEvent.CANARY_PASSED if state is CohortState.CANARY else None
    return Plan(feed=min(tally.pending, max(0, window - tally.under_way)), event=passed)


def is_unread(failure_class: str | None) -> bool:
    """Say whether a slide failed for its own sake, which says nothing of the container."""
    return failure_class == FailureClass.INPUT


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a cohort cost so far and what is to come; None where nothing is known yet. Money is in `currency`."""

    gpu_s: float
    gpu_s_per_slide: float | None
    gpu_s_left: float | None
    eta_s: float | None
    price_per_hour: float | None
    spent: float | None
    left: float | None
    currency: str

    @property
    def total(self) -> float | None:
        """What it will have cost in the end."""
        return None if self.spent is None or self.left is None else self.spent + self.left


def forecast(
    tally: Tally,
    *,
    gpu_s: float,
    ran: int,
    ends: Sequence[datetime],
    now: datetime,
    running: bool,
    price_per_hour: float | None,
    currency: str,
) -> Forecast:
    """Return cost and time from what was seen.

    gpu_s: seconds that attempts held a GPU, in all; ran: slides that these were spent on. ends: when the newest slides
    ended, in any order: their pace is what is left goes on at.
    """
    per_slide = gpu_s / ran if ran else None
    left_s = None if per_slide is None else per_slide * tally.remaining
    eta = None
    if not tally.remaining:
        eta = 0.0
    elif running and len(ends) > 1:
        first, last = min(ends), max(ends)
        # What has been silent for long is slower than it was.
        span = (max(last, now) - first).total_seconds()
        eta = tally.remaining * span / (len(ends) - 1)
    elif running and left_s is not None:
        eta = left_s / max(1, tally.under_way)
    price = None if price_per_hour is None else price_per_hour / 3600
    return Forecast(
        gpu_s=gpu_s,
        gpu_s_per_slide=per_slide,
        gpu_s_left=left_s,
        eta_s=eta,
        price_per_hour=price_per_hour,
        spent=None if price is None else price * gpu_s,
        left=None if price is None or left_s is None else price * left_s,
        currency=currency,
    )


@dataclass(frozen=True, slots=True)
class Cohort:
    """One container, as it was when the cohort was made, on many slides. rows: slides of its manifest."""

    id: int
    company_id: int
    key: str
    name: str
    state: CohortState
    reason: str
    algorithm_name: str
    container_id: int
    container_name: str
    image_digest: str
    instance_type: str
    manifest: str
    rows: int
    canary: int
    skip_known: bool
    mixed_formats: bool
    price_per_hour: float | None
    currency: str
    started_at: datetime | None
    ended_at: datetime | None
    created_by: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class CohortSlide:
    """One row of a manifest. shown: where the slide is, without what signs a URL; job_id: its newest job.

    fault: why it cannot be run at all, found before anything was started.
    """

    id: int
    cohort_id: int
    row: int
    slide: str
    shown: str
    format: str
    labels: Mapping[str, Any]
    state: SlideState
    fault: str
    scan_id: int | None
    job_id: int | None
    failure_class: str | None
    failure_code: str | None
    cause: str
    gpu_s: float
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class RowFault:
    """One thing that is wrong with a manifest. row: of the slide, the first is 1; 0: of the manifest as a whole."""

    row: int
    column: str
    reason: str


@dataclass(frozen=True, slots=True)
class CheckedSlide:
    """A row of a manifest as it is to be kept. content: what `fingerprint` found, None where there is a fault."""

    row: int
    slide: str
    shown: str
    location: Mapping[str, Any] = field(repr=False)
    labels: Mapping[str, Any] = field(default_factory=dict)
    format: str = ""
    content: str | None = None
    fault: str = ""


def format_faults(found: Mapping[str, int], rows: Sequence[tuple[int, str]]) -> list[RowFault]:
    """Return a fault for each row whose slide is of another format than most are.

    found: slides by format. rows: (row, format) of them.
    """
    if len(found) < 2:
        return []
    usual = max(found, key=lambda f: (found[f], f))
    total = sum(found.values())
    return [
        RowFault(
            row, "slide",
            f"it is {kind} while {found[usual]} of {total} slides are {usual}; give each format a cohort of its own, "
            "or allow it with --mixed-formats",
        )
        for row, kind in rows
        if kind != usual
    ]  # fmt: skip
