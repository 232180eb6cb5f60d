"""The answer of ``GET /api/v3/external/case_evaluations/{task_id}`` (techcyte-contract §3).

The contract names the keys only; ids are plain integers here, as ``task_id`` may be everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """One stored evaluation.

    sample_id: the scan's number, as a scan is all we know of its sample. results: without ``external_url``.
    case_results: what came with it for the whole case.
    """

    id: int
    sample_id: int
    case_id: int | None
    task_id: int
    results: Mapping[str, Any] | None
    external_url: str | None
    case_results: Mapping[str, Any] | None


def evaluations_wire(rows: Iterable[EvaluationRow]) -> list[dict[str, Any]]:
    """Return the wire form. ``workflow`` is no part of details."""
    return [
        {
            "id": row.id,
            "sample_id": row.sample_id,
            "case_id": row.case_id,
            "task_id": row.task_id,
            "details": {
                "report": dict(row.results or {}),
                **({} if row.external_url is None else {"external_url": row.external_url}),
                **({} if row.case_results is None else {"caseReport": dict(row.case_results)}),
            },
        }
        for row in rows
    ]
