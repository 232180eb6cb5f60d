"""The log of who did what. Rows are added and read; the database refuses to change or remove one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa

from mhs_ray.domain.models import AuditEntry, Principal
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.database import Database
from mhs_ray.store.sql.scope import Page, Scoped

_LONGEST: Final = 300


class Audit:
    """Entries of all companies; read one company's at a time."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def note(self, who: Principal, action: str, target: str) -> None:
        """Add a line."""
        with self._db.write() as conn:
            add_entry(conn, who.company_id, who.name, who.client_id, action, target)

    def page(
        self, company_id: int, *, cursor: str | None, limit: int, client_id: str | None = None
    ) -> Page[AuditEntry]:
        """Return a page, newest first."""
        filters = [t.audit.c.client_id == client_id] if client_id else []
        with self._db.read() as conn:
            return (
                Scoped(conn, company_id)
                .page(sa.select(t.audit), t.audit, filters=filters, cursor=cursor, limit=limit)
                .map(_entry)
            )


def add_entry(conn: sa.Connection, company_id: int, who: str, client_id: str, action: str, target: str) -> None:
    """Add a line inside a transaction that does what the line says."""
    add_entries(conn, [(company_id, who, client_id, action, target)])


def add_entries(conn: sa.Connection, lines: Sequence[tuple[int, str, str, str, str]]) -> None:
    """`add_entry` for several: (company id, who, client id, action, target)."""
    conn.execute(
        sa.insert(t.audit),
        [
            {
                "company_id": company_id, "who": who[:_LONGEST], "client_id": client_id[:_LONGEST],
                "action": action[:_LONGEST], "target": target[:_LONGEST],
            }
            for company_id, who, client_id, action, target in lines
        ],
    )  # fmt: skip


def _entry(row: sa.Row[Any]) -> AuditEntry:
    return AuditEntry(row.id, row.company_id, row.at, row.who, row.client_id, row.action, row.target)
