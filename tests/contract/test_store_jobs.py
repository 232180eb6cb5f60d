"""Submissions, claims and transitions on both databases."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from mhs_ray.domain.env import EnvVar
from mhs_ray.domain.errors import ConflictError, InvalidInputError, NotFoundError, TransitionError
from mhs_ray.domain.failures import Failure, FailureCode
from mhs_ray.domain.models import ImageRef, Priority, Provider, ScanStatus
from mhs_ray.domain.states import JobEvent, JobState
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.jobs import JobFilter
from mhs_ray.store.sql.tasks import RequestedScan, Submitted
from mhs_ray.store.sql.transitions import Change
from tests.store_fixtures import World

S, E = JobState, JobEvent
LOST = Failure(FailureCode.NODE_LOST, "the node is gone", "wait")
BROKE = Failure(FailureCode.EXIT_CODE, "exit 1", "mend it", "Traceback …", 1)


def _faults(call: Callable[[], Any]) -> list[str]:
    with pytest.raises(InvalidInputError) as caught:
        call()
    return [f.path for f in caught.value.faults]


def _count(world: World, table: sa.Table) -> int:
    with world.db.read() as conn:
        return int(conn.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


def _together(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Do `work` in `count` threads at once; return values and exceptions."""
    gate = threading.Barrier(count)

    def one(i: int) -> Any:
        gate.wait()
        try:
            return work(i)
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


# ------------------------------------------------------------ submissions


def test_a_submission_makes_a_task_and_one_job_per_scan(world: World) -> None:
    company = world.company()
    done = world.submit(company, scans=3, number=185714, case_number=7, description="HE", priority=Priority.RESEARCH)
    assert done.created
    task = world.tasks.get(company, 185714)
    assert (task.case_number, task.description, task.priority) == (7, "HE", Priority.RESEARCH)
    jobs = world.jobs.of_task(company, task.id)
    assert [j.id for j in jobs] == list(done.job_ids)
    assert {(j.state, j.attempt, j.task_number, j.priority) for j in jobs} == {(S.QUEUED, 0, 185714, Priority.RESEARCH)}
    assert [e.event for e in world.jobs.events(company, jobs[0].id)] == ["submitted"]


def test_a_task_without_a_number_gets_one_of_ours(world: World) -> None:
    task = world.submit(world.company()).task
    assert task.number == 1_000_000_000 + task.id


def test_the_same_number_again_adds_nothing_even_when_the_rest_differs(world: World) -> None:
    company, other = world.company(), world.company()
    first = world.submit(company, scans=2, number=5)
    again = world.submit(company, scans=1, number=5)
    assert (again.created, again.task, again.job_ids) == (False, first.task, first.job_ids)
    assert world.submit(other, number=5).created
    assert _count(world, t.jobs) == 3


def test_many_at_once_with_the_same_number_make_one_task(world: World) -> None:
    company = world.company()
    algorithm = world.algorithm(company)
    scan = RequestedScan(number=77, urls=("https://s.example.com/77?sig=1",), path="$.scans['77']")
    submission = world.submission(company, algorithm, number=185714, scans=(scan,))
    done = _together(8, lambda _: world.tasks.submit(submission))
    assert not [d for d in done if isinstance(d, Exception)]
    assert sorted(d.created for d in done) == [False] * 7 + [True]
    assert len({d.job_ids for d in done}) == 1
    assert (_count(world, t.tasks), _count(world, t.jobs), _count(world, t.scans)) == (1, 1, 1)


