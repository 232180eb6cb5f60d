"""Companies and their API clients."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime

import sqlalchemy as sa

from mhs_ray.domain.models import Principal, Role
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.database import Database, Lock


class Clients:
    """Who may call. Only hashes of secrets are kept."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def ensure_company(self, name: str) -> int:
        """Return the company's id, made if there is none of that name."""
        with self._db.write() as conn:
            self._db.lock(conn, Lock.CLIENTS)
            known = conn.execute(sa.select(t.companies.c.id).where(t.companies.c.name == name)).scalar()
            if known is not None:
                return int(known)
            key = conn.execute(sa.insert(t.companies).values(name=name)).inserted_primary_key
            assert key is not None
            return int(key[0])

    def put(self, client_id: str, company_id: int, name: str, role: Role, secret_hash: str) -> None:
        """Store a client; one of that id is replaced."""
        with self._db.write() as conn:
            self._db.lock(conn, Lock.CLIENTS)
            conn.execute(sa.delete(t.clients).where(t.clients.c.id == client_id))
            conn.execute(
                sa.insert(t.clients).values(
                    id=client_id, company_id=company_id, name=name, role=role, secret_hash=secret_hash
                )
            )

    def add(self, client_id: str, company_id: int, name: str, role: Role, secret_hash: str) -> bool:
        """Store a client unless there is, or was, one of that id; returns whether it is new. A revoked one stays so."""
        with self._db.write() as conn:
            self._db.lock(conn, Lock.CLIENTS)
            if conn.execute(sa.select(t.clients.c.id).where(t.clients.c.id == client_id)).first() is not None:
                return False
            values = {"company_id": company_id, "name": name, "role": role, "secret_hash": secret_hash}
            conn.execute(sa.insert(t.clients).values(id=client_id, **values))
            return True

    def lookup(self, client_id: str) -> tuple[Principal, str] | None:
        """Return a live client and the hash of its secret, None when there is none."""
        with self._db.read() as conn:
            row = conn.execute(
                sa.select(t.clients)
                .join_from(t.clients, t.companies, t.clients.c.company_id == t.companies.c.id)
                .where(t.clients.c.id == client_id, t.clients.c.revoked_at.is_(None), t.companies.c.mhs_enabled)
            ).first()
            if row is None:
                return None
            return Principal(row.company_id, row.name, Role(row.role), row.id), row.secret_hash

    def company_names(self, company_ids: Collection[int]) -> dict[int, str]:
        """Return the names of companies by id."""
        with self._db.read() as conn:
            rows = conn.execute(
                sa.select(t.companies.c.id, t.companies.c.name).where(t.companies.c.id.in_(list(company_ids)))
            )
            return {r.id: r.name for r in rows}

    def used(self, client_id: str) -> None:
        """Note that the client was just used."""
        with self._db.write() as conn:
            conn.execute(sa.update(t.clients).where(t.clients.c.id == client_id).values(last_used_at=datetime.now(UTC)))
