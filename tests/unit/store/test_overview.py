"""Counts and look-ups for the console, on a real database."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mhs_ray.domain.failures import Failure, FailureCode
from mhs_ray.domain.models import Priority, ScanStatus
from mhs_ray.domain.states import JobEvent, JobState
from mhs_ray.store.sql.jobs import JobFilter
from mhs_ray.store.sql.overview import Overview
from tests.store_fixtures import World, sqlite_db

BOOM = Failure(FailureCode.EXIT_CODE, "it exited with 3", "read the log", "", 3)
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with sqlite_db(tmp_path) as db:
        yield World(db)


def _fail(world: World, job_id: int, failure: Failure = BOOM) -> None:
    world.jobs.transition(job_id, JobEvent.FAILED, attempt=1, failure=failure)


def test_counts_are_the_companys_own(world: World) -> None:
    ours, theirs = world.company(), world.company()
    job = world.running(ours)
    world.queued(ours)
    world.queued(theirs)
    world.scan(ours, status=ScanStatus.FAILED)
    counts = Overview(world.db).counts(ours)
    assert counts.jobs == {"running": 1, "queued": 1}
    assert counts.images == {"uploaded": 2}
    assert (counts.containers, counts.algorithms) == (2, 2)
    assert counts.scans == {"ready": 2, "failed": 1}
    assert job.state is JobState.RUNNING


def test_failures_are_grouped_by_what_happened_in_which_container(world: World) -> None:
    company, overview = world.company(), Overview(world.db)
    algorithm = world.algorithm(company)
    ids = [world.queued(company, algorithm) for _ in range(3)]
    world.claim()
    _fail(world, ids[0])
    _fail(world, ids[2])
    _fail(world, ids[1], Failure(FailureCode.OUT_OF_MEMORY, "too big", "take more"))
    first, second = overview.failures(company, LONG_AGO)
    assert (first.count, first.code, first.job_id, first.cause) == (2, "exit-code", ids[2], "it exited with 3")
    assert (second.count, second.code, second.failure_class) == (1, "out-of-memory", "model")
    assert overview.failures(company, datetime.now(UTC) + timedelta(minutes=1)) == []
    assert overview.failures(world.company(), LONG_AGO) == []


def test_what_is_broken_is_named_newest_first(world: World) -> None:
    company = world.company()
    image = world.image(company, uploaded=False)
    world.images.begin_check(image.id, "sha256:" + "0" * 64)
    world.images.rejected(image.id, "sha256:" + "0" * 64, "it is for arm64")
    scan = world.scan(company, status=ScanStatus.FAILED)
    broken = Overview(world.db).broken(company)
    assert [(b.kind, b.id) for b in broken] == [("scan", scan.id), ("image", image.id)]
    assert broken[1].message == "it is for arm64"


def test_queue_positions_are_those_that_the_dispatcher_goes_by(world: World) -> None:
    company = world.company()
    algorithm = world.algorithm(company)
    late = world.queued(company, algorithm, Priority.RESEARCH)
    ids = [world.queued(company, algorithm) for _ in range(3)]
    overview = Overview(world.db)
    positions = overview.queue_positions([late, *ids])
    assert positions == {ids[0]: 1, ids[1]: 2, ids[2]: 3, late: 4}
    assert positions == {i: world.jobs.queue_position(i) for i in positions}
    world.claim(limit=1)
    assert overview.queue_positions([ids[0], ids[1]]) == {ids[1]: 1}


def test_use_is_summed_by_company_and_cut_at_the_periods_start(world: World) -> None:
    ours, theirs = world.company("Ours"), world.company("Theirs")
    for company in (ours, theirs):
        world.jobs.transition(world.running(company).id, JobEvent.EXITED, attempt=1)
    _fail(world, world.running(ours).id)
    overview = Overview(world.db)
    used = {u.company: u for u in overview.usage(LONG_AGO)}
    assert (used["Ours"].jobs, used["Ours"].failed) == (1, 1)
    assert (used["Theirs"].jobs, used["Theirs"].failed) == (0, 0)
    assert 0 <= used["Ours"].gpu_s < 600
    (mine,) = overview.usage(LONG_AGO, ours)
    assert mine.company == "Ours"
    ahead = overview.usage(datetime.now(UTC) + timedelta(days=1))
    assert all(u.gpu_s == 0 for u in ahead)


def test_what_has_an_attempt_is_listed_with_its_company_and_node(world: World) -> None:
    job = world.running(world.company("North"))
    world.queued(world.company("South"))
    (placed,) = Overview(world.db).placed()
    assert (placed.id, placed.company, placed.node, placed.state) == (job.id, "North", "node-a", JobState.RUNNING)
    assert Overview(world.db).queued() == {"g4dn.xlarge": 1}


def test_dependents_of_a_container_are_named(world: World) -> None:
    company = world.company()
    container = world.container(company)
    algorithm = world.algorithm(company, container)
    world.queued(company, algorithm)
    assert Overview(world.db).dependents(company, container.id) == ([(algorithm.id, algorithm.name)], {"queued": 1})
    assert Overview(world.db).dependents(world.company(), container.id) == ([], {})


def test_jobs_are_found_by_a_part_of_a_name_or_by_a_number(world: World) -> None:
    company = world.company()
    algorithm = world.algorithm(company, name="Mitosis 100% finder")
    job_id = world.queued(company, algorithm)
    other = world.queued(company)

    def found(text: str) -> list[int]:
        page = world.jobs.page(company, JobFilter(search=text), cursor=None, limit=50)
        return [j.id for j in page.items]

    assert found("mitosis") == [job_id]
    assert found("100%") == [job_id], "a percent sign is no wildcard"
    assert found(str(world.jobs.find(other).task_number)) == [other]
    assert found("9" * 30) == []
    world.claim()
    _fail(world, job_id)
    by_code = world.jobs.page(company, JobFilter(failure_code="exit-code"), cursor=None, limit=50)
    assert [j.id for j in by_code.items] == [job_id]


def test_the_oldest_queued_job_tells_how_long_the_queue_is(world: World) -> None:
    company = world.company()
    assert world.jobs.oldest_queued(company) is None
    job_id = world.queued(company)
    world.queued(company)
    assert world.jobs.oldest_queued(company) == world.jobs.find(job_id).created_at
    assert world.jobs.oldest_queued(world.company()) is None
