"""A Docker daemon of the platform's own, for a machine that has Docker but does not run it.

It has no network of its own: builds and pushes use the node's, jobs get theirs from their pause container.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mhs_ray.domain.errors import EngineError
from mhs_ray.domain.settings import Settings, use_docker_host
from mhs_ray.engines.docker import DEFAULT_HOST
from mhs_ray.platform.keys import write_private
from mhs_ray.platform.processes import alive, end
from mhs_ray.platform.secrets import keys_of

log = logging.getLogger(__name__)

_READY_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class OwnDaemon:
    """A daemon that was started. host: its ``unix://`` address; folder: its sockets, in a short path."""

    pid: int
    host: str
    folder: str


def is_wanted(settings: Settings) -> bool:
    """Say whether Docker is asked for, is installed and may be started here, and no daemon answers."""
    no_podman = settings.engine == "auto" and shutil.which("podman") is None
    if not (settings.engine == "docker" or no_podman) or settings.docker_host is not None:
        return False
    return os.geteuid() == 0 and shutil.which("dockerd") is not None and not _listens(DEFAULT_HOST)


def join(settings: Settings) -> Settings:
    """Return settings that name our own daemon where one runs and no other one is named."""
    known = _load(settings)
    if known is None or settings.docker_host is not None or settings.engine == "podman" or not _is_ours(known):
        return settings
    return use_docker_host(settings, known.host)


def _listens(host: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(host.removeprefix("unix://"))
        except OSError:
            return False
        return True


def start(settings: Settings) -> OwnDaemon:
    """Start a daemon that keeps its images in the home folder. Raises EngineError."""
    stop(settings)
    folder = Path(f"/tmp/mhsd-{keys_of(settings).platform}")  # noqa: S108 (sockets need a short path; 0700)
    folder.mkdir(mode=0o700, exist_ok=True)
    log_file = settings.home / "logs" / "dockerd.log"
    log_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    host = f"unix://{folder}/s"
    command = [
        "dockerd", f"--data-root={settings.home}/docker", f"--exec-root={folder}/exec", f"--pidfile={folder}/pid",
        f"--host={host}", "--iptables=false", "--bridge=none", "--log-level=warn",
    ]  # fmt: skip
    with log_file.open("ab") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    daemon = OwnDaemon(process.pid, host, str(folder))
    write_private(_file(settings), json.dumps([daemon.pid, daemon.host, daemon.folder]).encode())
    try:
        _wait(process, host, log_file)
    except BaseException:
        stop(settings)
        raise
    return daemon


def stop(settings: Settings) -> None:
    """End the daemon that `start` started; nothing happens if there is none."""
    known = _load(settings)
    if known is not None:
        if _is_ours(known):
            end(known.pid, grace_s=20)
        _forget(settings, known)


def _wait(process: subprocess.Popen[bytes], host: str, log_file: Path) -> None:
    import docker

    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            api = docker.APIClient(base_url=host, version="1.41", timeout=5)
            try:
                api.ping()
                return
            finally:
                api.close()
        except Exception as error:
            log.debug("dockerd does not answer yet: %s", type(error).__name__)
            time.sleep(0.2)
    raise EngineError("docker", "start", f"{log_file} ends:\n{log_file.read_text(errors='replace')[-1500:]}")


def _is_ours(known: OwnDaemon) -> bool:
    try:
        return alive(known.pid) and known.host.encode() in Path(f"/proc/{known.pid}/cmdline").read_bytes()
    except OSError:
        return False


def _file(settings: Settings) -> Path:
    return settings.home / "run" / "dockerd.json"


def _load(settings: Settings) -> OwnDaemon | None:
    try:
        return OwnDaemon(*json.loads(_file(settings).read_text()))
    except FileNotFoundError:
        return None


def _forget(settings: Settings, known: OwnDaemon) -> None:
    # A daemon leaves mounts behind, also when it ends in order; a folder that holds one cannot be removed.
    below = (f"{known.folder}/", f"{settings.home / 'docker'}/")
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((m for m in mounts if m.startswith(below)), key=len, reverse=True):
        subprocess.run(["umount", "-l", mount], capture_output=True, check=False)
    shutil.rmtree(known.folder, ignore_errors=True)
    _file(settings).unlink(missing_ok=True)
