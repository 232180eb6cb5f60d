"""What the container can see and write of file systems, and what was handed to it by mistake."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from mhs_ray.sandbox.audit.inside.common import Probe, Verdict, listed

_HARMLESS = {
    "console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout",
    "tty", "urandom", "zero",
}  # fmt: skip
_SOCKETS = (
    "/var/run/docker.sock", "/run/docker.sock", "/run/podman/podman.sock", "/run/containerd/containerd.sock",
    "/run/crio/crio.sock", "/run/dbus/system_bus_socket", "/run/systemd/private",
)  # fmt: skip


def _mounted() -> list[list[str]]:
    """Return target, options, file system type and source of every mount."""
    rows = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        first, last = before.split(), after.split()
        rows.append([first[4], first[5], last[0], last[1]])
    return rows


def read_only_root(_: dict[str, Any]) -> Verdict:
    """The image's own file system takes no write."""
    took = []
    for folder in ("/", "/etc", "/app", "/opt", "/usr", "/root"):
        try:
            fd = os.open(f"{folder}/mhs-probe", os.O_CREAT | os.O_WRONLY | os.O_EXCL)
        except OSError:
            continue
        os.close(fd)
        took.append(folder)
    flags = os.statvfs("/").f_flag
    held = not took and bool(flags & os.ST_RDONLY)
    return held, "writes are refused" if held else f"could write to {took}; read-only flag {bool(flags & os.ST_RDONLY)}"


def writable_places(given: dict[str, Any]) -> Verdict:
    """Only the promised places take writes, none of them honours setuid or devices, each is bounded."""
    faults = []
    for target, options, kind, _ in _mounted():
        words = options.split(",")
        if "rw" not in words or kind in ("proc", "devpts", "mqueue", "devtmpfs") or Path(target).is_char_device():
            continue
        if not os.access(target, os.W_OK):
            continue
        if target not in {*given["writable"], "/dev", "/dev/shm"}:
            faults.append(f"{target} ({kind}) is writable")
        if target != "/dev" and not {"nosuid", "nodev"} <= set(words):
            faults.append(f"{target} honours setuid files or devices")
        facts = os.statvfs(target)
        size = facts.f_blocks * facts.f_frsize
        if not 0 < size <= max(given["scratch_bytes"], given["shm_bytes"], 64 << 20):
            faults.append(f"{target} is {size >> 20} MiB large")
    return not faults, listed(faults) if faults else "only the promised ones, nosuid and nodev, each of bounded size"


def _fill(path: str, at_most: int) -> tuple[int, int]:
    """Write to `path` until it takes no more; return (bytes written, errno or 0). Removes the file."""
    written = code = 0
    piece = b"\0" * (1 << 20)
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
    try:
        while written < at_most:
            written += os.write(fd, piece)
    except OSError as error:
        code = error.errno or errno.EIO
    finally:
        os.close(fd)
        os.unlink(path)
    return written, code


def scratch_bytes(given: dict[str, Any]) -> Verdict:
    """Scratch ends where it is said to."""
    written, code = _fill("/scratch/mhs-probe", 2 * given["scratch_bytes"])
    return code in (
        errno.ENOSPC,
        errno.ENOMEM,
    ), f"took {written >> 20} MiB of {given['scratch_bytes'] >> 20} MiB, then {_said(code)}"


def scratch_files(given: dict[str, Any]) -> Verdict:
    """Nor can it be filled with files that have no bytes."""
    folder, made, code = Path("/scratch/mhs-probe-files"), 0, 0
    most = given["scratch_bytes"] // (16 << 10) + 1000
    kind = next((k for target, _, k, _ in _mounted() if target == "/scratch"), "?")
    folder.mkdir()
    try:
        while made < most:
            os.close(os.open(folder / str(made), os.O_CREAT | os.O_WRONLY))
            made += 1
    except OSError as error:
        code = error.errno or errno.EIO
    for number in range(made):
        (folder / str(number)).unlink()
    folder.rmdir()
    if kind == "tmpfs" and not code:
        return True, "it is in memory: every file counts against the memory limit"
    return code in (errno.ENOSPC, errno.ENOMEM), f"took {made} files, then {_said(code)}"


def shared_memory(given: dict[str, Any]) -> Verdict:
    """/dev/shm ends where it is said to."""
    written, code = _fill("/dev/shm/mhs-probe", 4 * given["shm_bytes"])
    held = code in (errno.ENOSPC, errno.ENOMEM) and written <= given["shm_bytes"]
    return held, f"took {written >> 20} MiB, then {_said(code)}"


def small_places(_: dict[str, Any]) -> Verdict:
    """So do /run and what the image declares as VOLUME."""
    faults, seen = [], []
    for folder in ("/run", "/volume"):
        try:
            written, code = _fill(f"{folder}/mhs-probe", 128 << 20)
        except OSError as error:
            seen.append(f"{folder}: {_said(error.errno)}")
            continue
        seen.append(f"{folder}: {written >> 20} MiB, then {_said(code)}")
        if code not in (errno.ENOSPC, errno.ENOMEM):
            faults.append(f"{folder} took {written >> 20} MiB")
    return not faults, listed(faults or seen)


def _said(code: int | None) -> str:
    return os.strerror(code) if code else "still more"


