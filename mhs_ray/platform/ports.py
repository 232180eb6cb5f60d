"""A free port for every part, also when several platforms start at once on one machine."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from pathlib import Path

from mhs_ray.domain.errors import ConflictError
from mhs_ray.domain.settings import Settings
from mhs_ray.platform.keys import write_private
from mhs_ray.platform.processes import alive


def choose_ports(settings: Settings) -> dict[str, int]:
    """Return a port per part: the one that is set, else the one of last time, else the usual one, else any free one.

    A port is ours from here on although nobody listens on it yet: it is noted with this process's id, and other
    platforms that start meanwhile pass it over. Raises ConflictError when a port that was set is taken.
    """
    wanted = {
        "api": (settings.api.port, "port" in settings.api.model_fields_set),
        "dashboard": (settings.cluster.dashboard_port, "dashboard_port" in settings.cluster.model_fields_set),
        "blobs": (settings.blobs.port, settings.blobs.port != 0),
        "registry": (settings.registry.port, settings.registry.port != 0),
        "gcs": (settings.cluster.gcs_port, settings.cluster.gcs_port != 0),
        "dashboard-agent": (0, False),  # without it the dashboard shows no logs; Ray's own choice is a fixed port
        "haproxy-metrics": (0, False),
        "haproxy-stats": (0, False),
    }
    if settings.cluster.ray_address is not None:  # that Ray has its own
        for name in ("dashboard", "gcs", "dashboard-agent", "haproxy-metrics", "haproxy-stats"):
            del wanted[name]
    remembered: dict[str, int] = {}
    with contextlib.suppress(FileNotFoundError, ValueError):
        remembered = json.loads((settings.home / "run" / "ports.json").read_text())
    ports: dict[str, int] = {}
    book = Path(f"/tmp/mhs-ports-{os.geteuid()}")  # noqa: S108  one for all platforms of this user
    with os.fdopen(os.open(book, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        taken = _claims(file.read())
        for name, (port, is_set) in wanted.items():
            choices = [port] if is_set and port else [remembered.get(name), port, 0]
            for choice in choices:
                free = None if choice is None else _free_port(choice, taken.keys() | set(ports.values()))
                if free is not None:
                    ports[name] = free
                    break
            else:
                raise ConflictError(f"port {port} for {name} is taken by another program; set another one")
        claims = {**taken, **dict.fromkeys(ports.values(), os.getpid())}
        file.seek(0)
        file.truncate()
        json.dump({str(port): pid for port, pid in claims.items()}, file)
    write_private(settings.home / "run" / "ports.json", json.dumps(ports).encode())
    return ports


def _claims(text: str) -> dict[int, int]:
    """Return port → process of platforms that are starting now."""
    try:
        claims = {int(port): int(pid) for port, pid in json.loads(text).items()}
    except ValueError:
        return {}
    return {port: pid for port, pid in claims.items() if alive(pid) and pid != os.getpid()}


def _free_port(port: int, taken: set[int]) -> int | None:
    for _ in range(20):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return None
            found = int(probe.getsockname()[1])
        if found not in taken:
            return found
        if port:
            return None
    return None


def any_free_port() -> int:
    """Return a port of loopback that nobody listens on now."""
    port = _free_port(0, set())
    if port is None:
        raise ConflictError("this machine has no free port")
    return port
