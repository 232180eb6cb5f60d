"""What Docker's API is told so that a container is a sandbox. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from docker.types import DeviceRequest, HostConfig, LogConfig, Ulimit
from docker.types import Mount as DockerMount

from mhs_ray.engines import labels, masks
from mhs_ray.engines.capabilities import PLAIN_USER, Capabilities
from mhs_ray.engines.execfail import sandbox_env
from mhs_ray.engines.seccomp import profile_text
from mhs_ray.ports import ContainerSpec

LOG_CAP_MB = 10
VOLUME_BYTES = 64 << 20
"""Size of the tmpfs over a path that the image declares as VOLUME: Docker would else give it the node's disk."""


def create_args(spec: ContainerSpec, caps: Capabilities, version: str, volumes: Iterable[str]) -> dict[str, Any]:
    """Return the arguments of ``APIClient.create_container``. volumes: paths that the image declares."""
    limits = caps.clamp(spec.limits)
    taken = {*spec.tmpfs, *(mount.target for mount in spec.mounts)}
    sizes = {**dict.fromkeys((v for v in volumes if v not in taken), VOLUME_BYTES), **spec.tmpfs}
    ulimits = [Ulimit(name="core", soft=0, hard=0)]
    if caps.open_files is not None:
        ulimits.append(Ulimit(name="nofile", soft=limits.open_files, hard=limits.open_files))
    host = HostConfig(
        version=version,
        network_mode=spec.network or "none",
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges", f"seccomp={profile_text()}"],
        mem_limit=limits.memory_bytes if "memory" in caps.limits else None,
        memswap_limit=limits.memory_bytes if "memory" in caps.limits else None,
        nano_cpus=int(limits.cpus * 1e9) if "cpu" in caps.limits else None,
        pids_limit=limits.pids if "pids" in caps.limits else None,
        oom_score_adj=500,
        ulimits=ulimits,
        shm_size=limits.shm_bytes,
        tmpfs={path: f"rw,nosuid,nodev,exec,size={size},mode=1777" for path, size in sizes.items()},
        mounts=[
            DockerMount(m.target, str(m.source), type="bind", read_only=m.read_only, propagation="rprivate")
            for m in spec.mounts
        ],
        init=caps.init and spec.labels.get(labels.ROLE) != labels.ROLE_PAUSE,
        ipc_mode="private",
        log_config=LogConfig(type="json-file", config={"max-size": f"{LOG_CAP_MB}m", "max-file": "1"}),
        runtime=spec.runtime or caps.runtime,
        device_requests=[DeviceRequest(device_ids=list(spec.gpus), capabilities=[["gpu"]])] if spec.gpus else None,
        restart_policy={"Name": "no"},
    )
    host["MaskedPaths"] = list(masks.everywhere())  # not a parameter of the SDK's HostConfig
    user = None if caps.user is None else f"{PLAIN_USER}:{PLAIN_USER}"
    return {
        "image": str(spec.image),
        "command": list(spec.command) or None,
        "name": spec.name,
        "environment": sandbox_env(spec),
        "labels": labels.enforced(spec.labels),
        "user": user,
        "healthcheck": {"test": ["NONE"]},
        "stop_signal": "SIGTERM",
        "host_config": host,
        "use_config_proxy": False,  # a proxy of whoever runs this process is none of the container's business
    }
