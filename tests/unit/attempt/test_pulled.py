"""What the node remembers of pulls."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mhs_ray.attempt.pulled import PulledImages
from mhs_ray.domain.models import ImageRef


def _images(folder: Path, engine: str = "podman") -> PulledImages:
    named: Any = SimpleNamespace(name=engine)  # only its name is asked for
    return PulledImages(folder, named)


def _ref(digit: str = "a", repository: str = "trusted/7") -> ImageRef:
    return ImageRef("127.0.0.1:5000", repository, "sha256:" + digit * 64)


def test_a_pull_is_remembered_by_other_processes_of_the_node(tmp_path: Path) -> None:
    assert not _images(tmp_path).has(_ref())
    _images(tmp_path).add(_ref())
    assert _images(tmp_path).has(_ref())


def test_another_digest_repository_or_engine_was_not_pulled(tmp_path: Path) -> None:
    _images(tmp_path).add(_ref())
    assert not _images(tmp_path).has(_ref("b"))
    assert not _images(tmp_path).has(_ref(repository="trusted/8"))
    assert not _images(tmp_path, "docker").has(_ref())


def test_an_image_that_is_forgotten_is_pulled_again_and_forgetting_twice_does_no_harm(tmp_path: Path) -> None:
    images = _images(tmp_path)
    images.add(_ref())
    images.forget(_ref())
    images.forget(_ref())
    assert not images.has(_ref())
