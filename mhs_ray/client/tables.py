"""Results as Arrow tables."""

from __future__ import annotations

import json
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from mhs_ray.client import wire as w

RESULTS_SCHEMA: Final = pa.schema(
    [
        pa.field("scan", pa.int64(), nullable=False),
        ("job", pa.int64()),
        pa.field("created_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("features", pa.int64(), nullable=False),
        ("report", pa.string()),
        ("summary", pa.string()),
        ("external_url", pa.string()),
        ("qc_fail_reasons", pa.list_(pa.string())),
        ("model_name", pa.string()),
        ("provider", pa.string()),
        ("results", pa.string()),
    ]
)
"""One row per scan. report: its type. qc_fail_reasons: null untouched, [] a pass. results: what was posted, as JSON."""


def results_table(results: w.Results) -> pa.Table:
    """Return one row per scan, as `RESULTS_SCHEMA`; the annotations are another table (`features_table`)."""
    return pa.Table.from_pylist([_row(scan) for scan in results["scanResults"]], schema=RESULTS_SCHEMA)


def _row(scan: w.ScanResult) -> dict[str, Any]:
    results, workflow = dict(scan["results"] or {}), scan["workflow"] or {}
    url = results.pop("external_url", None)
    is_url = isinstance(url, str)
    if not is_url and url is not None:
        results["external_url"] = url
    at = pa.scalar(scan["createdAt"]).cast(pa.timestamp("us", tz="UTC")).as_py()
    return {
        "scan": int(scan["scanId"]), "job": scan["jobId"], "created_at": at, "features": scan["features"],
        "report": (workflow.get("report") or {}).get("type"), "summary": results.get("summary"),
        "external_url": url if is_url else None, "qc_fail_reasons": scan["qcFailReasons"],
        "model_name": workflow.get("model_name"), "provider": workflow.get("provider"),
        "results": json.dumps(results) if scan["results"] is not None else None,
    }  # fmt: skip


def features_table(parquet: BinaryIO) -> pa.Table:
    """Return one row per feature: task, scan, job, annotation_type, class, name, color, score, geometry (WKB), bbox,
    properties (JSON).
    """
    return pq.read_table(parquet)
