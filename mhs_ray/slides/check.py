"""Decide whether a file is a slide that can be read, in bounded time and memory.

``check_slide`` works in this process; ``check_slide_isolated`` does the same in a process that can crash, hang or eat
memory without harm, which is how files of strangers are checked: decoders are C, and have had their share of holes.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from mhs_ray.domain.errors import SlideError
from mhs_ray.slides.geometry import Level0Point, PixelSize
from mhs_ray.slides.isolated import IsolationLimits, run_isolated, serve
from mhs_ray.slides.open import open_slide
from mhs_ray.slides.reader import LevelFacts, SlideFacts, SlideReader
from mhs_ray.slides.sniff import Kind, sniff
from mhs_ray.slides.thumbnail import thumbnail, thumbnail_cost
from mhs_ray.slides.tiff_check import StructureLimits, check_structure

_PROBE: Final = 256
_THUMBNAIL: Final = PixelSize(512, 512)


@dataclass(frozen=True, slots=True)
class CheckLimits:
    """What a check may cost. memory_bytes: address space of the isolated process, at least 1 GiB.

    max_thumbnail_pixels: a slide whose smallest level is larger than this is taken without trying its thumbnail.
    """

    timeout_s: float = 120.0
    cpu_s: int = 90
    memory_bytes: int = 6 << 30
    max_thumbnail_pixels: int = 1 << 27
    max_levels: int = 64


def check_slide(path: Path, limits: CheckLimits | None = None) -> SlideFacts:
    """Open `path`, decode its first, middle and last tile of the largest and smallest level and a thumbnail.

    Raises SlideError: ``not-a-slide``, ``truncated``, ``unreadable``, ``unsupported``, ``too-large``, ``bomb``.
    """
    limits = limits or CheckLimits()
    if sniff(path) is Kind.TIFF:
        check_structure(path)
    with open_slide(path) as reader:
        facts = reader.facts()
        _check_facts(path.name, facts, limits)
        for index in sorted({0, len(facts.levels) - 1}):
            _probe(reader, index, facts.levels[index])
        if thumbnail_cost(reader, _THUMBNAIL) <= limits.max_thumbnail_pixels:
            thumbnail(reader, _THUMBNAIL)
    return facts


def _check_facts(name: str, facts: SlideFacts, limits: CheckLimits) -> None:
    bounds = StructureLimits()
    if len(facts.levels) > limits.max_levels:
        raise SlideError("bomb", f"{name} claims {len(facts.levels)} levels; at most {limits.max_levels} are taken")
    for level in facts.levels:
        if max(level.width, level.height) > bounds.max_side or level.width * level.height > bounds.max_pixels:
            raise SlideError(
                "bomb", f"{name} claims {level.width} x {level.height} pixels, more than any scanner makes"
            )
        if min(level.width, level.height) < 1:
            raise SlideError("unreadable", f"{name} has a level of {level.width} x {level.height} pixels")


def _probe(reader: SlideReader, index: int, level: LevelFacts) -> None:
    size = PixelSize(min(_PROBE, level.width), min(_PROBE, level.height))
    right, bottom = level.width - size.width, level.height - size.height
    for x, y in {(0, 0), (right // 2, bottom // 2), (right, bottom)}:
        origin = Level0Point(int(x * level.downsample), int(y * level.downsample))
        reader.read_region(origin, size, level=index)


def check_slide_isolated(path: Path, limits: CheckLimits | None = None) -> SlideFacts:
    """Do `check_slide` in a process of its own, bounded by `limits`, with an empty environment.

    Raises what `check_slide` raises; a crash, a hang or too much memory is ``unreadable`` or ``bomb``.
    """
    limits = limits or CheckLimits()
    bounds = IsolationLimits(limits.timeout_s, limits.cpu_s, limits.memory_bytes)
    arguments = [str(path.absolute()), json.dumps(asdict(limits))]
    return SlideFacts.from_json(run_isolated("mhs_ray.slides.check", path.name, arguments, bounds))


def _main(arguments: list[str]) -> int:
    path, limits = Path(arguments[1]), CheckLimits(**json.loads(arguments[2]))
    return serve(arguments, path.name, lambda: check_slide(path, limits).to_json())


if __name__ == "__main__":
    raise SystemExit(_main(sys.argv[1:]))
