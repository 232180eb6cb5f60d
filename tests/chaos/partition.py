"""Two hosts in network namespaces, one cut off for a while. The last line is one JSON object.

Each host is a network namespace with a raylet, a podman storage and a home of its own; the head, with the platform, is
a third; a bridge in a fourth joins them. Nothing of it has an address or a wire outside of these namespaces.

``lost``: jobs without a success; ``twice``: jobs with more than one result or end; ``orphans``: containers that are
left; ``given_up``: attempts that the head gave up; ``hosts``, ``after``: hosts that ran jobs, and that did once healed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mhs_ray.bench._posting_image import ensure_posting_image
from mhs_ray.client.client import Client
from mhs_ray.domain.instances import LABEL
from mhs_ray.domain.settings import use
from mhs_ray.engines.build import image_tools
from mhs_ray.engines.select import pick_engine
from mhs_ray.platform.keys import load_keys
from mhs_ray.platform.up import MARK, down, end_ray, ray_environment, up
from mhs_ray.slides.demo import make_demo_slide
from tests.chaos.chaos import say
from tests.e2e.platform.harness import ENDED, eventually
from tests.engines_fixtures import _unmount_below

PROJECT: Final = Path(__file__).resolve().parents[2]
ADDRESSES: Final = {"head": "10.77.0.1", "a": "10.77.0.2", "b": "10.77.0.3"}
PORT: Final = 6379
KIND: Final = "g4dn.xlarge"
GPUS: Final = 2
_HEALTH: Final = {
    "RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}  # fmt: skip
_POST_TRIES_S: Final = 30  # how long the model of the posting image asks for its results to be taken


def run(*words: str, check: bool = True) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


@contextlib.contextmanager
def network(prefix: str) -> Iterator[None]:
    """Make the namespaces ``PREFIX-head`` and so on, joined by a bridge in ``PREFIX-wire``."""
    names = [f"{prefix}-{name}" for name in ("wire", *ADDRESSES)]
    wire = names[0]
    try:
        for name in names:
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "-n", wire, "link", "add", "bridge", "type", "bridge")
        run("ip", "-n", wire, "link", "set", "bridge", "up")
        for host, address in ADDRESSES.items():
            inside = f"{prefix}-{host}"
            run("ip", "-n", wire, "link", "add", f"to-{host}", "type", "veth", "peer", "name", "eth", "netns", inside)
            run("ip", "-n", wire, "link", "set", f"to-{host}", "master", "bridge", "up")
            run("ip", "-n", inside, "address", "add", f"{address}/24", "dev", "eth")
            run("ip", "-n", inside, "link", "set", "eth", "up")
            # Goes nowhere; without a route a program cannot tell which address is its own.
            other = ADDRESSES["a" if host == "head" else "head"]
            run("ip", "-n", inside, "route", "add", "default", "via", other)
        yield
    finally:
        for name in names:
            run("ip", "netns", "delete", name, check=False)


# ---------------------------------------------------------------- inside the head's namespace


@dataclass
class Hosts:
    """The hosts with GPUs. processes: ``ray start --block`` of each."""

    prefix: str
    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def temp_dir(self) -> str:
        return str(self.folder / "r")

    def storage(self, host: str) -> Path:
        path = self.folder / f"{host}.conf"
        if not path.exists():
            root = self.folder / f"cs-{host}"
            path.write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{root}/r"\nrunroot = "{root}/x"\n')
        return path

    def environment(self, host: str) -> dict[str, str]:
        """Return what a host's raylet is told: its home and Ray's token, nothing of the platform's settings."""
        own = {k: v for k, v in os.environ.items() if not k.startswith("MHS_")}
        made = ray_environment(self.folder / host, own, joins=f"{ADDRESSES['head']}:{PORT}")
        token = self.folder / "head" / "keys" / "ray-token"
        return made | {
            "MHS_ENGINE": "podman", "CONTAINERS_STORAGE_CONF": str(self.storage(host)), MARK: self.temp_dir,
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), **_HEALTH,
        }  # fmt: skip

    def start(self, host: str) -> None:
        """Start the raylet of a host, in its network and with a folder for Ray that no other host sees."""
        own = self.folder / f"r-{host}"
        own.mkdir(exist_ok=True)
        ray = (
            f"exec {Path(sys.executable).with_name('ray')} start --address={ADDRESSES['head']}:{PORT} --block "
            f"--node-ip-address={ADDRESSES[host]} --num-cpus=1 --num-gpus={GPUS} --object-store-memory=100000000 "
            f"--labels={LABEL}={KIND} --disable-usage-stats"
        )
        command = f"mount --bind {own} {self.temp_dir} && {ray}"
        with (self.folder / f"{host}.log").open("ab") as log:
            self.processes[host] = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self.prefix}-{host}", "unshare", "--mount", "sh", "-c", command],
                env=self.environment(host), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def wire(self, host: str, state: str) -> None:
        """Cut a host off (``down``) or join it again (``up``)."""
        run("ip", "-n", f"{self.prefix}-wire", "link", "set", f"to-{host}", state)

    def containers(self, host: str) -> list[str]:
        told = subprocess.run(
            ["podman", "ps", "--all", "--format", "{{.Names}}"], capture_output=True, text=True, check=True,
            env={**os.environ, "CONTAINERS_STORAGE_CONF": str(self.storage(host))},
        )  # fmt: skip
        return told.stdout.split()


