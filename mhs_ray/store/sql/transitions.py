"""What happens to jobs, written down: many events at a time, a statement per table however many they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa

from mhs_ray.domain.errors import ConflictError, MhsError, NotFoundError, TransitionError
from mhs_ray.domain.failures import Failure
from mhs_ray.domain.states import JobEvent, JobState
from mhs_ray.domain.steps import Step, step
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.attempts import Ended, record_ends
from mhs_ray.store.sql.database import Database

_MAX_CAUSE: Final = 4000

# What a transition reads; the rest of a row is large.
_STANDING = [
    t.jobs.c[name]
    for name in (
        "id", "company_id", "state", "attempt", "started_at", "platform_failures", "model_failures", "instance_type",
        "created_at", "not_before", "resources",
    )
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Change:
    """What a transition did. changed is False when the event came late and the state stayed."""

    job_id: int
    before: JobState
    after: JobState
    attempt: int

    @property
    def changed(self) -> bool:
        """Whether anything was written."""
        return self.before is not self.after


@dataclass(frozen=True, slots=True)
class Happening:
    """An event of a job, as `Jobs.transition` takes it."""

    job_id: int
    event: JobEvent
    attempt: int | None = None
    node: str | None = None
    cause: str = ""
    failure: Failure | None = None
    retry_in_s: float | None = None
    resources: Mapping[str, Any] | None = None


def apply(db: Database, conn: sa.Connection, happenings: Sequence[Happening]) -> list[Change | MhsError]:
    """Apply each in its order and return what each did, or why it could not; the others are done all the same.

    Rows are locked in the order of their ids, so that two processes that do this cannot wait for each other.
    """
    outcomes: dict[int, Change | MhsError] = {}
    left = list(enumerate(happenings))
    while left:
        first: dict[int, int] = {}  # job → place: of two events of one job the second sees what the first made
        for place, happening in left:
            first.setdefault(happening.job_id, place)
        now = [(place, h) for place, h in left if first[h.job_id] == place]
        left = [(place, h) for place, h in left if first[h.job_id] != place]
        outcomes |= dict(zip((place for place, _ in now), _at_once(db, conn, [h for _, h in now]), strict=True))
    return [outcomes[place] for place in range(len(happenings))]


def _at_once(db: Database, conn: sa.Connection, happenings: Sequence[Happening]) -> list[Change | MhsError]:
    """`apply` for events of different jobs."""
    standing = sa.select(*_STANDING).where(t.jobs.c.id.in_([h.job_id for h in happenings])).order_by(t.jobs.c.id)
    rows = {row.id: row for row in conn.execute(db.for_update(standing))}
    now = datetime.now(UTC)
    outcomes: list[Change | MhsError] = []
    told: list[tuple[Happening, sa.Row[Any], Step]] = []
    for happening in happenings:
        row = rows.get(happening.job_id)
        if row is None:
            outcomes.append(NotFoundError("job", happening.job_id))
            continue
        try:
            made = _step(happening, row, now)
        except MhsError as error:
            outcomes.append(error)
            continue
        outcomes.append(Change(row.id, made.before, made.after, row.attempt))
        if made.told:
            told.append((happening, row, made))
    if told:
        _write(conn, told, now)
        if any(h.event in (JobEvent.CANCELLED, JobEvent.RETRIED) for h, _, _ in told):
            db.notify(conn)
    return outcomes


def _step(happening: Happening, row: sa.Row[Any], now: datetime) -> Step:
    h = happening
    try:
        return step(
            row, h.event, now=now, attempt=h.attempt, node=h.node, failure=h.failure, retry_in_s=h.retry_in_s,
            resources=h.resources,
        )  # fmt: skip
    except TransitionError:
        if h.event is JobEvent.CANCELLED:
            raise ConflictError(f"job {row.id} is {row.state}; it cannot be cancelled any more") from None
        raise


def _write(conn: sa.Connection, told: Iterable[tuple[Happening, sa.Row[Any], Step]], now: datetime) -> None:
    updates: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    events: list[dict[str, Any]] = []
    ends: list[Ended] = []
    for happening, row, made in told:
        values = dict(made.values)
        if "failure" in values:
            values["failure"] = _failure_json(values["failure"])
        updates.setdefault(tuple(sorted(values)), []).append({"of_job": row.id, **values})
        cause = happening.cause or (happening.failure.cause if happening.failure else "")
        events.append({
            "company_id": row.company_id, "job_id": row.id, "attempt": row.attempt, "event": happening.event,
            "state": made.after, "node": happening.node, "cause": cause[:_MAX_CAUSE],
        })  # fmt: skip
        if made.before.is_active and not made.after.is_active:
            ends.append(Ended(row, happening.event, happening.failure, happening.resources or row.resources))
    for values_of in updates.values():
        conn.execute(sa.update(t.jobs).where(t.jobs.c.id == sa.bindparam("of_job")), values_of)
    conn.execute(sa.insert(t.job_events).inline(), events)
    if ends:
        record_ends(conn, ends, now)


def _failure_json(failure: Failure | None) -> dict[str, Any] | None:
    return None if failure is None else {**asdict(failure), "class": failure.failure_class}
