"""Group commit: submissions that come together are made durable by one transaction.

A durable commit costs a disk flush; sixteen callers that wait for one flush together are answered sixteen times
as fast. Each submission has its own savepoint, so a faulty one fails alone. Nothing is answered before the commit.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from mhs_ray.domain.errors import MhsError, OverloadedError
from mhs_ray.store.sql.database import Database
from mhs_ray.store.sql.tasks import Submission, Submitted, Tasks

_MAX_BATCH = 64
_MAX_WAITING = 2000

Waiting = tuple[Submission, "asyncio.Future[Submitted]"]


class Intake:
    """wake: called after each commit that added jobs; must not block."""

    def __init__(self, db: Database, tasks: Tasks, wake: Callable[[], None]) -> None:
        self._db, self._tasks, self._wake = db, tasks, wake
        self._queue: asyncio.Queue[Waiting] = asyncio.Queue(_MAX_WAITING)
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, submission: Submission) -> Submitted:
        """Return once the submission is committed. Raises what `Tasks.submit` does, and OverloadedError."""
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._run())
        done: asyncio.Future[Submitted] = asyncio.get_running_loop().create_future()
        try:
            self._queue.put_nowait((submission, done))
        except asyncio.QueueFull:
            raise OverloadedError("too many submissions are waiting to be stored", retry_after_s=5) from None
        return await done

    async def _run(self) -> None:
        while True:
            batch = [await self._queue.get()]
            with contextlib.suppress(asyncio.QueueEmpty):
                while len(batch) < _MAX_BATCH:
                    batch.append(self._queue.get_nowait())
            outcomes = await asyncio.to_thread(self._commit, [s for s, _ in batch])
            for (_, done), outcome in zip(batch, outcomes, strict=True):
                if done.cancelled():  # the caller went away; what was committed stays
                    continue
                if isinstance(outcome, Exception):
                    done.set_exception(outcome)
                else:
                    done.set_result(outcome)
            if any(isinstance(o, Submitted) and o.created for o in outcomes):
                self._wake()

    def _commit(self, submissions: list[Submission]) -> list[Submitted | Exception]:
        outcomes: list[Submitted | Exception] = []
        try:
            with self._db.write() as conn:
                for submission in submissions:
                    try:
                        with conn.begin_nested():
                            outcomes.append(self._tasks.submit_in(conn, submission))
                    except MhsError as error:
                        outcomes.append(error)
        except Exception as error:  # the transaction itself failed: nobody's submission is stored
            return [error] * len(submissions)
        return outcomes
