"""Who leads: of several dispatchers on one database one works, and the others stand by."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from mhs_ray.store.sql.database import Database

_KEY: Final = 7238450


def is_led(db: Database) -> bool:
    """Say whether any process holds the right to dispatch now."""
    if not db.is_sqlite:
        held = sa.text(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = :key AND granted "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        with db.read() as conn:
            return bool(conn.execute(held, {"key": _KEY}).scalar())
    try:
        fd = os.open(f"{db.engine.url.database}.lead", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


class Lead:
    """The right to dispatch, held by at most one process; it ends with the process, or with its connection."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._conn: sa.Connection | None = None
        self._fd: int | None = None

    def take(self) -> bool:
        """Return whether it is ours now; asks anew if it was not, or if the connection is gone."""
        return self._take_file() if self._db.is_sqlite else self._take_lock()

    def release(self) -> None:
        """Leave it to another."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        if self._conn is not None:
            with suppress(SQLAlchemyError):
                self._conn.invalidate()  # the lock is the session's: it ends with it
                self._conn.close()
            self._conn = None

    def _take_file(self) -> bool:
        if self._fd is not None:
            return True
        fd = os.open(f"{self._db.engine.url.database}.lead", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._fd = fd
        return True

    def _take_lock(self) -> bool:
        try:
            if self._conn is not None:
                self._conn.execute(sa.text("SELECT 1"))
                return True
            conn = self._db.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        except SQLAlchemyError:
            self.release()
            return False
        try:
            if conn.execute(sa.text("SELECT pg_try_advisory_lock(:key)"), {"key": _KEY}).scalar():
                self._conn = conn
                return True
        except SQLAlchemyError:
            conn.invalidate()
        conn.close()
        return False
