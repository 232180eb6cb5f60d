"""The sentence that tells a person why a job has no node yet."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from mhs_ray.domain.capacity import Capacity, why_waiting

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("here", "said"),
    [
        (Capacity(), "a g5.2xlarge node was asked for"),
        (Capacity(starting=1, since=NOW - timedelta(seconds=42)), "a g5.2xlarge node is being started since 42 s"),
        (Capacity(nodes=1), "the g5.2xlarge node is busy"),
        (Capacity(nodes=3), "all 3 g5.2xlarge nodes are busy"),
        (Capacity(nodes=1, free=1), "a g5.2xlarge node is free; the job is about to start there"),
        (
            Capacity(refused="InsufficientInstanceCapacity: none in eu-west-1a"),
            "no g5.2xlarge node is to be had now: InsufficientInstanceCapacity: none in eu-west-1a; it is asked for "
            "again",
        ),
        (
            Capacity(nodes=2, refused="VcpuLimitExceeded: you have 64 vCPUs"),
            "the account's quota allows no further g5.2xlarge node: VcpuLimitExceeded: you have 64 vCPUs",
        ),
        (Capacity(refused=""), "no g5.2xlarge node is to be had now; the autoscaler's log on the head says why; it is "
                               "asked for again"),
        (Capacity(starting=1, refused="of a minute ago"), "a g5.2xlarge node is being started"),
    ],
)  # fmt: skip
def test_it_says_what_the_job_waits_for(here: Capacity, said: str) -> None:
    assert why_waiting("g5.2xlarge", here, NOW) == said


def test_a_cloud_that_talks_much_is_cut_short() -> None:
    assert len(why_waiting("g5.2xlarge", Capacity(refused="no\n" * 10_000), NOW)) < 400
