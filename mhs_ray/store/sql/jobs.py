"""Jobs as rows: lists for people, claims and fenced transitions for the dispatcher.

Every change of state is a compare-and-swap on (id, state, attempt): a stale attempt changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import sqlalchemy as sa

from mhs_ray.domain.errors import ConflictError, MhsError, NotFoundError
from mhs_ray.domain.failures import Failure, FailureCode
from mhs_ray.domain.fairshare import Share, choose
from mhs_ray.domain.models import Job, JobEventRecord
from mhs_ray.domain.states import ACTIVE, JobEvent, JobState
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.database import Database, Lock
from mhs_ray.store.sql.scope import Page, Scoped
from mhs_ray.store.sql.tasks import PRIORITY_RANK, insert_jobs
from mhs_ray.store.sql.together import Together
from mhs_ray.store.sql.transitions import Change, Happening, apply

_PRIORITY = {rank: priority for priority, rank in PRIORITY_RANK.items()}


@dataclass(frozen=True, slots=True)
class JobFilter:
    """What a list of jobs is narrowed to."""

    states: tuple[str, ...] = ()
    container_id: int | None = None
    algorithm: str | None = None
    scan_id: int | None = None
    task_number: int | None = None
    created_by: str | None = None
    failure_class: str | None = None
    failure_code: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    search: str | None = None  # part of a container's, algorithm's or scan's name, or one of the job's numbers


class Jobs:
    """The jobs of all companies; people's calls name theirs."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._together = Together(db, partial(apply, db))  # many attempts may end at once

    # ------------------------------------------------------------ for people

    def get(self, company_id: int, job_id: int) -> Job:
        """Return one. Raises NotFoundError."""
        with self._db.read() as conn:
            return self._load(conn, Scoped(conn, company_id).where(t.jobs) & (t.jobs.c.id == job_id), job_id)

    def find(self, job_id: int) -> Job:
        """Return one of any company; for the platform's own work."""
        with self._db.read() as conn:
            return self._load(conn, t.jobs.c.id == job_id, job_id)

    def page(self, company_id: int, wanted: JobFilter, *, cursor: str | None, limit: int) -> Page[Job]:
        """Return a page, newest first."""
        j, f = t.jobs.c, wanted
        filters: list[sa.ColumnElement[bool]] = []
        if f.states:
            filters.append(j.state.in_(f.states))
        for column, value in (
            (j.container_id, f.container_id), (j.scan_id, f.scan_id), (t.tasks.c.number, f.task_number),
            (t.tasks.c.algorithm_name, f.algorithm), (j.created_by, f.created_by),
        ):  # fmt: skip
            if value is not None:
                filters.append(column == value)
        if f.failure_class:
            filters.append(j.failure["class"].as_string() == f.failure_class)
        if f.failure_code:
            filters.append(j.failure["code"].as_string() == f.failure_code)
        if f.created_after:
            filters.append(j.created_at >= f.created_after)
        if f.created_before:
            filters.append(j.created_at < f.created_before)
        if f.search:
            filters.append(_matches(f.search))
        with self._db.read() as conn:
            scope = Scoped(conn, company_id)
            return scope.page(_query(), t.jobs, filters=filters, cursor=cursor, limit=limit).map(_job)

    def of_task(self, company_id: int, task_id: int) -> list[Job]:
        """Return a task's jobs in order."""
        with self._db.read() as conn:
            where = Scoped(conn, company_id).where(t.jobs) & (t.jobs.c.task_id == task_id)
            return [_job(r) for r in conn.execute(_query().where(where).order_by(t.jobs.c.id))]

    def events(self, company_id: int, job_id: int) -> list[JobEventRecord]:
        """Return the job's story, oldest first. Raises NotFoundError."""
        with self._db.read() as conn:
            Scoped(conn, company_id).get(t.jobs, job_id, "job")
            rows = conn.execute(
                sa.select(t.job_events).where(t.job_events.c.job_id == job_id).order_by(t.job_events.c.id)
            )
            return [
                JobEventRecord(r.id, r.job_id, r.attempt, r.event, JobState(r.state), r.at, r.node, r.cause)
                for r in rows
            ]

    def queue_position(self, job_id: int) -> int | None:
        """Return how many queued jobs go before this one plus one; None when it is not queued."""
        with self._db.read() as conn:
            row = conn.execute(sa.select(t.jobs.c.priority, t.jobs.c.state).where(t.jobs.c.id == job_id)).one()
            if row.state != JobState.QUEUED:
                return None
            before = sa.and_(
                _QUEUED,
                sa.or_(t.jobs.c.priority < row.priority, (t.jobs.c.priority == row.priority) & (t.jobs.c.id < job_id)),
            )
            return int(conn.execute(sa.select(sa.func.count()).select_from(t.jobs).where(before)).scalar_one()) + 1

    def expected_wait(self, company_id: int, position: int) -> timedelta | None:
        """Return how long a job at this place of the queue waits if things go on as they went lately.

        From how long the company's newest good jobs took, and how many run at a time now; None before there are any.
        """
        took = (
            sa.select(t.jobs.c.started_at, t.jobs.c.ended_at)
            .where(t.jobs.c.company_id == company_id, t.jobs.c.state == JobState.SUCCEEDED)
            .order_by(t.jobs.c.id.desc())
            .limit(50)
        )
        with self._db.read() as conn:
            times = [r.ended_at - r.started_at for r in conn.execute(took) if r.started_at and r.ended_at]
            active, _ = _active_jobs(conn)
        if not times:
            return None
        return sum(times, timedelta(0)) / len(times) * position / max(1, sum(active.values()))

    def oldest_queued(self, company_id: int) -> datetime | None:
        """Return since when the company's oldest queued job waits, None when none does."""
        with self._db.read() as conn:
            return conn.execute(
                sa.select(sa.func.min(t.jobs.c.created_at)).where(_QUEUED, t.jobs.c.company_id == company_id)
            ).scalar()

    def rerun(self, company_id: int, job_id: int, by: str) -> int:
        """Queue an ended job anew, with the image and variables it had, as a new job; returns its id.

        Raises NotFoundError, ConflictError.
        """
        with self._db.write() as conn:
            row = Scoped(conn, company_id).get(t.jobs, job_id, "job")
            if not JobState(row.state).is_terminal:
                raise ConflictError(f"job {job_id} is {row.state}; only an ended job can be rerun")
            self._db.lock(conn, Lock.SUBMIT)  # two reruns at once are two runs
            run = conn.execute(
                sa.select(sa.func.max(t.jobs.c.run)).where(
                    t.jobs.c.task_id == row.task_id, t.jobs.c.scan_id == row.scan_id
                )
            ).scalar_one()
            kept = (
                "company_id", "task_id", "scan_id", "container_id", "container_name", "image_version_id",
                "image_digest", "instance_type", "time_limit_s", "env", "slide", "retry_exit_codes",
                "max_model_retries", "priority", "usable_until",
            )  # fmt: skip
            values = {name: row._mapping[name] for name in kept}
            self._db.notify(conn)
            again = {**values, "run": run + 1, "state": JobState.QUEUED, "created_by": by}
            return insert_jobs(conn, [again], f"rerun of job {job_id}")[0]

    # ------------------------------------------------------------ for the dispatcher

    def claim(self, limit: int, waiting_limit: int, now: datetime, *, by_type: bool = False) -> list[Job]:
        """Move up to `limit` queued jobs to `waiting for a node` and return them, next first.

        waiting_limit: how many may wait for a node at a time. Order: priority class, then the company with the
        fewest active jobs, then age. A company's cap on active jobs holds. by_type: `waiting_limit` is each instance
        type's own, so that one without capacity does not keep the others from their nodes.
        """
        if self._db.is_sqlite:  # its one writer must not wait for somebody who finds nothing to do
            with self._db.read() as conn:
                if not _next(conn, limit, waiting_limit, now, by_type):
                    return []
        with self._db.write() as conn:
            self._db.lock(conn, Lock.CLAIM)  # one claimer at a time: the fair share counts what others took
            claimed = _next(conn, limit, waiting_limit, now, by_type)
            if not claimed:
                return []
            for part in _parts(claimed):
                conn.execute(
                    sa.update(t.jobs)
                    .where(t.jobs.c.id.in_(part))
                    .values(
                        state=JobState.WAITING,
                        attempt=t.jobs.c.attempt + 1,
                        node=None,
                        rejection=None,
                        started_at=None,
                        failure=None,
                        resources={},  # of the attempt before, whose end is in the job's story
                    )
                )
            rows = [r for part in _parts(claimed) for r in conn.execute(_query().where(t.jobs.c.id.in_(part)))]
            conn.execute(
                sa.insert(t.job_events),
                [
                    {"company_id": r.company_id, "job_id": r.id, "attempt": r.attempt, "event": JobEvent.DISPATCHED,
                     "state": JobState.WAITING, "node": None, "cause": ""}
                    for r in rows
                ],
            )  # fmt: skip
        jobs = {r.id: _job(r) for r in rows}
        return [jobs[i] for i in claimed]

    def expire(self, now: datetime, failure: Callable[[sa.Row[Any]], Failure], limit: int = 100) -> list[int]:
        """End queued jobs that cannot finish any more; returns their ids. failure: says of a `row` why."""
        with self._db.read() as conn:
            due = sa.and_(_ENDING, t.jobs.c.usable_until <= now)
            found = list(conn.execute(sa.select(t.jobs.c.id).where(due).order_by(t.jobs.c.usable_until).limit(limit)))
        ended = []
        for (job_id,) in found:
            if self.transition(job_id, JobEvent.EXPIRED, failure=failure(self.row(job_id))).changed:
                ended.append(job_id)
        return ended

    def transition(
        self,
        job_id: int,
        event: JobEvent,
        *,
        attempt: int | None = None,
        node: str | None = None,
        cause: str = "",
        failure: Failure | None = None,
        retry_in_s: float | None = None,
        resources: Mapping[str, Any] | None = None,
    ) -> Change:
        """Apply `event`. attempt: the one that says so, None for a person or the platform.

        A stale attempt, or an event that comes late, changes nothing. Raises NotFoundError, TransitionError.
        """

        happening = Happening(job_id, event, attempt, node, cause, failure, retry_in_s, resources)
        if attempt is not None:
            return self._together.run(happening)
        # The job may be queued, and then a claim locks it too: never beside another job.
        with self._db.write() as conn:
            (done,) = apply(self._db, conn, [happening])
        if isinstance(done, MhsError):
            raise done
        return done

    def active(self) -> list[Job]:
        """Return every job that an attempt should be alive for."""
        with self._db.read() as conn:
            return [_job(r) for r in conn.execute(_query().where(t.jobs.c.state.in_(ACTIVE)).order_by(t.jobs.c.id))]

    def next_due(self) -> datetime | None:
        """Return when to look at the queue again: a job may start then, or can never; None when it is empty."""
        queries = (
            sa.select(sa.func.min(t.jobs.c.not_before)).where(_QUEUED, sa.text("jobs.attempt > 0")),
            sa.select(t.jobs.c.not_before).where(_QUEUED, t.jobs.c.attempt == 0).limit(1),
            sa.select(sa.func.min(t.jobs.c.usable_until)).where(_ENDING),
        )
        with self._db.read() as conn:
            moments = [conn.execute(query).scalar() for query in queries]
        return min((m for m in moments if m is not None), default=None)

    def upcoming(self, limit: int, now: datetime) -> list[int]:
        """Return the ids of jobs in the order they start: those that wait for a node, then the queue as claimed."""
        waits = sa.select(t.jobs.c.id).where(_ACTIVE, t.jobs.c.state == JobState.WAITING)
        with self._db.read() as conn:
            waiting = [r.id for r in conn.execute(waits.order_by(t.jobs.c.priority, t.jobs.c.id).limit(limit))]
            if len(waiting) >= limit:
                return waiting
            shares = _shares(conn, _active_jobs(conn)[0], now)
            return waiting + choose(shares, limit - len(waiting), lambda c, n: _queue(conn, c, n, now))

    def row(self, job_id: int) -> sa.Row[Any]:
        """Return the raw row with what an attempt needs, sealed columns included."""
        with self._db.read() as conn:
            return conn.execute(
                sa.select(
                    t.jobs,
                    t.tasks.c.number.label("task_number"),
                    t.tasks.c.host,
                    t.scans.c.number.label("scan_number"),
                    t.scans.c.name.label("scan_name"),
                )
                .join_from(t.jobs, t.tasks, t.jobs.c.task_id == t.tasks.c.id)
                .join(t.scans, t.jobs.c.scan_id == t.scans.c.id)
                .where(t.jobs.c.id == job_id)
            ).one()

    def note_resources(self, job_id: int, attempt: int, resources: Mapping[str, Any]) -> None:
        """Keep what an attempt used so far."""
        with self._db.write() as conn:
            conn.execute(
                sa.update(t.jobs)
                .where(t.jobs.c.id == job_id, t.jobs.c.attempt == attempt)
                .values(resources=dict(resources))
            )

    @staticmethod
    def _load(conn: sa.Connection, where: sa.ColumnElement[bool], job_id: int) -> Job:
        row = conn.execute(_query().where(where)).first()
        if row is None:
            raise NotFoundError("job", job_id)
        return _job(row)


