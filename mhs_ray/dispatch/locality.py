"""Which node a job had best start on: one that is free and holds its image or its slide already. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mhs_ray.attempt.order import Holding
from mhs_ray.domain.models import ImageRef
from mhs_ray.slides.cache import SlideSource


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node that is alive and has GPUs. instance_type: "" where it stands in for every type.

    free: GPUs that no attempt holds.
    """

    id: str
    instance_type: str
    gpus: int
    free: int

    def takes(self, instance_type: str) -> bool:
        """Say whether jobs of this type may run here."""
        return self.instance_type in ("", instance_type)


@dataclass(frozen=True, slots=True)
class Need:
    """What a job has to have on its node before its container can start. Sizes in bytes, as far as known."""

    job_id: int
    instance_type: str
    image: ImageRef
    image_bytes: int
    slide: SlideSource = field(repr=False)
    slide_bytes: int

    def bytes_at(self, held: Holding) -> int:
        """Return how many bytes need not be fetched where `held` is."""
        image = self.image_bytes if self.image.digest in held.images else 0
        return image + (self.slide_bytes if self.slide.key in held.slides else 0)


def preferred(need: Need, nodes: Sequence[NodeView], held: Mapping[str, Holding], waiting: int) -> str | None:
    """Return the free node that saves this job the most fetching; None when it makes no difference.

    waiting: attempts of its type that wait for a GPU already. They go first, so where they take every free GPU there
    is nothing to prefer: a job never waits for a node while another one is free.
    """
    free = [n for n in nodes if n.takes(need.instance_type) and n.free > 0]
    if sum(n.free for n in free) <= waiting:
        return None
    saved = {n.id: need.bytes_at(held.get(n.id, Holding())) for n in free}
    if len(set(saved.values())) < 2:
        return None
    return max(free, key=lambda n: (saved[n.id], n.free, n.id)).id