@contextlib.contextmanager
def platform(prefix: str, folder: Path) -> Iterator[tuple[Hosts, Client]]:
    """Start Ray and the platform on the head, and both hosts."""
    hosts = Hosts(prefix, folder)
    for name in ("r", "head", "a", "b"):
        (folder / name).mkdir()
        (folder / name).chmod(0o711)
    settings = use({
        "MHS_HOME": str(folder / "head"), "MHS_ENGINE": "podman", "MHS_CLUSTER__PLACEMENT": "label",
        "MHS_CLUSTER__RAY_ADDRESS": f"{ADDRESSES['head']}:{PORT}", "MHS_CLUSTER__ADDRESS": ADDRESSES["head"],
        "MHS_BLOBS__FOLDER": str(folder / "blobs"), "MHS_BLOBS__MIN_FREE": "0", "MHS_JOBS__BACKOFF": "PT0.5S",
        "MHS_SLIDES__PATH_ROOTS": json.dumps([str(folder)]), "MHS_JOBS__STOP_GRACE": "PT1S",
        "CONTAINERS_STORAGE_CONF": str(hosts.storage("head")), **_HEALTH,
    })  # fmt: skip
    keys = load_keys(settings.home / "keys")
    with contextlib.ExitStack() as stack:
        stack.callback(end_ray, hosts.temp_dir)
        environment = ray_environment(settings.home, os.environ, joins=settings.cluster.ray_address)
        ray = [
            str(Path(sys.executable).with_name("ray")), "start", "--head", f"--port={PORT}", "--num-cpus=2",
            f"--node-ip-address={ADDRESSES['head']}", "--num-gpus=0", f"--temp-dir={hosts.temp_dir}",
            "--object-store-memory=134217728", "--disable-usage-stats", "--include-dashboard=false",
        ]  # fmt: skip
        done = subprocess.run(
            ray, env=environment | {MARK: hosts.temp_dir}, capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode:
            raise RuntimeError(f"Ray did not start: {(done.stderr or done.stdout)[-2000:]}")
        for host in ("a", "b"):
            hosts.start(host)
        stack.callback(down, settings, say)
        endpoints = up(settings, say)
        client = stack.enter_context(Client(endpoints.api_url, keys.client_id, keys.client_secret))
        yield hosts, client


def push(client: Client, folder: Path) -> int:
    engine = pick_engine("podman", folder=folder / "head" / "node" / "engine")
    tools, local = image_tools(engine), ensure_posting_image(engine)
    image = client.create_image("posting")
    access = client.push_instructions(image["id"])
    reference = f"{access['registry']}/{access['repository']}:{access['tag']}"
    tools.tag(local, reference)
    digest = tools.push(reference, access["username"], access["password"], tls=access["tls"])
    client.wait_for_image(image, digest, on_status=lambda _status: None)
    return int(image["id"])


def inside(prefix: str, folder: Path, cut_s: float, jobs: int) -> dict[str, Any]:
    """Run jobs on both hosts, cut one off, heal, and count."""
    with platform(prefix, folder) as (hosts, client):
        say("pushing the model")
        env = [{"name": "WORK_S", "value": "4"}]
        container = client.create_container({"image_id": push(client, folder), "instance_type": KIND, "env": env})["id"]
        algorithm = client.create_algorithm({"name": "work", "container_id": container})["id"]
        slide = folder / "slide.svs"
        make_demo_slide(slide, 1024, 1024)
        scan = client.add_scan({"path": str(slide)})["id"]

        def submit(count: int) -> list[int]:
            return [client.submit(algorithm_id=algorithm, scan_ids=[scan])["job_ids"][0] for _ in range(count)]

        def running_on_both() -> bool:
            found = [j for j in client.jobs(limit=100) if j["state"] == "running"]
            return len({j["node"] for j in found}) == 2 and len(found) >= GPUS + 1

        asked = submit(jobs)
        eventually(running_on_both, "jobs run on both hosts", 300)
        say(f"host b is cut off for {cut_s:.0f} s")
        hosts.wire("b", "down")
        time.sleep(cut_s)
        hosts.wire("b", "up")
        say("healed")
        # Its raylet learns that it was given up, and ends; whoever started it starts it again, as on any host.
        eventually(lambda: hosts.processes["b"].poll() is not None, "host b's raylet has ended", 300)
        hosts.start("b")
        within = time.monotonic() + 400
        while any(client.job(j)["state"] not in ENDED for j in asked) and time.monotonic() < within:
            time.sleep(1)
        say("jobs after the partition")
        late = submit(2 * GPUS)
        for job in late:
            eventually(lambda job=job: client.job(job)["state"] in ENDED, f"job {job} has ended", 300, every_s=0.5)
        deadline = time.monotonic() + 60
        while (left := [*hosts.containers("a"), *hosts.containers("b")]) and time.monotonic() < deadline:
            time.sleep(1)
        return count(client, asked, late) | {"orphans": len(left), "left": left, "cut_s": cut_s}


def count(client: Client, asked: list[int], late: list[int]) -> dict[str, Any]:
    states = Counter(client.job(j)["state"] for j in [*asked, *late])
    lost = twice = given_up = 0
    places: Counter[str] = Counter()
    after: Counter[str] = Counter()
    for job in [*asked, *late]:
        events = client.job_events(job)
        results = client.job_results(job)["scanResults"]
        ends = [e for e in events if e["state"] in ENDED]
        good = client.job(job)["state"] == "succeeded" and len(results) >= 1
        lost += not good
        twice += len(results) > 1 or len(ends) > 1
        given_up += sum(e["event"] == "retried" for e in events)
        where = {e["attempt"]: str(e["node"]) for e in events if e["event"] == "placed"}
        (after if job in late else places).update(where.values())
    return {
        "jobs": len(asked) + len(late), "states": dict(states), "lost": lost, "twice": twice, "given_up": given_up,
        "hosts": len(places), "after": len(after),
    }  # fmt: skip


# ---------------------------------------------------------------- outside


def partition(cut_s: float, jobs: int) -> dict[str, Any]:
    """Do all of it in namespaces of its own; return what was counted."""
    prefix = f"mhs{os.getpid()}"
    folder = Path(tempfile.mkdtemp(prefix="mn-", dir="/tmp"))
    folder.chmod(0o711)
    try:
        with network(prefix):
            command = [
                "nsenter", f"--net=/run/netns/{prefix}-head", sys.executable, "-m", "tests.chaos.partition",
                "--inside", prefix, "--folder", str(folder), "--seconds", str(cut_s), "--jobs", str(jobs),
            ]  # fmt: skip
            with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as child:
                try:
                    told, _ = child.communicate(timeout=1500)
                except BaseException:
                    child.send_signal(signal.SIGINT)
                    child.wait(90)
                    raise
            if child.returncode:
                raise RuntimeError(f"the run ended with code {child.returncode}")
            found: dict[str, Any] = json.loads(told.splitlines()[-1])
            return found
    finally:
        _unmount_below(folder)
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Run what the arguments say; 0 only when nothing was lost, doubled or left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long the host is cut off")
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        print(json.dumps(inside(args.inside, args.folder, args.seconds, args.jobs)))
        return 0
    told = partition(args.seconds, args.jobs)
    print(json.dumps(told))
    return 0 if not any(told[k] for k in ("lost", "twice", "orphans")) else 1


if __name__ == "__main__":
    sys.exit(main())