_QUEUED = sa.text(f"jobs.state = '{JobState.QUEUED}'")
_ENDING = sa.text(f"jobs.state = '{JobState.QUEUED}' AND jobs.usable_until IS NOT NULL")
_ACTIVE = sa.text("jobs.state IN ('" + "', '".join(sorted(s.value for s in ACTIVE)) + "')")


def _active_jobs(conn: sa.Connection) -> tuple[dict[int, int], dict[str, int]]:
    """Return the active jobs of each company, and how many wait for a node of each instance type."""
    active: dict[int, int] = {}
    waiting: dict[str, int] = {}
    by = (t.jobs.c.company_id, t.jobs.c.state, t.jobs.c.instance_type)
    for row in conn.execute(sa.select(*by, sa.func.count().label("n")).where(_ACTIVE).group_by(*by)):
        active[row.company_id] = active.get(row.company_id, 0) + row.n
        if row.state == JobState.WAITING:
            waiting[row.instance_type] = waiting.get(row.instance_type, 0) + row.n
    return active, waiting


def _next(conn: sa.Connection, limit: int, waiting_limit: int, now: datetime, by_type: bool) -> list[int]:
    """Return the ids of the jobs that `Jobs.claim` takes."""
    active, waiting = _active_jobs(conn)
    if not by_type:
        return _choose(conn, active, now, min(limit, waiting_limit - sum(waiting.values())))
    return [
        job_id
        for kind in _queued_types(conn, now)
        for job_id in _choose(conn, active, now, min(limit, waiting_limit - waiting.get(kind, 0)), kind)
    ]


