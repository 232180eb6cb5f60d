"""Wire types of results and evaluations."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from api.schemas.base import Wire


class ScanResultOut(Wire):
    """The result of one scan; `features` says how many `geojson` has."""

    scan_id: str = Field(alias="scanId")
    results: dict[str, Any] | None
    qc_fail_reasons: list[str] | None = Field(alias="qcFailReasons")
    workflow: dict[str, Any] | None
    geojson: dict[str, Any] | None = None
    features: int
    summary: dict[str, Any]
    job_id: int | None = Field(alias="jobId")
    created_at: datetime = Field(alias="createdAt")


class ResultsOut(Wire):
    """Results in the words of the contract."""

    case_results: dict[str, Any] | None = Field(alias="caseResults")
    scan_results: list[ScanResultOut] = Field(alias="scanResults")


class EvaluationOut(Wire):
    """One evaluation of a case, as Techcyte answers it."""

    id: int
    sample_id: int
    case_id: int | None
    task_id: int
    details: dict[str, Any]
