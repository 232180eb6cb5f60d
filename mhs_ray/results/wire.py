"""Wire types of the contract's results endpoint, as the OpenAPI page shows them and `parse_results` checks them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from mhs_ray.results.reports import Number, Report, Wire

_GEOJSON_SCHEMA = {
    "type": ["object", "null"],
    "description": "FeatureCollection in level-0 pixels; every feature needs properties.annotation_type",
    "properties": {"type": {"const": "FeatureCollection"}, "features": {"type": "array", "items": {"type": "object"}}},
}


class TriageBody(Wire):
    """What the worklist shows in its triage column."""

    category: str
    score: Number


class CaseResults(Wire):
    """Results over all scans; any keys, `triage` is special."""

    triage: TriageBody | None = None


class WorkflowBody(Wire):
    """Results as one of Techcyte's workflow widgets."""

    model_name: str | None = None
    provider: str | None = None
    ruo: bool | Literal["True", "False"] | None = None
    key: str | None = None
    value: str | None = None
    report: Report | None = None


class ScanResultBody(Wire):
    """Results of one scan."""

    scan_id: Annotated[str, Field(alias="scanId", pattern="^[0-9]{1,40}$")]
    results: dict[str, Any] | None = None
    geojson: Annotated[Any, WithJsonSchema(_GEOJSON_SCHEMA)] = None
    qc_fail_reasons: Annotated[list[str] | None, Field(alias="qcFailReasons")] = None
    workflow: WorkflowBody | None = None


class ResultsBody(Wire):
    """What a model container posts when it is done."""

    case_results: Annotated[CaseResults | None, Field(alias="caseResults")] = None
    scan_results: Annotated[list[ScanResultBody], Field(alias="scanResults")]
