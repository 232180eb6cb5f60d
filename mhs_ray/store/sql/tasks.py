"""Submissions: a task and its jobs, made in one transaction, once per (company, task id)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from mhs_ray.domain.errors import MhsError, NotFoundError
from mhs_ray.domain.ids import OWN_IDS_FROM
from mhs_ray.domain.models import Priority, ScanStatus, Task
from mhs_ray.domain.states import JobState
from mhs_ray.results.outbox import token_ends
from mhs_ray.slides.presigned import expires_at
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.audit import add_entries
from mhs_ray.store.sql.database import Database, Lock
from mhs_ray.store.sql.deliveries import renew_token
from mhs_ray.store.sql.scans import insert_scan
from mhs_ray.store.sql.scope import Page, Scoped
from mhs_ray.store.sql.submission import Lookups, Plan, RequestedScan, Submission

__all__ = ["PRIORITY_RANK", "RequestedScan", "Submission", "Submitted", "Tasks", "insert_jobs", "task_row", "urls_end"]

PRIORITY_RANK = {Priority.CLINICAL: 0, Priority.RESEARCH: 1}

_INSERT_TASKS = sa.insert(t.tasks).returning(t.tasks.c.id, sort_by_parameter_order=True)
_INSERT_JOBS = sa.insert(t.jobs).returning(t.jobs.c.id, sort_by_parameter_order=True)
_NUMBER_TASK = sa.update(t.tasks).where(t.tasks.c.id == sa.bindparam("row")).values(number=sa.bindparam("own"))


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
        self._no_urls = db.vault.seal({})

    def submit(self, submission: Submission) -> Submitted:
        """Commit a task and its jobs. The same number again adds nothing. Raises InvalidInputError."""
        with self._db.write() as conn:
            (outcome,) = self.submit_all(conn, [submission])
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

    def submit_all(self, conn: sa.Connection, submissions: Sequence[Submission]) -> list[Submitted | Exception]:
        """Add several in a transaction that the caller commits; each fails alone. Outcomes in the order given.

        An outcome that is no MhsError is a fault of ours. They are written together, a statement per table; only where
        one of them cannot be stored, one by one.
        """
        self._db.lock(conn, Lock.SUBMIT)  # the same number twice at once: the second one sees the first one's row
        try:
            with conn.begin_nested():
                return self._together(conn, submissions)
        except Exception as error:
            _raise_if_broken(error)
        return [self._alone(conn, s) for s in submissions]

    def _alone(self, conn: sa.Connection, submission: Submission) -> Submitted | Exception:
        try:
            with conn.begin_nested():
                return self._together(conn, [submission])[0]
        except Exception as error:
            _raise_if_broken(error)
            return error

    def _together(self, conn: sa.Connection, submissions: Sequence[Submission]) -> list[Submitted | Exception]:
        outcomes: dict[int, Submitted | Exception] = {}
        left = list(range(len(submissions)))
        while left:
            seen, plans, again = Lookups(conn), {}, []
            coming: set[tuple[int, int]] = set()
            for i in left:
                s = submissions[i]
                if s.number is not None and (s.company_id, s.number) in coming:
                    again.append(i)  # its twin is added first; then it is known
                    continue
                try:
                    known = self._known(conn, s)
                    if known is not None:
                        outcomes[i] = known
                        continue
                    plans[i] = seen.plan(s)
                except MhsError as error:
                    outcomes[i] = error
                    continue
                if s.number is not None:
                    coming.add((s.company_id, s.number))
            outcomes.update(zip(plans, self._store(conn, list(plans.values())), strict=True))
            left = again
        return [outcomes[i] for i in range(len(submissions))]

    def _known(self, conn: sa.Connection, s: Submission) -> Submitted | None:
        if s.number is None:
            return None
        scope = Scoped(conn, s.company_id)
        known = conn.execute(sa.select(t.tasks).where(scope.where(t.tasks), t.tasks.c.number == s.number)).first()
        if known is None:
            return None
        self._renew(conn, known, s)
        return Submitted(_task(known), self._job_ids(conn, known.id), created=False)

    def _store(self, conn: sa.Connection, plans: Sequence[Plan]) -> list[Submitted]:
        if not plans:
            return []
        now = datetime.now(UTC)
        scans = self._add_scans(conn, plans)
        tasks = [self._task_values(plan.submission, plan.algorithm, now) for plan in plans]
        ids = list(conn.execute(_INSERT_TASKS, tasks).scalars())
        for values, task_id in zip(tasks, ids, strict=True):
            values["id"] = task_id
        own = [values for values in tasks if values["number"] is None]
        for values in own:
            values["number"] = OWN_IDS_FROM + values["id"]
        if own:
            conn.execute(_NUMBER_TASK, [{"row": values["id"], "own": values["number"]} for values in own])
        jobs = [
            self._job_values(plan, task_id, scans.get((plan.submission.company_id, wanted.number), row_id), wanted.urls)
            for plan, task_id in zip(plans, ids, strict=True)
            for row_id, wanted in plan.scans
        ]
        job_ids = insert_jobs(conn, jobs, "submitted")
        of_task: dict[int, list[int]] = {}
        for job, job_id in zip(jobs, job_ids, strict=True):
            of_task.setdefault(job["task_id"], []).append(job_id)
        lines = [
            (p.submission.company_id, p.submission.by, p.submission.client_id, "create task",
             _told(values["number"], of_task[values["id"]]))
            for p, values in zip(plans, tasks, strict=True)
        ]  # fmt: skip
        add_entries(conn, lines)
        self._db.notify(conn)
        return [Submitted(_task_of(values), tuple(of_task[values["id"]]), created=True) for values in tasks]

    def _add_scans(self, conn: sa.Connection, plans: Sequence[Plan]) -> dict[tuple[int, int | None], int]:
        """Register the scans that only came with a submission; returns row ids by (company, number)."""
        added: dict[tuple[int, int | None], int] = {}
        for plan in plans:
            s = plan.submission
            for row_id, wanted in plan.scans:
                if row_id is None and (s.company_id, wanted.number) not in added:
                    added[s.company_id, wanted.number] = insert_scan(
                        conn, self._db, s.company_id, s.by, name=f"scan {wanted.number}", source="url",
                        location={"urls": list(wanted.urls)}, status=ScanStatus.READY, number=wanted.number,
                    )  # fmt: skip
        return added

    def _task_values(self, s: Submission, algorithm: sa.Row[Any], now: datetime) -> dict[str, Any]:
        return {
            "company_id": s.company_id, "number": s.number, "case_number": s.case_number,
            "algorithm_id": algorithm.id, "algorithm_name": algorithm.name, "origin": s.origin, "host": s.host,
            "priority": s.priority, "description": s.description, "request": dict(s.request), "created_by": s.by,
            "created_at": now, "techcyte_jwt": self._db.vault.seal(s.techcyte_jwt) if s.techcyte_jwt else None,
        }  # fmt: skip

    def _job_values(self, plan: Plan, task_id: int, scan_id: int | None, urls: tuple[str, ...]) -> dict[str, Any]:
        s, container, image = plan.submission, plan.container, plan.image
        return {
            "company_id": s.company_id, "task_id": task_id, "scan_id": scan_id, "run": 0,
            "container_id": container.id, "container_name": container.name,
            "image_version_id": image.current_version_id, "image_digest": image.digest,
            "instance_type": container.instance_type, "time_limit_s": container.time_limit_s,
            "env": container.env, "slide": self._db.vault.seal({"urls": list(urls)}) if urls else self._no_urls,
            "retry_exit_codes": container.retry_exit_codes, "max_model_retries": container.max_model_retries,
            "priority": PRIORITY_RANK[s.priority], "state": JobState.QUEUED, "created_by": s.by,
            "usable_until": self._usable_until(urls, s),
        }  # fmt: skip

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


def urls_end(urls: Sequence[str]) -> datetime | None:
    """Return when the first of a slide's presigned URLs ends, None when none of them says."""
    return min((end for url in urls if (end := expires_at(url)) is not None), default=None)


