"""An attempt's image: pulled into room that is made for it, and held while the attempt lasts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mhs_ray.attempt.image_room import RemovedImage, make_room
from mhs_ray.attempt.prepare import PullFailedError, prepare
from mhs_ray.attempt.pulled import PulledImages
from mhs_ray.domain.errors import EngineError
from mhs_ray.domain.models import ImageRef
from mhs_ray.domain.settings import ImageSettings
from mhs_ray.ports import EngineStorage
from mhs_ray.slides.cache import SlideCache, SlideSource
from mhs_ray.slides.demo import make_demo_slide
from mhs_ray.slides.url_guard import UrlPolicy

NEW, OLD, SOON = (ImageRef("127.0.0.1:5000", f"trusted/{n}", f"sha256:{n:064d}") for n in (1, 2, 3))
ONE_MORE = ImageSettings.model_validate({"cache": 3, "min_free": 0})  # each image here takes 1 byte


class Engine:
    """Has some images."""

    name = "podman"

    def __init__(self, *here: ImageRef) -> None:
        self.here = list(here)

    def storage(self) -> EngineStorage:
        return EngineStorage(len(self.here), 1 << 40)

    def remove_image(self, image: ImageRef) -> bool:
        self.here.remove(image)
        return True

    def pull(self, image: ImageRef, _credential: Any, cancelled: Callable[[], bool]) -> None:
        if cancelled():
            raise EngineError(self.name, f"pull {image}", "it was cancelled")
        self.here.append(image)


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., list[RemovedImage]]:
    """Prepare an attempt of `NEW` on a stack; returns what went for it."""
    path = tmp_path / "slide.svs"
    make_demo_slide(path, 1024, 1024)
    cache = SlideCache(tmp_path / "slides", policy=UrlPolicy(allow_private=True, file_roots=(tmp_path,)))
    source = SlideSource((path.as_uri(),), identity="scans/7 v1")
    cache.fetch_ahead(source)

    def run(engine: Any, stack: ExitStack, *, cancelled: bool = False) -> list[RemovedImage]:
        order: Any = SimpleNamespace(image=NEW, pull=None, slide=source, image_bytes=2)
        removed: list[RemovedImage] = []
        prepare(
            order, engine, cache, None, stack, pulled=PulledImages(tmp_path / "images", engine), images=ONE_MORE,
            gate=lambda: None, say=lambda _: None, cancelled=lambda: cancelled, on_removed=removed.append,
        )  # fmt: skip
        return removed

    return run


def test_old_images_go_for_the_one_that_is_pulled_but_none_that_a_job_needs_soon(
    prepared: Callable[..., list[RemovedImage]], tmp_path: Path
) -> None:
    engine: Any = Engine(SOON, OLD)
    pulled = PulledImages(tmp_path / "images", engine)
    for image in (SOON, OLD):
        pulled.add(image)
    pulled.need_soon({SOON.digest})
    with ExitStack() as stack:
        assert prepared(engine, stack) == [RemovedImage(OLD, "room")]
        assert engine.here == [SOON, NEW]


def test_an_image_is_held_as_long_as_the_attempt_lasts_and_no_longer(
    prepared: Callable[..., list[RemovedImage]], tmp_path: Path
) -> None:
    engine: Any = Engine()
    pulled = PulledImages(tmp_path / "images", engine)
    nothing = ImageSettings.model_validate({"cache": 0, "min_free": 0})
    with ExitStack() as stack:
        prepared(engine, stack)
        assert make_room(engine, pulled, nothing) == ()
        assert engine.here == [NEW]
    assert [r.ref for r in make_room(engine, pulled, nothing)] == [NEW]


def test_a_pull_that_is_cancelled_leaves_no_memory_of_the_image(
    prepared: Callable[..., list[RemovedImage]], tmp_path: Path
) -> None:
    engine: Any = Engine()
    with ExitStack() as stack, pytest.raises(PullFailedError, match="cancelled"):
        prepared(engine, stack, cancelled=True)
    assert PulledImages(tmp_path / "images", engine).kept() == []
