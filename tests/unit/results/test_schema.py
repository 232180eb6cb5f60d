"""Every rule of techcyte-contract §3 on posted results: what is taken, what is refused, and at which JSON path."""

from __future__ import annotations

import copy
import json
import tracemalloc
from typing import Any

import pytest

from mhs_ray.domain.errors import InvalidInputError
from mhs_ray.results.examples import SCAN_NUMBER, examples
from mhs_ray.results.jsonwalk import MAX_FAULTS
from mhs_ray.results.reports import REPORT_TYPES
from mhs_ray.results.schema import ParsedResults, Triage, parse_results
from mhs_ray.results.wire import ResultsBody

SCAN = str(SCAN_NUMBER)
EXAMPLES = examples()
AT = "$.scanResults[0]"
GEO = f"{AT}.geojson"
REPORT = f"{AT}.workflow.report"
SQUARE = [[[0, 0], [0, 5], [5, 5], [5, 0], [0, 0]]]


def parse(body: Any, scans: tuple[int, ...] = (SCAN_NUMBER, 77)) -> ParsedResults:
    return parse_results(body if isinstance(body, bytes) else json.dumps(body).encode(), task_scans=scans)


def paths(body: Any) -> list[str]:
    with pytest.raises(InvalidInputError) as caught:
        parse(body)
    assert all(f.message for f in caught.value.faults)
    return [f.path for f in caught.value.faults]


def scan(**keys: Any) -> dict[str, Any]:
    return {"scanResults": [{"scanId": SCAN, **keys}]}


def geo(*features: Any, **more: Any) -> dict[str, Any]:
    return scan(geojson={"type": "FeatureCollection", "features": list(features), **more})


def feature(geometry: Any = None, **more: Any) -> dict[str, Any]:
    return {"type": "Feature", "geometry": geometry, "properties": {"annotation_type": "tumor"}, **more}


def geometry(of: str, coordinates: Any) -> dict[str, Any]:
    return geo(feature({"type": of, "coordinates": coordinates}))


def report(of: str, **changes: Any) -> dict[str, Any]:
    """The example of a report type with keys changed; ... removes one."""
    body = copy.deepcopy(EXAMPLES[of])
    inner = body["scanResults"][0]["workflow"]["report"]
    for key, value in changes.items():
        if value is ...:
            del inner[key]
        else:
            inner[key] = value
    return body


def nested(of: str, path: list[Any], value: Any) -> dict[str, Any]:
    body = report(of)
    at = body["scanResults"][0]["workflow"]["report"]
    for part in path[:-1]:
        at = at[part]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return body


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_every_example_is_taken(name: str) -> None:
    (result,) = parse(EXAMPLES[name]).scans
    assert result.scan_number == SCAN_NUMBER
    if name in REPORT_TYPES:
        assert result.report is not None
        assert result.report["type"] == name


def test_there_is_an_example_of_every_report_type() -> None:
    assert set(REPORT_TYPES) < set(EXAMPLES)
    assert set(ResultsBody.model_json_schema()["$defs"]) >= set(REPORT_TYPES)


