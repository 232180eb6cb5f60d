"""The migrations make what the tables say, on both databases."""

from __future__ import annotations

import sqlite3
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from mhs_ray.domain.models import Principal, Role
from mhs_ray.store.sql.audit import Audit
from mhs_ray.store.sql.companies import Companies
from mhs_ray.store.sql.database import Database
from mhs_ray.store.sql.tables import metadata
from tests.store_fixtures import World, vault


def test_the_migrated_schema_is_what_the_tables_say(db: Database) -> None:
    with db.read() as conn:
        assert compare_metadata(MigrationContext.configure(conn), metadata) == []


def test_every_table_index_is_there_with_its_condition(db: Database) -> None:
    with db.read() as conn:
        found = {(i["name"], bool(i["unique"])) for i in sa.inspect(conn).get_indexes("algorithms")}
        assert ("uq_algorithms_name_alive", True) in found
        conditions = {
            i["name"]: str(i.get("dialect_options", {}).get(f"{conn.dialect.name}_where"))
            for i in sa.inspect(conn).get_indexes("jobs")
        }
    assert "queued" in conditions["ix_jobs_queue"]
    assert "preparing" in conditions["ix_jobs_active"]


def test_the_schema_goes_down_to_nothing_and_up_again(bare_url: str) -> None:
    db = Database(bare_url, vault())
    db.migrate()
    db.downgrade("base")
    with db.read() as conn:
        assert set(sa.inspect(conn).get_table_names()) <= {"alembic_version"}
    db.migrate()
    db.migrate()  # nothing is left to do
    with db.read() as conn:
        assert set(metadata.tables) <= set(sa.inspect(conn).get_table_names())
    db.close()


def test_several_processes_that_start_at_once_migrate_once(bare_url: str) -> None:
    errors: list[BaseException] = []

    def start() -> None:
        db = Database(bare_url, vault())
        try:
            db.migrate()
        except BaseException as error:
            errors.append(error)
        finally:
            db.close()

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_new_sqlite_file_that_another_process_writes_to_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "new.db"
    other = sqlite3.connect(file, check_same_thread=False)
    other.execute("CREATE TABLE a (b)")  # in a rollback journal yet
    other.commit()
    other.execute("BEGIN IMMEDIATE")
    ending = threading.Timer(0.5, other.commit)
    ending.start()
    db = Database(f"sqlite:///{file}", vault())
    with db.read() as conn:
        assert conn.execute(sa.text("PRAGMA journal_mode")).scalar_one() == "wal"
    ending.join()
    db.close()
    other.close()


def test_no_line_of_the_audit_can_be_changed_or_removed(db: Database) -> None:
    company = World(db).company()
    who = Principal(company, "ann", Role.LAB_ADMIN, "mhs-1")
    Audit(db).note(who, "create image", "/v1/images/1")
    for statement in ("UPDATE audit SET who = 'eve'", "DELETE FROM audit"):
        with pytest.raises(sa.exc.DBAPIError, match="append-only"), db.write() as conn:
            conn.execute(sa.text(statement))
    (entry,) = Audit(db).page(company, cursor=None, limit=10).items
    assert (entry.who, entry.action) == ("ann", "create image")


def test_a_signed_call_is_taken_once_and_forgotten_when_it_is_too_old_anyway(db: Database) -> None:
    companies, now, hour = Companies(db), datetime.now(UTC), timedelta(hours=1)
    assert companies.take_call("s", now, now - hour)
    assert not companies.take_call("s", now, now - hour)
    assert companies.take_call("s", now + 2 * hour, now + hour)
