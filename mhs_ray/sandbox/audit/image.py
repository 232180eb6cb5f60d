"""The image that the audit runs: this interpreter, the modules and libraries the probes load, and some bait.

Nothing is fetched and nothing must be installed: a fresh interpreter is asked which files it has loaded.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from mhs_ray.domain.errors import EngineError
from mhs_ray.engines import labels
from mhs_ray.engines.build import image_tools
from mhs_ray.ports import ContainerEngine

_PACKAGE: Final = "mhs_ray.sandbox.audit.inside"
_INSIDE: Final = Path(__file__).parent / "inside"
_LOADED_LATE: Final = (
    "encodings.ascii",
    "encodings.idna",
    "encodings.latin_1",
    "encodings.utf_8",
    "runpy",
    "unicodedata",
)
_ASK: Final = """
import importlib, json, sys
for name in sys.argv[1:]: importlib.import_module(name)
files = [m.__file__ for m in sys.modules.values() if getattr(m, "__file__", None)]
mapped = [line.split(None, 5)[5].strip() for line in open("/proc/self/maps") if line.count("/")]
print(json.dumps([files, mapped]))
"""
SETUID_USER: Final = 12345
SETUID_PROGRAM: Final = "/app/setuid"
DEVICE_NODES: Final = {"/app/memory": (1, 1), "/app/kernel-log": (1, 11), "/app/disk": (254, 0), "/app/fuse": (10, 229)}
"""Path → (major, minor) of character devices that the image brings where it was made by root."""

LOADER: Final = ("/lib/loader", "--library-path", "/lib", "/bin/python3")
COMMAND: Final = (*LOADER, "-S", "-s", "-B", "-m", _PACKAGE)
VARIABLES: Final = {"PYTHONHOME": "/", "PYTHONPATH": "/app"}
BAIT: Final = (
    "ENV LD_PRELOAD=/app/evil.so",
    "ENV NVIDIA_VISIBLE_DEVICES=all",
    "VOLUME /volume",
    "USER 0",
    f"LABEL {labels.JOB}=31337 {labels.PLATFORM}=bait {labels.ROLE}=bait",
)
"""What an image may say, and the sandbox must not heed."""


def ensure_image(engine: ContainerEngine) -> str:
    """Return the tag of the probe image, made if it is not there. Raises EngineError."""
    files = interpreter_files(engine.name, _imports())
    tag = f"localhost/mhs-probe:{_content(files)}"
    tools = image_tools(engine)
    if tools.image_id(tag) is None:
        with tempfile.TemporaryDirectory(prefix="mhs-probe-") as folder:
            tar = Path(folder, "rootfs.tar")
            _pack(files, tar)
            tools.import_rootfs(tar, tag, BAIT)
    return tag


def probes_hash() -> str:
    """Return a short hash of the probes and of what they run with: another one means another audit."""
    return _content({str(p.name): p for p in sorted(Path(__file__).parent.rglob("*.py"))})


def interpreter_files(engine: str, modules_used: Iterable[str]) -> dict[str, Path]:
    """Return path in the image → path here, of an interpreter that can import these of the standard library."""
    python = Path(sys.executable).resolve()
    asked = subprocess.run(
        [str(python), "-S", "-s", "-c", _ASK, *sorted({*_LOADED_LATE, *modules_used})],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={},
    )
    if asked.returncode:
        raise EngineError(engine, "make the probe image", f"Python cannot say what it loads: {asked.stderr[-300:]}")
    modules, mapped = json.loads(asked.stdout)
    stdlib = Path(sysconfig.get_path("stdlib", vars={"base": sys.base_prefix, "installed_base": sys.base_prefix}))
    home = f"lib/python{sys.version_info.major}.{sys.version_info.minor}"
    files = {"bin/python3": python}
    for name in modules:
        path = Path(name).resolve()
        if not path.is_relative_to(stdlib.resolve()):
            raise EngineError(engine, "make the probe image", f"{path} is not of the standard library in {stdlib}")
        files[f"{home}/{path.relative_to(stdlib.resolve())}"] = path
    for library in {Path(name).resolve() for name in mapped if ".so" in Path(name).name}:
        if library.is_relative_to(stdlib.resolve()):
            continue
        files |= {f"lib/{name}": library for name in library_names(library)}
        if library.name.startswith("ld-"):
            files["lib/loader"] = library
    return files


def _imports() -> list[str]:
    """Return the standard library's modules that the probes import."""
    found = set[str]()
    for path in _INSIDE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("mhs_ray"):
                found.add(node.module)
    return sorted(found)


def library_names(library: Path) -> Iterator[str]:
    """Yield the names that programs ask a library by: its file's, and those of the links to it beside."""
    yield library.name
    for other in library.parent.iterdir():
        if other.is_symlink() and ".so" in other.name and other.resolve() == library:
            yield other.name


def _content(files: dict[str, Path]) -> str:
    facts = [(name, path.stat().st_size, path.stat().st_mtime_ns) for name, path in sorted(files.items())]
    own = [(str(path.name), path.read_text()) for path in sorted(_INSIDE.glob("*.py"))]
    return hashlib.sha256(repr((facts, own, BAIT, os.geteuid() == 0)).encode()).hexdigest()[:16]


def _pack(files: dict[str, Path], tar_path: Path) -> None:
    with tarfile.open(tar_path, "w") as tar:
        for folder in ("tmp", "proc", "sys", "dev", "etc", "app", "scratch", "volume", "usr", "opt", "root", "run"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "volume" else 0o755
            tar.addfile(entry)
        for name, path in files.items():
            _add(tar, name, path.read_bytes())
        for parent in ("mhs_ray", "mhs_ray/sandbox", "mhs_ray/sandbox/audit"):
            _add(tar, f"app/{parent}/__init__.py", b"")
        for path in _INSIDE.glob("*.py"):
            _add(tar, f"app/mhs_ray/sandbox/audit/inside/{path.name}", path.read_bytes())
        _add(tar, SETUID_PROGRAM.lstrip("/"), files["lib/loader"].read_bytes(), mode=0o4755, user=SETUID_USER)
        if os.geteuid() == 0:
            for name, (major, minor) in DEVICE_NODES.items():
                entry = tarfile.TarInfo(name.lstrip("/"))
                entry.type, entry.mode, entry.devmajor, entry.devminor = tarfile.CHRTYPE, 0o666, major, minor
                if name == "/app/disk":
                    entry.type = tarfile.BLKTYPE
                tar.addfile(entry)


def _add(tar: tarfile.TarFile, name: str, content: bytes, *, mode: int = 0o755, user: int = 0) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.uid = len(content), mode, user
    tar.addfile(entry, io.BytesIO(content))
