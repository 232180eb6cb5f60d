"""``ray start --address=…`` for a cluster that is all on loopback, which Ray's own command lets nobody join.

It would look for the head at the machine's own address, where none listens. Everything else is as there: resources and
labels come from the environment, as `ray up` hands them on.
"""

from __future__ import annotations

import argparse
import json
import os

from ray._private import ray_constants
from ray._private.node import Node
from ray._private.parameter import RayParams


def main() -> None:
    """Start a raylet, which goes on when this process ends."""
    parser = argparse.ArgumentParser()
    for name in ("--address", "--node-ip-address"):
        parser.add_argument(name)
    for name in (
        "--object-manager-port", "--min-worker-port", "--max-worker-port", "--object-store-memory",
        "--dashboard-agent-listen-port",
    ):  # fmt: skip
        parser.add_argument(name, type=int)
    parser.add_argument("--disable-usage-stats", action="store_true")
    told = parser.parse_args()
    resources = json.loads(os.environ[ray_constants.RESOURCES_ENVIRONMENT_VARIABLE])
    params = RayParams(
        redis_address=told.address, gcs_address=told.address, node_ip_address=told.node_ip_address,
        object_manager_port=told.object_manager_port, min_worker_port=told.min_worker_port,
        max_worker_port=told.max_worker_port, object_store_memory=told.object_store_memory, dashboard_port=None,
        dashboard_agent_listen_port=told.dashboard_agent_listen_port, num_cpus=resources["CPU"],
        num_gpus=resources["GPU"], labels=json.loads(os.environ[ray_constants.LABELS_ENVIRONMENT_VARIABLE]),
    )  # fmt: skip
    Node(params, head=False, shutdown_at_exit=False, spawn_reaper=False)


if __name__ == "__main__":
    main()
