"""Ray's real autoscaler, real containers; only the cloud is played, by raylets of this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mhs_ray.bench._cloud_stage import ENDED, CloudStage
from mhs_ray.domain.instances import LABEL
from tests.e2e.cluster.conftest import IDLE_S, TYPES
from tests.e2e.platform.harness import eventually, processes
from tests.fake_metadata import fake_metadata

G4, G5 = (t.name for t in TYPES)
_WITHIN_S = 240.0  # on a machine that others use too; alone it takes a tenth


def _log(cloud: CloudStage, job_id: int) -> str:
    return "\n".join(line.text for line in cloud.client.log(job_id))


def wait(cloud: CloudStage, job_id: int, *states: str, within_s: float = _WITHIN_S) -> Any:
    """Return the job once it is in one of `states`; it must not end otherwise."""

    def there() -> Any:
        job = cloud.client.job(job_id)
        assert job["state"] in states or job["state"] not in ENDED, f"{job}\n{_log(cloud, job_id)}"
        return job["state"] in states and job

    return eventually(there, f"job {job_id} is {' or '.join(states)}", within_s, every_s=0.3)


def the_node(cloud: CloudStage, kind: str) -> str:
    """Return Ray's id of the one node of this type, once it lives."""

    def there() -> list[str]:
        return [n["node_id"] for n in cloud.nodes() if n["labels"][LABEL] == kind]

    [found] = eventually(there, f"a node of {kind}", _WITHIN_S, every_s=0.3)
    return str(found)


