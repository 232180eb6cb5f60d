"""Real loop-mounted file systems."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mhs_ray.domain.errors import SandboxError
from mhs_ray.sandbox.scratch import (
    TARGETS,
    LoopScratch,
    TmpfsScratch,
    mounts_below,
    open_scratch,
    remove_folder,
    sweep,
)

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("mkfs.ext4") or not Path("/dev/loop-control").exists(),
    reason="needs root, mkfs.ext4 and loop devices",
)
SIZE = 32 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with an awkward name; all below it is unmounted at the end."""
    folder = tmp_path / "job 1-1"
    folder.mkdir()
    yield folder
    remove_folder(folder)


def make_files(place: Path, count: int) -> None:
    for i in range(count):
        (place / str(i)).touch()


def loop_files() -> str:
    return subprocess.run(["losetup", "-a"], capture_output=True, text=True, check=True).stdout


def test_the_promised_places_are_writable_by_any_user_of_the_container(folder: Path) -> None:
    scratch = LoopScratch(folder, SIZE, owner=(200_000, 200_001))
    assert [m.target for m in scratch.mounts] == list(TARGETS)
    assert not any(m.read_only for m in scratch.mounts)
    assert scratch.tmpfs == {"/run": 16 << 20}
    for mount in scratch.mounts:
        facts = mount.source.stat()
        assert (facts.st_uid, facts.st_gid, oct(facts.st_mode)) == (200_000, 200_001, "0o41777")
    options = next(
        line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "job\\0401-1/scratch" in line
    )
    assert "nosuid,nodev" in options


def test_bytes_and_files_beyond_the_quota_are_enospc_and_the_node_keeps_its_disk(folder: Path) -> None:
    place = LoopScratch(folder, SIZE).mounts[0].source
    with pytest.raises(OSError) as full:
        (place / "big").write_bytes(b"x" * (SIZE + 1))
    assert full.value.errno == errno.ENOSPC
    (place / "big").unlink()
    with pytest.raises(OSError) as full:
        make_files(place, 10_000)
    assert full.value.errno == errno.ENOSPC
    assert (folder / "scratch.ext4").stat().st_size == SIZE


def test_opening_again_finds_what_was_written(folder: Path) -> None:
    (LoopScratch(folder, SIZE).mounts[0].source / "x").write_text("kept")
    assert (LoopScratch(folder, SIZE).mounts[0].source / "x").read_text() == "kept"
    assert len(mounts_below(folder)) == 1


def test_close_leaves_no_mount_no_loop_device_and_no_file_and_may_be_repeated(folder: Path) -> None:
    scratch = LoopScratch(folder, SIZE)
    assert str(folder) in loop_files()
    scratch.close()
    scratch.close()
    assert mounts_below(folder) == []
    assert list(folder.iterdir()) == []
    assert str(folder) not in loop_files()


def test_more_than_the_disk_has_is_refused_and_leaves_nothing(folder: Path) -> None:
    with pytest.raises(SandboxError, match="are free"):
        LoopScratch(folder, 1 << 60)
    assert list(folder.iterdir()) == []


def test_a_node_that_cannot_falls_back_to_memory(folder: Path) -> None:
    assert isinstance(open_scratch(folder, SIZE), LoopScratch)
    remove_folder(folder)
    folder.mkdir()
    fallback = open_scratch(folder, 1 << 60)
    assert isinstance(fallback, TmpfsScratch)
    assert set(fallback.tmpfs) == {*TARGETS, "/run"}
    assert fallback.mounts == ()


def test_the_sweep_removes_what_a_killed_process_left_and_keeps_the_living(tmp_path: Path) -> None:
    code = (
        "import os,sys,pathlib; from mhs_ray.sandbox.scratch import LoopScratch; p=pathlib.Path(sys.argv[1]);"
        "p.mkdir(parents=True); (LoopScratch(p, 1<<25).mounts[0].source / 'x').touch(); os.kill(os.getpid(), 9)"
    )
    root = tmp_path / "root"
    for name in ("dead", "alive"):
        done = subprocess.run([sys.executable, "-c", code, str(root / name)], check=False)
        assert done.returncode == -9
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "link").symlink_to(outside)
    assert len(mounts_below(root)) == 2
    assert sweep(root, keep={"alive"}) == ["dead"]
    assert mounts_below(root) == [str(root / "alive" / "scratch")]
    assert (root / "alive" / "scratch" / "tmp" / "x").exists()
    assert outside.exists()
    assert sweep(root, keep=()) == ["alive"]
    assert mounts_below(root) == []
    assert sweep(tmp_path / "never", keep=()) == []


def test_a_scratch_in_use_is_detached_and_its_device_freed_when_the_user_ends(folder: Path) -> None:
    scratch = LoopScratch(folder, SIZE)
    with (scratch.mounts[0].source / "open").open("w"):
        scratch.close()
        assert mounts_below(folder) == []
    assert str(folder) not in loop_files()
