"""The head's start as one: `ray start` and `serve deploy` as `cluster/aws.yaml` has them, with real everything but AWS.

SeaweedFS stands for S3 and Debian's registry for ECR; the node is a second raylet of this machine.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from mhs_ray.bench._cloud_stage import push_posting_image
from mhs_ray.engines.select import pick_engine
from mhs_ray.platform.up import ray_pids
from mhs_ray.slides.demo import make_demo_slide
from tests.e2e.cluster.head import NODE_TYPE, Head, started_head
from tests.e2e.platform.harness import eventually
from tests.engines_fixtures import _unmount_below
from tests.s3_fixtures import seaweedfs


@pytest.fixture(scope="module")
def head(storage: Path) -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="mh-", dir="/tmp"))
    more = {"CONTAINERS_STORAGE_CONF": str(storage), "MHS_JOBS__STOP_GRACE": "PT1S"}
    try:
        with seaweedfs() as s3:
            s3.blobs("mhs")
            with started_head(folder, s3, more) as started:
                yield started
    finally:
        left = ray_pids(str(folder / "r"))
        _unmount_below(folder)
        shutil.rmtree(folder, ignore_errors=True)
    assert not left


@pytest.mark.timeout(600)
def test_a_head_and_a_node_start_by_their_own_commands_and_come_back_whole(head: Head) -> None:
    eventually(head.ready, "the head is ready", 120)
    engine = pick_engine("podman", folder=head.folder / "engine")
    image = push_posting_image(head.client, engine)
    slide = head.folder / "slide.svs"
    make_demo_slide(slide, 1024, 1024)
    scan = head.client.add_scan_upload(slide)
    container = head.client.create_container({
        "image_id": image, "instance_type": NODE_TYPE, "env": [{"name": "WORK_S", "value": "6"}],
    })  # fmt: skip
    algorithm = head.client.create_algorithm({"name": "six seconds", "container_id": container["id"]})["id"]

    def submit() -> int:
        return int(head.client.submit(algorithm_id=algorithm, scan_ids=[scan["id"]])["job_ids"][0])

    first = submit()
    head.wait(first, "running")
    before = head.replicas()
    assert len(before) == 2
    for pid in before:  # under a job: its result comes to a replica that is not there yet
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: len(head.replicas() - before) == 2, "two new replicas", 120)
    eventually(head.ready, "the API is ready again", 120)
    job = head.wait(first, "succeeded")
    assert job["attempt"] == 1
    assert len(head.client.job_results(first)["scanResults"]) == 1

    config = head.folder / "serve.yaml"
    serve = yaml.safe_load(config.read_text())
    serve["applications"][0]["deployments"][0]["autoscaling_config"]["min_replicas"] = 1
    serve["applications"][0]["deployments"][0]["max_queued_requests"] = 1500
    config.write_text(yaml.safe_dump(serve))
    second = submit()
    head.deploy()
    eventually(head.ready, "the API is ready after another deployment", 120)
    assert head.wait(second, "succeeded")["attempt"] == 1
