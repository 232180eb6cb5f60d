"""Submissions: a task and its jobs, made in one transaction, once per (company, task id)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from mhs_ray.domain.errors import Fault, InvalidInputError, NotFoundError
from mhs_ray.domain.ids import OWN_IDS_FROM
from mhs_ray.domain.models import Priority, Provider, ScanStatus, Task
from mhs_ray.domain.states import JobState
from mhs_ray.results.outbox import token_ends
from mhs_ray.slides.presigned import expires_at
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.audit import add_entry
from mhs_ray.store.sql.database import Database, Lock
from mhs_ray.store.sql.deliveries import renew_token
from mhs_ray.store.sql.scans import insert_scan
from mhs_ray.store.sql.scope import Page, Scoped

PRIORITY_RANK = {Priority.CLINICAL: 0, Priority.RESEARCH: 1}


@dataclass(frozen=True, slots=True)
class RequestedScan:
    """A scan of a submission: one that is registered (by row id), or Techcyte's number with its presigned URLs."""

    id: int | None = None
    number: int | None = None
    urls: tuple[str, ...] = field(default=(), repr=False)
    path: str = ""  # where in the request it stands, for faults


@dataclass(frozen=True, slots=True)
class Submission:
    """A task to be made. algorithm: id, or names to look up; number None: the next of ours."""

    company_id: int
    by: str
    origin: str
    host: str
    scans: tuple[RequestedScan, ...]
    algorithm_id: int | None = None
    algorithm_names: tuple[tuple[str, str], ...] = ()  # (JSON path, name or id) in order of preference
    number: int | None = None
    case_number: int | None = None
    priority: Priority = Priority.CLINICAL
    description: str = ""
    techcyte_jwt: str | None = field(default=None, repr=False)
    request: Mapping[str, Any] = field(default_factory=dict)
    client_id: str = ""  # who of the company's clients asked, for the audit


@dataclass(frozen=True, slots=True)
class Submitted:
    """The task that now exists. created: False when it was there before and nothing was added."""

    task: Task
    job_ids: tuple[int, ...]
    created: bool


