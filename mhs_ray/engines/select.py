"""Find the container engine of this node."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mhs_ray.domain.errors import EngineError
from mhs_ray.engines.docker import DEFAULT_HOST, DockerEngine
from mhs_ray.engines.podman import PodmanEngine

log = logging.getLogger(__name__)

Wanted = Literal["auto", "podman", "docker"]


def pick_engine(
    wanted: Wanted = "auto",
    *,
    docker_host: str | None = None,
    podman_args: Sequence[str] = (),
    folder: Path | None = None,
) -> PodmanEngine | DockerEngine:
    """Return an engine that was seen to start a container here; with ``auto`` podman is asked first.

    docker_host: the daemon's ``unix://`` address. podman_args: global arguments such as ``--root=…``. folder: for
    locks and remembered facts, shared by the processes of a node. Raises EngineError that tells how to get one.
    """
    reasons = []
    if wanted in ("auto", "podman"):
        try:
            return _podman(podman_args, folder)
        except EngineError as exc:
            if wanted == "podman":
                raise
            reasons.append(str(exc))
    try:
        return _docker(docker_host, folder)
    except EngineError as exc:
        if wanted == "docker":
            raise
        reasons.append(str(exc))
    raise EngineError("this node", "run containers", " — ".join(reasons))


def _podman(args: Sequence[str], folder: Path | None) -> PodmanEngine:
    if shutil.which("podman") is None:
        mend = "there is no program podman; on Debian or Ubuntu: apt-get install podman catatonit runc"
        raise EngineError("podman", "be used", mend)
    engine = PodmanEngine(args, folder=folder)
    engine.capabilities()
    return engine


def _docker(host: str | None, folder: Path | None) -> DockerEngine:
    engine = DockerEngine(host, folder=folder)
    try:
        engine.capabilities()
    except EngineError as exc:
        if exc.operation not in ("answer", "tell about itself"):
            raise
        mend = (
            f"{exc.detail}; start Docker (systemctl start docker), become a member of its group, "
            f"or install it: apt-get install docker.io catatonit. Its address is {host or DEFAULT_HOST}"
        )
        raise EngineError("docker", "be used", mend) from None
    return engine
