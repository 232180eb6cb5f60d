"""The QuPath project: what QuPath's own loader asks for, and entries that keep their numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mhs_ray.cohorts.qupath import Entry, write_project


def _entries(folder: Path, *names: str) -> list[Entry]:
    return [Entry(n, f"/slides/{n}.svs", "svs", folder / "geojson" / f"{n}.geojson") for n in names]


def _project(folder: Path) -> Any:
    return json.loads((folder / "qupath" / "project.qpproj").read_text())


def test_the_project_has_what_qupaths_loader_reads(tmp_path: Path) -> None:
    file = write_project(tmp_path / "qupath", _entries(tmp_path, "a", "b"))
    made = _project(tmp_path)
    # DefaultProject.loadProject: these keys are not optional.
    assert {"version", "createTimestamp", "modifyTimestamp", "uri", "lastID", "images"} <= made.keys()
    assert made["uri"] == file.as_uri()
    assert made["lastID"] == 2
    image = made["images"][0]
    assert {"serverBuilder", "entryID", "randomizedName", "imageName", "metadata"} <= image.keys()
    builder = image["serverBuilder"]
    assert (builder["builderType"], builder["uri"]) == ("uri", "file:///slides/a.svs")
    assert builder["providerClassName"] == "qupath.lib.images.servers.openslide.OpenslideServerBuilder"
    assert json.loads((tmp_path / "qupath" / "results.json").read_text())["b"] == "../geojson/b.geojson"
    script = (tmp_path / "qupath" / "scripts" / "import_results.groovy").read_text()
    assert "importObjectsFromFile" in script
    assert "results.json" in script


def test_entries_keep_their_numbers_when_slides_are_added(tmp_path: Path) -> None:
    write_project(tmp_path / "qupath", _entries(tmp_path, "b"))
    write_project(tmp_path / "qupath", _entries(tmp_path, "a", "b", "c"))
    made = _project(tmp_path)
    assert {i["imageName"]: i["entryID"] for i in made["images"]} == {"b": 1, "a": 2, "c": 3}
    assert made["lastID"] == 3


def test_slides_can_be_where_the_viewer_has_them(tmp_path: Path) -> None:
    entries = [
        Entry("a", "https://h.example/x/a%20b.svs", "svs", None), Entry("d", "/data/series", "dicom", None),
    ]  # fmt: skip
    write_project(tmp_path / "qupath", entries, Path("/mnt/slides"))
    first, second = _project(tmp_path)["images"]
    assert first["serverBuilder"]["uri"] == "file:///mnt/slides/a%20b.svs"
    assert "bioformats" in second["serverBuilder"]["providerClassName"]
    assert json.loads((tmp_path / "qupath" / "results.json").read_text()) == {}
