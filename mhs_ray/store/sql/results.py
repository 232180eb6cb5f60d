"""Results as rows: one per (task, scan, run), stored once whatever is posted how often."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from mhs_ray.domain.errors import ForbiddenError, NotFoundError
from mhs_ray.domain.states import JobState
from mhs_ray.results.jsonwalk import canonical
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.database import Database
from mhs_ray.store.sql.deliveries import put_case_results, put_result, put_triage
from mhs_ray.store.sql.scope import Scoped
from mhs_ray.store.sql.tasks import task_row

_POSTING = (JobState.PREPARING, JobState.RUNNING, JobState.COLLECTING)


@dataclass(frozen=True, slots=True)
class NewResult:
    """What is to be stored for one scan. qc_fail_reasons: None leaves the QC state alone."""

    scan_number: int
    digest: str
    report: Mapping[str, Any] | None
    external_url: str | None
    qc_fail_reasons: Sequence[str] | None
    workflow: Mapping[str, Any] | None
    summary: Mapping[str, Any]
    geojson_key: str | None
    features: int


@dataclass(frozen=True, slots=True)
class StoredResult:
    """A stored result of one scan."""

    id: int
    task_number: int
    case_number: int | None
    scan_id: int
    scan_number: int
    job_id: int | None
    attempt: int
    run: int
    digest: str
    report: Mapping[str, Any] | None
    external_url: str | None
    case_results: Mapping[str, Any] | None
    qc_fail_reasons: Sequence[str] | None
    workflow: Mapping[str, Any] | None
    summary: Mapping[str, Any]
    geojson_key: str | None
    features: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Poster:
    """Who posts: an attempt, or a client of the company (job_id None)."""

    company_id: int
    task_number: int
    job_id: int | None = None
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Posting:
    """What a poster may post for. scans: number → row id; runs: row id → the run that a result belongs to.

    stored_before: the attempt has ended, yet its job has its result: it is answered alike, and nothing is stored.
    """

    task_id: int
    scans: Mapping[int, int]
    runs: Mapping[int, int]
    stored_before: bool = False


class Results:
    """The ledger of the results gateway."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def posting(self, poster: Poster) -> Posting:
        """Return what may be posted now. Raises NotFoundError; ForbiddenError for an attempt that has ended."""
        with self._db.read() as conn:
            return self._posting(conn, poster)

    def _posting(self, conn: sa.Connection, poster: Poster, *, lock: bool = False) -> Posting:
        task = task_row(Scoped(conn, poster.company_id), poster.task_number)
        if lock:  # two requests at once: the second one sees what the first one stored
            conn.execute(self._db.for_update(sa.select(t.tasks.c.id).where(t.tasks.c.id == task.id)))
        rows = conn.execute(
            sa.select(t.scans.c.number, t.scans.c.id, sa.func.max(t.jobs.c.run).label("run"))
            .join_from(t.jobs, t.scans, t.jobs.c.scan_id == t.scans.c.id)
            .where(t.jobs.c.task_id == task.id)
            .group_by(t.scans.c.number, t.scans.c.id)
        ).all()
        scans, runs = {r.number: r.id for r in rows}, {r.id: r.run for r in rows}
        if poster.job_id is None:
            return Posting(task.id, scans, runs)
        query = sa.select(t.jobs).where(t.jobs.c.id == poster.job_id, t.jobs.c.task_id == task.id)
        job = conn.execute(self._db.for_update(query) if lock else query).first()
        if job is None:
            raise NotFoundError("job", poster.job_id)
        alive = job.attempt == poster.attempt and job.state in _POSTING
        stored = conn.execute(
            sa.select(t.results.c.id).where(
                t.results.c.task_id == task.id, t.results.c.scan_id == job.scan_id, t.results.c.run == job.run
            )
        ).first()
        if not alive and not stored:
            raise ForbiddenError("this token belongs to an attempt that has ended; its results are not taken any more")
        return Posting(task.id, scans, {**runs, job.scan_id: job.run}, stored_before=not alive)

    def store(self, poster: Poster, case_results: Mapping[str, Any] | None, new: Sequence[NewResult]) -> int:
        """Store all of `new` that is not stored yet, in one transaction; returns how many were."""
        with self._db.write() as conn:
            posting = self._posting(conn, poster, lock=True)
            if posting.stored_before:
                return 0
            task = _techcytes(conn, posting.task_id)
            stored = 0
            for item in new:
                scan_id = posting.scans[item.scan_number]
                run = posting.runs[scan_id]
                known = sa.select(t.results.c.id).where(
                    t.results.c.task_id == posting.task_id, t.results.c.scan_id == scan_id, t.results.c.run == run
                )
                if conn.execute(known).first() is not None:
                    continue
                stored += 1
                key = conn.execute(
                    sa.insert(t.results).values(
                        company_id=poster.company_id, task_id=posting.task_id, scan_id=scan_id, run=run,
                        job_id=poster.job_id, attempt=poster.attempt, digest=item.digest,
                        report=_plain(item.report), external_url=item.external_url, case_results=_plain(case_results),
                        qc_fail_reasons=list(item.qc_fail_reasons or []), qc_touched=item.qc_fail_reasons is not None,
                        workflow=_plain(item.workflow), summary=dict(item.summary), geojson_key=item.geojson_key,
                        features=item.features,
                    )
                ).inserted_primary_key  # fmt: skip
                assert key is not None
                if task is not None:
                    put_result(conn, task, key[0], scan_id, run, item.digest)
            if case_results is not None and (stored or not new):
                triage = case_results.get("triage") or {}
                values: dict[str, Any] = {"case_results": dict(case_results)}
                if triage:
                    values |= {"triage_category": triage.get("category"), "triage_score": triage.get("score")}
                if not new and task is not None:
                    put_case_results(conn, task, case_results, hashlib.sha256(canonical(case_results)).hexdigest())
                conn.execute(sa.update(t.tasks).where(t.tasks.c.id == posting.task_id).values(**values))
            if task is not None:
                self._db.notify(conn)
            return stored

    def reject(self, poster: Poster, faults: Sequence[Mapping[str, str]]) -> None:
        """Note on the job that this attempt's newest request was refused, for its failure card."""
        if poster.job_id is None:
            return
        with self._db.write() as conn:
            conn.execute(
                sa.update(t.jobs)
                .where(t.jobs.c.id == poster.job_id, t.jobs.c.attempt == poster.attempt)
                .values(rejection=[dict(f) for f in faults[:20]])
            )

    def patch_case(self, poster: Poster, changes: Mapping[str, Any]) -> None:
        """Set the triage fields that `changes` names. Raises NotFoundError, ForbiddenError."""
        with self._db.write() as conn:
            posting = self._posting(conn, poster, lock=True)
            if changes and not posting.stored_before:
                conn.execute(sa.update(t.tasks).where(t.tasks.c.id == posting.task_id).values(**changes))
                task = _techcytes(conn, posting.task_id)
                if task is not None:
                    names = {"triage_category", "triage_score"}
                    put_triage(conn, task, {k: v for k, v in changes.items() if k in names})

    def of_case(self, company_id: int, task_number: int) -> list[StoredResult]:
        """Return every result of the task's case, oldest first; without a case, of the task."""
        with self._db.read() as conn:
            task = task_row(Scoped(conn, company_id), task_number)
            where = (
                t.tasks.c.case_number == task.case_number if task.case_number is not None else t.tasks.c.id == task.id
            )
            return self._select(conn, company_id, where)

    def of_task(self, company_id: int, task_number: int) -> list[StoredResult]:
        """Return the results of a task, oldest first. Raises NotFoundError."""
        with self._db.read() as conn:
            task = task_row(Scoped(conn, company_id), task_number)
            return self._select(conn, company_id, t.tasks.c.id == task.id)

    def of_job(self, company_id: int, job_id: int) -> StoredResult | None:
        """Return the result of the scan that a job ran on, in the job's run. Raises NotFoundError."""
        with self._db.read() as conn:
            job = Scoped(conn, company_id).get(t.jobs, job_id, "job")
            where = (
                (t.results.c.task_id == job.task_id)
                & (t.results.c.scan_id == job.scan_id)
                & (t.results.c.run == job.run)
            )
            found = self._select(conn, company_id, where)
            return found[0] if found else None

    def standing(self, job_id: int) -> tuple[bool, list[Mapping[str, str]] | None]:
        """Return whether the job has its result, and the faults of its newest refused request."""
        with self._db.read() as conn:
            job = conn.execute(sa.select(t.jobs).where(t.jobs.c.id == job_id)).one()
            stored = conn.execute(
                sa.select(t.results.c.id).where(
                    t.results.c.task_id == job.task_id, t.results.c.scan_id == job.scan_id, t.results.c.run == job.run
                )
            ).first()
            return stored is not None, job.rejection

    @staticmethod
    def _select(conn: sa.Connection, company_id: int, where: sa.ColumnElement[bool]) -> list[StoredResult]:
        rows = conn.execute(
            sa.select(
                t.results,
                t.tasks.c.number.label("task_number"),
                t.tasks.c.case_number,
                t.scans.c.number.label("scan_number"),
            )
            .join_from(t.results, t.tasks, t.results.c.task_id == t.tasks.c.id)
            .join(t.scans, t.results.c.scan_id == t.scans.c.id)
            .where(t.results.c.company_id == company_id, where)
            .order_by(t.results.c.id)
        )
        return [
            StoredResult(
                id=r.id, task_number=r.task_number, case_number=r.case_number, scan_id=r.scan_id,
                scan_number=r.scan_number, job_id=r.job_id, attempt=r.attempt, run=r.run, digest=r.digest,
                report=r.report, external_url=r.external_url, case_results=r.case_results,
                qc_fail_reasons=r.qc_fail_reasons if r.qc_touched else None, workflow=r.workflow, summary=r.summary,
                geojson_key=r.geojson_key, features=r.features, created_at=r.created_at,
            )
            for r in rows
        ]  # fmt: skip


def _techcytes(conn: sa.Connection, task_id: int) -> sa.Row[Any] | None:
    """Return the task if its results are Techcyte's to have, None otherwise."""
    task = conn.execute(sa.select(t.tasks).where(t.tasks.c.id == task_id)).one()
    return task if task.origin == "techcyte" and task.techcyte_jwt is not None else None


def _plain(value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if value is None else dict(value)
