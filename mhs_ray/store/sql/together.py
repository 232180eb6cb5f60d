"""Group commit: changes that several threads want at the same time are made durable by one transaction.

A durable commit costs a disk flush and four round trips, however little it holds. Nobody is answered before it is done.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

import sqlalchemy as sa

from mhs_ray.domain.errors import MhsError
from mhs_ray.store.sql.database import Database

W = TypeVar("W")
R = TypeVar("R")
_MAX: Final = 64


class _Waiting(Generic[W, R]):
    """One caller. told: its outcome is there, or it is its turn to commit for all who wait."""

    def __init__(self, wanted: W) -> None:
        self.wanted = wanted
        self.told = threading.Event()
        self.outcome: R | BaseException | None = None
        self.done = False


class Together(Generic[W, R]):
    """`run` from any thread. While one transaction is under way, what comes meanwhile waits and goes into the next.

    apply: makes all changes of a transaction and returns for each what `run` returns, or raises if it is an MhsError.
    Any error that it raises undoes the transaction, and each of those in it hears of it.
    """

    def __init__(self, db: Database, apply: Callable[[sa.Connection, Sequence[W]], Sequence[R | MhsError]]) -> None:
        self._db, self._apply = db, apply
        self._lock = threading.Lock()
        self._queue: list[_Waiting[W, R]] = []
        self._led = False

    def run(self, wanted: W) -> R:
        """Have `wanted` applied and return its outcome once that is committed."""
        mine: _Waiting[W, R] = _Waiting(wanted)
        with self._lock:
            self._queue.append(mine)
            leads, self._led = not self._led, True
        if not leads:
            mine.told.wait()
        while not mine.done:  # so it leads
            self._commit(mine)
        if isinstance(mine.outcome, BaseException):
            raise mine.outcome
        return mine.outcome  # type: ignore[return-value]  # done, so it is there

    def _commit(self, leader: _Waiting[W, R]) -> None:
        with self._lock:
            batch, self._queue = self._queue[:_MAX], self._queue[_MAX:]
        outcomes: Sequence[R | BaseException]
        try:
            with self._db.write() as conn:
                outcomes = self._apply(conn, [each.wanted for each in batch])
        except BaseException as error:
            outcomes = [error] * len(batch)
        for each, outcome in zip(batch, outcomes, strict=True):
            each.outcome, each.done = outcome, True
        with self._lock:
            if leader.done:
                self._led = bool(self._queue)
                if self._queue:
                    self._queue[0].told.set()
        for each in batch:
            each.told.set()
