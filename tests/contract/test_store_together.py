"""Changes that come together are committed together, and answered only then."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from mhs_ray.domain.errors import ConflictError, NotFoundError
from mhs_ray.domain.states import JobEvent, JobState
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.database import Database
from mhs_ray.store.sql.together import Together
from tests.store_fixtures import World


def _insert(name: str):  # type: ignore[no-untyped-def]
    return lambda conn: conn.execute(sa.insert(t.companies).values(name=name))


def test_what_comes_meanwhile_goes_into_one_transaction_and_a_refusal_stops_nobody(db: Database) -> None:
    together = Together(db)
    begun, go = threading.Event(), threading.Event()
    transactions: list[int] = []
    sa.event.listen(db.engine, "commit", lambda _conn: transactions.append(1))

    def slow(conn: sa.Connection) -> None:
        begun.set()
        go.wait(10)

    def refuse(_conn: sa.Connection) -> None:
        raise NotFoundError("job", 1)

    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(together.run, 0, slow)
        assert begun.wait(10)
        rest = [pool.submit(together.run, i, _insert(f"c{i}")) for i in range(5)]
        refused = pool.submit(together.run, 9, refuse)
        while len(together._queue) < 6:
            threading.Event().wait(0.01)
        go.set()
        for each in (first, *rest):
            each.result(10)
        with pytest.raises(NotFoundError):
            refused.result(10)
    assert len(transactions) == 2
    with db.read() as conn:
        assert conn.execute(sa.select(sa.func.count()).select_from(t.companies)).scalar_one() == 5


def test_a_broken_transaction_is_everybodys_and_leaves_nothing(db: Database) -> None:
    together = Together(db)
    together.run(1, _insert("same"))
    with pytest.raises(sa.exc.IntegrityError):
        together.run(1, _insert("same"))
    together.run(1, _insert("other"))


def test_many_attempts_that_end_at_once_all_end(world: World) -> None:
    jobs = [world.running(world.company()) for _ in range(12)]

    def end(job_id: int) -> JobState:
        world.jobs.transition(job_id, JobEvent.EXITED, attempt=1)
        return world.jobs.transition(job_id, JobEvent.SUCCEEDED, attempt=1).after

    with ThreadPoolExecutor(12) as pool:
        assert set(pool.map(end, [j.id for j in jobs])) == {JobState.SUCCEEDED}
    with pytest.raises(ConflictError):
        world.jobs.transition(jobs[0].id, JobEvent.CANCELLED)
