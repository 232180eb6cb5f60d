"""`mhs test`: each way a container can end, in the platform's own sandbox, told as one document and one exit code."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mhs_ray.cli.trial import Here, try_one
from mhs_ray.domain.env import EnvVar
from mhs_ray.domain.errors import InvalidInputError, NotFoundError
from mhs_ray.domain.instances import INSTANCE_TYPES, InstanceType
from mhs_ray.local.exits import exit_code
from tests.integration.local.conftest import LAB, program

pytestmark = pytest.mark.engine


class _Small(InstanceType):
    @property
    def memory_bytes(self) -> int:
        return 96 << 20


def attempt(here: Here, slide: Path | str, folder: Path, text: str, *more: EnvVar, **options: Any) -> dict[str, Any]:
    return try_one(here, LAB, str(slide), [*program(text), *more], folder, **options)


@pytest.mark.parametrize("engine_name", ["podman", "docker"])
def test_a_good_container_succeeds_and_everything_is_told(
    engine_name: str, request: pytest.FixtureRequest, slide: Path, tmp_path: Path
) -> None:
    here: Here = request.getfixturevalue(f"{engine_name}_here")
    found = attempt(
        here,
        slide,
        tmp_path,
        """
        import io, zipfile
        print("threshold", os.environ["THRESHOLD"], "of", os.environ["HOST"], os.environ["TASK_ID"])
        size = len(urllib.request.urlopen(os.environ["SCAN_URL"]).read())
        zip = io.BytesIO()
        with zipfile.ZipFile(zip, "w") as archive: archive.writestr("note.txt", str(size))
        url = os.environ["DEBUG_FILE_UPLOAD_URL"]
        urllib.request.urlopen(urllib.request.Request(url, zip.getvalue(), method="PUT"))
        block = bytearray(48 << 20); time.sleep(0.3)
        found = collection(square(100, 100, 300), square(600, 600, 200))
        print("posted", post(results={"summary": "fine"}, geojson=found))
        """,
        EnvVar("THRESHOLD", "0.25"),
        host="app.techcyte.com",
        task_number=185714,
    )
    assert exit_code(found) == 0, found
    assert found["state"] == "succeeded"
    assert found["results_valid"] is True
    assert found["faults"] == []
    assert found["failure"] is None
    assert 48 << 20 < found["peak_memory_bytes"] < 1 << 30
    assert found["fits"] == list(INSTANCE_TYPES)
    assert found["features"] == 2
    assert found["image"]["entrypoint"][:2] == ["/usr/local/bin/python3", "-S"]
    assert found["slide"]["width"] == 1024
    files = {name: Path(path) for name, path in found["files"].items()}
    log = files["log"].read_text()
    assert "threshold 0.25 of app.techcyte.com 185714" in log
    assert "posted 201" in log
    posted = json.loads(files["results"].read_text())
    assert posted["caseResults"] == {"cells": 1}
    assert posted["scanResults"][0]["results"] == {"summary": "fine"}
    assert len(json.loads(files["geojson"].read_text())["features"]) == 2
    assert zipfile.ZipFile(files["debug"]).read("note.txt").decode() == str(slide.stat().st_size)
    with Image.open(files["picture"]) as drawn:
        assert drawn.size == (1024, 1024)
        outline = drawn.getpixel((100, 250))
        tissue = drawn.getpixel((60, 250))
    assert outline != tissue


def test_what_techcyte_would_refuse_is_named_by_its_path_and_nothing_is_left_out(
    here: Here, slide: Path, tmp_path: Path
) -> None:
    found = attempt(
        here,
        slide,
        tmp_path,
        """
        bad = [{"type": "Feature", "geometry": None, "properties": {}} for _ in range(30)]
        print("posted", post(results={"summary": 7}, geojson=collection(*bad)))
        """,
    )
    assert exit_code(found) == 5
    assert found["results_valid"] is False
    assert found["failure"]["code"] == "invalid-results"
    paths = [fault["path"] for fault in found["faults"]]
    assert "$.scanResults[0].results.summary" in paths
    assert "$.scanResults[0].geojson.features[29].properties.annotation_type" in paths
    assert "posted 422" in Path(found["files"]["log"]).read_text()
    assert "picture" not in found["files"]


def test_a_second_post_is_warned_of(here: Here, slide: Path, tmp_path: Path) -> None:
    found = attempt(here, slide, tmp_path, "post(results={}); post(results={})")
    assert exit_code(found) == 0
    assert any("posted 2 times" in warning for warning in found["warnings"])


@pytest.mark.parametrize(
    ("text", "code", "exits"),
    [
        ("print('nothing')", "no-results", 5),
        ("raise ValueError('tile 7 is empty')", "exit-code", 4),
        ("post(results={}); time.sleep(60)", "time-limit", 4),
    ],
)
def test_each_failure_of_a_model_has_its_exit_code(
    here: Here, slide: Path, tmp_path: Path, text: str, code: str, exits: int
) -> None:
    found = attempt(here, slide, tmp_path, text, time_limit=3 if code == "time-limit" else None)
    assert found["failure"]["code"] == code
    assert exit_code(found) == exits
    if code == "exit-code":
        assert found["failure"]["excerpt"].endswith("ValueError: tile 7 is empty")


def test_the_memory_of_the_instance_type_is_the_limit(
    here: Here, slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(INSTANCE_TYPES, "g5.2xlarge", _Small("g5.2xlarge", 1, 16, "A10G", 24))
    found = attempt(here, slide, tmp_path, "x = bytearray(300 << 20); print(len(x))", instance_type="g5.2xlarge")
    assert found["failure"]["code"] == "out-of-memory"
    assert exit_code(found) == 4
    assert "g5.2xlarge" not in found["fits"]
    assert "g4dn.xlarge" in found["fits"]


def test_a_bad_slide_is_the_inputs_failure_before_any_container_starts(here: Here, tmp_path: Path) -> None:
    broken = tmp_path / "broken.svs"
    broken.write_bytes(b"I am no slide\n" * 1000)
    found = attempt(here, broken, tmp_path / "out", "post(results={})")
    assert found["failure"]["failure_class"] == "input"
    assert exit_code(found) == 6
    assert "container started" not in Path(found["files"]["log"]).read_text()


def test_an_image_that_would_be_refused_is_not_run(
    here: Here, slide: Path, tmp_path: Path, derived: Callable[[str], str]
) -> None:
    found = try_one(here, derived('LABEL mhs.job="1"'), str(slide), [], tmp_path / "out")
    assert found["state"] == "refused"
    assert exit_code(found) == 8
    assert "'mhs.job'" in found["failure"]["cause"]
    assert found["failure"]["mend"]
    assert not (tmp_path / "out").exists()


def test_an_entrypoint_that_is_not_there_is_the_models_failure(
    here: Here, slide: Path, tmp_path: Path, derived: Callable[[str], str]
) -> None:
    found = try_one(here, derived('ENTRYPOINT ["/no/such/program"]'), str(slide), [], tmp_path / "out")
    assert found["failure"]["code"] == "not-executable"
    assert exit_code(found) == 4


def test_the_rules_for_variables_and_gpus_are_the_platforms(here: Here, slide: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="JWT_TOKEN is set by the contract"):
        attempt(here, slide, tmp_path, "", EnvVar("JWT_TOKEN", "mine"))
    with pytest.raises(InvalidInputError, match="is not one of"):
        attempt(here, slide, tmp_path, "", instance_type="p5.huge")
    with pytest.raises(NotFoundError, match="build it first"):
        try_one(here, "localhost/nobody-built:this", str(slide), [], tmp_path)
    if not here.engine.info().gpus:
        with pytest.raises(InvalidInputError, match="no GPU"):
            attempt(here, slide, tmp_path, "", gpus="all")
