"""Results of a job or a task, and debug files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Annotated, Any, BinaryIO, Final, Literal, cast

from fastapi import APIRouter, Query, Response
from fastapi.responses import RedirectResponse, StreamingResponse

from api.deps import CoreDep, IdPath, WhoDep, problems
from api.examples import EXAMPLES
from api.schemas.results import ResultsOut
from mhs_ray.domain.ids import parse_id
from mhs_ray.services.core import Core
from mhs_ray.store.sql.results import StoredResult

router = APIRouter(responses=problems())
_MEDIA: Final = {
    "json": ("application/json", "json"),
    "geojson": ("application/geo+json", "geojson"),
    "parquet": ("application/vnd.apache.parquet", "parquet"),
}
_FORMATS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "model": ResultsOut,
        "content": {
            _MEDIA["geojson"][0]: {"example": EXAMPLES["ResultsBody"]["scanResults"][0]["geojson"]},
            _MEDIA["parquet"][0]: {"schema": {"type": "string", "format": "binary"}},
        },
    },
    **problems(404, 502),
}
FormatQuery = Annotated[Literal["json", "geojson", "parquet"], Query(alias="format")]
GeojsonQuery = Annotated[bool, Query(description="false: JSON without the GeoJSON, which can be large")]


@router.get("/v1/tasks/{task_id}/results", tags=["results"], summary="Get the results of a task", responses=_FORMATS)
def get_task_results(
    core: CoreDep, who: WhoDep, task_id: str, kind: FormatQuery = "json", geojson: GeojsonQuery = True
) -> Response:
    """All scans. JSON in the contract's words, GeoJSON in level-0 pixels, or GeoParquet."""
    number = parse_id(task_id, "task", "$.task_id")
    return _results(core, core.jobs.results.of_task(who.company_id, number), kind, f"task-{number}", geojson)


@router.get("/v1/jobs/{job_id}/results", tags=["results"], summary="Get a job's results", responses=_FORMATS)
def get_job_results(
    core: CoreDep, who: WhoDep, job_id: IdPath, kind: FormatQuery = "json", geojson: GeojsonQuery = True
) -> Response:
    """JSON in the contract's words (GeoJSON included), GeoJSON in level-0 pixels, or GeoParquet."""
    return _results(core, [core.jobs.result(who, job_id)], kind, f"job-{job_id}", geojson)


@router.get(
    "/v1/jobs/{job_id}/debug", tags=["results"], summary="Download the debug file", status_code=307,
    response_class=RedirectResponse, responses=problems(404),
)  # fmt: skip
def get_debug(
    core: CoreDep, who: WhoDep, job_id: IdPath, attempt: Annotated[int | None, Query(ge=1, le=1_000_000)] = None
) -> RedirectResponse:
    """What the container uploaded to DEBUG_FILE_UPLOAD_URL."""
    return RedirectResponse(core.jobs.debug_url(who, job_id, attempt))


def _results(core: Core, results: list[StoredResult], kind: str, name: str, geojson: bool) -> Response:
    with ExitStack() as stack:
        spool = cast(BinaryIO, stack.enter_context(tempfile.SpooledTemporaryFile(max_size=8 << 20)))
        if kind == "json":
            _write_json(core, results, spool, geojson)
        else:
            core.jobs.export(results, kind, spool)
        media, ending = _MEDIA[kind]
        headers = {"Content-Disposition": f'attachment; filename="{name}.{ending}"'} if kind != "json" else {}
        headers["Content-Length"] = str(spool.tell())
        spool.seek(0)
        stack.pop_all()  # from here on the response closes it
    return StreamingResponse(_pieces(spool), media_type=media, headers=headers)


def _pieces(spool: BinaryIO) -> Iterator[bytes]:
    with spool:
        while piece := spool.read(1 << 18):
            yield piece


def _write_json(core: Core, results: list[StoredResult], out: BinaryIO, geojson: bool) -> None:
    """Write `ResultsOut`; the GeoJSON goes through as it was posted, piece by piece."""
    case = next((r.case_results for r in reversed(results) if r.case_results is not None), None)
    out.write(b'{"caseResults":' + _dump(case) + b',"scanResults":[')
    for i, r in enumerate(results):
        report: dict[str, Any] | None = None if r.report is None else dict(r.report)
        if r.external_url is not None:
            report = {**(report or {}), "external_url": r.external_url}
        head = {
            "scanId": str(r.scan_number), "jobId": r.job_id, "createdAt": r.created_at.isoformat(),
            "features": r.features, "summary": r.summary, "results": report,
            "qcFailReasons": r.qc_fail_reasons, "workflow": r.workflow,
        }  # fmt: skip
        out.write((b"," if i else b"") + _dump(head)[:-1] + b',"geojson":')
        stored = core.jobs.geojson(r) if geojson else None
        if stored is None:
            out.write(b"null}")
            continue
        with stored:
            while piece := stored.read(1 << 18):
                out.write(piece)
        out.write(b"}")
    out.write(b"]}\n")


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
