"""Was a container killed for its memory? Truthfully, also where podman does not know.

podman 4's ``OOMKilled`` stays false, and exit code 137 proves nothing. Evidence that counts: the kernel's own
count for the container's memory cgroup while it lives, and the kernel log's ``oom-kill:`` line naming it afterwards.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
from pathlib import Path

log = logging.getLogger(__name__)

_ROOT = Path("/sys/fs/cgroup")


def memory_cgroup(pid: int) -> tuple[Path, int] | None:
    """Return the memory cgroup folder of `pid` and its version (1 or 2), None when it is gone or hidden."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return None
    found: tuple[Path, int] | None = None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return _existing(_ROOT / "memory" / path.lstrip("/"), 1)
        if not controllers:
            found = _existing(_ROOT / path.lstrip("/"), 2) or _existing(_ROOT / "unified" / path.lstrip("/"), 2)
    return found


def _existing(folder: Path, version: int) -> tuple[Path, int] | None:
    return (folder, version) if folder.is_dir() else None


class OomWatch:
    """Watches the memory cgroup of one running container until `close`."""

    def __init__(self, pid: int) -> None:
        self._seen = threading.Event()
        self._stop_r, self._stop_w = os.pipe()
        self._thread: threading.Thread | None = None
        where = memory_cgroup(pid)
        # Never watch a cgroup that is not the container's own: the node's OOM kills would be blamed on it.
        if where is None or where == memory_cgroup(os.getpid()):
            return
        target = self._watch_v1 if where[1] == 1 else self._watch_v2
        self._thread = threading.Thread(target=self._guard, args=(target, where[0]), name="mhs-oom", daemon=True)
        self._thread.start()

    @property
    def seen(self) -> bool:
        """True once the kernel killed a process of the container for its memory limit."""
        return self._seen.is_set()

    def close(self) -> None:
        """End the watch; what was seen stays."""
        if self._stop_w >= 0:
            os.close(self._stop_w)
            self._stop_w = -1
            if self._thread is not None:
                self._thread.join(2)
            os.close(self._stop_r)

    def _guard(self, watch: object, folder: Path) -> None:
        try:
            watch(folder)  # type: ignore[operator]
        except OSError as exc:  # the cgroup may go at any moment
            log.debug("memory cgroup %s is no longer watched: %s", folder, exc)

    def _watch_v1(self, folder: Path) -> None:
        # Counts OOM events and, once, the removal of the cgroup.
        counter = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            control = os.open(folder / "memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
            try:
                (folder / "cgroup.event_control").write_text(f"{counter} {control}")
                poll = select.poll()
                poll.register(counter, select.POLLIN)
                poll.register(self._stop_r, select.POLLIN | select.POLLHUP)
                self._check_v1(folder)  # what happened before we came
                while not self.seen and self._stop_r not in dict(poll.poll()):
                    if os.eventfd_read(counter) > 1:
                        self._seen.set()
                    elif folder.exists():
                        self._check_v1(folder)
                    else:
                        return  # one event and no cgroup: it is the removal
            finally:
                os.close(control)
        finally:
            os.close(counter)

    def _check_v1(self, folder: Path) -> None:
        if _count((folder / "memory.oom_control").read_text(), "oom_kill"):
            self._seen.set()

    def _watch_v2(self, folder: Path) -> None:
        with (folder / "memory.events").open("rb", buffering=0) as events:
            poll = select.poll()
            poll.register(events, select.POLLPRI | select.POLLERR)
            poll.register(self._stop_r, select.POLLIN | select.POLLHUP)
            while not self.seen:
                events.seek(0)
                if _count(events.read(4096).decode(), "oom_kill"):
                    self._seen.set()
                    return
                if self._stop_r in dict(poll.poll()):
                    return


def _count(text: str, key: str) -> int:
    for line in text.splitlines():
        name, _, number = line.partition(" ")
        if name == key:
            return int(number)
    return 0


def kernel_log_names(container_id: str) -> bool:
    """Say whether the kernel log has an ``oom-kill`` line for this container; False where the log cannot be read."""
    try:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    needle = container_id.encode()
    try:
        while True:
            try:
                record = os.read(fd, 8192)
            except BrokenPipeError:  # the ring turned over below us; go on with the next record
                continue
            except OSError:
                return False
            if not record:
                return False
            if b"oom-kill:" in record:
                memcg = record.partition(b"oom_memcg=")[2].partition(b",")[0]
                if needle in memcg:
                    return True
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)
