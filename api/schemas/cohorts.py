"""Wire types of ``/v1/cohorts``."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from api.schemas.base import Body, Text, Wire
from mhs_ray.domain.cohorts import CohortSlide, CohortState, RowFault, SlideState
from mhs_ray.services.cohorts import MAX_PIECE, MAX_ROWS, Standing


def _printable(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("must be printable text")
    return text.strip()


Id = Annotated[Text, AfterValidator(_printable), Field(max_length=200)]


class CohortIn(Body):
    """A new cohort. The same `key` and `manifest` again is the same cohort, so that a submission can be sent again."""

    key: Id = Field(examples=["lung-2026-11"])
    name: Text | None = Field(None, max_length=200)
    container: Text = Field(max_length=200, description="id or name of a runnable container")
    manifest: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 over the manifest's rows")
    rows: int = Field(ge=1, le=MAX_ROWS)
    canary: int = Field(3, ge=0, le=1000, description="slides that must succeed before the rest is started")
    skip_known: bool = Field(True, description="skip slides whose work (digest, slide, variables) was done before")
    mixed_formats: bool = Field(False, description="take slides of several formats")


class CohortRowIn(Body):
    """One slide."""

    row: int = Field(ge=1, le=MAX_ROWS)
    id: Id
    slide: Text = Field(max_length=8192, description="absolute path, s3://bucket/key, http(s) URL, or scan:ID")
    labels: dict[str, str | int | float | bool | None] = Field(default_factory=dict, max_length=50)


class CohortRowsIn(Body):
    """A piece of the manifest."""

    rows: list[CohortRowIn] = Field(min_length=1, max_length=MAX_PIECE)


class RowFaultOut(Wire):
    """One thing that is wrong with a manifest."""

    row: int
    column: str
    reason: str


class RowsTakenOut(Wire):
    """What a piece of the manifest added. received: rows that are there now."""

    received: int
    faults: list[RowFaultOut]

    @classmethod
    def of(cls, received: int, faults: list[RowFault]) -> RowsTakenOut:
        """Return them for the wire."""
        return cls(received=received, faults=[RowFaultOut.model_validate(f) for f in faults])


class CohortStartIn(Body):
    """leave_out_bad: run the good rows although others have faults."""

    leave_out_bad: bool = False


class CountsOut(Wire):
    """Slides by state."""

    pending: int
    under_way: int
    succeeded: int
    failed: int
    cancelled: int
    duplicate: int
    left_out: int


class ForecastOut(Wire):
    """Seconds of GPU and money, so far and to come; null where nothing is known yet."""

    gpu_s: float
    gpu_s_per_slide: float | None
    gpu_s_left: float | None
    eta_s: float | None
    price_per_hour: float | None
    spent: float | None
    left: float | None
    total: float | None
    currency: str


class CohortOut(Wire):
    """A cohort: one container on many slides."""

    id: int
    key: str
    name: str
    state: CohortState
    reason: str = Field(description="why it was stopped or cancelled")
    container_id: int
    container_name: str
    algorithm_name: str
    image_digest: str
    instance_type: str
    manifest: str
    rows: int
    received: int = Field(description="rows that came so far")
    canary: int
    skip_known: bool
    mixed_formats: bool
    counts: CountsOut
    forecast: ForecastOut
    created_by: str
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None

    @classmethod
    def of(cls, standing: Standing) -> CohortOut:
        """Return it for the wire."""
        c = standing.cohort
        names = [n for n in cls.model_fields if n not in {"received", "counts", "forecast"}]
        return cls(
            **{name: getattr(c, name) for name in names},
            received=standing.received,
            counts=CountsOut.model_validate(standing.tally),
            forecast=ForecastOut.model_validate(standing.forecast),
        )


class CohortSlideOut(Wire):
    """One slide of a cohort."""

    row: int
    id: str
    slide: str = Field(description="where it is, without what signs a URL")
    format: str
    labels: dict[str, Any]
    state: SlideState
    scan_row_id: int | None
    job_id: int | None = Field(description="its newest job; of a duplicate the one that did, or does, its work")
    failure_class: str | None
    failure_code: str | None
    cause: str
    gpu_s: float
    ended_at: datetime | None

    @classmethod
    def of(cls, s: CohortSlide) -> CohortSlideOut:
        """Return it for the wire."""
        return cls(
            row=s.row, id=s.slide, slide=s.shown, format=s.format, labels=dict(s.labels), state=s.state,
            scan_row_id=s.scan_id, job_id=s.job_id, failure_class=s.failure_class, failure_code=s.failure_code,
            cause=s.cause or s.fault, gpu_s=s.gpu_s, ended_at=s.ended_at,
        )  # fmt: skip


class PricesOut(Wire):
    """Prices of an hour of each instance type, for forecasts of cost."""

    currency: str
    per_hour: dict[str, float]
