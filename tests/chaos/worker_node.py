"""A second raylet beside the head's: a worker node that takes jobs, and that is lost whole."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mhs_ray.platform.up import MARK, ray_environment
from tests.e2e.platform.clients import Client
from tests.e2e.platform.harness import Platform, mounts_below, processes

if TYPE_CHECKING:
    from tests.chaos.chaos import Chaos

GPUS = 2
_NOTICED_S = 60.0  # the platform's own promise is 30 s, on a machine that does nothing else
_WORK_S = 60.0  # how long there may be no job on it before it is let live
_MARK = "RAY_MHS_WORKER_NODE"
_AT_WORK = ("preparing", "running", "collecting")


class WorkerNode:
    """One machine's worth: a home, a container storage and ports of its own, all of it on loopback.

    name: what its jobs say of where they are; another one each time that it starts. What it left is there again then,
    as on the disk of a machine that was switched off. `Platform.down` ends it with the rest of Ray.
    """

    def __init__(self, platform: Platform, folder: Path) -> None:
        self._platform, self.home = platform, folder / "n"
        self.home.mkdir()
        self.home.chmod(0o711)
        self._storage = folder / "node-storage.conf"
        self._root = folder / "ncs"
        self._storage.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{self._root}/r"\nrunroot = "{self._root}/x"\n'
        )
        env = {**platform.engine_cli.env, "CONTAINERS_STORAGE_CONF": str(self._storage)}
        self._engine = Client("podman", ("podman",), env)
        self._id = self.name = ""

    def start(self) -> None:
        """Have a fresh raylet join."""
        self._id = secrets.token_hex(28)
        self.name = f"({self._id[:8]})"
        own = {k: v for k, v in os.environ.items() if not k.startswith("MHS_")}
        made = ray_environment(self.home, own, joins=self._platform.endpoints["ray_address"])
        env = made | {
            "MHS_ENGINE": "podman", "CONTAINERS_STORAGE_CONF": str(self._storage),
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self._platform.home / "keys" / "ray-token"),
            MARK: f"/tmp/mhs-{self._platform.name}", _MARK: self._id, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": self._id,
        }  # fmt: skip
        command = [sys.executable, "-m", "tests.chaos.worker_node", self._platform.endpoints["ray_address"]]
        try:
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=180, check=False)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"the worker node does not start: {error}") from None
        assert done.returncode == 0, f"the worker node: {done.stdout[-2000:]}\n{done.stderr[-2000:]}"

    def kill(self) -> bool:
        """Take away everything that runs on it, as a power cut does; returns whether there was a raylet."""
        ours = processes([f"{_MARK}={self._id}\0"])
        raylets = [pid for pid, command in ours.items() if "raylet/raylet" in command]
        # Whoever could tell of a container's end goes before the container: of a power cut nobody tells.
        _end([*raylets, *ours])
        monitors = list(processes([f"{self._root}/"]))
        _end([*monitors, *_below(monitors)])
        return bool(raylets)

    def left(self) -> list[str]:
        """Return what there is of attempts on it: containers, folders, mounts."""
        node = self.home / "node"
        folders = [str(p) for part in ("sandboxes", "work") if (node / part).is_dir() for p in (node / part).iterdir()]
        mounts = [m for m in mounts_below(self.home) if "/sandboxes/" in m or "/work/" in m]
        names = self._engine.ok("ps", "--all", "--format", "{{.Names}}").split()
        return [*(n for n in names if n.startswith(f"mhs-{self._platform.name}-")), *folders, *mounts]

    def clear(self) -> None:
        """Empty its container storage; for when nothing runs any more."""
        self._engine.run("rm", "--force", "--all", "--time", "0")
        self._engine.run("rmi", "--force", "--all")


def _end(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _below(pids: list[int]) -> list[int]:
    """Return all descendants of these processes."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = set(pids)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - set(pids))


def lose_node(chaos: Chaos, node: WorkerNode) -> bool:
    """Kill the node while jobs run there, see that the platform notices, and start it anew."""
    deadline = time.monotonic() + _WORK_S
    while not (there := _attempts_on(chaos, node.name)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    dead = node.name
    assert node.kill(), "the worker node had died before it was killed"
    killed = time.monotonic()
    for job in there:
        chaos.moved[job] = (there[job], dead)
    try:
        while (still := there.items() & _attempts_on(chaos, dead).items()) and time.monotonic() < killed + _NOTICED_S:
            time.sleep(0.2)
        chaos.noticed_s.append(round(time.monotonic() - killed, 1))
    finally:
        node.start()
    assert not still, f"after {_NOTICED_S:.0f} s these (job, attempt) are still said to be on the lost node: {still}"
    return True


def _attempts_on(chaos: Chaos, name: str) -> dict[int, int]:
    """Return job → attempt of those at work on the node."""
    jobs = chaos.everyone().values()
    return {j["id"]: j["attempt"] for j in jobs if j["state"] in _AT_WORK and str(j["node"]).endswith(name)}


def not_moved(chaos: Chaos) -> tuple[int, list[str]]:
    """Return how many jobs of lost nodes ran again elsewhere, and what is wrong with those that did not."""
    elsewhere, wrong = 0, []
    for job, (attempt, dead) in chaos.moved.items():
        events = chaos.call("GET", f"/v1/jobs/{job}/events").json()
        later = [e for e in events if e["event"] == "placed" and e["attempt"] > attempt]
        if any(str(e["node"]).endswith(dead) for e in later):
            wrong.append(f"job {job}: an attempt was placed on the lost node {dead}: {json.dumps(later)}")
        elif later:
            elsewhere += 1
        # It may have ended in the moment before the kill, or posted its results, or been cancelled.
        elif not any(e["attempt"] == attempt and e["state"] in ("succeeded", "failed", "cancelled") for e in events):
            wrong.append(f"job {job} did not run again after node {dead} was lost: {json.dumps(events)}")
    return elsewhere, wrong


def main(address: str) -> None:
    """Start a raylet of this machine, which goes on when this process ends.

    ``ray start`` lets none join where all is on loopback, but with the machine's own address, on which no GCS listens.
    """
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    Node(
        RayParams(
            redis_address=address, gcs_address=address, node_ip_address="127.0.0.1", num_cpus=1, num_gpus=GPUS,
            min_worker_port=0, max_worker_port=0, dashboard_port=None, dashboard_agent_listen_port=0,
            object_store_memory=100_000_000,
        ),
        head=False, shutdown_at_exit=False, spawn_reaper=False,
    )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1])
