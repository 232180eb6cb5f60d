"""Results as one GeoJSON FeatureCollection that QuPath opens as it is, streamed."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from typing import Any, BinaryIO, Final

from mhs_ray.results.features import ExportItem, iter_features, label_of, located

_log = logging.getLogger(__name__)
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), check_circular=False)


def write_geojson(items: Iterable[ExportItem], out: BinaryIO) -> int:
    """Write the features of `items` in level-0 pixels and return how many there were.

    Original properties stay; ``objectType`` and ``classification`` {name, color [r, g, b]} are added unless given,
    and ``mhs`` {task, scan, job} says where a feature comes from. A feature with neither geometry nor ``bbox``
    is left out, as viewers refuse a file that has one. Memory: one feature.
    """
    count = left_out = 0
    out.write(b'{"type":"FeatureCollection","features":[')
    for item in items:
        origin = {"task": item.task_number, "scan": item.scan_number, "job": item.job_id}
        for feature in iter_features(item):
            geometry = located(feature)
            if geometry is None:
                left_out += 1
                continue
            out.write(b"\n" if not count else b",\n")
            out.write(_ENCODER.encode(_for_viewers({**feature, "geometry": geometry}, origin)).encode())
            count += 1
    out.write(b"\n]}\n")
    if left_out:
        _log.info("left %d features without a place on the slide out of the GeoJSON", left_out)
    return count


def _for_viewers(feature: dict[str, Any], origin: dict[str, Any]) -> dict[str, Any]:
    label = label_of(feature)
    added: dict[str, Any] = {
        "objectType": "annotation",
        "classification": {"name": label.class_name, "color": list(label.color)},
        "mhs": origin,
    }
    return {**feature, "type": "Feature", "properties": {**added, **(feature.get("properties") or {})}}
