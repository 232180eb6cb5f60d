"""The databases that the store is held to its contract on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from mhs_ray.store.sql.database import Database
from mhs_ray.store.sql.tables import metadata
from tests.pg_fixtures import Postgres, postgres, why_no_postgres
from tests.store_fixtures import World, sqlite_db, vault


@pytest.fixture(scope="session")
def pg() -> Iterator[Postgres]:
    if reason := why_no_postgres():
        pytest.skip(reason)
    with postgres() as server:
        yield server


@pytest.fixture(scope="session")
def pg_migrated(pg: Postgres) -> str:
    url = pg.url(pg.create())
    db = Database(url, vault())
    db.migrate()
    db.close()
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A migrated database, empty; each kind in turn."""
    if request.param == "sqlite":
        with sqlite_db(tmp_path) as found:
            yield found
        return
    found = Database(request.getfixturevalue("pg_migrated"), vault())
    with found.write() as conn:  # much faster than a database of its own
        tables = ", ".join(table.name for table in metadata.sorted_tables)
        # The audit refuses to be emptied; only a superuser of a test may look away.
        conn.execute(sa.text("SET LOCAL session_replication_role = replica"))
        conn.execute(sa.text(f"TRUNCATE {tables} RESTART IDENTITY CASCADE"))
    yield found
    found.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def bare_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without any table; each kind in turn."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/bare.db"
        return
    server: Postgres = request.getfixturevalue("pg")
    name = server.create()
    yield server.url(name)
    server.drop(name)


@pytest.fixture
def world(db: Database) -> World:
    return World(db)
