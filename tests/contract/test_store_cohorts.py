"""Cohorts on both databases: fed in batches, in order, once; collected once; ten thousand at a time."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from mhs_ray.domain.cohorts import CheckedSlide, Cohort, CohortEvent, CohortState, SlideState
from mhs_ray.domain.errors import ConflictError, NotFoundError
from mhs_ray.domain.models import Priority
from mhs_ray.domain.states import JobEvent, JobState
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.cohorts import Cohorts
from mhs_ray.store.sql.database import Database
from tests.store_fixtures import World

HOST = "mhs.internal"


class Lab:
    """A company with a container and its cohorts."""

    def __init__(self, db: Database, world: World | None = None) -> None:
        self.db, self.world, self.cohorts = db, world or World(db), Cohorts(db)
        self.company = self.world.company()
        self.container = self.world.container(self.company)
        self.algorithm = self.world.algorithm(self.company, self.container)

    def cohort(self, rows: int, key: str = "k", **changes: Any) -> Cohort:
        """Return a started cohort of `rows` slides."""
        cohort, created = self.draft(rows, key, **changes)
        assert created
        for at in range(0, rows, 500):
            piece = [_slide(i) for i in range(at + 1, min(at + 500, rows) + 1)]
            assert self.cohorts.add(cohort, piece, "env") == []
        return self.cohorts.happen(self.company, cohort.id, CohortEvent.STARTED)

    def draft(self, rows: int, key: str = "k", **changes: Any) -> tuple[Cohort, bool]:
        with self.db.read() as conn:
            c = conn.execute(sa.select(t.containers).where(t.containers.c.id == self.container.id)).one()
            image = conn.execute(sa.select(t.image_versions).where(t.image_versions.c.image_id == c.image_id)).one()
        values = {
            "name": key, "algorithm_id": self.algorithm.id, "algorithm_name": self.algorithm.name,
            "container_id": c.id, "container_name": c.name, "image_version_id": image.id,
            "image_digest": image.digest, "instance_type": c.instance_type, "time_limit_s": 600, "env": c.env,
            "env_mark": "env", "manifest": "m", "rows": rows, "canary": 0, "currency": "USD", "price_per_hour": 1.0,
            **changes,
        }  # fmt: skip
        return self.cohorts.create(self.company, "ann", key, values)

    def end(self, job_id: int, attempt: int = 1) -> None:
        for event in (JobEvent.PLACED, JobEvent.STARTED, JobEvent.EXITED, JobEvent.SUCCEEDED):
            self.world.jobs.transition(job_id, event, attempt=attempt)

    def states(self, cohort: Cohort) -> dict[str, int]:
        tally, _, _ = self.cohorts.tally([cohort.id])[cohort.id]
        return {n: getattr(tally, n) for n in tally.__slots__ if getattr(tally, n)}


def _slide(row: int, content: str | None = None) -> CheckedSlide:
    where = f"https://s.example.com/{row}.svs?sig=s3cret"
    return CheckedSlide(row, f"slide {row}", f"/s/{row}", {"urls": [where]}, {}, "svs", content or f"bytes {row}")


@pytest.fixture
def lab(db: Database) -> Lab:
    return Lab(db)


def test_ten_thousand_slides_are_fed_in_batches_each_once_and_in_order(lab: Lab) -> None:
    cohort = lab.cohort(10_000)
    fed = [lab.cohorts.feed(cohort, 500, HOST) for _ in range(3)]
    assert fed == [500, 500, 500]
    assert lab.states(cohort) == {"pending": 8500, "under_way": 1500}
    with lab.db.read() as conn:
        rows = conn.execute(
            sa.select(t.cohort_slides.c.row, t.jobs.c.id, t.jobs.c.priority, t.tasks.c.number, t.scans.c.number)
            .join_from(t.cohort_slides, t.jobs, t.cohort_slides.c.job_id == t.jobs.c.id)
            .join(t.tasks, t.jobs.c.task_id == t.tasks.c.id)
            .join(t.scans, t.jobs.c.scan_id == t.scans.c.id)
            .where(t.cohort_slides.c.cohort_id == cohort.id)
            .order_by(t.jobs.c.id)
        ).all()
    assert [r.row for r in rows] == list(range(1, 1501)), "the manifest's order is the queue's"
    assert len({r[3] for r in rows}) == len({r[4] for r in rows}) == 1500
    assert {r.priority for r in rows} == {1}


def test_a_clinical_job_goes_before_every_slide_of_a_cohort(lab: Lab) -> None:
    cohort = lab.cohort(5)
    lab.cohorts.feed(cohort, 5, HOST)
    clinical = lab.world.queued(lab.company, lab.algorithm)
    claimed = lab.world.jobs.claim(3, 100, datetime.now(UTC))
    assert claimed[0].id == clinical
    assert [j.priority for j in claimed] == [Priority.CLINICAL, Priority.RESEARCH, Priority.RESEARCH]


def test_two_feeders_at_once_never_feed_a_slide_twice(lab: Lab) -> None:
    cohort = lab.cohort(60)
    threads = [threading.Thread(target=lab.cohorts.feed, args=(cohort, 20, HOST)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with lab.db.read() as conn:
        jobs = conn.execute(sa.select(sa.func.count()).select_from(t.jobs)).scalar_one()
    assert (jobs, lab.states(cohort)) == (60, {"under_way": 60})


def test_an_end_is_collected_once_with_the_time_its_node_was_held(lab: Lab) -> None:
    cohort = lab.cohort(2)
    lab.cohorts.feed(cohort, 2, HOST)
    first, second = lab.world.claim()
    lab.end(first.id)
    assert (lab.cohorts.collect(), lab.cohorts.collect()) == (1, 0)
    assert lab.states(cohort) == {"succeeded": 1, "under_way": 1}
    with lab.db.write() as conn:  # the second one's first attempt held a node for a minute and was tried again
        conn.execute(
            sa.insert(t.job_events),
            [
                {"company_id": lab.company, "job_id": second.id, "attempt": 1, "event": e, "state": "x", "at": at}
                for e, at in (
                    (JobEvent.PLACED, datetime(2026, 1, 1, 12, 0, tzinfo=UTC)),
                    (JobEvent.RETRIED, datetime(2026, 1, 1, 12, 1, tzinfo=UTC)),
                )
            ],
        )
    lab.end(second.id)
    lab.cohorts.collect()
    _, gpu_s, ran = lab.cohorts.tally([cohort.id])[cohort.id]
    assert ran == 2
    assert 60 <= gpu_s < 70


def test_nothing_is_fed_of_a_cohort_that_was_cancelled_meanwhile(lab: Lab) -> None:
    cohort = lab.cohort(3)
    lab.cohorts.happen(lab.company, cohort.id, CohortEvent.CANCELLED, "by ann")
    assert lab.cohorts.feed(cohort, 3, HOST) == 0
    assert lab.states(cohort) == {"pending": 3}


def test_twins_in_one_batch_wait_for_each_other(lab: Lab) -> None:
    cohort, _ = lab.draft(3)
    lab.cohorts.add(cohort, [_slide(1, "same"), _slide(2, "same"), _slide(3)], "env")
    cohort = lab.cohorts.happen(lab.company, cohort.id, CohortEvent.STARTED)
    assert lab.cohorts.feed(cohort, 10, HOST) == 2
    assert lab.cohorts.feed(cohort, 10, HOST) == 1
    assert lab.states(cohort) == {"under_way": 2, "duplicate": 1}


def test_work_of_another_company_is_never_known(db: Database) -> None:
    first = Lab(db)
    second = Lab(db, first.world)
    one = first.cohort(1)
    first.cohorts.feed(one, 1, HOST)
    first.end(first.world.claim()[0].id)
    first.cohorts.collect()
    two = second.cohort(1)
    second.cohorts.feed(two, 1, HOST)
    assert second.states(two) == {"under_way": 1}
    with pytest.raises(NotFoundError):
        second.cohorts.happen(second.company, one.id, CohortEvent.RERUN)


def test_the_same_key_is_the_same_cohort_and_a_mended_draft_starts_anew(lab: Lab) -> None:
    draft, _ = lab.draft(2)
    lab.cohorts.add(draft, [_slide(1)], "env")
    lab.cohorts.add(draft, [_slide(1), _slide(2)], "env")
    assert lab.states(draft) == {"pending": 2}, "a row that comes twice is there once"
    assert lab.draft(2) == (draft, False)
    mended, created = lab.draft(3, manifest="mended")
    assert created
    assert lab.states(mended) == {}
    lab.cohorts.happen(lab.company, mended.id, CohortEvent.STARTED)
    with pytest.raises(ConflictError, match="another manifest"):
        lab.draft(2)
    with pytest.raises(ConflictError, match="before it is started"):
        lab.cohorts.add(mended, [_slide(1)], "env")
    with pytest.raises(ConflictError, match="what was run is kept"):
        lab.cohorts.delete_draft(lab.company, mended.id)


def test_a_rerun_uses_the_scan_again_and_adds_to_what_was_spent(lab: Lab) -> None:
    cohort = lab.cohort(1)
    lab.cohorts.feed(cohort, 1, HOST)
    (job,) = lab.world.claim()
    lab.world.jobs.transition(job.id, JobEvent.PLACED, attempt=1)
    lab.world.jobs.transition(job.id, JobEvent.FAILED, attempt=1)
    lab.cohorts.collect()
    lab.cohorts.happen(None, cohort.id, CohortEvent.CANARY_PASSED)
    lab.cohorts.happen(None, cohort.id, CohortEvent.FINISHED)
    again = lab.cohorts.happen(lab.company, cohort.id, CohortEvent.RERUN)
    assert again.state is CohortState.RUNNING
    lab.cohorts.feed(again, 1, HOST)
    (slide,) = lab.cohorts.slides(lab.company, cohort.id, cursor=None, limit=10).items
    assert slide.state is SlideState.UNDER_WAY
    second = lab.world.jobs.find(slide.job_id or 0)
    assert second.id != job.id
    assert (second.scan_id, second.state) == (job.scan_id, JobState.QUEUED)
