"""A job's log over HTTP: plain text, and server-sent events that can be resumed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from mhs_ray.domain.failures import Failure, FailureCode
from mhs_ray.domain.states import JobEvent
from tests.unit.api.conftest import Lab, problem

LOST = Failure(FailureCode.NODE_LOST, "gone", "wait")


class Event:
    """One server-sent event."""

    def __init__(self, text: str) -> None:
        fields = dict(line.split(": ", 1) for line in text.splitlines() if not line.startswith(":"))
        self.id, self.kind = fields.get("id"), fields.get("event", "message")
        self.data: dict[str, Any] = json.loads(fields["data"]) if "data" in fields else {}


def _events(answer: httpx.Response) -> Iterator[Event]:
    text = ""
    for piece in answer.iter_text():
        text += piece
        while "\n\n" in text:
            one, text = text.split("\n\n", 1)
            if not one.startswith(":"):
                yield Event(one)


def _follow(lab: Lab, job_id: int, last: str | None = None, **params: Any) -> list[Event]:
    """Follow to the end."""
    headers = {"Last-Event-ID": last} if last else {}
    with lab.http.stream("GET", f"/v1/jobs/{job_id}/log", params={"follow": 1, **params}, headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        return list(_events(answer))


def _end(lab: Lab, job_id: int, attempt: int = 1) -> None:
    lab.world.jobs.transition(job_id, JobEvent.FAILED, attempt=attempt, failure=LOST)


def test_a_log_is_plain_text_from_any_line_with_or_without_times(lab: Lab) -> None:
    job = lab.job()
    lab.server.write_log(job, *(f"line {i}" for i in range(5)))
    path = f"/v1/jobs/{job.id}/log"
    answer = lab.http.get(path, params={"timestamps": False})
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text == "".join(f"line {i}\n" for i in range(5))
    assert lab.http.get(path, params={"timestamps": False, "offset": 3}).text == "line 3\nline 4\n"
    assert lab.http.get(path, params={"offset": 99}).text == ""
    at, text = lab.http.get(path).text.splitlines()[0].split(" ", 1)
    assert at.endswith("Z")
    assert text == "line 0"


def test_a_job_without_an_attempt_has_an_empty_log(lab: Lab) -> None:
    job_id = lab.world.queued(lab.id)
    assert lab.http.get(f"/v1/jobs/{job_id}/log").text == ""
    problem(lab.http.get(f"/v1/jobs/{job_id}/log?attempt=1"), 404, "not-found")


@pytest.mark.parametrize(
    ("query", "path"), [("offset=-1", "$.offset"), ("attempt=0", "$.attempt"), ("follow=x", "$.follow")]
)
def test_a_faulty_question_for_a_log_is_refused(lab: Lab, query: str, path: str) -> None:
    job = lab.job()
    assert problem(lab.http.get(f"/v1/jobs/{job.id}/log?{query}"), 422, "invalid-input") == [path]


def test_a_followed_log_of_an_ended_job_has_all_lines_and_the_end(lab: Lab) -> None:
    job = lab.job()
    lab.server.write_log(job, *(f"line {i}" for i in range(4500)))
    _end(lab, job.id)
    *lines, end = _follow(lab, job.id)
    assert [e.data["text"] for e in lines] == [f"line {i}" for i in range(4500)]
    assert [e.id for e in lines[:2]] == ["1-0", "1-1"]
    assert lines[0].data["source"] == "stdout"
    assert (end.kind, end.data) == ("end", {"state": "failed", "attempt": 1})


@pytest.mark.parametrize("last", ["1-1", "1"])
def test_a_follower_that_comes_back_goes_on_after_its_last_line(lab: Lab, last: str) -> None:
    job = lab.job()
    lab.server.write_log(job, "a", "b", "c", "d")
    _end(lab, job.id)
    assert [e.data.get("text") for e in _follow(lab, job.id, last)] == ["c", "d", None]
    assert [e.data.get("text") for e in _follow(lab, job.id, "1-3")] == [None]
    assert [e.data.get("text") for e in _follow(lab, job.id, offset=3)] == ["d", None]
    assert len(_follow(lab, job.id, "nonsense")) == 5


def test_lines_are_seen_while_the_job_runs_and_the_end_when_it_ends(lab: Lab) -> None:
    job = lab.job()
    lab.server.write_log(job, "first")
    with lab.http.stream("GET", f"/v1/jobs/{job.id}/log?follow=1") as answer:
        events = _events(answer)
        assert next(events).data["text"] == "first"
        lab.server.write_log(job, "second", first_line=1)
        assert next(events).data["text"] == "second"
        lab.server.write_log(job, "third", first_line=2)
        _end(lab, job.id)
        assert [e.data.get("text") for e in events] == ["third", None]


def test_a_follower_is_taken_along_into_the_next_attempt(lab: Lab) -> None:
    job = lab.job()
    lab.server.write_log(job, "a", "b")
    with lab.http.stream("GET", f"/v1/jobs/{job.id}/log?follow=1") as answer:
        events = _events(answer)
        assert [next(events).id, next(events).id] == ["1-0", "1-1"]
        lab.server.write_log(job, "last words", first_line=2)
        lab.world.jobs.transition(job.id, JobEvent.RETRIED, attempt=1, failure=LOST)
        again = lab.run(job.id)
        lab.server.write_log(again, "anew")
        _end(lab, job.id, attempt=2)
        assert [(e.id, e.data.get("text")) for e in events] == [("1-2", "last words"), ("2-0", "anew"), (None, None)]
    assert [e.id for e in _follow(lab, job.id, "1-1")] == ["1-2", "2-0", None]
    assert [e.id for e in _follow(lab, job.id, attempt=1)] == ["1-0", "1-1", "1-2", None]
    assert [e.id for e in _follow(lab, job.id)] == ["2-0", None], "the newest when none is named"


def test_following_a_queued_job_waits_for_its_first_line(lab: Lab) -> None:
    job_id = lab.world.queued(lab.id)

    def later() -> None:
        job = lab.run(job_id)
        lab.server.write_log(job, "hello")
        _end(lab, job_id)

    thread = threading.Timer(0.2, later)
    thread.start()
    assert [e.data.get("text") for e in _follow(lab, job_id)] == ["hello", None]
    thread.join()


def test_eight_open_tails_do_not_hold_a_plain_request_up(lab: Lab) -> None:
    job = lab.job()
    lab.server.write_log(job, "hello")
    with ExitStack() as stack:
        tails = []
        for _ in range(8):
            client = stack.enter_context(lab.server.user(lab.id))
            answer = stack.enter_context(client.stream("GET", f"/v1/jobs/{job.id}/log?follow=1"))
            events = _events(answer)
            assert next(events).data["text"] == "hello"
            tails.append(events)
        # All eight are open and wait. These must be answered while they do:
        for _ in range(20):
            assert lab.http.get(f"/v1/jobs/{job.id}").json()["state"] == "running"
            assert lab.http.get("/healthz").status_code == 200
        _end(lab, job.id)
        assert [next(events).kind for events in tails] == ["end"] * 8


def test_a_follower_that_hangs_up_is_not_followed_any_more(lab: Lab) -> None:
    job = lab.job()
    lab.server.write_log(job, "hello")
    looks: list[int] = []
    jobs = lab.server.core.jobs.jobs
    real = jobs.get

    def counted(company_id: int, job_id: int) -> Any:
        if job_id == job.id:
            looks.append(1)
        return real(company_id, job_id)

    jobs.get = counted  # type: ignore[method-assign]
    try:
        with lab.server.user(lab.id) as client, client.stream("GET", f"/v1/jobs/{job.id}/log?follow=1") as answer:
            next(_events(answer))
        for _ in range(100):
            before = len(looks)
            threading.Event().wait(0.7)  # more than twice as long as between two looks
            if len(looks) == before:
                break
        assert len(looks) == before
    finally:
        jobs.get = real  # type: ignore[method-assign]
