"""Counters are the day's own: the same whether a replica saw the day from its start or came late."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from mhs_ray.domain.states import JobEvent
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.attempts import Attempts
from mhs_ray.telemetry.tally import Tally
from tests.store_fixtures import World, sqlite_db

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with sqlite_db(tmp_path) as db:
        yield World(db)


def _end(world: World, job_id: int, attempt: int, at: datetime, **values: object) -> None:
    defaults = {
        "company_id": 1, "job_id": job_id, "attempt": attempt, "instance_type": "g5.2xlarge",
        "outcome": JobEvent.SUCCEEDED, "queue_s": 0.5, "placement_s": 1.5, "prepare_s": 2.0, "run_s": 7000.0,
        "slide_cached": True, "ended_at": at,
    }  # fmt: skip
    with world.db.write() as conn:
        conn.execute(sa.insert(t.attempts).values({**defaults, **values}))


def _samples(tally: Tally) -> dict[str, float]:
    return {f"{s.name}{sorted(s.labels.items())}": s.value for family in tally.families() for s in family.samples}


def test_a_replica_that_comes_late_tells_the_same_as_one_that_was_there(world: World) -> None:
    job = world.queued(world.company())
    early, late = Tally(Attempts(world.db)), Tally(Attempts(world.db))
    kinds = ("g5.2xlarge", "g4dn.xlarge", "p9.huge")
    for i in range(60):
        at = NOON + timedelta(seconds=20 * i)
        failed = (
            {"outcome": JobEvent.FAILED, "failure_class": "model", "failure_code": "exit-code"} if i % 5 == 0 else {}
        )
        _end(
            world,
            job,
            i,
            at,
            instance_type=kinds[i % 3],
            queue_s=i * 0.25,
            slide_cached=(None, True, False)[i % 3],
            **failed,
        )
        early.advance(at + timedelta(seconds=1))
    now = NOON + timedelta(seconds=1202)
    early.advance(now)
    late.advance(now)
    assert _samples(late) == pytest.approx(_samples(early))
    assert sum(v for k, v in _samples(late).items() if k.startswith("mhs_attempts_total")) == 60
    assert sum(v for k, v in _samples(late).items() if k.startswith("mhs_attempt_queue_seconds_count")) == 60


def test_an_end_that_is_committed_late_is_counted_once(world: World) -> None:
    job = world.queued(world.company())
    tally = Tally(Attempts(world.db))
    tally.advance(NOON)
    _end(world, job, 1, NOON - timedelta(seconds=30))
    for seconds in (1, 10, 29, 31, 100):
        tally.advance(NOON + timedelta(seconds=seconds))
        assert _samples(tally)["mhs_gpu_seconds_total[('instance_type', 'g5.2xlarge')]"] == 7000.0


def test_a_new_day_starts_at_nothing(world: World) -> None:
    job = world.queued(world.company())
    tally = Tally(Attempts(world.db))
    _end(world, job, 1, NOON)
    tally.advance(NOON + timedelta(seconds=1))
    assert any(_samples(tally).values())
    tally.advance(NOON + DAY)
    assert not any(_samples(tally).values())
    _end(world, job, 2, NOON + DAY)
    tally.advance(NOON + DAY + timedelta(seconds=1))
    key = "mhs_attempt_run_seconds_bucket[('instance_type', 'g5.2xlarge'), ('le', '{}')]"
    assert [_samples(tally)[key.format(bound)] for bound in ("5400.0", "+Inf")] == [0, 1]
