"""What a node of a cluster needs to know, kept by Ray's control service: written by the head, read by every node.

A node brings nothing but Ray's own token. It gets settings and addresses, never a key or the database's password.
"""

from __future__ import annotations

import json
import time
from typing import Any, Final

import ray
from ray.experimental import internal_kv

from mhs_ray.actors.names import NAMESPACE
from mhs_ray.domain.errors import ConflictError
from mhs_ray.domain.settings import Settings, as_node, for_nodes
from mhs_ray.platform.endpoints import Endpoints

_kv: Any = internal_kv  # without types
_KEY: Final = b"node-kit"
_SPACE: Final = NAMESPACE.encode()


def publish_kit(settings: Settings, endpoints: Endpoints) -> None:
    """Tell all nodes, those of today and of tomorrow."""
    kit = {"settings": for_nodes(settings), "endpoints": endpoints.to_json()}
    _kv._internal_kv_put(_KEY, json.dumps(kit).encode(), overwrite=True, namespace=_SPACE)


def fetch_kit(own: Settings) -> tuple[Settings, Endpoints]:
    """Return this node's settings and where the platform's parts are. Raises ConflictError when no head told."""
    kept = _kv._internal_kv_get(_KEY, namespace=_SPACE) if ray.is_initialized() else None
    if kept is None:
        raise ConflictError("this node's Ray has no platform: run `mhs up` on the head, with MHS_CLUSTER__RAY_ADDRESS")
    kit = json.loads(kept)
    return as_node(own, kit["settings"]), Endpoints(**kit["endpoints"])


def wait_for_ray(within_s: float = 30.0) -> None:
    """Return once this worker is connected: what is imported as it starts comes before that."""
    deadline = time.monotonic() + within_s
    while not ray.is_initialized() and time.monotonic() < deadline:
        time.sleep(0.05)
