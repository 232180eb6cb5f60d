"""``make chaos``: jobs on the real platform while its parts are killed, from a seed. The last line is one JSON object.

``accepted``: jobs that a 2xx promised; ``lost``: those of them without one end; ``delivered_twice``: results that
Techcyte's side has more than once; ``orphans``: containers, folders and mounts that nobody owns; ``undelivered``:
stored results that Techcyte's side does not have; ``misjudged``: ends that no cause of theirs explains; ``refused``:
submissions that were answered 507 because the disk was full; ``ran_elsewhere``: jobs of a lost worker node that were
run again on another; ``node_loss_noticed_s``: how long it took until the platform knew of each loss.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import httpx
import jwt

from mhs_ray.slides.demo import make_demo_slide
from tests.chaos.small_disk import MIN_FREE, SmallDisk, fill_disk
from tests.chaos.worker_node import WorkerNode, lose_node, not_moved
from tests.e2e.platform.clients import SMALL, Client
from tests.e2e.platform.harness import ENDED, HOST, Platform, mounts_below, processes
from tests.e2e.platform.slide_host import SlideHost, slide_host
from tests.engines_fixtures import _unmount_below, private_podman, small_rootfs
from tests.integration.outages.postgres import Pg
from tests.techcyte_server import FakeTechcyte, Fault, fake_techcyte

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_DOCKERFILE = (
    f"FROM {SMALL}\nENV PYTHONHOME=/usr/local PYTHONDONTWRITEBYTECODE=1\nWORKDIR /app\n"
    'COPY model.py /app/main.py\nENTRYPOINT ["python3", "main.py"]\n'
)
PLATFORM = ("failed", "platform")
# What a job may end as, by what was asked; a platform that ran out of tries is the platform's failure on each.
ENDS: dict[str, set[tuple[str, str | None]]] = {
    "post": {("succeeded", None), PLATFORM},
    "twice": {("succeeded", None), PLATFORM},
    "crash": {("failed", "model"), PLATFORM},
    "silent": {("failed", "model"), PLATFORM},
    "expired": {("failed", "input"), PLATFORM},
    "ended": {("failed", "input")},
    "short": {("failed", "input"), PLATFORM},
}


def say(text: str) -> None:
    """Tell progress on stderr."""
    print(f"{datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


@dataclass
class Chaos:
    """One run. faults: how often each was done."""

    platform: Platform
    techcyte: FakeTechcyte
    slides: SlideHost
    rng: random.Random
    database: Pg | None = None
    disk: SmallDisk | None = None
    node: WorkerNode | None = None
    faults: Counter[str] = field(default_factory=Counter)
    asked: dict[int, str] = field(default_factory=dict)  # job → what was asked of it
    bodies: list[dict[str, Any]] = field(default_factory=list)
    cancelled: set[int] = field(default_factory=set)
    moved: dict[int, tuple[int, str]] = field(default_factory=dict)  # job → attempt and node that were lost under it
    noticed_s: list[float] = field(default_factory=list)
    refused: int = 0
    duplicates_wrong: int = 0
    wrong: list[str] = field(default_factory=list)
    odd: Counter[str] = field(default_factory=Counter)  # answers that were asked for again
    _lock: threading.Lock = field(default_factory=threading.Lock)

    # ------------------------------------------------------------ people

    def call(self, method: str, path: str, body: Any = None, within_s: float = 120) -> httpx.Response:
        """Ask until there is an answer that is not for later, as Techcyte and people do."""
        deadline = time.monotonic() + within_s
        while True:
            try:
                answer = self.platform.api.request(method, path, json=body, timeout=20)
                if answer.status_code < 500 and answer.headers.get("content-type", "").startswith(
                    ("application/", "text/plain; charset")
                ):
                    return answer
                self.odd[f"{answer.status_code} {answer.text[:60]}"] += 1
                if answer.status_code == 507:
                    self.refused += 1
                    if not answer.headers.get("retry-after", "").isdigit():
                        self.wrong.append(f"507 without Retry-After: {method} {path}")
                why = f"{answer.status_code}: {answer.text[:200]}"
            except httpx.HTTPError as error:
                why = type(error).__name__
                self.odd[why] += 1
            assert time.monotonic() < deadline, f"{method} {path}: {why}"
            time.sleep(0.3)

    def body(self, kind: str, number: int) -> dict[str, Any]:
        """Return what Techcyte posts for one task of this kind."""
        end = datetime.now(UTC) + timedelta(hours=2)
        path = {"expired": "/expired/a", "short": "/short/a"}.get(kind, self.rng.choice(["/ok/a", "/ok/a", "/slow/a"]))
        url = self.slides.url(path) + f"&n={number}"
        if kind == "ended":
            url += "&X-Amz-Date=20200101T000000Z&X-Amz-Expires=60"
        return {
            "company_id": "1", "task_id": base64.b64encode(f"task:{number}".encode()).decode(),
            "case_id": base64.b64encode(f"humanCase:{number}".encode()).decode(), "scans": {str(number): url},
            "model_name": kind if kind in ("twice", "crash", "silent") else "post",
            "jwt_token": jwt.encode({"exp": end, "task": number}, "k" * 32, "HS256"),
        }  # fmt: skip

    def submit(self, number: int) -> None:
        kind = self.rng.choices(list(ENDS), [10, 2, 2, 1, 1, 1, 1])[0]
        body = self.body(kind, number)
        answer = self.call("POST", "/webhook", body)
        assert answer.status_code in (200, 201), f"{answer.status_code} {answer.text[:500]}"
        self.accept(body, kind, answer)

    def accept(self, body: dict[str, Any], kind: str, answer: httpx.Response) -> None:
        """Hold the platform to what it promised."""
        [job] = answer.json()["job_ids"]
        with self._lock:
            self.asked[job] = kind
            self.bodies.append(body)

    def duplicates(self) -> None:
        """Techcyte asks for the same task five times at once."""
        with self._lock:
            body = self.rng.choice(self.bodies) if self.bodies else None
        if body is None:
            return
        with ThreadPoolExecutor(5) as pool:
            answers = list(pool.map(lambda _: self.call("POST", "/webhook", body), range(5)))
        for answer in answers:
            assert answer.status_code == 200, f"{answer.status_code} {answer.text}"
        if len({tuple(a.json()["job_ids"]) for a in answers}) != 1:
            self.duplicates_wrong += 1

    def cancel_storm(self) -> None:
        with self._lock:
            jobs = self.rng.sample(sorted(self.asked), min(3, len(self.asked)))
        for job in jobs:
            answer = self.call("POST", f"/v1/jobs/{job}/cancel")
            if answer.status_code == 200:
                self.cancelled.add(job)
            else:
                assert answer.status_code == 409, answer.text

    # ------------------------------------------------------------ parts that die

    def kill(self, *words: str) -> bool:
        """Kill one process of the platform whose command line has one of these words."""
        found = [
            pid
            for pid, command in processes(
                [f"MHS_HOME={self.platform.home}", f" {self.platform.home}/registry/"]
            ).items()
            if any(w in command for w in words)
        ]
        if not found:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.rng.choice(sorted(found)), signal.SIGKILL)
        return True

    def kill_engine_process(self) -> bool:
        """Kill what watches over a model's container for the engine: its conmon, on whichever node."""
        ours = re.compile(rf"conmon .* -n mhs-{self.platform.name}-\d+-\d+ ")
        found: list[int] = []
        deadline = time.monotonic() + 10  # most of a job's life on a busy machine is before its container
        while not found and time.monotonic() < deadline:
            found = [p for p, command in processes([f"mhs-{self.platform.name}-"]).items() if ours.search(command)]
        if found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.rng.choice(sorted(found)), signal.SIGKILL)
        return bool(found)

    def restart_database(self) -> bool:
        if self.database is None:
            return False
        self.database.stop(self.rng.choice([signal.SIGINT, signal.SIGQUIT]))
        time.sleep(self.rng.uniform(0, 3))
        self.database.start()
        return True

    def done(self, name: str, work: Callable[[], object]) -> None:
        try:
            if work() is not False:
                self.faults[name] += 1
                say(f"fault: {name}")
        except AssertionError as error:  # an answer that must not be
            self.wrong.append(f"{name}: {error}")

    def nemesis(self, pause_s: tuple[float, float], ended: threading.Event, only: int | None = None) -> None:
        """Do faults until told to end; each kind once before any comes twice."""
        kinds: list[tuple[str, Callable[[], object]]] = [
            ("dispatcher killed", lambda: self.kill("ray::DispatcherShell", "ray::mhs dispatcher")),
            ("worker killed", lambda: self.kill("ray::Attempt", "ray::job ")),
            ("API replica killed", lambda: self.kill("ray::ServeReplica:mhs:api")),
            ("registry killed", lambda: self.kill("docker-registry")),
            ("blob server killed", lambda: self.kill("mhs_ray.store.blobs.server")),
            ("container's monitor killed", self.kill_engine_process),
            ("cancel storm", self.cancel_storm),
            ("same task five times at once", self.duplicates),
        ]
        if self.database is not None:
            kinds.append(("database restarted", self.restart_database))
        bag = self.rng.sample(kinds, len(kinds))
        # These two first, while there is much to do: work that is posted to a full disk, and jobs on the node.
        if (node := self.node) is not None:
            kinds.append(("worker node killed", lambda: lose_node(self, node)))
            bag.append(kinds[-1])
        if (disk := self.disk) is not None:
            kinds.append(("disk full", lambda: fill_disk(self, disk)))
            bag.append(kinds[-1])
        self.faults.update(dict.fromkeys((name for name, _ in kinds), 0))  # one that never came is to be seen
        while not ended.wait(self.rng.uniform(*pause_s)):
            if not bag:
                bag = self.rng.sample(kinds, len(kinds))
            self.done(*bag.pop())

    def techcyte_fault(self) -> Fault:
        fault: Fault = self.rng.choice(["ok", "ok", *get_args(Fault)])
        if fault != "ok":
            self.faults[f"Techcyte: {fault}"] += 1
        return fault

    # ------------------------------------------------------------ the reckoning

    def everyone(self) -> dict[int, Any]:
        jobs: dict[int, Any] = {}
        cursor = None
        while True:
            answer = self.call("GET", "/v1/jobs?limit=500" + (f"&cursor={cursor}" if cursor else ""))
            assert answer.status_code == 200, f"{answer.status_code} {answer.text}"
            page = answer.json()
            jobs |= {j["id"]: j for j in page["items"]}
            cursor = page["next_cursor"]
            if cursor is None:
                return jobs

    def settle_deliveries(self, within_s: float) -> list[Any]:
        """Let the outbox run empty; a person sends what was refused and looks at what was parked."""
        self.techcyte.faults = lambda: "ok"
        deadline = time.monotonic() + within_s
        while True:
            items = self.call("GET", "/v1/deliveries?limit=500").json()["items"]
            for d in items:
                if d["state"] == "refused":
                    self.call("POST", f"/v1/deliveries/{d['id']}/retry")
                elif d["state"] == "parked":
                    there = self.techcyte.times()[(d["task_id"], d["scan_id"])]
                    self.call("POST", f"/v1/deliveries/{d['id']}/{'discard' if there else 'retry'}")
            if all(d["state"] in ("delivered", "discarded") for d in items) or time.monotonic() > deadline:
                return list(items)
            time.sleep(0.5)

    def orphans(self) -> list[str]:
        node = self.platform.home / "node"
        folders = [str(p) for part in ("sandboxes", "work") if (node / part).is_dir() for p in (node / part).iterdir()]
        mounts = [m for m in mounts_below(self.platform.home) if "/sandboxes/" in m or "/work/" in m]
        there = self.node.left() if self.node is not None else []
        return [*self.platform.containers(f"mhs-{self.platform.name}-"), *folders, *mounts, *there]

    def misjudged(self, jobs: dict[int, Any]) -> list[str]:
        wrong = []
        for job, kind in self.asked.items():
            found = jobs.get(job)
            if found is None:
                continue
            end = (found["state"], found["failure"] and found["failure"]["failure_class"])
            allowed = {("cancelled", None)} if job in self.cancelled else ENDS[kind]
            if end not in allowed:
                said = self.call("GET", f"/v1/jobs/{job}/log?timestamps=false").text if end[0] == "failed" else ""
                wrong.append(
                    f"job {job} ({kind}): {end} {found['failure'] and found['failure']['cause'][:200]}\n{said}"
                )
        return wrong

    def run(self, jobs: int, pause_s: tuple[float, float], within_s: float) -> dict[str, Any]:
        """Submit, break, wait, and count."""
        ended = threading.Event()
        self.techcyte.faults = self.techcyte_fault
        with ThreadPoolExecutor(4) as people:
            work = [people.submit(self.submit, 1000 + i) for i in range(jobs)]
            nemesis = threading.Thread(target=self.nemesis, args=(pause_s, ended))
            nemesis.start()
            try:
                for each in work:
                    each.result()
                say(f"{len(self.asked)} jobs are accepted")
                deadline = time.monotonic() + within_s
                while time.monotonic() < deadline:
                    found = self.everyone()
                    open_ = [j for j, job in found.items() if job["state"] not in ENDED]
                    if len(open_) <= len(found) * 0.1:
                        break
                    time.sleep(1)
            finally:
                ended.set()
                nemesis.join()
        say("no more faults; the rest is to end")
        found = self.everyone()
        deadline = time.monotonic() + within_s
        while any(j["state"] not in ENDED for j in found.values()) and time.monotonic() < deadline:
            time.sleep(1)
            found = self.everyone()
        deliveries = self.settle_deliveries(60)
        deadline = time.monotonic() + 90
        while (left := self.orphans()) and time.monotonic() < deadline:
            time.sleep(1)
        times = self.techcyte.times()
        ends = sum(found[j]["state"] in ENDED for j in self.asked if j in found)
        elsewhere, not_again = not_moved(self)
        wrong = [*self.wrong, *self.misjudged(found), *not_again]
        for line in (*wrong, *left):
            say(line)
        say(f"answers that were asked for again: {dict(self.odd)}")
        stuck = [f"{j['id']} {j['state']}" for j in found.values() if j["state"] not in ENDED]
        if stuck:
            say(f"not ended: {stuck}")
        return {
            "accepted": len(self.asked),
            "ended": ends,
            "lost": len(self.asked) - ends + len(set(found) - set(self.asked)) + self.duplicates_wrong,
            "delivered_twice": sum(n > 1 for n in times.values()),
            "orphans": len(left),
            "faults": dict(sorted(self.faults.items())),
            "undelivered": sum(times[(d["task_id"], d["scan_id"])] == 0 for d in deliveries),
            "misjudged": len(wrong),
            "refused": self.refused,
            "ran_elsewhere": elsewhere,
            "node_loss_noticed_s": self.noticed_s,
            "states": dict(Counter(j["state"] for j in found.values())),
        }


