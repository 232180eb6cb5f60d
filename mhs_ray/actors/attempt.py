"""The actor of one attempt: detached, named, one GPU. It outlives the API and the dispatcher, and calls neither."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from dataclasses import replace

import ray

from mhs_ray.actors.node import open_node
from mhs_ray.attempt.order import AttemptOrder, Outcome
from mhs_ray.attempt.runner import AttemptRunner
from mhs_ray.domain.errors import MhsError
from mhs_ray.domain.failures import Failure, FailureCode

log = logging.getLogger(__name__)

_MEND = "nothing to do: it is tried again; `mhs doctor` on the node says more"


class Attempt:
    """Runs one attempt. The dispatcher asks `ready`, then `run` and `started`; one that came back asks again."""

    def __init__(self, key: tuple[int, int]) -> None:
        self._key = key
        self._runner: AttemptRunner | None = None
        self._stop_asked = False
        self._work: asyncio.Task[Outcome | None] | None = None
        self._started = asyncio.Event()

    async def ready(self) -> tuple[str, str]:
        """Return (Ray's id of the node, the name people know it by), once the actor is alive there."""
        node_id = ray.get_runtime_context().get_node_id()
        return node_id, f"{socket.gethostname()} ({node_id[:8]})"  # the id's start finds it in the dashboard

    async def run(self, order: AttemptOrder) -> Outcome | None:
        """Run the attempt and return how it ended; None when it was stopped before it began."""
        if self._work is None:
            self._work = asyncio.create_task(self._run(order))
        return await asyncio.shield(self._work)

    async def started(self) -> bool:
        """Return once the container's process runs (True), or once it is clear that it never will."""
        while not self._started.is_set():
            if self._work is not None and self._work.done():
                return self._started.is_set()
            watched = [asyncio.create_task(self._started.wait()), *([self._work] if self._work else [])]
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED, timeout=5)
            watched[0].cancel()
        return True

    async def stop(self) -> None:
        """End the attempt; `run` returns when its container is gone."""
        self._stop_asked = True
        if self._runner is not None:
            self._runner.stop()

    async def ended(self) -> None:
        """Return once the attempt's container is gone."""
        if self._work is not None:
            await asyncio.wait([self._work])

    async def _run(self, order: AttemptOrder) -> Outcome | None:
        loop = asyncio.get_running_loop()
        try:
            node = replace(await asyncio.to_thread(open_node), name=(await self.ready())[1])
            if self._stop_asked:
                return None
            gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
            self._runner = AttemptRunner(
                order,
                node,
                gpus=[str(g) for g in gpus] if node.engine.info().gpus else [],
                slot=[str(g) for g in gpus],
                on_started=lambda: _set(loop, self._started),
                echo=_echo,
            )
            return await asyncio.to_thread(self._runner.run)
        except Exception as error:
            log.exception("attempt %s of job %s could not begin", self._key[1], self._key[0])
            cause = str(error) if isinstance(error, MhsError) else type(error).__name__
            return Outcome(None, Failure(FailureCode.INTERNAL, f"the node could not begin: {cause}", _MEND), {})


def _set(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    loop.call_soon_threadsafe(event.set)


def _echo(text: str) -> None:
    """Put a log line into the worker's own output: the Ray dashboard shows it under this actor."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


AttemptActor = ray.remote(Attempt)
