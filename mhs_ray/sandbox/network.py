"""The network namespace of one attempt: only ``lo``, and on it what our proxy listens to.

podman as root is given one that we made and mounted as a file, in a millisecond. Docker takes no such file, and a
rootless podman owns only the namespaces it made: there a container without any network (the *pause* container) holds
it. Either survives the process that opened it, and opening it again finds it.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future, wait
from pathlib import Path
from threading import Thread
from typing import Final, Protocol

from mhs_ray.domain.errors import SandboxError
from mhs_ray.ports import ContainerEngine, ContainerSpec, ContainerStatus, EngineInfo
from mhs_ray.sandbox.netns import make_namespace
from mhs_ray.sandbox.scratch import mounts_below, unmount_below

log = logging.getLogger(__name__)

_START_S: Final = 120


class Network(Protocol):
    """Where a model container's sockets live. joined: what `ContainerSpec.network` takes."""

    joined: str

    def path(self) -> Path:
        """Return the file that stands for the namespace, once it is there. Raises SandboxError, EngineError."""

    def close(self) -> None:
        """Remove it once the containers in it are gone; again: nothing happens. Raises EngineError, OSError."""


class MountedNetwork:
    """A namespace that a mounted file keeps alive. file: where. Raises SandboxError, OSError."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.joined = f"ns:{file}"
        if str(file) not in mounts_below(file):
            file.touch(mode=0o600)
            make_namespace(file)

    def path(self) -> Path:
        """See `Network`."""
        return self._file

    def close(self) -> None:
        """See `Network`."""
        unmount_below(self._file)
        self._file.unlink(missing_ok=True)


class PauseNetwork:
    """The namespace of a pause container, which a thread of ours starts, or adopts, and stays with."""

    def __init__(self, engine: ContainerEngine, spec: ContainerSpec) -> None:
        self._engine, self._spec = engine, spec
        self.joined = f"container:{spec.name}"
        self._started: Future[ContainerStatus] = Future()
        self._thread = Thread(target=self._run, name=f"mhs-pause-{spec.name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        started, name = self._started, self._spec.name
        try:
            self._engine.run(self._spec, lambda _stream, _data: None, started.set_result)
        except Exception as e:
            if started.done():
                log.warning("the pause container %s is out of sight: %s", name, e)
            else:
                started.set_exception(e)
        if not started.done():
            started.set_exception(SandboxError(f"the pause container {name} ended at once"))

    def path(self) -> Path:
        """See `Network`."""
        name = self._spec.name
        try:
            pid = self._started.result(_START_S).pid
        except TimeoutError as e:
            raise SandboxError(f"the pause container {name} did not start within {_START_S} s") from e
        if pid is None:
            raise SandboxError(f"the pause container {name} has no process; remove it and retry")
        return Path(f"/proc/{pid}/ns/net")

    def close(self) -> None:
        """See `Network`."""
        wait([self._started], _START_S)  # what is only just being started cannot be removed yet
        self._engine.remove(self._spec.name)
        self._thread.join(timeout=10)


def open_network(engine: ContainerEngine, info: EngineInfo, pause: ContainerSpec, file: Path) -> Network:
    """Return a new namespace, or the one an earlier process of the attempt left. file: for one that is mounted."""
    if info.joins_namespace:
        try:
            return MountedNetwork(file)
        except SandboxError as e:
            log.warning("%s; a pause container holds it instead", e)
    return PauseNetwork(engine, pause)
