"""The results gateway on loopback for as long as a block lasts."""

from __future__ import annotations

import importlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import uvicorn

from mhs_ray.domain.errors import ConflictError
from mhs_ray.services.core import Core

_START_S: Final = 30.0


def bind_loopback() -> socket.socket:
    """Return a socket that is bound to a free port of 127.0.0.1."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    return bound


@contextmanager
def gateway(core: Core, bound: socket.socket) -> Iterator[None]:
    """Serve the gateway at `bound`. Raises ConflictError when it does not start."""
    build = importlib.import_module("api.gateway_app").build  # by name: mhs_ray stands below api
    config = uvicorn.Config(build(core), log_config=None, access_log=False, timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, name="gateway", daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + _START_S
        while not server.started:
            if not thread.is_alive() or time.monotonic() > deadline:
                raise ConflictError("the results gateway did not start on 127.0.0.1")
            time.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        thread.join(10)
        bound.close()
