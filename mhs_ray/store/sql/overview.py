"""Counts and look-ups over many rows, for the first page, for filters and for the cluster's page."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from mhs_ray.domain.models import ImageStatus, ScanStatus
from mhs_ray.domain.states import ACTIVE, JobState
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.database import Database
from mhs_ray.store.sql.scope import Scoped
from mhs_ray.store.sql.usage import UsageBook


@dataclass(frozen=True, slots=True)
class Counts:
    """How much of everything a company has; images, scans and jobs by status or state."""

    images: Mapping[str, int]
    containers: int
    algorithms: int
    scans: Mapping[str, int]
    jobs: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Broken:
    """A thing that failed and waits for somebody. kind: ``image`` or ``scan``."""

    kind: str
    id: int
    name: str
    message: str
    at: datetime


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Failed jobs that have the same container and failure code. job_id: the newest; cause: that one's."""

    container_name: str
    container_id: int
    code: str
    failure_class: str
    cause: str
    mend: str
    count: int
    job_id: int
    at: datetime | None


@dataclass(frozen=True, slots=True)
class Choices:
    """What a company's jobs can be filtered by."""

    containers: Sequence[tuple[int, str]]
    algorithms: Sequence[str]
    people: Sequence[str]


@dataclass(frozen=True, slots=True)
class Usage:
    """What a company used. gpu_s: seconds that its containers held a GPU; jobs: that ended."""

    company_id: int
    company: str
    jobs: int
    failed: int
    gpu_s: float


@dataclass(frozen=True, slots=True)
class Placed:
    """A job that is somewhere between dispatch and end. company: its name."""

    id: int
    company_id: int
    company: str
    container_name: str
    instance_type: str
    state: JobState
    attempt: int
    node: str | None
    started_at: datetime | None


