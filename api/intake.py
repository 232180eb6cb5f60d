"""Group commit: submissions that come together are made durable by one transaction.

A durable commit costs a disk flush; sixteen callers that wait for one flush together are answered sixteen times
as fast, and what they have in common is looked up once. A faulty submission fails alone. Nothing is answered before
the commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from mhs_ray.domain.errors import MhsError, OverloadedError
from mhs_ray.store.sql.database import Database
from mhs_ray.store.sql.tasks import Submission, Submitted, Tasks

log = logging.getLogger(__name__)

_MAX_BATCH = 64
_MAX_WAITING = 2000
_BREATH_S = 0.05
_GATHER_S = 0.002

Waiting = tuple[Submission, "asyncio.Future[Submitted]"]


class Intake:
    """wake: called after each commit that added jobs; must not block.

    Commits run in a thread of their own: nothing that is slow elsewhere in the replica holds a submission up.
    """

    def __init__(self, db: Database, tasks: Tasks, wake: Callable[[], None]) -> None:
        self._db, self._tasks, self._wake = db, tasks, wake
        self._queue: asyncio.Queue[Waiting] = asyncio.Queue(_MAX_WAITING)
        self._worker: asyncio.Task[None] | None = None
        self._telling: asyncio.TimerHandle | None = None
        self._more = False  # was committed since the dispatcher was woken
        self._thread = ThreadPoolExecutor(1, "intake")

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

    async def close(self) -> None:
        """Commit what still waits, then take nothing more."""
        if self._worker is not None:
            await self._queue.join()
            self._worker.cancel()
        if self._telling is not None:
            self._telling.cancel()
            self._tell_again(asyncio.get_running_loop())
        await asyncio.to_thread(self._thread.shutdown)

    async def _run(self) -> None:
        busy = False
        while True:
            batch = [await self._queue.get()]
            if busy:  # more are on their way: a transaction of two costs hardly more than one of one
                await asyncio.sleep(_GATHER_S)
            with contextlib.suppress(asyncio.QueueEmpty):
                while len(batch) < _MAX_BATCH:
                    batch.append(self._queue.get_nowait())
            busy = len(batch) > 1
            loop = asyncio.get_running_loop()
            outcomes = await loop.run_in_executor(self._thread, self._commit, [s for s, _ in batch])
            for (_, done), outcome in zip(batch, outcomes, strict=True):
                if done.done():  # the caller went away; what was committed stays
                    pass
                elif isinstance(outcome, Exception):
                    done.set_exception(outcome)
                else:
                    done.set_result(outcome)
                self._queue.task_done()
            if any(isinstance(o, Submitted) and o.created for o in outcomes):
                self._tell(loop)

    def _tell(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wake the dispatcher now, or a moment after the last time."""
        if self._telling is None:
            self._telling = loop.call_later(_BREATH_S, self._tell_again, loop)
            try:
                self._wake()
            except Exception:  # the dispatcher looks at the queue by itself as well
                log.exception("the dispatcher could not be woken")
        else:
            self._more = True

    def _tell_again(self, loop: asyncio.AbstractEventLoop) -> None:
        self._telling = None
        if self._more:
            self._more = False
            self._tell(loop)

    def _commit(self, submissions: list[Submission]) -> list[Submitted | Exception]:
        try:
            with self._db.write() as conn:
                stored = self._tasks.submit_all(conn, submissions)
        except Exception:  # the transaction itself failed: nobody's submission is stored
            log.exception("%s submissions could not be stored", len(submissions))
            return [_not_stored() for _ in submissions]
        outcomes: list[Submitted | Exception] = []
        for outcome in stored:
            if isinstance(outcome, Exception) and not isinstance(outcome, MhsError):
                log.error("a submission could not be stored; the others of its batch are", exc_info=outcome)
                outcome = _not_stored()
            outcomes.append(outcome)
        return outcomes


def _not_stored() -> OverloadedError:
    return OverloadedError("the submission could not be stored and nothing of it is; send it again", retry_after_s=5)
