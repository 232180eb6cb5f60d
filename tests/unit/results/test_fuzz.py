"""Nothing that is posted breaks the reader, and what is valid goes through unchanged."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mhs_ray.domain.errors import Fault, InvalidInputError
from mhs_ray.results.examples import SCAN_NUMBER, examples
from mhs_ray.results.export import write_geojson
from mhs_ray.results.features import ExportItem, iter_features
from mhs_ray.results.geojson import GeoJson
from mhs_ray.results.overlay import draw_overlay
from mhs_ray.results.parquet import write_parquet
from mhs_ray.results.reports import REPORT_TYPES
from mhs_ray.results.schema import parse_results
from mhs_ray.results.summary import summary
from mhs_ray.results.triage import parse_case_patch

EXAMPLES = examples()
WORDS = sorted(
    {"scanResults", "caseResults", "scanId", "geojson", "features", "type", "FeatureCollection", "geometry", "bbox"}
    | {"properties", "annotation_type", "coordinates", "geometries", "workflow", "report", "qcFailReasons", "triage"}
    | {"results", "summary", "external_url", "points", "regions", "segments", str(SCAN_NUMBER), "Point", "Feature"}
    | {"Polygon", "GeometryCollection", *REPORT_TYPES}
)
texts = st.sampled_from(WORDS) | st.text(max_size=8)
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=5),
    max_leaves=25,
)
finite = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**12), 10**12)
clean_json = st.recursive(
    st.none() | st.booleans() | finite | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
position = st.lists(finite, min_size=2, max_size=3)
rings = st.lists(st.lists(position, max_size=5), max_size=2)
simple = st.one_of(
    st.builds(lambda c: {"type": "Point", "coordinates": c}, position),
    st.builds(lambda c: {"type": "MultiPoint", "coordinates": c}, st.lists(position, max_size=4)),
    st.builds(lambda c: {"type": "LineString", "coordinates": c}, st.lists(position, max_size=4)),
    st.builds(lambda c: {"type": "Polygon", "coordinates": c}, rings),
    st.builds(lambda c: {"type": "MultiLineString", "coordinates": c}, rings),
    st.builds(lambda c: {"type": "MultiPolygon", "coordinates": c}, st.lists(rings, max_size=2)),
)
geometries = st.none() | st.recursive(
    simple,
    lambda inner: st.builds(
        lambda g: {"type": "GeometryCollection", "geometries": g}, st.lists(inner | st.none(), max_size=3)
    ),
    max_leaves=4,
)
features = st.builds(
    lambda geometry, properties, of, more: {
        **more,
        "type": "Feature",
        "geometry": geometry,
        "properties": {**properties, "annotation_type": of},
    },
    geometries,
    st.dictionaries(st.sampled_from(["name", "color", "score", "contour_colors", "classification", "x"]), clean_json),
    st.text(max_size=6),
    st.dictionaries(st.sampled_from(["bbox", "id", "extra"]), clean_json),
)
valid = st.builds(
    lambda features, results, reasons, of, case: {
        **({} if case is None else {"caseResults": case}),
        "scanResults": [
            {
                "scanId": str(SCAN_NUMBER),
                "geojson": {"features": features, "type": "FeatureCollection"},
                "results": results,
                "qcFailReasons": reasons,
                "workflow": EXAMPLES[of]["scanResults"][0]["workflow"],
            }
        ],
    },
    st.lists(features, max_size=4),
    st.dictionaries(st.text(max_size=6).filter(lambda k: k not in ("summary", "external_url")), clean_json, max_size=3),
    st.none() | st.lists(st.text(max_size=6), max_size=2),
    st.sampled_from(REPORT_TYPES),
    st.none() | st.dictionaries(st.text(max_size=6).filter(lambda k: k != "triage"), clean_json, max_size=3),
)


def faults_of(read: Callable[[], object]) -> tuple[Fault, ...] | None:
    try:
        read()
    except InvalidInputError as e:
        return e.faults
    return None


def only_invalid_input(body: bytes) -> None:
    faults = faults_of(lambda: summary(parse_results(body, task_scans={SCAN_NUMBER})))
    assert faults is None or (faults and all(f.path.startswith("$") and f.message for f in faults))


@given(st.binary(max_size=200))
def test_any_bytes_end_in_results_or_invalid_input(body: bytes) -> None:
    only_invalid_input(body)


@given(any_json)
@settings(max_examples=300)
def test_any_json_ends_in_results_or_invalid_input(value: Any) -> None:
    only_invalid_input(json.dumps(value).encode())
    only_invalid_input(json.dumps({"scanResults": [{"scanId": str(SCAN_NUMBER), "geojson": value}]}).encode())
    assert faults_of(lambda: parse_case_patch(json.dumps(value).encode())) != ()


@given(st.sampled_from(sorted(EXAMPLES)), st.data())
@settings(max_examples=300)
def test_an_example_with_one_part_replaced_ends_in_results_or_invalid_input(name: str, data: Any) -> None:
    body = json.loads(json.dumps(EXAMPLES[name]))
    at: Any = body
    while True:
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if isinstance(at[key], dict | list) and at[key] and data.draw(st.integers(0, 5)):
            at = at[key]
            continue
        at[key] = data.draw(any_json)
        break
    only_invalid_input(json.dumps(body).encode())


@given(st.sampled_from(sorted(EXAMPLES)), st.data())
def test_a_body_cut_short_is_invalid(name: str, data: Any) -> None:
    whole = json.dumps(EXAMPLES[name]).encode()
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(InvalidInputError):
        parse_results(whole[:cut], task_scans={SCAN_NUMBER})


@given(valid, st.sampled_from([None, 1, "\t"]))
@settings(max_examples=200)
def test_valid_bodies_are_taken_and_come_back_as_they_were(body: dict[str, Any], indent: Any) -> None:
    parsed = parse_results(json.dumps(body, indent=indent).encode(), task_scans={SCAN_NUMBER})
    (scan,) = parsed.scans
    (posted,) = body["scanResults"]
    assert scan.geojson is not None
    assert scan.geojson.load() == posted["geojson"]
    assert list(scan.geojson.features()) == posted["geojson"]["features"]
    assert GeoJson.of(posted["geojson"]).count == scan.geojson.count
    assert scan.results == posted["results"]
    assert scan.workflow == posted["workflow"]
    assert parsed.case_results == body.get("caseResults")
    assert parsed.digest == parse_results(json.dumps(body).encode(), task_scans={SCAN_NUMBER}).digest


@given(valid)
def test_valid_bodies_can_be_exported_and_drawn(body: dict[str, Any]) -> None:
    (scan,) = parse_results(json.dumps(body).encode(), task_scans={SCAN_NUMBER}).scans
    item = ExportItem(1, scan.scan_number, None, scan.geojson, scan.report)
    out = io.BytesIO()
    write_geojson([item], out)
    json.loads(out.getvalue(), parse_constant=pytest.fail)
    assert write_parquet([item], io.BytesIO()) == sum(1 for _ in iter_features(item))
    draw_overlay(np.zeros((40, 40, 3), np.uint8), 500, iter_features(item))
