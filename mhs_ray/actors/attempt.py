"""The actor of one attempt: detached, named, one GPU. It outlives the API and the dispatcher."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Coroutine
from typing import Any

import ray

from mhs_ray.actors.names import DISPATCHER, NAMESPACE
from mhs_ray.actors.node import open_node
from mhs_ray.attempt.order import AttemptOrder, Outcome
from mhs_ray.attempt.runner import AttemptRunner
from mhs_ray.domain.errors import MhsError
from mhs_ray.domain.failures import Failure, FailureCode

log = logging.getLogger(__name__)

_DISPATCHER_BACK_S = 600.0
_MEND = "nothing to do: it is tried again; `mhs doctor` on the node says more"


async def tell_dispatcher(method: str, *args: Any) -> Any:
    """Call the dispatcher and wait for its answer, through its restarts."""
    deadline = time.monotonic() + _DISPATCHER_BACK_S
    pause = 0.1
    while True:
        try:
            dispatcher = await asyncio.to_thread(ray.get_actor, DISPATCHER, NAMESPACE)
            return await getattr(dispatcher, method).remote(*args)
        except (ray.exceptions.RayActorError, ValueError):  # ValueError: not there yet
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, 5.0)


class Attempt:
    """Runs one attempt; `run` may be called again by a dispatcher that came back, and gives the same outcome."""

    def __init__(self, key: tuple[int, int]) -> None:
        self._key = key
        self._runner: AttemptRunner | None = None
        self._stop_asked = False
        self._work: asyncio.Task[Outcome | None] | None = None

    async def run(self) -> Outcome | None:
        """Return how the attempt ended; None when it was not wanted any more."""
        if self._work is None:
            self._work = asyncio.create_task(self._run())
        return await asyncio.shield(self._work)

    async def stop(self) -> None:
        """End the attempt; `run` returns when its container is gone."""
        self._stop_asked = True
        if self._runner is not None:
            self._runner.stop()

    async def _run(self) -> Outcome | None:
        loop = asyncio.get_running_loop()
        try:
            node = await asyncio.to_thread(open_node)
            order: AttemptOrder | None = await tell_dispatcher("order", self._key, node.name)
            if order is None or self._stop_asked:
                return None
            gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
            self._runner = AttemptRunner(
                order,
                node,
                gpus=[str(g) for g in gpus] if node.engine.info().gpus else [],
                on_started=lambda: _later(loop, tell_dispatcher("started", self._key)),
                echo=_echo,
            )
            return await asyncio.to_thread(self._runner.run)
        except Exception as error:
            log.exception("attempt %s of job %s could not begin", self._key[1], self._key[0])
            cause = str(error) if isinstance(error, MhsError) else type(error).__name__
            return Outcome(None, Failure(FailureCode.INTERNAL, f"the node could not begin: {cause}", _MEND), {})


def _later(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any]) -> None:
    asyncio.run_coroutine_threadsafe(work, loop)


def _echo(text: str) -> None:
    """Put a log line into the worker's own output: the Ray dashboard shows it under this actor."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


AttemptActor = ray.remote(Attempt)