TAKEN: dict[str, Any] = {
    "no scans at all": {"scanResults": []},
    "case results of any shape": {"caseResults": {"a": [1, {"b": None}]}, "scanResults": []},
    "null case results": {"caseResults": None, "scanResults": []},
    "null triage": {"caseResults": {"triage": None}, "scanResults": []},
    "a triage with an integer score and more keys": {
        "caseResults": {"triage": {"category": "", "score": 1, "x": 2}},
        "scanResults": [],
    },
    "unknown keys everywhere": {"x": 1, **scan(y=2, workflow={"z": 3}), "schema": "v7"},
    "nulls for optional keys": scan(results=None, geojson=None, qcFailReasons=None, workflow=None),
    "leading zeros in a scan id": {"scanResults": [{"scanId": "0" + SCAN}]},
    "an external_url that is no string": scan(results={"external_url": {"a": 1}}),
    "an empty feature collection": geo(),
    "members of the collection that we do not know": geo(bbox=[0, 0, 1, 1], crs={"type": "name"}),
    "a null geometry": geo(feature(None)),
    "no geometry and no type": geo({"properties": {"annotation_type": ""}}),
    "an unclosed ring": geometry("Polygon", [[[0, 0], [0, 5], [5, 5]]]),
    "an empty polygon": geometry("Polygon", []),
    "altitudes": geometry("Point", [1, 2.5, 3]),
    "negative and huge coordinates": geometry("LineString", [[-1e9, 1e300], [0, 10**30]]),
    "a point": geometry("Point", [1, 2]),
    "a multipoint": geometry("MultiPoint", [[1, 2]]),
    "a line": geometry("LineString", [[1, 2], [3, 4]]),
    "lines": geometry("MultiLineString", [[[1, 2], [3, 4]]]),
    "a multipolygon": geometry("MultiPolygon", [SQUARE, SQUARE]),
    "collections in collections": geo(
        feature({"type": "GeometryCollection", "geometries": [{"type": "GeometryCollection", "geometries": [None]}]})
    ),
    "a bbox of six": geo(feature(bbox=[0, 0, 0, 1, 1, 1])),
    "qc: an explicit pass": scan(qcFailReasons=[]),
    "qc: reasons that nobody configured": scan(qcFailReasons=["x", ""]),
    "a workflow without report": scan(workflow={"model_name": "m", "provider": "p", "ruo": False}),
    "ruo as Techcyte's example has it": scan(workflow={"ruo": "True"}),
    "a null report": scan(workflow={"report": None}),
    "Basic without segments": report("Basic", segments=...),
    "a segment without result": nested("Basic", ["segments", 0, "result"], ...),
    "null other_segments": report("TumorCellularity", other_segments=None),
    "no other_segments": report("TumorCellularity", other_segments=...),
    "no distributions": nested("TumorCellularity", ["threshold_map", "50 %", "distributions"], ...),
    "unknown keys in a report": nested("WholeSlideDifferential", ["points", 0, "more"], [1]),
    "no points": report("WholeSlideDifferential", points=[], scores={}),
    "a report beside workflow": scan(report={"type": "Basic"}),
    "an unknown key named report": scan(report="free text"),
    "a byte order mark": b"\xef\xbb\xbf" + json.dumps(scan()).encode(),
    "99 levels": scan(results={"a": json.loads("[" * 98 + "]" * 98)}),
}


@pytest.mark.parametrize("body", TAKEN.values(), ids=TAKEN)
def test_what_the_contract_does_not_refuse_is_taken(body: Any) -> None:
    parse(body)


