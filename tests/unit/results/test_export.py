"""Exports are read back by other readers; pictures show what they should where they should."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from mhs_ray.results.examples import SCAN_NUMBER, examples
from mhs_ray.results.export import write_geojson
from mhs_ray.results.features import ExportItem, iter_features
from mhs_ray.results.geojson import GeoJson
from mhs_ray.results.overlay import crop_overlay, draw_overlay
from mhs_ray.results.parquet import write_parquet
from mhs_ray.results.schema import parse_results
from mhs_ray.results.wkb import to_wkb

SQUARE = [[[100, 100], [100, 300], [300, 300], [300, 100], [100, 100]]]


def item(name: str) -> ExportItem:
    (scan,) = parse_results(json.dumps(examples()[name]).encode(), task_scans={SCAN_NUMBER}).scans
    return ExportItem(185714, SCAN_NUMBER, 42, scan.geojson, scan.report)


def of(*features: dict[str, Any]) -> ExportItem:
    return ExportItem(1, 2, None, GeoJson.of({"type": "FeatureCollection", "features": list(features)}))


def feature(geometry: Any, **properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "geometry": geometry, "properties": {"annotation_type": "tumor", **properties}}


def exported(*items: ExportItem) -> list[dict[str, Any]]:
    out = io.BytesIO()
    count = write_geojson(items, out)
    collection = json.loads(out.getvalue())
    assert collection["type"] == "FeatureCollection"
    assert len(collection["features"]) == count
    features: list[dict[str, Any]] = collection["features"]
    return features


COUNTS = {
    "geojson": {"Polygon": 4, "MultiPoint": 1},  # the heatmap's three contours are three polygons
    "qc_fail": {},
    "Basic": {"Polygon": 3},
    "WholeSlideDifferential": {"Point": 5},
    "AreaDifferential": {"Polygon": 2, "Point": 8},
    "SemiQuantitativeDifferential": {"Point": 3},
    "RegionCounting": {"Polygon": 4},
    "AiMitosisCounting": {"Polygon": 3},
    "TumorCellularity": {"Polygon": 3},
}


@pytest.mark.parametrize("name", sorted(examples()))
def test_everything_with_a_place_is_exported(name: str) -> None:
    features = exported(item(name))
    kinds = [f["geometry"]["type"] for f in features]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == COUNTS[name]
    for f in features:
        assert f["type"] == "Feature"
        assert f["properties"]["objectType"] == "annotation"
        assert f["properties"]["classification"]["name"]
        assert len(f["properties"]["classification"]["color"]) == 3
        assert f["properties"]["mhs"] == {"task": 185714, "scan": SCAN_NUMBER, "job": 42}


def test_export_keeps_original_properties_and_coordinates() -> None:
    (original, *_) = examples()["geojson"]["scanResults"][0]["geojson"]["features"]
    (first, *_) = exported(item("geojson"))
    assert first["geometry"] == original["geometry"]
    assert first["bbox"] == original["bbox"]
    assert first["properties"].items() >= original["properties"].items()


def test_export_leaves_a_qupath_classification_as_posted() -> None:
    (got,) = exported(of(feature({"type": "Point", "coordinates": [1, 2]}, classification={"name": "Stroma"})))
    assert got["properties"]["classification"] == {"name": "Stroma"}


def test_a_heatmaps_contours_have_their_colours() -> None:
    contours = [f["properties"] for f in exported(item("geojson")) if "contour_index" in f["properties"]]
    assert [c["color"] for c in contours] == ["#ffd24d", "#ff8c1a", "#cc0000"]
    assert [c["classification"]["color"] for c in contours] == [[255, 210, 77], [255, 140, 26], [204, 0, 0]]


def test_a_feature_without_geometry_is_its_bbox_or_is_left_out() -> None:
    boxed = {**feature(None), "bbox": [1, 2, 3, 4]}
    (got,) = exported(of(feature(None), boxed))
    assert got["geometry"]["coordinates"] == [[[1, 2], [3, 2], [3, 4], [1, 4], [1, 2]]]


def test_an_export_of_nothing_is_an_empty_collection() -> None:
    assert exported() == []


def test_parquet_is_read_back_with_every_feature_in_its_place() -> None:
    items = [item(name) for name in sorted(examples())]
    out = io.BytesIO()
    count = write_parquet(items, out, row_group=10)
    table = pq.read_table(io.BytesIO(out.getvalue()))
    everything = [f for one in items for f in iter_features(one)]
    assert table.num_rows == count == len(everything) == 36
    assert pq.ParquetFile(io.BytesIO(out.getvalue())).num_row_groups == 4
    assert set(table["task"].to_pylist()) == {185714}
    assert set(table["scan"].to_pylist()) == {SCAN_NUMBER}
    assert [json.loads(p) for p in table["properties"].to_pylist()] == [f["properties"] for f in everything]
    row = table.slice(everything.index(next(iter_features(item("geojson")))), 1).to_pylist()[0]
    assert (row["annotation_type"], row["class"], row["color"], row["score"]) == ("tumor", "tumor", "#ff0000", 0.94)
    assert row["bbox"] == {"xmin": 12840, "ymin": 9210, "xmax": 13352, "ymax": 9722}
    assert struct.unpack_from("<BIII", row["geometry"]) == (1, 3, 1, 5)
    assert struct.unpack_from("<10d", row["geometry"], 13)[:4] == (12840, 9210, 12840, 9722)


def test_parquet_says_that_it_is_geoparquet_without_a_crs() -> None:
    out = io.BytesIO()
    write_parquet([item("geojson")], out)
    geo = json.loads(pq.read_metadata(io.BytesIO(out.getvalue())).metadata[b"geo"])
    assert (geo["version"], geo["primary_column"]) == ("1.1.0", "geometry")
    column = geo["columns"]["geometry"]
    assert (column["encoding"], column["crs"]) == ("WKB", None)
    assert column["geometry_types"] == ["MultiPoint", "Polygon"]
    assert column["bbox"] == [12000, 8600, 14400, 10600]
    assert column["covering"]["bbox"]["xmax"] == ["bbox", "xmax"]


def test_parquet_takes_odd_but_valid_features() -> None:
    odd = [
        feature(None),
        feature({"type": "Polygon", "coordinates": []}, score="high", name=5, color="no colour"),
        feature({"type": "GeometryCollection", "geometries": [None, {"type": "Point", "coordinates": [1, 2, 3]}]}),
        feature({"type": "GeometryCollection", "geometries": [None]}, contour_colors=[1, "#fff"]),
        {**feature(None, score=10**400, name="\ud800"), "bbox": [0, 0, 10**400, 1]},
        {"properties": {"annotation_type": ""}},
    ]
    out = io.BytesIO()
    assert write_parquet([of(*odd)], out) == len(odd)
    rows = pq.read_table(io.BytesIO(out.getvalue())).to_pylist()
    assert [row["geometry"] is None for row in rows] == [True, False, False, True, False, True]
    assert rows[4]["score"] is None
    exported(of(*odd))
    draw_overlay(np.zeros((20, 20, 3), np.uint8), 1, odd)


def test_parquet_of_nothing_can_be_read() -> None:
    out = io.BytesIO()
    assert write_parquet([], out) == 0
    assert pq.read_table(io.BytesIO(out.getvalue())).num_rows == 0


def test_wkb_closes_open_rings() -> None:
    data = to_wkb({"type": "Polygon", "coordinates": [[[0, 0], [0, 5], [5, 5]]]})
    assert struct.unpack_from("<BIII", data) == (1, 3, 1, 4)
    assert struct.unpack_from("<8d", data, 13) == (0, 0, 0, 5, 5, 5, 0, 0)


def white(height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.full((height, width, 3), 255, np.uint8)


def test_a_box_is_drawn_where_it_lies_in_its_class_colour() -> None:
    square = feature({"type": "Polygon", "coordinates": SQUARE})
    image = draw_overlay(white(50, 60), 10, {"type": "FeatureCollection", "features": [square]})
    assert image.size == (60, 50)
    assert image.getpixel((10, 20)) == (255, 0, 0)  # left edge at level-0 x = 100
    assert image.getpixel((30, 20)) == (255, 0, 0)
    inside, outside = image.getpixel((20, 20)), image.getpixel((45, 20))
    assert outside == (255, 255, 255)
    assert inside not in ((255, 255, 255), (255, 0, 0))


def test_a_given_colour_wins_and_classes_keep_theirs() -> None:
    def edge(**properties: Any) -> Any:
        square = feature({"type": "Polygon", "coordinates": SQUARE}, **properties)
        return draw_overlay(white(50, 60), 10, [square]).getpixel((10, 20))

    assert edge(color="#00ff00") == (0, 255, 0)
    assert edge(annotation_type="stroma") == edge(annotation_type="stroma") != edge(annotation_type="necrosis")


def test_points_lines_and_contours_are_drawn() -> None:
    shapes = [
        {"type": "Point", "coordinates": [50, 50]},
        {"type": "MultiPoint", "coordinates": [[50, 50]]},
        {"type": "LineString", "coordinates": [[50, 0], [50, 99]]},
        {"type": "MultiLineString", "coordinates": [[[0, 50], [99, 50]]]},
        {"type": "MultiPolygon", "coordinates": [[[[40, 40], [40, 60], [60, 60], [60, 40]]]]},
        {"type": "GeometryCollection", "geometries": [{"type": "Point", "coordinates": [50, 50]}]},
        {"type": "Polygon", "coordinates": [[[50, 50], [50, 50.2], [50.2, 50.2]]]},
    ]
    for shape in shapes:
        assert draw_overlay(white(100, 100), 1, [feature(shape)]).getpixel((50, 50)) != (255, 255, 255), shape


def test_a_close_up_shows_what_lies_in_it() -> None:
    square = feature({"type": "Polygon", "coordinates": SQUARE})
    image = crop_overlay(white(100, 100), (80, 80), 2, [square])
    assert image.getpixel((10, 50)) == (255, 0, 0)  # x = 100 of level 0
    assert image.getpixel((5, 50)) == (255, 255, 255)
    away = crop_overlay(white(100, 100), (5000, 5000), 2, [square])
    assert away.getcolors() == [(10_000, (255, 255, 255))]


def test_a_later_area_does_not_wipe_out_what_lies_in_it() -> None:
    shapes = [
        feature({"type": "Point", "coordinates": [200, 200]}),
        feature({"type": "Polygon", "coordinates": SQUARE}),
    ]
    both = draw_overlay(white(50, 60), 10, shapes)
    assert both.getpixel((20, 20)) != draw_overlay(white(50, 60), 10, shapes[1:]).getpixel((20, 20))
