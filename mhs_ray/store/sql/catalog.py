"""Images, runnable containers, case algorithms and scans as rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from mhs_ray.domain.env import EnvVar
from mhs_ray.domain.errors import ConflictError, InvalidInputError, NotFoundError
from mhs_ray.domain.ids import OWN_IDS_FROM
from mhs_ray.domain.models import (
    Algorithm,
    Container,
    Image,
    ImageRef,
    ImageStatus,
    ImageVersion,
    Provider,
    Scan,
    ScanStatus,
)
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.database import Database
from mhs_ray.store.sql.scope import Page, Scoped


def _now() -> datetime:
    return datetime.now(UTC)


class Images:
    """Image definitions and their versions."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def create(self, company_id: int, name: str, by: str) -> Image:
        """Make a definition. Raises InvalidInputError when the name is taken."""
        with self._db.write() as conn:
            row_id = _insert(
                conn,
                t.images,
                {"company_id": company_id, "name": name, "status": ImageStatus.CREATED, "created_by": by},
                taken=("$.name", f"there is an image named {name!r} already"),
            )
            return self._load(Scoped(conn, company_id), row_id)

    def get(self, company_id: int, image_id: int) -> Image:
        """Return one. Raises NotFoundError."""
        with self._db.read() as conn:
            return self._load(Scoped(conn, company_id), image_id)

    def find(self, image_id: int) -> Image:
        """Return one of any company; for the platform's own work. Raises NotFoundError."""
        with self._db.read() as conn:
            row = conn.execute(sa.select(t.images.c.company_id).where(t.images.c.id == image_id)).first()
            if row is None:
                raise NotFoundError("image", image_id)
            return self._load(Scoped(conn, row.company_id), image_id)

    def page(
        self, company_id: int, *, cursor: str | None, limit: int, name: str | None, status: str | None
    ) -> Page[Image]:
        """Return a page, newest first."""
        filters = []
        if name:
            filters.append(t.images.c.name.icontains(name, autoescape=True))
        if status:
            filters.append(t.images.c.status == status)
        with self._db.read() as conn:
            scope = Scoped(conn, company_id)
            query = sa.select(t.images)
            return scope.page(query, t.images, filters=filters, cursor=cursor, limit=limit).map(
                lambda row: self._image(conn, row)
            )

    def rename(self, company_id: int, image_id: int, name: str) -> Image:
        """Give it another name. Raises InvalidInputError when that is taken."""
        with self._db.write() as conn:
            scope = Scoped(conn, company_id)
            scope.get(t.images, image_id, "image")
            _update(
                conn, t.images, image_id, {"name": name}, taken=("$.name", f"there is an image named {name!r} already")
            )
            return self._load(scope, image_id)

    def delete(self, company_id: int, image_id: int) -> None:
        """Remove a definition that no container uses. Raises ConflictError."""
        with self._db.write() as conn:
            scope = Scoped(conn, company_id)
            scope.get(t.images, image_id, "image")
            users = (
                conn.execute(sa.select(t.containers.c.name).where(t.containers.c.image_id == image_id)).scalars().all()
            )
            if users:
                raise ConflictError(f"image {image_id} is used by the runnable container(s) {', '.join(users[:5])}")
            conn.execute(sa.delete(t.images).where(t.images.c.id == image_id))

    def allow_push(self, company_id: int, image_id: int, until: datetime) -> None:
        """Note until when a push can arrive, so that the registry is asked."""
        with self._db.write() as conn:
            Scoped(conn, company_id).get(t.images, image_id, "image")
            conn.execute(sa.update(t.images).where(t.images.c.id == image_id).values(push_until=until))

    def awaiting_push(self, now: datetime) -> list[int]:
        """Return the definitions to which a push can still come, and those whose check was cut short."""
        with self._db.read() as conn:
            return list(
                conn.execute(
                    sa.select(t.images.c.id).where(
                        (t.images.c.push_until > now) | (t.images.c.status == ImageStatus.CHECKING)
                    )
                ).scalars()
            )

    def begin_check(self, image_id: int, digest: str) -> bool:
        """Note that a pushed manifest is being looked at; False when it was looked at before."""
        with self._db.write() as conn:
            done = conn.execute(
                sa.update(t.images)
                .where(
                    t.images.c.id == image_id,
                    t.images.c.seen_digest.is_distinct_from(digest) | (t.images.c.status == ImageStatus.CHECKING),
                )
                .values(seen_digest=digest, status=ImageStatus.CHECKING, failure_message="")
            )
            return bool(done.rowcount)

    def uploaded(
        self, image_id: int, checked_digest: str, ref: ImageRef, size_bytes: int, details: Mapping[str, Any]
    ) -> ImageVersion:
        """Record a promoted version and make it the current one."""
        with self._db.write() as conn:
            row = conn.execute(self._db.for_update(sa.select(t.images).where(t.images.c.id == image_id))).first()
            if row is None:
                raise NotFoundError("image", image_id)
            known = conn.execute(
                sa.select(t.image_versions)
                .where(t.image_versions.c.image_id == image_id, t.image_versions.c.digest == ref.digest)
                .order_by(t.image_versions.c.number.desc())
            ).first()
            if known is None:
                newest = conn.execute(
                    sa.select(sa.func.max(t.image_versions.c.number)).where(t.image_versions.c.image_id == image_id)
                ).scalar()
                version_id = _insert(
                    conn,
                    t.image_versions,
                    {
                        "company_id": row.company_id, "image_id": image_id, "number": (newest or 0) + 1,
                        "registry": ref.registry, "repository": ref.repository, "digest": ref.digest,
                        "size_bytes": size_bytes, "details": dict(details),
                    },
                )  # fmt: skip
            else:
                version_id = known.id
            conn.execute(
                sa.update(t.images)
                .where(t.images.c.id == image_id)
                .values(
                    current_version_id=version_id,
                    # A newer push that came meanwhile keeps the image in `checking`.
                    status=sa.case(
                        (t.images.c.seen_digest == checked_digest, ImageStatus.UPLOADED), else_=t.images.c.status
                    ),
                    failure_message="",
                )
            )
            return _version(conn.execute(sa.select(t.image_versions).where(t.image_versions.c.id == version_id)).one())

    def rejected(self, image_id: int, checked_digest: str, message: str) -> None:
        """Record why a push is not taken; the version that ran before stays current."""
        with self._db.write() as conn:
            conn.execute(
                sa.update(t.images)
                .where(t.images.c.id == image_id, t.images.c.seen_digest == checked_digest)
                .values(status=ImageStatus.FAILED, failure_message=message)
            )

    def versions(self, company_id: int, image_id: int) -> list[ImageVersion]:
        """Return all versions, newest first."""
        with self._db.read() as conn:
            Scoped(conn, company_id).get(t.images, image_id, "image")
            rows = conn.execute(
                sa.select(t.image_versions)
                .where(t.image_versions.c.image_id == image_id)
                .order_by(t.image_versions.c.number.desc())
            )
            return [_version(row) for row in rows]

    def reference(self, version_id: int) -> tuple[ImageRef, Mapping[str, Any]]:
        """Return what to pull for a version, and its details."""
        with self._db.read() as conn:
            row = conn.execute(sa.select(t.image_versions).where(t.image_versions.c.id == version_id)).one()
            return ImageRef(row.registry, row.repository, row.digest), row.details

    def _load(self, scope: Scoped, image_id: int) -> Image:
        return self._image(scope.conn, scope.get(t.images, image_id, "image"))

    @staticmethod
    def _image(conn: sa.Connection, row: sa.Row[Any]) -> Image:
        current = None
        if row.current_version_id is not None:
            current = _version(
                conn.execute(sa.select(t.image_versions).where(t.image_versions.c.id == row.current_version_id)).one()
            )
        return Image(
            row.id, row.company_id, row.name, ImageStatus(row.status), row.failure_message,
            row.created_by, row.created_at, row.updated_at, current,
        )  # fmt: skip


