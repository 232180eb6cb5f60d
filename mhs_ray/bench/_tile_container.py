"""The tile feed into a real container: in a job's sandbox, the feed's folder mounted, the tiny reader inside."""

from __future__ import annotations

import hashlib
import io
import json
import secrets
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np

from mhs_ray.attempt.tiles import TileFeedProcess
from mhs_ray.domain.errors import EngineError
from mhs_ray.engines import labels
from mhs_ray.engines.build import image_tools
from mhs_ray.engines.pause import ensure_pause_image
from mhs_ray.ports import ContainerEngine, ContainerSpec, Limits, Stream
from mhs_ray.sandbox.audit.image import LOADER, VARIABLES, interpreter_files, library_names
from mhs_ray.sandbox.sandbox import Sandbox, SandboxSpec
from mhs_ray.slides.bands import cores

_READER: Final = Path(__file__).resolve().parents[1] / "templates" / "tiles" / "mhs_tiles.py"
_MAIN: Final = """\
import json, time
from mhs_tiles import open_tiles

begun, count = time.perf_counter(), 0
with open_tiles() as feed:
    for batch in feed:
        batch.pixels[:, ::5, 0, 0].max()  # every page of every tile
        count += len(batch)
print(json.dumps({"tiles": count, "wall_s": time.perf_counter() - begun}), flush=True)
"""
_ASK: Final = """
import json, sys
import mmap, socket, time, numpy
print(json.dumps(sorted(n for n in sys.modules if n.partition(".")[0] in sys.stdlib_module_names)))
print(json.dumps([l.split(None, 5)[5].strip() for l in open("/proc/self/maps") if l.count("/")]))
"""
_HOST: Final = "bench.example.com"
_NOWHERE: Final = "http://127.0.0.1:9"  # nothing is posted
_PLAN_WITHIN_S: Final = 120.0


def ensure_reading_image(engine: ContainerEngine) -> str:
    """Return the tag of an image with this Python, numpy and the tile feed's reader, made if it is not there."""
    files = {**_python(engine.name), **dict(_numpy())}
    facts = [(name, path.stat().st_size) for name, path in sorted(files.items())]
    own = {"app/main.py": _MAIN.encode(), "app/mhs_tiles.py": _READER.read_bytes()}
    tag = f"localhost/mhs-tile-bench:{hashlib.sha256(repr((facts, own)).encode()).hexdigest()[:16]}"
    tools = image_tools(engine)
    if tools.image_id(tag) is None:
        with tempfile.TemporaryDirectory(prefix="mhs-tile-bench-") as folder:
            tar = Path(folder, "rootfs.tar")
            _pack(files, own, tar)
            changes = [f"ENV {name}={value}" for name, value in VARIABLES.items()]
            entry = json.dumps([*LOADER, "-S", "-s", "-B", "/app/main.py"])
            tools.import_rootfs(tar, tag, (*changes, f"ENTRYPOINT {entry}"))
    return tag


def feed_container(engine: ContainerEngine, image: str, slide: Path, spec: str, folder: Path) -> dict[str, Any]:
    """Feed all tiles of `slide` to one container; return {"tiles", "wall_s"} as it measured from its call on.

    The plan is made before it starts, and nothing is decoded before it asks. Raises EngineError or SandboxError.
    """
    name = f"mhs-bench-{secrets.token_hex(5)}"
    own = {labels.PLATFORM: "bench", labels.JOB: "0", labels.ATTEMPT: "0"}
    surroundings = SandboxSpec(name, own, ensure_pause_image(engine), _HOST, _NOWHERE, 32 << 20)
    said: dict[Stream, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
    with ExitStack() as stack:
        feed = stack.enter_context(TileFeedProcess(slide, spec, folder / "tiles", cores(), lambda _line: None))
        _wait_for_plan(feed)
        sandbox = stack.enter_context(Sandbox(engine, surroundings, folder / "sandboxes", lambda _target: None))
        stack.callback(engine.remove, name)
        container = ContainerSpec(
            name=name,
            image=image,
            env={**VARIABLES, **sandbox.env, **feed.env},
            labels={**own, labels.ROLE: labels.ROLE_MODEL},
            limits=Limits(cpus=cores(), memory_bytes=2 << 30),
            mounts=(*sandbox.mounts, feed.mount),
            tmpfs=sandbox.tmpfs,
            network=sandbox.network,
        )
        engine.run(container, lambda stream, data: said[stream].extend(data), lambda _status: None)
    try:
        answer: dict[str, Any] = json.loads(said["stdout"])
    except ValueError:
        words = bytes(said["stderr"] or said["stdout"]).decode("utf-8", "replace").strip()[-300:]
        raise EngineError(engine.name, "read tiles in a container", words or "it said nothing") from None
    return answer


def _wait_for_plan(feed: TileFeedProcess) -> None:
    deadline = time.monotonic() + _PLAN_WITHIN_S
    while not feed.progress and time.monotonic() < deadline:
        time.sleep(0.05)


def _python(engine: str) -> dict[str, Path]:
    done = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, timeout=60, check=True)
    modules, mapped = map(json.loads, done.stdout.splitlines()[-2:])
    files = interpreter_files(engine, [m for m in modules if m != "__main__"])
    package = Path(np.__file__).resolve().parents[1]
    have = set(files.values())
    for library in {Path(m).resolve() for m in mapped if ".so" in Path(m).name}:
        if library not in have and not library.is_relative_to(package):
            files |= {f"lib/{name}": library for name in library_names(library)}
    return files


def _numpy() -> Iterator[tuple[str, Path]]:
    """Yield path in the image and path here of numpy and of the libraries that its wheel brings."""
    package = Path(np.__file__).parent
    for folder in (package, package.parent / "numpy.libs"):
        for path in folder.rglob("*"):
            below = path.relative_to(package.parent)
            if path.is_file() and path.suffix not in {".pyi", ".pyc", ".a", ".h"} and "tests" not in below.parts:
                yield f"app/{below}", path


def _pack(files: dict[str, Path], own: dict[str, bytes], tar_path: Path) -> None:
    with tarfile.open(tar_path, "w") as tar:
        for folder in ("tmp", "proc", "sys", "dev", "etc", "app", "scratch", "run"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tar.addfile(entry)
        for name, path in files.items():
            tar.add(path.resolve(), name, filter=_everybodys)
        for name, content in own.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))


def _everybodys(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mode |= 0o555
    return entry
