"""Wake-ups from PostgreSQL: what one process commits, another hears of at once, whoever told it or not."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

import psycopg
import sqlalchemy as sa

from mhs_ray.store.sql.database import CHANNEL, Database

log = logging.getLogger(__name__)

_AGAIN_S: Final = 2.0
_LOOK_S: Final = 5.0  # how soon `close` is noticed


class Listener(threading.Thread):
    """Calls `wake` for every NOTIFY, and once after each (re)connection: what was said meanwhile is not repeated."""

    def __init__(self, db: Database, wake: Callable[[], None]) -> None:
        super().__init__(name="listener", daemon=True)
        self._url, self._wake = db.engine.url, wake
        self._closing = threading.Event()

    def run(self) -> None:
        """Listen until `close`."""
        while not self._closing.is_set():
            try:
                self._listen()
            except psycopg.Error as error:
                log.warning("listening to the database broke off (%s); it is tried again", type(error).__name__)
                self._closing.wait(_AGAIN_S)

    def _listen(self) -> None:
        arguments = _arguments(self._url)
        with psycopg.connect(**arguments, autocommit=True) as conn:  # type: ignore[arg-type]
            conn.execute(f"LISTEN {CHANNEL}")
            self._wake()
            while not self._closing.is_set():
                for _ in conn.notifies(timeout=_LOOK_S, stop_after=1):
                    self._wake()

    def close(self) -> None:
        """Stop listening; returns at once."""
        self._closing.set()


def listen(db: Database, wake: Callable[[], None]) -> Listener | None:
    """Start a listener; None on SQLite, where the only other processes are on this machine and call us."""
    if db.is_sqlite:
        return None
    listener = Listener(db, wake)
    listener.start()
    return listener


def _arguments(url: sa.URL) -> dict[str, object]:
    known = url.translate_connect_args(username="user", database="dbname")
    return {**dict(url.query), **known}
