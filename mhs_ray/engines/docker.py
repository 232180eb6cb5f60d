"""Docker by its API, from version 20.10 on."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from docker.api.client import APIClient
from docker.errors import APIError, DockerException, NotFound

from mhs_ray.domain.errors import EngineError
from mhs_ray.domain.models import ImageRef
from mhs_ray.engines import capabilities, docker_pull, docker_run
from mhs_ray.engines.capabilities import Capabilities
from mhs_ray.engines.docker_probe import probe
from mhs_ray.engines.podman import moment
from mhs_ray.engines.process import last_words
from mhs_ray.engines.pulling import free_bytes, one_pull
from mhs_ray.ports import (
    ContainerEngine,
    ContainerSpec,
    ContainerStatus,
    EngineInfo,
    EngineStorage,
    OnOutput,
    RegistryCredential,
)

log = logging.getLogger(__name__)

DEFAULT_HOST = "unix:///var/run/docker.sock"
_API_VERSION = "1.41"  # of Docker 20.10; newer daemons still speak it
_OLDEST_KNOWN = (1, 41)
_REMOVE_TIMEOUT_S = 30.0


class DockerEngine(ContainerEngine):
    """Containers by the Docker daemon at `host`, which must be on this node."""

    name = "docker"

    def __init__(self, host: str | None = None, *, folder: Path | None = None) -> None:
        self.host = host or DEFAULT_HOST
        self.folder = capabilities.private_folder(folder)
        self._lock = threading.Lock()
        self._version: str | None = None
        self._capabilities: Capabilities | None = None

    @property
    def api_version(self) -> str:
        """The API version spoken: 1.41, or the oldest that a future daemon still takes."""
        if self._version is None:
            with self.errors("answer"):
                api = APIClient(base_url=self.host, version=_API_VERSION, timeout=30)
                try:
                    oldest = str(api.version(api_version=False).get("MinAPIVersion", _API_VERSION))
                finally:
                    api.close()
            newer = tuple(map(int, oldest.split("."))) > _OLDEST_KNOWN
            self._version = oldest if newer else _API_VERSION
        return self._version

    @contextmanager
    def client(self, timeout_s: float = 120.0) -> Iterator[APIClient]:
        """Yield a client for one thread; the SDK's sessions are not made for several."""
        api = APIClient(base_url=self.host, version=self.api_version, timeout=int(timeout_s))
        try:
            yield api
        finally:
            api.close()

    @contextmanager
    def errors(self, operation: str, secrets: Iterable[str] = ()) -> Iterator[None]:
        """Turn what the SDK raises into EngineError, `secrets` blotted out."""
        try:
            yield
        except APIError as exc:
            words = str(exc.explanation or exc)
            raise EngineError(self.name, operation, last_words(words.encode(), secrets)) from None
        except (DockerException, requests.RequestException) as exc:
            words = last_words(str(exc).encode(), secrets)
            raise EngineError(
                self.name, operation, f"the daemon at {self.host} does not answer ({words[:300]})"
            ) from None

    def capabilities(self) -> Capabilities:
        """Return what this node can do; tried once per boot and remembered."""
        with self._lock:
            if self._capabilities is None:
                with self.errors("tell about itself"), self.client() as api:
                    facts = api.info()
                key = (self.name, self.host, facts["ID"], facts["ServerVersion"], facts.get("SecurityOptions"))
                self._capabilities = capabilities.remembered(self.folder, key, lambda: probe(self, facts))
            return self._capabilities

    def info(self) -> EngineInfo:
        """Ask the daemon what it is and what it cannot enforce here."""
        return self.capabilities().info(self.name)

    def image(self, reference: str) -> dict[str, Any] | None:
        """Return the daemon's description of an image, None when it is not there."""
        with self.errors(f"look for {reference}"), self.client() as api:
            try:
                facts: dict[str, Any] = api.inspect_image(reference)  # type: ignore[no-untyped-call]
            except NotFound:
                return None
            return facts

    def pull(
        self, image: ImageRef, credential: RegistryCredential | None, cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        """Make `image` present, verified by digest. Plain HTTP is the daemon's decision: loopback and its own list."""
        if self._has(image):
            return
        with one_pull(self.folder, self.name, image, cancelled):
            if self._has(image):
                return
            docker_pull.pull(self.host, self.api_version, image, credential, cancelled)
            if not self._has(image):
                raise EngineError(self.name, f"pull {image}", "what came does not have this digest")

    def _has(self, image: ImageRef) -> bool:
        facts = self.image(str(image))
        return facts is not None and any(str(d).endswith(f"@{image.digest}") for d in facts.get("RepoDigests") or ())

    def run(self, spec: ContainerSpec, on_output: OnOutput, on_started: Callable[[ContainerStatus], None]) -> None:
        """Run `spec` in its sandbox to its end; adopt the container if it is there already (see ports).

        Raises ExecError when the image's program cannot be executed. An adopted container's output is what the
        log driver kept (the last 10 MB) and all that follows; what the predecessor handed over comes again.
        """
        docker_run.run(self, spec, on_output, on_started)

    def inspect(self, name: str) -> ContainerStatus | None:
        """Return the container of this name, None when there is none."""
        with self.errors(f"inspect container {name}"), self.client() as api:
            return self._inspect(api, name)

    def _inspect(self, api: APIClient, name: str) -> ContainerStatus | None:
        try:
            facts = api.inspect_container(name)
        except NotFound:
            return None
        # An id's beginning would match as well.
        return status(facts) if facts["Name"] == f"/{name}" or facts["Id"] == name else None

    def stop(self, name: str, grace_s: float) -> None:
        """TERM, then KILL after `grace_s`."""
        grace = max(0, math.ceil(grace_s))
        with self.errors(f"stop container {name}"), self.client(grace + 60) as api:
            try:
                api.stop(name, timeout=grace)
            except NotFound:
                return

    def remove(self, name: str) -> None:
        """Kill and remove with its anonymous volumes; returns once nothing of it is left."""
        with self.errors(f"remove container {name}"), self.client() as api:
            try:
                api.remove_container(name, force=True, v=True)
            except NotFound:
                return
            except APIError as exc:
                if exc.status_code != requests.codes.conflict:
                    raise
                # Somebody else is removing it; be done when they are.
                deadline = time.monotonic() + _REMOVE_TIMEOUT_S
                while self._inspect(api, name) is not None:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)

    def containers(self, label: str) -> list[ContainerStatus]:
        """Return all containers, also ended ones, that carry `label` (``key`` or ``key=value``)."""
        with self.errors("list containers"), self.client() as api:
            found = api.containers(all=True, filters={"label": label})
            return [s for facts in found if (s := self._inspect(api, facts["Id"])) is not None]

    def storage(self) -> EngineStorage:
        """Say how much images take, and what is left where the daemon keeps them."""
        with self.errors("tell how full it is"), self.client() as api:
            used = int(api.df().get("LayersSize") or 0)
            folder = str(api.info()["DockerRootDir"])
        return EngineStorage(used, free_bytes(self.name, Path(folder)))

    def remove_image(self, image: ImageRef) -> bool:
        """Forget `image`, and its layers unless another image has them; False if a container uses it."""
        with self.errors(f"remove {image}"), self.client() as api:
            try:
                api.remove_image(str(image))
            except NotFound:
                return True
            except APIError as exc:
                if exc.status_code == requests.codes.conflict:
                    return False
                raise
            return True


def status(facts: Mapping[str, Any]) -> ContainerStatus:
    """Return Docker's description of a container as the port's value."""
    state = facts["State"]
    running = bool(state["Running"])
    ended = state["Status"] in {"exited", "dead", "removing"}
    return ContainerStatus(
        id=str(facts["Id"]),
        name=str(facts["Name"]).removeprefix("/"),
        running=running,
        exit_code=int(state["ExitCode"]) if ended else None,
        oom_killed=bool(state["OOMKilled"]),
        pid=int(state["Pid"]) or None if running else None,
        labels=dict(facts["Config"].get("Labels") or {}),
        started_at=moment(state.get("StartedAt")),
    )
