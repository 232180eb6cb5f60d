"""Companies, which are the tenants, and the secrets that their webhook calls are signed with."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from mhs_ray.domain.errors import ConflictError, NotFoundError
from mhs_ray.domain.models import Company
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.database import Database

_KEPT: Final = 2  # the newest secret, and the one before it: a sender changes over without losing a call


class Companies:
    """The one store that is not filtered by company: only operators, and the webhook's check, ask it."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def listed(self) -> list[Company]:
        """Return all, by name."""
        with self._db.read() as conn:
            return [_company(row) for row in conn.execute(sa.select(t.companies).order_by(t.companies.c.name))]

    def get(self, company_id: int) -> Company:
        """Return one. Raises NotFoundError."""
        with self._db.read() as conn:
            row = conn.execute(sa.select(t.companies).where(t.companies.c.id == company_id)).first()
        if row is None:
            raise NotFoundError("company", company_id)
        return _company(row)

    def by_external_id(self, external_id: str) -> Company | None:
        """Return the company that Techcyte or an identity provider calls so."""
        with self._db.read() as conn:
            row = conn.execute(sa.select(t.companies).where(t.companies.c.external_id == external_id)).first()
        return _company(row) if row is not None else None

    def create(self, name: str, external_id: str | None, enabled: bool) -> Company:
        """Make one. Raises ConflictError when the name or the external id is taken."""
        try:
            with self._db.write() as conn:
                key = conn.execute(
                    sa.insert(t.companies).values(name=name, external_id=external_id, mhs_enabled=enabled)
                ).inserted_primary_key
        except IntegrityError:
            raise ConflictError("there is a company of this name or external id") from None
        assert key is not None
        return self.get(int(key[0]))

    def update(self, company_id: int, values: Mapping[str, Any]) -> Company:
        """Change columns. Raises NotFoundError, ConflictError."""
        self.get(company_id)
        try:
            with self._db.write() as conn:
                if values:
                    conn.execute(sa.update(t.companies).where(t.companies.c.id == company_id).values(**values))
        except IntegrityError:
            raise ConflictError("there is a company of this name or external id") from None
        return self.get(company_id)

    def new_webhook_secret(self, company_id: int) -> str:
        """Make and return a company's secret; the one before it stays good until the next."""
        secret = f"whsec_{company_id}_{secrets.token_urlsafe(32)}"
        with self._db.write() as conn:
            kept = [secret, *self._secrets(conn, company_id)][:_KEPT]
            conn.execute(
                sa.update(t.companies)
                .where(t.companies.c.id == company_id)
                .values(webhook_secrets=self._db.vault.seal(kept))
            )
        return secret

    def drop_webhook_secrets(self, company_id: int) -> None:
        """Take no call that is signed for this company any more."""
        with self._db.write() as conn:
            conn.execute(sa.update(t.companies).where(t.companies.c.id == company_id).values(webhook_secrets=None))

    def webhook_secrets(self, company_id: int) -> list[str]:
        """Return what a call of this company may be signed with, newest first."""
        with self._db.read() as conn:
            return self._secrets(conn, company_id)

    def take_call(self, signature: str, now: datetime, until: datetime) -> bool:
        """Note a signed call; False when it was noted before. until: older notes than that are no use any more."""
        with self._db.write() as conn:
            conn.execute(sa.delete(t.webhook_calls).where(t.webhook_calls.c.at < until))
            known = conn.execute(sa.select(t.webhook_calls.c.at).where(t.webhook_calls.c.signature == signature))
            if known.first() is not None:
                return False
            try:
                with conn.begin_nested():
                    conn.execute(sa.insert(t.webhook_calls).values(signature=signature, at=now))
            except IntegrityError:  # the same call at once
                return False
            return True

    def _secrets(self, conn: sa.Connection, company_id: int) -> list[str]:
        sealed = conn.execute(sa.select(t.companies.c.webhook_secrets).where(t.companies.c.id == company_id)).scalar()
        return list(self._db.vault.open(sealed)) if sealed else []


def _company(row: sa.Row[Any]) -> Company:
    return Company(
        row.id, row.name, row.external_id, bool(row.mhs_enabled), row.max_active_jobs,
        row.webhook_secrets is not None, row.created_at,
    )  # fmt: skip
