"""The arguments of ``podman run`` that make a container a sandbox. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from mhs_ray.engines import labels, masks
from mhs_ray.engines.capabilities import PLAIN_USER, SUBORDINATE_ID, Capabilities
from mhs_ray.ports import ContainerSpec, Mount

LOG_CAP_MB = 10
"""Size of the log driver's file: a guard of the disk, not the log that people read."""


def sandbox_args(spec: ContainerSpec, caps: Capabilities, seccomp: Path) -> list[str]:
    """Return the arguments between ``podman run`` and the image, without the environment."""
    limits = caps.clamp(spec.limits)
    args = [
        "--name", spec.name, "--pull", "never", "--read-only", "--read-only-tmpfs=false", "--image-volume=ignore",
        "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--security-opt", f"seccomp={seccomp}",
        "--oom-score-adj", "500", "--shm-size", str(limits.shm_bytes), "--no-healthcheck", "--stop-signal", "TERM",
        "--log-driver", "k8s-file", "--log-opt", f"max-size={LOG_CAP_MB}mb", "--http-proxy=false", "--restart", "no",
        "--network", spec.network or "none",
    ]  # fmt: skip
    if spec.labels.get(labels.ROLE) != labels.ROLE_PAUSE:
        node_sys = caps.user_namespace and spec.network and all(m.target != "/sys" for m in spec.mounts)
        hidden = (*masks.everywhere(), *(masks.OF_NODE_SYS if node_sys else ()))
        args += ["--security-opt", "mask=" + ":".join(hidden)]
    if "memory" in caps.limits:
        args += ["--memory", str(limits.memory_bytes), "--memory-swap", str(limits.memory_bytes)]
    if "cpu" in caps.limits:
        args += ["--cpus", f"{limits.cpus:g}"]
    if "pids" in caps.limits:
        args += ["--pids-limit", str(limits.pids)]
    args += ["--ulimit", "core=0:0"]
    if caps.open_files is not None:
        args += ["--ulimit", f"nofile={limits.open_files}:{limits.open_files}"]
    if caps.processes is not None:
        args += ["--ulimit", f"nproc={caps.processes}:{caps.processes}"]
    if caps.uid_map:
        args += ["--uidmap", f"0:{SUBORDINATE_ID}:65536", "--gidmap", f"0:{SUBORDINATE_ID}:65536"]
    if caps.user is not None:
        args += ["--user", f"{PLAIN_USER}:{PLAIN_USER}"]
    if caps.init and spec.labels.get(labels.ROLE) != labels.ROLE_PAUSE:
        args += ["--init"]
    for target, size in spec.tmpfs.items():
        args += ["--tmpfs", f"{target}:rw,nosuid,nodev,size={size},exec,mode=1777,notmpcopyup"]
    for mount in spec.mounts:
        args += ["--mount", _mount(mount)]
    for gpu in spec.gpus:
        args += ["--device", f"nvidia.com/gpu={gpu}"]
    for key, value in labels.enforced(spec.labels).items():
        args += ["--label", f"{key}={value}"]
    return args


def runtime_args(spec_runtime: str | None, caps: Capabilities) -> Sequence[str]:
    """Return the global argument that names the OCI runtime, if one must be named."""
    runtime = spec_runtime or caps.runtime
    return ("--runtime", runtime) if runtime else ()


def _mount(mount: Mount) -> str:
    fields = ["type=bind", f"source={mount.source}", f"target={mount.target}", "bind-propagation=rprivate"]
    if mount.read_only:
        fields.append("ro=true")
    # podman reads this as one line of CSV, so a comma in a path must be quoted.
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(fields)
    return line.getvalue()
