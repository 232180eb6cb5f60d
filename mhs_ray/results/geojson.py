"""GeoJSON (RFC 7946) as the contract takes it: what a feature must be, and a collection that stays text.

Tolerant where RFC and contract are silent: rings need not be closed, members may be added, a feature may leave
out its ``type``, its geometry may be null.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

from mhs_ray.domain.errors import InvalidInputError
from mhs_ray.results.jsonwalk import Cursor, Faults, decode, flaw, kind, step

_MAX: Final = sys.float_info.max
_MAX_COLLECTIONS: Final = 16  # geometry collections inside each other
_NUMBERS: Final = frozenset({int, float})
_CAN_BE_FLAWED: Final = frozenset({float, dict, list})
_LEVELS: Final = {
    "Point": 0, "MultiPoint": 1, "LineString": 1, "MultiLineString": 2, "Polygon": 2, "MultiPolygon": 3,
}  # fmt: skip
"""Arrays around a position."""


@dataclass(frozen=True, slots=True, eq=False)
class GeoJson:
    """A FeatureCollection that lies in a JSON text; its features become objects one at a time.

    A million features as Python objects take ten times the memory of their text.
    """

    text: str = field(repr=False)
    start: int = field(repr=False)
    end: int = field(repr=False)
    count: int

    @classmethod
    def read(cls, data: bytes) -> GeoJson:
        """Take a collection that was checked before, e.g. from the blob store. Raises InvalidInputError."""
        text = decode(data)
        cursor = Cursor(text)
        if cursor.peek() != "{":
            raise InvalidInputError.at("$", "must be a FeatureCollection object")
        count = sum(1 for _ in _features(cursor))
        cursor.end()
        return cls(text, 0, len(text), count)

    @classmethod
    def of(cls, collection: dict[str, Any]) -> GeoJson:
        """Take a collection that exists as objects."""
        return cls.read(json.dumps(collection).encode())

    def features(self) -> Iterator[dict[str, Any]]:
        """Yield the features in their order."""
        return _features(Cursor(self.text, self.start))

    def load(self) -> dict[str, Any]:
        """Return the whole collection as objects: for small ones."""
        loaded: dict[str, Any] = Cursor(self.text, self.start).value()
        return loaded

    def write_to(self, out: BinaryIO) -> None:
        """Write the collection as it was posted, UTF-8."""
        for at in range(self.start, self.end, 1 << 20):
            out.write(self.text[at : min(at + (1 << 20), self.end)].encode("utf-8", "replace"))


def _features(cursor: Cursor) -> Iterator[dict[str, Any]]:
    for key in cursor.members():
        if key == "features" and cursor.peek() == "[":
            for _ in cursor.items():
                yield cursor.value()
        else:
            cursor.value()


def check_collection(value: object, path: str, faults: Faults, *, annotation_type: bool) -> None:
    """Check a FeatureCollection that exists as objects."""
    if type(value) is not dict:
        faults.add(path, f"must be a FeatureCollection object, is {kind(value)}")
        return
    check_collection_type(value.get("type"), path, faults)
    features = value.get("features")
    if type(features) is not list:
        faults.add(f"{path}.features", f"must be an array of features, is {_found(value, 'features')}")
    else:
        for i, feature in enumerate(features):
            check_feature(feature, f"{path}.features[{i}]", faults, annotation_type=annotation_type)
    for key, item in value.items():
        if key != "features":
            faults.check(item, path + step(key))


def check_collection_type(value: object, path: str, faults: Faults) -> None:
    """Check the ``type`` of a FeatureCollection."""
    if value != "FeatureCollection":
        faults.add(f"{path}.type", f'must be "FeatureCollection", is {_short(value)}')


def check_feature(value: Any, path: str, faults: Faults, *, annotation_type: bool, polygon: bool = False) -> None:
    """Check one feature.

    annotation_type: it must have ``properties.annotation_type``, a string. polygon: its geometry must be an area.
    """
    if type(value) is not dict:
        faults.add(path, f"must be a Feature object, is {kind(value)}")
        return
    if value.get("type", "Feature") != "Feature":
        faults.add(f"{path}.type", f'must be "Feature", is {_short(value["type"])}')
    for key, item in value.items():
        if key == "geometry":
            check_geometry(item, f"{path}.geometry", faults)
        elif type(item) in _CAN_BE_FLAWED and (found := flaw(item)):
            faults.add(path + step(key) + found[0], found[1])
    properties = value.get("properties")
    if annotation_type:
        given = properties.get("annotation_type") if type(properties) is dict else None
        if type(given) is not str:
            missing = type(properties) is not dict or "annotation_type" not in properties
            faults.add(
                f"{path}.properties.annotation_type",
                f"{'is missing' if missing else 'must be a string, is ' + kind(given)}; "
                'every feature of geojson names what it marks, e.g. "tumor"',
            )
    elif properties is not None and type(properties) is not dict:
        faults.add(f"{path}.properties", f"must be an object or null, is {kind(properties)}")
    if polygon:
        geometry = value.get("geometry")
        of = geometry.get("type") if type(geometry) is dict else None
        if of not in ("Polygon", "MultiPolygon"):
            faults.add(f"{path}.geometry", f"must be a Polygon, is {_short(of)}")


def check_geometry(value: Any, path: str, faults: Faults, depth: int = _MAX_COLLECTIONS) -> None:
    """Check a geometry: a known type, and positions of at least two finite numbers. null is one."""
    if value is None:
        return
    if type(value) is not dict:
        faults.add(path, f"must be a geometry object or null, is {kind(value)}")
        return
    of = value.get("type")
    checked = "geometries" if of == "GeometryCollection" else "coordinates"
    if of == "GeometryCollection":
        parts = value.get("geometries")
        if type(parts) is not list:
            faults.add(f"{path}.geometries", f"must be an array of geometries, is {_found(value, 'geometries')}")
        elif not depth:
            faults.add(path, f"has more than {_MAX_COLLECTIONS} geometry collections inside each other; flatten it")
        else:
            for i, part in enumerate(parts):
                check_geometry(part, f"{path}.geometries[{i}]", faults, depth - 1)
    elif type(of) is str and of in _LEVELS:
        if "coordinates" not in value:
            faults.add(f"{path}.coordinates", f"is missing; a {of} needs its positions")
        elif bad := _bad_position(value["coordinates"], _LEVELS[of]):
            faults.add(f"{path}.coordinates{bad[0]}", bad[1])
    else:
        faults.add(f"{path}.type", f"must be one of {', '.join(_LEVELS)} or GeometryCollection, is {_short(of)}")
    for key, item in value.items():
        if key != checked and type(item) in _CAN_BE_FLAWED:
            faults.check(item, path + step(key))


def _bad_position(value: Any, levels: int) -> tuple[str, str] | None:
    if type(value) is not list:
        return "", f"must be an array{' of arrays' * levels}, is {kind(value)}"
    if levels:
        for i, item in enumerate(value):
            bad = _bad_position(item, levels - 1)
            if bad:
                return f"[{i}]{bad[0]}", bad[1]
        return None
    if len(value) < 2:
        return "", f"a position needs x and y in level-0 pixels, has {len(value)} of them"
    for i, number in enumerate(value):
        if type(number) not in _NUMBERS or not -_MAX <= number <= _MAX:  # also False for NaN
            return f"[{i}]", f"must be a finite number, is {_short(number)}"
    return None


def _found(value: dict[str, Any], key: str) -> str:
    return kind(value[key]) if key in value else "missing"


def _short(value: object) -> str:
    if type(value) in (dict, list):
        return kind(value)
    text = json.dumps(value) if type(value) is not int else kind(value)
    return text if len(text) <= 60 else text[:60] + "…"
