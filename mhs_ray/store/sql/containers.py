"""Runnable containers and case algorithms as rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from mhs_ray.domain.env import EnvVar
from mhs_ray.domain.errors import ConflictError, InvalidInputError, NotFoundError
from mhs_ray.domain.models import Algorithm, Container, Provider
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.database import Database
from mhs_ray.store.sql.rows import insert_row, update_row
from mhs_ray.store.sql.scope import Page, Scoped


def _now() -> datetime:
    return datetime.now(UTC)


class Containers:
    """Runnable containers."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def create(self, company_id: int, by: str, values: Mapping[str, Any], env: Sequence[EnvVar]) -> Container:
        """Make one on an uploaded image. Raises InvalidInputError."""
        with self._db.write() as conn:
            scope = Scoped(conn, company_id)
            _uploaded_image(scope, values["image_id"])
            row_id = insert_row(
                conn, t.containers, {**values, "company_id": company_id, "created_by": by, "env": self._seal(env)}
            )
            return self._load(scope, row_id)

    def get(self, company_id: int, container_id: int) -> Container:
        """Return one. Raises NotFoundError."""
        with self._db.read() as conn:
            return self._load(Scoped(conn, company_id), container_id)

    def page(
        self, company_id: int, *, cursor: str | None, limit: int, name: str | None, image_id: int | None
    ) -> Page[Container]:
        """Return a page, newest first."""
        filters = []
        if name:
            filters.append(t.containers.c.name.icontains(name, autoescape=True))
        if image_id is not None:
            filters.append(t.containers.c.image_id == image_id)
        with self._db.read() as conn:
            scope = Scoped(conn, company_id)
            return scope.page(self._query(), t.containers, filters=filters, cursor=cursor, limit=limit).map(
                self._container
            )

    def update(
        self, company_id: int, container_id: int, values: Mapping[str, Any], env: Sequence[EnvVar] | None
    ) -> Container:
        """Change fields; queued and running jobs keep what they were made with."""
        with self._db.write() as conn:
            scope = Scoped(conn, company_id)
            scope.get(t.containers, container_id, "runnable container")
            if "image_id" in values:
                _uploaded_image(scope, values["image_id"])
            changed = {**values, **({"env": self._seal(env)} if env is not None else {})}
            if changed:
                update_row(conn, t.containers, container_id, changed)
            return self._load(scope, container_id)

    def delete(self, company_id: int, container_id: int) -> None:
        """Hide one that no case algorithm uses; jobs that ran it still name it. Raises ConflictError."""
        with self._db.write() as conn:
            scope = Scoped(conn, company_id)
            scope.get(t.containers, container_id, "runnable container")
            users = conn.execute(
                sa.select(t.algorithms.c.name).where(
                    t.algorithms.c.container_id == container_id, t.algorithms.c.deleted_at.is_(None)
                )
            )
            if names := users.scalars().all():
                raise ConflictError(
                    f"runnable container {container_id} is used by the case algorithm(s) {', '.join(names[:5])}; "
                    "give them another container first"
                )
            update_row(conn, t.containers, container_id, {"deleted_at": _now()})

    def _seal(self, env: Sequence[EnvVar]) -> bytes:
        return self._db.vault.seal([[v.name, v.value, v.secret] for v in env])

    def _load(self, scope: Scoped, container_id: int) -> Container:
        scope.get(t.containers, container_id, "runnable container")
        return self._container(scope.conn.execute(self._query().where(t.containers.c.id == container_id)).one())

    @staticmethod
    def _query() -> sa.Select[Any]:
        return sa.select(t.containers, t.images.c.name.label("image_name")).join_from(
            t.containers, t.images, t.containers.c.image_id == t.images.c.id
        )

    def _container(self, row: sa.Row[Any]) -> Container:
        return Container(
            id=row.id, company_id=row.company_id, name=row.name, image_id=row.image_id, image_name=row.image_name,
            instance_type=row.instance_type, env=open_env(self._db, row.env), time_limit_s=row.time_limit_s,
            created_by=row.created_by, created_at=row.created_at, updated_at=row.updated_at,
            retry_exit_codes=tuple(row.retry_exit_codes), max_model_retries=row.max_model_retries,
        )  # fmt: skip