REFUSED: dict[str, tuple[Any, list[str]]] = {
    "an array": ([], ["$"]),
    "null": (None, ["$"]),
    "no JSON": (b"{", ["$"]),
    "an empty body": (b"", ["$"]),
    "two values": (b'{"scanResults":[]} {}', ["$"]),
    "a trailing comma": (b'{"scanResults":[],}', ["$"]),
    "a missing colon": (b'{"scanResults" []}', ["$"]),
    "no UTF-8": (b'{"scanResults":[],"a":"\xff"}', ["$"]),
    "a bomb of arrays": (b'{"scanResults":' + b"[" * 1_000_000, ["$"]),
    "a bomb of objects": (b'{"a":' * 200_000, ["$"]),
    "an endless integer": (b'{"scanResults":[],"a":' + b"9" * 100_000 + b"}", ["$"]),
    "no scanResults": ({}, ["$.scanResults"]),
    "scanResults as an object": ({"scanResults": {}}, ["$.scanResults"]),
    "scanResults twice": (b'{"scanResults":[],"scanResults":[]}', ["$.scanResults"]),
    "geojson twice": (
        b'{"scanResults":[{"scanId":"77","geojson":{"type":"FeatureCollection","features":[]},'
        b'"geojson":{"type":"FeatureCollection","features":[]}}]}',
        [GEO],
    ),
    "case results as a list": ({"caseResults": [], "scanResults": []}, ["$.caseResults"]),
    "a triage without score": (
        {"caseResults": {"triage": {"category": "x"}}, "scanResults": []},
        ["$.caseResults.triage.score"],
    ),
    "a triage of wrong types": (
        {"caseResults": {"triage": {"category": 1, "score": "0.5"}}, "scanResults": []},
        ["$.caseResults.triage.category", "$.caseResults.triage.score"],
    ),
    "a scan that is no object": ({"scanResults": [3]}, ["$.scanResults[0]"]),
    "no scan id": ({"scanResults": [{}]}, [f"{AT}.scanId"]),
    "a scan id as a number": ({"scanResults": [{"scanId": SCAN_NUMBER}]}, [f"{AT}.scanId"]),
    "a scan id with letters": ({"scanResults": [{"scanId": "T1J4"}]}, [f"{AT}.scanId"]),
    "a scan id with a line end": ({"scanResults": [{"scanId": SCAN + "\n"}]}, [f"{AT}.scanId"]),
    "a scan id in other digits": ({"scanResults": [{"scanId": "٧٧"}]}, [f"{AT}.scanId"]),
    "an endless scan id": ({"scanResults": [{"scanId": "7" * 5000}]}, [f"{AT}.scanId"]),
    "a scan of another task": ({"scanResults": [{"scanId": "78"}]}, [f"{AT}.scanId"]),
    "one scan twice": ({"scanResults": [{"scanId": "77"}, {"scanId": "077"}]}, ["$.scanResults[1].scanId"]),
    "results as a list": (scan(results=[1]), [f"{AT}.results"]),
    "a summary that is a number": (scan(results={"summary": 4}), [f"{AT}.results.summary"]),
    "a null summary": (scan(results={"summary": None}), [f"{AT}.results.summary"]),
    "geojson as a list": (scan(geojson=[]), [GEO]),
    "geojson as text": (scan(geojson="{}"), [GEO]),
    "no type and no features": (scan(geojson={}), [f"{GEO}.features", f"{GEO}.type"]),
    "a single feature": (scan(geojson=feature()), [f"{GEO}.features", f"{GEO}.type"]),
    "features as an object": (scan(geojson={"type": "FeatureCollection", "features": {}}), [f"{GEO}.features"]),
    "a feature that is none": (geo(feature(), 5), [f"{GEO}.features[1]"]),
    "a feature of another type": (geo(feature(type="Polygon")), [f"{GEO}.features[0].type"]),
    "no properties": (geo({"type": "Feature"}), [f"{GEO}.features[0].properties.annotation_type"]),
    "null properties": (geo(feature(properties=None)), [f"{GEO}.features[0].properties.annotation_type"]),
    "no annotation_type": (geo(feature(properties={})), [f"{GEO}.features[0].properties.annotation_type"]),
    "a null annotation_type": (
        geo(*[feature()] * 3, feature(properties={"annotation_type": None})),
        [f"{GEO}.features[3].properties.annotation_type"],
    ),
    "an annotation_type that is a number": (
        geo(feature(properties={"annotation_type": 1})),
        [f"{GEO}.features[0].properties.annotation_type"],
    ),
    "an unknown geometry": (geometry("Circle", [1, 2]), [f"{GEO}.features[0].geometry.type"]),
    "a geometry type that cannot be hashed": (
        geo(feature({"type": []})),
        [f"{GEO}.features[0].geometry.type"],
    ),
    "a geometry as a list": (geo(feature([1, 2])), [f"{GEO}.features[0].geometry"]),
    "no coordinates": (geo(feature({"type": "Point"})), [f"{GEO}.features[0].geometry.coordinates"]),
    "a position of one number": (geometry("Point", [1]), [f"{GEO}.features[0].geometry.coordinates"]),
    "too few arrays": (geometry("Polygon", [[1, 2], [3, 4]]), [f"{GEO}.features[0].geometry.coordinates[0][0]"]),
    "too many arrays": (geometry("Point", [[1, 2], [2, 3]]), [f"{GEO}.features[0].geometry.coordinates[0]"]),
    "a coordinate as text": (geometry("Point", [1, "2"]), [f"{GEO}.features[0].geometry.coordinates[1]"]),
    "a coordinate as a boolean": (geometry("Point", [True, 2]), [f"{GEO}.features[0].geometry.coordinates[0]"]),
    "a coordinate beyond numbers": (geometry("Point", [10**400, 2]), [f"{GEO}.features[0].geometry.coordinates[0]"]),
    "NaN as a coordinate": (geometry("Point", [1, float("nan")]), [f"{GEO}.features[0].geometry.coordinates[1]"]),
    "NaN in a property": (
        geo(feature(properties={"annotation_type": "a", "score": float("nan")})),
        [f"{GEO}.features[0].properties.score"],
    ),
    "NaN in a member of a geometry": (
        geo(feature({"type": "Point", "coordinates": [1, 2], "geometries": [float("nan")]})),
        [f"{GEO}.features[0].geometry.geometries[0]"],
    ),
    "geometries as an object": (
        geo(feature({"type": "GeometryCollection", "geometries": {}})),
        [f"{GEO}.features[0].geometry.geometries"],
    ),
    "a geometry inside a collection": (
        geo(feature({"type": "GeometryCollection", "geometries": [{"type": "Point", "coordinates": []}]})),
        [f"{GEO}.features[0].geometry.geometries[0].coordinates"],
    ),
    "Infinity in results": (scan(results={"a": [float("inf")]}), [f"{AT}.results.a[0]"]),
    "1e999 in case results": (b'{"caseResults":{"two words":1e999},"scanResults":[]}', ['$.caseResults["two words"]']),
    "101 levels": (b'{"scanResults":[],"a":' + b"[" * 101 + b"]" * 101 + b"}", ["$.a" + "[0]" * 100]),
    "qcFailReasons as text": (scan(qcFailReasons="blurry"), [f"{AT}.qcFailReasons"]),
    "a reason that is no string": (scan(qcFailReasons=["a", 1]), [f"{AT}.qcFailReasons[1]"]),
    "a workflow as a list": (scan(workflow=[]), [f"{AT}.workflow"]),
    "workflow fields of wrong types": (
        scan(workflow={"model_name": 1, "provider": [], "ruo": "yes", "key": 2, "value": 0.5}),
        [f"{AT}.workflow.{key}" for key in ("model_name", "provider", "ruo", "key", "value")],
    ),
    "ruo as a number": (scan(workflow={"ruo": 1}), [f"{AT}.workflow.ruo"]),
    "a report without type": (scan(workflow={"report": {}}), [f"{REPORT}.type"]),
    "an unknown report type": (scan(workflow={"report": {"type": "basic"}}), [f"{REPORT}.type"]),
    "a report type as a list": (scan(workflow={"report": {"type": ["Basic"]}}), [f"{REPORT}.type"]),
    "a report as text": (scan(workflow={"report": "Basic"}), [REPORT]),
    "an unknown type beside workflow": (scan(report={"type": "X"}), [f"{AT}.report.type"]),
    "Basic: a number as result": (nested("Basic", ["results", 1, "result"], 4), [f"{REPORT}.results[1].result"]),
    "Basic: a result without name": (nested("Basic", ["results", 1, "name"], ...), [f"{REPORT}.results[1].name"]),
    "Basic: no features": (
        nested("Basic", ["segments", 0, "feature_collection"], ...),
        [f"{REPORT}.segments[0].feature_collection"],
    ),
    "Basic: a bad geometry": (
        nested("Basic", ["segments", 1, "feature_collection", "features", 1, "geometry"], {"type": "Point"}),
        [f"{REPORT}.segments[1].feature_collection.features[1].geometry.coordinates"],
    ),
    "a point without score": (
        nested("WholeSlideDifferential", ["points", 2, "score"], ...),
        [f"{REPORT}.points[2].score"],
    ),
    "a point with text for x": (nested("WholeSlideDifferential", ["points", 2, "x"], "1"), [f"{REPORT}.points[2].x"]),
    "a point beyond numbers": (
        nested("WholeSlideDifferential", ["points", 0, "x"], 10**400),
        [f"{REPORT}.points[0].x"],
    ),
    "NaN in a point": (
        nested("WholeSlideDifferential", ["points", 0, "y"], float("nan")),
        [f"{REPORT}.points[0].y"],
    ),
    "a score that is null": (report("WholeSlideDifferential", scores={"bool": None}), [f"{REPORT}.scores.bool"]),
    "no threshold": (report("WholeSlideDifferential", positivity_threshold=...), [f"{REPORT}.positivity_threshold"]),
    "a region that is a point": (
        nested("AreaDifferential", ["regions", 0, "region", "geometry"], {"type": "Point", "coordinates": [1, 2]}),
        [f"{REPORT}.regions[0].region.geometry"],
    ),
    "a region without weight": (
        nested("AreaDifferential", ["regions", 1, "weight"], ...),
        [f"{REPORT}.regions[1].weight"],
    ),
    "semi-quantitative without points": (report("SemiQuantitativeDifferential", points=...), [f"{REPORT}.points"]),
    "a box without width": (nested("RegionCounting", ["objects", 0, "width"], ...), [f"{REPORT}.objects[0].width"]),
    "mitoses in a region that is none": (report("AiMitosisCounting", regions=[1]), [f"{REPORT}.regions[0]"]),
    "cellularity without map": (report("TumorCellularity", threshold_map=...), [f"{REPORT}.threshold_map"]),
    "cellularity without area": (
        nested("TumorCellularity", ["threshold_map", "20 %", "area"], ...),
        [f'{REPORT}.threshold_map["20 %"].area'],
    ),
    "a count as text": (
        nested("TumorCellularity", ["threshold_map", "20 %", "counts", 0, "count"], "3"),
        [f'{REPORT}.threshold_map["20 %"].counts[0].count'],
    ),
    "a share without fraction": (
        nested("TumorCellularity", ["threshold_map", "20 %", "distributions", "tissue", 1, "fraction"], ...),
        [f'{REPORT}.threshold_map["20 %"].distributions.tissue[1].fraction'],
    ),
    "another segment without name": (
        nested("TumorCellularity", ["other_segments", "excluded", 0, "name"], ...),
        [f"{REPORT}.other_segments.excluded[0].name"],
    ),
}


