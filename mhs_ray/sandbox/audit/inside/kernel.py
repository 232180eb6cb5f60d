"""Who the process is to the kernel, and which system calls it is refused. Numbers are those of x86-64."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from mhs_ray.sandbox.audit.inside.common import REFUSED, Probe, Verdict, all_refused, in_child, system_call

_NEW_USER, _NEW_NS, _NEW_NET, _SIGCHLD = 0x10000000, 0x00020000, 0x40000000, 17
_BUFFER = b"\0" * 256


def _status() -> dict[str, str]:
    lines = (line.partition(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {name: value.strip() for name, _, value in lines}


def capabilities(_: dict[str, Any]) -> Verdict:
    """No capability in any set."""
    status = _status()
    found = {name: status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb") if int(status[name], 16)}
    return not found, f"held: {found}" if found else "none, in no set"


def no_new_privileges(_: dict[str, Any]) -> Verdict:
    """The flag that makes setuid files harmless."""
    return _status().get("NoNewPrivs") == "1", f"NoNewPrivs is {_status().get('NoNewPrivs')}"


def setuid_files(given: dict[str, Any]) -> Verdict:
    """A program of the image that is setuid to another user does not become that user."""
    told = subprocess.run([given["setuid_program"], *given["setuid_arguments"]], capture_output=True, check=False)
    if told.returncode:  # with another user's rights the loader would not look where it is told to
        return False, "a setuid program ran otherwise than its caller"
    user = int(told.stdout)
    return user == os.geteuid(), f"a setuid program ran as user {user}, its caller is {os.geteuid()}"


def seccomp(_: dict[str, Any]) -> Verdict:
    """System calls are filtered."""
    return _status().get("Seccomp") == "2", f"Seccomp is {_status().get('Seccomp')} (2: filtered)"


def namespaces(_: dict[str, Any]) -> Verdict:
    """No new user, mount or network namespace, by any call."""
    ok, detail = all_refused({
        "unshare user": (272, _NEW_USER), "unshare mount": (272, _NEW_NS), "unshare network": (272, _NEW_NET),
        "setns": (308, -1, 0), "clone3": (435, _BUFFER, 88),
    })  # fmt: skip

    def clone() -> int:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        pid = libc.syscall(ctypes.c_long(56), ctypes.c_long(_NEW_USER | _SIGCHLD), None, None, None, None)
        if pid == 0:
            os._exit(0)
        return ctypes.get_errno() if pid == -1 else 0

    code = in_child(clone)
    return (ok, f"{detail}, clone") if code in REFUSED else (False, f"{detail}; clone made a user namespace")


def mounts(_: dict[str, Any]) -> Verdict:
    """Nothing is mounted, moved or unmounted."""
    return all_refused({
        "mount": (165, b"none", b"/tmp", b"tmpfs", 0, None), "umount2": (166, b"/tmp", 0),
        "pivot_root": (155, b"/", b"/"), "chroot": (161, b"/tmp"),
        "open_tree": (428, -100, b"/", 1), "move_mount": (429, -1, b"", -1, b"", 0),
        "fsopen": (430, b"tmpfs", 0), "fsconfig": (431, -1, 0, None, None, 0), "fsmount": (432, -1, 0, 0),
        "fspick": (433, -100, b"/", 0), "mount_setattr": (442, -100, b"/", 0, _BUFFER, 32),
    })  # fmt: skip


def ptrace(_: dict[str, Any]) -> Verdict:
    """No debugging of other processes."""
    return all_refused({"ptrace": (101, 0, 0, 0, 0)})


def foreign_memory(_: dict[str, Any]) -> Verdict:
    """No reading of another process's memory or descriptors."""
    return all_refused({
        "process_vm_readv": (310, 1, _BUFFER, 1, _BUFFER, 1, 0),
        "process_vm_writev": (311, 1, _BUFFER, 1, _BUFFER, 1, 0),
        "kcmp": (312, 1, 1, 0, 0, 0), "pidfd_getfd": (438, -1, 0, 0),
    })  # fmt: skip


def io_uring(_: dict[str, Any]) -> Verdict:
    """The kernel's largest recent source of escapes."""
    return all_refused({"io_uring_setup": (425, 1, _BUFFER), "io_uring_enter": (426, -1, 0, 0, 0, None, 0),
                        "io_uring_register": (427, -1, 0, None, 0)})  # fmt: skip


def bpf(_: dict[str, Any]) -> Verdict:
    """No program is loaded into the kernel."""
    return all_refused({"bpf": (321, 5, _BUFFER, 48)})


def keyrings(_: dict[str, Any]) -> Verdict:
    """The kernel's keyrings know no user namespace of the container's."""
    return all_refused({"add_key": (248, b"user", b"x", b"x", 1, -2), "request_key": (249, b"user", b"x", None, 0),
                        "keyctl": (250, 0, -3, 0)})  # fmt: skip


