"""Find out, by starting a container, how podman must be asked on this node."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import subprocess
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mhs_ray.domain.errors import EngineError
from mhs_ray.engines import process, seccomp
from mhs_ray.engines.capabilities import (
    PLAIN_USER,
    SUBORDINATE_ID,
    Capabilities,
    cdi_gpus,
    missing_gpus,
    missing_limits,
    own_hard_limit,
)
from mhs_ray.engines.pause import ensure_pause_image, probe_spec
from mhs_ray.engines.podman_args import runtime_args, sandbox_args

if TYPE_CHECKING:
    from mhs_ray.engines.podman import PodmanEngine

log = logging.getLogger(__name__)

_CGROUP_V2_MEND = (
    "rootless podman needs cgroup v2 with its controllers delegated to you (systemd's Delegate=); or run it as root"
)


def probe(engine: PodmanEngine, facts: dict[str, Any]) -> Capabilities:
    """Return the safest combination of runtime, user namespace and init that starts a container here.

    facts: answer of ``podman info``. Raises EngineError when none does.
    """
    image = ensure_pause_image(engine)
    rootless = bool(facts["host"]["security"]["rootless"])
    default = str((facts["host"].get("ociRuntime") or {}).get("name") or "none")
    runtimes = [None, *(other for other in ("crun", "runc") if other != default and shutil.which(other))]
    words = b""
    ways = product([False] if rootless else [True, False], runtimes, _rlimits(), [True, False])
    for uid_map, runtime, (files, processes), init in ways:
        caps = _capabilities(facts, default, runtime, rootless=rootless, uid_map=uid_map, init=init)
        caps = replace(caps, open_files=files, processes=processes)
        result = _start(engine, image, caps)
        if result.returncode == 0:
            log.info("podman on this node: runtime %s, user namespace %s, init %s", caps.runtime_name, uid_map, init)
            return replace(caps, joins_namespace=not rootless and _joins_namespace(engine, image, caps))
        log.info("podman with %s cannot start a container: %s", caps.runtime_name, process.last_words(result.stderr))
        words = words or result.stderr
    raise EngineError(engine.name, "start a container on this node in any way tried", process.last_words(words))


def _start(
    engine: PodmanEngine, image: str, caps: Capabilities, network: str | None = None
) -> subprocess.CompletedProcess[bytes]:
    spec = probe_spec(image, network)
    argv = [*engine.base, *runtime_args(None, caps), "run", "--rm", "--detach=false"]
    with seccomp.profile_path() as profile:
        argv += [*sandbox_args(spec, caps, profile), image, *spec.command]
        return process.attempt(engine.name, "start a container", argv, env=engine.environment(spec, {}))


def _joins_namespace(engine: PodmanEngine, image: str, caps: Capabilities) -> bool:
    try:
        with subprocess.Popen(
            ["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        ) as holder:
            assert holder.stdin is not None
            assert holder.stdout is not None
            holder.stdin.write(b"?")
            if not holder.stdout.read(1):  # cat answers once it is inside
                return False
            result = _start(engine, image, caps, f"ns:/proc/{holder.pid}/ns/net")
    except (OSError, EngineError) as error:
        log.info("podman takes no network namespace of the node's: %s", error)
        return False
    if result.returncode:
        log.info("podman takes no network namespace of the node's: %s", process.last_words(result.stderr))
    return result.returncode == 0


def _rlimits() -> list[tuple[int, int | None]]:
    """Return (RLIMIT_NOFILE, RLIMIT_NPROC) to try; a container may get no more than podman has.

    podman lowers its own RLIMIT_NPROC to kernel.pid_max at its start, so that bounds it too.
    """
    files = own_hard_limit(resource.RLIMIT_NOFILE) or 1 << 20
    processes = own_hard_limit(resource.RLIMIT_NPROC)
    if processes is not None:
        processes = min(processes, int(Path("/proc/sys/kernel/pid_max").read_text()))
    return list(dict.fromkeys([(files, processes), (min(files, 4096), min(processes or 4096, 4096))]))


def _capabilities(
    facts: dict[str, Any], default: str, runtime: str | None, *, rootless: bool, uid_map: bool, init: bool
) -> Capabilities:
    host = facts["host"]
    version = 1 if str(host["cgroupVersion"]).endswith("1") else 2
    if rootless:
        controllers = tuple(host.get("cgroupControllers") or ()) if version == 2 else ()
        user, own = None, (os.getuid(), os.getgid())
    else:
        controllers = ("cpu", "memory", "pids")
        user = None if uid_map else PLAIN_USER
        own = (SUBORDINATE_ID, SUBORDINATE_ID) if uid_map else (PLAIN_USER, PLAIN_USER)
    limits = tuple(name for name in ("cpu", "memory", "pids") if name in controllers)
    gpus = cdi_gpus()
    missing = missing_limits(limits, _CGROUP_V2_MEND)
    if not rootless and not uid_map:
        missing.append("Containers have no user namespace of their own here; they run as an unprivileged user instead.")
    if not init:
        missing.append("Containers have no init process: install catatonit where podman looks for it.")
    if not host["security"].get("seccompEnabled", True):
        missing.append("System calls of containers are not filtered: podman was built without seccomp.")
    if not gpus:
        missing += missing_gpus(gpus, "run `nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`")
    return Capabilities(
        version=str(facts["version"]["Version"]),
        runtime_name=runtime or default,
        runtime=runtime,
        rootless=rootless,
        cgroup_version=version,
        user_namespace=rootless or uid_map,
        uid_map=uid_map,
        user=user,
        init=init,
        open_files=None,
        processes=None,
        limits=limits,
        cpus=int(host["cpus"]),
        memory_bytes=int(host["memTotal"]),
        gpus=gpus,
        missing=tuple(missing),
        host_uid=own[0],
        host_gid=own[1],
    )
