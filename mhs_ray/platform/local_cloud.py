"""A cluster without a cloud: a Ray head on this machine whose autoscaler starts and ends raylets beside it.

Ray's own autoscaler decides; only the cloud is played, by `mhs_ray.actors.local_nodes`. For benchmarks and tests, and
to try a cluster's settings before paying for one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mhs_ray.domain.instances import LABEL
from mhs_ray.platform.keys import load_keys
from mhs_ray.platform.ports import any_free_port
from mhs_ray.platform.up import MARK, StartError, end_ray, ray_environment
from mhs_ray.sandbox.scratch import remove_folder

_HEAD_ID: Final = "f" * 51 + "00000"  # both fixed by Ray's fake provider
_HEAD_TYPE: Final = "ray.head.default"
_EMPTY: Final = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands", "cluster_synced_files",
    "head_start_ray_commands", "worker_start_ray_commands", "rsync_exclude", "rsync_filter",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class NodeType:
    """One node type of the cluster. name: an instance type of the contract; idle_s: when an idle node is ended."""

    name: str
    max_nodes: int = 2
    idle_s: float = 5.0


class LocalCloud:
    """The cluster; `start` it, then ``mhs up`` with `variables`.

    folder: short and passable for every user, with all that the cluster keeps: the head's home, one home per node.
    """

    def __init__(self, folder: Path, types: Sequence[NodeType]) -> None:
        self.folder, self.types = folder, tuple(types)
        self.home, self.nodes = folder / "h", folder / "n"
        self.port, self.dashboard_port = any_free_port(), any_free_port()
        self.temp_dir = str(folder / "r")

    @property
    def variables(self) -> dict[str, str]:
        """The environment of the head: what the platform there is told."""
        return {
            "MHS_HOME": str(self.home),
            "MHS_CLUSTER__RAY_ADDRESS": f"127.0.0.1:{self.port}",
            "MHS_CLUSTER__DASHBOARD_PORT": str(self.dashboard_port),
            "MHS_CLUSTER__PLACEMENT": "label",
            "MHS_CLUSTER__INSTANCE_TYPES": json.dumps([t.name for t in self.types]),
            "MHS_BLOBS__FOLDER": str(self.folder / "b"),
            "MHS_SLIDES__PATH_ROOTS": json.dumps([str(self.folder)]),
        }

    @property
    def refusals(self) -> Path:
        """A JSON object, type → what the cloud says instead of starting a node of it."""
        return self.folder / "refusals.json"

    def refuse(self, reasons: Mapping[str, str]) -> None:
        """Have the played cloud refuse these types from now on."""
        part = self.refusals.with_suffix(".new")
        part.write_text(json.dumps(dict(reasons)))
        part.replace(self.refusals)

    def start(self, environment: Mapping[str, str]) -> None:
        """Start the head with `environment` and `variables`. Raises StartError."""
        for folder in (self.home, self.nodes, Path(self.temp_dir)):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o711)
        config = self.folder / "autoscaler.json"
        config.write_text(json.dumps(self._config()))
        told = {**environment, **self.variables}
        load_keys(self.home / "keys")  # Ray's token is among them
        told |= ray_environment(self.home, told)
        told |= {
            MARK: self.temp_dir, "RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_CLOUD_INSTANCE_ID": _HEAD_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID, "RAY_NODE_TYPE_NAME": _HEAD_TYPE,
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }  # fmt: skip
        command = [
            str(Path(sys.executable).with_name("ray")), "start", "--head", "--node-ip-address=127.0.0.1",
            f"--port={self.port}", f"--dashboard-port={self.dashboard_port}", "--dashboard-host=127.0.0.1",
            f"--dashboard-agent-listen-port={any_free_port()}", "--num-cpus=2", "--num-gpus=0",
            f"--temp-dir={self.temp_dir}", "--object-store-memory=134217728", "--disable-usage-stats",
            f"--autoscaling-config={config}",
        ]  # fmt: skip
        done = subprocess.run(command, env=told, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            raise StartError(f"Ray did not start: {(done.stderr or done.stdout).strip()[-2000:]}")

    def stop(self) -> None:
        """End the head, every node, and what nodes left."""
        end_ray(self.temp_dir)
        for node in self.nodes.iterdir() if self.nodes.is_dir() else ():
            remove_folder(node)

    def _config(self) -> dict[str, Any]:
        """Return what the autoscaler is told; without any one of these keys its monitor ends without a word."""
        types = {
            t.name: {
                "min_workers": 0, "max_workers": t.max_nodes, "node_config": {}, "labels": {LABEL: t.name},
                "idle_timeout_s": t.idle_s,
                # One CPU: Ray starts as many workers ahead of time, and attempts ask for none.
                "resources": {"CPU": 1, "GPU": 1, "object_store_memory": 100_000_000},
            }
            for t in self.types
        }  # fmt: skip
        return {
            "cluster_name": "local", "max_workers": sum(t.max_nodes for t in self.types), "upscaling_speed": 1.0,
            "idle_timeout_minutes": 0.1, "head_node_type": _HEAD_TYPE,
            "provider": {
                "type": "external", "module": "mhs_ray.actors.local_nodes.LocalNodes",
                "gcs_address": f"127.0.0.1:{self.port}", "launch_multiple": True, "disable_node_updaters": True,
                "disable_launch_config_check": True, "use_node_id_as_ip": True,
                "nodes_folder": str(self.nodes), "refusals": str(self.refusals),
            },
            "available_node_types": {
                _HEAD_TYPE: {"resources": {"CPU": 2}, "node_config": {}, "max_workers": 0}, **types,
            },
            "auth": {}, "docker": {}, "file_mounts": {}, "file_mounts_sync_continuously": False,
            **{key: [] for key in _EMPTY},
        }  # fmt: skip