def _version(row: sa.Row[Any]) -> ImageVersion:
    return ImageVersion(row.id, row.image_id, row.number, row.digest, row.size_bytes, row.details, row.created_at)


class Containers:
    """Runnable containers."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def create(self, company_id: int, by: str, values: Mapping[str, Any], env: Sequence[EnvVar]) -> Container:
        """Make one on an uploaded image. Raises InvalidInputError."""
        with self._db.write() as conn:
            scope = Scoped(conn, company_id)
            _uploaded_image(scope, values["image_id"])
            row_id = _insert(
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
                _update(conn, t.containers, container_id, changed)
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
            _update(conn, t.containers, container_id, {"deleted_at": _now()})

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
            row_id = _insert(
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
                _update(conn, t.algorithms, algorithm_id, values, taken=taken)
            return self._load(scope, algorithm_id)

    def delete(self, company_id: int, algorithm_id: int) -> None:
        """Hide one; its tasks still name it."""
        with self._db.write() as conn:
            Scoped(conn, company_id).get(t.algorithms, algorithm_id, "case algorithm")
            _update(conn, t.algorithms, algorithm_id, {"deleted_at": _now()})

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
            _update(conn, t.scans, scan_id, values)

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
    row_id = _insert(
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


def _insert(
    conn: sa.Connection, table: sa.Table, values: Mapping[str, Any], taken: tuple[str, str] | None = None
) -> int:
    try:
        key = conn.execute(sa.insert(table).values(**values)).inserted_primary_key
    except IntegrityError as error:
        if taken is None or "unique" not in str(error.orig).lower():
            raise
        raise InvalidInputError.at(*taken) from None
    assert key is not None
    return int(key[0])


def _update(
    conn: sa.Connection,
    table: sa.Table,
    row_id: int,
    values: Mapping[str, Any],
    taken: tuple[str, str] | None = None,
) -> None:
    try:
        conn.execute(sa.update(table).where(table.c.id == row_id).values(**values))
    except IntegrityError as error:
        if taken is None or "unique" not in str(error.orig).lower():
            raise
        raise InvalidInputError.at(*taken) from None
