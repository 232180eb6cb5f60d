"""A Serve replica that listens on loopback only.

Ray 2.60 binds a replica's internal gRPC server to every address of the machine (``ray/serve/_private/replica.py``,
``"[::]:0"``) and unpickles what comes in. One machine has nobody to talk to there; a cluster needs its security group.
"""

from __future__ import annotations

import logging
from typing import Any

log = logging.getLogger(__name__)


def keep_replica_on_loopback() -> None:
    """Make this process's replica, which is still initialising, bind its internal server to 127.0.0.1."""
    from ray.serve._private import replica

    original: Any = getattr(replica, "add_port_to_grpc_server", None)
    if original is None:
        log.warning("this Ray binds Serve's internal port in another way: check that it stays on loopback")
        return

    def on_loopback(server: Any, address: str) -> Any:
        return original(server, address.replace("[::]:", "127.0.0.1:"))

    replica.add_port_to_grpc_server = on_loopback  # type: ignore[attr-defined, unused-ignore]
