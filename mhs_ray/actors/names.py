"""Names of our actors as people see them in the Ray dashboard, and how one that came back gets going."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from typing import Any, Final

import ray

NAMESPACE: Final = "mhs"
DISPATCHER: Final = "mhs dispatcher"
REGISTRAR: Final = "mhs registrar"
ON_HEAD: Final = {"node:__internal_head__": 0.001}
"""What an actor or task asks for that is to run on the head."""
_ATTEMPT: Final = re.compile(r"job (\d+) · attempt (\d+) · ")


def attempt_name(key: tuple[int, int], label: str) -> str:
    """Return ``job 42 · attempt 1 · scan 8946136 · My GPU Container``."""
    _, _, rest = label.partition(" · ")
    return f"job {key[0]} · attempt {key[1]} · {rest}"[:200]


def attempt_key(name: str) -> tuple[int, int] | None:
    """Return (job, attempt) of an attempt's actor name, None for another actor's."""
    match = _ATTEMPT.match(name)
    return (int(match[1]), int(match[2])) if match else None


def begin_soon(name: str) -> None:
    """Have the named actor, which is being made in this process, call its own `begin`: also after a restart by Ray."""

    def call() -> None:
        for _ in range(100):
            try:
                ray.get(ray.get_actor(name, NAMESPACE).begin.remote())
                return
            except (ValueError, ray.exceptions.RayActorError):
                time.sleep(0.1)

    threading.Thread(target=call, name="begin", daemon=True).start()


def start_on_head(actor_class: Any, name: str, *, max_concurrency: int) -> None:
    """Start one of the platform's own actors unless it is there: detached, on the head, restarted for ever."""
    actor = actor_class.options(
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_task_retries=-1,
        num_cpus=0,
        max_concurrency=max_concurrency,
        resources=ON_HEAD,
    ).remote()
    ray.get(actor.begin.remote())


def retire(name: str, within_s: float = 60.0) -> None:
    """End one of the platform's own actors, once it has done what it is in the middle of, so that a new one can start.

    Nothing happens if it is not there.
    """
    try:
        actor = ray.get_actor(name, NAMESPACE)
    except ValueError:
        return
    # One that can be ended at any moment, or is of a version that knew no better, has no `retire`.
    with contextlib.suppress(ray.exceptions.RayError, AttributeError):  # RayError: dead already, or stuck
        ray.get(actor.retire.remote(), timeout=within_s)
    ray.kill(actor)
    deadline = time.monotonic() + within_s
    while any(e["name"] == name for e in ray.util.list_named_actors(all_namespaces=True)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"Ray did not let go of the actor {name!r} within {within_s:.0f} s")
        time.sleep(0.1)