def test_submissions_of_one_transaction_fail_alone_and_find_what_the_others_bring(world: World) -> None:
    company, other = world.company(), world.company()
    algorithm, theirs = world.algorithm(company), world.algorithm(other)
    new = RequestedScan(number=77, urls=("https://s.example.com/77?sig=1",), path="$.scans['77']")
    good = world.submission(company, algorithm, number=1, scans=(new,))
    submissions = [
        good,
        world.submission(company, algorithm, number=1, scans=(new,)),
        world.submission(company, algorithm, number=2, scans=(new,)),
        world.submission(other, theirs, number=1, scans=(new,)),
        world.submission(company, theirs, number=3, scans=(new,)),
        world.submission(company, algorithm, number=4, scans=(new, RequestedScan(id=999, path="$.scan_ids[1]"))),
        world.submission(company, algorithm, number=5, scans=(new, new)),
        world.submission(company, algorithm, number=6, scans=(new,), request={"no JSON": object()}),
        world.submission(company, algorithm, number=7, scans=(new,)),
    ]
    with world.db.write() as conn:
        done = world.tasks.submit_all(conn, submissions)
    assert [d.created if isinstance(d, Submitted) else type(d).__name__ for d in done] == [
        True, False, True, True, "InvalidInputError", "InvalidInputError", "InvalidInputError",
        "StatementError" if world.db.is_sqlite else "TypeError", True,
    ]  # fmt: skip
    first, again = done[:2]
    assert isinstance(first, Submitted)
    assert isinstance(again, Submitted)
    assert again.job_ids == first.job_ids
    assert (_count(world, t.tasks), _count(world, t.jobs), _count(world, t.scans)) == (4, 4, 2)
    for d in done:
        if isinstance(d, Submitted):
            stored = world.tasks.get(d.task.company_id, d.task.number)
            assert d.task == stored
            assert tuple(j.id for j in world.jobs.of_task(stored.company_id, stored.id)) == d.job_ids
            assert [e.event for e in world.jobs.events(stored.company_id, d.job_ids[0])] == ["submitted"]


def test_many_at_once_that_bring_the_same_new_scans_in_any_order_all_succeed(world: World) -> None:
    company = world.company()
    algorithm = world.algorithm(company)

    def submit(i: int) -> Any:
        if i == 0:
            return world.scan(company, number=100)
        numbers = [100, 101, 102, 103] if i % 2 else [103, 102, 101, 100]
        scans = tuple(RequestedScan(number=n, urls=(f"https://s.example.com/{n}",), path="$") for n in numbers)
        return world.tasks.submit(world.submission(company, algorithm, number=i, scans=scans))

    done = _together(8, submit)
    assert not [d for d in done[1:] if isinstance(d, Exception)]
    assert _count(world, t.scans) == 4
    assert _count(world, t.jobs) == 28


def test_a_faulty_submission_leaves_nothing_behind(world: World) -> None:
    company = world.company()
    algorithm = world.algorithm(company)
    good, uploading = world.scan(company), world.scan(company, status=ScanStatus.UPLOADING)
    new = RequestedScan(number=9, urls=("https://s.example.com/9",), path="$.scans['9']")
    wanted = (
        new, RequestedScan(id=good.id, path="$.scan_ids[0]"), RequestedScan(id=99999, path="$.scan_ids[1]"),
        RequestedScan(id=good.id, path="$.scan_ids[2]"), RequestedScan(id=uploading.id, path="$.scan_ids[3]"),
    )  # fmt: skip
    before = _count(world, t.scans)
    paths = _faults(lambda: world.tasks.submit(world.submission(company, algorithm, scans=wanted)))
    assert paths == ["$.scan_ids[1]", "$.scan_ids[2]", "$.scan_ids[3]"]
    assert (_count(world, t.scans), _count(world, t.tasks), _count(world, t.jobs)) == (before, 0, 0)


