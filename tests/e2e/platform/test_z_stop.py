"""A platform that was stopped leaves nothing running and nothing mounted, and forgets nothing. Runs last."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.platform.harness import Platform, mounts_below, processes


@pytest.mark.both_engines
def test_a_stopped_platform_leaves_nothing_and_a_restarted_one_still_has_the_log(
    platform: Platform, zoo: int, scan: int
) -> None:
    env = [{"name": "BEHAVIOUR", "value": "post"}]
    [ended] = platform.submit(platform.algorithm(zoo, "Posts", env=env), scan)
    platform.succeeded(ended)
    log = platform.log(ended)
    assert "posted: 201" in log
    gated = platform.algorithm(zoo, "Gated", env=[{"name": "BEHAVIOUR", "value": "gated"}])
    [cut_off] = platform.submit(gated, scan)
    platform.wait_line(cut_off, "waiting")
    assert platform.containers("mhs-")

    platform.down()
    assert platform.containers("mhs-") == []
    assert [m for m in mounts_below(platform.home) if "/cs/" not in m] == []
    left = [p for part in ("sandboxes", "work") for p in (platform.home / "node" / part).glob("*")]
    assert left == []
    home = str(platform.home)
    assert processes([f"MHS_HOME={home}", f"{home}/", f"/tmp/mhs-{platform.name}"]) == {}
    assert not Path(f"/tmp/mhs-{platform.name}").exists()

    if platform.engine == "docker":
        return  # what follows does not depend on the engine
    platform.up()
    assert platform.log(ended) == log
    assert platform.report(ended) == {"summary": "fine"}
    # What ran when it was stopped is run again: its node was lost, not its cause.
    platform.wait_line(cut_off, "waiting")
    assert platform.job(cut_off)["attempt"] == 2
    platform.go(cut_off, attempt=2)
    platform.succeeded(cut_off)
    platform.down()
    assert processes([f"MHS_HOME={home}"]) == {}
