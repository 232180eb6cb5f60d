"""Image definitions and their versions as rows."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from mhs_ray.domain.errors import ConflictError, NotFoundError
from mhs_ray.domain.models import Image, ImageRef, ImageStatus, ImageVersion
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.database import Database
from mhs_ray.store.sql.rows import insert_row, update_row
from mhs_ray.store.sql.scope import Page, Scoped


class Images:
    """Image definitions and their versions."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def create(self, company_id: int, name: str, by: str) -> Image:
        """Make a definition. Raises InvalidInputError when the name is taken."""
        with self._db.write() as conn:
            row_id = insert_row(
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
            update_row(
                conn, t.images, image_id, {"name": name}, taken=("$.name", f"there is an image named {name!r} already")
            )
            return self._load(scope, image_id)

    def delete(self, company_id: int, image_id: int) -> None:
        """Remove a definition that no container uses and no job ran. Raises ConflictError."""
        with self._db.write() as conn:
            scope = Scoped(conn, company_id)
            scope.get(t.images, image_id, "image")
            mine = t.containers.c.image_id == image_id
            users = conn.execute(sa.select(t.containers.c.name).where(mine, t.containers.c.deleted_at.is_(None)))
            if names := users.scalars().all():
                raise ConflictError(f"image {image_id} is used by the runnable container(s) {', '.join(names[:5])}")
            hidden = sa.select(t.containers.c.id).where(mine)
            versions = sa.select(t.image_versions.c.id).where(t.image_versions.c.image_id == image_id)
            ran = t.jobs.c.container_id.in_(hidden) | t.jobs.c.image_version_id.in_(versions)
            if conn.execute(sa.select(t.jobs.c.id).where(ran).limit(1)).first():
                raise ConflictError(f"image {image_id} has jobs; what they ran is kept, so that they can be rerun")
            # Deleted containers are only hidden; these never ran, so nothing remembers them.
            conn.execute(
                sa.update(t.algorithms).where(t.algorithms.c.container_id.in_(hidden)).values(container_id=None)
            )
            conn.execute(sa.delete(t.containers).where(mine))
            conn.execute(sa.delete(t.images).where(t.images.c.id == image_id))

    def owned(self, image_id: int, company_id: int) -> bool:
        """Say whether there still is such a definition of that company."""
        with self._db.read() as conn:
            found = Scoped(conn, company_id)
            return (
                conn.execute(sa.select(t.images.c.id).where(found.where(t.images), t.images.c.id == image_id)).first()
                is not None
            )

    def allow_push(self, company_id: int, image_id: int, until: datetime) -> None:
        """Note until when a push can arrive, so that the registry is asked."""
        with self._db.write() as conn:
            Scoped(conn, company_id).get(t.images, image_id, "image")
            conn.execute(
                sa.update(t.images)
                .where(t.images.c.id == image_id)
                .values(push_until=until, updated_at=t.images.c.updated_at)  # looking at instructions changes no image
            )

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
                version_id = insert_row(
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
                    failure_message=sa.case(
                        (t.images.c.seen_digest == checked_digest, ""), else_=t.images.c.failure_message
                    ),
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

    def note_unfound(self, image_id: int, message: str) -> None:
        """Say on an image that nothing was found for yet why that may be; the next push that is found takes it away."""
        with self._db.write() as conn:
            conn.execute(
                sa.update(t.images)
                .where(t.images.c.id == image_id, t.images.c.status == ImageStatus.CREATED)
                .values(failure_message=message)
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