def test_an_algorithm_is_found_by_id_name_or_as_the_only_one(world: World) -> None:
    company = world.company()
    only = world.algorithm(company, name="Mitosis count")
    world.algorithms.create(company, "ann", "Elsewhere", Provider.EXTERNAL, None)
    scan = world.scan(company)

    def names(*pairs: tuple[str, str]) -> int:
        submission = world.submission(company, only, scan, algorithm_id=None, algorithm_names=pairs)
        return world.tasks.submit(submission).task.algorithm_id

    assert names(("$.model_name", "Mitosis count")) == only.id
    assert names(("$.model_id", str(only.id))) == only.id
    assert names(("$.model_id", "unknown"), ("$.model_name", "Mitosis count")) == only.id
    assert names(("$.model_id", ""), ("$.model_name", "")) == only.id
    assert names() == only.id
    assert _faults(lambda: names(("$.model_id", "unknown"), ("$.model_name", "Tumor"))) == ["$.model_id"]
    assert _faults(lambda: names(("$.model_name", "Elsewhere"))) == ["$.model_name"]
    named_as_id = world.algorithm(company, name=str(only.id))
    assert names(("$.model_name", str(only.id))) == named_as_id.id, "a name goes before an id"
    assert _faults(names) == ["$.model_name"], "two of them: which one is meant?"
    assert _faults(lambda: world.tasks.submit(world.submission(company, only, scan, algorithm_id=999))) == [
        "$.algorithm_id"
    ]


def test_a_job_keeps_what_its_container_was_when_it_was_made(world: World) -> None:
    company = world.company()
    image = world.image(company)
    container = world.container(company, image, env=[EnvVar("A", "old")])
    job_id = world.queued(company, world.algorithm(company, container))
    new = "sha256:" + "99" * 32
    world.images.begin_check(image.id, new)
    world.images.uploaded(image.id, new, ImageRef("r", "t", new), 1, {})
    world.containers.update(
        company, container.id, {"time_limit_s": 1, "instance_type": "g5.2xlarge"}, [EnvVar("A", "new")]
    )
    row, job = world.jobs.row(job_id), world.jobs.find(job_id)
    assert (row.time_limit_s, job.instance_type) == (600, "g4dn.xlarge")
    assert image.current is not None
    assert job.image_digest == image.current.digest
    assert world.db.vault.open(row.env) == [["A", "old", False]]


# ------------------------------------------------------------ claims


def test_clinical_work_goes_first_and_then_the_oldest(world: World) -> None:
    company = world.company()
    algorithm = world.algorithm(company)
    research = [world.queued(company, algorithm, Priority.RESEARCH) for _ in range(2)]
    clinical = [world.queued(company, algorithm) for _ in range(2)]
    claimed = world.claim()
    assert [j.id for j in claimed] == clinical + research
    assert {(j.state, j.attempt) for j in claimed} == {(S.WAITING, 1)}


def test_companies_take_turns_whoever_queued_more(world: World) -> None:
    big, small = world.company(), world.company()
    for_big, for_small = world.algorithm(big), world.algorithm(small)
    big_jobs = [world.queued(big, for_big) for _ in range(5)]
    small_jobs = [world.queued(small, for_small) for _ in range(2)]
    order = [j.id for j in world.claim()]
    assert order[:4] == [big_jobs[0], small_jobs[0], big_jobs[1], small_jobs[1]]
    assert order[4:] == big_jobs[2:]


def test_a_type_without_capacity_does_not_keep_another_from_its_nodes(world: World) -> None:
    company = world.company()
    scarce, plenty = (
        world.algorithm(company, world.container(company, instance_type=kind)) for kind in ("g6e.2xlarge", "g5.2xlarge")
    )
    waiting = [world.queued(company, scarce) for _ in range(3)]
    other = world.queued(company, plenty)
    now = datetime.now(UTC)
    assert [j.id for j in world.jobs.claim(32, 2, now, by_type=True)] == [other, *waiting[:2]]
    late = world.queued(company, plenty)
    assert [j.id for j in world.jobs.claim(32, 2, now + timedelta(seconds=1), by_type=True)] == [late]
    assert world.jobs.claim(32, 2, now + timedelta(seconds=1)) == []  # where every node is of every type, 2 are 2


def test_a_company_s_cap_holds_over_all_types(world: World) -> None:
    company = world.company(max_active_jobs=2)
    for kind in ("g6e.2xlarge", "g5.2xlarge"):
        algorithm = world.algorithm(company, world.container(company, instance_type=kind))
        for _ in range(2):
            world.queued(company, algorithm)
    assert len(world.jobs.claim(32, 8, datetime.now(UTC), by_type=True)) == 2


