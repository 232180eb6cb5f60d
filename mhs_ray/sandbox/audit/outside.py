"""What the node itself sees of the container: who it is here, its namespaces and the kernel's limits on it."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Final

_ROOT: Final = Path("/sys/fs/cgroup")
_UNLIMITED: Final = 1 << 60


def node_ports() -> list[int]:
    """Return the TCP ports on which anything listens on this node."""
    ports = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A":  # LISTEN
                    ports.add(int(fields[1].rpartition(":")[2], 16))
    return sorted(ports)


def node_addresses() -> list[str]:
    """Return this node's own addresses, loopback left out."""
    found = set()
    with suppress(OSError):
        lines = Path("/proc/net/fib_trie").read_text().splitlines()
        for before, line in pairwise(lines):
            if "/32 host LOCAL" in line:
                found.add(before.split()[-1])
    with suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            raw = bytes.fromhex(line.split()[0])
            found.add(socket.inet_ntop(socket.AF_INET6, raw))
    return sorted(a for a in found if not a.startswith(("127.", "fe80:")) and a != "::1")


@contextmanager
def witness() -> Iterator[tuple[int, str]]:
    """Listen on the node; yield (port on 127.0.0.1, name of an abstract Unix socket) that no container may reach."""
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        unix.bind("")  # the kernel chooses a name
        unix.listen()
        yield tcp.getsockname()[1], unix.getsockname()[1:].decode("latin-1")


def identity(pid: int) -> tuple[bool, str]:
    """Say whether the container's process is nobody important on the node."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    users = {int(u) for u in status["Uid"].split()}
    groups = {int(g) for g in (status["Gid"] + " " + status.get("Groups", "")).split()}
    held = 0 not in users and 0 not in groups
    return held, f"on the node it is user {min(users)}, group {min(groups)}"


def namespaces(pid: int) -> tuple[bool, str]:
    """Say whether the process has every namespace to itself that the sandbox promises."""
    shared = [kind for kind in ("mnt", "pid", "net", "ipc", "uts") if _namespace(pid, kind) == _namespace("self", kind)]
    return (
        not shared,
        f"shared with the node: {shared}" if shared else "mount, process, network, IPC and host name are its own",
    )


def pid_namespace(pid: int) -> str:
    """Return the name of the process's PID namespace."""
    return _namespace(pid, "pid")


def processes_in(namespace: str) -> list[int]:
    """Return the node's numbers of all processes in a PID namespace."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if _namespace(int(entry.name), "pid") == namespace:
                    found.append(int(entry.name))
    return found


def _namespace(pid: int | str, kind: str) -> str:
    return str(Path(f"/proc/{pid}/ns/{kind}").readlink())


def kernel_limits(pid: int) -> dict[str, float | None]:
    """Return the limits that the process's control group has; None: there is none, or nobody can tell.

    Keys: cpus (cores), memory and memory_swap (bytes; both together), pids.
    """
    groups = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        groups.update({name: path.lstrip("/") for name in controllers.split(",")})
    if "memory" in groups:  # v1
        memory, cpu = _ROOT / "memory" / groups["memory"], _ROOT / "cpu" / groups.get("cpu", "?")
        quota, period = _number(cpu / "cpu.cfs_quota_us"), _number(cpu / "cpu.cfs_period_us")
        return {
            "cpus": quota / period if quota and period else None,
            "memory": _number(memory / "memory.limit_in_bytes"),
            "memory_swap": _number(memory / "memory.memsw.limit_in_bytes"),
            "pids": _number(_ROOT / "pids" / groups.get("pids", "?") / "pids.max"),
        }
    own = _ROOT / groups.get("", "?")
    memory_max, swap_max = _number(own / "memory.max"), _number(own / "memory.swap.max")
    words = re.match(r"(\d+) (\d+)", _text(own / "cpu.max") or "")
    return {
        "cpus": int(words[1]) / int(words[2]) if words else None,
        "memory": memory_max,
        "memory_swap": None if memory_max is None or swap_max is None else memory_max + swap_max,
        "pids": _number(own / "pids.max"),
    }


def swap_is_there() -> bool:
    """Say whether this node swaps at all."""
    return len((_text(Path("/proc/swaps")) or "").splitlines()) > 1


def _number(path: Path) -> int | None:
    text = (_text(path) or "").strip()
    if not text.lstrip("-").isdigit():
        return None
    return int(text) if 0 <= int(text) < _UNLIMITED else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
