"""Submissions over HTTP: Techcyte's webhook as it is, and the same in our words; and the intake behind both."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from api.intake import Intake
from api.webhook_example import WEBHOOK_EXAMPLE
from mhs_ray.attempt.tiles import progress_key
from mhs_ray.domain.errors import InvalidInputError, OverloadedError
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.database import Database
from mhs_ray.store.sql.tasks import Submission, Submitted, Tasks
from tests.store_fixtures import World, sqlite_db
from tests.unit.api.conftest import Lab, problem


@pytest.fixture
def lab(lab: Lab) -> Lab:
    """A lab with the algorithm that the example names."""
    lab.world.algorithm(lab.id, name="Mitosis count")
    return lab


def _webhook(**changes: Any) -> dict[str, Any]:
    body = {**WEBHOOK_EXAMPLE, **changes}
    return {key: value for key, value in body.items() if value is not ...}


# ------------------------------------------------------------ webhook


@pytest.mark.parametrize("path", ["/webhook", "/v1/webhook"])
def test_techcytes_webhook_becomes_one_job_per_scan(lab: Lab, path: str) -> None:
    wakes = len(lab.server.wakes)
    urls = {"8946136": "https://s.example.com/a?sig=1", "8946137": "https://s.example.com/b?sig=2"}
    answer = lab.http.post(path, json=_webhook(scans=urls, scan_urls=..., stains=...))
    assert answer.status_code == 201, answer.text
    done = answer.json()
    assert (done["task_id"], done["created"], len(done["job_ids"])) == ("185714", True, 2)
    assert len(lab.server.wakes) > wakes
    task = lab.http.get("/v1/tasks/dGFzazoxODU3MTQ=").json()
    assert task == lab.http.get("/v1/tasks/185714").json()
    assert (task["case_id"], task["origin"], task["priority"]) == ("aHVtYW5DYXNlOjI0MjEzNjY=", "techcyte", "clinical")
    assert [(j["scan_id"], j["state"]) for j in task["jobs"]] == [("8946136", "queued"), ("8946137", "queued")]


def test_the_same_task_id_in_any_form_is_answered_200_and_adds_nothing(lab: Lab) -> None:
    first = lab.http.post("/v1/webhook", json=_webhook())
    assert first.status_code == 201
    for form in ("dGFzazoxODU3MTQ=", "185714", 185714):
        again = lab.http.post("/v1/webhook", json=_webhook(task_id=form, model_name="gone"))
        assert again.status_code == 200
        assert again.json() == {**first.json(), "created": False}
    assert len(lab.http.get("/v1/jobs").json()["items"]) == 1


def test_duplicates_at_once_make_one_task(lab: Lab) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: lab.http.post("/webhook", json=_webhook()), range(16)))
    assert sorted(a.status_code for a in answers) == [200] * 15 + [201]
    assert len({tuple(a.json()["job_ids"]) for a in answers}) == 1


def test_a_dicom_series_keeps_every_url_and_another_scan_its_one(lab: Lab) -> None:
    series = [f"https://s.example.com/{i}.dcm?sig=1" for i in range(3)]
    body = _webhook(
        scans={"1": series[0], "2": "https://s.example.com/b?sig=2"}, scan_urls={"1": series, "2": []}
    )  # fmt: skip
    jobs = lab.http.post("/webhook", json=body).json()["job_ids"]
    slides = [lab.world.db.vault.open(lab.world.jobs.row(j).slide)["urls"] for j in jobs]
    assert slides == [series, ["https://s.example.com/b?sig=2"]]


@pytest.mark.parametrize(
    "changes",
    [
        {"jwt_token": ...}, {"jwt_token": None}, {"jwt_token": ""}, {"stains": {}}, {"stains": ...}, {"stains": None},
        {"case_id": ...}, {"case_id": 2421366}, {"company_id": ...}, {"company_id": 1052}, {"task_id": 77},
        {"model_name": ""}, {"model_name": None}, {"model_name": ..., "model_id": ""},
        {"model_name": " Mitosis count "},
        {"model_id": "unknown"}, {"new_key": {"deep": [1]}, "another": None}, {"scan_urls": ...}, {"scans": ...},
        {"scan_urls": {}}, {"stains": {"8946136": {"value": "x", "odd": "\ud800\x00"}}}, {"\ud800": 1},
    ],
    ids=lambda c: json.dumps({k: "left out" if v is ... else v for k, v in c.items()})[:60],
)  # fmt: skip
def test_what_a_webhook_may_leave_out_or_bring_along(lab: Lab, changes: dict[str, Any]) -> None:
    answer = lab.http.post("/webhook", content=json.dumps(_webhook(**changes)))
    assert answer.status_code == 201, answer.text
    assert len(answer.json()["job_ids"]) == 1


def test_a_model_is_named_by_its_id_here(lab: Lab) -> None:
    second = lab.world.algorithm(lab.id, name="Tumor")
    for task, model in enumerate((str(second.id), second.id, "Tumor"), start=1):
        done = lab.http.post("/webhook", json=_webhook(task_id=task, model_id=model)).json()
        assert lab.http.get(f"/v1/tasks/{done['task_id']}").json()["algorithm_id"] == second.id
    answer = lab.http.post("/webhook", json=_webhook(task_id=9, model_name=""))
    assert problem(answer, 422, "invalid-input") == ["$.model_name"], "two of them: which one is meant?"


@pytest.mark.parametrize(
    ("changes", "paths"),
    [
        ({"task_id": ...}, ["$.task_id"]), ({"task_id": ""}, ["$.task_id"]), ({"task_id": "x"}, ["$.task_id"]),
        ({"task_id": True}, ["$.task_id"]), ({"task_id": 1.5}, ["$.task_id"]), ({"task_id": []}, ["$.task_id"]),
        ({"task_id": "aHVtYW5DYXNlOjI0MjEzNjY="}, ["$.task_id"]), ({"case_id": "dGFzazox"}, ["$.case_id"]),
        ({"model_name": "unknown"}, ["$.model_name"]), ({"model_name": {}}, ["$.model_name"]),
        ({"model_name": "a\x00b"}, ["$.model_name"]), ({"model_name": "\ud800"}, ["$.model_name"]),
        ({"model_id": 1.5}, ["$.model_id"]), ({"jwt_token": 5}, ["$.jwt_token"]), ({"stains": []}, ["$.stains"]),
        ({"scans": {}, "scan_urls": {}}, ["$.scans"]), ({"scans": ..., "scan_urls": ...}, ["$.scans"]),
        ({"scans": [], "scan_urls": ...}, ["$.scans", "$.scans"]), ({"scan_urls": "x"}, ["$.scan_urls"]),
        ({"scans": {"1": "ftp://x/a"}, "scan_urls": ...}, ["$.scans['1']"]),
        ({"scans": {"1": "http://"}, "scan_urls": ...}, ["$.scans['1']"]),
        ({"scans": {"1": 5}, "scan_urls": ...}, ["$.scans['1']"]),
        ({"scans": {"1": "https://x/a\nEVIL=1"}, "scan_urls": ...}, ["$.scans['1']"]),
        ({"scans": {"1": "https://x/\ud800"}, "scan_urls": ...}, ["$.scans['1']"]),
        ({"scans": {"abc": "https://x/a"}, "scan_urls": ...}, ["$.scans['abc']"]),
        ({"scan_urls": {"8946136": ["https://x/a", None]}}, ["$.scan_urls['8946136']"]),
        ({"scan_urls": {"8946136": "https://x/a"}}, ["$.scan_urls['8946136']"]),
        ({"scans": {"1": "https://x/a", "01": "https://x/b"}, "scan_urls": ...}, ["$.scans['01']"]),
        ({"task_id": "x", "stains": 1, "scans": {"y": "z"}, "scan_urls": ...},
         ["$.task_id", "$.scans['y']", "$.stains"]),
    ],
)  # fmt: skip
def test_a_faulty_webhook_is_refused_at_its_field_and_leaves_nothing(
    lab: Lab, changes: dict[str, Any], paths: list[str]
) -> None:
    answer = lab.http.post("/webhook", content=json.dumps(_webhook(**changes)))
    assert problem(answer, 422, "invalid-input") == paths
    for kind in ("tasks", "jobs", "scans"):
        assert lab.http.get(f"/v1/{kind}").json()["items"] == []


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b"[" * 200_000, b'{"task_id": NaN}', b"9" * 5000]
)
def test_a_webhook_that_is_no_json_object_is_refused(lab: Lab, body: bytes) -> None:
    assert problem(lab.http.post("/webhook", content=body), 422, "invalid-input") == ["$"]


def test_a_webhook_with_too_many_scans_or_bytes_is_refused(lab: Lab) -> None:
    scans = {str(i + 1): f"https://s.example.com/{i}" for i in range(1001)}
    assert problem(lab.http.post("/webhook", json=_webhook(scans=scans, scan_urls=...)), 422, "invalid-input") == [
        "$.scans"
    ]
    problem(lab.http.post("/webhook", content=b" " * (9 << 20)), 413, "too-large")


def test_no_token_and_no_signature_of_a_webhook_is_ever_shown(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    urls = {"5": "https://s.example.com/5?X-Amz-Signature=url-s3cret"}
    body = _webhook(jwt_token="jwt-s3cret", scans=urls, scan_urls=...)
    texts = [lab.http.post("/webhook", json=body).text]
    job = lab.http.get("/v1/jobs").json()["items"][0]
    scan = lab.http.get("/v1/scans").json()["items"][0]["id"]
    for path in ("tasks", "tasks/185714", f"jobs/{job['id']}", f"jobs/{job['id']}/events", f"scans/{scan}", "scans"):
        texts.append(lab.http.get(f"/v1/{path}").text)
    texts.append(lab.http.post("/webhook", json=_webhook(**{**body, "task_id": "x"})).text)
    assert not [s for s in ("jwt-s3cret", "url-s3cret") if s in " ".join([*texts, caplog.text])]


# ------------------------------------------------------------ POST /v1/tasks


def test_a_task_in_our_words_is_made_listed_and_found(lab: Lab) -> None:
    scan = lab.world.scan(lab.id)
    body = {
        "algorithm": "Mitosis count",
        "scan_ids": [scan.id],
        "case_id": "5",
        "priority": "research",
        "description": "x",
    }
    answer = lab.http.post("/v1/tasks", json=body)
    assert answer.status_code == 201, answer.text
    number = answer.json()["task_id"]
    task = lab.http.get(f"/v1/tasks/{number}").json()
    assert (task["origin"], task["priority"], task["description"]) == ("local", "research", "x")
    assert int(number) > 1_000_000_000
    listed = lab.http.get("/v1/tasks?origin=local").json()["items"]
    assert [t["task_id"] for t in listed] == [number]
    assert lab.http.get("/v1/tasks?origin=techcyte").json()["items"] == []
    assert lab.http.get("/v1/jobs?algorithm=Mitosis%20count&state=queued").json()["items"] == task["jobs"]
    shown = lab.http.get(f"/v1/jobs/{task['jobs'][0]['id']}").json()
    assert shown["queue_position"] >= 1
    again = lab.http.post("/v1/tasks", json={**body, "task_id": number})
    assert (again.status_code, again.json()["created"]) == (200, False)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"algorithm": "unknown"}, "$.algorithm"), ({"algorithm": ...}, "$.algorithm_id"),
        ({"algorithm_id": 1}, "$.algorithm_id"), ({"algorithm": ..., "algorithm_id": 999_999}, "$.algorithm_id"),
        ({"scan_ids": []}, "$.scan_ids"), ({"scan_ids": [999_999]}, "$.scan_ids[0]"), ({"scan_ids": 5}, "$.scan_ids"),
        ({"scan_ids": ["x"]}, "$.scan_ids[0]"), ({"scan_ids": list(range(1, 1002))}, "$.scan_ids"),
        ({"task_id": "x"}, "$.task_id"), ({"case_id": "x"}, "$.case_id"), ({"priority": "urgent"}, "$.priority"),
        ({"description": "x" * 10_001}, "$.description"), ({"scans": [1]}, "$.scans"),
    ],
)  # fmt: skip
def test_a_faulty_task_is_refused_at_its_field(lab: Lab, change: dict[str, Any], path: str) -> None:
    scan = lab.world.scan(lab.id)
    body = {"algorithm": "Mitosis count", "scan_ids": [scan.id], **change}
    answer = lab.http.post("/v1/tasks", json={k: v for k, v in body.items() if v is not ...})
    assert problem(answer, 422, "invalid-input") == [path]
    assert lab.http.get("/v1/tasks").json()["items"] == []


@pytest.mark.parametrize(
    ("body", "kind", "told"),
    [
        (b"", "application/json", "$: Field required"),
        (b"{", "application/json", "$: the body is no JSON"),
        (b"[]", "application/json; charset=utf-8", "$: Input should be an object"),
        (b"{}", "text/plain", "$: the body must be sent as Content-Type: application/json"),
        (b"{}", "", "$: the body must be sent as Content-Type: application/json"),
        (b"{}", "application/vnd.lab+json", "$.scan_ids: Field required"),
    ],
)
def test_a_task_that_is_no_json_of_ours_is_refused(lab: Lab, body: bytes, kind: str, told: str) -> None:
    answer = lab.http.post("/v1/tasks", content=body, headers={"Content-Type": kind})
    problem(answer, 422, "invalid-input")
    assert told in answer.json()["detail"]


def test_jobs_are_cancelled_and_rerun(lab: Lab) -> None:
    job = lab.job()
    path = f"/v1/jobs/{job.id}"
    problem(lab.http.post(f"{path}/rerun"), 409, "conflict")
    cancelled = lab.http.post(f"{path}/cancel").json()
    assert cancelled["state"] == "cancelled"
    assert lab.http.post(f"{path}/cancel").status_code == 200
    rerun = lab.http.post(f"{path}/rerun")
    assert rerun.status_code == 201
    assert (rerun.json()["state"], rerun.json()["image_digest"]) == ("queued", job.image_digest)
    story = lab.http.get(f"{path}/events").json()
    assert [e["event"] for e in story] == ["submitted", "dispatched", "placed", "started", "cancelled"]
    assert story[-1]["cause"] == "cancelled by Ada"


# ------------------------------------------------------------ intake


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with sqlite_db(tmp_path) as db:
        yield World(db)


class SlowDatabase(Database):
    """Holds the first transaction back until `go`, so that the next ones meet in one batch; fails when told to."""

    def __init__(self, real: Database) -> None:
        self.__dict__ = dict(real.__dict__)
        self.go, self.fail, self.commits = threading.Event(), False, 0

    def write(self) -> Any:
        self.go.wait(30)
        self.commits += 1
        if self.fail:
            raise OSError("the disk is gone")
        return super().write()


def _submit_all(world: World, submissions: list[Submission], *, fail: bool = False, cancel: int | None = None) -> Any:
    """Submit all at once, the first alone in its batch; return (results, commits, wakes)."""
    db = SlowDatabase(world.db)
    wakes: list[int] = []

    async def run() -> list[Any]:
        intake = Intake(db, Tasks(db), lambda: wakes.append(1))
        calls = [asyncio.create_task(intake.submit(s)) for s in submissions[:1]]
        await asyncio.sleep(0.05)
        calls += [asyncio.create_task(intake.submit(s)) for s in submissions[1:]]
        await asyncio.sleep(0.05)
        if cancel is not None:
            calls[cancel].cancel()
        db.fail = fail
        db.go.set()
        found = await asyncio.gather(*calls, return_exceptions=True)
        await intake.close()
        return found

    return asyncio.run(run()), db.commits, len(wakes)


def _rows(world: World) -> int:
    with world.db.read() as conn:
        return int(conn.execute(sa.select(sa.func.count()).select_from(t.tasks)).scalar_one())


def _submissions(world: World, count: int, **values: Any) -> list[Submission]:
    company = world.company()
    algorithm, scan = world.algorithm(company), world.scan(company)
    return [world.submission(company, algorithm, scan, number=i + 1, **values) for i in range(count)]


def test_submissions_that_come_together_are_committed_together(world: World) -> None:
    results, commits, wakes = _submit_all(world, _submissions(world, 50))
    assert all(isinstance(r, Submitted) and r.created for r in results)
    assert [r.task.number for r in results] == list(range(1, 51)), "each gets its own answer"
    assert (commits, wakes, _rows(world)) == (2, 2, 50)


def test_many_submissions_wake_the_dispatcher_seldom_and_the_last_one_is_told(world: World) -> None:
    submissions = _submissions(world, 31)

    async def run() -> list[int]:
        told: list[int] = []
        made = 0
        intake = Intake(world.db, world.tasks, lambda: told.append(made))
        for submission in submissions[:30]:
            made += 1
            await intake.submit(submission)
        await asyncio.sleep(0.2)
        told.append(made)
        await intake.submit(submissions[30])
        await intake.close()
        return told

    told = asyncio.run(run())
    assert told[0] == 1  # the first at once
    assert len(told) < 32
    assert told[-3:] == [30, 30, 30]  # the last of them too, and the one after a while at once


def test_a_faulty_submission_fails_alone(world: World) -> None:
    submissions = _submissions(world, 5)
    faulty = world.submission(submissions[0].company_id, world.algorithm(submissions[0].company_id), algorithm_id=999)
    submissions[2] = faulty
    broken = _submissions(world, 1, request={"no JSON": object()})[0]
    submissions[3] = broken
    results, _, _ = _submit_all(world, submissions)
    assert isinstance(results[2], InvalidInputError)
    assert isinstance(results[3], OverloadedError)
    assert [type(results[i]) for i in (0, 1, 4)] == [Submitted] * 3
    assert _rows(world) == 3


def test_a_transaction_that_fails_stores_nothing_and_tells_everybody(world: World) -> None:
    results, _, wakes = _submit_all(world, _submissions(world, 5), fail=True)
    assert all(isinstance(r, OverloadedError) for r in results)
    assert len({id(r) for r in results}) == 5
    assert (wakes, _rows(world)) == (0, 0)


def test_a_caller_that_went_away_harms_nobody_and_its_task_is_there_when_it_comes_again(world: World) -> None:
    submissions = _submissions(world, 4)
    results, _, _ = _submit_all(world, submissions, cancel=2)
    assert isinstance(results[2], asyncio.CancelledError)
    assert [type(results[i]) for i in (0, 1, 3)] == [Submitted] * 3
    assert world.tasks.submit(submissions[2]).created is False


def test_a_dispatcher_that_cannot_be_woken_costs_no_submission(world: World) -> None:
    def unreachable() -> None:
        raise ConnectionError("the head is away")

    async def run() -> list[Submitted]:
        intake = Intake(world.db, world.tasks, unreachable)
        done = [await intake.submit(s) for s in _submissions(world, 2)]
        await intake.close()
        return done

    assert [d.created for d in asyncio.run(run())] == [True, True]


def test_a_full_queue_asks_to_come_back_later(world: World) -> None:
    results, _, _ = _submit_all(world, _submissions(world, 1) * 2003)
    refused = [r for r in results if isinstance(r, OverloadedError)]
    assert len(refused) == 2
    assert refused[0].retry_after_s > 0
    assert _rows(world) == 1


def test_a_job_tells_how_far_its_tiles_are(lab: Lab) -> None:
    job = lab.job()
    assert lab.http.get(f"/v1/jobs/{job.id}").json()["tiles"] is None
    kept = {"done": 12, "planned": 48, "left_s": 3.5}
    lab.server.core.blobs.put(progress_key(job.id, job.attempt), json.dumps(kept).encode())
    assert lab.http.get(f"/v1/jobs/{job.id}").json()["tiles"] == kept
    lab.server.core.blobs.put(progress_key(job.id, job.attempt), b"half a docu")
    assert lab.http.get(f"/v1/jobs/{job.id}").json()["tiles"] is None
