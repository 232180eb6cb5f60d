"""Pictures: results drawn over a slide."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mhs_ray.results.colors import Rgb
from mhs_ray.results.features import expand_heatmap, label_of, located

_FILL_ALPHA = 50  # of 255: tissue stays readable under an area
_HEATMAP_ALPHA = 90
_NEAR = 1 << 20  # pixels; Pillow's coordinates are C integers


def draw_overlay(
    thumbnail: NDArray[np.uint8],
    downsample: float,
    features: Mapping[str, Any] | Iterable[dict[str, Any]],
    *,
    origin: tuple[float, float] = (0, 0),
) -> Image.Image:
    """Return the picture with areas, lines and points drawn over it, in each class's colour or the one given.

    thumbnail: RGB, shape (height, width, 3). downsample: level-0 pixels per pixel of it.
    origin: level-0 position of its top-left corner. features: checked ones, as a FeatureCollection or a stream.
    """
    base = Image.fromarray(np.ascontiguousarray(thumbnail))
    # Two layers, as Pillow draws over and does not blend: a later area must not wipe out earlier lines and points.
    fills, lines = (Image.new("RGBA", base.size, (0, 0, 0, 0)) for _ in range(2))
    pen = _Pen(fills, lines, downsample, origin)
    stream: Iterable[dict[str, Any]] = features["features"] if isinstance(features, Mapping) else features
    for whole in stream:
        for feature in expand_heatmap(whole):
            geometry = located(feature)
            if geometry is not None:
                is_contour = "contour_index" in (feature.get("properties") or {})
                pen.draw(geometry, label_of(feature).color, _HEATMAP_ALPHA if is_contour else _FILL_ALPHA)
    filled = Image.alpha_composite(base.convert("RGBA"), fills)
    return Image.alpha_composite(filled, lines).convert("RGB")


def crop_overlay(
    region: NDArray[np.uint8],
    origin: tuple[float, float],
    downsample: float,
    features: Mapping[str, Any] | Iterable[dict[str, Any]],
) -> Image.Image:
    """Return a close-up: `region` (RGB, its top-left corner at level-0 `origin`) with what lies in it drawn over it."""
    return draw_overlay(region, downsample, features, origin=origin)


class _Pen:
    def __init__(self, fills: Image.Image, lines: Image.Image, downsample: float, origin: tuple[float, float]) -> None:
        self._fill, self._draw = ImageDraw.Draw(fills), ImageDraw.Draw(lines)
        self._scale, self._origin = 1 / downsample, origin
        self._size = lines.size
        self._width = max(1, round(min(lines.size) / 200))

    def draw(self, geometry: Mapping[str, Any], color: Rgb, alpha: int) -> None:
        match geometry["type"]:
            case "Point":
                self._points([geometry["coordinates"]], color)
            case "MultiPoint":
                self._points(geometry["coordinates"], color)
            case "LineString":
                self._line(geometry["coordinates"], color)
            case "MultiLineString":
                for line in geometry["coordinates"]:
                    self._line(line, color)
            case "Polygon":
                self._polygon(geometry["coordinates"], color, alpha)
            case "MultiPolygon":
                for polygon in geometry["coordinates"]:
                    self._polygon(polygon, color, alpha)
            case "GeometryCollection":
                for part in geometry["geometries"]:
                    if part is not None:
                        self.draw(part, color, alpha)

    def _place(self, positions: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
        x0, y0 = self._origin
        return [
            (
                min(max((p[0] - x0) * self._scale, -_NEAR), _NEAR),
                min(max((p[1] - y0) * self._scale, -_NEAR), _NEAR),
            )
            for p in positions
            if p
        ]

    def _visible(self, places: list[tuple[float, float]]) -> bool:
        if not places:
            return False
        xs, ys = zip(*places, strict=True)
        w, h, edge = *self._size, 4 * self._width
        return bool(max(xs) >= -edge and max(ys) >= -edge and min(xs) <= w + edge and min(ys) <= h + edge)

    def _points(self, positions: Sequence[Sequence[float]], color: Rgb) -> None:
        r = 2 * self._width
        for x, y in self._place(positions):
            if self._visible([(x, y)]):
                self._draw.ellipse((x - r, y - r, x + r, y + r), fill=(*color, 200), outline=(255, 255, 255, 255))

    def _line(self, positions: Sequence[Sequence[float]], color: Rgb) -> None:
        places = self._place(positions)
        if self._visible(places) and len(places) > 1:
            self._draw.line(places, fill=(*color, 255), width=self._width, joint="curve")

    def _polygon(self, rings: Sequence[Sequence[Sequence[float]]], color: Rgb, alpha: int) -> None:
        outer = self._place(rings[0]) if rings else []
        if not self._visible(outer):
            return
        xs, ys = zip(*outer, strict=True)
        if max(xs) - min(xs) < self._width and max(ys) - min(ys) < self._width:
            self._points([rings[0][0]], color)  # a cell on a thumbnail: too small to outline
            return
        if len(outer) > 2 and len(rings) == 1:
            self._fill.polygon(outer, fill=(*color, alpha))
        for ring in rings:  # holes are outlined, not filled, so that an area with holes gets no fill at all
            places = self._place(ring)
            for a, b in pairwise([*places, *places[:1]]):
                self._draw.line([a, b], fill=(*color, 255), width=self._width)