@contextmanager
def watcher(cloud: CloudStage, node_id: str, metadata: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run what runs beside the raylet of a spot node."""
    process = subprocess.Popen(
        [
            sys.executable, "-m", "mhs_ray.actors.spot_watch", "--address", cloud.endpoints.ray_address,
            "--node-id", node_id, "--metadata", metadata,
        ],
        env={
            **os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": f"{cloud.settings.home}/keys/ray-token",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        },
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def raylets(cloud: CloudStage, node_id: str) -> list[int]:
    """Return the process of a node's raylet, if it lives."""
    return [
        pid
        for pid, command in processes([f"RAY_OVERRIDE_NODE_ID_FOR_TESTING={node_id}"]).items()
        if "raylet/raylet" in command.split(" ")[0] and str(cloud.cloud.folder) in command
    ]


def no_nodes(cloud: CloudStage) -> None:
    eventually(lambda: not cloud.nodes(), "every node is gone", _WITHIN_S, every_s=0.5)


@pytest.mark.timeout(900)
def test_jobs_of_two_types_bring_nodes_that_stay_while_one_works_and_go_when_none_does(cloud: CloudStage) -> None:
    assert not cloud.nodes()
    lacking = cloud.submit("g6.2xlarge", 0)
    long = cloud.submit(G5, IDLE_S * 2)  # an idle node would have gone twice in that time
    jobs = [cloud.submit(G4, 2), cloud.submit(G4, 2), long]
    failure = wait(cloud, lacking, "failed", within_s=60)["failure"]
    assert failure["code"] == "no-such-instance-type"
    assert "g6.2xlarge" in failure["cause"]
    reasons: set[str] = set()
    most: dict[str, int] = {}
    done: dict[int, Any] = {}

    def all_ended() -> bool:
        for kind, count in cloud.counts().items():
            most[kind] = max(most.get(kind, 0), count)
        for job_id in set(jobs) - done.keys():
            job = cloud.client.job(job_id)
            reasons.add(job["waits_because"] or "")
            if job["state"] in ENDED:
                done[job_id] = job
        return len(done) == len(jobs)

    eventually(all_ended, "all jobs have ended", _WITHIN_S, every_s=0.3)
    for job_id, job in done.items():
        assert (job["state"], job["attempt"]) == ("succeeded", 1), f"{job}\n{_log(cloud, job_id)}"
    assert most == {G4: 2, G5: 1}
    assert any("node is being started" in reason for reason in reasons), reasons
    no_nodes(cloud)
    ended = [n for n in cloud.nodes(alive=False) if n["state"] == "DEAD"]
    assert len(ended) == 3
    assert all("idle" in str(n["state_message"]) for n in ended), ended  # drained, then ended
    containers = subprocess.run(["podman", "ps", "--all", "--quiet"], capture_output=True, text=True, check=True).stdout
    assert not containers.split()
    # What a node knows came from the head, and no key or password was among it.
    for home in cloud.cloud.nodes.iterdir():
        assert not (home / "keys").exists()


@pytest.mark.timeout(900)
def test_a_killed_node_is_replaced_and_its_job_runs_again_and_another_on_a_faked_spot_notice(cloud: CloudStage) -> None:
    # Long enough to be running still when something happens to them, also on a machine with much else to do.
    killed, taken = cloud.submit(G4, 15), cloud.submit(G5, 25)
    dead, goes = (the_node(cloud, kind) for kind in (G4, G5))
    with fake_metadata() as metadata, watcher(cloud, goes, metadata.url) as watching:
        wait(cloud, killed, "running")
        [pid] = raylets(cloud, dead)
        os.kill(pid, signal.SIGKILL)
        wait(cloud, taken, "running")
        eventually(lambda: metadata.tokens, "the watcher asks for notices", _WITHIN_S)
        cloud.cloud.refuse({G5: "InsufficientInstanceCapacity: no g5.2xlarge in this zone (played)"})
        end = datetime.now(UTC) + timedelta(seconds=20)  # given back 15 s before (MHS_CLUSTER__GIVE_BACK)
        metadata.notice = {"action": "terminate", "time": end.strftime("%Y-%m-%dT%H:%M:%SZ")}
        assert watching.wait(60) == 0
    # The next attempt waits: nothing more is placed on a node that goes, whatever is free there.
    eventually(
        lambda: "InsufficientInstanceCapacity: no g5.2xlarge in this zone" in str(
            cloud.client.job(taken)["waits_because"]), "the job tells the cloud's words", _WITHIN_S,
    )  # fmt: skip
    assert (job := cloud.client.job(taken))["attempt"] == 2, job
    [given_back] = [e["at"] for e in cloud.client.job_events(taken) if e["event"] == "retried"]
    assert datetime.fromisoformat(given_back) < end, "given back before the machine went"
    for pid in raylets(cloud, goes):  # unless the autoscaler ended it before: the cloud takes the machine
        os.kill(pid, signal.SIGTERM)
    cloud.cloud.refuse({})
    for job_id, lost_on, code in ((killed, dead, "node-lost"), (taken, goes, "preempted")):
        job = wait(cloud, job_id, "succeeded", within_s=_WITHIN_S)
        assert job["attempt"] == 2
        told = [e for e in cloud.client.job_events(job_id) if e["event"] == "retried"]
        assert [e["cause"].partition(":")[0] for e in told] == [code], told
        results = cloud.client.job_results(job_id)["scanResults"]
        assert len(results) == 1
        places = [e["node"] for e in cloud.client.job_events(job_id) if e["event"] == "placed"]
        assert [f"({lost_on[:8]})" in str(place) for place in places] == [True, False], places
    no_nodes(cloud)


_WITH_SCHEDULE = """
import sys
import ray
from mhs_ray.actors.dispatcher import DispatcherShell
from mhs_ray.actors.names import DISPATCHER, NAMESPACE, retire, start_on_head
ray.init(sys.argv[1], namespace=NAMESPACE, log_to_driver=False)
retire(DISPATCHER)
there = {"env_vars": {"MHS_CLUSTER__WARM": sys.argv[2]}}
start_on_head(ray.remote(runtime_env=there)(DispatcherShell), DISPATCHER, max_concurrency=1000)
"""


def keep_warm(cloud: CloudStage, kind: str, until: datetime) -> None:
    """Start the dispatcher anew, as on a head whose settings keep one node of a type until then."""
    hours = {"from": f"{datetime.now(UTC) - timedelta(minutes=1):%H:%M:%S}", "to": f"{until:%H:%M:%S}"}
    rule = json.dumps([{"instance_type": kind, "nodes": 1, **hours}])
    environment = {
        **os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": f"{cloud.settings.home}/keys/ray-token",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", _WITH_SCHEDULE, cloud.endpoints.ray_address, rule], env=environment,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.timeout(900)
def test_a_node_is_kept_by_schedule_though_no_job_asks_and_goes_when_its_hours_end(cloud: CloudStage) -> None:
    no_nodes(cloud)
    for hours_s in (20, 120):  # the second for a machine that has much else to do
        until = datetime.now(UTC) + timedelta(seconds=hours_s)
        keep_warm(cloud, G5, until)
        came = None
        while datetime.now(UTC) < until - timedelta(seconds=1):
            alive = cloud.nodes()
            if came is None and alive:
                came = (datetime.now(UTC), [n["node_id"] for n in alive])
            assert came is None or [n["node_id"] for n in alive] == came[1], "it stays, and no other comes"
            time.sleep(0.5)
        if came is not None and until - came[0] > timedelta(seconds=IDLE_S * 2):
            break
        no_nodes(cloud)
    else:
        pytest.fail("no node came while its hours lasted")
    assert cloud.counts() == {G5: 1}
    assert not [j for j in cloud.client.jobs(limit=50) if j["state"] not in ENDED], "no job asked for it"
    no_nodes(cloud)
