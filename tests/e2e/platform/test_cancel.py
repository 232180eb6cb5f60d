"""A job can be cancelled in every state, and run again."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.platform.clients import Client
from tests.e2e.platform.conftest import push
from tests.e2e.platform.harness import Platform, eventually, processes
from tests.e2e.platform.slide_host import SlideHost


@pytest.mark.both_engines
def test_jobs_are_cancelled_queued_waiting_and_running(platform: Platform, zoo: int, scan: int) -> None:
    algorithm = platform.algorithm(zoo, "Hangs", env=[{"name": "BEHAVIOUR", "value": "hang"}])
    # Three GPUs and room for one that waits: the fifth stays in the queue.
    jobs = [platform.submit(algorithm, scan)[0] for _ in range(5)]

    def placed() -> bool:
        states = sorted(platform.job(job)["state"] for job in jobs)
        return states == ["queued", "running", "running", "running", "waiting for a node"]

    eventually(placed, "three run, one waits, one is queued", 90)
    by_state = {platform.job(job)["state"]: job for job in jobs}
    assert platform.job(by_state["queued"])["queue_position"] == 1
    for state in ("queued", "waiting for a node", "running"):
        job = by_state[state]
        assert platform.post(f"/v1/jobs/{job}/cancel", status=200)["state"] == "cancelled"
    for job in jobs:
        if platform.job(job)["state"] != "cancelled":
            platform.post(f"/v1/jobs/{job}/cancel", status=200)
    for job in jobs:
        platform.nothing_left(job)
        ended = platform.job(job)
        assert ended["state"] == "cancelled"
        assert ended["failure"] is None
        assert platform.events(job)[-1] == "cancelled"
    # Once more changes nothing.
    assert platform.post(f"/v1/jobs/{jobs[0]}/cancel", status=200)["state"] == "cancelled"
    assert platform.events(jobs[0]).count("cancelled") == 1

    again = platform.post(f"/v1/jobs/{by_state['running']}/rerun")["id"]
    platform.wait_line(again, "hanging")
    platform.post(f"/v1/jobs/{again}/cancel", status=200)
    platform.nothing_left(again)


def test_a_job_is_cancelled_while_its_slide_is_fetched(platform: Platform, zoo: int, hosted: SlideHost) -> None:
    algorithm = platform.algorithm(zoo, "Posts", env=[{"name": "BEHAVIOUR", "value": "post"}])
    body = {
        "scans": {"77": hosted.url("/stall/slide")}, "task_id": "700100", "model_name": algorithm, "company_id": "1",
    }  # fmt: skip
    [job] = platform.webhook(**body)["job_ids"]
    assert hosted.stalled.acquire(timeout=60)
    assert platform.wait(job, "preparing")["state"] == "preparing"
    assert platform.post(f"/v1/jobs/{job}/cancel", status=200)["state"] == "cancelled"
    platform.nothing_left(job)
    assert platform.job(job)["state"] == "cancelled"
    assert platform.events(job) == ["submitted", "dispatched", "placed", "cancelled"]


@contextmanager
def silent_registry(platform: Platform) -> Iterator[None]:
    """The platform's registry takes connections and answers none."""
    [pid] = [
        pid for pid, command in processes([f"{platform.home}/registry/config.yml"]).items() if " serve " in command
    ]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.both_engines
def test_a_job_that_is_cancelled_while_its_image_is_pulled_gives_its_gpu_back_within_seconds(
    platform: Platform, docker: Client, context: Path, scan: int
) -> None:
    image = push(platform, docker, context, "zoo", "Pulled in vain")
    with silent_registry(platform):
        algorithm = platform.algorithm(image, "Pulled in vain", env=[{"name": "BEHAVIOUR", "value": "post"}])
        [job] = platform.submit(algorithm, scan)
        platform.wait(job, "preparing")
        eventually(lambda: platform.actor(f"job {job} "), "its actor holds a GPU")
        assert platform.post(f"/v1/jobs/{job}/cancel", status=200)["state"] == "cancelled"
        eventually(lambda: platform.actor(f"job {job} ") is None, "its GPU is free again", 10)
        platform.nothing_left(job)
    [again] = platform.submit(algorithm, scan)
    platform.succeeded(again)
