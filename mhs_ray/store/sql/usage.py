"""What companies used, by day and instance type: the one source of the console, the API, and bills."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime

import sqlalchemy as sa

from mhs_ray.domain.failures import FailureClass
from mhs_ray.domain.states import ACTIVE, JobEvent
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.database import Database


@dataclass(frozen=True, slots=True)
class DayUsage:
    """What a company used of an instance type in attempts that ended on a day (UTC).

    attempts: all of them; jobs: those that ended for good, `failed` of them without success and not cancelled.
    gpu_s: seconds that containers held a GPU; platform_gpu_s: the part of it that failures of the platform wasted.
    """

    day: date
    company_id: int
    company: str
    instance_type: str
    attempts: int
    jobs: int
    failed: int
    gpu_s: float
    platform_gpu_s: float


@dataclass(frozen=True, slots=True)
class RunningUsage:
    """What running containers of a company have used so far."""

    company_id: int
    company: str
    gpu_s: float


class UsageBook:
    """company_id: None for all companies, which only operators may see."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def by_day(self, since: datetime, until: datetime, company_id: int | None = None) -> list[DayUsage]:
        """Return the use in [since, until), by day, company and instance type. A day that is over never changes."""
        a = t.attempts.c
        moment = a.ended_at if self._db.is_sqlite else sa.func.timezone("UTC", a.ended_at)
        day = sa.func.date(moment).label("day")
        final = a.outcome != JobEvent.RETRIED
        failed = a.outcome.in_((JobEvent.FAILED, JobEvent.TIMED_OUT))

        def count(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
            return sa.func.sum(sa.case((condition, 1), else_=0))

        wasted = sa.case((a.failure_class == FailureClass.PLATFORM, a.run_s), else_=0.0)
        query = (
            sa.select(
                day, a.company_id, t.companies.c.name.label("company"), a.instance_type,
                sa.func.count().label("attempts"), count(final).label("jobs"), count(failed).label("failed"),
                sa.func.coalesce(sa.func.sum(a.run_s), 0.0).label("gpu_s"),
                sa.func.coalesce(sa.func.sum(wasted), 0.0).label("platform_gpu_s"),
            )
            .join_from(t.attempts, t.companies, a.company_id == t.companies.c.id)
            .where(a.ended_at >= since, a.ended_at < until)
            .group_by(day, a.company_id, t.companies.c.name, a.instance_type)
            .order_by(day, a.company_id, a.instance_type)
        )  # fmt: skip
        if company_id is not None:
            query = query.where(a.company_id == company_id)
        with self._db.read() as conn:
            return [
                DayUsage(
                    date.fromisoformat(str(r.day)), r.company_id, r.company, r.instance_type, int(r.attempts),
                    int(r.jobs), int(r.failed), round(float(r.gpu_s), 3), round(float(r.platform_gpu_s), 3),
                )
                for r in conn.execute(query)
            ]  # fmt: skip

    def running(self, since: datetime, company_id: int | None = None) -> list[RunningUsage]:
        """Return what is not ended yet has used since then."""
        j, now = t.jobs.c, datetime.now(UTC)
        query = (
            sa.select(j.company_id, t.companies.c.name, j.started_at)
            .join_from(t.jobs, t.companies, j.company_id == t.companies.c.id)
            .where(j.state.in_(ACTIVE), j.started_at.is_not(None))
        )
        if company_id is not None:
            query = query.where(j.company_id == company_id)
        with self._db.read() as conn:
            return [
                RunningUsage(r.company_id, r.name, max(0.0, (now - max(r.started_at, since)).total_seconds()))
                for r in conn.execute(query)
            ]
