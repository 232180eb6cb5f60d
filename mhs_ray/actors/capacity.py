"""What Ray's autoscaler knows of each instance type: nodes that live, that are on their way, that the cloud refused."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import ray
from ray._private import worker
from ray.autoscaler.v2.sdk import get_cluster_status

from mhs_ray.domain.capacity import Capacity
from mhs_ray.domain.instances import INSTANCE_TYPES, LABEL

_KEEP_S: Final = 2.0
_NEW_S: Final = 120.0  # a refusal that nobody repeated for so long is history
_LINES: Final = 2000


class CapacityView:
    """Asks the autoscaler at most every two seconds, however many ask for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._at, self._known = 0.0, dict[str, Capacity]()

    def __call__(self) -> Mapping[str, Capacity]:
        """Return what there is, by instance type; empty when the autoscaler does not answer. Blocks."""
        with self._lock:
            if time.monotonic() - self._at > _KEEP_S:
                try:
                    self._known = _ask()
                except Exception:  # a cluster without an autoscaler, or one that is away
                    self._known = {}
                self._at = time.monotonic()
            return self._known


def _ask() -> dict[str, Capacity]:
    status: Any = get_cluster_status(ray.get_runtime_context().gcs_address)
    nodes: dict[str, list[Any]] = {}
    for node in (*status.active_nodes, *status.idle_nodes):
        kind = (node.labels or {}).get(LABEL) or instance_type_of(node.ray_node_type_name)
        nodes.setdefault(kind or "", []).append(node)
    known = {}
    for kind in INSTANCE_TYPES:
        starts = [p for p in status.pending_launches if instance_type_of(p.ray_node_type_name) == kind]
        booting = [p for p in status.pending_nodes if instance_type_of(p.ray_node_type_name) == kind]
        failed = [f for f in status.failed_launches if instance_type_of(f.ray_node_type_name) == kind]
        here = nodes.get(kind, [])
        newest = max(failed, key=lambda f: f.failed_ts_s or f.request_ts_s, default=None)
        began = min((p.request_ts_s for p in starts if p.request_ts_s), default=None)
        recent = newest is not None and time.time() - (newest.failed_ts_s or newest.request_ts_s) < _NEW_S
        # A refused type is asked for at once again: only one that is asked for and was not refused is on its way.
        on_its_way = len(booting) + (0 if recent else sum(p.count for p in starts))
        known[kind] = Capacity(
            nodes=len(here),
            free=sum(n.available_resources().get("GPU", 0) >= 1 for n in here),
            starting=on_its_way,
            since=datetime.fromtimestamp(began, UTC) if began and on_its_way else None,
            refused=_words(newest.ray_node_type_name) if recent and newest is not None else None,
        )
    return known


def instance_type_of(node_type: str) -> str | None:
    """Return the instance type of the contract that a node type's name begins with: ``g5.2xlarge-spot``."""
    return next((k for k in INSTANCE_TYPES if node_type == k or node_type.startswith((f"{k}-", f"{k}_"))), None)


def _words(node_type: str) -> str:
    """Return the cloud's own words: Ray's status leaves them out, its monitor's log on this head has them."""
    node: Any = worker._global_node
    if node is None:
        return ""
    said = re.compile(rf"Failed to launch \d+ nodes of type {re.escape(node_type)}: (.+)")
    try:
        with (Path(node.get_logs_dir_path()) / "monitor.log").open(errors="replace") as log:
            found = [match[1] for line in deque(log, _LINES) if (match := said.search(line))]
    except OSError:
        return ""
    return found[-1] if found else ""
