"""Listening sockets inside another process's network namespace, served from this one.

The container has no network at all, only ``lo``; what listens there is held by a process on the node that dials
from the node's own namespace. Nothing is routed, so nothing can be routed around.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Final, TypeVar

from mhs_ray.domain.errors import SandboxError
from mhs_ray.sandbox import _netns_helper as helper

_T = TypeVar("_T")
_MS_BIND: Final = 4096
_SYS_FLAGS: Final = 0x1 | 0x2 | 0x4 | 0x8  # MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC


def listeners(net: Path, ports: Sequence[int]) -> dict[int, socket.socket]:
    """Return port → a non-blocking socket listening on 127.0.0.1 in the network namespace behind the file `net`.

    net: ``/proc/PID/ns/net``, or where one is mounted. Works as root and, for a rootless engine, as the user who runs
    it. Raises SandboxError.
    """
    wanted = list(dict.fromkeys(ports))
    try:
        try:
            sockets = _inside(net, lambda: helper.open_here(wanted))
        except PermissionError:
            sockets = _in_helper(net, wanted)
    except (OSError, RuntimeError) as e:
        raise SandboxError(
            f"cannot listen in the network behind {net}: {e}. The process that runs attempts must be root "
            f"or, with a rootless engine, the user who owns it (it is user {os.getuid()})"
        ) from e
    return dict(zip(wanted, sockets, strict=True))


def make_namespace(file: Path) -> None:
    """Make a network namespace with nothing in it and mount it at `file`, which keeps it until it is unmounted.

    Needs root. Raises SandboxError.
    """

    def make() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(helper.CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        _mount("/proc/thread-self/ns/net", file, None, _MS_BIND)

    try:
        _in_thread(make)
    except OSError as e:
        raise SandboxError(f"cannot make a network namespace at {file}: {e}") from e


def mount_sys(net: Path, target: Path) -> None:
    """Mount a read-only /sys of the network namespace behind `net` at folder `target`: it shows only its networks.

    Needs root. Raises SandboxError.
    """

    try:
        _inside(net, lambda: _mount("sysfs", target, "sysfs", _SYS_FLAGS))
    except (OSError, RuntimeError) as e:
        raise SandboxError(f"cannot mount a /sys of the network behind {net}: {e}") from e


def _mount(source: str | Path, target: Path, kind: str | None, flags: int) -> None:
    libc, what = ctypes.CDLL(None, use_errno=True), kind.encode() if kind else None
    if libc.mount(os.fsencode(source), os.fsencode(target), what, ctypes.c_ulong(flags), None) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _inside(net: Path, do: Callable[[], _T]) -> _T:
    def enter() -> _T:
        opened = helper.open_net(str(net))
        try:
            helper.setns(opened, helper.CLONE_NEWNET)
        finally:
            os.close(opened)
        return do()

    return _in_thread(enter)


def _in_thread(do: Callable[[], _T]) -> _T:
    # A namespace belongs to a thread: this one ends with the call, so no other ever runs in there.
    result: Future[_T] = Future()

    def run() -> None:
        try:
            result.set_result(do())
        except BaseException as e:
            result.set_exception(e)

    thread = Thread(target=run, name="netns", daemon=True)
    thread.start()
    thread.join()
    return result.result()


def _in_helper(net: Path, ports: Sequence[int]) -> list[socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-I", str(Path(helper.__file__)), str(theirs.fileno()), str(net), *map(str, ports)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        ours.settimeout(10)
        try:
            message, fds, _, _ = socket.recv_fds(ours, 500, len(ports))
        except TimeoutError:
            process.kill()
            raise
        finally:
            process.wait()
    sockets = [socket.socket(fileno=fd) for fd in fds]
    if len(sockets) != len(ports):
        for opened in sockets:
            opened.close()
        raise RuntimeError(message.decode(errors="replace") or "its helper ended without an answer")
    for opened in sockets:
        opened.setblocking(False)
    return sockets
