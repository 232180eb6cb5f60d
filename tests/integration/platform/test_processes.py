"""Ending processes by their ids."""

from __future__ import annotations

import subprocess
import sys

from mhs_ray.platform.processes import alive, end_all

_STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
)
_MEEK = "import time; print('up', flush=True); time.sleep(60)"


def test_who_ends_at_once_and_who_must_be_killed_are_both_gone() -> None:
    started = [
        subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE) for text in (_MEEK, _STUBBORN, _STUBBORN)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
    end_all([process.pid for process in started], grace_s=0.5)
    assert not any(alive(process.pid) for process in started)
    codes = []
    for process in started:
        assert process.stdout is not None
        process.stdout.close()
        codes.append(process.wait(5))
    assert codes == [-15, -9, -9]
    end_all([process.pid for process in started], grace_s=0.5)  # nothing happens to who is gone
