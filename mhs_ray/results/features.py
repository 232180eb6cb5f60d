"""Everything of a result that has a place on the slide, as one stream of features.

Comes first: the posted geojson; then the report's points, boxes, regions and segments. All are GeoJSON features in
level-0 pixels whose ``properties.annotation_type`` is set. A heatmap (a GeometryCollection with
``contour_colors``) becomes one feature per contour, with ``contour_index`` and ``color``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from mhs_ray.results.bbox import feature_bbox
from mhs_ray.results.colors import Rgb, class_color, hex_color, parse_color
from mhs_ray.results.geojson import GeoJson

Feature: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ExportItem:
    """The result of one scan, as stored. geojson and report may be absent."""

    task_number: int
    scan_number: int
    job_id: int | None = None
    geojson: GeoJson | None = None
    report: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Label:
    """What a feature is: its type, its name ("" for none), its class and the colour to show it in."""

    annotation_type: str
    name: str
    class_name: str
    color: Rgb


def iter_features(item: ExportItem) -> Iterator[Feature]:
    """Yield the features of `item`, one in memory at a time."""
    if item.geojson is not None:
        for feature in item.geojson.features():
            yield from expand_heatmap(feature)
    if item.report is not None:
        for feature in report_features(item.report):
            yield from expand_heatmap(feature)


def label_of(feature: Feature) -> Label:
    """Return how `feature` is to be shown.

    Its class is a QuPath-like ``classification`` if it has one, else ``annotation_type``, else its name.
    """
    properties = feature.get("properties") or {}
    name = properties.get("name")
    name = name if isinstance(name, str) else ""
    of = properties.get("annotation_type")
    of = of if isinstance(of, str) else ""
    given = properties.get("classification")
    given = given if isinstance(given, dict) else {}
    own = given.get("name")
    class_name = own if isinstance(own, str) and own else of or name or "annotation"
    color = parse_color(properties.get("color")) or parse_color(given.get("color")) or class_color(class_name)
    return Label(of or class_name, name, class_name, color)


def expand_heatmap(feature: Feature) -> Iterator[Feature]:
    """Yield one feature per contour of a heatmap, or `feature` itself if it is none."""
    geometry = feature.get("geometry") or {}
    properties = feature.get("properties") or {}
    colors = properties.get("contour_colors")
    if geometry.get("type") != "GeometryCollection" or not isinstance(colors, list):
        yield feature
        return
    rest = {k: v for k, v in properties.items() if k != "contour_colors"}
    for i, part in enumerate(geometry["geometries"]):
        color = parse_color(colors[i]) if i < len(colors) else None
        own = {**rest, "contour_index": i, **({"color": hex_color(color)} if color else {})}
        yield {"type": "Feature", "geometry": part, "properties": own}


def located(feature: Feature) -> Mapping[str, Any] | None:
    """Return the feature's geometry; without one, a rectangle of its ``bbox``; None if it has no place."""
    geometry: Mapping[str, Any] | None = feature.get("geometry")
    if geometry is not None:
        return geometry
    x0, y0, x1, y1 = feature_bbox(feature)
    return rectangle(x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


def rectangle(x0: float, y0: float, x1: float, y1: float) -> dict[str, Any]:
    """Return a Polygon; a side beyond 1e300, which could not be written, is cut there."""
    x0, y0, x1, y1 = (min(max(v, -1e300), 1e300) for v in (x0, y0, x1, y1))
    return {"type": "Polygon", "coordinates": [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]]}


def report_features(report: Mapping[str, Any]) -> Iterator[Feature]:
    """Yield what a valid report places on the slide. Of a box, x and y are the top-left corner."""
    match report.get("type"):
        case "Basic":
            yield from _segments(report.get("segments") or ())
        case "WholeSlideDifferential" | "SemiQuantitativeDifferential":
            yield from map(_point, report["points"])
        case "AreaDifferential":
            for i, region in enumerate(report["regions"]):
                yield _own(region["region"], "region", region_index=i, weight=region["weight"], score=region["score"])
                for point in region["points"]:
                    yield _point(point, region_index=i)
        case "RegionCounting" | "AiMitosisCounting" as kind:
            for box in report["objects"]:
                x, y, w, h = box["x"], box["y"], box["width"], box["height"]
                more = {k: v for k, v in box.items() if k not in ("x", "y", "width", "height")}
                of = "mitosis" if kind == "AiMitosisCounting" else "object"
                properties = {"annotation_type": of, **more}
                yield {"type": "Feature", "geometry": rectangle(x, y, x + w, y + h), "properties": properties}
            for i, region in enumerate(report["regions"]):
                yield _own(region, "region", region_index=i)
        case "TumorCellularity":
            for label, entry in report["threshold_map"].items():
                facts = {k: entry[k] for k in ("tumor_cellularity", "area", "counts", "distributions") if k in entry}
                yield _own(entry["region"], "tumor cellularity", name=label, **facts)
            for group, segments in (report.get("other_segments") or {}).items():
                yield from _segments(segments, group=group)


def _segments(segments: Any, **more: Any) -> Iterator[Feature]:
    for segment in segments:
        for feature in segment["feature_collection"]["features"]:
            yield _own(feature, segment["name"], segment=segment["name"], **more)


def _point(point: Mapping[str, Any], **more: Any) -> Feature:
    rest = {k: v for k, v in point.items() if k not in ("x", "y", "type")}
    return {
        "type": "Feature",
        "geometry": {"type": "Point", "coordinates": [point["x"], point["y"]]},
        "properties": {"annotation_type": point["type"], **rest, **more},
    }


def _own(feature: Feature, annotation_type: str, **more: Any) -> Feature:
    """Return a copy whose own properties win over what the report says around it."""
    return {**feature, "properties": {"annotation_type": annotation_type, **more, **(feature.get("properties") or {})}}
