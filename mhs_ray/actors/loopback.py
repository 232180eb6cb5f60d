"""A Serve replica that listens on its node's own address only.

Ray 2.60 binds a replica's internal gRPC server to every address of the machine (``ray/serve/_private/replica.py``,
``"[::]:0"``) and unpickles what comes in. Proxies reach it by the node's address, which is loopback on one machine.
"""

from __future__ import annotations

import logging
from typing import Any

log = logging.getLogger(__name__)


def keep_replica_at(host: str) -> None:
    """Make this process's replica, which is still initialising, bind its internal server to `host`."""
    from ray.serve._private import replica

    original: Any = getattr(replica, "add_port_to_grpc_server", None)
    if original is None:
        log.warning("this Ray binds Serve's internal port in another way: check that it is not open to all")
        return

    def there(server: Any, address: str) -> Any:
        return original(server, address.replace("[::]:", f"{host}:"))

    replica.add_port_to_grpc_server = there  # type: ignore[attr-defined, unused-ignore]