def open_env(db: Database, sealed: bytes) -> tuple[EnvVar, ...]:
    """Return the variables that `Containers` sealed."""
    return tuple(EnvVar(name, value, secret) for name, value, secret in db.vault.open(sealed))


def _uploaded_image(scope: Scoped, image_id: int) -> None:
    row = scope.conn.execute(sa.select(t.images).where(scope.where(t.images), t.images.c.id == image_id)).first()
    if row is None:
        raise InvalidInputError.at("$.image_id", f"there is no image {image_id}")
    if row.current_version_id is None:
        raise InvalidInputError.at(
            "$.image_id",
            f"image {image_id} ({row.name}) is not uploaded yet: its status is {row.status!r}; push it first",
        )


class Algorithms:
    """Case algorithms."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def create(self, company_id: int, by: str, name: str, provider: Provider, container_id: int | None) -> Algorithm:
        """Make one. Raises InvalidInputError."""
        with self._db.write() as conn:
            scope = Scoped(conn, company_id)
            self._container_exists(scope, container_id)
            row_id = insert_row(
                conn,
                t.algorithms,
                {
                    "company_id": company_id, "name": name, "provider": provider,
                    "container_id": container_id, "created_by": by,
                },
                taken=("$.name", f"there is a case algorithm named {name!r} already"),
            )  # fmt: skip
            return self._load(scope, row_id)

    def get(self, company_id: int, algorithm_id: int) -> Algorithm:
        """Return one. Raises NotFoundError."""
        with self._db.read() as conn:
            return self._load(Scoped(conn, company_id), algorithm_id)

    def page(self, company_id: int, *, cursor: str | None, limit: int, name: str | None) -> Page[Algorithm]:
        """Return a page, newest first."""
        filters = [t.algorithms.c.name.icontains(name, autoescape=True)] if name else []
        with self._db.read() as conn:
            scope = Scoped(conn, company_id)
            return scope.page(self._query(), t.algorithms, filters=filters, cursor=cursor, limit=limit).map(_algorithm)

    def update(self, company_id: int, algorithm_id: int, values: Mapping[str, Any]) -> Algorithm:
        """Change fields. Raises InvalidInputError."""
        with self._db.write() as conn:
            scope = Scoped(conn, company_id)
            scope.get(t.algorithms, algorithm_id, "case algorithm")
            if "container_id" in values:
                self._container_exists(scope, values["container_id"])
            if values:
                taken = ("$.name", f"there is a case algorithm named {values.get('name')!r} already")
                update_row(conn, t.algorithms, algorithm_id, values, taken=taken)
            return self._load(scope, algorithm_id)

    def delete(self, company_id: int, algorithm_id: int) -> None:
        """Hide one; its tasks still name it."""
        with self._db.write() as conn:
            Scoped(conn, company_id).get(t.algorithms, algorithm_id, "case algorithm")
            update_row(conn, t.algorithms, algorithm_id, {"deleted_at": _now()})

    @staticmethod
    def _container_exists(scope: Scoped, container_id: int | None) -> None:
        if container_id is None:
            return
        try:
            scope.get(t.containers, container_id, "runnable container")
        except NotFoundError as error:
            raise InvalidInputError.at("$.container_id", str(error)) from None

    def _load(self, scope: Scoped, algorithm_id: int) -> Algorithm:
        scope.get(t.algorithms, algorithm_id, "case algorithm")
        return _algorithm(scope.conn.execute(self._query().where(t.algorithms.c.id == algorithm_id)).one())

    @staticmethod
    def _query() -> sa.Select[Any]:
        return sa.select(t.algorithms, t.containers.c.name.label("container_name")).join_from(
            t.algorithms, t.containers, t.algorithms.c.container_id == t.containers.c.id, isouter=True
        )


def _algorithm(row: sa.Row[Any]) -> Algorithm:
    return Algorithm(
        row.id, row.company_id, row.name, Provider(row.provider), row.container_id, row.container_name,
        row.created_by, row.created_at, row.updated_at,
    )  # fmt: skip
