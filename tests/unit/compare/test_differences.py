"""Differences of two results, by numbers that can be checked by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mhs_ray.compare.differences import Limits, Rules, Side, compare, faults_of
from mhs_ray.compare.match import match
from mhs_ray.compare.objects import marked
from mhs_ray.compare.report import side_by_side, write_page
from mhs_ray.compare.sides import Slides, of_file, paired
from mhs_ray.domain.errors import InvalidInputError


def square(x: float, y: float, side: float, kind: str = "tumor", **properties: Any) -> dict[str, Any]:
    ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
    own = {"annotation_type": kind, **properties}
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": own}


def point(x: float, y: float, kind: str = "mitosis") -> dict[str, Any]:
    geometry = {"type": "Point", "coordinates": [x, y]}
    return {"type": "Feature", "geometry": geometry, "properties": {"annotation_type": kind}}


def side(*features: dict[str, Any], **scan: Any) -> Side:
    case = scan.pop("caseResults", None)
    geojson = {"type": "FeatureCollection", "features": list(features)}
    return Side({"caseResults": case, "scanResults": [{"scanId": "7", "geojson": geojson, **scan}]})


def test_counts_areas_and_matches_are_told_per_class() -> None:
    first = side(square(0, 0, 10, score=0.5), square(100, 0, 10), square(0, 100, 10, "stroma"))
    second = side(square(0, 2, 10, score=0.75), square(300, 0, 20), square(0, 100, 10, "stroma"), point(5, 5))
    found = compare("slide", first, second, Rules()).document
    assert found["count"] == {"a": 3, "b": 4, "change": 33.333}
    assert found["area"] == {"a": 300.0, "b": 600.0, "change": 100.0}
    assert (found["matched"], found["only_a"], found["only_b"]) == (2, 1, 2)
    assert found["f1"] == pytest.approx(4 / 7, abs=1e-4)
    assert found["mean_iou"] == pytest.approx((80 / 120 + 1) / 2, abs=1e-4)
    assert found["mean_distance"] == 1.0
    assert found["mean_score_change"] == 0.25
    assert found["classes"]["stroma"]["f1"] == 1.0
    assert found["classes"]["mitosis"]["count"] == {"a": 0, "b": 1, "change": None}
    assert found["identical"] is False


def test_the_best_pair_is_taken_first_and_no_annotation_twice() -> None:
    a, _ = marked([square(0, 0, 10), square(1, 0, 10)])
    b, _ = marked([square(1, 0, 10), square(2, 0, 10)])
    pairs = match(a, b, min_iou=0.5, max_distance=16)
    assert sorted((p.a, p.b) for p in pairs) == [(0, 1), (1, 0)]
    assert next(p.iou for p in pairs if p.a == 1) == 1.0
    assert match(a, b, min_iou=0.9, max_distance=16)[0].a == 1
    assert len(match(a, b, min_iou=0.9, max_distance=16)) == 1


def test_points_match_by_distance_and_only_within_their_class() -> None:
    a, _ = marked([point(0, 0), point(100, 0), point(500, 500, "debris")])
    b, _ = marked([point(3, 4), point(100, 20), point(500, 500)])
    [pair] = match(a, b, min_iou=0.5, max_distance=16)
    assert (pair.a, pair.b, pair.iou, pair.distance) == (0, 0, None, 5.0)


def test_shapes_that_cross_themselves_count_and_those_without_any_are_told() -> None:
    bow = {"type": "Polygon", "coordinates": [[[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]]}
    odd = {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}
    features = [{"type": "Feature", "geometry": g, "properties": {"annotation_type": "x"}} for g in (bow, odd, None)]
    found, without = marked(features)
    assert [m.area for m in found] == [50.0]
    assert without == 2


def test_every_number_that_was_reported_is_compared() -> None:
    report = {"type": "WholeSlideDifferential", "points": [], "scores": {"ki67": 20.0}, "positivity_threshold": 1}
    first = side(results={"nested": {"area": 4}, "ok": True}, caseResults={"cells": 10}, workflow={"report": report})
    second = side(results={"nested": {"area": 5}, "new": 1}, caseResults={"cells": 10})
    values = compare("slide", first, second, Rules()).document["values"]
    assert values["results.nested.area"] == {"a": 4.0, "b": 5.0, "change": 25.0}
    assert values["caseResults.cells"]["change"] == 0.0
    assert values["results.new"] == {"a": None, "b": 1.0, "change": None}
    assert values["report.scores.ki67"]["b"] is None
    assert "results.ok" not in values


def test_limits_name_each_slide_and_number_that_is_beyond_them() -> None:
    first, second = side(square(0, 0, 10), caseResults={"cells": 10}), side(caseResults={"cells": 12})
    found = compare("a.svs", first, second, Rules()).document
    assert faults_of(found, Limits()) == []
    every = Limits(count_change=50, area_change=100, value_change=10, f1=0.9, identical=True)
    assert faults_of(found, every) == [
        "a.svs: the results are not identical",
        "a.svs: count 1 → 0 (-100 %); at most 50 % are allowed",
        "a.svs: F1 of matched annotations is 0; at least 0.9 is asked for",
        "a.svs: caseResults.cells 10 → 12 (+20 %); at most 10 % are allowed",
    ]
    nothing = compare("a.svs", side(), side(), Rules()).document
    assert nothing["f1"] == 1.0
    assert faults_of(nothing, every) == []


def test_a_slide_on_which_one_side_failed_is_never_within_the_limits() -> None:
    found = compare("a.svs", side(), Side(None, "exit-code: it broke"), Rules()).document
    assert faults_of(found, Limits()) == ["a.svs: not compared: B exit-code: it broke"]


def test_the_digest_does_not_depend_on_the_number_of_the_scan() -> None:
    body = dict(side(square(0, 0, 10)).body or {})
    other = {**body, "scanResults": [{**body["scanResults"][0], "scanId": "8", "jobId": 3, "qcFailReasons": None}]}
    assert Side(body).digest == Side(other).digest
    assert compare("slide", Side(body), Side(other), Rules()).document["identical"] is True
    assert Side(body).digest != side(square(0, 0, 11)).digest


def test_slides_are_paired_by_name_and_one_on_each_side_are_the_same(tmp_path: Path) -> None:
    a = Slides("a", {"x": side(), "y": side()}, {"x": "/x.svs", "y": None})
    b = Slides("b", {"y": side(), "z": side()}, {"y": "/y.svs", "z": None})
    rows = {name: (one.body is not None, other.body is not None, slide) for name, one, other, slide in paired(a, b)}
    assert rows == {"x": (True, False, "/x.svs"), "y": (True, True, "/y.svs"), "z": (False, True, None)}
    one, other = Slides("a", {"x": side()}, {"x": None}), Slides("b", {"z": side()}, {"z": "/z.svs"})
    assert [(name, slide) for name, _, _, slide in paired(one, other)] == [("x", "/z.svs")]
    (tmp_path / "results.json").write_text('{"scanResults": [{"scanId": "007"}, {"scanId": "8"}]}')
    assert list(of_file(tmp_path / "results.json").sides) == ["scan 7", "scan 8"]
    (tmp_path / "results.json").write_text('{"scanResults": 3}')
    with pytest.raises(InvalidInputError, match="no file of results"):
        of_file(tmp_path / "results.json")


def test_what_only_one_side_has_is_ringed_on_its_side(tmp_path: Path) -> None:
    first, second = side(square(100, 100, 50), point(300, 300)), side(square(100, 100, 50), point(20, 300))
    found = compare("slide", first, second, Rules())
    picture = side_by_side(np.full((200, 200, 3), 255, np.uint8), 2.0, first.features(), second.features(), found)
    assert picture.size == (412, 200)
    left, right = np.asarray(picture.crop((0, 0, 200, 200))), np.asarray(picture.crop((212, 0, 412, 200)))

    def has(part: np.ndarray, color: tuple[int, int, int]) -> bool:
        return bool((part == color).all(-1).any())

    assert has(left, (0, 90, 255))
    assert not has(left, (255, 120, 0))
    assert has(right, (255, 120, 0))
    assert not has(right, (0, 90, 255))


def test_the_page_holds_everything_and_trusts_no_name(tmp_path: Path) -> None:
    first = side(square(0, 0, 10, "<script>alert(1)</script>"), caseResults={"<b>": 1})
    found = compare("<i>.svs", first, first, Rules()).document
    document = {"a": "v1&", "b": "v2", "slides": [found], "faults": ["<u>"]}
    write_page(tmp_path / "report.html", document, {"<i>.svs": Image.new("RGB", (4, 4))})
    page = (tmp_path / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    for raw in ("<script", "<i>", "<b>", "<u>", "v1& ", "http:"):
        assert raw not in page
