"""Which images this node pulled, so that a warm start need not ask the engine: a question costs a process.

Only a memory: where it is wrong (somebody removed the image), the container does not start, the image is forgotten,
and the next attempt pulls it.
"""

from __future__ import annotations

from pathlib import Path

from mhs_ray.domain.models import ImageRef
from mhs_ray.ports import ContainerEngine


class PulledImages:
    """folder: kept by the node over its processes' lives."""

    def __init__(self, folder: Path, engine: ContainerEngine) -> None:
        self._folder = folder / engine.name

    def has(self, image: ImageRef) -> bool:
        """Say whether `image` was pulled here and nothing has spoken against it since."""
        return self._mark(image).exists()

    def digests(self) -> frozenset[str]:
        """Return the digests of all that was pulled here and not spoken against."""
        marks = self._folder.iterdir() if self._folder.is_dir() else ()
        return frozenset(f"sha256:{m.name.rpartition('-sha256-')[2]}" for m in marks)

    def add(self, image: ImageRef) -> None:
        """Remember a pull that succeeded."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._mark(image).touch()

    def forget(self, image: ImageRef) -> None:
        """Have it pulled again next time."""
        self._mark(image).unlink(missing_ok=True)

    def _mark(self, image: ImageRef) -> Path:
        return self._folder / f"{image.registry}-{image.repository}-{image.digest}".replace("/", "-").replace(":", "-")
