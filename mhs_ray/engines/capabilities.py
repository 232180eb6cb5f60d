"""What this node's engine can really do, found by trying it, and limits clamped to it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import re
import resource
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mhs_ray.ports import EngineInfo, Limits

log = logging.getLogger(__name__)

SUBORDINATE_ID: Final = 200_000
"""First id on the node of a container's own user namespace (podman as root); 65,536 follow."""

PLAIN_USER: Final = 10_001
"""User and group of a container that has no user namespace of its own."""

DEFAULT_OPEN_FILES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Facts about an engine on this node.

    runtime: OCI runtime to ask for; None: the engine's own default works. user: forced on containers, None keeps
    the image's. open_files: highest RLIMIT_NOFILE that can be set; None: none can. processes: RLIMIT_NPROC that
    must be set for a container to start, None: needs none. limits: which of cpu, memory, pids hold. joins_namespace: a
    container starts in a network namespace that the node made.
    """

    version: str
    runtime_name: str
    runtime: str | None
    rootless: bool
    cgroup_version: int
    user_namespace: bool
    uid_map: bool
    user: int | None
    init: bool
    open_files: int | None
    processes: int | None
    limits: tuple[str, ...]
    cpus: int
    memory_bytes: int
    gpus: tuple[str, ...]
    missing: tuple[str, ...]
    host_uid: int
    host_gid: int
    joins_namespace: bool = False

    def clamp(self, limits: Limits) -> Limits:
        """Return `limits` no higher than the node, for an engine refuses what the node does not have."""
        memory = min(limits.memory_bytes, self.memory_bytes)
        return Limits(
            cpus=min(limits.cpus, float(self.cpus)),
            memory_bytes=memory,
            pids=limits.pids,
            shm_bytes=min(limits.shm_bytes, memory),
            open_files=min(limits.open_files, self.open_files or limits.open_files),
        )

    def info(self, engine: str) -> EngineInfo:
        """Return the facts as the port's value."""
        return EngineInfo(
            name=engine,
            version=self.version,
            runtime=self.runtime_name,
            rootless=self.rootless,
            cgroup_version=self.cgroup_version,
            user_namespace=self.user_namespace,
            gpus=self.gpus,
            missing=self.missing,
            host_uid=self.host_uid,
            host_gid=self.host_gid,
            joins_namespace=self.joins_namespace,
        )


def own_hard_limit(which: int) -> int | None:
    """Return our hard limit of RLIMIT_NOFILE or RLIMIT_NPROC, None when there is none."""
    hard = resource.getrlimit(which)[1]
    return None if hard == resource.RLIM_INFINITY else hard


def missing_limits(limits: tuple[str, ...], mend: str) -> list[str]:
    """Return one sentence per limit that does not hold on this node."""
    lost = [name for name in ("memory", "cpu", "pids") if name not in limits]
    return [f"The {name} limit of containers is not enforced: {mend}." for name in lost]


def missing_gpus(gpus: tuple[str, ...], mend: str) -> list[str]:
    """Return a sentence when the node has an NVIDIA device that the engine cannot hand on."""
    if gpus or not Path("/dev/nvidiactl").exists():
        return []
    return [f"There is an NVIDIA GPU that the engine cannot give to a container: {mend}."]


def cdi_gpus(folders: tuple[Path, ...] = (Path("/etc/cdi"), Path("/var/run/cdi"))) -> tuple[str, ...]:
    """Return the names of the NVIDIA devices in the node's CDI specifications (JSON or YAML), ``all`` left out."""
    names: dict[str, None] = {}
    for folder in folders:
        for path in sorted(folder.glob("*")) if folder.is_dir() else ():
            if path.suffix not in {".json", ".yaml", ".yml"}:
                continue
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            if "nvidia.com/gpu" in text:
                # The name of a device is the only ``name`` in a CDI file (specification 0.5, "devices").
                names.update(dict.fromkeys(re.findall(r"""\bname["']?\s*:\s*["']?([A-Za-z0-9][\w.:-]*)""", text)))
    return tuple(name for name in names if name != "all")


def nvidia_gpus() -> tuple[str, ...]:
    """Return the indexes of the NVIDIA devices that the node's driver shows."""
    folder = Path("/proc/driver/nvidia/gpus")
    return tuple(str(i) for i in range(len(list(folder.iterdir())))) if folder.is_dir() else ()


def private_folder(folder: Path | None = None) -> Path:
    """Return a folder that only we can use, for locks and remembered facts of this node."""
    path = folder or Path(tempfile.gettempdir()) / f"mhs-engines-{os.getuid()}"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = path.lstat()
    if folder is None and (facts.st_uid != os.getuid() or facts.st_mode & 0o077):
        # Somebody was there before us: what it says cannot be trusted.
        return Path(tempfile.mkdtemp(prefix="mhs-engines-"))
    return path


def remembered(folder: Path, facts: object, probe: Callable[[], Capabilities]) -> Capabilities:
    """Return what `probe` found earlier since this boot for an engine with the same `facts`, else probe now.

    A probe starts a container or two; every attempt is its own process and must not pay for that.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return probe()
    shape = [f.name for f in dataclasses.fields(Capabilities)]
    limits = [own_hard_limit(resource.RLIMIT_NOFILE), own_hard_limit(resource.RLIMIT_NPROC)]
    key = hashlib.sha256(repr((boot, facts, shape, limits)).encode()).hexdigest()[:24]
    path = folder / f"capabilities-{key}.json"
    try:
        return _from_json(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, KeyError):
        pass
    found = probe()
    temporary = folder / f"{path.name}.{os.getpid()}"
    try:
        temporary.write_text(json.dumps(dataclasses.asdict(found)))
        temporary.replace(path)
    except OSError as exc:
        log.debug("facts of the engine are not remembered: %s", exc)
    return found


def _from_json(value: dict[str, Any]) -> Capabilities:
    facts: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
    return Capabilities(**facts)
