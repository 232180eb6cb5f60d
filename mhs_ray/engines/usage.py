"""What a running container uses, read from the cgroup of its first process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Usage:
    """One sample; None where the node's kernel does not tell.

    cpu_s: seconds of CPU since the start, all cores. memory_bytes: now, page cache included as the limit counts it.
    memory_peak_bytes: highest so far. pids: processes and threads now.
    """

    cpu_s: float | None
    memory_bytes: int | None
    memory_peak_bytes: int | None
    pids: int | None


def sample(pid: int) -> Usage | None:
    """Return the use of the container whose init process is `pid` (on this node), None once it is gone."""
    groups = _groups(str(pid))
    if groups is None:
        return None
    own = _groups("self") or {}
    # A cgroup that we are in too is not the container's own (rootless, v1): its numbers are the node's.
    groups = {controller: path for controller, path in groups.items() if own.get(controller) != path}
    if "memory" in groups:  # v1, or hybrid with the controllers on v1
        return _sample_v1(groups)
    if "" not in groups:
        return Usage(None, None, None, None)
    unified = _ROOT / groups[""]
    return Usage(
        cpu_s=_keyed(unified / "cpu.stat", "usage_usec", 1e-6),
        memory_bytes=_number(unified / "memory.current"),
        memory_peak_bytes=_number(unified / "memory.peak"),
        pids=_number(unified / "pids.current"),
    )


def _sample_v1(groups: dict[str, str]) -> Usage:
    def read(controller: str, file: str) -> int | None:
        return _number(_ROOT / controller / groups[controller] / file) if controller in groups else None

    cpu = read("cpuacct", "cpuacct.usage")
    return Usage(
        cpu_s=None if cpu is None else cpu * 1e-9,
        memory_bytes=read("memory", "memory.usage_in_bytes"),
        memory_peak_bytes=read("memory", "memory.max_usage_in_bytes"),
        pids=read("pids", "pids.current"),
    )


def _groups(pid: str) -> dict[str, str] | None:
    try:
        lines = Path("/proc", pid, "cgroup").read_text().splitlines()
    except OSError:
        return None
    groups: dict[str, str] = {}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            groups[controller] = path.lstrip("/")
    return groups


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _keyed(path: Path, key: str, scale: float) -> float | None:
    try:
        pairs = (line.split() for line in path.read_text().splitlines())
        return next((int(value) * scale for name, value in pairs if name == key), None)
    except (OSError, ValueError):
        return None