def test_what_runs_already_counts_for_the_fair_share(world: World) -> None:
    busy, idle = world.company(), world.company()
    algorithm = world.algorithm(busy)
    for _ in range(2):
        world.queued(busy, algorithm)
    world.claim()
    world.queued(busy, algorithm)
    wanted = [world.queued(idle) for _ in range(2)]
    assert [j.id for j in world.claim(2)] == wanted


def test_a_companys_cap_holds_and_does_not_stop_others(world: World) -> None:
    capped, free = world.company(max_active_jobs=1), world.company()
    algorithm = world.algorithm(capped)
    first, second = world.queued(capped, algorithm), world.queued(capped, algorithm)
    other = world.queued(free)
    assert {j.id for j in world.claim()} == {first, other}
    assert world.claim() == []
    world.jobs.transition(first, E.CANCELLED)
    assert [j.id for j in world.claim()] == [second]


def test_no_more_wait_for_a_node_than_may(world: World) -> None:
    company = world.company()
    algorithm = world.algorithm(company)
    jobs = [world.queued(company, algorithm) for _ in range(5)]
    assert len(world.claim(limit=2, waiting=3)) == 2
    assert [j.id for j in world.claim(limit=9, waiting=3)] == [jobs[2]]
    assert world.claim(limit=9, waiting=3) == []
    world.jobs.transition(jobs[0], E.PLACED, attempt=1, node="n")
    assert [j.id for j in world.claim(limit=9, waiting=3)] == [jobs[3]]


def test_a_job_in_its_backoff_waits_and_lets_younger_ones_pass(world: World) -> None:
    company = world.company()
    algorithm = world.algorithm(company)
    first, second = world.queued(company, algorithm), world.queued(company, algorithm, Priority.RESEARCH)
    world.claim(1)
    before = datetime.now(UTC)
    world.jobs.transition(first, E.RETRIED, attempt=1, failure=LOST, retry_in_s=60)
    due = world.jobs.next_due()
    assert due is not None
    assert due <= datetime.now(UTC), "the younger one may start now"
    assert [j.id for j in world.claim()] == [second]
    assert world.jobs.claim(9, 9, before + timedelta(seconds=59)) == []
    due = world.jobs.next_due()
    assert due is not None
    assert timedelta(seconds=60) <= due - before < timedelta(seconds=90)
    again = world.jobs.claim(9, 9, due)
    assert [(j.id, j.attempt, j.failure) for j in again] == [(first, 2, None)]
    assert world.jobs.next_due() is None


def test_eight_claimers_at_once_never_take_a_job_twice(world: World) -> None:
    company, other = world.company(), world.company()
    algorithms = {c: world.algorithm(c) for c in (company, other)}
    with world.db.write() as conn:
        submissions = [
            world.submission(c, algorithm, number=None, scans=(_new_scan(),))
            for c, algorithm in algorithms.items()
            for _ in range(20)
        ]
        stored = world.tasks.submit_all(conn, submissions)
    jobs = {job for done in stored if isinstance(done, Submitted) for job in done.job_ids}
    assert len(jobs) == 40

    def claim_until_empty(_: int) -> list[int]:
        mine: list[int] = []
        while got := world.claim(3):
            mine += [j.id for j in got]
        return mine

    taken = [i for mine in _together(8, claim_until_empty) for i in mine]
    assert len(taken) == len(set(taken)) == len(jobs)
    assert set(taken) == jobs
    with world.db.read() as conn:
        events = conn.execute(sa.select(sa.func.count()).where(t.job_events.c.event == E.DISPATCHED)).scalar_one()
    assert events == len(jobs)


_numbers = iter(range(1, 10**6))


def _new_scan() -> RequestedScan:
    number = next(_numbers)
    return RequestedScan(number=number, urls=(f"https://s.example.com/{number}",), path="$")


