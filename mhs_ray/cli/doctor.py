"""What ``mhs doctor`` looks at."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, SecretStr
from rich.text import Text

from mhs_ray.cli.output import STATE_STYLES, size
from mhs_ray.domain.errors import MhsError
from mhs_ray.domain.settings import Settings
from mhs_ray.ports import ContainerEngine

_LEAST_DISK: Final = 10 << 30
_LEAST_MEMORY: Final = 4 << 30
_SBIN: Final = "/usr/local/sbin:/usr/sbin:/sbin"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. optional: the platform works without it. mend: what to do about it."""

    name: str
    state: Literal["ok", "missing", "wrong", "optional"]
    detail: str
    mend: str = ""

    def to_json(self) -> dict[str, str]:
        """Return it for a program."""
        return asdict(self)

    def text(self) -> Text:
        """Return it as one line."""
        parts: list[Any] = [(f"{self.state:<9}", STATE_STYLES[self.state]), f"{self.name}: {self.detail}"]
        if self.mend:
            parts.append((f" → {self.mend}", "bold"))
        return Text.assemble(*parts)


def examine(settings: Settings) -> list[Check]:
    """Look at everything the platform needs on this machine."""
    return [*_python(), *_engine(settings), *_programs(settings), *_room(settings), *_gpu()]


def _python() -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Check("Python", "ok", version)


def _engine(settings: Settings) -> Iterator[Check]:
    from mhs_ray.engines.select import pick_engine

    try:
        engine = pick_engine(settings.engine, docker_host=settings.docker_host)
        capabilities = engine.capabilities()
    except MhsError as error:
        wanted = settings.engine if settings.engine != "auto" else "podman or Docker"
        packages = "docker.io catatonit" if settings.engine == "docker" else "podman runc catatonit"
        yield Check("container engine", "missing", f"{wanted}: {error}", f"apt-get install -y {packages}")
        return
    yield Check("container engine", "ok", f"{engine.name} starts containers")
    for lack in capabilities.missing:
        yield Check("isolation", "optional", lack)
    yield _images(settings, engine)
    yield from _sandbox(settings, engine)


def _images(settings: Settings, engine: ContainerEngine) -> Check:
    from mhs_ray.attempt.image_room import lacks_room
    from mhs_ray.attempt.pulled import PulledImages

    bounds = settings.images
    try:
        storage = engine.storage()
    except MhsError as error:
        return Check("images", "optional", str(error), "old images are not removed until this is mended")
    ours = len(PulledImages(settings.node_dir / "images", engine).kept())
    told = (
        f"{size(storage.image_bytes)} of {size(bounds.cache)}, {ours} pulled for jobs; "
        f"{size(storage.free_bytes)} free on their disk"
    )
    if not lacks_room(storage, bounds):
        return Check("images", "ok", told)
    mend = "the next pull removes old ones; other images and files are yours to remove, or set MHS_IMAGES__…"
    return Check("images", "optional", told, mend)


def _sandbox(settings: Settings, engine: ContainerEngine) -> Iterator[Check]:
    from mhs_ray.sandbox.audit.gate import Gate
    from mhs_ray.sandbox.audit.run import audit

    try:
        checks = audit(engine, runtime=settings.sandbox.runtime)
    except MhsError as error:
        yield Check("sandbox", "missing", str(error), "`mhs audit-sandbox` says more")
        return
    faults = Gate(engine, runtime=settings.sandbox.runtime).remember(checks)
    if not faults:
        yield Check("sandbox", "ok", f"{len(checks)} attempts to get out of it failed")
    elif settings.sandbox.allow_weak:
        yield Check("sandbox", "optional", f"does not hold ({', '.join(faults)}); jobs run here all the same, as set")
    else:
        mend = "`mhs audit-sandbox` says more; jobs run only with MHS_SANDBOX__ALLOW_WEAK=true"
        yield Check("sandbox", "missing", f"does not hold: {', '.join(faults)}", mend)


def _programs(settings: Settings) -> Iterator[Check]:
    if settings.registry.kind == "distribution":
        yield _program("docker-registry", "docker-registry", "keeps the pushed images", needed=True)
    yield _program("catatonit", "catatonit", "holds a job's network while its container starts", needed=True)
    yield _program("mkfs.ext4", "e2fsprogs", "holds what a container writes to a size of its own", needed=False)
    yield _program("debootstrap", "debootstrap", "only for `mhs base-image` and `mhs demo`", needed=False)
    yield _program("skopeo", "skopeo", "one more client to push with", needed=False)


def _program(name: str, package: str, use: str, *, needed: bool) -> Check:
    path = f"{os.defpath}:{_SBIN}:{_path()}"
    found = shutil.which(name, path=path) or next(iter(Path("/usr/libexec/podman").glob(name)), None)
    if found:
        return Check(name, "ok", str(found))
    return Check(name, "missing" if needed else "optional", use, f"apt-get install -y {package}")


def _path() -> str:
    return str(Path(sys.executable).parent) + ":" + os.pathsep.join(os.get_exec_path())


def _room(settings: Settings) -> Iterator[Check]:
    home = settings.home
    existing = next(p for p in (home, *home.parents) if p.exists())
    if not os.access(existing, os.W_OK):
        yield Check("home", "missing", f"{home} cannot be written", "set MHS_HOME to a folder of yours")
    else:
        free = shutil.disk_usage(existing).free
        enough = free >= _LEAST_DISK
        mend = "" if enough else f"free some, {size(_LEAST_DISK)} are comfortable, or set MHS_HOME"
        yield Check("disk", "ok" if enough else "optional", f"{size(free)} free for {home}", mend)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    enough = memory >= _LEAST_MEMORY
    yield Check("memory", "ok" if enough else "optional", size(memory), "" if enough else "4 GiB are comfortable")


def _gpu() -> Iterator[Check]:
    found = len(list(Path("/dev").glob("nvidia[0-9]*")))
    if found:
        yield Check("GPU", "ok", f"{found} NVIDIA")
    else:
        yield Check("GPU", "optional", "none here: one is declared, and models fall back to the CPU")


def setting_rows(settings: Settings) -> list[dict[str, Any]]:
    """Return each setting as variable, value and where it comes from; secrets are hidden."""
    return list(_rows(settings, "MHS_"))


def _rows(section: BaseModel, prefix: str) -> Iterator[dict[str, Any]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        variable = f"{prefix}{name}".upper()
        if isinstance(value, BaseModel):
            yield from _rows(value, f"{variable}__")
            continue
        shown = "(hidden)" if isinstance(value, SecretStr) else section.model_dump(mode="json", include={name})[name]
        origin = "environment" if name in section.model_fields_set else "default"
        yield {"variable": variable, "value": shown, "from": origin}
