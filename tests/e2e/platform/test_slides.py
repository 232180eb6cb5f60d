"""Slides that cannot be had, and files that are none: each with its own word, none tried again in vain."""

from __future__ import annotations

import itertools

import httpx
import pytest

from tests.e2e.platform.harness import Platform
from tests.e2e.platform.slide_host import SlideHost

_TASKS = itertools.count(700200)


@pytest.fixture(scope="module")
def posts(platform: Platform, zoo: int) -> str:
    return platform.algorithm(zoo, "Posts", env=[{"name": "BEHAVIOUR", "value": "post"}])


def submit(platform: Platform, algorithm: str, url: str) -> int:
    task = next(_TASKS)
    body = {"company_id": "1", "scans": {str(task): url}, "task_id": str(task), "model_name": algorithm}
    [job] = platform.webhook(**body)["job_ids"]
    return int(job)


@pytest.mark.parametrize(
    ("path", "code", "words"),
    [
        ("/expired/slide", "slide-expired", "expired"),
        ("/forbidden/slide", "slide-forbidden", "AccessDenied"),
        ("/nowhere/slide", "slide-not-found", "404"),
        ("/ok/truncated", "slide-truncated", ""),
        ("/ok/text", "slide-unreadable", "no slide"),
    ],
)
def test_a_slide_that_stays_bad_is_said_at_once(
    platform: Platform, posts: str, hosted: SlideHost, path: str, code: str, words: str
) -> None:
    before = hosted.asked[path]
    job = submit(platform, posts, hosted.url(path))
    card = platform.failure(job)
    assert (card["failure_class"], card["code"], card["attempt"]) == ("input", code, 1)
    assert words in card["cause"]
    assert card["mend"]
    assert "s3cr3tsignature" not in card["cause"] + platform.log(job)
    assert hosted.asked[path] == before + 1
    assert "started" not in platform.events(job)
    platform.nothing_left(job)


def test_a_slide_host_that_stalls_or_lies_about_the_length_is_tried_again(
    platform: Platform, posts: str, hosted: SlideHost
) -> None:
    paths = {"/stall/slide": "did not arrive", "/short/slide": ""}
    jobs = {path: submit(platform, posts, hosted.url(path)) for path in paths}
    for path, job in jobs.items():
        card = platform.failure(job, within_s=120)
        assert (card["failure_class"], card["code"]) == ("platform", "fetch-failed"), path
        assert card["attempt"] == 2  # the setting's most
        assert paths[path] in card["cause"]
        assert platform.events(job).count("retried") == 1
        platform.nothing_left(job, attempts=2)


def test_no_half_fetched_slide_stays_in_the_cache(platform: Platform, posts: str, hosted: SlideHost) -> None:
    job = submit(platform, posts, hosted.url("/ok/truncated"))
    platform.failure(job)
    platform.nothing_left(job)
    cache = platform.home / "node" / "slides"
    size = len(hosted.files["truncated"])
    assert not [p for p in cache.rglob("*") if p.is_file() and p.stat().st_size == size]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"path": "/no/such/slide.svs"}, 422, "$.path"),
        ({"path": "relative.svs"}, 422, "$.path"),
        ({"url": "ftp://host/slide"}, 422, "http"),
        ({"filename": "a.svs", "scan_id": "abc"}, 422, "$.scan_id"),
        ({}, 422, "exactly one"),
    ],
)
def test_a_scan_that_cannot_be_leaves_no_row(platform: Platform, body: dict[str, str], status: int, words: str) -> None:
    before = platform.get("/v1/scans", limit=500)["items"]
    answer = platform.api.post("/v1/scans", json=body)
    assert answer.status_code == status, answer.text
    assert words in answer.text
    assert platform.get("/v1/scans", limit=500)["items"] == before


@pytest.mark.parametrize(
    ("path", "words"), [("/expired/slide", "expired"), ("/forbidden/slide", "403"), ("/nowhere/slide", "404")]
)
def test_a_scan_whose_url_is_refused_leaves_no_row(
    platform: Platform, hosted: SlideHost, path: str, words: str
) -> None:
    before = platform.get("/v1/scans", limit=500)["items"]
    answer = platform.api.post("/v1/scans", json={"url": hosted.url(path)})
    assert answer.status_code == 422, answer.text
    assert words in answer.text
    assert "s3cr3tsignature" not in answer.text
    assert platform.get("/v1/scans", limit=500)["items"] == before


def test_an_uploaded_file_that_is_no_slide_is_refused_and_removed(platform: Platform, hosted: SlideHost) -> None:
    before = {p for p in (platform.home / "blobs").rglob("*") if p.is_file()}
    for content in (hosted.files["text"], hosted.files["truncated"], b""):
        made = platform.post("/v1/scans", {"filename": "slide.svs"})
        httpx.put(made["upload_url"], content=content, trust_env=False).raise_for_status()
        answer = platform.api.post(f"/v1/scans/{made['id']}/complete")
        assert answer.status_code == 422, answer.text
        assert answer.headers["content-type"].startswith("application/problem+json")
        assert platform.api.get(f"/v1/scans/{made['id']}").status_code == 404
    assert {p for p in (platform.home / "blobs").rglob("*") if p.is_file()} == before
