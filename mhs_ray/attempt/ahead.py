"""What a node fetches before a job asks for it. Nothing here fails a job: whoever needs it later fetches it then."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from mhs_ray.attempt.image_room import RemovedImage, lacks_room, make_room
from mhs_ray.attempt.order import Holding
from mhs_ray.attempt.pulled import PulledImages
from mhs_ray.attempt.runner import Node
from mhs_ray.domain.errors import EngineError, MhsError
from mhs_ray.domain.models import ImageRef
from mhs_ray.ports import RegistryCredential
from mhs_ray.slides.cache import SlideSource

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ImageToPull:
    """An image and how to get it. size_bytes: what it takes on the node at most while it is pulled."""

    ref: ImageRef
    size_bytes: int
    credential: RegistryCredential = field(repr=False)


@dataclass(frozen=True, slots=True)
class Errand:
    """What a node is asked to fetch, for what; with nothing to fetch it only says what it holds.

    keep: digests that jobs run or will need soon, or that likely come; all others may be removed to make room.
    """

    what: str
    image: ImageToPull | None = None
    slide: SlideSource | None = field(default=None, repr=False)
    keep: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Report:
    """What the node holds now, what could not be fetched, as sentences, and which images went."""

    holding: Holding
    faults: tuple[str, ...] = ()
    removed: tuple[RemovedImage, ...] = ()


def run_errand(errand: Errand, node: Node) -> Report:
    """Fetch what is not here yet, one after the other: a job computes beside. Never raises."""
    pulled = PulledImages(node.folder / "images", node.engine)
    faults: list[str] = []
    removed: list[RemovedImage] = []

    def attempt(work: Callable[[], None]) -> None:
        try:
            work()
        except MhsError as error:
            faults.append(str(error))
        except Exception as error:
            log.exception("%s failed on the node", errand.what)
            faults.append(f"{type(error).__name__} on the node")

    def room(need_bytes: int = 0) -> None:
        removed.extend(make_room(node.engine, pulled, node.images, keep=errand.keep, need_bytes=need_bytes))

    attempt(lambda: pulled.need_soon(errand.keep))
    if errand.slide is not None:
        slide = errand.slide
        attempt(lambda: node.cache.fetch_ahead(slide))
    if errand.image is not None and not pulled.has(errand.image.ref):
        image = errand.image
        attempt(lambda: room(image.size_bytes))
        attempt(lambda: _pull(image, node, pulled))
    attempt(room)
    return Report(Holding(pulled.digests(), node.cache.keys()), tuple(faults), tuple(removed))


def _pull(image: ImageToPull, node: Node, pulled: PulledImages) -> None:
    storage = node.engine.storage()
    if lacks_room(storage, node.images, image.size_bytes):
        told = f"images take {storage.image_bytes >> 20} MiB, and their disk has {storage.free_bytes >> 20} MiB free"
        raise EngineError(node.engine.name, f"pull {image.ref} ahead", told)
    node.engine.pull(image.ref, image.credential)
    pulled.add(image.ref)
