"""A warm container's host and the attempts that lease it, on an engine of plain processes and a sandbox of nothing.

What real engines and the real sandbox do with it is in tests/e2e/platform/test_warm.py.
"""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mhs_ray import templates
from mhs_ray.attempt import warm_host, warm_lease
from mhs_ray.attempt.order import AttemptOrder
from mhs_ray.attempt.runner import Node
from mhs_ray.attempt.warm_host import CONTAINER_SOCKET, WarmHost
from mhs_ray.attempt.warm_lease import Lease, end_others, lease
from mhs_ray.attempt.warm_order import WarmOrder, live_hosts, warm_key, warm_of
from mhs_ray.domain.env import EnvVar, check_env
from mhs_ray.domain.models import ImageRef
from mhs_ray.domain.sections import JobSettings
from mhs_ray.domain.warm import SOCKET_VARIABLE, Warm, parse_warm
from mhs_ray.ports import ContainerSpec, ContainerStatus, RegistryCredential
from mhs_ray.slides.cache import SlideSource

CLIENT = Path(templates.__file__).parent / "warm"
MODEL = """
import os, sys, time
from mhs_warm import scans
print("loading", flush=True)
for n, scan in enumerate(scans(), 1):
    with scan:
        print("scan", n, os.environ["SCAN_ID"], os.environ["SCAN_URL"], flush=True)
        what = os.environ["SCAN_ID"]
        if what == "raise": raise ValueError("no cells")
        if what == "code": sys.exit(9)
        if what == "die": os._exit(7)
        while what == "wait": time.sleep(0.02)
    time.sleep(0.25)
    print("in between", flush=True)
"""
_ONCE = "print('once, and never asked', flush=True)"


class Processes:
    """An engine whose containers are plain processes."""

    name = "processes"

    def __init__(self, work: Callable[[], Path], program: str) -> None:
        self._work, self.program = work, program
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.started = 0

    def run(self, spec: ContainerSpec, on_output: Any, on_started: Any) -> None:
        env = {**spec.env, SOCKET_VARIABLE: str(self._work() / spec.name / "warm" / CONTAINER_SOCKET)}
        process = subprocess.Popen(
            [sys.executable, "-c", self.program], env={**env, "PYTHONPATH": str(CLIENT)}, stdout=subprocess.PIPE
        )
        self.running[spec.name] = process
        self.started += 1
        on_started(ContainerStatus("i", spec.name, True, None, False, process.pid, {}, datetime.now(UTC)))
        assert process.stdout is not None
        for line in process.stdout:
            on_output("stdout", line)
        process.wait()

    def inspect(self, name: str) -> ContainerStatus:
        code = self.running[name].wait(10)
        return ContainerStatus("i", name, False, code if code >= 0 else 128 - code, False, None, {})

    def stop(self, name: str, grace_s: float) -> None:
        self.running[name].terminate()

    def remove(self, name: str) -> None:
        if name in self.running:
            self.running[name].kill()
            self.running[name].wait(10)


class Nothing:
    """A sandbox of nothing: URLs that say what they stand for, and whether they still do."""

    def __init__(self, *_: Any) -> None:
        self.live: set[str] = set()
        self.env: dict[str, str] = {}
        self.mounts, self.tmpfs, self.network = (), {}, "none"

    def __enter__(self) -> Nothing:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def slide_url(self, path: Path, filename: str, life: float, *, name: str = "slide") -> str:
        self.live.add(name)
        return f"https://slides/{name}?{path.name}"

    def debug_url(self, life: float, *, name: str = "debug") -> str:
        self.live.add(name)
        return f"https://debug/{name}?sig"

    def withdraw(self, name: str) -> None:
        self.live.discard(name)

    def uploaded(self, name: str) -> Path | None:
        return None


def _order(job: int, scan: str = "fine", **changes: Any) -> tuple[AttemptOrder, str]:
    made = AttemptOrder(
        platform="p", job_id=job, attempt=1, task_number=job, scan_number=1, label=f"job {job}",
        image=ImageRef("reg", "trusted/1", "sha256:" + "ab" * 32), pull=RegistryCredential("u", "p"),
        instance_type="g4dn.xlarge", time_limit_s=60, env={"MHS_WARM": "scans=5 idle=2"}, secrets=(),
        host="mhs.internal", jwt_token=f"token {job}", slide=SlideSource(("file:///s",)), slide_name="s", gateway_url="http://gw",
        company_id=1, container_id=1,
    )  # fmt: skip
    return replace(made, **changes), scan


