"""An attempt's hold on a warm container: one that waits on this node for such scans, or a fresh one.

A GPU is given to one attempt at a time, so whatever waits on it may be taken or ended by the attempt that has it. A
warm container thus never stands in anybody's way: to Ray its GPU is free.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import mhs_ray
from mhs_ray.attempt.order import AttemptOrder
from mhs_ray.attempt.warm_order import (
    ABOUT,
    ERROR,
    FOLDER,
    HOST_SOCKET,
    LOCK,
    live_hosts,
    make_warm_order,
    warm_key,
)
from mhs_ray.attempt.warm_wire import Wire, connect
from mhs_ray.domain.errors import SandboxError
from mhs_ray.domain.warm import Warm

log = logging.getLogger(__name__)

_OPEN_S: Final = 150.0
_END_S: Final = 60.0
_HELLO_S: Final = 5.0
_POLL_S: Final = 0.05
HOST_MODULE: Final = "mhs_ray.actors.warm_host"


class Lease:
    """A connection to a host. scans: how many its container took before; age_s: since the host began."""

    def __init__(self, wire: Wire, hello: dict[str, Any]) -> None:
        self._wire = wire
        self.name, self.scans, self.age_s = str(hello["host"]), int(hello["scans"]), float(hello["age_s"])

    def begin(self, message: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Give the host a scan and yield what it tells, its ``exit_code`` or ``error`` last, unless it dies."""
        self._wire.send(message)
        while (told := self._wire.receive()) is not None:
            yield told
            if "exit_code" in told or "error" in told:
                return

    def stop(self, grace_s: float) -> None:
        """End the container; `begin` then tells how it ended."""
        self._wire.send({"stop": grace_s})


@contextmanager
def lease(
    order: AttemptOrder, warm: Warm, node_folder: Path, slot: Sequence[str], gpus: Sequence[str],
    cancelled: Callable[[], bool],
) -> Iterator[Lease]:  # fmt: skip
    """Hold a container for one scan. Others that wait on this GPU are ended. Raises SandboxError."""
    wire, hello = _waiting(node_folder, warm_key(order), slot)
    if wire is None or hello is None:
        wire, hello = _fresh(order, warm, node_folder, slot, gpus, cancelled)
    try:
        yield Lease(wire, hello)
    finally:
        wire.close()


def end_others(node_folder: Path, slot: Sequence[str], key: str = "") -> None:
    """End every warm container that waits on one of these GPUs and does not serve `key`."""
    doomed = [name for name, about in _hosts(node_folder, slot) if about.get("key") != key]
    for name in doomed:
        _quit(node_folder / FOLDER / name, "another job was given its GPU")
    for name in doomed:
        _until_dead(node_folder, name)


def _hosts(node_folder: Path, slot: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for name in live_hosts(node_folder):
        with contextlib.suppress(OSError, ValueError):
            about = json.loads((node_folder / FOLDER / name / ABOUT).read_text())
            if set(about["slot"]) & set(slot):
                found.append((name, about))
    return found


def _waiting(node_folder: Path, key: str, slot: Sequence[str]) -> tuple[Wire | None, dict[str, Any] | None]:
    end_others(node_folder, slot, key)
    for name, about in _hosts(node_folder, slot):
        if tuple(about["slot"]) == tuple(slot):
            wire, hello = _greet(node_folder / FOLDER / name)
            if hello is not None:
                return wire, hello
        # One that does not answer is at its end, or was left by an attempt that was lost: its GPU must be free.
        _quit(node_folder / FOLDER / name, "it does not answer")
        _until_dead(node_folder, name)
    return None, None


def _greet(folder: Path) -> tuple[Wire | None, dict[str, Any] | None]:
    try:
        wire = connect(folder, HOST_SOCKET, _HELLO_S)
    except OSError:
        return None, None
    hello = None
    with contextlib.suppress(TimeoutError):
        hello = wire.receive(_HELLO_S)
    if hello is None or "host" not in hello:
        wire.close()
        return None, None
    return wire, hello


def _quit(folder: Path, why: str) -> None:
    with contextlib.suppress(OSError, TimeoutError):
        wire = connect(folder, HOST_SOCKET, _HELLO_S)
        wire.send({"quit": why})
        wire.receive(_HELLO_S)
        wire.close()


def _until_dead(node_folder: Path, name: str) -> None:
    ends = time.monotonic() + _END_S
    while name in live_hosts(node_folder):
        if time.monotonic() > ends:
            raise SandboxError(f"the warm container {name} does not end, and holds this job's GPU")
        time.sleep(_POLL_S)


def _fresh(
    order: AttemptOrder, warm: Warm, node_folder: Path, slot: Sequence[str], gpus: Sequence[str],
    cancelled: Callable[[], bool],
) -> tuple[Wire, dict[str, Any]]:  # fmt: skip
    """Start a host and return the connection to it."""
    wanted = make_warm_order(order, warm, slot, gpus, secrets.token_hex(4))
    folder = node_folder / FOLDER / wanted.name
    folder.mkdir(mode=0o700, parents=True)
    (folder / ABOUT).write_text(json.dumps({"key": wanted.key, "slot": list(slot), "container": order.container_id}))
    # Held from before there is a process to the end of that: who finds it free knows that nobody lives here.
    held = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        start_host(folder, held, wanted.dump())
    finally:
        os.close(held)
    ends = time.monotonic() + _OPEN_S
    while True:
        wire, hello = _greet(folder) if (folder / HOST_SOCKET).exists() else (None, None)
        if wire is not None and hello is not None:
            return wire, hello
        if (folder / ERROR).exists():
            raise SandboxError((folder / ERROR).read_text()[:1000])
        if cancelled():
            raise SandboxError("the job was cancelled")
        if time.monotonic() > ends or wanted.name not in live_hosts(node_folder):
            raise SandboxError(f"the host of {wanted.name} ended, or did not start within {_OPEN_S:.0f} s")
        time.sleep(_POLL_S)


def start_host(folder: Path, lock: int, order: bytes) -> None:
    """Start the host's process: its own session and no child of ours, so that it outlives this attempt's worker."""
    command = ["setsid", "--fork", sys.executable, "-P", "-m", HOST_MODULE, str(folder), str(lock)]
    root = str(Path(mhs_ray.__file__).resolve().parents[1])
    paths = os.pathsep.join([root, *(p for p in [os.environ.get("PYTHONPATH", "")] if p)])
    with (folder / "output").open("wb") as output:
        started = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=output, cwd="/", pass_fds=(lock,),
            env={**os.environ, "PYTHONPATH": paths},
        )  # fmt: skip
        started.communicate(order, timeout=30)
