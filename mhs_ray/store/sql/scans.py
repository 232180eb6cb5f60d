"""Scans as rows; where their bytes are is sealed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from mhs_ray.domain.errors import ConflictError
from mhs_ray.domain.ids import OWN_IDS_FROM
from mhs_ray.domain.models import Scan, ScanStatus
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.database import Database, Lock
from mhs_ray.store.sql.rows import insert_row, update_row
from mhs_ray.store.sql.scope import Page, Scoped


class Scans:
    """Whole slide images; where their bytes are is sealed."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def create(
        self,
        company_id: int,
        by: str,
        *,
        name: str,
        source: str,
        location: Mapping[str, Any],
        status: ScanStatus,
        number: int | None = None,
        size_bytes: int | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Scan:
        """Make one. number: Techcyte's scan id; None takes the next of ours. Raises InvalidInputError."""
        with self._db.write() as conn:
            if number is not None:
                self._db.lock(conn, Lock.SUBMIT)  # a submission may be bringing the same scan
            row_id = insert_scan(
                conn, self._db, company_id, by, name=name, source=source, location=location, status=status,
                number=number, size_bytes=size_bytes, facts=facts,
            )  # fmt: skip
            return _scan(Scoped(conn, company_id).get(t.scans, row_id, "scan"))

    def get(self, company_id: int, scan_id: int) -> Scan:
        """Return one. Raises NotFoundError."""
        with self._db.read() as conn:
            return _scan(Scoped(conn, company_id).get(t.scans, scan_id, "scan"))

    def location(self, scan_id: int) -> Mapping[str, Any]:
        """Return where the bytes are. Secret: it can hold presigned URLs."""
        with self._db.read() as conn:
            sealed = conn.execute(sa.select(t.scans.c.location).where(t.scans.c.id == scan_id)).scalar_one()
            opened: Mapping[str, Any] = self._db.vault.open(sealed)
            return opened

    def page(
        self,
        company_id: int,
        *,
        cursor: str | None,
        limit: int,
        name: str | None,
        status: str | None,
        number: int | None,
    ) -> Page[Scan]:
        """Return a page, newest first."""
        filters = []
        if name:
            filters.append(t.scans.c.name.icontains(name, autoescape=True))
        if status:
            filters.append(t.scans.c.status == status)
        if number is not None:
            filters.append(t.scans.c.number == number)
        with self._db.read() as conn:
            return (
                Scoped(conn, company_id)
                .page(sa.select(t.scans), t.scans, filters=filters, cursor=cursor, limit=limit)
                .map(_scan)
            )

    def update(self, scan_id: int, **values: Any) -> None:
        """Set columns; `location` is sealed."""
        if "location" in values:
            values["location"] = self._db.vault.seal(values["location"])
        with self._db.write() as conn:
            update_row(conn, t.scans, scan_id, values)

    def delete(self, company_id: int, scan_id: int) -> None:
        """Remove one that no job uses. Raises ConflictError."""
        with self._db.write() as conn:
            Scoped(conn, company_id).get(t.scans, scan_id, "scan")
            if conn.execute(sa.select(t.jobs.c.id).where(t.jobs.c.scan_id == scan_id).limit(1)).first():
                raise ConflictError(f"scan {scan_id} has jobs; what they ran on is kept")
            conn.execute(sa.delete(t.scans).where(t.scans.c.id == scan_id))


def insert_scan(
    conn: sa.Connection,
    db: Database,
    company_id: int,
    by: str,
    *,
    name: str,
    source: str,
    location: Mapping[str, Any],
    status: ScanStatus,
    number: int | None = None,
    size_bytes: int | None = None,
    facts: Mapping[str, Any] | None = None,
) -> int:
    """Insert a scan in a transaction that does more than that; returns its row id."""
    row_id = insert_row(
        conn,
        t.scans,
        {
            "company_id": company_id, "number": number, "name": name, "status": status, "source": source,
            "location": db.vault.seal(dict(location)), "size_bytes": size_bytes, "facts": dict(facts or {}),
            "created_by": by,
        },
        taken=("$.number", f"scan {number} is registered already"),
    )  # fmt: skip
    if number is None:
        conn.execute(sa.update(t.scans).where(t.scans.c.id == row_id).values(number=OWN_IDS_FROM + row_id))
    return row_id


def _scan(row: sa.Row[Any]) -> Scan:
    return Scan(
        row.id, row.company_id, row.number, row.name, ScanStatus(row.status), row.failure_message, row.source,
        row.size_bytes, row.facts, row.created_by, row.created_at,
    )  # fmt: skip
