"""Inserting and changing one row; a value that must be unique and is taken is the caller's fault."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from mhs_ray.domain.errors import InvalidInputError


def insert_row(
    conn: sa.Connection, table: sa.Table, values: Mapping[str, Any], taken: tuple[str, str] | None = None
) -> int:
    """Insert a row and return its id. taken: the fault's path and message when a unique value exists already."""
    try:
        key = conn.execute(sa.insert(table).values(**values)).inserted_primary_key
    except IntegrityError as error:
        if taken is None or "unique" not in str(error.orig).lower():
            raise
        raise InvalidInputError.at(*taken) from None
    assert key is not None
    return int(key[0])


def update_row(
    conn: sa.Connection,
    table: sa.Table,
    row_id: int,
    values: Mapping[str, Any],
    taken: tuple[str, str] | None = None,
) -> None:
    """Set `values` of one row. taken: as for `insert_row`."""
    try:
        conn.execute(sa.update(table).where(table.c.id == row_id).values(**values))
    except IntegrityError as error:
        if taken is None or "unique" not in str(error.orig).lower():
            raise
        raise InvalidInputError.at(*taken) from None
