"""One container on Docker from its creation to its end, read attached; and the adoption of one that is there."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from docker.errors import APIError

from mhs_ray.domain.errors import EngineError
from mhs_ray.engines import labels
from mhs_ray.engines.docker_args import create_args
from mhs_ray.engines.docker_attach import attach, kept, resume
from mhs_ray.engines.execfail import exec_failure
from mhs_ray.engines.process import last_words
from mhs_ray.ports import ContainerSpec, ContainerStatus, OnOutput

if TYPE_CHECKING:
    from mhs_ray.engines.docker import DockerEngine

log = logging.getLogger(__name__)

OnStarted = Callable[[ContainerStatus], None]

_CONFLICT: Final = 409
_SHORT: Final = 512


def run(engine: DockerEngine, spec: ContainerSpec, on_output: OnOutput, on_started: OnStarted) -> None:
    """See `DockerEngine.run`."""
    for _ in range(2):
        container_id = _create(engine, spec)
        if container_id is not None:
            _start(engine, spec, container_id, on_output, on_started)
            return
        if _adopt(engine, spec, on_output, on_started):
            return
        # What had the name was never started: its creator died half way. It is gone now.
    raise EngineError(engine.name, f"run container {spec.name}", "somebody else starts one of this name now")


def _create(engine: DockerEngine, spec: ContainerSpec) -> str | None:
    """Return the new container's id, None when the name is taken."""
    operation = f"create container {spec.name}"
    caps = engine.capabilities()
    image = engine.image(str(spec.image))
    if image is None:
        raise EngineError(engine.name, operation, f"image {spec.image} is not on this node; pull it first")
    volumes = ((image.get("Config") or {}).get("Volumes") or {}).keys()
    with engine.errors(operation, spec.env.values()), engine.client() as api:
        try:
            created: dict[str, Any] = api.create_container(**create_args(spec, caps, engine.api_version, volumes))
        except APIError as exc:
            if exc.status_code == _CONFLICT:
                return None
            raise
        return str(created["Id"])


def _start(
    engine: DockerEngine, spec: ContainerSpec, container_id: str, on_output: OnOutput, on_started: OnStarted
) -> None:
    operation = f"run container {spec.name}"
    attachment = attach(engine.host, engine.api_version, container_id)
    try:
        with engine.errors(operation, spec.env.values()), engine.client() as api:
            try:
                api.start(container_id)
            except APIError as exc:
                engine.remove(container_id)
                words = str(exc.explanation or exc).encode()
                failure = exec_failure(engine.name, operation, words, by_init=False)
                raise failure or EngineError(engine.name, operation, last_words(words, spec.env.values())) from None
        status = engine.inspect(container_id)
        if status is not None:
            on_started(status)
        first = bytearray()
        total = 0
        for stream, data in attachment.pieces():
            if len(first) < _SHORT:
                first += data[:_SHORT]
            total += len(data)
            on_output(stream, data)
    finally:
        attachment.close()
    status = _ended(engine, container_id)
    if status is not None and status.exit_code in (126, 127) and total == len(first) and engine.capabilities().init:
        failure = exec_failure(engine.name, operation, bytes(first), by_init=True)
        if failure is not None:
            raise failure


def _adopt(engine: DockerEngine, spec: ContainerSpec, on_output: OnOutput, on_started: OnStarted) -> bool:
    """Deliver the output of the container that is there to its end; False when it never ran and is removed now."""
    status = engine.inspect(spec.name)
    if status is None:
        return False
    if not labels.carried(spec.labels, status.labels):
        detail = "it carries other labels, so it is not ours; remove it by hand"
        raise EngineError(engine.name, f"adopt container {spec.name}", detail)
    if status.started_at is None:
        engine.remove(spec.name)
        return False
    log.info("container %s is there already and is adopted", spec.name)
    on_started(status)
    where = (engine.host, engine.api_version, status.id)
    if status.running:
        for stream, data in resume(*where):
            on_output(stream, data)
    else:
        with contextlib.closing(kept(*where)) as frames:
            for stream, data in frames.pieces():
                on_output(stream, data)
    _ended(engine, status.id)
    return True


def _ended(engine: DockerEngine, container_id: str) -> ContainerStatus | None:
    """Wait until the daemon knows the end of a container whose output ended; None when it was removed.

    Raises EngineError when the container lives on: then the daemon went away and its output is no longer read.
    """
    deadline = time.monotonic() + 15
    while True:
        status = engine.inspect(container_id)
        if status is None or not status.running:
            return status
        if time.monotonic() > deadline:
            # A program may close its output and go on; only the daemon can say when it ends.
            with engine.errors("wait for a container"), engine.client(timeout_s=7 * 24 * 3600) as api:
                api.wait(container_id)
            return engine.inspect(container_id)
        time.sleep(0.05)
