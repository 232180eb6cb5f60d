"""One attempt on its node: prepare, run, watch, clean up. Nothing here knows Ray or the database."""

from __future__ import annotations

import base64
import json
import logging
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Final
from urllib.parse import urlsplit

from mhs_ray.attempt.image_room import RemovedImage
from mhs_ray.attempt.logbook import LogWriter
from mhs_ray.attempt.order import AttemptOrder, ContainerExit, Outcome
from mhs_ray.attempt.prepare import failure_of, prepare, slide_files
from mhs_ray.attempt.pulled import PulledImages
from mhs_ray.attempt.tiles import TileFeedProcess, progress_key
from mhs_ray.attempt.warm_lease import Lease, end_others, lease
from mhs_ray.attempt.warm_order import warm_of
from mhs_ray.domain.env import merge_env
from mhs_ray.domain.errors import BlobError, EngineError, ExecError, MhsError
from mhs_ray.domain.instances import INSTANCE_TYPES
from mhs_ray.domain.sections import ImageSettings, JobSettings
from mhs_ray.domain.tile_feed import VARIABLE
from mhs_ray.domain.warm import Warm
from mhs_ray.engines import labels
from mhs_ray.engines.usage import sample
from mhs_ray.ports import BlobStore, ContainerEngine, ContainerSpec, ContainerStatus, Limits
from mhs_ray.sandbox.local import DEFAULT_MAX_BODY
from mhs_ray.sandbox.routes import DirectRoute
from mhs_ray.sandbox.sandbox import Sandbox, SandboxSpec
from mhs_ray.slides.cache import SlideCache

log = logging.getLogger(__name__)

_SAMPLE_S: Final = 1.0
_FIRST_SAMPLE_S: Final = 0.05
_URL_SLACK_S: Final = 3600


def _open() -> None:
    """Let every job start."""


@dataclass(frozen=True)
class Node:
    """What this node brings: engine, slide cache, blobs, folders. name: what people call the node.

    direct: hosts outside that every container may reach. max_results_bytes: what the gateway takes at once.
    gate: raises when no job may start here.
    """

    name: str
    engine: ContainerEngine
    cache: SlideCache
    blobs: BlobStore
    folder: Path  # sandboxes and work files of attempts
    pause_image: str
    jobs: JobSettings
    runtime: str | None = None
    direct: tuple[DirectRoute, ...] = ()
    max_results_bytes: int = DEFAULT_MAX_BODY
    images: ImageSettings = field(default_factory=ImageSettings)
    gate: Callable[[], None] = _open


