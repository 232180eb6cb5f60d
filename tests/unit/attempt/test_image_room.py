"""Which images go from a node, and which never do."""

from __future__ import annotations

import logging
import os
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mhs_ray.attempt.image_room import make_room
from mhs_ray.attempt.pulled import PulledImages
from mhs_ray.domain.errors import EngineError
from mhs_ray.domain.models import ImageRef
from mhs_ray.domain.sections import ImageSettings
from mhs_ray.ports import EngineStorage

GIB = 1 << 30
DAY = 86400.0


class Engine:
    """Each image takes 1 GiB of a disk of 10. used: digests that a container uses. broken: those it fails to remove."""

    name = "podman"

    def __init__(self) -> None:
        self.here: list[str] = []
        self.used: set[str] = set()
        self.broken: set[str] = set()

    def storage(self) -> EngineStorage:
        return EngineStorage(len(self.here) * GIB, (10 - len(self.here)) * GIB)

    def remove_image(self, image: ImageRef) -> bool:
        if image.digest in self.broken:
            raise EngineError(self.name, f"remove {image}", "the storage is locked")
        if image.digest in self.used:
            return False
        self.here.remove(image.digest)
        return True


class Node:
    """A node whose images 0, 1, 2, … were last used so many days ago."""

    def __init__(self, folder: Path, *days_ago: float) -> None:
        self.engine: Any = Engine()
        self.pulled = PulledImages(folder, self.engine)
        self.refs = [ImageRef("127.0.0.1:5000", f"trusted/{n}", f"sha256:{n:064d}") for n in range(len(days_ago))]
        for ref, days in zip(self.refs, days_ago, strict=True):
            self.pulled.add(ref)
            self.engine.here.append(ref.digest)
            then = time.time() - days * DAY
            os.utime(self.pulled._mark(ref), (then, then))

    def removed(self, settings: ImageSettings, **how: Any) -> list[int]:
        return [int(r.ref.digest[7:]) for r in make_room(self.engine, self.pulled, settings, **how)]


def bounds(cache: float = 100, min_free: float = 0, days: float = 1000) -> ImageSettings:
    return ImageSettings.model_validate(
        {"cache": int(cache * GIB), "min_free": int(min_free * GIB), "max_age": timedelta(days=days)}
    )


def test_what_was_used_the_longest_time_ago_goes_first_and_no_more_than_must(tmp_path: Path) -> None:
    node = Node(tmp_path, 1, 4, 2, 3)
    assert node.removed(bounds(cache=2)) == [1, 3]
    assert [k.ref for k in node.pulled.kept()] == [node.refs[2], node.refs[0]]
    assert node.removed(bounds(cache=2)) == []


def test_using_an_image_makes_it_the_last_to_go(tmp_path: Path) -> None:
    node = Node(tmp_path, 1, 4)
    with node.pulled.hold(node.refs[1]) as here:
        assert here
    assert node.removed(bounds(cache=1)) == [0]


def test_a_disk_that_is_almost_full_counts_and_so_does_what_is_about_to_come(tmp_path: Path) -> None:
    node = Node(tmp_path, 1, 2, 3)
    assert node.removed(bounds(min_free=7)) == []
    assert node.removed(bounds(min_free=8)) == [2]
    assert node.removed(bounds(min_free=8), need_bytes=GIB) == [1]
    assert node.removed(bounds(cache=2), need_bytes=2 * GIB) == [0]


def test_what_nobody_used_for_long_goes_though_there_is_room(tmp_path: Path) -> None:
    node = Node(tmp_path, 1, 40, 50, 2)
    assert node.removed(bounds(days=30)) == [2, 1]


def test_what_is_needed_soon_or_used_by_a_process_or_by_a_container_stays(tmp_path: Path) -> None:
    node = Node(tmp_path, 60, 50, 40, 35)
    node.engine.used.add(node.refs[1].digest)
    with node.pulled.hold(node.refs[2]):
        os.utime(node.pulled._mark(node.refs[2]), (0, 0))
        assert node.removed(bounds(cache=0, days=30), keep=[node.refs[0].digest]) == [3]
    assert {k.ref for k in node.pulled.kept()} == set(node.refs[:3])


def test_an_image_that_came_by_two_names_is_as_young_as_its_last_use_and_goes_by_both(tmp_path: Path) -> None:
    node = Node(tmp_path, 9, 5)
    twin = ImageRef("127.0.0.1:5000", "trusted/99", node.refs[0].digest)
    node.pulled.add(twin)
    assert node.removed(bounds(cache=1)) == [1], "the first was used just now, by its other name"
    with node.pulled.hold(twin):
        assert node.removed(bounds(cache=0)) == []
    asked: list[str] = []
    node.engine.remove_image = lambda ref: asked.append(ref.repository) or node.engine.here.clear() or True
    assert node.removed(bounds(cache=0)) == [0]
    assert sorted(asked) == ["trusted/0", "trusted/99"]
    assert node.pulled.kept() == []


def test_one_that_cannot_be_removed_keeps_no_other_from_going_and_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = Node(tmp_path, 3, 2, 1)
    node.engine.broken.add(node.refs[0].digest)
    with caplog.at_level(logging.WARNING):
        assert node.removed(bounds(cache=1)) == [1, 2]
    assert "the storage is locked" in caplog.text
    assert "MHS_IMAGES__CACHE" not in caplog.text, "it fits now"


def test_a_node_that_stays_full_says_what_stays_and_by_which_settings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = Node(tmp_path, 3)
    node.engine.here.append("somebody else's")
    with caplog.at_level(logging.WARNING):
        assert node.removed(bounds(cache=0.5)) == [0]
    assert "MHS_IMAGES__CACHE" in caplog.text


def test_an_engine_that_does_not_say_how_full_it_is_fails_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = Node(tmp_path, 3)

    def broken() -> EngineStorage:
        raise EngineError("podman", "tell how full it is", "no answer")

    node.engine.storage = broken
    assert node.removed(bounds(cache=0)) == []
    assert "no answer" in caplog.text


def test_who_needs_an_image_that_is_being_removed_waits_and_then_pulls_it_again(tmp_path: Path) -> None:
    node = Node(tmp_path, 3)
    [ref] = node.refs
    seen: list[bool] = []

    def need() -> None:
        with node.pulled.hold(ref) as here:
            seen.append(here)

    with node.pulled.alone(ref) as mine:
        assert mine
        asking = threading.Thread(target=need)
        asking.start()
        asking.join(0.3)
        assert seen == []
        node.pulled.forget(ref)
    asking.join(5)
    assert seen == [False]


def test_one_process_of_a_node_makes_room_at_a_time(tmp_path: Path) -> None:
    node = Node(tmp_path, 3)
    inner: list[list[int]] = []
    remove = node.engine.remove_image

    def slow(image: ImageRef) -> bool:
        inner.append(node.removed(bounds(cache=0)))
        return bool(remove(image))

    node.engine.remove_image = slow
    assert node.removed(bounds(cache=0)) == [0]
    assert inner == [[]]


def test_what_was_needed_soon_an_hour_ago_is_not_any_more(tmp_path: Path) -> None:
    pulled = Node(tmp_path).pulled
    assert pulled.needed_soon() == frozenset()
    pulled.need_soon({"sha256:a", "sha256:b"})
    assert pulled.needed_soon() == {"sha256:a", "sha256:b"}
    then = time.time() - 3601
    os.utime(tmp_path / "podman.soon", (then, then))
    assert pulled.needed_soon() == frozenset()
