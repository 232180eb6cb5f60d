"""GeoJSON geometries as well-known binary (ISO, little endian, two dimensions)."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

_CODES: Final = {
    "Point": 1, "LineString": 2, "Polygon": 3, "MultiPoint": 4, "MultiLineString": 5, "MultiPolygon": 6,
    "GeometryCollection": 7,
}  # fmt: skip
_PARTS: Final = {"MultiPoint": "Point", "MultiLineString": "LineString", "MultiPolygon": "Polygon"}
_NAN: Final = (float("nan"), float("nan"))


def to_wkb(geometry: Mapping[str, Any]) -> bytes:
    """Return the bytes of a checked geometry. Altitudes are dropped, open rings closed, as WKB has it."""
    kind: str = geometry["type"]
    if kind == "GeometryCollection":
        parts = [to_wkb(g) for g in geometry["geometries"] if g is not None]
        return _head(kind) + struct.pack("<I", len(parts)) + b"".join(parts)
    return _wkb(kind, geometry["coordinates"])


def _wkb(kind: str, coordinates: Sequence[Any]) -> bytes:
    match kind:
        case "Point":
            return _head(kind) + struct.pack("<2d", *(coordinates[:2] or _NAN))  # NaN is WKB's empty point
        case "LineString":
            return _head(kind) + _line(coordinates)
        case "Polygon":
            rings = [_line(ring if ring[:1] == ring[-1:] else [*ring, ring[0]]) for ring in coordinates]
            return _head(kind) + struct.pack("<I", len(rings)) + b"".join(rings)
        case _:
            parts = [_wkb(_PARTS[kind], part) for part in coordinates]
            return _head(kind) + struct.pack("<I", len(parts)) + b"".join(parts)


def _head(kind: str) -> bytes:
    return struct.pack("<BI", 1, _CODES[kind])


def _line(positions: Sequence[Sequence[float]]) -> bytes:
    flat = [value for position in positions for value in position[:2]]
    return struct.pack(f"<I{len(flat)}d", len(positions), *flat)
