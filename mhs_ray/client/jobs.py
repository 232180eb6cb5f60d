"""Tasks, jobs, their logs, and the deliveries to Techcyte."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Any, Final, cast

from mhs_ray.client import sse
from mhs_ray.client import wire as w
from mhs_ray.client.calls import POLL_S, Calls
from mhs_ray.client.errors import ApiError, UnreachableError
from mhs_ray.domain.states import TERMINAL

_STREAM_SILENCE_S: Final = 45.0  # the API says that it is still there every 15 s
_RECONNECTS: Final = 20


def is_final(job: w.Job) -> bool:
    """Say whether nothing more will happen to a job."""
    return job["state"] in TERMINAL


class JobCalls(Calls):
    """What was asked for and what became of it."""

    async def submit(
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
        return cast(w.Submitted, await self._post("/v1/tasks", given, repeatable=task_id is not None))

    def tasks(
        self, limit: int | None = None, *, algorithm_id: int | None = None, origin: str | None = None
    ) -> AsyncIterator[w.Task]:
        """Yield tasks, newest first, without their jobs. origin: techcyte or local."""
        return self._pages("/v1/tasks", limit, algorithm_id=algorithm_id, origin=origin)

    async def task(self, task_id: str) -> w.Task:
        """Return a task with its jobs. task_id: integer or Techcyte's base64."""
        return cast(w.Task, await self._get(f"/v1/tasks/{task_id}"))

    def jobs(
        self,
        limit: int | None = None,
        *,
        state: Sequence[str] | None = None,
        algorithm: str | None = None,
        container_id: int | None = None,
        scan_row_id: int | None = None,
        task_id: str | None = None,
        created_by: str | None = None,
        failure_class: str | None = None,
        created_after: datetime | str | None = None,
        created_before: datetime | str | None = None,
    ) -> AsyncIterator[w.Job]:
        """Yield jobs, newest first. scan_row_id: `id` of a scan. Times carry their zone."""
        return self._pages(
            "/v1/jobs", limit, state=state, algorithm=algorithm, container_id=container_id, scan_row_id=scan_row_id,
            task_id=task_id, created_by=created_by, failure_class=failure_class, created_after=_time(created_after),
            created_before=_time(created_before),
        )  # fmt: skip

    async def job(self, job_id: int) -> w.Job:
        """Return one job."""
        return cast(w.Job, await self._get(f"/v1/jobs/{job_id}"))

    async def job_events(self, job_id: int) -> list[w.JobEvent]:
        """Return a job's story, oldest first."""
        return list(await self._get(f"/v1/jobs/{job_id}/events"))

    async def cancel(self, job_id: int) -> w.Job:
        """Cancel a job that has not ended."""
        return cast(w.Job, await self._post(f"/v1/jobs/{job_id}/cancel"))

    async def rerun(self, job_id: int) -> w.Job:
        """Queue an ended job anew; returns the new job."""
        return cast(w.Job, await self._post(f"/v1/jobs/{job_id}/rerun"))

    async def replay(self, job_id: int) -> dict[str, Any]:
        """Return what an ended job ran, as recorded: `image` with a login, `env`, `slide`, `results_digest`."""
        return dict(await self._get(f"/v1/jobs/{job_id}/replay"))

    async def wait(self, job_id: int, on_change: Callable[[w.Job], None] = lambda _job: None) -> w.Job:
        """Return the job once it ended. on_change: told of every new state, the first included."""
        seen: tuple[str, int] | None = None
        while True:
            job = await self.job(job_id)
            if (job["state"], job["attempt"]) != seen:
                seen = (job["state"], job["attempt"])
                on_change(job)
            if is_final(job):
                return job
            await self.pause()

    # ---- log

    async def log(self, job_id: int, attempt: int | None = None, offset: int = 0) -> list[w.LogLine]:
        """Return the lines that an attempt (None: the newest) has so far, from line `offset` on."""
        number = attempt or (await self.job(job_id))["attempt"]
        params = {"attempt": attempt, "offset": offset, "timestamps": True}
        text = (await self.http.send("GET", f"/v1/jobs/{job_id}/log", params=params)).text
        return [_line(number, offset + i, line) for i, line in enumerate(text.split("\n")[:-1])]

    async def follow_log(self, job_id: int, attempt: int | None = None) -> AsyncIterator[w.LogLine]:
        """Yield lines as they come, from the newest attempt (or `attempt` alone) until the job ended.

        A broken stream is taken up again behind the last line seen.
        """
        number = attempt or max((await self.job(job_id))["attempt"], 1)
        while True:
            job = await self.job(job_id)
            if job["attempt"] >= number:
                async with aclosing(self._attempt_log(job_id, number)) as lines:
                    async for line in lines:
                        yield line
                if attempt is not None:
                    return
                number += 1
            elif is_final(job):
                return
            else:
                await self.pause()

    async def _attempt_log(self, job_id: int, attempt: int) -> AsyncGenerator[w.LogLine, None]:
        last, failures = "", 0
        while True:
            headers = {"Last-Event-ID": last} if last else {}
            params = {"follow": 1, "attempt": attempt}
            reader = sse.EventReader()
            try:
                async with self.http.stream(
                    f"/v1/jobs/{job_id}/log", params=params, headers=headers, read_timeout_s=_STREAM_SILENCE_S
                ) as body:
                    async for text in body.lines():
                        event = reader.take(text)
                        if event is None:
                            continue
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
            await self.http.wire.sleep(min(0.2 * 2**failures, 5.0) if failures else POLL_S)

    # ---- deliveries

    def deliveries(
        self, limit: int | None = None, *, state: Sequence[str] | None = None, task_id: str | None = None
    ) -> AsyncIterator[w.Delivery]:
        """Yield the outbox to Techcyte, newest first. `parked` and `refused` ones wait for a person."""
        return self._pages("/v1/deliveries", limit, state=state, task_id=task_id)

    async def delivery(self, delivery_id: int) -> w.Delivery:
        """Return one delivery: its state and what happened last."""
        return cast(w.Delivery, await self._get(f"/v1/deliveries/{delivery_id}"))

    async def retry_delivery(self, delivery_id: int) -> w.Delivery:
        """Send one that is parked, refused or discarded; look at the case in Techcyte first."""
        return cast(w.Delivery, await self._post(f"/v1/deliveries/{delivery_id}/retry"))

    async def discard_delivery(self, delivery_id: int) -> w.Delivery:
        """Give one up that is parked or refused; it can still be sent later."""
        return cast(w.Delivery, await self._post(f"/v1/deliveries/{delivery_id}/discard"))


def _time(at: datetime | str | None) -> str | None:
    return at.isoformat() if isinstance(at, datetime) else at


def _line(attempt: int, number: int, text: str) -> w.LogLine:
    at, _, rest = text.partition(" ")
    mark = "[mhs] "
    source = "platform" if rest.startswith(mark) else "stdout"
    return w.LogLine(attempt, number, at, source, rest.removeprefix(mark))
