"""What Ray's autoscaler did last: nodes by type, and launches that the cloud refused, in its own words."""

from __future__ import annotations

import re
import time
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ray.autoscaler.v2.sdk import get_cluster_status

_SAID: Final = re.compile(r"Failed to launch \d+ nodes of type (?P<type>\S+): (?P<words>.+)")
_LINES: Final = 5000


@dataclass(frozen=True, slots=True)
class Refused:
    """A launch that failed. words: the cloud's, "" where nobody kept them."""

    node_type: str
    ago_s: float
    words: str


@dataclass(frozen=True, slots=True)
class Launches:
    """nodes, starting: how many, by node type. refused: the newest failure of each node type."""

    nodes: dict[str, int]
    starting: dict[str, int]
    refused: tuple[Refused, ...]


def launches(gcs_address: str, logs: Path | None) -> Launches:
    """Ask the control service; raises what Ray raises. logs: of Ray's session, where the cloud's words are."""
    status: Any = get_cluster_status(gcs_address)
    nodes = Counter(n.ray_node_type_name for n in (*status.active_nodes, *status.idle_nodes))
    starting = Counter(n.ray_node_type_name for n in status.pending_nodes)
    for asked in status.pending_launches:
        starting[asked.ray_node_type_name] += asked.count
    said = _said(logs)
    newest: dict[str, Any] = {}
    for failed in status.failed_launches:
        at = failed.failed_ts_s or failed.request_ts_s
        if failed.ray_node_type_name not in newest or at > newest[failed.ray_node_type_name][0]:
            newest[failed.ray_node_type_name] = (at, failed.details or "")
    refused = tuple(
        Refused(kind, max(0.0, time.time() - at), said.get(kind) or details)
        for kind, (at, details) in sorted(newest.items())
    )
    return Launches(dict(nodes), dict(starting), refused)


def find_ray() -> tuple[str, Path | None] | None:
    """Return the address of the control service whose head runs on this machine, and the folder of its logs."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if any(word.endswith("/autoscaler/v2/monitor.py") or word.endswith("_private/monitor.py") for word in words):
            options = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
            address = options.get("--gcs-address")
            logs = options.get("--logs-dir")
            if address:
                return address, Path(logs) if logs else None
    return None


def _said(logs: Path | None) -> dict[str, str]:
    """Return the cloud's last words by node type."""
    if logs is None:
        return {}
    try:
        with (logs / "monitor.log").open(errors="replace") as log:
            lines = deque(log, _LINES)
    except OSError:
        return {}
    return {m["type"]: m["words"].strip() for line in lines if (m := _SAID.search(line))}