class Tasks:
    """Tasks as rows. delivers: results go to Techcyte, so that a job is no use once its task's token has ended."""

    def __init__(self, db: Database, *, delivers: bool = False) -> None:
        self._db, self._delivers = db, delivers

    def submit(self, submission: Submission) -> Submitted:
        """Commit a task and its jobs. The same number again adds nothing. Raises InvalidInputError."""
        with self._db.write() as conn:
            return self.submit_in(conn, submission)

    def submit_in(self, conn: sa.Connection, s: Submission) -> Submitted:
        """`submit` inside a transaction that commits several."""
        self._db.lock(conn, Lock.SUBMIT)  # the same number twice at once: the second one sees the first one's row
        scope = Scoped(conn, s.company_id)
        if s.number is not None:
            known = conn.execute(sa.select(t.tasks).where(scope.where(t.tasks), t.tasks.c.number == s.number)).first()
            if known is not None:
                self._renew(conn, known, s)
                return Submitted(_task(known), self._job_ids(conn, known.id), created=False)
        algorithm, container, image = self._resolve(scope, s)
        scan_rows = self._scans(scope, s)
        values = {
            "company_id": s.company_id, "number": s.number, "case_number": s.case_number,
            "algorithm_id": algorithm.id, "algorithm_name": algorithm.name, "origin": s.origin, "host": s.host,
            "priority": s.priority, "description": s.description, "request": dict(s.request), "created_by": s.by,
            "techcyte_jwt": self._db.vault.seal(s.techcyte_jwt) if s.techcyte_jwt else None,
        }  # fmt: skip
        key = conn.execute(sa.insert(t.tasks).values(**values)).inserted_primary_key
        assert key is not None
        task_id = int(key[0])
        if s.number is None:
            conn.execute(sa.update(t.tasks).where(t.tasks.c.id == task_id).values(number=OWN_IDS_FROM + task_id))
        job_ids = []
        for scan_id, urls in scan_rows:
            job = {
                "company_id": s.company_id, "task_id": task_id, "scan_id": scan_id, "run": 0,
                "container_id": container.id, "container_name": container.name,
                "image_version_id": image.current_version_id, "image_digest": image.digest,
                "instance_type": container.instance_type, "time_limit_s": container.time_limit_s,
                "env": container.env, "slide": self._db.vault.seal({"urls": list(urls)} if urls else {}),
                "retry_exit_codes": container.retry_exit_codes, "max_model_retries": container.max_model_retries,
                "priority": PRIORITY_RANK[s.priority], "state": JobState.QUEUED, "created_by": s.by,
                "usable_until": self._usable_until(urls, s),
            }  # fmt: skip
            job_ids.append(insert_job(conn, job, "submitted"))
        row = conn.execute(sa.select(t.tasks).where(t.tasks.c.id == task_id)).one()
        add_entry(conn, s.company_id, s.by, s.client_id, "create task", _told(row.number, job_ids))
        self._db.notify(conn)
        return Submitted(_task(row), tuple(job_ids), created=True)

    def _usable_until(self, urls: Sequence[str], s: Submission) -> datetime | None:
        token = token_ends(s.techcyte_jwt) if s.techcyte_jwt and self._delivers else None
        return min((end for end in (urls_end(urls), token) if end is not None), default=None)

    def _renew(self, conn: sa.Connection, known: sa.Row[Any], s: Submission) -> None:
        """Take newer credentials of a known request: jobs that wait and results that are parked can use them."""
        if known.origin != s.origin:
            return
        if s.techcyte_jwt and known.techcyte_jwt is not None:
            old = token_ends(self._db.vault.open(known.techcyte_jwt))
            new = token_ends(s.techcyte_jwt)
            if old is not None and (new is None or new > old):
                sealed = self._db.vault.seal(s.techcyte_jwt)
                conn.execute(sa.update(t.tasks).where(t.tasks.c.id == known.id).values(techcyte_jwt=sealed))
                renew_token(conn, known.id)
        for wanted in s.scans:
            until = self._usable_until(wanted.urls, s)
            if until is None:
                continue
            conn.execute(
                sa.update(t.jobs)
                .where(
                    t.jobs.c.task_id == known.id,
                    t.jobs.c.state == JobState.QUEUED,
                    t.jobs.c.usable_until < until,
                    t.jobs.c.scan_id.in_(
                        sa.select(t.scans.c.id).where(
                            t.scans.c.company_id == s.company_id, t.scans.c.number == wanted.number
                        )
                    ),
                )
                .values(slide=self._db.vault.seal({"urls": list(wanted.urls)}), usable_until=until)
            )

    def get(self, company_id: int, number: int) -> Task:
        """Return the task by the number that the contract calls it. Raises NotFoundError."""
        with self._db.read() as conn:
            return _task(task_row(Scoped(conn, company_id), number))

    def request(self, company_id: int, number: int) -> Mapping[str, Any]:
        """Return what else came along with a task: stains, who it was assigned to."""
        with self._db.read() as conn:
            kept: Mapping[str, Any] = task_row(Scoped(conn, company_id), number).request
            return kept

    def page(
        self, company_id: int, *, cursor: str | None, limit: int, algorithm_id: int | None, origin: str | None
    ) -> Page[Task]:
        """Return a page, newest first."""
        filters = []
        if algorithm_id is not None:
            filters.append(t.tasks.c.algorithm_id == algorithm_id)
        if origin:
            filters.append(t.tasks.c.origin == origin)
        with self._db.read() as conn:
            return (
                Scoped(conn, company_id)
                .page(sa.select(t.tasks), t.tasks, filters=filters, cursor=cursor, limit=limit)
                .map(_task)
            )

    @staticmethod
    def _job_ids(conn: sa.Connection, task_id: int) -> tuple[int, ...]:
        return tuple(
            conn.execute(sa.select(t.jobs.c.id).where(t.jobs.c.task_id == task_id).order_by(t.jobs.c.id)).scalars()
        )

    @staticmethod
    def _resolve(scope: Scoped, s: Submission) -> tuple[sa.Row[Any], sa.Row[Any], Any]:
        algorithm, path = _find_algorithm(scope, s)
        if algorithm.provider != Provider.MHS:
            raise InvalidInputError.at(
                path,
                f"case algorithm {algorithm.name!r} is provided by {algorithm.provider!r}, not by the {Provider.MHS}",
            )
        container = scope.conn.execute(
            sa.select(t.containers).where(scope.where(t.containers), t.containers.c.id == algorithm.container_id)
        ).first()
        if container is None:
            raise InvalidInputError.at(
                path, f"case algorithm {algorithm.name!r} has no runnable container; set one first"
            )
        image = scope.conn.execute(
            sa.select(t.images.c.current_version_id, t.image_versions.c.digest)
            .join_from(t.images, t.image_versions, t.images.c.current_version_id == t.image_versions.c.id)
            .where(t.images.c.id == container.image_id)
        ).one()
        return algorithm, container, image

    def _scans(self, scope: Scoped, s: Submission) -> list[tuple[int, tuple[str, ...]]]:
        faults: list[Fault] = []
        found: list[tuple[int, tuple[str, ...]]] = []
        for wanted in s.scans:
            query = sa.select(t.scans).where(scope.where(t.scans))
            query = query.where(
                t.scans.c.id == wanted.id if wanted.id is not None else t.scans.c.number == wanted.number
            )
            row = scope.conn.execute(query).first()
            if row is None and wanted.urls:
                row_id = insert_scan(
                    scope.conn, self._db, s.company_id, s.by, name=f"scan {wanted.number}", source="url",
                    location={"urls": list(wanted.urls)}, status=ScanStatus.READY, number=wanted.number,
                )  # fmt: skip
                found.append((row_id, wanted.urls))
            elif row is None:
                faults.append(
                    Fault(wanted.path, f"there is no scan {wanted.id if wanted.id is not None else wanted.number}")
                )
            elif row.status != ScanStatus.READY and not wanted.urls:
                what = row.failure_message or f"it is {row.status}"
                faults.append(Fault(wanted.path, f"scan {row.id} ({row.name}) cannot be used: {what}"))
            elif any(row.id == known for known, _ in found):
                faults.append(Fault(wanted.path, f"scan {row.id} is named twice"))
            else:
                found.append((row.id, wanted.urls))
        if faults:
            raise InvalidInputError(faults)
        return found


