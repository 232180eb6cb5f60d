"""What nodes fetch before a job asks: images that jobs of their type will likely use, slides of the jobs next. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from mhs_ray.attempt.order import Holding
from mhs_ray.dispatch.locality import Need, NodeView
from mhs_ray.domain.models import ImageRef


@dataclass(frozen=True, slots=True)
class LikelyImage:
    """The newest version of an image that a runnable container of this type would run. size_bytes: compressed."""

    instance_type: str
    image: ImageRef
    size_bytes: int
    version_id: int


@dataclass(frozen=True, slots=True)
class Running:
    """An attempt that holds a GPU. since: when its container started; None before that."""

    node_id: str
    since: datetime | None


def plan_pulls(
    nodes: Sequence[NodeView],
    likely: Sequence[LikelyImage],
    held: Mapping[str, Holding],
    asked: Collection[tuple[str, str]],
    limit: int,
) -> list[tuple[str, LikelyImage]]:
    """Return (node id, image) to pull now.

    likely: the likeliest first; a node gets the first `limit` of its type and no other. asked: (node id, digest) that
    were asked for already, so that a node which lost one, or could not pull it, is not asked for ever.
    """
    first: dict[str, list[LikelyImage]] = {}  # by the nodes' type
    for node in nodes:
        if node.instance_type not in first:
            fitting: dict[str, LikelyImage] = {}
            for image in likely:
                if node.takes(image.instance_type):
                    fitting.setdefault(image.image.digest, image)
            first[node.instance_type] = list(fitting.values())[:limit]
    pulls = []
    for node in nodes:
        here = held.get(node.id, Holding()).images
        pulls += [
            (node.id, i)
            for i in first[node.instance_type]
            if i.image.digest not in here and (node.id, i.image.digest) not in asked
        ]
    return pulls


def plan_slides(
    nodes: Sequence[NodeView],
    upcoming: Sequence[Need],
    running: Sequence[Running],
    held: Mapping[str, Holding],
    asked: Mapping[int, str],
) -> list[tuple[str, Need]]:
    """Return (node id, what to fetch there) for the jobs that start next, while the present ones compute.

    upcoming: those that wait for a GPU, in the order they will start. As many as run now are looked at: the i-th job
    meets the i-th GPU that gets free, most likely the one whose attempt has run for the longest time. A job whose
    slide and image are on some node of its type already needs nothing. asked: job id → the node that was asked to
    fetch for it, at most once per job.
    """
    ends = sorted(running, key=lambda r: (r.since is None, r.since.timestamp() if r.since else 0.0))
    by_id = {n.id: n for n in nodes}
    free = {n.id: n.free for n in nodes}
    plans: list[tuple[str, Need]] = []
    for need in upcoming:
        here = next((n for n in nodes if n.takes(need.instance_type) and free[n.id] > 0), None)
        if here is not None:  # starts at once, and fetches for itself
            free[here.id] -= 1
            continue
        at = next((r for r in ends if r.node_id in by_id and by_id[r.node_id].takes(need.instance_type)), None)
        if at is None:
            continue
        ends.remove(at)
        if need.job_id in asked:
            continue
        slide, image = need.slide.key, need.image.digest
        there = (held[n.id] for n in nodes if n.id in held and n.takes(need.instance_type))
        if any(slide in h.slides and image in h.images for h in there):
            continue
        plans.append((at.node_id, need))
    return plans
