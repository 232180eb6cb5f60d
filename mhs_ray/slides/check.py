"""Decide whether a file is a slide that can be read, in bounded time and memory.

``check_slide`` works in this process; ``check_slide_isolated`` does the same in a process that can crash, hang or eat
memory without harm, which is how files of strangers are checked: decoders are C, and have had their share of holes.
"""

from __future__ import annotations

import json
import logging
import resource
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import mhs_ray
from mhs_ray.domain.errors import SlideError
from mhs_ray.slides.geometry import Level0Point, PixelSize
from mhs_ray.slides.open import open_slide
from mhs_ray.slides.reader import LevelFacts, SlideFacts, SlideReader
from mhs_ray.slides.sniff import Kind, sniff
from mhs_ray.slides.thumbnail import thumbnail, thumbnail_cost
from mhs_ray.slides.tiff_check import StructureLimits, check_structure

log = logging.getLogger(__name__)

_PROBE: Final = 256
_THUMBNAIL: Final = PixelSize(512, 512)
_MAX_OUTPUT: Final = 1 << 20
_NEEDED_MEMORY: Final = 1 << 30


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

    Raises what `check_slide` raises; a crash, a hang or too much memory is ``unreadable``.
    """
    limits = limits or CheckLimits()
    root = Path(mhs_ray.__file__).resolve().parents[1]
    command = [sys.executable, "-P", "-m", "mhs_ray.slides.check", str(path.absolute()), json.dumps(asdict(limits))]
    with tempfile.TemporaryDirectory(prefix="mhs-check-") as scratch:
        environment = {"PYTHONPATH": str(root), "LC_ALL": "C.UTF-8", "HOME": scratch, "TMPDIR": scratch}
        try:
            done = subprocess.run(
                command,
                env=environment,
                cwd=scratch,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=limits.timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise SlideError(
                "unreadable", f"{path.name} could not be read in {limits.timeout_s:g} s; it is damaged or hostile"
            ) from None
    answer = _answer(done.stdout)
    if "facts" in answer:
        return SlideFacts.from_json(answer["facts"])
    if "reason" in answer:
        raise SlideError(str(answer["reason"]), str(answer["message"]))
    log.warning(
        "checking %s ended with %d: %s", path.name, done.returncode, done.stderr[-2000:].decode("utf-8", "replace")
    )
    raise SlideError("unreadable", f"{path.name} {_died(done.returncode)}; the file is damaged or hostile")


def _answer(stdout: bytes) -> dict[str, Any]:
    """The last line is ours; decoders may have written before it."""
    lines = stdout[-_MAX_OUTPUT:].strip().splitlines()
    try:
        answer = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _died(code: int) -> str:
    if code == -signal.SIGXCPU or code == -signal.SIGKILL:
        return "took too much processor time or memory to read"
    if code < 0:
        return f"crashed its decoder ({signal.Signals(-code).name})"
    return "took too much memory to read or broke its decoder"


def _main(arguments: list[str]) -> int:
    """Entry of the isolated process: one JSON object on the last line of standard output."""
    path, limits = Path(arguments[0]), CheckLimits(**json.loads(arguments[1]))
    memory = max(limits.memory_bytes, _NEEDED_MEMORY)
    for what, amount in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, limits.cpu_s),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        amount = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
        resource.setrlimit(what, (amount, amount))
    try:
        answer: dict[str, Any] = {"facts": check_slide(path, limits).to_json()}
    except SlideError as error:
        answer = {"reason": error.reason, "message": error.message}
    except MemoryError:
        answer = {"reason": "bomb", "message": f"{path.name} takes more than {memory >> 30} GiB of memory to read"}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(_main(sys.argv[1:]))
