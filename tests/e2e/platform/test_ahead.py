"""What the node has before a job asks: the image of a new container, and the next job's slide while others compute."""

from __future__ import annotations

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
