"""Child processes that are kept alive: each is started, watched, and started again with a growing pause."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger(__name__)

_PAUSE_MAX_S = 30.0
_STEADY_S = 60.0  # after that long a run, the next pause is short again


@dataclass(frozen=True, slots=True)
class Service:
    """One process to keep. env: its whole environment, None for ours; log: where its output goes."""

    name: str
    command: Sequence[str]
    log: Path
    env: Mapping[str, str] | None = field(default=None, repr=False)


class Keeper(threading.Thread):
    """Keeps one service running until `close`."""

    def __init__(self, service: Service) -> None:
        super().__init__(name=f"keep-{service.name}", daemon=True)
        self._service = service
        self._closing = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        """Start, wait, start again."""
        pause = 0.2
        while not self._closing.is_set():
            began = time.monotonic()
            with self._service.log.open("ab") as out:
                os.fchmod(out.fileno(), 0o600)
                self._process = subprocess.Popen(
                    self._service.command, env=self._service.env, stdin=subprocess.DEVNULL,
                    stdout=out, stderr=out, start_new_session=True,
                )  # fmt: skip
            code = self._process.wait()
            if self._closing.is_set():
                return
            pause = 0.2 if time.monotonic() - began > _STEADY_S else min(2 * pause, _PAUSE_MAX_S)
            log.warning("%s ended with code %s; it starts again in %.1f s", self._service.name, code, pause)
            self._closing.wait(pause)

    def close(self, grace_s: float = 10) -> None:
        """End the process and do not start it again."""
        self._closing.set()
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(grace_s)
            except subprocess.TimeoutExpired:
                process.kill()
        self.join(grace_s)


def alive(pid: int) -> bool:
    """Say whether a process of this id runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except (OSError, IndexError):
        return False


def end(pid: int, grace_s: float = 15) -> None:
    """End a process by its id: TERM, then KILL. Nothing happens if it is gone."""
    end_all([pid], grace_s)


def end_all(pids: Sequence[int], grace_s: float = 15) -> None:
    """End processes by their ids, side by side: TERM, then KILL those that are still there after `grace_s`."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        left = [pid for pid in pids if alive(pid)]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)
        deadline = time.monotonic() + grace_s
        while any(alive(pid) for pid in left) and time.monotonic() < deadline:
            time.sleep(0.05)
