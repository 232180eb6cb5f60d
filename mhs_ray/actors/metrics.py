"""What a process itself sees, counted by Ray: each node exports it with Ray's own metrics, as ``ray_mhs_…``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from ray.util.metrics import Counter, Histogram

log = logging.getLogger(__name__)

_SECONDS: Final = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0]


def http_observer() -> Callable[[str, str, str, float], None]:
    """Return what counts an API replica's requests by route template, method and status class."""
    requests = Counter("mhs_http_requests_total", "Requests that were answered", ("route", "method", "status"))
    seconds = Histogram("mhs_http_seconds", "Seconds until an answer began", _SECONDS, ("route",))

    def observe(route: str, method: str, status: str, took: float) -> None:
        requests.inc(1, {"route": route, "method": method, "status": status})
        seconds.observe(took, {"route": route})

    return observe


def starts_counter() -> Callable[[str], None]:
    """Return what counts the containers that started, by instance type."""
    starts = Counter("mhs_starts_total", "Containers that started", ("instance_type",))
    return lambda instance_type: starts.inc(1, {"instance_type": instance_type})


def removals_counter() -> Callable[[str], None]:
    """Return what counts the images that nodes removed, by why."""
    images = Counter("mhs_images_removed_total", "Images that nodes removed", ("why",))
    return lambda why: images.inc(1, {"why": why})
