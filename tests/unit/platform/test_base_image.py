"""Where the base image comes from and what is left out of it, without building one."""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from mhs_ray.domain.errors import ConflictError
from mhs_ray.platform import base_image
from mhs_ray.platform.base_image import apt_mirror, make_base_image, pack


class NoEngine:
    """An engine that has nothing and takes any tar."""

    def __init__(self) -> None:
        self.tags: dict[str, str] = {}
        self.imports = 0

    def image_id(self, tag: str) -> str | None:
        return self.tags.get(tag)

    def import_rootfs(self, tar: Path, tag: str) -> str:
        self.imports += 1
        self.tags[tag] = f"sha256:{self.imports}"
        return self.tags[tag]

    def build(self, context_dir: Path, tag: str, build_args: Mapping[str, str] | None = None) -> str:
        raise AssertionError

    def tag(self, source: str, target: str) -> None:
        raise AssertionError

    def push(self, tag: str, username: str, password: str, *, tls: bool = True) -> str:
        raise AssertionError


def write(etc: Path, name: str, text: str) -> None:
    path = etc / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_mirror_of_a_deb822_source_is_used(tmp_path: Path) -> None:
    write(
        tmp_path,
        "sources.list.d/debian.sources",
        "Types: deb\n# a comment\nURIs: http://mirror.test/debian\n"
        "Suites: bookworm bookworm-updates\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/debian.gpg\n\n"
        "Types: deb\nURIs: http://mirror.test/security\nSuites: bookworm-security\nComponents: main contrib\n\n"
        "Types: deb\nURIs: http://other.test/tool\nSuites: stable\nComponents: main\n",
    )
    mirror = apt_mirror(tmp_path)
    assert mirror.url == "http://mirror.test/debian"
    assert mirror.keyring == Path("/usr/share/keyrings/debian.gpg")
    assert mirror.sources.splitlines() == [
        "deb http://mirror.test/debian bookworm main",
        "deb http://mirror.test/debian bookworm-updates main",
        "deb http://mirror.test/security bookworm-security main",
    ]


def test_the_mirror_of_a_one_line_source_is_used_and_its_password_stays_here(tmp_path: Path) -> None:
    write(
        tmp_path,
        "sources.list",
        "# deb http://old.test/debian bookworm main\ndeb-src http://src.test/debian bookworm main\n"
        "deb [arch=amd64 signed-by=/k.gpg] https://me:secret@mirror.test/debian bookworm main non-free # ours\n",
    )
    mirror = apt_mirror(tmp_path)
    assert mirror.url == "https://me:secret@mirror.test/debian"
    assert mirror.keyring == Path("/k.gpg")
    assert mirror.sources == "deb https://mirror.test/debian bookworm main\n"


@pytest.mark.parametrize(
    "text",
    ["", "Types: deb\nURIs: http://m.test/d\nSuites: trixie\nComponents: main\n",
     "Enabled: no\nTypes: deb\nURIs: http://m.test/d\nSuites: bookworm\nComponents: main\n",
     "Types: deb-src\nURIs: http://m.test/d\nSuites: bookworm\nComponents: main\n"],
)  # fmt: skip
def test_a_machine_without_the_suite_is_told(tmp_path: Path, text: str) -> None:
    write(tmp_path, "sources.list.d/x.sources", text)
    with pytest.raises(ConflictError, match=r"no apt source of this machine.*public base"):
        apt_mirror(tmp_path)


def test_a_missing_debootstrap_is_told_with_the_way_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *a, **k: None)
    with pytest.raises(ConflictError, match="apt-get install debootstrap"):
        make_base_image(NoEngine(), tmp_path)


def test_without_root_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *a, **k: "/usr/sbin/debootstrap")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ConflictError, match="needs root"):
        make_base_image(NoEngine(), tmp_path)
    assert not list(tmp_path.glob("*.tar"))


def test_a_debootstrap_that_fails_leaves_nothing_and_tells_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "debootstrap"
    fake.write_text(
        "#!/bin/sh\necho 'I: Retrieving InRelease'\necho 'E: Failed from http://me:secret@m.test/x'\nexit 1\n"
    )
    fake.chmod(0o755)
    write(tmp_path, "apt/sources.list", "deb http://m.test/debian bookworm main\n")
    mirror = apt_mirror(tmp_path / "apt")
    monkeypatch.setattr(shutil, "which", lambda name, **k: str(fake) if name == "debootstrap" else None)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(base_image, "apt_mirror", lambda etc: mirror)
    told: list[str] = []
    with pytest.raises(ConflictError, match=r"Failed from http://m\.test/x"):
        make_base_image(NoEngine(), tmp_path / "cache", progress=told.append)
    assert told == ["reading the package index"]
    assert {p.name for p in (tmp_path / "cache").iterdir()} == {"base.lock"}


def test_what_is_made_is_known_again_and_a_wiped_engine_only_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Path] = []

    def build(tar: Path, packages: object, progress: object) -> None:
        built.append(tar)
        tar.write_bytes(b"tar")

    monkeypatch.setattr(base_image, "_build", build)
    one, other = NoEngine(), NoEngine()
    first = make_base_image(one, tmp_path)
    assert make_base_image(one, tmp_path) == first
    assert (len(built), one.imports) == (1, 1)
    make_base_image(other, tmp_path)
    assert (len(built), other.imports) == (1, 1)
    one.tags[base_image.DEFAULT_TAG] = "sha256:somebody-elses"
    assert make_base_image(one, tmp_path) != "sha256:somebody-elses"
    make_base_image(one, tmp_path, packages=["python3"])
    assert len(built) == 2


def test_what_no_container_reads_is_left_out(tmp_path: Path) -> None:
    root = tmp_path / "root"
    kept = ["usr/bin/python3", "etc/apt/keep", "usr/share/zoneinfo/UTC", "usr/lib/python3/dist-packages/numpy/x.py"]
    dropped = [
        "usr/share/doc/x/copyright", "usr/share/man/man1/x.1", "usr/share/locale/de/x.mo",
        "var/cache/apt/archives/x.deb",
        "var/lib/apt/lists/x", "usr/lib/python3/__pycache__/x.pyc", "etc/resolv.conf",
        "etc/hostname", "var/log/x.log", "dev/x",
    ]  # fmt: skip
    for name in [*kept, *dropped, "etc/apt/sources.list"]:
        write(root, name, "x")
    (root / "tmp").mkdir(mode=0o1777)
    (root / "tmp").chmod(0o1777)
    tar = tmp_path / "out.tar"
    pack(root, tar, "deb http://mirror.test/debian bookworm main\n")
    with tarfile.open(tar) as packed:
        names = packed.getnames()
        assert not [n for n in names if n.removeprefix("./") in dropped]
        assert {f"./{n}" for n in kept} <= set(names)
        assert "./dev" in names
        assert stat.S_IMODE(packed.getmember("./tmp").mode) == 0o1777
        sources = packed.extractfile("./etc/apt/sources.list")
        assert sources is not None
        assert sources.read() == b"deb http://mirror.test/debian bookworm main\n"
    assert names.count("./etc/apt/sources.list") == 1
