"""Jobs as the rows of a list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from mhs_ray.domain.models import Job
from mhs_ray.services.core import Core
from mhs_ray.store.sql.overview import Overview


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job with what its row shows beside it. waited, duration: seconds, up to now while they go on."""

    job: Job
    scan_name: str
    waited: float | None
    duration: float | None


def job_row(job: Job, scan_name: str) -> JobRow:
    """Return one row."""
    now = datetime.now(UTC)
    until = job.started_at or job.ended_at or now
    duration = (job.ended_at or now) - job.started_at if job.started_at else None
    return JobRow(
        job,
        scan_name,
        max(0.0, (until - job.created_at).total_seconds()),
        None if duration is None else max(0.0, duration.total_seconds()),
    )


def job_rows(core: Core, company_id: int, jobs: Sequence[Job]) -> list[JobRow]:
    """Return rows with the names of their scans."""
    names = Overview(core.db).scan_names(company_id, {j.scan_id for j in jobs})
    return [job_row(j, names.get(j.scan_id, f"scan {j.scan_number}")) for j in jobs]
