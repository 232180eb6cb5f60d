"""Runs beside the raylet of a spot node and drains it on notice: ``python -m mhs_ray.actors.spot_watch``.

A process, no actor: an actor, even one that asks for nothing, would keep its node from ever being idle. Ray places
nothing more on a draining node, and the dispatcher gives back what still runs shortly before the end.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import ray
from ray.core.generated import autoscaler_pb2

from mhs_ray.domain.errors import ConflictError
from mhs_ray.domain.settings import load_settings
from mhs_ray.platform.logs import configure_logging
from mhs_ray.platform.spot import AWS_METADATA, AwsNotices, watch

log = logging.getLogger(__name__)
_protocol: Any = autoscaler_pb2  # generated, without types
_raylet: Any = ray._raylet
_util: Any = ray.util


def drainer(address: str, node_id: str | None) -> Callable[[datetime], None]:
    """Return what drains a node of the Ray at `address`. node_id: in hex; None: the one node of this machine."""

    def drain(when: datetime) -> None:
        gcs = _raylet.GcsClient(address=address)
        accepted, why = gcs.drain_node(
            node_id or _own_node(gcs),
            _protocol.DRAIN_NODE_REASON_PREEMPTION,
            "the cloud takes this machine away",
            int(when.timestamp() * 1000),
        )
        if not accepted:
            raise ConflictError(f"Ray does not drain the node: {why}")

    return drain


def _own_node(gcs: Any) -> str:
    here = {"127.0.0.1", _util.get_node_ip_address()}
    with contextlib.suppress(OSError):
        here |= {str(a[4][0]) for a in socket.getaddrinfo(socket.gethostname(), None)}
    mine = [
        node_id.hex()
        for node_id, info in gcs.get_all_node_info().items()
        if info.state == 0 and info.node_manager_address in here
    ]
    if len(mine) != 1:
        raise ConflictError(f"{len(mine)} Ray nodes live at this machine's addresses; give one by --node-id")
    return str(mine[0])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until there was a notice, or until TERM."""
    parser = argparse.ArgumentParser(prog="mhs_ray.actors.spot_watch", description="Drain this node on a spot notice.")
    parser.add_argument("--address", required=True, help="HOST:PORT of the cluster's Ray")
    parser.add_argument("--node-id", help="the Ray node, where this machine has several")
    parser.add_argument("--metadata", default=AWS_METADATA, help="where the instance metadata is (default: AWS)")
    options = parser.parse_args(arguments)
    configure_logging(load_settings())
    ended = threading.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, lambda *_: ended.set())
    watch(AwsNotices(options.metadata), drainer(options.address, options.node_id), ended)
    return 0


if __name__ == "__main__":
    sys.exit(main())
