"""What is told of a trial: one document, files in a folder, and which exit code it means."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mhs_ray.domain.errors import AdmissionError, SlideError
from mhs_ray.domain.failures import Failure, FailureClass, FailureCode
from mhs_ray.domain.instances import INSTANCE_TYPES, InstanceType
from mhs_ray.local.exits import REFUSED
from mhs_ray.local.picture import picture_of
from mhs_ray.local.stand import Ended, Stand
from mhs_ray.ports import Admission
from mhs_ray.slides.cache import CachedSlide
from mhs_ray.store.sql.results import StoredResult


def fitting_types(peak: int | None, failure: Failure | None, limit: int | None) -> list[str] | None:
    """Return the instance types whose memory holds `peak` bytes; None where nobody knows the peak.

    After an end for want of memory only those are left that have more than the `limit` it was run with.
    """
    if failure is not None and failure.code is FailureCode.OUT_OF_MEMORY and limit is not None:
        return [t.name for t in INSTANCE_TYPES.values() if t.memory_bytes > limit]
    return None if peak is None else [t.name for t in INSTANCE_TYPES.values() if t.memory_bytes >= peak]


def describe(stand: Stand, ended: Ended, folder: Path) -> dict[str, Any]:
    """Write log, results, GeoJSON, picture and debug file into `folder`; return the document of a trial."""
    job, result = ended.job, ended.result
    failure, resources = job.failure, dict(job.resources)
    peak, limit = resources.get("memory_peak_bytes"), resources.get("memory_limit_bytes")
    kind = INSTANCE_TYPES[job.instance_type]
    folder.mkdir(parents=True, exist_ok=True)
    files = {"log": folder / "job.log"}
    files["log"].write_text("".join(f"{line.at} {_text(line)}\n" for line in ended.log))
    features = stand.features(ended)
    if result is not None:
        files["results"] = folder / "results.json"
        files["results"].write_text(json.dumps(results_wire(result, features), ensure_ascii=False, indent=1))
    if features is not None:
        files["geojson"] = folder / "results.geojson"
        files["geojson"].write_text(json.dumps(features, ensure_ascii=False))
    debug = stand.debug_file(ended)
    if debug is not None:
        files["debug"] = folder / "debug.zip"
        files["debug"].write_bytes(debug)
    warnings = list(ended.image.details.get("warnings", ()))
    slide: dict[str, Any] | None = None
    if failure is None or failure.failure_class is not FailureClass.INPUT:
        try:
            with stand.slides.get(ended.slide) as cached:
                slide = _slide(cached)
                if result is not None:
                    picture_of(cached.path, result, features).save(folder / "results.png")
                    files["picture"] = folder / "results.png"
        except SlideError as error:  # its URL may be good for one use only
            warnings.append(f"there is no picture of the results: {error}")
    warnings += weaker_machine(kind)
    if ended.posts > 1:
        warnings.append(f"results were posted {ended.posts} times: Techcyte makes an evaluation of each; post once")
    if ended.faults and result is not None:
        warnings.append("a request with results was refused before a good one came; see faults")
    return {
        "state": str(job.state),
        "results_valid": result is not None,
        "faults": [asdict(fault) for fault in ended.faults],
        "peak_memory_bytes": peak,
        "fits": fitting_types(peak, failure, limit),
        "failure": None if failure is None else {**asdict(failure), "failure_class": str(failure.failure_class)},
        "warnings": warnings,
        "image": image_facts(ended.image),
        "slide": slide,
        "instance_type": {"name": kind.name, "vcpu": kind.vcpu, "memory_bytes": kind.memory_bytes},
        "features": result.features if result is not None else 0,
        "summary": dict(result.summary) if result is not None else None,
        "case_results": result.case_results if result is not None else None,
        "results_digest": result.digest if result is not None else None,
        "resources": resources,
        "files": {name: str(path) for name, path in files.items()},
    }


def weaker_machine(kind: InstanceType) -> list[str]:
    """Return what of an instance type's limits this machine is too small to apply."""
    memory, cpus = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), os.cpu_count() or 1
    found = []
    if memory < kind.memory_bytes:
        found.append(f"this machine has {memory >> 30} GiB of memory; {kind.name} has {kind.memory_gb}")
    if cpus < kind.vcpu:
        found.append(
            f"this machine has {cpus} CPUs; {kind.name} has {kind.vcpu}, so it may be faster than what was seen"
        )
    return found


def describe_refusal(error: AdmissionError) -> dict[str, Any]:
    """Return the document of an image that would not be taken."""
    return {
        "state": REFUSED,
        "results_valid": False,
        "faults": [],
        "peak_memory_bytes": None,
        "fits": None,
        "failure": {"code": "image-refused", "failure_class": "model", "cause": error.message, "mend": error.mend},
        "warnings": [],
        "files": {},
    }


def image_facts(image: Admission) -> dict[str, Any]:
    """Return what admission found, without what only the registry needs."""
    wanted = (
        "architecture", "os", "entrypoint", "cmd", "workdir", "user", "labels", "env_names", "uncompressed_size",
        "files", "setuid_count", "setuid_files",
    )  # fmt: skip
    return {"id": image.digest, **{name: image.details.get(name) for name in wanted}}


def results_wire(result: StoredResult, features: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a stored result in the contract's words, as it was posted."""
    report = None if result.report is None else dict(result.report)
    if result.external_url is not None:
        report = {**(report or {}), "external_url": result.external_url}
    scan = {
        "scanId": str(result.scan_number), "results": report, "geojson": features,
        "qcFailReasons": result.qc_fail_reasons, "workflow": result.workflow,
    }  # fmt: skip
    return {"caseResults": result.case_results, "scanResults": [scan]}


def _slide(cached: CachedSlide) -> dict[str, Any]:
    return {"size_bytes": cached.size, "sha256": list(cached.sha256), **cached.facts.to_json()}


def _text(line: Any) -> str:
    return f"[mhs] {line.text}" if line.source == "platform" else str(line.text)
