"""A short run of `make chaos`: the whole platform, killed in its parts, loses and doubles nothing."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.chaos.chaos import stage

_NEEDED = ("podman", "docker-registry")


@pytest.mark.timeout(420)
def test_a_platform_that_is_killed_in_its_parts_loses_and_doubles_nothing() -> None:
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and {', '.join(missing or _NEEDED)}: apt-get install podman docker-registry")
    with stage(seed=1, postgresql=False, worker_node=False) as chaos:
        told = chaos.run(20, (2.0, 4.0), 120)
    assert told["accepted"] == told["ended"] >= 20, told
    for name in ("lost", "delivered_twice", "orphans", "undelivered", "misjudged"):
        assert told[name] == 0, told
    assert sum(times > 0 for times in told["faults"].values()) >= 5, told
    assert told["faults"]["disk full"] >= 1, told
    assert told["refused"] >= 1, told
