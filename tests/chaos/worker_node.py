"""A second raylet beside the head's: a worker node that takes jobs, and that can be lost whole."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from mhs_ray.domain.settings import Settings
from mhs_ray.platform.keys import load_keys
from mhs_ray.platform.up import ray_environment
from tests.e2e.platform.harness import Platform, processes
from tests.s3_fixtures import free_ports

GPUS = 2


class WorkerNode:
    """It has the platform's home and engine, as a node of one machine must. `Platform.down` ends it with the rest."""

    def __init__(self, platform: Platform) -> None:
        self._platform, self._number = platform, 0

    def start(self) -> None:
        """Have a fresh raylet join."""
        self._number += 1
        home = self._platform.home
        told = ray_environment(Settings(home=home), load_keys(home / "keys"))
        env = {
            **self._platform.env,
            **{name: value for name, value in told.items() if name.startswith("RAY_") or name == "PATH"},
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",  # else nobody may join; its address is loopback
            "RAY_MHS_TEMP": f"/tmp/mhs-{self._platform.name}",
            "RAY_MHS_WORKER_NODE": str(self._number),
        }
        [port] = free_ports(1)
        command = [
            str(Path(sys.executable).with_name("ray")), "start", "--node-ip-address=127.0.0.1",
            f"--address={self._platform.endpoints['ray_address']}", f"--num-gpus={GPUS}", "--num-cpus=2",
            f"--dashboard-agent-listen-port={port}", "--object-store-memory=100000000", "--disable-usage-stats",
        ]  # fmt: skip
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    def lose(self) -> bool:
        """Kill its raylet, and with it everything that Ray runs there; containers stay, as they would not by rights."""
        mine = processes([f"RAY_MHS_WORKER_NODE={self._number}\0"])
        raylets = [pid for pid, command in mine.items() if "raylet/raylet" in command]
        for pid in raylets:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(raylets)
