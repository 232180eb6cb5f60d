"""The body of ``PATCH /api/v3/external/case/{task_id}``: a case's place in the worklist."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from mhs_ray.results.jsonwalk import Cursor, Faults, decode, kind, step
from mhs_ray.results.reports import Number, Wire
from mhs_ray.results.violations import add_faults


class CasePatchBody(Wire):
    """Either field may be left out, which leaves it as it is."""

    triage_category: str | None = None
    triage_score: Number | None = None


@dataclass(frozen=True, slots=True)
class CasePatch:
    """What to change; None stays as it is (null says the same as leaving out)."""

    triage_category: str | None = None
    triage_score: float | None = None


def parse_case_patch(body: bytes) -> CasePatch:
    """Return what `body` asks to change; ``{}`` changes nothing. Raises InvalidInputError with every fault."""
    cursor = Cursor(decode(body))
    posted = cursor.value()
    cursor.end()
    faults = Faults()
    if type(posted) is not dict:
        faults.add("$", f"must be an object, is {kind(posted)}")
        faults.raise_any()
    for key, value in posted.items():
        faults.check(value, f"${step(key)}")
    try:
        patch = CasePatchBody.model_validate(posted)
    except ValidationError as e:
        add_faults(e, "$", faults)
    faults.raise_any()
    return CasePatch(patch.triage_category, patch.triage_score)
