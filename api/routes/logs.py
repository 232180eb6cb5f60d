"""The log of a job: plain text, or server-sent events while it runs."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from api.deps import CoreDep, IdPath, WhoDep, problems
from mhs_ray.attempt.logbook import LogLine
from mhs_ray.domain.errors import NotFoundError
from mhs_ray.domain.models import Job, Principal
from mhs_ray.services.core import Core

router = APIRouter(responses=problems())
_FOLLOW_S: Final = 0.3  # how often a followed log is looked at; nobody looks when nobody follows
_KEEPALIVE_S: Final = 15.0
_AT_ONCE: Final = 2000
_LOG_EXAMPLES: Final = {
    "text/plain": {"example": "2026-03-02T09:26:53.589793Z Processing image: /input/image.svs\n"},
    "text/event-stream": {
        "example": 'id: 1-0\ndata: {"attempt": 1, "line": 0, "source": "stdout", "at": "2026-03-02T09:26:53.589793Z", '
        '"text": "Processing image: /input/image.svs"}\n\nevent: end\ndata: {"state": "succeeded", "attempt": 1}\n\n'
    },
}
_EVENT_ID: Final = re.compile(r"(?:(?P<attempt>[0-9]{1,6})-)?(?P<line>[0-9]{1,12})")


@router.get(
    "/v1/jobs/{job_id}/log",
    tags=["jobs"],
    summary="Read a job's log",
    responses={200: {"content": _LOG_EXAMPLES}, **problems(404)},
    response_class=Response,
)
async def get_log(
    request: Request,
    core: CoreDep,
    who: WhoDep,
    job_id: IdPath,
    follow: Annotated[bool, Query(description="server-sent events until the job ends")] = False,
    attempt: Annotated[int | None, Query(ge=1, le=1_000_000, description="the newest when left out")] = None,
    offset: Annotated[int, Query(ge=0, le=10**12, description="line to start at")] = 0,
    timestamps: bool = True,
    last_event_id: Annotated[str | None, Header(max_length=40)] = None,
) -> Response:
    """Plain text, or events with `follow=1`.

    An event's `id` is `<attempt>-<line>`: a client that comes back sends it as Last-Event-ID and goes on after it.
    A followed job that is tried again goes on with the lines of its next attempt, from 0. The last event is `end`.
    """
    job = await run_in_threadpool(core.jobs.jobs.get, who.company_id, job_id)
    if attempt is not None and attempt > job.attempt:
        raise NotFoundError("attempt", f"{attempt} of job {job_id}")
    start = attempt or job.attempt
    if last_event_id and (seen := _EVENT_ID.fullmatch(last_event_id)):
        offset = int(seen["line"]) + 1
        if seen["attempt"] and attempt is None:
            start = min(int(seen["attempt"]), job.attempt)
    if follow:
        tail = _Tail(core, who, job_id, start, offset, last=attempt)
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(tail.events(request), media_type="text/event-stream", headers=headers)
    lines = core.jobs.log_of(job, start, offset) if job.attempt else iter(())
    return StreamingResponse(_whole(lines, timestamps), media_type="text/plain; charset=utf-8")


def _whole(lines: Iterator[LogLine], timestamps: bool) -> Iterator[str]:
    """Yield the log as text, many lines at once: what is sent one by one costs a switch of threads each."""
    while batch := list(islice(lines, _AT_ONCE)):
        yield "".join(f"{_text(line, timestamps)}\n" for line in batch)


def _text(line: LogLine, timestamps: bool) -> str:
    text = f"[mhs] {line.text}" if line.source == "platform" else line.text
    return f"{line.at} {text}" if timestamps else text


class _Tail:
    """One reader that follows a job. last: the attempt to stay with; None: go on with every next one."""

    def __init__(self, core: Core, who: Principal, job_id: int, attempt: int, offset: int, last: int | None) -> None:
        self._core, self._who, self._job_id = core, who, job_id
        self._attempt, self._offset, self._last = attempt, offset, last

    async def events(self, request: Request) -> AsyncIterator[str]:
        """Yield server-sent events until the job, or the attempt to stay with, has ended."""
        quiet = 0.0
        while not await request.is_disconnected():
            job, lines = await run_in_threadpool(self._look)
            for line in lines:
                self._offset = line.number + 1
                data = {"attempt": self._attempt, "line": line.number, "source": line.source}
                yield _event(data | {"at": line.at, "text": line.text}, event_id=f"{self._attempt}-{line.number}")
            if lines:
                quiet = 0.0
                continue
            if self._attempt < job.attempt and self._last is None:
                self._attempt, self._offset = self._attempt + 1, 0
                continue
            if job.state.is_terminal or self._attempt < job.attempt:
                yield "event: end\n" + _event({"state": job.state, "attempt": self._attempt})
                return
            quiet += _FOLLOW_S
            if quiet >= _KEEPALIVE_S:
                quiet = 0.0
                yield ": still here\n\n"
            await asyncio.sleep(_FOLLOW_S)

    def _look(self) -> tuple[Job, list[LogLine]]:
        # The state is read before the lines: what was written before the end is then never missed.
        job = self._core.jobs.jobs.get(self._who.company_id, self._job_id)
        if not self._attempt:
            return job, []
        return job, list(islice(self._core.jobs.log_of(job, self._attempt, self._offset), _AT_ONCE))


def _event(data: dict[str, Any], event_id: str | None = None) -> str:
    return (f"id: {event_id}\n" if event_id else "") + f"data: {json.dumps(data)}\n\n"
