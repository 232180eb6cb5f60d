"""Slides that stay open for the viewer: shared, bounded, and closed when nobody reads from them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest

from mhs_ray.domain.errors import ConflictError, NotFoundError, SlideError
from mhs_ray.domain.models import Principal, Role
from mhs_ray.services.core import Core
from mhs_ray.services.slide_views import SlidePool, SlideViews
from mhs_ray.slides.cache import SlideCache
from mhs_ray.slides.demo import make_demo_slide
from mhs_ray.slides.tile_reader import TileReader
from tests.core_fixtures import core_in, world_of


class _Shelf:
    """Counts what is open. The readers are mere names: the pool never looks inside."""

    def __init__(self) -> None:
        self.open: list[str] = []
        self.opened = 0

    def opener(self, name: str) -> Callable[[ExitStack], TileReader]:
        def open_it(stack: ExitStack) -> TileReader:
            self.opened += 1
            self.open.append(name)
            stack.callback(self.open.remove, name)
            return cast(TileReader, name)

        return open_it


def test_a_slide_is_opened_once_and_stays_open() -> None:
    shelf, pool = _Shelf(), SlidePool()
    for _ in range(3):
        with pool.get(1, shelf.opener("a")) as reader:
            assert str(reader) == "a"
    assert (shelf.opened, shelf.open) == (1, ["a"])
    pool.close()
    assert shelf.open == []


def test_the_slide_that_was_not_used_longest_is_closed_first() -> None:
    shelf, pool = _Shelf(), SlidePool(max_open=2)
    for key, name in ((1, "a"), (2, "b"), (1, "a"), (3, "c")):
        with pool.get(key, shelf.opener(name)):
            pass
    assert sorted(shelf.open) == ["a", "c"]


def test_a_slide_that_is_being_read_is_not_closed_under_its_reader() -> None:
    shelf, pool = _Shelf(), SlidePool(max_open=1)
    with pool.get(1, shelf.opener("a")):
        for key in (2, 3):
            with pool.get(key, shelf.opener(str(key))):
                assert "a" in shelf.open
        pool.close()
        assert "a" in shelf.open
    assert shelf.open == []


def test_a_slide_that_cannot_be_opened_is_tried_again() -> None:
    shelf, pool = _Shelf(), SlidePool()

    def broken(stack: ExitStack) -> TileReader:
        stack.callback(shelf.open.append, "cleaned")
        raise SlideError("truncated", "cut")

    with pytest.raises(SlideError, match="cut"), pool.get(1, broken):
        pass
    assert shelf.open == ["cleaned"], "what it had begun to hold is given back"
    with pool.get(1, shelf.opener("a")) as reader:
        assert str(reader) == "a"


def test_readers_that_come_together_share_one_opening() -> None:
    shelf, pool, seen = _Shelf(), SlidePool(), list[Any]()

    def read() -> None:
        with pool.get(1, shelf.opener("a")) as reader:
            seen.append(reader)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["a"] * 8
    assert shelf.opened == 1


def _no_cache() -> SlideCache:
    raise AssertionError("nothing is to be fetched")


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Core]:
    with core_in(tmp_path / "h") as found:
        yield found


def test_a_registered_slide_is_shown_and_its_thumbnail_made_once(core: Core, tmp_path: Path) -> None:
    slide = tmp_path / "s.svs"
    make_demo_slide(slide, 1024, 1024)
    who = Principal(world_of(core).company(), "ann", Role.LAB_USER)
    scan = core.scans.add_path(who, str(slide), None, None)
    views = SlideViews(core.scans, core.blobs, _no_cache)
    assert views.facts(who, scan.id).width == 1024
    assert views.tile(who, scan.id, 10, 0, 0).startswith(b"\xff\xd8")
    small = views.thumbnail(who, scan.id)
    views.close()
    slide.unlink()
    assert small is not None
    assert views.thumbnail(who, scan.id) == small, "kept: the slide is not asked again"
    with pytest.raises(SlideError, match="not there any more"):
        views.facts(who, scan.id)
    core.scans.delete(who, scan.id)
    assert list(core.blobs.list("thumbnails/")) == []


def test_no_slide_of_another_company_and_none_that_is_still_uploading_is_shown(core: Core, tmp_path: Path) -> None:
    world = world_of(core)
    ann, bob = (Principal(world.company(), name, Role.LAB_USER) for name in ("ann", "bob"))
    views = SlideViews(core.scans, core.blobs, _no_cache)
    scan = world.scan(ann.company_id)
    with pytest.raises(NotFoundError):
        views.tile(bob, scan.id, 0, 0, 0)
    begun, _, _ = core.scans.begin_upload(ann, "a.svs", None, None)
    with pytest.raises(ConflictError, match="uploading"):
        views.facts(ann, begun.id)


def test_the_list_fetches_no_slide_for_its_thumbnail(core: Core) -> None:
    world = world_of(core)
    who = Principal(world.company(), "ann", Role.LAB_USER)
    assert SlideViews(core.scans, core.blobs, _no_cache).thumbnail(who, world.scan(who.company_id).id) is None


def test_an_upload_that_was_cut_off_gets_a_new_address_and_a_finished_one_does_not(core: Core, tmp_path: Path) -> None:
    who = Principal(world_of(core).company(), "ann", Role.LAB_USER)
    scan, first, _ = core.scans.begin_upload(who, "a.svs", None, None)
    again, second, _ = core.scans.resume_upload(who, scan.id)
    assert again.id == scan.id
    assert first.split("?")[0] == second.split("?")[0]
    slide = tmp_path / "s.svs"
    make_demo_slide(slide, 1024, 1024)
    with slide.open("rb") as data:
        core.blobs.put(f"scans/{who.company_id}/{scan.id}/slide", data)
    core.scans.complete_upload(who, scan.id)
    with pytest.raises(ConflictError, match="ready"):
        core.scans.resume_upload(who, scan.id)
