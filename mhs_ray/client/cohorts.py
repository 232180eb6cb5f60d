"""Cohorts over the API: a submission that can be cut off and sent again, progress, and slides as they end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypedDict, cast

from mhs_ray.client.blocking import run
from mhs_ray.client.client import Client
from mhs_ray.cohorts.manifest import Manifest
from mhs_ray.domain.cohorts import RowFault

PIECE: Final = 200
ENDED: Final = frozenset({"stopped", "done", "cancelled"})


class Cohort(TypedDict):
    """A cohort: one container on many slides; the OpenAPI document describes each field."""

    id: int
    key: str
    name: str
    state: str
    reason: str
    container_id: int
    container_name: str
    algorithm_name: str
    image_digest: str
    instance_type: str
    manifest: str
    rows: int
    received: int
    canary: int
    counts: dict[str, int]
    forecast: dict[str, Any]
    created_by: str
    created_at: str
    started_at: str | None
    ended_at: str | None


class CohortSlide(TypedDict):
    """One slide of a cohort."""

    row: int
    id: str
    slide: str
    format: str
    labels: dict[str, Any]
    state: str
    scan_row_id: int | None
    job_id: int | None
    failure_class: str | None
    failure_code: str | None
    cause: str
    gpu_s: float
    ended_at: str | None


class Cohorts:
    """The cohorts of a `Client`. Every method raises ApiError and UnreachableError."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def _send(self, method: str, path: str, body: Any = None, **params: Any) -> Any:
        # All of it may be sent twice: a cohort is known by its key, a row by its number.
        return self._answer(method, path, params, body, repeatable=True)

    def _answer(
        self, method: str, path: str, params: Mapping[str, Any] | None = None, body: Any = None,
        repeatable: bool | None = None,
    ) -> Any:  # fmt: skip
        http = self.client.calls.http
        answer = run(http.send(method, path, params=params, body=body, repeatable=repeatable))
        return answer.json() if answer.content else None

    def create(self, manifest: Manifest, *, key: str, container: str, **options: Any) -> Cohort:
        """Make a draft for a manifest, or find the cohort of this key. options: `CohortIn` of the OpenAPI document."""
        body = {"key": key, "container": container, "manifest": manifest.digest, "rows": manifest.count, **options}
        return cast(Cohort, self._send("POST", "/v1/cohorts", {k: v for k, v in body.items() if v is not None}))

    def send_rows(
        self, cohort: Cohort, manifest: Manifest, on_progress: Callable[[int, int], None] = lambda _done, _all: None
    ) -> None:
        """Send the rows that the cohort does not have yet, in pieces."""
        if cohort["state"] != "draft":
            return
        rows = manifest.rows
        # Pieces go in order, so those before this one came; one that was cut off is sent again.
        start = cohort["received"] // PIECE * PIECE if cohort["received"] <= len(rows) else 0
        for at in range(start, len(rows), PIECE):
            piece = rows[at : at + PIECE]
            self._send("POST", f"/v1/cohorts/{cohort['id']}/slides", {"rows": [r.body() for r in piece]})
            on_progress(min(at + PIECE, len(rows)), len(rows))

    def faults(self, cohort_id: int) -> list[RowFault]:
        """Return what is wrong with the rows that were sent."""
        return [RowFault(**f) for f in self._send("GET", f"/v1/cohorts/{cohort_id}/faults")]

    def start(self, cohort_id: int, *, leave_out_bad: bool = False) -> Cohort:
        """Let it run."""
        return cast(Cohort, self._send("POST", f"/v1/cohorts/{cohort_id}/start", {"leave_out_bad": leave_out_bad}))

    def delete(self, cohort_id: int) -> None:
        """Remove a draft."""
        self._send("DELETE", f"/v1/cohorts/{cohort_id}")

    def get(self, cohort_id: int) -> Cohort:
        """Return one."""
        return cast(Cohort, self._send("GET", f"/v1/cohorts/{cohort_id}"))

    def list(self, limit: int | None = None) -> Iterator[Cohort]:
        """Yield cohorts, newest first."""
        return self._pages("/v1/cohorts", limit)

    def slides(
        self, cohort_id: int, *, states: Sequence[str] = (), ended_after: str | None = None, limit: int | None = None
    ) -> Iterator[CohortSlide]:
        """Yield its slides, the manifest's last first. ended_after: those that ended then or later."""
        return self._pages(
            f"/v1/cohorts/{cohort_id}/slides", limit, state=list(states) or None, ended_after=ended_after
        )

    def _pages(self, path: str, limit: int | None, **params: Any) -> Iterator[Any]:
        left, cursor = limit, None
        while left is None or left > 0:
            page = self._send("GET", path, cursor=cursor, limit=500 if left is None else min(500, left), **params)
            yield from page["items"]
            left = None if left is None else left - len(page["items"])
            cursor = page["next_cursor"]
            if cursor is None:
                return

    def cancel(self, cohort_id: int) -> Cohort:
        """Start nothing more of it and end what runs."""
        return cast(Cohort, self._send("POST", f"/v1/cohorts/{cohort_id}/cancel"))

    def resume(self, cohort_id: int) -> Cohort:
        """Go on with what a stopped or cancelled one has left."""
        return cast(Cohort, self._answer("POST", f"/v1/cohorts/{cohort_id}/resume"))

    def rerun(self, cohort_id: int) -> Cohort:
        """Run what failed once more."""
        return cast(Cohort, self._answer("POST", f"/v1/cohorts/{cohort_id}/rerun"))

    def prices(self) -> dict[str, Any]:
        """Return the price table."""
        return dict(self._send("GET", "/v1/prices"))
