"""Bounding boxes of features, [x0, y0, x1, y1] in level-0 pixels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

Box: TypeAlias = tuple[float, float, float, float]


def feature_bbox(feature: Mapping[str, Any]) -> Box:
    """Return Techcyte's box: the 4-element ``bbox``, else the extent of a ``Polygon``, else zeros (contract §3)."""
    given = feature.get("bbox")
    if isinstance(given, list) and len(given) == 4 and all(type(v) in (int, float) for v in given):
        return given[0], given[1], given[2], given[3]
    geometry = feature.get("geometry")
    if isinstance(geometry, dict) and geometry.get("type") == "Polygon":
        return extent(geometry) or (0, 0, 0, 0)
    return 0, 0, 0, 0


def extent(geometry: Mapping[str, Any] | None) -> Box | None:
    """Return the extent of any geometry, None where it has no position."""
    points = list(positions(geometry))
    if not points:
        return None
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    return min(xs), min(ys), max(xs), max(ys)


def positions(geometry: Mapping[str, Any] | None) -> Iterator[list[float]]:
    """Yield every position of a geometry that `check_geometry` has passed."""
    if not geometry:
        return
    if geometry.get("type") == "GeometryCollection":
        for part in geometry.get("geometries", ()):
            yield from positions(part)
    else:
        yield from _flat(geometry.get("coordinates", ()))


def _flat(coordinates: Any) -> Iterator[list[float]]:
    if coordinates and not isinstance(coordinates[0], list):
        yield coordinates
        return
    for part in coordinates:
        yield from _flat(part)
