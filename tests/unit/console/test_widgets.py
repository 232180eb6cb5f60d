"""Every report type of the contract as widgets, from the bodies that the gateway's own examples have."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from api.console.widgets import Widget, report_widgets, widgets_of
from mhs_ray.results.examples import examples
from mhs_ray.results.reports import REPORT_TYPES
from mhs_ray.store.sql.results import StoredResult


def _report(kind: str) -> dict[str, Any]:
    report: dict[str, Any] = examples()[kind]["scanResults"][0]["workflow"]["report"]
    return report


def _titled(widgets: list[Widget], title: str) -> Widget:
    (found,) = [w for w in widgets if w.title == title]
    return found


def _stored(**values: Any) -> StoredResult:
    defaults: dict[str, Any] = {
        "id": 1, "task_number": 1, "case_number": None, "scan_id": 1, "scan_number": 1, "job_id": 1, "attempt": 1,
        "run": 0, "digest": "d", "report": None, "external_url": None, "case_results": None, "qc_fail_reasons": None,
        "workflow": None, "summary": {}, "geojson_key": None, "features": 0, "created_at": datetime.now(UTC),
    }  # fmt: skip
    return StoredResult(**{**defaults, **values})


@pytest.mark.parametrize("kind", REPORT_TYPES)
def test_each_report_type_has_widgets_with_something_in_them(kind: str) -> None:
    widgets = report_widgets(_report(kind))
    assert widgets
    assert all(w.big is not None or w.bars or w.table for w in widgets)


def test_an_unknown_report_has_none() -> None:
    assert report_widgets({}) == []


def test_positivity_counts_the_points_at_the_threshold_too() -> None:
    report = {
        "type": "WholeSlideDifferential", "scores": {"ER": 50.0}, "positivity_threshold": 0.5,
        "points": [{"x": 1, "y": 1, "score": s, "type": "cell"} for s in (0.2, 0.5, 0.9, 0.4)],
    }  # fmt: skip
    widgets = report_widgets(report)
    assert _titled(widgets, "Positivity").big == "50.0 %"
    assert _titled(widgets, "Scores").big == 50.0
    assert _titled(widgets, "Points by type").big == 4


def test_a_differential_without_points_is_shown_too() -> None:
    report = {"type": "WholeSlideDifferential", "scores": {}, "positivity_threshold": 0.5, "points": []}
    assert _titled(report_widgets(report), "Positivity").big == "–"


def test_mitoses_are_counted_in_the_region_that_holds_their_centre() -> None:
    square = {
        "type": "Feature", "properties": {"name": "Hotspot"},
        "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [0, 100], [100, 100], [100, 0], [0, 0]]]},
    }  # fmt: skip
    boxes = [{"x": x, "y": 40, "width": 20, "height": 20} for x in (0, 40, 89, 95, 500)]
    widgets = report_widgets({"type": "AiMitosisCounting", "objects": boxes, "regions": [square]})
    assert _titled(widgets, "Mitoses").big == 5
    table = _titled(widgets, "Mitoses by region").table
    assert table is not None
    assert list(table.rows) == [("Hotspot", 3)]


def test_cellularity_is_told_for_each_threshold() -> None:
    widgets = report_widgets(_report("TumorCellularity"))
    assert _titled(widgets, "Tumor cellularity at 50 %").big == "67.3 %"
    shares = _titled(widgets, "tissue at 20 %").bars
    assert [(b.name, b.share) for b in shares] == [("tumor", 0.41), ("stroma", 0.59)]


def test_the_widest_bar_is_full_and_text_has_none() -> None:
    result = _stored(report={"count": 4, "grade": "G2"}, summary={"annotations": {"a": 30, "b": 60}}, features=90)
    bars = _titled(widgets_of(result), "Annotations").bars
    assert [b.share for b in bars] == [0.5, 1.0]
    assert [b.share for b in _titled(widgets_of(result), "Results").bars] == [None, None]


def test_quality_is_shown_only_where_it_was_touched() -> None:
    assert not [w for w in widgets_of(_stored()) if w.title == "Quality"]
    assert _titled(widgets_of(_stored(qc_fail_reasons=[])), "Quality").big == "passed"
    failed = _titled(widgets_of(_stored(qc_fail_reasons=["Blurred", "Folded"])), "Quality")
    assert (failed.big, failed.note) == ("failed", "Blurred; Folded")


@pytest.mark.parametrize("url", ["javascript:alert(1)", "data:text/html,x", " https://a.example", "file:///etc/passwd"])
def test_what_a_container_calls_its_report_is_a_link_only_to_the_web(url: str) -> None:
    widget = _titled(widgets_of(_stored(external_url=url)), "Report elsewhere")
    assert widget.link is None
    assert widget.note == url
    safe = _titled(widgets_of(_stored(external_url="https://a.example/r")), "Report elsewhere")
    assert safe.link == "https://a.example/r"
