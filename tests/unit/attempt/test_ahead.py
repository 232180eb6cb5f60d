"""What a node does when it is asked to fetch ahead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mhs_ray.attempt.ahead import Errand, ImageToPull, run_errand
from mhs_ray.attempt.image_room import RemovedImage
from mhs_ray.attempt.order import Holding
from mhs_ray.attempt.pulled import PulledImages
from mhs_ray.domain.errors import EngineError
from mhs_ray.domain.models import ImageRef
from mhs_ray.domain.sections import ImageSettings
from mhs_ray.ports import EngineStorage, RegistryCredential
from mhs_ray.slides.cache import CacheLimits, SlideCache, SlideSource
from mhs_ray.slides.demo import make_demo_slide
from mhs_ray.slides.url_guard import UrlPolicy

REF = ImageRef("127.0.0.1:5000", "trusted/7", "sha256:" + "a" * 64)
IMAGE = ImageToPull(REF, 1000, RegistryCredential("node", "p4ss"))


class Engine:
    """Notes what it is asked to pull. failing: what the registry says instead."""

    name = "podman"

    def __init__(self, failing: str = "") -> None:
        self.pulls: list[ImageRef] = []
        self._failing = failing

    def pull(self, image: ImageRef, credential: RegistryCredential) -> None:
        assert credential.password == "p4ss"
        if self._failing:
            raise EngineError(self.name, f"pull {image}", self._failing)
        self.pulls.append(image)

    def storage(self) -> EngineStorage:
        return EngineStorage(0, 1 << 40)


@pytest.fixture
def source(tmp_path: Path) -> SlideSource:
    path = tmp_path / "slide.svs"
    make_demo_slide(path, 1024, 1024)
    return SlideSource((path.as_uri(),), identity="scans/7 v1")


@pytest.fixture
def node(tmp_path: Path) -> Callable[..., Any]:
    def made(engine: Engine, **limits: Any) -> Any:
        policy = UrlPolicy(allow_private=True, file_roots=(tmp_path,))
        cache = SlideCache(tmp_path / "slides", limits=CacheLimits(**limits), policy=policy)
        return SimpleNamespace(
            engine=engine, cache=cache, folder=tmp_path, images=ImageSettings()
        )  # all of a node that an errand needs

    return made


def test_slide_and_image_are_fetched_and_told_of(node: Callable[..., Any], source: SlideSource) -> None:
    engine = Engine()
    here = node(engine)
    report = run_errand(Errand("fetch ahead · job 7", IMAGE, source), here)
    assert report.faults == ()
    assert report.holding == Holding(frozenset({REF.digest}), frozenset({source.key}))
    assert engine.pulls == [REF]
    with here.cache.get(source) as slide:
        assert slide.was_cached


def test_what_is_here_is_not_fetched_again(node: Callable[..., Any], source: SlideSource) -> None:
    engine = Engine()
    for _ in range(2):
        report = run_errand(Errand("twice", IMAGE, source), node(engine))
    assert engine.pulls == [REF]
    assert len(report.holding.slides) == 1


def test_an_image_that_cannot_be_pulled_keeps_no_slide_from_coming_and_is_not_remembered(
    node: Callable[..., Any], source: SlideSource, tmp_path: Path
) -> None:
    engine = Engine("connection refused")
    report = run_errand(Errand("fetch", IMAGE, source), node(engine))
    assert len(report.faults) == 1
    assert "connection refused" in report.faults[0]
    assert "p4ss" not in report.faults[0]
    assert report.holding == Holding(slides=frozenset({source.key}))
    assert not PulledImages(tmp_path / "images", engine).has(REF)  # type: ignore[arg-type]


def test_an_image_that_would_fill_the_disk_is_left_to_its_job(node: Callable[..., Any]) -> None:
    engine = Engine()
    huge = ImageToPull(REF, 1 << 50, IMAGE.credential)
    report = run_errand(Errand("pull ahead", huge), node(engine))
    assert engine.pulls == []
    assert "free" in report.faults[0]


def test_a_slide_of_more_than_a_quarter_of_the_cache_is_left_to_its_job(
    node: Callable[..., Any], source: SlideSource, tmp_path: Path
) -> None:
    size = (tmp_path / "slide.svs").stat().st_size
    here = node(Engine(), max_bytes=4 * size - 4, min_free_bytes=0)
    report = run_errand(Errand("fetch ahead · job 7", slide=source), here)
    assert "ahead" in report.faults[0]
    assert report.holding == Holding()
    with here.cache.get(source) as slide:
        assert not slide.was_cached


def test_a_slide_in_use_is_never_evicted_for_one_that_is_fetched_ahead(
    node: Callable[..., Any], source: SlideSource, tmp_path: Path
) -> None:
    size = (tmp_path / "slide.svs").stat().st_size
    others = [SlideSource(source.urls, identity=f"scans/{n} v1") for n in range(10)]
    here = node(Engine(), max_bytes=5 * size, min_free_bytes=0)
    with here.cache.get(source) as used:
        for other in others:
            assert run_errand(Errand("fetch", slide=other), here).faults == ()
        assert used.path.is_file()
        assert run_errand(Errand("look"), here).holding.slides >= {source.key}
    assert here.cache.used_bytes() <= 5 * size


def test_an_errand_without_anything_to_fetch_says_what_is_here(node: Callable[..., Any], source: SlideSource) -> None:
    here = node(Engine())
    run_errand(Errand("fetch", slide=source), here)
    assert run_errand(Errand("say what is there"), here).holding == Holding(slides=frozenset({source.key}))


def test_an_errand_makes_room_first_and_tells_what_went_but_never_what_is_to_stay(
    node: Callable[..., Any], tmp_path: Path
) -> None:
    old, needed = (ImageRef("127.0.0.1:5000", f"trusted/{n}", f"sha256:{str(n) * 64}") for n in (1, 2))

    class Full(Engine):
        """A disk that has room only once an image went."""

        def __init__(self) -> None:
            super().__init__()
            self.here = [needed, old]

        def storage(self) -> EngineStorage:
            return EngineStorage(len(self.here) << 30, 1 << 40)

        def remove_image(self, image: ImageRef) -> bool:
            self.here.remove(image)
            return True

    engine = Full()
    here = node(engine)
    here.images = ImageSettings(cache=(2 << 30) - 1)
    pulled = PulledImages(tmp_path / "images", engine)  # type: ignore[arg-type]
    for ref in (needed, old):
        pulled.add(ref)
    report = run_errand(Errand("pull ahead", IMAGE, keep=frozenset({needed.digest})), here)
    assert report.removed == (RemovedImage(old, "room"),)
    assert engine.pulls == [REF]
    assert report.holding.images == {needed.digest, REF.digest}
    assert pulled.needed_soon() == {needed.digest}
