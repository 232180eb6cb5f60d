"""What a result marks on a slide, as shapes that can be measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import shapely
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from mhs_ray.results.features import expand_heatmap, label_of, located

_SCORES: Final = ("score", "probability", "confidence")


@dataclass(frozen=True, slots=True)
class Marked:
    """One annotation. shape: in level-0 pixels, valid. area: 0 for points and lines. score: as its model gave it."""

    name: str
    shape: BaseGeometry
    area: float
    score: float | None


def marked(features: Iterable[dict[str, Any]]) -> tuple[list[Marked], int]:
    """Return the annotations of checked features, and how many have no place or shape."""
    found, without = [], 0
    for whole in features:
        for feature in expand_heatmap(whole):
            geometry = located(feature)
            made = None if geometry is None else _valid(geometry)
            if made is None:
                without += 1
                continue
            found.append(Marked(label_of(feature).class_name, made, float(made.area), _score(feature)))
    return found, without


def _valid(geometry: Mapping[str, Any]) -> BaseGeometry | None:
    try:
        made = shape(geometry)
        made = made if made.is_valid else shapely.make_valid(made)
    except (ValueError, TypeError, IndexError, AttributeError, shapely.errors.ShapelyError):
        return None  # such as a ring of two positions, which the contract takes
    return None if made.is_empty else made


def _score(feature: Mapping[str, Any]) -> float | None:
    properties = feature.get("properties") or {}
    values = (properties.get(name) for name in _SCORES)
    return next((float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)), None)
