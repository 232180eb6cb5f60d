"""An ended job once more on another machine's engine, and jobs compared, by the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.platform.harness import PROJECT, Platform
from tests.engines_fixtures import _unmount_below


@pytest.fixture(scope="module")
def elsewhere(folder: Path) -> Iterator[dict[str, str]]:
    """The environment of a user who has nothing of the platform's: storage and home of their own."""
    mine = folder / "elsewhere"
    mine.mkdir(mode=0o711)
    storage = mine / "storage.conf"
    storage.write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{mine}/cs/r"\nrunroot = "{mine}/cs/x"\n')
    env = {"MHS_HOME": str(mine / "h"), "CONTAINERS_STORAGE_CONF": str(storage), "MHS_ENGINE": "podman"}
    yield env
    subprocess.run(["podman", "rmi", "--force", "--all"], env={**os.environ, **env}, capture_output=True, check=False)
    _unmount_below(mine)


def mhs(platform: Platform, env: dict[str, str], cwd: Path, *words: str) -> tuple[int, Any, str]:
    """Run `mhs` against the platform from elsewhere; return its exit code, document and stderr."""
    keys = platform.home / "keys"
    client_id, secret = (keys / "client-id").read_text().strip(), (keys / "client-secret").read_text().strip()
    url = {"MHS_URL": platform.endpoints["api_url"], "MHS_CLIENT_ID": client_id, "MHS_CLIENT_SECRET": secret}
    done = subprocess.run(
        [sys.executable, "-m", "mhs_ray.cli.main", *words, "--json"], env={**os.environ, **env, **url,
        "PYTHONPATH": str(PROJECT)}, cwd=cwd, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert secret not in done.stdout + done.stderr
    assert done.stdout.strip(), done.stderr[-3000:]
    return done.returncode, json.loads(done.stdout.strip().splitlines()[-1]), done.stderr


def ended_job(platform: Platform, zoo: int, scan: int, name: str, *env: dict[str, Any]) -> int:
    [job] = platform.submit(platform.algorithm(zoo, name, env=list(env)), scan)
    platform.wait(job, "succeeded", "failed")
    return job


def test_a_job_is_replayed_from_what_was_recorded_of_it(
    platform: Platform, zoo: int, scan: int, slide: Path, elsewhere: dict[str, str], tmp_path: Path
) -> None:
    show = {"name": "SHOW", "value": '["OPEN", "HIDDEN"]'}
    env = [{"name": "BEHAVIOUR", "value": "env"}, show, {"name": "OPEN", "value": "seen"}]
    job = ended_job(platform, zoo, scan, "To replay", *env, {"name": "HIDDEN", "value": "hush-hush", "secret": True})
    facts = platform.get(f"/v1/jobs/{job}/replay")
    assert "hush-hush" not in json.dumps(facts)
    assert len(facts["slide"]["sha256"][0]) == 64

    code, found, _ = mhs(platform, elsewhere, tmp_path, "replay", str(job))
    assert code == 1
    assert found["errors"] == [
        {"path": "--env", "message": "HIDDEN is secret and so not returned; give --env HIDDEN=…"}
    ]

    code, found, said = mhs(platform, elsewhere, tmp_path, "replay", str(job), "--env", "HIDDEN=hush-hush")
    assert code == 0, (found, said)
    assert found["replay"]["same"] is True
    assert found["results_digest"] == facts["results_digest"]
    assert facts["image"]["digest"] in said  # pulled from the platform's registry: nothing was here

    other = tmp_path / "other.svs"
    other.write_bytes(slide.read_bytes() + b"\0")
    words = ("replay", str(job), "--env", "HIDDEN=hush-hush", "--scan", str(other))
    code, found, _ = mhs(platform, elsewhere, tmp_path, *words)
    assert code == 1
    assert "is not the slide that job" in found["detail"]

    code, found, _ = mhs(platform, elsewhere, tmp_path, "replay", str(job), "--env", "HIDDEN=another")
    assert code == 9
    assert found["replay"]["same_results"] is False
    assert found["replay"]["difference"]["identical"] is False


def test_jobs_of_the_platform_are_compared_and_the_gate_closes(
    platform: Platform, zoo: int, scan: int, elsewhere: dict[str, str], tmp_path: Path
) -> None:
    show = {"name": "SHOW", "value": "[]"}
    one, two = (ended_job(platform, zoo, scan, f"Version {v}", {"name": "BEHAVIOUR", "value": "post"}) for v in "12")
    code, found, said = mhs(platform, elsewhere, tmp_path, "compare", f"jobs:{one}", f"jobs:{two}", "--identical")
    assert code == 0, (found, said)
    assert found["slides"][0]["identical"] is True
    assert (tmp_path / "mhs-compare-output" / "slide-1.png").stat().st_size > 10_000  # the slide is on it
    three = ended_job(platform, zoo, scan, "Version 3", {"name": "BEHAVIOUR", "value": "crash"}, show)
    code, found, _ = mhs(platform, elsewhere, tmp_path, "compare", f"jobs:{one}", f"jobs:{three}")
    assert code == 9
    assert "exit-code" in found["faults"][0]
    containers = [str(c["id"]) for c in platform.get("/v1/containers", name="Version 1")["items"]]
    words = ("compare", f"container:{containers[0]}", f"jobs:{two}", "--scan", str(scan))
    code, found, said = mhs(platform, elsewhere, tmp_path, *words)
    assert code == 0, (found, said)
    assert found["slides"][0]["identical"] is True
