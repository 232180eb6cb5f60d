"""Results as tables and geometries, from what the platform itself writes."""

from __future__ import annotations

import builtins
import io
import json
from typing import Any

import pyarrow as pa
import pytest

from mhs_ray.client import Client, MissingExtraError, to_geodataframe, to_shapely
from mhs_ray.domain.errors import InvalidInputError
from mhs_ray.results.features import ExportItem
from mhs_ray.results.parquet import write_parquet
from tests.fake_api import Answer, FakeApi, ok

SQUARE = {"type": "Polygon", "coordinates": [[[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]]]}
REPORT = {"type": "WholeSlideDifferential", "points": [{"x": 3, "y": 4, "score": 0.5, "type": "cell"}], "scores": {}}
SCAN = {
    "scanId": "8946136", "jobId": 42, "createdAt": "2026-03-02T09:27:00.5Z", "features": 2, "summary": {},
    "results": {"summary": "4 mitoses", "external_url": "https://x.example", "n": 4}, "qcFailReasons": [],
    "workflow": {"model_name": "M", "provider": "P", "ruo": True, "report": REPORT}, "geojson": None,
}  # fmt: skip


def parquet() -> bytes:
    out = io.BytesIO()
    write_parquet([ExportItem(7, 8946136, 42, None, REPORT), ExportItem(7, 8946137, 43, None, {
        "type": "Basic", "results": [], "segments": [{"name": "s", "result": "r", "feature_collection": {
            "type": "FeatureCollection", "features": [
                {"type": "Feature", "geometry": SQUARE, "properties": {}},
                {"type": "Feature", "geometry": None, "properties": {}},
            ]}}],
    })], out)  # fmt: skip
    return out.getvalue()


def test_features_come_as_one_table(api: FakeApi, mhs: Client) -> None:
    api.on("GET", "/v1/tasks/7/results", Answer(200, parquet()))
    table = mhs.features(task_id="7")
    assert api.seen[0].query == {"format": ["parquet"]}
    assert table.num_rows == 3
    assert table["class"].to_pylist() == ["cell", "s", "s"]
    assert table["job"].to_pylist() == [42, 43, 43]
    points = to_shapely(table)
    assert (points[0].x, points[0].y) == (3, 4)
    assert points[1].area == 100
    assert points[2] is None


def test_features_come_as_a_geodataframe_in_pixels(api: FakeApi, mhs: Client) -> None:
    api.on("GET", "/v1/jobs/42/results", Answer(200, parquet()))
    frame = mhs.geodataframe(job_id=42)
    assert frame.crs is None
    assert list(frame.geometry.area) == [0, 100, pytest.approx(float("nan"), nan_ok=True)]
    assert list(frame["score"])[:1] == [0.5]


def test_results_come_as_a_row_per_scan_and_without_the_geojson(api: FakeApi, mhs: Client) -> None:
    bare = {**SCAN, "results": {"external_url": {"odd": 1}}, "workflow": None, "qcFailReasons": None, "jobId": None}
    api.on("GET", "/v1/tasks/7/results", ok({"caseResults": None, "scanResults": [SCAN, bare]}))
    table = mhs.results_table(task_id="7")
    assert api.seen[0].query == {"geojson": ["false"]}
    first, second = table.to_pylist()
    assert (first["scan"], first["job"], first["report"]) == (8946136, 42, "WholeSlideDifferential")
    assert first["created_at"].isoformat() == "2026-03-02T09:27:00.500000+00:00"
    assert (first["summary"], first["external_url"]) == ("4 mitoses", "https://x.example")
    assert (first["model_name"], first["provider"], first["qc_fail_reasons"]) == ("M", "P", [])
    assert json.loads(first["results"]) == {"summary": "4 mitoses", "n": 4}
    assert json.loads(second["results"]) == {"external_url": {"odd": 1}}
    assert second["external_url"] is second["qc_fail_reasons"] is second["job"] is second["report"] is None


def test_no_results_are_an_empty_table_of_the_same_columns(api: FakeApi, mhs: Client) -> None:
    api.on("GET", "/v1/tasks/7/results", ok({"caseResults": None, "scanResults": []}))
    table = mhs.results_table(task_id="7")
    assert table.num_rows == 0
    assert "qc_fail_reasons" in table.column_names


@pytest.mark.parametrize("given", [{}, {"job_id": 1, "task_id": "2"}])
def test_one_of_job_and_task_is_named(mhs: Client, given: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="give one of the two"):
        mhs.features(**given)


@pytest.mark.parametrize(("missing", "call"), [("shapely", to_shapely), ("geopandas", to_geodataframe)])
def test_a_missing_package_names_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, missing: str, call: Any
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == missing:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    table = pa.table({"geometry": pa.array([], pa.binary())})
    with pytest.raises(MissingExtraError, match=rf"{missing} is not installed: pip install 'mhs-ray\[geo\]'"):
        call(table)


def test_the_environment_names_the_platform(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInputError, match="MHS_URL, MHS_CLIENT_ID and MHS_CLIENT_SECRET"):
        Client()
    monkeypatch.setenv("MHS_URL", f"{api.url}/")
    monkeypatch.setenv("MHS_CLIENT_ID", "id")
    monkeypatch.setenv("MHS_CLIENT_SECRET", "s3cret")
    api.on("GET", "/readyz", ok({"ready": True, "parts": {}}))
    with Client() as mhs:
        assert mhs.health()["ready"]
        assert "s3cret" not in repr(vars(mhs))