def test_the_place_in_the_queue_counts_who_goes_before(world: World) -> None:
    company = world.company()
    algorithm = world.algorithm(company)
    research = world.queued(company, algorithm, Priority.RESEARCH)
    first, second = world.queued(company, algorithm), world.queued(company, algorithm)
    assert [world.jobs.queue_position(j) for j in (first, second, research)] == [1, 2, 3]
    world.claim(1)
    assert [world.jobs.queue_position(j) for j in (first, second)] == [None, 1]


# ------------------------------------------------------------ transitions


def test_a_job_tells_its_story_with_times_nodes_and_causes(world: World) -> None:
    company = world.company()
    job = world.running(company)
    world.jobs.transition(job.id, E.EXITED, attempt=1, cause="exit code 0", resources={"cpu_s": 1.5})
    world.jobs.transition(job.id, E.SUCCEEDED, attempt=1)
    done = world.jobs.get(company, job.id)
    assert (done.state, done.node, done.resources, done.failure) == (S.SUCCEEDED, "node-a", {"cpu_s": 1.5}, None)
    assert done.started_at is not None
    assert done.ended_at is not None
    assert done.created_at <= done.started_at <= done.ended_at
    story = world.jobs.events(company, job.id)
    assert [(e.event, e.state, e.attempt) for e in story] == [
        ("submitted", S.QUEUED, 0), ("dispatched", S.WAITING, 1), ("placed", S.PREPARING, 1),
        ("started", S.RUNNING, 1), ("exited", S.COLLECTING, 1), ("succeeded", S.SUCCEEDED, 1),
    ]  # fmt: skip
    assert story[2].node == "node-a"
    assert story[4].cause == "exit code 0"


def test_a_failure_card_is_kept_whole_and_can_be_filtered_by(world: World) -> None:
    company = world.company()
    job = world.running(company)
    world.jobs.transition(job.id, E.FAILED, attempt=1, failure=BROKE)
    assert world.jobs.get(company, job.id).failure == BROKE
    for wanted, found in (("model", [job.id]), ("platform", [])):
        page = world.jobs.page(company, JobFilter(failure_class=wanted), cursor=None, limit=9)
        assert [j.id for j in page.items] == found


def test_a_retry_forgets_the_attempt_before_it_and_counts_the_failure(world: World) -> None:
    company = world.company()
    job = world.running(company)
    world.jobs.transition(job.id, E.RETRIED, attempt=1, failure=LOST, retry_in_s=0, resources={"cpu_s": 9})
    queued = world.jobs.find(job.id)
    assert (queued.state, queued.failure) == (S.QUEUED, LOST)
    row = world.jobs.row(job.id)
    assert (row.platform_failures, row.model_failures) == (1, 0)
    (again,) = world.claim()
    assert (again.attempt, again.node, again.failure, again.started_at, again.resources) == (2, None, None, None, {})
    world.jobs.transition(job.id, E.RETRIED, attempt=2, failure=BROKE, retry_in_s=0)
    row = world.jobs.row(job.id)
    assert (row.platform_failures, row.model_failures) == (1, 1)


@pytest.mark.parametrize("event", sorted(set(E) - {E.DISPATCHED}))
def test_a_stale_attempt_changes_nothing_whatever_it_says(world: World, event: JobEvent) -> None:
    company = world.company()
    job = world.running(company)
    world.jobs.transition(job.id, E.RETRIED, attempt=1, failure=LOST, retry_in_s=0)
    world.claim()
    world.jobs.transition(job.id, E.PLACED, attempt=2, node="node-b")
    before, story = world.jobs.find(job.id), world.jobs.events(company, job.id)
    change = world.jobs.transition(job.id, event, attempt=1, node="node-a", failure=BROKE, resources={"x": 1})
    assert not change.changed
    assert (world.jobs.find(job.id), world.jobs.events(company, job.id)) == (before, story)