def task_row(scope: Scoped, number: int) -> sa.Row[Any]:
    """Return the row of a task by its number. Raises NotFoundError."""
    row = scope.conn.execute(sa.select(t.tasks).where(scope.where(t.tasks), t.tasks.c.number == number)).first()
    if row is None:
        raise NotFoundError("task", number)
    return row


def insert_jobs(conn: sa.Connection, jobs: Sequence[dict[str, Any]], cause: str) -> list[int]:
    """Insert queued jobs and the first line of each one's story; returns their ids."""
    ids = list(conn.execute(_INSERT_JOBS, jobs).scalars())
    events = [
        {
            "company_id": job["company_id"], "job_id": job_id, "attempt": 0, "event": "submitted",
            "state": JobState.QUEUED, "cause": cause,
        }
        for job, job_id in zip(jobs, ids, strict=True)
    ]  # fmt: skip
    conn.execute(sa.insert(t.job_events), events)
    return ids


def _raise_if_broken(error: Exception) -> None:
    """The connection is gone, and with it the whole transaction."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        raise error


def _task_of(values: Mapping[str, Any]) -> Task:
    return Task(
        values["id"], values["company_id"], values["number"], values["case_number"], values["algorithm_id"],
        values["algorithm_name"], values["origin"], Priority(values["priority"]), values["description"],
        values["created_by"], values["created_at"], None, None,
    )  # fmt: skip


def _task(row: sa.Row[Any]) -> Task:
    return Task(
        row.id, row.company_id, row.number, row.case_number, row.algorithm_id, row.algorithm_name, row.origin,
        Priority(row.priority), row.description, row.created_by, row.created_at, row.triage_category, row.triage_score,
    )  # fmt: skip


def _told(number: int, job_ids: Sequence[int]) -> str:
    return f"task {number} (job {job_ids[0]})" if len(job_ids) == 1 else f"task {number} ({len(job_ids)} jobs)"
