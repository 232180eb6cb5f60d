"""Before a container starts: its image, its slide and its sandbox, made ready side by side."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TypeVar

from mhs_ray.attempt.image_room import RemovedImage, make_room
from mhs_ray.attempt.order import AttemptOrder
from mhs_ray.attempt.pulled import PulledImages
from mhs_ray.domain.errors import EngineError, ExecError, MhsError, SandboxError, SlideError, WeakSandboxError
from mhs_ray.domain.failures import Failure, FailureCode
from mhs_ray.domain.sections import ImageSettings
from mhs_ray.ports import ContainerEngine
from mhs_ray.sandbox.sandbox import Sandbox
from mhs_ray.slides.cache import CachedSlide, SlideCache
from mhs_ray.slides.failure_codes import failure_code

T = TypeVar("T")
_MENDS = {
    FailureCode.SLIDE_TRUNCATED: "upload or export the slide again: the file is not whole",
    FailureCode.SLIDE_FORBIDDEN: "check who may read the slide's URL, and submit with a fresh one",
    FailureCode.SLIDE_EXPIRED: "submit the task again with a fresh URL",
    FailureCode.SLIDE_NOT_FOUND: "check that the slide still exists, and submit again",
    FailureCode.SLIDE_TOO_LARGE: "use a smaller slide, or ask the operator to raise the limit",
    FailureCode.SLIDE_UNREADABLE: "open the slide in a viewer: it is damaged, or of a kind that is not read here",
    FailureCode.FETCH_FAILED: "nothing to do: it is tried again; if it stays so, look at the slide's host",
    FailureCode.PULL_FAILED: "nothing to do: it is tried again; if it stays so, look at the registry",
    FailureCode.ENGINE_FAILED: "nothing to do: it is tried again; `mhs doctor` on the node says more",
    FailureCode.SANDBOX_FAILED: "nothing to do: it is tried again; `mhs doctor` on the node says more",
    FailureCode.NOT_EXECUTABLE: "mend ENTRYPOINT or CMD: the program must exist in the image and be executable",
    FailureCode.INTERNAL: "nothing to do: it is tried again; the platform's log has the cause",
}
_WEAK_MEND = (
    "`mhs audit-sandbox` on the node says what does not hold there: mend that, or take the node away; "
    "MHS_SANDBOX__ALLOW_WEAK=true runs jobs there all the same"
)


class PullFailedError(MhsError):
    """The image could not be pulled."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is ready. timings: seconds per part."""

    slide: CachedSlide
    timings: dict[str, float]


def failure_of(error: BaseException) -> Failure:
    """Return the failure card for what went wrong on the node."""
    match error:
        case SlideError():
            code = failure_code(error)
        case PullFailedError():
            code = FailureCode.PULL_FAILED
        case ExecError():
            code = FailureCode.NOT_EXECUTABLE
        case EngineError():
            code = FailureCode.ENGINE_FAILED
        case SandboxError():
            code = FailureCode.SANDBOX_FAILED
        case _:
            code = FailureCode.INTERNAL
    cause = str(error) if isinstance(error, MhsError) else f"{type(error).__name__} on the node"
    return Failure(code, cause, _WEAK_MEND if isinstance(error, WeakSandboxError) else _MENDS[code])


def prepare(
    order: AttemptOrder,
    engine: ContainerEngine,
    cache: SlideCache,
    sandbox: Sandbox | None,
    stack: ExitStack,
    *,
    pulled: PulledImages,
    images: ImageSettings,
    gate: Callable[[], None],
    say: Callable[[str], None],
    cancelled: Callable[[], bool],
    on_removed: Callable[[RemovedImage], None] = lambda _removed: None,
) -> Prepared:
    """Make image, slide and sandbox ready; what must be undone is pushed on `stack`.

    sandbox: None where a warm container has its own. gate: raises when no job may start on this node.
    on_removed: told of each image that went to make room for this one.

    Raises SlideError first of all faults, since it is the one that a person can mend.
    """
    timings: dict[str, float] = {}

    def timed(name: str, work: Callable[[], T]) -> T:
        start = monotonic()
        try:
            return work()
        finally:
            timings[name] = round(monotonic() - start, 3)

    def pull() -> None:
        # Held for as long as the attempt lasts: an image that is used is not removed.
        while not stack.enter_context(pulled.hold(order.image)):
            try:
                keep = pulled.needed_soon()
                for gone in make_room(engine, pulled, images, keep=keep, need_bytes=order.image_bytes):
                    on_removed(gone)
                engine.pull(order.image, order.pull, cancelled)
            except EngineError as error:
                raise PullFailedError(str(error)) from error
            pulled.add(order.image)

    def fetch() -> CachedSlide:
        progress = _Progress(say)
        return stack.enter_context(cache.get(order.slide, on_progress=progress, cancelled=cancelled))

    def isolate() -> None:
        gate()
        if sandbox is not None:
            stack.enter_context(sandbox)

    with ThreadPoolExecutor(3, thread_name_prefix="prepare") as pool:
        slide = pool.submit(timed, "slide_s", fetch)
        image = pool.submit(timed, "image_s", pull)
        isolation = pool.submit(timed, "sandbox_s", isolate)
    errors = [e for e in (slide.exception(), image.exception(), isolation.exception()) if e is not None]
    if errors:
        raise errors[0]
    return Prepared(slide.result(), timings)


def slide_files(slide: CachedSlide, folder: Path) -> tuple[Path, Path | None]:
    """Return the file that SCAN_URL stands for, and for DICOM a zip of every layer made below `folder`."""
    if slide.path.is_file():
        first, files = slide.path, [slide.path]
    else:
        files = sorted(f for f in slide.path.rglob("*") if f.is_file())
        first = files[0]
    if slide.facts.format != "dicom":
        return first, None
    folder.mkdir(parents=True, exist_ok=True)
    packed = folder / "slide.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:  # pixels are compressed already
        for file in files:
            name = file.name if file.suffix else f"{file.name}.dcm"
            archive.write(file, name)
    return first, packed


class _Progress:
    """Says how far a download is, every ten per cent and not for small files."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._next = say, 0.1

    def __call__(self, done: int, total: int | None) -> None:
        if total and total > 32 << 20 and done >= total * self._next:
            self._say(f"slide: {done >> 20} of {total >> 20} MiB")
            self._next = done / total + 0.1
