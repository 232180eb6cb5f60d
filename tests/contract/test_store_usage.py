"""What an ended attempt took is written down with its end, and summed up by day, on both databases."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
import sqlalchemy as sa

from mhs_ray.domain.failures import Failure, FailureCode
from mhs_ray.domain.states import JobEvent
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.attempts import Attempts
from mhs_ray.store.sql.usage import UsageBook
from tests.store_fixtures import World

LOST = Failure(FailureCode.NODE_LOST, "the node is gone", "wait")
BROKE = Failure(FailureCode.EXIT_CODE, "exit 1", "mend it", "", 1)
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


def _shift(world: World, job_id: int, now: datetime, **seconds: float) -> None:
    """Move events of a job to seconds before `now`, as if it had taken so long."""
    with world.db.write() as conn:
        for event, ago in seconds.items():
            e = t.job_events.c
            conn.execute(
                sa.update(t.job_events)
                .where(e.job_id == job_id, e.event == event.replace("_", " "))
                .values(at=now - timedelta(seconds=ago))
            )


def test_an_attempts_row_tells_queue_placement_preparation_and_run_apart(world: World) -> None:
    job = world.running(world.company())
    now = datetime.now(UTC)
    with world.db.write() as conn:
        long_ago = now - timedelta(seconds=100)
        conn.execute(sa.update(t.jobs).values(created_at=long_ago, not_before=long_ago))
    _shift(world, job.id, now, dispatched=90, placed=70, started=50)
    world.jobs.transition(job.id, JobEvent.EXITED, attempt=1, resources={"slide_cached": True})
    _shift(world, job.id, now, exited=10)
    assert Attempts(world.db).ended(LONG_AGO) == [], "it has not ended"
    world.jobs.transition(job.id, JobEvent.SUCCEEDED, attempt=1)
    (row,) = Attempts(world.db).ended(LONG_AGO)
    assert (row.job_id, row.attempt, row.instance_type, row.outcome) == (job.id, 1, "g4dn.xlarge", "succeeded")
    took = [round(s or 0) for s in (row.queue_s, row.placement_s, row.prepare_s, row.run_s)]
    assert took == [10, 20, 20, 40]
    assert row.slide_cached is True
    assert row.failure_class is None


def test_each_attempt_has_one_row_however_often_its_end_is_told(world: World) -> None:
    job = world.running(world.company())
    for _ in range(2):
        world.jobs.transition(job.id, JobEvent.RETRIED, attempt=1, failure=LOST, retry_in_s=0)
    world.claim()
    world.jobs.transition(job.id, JobEvent.RETRIED, attempt=1, failure=LOST, retry_in_s=0)  # stale
    for _ in range(2):
        world.jobs.transition(job.id, JobEvent.FAILED, attempt=2, failure=BROKE)
    first, second = Attempts(world.db).ended(LONG_AGO)
    assert (first.outcome, first.failure_class, first.failure_code) == ("retried", "platform", "node-lost")
    assert (second.outcome, second.failure_class, second.failure_code) == ("failed", "model", "exit-code")
    assert second.placement_s is second.prepare_s is second.run_s is None, "it never had a node"


def test_what_ended_without_an_attempt_has_no_row(world: World) -> None:
    job_id = world.queued(world.company())
    world.jobs.transition(job_id, JobEvent.CANCELLED)
    assert Attempts(world.db).ended(LONG_AGO) == []


def test_use_is_summed_by_day_company_and_type_and_the_platforms_failures_are_told_apart(world: World) -> None:
    north, south = world.company("North"), world.company("South")
    good, lost, bad = world.running(north), world.running(north), world.running(south)
    for job in (good, lost, bad):
        _shift(world, job.id, datetime.now(UTC), started=100)
    world.jobs.transition(good.id, JobEvent.EXITED, attempt=1)
    world.jobs.transition(good.id, JobEvent.SUCCEEDED, attempt=1)
    world.jobs.transition(lost.id, JobEvent.RETRIED, attempt=1, failure=LOST, retry_in_s=999)
    world.jobs.transition(bad.id, JobEvent.FAILED, attempt=1, failure=BROKE)
    with world.db.write() as conn:
        conn.execute(sa.update(t.attempts).values(ended_at=datetime(2026, 3, 1, 23, 59, 59, tzinfo=UTC)))
        conn.execute(
            sa.update(t.attempts).where(t.attempts.c.job_id == bad.id).values(ended_at=datetime(2026, 3, 2, tzinfo=UTC))
        )
    book = UsageBook(world.db)
    march = (datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC))
    first, second = book.by_day(*march)
    assert (first.day, first.company, first.instance_type) == (date(2026, 3, 1), "North", "g4dn.xlarge")
    assert (first.attempts, first.jobs, first.failed) == (2, 1, 0)
    assert first.gpu_s == pytest.approx(200, abs=40)
    assert first.platform_gpu_s == pytest.approx(100, abs=20)
    assert (second.day, second.company, second.failed) == (date(2026, 3, 2), "South", 1)
    assert book.by_day(*march, south) == [second]
    assert book.by_day(datetime(2026, 3, 2, tzinfo=UTC), march[1]) == [second]


def test_what_still_runs_counts_up_to_now(world: World) -> None:
    north = world.company("North")
    job = world.running(north)
    with world.db.write() as conn:
        ago = datetime.now(UTC) - timedelta(seconds=50)
        conn.execute(sa.update(t.jobs).where(t.jobs.c.id == job.id).values(started_at=ago))
    (running,) = UsageBook(world.db).running(LONG_AGO)
    assert running.company == "North"
    assert running.gpu_s == pytest.approx(50, abs=40)
    assert UsageBook(world.db).running(LONG_AGO, world.company()) == []
