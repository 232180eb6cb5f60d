"""The client against a real server that answers as badly as the test wants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mhs_ray.client import ApiError, Client, UnreachableError
from mhs_ray.client.sse import Event
from mhs_ray.client.sse import events as parse
from tests.fake_api import Answer, FakeApi, Request, events, job, ok, problem

BUSY = Answer(503, b"{}", {"Retry-After": "7"})
DROP = Answer(drop=True)


def line(number: int, text: str = "x") -> str:
    return f'id: {number}\ndata: {{"line": {number}, "at": "t", "source": "stdout", "text": "{text}"}}'


def test_a_list_is_read_over_all_its_pages_and_no_further_than_asked(api: FakeApi, mhs: Client) -> None:
    def page(request: Request) -> Answer:
        first = int(request.query.get("cursor", ["0"])[0])
        size = min(int(request.query["limit"][0]), 3)
        items = [{"id": first + i} for i in range(size)]
        return ok({"items": items, "next_cursor": str(first + size) if first + size < 8 else None})

    api.routes["GET", "/v1/images"] = page
    assert [i["id"] for i in mhs.images(7)] == list(range(7))
    assert len(list(mhs.images(2))) == 2
    assert len(list(mhs.images())) == 9
    assert "name" not in api.seen[0].query


def test_a_request_that_may_come_twice_is_sent_again_after_a_broken_connection(
    api: FakeApi, mhs: Client, waits: list[float]
) -> None:
    api.on("GET", "/v1/jobs/1", DROP, DROP, ok(job()))
    assert mhs.job(1)["state"] == "succeeded"
    assert len(waits) == 2
    assert waits[0] < waits[1]


def test_a_busy_platform_is_asked_again_when_it_says(api: FakeApi, mhs: Client, waits: list[float]) -> None:
    api.on("GET", "/v1/jobs/1", BUSY, ok(job()))
    mhs.job(1)
    assert waits == [7.0]


@pytest.mark.parametrize("answer", [DROP, BUSY])
def test_a_submission_without_a_task_id_is_never_sent_twice(api: FakeApi, mhs: Client, answer: Answer) -> None:
    api.on("POST", "/v1/tasks", answer, ok({"task_id": "7", "job_ids": [1], "created": True}))
    with pytest.raises((ApiError, UnreachableError)):
        mhs.submit(scan_ids=[1], algorithm="A")
    assert len(api.seen) == 1


def test_a_submission_with_a_task_id_is_sent_again(api: FakeApi, mhs: Client) -> None:
    api.on("POST", "/v1/tasks", DROP, BUSY, ok({"task_id": "7", "job_ids": [1], "created": False}))
    assert mhs.submit(scan_ids=[1], algorithm="A", task_id="7")["job_ids"] == [1]
    assert [r.json for r in api.seen] == [{"scan_ids": [1], "algorithm": "A", "task_id": "7"}] * 3


def test_giving_up_says_where_and_why(api: FakeApi, mhs: Client) -> None:
    api.on("GET", "/v1/jobs/1", DROP)
    with pytest.raises(UnreachableError, match=f"{api.url} does not answer"):
        mhs.job(1)
    assert len(api.seen) == 5


@pytest.mark.parametrize(
    ("answer", "slug", "text"),
    [
        (problem(409, "conflict", "image 1 is used"), "conflict", "image 1 is used"),
        (Answer(502, b"<html>Bad Gateway</html>"), "http-502", "<html>Bad Gateway</html>"),
        (Answer(404, b'["odd"]'), "http-404", '["odd"]'),
    ],
)
def test_every_refusal_becomes_a_problem(api: FakeApi, mhs: Client, answer: Answer, slug: str, text: str) -> None:
    api.on("DELETE", "/v1/images/1", answer)
    with pytest.raises(ApiError) as caught:
        mhs.delete_image(1)
    assert caught.value.slug == slug
    assert str(caught.value) == text


def test_a_platform_that_is_not_ready_says_which_part(api: FakeApi, mhs: Client) -> None:
    api.on("GET", "/readyz", ok({"ready": False, "parts": {"database": "locked"}}, 503))
    assert mhs.health() == {"ready": False, "parts": {"database": "locked"}}


# ---- log


def test_a_followed_log_goes_on_behind_the_last_line_when_the_stream_breaks(api: FakeApi, mhs: Client) -> None:
    api.on("GET", "/v1/jobs/1", ok(job()))
    api.on(
        "GET", "/v1/jobs/1/log",
        events(line(0), line(1)), Answer(502, b"proxy"), DROP, events(line(2), "event: end\ndata: {}"),
    )  # fmt: skip
    assert [x.number for x in mhs.follow_log(1)] == [0, 1, 2]
    asked = [r.headers.get("last-event-id") for r in api.calls("GET", "/v1/jobs/1/log")]
    assert asked == [None, "1", "1", "1"]


def test_a_followed_log_waits_for_the_first_attempt_and_goes_on_to_the_next(api: FakeApi, mhs: Client) -> None:
    api.on(
        "GET", "/v1/jobs/1",
        ok(job(state="queued", attempt=0)), ok(job(state="queued", attempt=0)), ok(job(state="running")),
        ok(job(state="queued")), ok(job(state="running", attempt=2)), ok(job(attempt=2)),
    )  # fmt: skip

    def log(request: Request) -> Answer:
        return events(line(0, f"attempt {request.query['attempt'][0]}"), "event: end\ndata: {}")

    api.routes["GET", "/v1/jobs/1/log"] = log
    assert [(x.attempt, x.text) for x in mhs.follow_log(1)] == [(1, "attempt 1"), (2, "attempt 2")]


def test_a_log_that_is_not_there_ends_the_following_at_once(api: FakeApi, mhs: Client) -> None:
    with pytest.raises(ApiError):
        next(mhs.follow_log(9))
    assert len(api.seen) == 1


def test_a_stored_log_keeps_empty_lines_and_numbers(api: FakeApi, mhs: Client) -> None:
    api.on("GET", "/v1/jobs/1/log", Answer(200, b"t1 a\nt2 \nt3 [mhs] container started\n"))
    assert [(x.number, x.at, x.source, x.text) for x in mhs.log(1, 1, 4)] == [
        (4, "t1", "stdout", "a"),
        (5, "t2", "stdout", ""),
        (6, "t3", "platform", "container started"),
    ]


def test_events_are_read_as_the_standard_has_it() -> None:
    lines = [": comment", "id: 1", "event: a", "data: x", "data:y", "", "", "data: z", "", "data: cut off"]
    assert list(parse(lines)) == [Event("a", "x\ny", "1"), Event("message", "z", "1")]


# ---- uploads


def scan(**changes: Any) -> dict[str, Any]:
    return {"id": 3, "scan_id": "1000000003", "status": "uploading", "upload_url": None, **changes}


def test_an_upload_sends_the_bytes_to_the_signed_url_without_our_credential(
    api: FakeApi, mhs: Client, tmp_path: Path
) -> None:
    file = tmp_path / "s.svs"
    file.write_bytes(bytes(range(256)) * 9000)  # more than two pieces
    api.on("POST", "/v1/scans", ok(scan(upload_url=f"{api.url}/put?sig=abc"), 201))
    api.on("PUT", "/put", Answer(201))
    api.on("POST", "/v1/scans/3/complete", DROP, ok(scan(status="ready")))
    told: list[tuple[int, int]] = []
    assert mhs.add_scan_upload(file, progress=lambda done, total: told.append((done, total)))["status"] == "ready"
    (put,) = api.calls("PUT", "/put")
    assert put.body == file.read_bytes()
    assert "authorization" not in put.headers
    assert told[-1] == (2_304_000, 2_304_000)


def test_an_upload_that_breaks_leaves_no_scan_and_tells_no_signature(api: FakeApi, mhs: Client, tmp_path: Path) -> None:
    (tmp_path / "s.svs").write_bytes(b"x")
    api.on("POST", "/v1/scans", ok(scan(upload_url=f"{api.url}/put?sig=s3cret"), 201))
    api.on("PUT", "/put", DROP)
    api.on("DELETE", "/v1/scans/3", Answer(204))
    with pytest.raises(UnreachableError) as caught:
        mhs.add_scan_upload(tmp_path / "s.svs")
    assert "s3cret" not in str(caught.value)
    assert len(api.calls("DELETE", "/v1/scans/3")) == 1


# ---- images


def image(status: str, digest: str | None, updated: str = "1") -> dict[str, Any]:
    current = {"digest": digest, "number": 1} if digest else None
    return {"id": 1, "name": "i", "status": status, "updated_at": updated, "current": current, "failure_message": ""}


def test_waiting_for_a_push_takes_no_older_state_for_the_answer(api: FakeApi, mhs: Client) -> None:
    before = image("uploaded", "sha256:old")
    answers = [before, image("checking", "sha256:old", "2"), image("uploaded", "sha256:new", "3")]
    api.on("GET", "/v1/images/1", *map(ok, answers))
    said: list[str] = []
    found = mhs.wait_for_image(before, "sha256:new", on_status=said.append)  # type: ignore[arg-type]
    assert found["current"]
    assert found["current"]["digest"] == "sha256:new"
    assert said == ["checking", "uploaded"]


def test_pushing_the_same_image_again_needs_no_wait(api: FakeApi, mhs: Client, waits: list[float]) -> None:
    before = image("uploaded", "sha256:same")
    api.on("GET", "/v1/images/1", ok(before))
    mhs.wait_for_image(before, "sha256:same", on_status=lambda _s: None)  # type: ignore[arg-type]
    assert waits == []