def urls_end(urls: Sequence[str]) -> datetime | None:
    """Return when the first of a slide's presigned URLs ends, None when none of them says."""
    return min((end for url in urls if (end := expires_at(url)) is not None), default=None)


def task_row(scope: Scoped, number: int) -> sa.Row[Any]:
    """Return the row of a task by its number. Raises NotFoundError."""
    row = scope.conn.execute(sa.select(t.tasks).where(scope.where(t.tasks), t.tasks.c.number == number)).first()
    if row is None:
        raise NotFoundError("task", number)
    return row


def insert_job(conn: sa.Connection, values: Mapping[str, Any], cause: str) -> int:
    """Insert a queued job and the first line of its story; returns its id."""
    key = conn.execute(sa.insert(t.jobs).values(**values)).inserted_primary_key
    assert key is not None
    job_id = int(key[0])
    conn.execute(
        sa.insert(t.job_events).values(
            company_id=values["company_id"],
            job_id=job_id,
            attempt=0,
            event="submitted",
            state=JobState.QUEUED,
            cause=cause,
        )
    )
    return job_id


def _find_algorithm(scope: Scoped, s: Submission) -> tuple[sa.Row[Any], str]:
    query = sa.select(t.algorithms).where(scope.where(t.algorithms))
    if s.algorithm_id is not None:
        row = scope.conn.execute(query.where(t.algorithms.c.id == s.algorithm_id)).first()
        if row is None:
            raise InvalidInputError.at("$.algorithm_id", f"there is no case algorithm {s.algorithm_id}")
        return row, "$.algorithm_id"
    named = [(path, name) for path, name in s.algorithm_names if name]
    for path, name in named:
        match = t.algorithms.c.name == name
        if name.isascii() and name.isdigit():
            match |= t.algorithms.c.id == int(name[:18])
        row = scope.conn.execute(query.where(match).order_by(t.algorithms.c.name != name)).first()
        if row is not None:
            return row, path
    if named:
        path, name = named[0]
        raise InvalidInputError.at(path, f"there is no case algorithm with the name or id {name[:80]!r}")
    only = list(scope.conn.execute(query.where(t.algorithms.c.provider == Provider.MHS).limit(2)))
    if len(only) == 1:  # Techcyte leaves both empty when nothing is set on the case algorithm
        return only[0], "$.model_name"
    raise InvalidInputError.at(
        "$.model_name",
        "no model is named and there is not exactly one case algorithm of the Model Hosting Service to take; "
        "set the model name on the case algorithm in Techcyte to the name of one here",
    )


def _task(row: sa.Row[Any]) -> Task:
    return Task(
        row.id, row.company_id, row.number, row.case_number, row.algorithm_id, row.algorithm_name, row.origin,
        Priority(row.priority), row.description, row.created_by, row.created_at, row.triage_category, row.triage_score,
    )  # fmt: skip


def _told(number: int, job_ids: Sequence[int]) -> str:
    return f"task {number} (job {job_ids[0]})" if len(job_ids) == 1 else f"task {number} ({len(job_ids)} jobs)"
