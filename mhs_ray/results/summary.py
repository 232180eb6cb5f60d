"""One short summary of a scan's results, for a row of a list."""

from __future__ import annotations

from typing import Any

from mhs_ray.results.schema import ParsedResults, ScanResult

_HEADLINES = 5
_MAX_TEXT = 200


def summary(parsed: ParsedResults) -> dict[int, dict[str, Any]]:
    """Return one summary per scan number, see `scan_summary`."""
    return {scan.scan_number: scan_summary(scan) for scan in parsed.scans}


def scan_summary(scan: ScanResult) -> dict[str, Any]:
    """Return {features, annotations {type: count}, report, headlines {name: value}, qc, external_url}; short JSON.

    qc: None (untouched), "pass" or the reasons.
    """
    reasons = scan.qc_fail_reasons
    return {
        "features": scan.geojson.count if scan.geojson else 0,
        "annotations": dict(sorted(scan.annotation_counts.items(), key=lambda pair: -pair[1])[:_HEADLINES]),
        "report": scan.report["type"] if scan.report else None,
        "headlines": dict(list(_headlines(scan).items())[:_HEADLINES]),
        "qc": None if reasons is None else [_cut(r) for r in reasons[:_HEADLINES]] or "pass",
        "external_url": scan.external_url,
    }


def _headlines(scan: ScanResult) -> dict[str, Any]:
    """The results' summary first, then what the report says, then plain values of results."""
    results = scan.results or {}
    found: dict[str, Any] = {}
    if "summary" in results:
        found["summary"] = _cut(results["summary"])
    found |= _report_headlines(scan.report or {})
    for key, value in results.items():
        if key != "summary" and isinstance(value, str | int | float):
            found.setdefault(_cut(key), _cut(value))
    return found


def _report_headlines(report: Any) -> dict[str, Any]:
    match report.get("type"):
        case "Basic":
            return {_cut(r["name"]): _cut(r["result"]) for r in report.get("results") or ()}
        case "WholeSlideDifferential" | "SemiQuantitativeDifferential":
            return {**_scores(report), "points": len(report["points"])}
        case "AreaDifferential":
            return {**_scores(report), "regions": len(report["regions"])}
        case "RegionCounting" | "AiMitosisCounting":
            return {"objects": len(report["objects"]), "regions": len(report["regions"])}
        case "TumorCellularity":
            return {_cut(label): entry["tumor_cellularity"] for label, entry in report["threshold_map"].items()}
    return {}


def _scores(report: Any) -> dict[str, Any]:
    return {_cut(name): value for name, value in report["scores"].items()}


def _cut(value: Any) -> Any:
    return value if not isinstance(value, str) or len(value) <= _MAX_TEXT else value[: _MAX_TEXT - 1] + "…"
