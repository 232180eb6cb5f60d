"""Parts of the platform are killed while a job runs; the job ends as it should, once."""

from __future__ import annotations

import os
import signal

import httpx
import pytest

from tests.e2e.platform.harness import Platform, eventually, processes


@pytest.fixture
def running(platform: Platform, zoo: int, scan: int) -> int:
    """A job whose container runs and waits."""
    algorithm = platform.algorithm(zoo, "Gated", env=[{"name": "BEHAVIOUR", "value": "gated"}])
    [job] = platform.submit(algorithm, scan)
    platform.wait_line(job, "waiting")
    return job


def kill(platform: Platform, actor: str) -> int:
    """Kill the process of a living actor as the kernel would; return its pid."""
    pid = int(eventually(lambda: platform.actor(actor), f"an actor {actor}")["pid"])
    os.kill(pid, signal.SIGKILL)
    return pid


def stored_once(platform: Platform, job: int) -> None:
    """Check that the job has one result and one end."""
    assert platform.report(job) == {"summary": "after the wait"}
    assert platform.events(job).count("succeeded") == 1


@pytest.mark.both_engines
def test_a_killed_worker_is_the_platforms_failure_and_the_job_runs_again(platform: Platform, running: int) -> None:
    kill(platform, f"job {running} · attempt 1 · ")
    platform.wait(running, "queued", "waiting for a node", "preparing", "running")
    eventually(lambda: platform.job(running)["attempt"] == 2, "it is tried again")
    # The first attempt's container must not go on beside the second: they would share a GPU.
    platform.nothing_left(running)
    eventually(lambda: "waiting" in platform.lines(running, attempt=2), "the second attempt's container runs")
    platform.go(running, attempt=2)
    platform.succeeded(running)
    stored_once(platform, running)
    [retried] = [e for e in platform.get(f"/v1/jobs/{running}/events") if e["event"] == "retried"]
    assert "node-lost" in retried["cause"]
    platform.nothing_left(running, attempts=2)


def test_a_killed_dispatcher_comes_back_and_the_running_job_ends_once(platform: Platform, running: int) -> None:
    old = kill(platform, "mhs dispatcher")
    platform.go(running)
    platform.succeeded(running)
    stored_once(platform, running)
    assert platform.job(running)["attempt"] == 1
    assert int(platform.actor("mhs dispatcher")["pid"]) != old
    platform.nothing_left(running)


def test_a_killed_api_replica_comes_back_and_the_container_posts_all_the_same(platform: Platform, running: int) -> None:
    kill(platform, "ServeReplica:mhs:api")
    platform.go(running)  # it posts to an API that is not there

    def answers() -> bool:
        try:
            fresh = httpx.get(f"{platform.endpoints['api_url']}/readyz", timeout=10, trust_env=False)
            # A connection from before may still lead to the load balancer's old process, which knows no replica.
            return fresh.status_code == platform.api.get(f"/v1/jobs/{running}").status_code == 200
        except httpx.HTTPError:
            return False

    eventually(answers, "the API answers again")
    platform.succeeded(running)
    stored_once(platform, running)
    assert platform.job(running)["attempt"] == 1


def test_a_killed_registry_and_blob_server_are_started_again(platform: Platform, zoo: int, scan: int) -> None:
    found = processes([str(platform.home)])
    servers = {
        name: pid
        for pid, command in found.items()
        for name in ("docker-registry", "mhs_ray.store.blobs.server")
        if name in command
    }
    assert set(servers) == {"docker-registry", "mhs_ray.store.blobs.server"}
    for pid in servers.values():
        os.kill(pid, signal.SIGKILL)

    def answers() -> bool:
        try:
            registry = httpx.get(f"http://{platform.endpoints['registry']}/v2/", trust_env=False).status_code
            httpx.get(platform.endpoints["blobs_url"], trust_env=False)
        except httpx.HTTPError:
            return False
        return registry == 401

    eventually(answers, "registry and blob server answer again")
    algorithm = platform.algorithm(zoo, "Posts", env=[{"name": "BEHAVIOUR", "value": "post"}])
    platform.succeeded(*platform.submit(algorithm, scan))
