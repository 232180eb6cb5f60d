"""Outlines of what a mask marks, as GeoJSON rings. Needs NumPy only."""

import numpy


def outlines(mask, min_pixels=1):
    """Return [(ring, pixels inside)] of each connected area, the largest first.

    mask: bool (height, width). A ring is a list of [x, y] corners in pixels of the mask, closed; areas that touch at a
    corner only are two. Holes are filled.
    """
    padded = numpy.pad(numpy.asarray(mask, bool), 1)
    # A step along the border has the area at its right hand: steps from corner to corner, as (dy, dx).
    steps = {}
    for (dy, dx), inside, outside in (
        ((0, 1), padded[1:, 1:], padded[:-1, 1:]),  # along the upper side
        ((1, 0), padded[1:, :-1], padded[1:, 1:]),  # down the right side
        ((0, -1), padded[:-1, :-1], padded[1:, :-1]),  # back along the lower side
        ((-1, 0), padded[:-1, 1:], padded[:-1, :-1]),  # up the left side
    ):
        for y, x in zip(*numpy.nonzero(inside & ~outside)):
            steps.setdefault((int(y), int(x)), []).append((dy, dx))
    found = []
    while steps:
        start = next(iter(steps))
        ring, at, before = [], start, None
        while True:
            ways = steps[at]
            # Where two areas touch, turn right: stay with the area that we go around.
            right = (before[1], -before[0]) if before else None
            way = right if right in ways else ways[0]
            ways.remove(way)
            if not ways:
                del steps[at]
            if way != before:
                ring.append([at[1], at[0]])
            at, before = (at[0] + way[0], at[1] + way[1]), way
            if at == start:
                break
        if len(ring) > 1 and _straight(ring[-1], ring[0], ring[1]):
            ring = ring[1:]
        area = _area(ring)
        if area >= min_pixels:  # a hole's ring goes the other way, so its area is below zero
            found.append(([*ring, ring[0]], area))
    return sorted(found, key=lambda pair: -pair[1])


def _straight(a, b, c):
    return (a[0] == b[0] == c[0]) or (a[1] == b[1] == c[1])


def _area(ring):
    x, y = numpy.array(ring, numpy.int64).T
    return int((x * numpy.roll(y, -1) - numpy.roll(x, -1) * y).sum() // 2)


def scaled(ring, factor, left=0, top=0):
    """Return a ring in level-0 pixels. factor: level-0 pixels per pixel of the mask."""
    return [[round(left + x * factor, 1), round(top + y * factor, 1)] for x, y in ring]