def _queued_types(conn: sa.Connection, now: datetime) -> list[str]:
    due = sa.and_(_QUEUED, t.jobs.c.not_before <= now)
    return sorted(conn.execute(sa.select(t.jobs.c.instance_type).distinct().where(due)).scalars())


def _choose(
    conn: sa.Connection, active: dict[int, int], now: datetime, limit: int, kind: str | None = None
) -> list[int]:
    """Return the ids of the next jobs, of one instance type or of all, and count them among the active."""
    shares = _shares(conn, active, now, kind)
    chosen = choose(shares, limit, lambda c, n: _queue(conn, c, n, now, kind))
    if kind is not None and chosen:
        companies = sa.select(t.jobs.c.company_id).where(t.jobs.c.id.in_(chosen))
        for company_id in conn.execute(companies).scalars():
            active[company_id] = active.get(company_id, 0) + 1
    return chosen


def _due(company_id: sa.ColumnElement[int] | int, now: datetime, kind: str | None = None) -> sa.ColumnElement[bool]:
    due = sa.and_(_QUEUED, t.jobs.c.company_id == company_id, t.jobs.c.not_before <= now)
    return due if kind is None else sa.and_(due, t.jobs.c.instance_type == kind)


def _shares(conn: sa.Connection, active: Mapping[int, int], now: datetime, kind: str | None = None) -> list[Share]:
    best = (
        sa.select(t.jobs.c.priority)
        .where(_due(t.companies.c.id, now, kind))
        .order_by(t.jobs.c.priority, t.jobs.c.id)
        .limit(1)
        .scalar_subquery()
    )
    rows = conn.execute(sa.select(t.companies.c.id, t.companies.c.max_active_jobs, best.label("best")))
    return [Share(r.id, r.best, active.get(r.id, 0), r.max_active_jobs) for r in rows if r.best is not None]


