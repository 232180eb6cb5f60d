"""Warm containers: many jobs in one life of a container, each still a job of its own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import httpx
import pytest

from mhs_ray import templates
from tests.e2e.platform.clients import SMALL, Client
from tests.e2e.platform.harness import Platform, eventually

CLIENT = Path(templates.__file__).parent / "warm" / "mhs_warm.py"


@pytest.fixture(scope="module")
def warm_zoo(platform: Platform, docker: Client, context: Path) -> int:
    """Id of an uploaded image that takes scan after scan; TURNS says what it does with each."""
    image = int(platform.post("/v1/images", {"name": "Warm zoo"})["id"])
    shutil.copy(CLIENT, context)
    (context / "Dockerfile").write_text(
        f"FROM {SMALL}\nENV PYTHONHOME=/usr/local PYTHONDONTWRITEBYTECODE=1\nWORKDIR /app\n"
        'COPY mhs_warm.py warm_zoo.py /app/\nENTRYPOINT ["python3", "warm_zoo.py"]\n'
    )
    for command in platform.instructions(image)["commands"]:
        done = docker.follow(command, context)
        assert done.returncode == 0, done.stderr
    assert platform.image(image)["status"] == "uploaded"
    return image


def _env(turns: str, warm: str = "scans=20 idle=60") -> list[dict[str, str]]:
    return [{"name": "TURNS", "value": turns}, {"name": "MHS_WARM", "value": warm}]


def _hosts(platform: Platform) -> list[str]:
    return [n for n in platform.containers(f"mhs-{platform.name}-warm-") if not n.endswith("-net")]


def _one(platform: Platform, algorithm: str, scan: int) -> int:
    return platform.submit(algorithm, scan)[0]


def test_a_warm_container_takes_scan_after_scan_and_each_is_a_job_of_its_own(
    platform: Platform, warm_zoo: int, zoo: int, scan: int, slide: Path
) -> None:
    algorithm = platform.algorithm(warm_zoo, "Warm posts", env=_env("post post raise code post"))
    first = _one(platform, algorithm, scan)
    platform.succeeded(first)
    [host] = _hosts(platform)
    second = _one(platform, algorithm, scan)
    platform.succeeded(second)
    reports = [platform.report(job) for job in (first, second)]
    assert reports[0]["life"] == reports[1]["life"], "the model was loaded once"
    assert [r["number"] for r in reports] == [1, 2]
    assert reports[0]["size"] == slide.stat().st_size
    # What belongs to the first scan is dead. Its token is answered as one that posts again is, and nothing is stored.
    assert reports[1]["old"] == {"slide": 404, "debug": 404, "token": 201}
    assert platform.report(first) == reports[0]
    uploaded = platform.api.get(f"/v1/jobs/{second}/debug").headers["location"]
    assert httpx.get(uploaded, trust_env=False).json() == {"debug of": 2}

    life = reports[0]["life"]
    log = platform.lines(first)
    assert [x for x in log if x.startswith(("loading", "scan"))] == [f"loading {life}", f"scan 1 of {life}"]
    log = platform.lines(second)
    assert [x for x in log if x.startswith(("loading", "scan"))] == [f"scan 2 of {life}"]
    assert any(x.startswith(f"[mhs] scan 2 of the warm container {host}") for x in log)
    assert f"[mhs] scan 2 of {host} is done; the container waits for the next one" in log
    assert any("bytes that the container wrote between two scans were left out" in x for x in log)
    assert "between two scans:" not in "\n".join(log)
    assert platform.job(second)["resources"]["warm"] == {"container": host, "scan": 2}

    # A scan that fails fails alone.
    card = platform.failure(_one(platform, algorithm, scan))
    assert (card["code"], card["exit_code"]) == ("exit-code", 1)
    assert "ValueError: cannot see scan 3" in card["excerpt"]
    assert platform.failure(_one(platform, algorithm, scan))["exit_code"] == 9
    fifth = _one(platform, algorithm, scan)
    platform.succeeded(fifth)
    report = platform.report(fifth)
    assert (report["life"], report["number"]) == (life, 5)
    assert report["old"] == {"slide": 404, "debug": 404, "token": 403}, "of a scan that failed nothing is taken"
    assert _hosts(platform) == [host]

    # Another container's job is given the GPU on which it waits: it ends before that one starts.
    other = platform.algorithm(zoo, "Posts", env=[{"name": "BEHAVIOUR", "value": "post"}])
    platform.succeeded(_one(platform, other, scan))
    assert _hosts(platform) == []
    eventually(lambda: not platform.traces(host), "nothing is left of the warm container", 30)
    sixth = _one(platform, algorithm, scan)
    platform.succeeded(sixth)
    assert platform.report(sixth)["life"] != life


def test_a_container_that_dies_in_a_scan_fails_that_one_alone(platform: Platform, warm_zoo: int, scan: int) -> None:
    algorithm = platform.algorithm(warm_zoo, "Warm dies", env=_env("post die"))
    first = _one(platform, algorithm, scan)
    platform.succeeded(first)
    second = _one(platform, algorithm, scan)
    card = platform.failure(second)
    assert (card["failure_class"], card["code"], card["exit_code"]) == ("model", "exit-code", 7)
    assert platform.job(second)["attempt"] == 1, "a model's failure is not tried again"
    third = _one(platform, algorithm, scan)
    platform.succeeded(third)
    assert platform.report(third)["number"] == 1, "a fresh life"
    assert platform.report(third)["life"] != platform.report(first)["life"]


def test_a_cancelled_scan_and_a_lost_attempt_take_their_container_with_them(
    platform: Platform, warm_zoo: int, scan: int
) -> None:
    algorithm = platform.algorithm(warm_zoo, "Warm waits", env=_env("wait"))
    cancelled = _one(platform, algorithm, scan)
    platform.wait_line(cancelled, "waiting")
    [host] = _hosts(platform)
    platform.post(f"/v1/jobs/{cancelled}/cancel", status=200)
    eventually(lambda: not platform.traces(host), "nothing is left of the warm container", 60)

    lost = _one(platform, algorithm, scan)
    platform.wait_line(lost, "waiting")
    [host] = _hosts(platform)
    actor = platform.actor(f"job {lost} ")
    os.kill(int(actor["pid"]), 9)
    eventually(lambda: not platform.traces(host), "nothing is left of the warm container", 60)
    eventually(lambda: platform.job(lost)["attempt"] == 2 and "waiting" in platform.lines(lost, attempt=2), "again", 90)
    [again] = _hosts(platform)
    assert again != host
    platform.post(f"/v1/jobs/{lost}/cancel", status=200)
    eventually(lambda: not platform.traces(again), "nothing is left of the warm container", 60)


def test_its_life_is_bounded_and_an_image_that_knows_nothing_of_it_runs_once(
    platform: Platform, warm_zoo: int, zoo: int, scan: int
) -> None:
    twice = platform.algorithm(warm_zoo, "Warm twice", env=_env("post", "scans=2 idle=60"))
    lives = []
    for _ in range(3):
        job = _one(platform, twice, scan)
        platform.succeeded(job)
        lives.append(platform.report(job)["life"])
    assert lives[0] == lives[1] != lives[2]
    idle = platform.algorithm(warm_zoo, "Warm idle", env=_env("post", "idle=1"))
    platform.succeeded(_one(platform, idle, scan))
    eventually(lambda: _hosts(platform) == [], "it ends when no scan comes", 30)
    cold = platform.algorithm(
        zoo, "Not warm", env=[{"name": "BEHAVIOUR", "value": "post"}, {"name": "MHS_WARM", "value": "1"}]
    )
    job = _one(platform, cold, scan)
    platform.succeeded(job)
    assert "[mhs] container exited with code 0" in platform.lines(job)
    eventually(lambda: _hosts(platform) == [], "nothing waits", 30)
