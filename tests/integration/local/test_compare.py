"""`mhs compare` of two images on one slide, as a person runs it."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mhs_ray.cli import trial
from mhs_ray.cli.main import app
from mhs_ray.cli.trial import Here
from tests.integration.local.conftest import LAB, PRELUDE

pytestmark = pytest.mark.engine
_PROGRAM = """
side = int(os.environ.get("SIDE", "200"))
post(results={"largest": side * side}, geojson=collection(square(100, 100, side), square(600, 600, 100, "stroma")))
"""


def test_two_images_are_compared_on_one_slide_and_the_gate_closes(
    here: Here, slide: Path, derived: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = derived("ENV SIDE=150")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trial, "standing", lambda settings: contextlib.nullcontext(here))

    def compare(*words: str) -> tuple[int, dict[str, Any]]:
        more = ["--scan", str(slide), "-e", f"PROGRAM={PRELUDE}{_PROGRAM}", "--gpus", "none", "--json"]
        done = CliRunner().invoke(app, ["compare", *words, *more])
        return done.exit_code, json.loads(done.stdout.strip().splitlines()[-1])

    code, found = compare(LAB, second, "--min-f1", "0.9", "--max-area-change", "10")
    assert code == 9
    [told] = found["slides"]
    assert told["slide"] == "slide.svs"
    assert told["classes"]["stroma"]["f1"] == 1.0
    assert told["classes"]["tumor"]["area"] == {"a": 40000.0, "b": 22500.0, "change": -43.75}
    assert told["classes"]["tumor"]["matched"] == 1  # 22500 of 40000 overlap
    assert told["mean_iou"] == pytest.approx((22500 / 40000 + 1) / 2, abs=1e-3)
    assert told["values"]["results.largest"]["change"] == -43.75
    assert [fault.partition(":")[2][:6] for fault in found["faults"]] == [" area "]
    out = tmp_path / "mhs-compare-output"
    assert json.loads((out / "differences.json").read_text())["slides"] == found["slides"]
    assert "data:image/png" in (out / "report.html").read_text()
    assert (out / "slide-1.png").exists()
    assert (out / "a" / "1" / "job.log").exists()

    shutil.copy(out / "a" / "1" / "results.json", tmp_path / "before.json")
    code, found = compare("file:before.json", LAB, "--identical")
    assert (code, found["faults"], found["slides"][0]["identical"]) == (0, [], True)