class Overview:
    """All but `placed`, `queued` and `usage` see one company only."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def counts(self, company_id: int) -> Counts:
        """Count what there is."""
        with self._db.read() as conn:
            scope = Scoped(conn, company_id)

            def by(table: sa.Table, column: sa.Column[Any]) -> dict[str, int]:
                query = sa.select(column, sa.func.count()).where(scope.where(table)).group_by(column)
                return {str(key): int(count) for key, count in conn.execute(query)}

            def all_of(table: sa.Table) -> int:
                query = sa.select(sa.func.count()).select_from(table).where(scope.where(table))
                return int(conn.execute(query).scalar_one())

            return Counts(
                by(t.images, t.images.c.status), all_of(t.containers), all_of(t.algorithms),
                by(t.scans, t.scans.c.status), by(t.jobs, t.jobs.c.state),
            )  # fmt: skip

    def broken(self, company_id: int, limit: int = 10) -> list[Broken]:
        """Return images and scans that failed, newest first."""
        found = []
        with self._db.read() as conn:
            scope = Scoped(conn, company_id)
            for kind, table, status, at in (
                ("image", t.images, ImageStatus.FAILED, t.images.c.updated_at),
                ("scan", t.scans, ScanStatus.FAILED, t.scans.c.created_at),
            ):
                rows = conn.execute(
                    sa.select(table.c.id, table.c.name, table.c.failure_message, at.label("at"))
                    .where(scope.where(table), table.c.status == status)
                    .order_by(at.desc())
                    .limit(limit)
                )
                found += [Broken(kind, r.id, r.name, r.failure_message, r.at) for r in rows]
        return sorted(found, key=lambda b: b.at, reverse=True)[:limit]

    def failures(self, company_id: int, since: datetime, limit: int = 8) -> list[FailureGroup]:
        """Return what jobs failed of since then, the most frequent first."""
        j = t.jobs.c
        code, kind = j.failure["code"].as_string(), j.failure["class"].as_string()
        with self._db.read() as conn:
            groups = conn.execute(
                sa.select(
                    j.container_id, code.label("code"), sa.func.count().label("n"), sa.func.max(j.id).label("newest")
                )
                .where(
                    Scoped(conn, company_id).where(t.jobs),
                    j.state.in_((JobState.FAILED, JobState.TIMED_OUT)),
                    j.ended_at >= since,
                )
                .group_by(j.container_id, code, kind)
                .order_by(sa.desc("n"))
                .limit(limit)
            ).all()
            newest = {
                r.id: r
                for r in conn.execute(
                    sa.select(j.id, j.container_name, j.failure, j.ended_at).where(j.id.in_([g.newest for g in groups]))
                )
            }
        found = []
        for g in groups:
            row = newest[g.newest]
            card = row.failure or {}
            found.append(
                FailureGroup(
                    row.container_name, g.container_id, g.code or "", card.get("class", ""), card.get("cause", ""),
                    card.get("mend", ""), g.n, g.newest, row.ended_at,
                )
            )  # fmt: skip
        return found

    def scan_names(self, company_id: int, scan_ids: Collection[int]) -> dict[int, str]:
        """Return names of scans by row id."""
        with self._db.read() as conn:
            query = sa.select(t.scans.c.id, t.scans.c.name).where(
                Scoped(conn, company_id).where(t.scans), t.scans.c.id.in_(list(scan_ids))
            )
            return {r.id: r.name for r in conn.execute(query)}

    def choices(self, company_id: int) -> Choices:
        """Return what the jobs of a company can be filtered by, by name."""
        with self._db.read() as conn:
            scope = Scoped(conn, company_id)
            containers = conn.execute(
                sa.select(t.containers.c.id, t.containers.c.name).where(scope.where(t.containers)).order_by("name")
            )
            algorithms = conn.execute(
                sa.select(t.tasks.c.algorithm_name).where(scope.where(t.tasks)).distinct().order_by("algorithm_name")
            )
            people = conn.execute(
                sa.select(t.tasks.c.created_by).where(scope.where(t.tasks)).distinct().order_by("created_by")
            )
            return Choices(
                [(r.id, r.name) for r in containers], list(algorithms.scalars()), list(people.scalars())
            )  # fmt: skip

    def dependents(self, company_id: int, container_id: int) -> tuple[list[tuple[int, str]], dict[str, int]]:
        """Return the case algorithms (id, name) that use a container, and its jobs by state."""
        with self._db.read() as conn:
            scope = Scoped(conn, company_id)
            a, j = t.algorithms.c, t.jobs.c
            users = conn.execute(
                sa.select(a.id, a.name)
                .where(scope.where(t.algorithms), a.container_id == container_id)
                .order_by(a.name)
            ).all()
            jobs = conn.execute(
                sa.select(j.state, sa.func.count())
                .where(scope.where(t.jobs), j.container_id == container_id)
                .group_by(j.state)
            ).all()
            return [(u.id, u.name) for u in users], {str(state): int(count) for state, count in jobs}

    def placed(self) -> list[Placed]:
        """Return the jobs of all companies that have an attempt now, oldest first."""
        j = t.jobs.c
        with self._db.read() as conn:
            rows = conn.execute(
                sa.select(
                    j.id, j.company_id, t.companies.c.name.label("company"), j.container_name, j.instance_type, j.state,
                    j.attempt, j.node, j.started_at,
                )
                .join_from(t.jobs, t.companies, j.company_id == t.companies.c.id)
                .where(j.state.in_(ACTIVE))
                .order_by(j.id)
            )  # fmt: skip
            return [Placed(**{**r._mapping, "state": JobState(r.state)}) for r in rows]

    def queued(self) -> dict[str, int]:
        """Return how many jobs of all companies wait in the queue, by instance type."""
        j = t.jobs.c
        with self._db.read() as conn:
            query = (
                sa.select(j.instance_type, sa.func.count())
                .where(sa.text(f"state = '{JobState.QUEUED}'"))
                .group_by(j.instance_type)
            )
            return {str(kind): int(count) for kind, count in conn.execute(query)}

    def queue_positions(self, job_ids: Collection[int]) -> dict[int, int]:
        """Return the place in the queue, from 1, of those of the jobs that are queued."""
        j = t.jobs.c
        rank = sa.func.row_number().over(order_by=(j.priority, j.id)).label("rank")
        queue = sa.select(j.id, rank).where(sa.text(f"state = '{JobState.QUEUED}'")).subquery()
        with self._db.read() as conn:
            rows = conn.execute(sa.select(queue).where(queue.c.id.in_(list(job_ids))))
            return {r.id: r.rank for r in rows}

    def usage(self, since: datetime, company_id: int | None = None) -> list[Usage]:
        """Return what companies used since then, the largest first; jobs that run still count up to now.

        From the same rows as `usage.UsageBook`, which bills: an attempt counts whole when it ended since then.
        """
        per: dict[int, list[Any]] = {}
        book = UsageBook(self._db)
        for row in book.by_day(since, datetime.now(UTC), company_id):
            sums = per.setdefault(row.company_id, [row.company, 0, 0, 0.0])
            sums[1] += row.jobs
            sums[2] += row.failed
            sums[3] += row.gpu_s
        for running in book.running(since, company_id):
            per.setdefault(running.company_id, [running.company, 0, 0, 0.0])[3] += running.gpu_s
        return sorted((Usage(key, *sums) for key, sums in per.items()), key=lambda u: -u.gpu_s)
