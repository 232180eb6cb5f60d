"""What a reader of a page has before its first command, because the page says so or as everybody has it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from typing import Final

from tests.e2e.platform.docs_runner import Reader
from tests.e2e.platform.harness import PROJECT

_BASE: Final = "localhost/mhs-base:bookworm"
_COHORT: Final = 5
"""Slides of a cohort: a canary of three and some more, so that there is something to cancel."""


def _cohort(reader: Reader) -> None:
    """A container of this name, whose model is quick, and a manifest of slides."""
    [model] = [i for i in reader.platform.get("/v1/images", limit=200)["items"] if i["name"] == "Zoo"]
    reader.platform.container(model["id"], "My GPU Container", env=[{"name": "BEHAVIOUR", "value": "mark"}])
    whole = (reader.here / "slide.svs").read_bytes()
    rows = ["id,slide,stain,site"]
    for n in range(_COHORT):
        path = reader.here / f"S{n}.svs"
        path.write_bytes(whole + bytes([n]))  # each is content of its own
        rows.append(f"S{n},{path},HE,lung")
    (reader.here / "slides.csv").write_text("\n".join(rows) + "\n")


def _versions(reader: Reader) -> None:
    """Two versions of a model, and two slides."""
    for version in ("v1", "v2"):
        reader.docker("tag", "tutorial-model:latest", f"my-model:{version}")
    for name in ("a.svs", "b.svs"):
        shutil.copy(reader.here / "slide.svs", reader.here / name)


def _small_image(reader: Reader) -> None:
    """An image to push: any does, and one of a few bytes is pushed at once."""
    context = reader.here / "small"
    context.mkdir()
    (context / "model").write_text("x")
    (context / "Dockerfile").write_text('FROM scratch\nCOPY model /model\nENTRYPOINT ["/model"]\n')
    reader.docker("build", "-t", "my-docker-image:latest", ".", cwd=context)


def _public_base(reader: Reader) -> None:
    """The public base image of the templates: ours bears its name, as there may be no internet."""
    text = (PROJECT / "mhs_ray" / "templates" / "plain" / "Dockerfile").read_text()
    found = re.search(r"^ARG BASE_IMAGE=(\S+)$", text, re.MULTILINE)
    assert found
    reader.docker("tag", _BASE, f"docker.io/{found[1]}")
    reader.docker("tag", _BASE, f"localhost/{found[1]}")


def _model_and_base(reader: Reader) -> None:
    """The tutorial's image under its name, and the templates' base."""
    reader.docker("tag", "tutorial-model:latest", "my-docker-image:latest")
    _public_base(reader)


def _checkout(reader: Reader) -> None:
    """The project's files for clusters."""
    shutil.copytree(PROJECT / "cluster", reader.here / "cluster")


SETTINGS: Final[Mapping[str, Callable[[Reader], None]]] = {
    "cohorts": _cohort,
    "compare": _versions,
    "push-an-image": _small_image,
    "test-locally": _model_and_base,
    "aws": _checkout,
}
