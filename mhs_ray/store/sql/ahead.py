"""What will likely run next, as rows: for nodes that fetch before a job asks."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.database import Database

_RECENT_JOBS: Final = 500
_CONTAINERS: Final = 500


def needs(db: Database, job_ids: Sequence[int]) -> list[sa.Row[Any]]:
    """Return what these jobs need on a node, in the order of `job_ids`; slides are sealed."""
    j, v = t.jobs.c, t.image_versions.c
    query: sa.Select[Any] = (
        sa.select(
            j.id, j.scan_id, j.instance_type, j.slide, j.usable_until, v.registry, v.repository, v.digest,
            v.size_bytes.label("image_bytes"), t.scans.c.size_bytes.label("slide_bytes"),
        )
        .join_from(t.jobs, t.image_versions, j.image_version_id == v.id)
        .join(t.scans, j.scan_id == t.scans.c.id)
        .where(j.id.in_(job_ids))
    )  # fmt: skip
    with db.read() as conn:
        rows = {row.id: row for row in conn.execute(query)}
    return [rows[i] for i in job_ids if i in rows]


def unpacked_bytes(db: Database, digest: str) -> int | None:
    """Return how much an image of this digest takes unpacked, None where its check did not say."""
    v = t.image_versions.c
    with db.read() as conn:
        details = conn.execute(sa.select(v.details).where(v.digest == digest).limit(1)).scalar_one_or_none()
    found = (details or {}).get("uncompressed_size")
    return int(found) if found else None


def likely_images(db: Database) -> list[sa.Row[Any]]:
    """Return the current image version of every runnable container with its instance type, the likeliest first.

    Likely is what was touched last: by a job, by a new version, or by being made. Bounded however many there are.
    """
    c, v = t.containers.c, t.image_versions.c
    recent = sa.select(t.jobs.c.container_id, t.jobs.c.created_at).order_by(t.jobs.c.id.desc()).limit(_RECENT_JOBS)
    current: sa.Select[Any] = (
        sa.select(
            c.id, c.instance_type, c.created_at.label("container_at"), v.id.label("version_id"), v.registry,
            v.repository, v.digest, v.size_bytes, v.created_at.label("version_at"),
        )
        .join_from(t.containers, t.images, c.image_id == t.images.c.id)
        .join(t.image_versions, t.images.c.current_version_id == v.id)
        .where(c.deleted_at.is_(None))
        .order_by(c.id.desc())
        .limit(_CONTAINERS)
    )  # fmt: skip
    with db.read() as conn:
        used: dict[int, datetime] = {}
        for row in conn.execute(recent):
            used.setdefault(row.container_id, row.created_at)
        rows = list(conn.execute(current))
    return sorted(rows, key=lambda r: max(r.container_at, r.version_at, used.get(r.id, r.container_at)), reverse=True)
