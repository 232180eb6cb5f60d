"""A QuPath project of a cohort: one entry per slide, and a script that imports each slide's annotations.

What QuPath itself stores per image (``data.qpdata``, serialized Java objects) is the only place where it looks for a
slide's annotations when it opens it, and is left to QuPath: run ``import_results.groovy`` for the project once, in its
window or by ``QuPath script --save``, and it is made.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

VERSION: Final = "0.5.1"
_OPENSLIDE: Final = "qupath.lib.images.servers.openslide.OpenslideServerBuilder"
_BIOFORMATS: Final = "qupath.lib.images.servers.bioformats.BioFormatsServerBuilder"
_NOT_OPENSLIDE: Final = frozenset({"czi", "dicom", "zip"})
_NAMES: Final = uuid.UUID("3d4dfb6c-3b7e-4d0f-8b51-5a0f6a6f1b57")
SCRIPT: Final = """\
// Imports the results of a cohort. In QuPath: Automate > Project scripts > import_results, then Run > Run for project.
// Without a window: QuPath script --project=project.qpproj --save scripts/import_results.groovy
import qupath.lib.io.GsonTools

def files = GsonTools.getInstance().fromJson(new File(buildFilePath(PROJECT_BASE_DIR, 'results.json')).text, Map)
def file = files[getProjectEntry().getImageName()]
if (file == null) {
    println 'no results for ' + getProjectEntry().getImageName()
    return
}
clearAllObjects()
importObjectsFromFile(new File(PROJECT_BASE_DIR, file).getCanonicalPath())
println getAnnotationObjects().size() + ' annotations: ' + getProjectEntry().getImageName()
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """An image of the project. geojson: its annotations, None where it has none."""

    name: str
    where: str  # a path, or a URL without what signed it
    format: str
    geojson: Path | None


def write_project(folder: Path, entries: Sequence[Entry], slides: Path | None = None) -> Path:
    """Write ``project.qpproj``, ``results.json`` and the script below `folder`; returns the project's file.

    slides: the folder in which the viewer's machine has the slides, by file name; else each is where it was. An entry
    keeps its number when the project is written again with the same slides or more, so QuPath's own data stay with it.
    """
    (folder / "scripts").mkdir(parents=True, exist_ok=True)
    file = folder / "project.qpproj"
    known = _known(file)
    now = int(time.time() * 1000)
    last = max(known.values(), default=0)
    images: list[dict[str, Any]] = []
    for entry in entries:
        number = known.get(entry.name)
        if number is None:
            last += 1
            number = last
        images.append(_image(number, entry, slides))
    project = {
        "version": VERSION, "createTimestamp": now, "modifyTimestamp": now, "uri": file.absolute().as_uri(),
        "lastID": last, "images": images,
    }  # fmt: skip
    results = {e.name: _below(e.geojson, folder) for e in entries if e.geojson is not None}
    _write(file, project)
    _write(folder / "results.json", results)
    (folder / "scripts" / "import_results.groovy").write_text(SCRIPT)
    return file


def _image(number: int, entry: Entry, slides: Path | None) -> dict[str, Any]:
    provider = _BIOFORMATS if entry.format in _NOT_OPENSLIDE else _OPENSLIDE
    return {
        "serverBuilder": {
            "builderType": "uri", "providerClassName": provider, "uri": _uri(entry.where, slides), "args": [],
            "metadata": {"name": entry.name},
        },
        "entryID": number,
        "randomizedName": str(uuid.uuid5(_NAMES, entry.name)),
        "imageName": entry.name,
        "metadata": {},
    }  # fmt: skip


def _uri(where: str, slides: Path | None) -> str:
    if slides is not None:
        name = Path(unquote(urlsplit(where).path)).name if "://" in where else Path(where).name
        return (slides.absolute() / name).as_uri()
    return where if "://" in where else Path(where).absolute().as_uri()


def _known(file: Path) -> dict[str, int]:
    try:
        found = json.loads(file.read_text())
        return {str(i["imageName"]): int(i["entryID"]) for i in found["images"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _below(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix()


def _write(file: Path, document: Any) -> None:
    partial = file.with_name(f".{file.name}.part")
    partial.write_text(json.dumps(document, indent=1, ensure_ascii=False))
    partial.replace(file)
