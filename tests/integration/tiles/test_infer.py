"""A model over slides: what it says of each tile, once, whatever is wrong with one of the slides."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.infer_tiles import main
from mhs_ray.actors.infer import load_model, read_manifest
from mhs_ray.domain.errors import InvalidInputError
from mhs_ray.slides.plan import TileRequest
from mhs_ray.slides.tile_reader import open_tile_reader

MODEL = "statistics_of_tiles:Redness"
CODE = """
class Redness:
    def __call__(self, pixels):
        assert pixels.dtype.name == "uint8"
        return {"score": pixels[..., 0].mean(axis=(1, 2)), "embedding": pixels.mean(axis=(1, 2))}
"""


@pytest.mark.usefixtures("cluster")
def test_every_slide_is_scored_once_a_bad_one_is_told_and_a_second_run_does_nothing_again(
    slides: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "statistics_of_tiles.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.svs").write_bytes(slides[0].read_bytes()[:-2000])
    rows = [f"{slides[0]},one", f"{tmp_path / 'bad.svs'},two", f"{slides[1]},three"]
    (tmp_path / "m.csv").write_text("\n".join(["slide,name", *rows]))
    arguments = [
        "--slides", str(tmp_path / "m.csv"), "--model", MODEL, "--out", str(tmp_path / "out"), "--size", "128",
        "--mpp", "0.5", "--tissue", "--readers", "1", "--batch", "16", "--memory-mib", "32",
    ]  # fmt: skip
    assert main(arguments) == 1
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert sorted(told["done"]) == ["one", "three"]
    assert "cut off" in told["errors"]["two"]
    table = pq.read_table(tmp_path / "out" / "one.parquet")
    with open_tile_reader(slides[0]) as reader:
        plan = reader.plan(TileRequest(128, mpp=0.5), tissue=True)
        pixels = {(int(plan.x[i]), int(plan.y[i])): p for b in reader.batches(plan) for i, p in zip(b.indices, b.pixels, strict=True)}  # noqa: E501  # fmt: skip
    assert table.num_rows == len(pixels)
    for row in table.to_pylist():
        assert row["score"] == pytest.approx(pixels[row["x"], row["y"]][..., 0].mean())
        assert np.allclose(row["embedding"], pixels[row["x"], row["y"]].mean(axis=(0, 1)))
    features = json.loads((tmp_path / "out" / "one.geojson").read_text())["features"]
    assert len(features) == table.num_rows
    assert features[0]["properties"]["annotation_type"] == "tile"

    (tmp_path / "bad.svs").write_bytes(slides[0].read_bytes())
    before = (tmp_path / "out" / "one.parquet").stat().st_mtime_ns
    assert main(arguments) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["done"], sorted(told["skipped"])) == (["two"], ["one", "three"])
    assert (tmp_path / "out" / "one.parquet").stat().st_mtime_ns == before


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    for spec in ("nowhere:f", "json:nothing", "json", "json:__name__"):
        with pytest.raises(InvalidInputError, match="model"):
            load_model(spec)


def test_an_empty_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.txt").write_text("# nothing\n")
    with pytest.raises(InvalidInputError, match="names no slide"):
        read_manifest(tmp_path / "m.txt")
