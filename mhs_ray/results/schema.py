"""The body of ``POST /api/v3/external/results/{task_id}``, checked whole by `parse_results`.

What is decided here where the contract is silent:

- One body names a scan once. Techcyte would make two evaluations of two entries; one scan of one job has one result.
- ``caseResults``, ``results``, ``geojson``, ``workflow`` and its fields may be null: the same as leaving them out.
- ``ruo`` is also taken as ``"True"`` or ``"False"``, as Techcyte's own published example has it.
- A ``report`` beside ``workflow`` instead of in it is held to the same rules if it has a ``type``, and used.
- ``triage`` needs both its fields, or is null.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from mhs_ray.results.geojson import GeoJson, check_collection_type, check_feature
from mhs_ray.results.jsonwalk import Cursor, Faults, canonical, decode, kind, step
from mhs_ray.results.reports import REPORT
from mhs_ray.results.violations import add_faults
from mhs_ray.results.wire import ResultsBody

_BATCH = 256
_MAX_TYPES = 1000


@dataclass(frozen=True, slots=True)
class Triage:
    """A case's place in the worklist."""

    category: str
    score: float


@dataclass(frozen=True, slots=True, eq=False)
class ScanResult:
    """What was posted for one scan.

    results: without ``external_url`` where that is a string. qc_fail_reasons: None leaves the QC state alone, ()
    is a pass. report: from `workflow`. annotation_counts: features per ``annotation_type``.
    digest: SHA-256 (hex) of the content, whatever the order of keys and the white space.
    """

    scan_number: int
    results: Mapping[str, Any] | None
    external_url: str | None
    geojson: GeoJson | None
    qc_fail_reasons: tuple[str, ...] | None
    workflow: Mapping[str, Any] | None
    report: Mapping[str, Any] | None
    annotation_counts: Mapping[str, int]
    digest: str


@dataclass(frozen=True, slots=True, eq=False)
class ParsedResults:
    """A valid body. digest: over the case results and every scan's digest."""

    case_results: Mapping[str, Any] | None
    triage: Triage | None
    scans: tuple[ScanResult, ...]
    digest: str


@dataclass(slots=True, eq=False)
class _Collection:
    """A geojson while its features pass by; digest over what is left of it and the hash of the features."""

    others: dict[str, Any] = field(default_factory=dict)
    hash: Any = field(default_factory=hashlib.sha256)
    counts: Counter[str] = field(default_factory=Counter)
    geojson: GeoJson | None = None

    def digest_part(self) -> dict[str, Any]:
        return {"others": self.others, "features": self.hash.hexdigest()}


def parse_results(body: bytes, *, task_scans: Collection[int]) -> ParsedResults:
    """Check a whole body against every rule; features are read and checked one by one.

    task_scans: numbers of the scans that may be posted for. Holds `body` once as text (up to four times its size
    where it has characters beyond ASCII) and all but the features as objects; the caller bounds the size.
    Raises InvalidInputError with every fault (the first 100, then their number): all or nothing.
    """
    faults = Faults()
    cursor = Cursor(decode(body))
    posted = _read_body(cursor, faults)
    cursor.end()
    if type(posted) is not dict:
        faults.add("$", f"must be an object with scanResults, is {kind(posted)}")
        faults.raise_any()
    _check_plain(posted, task_scans, faults)
    faults.raise_any()
    scans = tuple(_scan_result(scan) for scan in posted["scanResults"])
    case_results = posted.get("caseResults")
    triage = (case_results or {}).get("triage")
    whole = hashlib.sha256(canonical({"case": case_results, "scans": {str(s.scan_number): s.digest for s in scans}}))
    return ParsedResults(
        case_results, Triage(triage["category"], triage["score"]) if triage else None, scans, whole.hexdigest()
    )


def _read_body(cursor: Cursor, faults: Faults) -> Any:
    if cursor.peek() != "{":
        return cursor.value()
    body: dict[str, Any] = {}
    for key in cursor.members():
        if key in body and key == "scanResults":
            faults.add("$.scanResults", "is given twice; send one array with all scans")
        if key == "scanResults" and cursor.peek() == "[":
            body[key] = [_read_scan(cursor, f"$.scanResults[{i}]", faults) for i in cursor.items()]
        else:
            body[key] = cursor.value()
    return body


def _read_scan(cursor: Cursor, path: str, faults: Faults) -> Any:
    if cursor.peek() != "{":
        return cursor.value()
    scan: dict[str, Any] = {}
    for key in cursor.members():
        if key in scan and key == "geojson":
            faults.add(f"{path}.geojson", "is given twice; send one FeatureCollection with all features")
        if key == "geojson" and cursor.peek() == "{":
            scan[key] = _read_collection(cursor, f"{path}.geojson", faults)
        else:
            scan[key] = cursor.value()
    return scan