@pytest.mark.parametrize(("body", "where"), REFUSED.values(), ids=REFUSED)
def test_what_the_contract_refuses_is_refused_at_its_path(body: Any, where: list[str]) -> None:
    assert sorted(paths(body)) == sorted(where)


def test_one_bad_scan_refuses_the_good_ones_and_every_fault_is_named() -> None:
    body = {
        "caseResults": {"triage": 1},
        "scanResults": [
            {"scanId": SCAN, "geojson": {"type": "FeatureCollection", "features": [feature()]}},
            {"scanId": "77", "results": {"summary": 1}, "qcFailReasons": {}},
        ],
    }
    where = ["$.caseResults.triage", "$.scanResults[1].qcFailReasons", "$.scanResults[1].results.summary"]
    assert sorted(paths(body)) == where


def test_faults_of_features_are_listed_up_to_a_hundred_and_then_counted() -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse(geo(*[{"type": "Feature"}] * 5000))
    assert len(caught.value.faults) == MAX_FAULTS + 1
    assert caught.value.faults[-1].message == "and 4900 more faults"


def test_a_string_external_url_is_lifted_out_and_anything_else_stays() -> None:
    (lifted,) = parse(scan(results={"external_url": "https://x", "a": 1})).scans
    assert (lifted.external_url, lifted.results) == ("https://x", {"a": 1})
    (left,) = parse(scan(results={"external_url": 5})).scans
    assert (left.external_url, left.results) == (None, {"external_url": 5})


