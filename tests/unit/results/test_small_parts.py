"""Case patches, evaluations, bounding boxes and summaries."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mhs_ray.domain.errors import InvalidInputError
from mhs_ray.results.bbox import feature_bbox
from mhs_ray.results.evaluations import EvaluationRow, evaluations_wire
from mhs_ray.results.examples import SCAN_NUMBER, examples
from mhs_ray.results.schema import parse_results
from mhs_ray.results.summary import summary
from mhs_ray.results.triage import CasePatch, parse_case_patch


@pytest.mark.parametrize(
    ("body", "patch"),
    [
        ({}, CasePatch()),
        ({"triage_category": "urgent"}, CasePatch("urgent")),
        ({"triage_score": 0.5}, CasePatch(None, 0.5)),
        ({"triage_score": 1, "triage_category": "", "later": 1}, CasePatch("", 1)),
    ],
)
def test_a_case_patch_changes_only_what_it_names(body: Any, patch: CasePatch) -> None:
    assert parse_case_patch(json.dumps(body).encode()) == patch


@pytest.mark.parametrize(
    ("body", "paths"),
    [
        (b"[]", ["$"]),
        (b"", ["$"]),
        (b"{} {}", ["$"]),
        (b'{"triage_category": 1, "triage_score": "high"}', ["$.triage_category", "$.triage_score"]),
        (b'{"triage_score": true}', ["$.triage_score"]),
        (b'{"triage_score": NaN}', ["$.triage_score"]),
        (b'{"triage_score": 1e999}', ["$.triage_score"]),
    ],
)
def test_a_wrong_case_patch_names_its_faults(body: bytes, paths: list[str]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_case_patch(body)
    assert sorted(f.path for f in caught.value.faults) == paths


def test_an_evaluation_has_its_report_and_no_workflow() -> None:
    rows = [
        EvaluationRow(1, 77, 2421366, 185714, {"mitoses": 4}, "https://x", {"total": 4}),
        EvaluationRow(2, 78, None, 185714, None, None, None),
    ]
    assert evaluations_wire(rows) == [
        {
            "id": 1,
            "sample_id": 77,
            "case_id": 2421366,
            "task_id": 185714,
            "details": {"report": {"mitoses": 4}, "external_url": "https://x", "caseReport": {"total": 4}},
        },
        {"id": 2, "sample_id": 78, "case_id": None, "task_id": 185714, "details": {"report": {}}},
    ]


TRIANGLE = {"type": "Polygon", "coordinates": [[[5, 1], [2, 9], [7, 4]]]}


@pytest.mark.parametrize(
    ("feature", "box"),
    [
        ({"bbox": [1, 2, 3, 4], "geometry": TRIANGLE}, (1, 2, 3, 4)),
        ({"bbox": [1, 2, 0, 3, 4, 0], "geometry": TRIANGLE}, (2, 1, 7, 9)),
        ({"bbox": ["1", 2, 3, 4], "geometry": TRIANGLE}, (2, 1, 7, 9)),
        ({"geometry": TRIANGLE}, (2, 1, 7, 9)),
        ({"geometry": {"type": "Polygon", "coordinates": []}}, (0, 0, 0, 0)),
        ({"geometry": {"type": "Point", "coordinates": [5, 5]}}, (0, 0, 0, 0)),
        ({"geometry": None}, (0, 0, 0, 0)),
        ({}, (0, 0, 0, 0)),
    ],
)
def test_a_bounding_box_is_the_bbox_else_the_polygons_extent_else_zeros(feature: Any, box: Any) -> None:
    assert feature_bbox(feature) == box


HEADLINES = {
    "geojson": {"summary": "4 mitoses in 2.37 mm²", "mitosis_count": 4},
    "qc_fail": {"summary": "out of focus in the lower half"},
    "Basic": {"Result": "Malignant", "Mitosis count": "4", "Tumor share": "38.2 %"},
    "WholeSlideDifferential": {"summary": "Ki-67 index 60 %", "Ki-67 index": 60.0, "cells": 5, "points": 5},
    "AreaDifferential": {"ER positivity": 52.0, "regions": 2},
    "SemiQuantitativeDifferential": {"gram positive cocci": 2, "white blood cell": 1, "points": 3},
    "RegionCounting": {"objects": 3, "regions": 1},
    "AiMitosisCounting": {"summary": "2 mitoses in 10 HPF", "objects": 2, "regions": 1},
    "TumorCellularity": {"20 %": 0.412, "50 %": 0.673},
}


@pytest.mark.parametrize("name", sorted(examples()))
def test_a_summary_says_what_a_row_needs(name: str) -> None:
    parsed = parse_results(json.dumps(examples()[name]).encode(), task_scans={SCAN_NUMBER})
    row = summary(parsed)[SCAN_NUMBER]
    assert row["headlines"] == HEADLINES[name]
    assert row["report"] == (name if name[0].isupper() else None)
    assert row["features"] == sum(row["annotations"].values())
    assert row["qc"] == {"geojson": "pass", "qc_fail": ["Out of focus", "pen mark over tissue"]}.get(name)
