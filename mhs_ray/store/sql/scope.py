"""The one place where rows are filtered by company, and where lists are cut into pages."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import sqlalchemy as sa

from mhs_ray.domain.errors import InvalidInputError, NotFoundError

T = TypeVar("T")
MAX_PAGE = 500


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A piece of a list, newest first. next_cursor: give it back for the next piece; None at the end."""

    items: list[T]
    next_cursor: str | None

    def map(self, convert: Callable[[T], Any]) -> Page[Any]:
        """The same page of converted items."""
        return Page([convert(i) for i in self.items], self.next_cursor)


def _encode(row_id: int) -> str:
    return base64.urlsafe_b64encode(f"v1:{row_id}".encode()).decode().rstrip("=")


def _decode(cursor: str) -> int:
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
        version, _, number = text.partition(":")
        if version != "v1" or not number.isdigit() or len(number) > 18:
            raise ValueError
        return int(number)
    except (binascii.Error, ValueError):
        raise InvalidInputError.at("$.cursor", "not a cursor of this list; leave it out to start anew") from None


@dataclass(frozen=True, slots=True)
class Scoped:
    """A connection that sees the rows of one company only."""

    conn: sa.Connection
    company_id: int

    def where(self, table: sa.Table) -> sa.ColumnElement[bool]:
        """The filter itself."""
        mine: sa.ColumnElement[bool] = table.c.company_id == self.company_id
        return mine & table.c.deleted_at.is_(None) if "deleted_at" in table.c else mine

    def get(self, table: sa.Table, row_id: int, kind: str) -> sa.Row[Any]:
        """Return the row. Raises NotFoundError, also for a row of another company."""
        row = self.conn.execute(sa.select(table).where(self.where(table), table.c.id == row_id)).first()
        if row is None:
            raise NotFoundError(kind, row_id)
        return row

    def page(
        self,
        query: sa.Select[Any],
        table: sa.Table,
        *,
        filters: Sequence[sa.ColumnElement[bool]] = (),
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[sa.Row[Any]]:
        """Return rows of `query` (which selects from `table`), newest first, after `cursor`."""
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidInputError.at("$.limit", f"{limit} is not within 1 to {MAX_PAGE}")
        query = query.where(self.where(table), *filters).order_by(table.c.id.desc()).limit(limit + 1)
        if cursor:
            query = query.where(table.c.id < _decode(cursor))
        rows = list(self.conn.execute(query))
        more = len(rows) > limit
        rows = rows[:limit]
        return Page(rows, _encode(rows[-1].id) if more else None)
