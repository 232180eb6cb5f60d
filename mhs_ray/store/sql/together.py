"""Group commit: changes that several threads want at the same time are made durable by one transaction.

A durable commit costs a disk flush and four round trips, however little it holds. Nobody is answered before it is done.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

import sqlalchemy as sa

from mhs_ray.domain.errors import MhsError
from mhs_ray.store.sql.database import Database

T = TypeVar("T")
_MAX: Final = 64


@dataclass(eq=False)
class _Wanted:
    key: int
    work: Callable[[sa.Connection], Any]
    value: Any = None
    error: BaseException | None = None
    done: bool = False


class Together:
    """`run` from any thread. While one transaction is under way, what comes meanwhile waits and goes into the next."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._adding, self._leading = threading.Lock(), threading.Lock()
        self._queue: list[_Wanted] = []

    def run(self, key: int, work: Callable[[sa.Connection], T]) -> T:
        """Do `work` in a transaction and return what it does, once that is committed.

        key: what is locked; transactions lock in its order, so that two processes cannot wait for each other.
        work: raises MhsError only before it changed anything, for others may be in its transaction. Any other error
        undoes it for all of them, and each hears of it.
        """
        wanted = _Wanted(key, work)
        with self._adding:
            self._queue.append(wanted)
        with self._leading:
            while not wanted.done:
                self._commit()
        if wanted.error is not None:
            raise wanted.error
        return cast(T, wanted.value)

    def _commit(self) -> None:
        with self._adding:
            batch, self._queue = self._queue[:_MAX], self._queue[_MAX:]
        try:
            with self._db.write() as conn:
                for wanted in sorted(batch, key=lambda w: w.key):
                    try:
                        wanted.value = wanted.work(conn)
                    except MhsError as error:
                        wanted.error = error
        except BaseException as error:
            for wanted in batch:
                wanted.error = error
        for wanted in batch:
            wanted.done = True
