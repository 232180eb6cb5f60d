"""API clients."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from mhs_ray.domain.errors import NotFoundError
from mhs_ray.domain.models import ApiClient, Principal, Role
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.database import Database, Lock
from mhs_ray.store.sql.scope import Scoped


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

    def add(
        self, client_id: str, company_id: int, name: str, role: Role, secret_hash: str, created_by: str = ""
    ) -> bool:
        """Store a client unless there is, or was, one of that id; returns whether it is new. A revoked one stays so."""
        with self._db.write() as conn:
            self._db.lock(conn, Lock.CLIENTS)
            if conn.execute(sa.select(t.clients.c.id).where(t.clients.c.id == client_id)).first() is not None:
                return False
            values = {
                "company_id": company_id, "name": name, "role": role, "secret_hash": secret_hash,
                "created_by": created_by,
            }  # fmt: skip
            conn.execute(sa.insert(t.clients).values(id=client_id, **values))
            return True

    def lookup(self, client_id: str) -> tuple[Principal, str] | None:
        """Return a live client and the hash of its secret, None when there is none.

        One whose company is switched off is found, and says so (`Principal.enabled`).
        """
        with self._db.read() as conn:
            row = conn.execute(
                sa.select(t.clients, t.companies.c.mhs_enabled)
                .join_from(t.clients, t.companies, t.clients.c.company_id == t.companies.c.id)
                .where(t.clients.c.id == client_id, t.clients.c.revoked_at.is_(None))
            ).first()
            if row is None:
                return None
            who = Principal(row.company_id, row.name, Role(row.role), row.id, bool(row.mhs_enabled))
            return who, row.secret_hash

    def was_revoked(self, client_id: str) -> bool:
        """Say whether there was a client of this id that may call no more."""
        with self._db.read() as conn:
            query = sa.select(t.clients.c.id).where(t.clients.c.id == client_id, t.clients.c.revoked_at.is_not(None))
            return conn.execute(query).first() is not None

    def refresh(self, client_id: str, company_id: int, name: str, role: Role, created_by: str) -> bool:
        """Keep a client that a provider vouches for as its newest token says; False when it was revoked here."""
        values = {"company_id": company_id, "name": name, "role": role}
        with self._db.write() as conn:
            self._db.lock(conn, Lock.CLIENTS)
            row = conn.execute(sa.select(t.clients.c.revoked_at).where(t.clients.c.id == client_id)).first()
            if row is None:
                # No secret has this hash: such a client signs in at its provider only.
                conn.execute(sa.insert(t.clients).values(id=client_id, secret_hash="", created_by=created_by, **values))
                return True
            if row.revoked_at is not None:
                return False
            conn.execute(
                sa.update(t.clients).where(t.clients.c.id == client_id).values(last_used_at=datetime.now(UTC), **values)
            )
            return True

    def listed(self, company_id: int) -> list[ApiClient]:
        """Return a company's clients, newest first, revoked ones too."""
        with self._db.read() as conn:
            rows = conn.execute(
                sa.select(t.clients)
                .where(Scoped(conn, company_id).where(t.clients))
                .order_by(t.clients.c.created_at.desc(), t.clients.c.id)
            )
            return [_client(row) for row in rows]

    def get(self, company_id: int, client_id: str) -> ApiClient:
        """Return one. Raises NotFoundError, also for one of another company."""
        with self._db.read() as conn:
            query = sa.select(t.clients).where(Scoped(conn, company_id).where(t.clients), t.clients.c.id == client_id)
            row = conn.execute(query).first()
        if row is None:
            raise NotFoundError("client", client_id)
        return _client(row)

    def revoke(self, company_id: int, client_id: str) -> ApiClient:
        """End a client for good; again, nothing changes. Raises NotFoundError."""
        self.get(company_id, client_id)
        with self._db.write() as conn:
            conn.execute(
                sa.update(t.clients)
                .where(t.clients.c.id == client_id, t.clients.c.revoked_at.is_(None))
                .values(revoked_at=datetime.now(UTC))
            )
        return self.get(company_id, client_id)

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


def _client(row: sa.Row[Any]) -> ApiClient:
    return ApiClient(
        row.id, row.company_id, row.name, Role(row.role), row.created_by, row.created_at, row.last_used_at,
        row.revoked_at,
    )  # fmt: skip
