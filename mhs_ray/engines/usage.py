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
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return None
    groups: dict[str, str] = {}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            groups[controller] = path.lstrip("/")
    if "memory" in groups:  # v1, or hybrid with the controllers on v1
        return _sample_v1(groups)
    unified = _ROOT / groups.get("", "")
    return Usage(
        cpu_s=_keyed(unified / "cpu.stat", "usage_usec", 1e-6),
        memory_bytes=_number(unified / "memory.current"),
        memory_peak_bytes=_number(unified / "memory.peak"),
        pids=_number(unified / "pids.current"),
    )


def _sample_v1(groups: dict[str, str]) -> Usage:
    cpu = _number(_ROOT / "cpuacct" / groups.get("cpuacct", "") / "cpuacct.usage")
    memory = _ROOT / "memory" / groups["memory"]
    return Usage(
        cpu_s=None if cpu is None else cpu * 1e-9,
        memory_bytes=_number(memory / "memory.usage_in_bytes"),
        memory_peak_bytes=_number(memory / "memory.max_usage_in_bytes"),
        pids=_number(_ROOT / "pids" / groups.get("pids", "") / "pids.current"),
    )


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
