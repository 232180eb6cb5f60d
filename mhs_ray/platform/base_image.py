"""A Debian base image made on the spot: no registry needed, and everything the template asks for is in it.

debootstrap builds the root file system from the package mirror that this machine's own apt uses; what a
container never reads (documentation, translations, package caches) goes; the engine imports the rest.
The tar is kept by the hash of its recipe, so that another engine, or a wiped one, only imports it again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from filelock import FileLock

from mhs_ray.domain.errors import ConflictError
from mhs_ray.engines.build import ImageTools

log = logging.getLogger(__name__)

DEFAULT_TAG: Final = "localhost/mhs-base:bookworm"
DEFAULT_PACKAGES: Final = (
    "ca-certificates",
    "python3",
    "python3-numpy",
    "python3-openslide",
    "python3-pil",
    "python3-pydicom",
    "python3-requests",
)
_SUITE: Final = "bookworm"
_RECIPE: Final = 2
"""Raise it when this module makes another image of the same packages."""
_MODULES: Final = "import numpy, openslide, PIL.Image, pydicom, requests, ssl"
_LEFT_OUT: Final = re.compile(
    r"\./(usr/share/(doc|man|info|locale|lintian|bug|zoneinfo/right)/.|var/cache/(apt|man)/.|var/cache/debconf/.*-old$|var/lib/apt/lists/.|var/log/.|"
    r"var/lib/dpkg/info/.*\.(md5sums)$|debootstrap(/|$)|(dev|proc|sys|run|tmp)/.|.*/__pycache__(/|$)|var/lib/dpkg/.*-old$|"
    r"etc/(hostname|resolv\.conf|machine-id|apt/sources\.list)$)"
)

Progress = Callable[[str], None]
"""Called with a short sentence whenever something else begins."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """Where this machine's apt finds Debian, and the keyring that vouches for it."""

    url: str
    keyring: Path | None
    sources: str  # an apt sources list for the image, one-line format, without credentials


def make_base_image(
    images: ImageTools,
    cache_dir: Path,
    tag: str = DEFAULT_TAG,
    packages: Sequence[str] = DEFAULT_PACKAGES,
    progress: Progress = log.info,
) -> str:
    """Make sure the engine has the base image under `tag`; return its id. A second call takes under a second.

    Raises ConflictError, saying what to install or to do, when it cannot be built here; EngineError when the
    engine refuses it.
    """
    names = sorted(set(packages))
    recipe = json.dumps([_RECIPE, _SUITE, platform.machine(), names])
    content = hashlib.sha256(recipe.encode()).hexdigest()[:16]
    cache_dir.mkdir(parents=True, exist_ok=True)
    tar, known = cache_dir / f"base-{content}.tar", cache_dir / f"base-{content}.ids"
    with FileLock(cache_dir / "base.lock"):
        # An import gives a new id each time: the ids we made are how we know our image again.
        ids = known.read_text().split() if known.exists() else []
        found = images.image_id(tag)
        if found is not None and found in ids:
            return found
        if not tar.exists():
            _build(tar, names, progress)
        progress(f"importing {tar.stat().st_size // 1_000_000} MB as {tag}")
        made = images.import_rootfs(tar, tag)
        known.write_text("\n".join([*ids[-20:], made]) + "\n")
        return made


