"""What pydantic found, as faults with the JSON path as the sender wrote it and in our words."""

from __future__ import annotations

from typing import Final

from pydantic import ValidationError

from mhs_ray.results.jsonwalk import Faults, kind, step
from mhs_ray.results.reports import REPORT_TYPES


def add_faults(error: ValidationError, path: str, faults: Faults) -> None:
    """Add what pydantic found, as faults with exact JSON paths and our words."""
    for found in error.errors(include_url=False):
        at = path
        for i, part in enumerate(found["loc"]):
            # pydantic names the member of a union between the steps of the path; those are not in the JSON
            if part in REPORT_TYPES and (i == 0 or found["loc"][i - 1] == "report"):
                continue
            if i and found["loc"][i - 1] == "ruo" and len(found["loc"]) == i + 1:
                continue
            at += step(part)
        given = found["input"]
        match found["type"]:
            case "faults":
                inner: Faults = found["ctx"]["faults"]
                for fault in inner.listed:
                    faults.add(at + fault.path, fault.message)
            case "missing":
                faults.add(at, "is missing; add it")
            case "union_tag_invalid" | "union_tag_not_found":
                tag = given.get("type") if type(given) is dict else None
                said = f"is {tag[:60]!r}" if type(tag) is str else "is missing" if tag is None else f"is {kind(tag)}"
                faults.add(f"{at}.type", f"must be one of {', '.join(REPORT_TYPES)}, {said}")
            case "bool_type" if at.endswith(".ruo"):
                faults.add(at, f"must be true or false, is {kind(given)}")
            case "literal_error" if at.endswith(".ruo"):
                pass  # said by bool_type
            case "string_pattern_mismatch":
                faults.add(at, f'must be a numeric string such as "8946136", is {given[:60]!r}')
            case "finite_number":
                pass  # `flaw` names it
            case "float_type" if type(given) is int:
                faults.add(at, "is too large a number")
            case other:
                wanted = _WANTED.get(other)
                faults.add(at, f"must be {wanted}, is {kind(given)}" if wanted else found["msg"])


_WANTED: Final = {
    "string_type": "a string",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
