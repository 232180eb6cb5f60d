"""The API as methods. Blocking; one `Client` serves one thread at a time."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self, cast

import httpx

from mhs_ray.client import sse
from mhs_ray.client import wire as w
from mhs_ray.client.errors import ApiError, UnreachableError
from mhs_ray.client.http import Http, checked, unreachable
from mhs_ray.domain.models import ImageStatus
from mhs_ray.domain.states import TERMINAL

_PIECE: Final = 1 << 20
_POLL_S: Final = 0.3
_STREAM_SILENCE_S: Final = 45.0  # the API says that it is still there every 15 s
_RECONNECTS: Final = 20

Progress = Callable[[int, int], None]
"""Told (bytes so far, bytes in all)."""


def is_final(job: w.Job) -> bool:
    """Say whether nothing more will happen to a job."""
    return job["state"] in TERMINAL


class Client:
    """url: the API's address without a path. Every method raises ApiError and UnreachableError."""

    def __init__(
        self,
        url: str,
        client_id: str,
        client_secret: str,
        *,
        retries: int = 4,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.http = Http(url, client_id, client_secret, retries=retries, sleep=sleep)
        self._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self.http.close()

    def pause(self) -> None:
        """Wait as long as lies between two looks at something that changes."""
        self._sleep(_POLL_S)

    def _get(self, path: str, **params: Any) -> Any:
        return self.http.send("GET", path, params=params).json()

    def _post(self, path: str, body: Any = None, *, repeatable: bool = False) -> Any:
        return self.http.send("POST", path, body=body, repeatable=repeatable).json()

    def _pages(self, path: str, limit: int | None, params: Mapping[str, Any]) -> Iterator[Any]:
        """Yield the items of a list over all its pages, `limit` at most."""
        left, cursor = limit, None
        while left is None or left > 0:
            size = 200 if left is None else min(200, left)
            page = self._get(path, **params, cursor=cursor, limit=size)
            yield from page["items"]
            left = None if left is None else left - len(page["items"])
            cursor = page["next_cursor"]
            if cursor is None:
                return

    # ---- platform

    def health(self) -> dict[str, Any]:
        """Return `ready` and the state of each part, also when it is not ready."""
        try:
            return dict(self.http.send("GET", "/readyz", repeatable=False).json())
        except ApiError as error:
            if "parts" in error.problem:
                return error.problem
            raise

    def instance_types(self) -> list[dict[str, Any]]:
        """Return what a container can ask for."""
        return list(self._get("/v1/instance-types"))

    # ---- images

    def images(self, limit: int | None = None, **filters: Any) -> Iterator[w.Image]:
        """Yield image definitions, newest first. filters: name, status."""
        return self._pages("/v1/images", limit, filters)

    def image(self, image_id: int) -> w.Image:
        """Return one image definition."""
        return cast(w.Image, self._get(f"/v1/images/{image_id}"))

    def create_image(self, name: str) -> w.Image:
        """Make an image definition."""
        return cast(w.Image, self._post("/v1/images", {"name": name}))

    def rename_image(self, image_id: int, name: str) -> w.Image:
        """Rename an image definition."""
        answer = self.http.send("PATCH", f"/v1/images/{image_id}", body={"name": name}, repeatable=True)
        return cast(w.Image, answer.json())

    def delete_image(self, image_id: int) -> None:
        """Delete an image definition that nothing uses."""
        self.http.send("DELETE", f"/v1/images/{image_id}")

    def image_versions(self, image_id: int) -> list[w.ImageVersion]:
        """Return its versions, newest first."""
        return list(self._get(f"/v1/images/{image_id}/versions"))

    def push_instructions(self, image_id: int) -> w.PushInstructions:
        """Return where and how to push, with a fresh credential."""
        return cast(w.PushInstructions, self._get(f"/v1/images/{image_id}/push-instructions"))

    def wait_for_image(
        self, before: w.Image, digest: str | None, *, timeout_s: float = 900.0, on_status: Callable[[str], None]
    ) -> w.Image:
        """Return the image once a push was taken in or refused.

        before: the image as it was before the push. digest: of what was pushed, if known. on_status: told of each new
        status. A push of what is known already changes nothing: after 40 s without change the image is returned as is.
        """
        began = time.monotonic()
        told = before["status"]
        while True:
            image = self.image(before["id"])
            if image["status"] != told:
                told = image["status"]
                on_status(told)
            settled = image["status"] in {ImageStatus.UPLOADED, ImageStatus.FAILED}
            current = image["current"]["digest"] if image["current"] else None
            known = image["status"] == ImageStatus.UPLOADED and digest is not None and current == digest
            waited = time.monotonic() - began
            if settled and (known or image["updated_at"] != before["updated_at"] or waited > 40):
                return image
            if waited > timeout_s:
                detail = f"image {image['id']} is still {image['status']} {timeout_s:.0f} s after the push"
                raise ApiError(504, {"type": "/problems/timeout", "title": "No end in time", "detail": detail})
            self.pause()

    # ---- containers and case algorithms

    def containers(self, limit: int | None = None, **filters: Any) -> Iterator[w.Container]:
        """Yield runnable containers, newest first. filters: name, image_id."""
        return self._pages("/v1/containers", limit, filters)

    def container(self, container_id: int) -> w.Container:
        """Return one runnable container."""
        return cast(w.Container, self._get(f"/v1/containers/{container_id}"))

    def create_container(self, body: Mapping[str, Any]) -> w.Container:
        """Make a runnable container. body: `ContainerIn` of the OpenAPI document."""
        return cast(w.Container, self._post("/v1/containers", dict(body)))

    def update_container(self, container_id: int, body: Mapping[str, Any]) -> w.Container:
        """Change what `body` names; `env` replaces all variables."""
        answer = self.http.send("PATCH", f"/v1/containers/{container_id}", body=dict(body), repeatable=True)
        return cast(w.Container, answer.json())

    def delete_container(self, container_id: int) -> None:
        """Delete a runnable container that no case algorithm uses."""
        self.http.send("DELETE", f"/v1/containers/{container_id}")

    def algorithms(self, limit: int | None = None, **filters: Any) -> Iterator[w.Algorithm]:
        """Yield case algorithms, newest first. filters: name."""
        return self._pages("/v1/algorithms", limit, filters)

    def algorithm(self, algorithm_id: int) -> w.Algorithm:
        """Return one case algorithm."""
        return cast(w.Algorithm, self._get(f"/v1/algorithms/{algorithm_id}"))

    def create_algorithm(self, body: Mapping[str, Any]) -> w.Algorithm:
        """Make a case algorithm. body: `AlgorithmIn` of the OpenAPI document."""
        return cast(w.Algorithm, self._post("/v1/algorithms", dict(body)))

    def update_algorithm(self, algorithm_id: int, body: Mapping[str, Any]) -> w.Algorithm:
        """Change what `body` names."""
        answer = self.http.send("PATCH", f"/v1/algorithms/{algorithm_id}", body=dict(body), repeatable=True)
        return cast(w.Algorithm, answer.json())

    def delete_algorithm(self, algorithm_id: int) -> None:
        """Delete a case algorithm; its tasks and jobs stay."""
        self.http.send("DELETE", f"/v1/algorithms/{algorithm_id}")

    # ---- scans

    def scans(self, limit: int | None = None, **filters: Any) -> Iterator[w.Scan]:
        """Yield scans, newest first. filters: name, status, scan_id."""
        return self._pages("/v1/scans", limit, filters)

    def scan(self, scan_id: int) -> w.Scan:
        """Return one scan."""
        return cast(w.Scan, self._get(f"/v1/scans/{scan_id}"))

    def add_scan(self, body: Mapping[str, Any]) -> w.Scan:
        """Register a scan by `path`, by `url`, or by `filename` for an upload that follows."""
        return cast(w.Scan, self._post("/v1/scans", {k: v for k, v in body.items() if v is not None}))

    def add_scan_upload(
        self, path: Path, *, name: str | None = None, scan_id: str | None = None, progress: Progress | None = None
    ) -> w.Scan:
        """Upload a file, streamed, and register it; one that does not arrive or is no slide leaves no scan."""
        with path.open("rb") as source:
            size = path.stat().st_size
            scan = self.add_scan({"filename": path.name, "name": name, "scan_id": scan_id})
            try:
                self._put(str(scan["upload_url"]), source, size, progress)
                return cast(w.Scan, self._post(f"/v1/scans/{scan['id']}/complete", repeatable=True))
            except BaseException:
                self._forget_scan(scan["id"])
                raise

    def _forget_scan(self, scan_id: int) -> None:
        # Gone already, or out of reach: the first error is the one to tell.
        with contextlib.suppress(ApiError, UnreachableError):
            self.delete_scan(scan_id)

    def _put(self, url: str, source: BinaryIO, size: int, progress: Progress | None) -> None:
        def pieces() -> Iterator[bytes]:
            sent = 0
            while piece := source.read(_PIECE):
                yield piece
                sent += len(piece)
                if progress:
                    progress(sent, size)

        where = httpx.URL(url).copy_with(query=None)
        try:
            # No credential of ours: the URL is signed. Nor may it be written anywhere.
            answer = httpx.put(
                url, content=pieces(), headers={"Content-Length": str(size)}, timeout=httpx.Timeout(300, connect=10),
                trust_env=where.host not in {"127.0.0.1", "localhost"},
            )  # fmt: skip
        except httpx.TransportError as error:
            raise unreachable(str(where), error) from None
        checked(answer)

    def scan_url(self, scan_id: int, expires_in: int = 3600) -> dict[str, str]:
        """Return `url` and `expires_at` of an uploaded slide."""
        return dict(self._get(f"/v1/scans/{scan_id}/url", expires_in=expires_in))

    def delete_scan(self, scan_id: int) -> None:
        """Delete a scan that no job used."""
        self.http.send("DELETE", f"/v1/scans/{scan_id}")

    # ---- tasks and jobs

    def submit(
        self,
        *,
        scan_ids: Sequence[int],
        algorithm: str | None = None,
        algorithm_id: int | None = None,
        task_id: str | None = None,
        case_id: str | None = None,
        priority: str | None = None,
        description: str | None = None,
    ) -> w.Submitted:
        """Make an AI request: one job per scan. With a `task_id` it may be sent again, and adds nothing then."""
        body = {
            "scan_ids": list(scan_ids), "algorithm": algorithm, "algorithm_id": algorithm_id, "task_id": task_id,
            "case_id": case_id, "priority": priority, "description": description,
        }  # fmt: skip
        given = {k: v for k, v in body.items() if v is not None}
        return cast(w.Submitted, self._post("/v1/tasks", given, repeatable=task_id is not None))

    def tasks(self, limit: int | None = None, **filters: Any) -> Iterator[w.Task]:
        """Yield tasks, newest first. filters: algorithm_id, origin."""
        return self._pages("/v1/tasks", limit, filters)

    def task(self, task_id: str) -> w.Task:
        """Return a task with its jobs. task_id: integer or Techcyte's base64."""
        return cast(w.Task, self._get(f"/v1/tasks/{task_id}"))

    def jobs(self, limit: int | None = None, **filters: Any) -> Iterator[w.Job]:
        """Yield jobs, newest first. filters: state (a list), algorithm, task_id, failure_class and others."""
        return self._pages("/v1/jobs", limit, filters)

    def job(self, job_id: int) -> w.Job:
        """Return one job."""
        return cast(w.Job, self._get(f"/v1/jobs/{job_id}"))

    def job_events(self, job_id: int) -> list[w.JobEvent]:
        """Return a job's story, oldest first."""
        return list(self._get(f"/v1/jobs/{job_id}/events"))

    def cancel(self, job_id: int) -> w.Job:
        """Cancel a job that has not ended."""
        return cast(w.Job, self._post(f"/v1/jobs/{job_id}/cancel"))

    def rerun(self, job_id: int) -> w.Job:
        """Queue an ended job anew; returns the new job."""
        return cast(w.Job, self._post(f"/v1/jobs/{job_id}/rerun"))

    def replay(self, job_id: int) -> dict[str, Any]:
        """Return what an ended job ran, as recorded: `image` with a login, `env`, `slide`, `results_digest`."""
        return dict(self._get(f"/v1/jobs/{job_id}/replay"))

    def wait(self, job_id: int, on_change: Callable[[w.Job], None] = lambda _job: None) -> w.Job:
        """Return the job once it ended. on_change: told of every new state, the first included."""
        seen: tuple[str, int] | None = None
        while True:
            job = self.job(job_id)
            if (job["state"], job["attempt"]) != seen:
                seen = (job["state"], job["attempt"])
                on_change(job)
            if is_final(job):
                return job
            self.pause()

    # ---- log

    def log(self, job_id: int, attempt: int | None = None, offset: int = 0) -> list[w.LogLine]:
        """Return the lines that an attempt (None: the newest) has so far, from line `offset` on."""
        number = attempt or self.job(job_id)["attempt"]
        text = self.http.send(
            "GET", f"/v1/jobs/{job_id}/log", params={"attempt": attempt, "offset": offset, "timestamps": True}
        ).text
        return [_line(number, offset + i, line) for i, line in enumerate(text.split("\n")[:-1])]

    def follow_log(self, job_id: int, attempt: int | None = None) -> Iterator[w.LogLine]:
        """Yield lines as they come, from the newest attempt (or `attempt` alone) until the job ended.

        A broken stream is taken up again behind the last line seen.
        """
        number = attempt or max(self.job(job_id)["attempt"], 1)
        while True:
            job = self.job(job_id)
            if job["attempt"] >= number:
                yield from self._attempt_log(job_id, number)
                if attempt is not None:
                    return
                number += 1
            elif is_final(job):
                return
            else:
                self.pause()

    def _attempt_log(self, job_id: int, attempt: int) -> Iterator[w.LogLine]:
        last, failures = "", 0
        while True:
            headers = {"Last-Event-ID": last} if last else {}
            params = {"follow": 1, "attempt": attempt}
            try:
                with self.http.stream(
                    f"/v1/jobs/{job_id}/log", params=params, headers=headers, read_timeout_s=_STREAM_SILENCE_S
                ) as answer:
                    for event in sse.events(answer.iter_lines()):
                        failures = 0
                        if event.event == "end":
                            return
                        data = json.loads(event.data)
                        yield w.LogLine(attempt, data["line"], data["at"], data["source"], data["text"])
                        last = event.id
            except (UnreachableError, ApiError) as error:
                if isinstance(error, ApiError) and error.status < 500:
                    raise
                failures += 1
                if failures > _RECONNECTS:
                    raise
            self._sleep(min(0.2 * 2**failures, 5.0) if failures else _POLL_S)

    # ---- results

    def job_results(self, job_id: int) -> dict[str, Any]:
        """Return a job's results in the words of the contract, GeoJSON included."""
        return dict(self._get(f"/v1/jobs/{job_id}/results"))

    def task_results(self, task_id: str) -> dict[str, Any]:
        """Return the results of all scans of a task."""
        return dict(self._get(f"/v1/tasks/{task_id}/results"))

    def save_results(self, kind: str, out: BinaryIO, *, job_id: int | None = None, task_id: str | None = None) -> int:
        """Write results as ``json``, ``geojson`` or ``parquet``, streamed; returns the number of bytes."""
        path = f"/v1/jobs/{job_id}/results" if job_id is not None else f"/v1/tasks/{task_id}/results"
        size = 0
        with self.http.stream(path, params={"format": kind}) as answer:
            for piece in answer.iter_bytes(_PIECE):
                out.write(piece)
                size += len(piece)
        return size


def _line(attempt: int, number: int, text: str) -> w.LogLine:
    at, _, rest = text.partition(" ")
    mark = "[mhs] "
    source = "platform" if rest.startswith(mark) else "stdout"
    return w.LogLine(attempt, number, at, source, rest.removeprefix(mark))
