"""What each ended attempt took, written with the change that ended it: metrics, traces and bills are made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from mhs_ray.domain.failures import Failure
from mhs_ray.domain.states import JobEvent
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.database import Database

_PART = 5000


@dataclass(frozen=True, slots=True)
class EndedAttempt:
    """One row. Times in seconds, None where the attempt never came so far; outcome: the event that ended it."""

    id: int
    company_id: int
    job_id: int
    attempt: int
    instance_type: str
    outcome: str
    failure_class: str | None
    failure_code: str | None
    queue_s: float
    placement_s: float | None
    prepare_s: float | None
    run_s: float | None
    slide_cached: bool | None
    ended_at: datetime


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over many rows. seconds: (phase, instance type, index of its bound) → (how many, their sum)."""

    outcomes: Mapping[tuple[str, str], int]  # instance type, outcome
    failures: Mapping[tuple[str, str], int]  # class, code
    cached: Mapping[bool, int]
    seconds: Mapping[tuple[str, str, int], tuple[int, float]]


PHASES = ("queue", "placement", "prepare", "run")


@dataclass(frozen=True, slots=True)
class Ended:
    """The newest attempt of a job, which `event` ended. job: its row as it was before."""

    job: sa.Row[Any]
    event: JobEvent
    failure: Failure | None
    resources: Mapping[str, Any]


def record_ends(conn: sa.Connection, ended: Sequence[Ended], now: datetime) -> None:
    """Write a row for each; they are of different jobs."""
    e = t.job_events.c
    told = sa.select(e.job_id, e.attempt, e.event, sa.func.min(e.at).label("at")).group_by(e.job_id, e.attempt, e.event)
    at: dict[tuple[int, int, str], datetime] = {
        (r.job_id, r.attempt, r.event): r.at for r in conn.execute(told.where(e.job_id.in_([x.job.id for x in ended])))
    }
    conn.execute(sa.insert(t.attempts).inline(), [_row(x, at, now) for x in ended])


def _row(ended: Ended, at: Mapping[tuple[int, int, str], datetime], now: datetime) -> dict[str, Any]:
    job, failure = ended.job, ended.failure
    taken, placed, started, exited = (
        at.get((job.id, job.attempt, event))
        for event in (JobEvent.DISPATCHED, JobEvent.PLACED, JobEvent.STARTED, JobEvent.EXITED)
    )
    return {
        "company_id": job.company_id,
        "job_id": job.id,
        "attempt": job.attempt,
        "instance_type": job.instance_type,
        "outcome": ended.event,
        "failure_class": failure.failure_class if failure else None,
        "failure_code": failure.code if failure else None,
        "queue_s": _between(max(job.created_at, job.not_before), taken) or 0.0,
        "placement_s": _between(taken, placed),
        "prepare_s": _between(placed, started),
        "run_s": _between(started, exited or now),
        "slide_cached": ended.resources.get("slide_cached"),
        "ended_at": now,
    }


def _between(start: datetime | None, end: datetime | None) -> float | None:
    """Seconds, never below 0: the clocks of two processes may differ."""
    return None if start is None or end is None else max(0.0, round((end - start).total_seconds(), 3))


class Attempts:
    """The ended attempts of all companies, for the platform's own eyes."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def totals(self, since: datetime, until: datetime, bounds: Sequence[float]) -> Totals:
        """Sum up those that ended in [since, until); a duration counts at the first bound that is not below it."""
        a, count = t.attempts.c, sa.func.count()
        when = sa.and_(a.ended_at >= since, a.ended_at < until)
        with self._db.read() as conn:

            def by(*columns: sa.ColumnElement[Any]) -> list[Any]:
                return list(conn.execute(sa.select(*columns, count).where(when).group_by(*columns)))

            seconds: dict[tuple[str, str, int], tuple[int, float]] = {}
            for phase in PHASES:
                took = a[f"{phase}_s"]
                bound = sa.case(*((took <= b, i) for i, b in enumerate(bounds)), else_=len(bounds)).label("bound")
                query = (
                    sa.select(a.instance_type, bound, count, sa.func.sum(took))
                    .where(when, took.is_not(None))
                    .group_by(a.instance_type, bound)
                )
                seconds |= {(phase, kind, int(i)): (int(n), float(total)) for kind, i, n, total in conn.execute(query)}
            return Totals(
                {(kind, outcome): int(n) for kind, outcome, n in by(a.instance_type, a.outcome)},
                {(kind, code): int(n) for kind, code, n in by(a.failure_class, a.failure_code) if code is not None},
                {cached: int(n) for cached, n in by(a.slide_cached) if cached is not None},
                seconds,
            )

    def ended(self, since: datetime) -> list[EndedAttempt]:
        """Return those that ended since then, oldest first."""
        a = t.attempts.c
        found: list[EndedAttempt] = []
        with self._db.read() as conn:
            rows = conn.execution_options(yield_per=_PART).execute(
                sa.select(t.attempts).where(a.ended_at >= since).order_by(a.ended_at, a.id)
            )
            for part in rows.partitions():
                found += [EndedAttempt(**r._mapping) for r in part]
        return found