def perf_events(_: dict[str, Any]) -> Verdict:
    """No performance counters of the node."""
    return all_refused({"perf_event_open": (298, _BUFFER, 0, -1, -1, 0)})


def userfaultfd(_: dict[str, Any]) -> Verdict:
    """A tool to win races in the kernel."""
    return all_refused({"userfaultfd": (323, 0)})


def file_handles(_: dict[str, Any]) -> Verdict:
    """No file of the node by its inode number (how the shocker exploit left Docker)."""
    return all_refused({"open_by_handle_at": (304, -100, _BUFFER, 0),
                        "name_to_handle_at": (303, -100, b"/", _BUFFER, _BUFFER, 0)})  # fmt: skip


def machine(_: dict[str, Any]) -> Verdict:
    """Modules, clocks, swap, ports and the power switch."""
    return all_refused({
        "init_module": (175, _BUFFER, 0, b""), "finit_module": (313, -1, b"", 0), "delete_module": (176, b"x", 0),
        "kexec_load": (246, 0, 0, None, 0), "reboot": (169, 0, 0, 0, None), "swapon": (167, b"/x", 0),
        "settimeofday": (164, _BUFFER, None), "clock_settime": (227, 0, _BUFFER), "sethostname": (170, b"x", 1),
        "iopl": (172, 3), "ioperm": (173, 0, 1, 1), "acct": (163, b"/x"), "syslog": (103, 3, _BUFFER, 16),
        "personality": (135, 0x0040000),
    })  # fmt: skip


def device_nodes(given: dict[str, Any]) -> Verdict:
    """Devices are neither made nor, where an image brings them, opened."""
    made = system_call(133, b"/tmp/mhs-probe-device", 0o20666, os.makedev(1, 1))
    opened = []
    for path in given["device_nodes"]:
        with suppress(OSError):
            os.close(os.open(path, os.O_RDONLY))
            opened.append(path)
    if made not in REFUSED or opened:
        return False, f"mknod: {os.strerror(made) if made else 'done'}; opened of the image's: {opened or 'none'}"
    return True, "mknod is refused; device nodes that an image brings cannot be opened"


def raw_sockets(_: dict[str, Any]) -> Verdict:
    """Sockets only of the kinds that programs need: others know no network namespace, or have had holes."""
    kinds = {
        "packet": (17, socket.SOCK_RAW, 0x300), "IPv4 raw": (2, socket.SOCK_RAW, 1),
        "IPv6 raw": (10, socket.SOCK_RAW, 58), "vsock": (40, 1, 0),
        "alg": (38, 5, 0), "bluetooth": (31, 3, 1), "key": (15, 3, 2), "xdp": (44, 3, 0),
        "tipc": (30, 1, 0), "can": (29, 3, 1), "rds": (21, 5, 0),
    }  # fmt: skip
    results = {name: system_call(41, *kind) for name, kind in kinds.items()}
    open_ = [name for name, code in results.items() if code not in REFUSED]
    return not open_, f"could be opened: {open_}" if open_ else f"refused: {', '.join(results)}"


def open_files(given: dict[str, Any]) -> Verdict:
    """A bounded number of open files."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return limit != resource.RLIM_INFINITY and limit <= given["open_files"], f"at most {limit}"


def core_dumps(_: dict[str, Any]) -> Verdict:
    """A crash writes nothing, and runs nothing of the node's."""
    limit = resource.getrlimit(resource.RLIMIT_CORE)[1]
    return limit == 0, "none" if limit == 0 else f"up to {limit} bytes"


def oom_first(_: dict[str, Any]) -> Verdict:
    """When the node's memory is short, containers go before the platform, and cannot change that."""
    own = Path("/proc/self/oom_score_adj")
    before = int(own.read_text())
    with suppress(OSError):
        own.write_text("-500")
    after = int(own.read_text())
    return before >= 500 and after >= 500, f"oom_score_adj is {before}; after trying to lower it {after}"


PROBES: dict[str, Probe] = {
    "capabilities": capabilities, "no-new-privileges": no_new_privileges, "setuid-files": setuid_files,
    "seccomp": seccomp, "new-namespaces": namespaces, "mounts": mounts, "ptrace": ptrace,
    "foreign-memory": foreign_memory, "io-uring": io_uring, "bpf": bpf, "keyrings": keyrings,
    "perf-events": perf_events, "userfaultfd": userfaultfd, "file-handles": file_handles, "machine-control": machine,
    "device-nodes": device_nodes, "raw-sockets": raw_sockets, "open-files-limit": open_files, "core-dumps": core_dumps,
    "oom-order": oom_first,
}  # fmt: skip
