"""The connection: pragmas and locking that make SQLite and PostgreSQL keep the same promises."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.engine import make_url

from mhs_ray.store.sql.secrets import Vault

_MIGRATIONS = Path(__file__).parent / "migrations"
_POOL: Final[dict[str, Any]] = {"pool_size": 10, "max_overflow": 40}  # a replica has 40 threads for requests


_BUSY_S: Final = 30
"""How long a writer waits for another process's transaction on SQLite."""

CHANNEL: Final = "mhs_wake"


class Lock(IntEnum):
    """What only one transaction at a time may do; the numbers are PostgreSQL's advisory lock keys."""

    MIGRATE = 7238401
    CLAIM = 7238402
    SUBMIT = 7238403  # tasks and the scans they bring; one lock, so that batches cannot deadlock
    CLIENTS = 7238404
    DELIVER = 7238410


class Database:
    """One database and the vault that seals its secret columns. Safe to share between threads."""

    def __init__(self, url: str, vault: Vault) -> None:
        self.vault = vault
        self.is_sqlite = make_url(url).get_backend_name() == "sqlite"
        if self.is_sqlite:
            Path(make_url(url).database or "").parent.mkdir(parents=True, exist_ok=True)
            self.engine = sa.create_engine(
                url, connect_args={"timeout": _BUSY_S, "check_same_thread": False}, **_POOL, hide_parameters=True
            )
            sa.event.listen(self.engine, "connect", _sqlite_connect)
            sa.event.listen(self.engine, "begin", _sqlite_begin)
        else:
            url = str(make_url(url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False))
            self.engine = sa.create_engine(
                url, pool_pre_ping=True, connect_args={"connect_timeout": 5}, **_POOL, hide_parameters=True
            )

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One transaction that may write; on SQLite it takes the write lock at once, so it cannot fail half way."""
        with self.engine.connect() as conn:
            conn = conn.execution_options(mhs_write=True)
            with conn.begin():
                yield conn

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """One consistent look."""
        with self.engine.connect() as conn, conn.begin():
            yield conn

    def for_update(
        self, query: sa.Select[tuple[object, ...]], *, skip_locked: bool = False
    ) -> sa.Select[tuple[object, ...]]:
        """Lock the rows on PostgreSQL; SQLite's writer is alone anyway."""
        return query if self.is_sqlite else query.with_for_update(skip_locked=skip_locked)

    def lock(self, conn: sa.Connection, what: Lock) -> None:
        """Wait until no other transaction holds `what`, then hold it to this one's end; SQLite's writer is alone."""
        if not self.is_sqlite:
            conn.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": int(what)})

    def notify(self, conn: sa.Connection) -> None:
        """Wake whoever listens (`listen.Listener`) once this transaction is committed; SQLite has no such thing."""
        if not self.is_sqlite:
            conn.execute(sa.text(f"NOTIFY {CHANNEL}"))

    def migrate(self, revision: str = "head") -> None:
        """Bring the schema to `revision`."""
        with self.write() as conn:
            self.lock(conn, Lock.MIGRATE)  # two replicas that start at once
            config = self.alembic_config()
            config.attributes["connection"] = conn
            command.upgrade(config, revision)

    def downgrade(self, revision: str) -> None:
        """Take the schema back to `revision`."""
        with self.write() as conn:
            config = self.alembic_config()
            config.attributes["connection"] = conn
            command.downgrade(config, revision)

    @staticmethod
    def alembic_config() -> Config:
        """Alembic's configuration, without an ini file."""
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        return config

    def close(self) -> None:
        """Give back all connections."""
        self.engine.dispose()


def _sqlite_connect(connection: object, _record: object) -> None:
    connection.isolation_level = None  # type: ignore[attr-defined]  # we say BEGIN ourselves
    cursor = connection.cursor()  # type: ignore[attr-defined]
    _use_wal(cursor)
    for pragma in (
        "synchronous=FULL",  # a 2xx is a promise, also over a power cut
        "foreign_keys=ON",
        "temp_store=MEMORY",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _use_wal(cursor: sqlite3.Cursor) -> None:
    """Switch a database to its write-ahead log; of several processes that open a new one at once each waits its turn.

    SQLite does not wait here by itself: who reads and wants to write while another does so is refused at once.
    """
    deadline = time.monotonic() + _BUSY_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _sqlite_begin(conn: sa.Connection) -> None:
    conn.exec_driver_sql("BEGIN IMMEDIATE" if conn.get_execution_options().get("mhs_write") else "BEGIN")
