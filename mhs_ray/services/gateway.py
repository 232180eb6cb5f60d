"""The results gateway: what a model container posts is checked whole and stored once (techcyte-contract §3)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from mhs_ray.auth.tokens import AttemptIdentity
from mhs_ray.domain.errors import ForbiddenError, InvalidInputError
from mhs_ray.domain.ids import parse_id
from mhs_ray.domain.models import Principal
from mhs_ray.ports import BlobStore
from mhs_ray.results.evaluations import EvaluationRow, evaluations_wire
from mhs_ray.results.schema import ScanResult, parse_results
from mhs_ray.results.summary import scan_summary
from mhs_ray.results.triage import parse_case_patch
from mhs_ray.store.sql.results import NewResult, Poster, Results


class GatewayService:
    """Every call names who posts: an attempt's token, or a client of the company for local testing.

    wake: tells the courier that something may be there to deliver; must not block.
    """

    def __init__(self, results: Results, blobs: BlobStore, wake: Callable[[], None] = lambda: None) -> None:
        self._results = results
        self._blobs = blobs
        self._wake = wake

    def authorize(self, who: AttemptIdentity | Principal, task_id: str, *, write: bool = True) -> Poster:
        """Return who posts, or reads, for which task. Raises ForbiddenError for a token of another task."""
        number = parse_id(task_id, "task", "$.task_id")
        if isinstance(who, AttemptIdentity):
            if who.task_number != number:
                raise ForbiddenError(f"this token is for task {who.task_number}, not for task {number}")
            return Poster(who.company_id, number, who.job_id, who.attempt)
        if write and not who.may_write:
            raise ForbiddenError("a viewer cannot post results")
        return Poster(who.company_id, number)

    def post(self, poster: Poster, body: bytes) -> int:
        """Check and store a whole request; returns how many scans got their result by it.

        Raises InvalidInputError with every fault, and then nothing is stored.
        """
        posting = self._results.posting(poster)
        if posting.stored_before:
            return 0
        try:
            parsed = parse_results(body, task_scans=posting.scans)
        except InvalidInputError as error:
            self._results.reject(poster, [{"path": f.path, "message": f.message} for f in error.faults])
            raise
        # Blobs first, by content: a row never names what is not there, and doing it twice changes nothing.
        new = [self._new(poster, scan) for scan in parsed.scans]
        stored = self._results.store(poster, parsed.case_results, new)
        self._wake()
        return stored

    def patch_case(self, poster: Poster, body: bytes) -> None:
        """Set triage fields of the case. Raises InvalidInputError."""
        patch = parse_case_patch(body)
        self._results.patch_case(poster, {k: v for k, v in asdict(patch).items() if v is not None})
        self._wake()

    def evaluations(self, poster: Poster) -> list[dict[str, Any]]:
        """Return every evaluation of the task's case in the contract's words."""
        self._results.posting(poster)
        return evaluations_wire(
            EvaluationRow(r.id, r.scan_number, r.case_number, r.task_number, r.report, r.external_url, r.case_results)
            for r in self._results.of_case(poster.company_id, poster.task_number)
        )

    def _new(self, poster: Poster, scan: ScanResult) -> NewResult:
        key = None
        if scan.geojson is not None:
            key = f"results/{poster.company_id}/{poster.task_number}/{scan.scan_number}/{scan.digest}.geojson"
            if self._blobs.stat(key) is None:
                with tempfile.TemporaryFile() as spool:
                    scan.geojson.write_to(spool)
                    spool.seek(0)
                    self._blobs.put(key, spool)
        return NewResult(
            scan_number=scan.scan_number,
            digest=scan.digest,
            report=scan.results,
            external_url=scan.external_url,
            qc_fail_reasons=scan.qc_fail_reasons,
            workflow=_workflow(scan),
            summary=scan_summary(scan),
            geojson_key=key,
            features=scan.geojson.count if scan.geojson else 0,
        )


def _workflow(scan: ScanResult) -> Mapping[str, Any] | None:
    """Return the workflow with its report, also where that was posted beside it."""
    if scan.report is None or (scan.workflow or {}).get("report") is not None:
        return scan.workflow
    return {**(scan.workflow or {}), "report": scan.report}