class AttemptRunner:
    """Runs one order once. `stop` may come from any thread at any time.

    on_started: called once the container's process runs. gpus: device ids that Ray assigned to this attempt. slot: the
    same as Ray counts them, also where there is no device; a warm container waits for scans on its slot.
    """

    def __init__(
        self,
        order: AttemptOrder,
        node: Node,
        *,
        gpus: Sequence[str],
        slot: Sequence[str] = (),
        on_started: Callable[[], None],
        echo: Callable[[str], None],
    ) -> None:
        self._order, self._node, self._gpus, self._slot = order, node, tuple(gpus), tuple(slot)
        self._pulled = PulledImages(node.folder / "images", node.engine)
        self._on_started, self._echo = on_started, echo
        self._stopped, self._timed_out = threading.Event(), threading.Event()
        self._ended = threading.Event()
        self._watch = _Watch()
        self._timings: dict[str, float] = {}
        self._removed: list[RemovedImage] = []
        self._slide_cached: bool | None = None
        self._feed: TileFeedProcess | None = None
        self._slide_sha256: tuple[str, ...] = ()
        self._warm: dict[str, Any] = {}
        self._stop_container: Callable[[], None] = self._stop_own

    def stop(self) -> None:
        """End the attempt; returns at once, `run` returns after the container's grace."""
        self._stopped.set()

    def run(self) -> Outcome:
        """Do all of it; whatever happens the node is as it was before. Never raises."""
        order, start = self._order, monotonic()
        secrets = [order.jwt_token, order.pull.password, *order.secrets, *(_query(u) for u in order.slide.urls)]
        writer = LogWriter(
            self._node.blobs, order.job_id, order.attempt, redact=secrets, max_bytes=self._node.jobs.max_log,
            max_line=self._node.jobs.max_log_line, echo=self._echo,
        )  # fmt: skip
        writer.say(f"{order.label}: attempt {order.attempt} on {self._node.name} by {self._node.engine.name}")
        ended: ContainerExit | None = None
        failure = None
        try:
            warm = warm_of(order) if self._slot else None
            if self._slot and warm is None:
                end_others(self._node.folder, self._slot)
            ended = self._run(writer) if warm is None else self._run_warm(writer, warm)
        except MhsError as error:
            failure = failure_of(error)
        except Exception as error:
            log.exception("job %s attempt %s failed on the node", order.job_id, order.attempt)
            failure = failure_of(error)
        if failure is not None and not self._stopped.is_set():
            writer.say(f"{failure.code}: {failure.cause}")
        try:
            writer.close()
        except BlobError as error:
            log.warning("job %s: the end of its log is not stored: %s", order.job_id, error)
        return Outcome(ended, failure, self._resources(monotonic() - start))

    def _run(self, writer: LogWriter) -> ContainerExit:
        order, node = self._order, self._node
        work = node.folder / "work" / order.container_name
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, work, ignore_errors=True)
            sandbox = Sandbox(
                node.engine,
                SandboxSpec(
                    name=order.container_name,
                    labels=self._labels(labels.ROLE_PAUSE),
                    pause_image=node.pause_image,
                    host=order.host,
                    gateway_url=order.gateway_url,
                    scratch_bytes=node.jobs.scratch,
                    direct=node.direct,
                    ca_bundles=order.ca_bundles,
                    max_debug_bytes=node.jobs.max_debug_file,
                    max_results_bytes=node.max_results_bytes,
                ),
                node.folder / "sandboxes",
                lambda target: writer.say(f"blocked: {target} is not among the hosts that this container may reach"),
            )
            ready = prepare(
                order, node.engine, node.cache, sandbox, stack,
                pulled=self._pulled, images=node.images, gate=node.gate, say=writer.say,
                cancelled=self._stopped.is_set, on_removed=self._removed.append,
            )  # fmt: skip
            self._timings |= ready.timings
            self._slide_cached, self._slide_sha256 = ready.slide.was_cached, ready.slide.sha256
            # Pushed last, so removed first: the model container goes before its network and scratch.
            stack.callback(node.engine.remove, order.container_name)
            file, packed = slide_files(ready.slide, work)
            life = order.time_limit_s + _URL_SLACK_S
            contract = {
                "HOST": order.host,
                "TASK_ID": str(order.task_number),
                "SCAN_ID": str(order.scan_number),
                "SCAN_URL": sandbox.slide_url(file, order.slide_name, life),
                "JWT_TOKEN": order.jwt_token,
                "DEBUG_FILE_UPLOAD_URL": sandbox.debug_url(life),
            }
            if packed is not None:
                contract["SCAN_URL_ZIP"] = sandbox.slide_url(packed, "slide.zip", life, name="slide-zip")
            writer.redact(_query(url) for name, url in contract.items() if name.endswith(("URL", "URL_ZIP")))
            spec = order.env.get(VARIABLE)
            if spec is not None:
                series = file if packed is None else ready.slide.path
                threads = INSTANCE_TYPES[order.instance_type].vcpu
                self._feed = TileFeedProcess(series, spec, work / "tiles", threads, writer.say, self._tell_progress)
                stack.enter_context(self._feed)
            ended = self._start(writer, sandbox, contract)
            if sandbox.debug_file is not None:
                self._keep_debug_file(sandbox.debug_file, writer)
            return ended

    def _run_warm(self, writer: LogWriter, warm: Warm) -> ContainerExit:
        """Have a container that takes many scans do this one; the sandbox is its host's."""
        order, node = self._order, self._node
        work = node.folder / "work" / order.container_name
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, work, ignore_errors=True)
            held = lease(order, warm, node.folder, self._slot, self._gpus, self._stopped.is_set)
            with ThreadPoolExecutor(1, thread_name_prefix="lease") as pool:  # a fresh host takes a moment to open
                leasing = pool.submit(stack.enter_context, held)
                ready = prepare(
                    order, node.engine, node.cache, None, stack,
                    pulled=self._pulled, images=node.images, gate=node.gate, say=writer.say,
                    cancelled=self._stopped.is_set, on_removed=self._removed.append,
                )  # fmt: skip
            host = leasing.result()
            self._warm = {"container": host.name, "scan": host.scans + 1}
            self._timings |= ready.timings
            self._slide_cached, self._slide_sha256 = ready.slide.was_cached, ready.slide.sha256
            file, packed = slide_files(ready.slide, work)
            if self._stopped.is_set():
                raise EngineError(node.engine.name, "start the container", "the job was cancelled")
            grace = node.jobs.stop_grace.total_seconds()
            self._stop_container = lambda: host.stop(grace)
            message = {
                "slide": str(file), "packed": str(packed) if packed else None, "name": order.slide_name,
                "life_s": order.time_limit_s + _URL_SLACK_S,
                "env": {
                    "HOST": order.host, "TASK_ID": str(order.task_number), "SCAN_ID": str(order.scan_number),
                    "JWT_TOKEN": order.jwt_token,
                },
            }  # fmt: skip
            try:
                return self._scan_warm(writer, host, message)
            finally:
                self._ended.set()

    def _scan_warm(self, writer: LogWriter, host: Lease, message: dict[str, Any]) -> ContainerExit:
        asked, engine = monotonic(), self._node.engine.name
        for told in host.begin(message):
            if "out" in told:
                writer.output("stderr" if told["out"] == "stderr" else "stdout", base64.b64decode(told["data"]))
            elif "urls" in told:
                writer.redact(told["urls"])
            elif "denied" in told:
                writer.say(f"blocked: {told['denied']} is not among the hosts that this container may reach")
            elif "started" in told:
                self._timings["start_s"] = round(monotonic() - asked, 3)
                age = f"which has run for {host.age_s:.0f} s" if host.scans else "just started"
                writer.say(f"scan {host.scans + 1} of the warm container {host.name}, {age}, begins")
                self._on_started()
                threading.Thread(
                    target=self._guard, args=(told["started"], host.scans > 0), name="guard", daemon=True
                ).start()
            elif "error" in told:
                kind = ExecError if told["error"] == "exec" else EngineError
                if kind is EngineError:
                    self._pulled.forget(self._order.image)
                raise kind(engine, str(told["operation"]), str(told["detail"]))
            elif "exit_code" in told:
                return self._warm_end(writer, host, told)
        raise EngineError(engine, "run a warm container", f"the host of {host.name} died")

    def _warm_end(self, writer: LogWriter, host: Lease, told: dict[str, Any]) -> ContainerExit:
        self._ended.set()
        self._watch.look()
        if told.get("debug"):
            self._keep_debug_file(Path(told["debug"]), writer)
        if told.get("left_out"):
            writer.say(f"{told['left_out']} bytes that the container wrote between two scans were left out")
        if not told["warm"]:
            writer.say(f"container exited with code {told['exit_code']}")
        elif told["exit_code"]:
            said = str(told.get("message", ""))
            if said and not any(said.splitlines()[0] in line for line in writer.tail[-5:]):
                writer.output("stderr", f"{said}\n".encode())
            writer.say(f"scan {host.scans + 1} of {host.name} failed, as if by exit code {told['exit_code']}")
        else:
            writer.say(f"scan {host.scans + 1} of {host.name} is done; the container waits for the next one")
        return ContainerExit(
            exit_code=int(told["exit_code"]),
            oom_killed=bool(told["oom_killed"]),
            timed_out=self._timed_out.is_set(),
            stopped=self._stopped.is_set(),
            log_tail=tuple(writer.tail),
        )

    def _start(self, writer: LogWriter, sandbox: Sandbox, contract: dict[str, str]) -> ContainerExit:
        order, engine = self._order, self._node.engine
        kind = INSTANCE_TYPES[order.instance_type]
        spec = ContainerSpec(
            name=order.container_name,
            image=order.image,
            env={**merge_env(order.env, contract), **sandbox.env, **(self._feed.env if self._feed else {})},
            labels=self._labels(labels.ROLE_MODEL),
            limits=Limits(cpus=kind.vcpu, memory_bytes=kind.memory_bytes),
            mounts=(*sandbox.mounts, *((self._feed.mount,) if self._feed else ())),
            tmpfs=sandbox.tmpfs,
            network=sandbox.network,
            gpus=self._gpus,
            runtime=self._node.runtime,
        )
        asked = monotonic()

        def on_started(status: ContainerStatus) -> None:
            self._timings["start_s"] = round(monotonic() - asked, 3)
            writer.say("container started")
            self._on_started()
            threading.Thread(target=self._guard, args=(status.pid, False), name="guard", daemon=True).start()

        if self._stopped.is_set():
            raise EngineError(engine.name, "start the container", "the job was cancelled")
        try:
            engine.run(spec, writer.output, on_started)
        except EngineError as error:
            if not isinstance(error, ExecError):
                self._pulled.forget(order.image)  # it may be what is missing
            raise
        finally:
            self._ended.set()
        status = engine.inspect(order.container_name)
        if status is None or status.exit_code is None:
            raise EngineError(engine.name, "tell how the container ended", "it is gone, or has no exit code")
        writer.say(f"container exited with code {status.exit_code}")
        return ContainerExit(
            exit_code=status.exit_code,
            oom_killed=status.oom_killed,
            timed_out=self._timed_out.is_set(),
            stopped=self._stopped.is_set(),
            log_tail=tuple(writer.tail),
        )

    def _stop_own(self) -> None:
        self._node.engine.stop(self._order.container_name, self._node.jobs.stop_grace.total_seconds())

    def _guard(self, pid: int | None, used: bool) -> None:
        """Watch a running container: what it uses, its time limit, and whether somebody wants it stopped."""
        deadline = monotonic() + self._order.time_limit_s
        self._watch.begin(pid, used)
        pause = _FIRST_SAMPLE_S  # often at first: a short container would end unseen
        while not self._ended.is_set():
            if self._stopped.wait(min(pause, max(0.01, deadline - monotonic()))):
                break
            pause = min(_SAMPLE_S, pause * 1.1)
            self._watch.look()
            if monotonic() >= deadline and not self._ended.is_set():
                self._timed_out.set()  # the reason is noted before the stop that it causes
                break
        if not self._ended.is_set():
            with suppress(EngineError):
                self._stop_container()

    def _tell_progress(self, progress: dict[str, Any]) -> None:
        # A full store costs the progress only, and the next telling is seconds away.
        with suppress(BlobError):
            self._node.blobs.put(progress_key(self._order.job_id, self._order.attempt), json.dumps(progress).encode())

    def _keep_debug_file(self, file: Path, writer: LogWriter) -> None:
        key = f"jobs/{self._order.job_id}/attempts/{self._order.attempt}/debug"
        try:
            with file.open("rb") as data:
                stored = self._node.blobs.put(key, data)
            writer.say(f"debug file kept: {stored.size} bytes")
        except (BlobError, OSError) as error:
            writer.say(f"the debug file could not be kept: {error}")

    def _labels(self, role: str) -> dict[str, str]:
        order = self._order
        return {
            labels.PLATFORM: order.platform,
            labels.JOB: str(order.job_id),
            labels.ATTEMPT: str(order.attempt),
            labels.ROLE: role,
        }

    def _resources(self, total_s: float) -> dict[str, Any]:
        series = self._watch.series
        if series:
            key = f"jobs/{self._order.job_id}/attempts/{self._order.attempt}/resources.json"
            with suppress(BlobError):
                self._node.blobs.put(key, json.dumps(series).encode())
        kind = INSTANCE_TYPES[self._order.instance_type]
        return {
            "timings": {**self._timings, "total_s": round(total_s, 3)},
            "cpu_s": self._watch.cpu_s,
            "memory_peak_bytes": self._watch.memory_peak_bytes,
            "memory_limit_bytes": kind.memory_bytes,
            "gpus": list(self._gpus),
            "slide_cached": self._slide_cached,
            "slide_sha256": list(self._slide_sha256),
            **({"tiles": self._feed.progress} if self._feed else {}),
            **({"warm": self._warm} if self._warm else {}),
            **({"images_removed": [[str(r.ref), r.why] for r in self._removed]} if self._removed else {}),
        }


