"""Limits that are only seen to hold by going beyond them; last, since they disturb all else."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from mhs_ray.sandbox.audit.inside.common import Probe, Verdict, in_child


def memory(given: dict[str, Any]) -> Verdict:
    """A process that takes more than the container's memory is killed."""

    def take() -> int:
        held = []
        for _ in range(0, 2 * given["memory_bytes"], 4 << 20):
            held.append(bytearray(4 << 20))
        return len(held) % 1

    code = in_child(take)
    return code == 256 + signal.SIGKILL, "killed by the kernel" if code >= 256 else f"took twice as much ({code})"


def process_count(given: dict[str, Any]) -> Verdict:
    """A fork bomb ends at the limit."""
    children: list[int] = []
    refused = False
    try:
        while len(children) < given["pids"] + 16:
            pid = os.fork()
            if pid == 0:
                time.sleep(60)
                os._exit(0)
            children.append(pid)
    except OSError:
        refused = True
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return refused, f"{len(children)} processes more, then {'refused' if refused else 'still more'}"


PROBES: dict[str, Probe] = {"memory-limit": memory, "process-limit": process_count}