def _queue(
    conn: sa.Connection, company_id: int, count: int, now: datetime, kind: str | None = None
) -> list[tuple[int, int]]:
    rows = conn.execute(
        sa.select(t.jobs.c.priority, t.jobs.c.id)
        .where(_due(company_id, now, kind))
        .order_by(t.jobs.c.priority, t.jobs.c.id)
        .limit(count)
    )
    return [(r.priority, r.id) for r in rows]


def _parts(ids: Sequence[int], size: int = 500) -> list[Sequence[int]]:
    """SQLite takes a limited number of parameters."""
    return [ids[i : i + size] for i in range(0, len(ids), size)]


def _matches(text: str) -> sa.ColumnElement[bool]:
    names = (t.jobs.c.container_name, t.tasks.c.algorithm_name, t.scans.c.name)
    found = [name.icontains(text, autoescape=True) for name in names]
    if text.isascii() and text.isdigit() and len(text) <= 15:
        found += [column == int(text) for column in (t.jobs.c.id, t.tasks.c.number, t.scans.c.number)]
    return sa.or_(*found)


def _query() -> sa.Select[Any]:
    return (
        sa.select(
            t.jobs,
            t.tasks.c.number.label("task_number"),
            t.tasks.c.algorithm_name,
            t.scans.c.number.label("scan_number"),
        )
        .join_from(t.jobs, t.tasks, t.jobs.c.task_id == t.tasks.c.id)
        .join(t.scans, t.jobs.c.scan_id == t.scans.c.id)
    )


def failure_from_json(value: Mapping[str, Any] | None) -> Failure | None:
    """Return the failure card that `transition` stored."""
    if value is None:
        return None
    return Failure(
        FailureCode(value["code"]), value["cause"], value["mend"], value.get("excerpt", ""), value.get("exit_code")
    )


def _job(row: sa.Row[Any]) -> Job:
    return Job(
        id=row.id, company_id=row.company_id, task_id=row.task_id, task_number=row.task_number, scan_id=row.scan_id,
        scan_number=row.scan_number, algorithm_name=row.algorithm_name, container_id=row.container_id,
        container_name=row.container_name, image_digest=row.image_digest, instance_type=row.instance_type,
        priority=_PRIORITY[row.priority], state=JobState(row.state), attempt=row.attempt, created_by=row.created_by,
        created_at=row.created_at, started_at=row.started_at, ended_at=row.ended_at,
        failure=failure_from_json(row.failure), node=row.node, resources=row.resources,
    )  # fmt: skip