class Ended:
    """How a scan ended as its attempt saw it."""

    def __init__(self, host: Lease, told: list[dict[str, Any]]) -> None:
        self.host, self.nth, self.end = host.name, host.scans + 1, told[-1] if told else {}
        self.out = b"".join(base64.b64decode(t["data"]) for t in told if "out" in t).decode()
        self.started = any("started" in t for t in told)


class Bench:
    """A node on which attempts come one after another."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.engine = Processes(lambda: folder / "work", MODEL)
        self.threads: list[threading.Thread] = []
        self.sandboxes: list[Nothing] = []
        node = SimpleNamespace(
            engine=self.engine, folder=folder, jobs=JobSettings(), pause_image="", direct=(), max_results_bytes=1,
            runtime=None,
        )  # fmt: skip
        self.node = cast("Node", node)
        monkeypatch.setattr(warm_host, "Sandbox", self._sandbox)
        monkeypatch.setattr(warm_lease, "start_host", self._start)

    def _sandbox(self, *arguments: Any) -> Nothing:
        self.sandboxes.append(Nothing(*arguments))
        return self.sandboxes[-1]

    def _start(self, folder: Path, lock: int, order: bytes) -> None:
        import os

        held = os.dup(lock)

        def run() -> None:
            try:
                WarmHost(WarmOrder.load(order), self.node, folder).run()
            finally:
                os.close(held)

        self.threads.append(threading.Thread(target=run, daemon=True))
        self.threads[-1].start()

    def scan(self, job: int, scan: str = "fine", slot: tuple[str, ...] = ("0",), **changes: Any) -> Ended:
        order, _ = _order(job, scan, **changes)
        with ExitStack() as stack:
            host = stack.enter_context(lease(order, Warm(5, 2), self.folder, slot, (), lambda: False))
            return Ended(host, list(host.begin(_message(job, scan))))

    @property
    def hosts(self) -> list[str]:
        return live_hosts(self.folder)

    def none_within(self, seconds: float) -> bool:
        ends = time.monotonic() + seconds
        while self.hosts and time.monotonic() < ends:
            time.sleep(0.05)
        return not self.hosts


def _message(job: int, scan: str) -> dict[str, Any]:
    env = {"HOST": "mhs.internal", "TASK_ID": str(job), "SCAN_ID": scan, "JWT_TOKEN": f"token {job}"}
    return {"slide": f"/slides/{job}.svs", "packed": None, "name": "s", "life_s": 60, "env": env}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    folder = Path(tempfile.mkdtemp(prefix="mw-"))  # a socket's path is short
    made = Bench(folder, monkeypatch)
    yield made
    end_others(folder, ("0", "1"))
    for thread in made.threads:
        thread.join(10)
    shutil.rmtree(folder, ignore_errors=True)


def test_one_life_takes_many_scans_and_each_has_its_own_output_and_urls(bench: Bench) -> None:
    first = bench.scan(1)
    time.sleep(0.5)
    second = bench.scan(2)
    assert bench.engine.started == 1
    assert (first.host, first.nth, second.host, second.nth) == (second.host, 1, first.host, 2)
    assert first.started and second.started  # noqa: PT018
    assert first.out.splitlines() == ["loading", "scan 1 fine https://slides/slide-1?1.svs"]
    assert second.out.splitlines() == ["scan 2 fine https://slides/slide-2?2.svs"]
    assert second.end["exit_code"] == 0
    assert second.end["warm"] is True
    assert second.end["left_out"] == len("in between\n"), "what was said between two scans is nobody's"
    assert bench.sandboxes[0].live == set(), "no URL outlives its scan"


def test_a_scan_fails_alone_by_an_error_or_an_exit_code(bench: Bench) -> None:
    raised, code, fine = bench.scan(1, "raise"), bench.scan(2, "code"), bench.scan(3)
    assert (raised.end["exit_code"], raised.end["message"]) == (1, "ValueError: no cells")
    assert code.end["exit_code"] == 9
    assert (fine.end["exit_code"], fine.nth, bench.engine.started) == (0, 3, 1)


def test_a_container_that_dies_fails_the_scan_that_it_had_and_no_other(bench: Bench) -> None:
    bench.scan(1)
    died = bench.scan(2, "die")
    assert (died.end["exit_code"], died.end["warm"]) == (7, False)
    after = bench.scan(3)
    assert (after.end["exit_code"], after.nth, bench.engine.started) == (0, 1, 2)


def test_an_attempt_that_goes_away_takes_the_container_with_it(bench: Bench) -> None:
    order, _ = _order(1)
    with lease(order, Warm(), bench.folder, ("0",), (), lambda: False) as host:
        told = host.begin(_message(1, "wait"))
        while "started" not in next(told):
            pass
    assert bench.none_within(10)
    (process,) = bench.engine.running.values()
    assert process.poll() is not None
    assert bench.scan(2).nth == 1


def test_a_scan_that_is_stopped_ends_the_container(bench: Bench) -> None:
    order, _ = _order(1)
    with lease(order, Warm(), bench.folder, ("0",), (), lambda: False) as host:
        told = host.begin(_message(1, "wait"))
        while "started" not in next(told):
            pass
        host.stop(1.0)
        (end,) = [t for t in told if "exit_code" in t]
    assert (end["exit_code"], end["warm"]) == (143, False)
    assert bench.none_within(10)


@pytest.mark.parametrize(
    "change",
    [
        {"company_id": 2}, {"container_id": 2}, {"instance_type": "g5.2xlarge"}, {"env": {"MHS_WARM": "1", "T": "2"}},
        {"image": ImageRef("reg", "trusted/1", "sha256:" + "cd" * 32)}, {"host": "other.example"}, {"time_limit_s": 9},
    ],
    ids=lambda c: next(iter(c)),
)  # fmt: skip
def test_nothing_is_shared_unless_all_is_the_same(bench: Bench, change: dict[str, Any]) -> None:
    ours, _ = _order(1)
    assert warm_key(replace(ours, **change)) != warm_key(ours)
    first, other = bench.scan(1), bench.scan(2, **change)
    assert other.host != first.host
    assert bench.hosts == [other.host], "the one that waited on this GPU ended first"


def test_another_gpu_has_a_container_of_its_own_and_disturbs_none(bench: Bench) -> None:
    zero, one = bench.scan(1), bench.scan(2, slot=("1",))
    assert sorted(bench.hosts) == sorted([zero.host, one.host])
    end_others(bench.folder, ("0",))
    assert bench.hosts == [one.host]


def test_its_life_ends_by_scans_and_by_idleness(bench: Bench) -> None:
    nth = [bench.scan(n).nth for n in range(1, 7)]
    assert nth == [1, 2, 3, 4, 5, 1]
    assert bench.none_within(10), "no scan came for two seconds"


def test_a_container_that_never_asks_is_one_for_one_scan(bench: Bench) -> None:
    bench.engine.program = _ONCE
    ended = bench.scan(1)
    assert (ended.out, ended.end["exit_code"], ended.end["warm"]) == ("once, and never asked\n", 0, False)
    assert bench.scan(2).nth == 1


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("1", Warm()), ("yes", Warm()), ("0", None), ("scans=7", Warm(7, 300)), ("scans=7, idle=9", Warm(7, 9)),
        ("idle=60 scans=2", Warm(2, 60)),
    ],
)  # fmt: skip
def test_the_variable_says_how_long_a_container_lives(text: str, made: Warm | None) -> None:
    assert parse_warm(text) == made


@pytest.mark.parametrize("text", ["", "maybe", "scans=0", "idle=9999", "scans=2 scans=3", "scans=x", "lives=9"])
def test_a_variable_that_says_nothing_is_refused_with_an_example(text: str) -> None:
    (fault,) = check_env([EnvVar("MHS_WARM", text)])
    assert fault.path == "$.env[0].value"
    assert "scans=50 idle=600" in fault.message
    assert check_env([EnvVar("MHS_WARM", "1")]) == []
    assert len(check_env([EnvVar(SOCKET_VARIABLE, "/x")])) == 1


def test_a_container_with_the_tile_feed_is_started_for_each_scan() -> None:
    order, _ = _order(1, env={"MHS_WARM": "1", "MHS_TILES": "size=224"})
    assert warm_of(order) is None
    assert warm_of(_order(1)[0]) == Warm(5, 2)