def test_qc_omitted_null_pass_and_reasons_are_told_apart() -> None:
    given = [scan(), scan(qcFailReasons=None), scan(qcFailReasons=[]), scan(qcFailReasons=["blurry"])]
    assert [parse(body).scans[0].qc_fail_reasons for body in given] == [None, None, (), ("blurry",)]


def test_triage_is_read() -> None:
    assert parse(EXAMPLES["geojson"]).triage == Triage("Basaloid", 0.87)
    assert parse(scan()).triage is None


def test_posted_features_are_kept_as_they_were() -> None:
    (result,) = parse(EXAMPLES["geojson"]).scans
    assert result.geojson is not None
    posted = EXAMPLES["geojson"]["scanResults"][0]["geojson"]
    assert result.geojson.load() == posted
    assert list(result.geojson.features()) == posted["features"]
    assert result.geojson.count == 3
    assert result.annotation_counts == {"tumor": 1, "mitosis": 1, "tumor_confidence": 1}


def shuffled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(value)}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_the_digest_ignores_key_order_and_white_space_only(name: str) -> None:
    plain = parse(EXAMPLES[name])
    other = parse(json.dumps(shuffled(EXAMPLES[name]), indent=3).encode())
    assert [s.digest for s in plain.scans] == [s.digest for s in other.scans]
    assert plain.digest == other.digest
    changed = copy.deepcopy(EXAMPLES[name])
    changed["scanResults"][0]["results"] = {"different": True}
    assert parse(changed).scans[0].digest != plain.scans[0].digest


def test_the_digest_sees_a_changed_feature_and_the_order_of_features() -> None:
    a, b = feature(bbox=[0, 0, 1, 1]), feature(bbox=[0, 0, 1, 2])
    digests = {parse(geo(*features)).scans[0].digest for features in ([a, b], [b, a], [a, a], [a])}
    assert len(digests) == 4


def test_half_a_surrogate_in_free_text_does_no_harm() -> None:
    (result,) = parse(b'{"scanResults":[{"scanId":"77","results":{"summary":"\\ud800","\\udfff":1}}]}').scans
    assert result.results is not None
    assert paths(b'{"scanResults":[{"scanId":"77","results":{"\\ud800":NaN}}]}') == [f'{AT}.results["\\ud800"]']


def many(count: int) -> bytes:
    one = json.dumps(feature({"type": "Polygon", "coordinates": SQUARE})).encode()
    head = b'{"scanResults":[{"scanId":"77","geojson":{"features":['
    return head + b",".join([one] * count) + b'],"type":"FeatureCollection"}}]}'


def test_two_hundred_thousand_features_are_taken() -> None:
    assert parse(many(200_000)).scans[0].annotation_counts == {"tumor": 200_000}


def test_features_take_little_more_memory_than_their_text() -> None:
    body = many(20_000)
    tracemalloc.start()
    try:
        parse(body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * len(body)
