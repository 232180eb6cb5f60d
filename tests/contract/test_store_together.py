"""Changes that come together are committed together, and answered only then."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from mhs_ray.domain.errors import ConflictError, MhsError, NotFoundError
from mhs_ray.domain.failures import Failure, FailureCode
from mhs_ray.domain.states import JobEvent, JobState
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.database import Database
from mhs_ray.store.sql.together import Together
from mhs_ray.store.sql.transitions import Change, Happening, apply
from tests.store_fixtures import World


def _apply(conn: sa.Connection, names: Sequence[str]) -> list[str | MhsError]:
    """Add companies; nobody may be called `refused`."""
    taken = [name for name in names if name != "refused"]
    if taken:
        conn.execute(sa.insert(t.companies), [{"name": name} for name in taken])
    return [NotFoundError("job", 1) if name == "refused" else f"added {name}" for name in names]


def test_what_comes_meanwhile_goes_into_one_transaction_and_a_refusal_stops_nobody(db: Database) -> None:
    begun, go = threading.Event(), threading.Event()
    batches: list[Sequence[str]] = []

    def slow(conn: sa.Connection, names: Sequence[str]) -> list[str | MhsError]:
        begun.set()
        go.wait(10)
        batches.append(names)
        return _apply(conn, names)

    together = Together(db, slow)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(together.run, "first")
        assert begun.wait(10)
        names = [f"c{i}" for i in range(5)]
        rest = [pool.submit(together.run, name) for name in names]
        refused = pool.submit(together.run, "refused")
        while len(together._queue) < 6:
            threading.Event().wait(0.01)
        go.set()
        assert [each.result(10) for each in (first, *rest)] == [f"added {name}" for name in ("first", *names)]
        with pytest.raises(NotFoundError):
            refused.result(10)
    assert [sorted(batch) for batch in batches] == [["first"], [*names, "refused"]]
    with db.read() as conn:
        assert conn.execute(sa.select(sa.func.count()).select_from(t.companies)).scalar_one() == 6


def test_a_broken_transaction_is_everybodys_and_leaves_nothing(db: Database) -> None:
    together = Together(db, _apply)
    together.run("same")
    with pytest.raises(sa.exc.IntegrityError):
        together.run("same")
    assert together.run("other") == "added other"


def test_events_of_one_job_in_one_transaction_are_applied_in_their_order(world: World) -> None:
    company = world.company()
    first, second = world.running(company), world.running(company)
    failure = Failure(FailureCode.EXIT_CODE, "exit code 3", "look at the log")
    happenings = [
        Happening(second.id, JobEvent.EXITED, attempt=1),
        Happening(first.id, JobEvent.EXITED, attempt=1),
        Happening(second.id, JobEvent.FAILED, attempt=1, failure=failure),
        Happening(10_000, JobEvent.EXITED, attempt=1),
        Happening(first.id, JobEvent.EXITED, attempt=7),
        Happening(second.id, JobEvent.CANCELLED),
        Happening(first.id, JobEvent.SUCCEEDED, attempt=1),
    ]
    with world.db.write() as conn:
        done = apply(world.db, conn, happenings)
    assert [d.after if isinstance(d, Change) else type(d) for d in done] == [
        JobState.COLLECTING, JobState.COLLECTING, JobState.FAILED, NotFoundError, JobState.COLLECTING, ConflictError,
        JobState.SUCCEEDED,
    ]  # fmt: skip
    assert [e.event for e in world.jobs.events(company, second.id)][-2:] == ["exited", "failed"]
    assert world.jobs.find(second.id).failure == failure
    assert world.jobs.find(first.id).failure is None
    with world.db.read() as conn:
        ends = conn.execute(sa.select(t.attempts.c.job_id, t.attempts.c.outcome).order_by(t.attempts.c.job_id)).all()
    assert ends == [(first.id, JobEvent.SUCCEEDED), (second.id, JobEvent.FAILED)]


def test_many_attempts_that_end_at_once_all_end(world: World) -> None:
    jobs = [world.running(world.company()) for _ in range(12)]

    def end(job_id: int) -> JobState:
        world.jobs.transition(job_id, JobEvent.EXITED, attempt=1)
        return world.jobs.transition(job_id, JobEvent.SUCCEEDED, attempt=1).after

    with ThreadPoolExecutor(12) as pool:
        assert set(pool.map(end, [j.id for j in jobs])) == {JobState.SUCCEEDED}
    with pytest.raises(ConflictError):
        world.jobs.transition(jobs[0].id, JobEvent.CANCELLED)
