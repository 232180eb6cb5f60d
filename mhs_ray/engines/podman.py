"""podman by its command line, as root or rootless, from version 4.3 on."""

from __future__ import annotations

import base64
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from mhs_ray.domain.errors import EngineError
from mhs_ray.domain.models import ImageRef
from mhs_ray.engines import capabilities, podman_run, process
from mhs_ray.engines.capabilities import Capabilities
from mhs_ray.engines.containers_conf import without_sysctls
from mhs_ray.engines.envfile import client_environment, write_private
from mhs_ray.engines.oom import kernel_log_names
from mhs_ray.engines.podman_probe import probe
from mhs_ray.engines.pulling import PULL_TIMEOUT_S, free_bytes, given_up, one_pull, spool
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

_REMOVE_TRIES = 8


class PodmanEngine(ContainerEngine):
    """Containers by ``podman``; `args` are global arguments such as ``--root=…`` for a storage of its own."""

    name = "podman"

    def __init__(self, args: Sequence[str] = (), *, folder: Path | None = None) -> None:
        self.args = tuple(args)
        self.folder = capabilities.private_folder(folder)
        self._disk = folder
        self._lock = threading.Lock()
        self._capabilities: Capabilities | None = None
        self._oom_killed: set[str] = set()

    @property
    def base(self) -> list[str]:
        """How every command line of this engine begins."""
        return ["podman", *self.args, "--log-level=error"]

    def environment(self, spec: ContainerSpec, extra: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of the client that runs `spec`, with `extra` in it. Raises EngineError."""
        environment = client_environment(extra)
        if spec.network is not None and spec.network.startswith("ns:"):
            environment["CONTAINERS_CONF"] = str(without_sysctls(self.folder, environment))
        return environment

    def call(self, operation: str, *args: str, timeout_s: float = 120.0, stdin: bytes | None = None) -> str:
        """Run ``podman args`` and return its stdout. Raises EngineError."""
        return process.call(
            self.name, operation, [*self.base, *args], timeout_s=timeout_s, stdin=stdin, env=client_environment()
        )

    def capabilities(self) -> Capabilities:
        """Return what this node can do; tried once per boot and remembered."""
        with self._lock:
            if self._capabilities is None:
                facts = json.loads(self.call("tell about itself", "info", "--format", "json"))
                key = (self.name, self.args, facts["version"]["Version"], facts["host"].get("ociRuntime"))
                self._capabilities = capabilities.remembered(self.folder, key, lambda: probe(self, facts))
            return self._capabilities

    def info(self) -> EngineInfo:
        """Ask podman what it is and what it cannot enforce here."""
        return self.capabilities().info(self.name)

    def pull(
        self, image: ImageRef, credential: RegistryCredential | None, cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        """Make `image` present, verified by digest; plain HTTP only if the credential says so."""
        if self._has(image):
            return
        with one_pull(self.folder, self.name, image, cancelled):
            if self._has(image):
                return
            with spool(self._disk, image) as folder:
                authfile = folder / "auth.json"
                # An empty file too: podman would else send what a person of this node once logged in with.
                auths = (
                    auth_entries(image.registry, credential.username, credential.password)
                    if credential
                    else {"auths": {}}
                )
                write_private(authfile, json.dumps(auths))
                tls = credential is None or credential.tls
                args = ["pull", "--quiet", f"--authfile={authfile}", f"--tls-verify={str(tls).lower()}", str(image)]
                result = process.until(
                    self.name,
                    f"pull {image}",
                    [*self.base, *args],
                    cancelled,
                    timeout_s=PULL_TIMEOUT_S,
                    env=client_environment({"TMPDIR": str(folder)}),
                )
                if result is None:
                    raise given_up(self.name, image)
                if result.returncode:
                    secrets = [credential.password] if credential else []
                    words = process.last_words(result.stderr or result.stdout, secrets)
                    raise EngineError(self.name, f"pull {image}", words)
            if not self._has(image):
                raise EngineError(self.name, f"pull {image}", "what came does not have this digest")

    def _has(self, image: ImageRef) -> bool:
        result = process.attempt(
            self.name, f"look for {image}", [*self.base, "image", "inspect", str(image)], env=client_environment()
        )
        if result.returncode:
            return False
        # podman's own .Digest may differ from the registry's; RepoDigests has both.
        found = json.loads(result.stdout)
        return any(str(d).endswith(f"@{image.digest}") for i in found for d in i.get("RepoDigests") or ())

    def run(self, spec: ContainerSpec, on_output: OnOutput, on_started: Callable[[ContainerStatus], None]) -> None:
        """Run `spec` in its sandbox to its end; adopt the container if it is there already (see ports).

        Raises ExecError when the image's program cannot be executed. An adopted container's output is what the
        log driver kept (the last 10 MB) and all that follows; what the predecessor handed over comes again.
        """
        podman_run.run(self, spec, on_output, on_started)

    def note_oom(self, container_id: str) -> None:
        """Remember that the kernel killed this container, or a process of it, for its memory limit."""
        self._oom_killed.add(container_id)

    def inspect(self, name: str) -> ContainerStatus | None:
        """Return the container of this name, None when there is none.

        One whose monitor was killed is not running and has no exit code: nobody will ever know it.
        """
        facts = self.inspect_raw(name)
        if facts is not None and _is_lost(facts):
            facts = self.inspect_raw(name)  # it may just have ended as it should
        if facts is None:
            return None
        status = self.status(facts)
        return replace(status, running=False, pid=None) if _is_lost(facts) else status

    def inspect_raw(self, name: str) -> dict[str, Any] | None:
        """Return podman's own description of a container, None when there is none."""
        operation = f"inspect container {name}"
        result = process.attempt(
            self.name, operation, [*self.base, "container", "inspect", name], env=client_environment()
        )
        if result.returncode == 0:
            found: list[dict[str, Any]] = json.loads(result.stdout)
            # An id's beginning would match as well.
            return next((f for f in found if f["Name"] == name or f["Id"] == name), None)
        if b"no such container" in result.stderr.lower() or b"no such object" in result.stderr.lower():
            return None
        raise EngineError(self.name, operation, process.last_words(result.stderr))

    def status(self, facts: Mapping[str, Any]) -> ContainerStatus:
        """Return podman's description as the port's value."""
        state = facts["State"]
        running = state["Status"] in {"running", "paused", "stopping"}
        ended = state["Status"] in {"exited", "stopped", "removing"}
        container_id = str(facts["Id"])
        oom = bool(state.get("OOMKilled")) or container_id in self._oom_killed
        return ContainerStatus(
            id=container_id,
            name=str(facts["Name"]),
            running=running,
            exit_code=int(state["ExitCode"]) if ended else None,
            oom_killed=oom or (ended and state["ExitCode"] != 0 and kernel_log_names(container_id)),
            pid=int(state["Pid"]) or None if running else None,
            labels=dict(facts["Config"].get("Labels") or {}),
            started_at=moment(state.get("StartedAt")),
        )

    def stop(self, name: str, grace_s: float) -> None:
        """TERM, then KILL after `grace_s`."""
        grace = max(0, math.ceil(grace_s))
        result = process.attempt(
            self.name,
            f"stop container {name}",
            [*self.base, "stop", "--ignore", "--time", str(grace), name],
            timeout_s=grace + 60,
            env=client_environment(),
        )
        if result.returncode:
            status = self.inspect(name)
            if status is not None and status.running:
                raise EngineError(self.name, f"stop container {name}", process.last_words(result.stderr))

    def remove(self, name: str) -> None:
        """Kill and remove with its anonymous volumes; returns once nothing of it is left."""
        words = b""
        for again in range(_REMOVE_TRIES):
            result = process.attempt(
                self.name,
                f"remove container {name}",
                [*self.base, "rm", "--force", "--ignore", "--volumes", "--time", "0", name],
                env=client_environment(),
            )
            # conmon's own clean-up may run at the same time and hold the shm mount for a moment.
            if result.returncode == 0:
                return
            words = result.stderr
            time.sleep(0.1 * (again + 1))
        raise EngineError(self.name, f"remove container {name}", process.last_words(words))

    def containers(self, label: str) -> list[ContainerStatus]:
        """Return all containers, also ended ones, that carry `label` (``key`` or ``key=value``)."""
        ids = self.call("list containers", "ps", "--all", "--quiet", "--no-trunc", "--filter", f"label={label}").split()
        if not ids:
            return []
        result = process.attempt(
            self.name, "inspect containers", [*self.base, "container", "inspect", *ids], env=client_environment()
        )
        if result.returncode:  # one of them went away meanwhile
            return [status for container_id in ids if (status := self.inspect(container_id)) is not None]
        return [self.status(facts) for facts in json.loads(result.stdout)]

    def storage(self) -> EngineStorage:
        """Say how much images take, and what is left where podman keeps them.

        podman's own sum counts a layer as often as images share it, so its list of layers is read.
        """
        operation = "tell how full it is"
        store = json.loads(self.call(operation, "info", "--format", "json"))["store"]
        folder = Path(store["graphRoot"])
        try:
            text = (folder / f"{store['graphDriverName']}-layers" / "layers.json").read_text()
            used = sum(int(layer.get("diff-size") or 0) for layer in json.loads(text))
        except FileNotFoundError:
            used = 0  # nothing was ever pulled
        except (OSError, ValueError, AttributeError) as exc:
            raise EngineError(self.name, operation, f"its list of layers cannot be read ({exc})") from None
        return EngineStorage(used, free_bytes(self.name, folder))

    def remove_image(self, image: ImageRef) -> bool:
        """Forget `image`, and its layers unless another image has them; False if a container uses it."""
        operation = f"remove {image}"
        result = process.attempt(self.name, operation, [*self.base, "rmi", str(image)], env=client_environment())
        if result.returncode == 0 or b"image not known" in result.stderr:
            return True
        if b"in use" in result.stderr or b"used by" in result.stderr:
            return False
        raise EngineError(self.name, operation, process.last_words(result.stderr))


def _is_lost(facts: Mapping[str, Any]) -> bool:
    """Say whether podman believes a container to run whose process and monitor are both gone.

    conmon turns into podman's clean-up process at the end, so it is there until the exit code is written down.
    """
    state = facts["State"]
    pids = (state.get("Pid"), state.get("ConmonPid"))
    return state["Status"] == "running" and not any(pid and Path(f"/proc/{pid}").exists() for pid in pids)


def moment(text: object) -> datetime | None:
    """Return an engine's timestamp, None for its year 1, which means never."""
    if not isinstance(text, str) or text.startswith("0001-"):
        return None
    return datetime.fromisoformat(text)


def auth_entries(registry: str, username: str, password: str) -> dict[str, Any]:
    """Return the content of an auth file for one registry."""
    token = base64.b64encode(f"{username}:{password}".encode()).decode()
    return {"auths": {registry: {"auth": token}}}
