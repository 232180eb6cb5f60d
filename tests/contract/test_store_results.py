"""The ledger of the results gateway on both databases: stored once, whatever is posted how often."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from mhs_ray.domain.errors import ForbiddenError, NotFoundError
from mhs_ray.domain.failures import Failure, FailureCode
from mhs_ray.domain.models import Job
from mhs_ray.domain.states import JobEvent
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.results import NewResult, Poster
from tests.store_fixtures import World

E = JobEvent
LOST = Failure(FailureCode.NODE_LOST, "gone", "wait")


def _result(scan_number: int, digest: str = "d1", **values: Any) -> NewResult:
    defaults: dict[str, Any] = {
        "report": {"count": 4}, "external_url": None, "qc_fail_reasons": None, "workflow": None,
        "summary": {"features": 2}, "geojson_key": "results/1", "features": 2,
    }  # fmt: skip
    return NewResult(scan_number=scan_number, digest=digest, **{**defaults, **values})


def _poster(job: Job, attempt: int | None = None) -> Poster:
    return Poster(job.company_id, job.task_number, job.id, job.attempt if attempt is None else attempt)


def _task(world: World) -> dict[str, Any]:
    with world.db.read() as conn:
        return dict(conn.execute(sa.select(t.tasks)).mappings().one())


def _two_scans(world: World) -> tuple[Job, Job]:
    """Return the running jobs of one task on two scans."""
    company = world.company()
    first, second = world.submit(company, scans=2).job_ids
    world.claim()
    for job_id in (first, second):
        world.jobs.transition(job_id, E.PLACED, attempt=1, node="n")
        world.jobs.transition(job_id, E.STARTED, attempt=1)
    return world.jobs.find(first), world.jobs.find(second)


def test_what_is_stored_is_read_back_whole(world: World) -> None:
    job = world.running(world.company())
    new = _result(
        job.scan_number, report={"a": [1, None, "ä"]}, external_url="https://x", qc_fail_reasons=["blurred"],
        workflow={"ruo": True},
    )  # fmt: skip
    assert world.results.store(_poster(job), {"triage": {"category": "high", "score": 0.5}}, [new]) == 1
    found = world.results.of_job(job.company_id, job.id)
    assert found is not None
    assert (found.report, found.external_url, found.qc_fail_reasons) == (
        {"a": [1, None, "ä"]},
        "https://x",
        ["blurred"],
    )
    assert (found.workflow, found.features, found.job_id, found.attempt) == ({"ruo": True}, 2, job.id, 1)
    assert (found.scan_number, found.task_number) == (job.scan_number, job.task_number)
    assert world.results.standing(job.id) == (True, None)
    assert (_task(world)["triage_category"], _task(world)["triage_score"]) == ("high", 0.5)


@pytest.mark.parametrize(("posted", "read"), [(None, None), ([], []), (["x"], ["x"])])
def test_an_untouched_qc_state_is_told_from_an_explicit_pass(world: World, posted: Any, read: Any) -> None:
    job = world.running(world.company())
    world.results.store(_poster(job), None, [_result(job.scan_number, qc_fail_reasons=posted)])
    found = world.results.of_job(job.company_id, job.id)
    assert found is not None
    assert found.qc_fail_reasons == read


def test_the_first_result_of_a_scan_stays(world: World) -> None:
    job = world.running(world.company())
    assert (
        world.results.store(_poster(job), {"triage": {"category": "first", "score": 1}}, [_result(job.scan_number)])
        == 1
    )
    later = [_result(job.scan_number, "d2", report={"count": 99})]
    assert world.results.store(_poster(job), {"triage": {"category": "second", "score": 2}}, later) == 0
    (found,) = world.results.of_task(job.company_id, job.task_number)
    assert (found.digest, found.report) == ("d1", {"count": 4})
    assert _task(world)["triage_category"] == "first"


def test_posts_at_once_store_one_result(world: World) -> None:
    job = world.running(world.company())
    posters = [_poster(job), Poster(job.company_id, job.task_number)] * 4
    gate = threading.Barrier(len(posters))

    def post(poster: Poster) -> int:
        gate.wait()
        return world.results.store(poster, {"n": 1}, [_result(job.scan_number)])

    with ThreadPoolExecutor(len(posters)) as pool:
        assert sorted(pool.map(post, posters)) == [0] * 7 + [1]


def test_a_stale_attempt_is_refused_until_the_result_is_there_and_then_answered_alike(world: World) -> None:
    job = world.running(world.company())
    world.jobs.transition(job.id, E.RETRIED, attempt=1, failure=LOST)
    world.claim()
    world.jobs.transition(job.id, E.PLACED, attempt=2)
    with pytest.raises(ForbiddenError, match="ended"):
        world.results.store(_poster(job, 1), None, [_result(job.scan_number, "stale")])
    assert world.results.store(_poster(job, 2), None, [_result(job.scan_number, "good")]) == 1
    assert world.results.posting(_poster(job, 1)).stored_before
    assert (
        world.results.store(_poster(job, 1), {"triage": {"category": "stale", "score": 1}}, [_result(job.scan_number)])
        == 0
    )
    (found,) = world.results.of_task(job.company_id, job.task_number)
    assert (found.digest, found.attempt) == ("good", 2)
    assert _task(world)["case_results"] is None


@pytest.mark.parametrize("end", [E.CANCELLED, E.FAILED, E.TIMED_OUT, E.RETRIED])
def test_an_attempt_that_has_ended_posts_nothing_more(world: World, end: JobEvent) -> None:
    job = world.running(world.company())
    world.jobs.transition(job.id, end, attempt=1, failure=LOST)
    for call in (
        lambda: world.results.posting(_poster(job)),
        lambda: world.results.store(_poster(job), None, [_result(job.scan_number)]),
        lambda: world.results.patch_case(_poster(job), {"triage_category": "x"}),
    ):
        with pytest.raises(ForbiddenError):
            call()
    assert world.results.of_task(job.company_id, job.task_number) == []


def test_an_attempt_may_not_post_before_it_is_on_a_node(world: World) -> None:
    job_id = world.queued(world.company())
    world.claim()
    with pytest.raises(ForbiddenError):
        world.results.posting(_poster(world.jobs.find(job_id)))


def test_all_is_stored_or_nothing(world: World) -> None:
    first, second = _two_scans(world)
    broken = _result(second.scan_number, report={"not JSON": object()})
    with pytest.raises(Exception, match="JSON"):
        world.results.store(
            _poster(first), {"triage": {"category": "x", "score": 1}}, [_result(first.scan_number), broken]
        )
    assert world.results.of_task(first.company_id, first.task_number) == []
    assert _task(world)["case_results"] is None


def test_one_post_can_carry_both_scans_of_a_task_and_each_keeps_its_first(world: World) -> None:
    first, second = _two_scans(world)
    assert (
        world.results.store(_poster(first), None, [_result(first.scan_number, "a"), _result(second.scan_number, "b")])
        == 2
    )
    assert world.results.store(_poster(second), None, [_result(second.scan_number, "c")]) == 0
    found = world.results.of_task(first.company_id, first.task_number)
    assert {r.scan_number: r.digest for r in found} == {first.scan_number: "a", second.scan_number: "b"}
    assert world.results.standing(second.id)[0]


def test_two_scans_posted_by_their_own_jobs_are_two_results(world: World) -> None:
    first, second = _two_scans(world)
    for job in (first, second):
        assert world.results.posting(_poster(job)).scans.keys() == {first.scan_number, second.scan_number}
        assert world.results.store(_poster(job), {"by": job.id}, [_result(job.scan_number)]) == 1
    assert [r.job_id for r in world.results.of_task(first.company_id, first.task_number)] == [first.id, second.id]


def test_a_rerun_has_a_result_of_its_own_beside_the_first(world: World) -> None:
    job = world.running(world.company())
    world.results.store(_poster(job), None, [_result(job.scan_number, "first")])
    for event in (E.EXITED, E.SUCCEEDED):
        world.jobs.transition(job.id, event, attempt=1)
    new = world.jobs.rerun(job.company_id, job.id, "bob")
    world.claim()
    world.jobs.transition(new, E.PLACED, attempt=1)
    rerun = world.jobs.find(new)
    assert world.results.standing(new) == (False, None)
    assert world.results.of_job(job.company_id, new) is None
    assert world.results.store(_poster(rerun), None, [_result(job.scan_number, "second")]) == 1
    digests = [world.results.of_job(job.company_id, i) for i in (job.id, new)]
    assert [r.digest for r in digests if r] == ["first", "second"]


def test_a_client_posts_for_the_newest_run_of_each_scan(world: World) -> None:
    first, second = _two_scans(world)
    world.jobs.transition(first.id, E.CANCELLED)
    rerun = world.jobs.rerun(first.company_id, first.id, "bob")
    client = Poster(first.company_id, first.task_number)
    assert world.results.store(client, None, [_result(first.scan_number), _result(second.scan_number)]) == 2
    for job_id, there in ((first.id, False), (rerun, True), (second.id, True)):
        assert (world.results.of_job(first.company_id, job_id) is not None) is there


def test_a_refused_request_is_noted_for_its_own_attempt_only(world: World) -> None:
    job = world.running(world.company())
    fault = {"path": "$.scanResults", "message": "is missing"}
    world.results.reject(_poster(job, 7), [fault])
    assert world.results.standing(job.id) == (False, None)
    world.results.reject(_poster(job), [fault] * 50)
    assert world.results.standing(job.id) == (False, [fault] * 20)
    world.results.reject(Poster(job.company_id, job.task_number), [fault])
    world.jobs.transition(job.id, E.RETRIED, attempt=1, failure=LOST)
    world.claim()
    assert world.results.standing(job.id) == (False, None)


def test_triage_fields_are_set_one_by_one(world: World) -> None:
    job = world.running(world.company())
    world.results.patch_case(_poster(job), {"triage_category": "high"})
    world.results.patch_case(_poster(job), {"triage_score": 0.25})
    world.results.patch_case(_poster(job), {})
    assert (_task(world)["triage_category"], _task(world)["triage_score"]) == ("high", 0.25)


def test_a_case_has_the_results_of_all_its_tasks_and_of_no_other_companys(world: World) -> None:
    company, other = world.company(), world.company()
    for owner, case in ((company, 42), (company, 42), (company, 43), (other, 42)):
        done = world.submit(owner, case_number=case)
        scan = world.jobs.find(done.job_ids[0]).scan_number
        world.results.store(Poster(owner, done.task.number), None, [_result(scan)])
    tasks = world.tasks.page(company, cursor=None, limit=9, algorithm_id=None, origin=None).items
    mine = [task.number for task in tasks if task.case_number == 42]
    for number in mine:
        assert [r.task_number for r in world.results.of_case(company, number)] == sorted(mine)


def test_a_task_without_a_case_shows_its_own_results_only(world: World) -> None:
    company = world.company()
    for _ in range(2):
        done = world.submit(company)
        scan = world.jobs.find(done.job_ids[0]).scan_number
        world.results.store(Poster(company, done.task.number), None, [_result(scan)])
    assert len(world.results.of_case(company, done.task.number)) == 1


def test_a_token_that_names_a_job_of_another_task_finds_nothing(world: World) -> None:
    company = world.company()
    job, stranger = world.running(company), world.running(company)
    with pytest.raises(NotFoundError):
        world.results.posting(Poster(company, job.task_number, stranger.id, 1))
