"""Curves of what an attempt used over time, as points of an SVG."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from mhs_ray.domain.errors import BlobError
from mhs_ray.ports import BlobStore

log = logging.getLogger(__name__)

WIDTH, HEIGHT = 600, 120
Sample = tuple[float, float | None, int | None]
"""Seconds since the container started, CPU seconds used so far, bytes of memory."""


@dataclass(frozen=True, slots=True)
class Curve:
    """points: of an SVG polyline in WIDTH x HEIGHT; top: the value at the upper edge; seconds: at the right edge."""

    title: str
    points: str
    top: float
    peak: float
    seconds: float
    unit: str

    @property
    def area(self) -> str:
        """The points of the area below the curve."""
        return f"0,{HEIGHT} {self.points} {WIDTH},{HEIGHT}" if self.points else ""


def usage_curves(blobs: BlobStore, job_id: int, attempt: int) -> list[Curve]:
    """Return CPU and memory of an attempt; [] before it ended, or where nothing was measured."""
    key = f"jobs/{job_id}/attempts/{attempt}/resources.json"
    try:
        if blobs.stat(key) is None:
            return []
        with blobs.open(key) as stored:
            series: list[Sample] = [(float(s), c, m) for s, c, m in json.load(stored)]
    except (BlobError, ValueError, TypeError) as error:
        log.warning("the samples of job %s cannot be read: %s", job_id, error)
        return []
    memory = [(s, float(m)) for s, _, m in series if m is not None]
    known = [(s, c) for s, c, _ in series if c is not None]
    cpu = [(b[0], max(0.0, (b[1] - a[1]) / (b[0] - a[0]))) for a, b in pairwise(known) if b[0] > a[0]]
    return [curve for curve in (_curve("CPU", cpu, "cores"), _curve("Memory", memory, "bytes")) if curve is not None]


def _curve(title: str, samples: Sequence[tuple[float, float]], unit: str) -> Curve | None:
    if len(samples) < 2:
        return None
    seconds = max(samples[-1][0], 0.1)
    peak = max(v for _, v in samples)
    top = peak * 1.1 or 1.0
    points = " ".join(f"{WIDTH * s / seconds:.1f},{HEIGHT - HEIGHT * v / top:.1f}" for s, v in samples)
    return Curve(title, points, top, peak, seconds, unit)