def _files(top: str) -> Iterator[str]:
    for folder, names, files in os.walk(top):
        if folder == "/proc":
            names[:] = [n for n in names if not n.isdigit() and n not in ("self", "thread-self")]
        for name in [*names, *files]:
            path = f"{folder}/{name}"
            if not os.path.islink(path):
                yield path


def kernel_files(_: dict[str, Any]) -> Verdict:
    """Nothing of /proc (but the processes' own) and /sys takes a write."""
    nothing = os.stat("/dev/null").st_rdev
    open_ = [
        path
        for top in ("/proc", "/sys")
        for path in _files(top)
        if os.access(path, os.W_OK) and os.stat(path).st_rdev != nothing  # a covered file is /dev/null
    ]
    for path in (
        "/proc/sys/kernel/core_pattern",
        "/proc/sysrq-trigger",
        "/proc/sys/vm/panic_on_oom",
        "/sys/power/state",
    ):
        with suppress(OSError):
            os.close(os.open(path, os.O_WRONLY))
            open_.append(path)
    return not open_, f"can be written: {listed(open_)}" if open_ else "nothing can be written"


def node_facts(_: dict[str, Any]) -> Verdict:
    """Neither networks, disks, serial numbers, boot parameters nor other control groups of the node are seen."""
    seen = []
    for folder in ("/sys/class/net", "/sys/devices/virtual/net"):
        with suppress(OSError):
            seen += [f"{folder}/{name}" for name in os.listdir(folder) if name not in ("lo", "bonding_masters")]
    for folder in ("/sys/block", "/sys/class/block", "/sys/class/dmi/id", "/sys/devices/virtual/dmi", "/sys/fs/ext4",
                   "/sys/kernel/slab", "/sys/kernel/debug", "/sys/firmware/dmi"):  # fmt: skip
        with suppress(OSError):
            seen += [f"{folder}/{name}" for name in os.listdir(folder)[:3]]
    for file in ("/proc/cmdline", "/proc/diskstats", "/proc/interrupts", "/proc/iomem", "/proc/kallsyms",
                 "/proc/modules", "/proc/partitions", "/proc/swaps", "/proc/keys", "/proc/timer_list"):  # fmt: skip
        with suppress(OSError):
            if Path(file).read_bytes()[:1]:
                seen.append(file)
    # A control group of the container's own is fine, the node's tree is not: it has folders of others.
    for folder in ("/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"):
        with suppress(OSError):
            for name in os.listdir(folder):
                if name.endswith((".slice", ".scope")) or name in ("docker", "libpod_parent", "machine", "kubepods"):
                    seen.append(f"{folder}/{name}")
    return not seen, f"seen: {listed(seen)}" if seen else "none of those looked for is seen"


def devices(_: dict[str, Any]) -> Verdict:
    """/dev holds what every program needs, and the GPU it was given."""
    odd = [n for n in sorted(os.listdir("/dev")) if n not in _HARMLESS and not n.startswith("nvidia")]
    return not odd, f"also there: {listed(odd)}" if odd else "only the harmless ones"


def engine_sockets(_: dict[str, Any]) -> Verdict:
    """No way to talk to what controls containers or the system."""
    found = [path for path in _SOCKETS if os.path.lexists(path)]
    return not found, f"found: {listed(found)}" if found else "none"


def abstract_sockets(given: dict[str, Any]) -> Verdict:
    """Unix sockets without a file belong to a network namespace; the node's must not be reached."""
    with socket.socket(socket.AF_UNIX) as client:
        code = client.connect_ex("\0" + given["abstract_socket"])
    return code != 0, "the node's is not there" if code else "one that the node listens on was reached"


def descriptors(_: dict[str, Any]) -> Verdict:
    """No open file of the engine's is left to the program (CVE-2024-21626)."""
    odd = {}
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with suppress(OSError):
                odd[name] = os.readlink(f"/proc/self/fd/{name}")
    odd = {name: target for name, target in odd.items() if not target.startswith("/proc/")}
    return not odd, f"open: {odd}" if odd else "only its own input and output"


def processes(_: dict[str, Any]) -> Verdict:
    """Only its own processes are seen."""
    found = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return len(found) <= 8 and os.getpid() <= 64, f"{len(found)} are seen; its own number is {os.getpid()}"


def environment(given: dict[str, Any]) -> Verdict:
    """Nothing of the platform's or the node's environment, and the image cannot change what the sandbox sets."""
    odd = sorted(set(os.environ) - set(given["variables"]))
    faults = [f"also there: {listed(odd)}"] if odd else []
    if os.environ.get("LD_PRELOAD"):
        faults.append("LD_PRELOAD of the image stands")
    if os.environ.get("NVIDIA_VISIBLE_DEVICES") != "void":
        faults.append("NVIDIA_VISIBLE_DEVICES of the image stands")
    return not faults, "; ".join(faults) if faults else "only what the job was given"


PROBES: dict[str, Probe] = {
    "read-only-root": read_only_root, "writable-places": writable_places, "scratch-bytes": scratch_bytes,
    "scratch-files": scratch_files, "shared-memory-limit": shared_memory, "image-volumes": small_places,
    "kernel-files": kernel_files, "node-facts": node_facts, "devices": devices, "engine-sockets": engine_sockets,
    "abstract-sockets": abstract_sockets, "file-descriptors": descriptors, "processes": processes,
    "environment": environment,
}  # fmt: skip
