"""Which annotation of one result is which of the other: one to one, the best pairs first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from mhs_ray.compare.objects import Marked


@dataclass(frozen=True, slots=True)
class Pair:
    """Indices into the two lists. iou: None where one of them has no area. distance: of centroids, level-0 pixels."""

    a: int
    b: int
    iou: float | None
    distance: float


def match(a: Sequence[Marked], b: Sequence[Marked], *, min_iou: float, max_distance: float) -> list[Pair]:
    """Pair annotations of the same class.

    Two with an area are one when their intersection over union is `min_iou` or more; otherwise when their centroids
    are at most `max_distance` apart. Greedy: the best pair is taken first and both are gone.
    """
    pairs: list[Pair] = []
    for name in sorted({m.name for m in a} & {m.name for m in b}):
        for with_area in (True, False):
            mine = [i for i, m in enumerate(a) if m.name == name and (m.area > 0) == with_area]
            theirs = [i for i, m in enumerate(b) if m.name == name and (m.area > 0) == with_area]
            if not mine or not theirs:
                continue
            left, right = _shapes(a, mine), _shapes(b, theirs)
            found = _by_area(left, right, min_iou) if with_area else _by_place(left, right, max_distance)
            pairs += [Pair(mine[p.a], theirs[p.b], p.iou, p.distance) for p in found]
    return pairs


def _shapes(of: Sequence[Marked], indices: Sequence[int]) -> NDArray[np.object_]:
    shapes = np.empty(len(indices), object)
    shapes[:] = [of[i].shape for i in indices]
    return shapes


def _by_area(a: NDArray[np.object_], b: NDArray[np.object_], min_iou: float) -> list[Pair]:
    one, other = shapely.STRtree(b).query(a, predicate="intersects")
    common = shapely.area(shapely.intersection(a[one], b[other]))
    iou = common / (shapely.area(a)[one] + shapely.area(b)[other] - common)
    distance = shapely.distance(shapely.centroid(a[one]), shapely.centroid(b[other]))
    good = iou >= max(min_iou, 1e-12)
    order = np.argsort(-iou[good], kind="stable")
    return _greedy(one[good][order], other[good][order], iou[good][order], distance[good][order])


def _by_place(a: NDArray[np.object_], b: NDArray[np.object_], max_distance: float) -> list[Pair]:
    left, right = shapely.centroid(a), shapely.centroid(b)
    one, other = shapely.STRtree(right).query(left, predicate="dwithin", distance=max_distance)
    distance = shapely.distance(left[one], right[other])
    order = np.argsort(distance, kind="stable")
    return _greedy(one[order], other[order], None, distance[order])


def _greedy(
    one: NDArray[np.int64], other: NDArray[np.int64], iou: NDArray[np.float64] | None, distance: NDArray[np.float64]
) -> list[Pair]:
    taken_a, taken_b, pairs = set[int](), set[int](), []
    for i, (x, y) in enumerate(zip(one.tolist(), other.tolist(), strict=True)):
        if x not in taken_a and y not in taken_b:
            taken_a.add(x)
            taken_b.add(y)
            pairs.append(Pair(x, y, None if iou is None else float(iou[i]), float(distance[i])))
    return pairs
