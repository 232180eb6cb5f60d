"""Old image versions go from a node: what was used the longest time ago first, never what runs or is needed soon."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, Literal

from mhs_ray.attempt.pulled import KeptImage, PulledImages
from mhs_ray.domain.errors import EngineError
from mhs_ray.domain.models import ImageRef
from mhs_ray.domain.sections import ImageSettings
from mhs_ray.ports import ContainerEngine, EngineStorage
from mhs_ray.slides.flock import try_lock

log = logging.getLogger(__name__)

Why = Literal["age", "room"]
_DAY_S: Final = 86400


@dataclass(frozen=True, slots=True)
class RemovedImage:
    """An image that was removed. why: it was unused for long, or room was short."""

    ref: ImageRef
    why: Why


def lacks_room(storage: EngineStorage, settings: ImageSettings, need_bytes: int = 0) -> bool:
    """Say whether images take more than they may, or `need_bytes` more would leave too little of their disk."""
    full = storage.image_bytes + need_bytes > settings.cache
    return full or storage.free_bytes - need_bytes < settings.min_free


def make_room(
    engine: ContainerEngine,
    pulled: PulledImages,
    settings: ImageSettings,
    *,
    keep: Collection[str] = (),
    need_bytes: int = 0,
) -> tuple[RemovedImage, ...]:
    """Remove images that were pulled for jobs until the rest fits, and those that nobody used for too long.

    keep: digests that stay, whatever else. need_bytes: of a pull that is about to begin. What a container or another
    process of this node uses stays too, and so does what we did not pull. Never raises: who needs room and has none
    will hear so.
    """
    with try_lock(pulled.room_lock()) as mine:
        if not mine:  # another process of this node is at it
            return ()
        removed: list[RemovedImage] = []
        try:
            for gone in _remove_oldest(engine, pulled, settings, frozenset(keep), need_bytes):
                removed.append(gone)
        except (EngineError, OSError) as error:
            log.warning("no room is made for images: %s", error)
        return tuple(removed)


def _remove_oldest(
    engine: ContainerEngine, pulled: PulledImages, settings: ImageSettings, keep: frozenset[str], need_bytes: int
) -> Iterator[RemovedImage]:
    storage = engine.storage()
    oldest_use = time.time() - settings.max_age.total_seconds()
    # One digest may have come from several repositories, and is one image to the engine: podman takes it for the one
    # by the name of the other, and removes it so.
    last_use: dict[str, KeptImage] = {}
    names: dict[str, list[ImageRef]] = {}
    for kept in pulled.kept():
        last_use[kept.ref.digest] = kept
        names.setdefault(kept.ref.digest, []).append(kept.ref)
    for digest, image in sorted(last_use.items(), key=lambda item: item[1].used_at):
        why: Why = "age" if image.used_at < oldest_use else "room"
        if why == "room" and not lacks_room(storage, settings, need_bytes):
            break
        if digest in keep or not _remove(engine, pulled, names[digest]):
            continue
        storage = engine.storage()
        log.info("removed image %s, unused for %.1f days", image.ref, (time.time() - image.used_at) / _DAY_S)
        yield RemovedImage(image.ref, why)
    if lacks_room(storage, settings, need_bytes):
        log.warning(
            "images take %d MiB and leave %d MiB of their disk, and none can go: those that jobs use or need soon "
            "stay, and so do those that the platform did not pull (MHS_IMAGES__CACHE, MHS_IMAGES__MIN_FREE)",
            storage.image_bytes >> 20, storage.free_bytes >> 20,
        )  # fmt: skip


def _remove(engine: ContainerEngine, pulled: PulledImages, names: Sequence[ImageRef]) -> bool:
    """Remove an image by all its names; returns whether it is gone, which it is not while anybody uses it."""
    with ExitStack() as held:
        if not all(held.enter_context(pulled.alone(name)) for name in names):
            return False
        gone = True
        for name in names:
            try:
                removed = engine.remove_image(name)
            except EngineError as error:
                log.warning("image %s is not removed: %s", name, error)
                removed = False
            if removed:
                pulled.forget(name)
            gone = gone and removed
        return gone