@contextlib.contextmanager
def stage(seed: int, *, postgresql: bool, worker_node: bool) -> Iterator[Chaos]:
    """Start the platform, Techcyte's side and a host of slides; push the model; end it all.

    worker_node: have a second raylet, with more GPUs, that is lost too.
    """
    folder = Path(tempfile.mkdtemp(prefix="mc-", dir="/tmp"))
    folder.chmod(0o711)
    storage = folder / "storage.conf"
    storage.write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/cs/r"\nrunroot = "{folder}/cs/x"\n')
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(_unmount_below, folder)
        database = None
        if postgresql:
            (folder / "pg").mkdir()
            database = Pg(folder / "pg")
            database.start()
            stack.callback(database.stop)
        techcyte = stack.enter_context(fake_techcyte(hang_s=2))
        slides = stack.enter_context(slide_host())
        slide = folder / "slide.svs"
        make_demo_slide(slide, 1024, 1024)
        slides.files["a"] = slide.read_bytes()
        disk = SmallDisk(folder / "disk")
        settings = {
            "MHS_ENGINE": "podman", "MHS_HOST": HOST, "MHS_SLIDES__ALLOW_PRIVATE": "true",
            "MHS_CLUSTER__DECLARED_GPUS": "3", "MHS_CLUSTER__MAX_WAITING": "3", "MHS_JOBS__STOP_GRACE": "PT1S",
            "MHS_JOBS__BACKOFF": "PT0.5S", "MHS_JOBS__PREPARE_LIMIT": "PT30S", "MHS_BLOBS__MIN_FREE": MIN_FREE,
            "MHS_BLOBS__FOLDER": str(folder / "disk" / "blobs"),
            "MHS_TECHCYTE__BASE_URL": techcyte.url, "MHS_TECHCYTE__TIMEOUT": "PT1S", "MHS_TECHCYTE__SETTLE": "PT4S",
            "MHS_TECHCYTE__BACKOFF": "PT0.3S", "CONTAINERS_STORAGE_CONF": str(storage),
        }  # fmt: skip
        if database is not None:
            settings["MHS_DATABASE_URL"] = f"postgresql://mhs@/postgres?host={database.folder}"
        cli = Client("podman", ("podman",), {"PATH": _PATH, "HOME": str(folder), **settings})
        platform = Platform("podman", folder / "h", cli, settings)
        stack.callback(cli.run, "rmi", "--force", "--all")
        stack.callback(cli.run, "rm", "--force", "--all", "--time", "0")
        node = None
        if worker_node:
            node = WorkerNode(platform, folder)
            stack.callback(node.clear)
        stack.callback(platform.down)
        platform.up()
        say(f"the platform is up in {platform.home}")
        if node is not None:
            node.start()
            say(f"a worker node joined: {node.name}")
        image = _push(platform, folder)
        for kind in ("post", "twice", "crash", "silent"):
            platform.algorithm(image, kind, env=[{"name": "BEHAVIOUR", "value": kind}])
        yield Chaos(platform, techcyte, slides, random.Random(seed), database, disk, node)


