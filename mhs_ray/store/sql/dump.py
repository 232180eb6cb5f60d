"""A consistent copy of the whole database while it is in use, and back again."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from datetime import datetime
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from mhs_ray.domain.errors import ConflictError, MhsError
from mhs_ray.results.outbox import DeliveryState
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.database import Database


class DumpError(MhsError):
    """The database could not be copied; the message says what to do."""


def dump(url: str, file: Path) -> str:
    """Copy the database to `file`; returns its kind, ``sqlite`` or ``postgresql``."""
    where = make_url(url)
    if where.get_backend_name() == "sqlite":
        with (
            closing(sqlite3.connect(f"file:{where.database}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(file)) as copy,
        ):
            source.backup(copy)  # all in one step: one moment, and in WAL mode no writer waits for a reader
            copy.execute("PRAGMA journal_mode=DELETE")
            (state,) = copy.execute("PRAGMA integrity_check").fetchone()
        if state != "ok":
            raise DumpError(f"the copy of {where.database} is damaged: {state}")
        return "sqlite"
    _run("pg_dump", where, "--format=custom", "--no-owner", "--no-privileges", f"--file={file}")
    return "postgresql"


def load(url: str, file: Path) -> None:
    """Fill an empty database from `file`. Raises ConflictError when there is one already."""
    where = make_url(url)
    if where.get_backend_name() == "sqlite":
        target = Path(str(where.database))
        if target.exists():
            raise ConflictError(f"there is a database at {target} already; restore into an empty home")
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        shutil.copyfile(file, part)
        part.chmod(0o600)
        part.replace(target)
        return
    engine = sa.create_engine(where.set(drivername="postgresql+psycopg"), hide_parameters=True)
    try:
        if sa.inspect(engine).get_table_names():
            raise ConflictError("the PostgreSQL database is not empty; restore into a new one")
    finally:
        engine.dispose()
    _run("pg_restore", where, "--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction", str(file))


def doubt_deliveries(db: Database, taken_at: datetime) -> int:
    """Have Techcyte asked before anything of a restored outbox is sent: it may have been, after the copy was taken.

    Returns how many deliveries that concerns.
    """
    d = t.deliveries.c
    with db.write() as conn:
        changed = conn.execute(
            sa.update(t.deliveries)
            .where(d.state.in_((DeliveryState.PENDING, DeliveryState.SENDING)))
            .values(
                state=DeliveryState.UNKNOWN, looks=0, sent_at=sa.func.coalesce(d.sent_at, taken_at),
                detail="restored from a backup; Techcyte is asked whether it was stored",
            )
        )  # fmt: skip
        return int(changed.rowcount)


def _run(program: str, where: URL, *options: str) -> None:
    found = shutil.which(program) or _newest(program)
    if found is None:
        raise DumpError(f"there is no {program} here: apt-get install postgresql-client")
    database = [f"--dbname={where.database}"] if program == "pg_restore" else []
    done = subprocess.run(
        [found, *options[:-1], *database, options[-1]], env={**os.environ, **_environment(where)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise DumpError(f"{program} failed: {done.stderr.strip()[-2000:]}")


def _environment(where: URL) -> dict[str, str]:
    """Return what PostgreSQL's programs read: a password must not be on a command line."""
    known = {
        "PGHOST": where.host or where.query.get("host"), "PGPORT": where.port or where.query.get("port"),
        "PGUSER": where.username, "PGPASSWORD": where.password, "PGDATABASE": where.database,
        "PGSSLMODE": where.query.get("sslmode"), "PGSSLROOTCERT": where.query.get("sslrootcert"),
    }  # fmt: skip
    return {name: str(value) for name, value in known.items() if value}


def _newest(program: str) -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"), key=lambda p: float(p.parts[4]))
    return str(found[-1]) if found else None
