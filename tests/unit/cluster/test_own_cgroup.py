"""What a pod's hook does so that podman's limits hold there: on a real cgroup2 hierarchy, and on files in its place."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "cluster/kuberay/own-cgroup"


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(SCRIPT), str(folder)], capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def group() -> Iterator[Path]:
    """A group of a real hierarchy that is empty."""
    if os.geteuid() != 0:
        pytest.skip("mounting a cgroup hierarchy needs root")
    mount = Path(tempfile.mkdtemp(prefix="cg-", dir="/tmp"))
    done = subprocess.run(["mount", "-t", "cgroup2", "none", str(mount)], capture_output=True, text=True, check=False)
    if done.returncode:
        mount.rmdir()
        pytest.skip(f"no cgroup2 here: {done.stderr.strip()}")
    made = mount / f"mhs-test-{os.getpid()}"
    made.mkdir()
    try:
        yield made
    finally:
        for folder in (made / "pod", made):
            if folder.exists():
                folder.rmdir()
        subprocess.run(["umount", str(mount)], check=True)
        mount.rmdir()


def pids(folder: Path) -> set[int]:
    return {int(pid) for pid in (folder / "cgroup.procs").read_text().split()}


def test_all_processes_of_the_group_move_into_one_below_it_and_what_they_start_begins_there(group: Path) -> None:
    pod = subprocess.Popen(
        ["sh", "-c", f"echo $$ >{group}/cgroup.procs; sleep 60 & read line; sleep 60 & wait"], stdin=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        _until(lambda: len(pids(group)) == 2)
        first = pids(group)
        done = run(group)
        assert (done.returncode, done.stderr) == (0, "")
        assert pids(group) == set()
        assert pids(group / "pod") == first
        assert pod.stdin is not None
        pod.stdin.write("go on\n")
        pod.stdin.flush()
        _until(lambda: len(pids(group / "pod")) == 3)
        assert run(group).returncode == 0, "twice is as good as once"
    finally:
        os.killpg(pod.pid, 9)
        pod.wait()
        _until(lambda: not (group / "pod").exists() or not pids(group / "pod"))


def _until(look: Callable[[], bool], within_s: float = 20) -> None:
    ends = time.monotonic() + within_s
    while not look():
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_a_node_without_cgroup_2_needs_nothing(tmp_path: Path) -> None:
    assert run(tmp_path).returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_each_controller_is_handed_on_and_one_that_models_need_must_be_on_files_in_the_place_of_cgroups(
    tmp_path: Path,
) -> None:
    (tmp_path / "cgroup.procs").touch()
    (tmp_path / "cgroup.controllers").write_text("hugetlb memory\n")
    (tmp_path / "cgroup.subtree_control").touch()
    assert run(tmp_path).returncode == 0
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory\n"  # the last one written to a plain file
    (tmp_path / "cgroup.subtree_control").unlink()
    (tmp_path / "cgroup.subtree_control").mkdir()  # takes nothing
    done = run(tmp_path)
    assert done.returncode == 1
    assert "the limit of memory" in done.stderr


def test_processes_that_cannot_be_moved_are_named_on_files_in_the_place_of_cgroups(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("memory\n")
    (tmp_path / "cgroup.procs").write_text("4242\n")
    done = run(tmp_path)
    assert done.returncode == 1
    assert "4242" in done.stderr


def test_the_hook_of_every_pod_that_starts_models_is_in_the_image_and_may_be_executed() -> None:
    (cluster,) = yaml.safe_load_all((ROOT / "cluster/kuberay/raycluster.yaml").read_text())
    for group in cluster["spec"]["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        hook = container.get("lifecycle")
        if not container["securityContext"].get("privileged"):
            assert hook is None
            continue
        [path] = hook["postStart"]["exec"]["command"]
        assert path == f"/opt/mhs/{SCRIPT.relative_to(ROOT)}"
    assert "COPY cluster/ /opt/mhs/cluster/" in (ROOT / "cluster/Containerfile").read_text()
    assert SCRIPT.stat().st_mode & 0o111 == 0o111


def test_the_script_has_no_fault_that_shellcheck_knows() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", "-s", "sh", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
