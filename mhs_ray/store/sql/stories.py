"""Jobs' stories as rows tell them, for traces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import sqlalchemy as sa

from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.database import Database


@dataclass(frozen=True, slots=True)
class Told:
    """An event of a job's story."""

    attempt: int
    event: str
    at: datetime


@dataclass(frozen=True, slots=True)
class JobStory:
    """What the spans of a job are made of. asked_at: when its task came; failures: attempt → (class, code)."""

    job_id: int
    instance_type: str
    asked_at: datetime
    created_at: datetime
    not_before: datetime
    ended_at: datetime | None
    outcome: str
    events: Sequence[Told]
    failures: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    slide_cached: Mapping[int, bool | None] = field(default_factory=dict)


def story_of(db: Database, job_id: int) -> JobStory:
    """Return one job's story up to now."""
    j, e, a = t.jobs.c, t.job_events.c, t.attempts.c
    with db.read() as conn:
        job = conn.execute(
            sa.select(
                j.instance_type, j.created_at, j.not_before, j.ended_at, j.state, j.run,
                t.tasks.c.created_at.label("asked_at"),
            )
            .join_from(t.jobs, t.tasks, j.task_id == t.tasks.c.id)
            .where(j.id == job_id)
        ).one()  # fmt: skip
        events = conn.execute(sa.select(e.attempt, e.event, e.at).where(e.job_id == job_id).order_by(e.id)).all()
        ended = conn.execute(sa.select(t.attempts).where(a.job_id == job_id)).all()
    return JobStory(
        job_id=job_id,
        instance_type=job.instance_type,
        asked_at=min(job.asked_at, job.created_at) if job.run == 0 else job.created_at,
        created_at=job.created_at,
        not_before=job.not_before,
        ended_at=job.ended_at,
        outcome=str(job.state),
        events=[Told(r.attempt, r.event, r.at) for r in events],
        failures={r.attempt: (r.failure_class, r.failure_code) for r in ended if r.failure_code},
        slide_cached={r.attempt: r.slide_cached for r in ended},
    )


def job_of_delivery(db: Database, delivery_id: int) -> int | None:
    """Return the job whose result a delivery carries; None of what is the whole task's."""
    query = (
        sa.select(t.results.c.job_id)
        .join_from(t.deliveries, t.results, t.deliveries.c.result_id == t.results.c.id)
        .where(t.deliveries.c.id == delivery_id)
    )
    with db.read() as conn:
        return conn.execute(query).scalar()