def _read_collection(cursor: Cursor, path: str, faults: Faults) -> _Collection:
    cursor.peek()
    start, count, seen = cursor.pos, 0, False
    result = _Collection()
    for key in cursor.members():
        if key != "features":
            result.others[key] = cursor.value()
            faults.check(result.others[key], path + step(key))
            continue
        if seen:
            faults.add(f"{path}.features", "is given twice; send one array with all features")
        seen = True
        if cursor.peek() != "[":
            faults.add(f"{path}.features", f"must be an array of features, is {kind(cursor.value())}")
        else:
            count = _read_features(cursor, f"{path}.features", faults, result)
    if not seen:
        faults.add(f"{path}.features", "must be an array of features, is missing")
    check_collection_type(result.others.get("type"), path, faults)
    result.geojson = GeoJson(cursor.text, start, cursor.pos, count)
    return result


def _read_features(cursor: Cursor, path: str, faults: Faults, into: _Collection) -> int:
    count, batch = 0, []
    for i in cursor.items():
        feature = cursor.value()
        check_feature(feature, f"{path}[{i}]", faults, annotation_type=True)
        count += 1
        if faults.count:
            continue  # nothing will be stored: only faults matter from here on
        name = feature["properties"]["annotation_type"]
        into.counts[name if name in into.counts or len(into.counts) < _MAX_TYPES else "…"] += 1
        batch.append(feature)
        if len(batch) == _BATCH:
            into.hash.update(canonical(batch))
            batch.clear()
    if not faults.count:
        into.hash.update(canonical(batch))
    return count


def _check_plain(body: dict[str, Any], task_scans: Collection[int], faults: Faults) -> None:
    """Check everything but the features, which were looked at already."""
    for key, value in body.items():
        if key != "scanResults":
            faults.check(value, f"${step(key)}")
    _validate(ResultsBody.model_validate, body, "$", faults)
    scans = body.get("scanResults")
    seen: dict[int, int] = {}
    for i, scan in enumerate(scans if type(scans) is list else ()):
        if type(scan) is not dict:
            continue  # named above
        at = f"$.scanResults[{i}]"
        for key, value in scan.items():
            faults.check(value, at + step(key))
        _check_scan_id(scan.get("scanId"), i, task_scans, seen, faults)
        geojson, results, report = scan.get("geojson"), scan.get("results"), scan.get("report")
        if geojson is not None and not isinstance(geojson, _Collection):
            faults.add(f"{at}.geojson", f"must be a FeatureCollection object, is {kind(geojson)}")
        if type(results) is dict and "summary" in results and type(results["summary"]) is not str:
            faults.add(f"{at}.results.summary", f"must be a string, is {kind(results['summary'])}")
        if type(report) is dict and "type" in report:
            _validate(REPORT.validate_python, report, f"{at}.report", faults)


def _check_scan_id(
    scan_id: object, index: int, task_scans: Collection[int], seen: dict[int, int], faults: Faults
) -> None:
    at = f"$.scanResults[{index}].scanId"
    if type(scan_id) is not str or not _is_scan_id(scan_id):
        return  # named by the model
    number = int(scan_id)
    if number not in task_scans:
        faults.add(at, f"scan {number} does not belong to this task; send the SCAN_ID that the container was given")
    elif number in seen:
        faults.add(at, f"scan {number} is given twice (also at $.scanResults[{seen[number]}]); merge the two")
    seen.setdefault(number, index)


def _is_scan_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 40


def _scan_result(scan: dict[str, Any]) -> ScanResult:
    collection: _Collection | None = scan.get("geojson")
    results = dict(scan["results"]) if scan.get("results") is not None else None
    external_url = None
    if results is not None and type(results.get("external_url")) is str:
        external_url = results.pop("external_url")
    workflow = scan.get("workflow")
    report = (workflow or {}).get("report")
    beside = scan.get("report")
    if report is None and type(beside) is dict and "type" in beside:
        report = beside
    reasons = scan.get("qcFailReasons")
    content = {key: value for key, value in scan.items() if value is not None}
    content["scanId"] = str(int(scan["scanId"]))
    if collection is not None:
        content["geojson"] = collection.digest_part()
    return ScanResult(
        scan_number=int(scan["scanId"]),
        results=results,
        external_url=external_url,
        geojson=collection.geojson if collection else None,
        qc_fail_reasons=None if reasons is None else tuple(reasons),
        workflow=workflow,
        report=report,
        annotation_counts=dict(collection.counts) if collection else {},
        digest=hashlib.sha256(canonical(content)).hexdigest(),
    )


def _validate(validate: Any, value: object, path: str, faults: Faults) -> None:
    try:
        validate(value)
    except ValidationError as e:
        add_faults(e, path, faults)
