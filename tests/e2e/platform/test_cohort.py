"""A cohort on a real platform, by the command line: canary, the rest, one bad slide, results as files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

from tests.e2e.platform.harness import PROJECT, Platform


def test_a_cohort_goes_from_a_manifest_to_a_dataset(
    platform: Platform, zoo: int, scan: int, slide: Path, tmp_path: Path
) -> None:
    container = platform.container(zoo, "Cohort zoo", env=[{"name": "BEHAVIOUR", "value": "post"}])
    whole = slide.read_bytes()
    for i in range(3):
        (tmp_path / f"s{i}.svs").write_bytes(whole + bytes([i]))  # each is content of its own
    (tmp_path / "half.svs").write_bytes(whole[: len(whole) // 2])  # a TIFF at first sight
    tmp_path.chmod(0o755)
    (tmp_path / "m.csv").write_text("slide,site\ns0.svs,lung\nhalf.svs,lung\ns1.svs,node\ns2.svs,lung\n")
    env = {k: v for k, v in {**os.environ, **platform.env}.items() if k != "MHS_URL"}
    command = [
        sys.executable, "-m", "mhs_ray.cli.main", "cohort", "submit", str(tmp_path / "m.csv"), "--container",
        str(container), "--canary", "1", "--out", str(tmp_path / "out"), "--json",
    ]  # fmt: skip
    done = subprocess.run(command, env=env, cwd=PROJECT, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 4, done.stderr  # a slide failed
    cohort = json.loads(done.stdout)
    ended = (cohort["state"], cohort["counts"]["succeeded"], cohort["counts"]["failed"])
    assert ended == ("done", 3, 1), cohort["reason"]
    assert cohort["forecast"]["spent"] > 0
    rows = {r["id"]: r for r in pq.read_table(tmp_path / "out" / "slides.parquet").to_pylist()}
    assert [rows[f"s{i}"]["state"] for i in range(3)] == ["succeeded"] * 3
    assert rows["half"]["failure_class"] == "input"
    assert (rows["s1"]["site"], json.loads(rows["s1"]["results"])) == ("node", {"summary": "fine"})
    assert {j["priority"] for j in platform.get("/v1/jobs", container_id=container)["items"]} == {"research"}
    again = subprocess.run(command, env=env, cwd=PROJECT, capture_output=True, text=True, timeout=180, check=False)
    assert json.loads(again.stdout)["id"] == cohort["id"], "the same command once more adds nothing"
    assert len(platform.get("/v1/jobs", container_id=container)["items"]) == 4
