"""Waking, leading and ending what can no longer finish, on both databases."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta

import jwt
import pytest
import sqlalchemy as sa

from mhs_ray.domain.failures import Failure, FailureCode
from mhs_ray.domain.models import Priority
from mhs_ray.domain.states import JobEvent, JobState
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.database import Database
from mhs_ray.store.sql.lead import Lead
from mhs_ray.store.sql.listen import listen
from mhs_ray.store.sql.tasks import RequestedScan, Tasks
from tests.pg_fixtures import Postgres
from tests.store_fixtures import World, vault

ENDED = Failure(FailureCode.SLIDE_EXPIRED, "the slide's URL ended", "submit it again")

CUT = sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :d AND pid <> pg_backend_pid()")


def _url(ends: datetime) -> str:
    return f"https://s.example.com/a?Expires={int(ends.timestamp())}&Signature=x&Key-Pair-Id=k"


def _submit(world: World, company: int, *urls: str, number: int = 7, token: str | None = None) -> int:
    scan = RequestedScan(number=100, urls=urls, path="$")
    known = world.algorithms.page(company, cursor=None, limit=1, name=None).items
    algorithm = known[0] if known else world.algorithm(company)
    values = {"number": number, "origin": "techcyte", "techcyte_jwt": token}
    base = world.submission(company, algorithm)
    fields = {name: getattr(base, name) for name in base.__dataclass_fields__}
    return world.tasks.submit(type(base)(**{**fields, **values, "scans": (scan,)})).job_ids[0]


def test_a_job_whose_url_ends_in_the_queue_fails_at_that_moment_as_the_slides_fault(world: World) -> None:
    company, now = world.company(), datetime.now(UTC)
    end = now + timedelta(hours=1)
    job = _submit(world, company, _url(end + timedelta(hours=1)), _url(end))
    assert world.jobs.expire(now, lambda _: ENDED) == []
    assert world.jobs.expire(end + timedelta(seconds=1), lambda _: ENDED) == [job]
    found = world.jobs.find(job)
    assert (found.state, found.failure) == (JobState.FAILED, ENDED)
    assert [e.event for e in world.jobs.events(company, job)] == ["submitted", "expired"]
    assert world.claim() == []


def test_the_end_of_a_url_wakes_the_dispatcher_in_time(world: World) -> None:
    now = datetime.now(UTC)
    company = world.company(max_active_jobs=0)
    _submit(world, company, _url(now - timedelta(minutes=1)))
    due = world.jobs.next_due()
    assert due is not None
    assert due < now


def test_a_running_job_is_left_alone_whatever_ends(world: World) -> None:
    job = _submit(world, world.company(), _url(datetime.now(UTC) + timedelta(hours=1)))
    assert [j.id for j in world.claim()] == [job]
    assert world.jobs.expire(datetime.now(UTC) + timedelta(days=1), lambda _: ENDED) == []
    assert not world.jobs.transition(job, JobEvent.EXPIRED, failure=ENDED).changed


def test_techcytes_token_counts_only_where_results_are_delivered(world: World) -> None:
    token = jwt.encode({"exp": datetime.now(UTC) - timedelta(hours=1)}, "k" * 32, "HS256")
    company = world.company()
    _submit(world, company, "https://s.example.com/a", token=token)
    assert world.jobs.expire(datetime.now(UTC), lambda _: ENDED) == []
    world.tasks = Tasks(world.db, delivers=True)
    job = _submit(world, company, "https://s.example.com/a", number=8, token=token)
    assert world.jobs.expire(datetime.now(UTC), lambda _: ENDED) == [job]


def test_the_same_request_with_fresh_urls_lets_a_waiting_job_live_longer(world: World) -> None:
    company, now = world.company(), datetime.now(UTC)
    job = _submit(world, company, _url(now + timedelta(minutes=1)))
    fresh = _url(now + timedelta(hours=5))
    assert _submit(world, company, fresh) == job
    assert world.jobs.expire(now + timedelta(hours=4), lambda _: ENDED) == []
    assert world.db.vault.open(world.jobs.row(job).slide) == {"urls": [fresh]}


def test_claims_read_an_index_and_not_the_queue(world: World) -> None:
    company = world.company()
    for priority in (Priority.CLINICAL, Priority.RESEARCH):
        world.queued(company, priority=priority)
    with world.db.read() as conn:
        if not world.db.is_sqlite:
            conn.execute(sa.text("SET LOCAL enable_seqscan = off"))  # so small a table would be scanned
        plan = "EXPLAIN QUERY PLAN " if world.db.is_sqlite else "EXPLAIN "
        rows = conn.execute(
            sa.text(
                f"{plan} SELECT priority, id FROM jobs WHERE jobs.state = 'queued' AND company_id = {company} "
                "AND not_before <= '2030-01-01' ORDER BY priority, id LIMIT 5"
            )
        ).all()
    told = " ".join(str(r) for r in rows)
    assert "ix_jobs_queue" in told
    assert "Sort" not in told
    assert "TEMP B-TREE" not in told


def test_only_one_of_two_dispatchers_leads_and_the_other_follows_it(db: Database) -> None:
    second = Database(db.engine.url.render_as_string(hide_password=False), vault())
    ours, theirs = Lead(db), Lead(second)
    assert [ours.take(), theirs.take(), ours.take()] == [True, False, True]
    ours.release()
    assert [theirs.take(), ours.take()] == [True, False]
    theirs.release()
    second.close()


def test_the_lead_passes_on_when_the_leaders_connection_is_cut(pg: Postgres) -> None:
    name = pg.create()
    first, second = Database(pg.url(name), vault()), Database(pg.url(name), vault())
    ours, theirs = Lead(first), Lead(second)
    assert ours.take()
    with second.write() as conn:
        conn.execute(CUT, {"d": name})
    deadline = time.monotonic() + 10
    while not theirs.take():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not ours.take()
    for lead, db in ((ours, first), (theirs, second)):
        lead.release()
        db.close()
    pg.drop(name)


def test_sqlite_has_no_listener(tmp_path: pytest.TempPathFactory) -> None:
    db = Database(f"sqlite:///{tmp_path}/x.db", vault())
    assert listen(db, lambda: None) is None
    db.close()


def test_what_one_process_commits_wakes_another_at_once_and_after_a_cut_too(pg: Postgres) -> None:
    name = pg.create()
    db, other = Database(pg.url(name), vault()), Database(pg.url(name), vault())
    db.migrate()
    woken = threading.Event()
    listener = listen(db, woken.set)
    assert listener is not None

    def wait(within_s: float) -> None:
        assert woken.wait(within_s)
        woken.clear()

    wait(10)  # once it listens
    world = World(other)
    company = world.company()
    job = world.queued(company)
    wait(5)
    world.jobs.transition(job, JobEvent.CANCELLED)
    wait(5)
    world.jobs.rerun(company, job, "ann")
    wait(5)
    with other.write() as conn:
        conn.execute(CUT, {"d": name})
    wait(15)  # it listens again
    with other.write() as conn:
        conn.execute(sa.update(t.companies).values(max_active_jobs=3))
        other.notify(conn)
    wait(5)
    listener.close()
    listener.join(10)
    for each in (db, other):
        each.close()
    pg.drop(name)


def test_the_promised_wait_follows_from_how_long_jobs_took_lately(world: World) -> None:
    company = world.company()
    assert world.jobs.expected_wait(company, 3) is None
    job = world.running(company)
    world.jobs.transition(job.id, JobEvent.EXITED, attempt=1)
    world.jobs.transition(job.id, JobEvent.SUCCEEDED, attempt=1)
    began = datetime(2026, 1, 1, tzinfo=UTC)
    with world.db.write() as conn:
        values = {"started_at": began, "ended_at": began + timedelta(minutes=10)}
        conn.execute(sa.update(t.jobs).where(t.jobs.c.id == job.id).values(**values))
    assert world.jobs.expected_wait(company, 3) == timedelta(minutes=30)
    for _ in range(2):
        world.running(company)
    assert world.jobs.expected_wait(company, 3) == timedelta(minutes=15)
    assert world.jobs.expected_wait(world.company(), 3) is None