def _push(platform: Platform, folder: Path) -> int:
    context = folder / "context"
    context.mkdir()
    shutil.copy(Path(__file__).with_name("model.py"), context)
    (context / "Dockerfile").write_text(_DOCKERFILE)
    env = {"PATH": _PATH, "HOME": str(folder), "REGISTRY_AUTH_FILE": str(folder / "auth.json")}
    with private_podman() as words:
        client = Client("podman", ("podman", *words), env)
        client.ok("import", "--quiet", str(small_rootfs(folder)), SMALL)
        image = int(platform.post("/v1/images", {"name": "Chaos"})["id"])
        access = platform.instructions(image)
        target = f"{access['registry']}/{access['repository']}:{access['tag']}"
        client.ok("build", "--isolation", "chroot", "-t", "chaos", str(context))
        user, password = access.get("username", "AWS"), access["password"]
        client.ok("login", "--tls-verify=false", "-u", user, "--password-stdin", target.split("/")[0], stdin=password)
        client.ok("push", "--quiet", "--tls-verify=false", "chaos", f"docker://{target}")
    found = platform.image(image)
    assert found["status"] == "uploaded", found
    return image


def main() -> int:
    """Run what the arguments say; 0 only when no kind of fault lost, doubled, left or misjudged anything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sqlite", action="store_true", help="SQLite instead of PostgreSQL, which is restarted too")
    parser.add_argument("--minutes", type=float, default=25)
    args = parser.parse_args()
    began = time.monotonic()
    with stage(args.seed, postgresql=not args.sqlite, worker_node=True) as chaos:
        told = chaos.run(args.jobs, (1.0, 5.0), args.minutes * 60)
    never = [name for name, times in told["faults"].items() if not times]
    if not told["ran_elsewhere"]:
        never.append("a node lost with a job that had to run again")
    if never:
        say(f"faults that never came: {', '.join(never)}; ask for more jobs")
    print(json.dumps({**told, "seed": args.seed, "seconds": round(time.monotonic() - began, 1)}))
    good = (
        told["accepted"] == told["ended"]
        and not never
        and not any(told[k] for k in ("lost", "delivered_twice", "orphans", "undelivered", "misjudged"))
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
