"""The one system call filter of every container, on both engines.

Podman's default lets a process that is not root ``unshare -Urm`` and gain every capability inside; Docker's
default allows io_uring. `strict` tightens containers-common's default; its result is ``sandbox/seccomp.json``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Final

EPERM: Final = 1
ENOSYS: Final = 38

DENIED: Final = (
    "unshare", "setns", "mount", "mount_setattr", "umount", "umount2", "move_mount", "open_tree", "fsopen", "fsmount",
    "fsconfig", "fspick", "pivot_root", "chroot", "keyctl", "add_key", "request_key", "bpf", "userfaultfd",
    "io_uring_setup", "io_uring_enter", "io_uring_register", "perf_event_open", "open_by_handle_at",
    "name_to_handle_at", "process_vm_readv", "process_vm_writev", "process_madvise",
    "pidfd_getfd", "kcmp", "ptrace",
)  # fmt: skip
"""Refused with EPERM whatever the capabilities."""

NAMESPACE_FLAGS: Final = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
"""CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET."""

_MAKES_NODES: Final = (("mknod", 1), ("mknodat", 2))  # with the place of the mode among their arguments
_FILE_TYPE, _FIFO = 0o170000, 0o010000
_OTHER_TYPES: Final = (0, 0o020000, 0o060000, 0o100000, 0o140000)  # plain, character, block, plain, socket

_UNIX, _INET, _INET6, _NETLINK = 1, 2, 10, 16


@cache
def profile_text() -> str:
    """Return the profile as JSON, the form that Docker's API takes."""
    return files("mhs_ray.sandbox").joinpath("seccomp.json").read_text(encoding="utf-8")


def strict(default: dict[str, Any]) -> dict[str, Any]:
    """Return containers-common's `default` profile with what a model never needs taken away.

    clone3 answers ENOSYS because a filter cannot see its flags; glibc then uses clone, whose flags are checked.
    Sockets are Unix, IPv4, IPv6 and netlink only (others: ENOSYS): AF_VSOCK, for one, knows no network namespace.
    Of nodes only named pipes are made (mkfifo), never devices.
    """
    gone = {*DENIED, "clone", "clone3", "socket", "socketcall", *(name for name, _ in _MAKES_NODES)}
    kept = [{**rule, "names": [n for n in rule["names"] if n not in gone]} for rule in default["syscalls"]]
    own = [
        _rule(DENIED, EPERM),
        _rule(["clone3"], ENOSYS),
        _rule(["clone"], None, (0, sum(NAMESPACE_FLAGS), "SCMP_CMP_MASKED_EQ", 0)),
        *(_rule(["clone"], EPERM, (0, flag, "SCMP_CMP_MASKED_EQ", flag)) for flag in NAMESPACE_FLAGS),
        *(_rule(["socket"], None, (0, family, "SCMP_CMP_EQ", 0)) for family in (_UNIX, _INET, _INET6, _NETLINK)),
        *(_rule([name], None, (place, _FILE_TYPE, "SCMP_CMP_MASKED_EQ", _FIFO)) for name, place in _MAKES_NODES),
        *(
            _rule([name], EPERM, (place, _FILE_TYPE, "SCMP_CMP_MASKED_EQ", kind))
            for name, place in _MAKES_NODES
            for kind in _OTHER_TYPES
        ),
    ]
    return {**default, "syscalls": [*own, *(rule for rule in kept if rule["names"])]}


def _rule(names: tuple[str, ...] | list[str], errno: int | None, *args: tuple[int, int, str, int]) -> dict[str, Any]:
    rule: dict[str, Any] = {
        "names": list(names),
        "action": "SCMP_ACT_ALLOW" if errno is None else "SCMP_ACT_ERRNO",
        "args": [{"index": i, "value": value, "valueTwo": two, "op": op} for i, value, op, two in args],
    }
    return rule if errno is None else {**rule, "errnoRet": errno}


@contextmanager
def profile_path() -> Iterator[Path]:
    """Yield the profile as a file, the form that podman takes."""
    with as_file(files("mhs_ray.sandbox").joinpath("seccomp.json")) as path:
        yield path
