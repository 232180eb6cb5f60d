"""A short form of `python -m tests.chaos.partition`: two hosts, one cut off and healed, lose and double nothing."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.chaos.partition import partition

_NEEDED = ("podman", "docker-registry", "ip", "nsenter")


def _no_namespaces() -> str:
    """Say why this machine cannot make network namespaces; empty when it can."""
    name = f"mhs-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    return made.stderr.strip() if made.returncode else ""


@pytest.mark.partition
@pytest.mark.timeout(1200)
def test_a_host_that_is_cut_off_and_comes_back_costs_no_job_and_doubles_none() -> None:
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and {', '.join(missing or _NEEDED)}: apt-get install iproute2 podman docker-registry")
    if why := _no_namespaces():
        pytest.skip(f"no network namespaces here: {why}")
    told = partition(cut_s=20, jobs=8)
    assert told["states"] == {"succeeded": told["jobs"]}, told
    assert told["lost"] == told["twice"] == told["orphans"] == 0, told
    assert told["hosts"] >= 2, told
    assert told["given_up"] >= 1, told
    assert told["after"] == 2, told
