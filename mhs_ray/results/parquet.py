"""Results as one GeoParquet 1.1 file (https://geoparquet.org/releases/v1.1.0/), streamed in row groups.

``crs`` is null: coordinates are level-0 pixels of the scan, x to the right, y down, origin at the top left.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from mhs_ray.results.bbox import extent
from mhs_ray.results.colors import hex_color
from mhs_ray.results.features import ExportItem, Feature, iter_features, label_of, located
from mhs_ray.results.wkb import to_wkb

ROW_GROUP: Final = 20_000

_BBOX: Final = pa.struct([(name, pa.float64()) for name in ("xmin", "ymin", "xmax", "ymax")])
SCHEMA: Final = pa.schema(
    [
        pa.field("task", pa.int64(), nullable=False),
        pa.field("scan", pa.int64(), nullable=False),
        ("job", pa.int64()),
        pa.field("annotation_type", pa.string(), nullable=False),
        pa.field("class", pa.string(), nullable=False),
        ("name", pa.string()),
        pa.field("color", pa.string(), nullable=False),
        ("score", pa.float64()),
        ("geometry", pa.binary()),
        ("bbox", _BBOX),
        ("properties", pa.string()),
    ]
)


def write_parquet(items: Iterable[ExportItem], out: BinaryIO, *, row_group: int = ROW_GROUP) -> int:
    """Write one row per feature and return how many there were. Memory: `row_group` rows.

    Features without a place are rows too, with a null geometry. ``properties`` is the original as JSON.
    """
    count, rows = 0, list[dict[str, Any]]()
    kinds: set[str] = set()
    total: list[float] = []
    with pq.ParquetWriter(out, SCHEMA, compression="zstd") as writer:
        for item in items:
            for feature in iter_features(item):
                row, kind = _row(item, feature)
                rows.append(row)
                if kind:
                    kinds.add(kind)
                if row["bbox"]:
                    total = _union(total, list(row["bbox"].values()))
                if len(rows) == row_group:
                    count += _flush(writer, rows)
        count += _flush(writer, rows)
        writer.add_key_value_metadata({"geo": json.dumps(_geo(kinds, total)), "mhs": json.dumps(_ABOUT)})
    return count


_ABOUT: Final = {"coordinates": "level-0 pixels of the scan, origin top left, y down; no coordinate reference system"}


def _row(item: ExportItem, feature: Feature) -> tuple[dict[str, Any], str | None]:
    label = label_of(feature)
    geometry = located(feature)
    box = extent(geometry)
    properties = feature.get("properties")
    score = (properties or {}).get("score")
    row = {
        "task": item.task_number,
        "scan": item.scan_number,
        "job": item.job_id,
        "annotation_type": _text(label.annotation_type),
        "class": _text(label.class_name),
        "name": _text(label.name) or None,
        "color": hex_color(label.color),
        "score": _number(score),
        "geometry": to_wkb(geometry) if geometry is not None else None,
        "bbox": dict(zip(("xmin", "ymin", "xmax", "ymax"), map(float, box), strict=True)) if box else None,
        "properties": json.dumps(properties) if properties is not None else None,
    }
    return row, geometry["type"] if geometry is not None else None


def _flush(writer: pq.ParquetWriter, rows: list[dict[str, Any]]) -> int:
    count = len(rows)
    if rows:
        writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), row_group_size=count)
        rows.clear()
    return count


def _geo(kinds: set[str], total: list[float]) -> dict[str, Any]:
    covering = {"bbox": {name: ["bbox", name] for name in ("xmin", "ymin", "xmax", "ymax")}}
    column: dict[str, Any] = {"encoding": "WKB", "geometry_types": sorted(kinds), "crs": None, "covering": covering}
    if total:
        column["bbox"] = total
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}


def _union(a: list[float], b: list[float]) -> list[float]:
    if not a:
        return b
    return [min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])]


def _text(text: str) -> str:
    """Replace lone surrogates, which JSON can hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


def _number(value: object) -> float | None:
    if type(value) not in (int, float):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
