"""Where results to compare come from: ended jobs and files. Containers that are run first are the caller's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mhs_ray.client import Client
from mhs_ray.client.client import is_final
from mhs_ray.compare.differences import Side
from mhs_ray.domain.errors import ConflictError, InvalidInputError


@dataclass(frozen=True, slots=True)
class Slides:
    """The results of one side by slide. slide: path or URL to draw on, None where nobody knows."""

    name: str
    sides: Mapping[str, Side]
    slides: Mapping[str, str | None]


def of_jobs(mhs: Client, name: str, job_ids: Sequence[int]) -> Slides:
    """Return the results of ended jobs by their scans' ids. Raises ConflictError for one that has not ended."""
    sides: dict[str, Side] = {}
    slides: dict[str, str | None] = {}
    for job_id in job_ids:
        job = mhs.job(job_id)
        if not is_final(job):
            raise ConflictError(f"job {job_id} is {job['state']}; compare ended jobs")
        scan = f"scan {job['scan_id']}"
        if scan in sides:
            raise InvalidInputError.at(name, f"two jobs ran on {scan}; name one of them")
        facts = mhs.replay(job_id)
        sides[scan] = Side(mhs.job_results(job_id)) if facts["results_digest"] else Side(None, _why(job))
        path = facts["slide"]["path"]
        slides[scan] = facts["slide"]["url"] or (path if path and Path(path).exists() else None)
    return Slides(name, sides, slides)


def of_file(path: Path) -> Slides:
    """Return the results in a file: the body of a POST, `results.json` of ``mhs test``, or of ``mhs results``."""
    try:
        body = json.loads(path.read_text())
        scans = {f"scan {int(scan['scanId'])}": scan for scan in body["scanResults"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInputError.at(str(path), f"is no file of results: {type(error).__name__}: {error}") from None
    sides = {name: Side({**body, "scanResults": [scan]}) for name, scan in scans.items()}
    return Slides(str(path), sides, dict.fromkeys(sides))


def _why(job: Mapping[str, Any]) -> str:
    failure = job["failure"]
    return f"{failure['code']}: {failure['cause']}" if failure else f"is {job['state']} without results"


def paired(a: Slides, b: Slides) -> list[tuple[str, Side, Side, str | None]]:
    """Return (slide, result of A, result of B, where the slide is) of every slide of either side.

    One slide on each side is the same slide, whatever its id. What only one side has is a failure of the other.
    """
    if len(a.sides) == len(b.sides) == 1:
        [(name, first)], [second] = a.sides.items(), b.sides.values()
        return [(name, first, second, next(iter(a.slides.values())) or next(iter(b.slides.values())))]
    nothing = Side(None, "has no result of this slide")
    names = list(dict.fromkeys([*a.sides, *b.sides]))
    return [
        (name, a.sides.get(name, nothing), b.sides.get(name, nothing), a.slides.get(name) or b.slides.get(name))
        for name in names
    ]
