"""Find out, by starting a container, how Docker must be asked on this node."""

from __future__ import annotations

import logging
import os
import resource
from itertools import product
from typing import TYPE_CHECKING, Any

from docker.errors import APIError

from mhs_ray.domain.errors import EngineError
from mhs_ray.engines.capabilities import (
    DEFAULT_OPEN_FILES,
    PLAIN_USER,
    Capabilities,
    missing_gpus,
    missing_limits,
    nvidia_gpus,
    own_hard_limit,
)
from mhs_ray.engines.docker_args import create_args
from mhs_ray.engines.pause import ensure_pause_image, probe_spec
from mhs_ray.engines.process import last_words

if TYPE_CHECKING:
    from mhs_ray.engines.docker import DockerEngine

log = logging.getLogger(__name__)


def probe(engine: DockerEngine, facts: dict[str, Any]) -> Capabilities:
    """Return the safest combination of runtime, limit of open files and init that starts a container here.

    facts: the daemon's info. Raises EngineError when none does.
    """
    image = ensure_pause_image(engine)
    default = str(facts.get("DefaultRuntime") or "runc")
    others = [name for name in ("runc", "crun") if name != default and name in (facts.get("Runtimes") or {})]
    own = own_hard_limit(resource.RLIMIT_NOFILE) or DEFAULT_OPEN_FILES
    # The daemon's own limits bound a container's, and they cannot be asked for.
    files: list[int | None] = [*dict.fromkeys((DEFAULT_OPEN_FILES, min(own, DEFAULT_OPEN_FILES), 4096)), None]
    words = ""
    for runtime, open_files, init in product([None, *others], files, [True, False]):
        caps = _capabilities(facts, default, runtime, open_files=open_files, init=init)
        words = _try(engine, caps, image)
        if not words:
            log.info("Docker on this node: runtime %s, open files %s, init %s", caps.runtime_name, open_files, init)
            return caps
        log.info("Docker with %s, open files %s cannot start a container: %s", caps.runtime_name, open_files, words)
    raise EngineError(engine.name, "start a container on this node in any way tried", words)


def _try(engine: DockerEngine, caps: Capabilities, image: str) -> str:
    spec = probe_spec(image)
    with engine.errors("try a container"), engine.client() as api:
        created = api.create_container(**create_args(spec, caps, engine.api_version, ()))
        try:
            api.start(created["Id"])
            code = api.wait(created["Id"], timeout=60)["StatusCode"]
        except APIError as exc:
            return last_words(str(exc.explanation or exc).encode())
        finally:
            api.remove_container(created["Id"], force=True, v=True)
    return "" if code == 0 else f"it ended with exit code {code}"


def _capabilities(
    facts: dict[str, Any], default: str, runtime: str | None, *, open_files: int | None, init: bool
) -> Capabilities:
    security = [str(option) for option in facts.get("SecurityOptions") or ()]
    rootless = any("name=rootless" in option for option in security)
    remapped = any("name=userns" in option for option in security)
    # Rootless Docker is a user namespace as a whole; a remapping one gives its containers theirs.
    namespace = rootless or remapped
    flags = {"memory": "MemoryLimit", "cpu": "CpuCfsQuota", "pids": "PidsLimit"}
    limits = tuple(name for name, flag in flags.items() if facts.get(flag, True))
    user = None if namespace else PLAIN_USER
    owner = (PLAIN_USER, PLAIN_USER)
    if rootless:
        owner = (os.getuid(), os.getgid())
    elif remapped:
        uid, _, gid = str(facts.get("DockerRootDir", "")).rpartition("/")[2].partition(".")
        owner = (int(uid), int(gid)) if uid.isdigit() and gid.isdigit() else (0, 0)
    has_nvidia = "nvidia" in (facts.get("Runtimes") or {})
    gpus = nvidia_gpus() if has_nvidia else ()
    missing = missing_limits(limits, "the daemon says so; see the warnings of `docker info`")
    if not namespace:
        missing.append(
            "Containers have no user namespace of their own: they run as user 10001, so an image that needs root "
            "inside fails; set userns-remap in the daemon's configuration, or use podman."
        )
    if not init:
        missing.append("Containers have no init process: install tini (Docker's docker-init).")
    if not any("name=seccomp" in option for option in security):
        missing.append("System calls of containers are not filtered: this Docker was built without seccomp.")
    if not gpus:
        missing += missing_gpus(gpus, "run `nvidia-ctk runtime configure --runtime=docker` and restart Docker")
    return Capabilities(
        version=str(facts["ServerVersion"]),
        runtime_name=runtime or default,
        runtime=runtime,
        rootless=rootless,
        cgroup_version=int(facts.get("CgroupVersion") or 1),
        user_namespace=namespace,
        uid_map=False,
        user=user,
        init=init,
        open_files=open_files,
        processes=None,
        limits=limits,
        cpus=int(facts.get("NCPU") or os.cpu_count() or 1),
        memory_bytes=int(facts["MemTotal"]),
        gpus=gpus,
        missing=tuple(missing),
        host_uid=owner[0],
        host_gid=owner[1],
    )
