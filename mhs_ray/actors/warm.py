"""Workers that wait for the next attempt, so that a job starts in tenths of a second.

A Ray worker takes a second to start and to import, and each attempt's actor uses one up: Ray gives an actor only a
worker that never ran anything. So when an attempt was placed, its node's raylet is asked to have one more fresh worker
ready (``NodeManagerService.PrestartWorkers``), and every worker imports `preload` as it starts
(``RAY_preload_python_modules``). Ray has no public call for the former: a failure here is a slower start, nothing else.
A task of ours takes such a worker as well where no used one is idle, and then asks for another: exactly then, since Ray
keeps each that it is asked for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from pathlib import Path
from typing import Any, Final

import grpc
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import common_pb2, node_manager_pb2, node_manager_pb2_grpc

from mhs_ray.actors.cluster import nodes

# Generated code without types.
_messages: Any = node_manager_pb2
_services: Any = node_manager_pb2_grpc
_common: Any = common_pb2

log = logging.getLogger(__name__)

PRELOAD: Final = "mhs_ray.actors.preload"
_KEEP_S: Final = 7 * 86400
_TIMEOUT_S: Final = 5.0

_fresh = True  # this process has run no task yet


def end_idle_workers() -> int:
    """End this node's workers that wait for work, as a task on it; returns how many. They hold the code of their start.

    What they would have been given gets a new process.
    """
    raylet, ended = os.getppid(), 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError, IndexError):  # it ended meanwhile
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == raylet and (entry / "cmdline").read_bytes().startswith(b"ray::IDLE"):
                os.kill(int(entry.name), signal.SIGTERM)
                ended += 1
    return ended


def prestart_worker(node: dict[str, Any], count: int = 1) -> bool:
    """Ask a node (an entry of ``ray.nodes()``) to have `count` fresh workers; returns whether it took the request."""
    request = _messages.PrestartWorkersRequest(
        language=_common.Language.PYTHON, keep_alive_duration_secs=_KEEP_S, num_workers=count
    )
    request.runtime_env_info.serialized_runtime_env = "{}"
    try:
        with init_grpc_channel(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}") as channel:
            _services.NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=_TIMEOUT_S)
    except (grpc.RpcError, KeyError, ValueError, OSError) as error:
        log.info("no worker was started ahead of time: %s", type(error).__name__)
        return False
    return True


def replace_worker() -> None:
    """Called by a task: if its worker was a fresh one until now, have another made for the next attempt."""
    global _fresh
    if not _fresh:
        return
    _fresh = False
    here = ray.get_runtime_context().get_node_id()
    for node in nodes():
        if node["NodeID"] == here:
            prestart_worker(node)