@pytest.mark.parametrize("event", sorted(set(E) - {E.DISPATCHED, E.CANCELLED, E.EXPIRED}))
def test_what_an_attempt_says_after_it_was_given_up_leaves_the_job_queued(world: World, event: JobEvent) -> None:
    company = world.company()
    job = world.running(company)
    world.jobs.transition(job.id, E.RETRIED, attempt=1, failure=LOST, retry_in_s=0)
    before, story = world.jobs.find(job.id), world.jobs.events(company, job.id)
    assert not world.jobs.transition(job.id, event, attempt=1, node="n", failure=BROKE, resources={"x": 1}).changed
    assert (world.jobs.find(job.id), world.jobs.events(company, job.id)) == (before, story)
    assert world.jobs.row(job.id).platform_failures == 1


@pytest.mark.parametrize("event", sorted(set(E) - {E.DISPATCHED}))
def test_what_comes_after_a_cancel_leaves_it_cancelled(world: World, event: JobEvent) -> None:
    company = world.company()
    job = world.running(company)
    world.jobs.transition(job.id, E.CANCELLED, cause="cancelled by ann")
    before, story = world.jobs.find(job.id), world.jobs.events(company, job.id)
    assert not world.jobs.transition(job.id, event, attempt=1, node="n", failure=BROKE, resources={"x": 1}).changed
    assert (world.jobs.find(job.id), world.jobs.events(company, job.id)) == (before, story)


_ON_THE_WAY: list[tuple[JobEvent, ...]] = [
    (), (E.PLACED,), (E.PLACED, E.STARTED), (E.PLACED, E.STARTED, E.EXITED), (E.RETRIED,),
]  # fmt: skip


@pytest.mark.parametrize("events", [None, *_ON_THE_WAY], ids=str)
def test_a_job_can_be_cancelled_in_every_state(world: World, events: tuple[JobEvent, ...] | None) -> None:
    company = world.company()
    job_id = world.queued(company)
    if events is not None:
        world.claim()
        for event in events:
            world.jobs.transition(job_id, event, attempt=1, failure=LOST if event is E.RETRIED else None)
    change = world.jobs.transition(job_id, E.CANCELLED, cause="cancelled by ann")
    assert change.changed
    job = world.jobs.find(job_id)
    assert (job.state, job.failure) == (S.CANCELLED, None)
    assert job.ended_at is not None
    assert world.jobs.events(company, job_id)[-1].cause == "cancelled by ann"
    assert world.claim() == []
    assert not world.jobs.transition(job_id, E.CANCELLED).changed


def test_an_ended_job_cannot_be_cancelled(world: World) -> None:
    job = world.running(world.company())
    world.jobs.transition(job.id, E.FAILED, attempt=1, failure=BROKE)
    with pytest.raises(ConflictError, match="failed; it cannot be cancelled any more"):
        world.jobs.transition(job.id, E.CANCELLED)


def test_an_impossible_event_is_an_error_and_an_unknown_job_too(world: World) -> None:
    job_id = world.queued(world.company())
    world.claim()
    with pytest.raises(TransitionError):
        world.jobs.transition(job_id, E.SUCCEEDED, attempt=1)
    with pytest.raises(NotFoundError):
        world.jobs.transition(99999, E.CANCELLED)


def test_of_two_ends_told_at_once_one_counts(world: World) -> None:
    company = world.company()
    for _ in range(3):
        job = world.running(company)
        ends: list[tuple[JobEvent, Failure | None]] = [
            (E.FAILED, BROKE),
            (E.RETRIED, LOST),
            (E.TIMED_OUT, BROKE),
            (E.CANCELLED, None),
        ]

        def end(i: int, job_id: int = job.id, ends: list[tuple[JobEvent, Failure | None]] = ends) -> Change:
            return world.jobs.transition(job_id, ends[i][0], attempt=1, failure=ends[i][1])

        done = _together(4, end)
        changed = [d for d in done if not isinstance(d, Exception) and d.changed]
        final = world.jobs.find(job.id).state
        # A retry that came first may still be cancelled; nothing else follows an end.
        assert [c.after for c in changed] in ([final], [S.QUEUED, S.CANCELLED], [S.CANCELLED, S.QUEUED])
        assert all(isinstance(d, ConflictError) for d in done if isinstance(d, Exception))


