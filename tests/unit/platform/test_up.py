"""What the platform tells Ray as it starts it."""

from __future__ import annotations

from pathlib import Path

from mhs_ray.platform.up import ray_environment


def test_a_node_that_went_silent_is_given_up_within_half_a_minute(tmp_path: Path) -> None:
    told = ray_environment(tmp_path, {})
    period, timeout, failures = (
        int(told[f"RAY_health_check_{name}"]) for name in ("period_ms", "timeout_ms", "failure_threshold")
    )
    # Ray asks again `period` after an answer was due, and gives up after so many that did not come.
    assert (period + timeout) * failures <= 28_000
    assert timeout * failures >= 10_000, "a node that is only busy is not given up"