def _build(tar: Path, packages: Sequence[str], progress: Progress) -> None:
    debootstrap = shutil.which("debootstrap", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if debootstrap is None:
        raise ConflictError(
            "debootstrap is not installed, and the base image is built with it: apt-get install debootstrap, "
            "or build your image on a public base instead (the template's default)"
        )
    if os.geteuid() != 0:
        raise ConflictError(
            "debootstrap needs root: run `sudo mhs base-image`, or build your image on a public base instead "
            "(the template's default)"
        )
    mirror = apt_mirror(Path("/etc/apt"))
    with tempfile.TemporaryDirectory(prefix="base-", dir=tar.parent) as folder:
        root = Path(folder, "rootfs")
        command = [debootstrap, "--variant=minbase", f"--include={','.join(packages)}"]
        if mirror.keyring is not None:
            command.append(f"--keyring={mirror.keyring}")
        try:
            _run([*command, _SUITE, str(root), mirror.url], _apt_proxy(), progress)
        finally:
            _unmount_below(root)
        progress("checking that Python and its modules work")
        check = subprocess.run(
            ["chroot", str(root), "/usr/bin/python3", "-B", "-c", _MODULES], capture_output=True, text=True, check=False
        )
        if check.returncode != 0 and tuple(packages) == DEFAULT_PACKAGES:
            raise ConflictError(f"the base image's Python does not work: {check.stderr.strip()[-500:]}")
        progress("packing")
        part = Path(folder, "part.tar")
        pack(root, part, mirror.sources)
        part.rename(tar)


def _unmount_below(root: Path) -> None:
    # An interrupted debootstrap leaves /proc and /sys mounted: they must not go with the folder.
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in sorted((m for m in mounts if m.startswith(f"{root.resolve()}/")), reverse=True):
        subprocess.run(["umount", "--lazy", mount], check=True)


def _run(command: Sequence[str], proxy: dict[str, str], progress: Progress) -> None:
    environment = {**os.environ, **proxy, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    # Its own lines name each of some hundred packages; the steps are enough.
    steps = {"Retrieving InRelease": "reading the package index", "Retrieving": "downloading packages"}
    steps |= {
        "Extracting": "extracting packages",
        "Unpacking": "unpacking packages",
        "Configuring": "configuring packages",
    }
    last: list[str] = []
    told = ""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last = [*last[-14:], line.strip()]
            step = next((text for sign, text in steps.items() if f"I: {sign}" in line), told)
            if step != told:
                progress(step)
                told = step
    if process.returncode != 0:
        words = "\n".join(_without_credentials(line) for line in last if not line.startswith("I: Retrieving"))
        raise ConflictError(
            f"debootstrap failed; is the package mirror reachable (apt-get update)? It said last:\n{words}"
        )


def pack(root: Path, tar: Path, sources: str) -> None:
    """Write `root` without what a container never reads, and with `sources` as its apt sources list."""
    (root / "etc/apt/sources.list").unlink(missing_ok=True)

    def wanted(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if _LEFT_OUT.match(info.name) or info.ischr() or info.isblk():
            return None
        return info

    with tarfile.open(tar, "w", format=tarfile.GNU_FORMAT) as out:
        out.add(root, arcname=".", filter=wanted)
        (root / "etc/apt/mhs-sources").write_text(sources)
        out.add(root / "etc/apt/mhs-sources", arcname="./etc/apt/sources.list")


# ---- this machine's apt


def apt_mirror(etc_apt: Path) -> Mirror:
    """Return the mirror that `etc_apt` (``/etc/apt``) names for our suite. Raises ConflictError when there is none."""
    entries = list(_entries(etc_apt))
    main = [e for e in entries if e.suite == _SUITE and "main" in e.components]
    if not main:
        raise ConflictError(
            f"no apt source of this machine ({etc_apt}/sources.list, {etc_apt}/sources.list.d) has Debian "
            f"{_SUITE}, which the base image is made of; add one, or build your image on a public base instead"
        )
    ours = [e for e in entries if e.suite.split("-")[0] == _SUITE and "main" in e.components]
    lines = dict.fromkeys(f"deb {_bare(e.url)} {e.suite} main" for e in ours)
    return Mirror(main[0].url, main[0].keyring, "\n".join(lines) + "\n")


@dataclass(frozen=True, slots=True)
class _Entry:
    url: str
    suite: str
    components: tuple[str, ...]
    keyring: Path | None


def _entries(etc_apt: Path) -> Iterator[_Entry]:
    parts = sorted((etc_apt / "sources.list.d").glob("*"))
    for path in [etc_apt / "sources.list", *parts]:
        if path.suffix == ".list" and path.is_file():
            for line in path.read_text(errors="replace").splitlines():
                yield from _one_line(line)
        elif path.suffix == ".sources" and path.is_file():
            for stanza in re.split(r"\n\s*\n", path.read_text(errors="replace")):
                yield from _stanza(stanza)


def _one_line(line: str) -> Iterator[_Entry]:
    match = re.fullmatch(r"deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+([^#]+?)\s*(?:#.*)?", line.strip())
    if match:
        options, url, suite, components = match.groups()
        keyring = re.search(r"signed-by=(/\S+)", options or "")
        yield _Entry(url, suite, tuple(components.split()), Path(keyring.group(1)) if keyring else None)


def _stanza(text: str) -> Iterator[_Entry]:
    fields: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        if line[:1].isspace():
            fields[name] = f"{fields.get(name, '')}\n{line.strip()}"
        elif ":" in line:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()
    if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in {"no", "false", "0"}:
        return
    signed_by = fields.get("signed-by", "")
    for url in fields.get("uris", "").split():
        for suite in fields.get("suites", "").split():
            components = tuple(fields.get("components", "").split())
            yield _Entry(url, suite, components, Path(signed_by) if re.fullmatch(r"/\S+", signed_by) else None)


def _apt_proxy() -> dict[str, str]:
    """What debootstrap's downloader is told of the proxy that apt is configured with."""
    if shutil.which("apt-config") is None:
        return {}
    ask = ["apt-config", "shell", "http_proxy", "Acquire::http::Proxy", "https_proxy", "Acquire::https::Proxy"]
    said = subprocess.run(ask, capture_output=True, text=True, check=False).stdout
    found = re.findall(r"^(https?_proxy)='(.*)'$", said, re.MULTILINE)
    return {name: value for name, value in found if value and value != "DIRECT"}


def _bare(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _without_credentials(text: str) -> str:
    return re.sub(r"//[^/\s@]*@", "//", text)