def test_an_ended_job_is_rerun_as_a_new_one_with_what_it_had(world: World) -> None:
    company = world.company()
    job = world.running(company)
    with pytest.raises(ConflictError, match="only an ended job can be rerun"):
        world.jobs.rerun(company, job.id, "bob")
    world.jobs.transition(job.id, E.FAILED, attempt=1, failure=BROKE)
    new = world.jobs.get(company, world.jobs.rerun(company, job.id, "bob"))
    assert (new.state, new.attempt, new.created_by, new.failure) == (S.QUEUED, 0, "bob", None)
    assert (new.image_digest, new.scan_id, new.task_id) == (job.image_digest, job.scan_id, job.task_id)
    assert world.jobs.row(new.id).env == world.jobs.row(job.id).env
    assert world.jobs.events(company, new.id)[0].cause == f"rerun of job {job.id}"
    world.jobs.transition(new.id, E.CANCELLED)
    third = world.jobs.rerun(company, job.id, "bob")
    assert world.jobs.row(third).run == 2


def test_two_reruns_at_once_are_two_runs(world: World) -> None:
    company = world.company()
    job = world.running(company)
    world.jobs.transition(job.id, E.CANCELLED)
    done = _together(4, lambda _: world.jobs.rerun(company, job.id, "bob"))
    assert not [d for d in done if isinstance(d, Exception)]
    assert sorted(world.jobs.row(i).run for i in done) == [1, 2, 3, 4]


def test_the_active_jobs_are_those_with_an_attempt_somewhere(world: World) -> None:
    company = world.company()
    algorithm = world.algorithm(company)
    queued, waiting = world.queued(company, algorithm), world.running(company).id
    ended = world.running(company).id
    world.jobs.transition(ended, E.CANCELLED)
    assert waiting in {j.id for j in world.jobs.active()}
    assert ended not in {j.id for j in world.jobs.active()}
    assert all(j.state.is_active for j in world.jobs.active())
    assert queued in {j.id for j in world.jobs.active()}, "running() claimed it too"


def test_what_an_attempt_uses_is_noted_for_the_newest_one_only(world: World) -> None:
    job = world.running(world.company())
    world.jobs.note_resources(job.id, 1, {"cpu_s": 1})
    world.jobs.note_resources(job.id, 2, {"cpu_s": 2})
    assert world.jobs.find(job.id).resources == {"cpu_s": 1}


# ------------------------------------------------------------ lists


def test_jobs_are_filtered_by_everything_people_ask_for(world: World) -> None:
    company = world.company()
    one, two = world.algorithm(company, name="One"), world.algorithm(company, name="Two")
    first = world.submit(company, algorithm=one, number=11, by="ann")
    second = world.submit(company, algorithm=two, number=12, by="bob")
    world.claim(1)
    job = world.jobs.find(first.job_ids[0])

    def found(**wanted: Any) -> list[int]:
        return [j.id for j in world.jobs.page(company, JobFilter(**wanted), cursor=None, limit=9).items]

    both = [second.job_ids[0], first.job_ids[0]]
    assert found() == both
    assert found(states=(S.QUEUED,)) == both[:1]
    assert found(states=(S.QUEUED, S.WAITING)) == both
    assert found(algorithm="One") == both[1:]
    assert found(container_id=job.container_id) == both[1:]
    assert found(scan_id=job.scan_id) == both[1:]
    assert found(task_number=12) == both[:1]
    assert found(created_by="bob") == both[:1]
    assert found(created_after=datetime.now(UTC)) == []
    assert found(created_before=datetime.now(UTC) + timedelta(seconds=1)) == both
    assert found(created_after=job.created_at, created_before=job.created_at) == []
    assert found(states=(S.QUEUED,), algorithm="One") == []
