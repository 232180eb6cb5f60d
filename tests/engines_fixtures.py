"""Real engines for tests: podman on its own storage, a private dockerd, an image made from this machine's binaries."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker

TOOLS = (
    "sh", "cat", "sleep", "echo", "env", "head", "tail", "seq", "yes", "dd", "ls", "id", "touch", "mkdir", "rm", "kill",
    "wc", "true", "false", "date", "stat", "grep",
)  # fmt: skip
"""Programs that `small_rootfs` always has, beside Python at /usr/local/bin/python3."""

_LEFT_OUT = {
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "__pycache__",
    "ensurepip",
}


def small_rootfs(into: Path) -> Path:
    """Write a tar of a small root file system into folder `into`: /bin/sh, `TOOLS`, Python and its standard library."""
    sources: dict[str, Path] = {}
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found, f"no {tool} on this machine"
        sources[f"bin/{tool}"] = Path(found).resolve()
    stdlib = Path(sysconfig.get_path("stdlib"))
    python = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}").resolve()
    sources["usr/local/bin/python3"] = python
    for path in sorted(stdlib.rglob("*")):
        inside = path.relative_to(stdlib)
        if path.is_file() and not _LEFT_OUT & set(inside.parts) and not inside.parts[0].startswith("config-"):
            sources[f"usr/local/lib/{stdlib.name}/{inside}"] = path.resolve()
    elves = [p for name, p in sources.items() if name.startswith(("bin/", "usr/local/bin")) or ".so" in name]
    for library in _libraries(elves):
        sources[library.lstrip("/")] = Path(library).resolve()
    target = into / "small.tar"
    with tarfile.open(target, "w") as tar:
        for folder in ("tmp", "proc", "sys", "dev", "etc", "app", "scratch"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tar.addfile(entry)
        for name, text in (("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"), ("etc/group", "root:x:0:\n")):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text), 0o644
            tar.addfile(entry, io.BytesIO(text.encode()))
        for name, path in sources.items():
            info = tar.gettarinfo(path, arcname=name)
            info.uid = info.gid = 0
            info.type = tarfile.REGTYPE
            info.size = path.stat().st_size
            info.mode = 0o755 if info.mode & 0o100 else 0o644
            with path.open("rb") as content:
                tar.addfile(info, content)
    return target


def _libraries(binaries: list[Path]) -> set[str]:
    out = subprocess.run(["ldd", *map(str, binaries)], capture_output=True, text=True, check=False).stdout
    words = (word for line in out.splitlines() if not line.endswith(":") for word in line.split())
    return {word for word in words if word.startswith("/") and Path(word).exists()}


@contextmanager
def private_dockerd() -> Iterator[str]:
    """Run a Docker daemon of our own without networks; yields its socket as a URL and ends it by its pid."""
    home = Path(tempfile.mkdtemp(prefix="md-", dir="/tmp"))
    url = f"unix://{home}/s"
    log = (home / "log").open("wb")
    command = [
        "dockerd", f"--data-root={home}/data", f"--exec-root={home}/exec", f"--pidfile={home}/pid", f"--host={url}",
        "--iptables=false", "--bridge=none", "--log-level=warn",
    ]  # fmt: skip
    daemon = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        client = docker.DockerClient(base_url=url, timeout=60, version="1.41")
        for _ in range(150):
            assert daemon.poll() is None, (home / "log").read_text()[-2000:]
            try:
                client.ping()
                break
            except Exception:
                time.sleep(0.1)
        yield url
        for container in client.containers.list(all=True):
            container.remove(force=True, v=True)
        client.close()
    finally:
        daemon.terminate()
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait(5)
        log.close()
        _unmount_below(home)
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def private_podman() -> Iterator[tuple[str, ...]]:
    """Yield podman arguments that keep its storage apart from the machine's; removes all of it afterwards."""
    home = Path(tempfile.mkdtemp(prefix="mp-", dir="/tmp"))
    args = (f"--root={home}/r", f"--runroot={home}/x", f"--tmpdir={home}/t", "--cgroup-manager=cgroupfs")
    try:
        yield args
        subprocess.run(["podman", *args, "rm", "-f", "-a", "-v", "-t", "0"], capture_output=True, check=False)
        subprocess.run(["podman", *args, "rmi", "-f", "-a"], capture_output=True, check=False)
    finally:
        _unmount_below(home)
        shutil.rmtree(home, ignore_errors=True)


def _unmount_below(home: Path) -> None:
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((m for m in mounts if m.startswith(f"{home}/")), key=len, reverse=True):
        subprocess.run(["umount", "-l", mount], capture_output=True, check=False)


def unique(prefix: str, *parts: object) -> str:
    """Return a container name that no other test of this run has."""
    return f"{prefix}-{hashlib.sha256(repr((parts, time.monotonic_ns())).encode()).hexdigest()[:10]}"
