"""What the node has before a job asks: the image of a new container, and the next job's slide while others compute."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.e2e.platform.clients import Client
from tests.e2e.platform.conftest import push
from tests.e2e.platform.harness import Platform, eventually
from tests.e2e.platform.slide_host import SlideHost


def test_the_image_of_a_container_is_on_the_node_before_its_first_job(
    platform: Platform, docker: Client, context: Path
) -> None:
    image = push(platform, docker, context, "zoo", "Pulled ahead")
    digest = platform.image(image)["current"]["digest"]
    name = f"{platform.endpoints['registry']}/trusted/{image}@{digest}"
    assert platform.engine_cli.run("image", "inspect", name).returncode != 0
    platform.container(image, "Pulled ahead")
    eventually(lambda: platform.engine_cli.run("image", "inspect", name).returncode == 0, "the node has the image")


def test_an_image_that_nobody_used_for_long_goes_when_the_node_is_asked_for_another(
    platform: Platform, docker: Client, context: Path
) -> None:
    def on_node(image: int) -> bool:
        name = f"{platform.endpoints['registry']}/trusted/{image}@{platform.image(image)['current']['digest']}"
        return platform.engine_cli.run("image", "inspect", name).returncode == 0

    old = push(platform, docker, context, "zoo", "Used once", "once")
    container = platform.container(old, "Used once")
    eventually(lambda: on_node(old), "the node has it")
    deleted = platform.api.delete(f"/v1/containers/{container}")  # else it would be among the likely ones
    assert deleted.status_code == 204, deleted.text
    folder = platform.home / "node" / "images" / "podman"
    [mark] = eventually(lambda: list(folder.glob(f"*-trusted-{old}-*")), "the node remembers the pull")
    two_months_ago = time.time() - 60 * 86400
    os.utime(mark, (two_months_ago, two_months_ago))
    new = push(platform, docker, context, "zoo", "Used now", "now")
    platform.container(new, "Used now")
    eventually(lambda: on_node(new), "the node has the new one")
    eventually(lambda: not on_node(old), "the old one is gone")


def test_the_next_jobs_slide_is_fetched_while_the_present_ones_compute(
    platform: Platform, zoo: int, scan: int, hosted: SlideHost
) -> None:
    wait = platform.algorithm(zoo, "Gated", env=[{"name": "BEHAVIOUR", "value": "gated"}])
    post = platform.algorithm(zoo, "Posts", env=[{"name": "BEHAVIOUR", "value": "post"}])
    hosted.files["ahead"] = hosted.files["slide"]
    busy = [job for _ in range(3) for job in platform.submit(wait, scan)]
    for job in busy:
        platform.wait(job, "running")
    url = hosted.url("/ok/ahead")
    body = {"company_id": "1", "scans": {"700950": url}, "task_id": "700950", "model_name": post}
    [following] = platform.webhook(**body)["job_ids"]
    eventually(lambda: hosted.asked["/ok/ahead"] == 1, "the slide is fetched ahead")
    cache = platform.home / "node" / "slides" / "entries"
    size = len(hosted.files["ahead"])
    eventually(lambda: sum(f.stat().st_size == size for f in cache.glob("*/slide")) >= 1, "it is in the cache")
    assert platform.job(following)["state"] in ("queued", "waiting for a node")
    for job in busy:
        platform.go(job)
    assert platform.succeeded(following)["resources"]["timings"]["slide_s"] < 1.5
    for job in busy:
        platform.wait(job)
    # What comes after the download only asks whether the copy is good.
    assert hosted.asked["/ok/ahead"] == 2