class _Watch:
    """Samples of one container, thinned so that a long run keeps at most some hundred points."""

    _MAX_POINTS = 600

    def __init__(self) -> None:
        self.series: list[tuple[float, float | None, int | None]] = []  # seconds, CPU seconds so far, bytes
        self.cpu_s: float | None = None
        self.memory_peak_bytes: int | None = None
        self._pid: int | None = None
        self._start, self._every, self._next = 0.0, 0.0, 0.0
        self._before: float | None = 0.0  # CPU seconds that were not for this attempt

    def begin(self, pid: int | None, used: bool) -> None:
        """Start to watch the container whose init process is `pid`. used: other scans had it before."""
        self._pid, self._start = pid, monotonic()
        self._before = None if used else 0.0
        self.look()

    def look(self) -> None:
        """Take a sample if the container is still there."""
        usage = sample(self._pid) if self._pid is not None else None
        if usage is None:
            return
        now = monotonic() - self._start
        cpu_s = usage.cpu_s
        if cpu_s is not None:
            if self._before is None:
                self._before = cpu_s
            self.cpu_s = cpu_s = round(cpu_s - self._before, 3)
        known = [b for b in (usage.memory_peak_bytes, usage.memory_bytes, self.memory_peak_bytes) if b is not None]
        self.memory_peak_bytes = max(known, default=None)
        if now >= self._next:
            self.series.append((round(now, 1), cpu_s, usage.memory_bytes))
            if len(self.series) >= self._MAX_POINTS:
                self.series = self.series[::2]
                self._every = 2 * (self._every or _SAMPLE_S)
            self._next = now + self._every


def _query(url: str) -> str:
    return urlsplit(url).query
