"""The rows that slides of a cohort become: a scan, a task and a job each, inserted by the hundred."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from mhs_ray.domain.cohorts import SlideState
from mhs_ray.domain.ids import OWN_IDS_FROM
from mhs_ray.domain.models import Priority, ScanStatus
from mhs_ray.domain.states import JobState
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.database import Database
from mhs_ray.store.sql.tasks import PRIORITY_RANK, urls_end


def insert_jobs(
    conn: sa.Connection, db: Database, cohort: sa.Row[Any], rows: Sequence[sa.Row[Any]], host: str
) -> list[dict[str, Any]]:
    """Insert what `rows` of `cohort_slides` need to run; returns the new values of these rows, with ``of`` their id.

    A task has one slide, since a container's case results are its task's. cohort: its row, which holds what to run.
    """
    by, company = cohort.created_by, cohort.company_id
    locations = [db.vault.open(r.location) for r in rows]
    scan_ids = [r.scan_id or (location.get("scan")) for r, location in zip(rows, locations, strict=True)]
    missing = [i for i, scan_id in enumerate(scan_ids) if scan_id is None]
    new = _insert(
        conn,
        t.scans,
        [
            {
                "company_id": company, "name": rows[i].slide[:200], "status": ScanStatus.READY, "failure_message": "",
                "source": "path" if "path" in locations[i] else "url", "location": db.vault.seal(locations[i]),
                "facts": {}, "created_by": by,
            }
            for i in missing
        ],
    )  # fmt: skip
    for i, scan_id in zip(missing, new, strict=True):
        scan_ids[i] = scan_id
    task = {
        "company_id": company, "algorithm_id": cohort.algorithm_id, "algorithm_name": cohort.algorithm_name,
        "origin": "local", "host": host, "priority": Priority.RESEARCH, "request": {"cohort": cohort.id},
        "created_by": by,
    }  # fmt: skip
    named = [{**task, "description": f"{cohort.name}: {row.slide}"[:1000]} for row in rows]
    task_ids = _insert(conn, t.tasks, named)
    job = {
        "company_id": company, "run": 0, "container_id": cohort.container_id,
        "container_name": cohort.container_name, "image_version_id": cohort.image_version_id,
        "image_digest": cohort.image_digest, "instance_type": cohort.instance_type,
        "time_limit_s": cohort.time_limit_s, "env": cohort.env, "slide": db.vault.seal({}),
        "retry_exit_codes": cohort.retry_exit_codes, "max_model_retries": cohort.max_model_retries,
        "priority": PRIORITY_RANK[Priority.RESEARCH], "state": JobState.QUEUED, "created_by": by,
    }  # fmt: skip
    job_ids = _insert(
        conn,
        t.jobs,
        [
            {**job, "task_id": task_id, "scan_id": scan_id, "usable_until": urls_end(location.get("urls", ()))}
            for task_id, scan_id, location in zip(task_ids, scan_ids, locations, strict=True)
        ],
        numbered=False,
    )
    event = {"company_id": company, "attempt": 0, "event": "submitted", "state": JobState.QUEUED}
    told = [{**event, "job_id": job_id, "cause": f"slide {r.slide!r} of cohort {cohort.id}"} for r, job_id in
            zip(rows, job_ids, strict=True)]  # fmt: skip
    conn.execute(sa.insert(t.job_events), told)
    return [
        {"of": r.id, "state": SlideState.UNDER_WAY, "scan_id": scan_id, "job_id": job_id, "ended_at": None}
        for r, scan_id, job_id in zip(rows, scan_ids, job_ids, strict=True)
    ]


def _insert(
    conn: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]], *, numbered: bool = True
) -> list[int]:
    """Insert `rows` and return their ids in order. numbered: give each the next of our own numbers."""
    if not rows:
        return []
    statement = sa.insert(table).returning(table.c.id, sort_by_parameter_order=True)
    ids = [int(i) for i in conn.execute(statement, [dict(r) for r in rows]).scalars()]
    if numbered:
        conn.execute(sa.update(table).where(table.c.id.in_(ids)).values(number=OWN_IDS_FROM + table.c.id))
    return ids
