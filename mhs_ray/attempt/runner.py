"""One attempt on its node: prepare, run, watch, clean up. Nothing here knows Ray or the database."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Final
from urllib.parse import urlsplit

from mhs_ray.attempt.logbook import LogWriter
from mhs_ray.attempt.order import AttemptOrder, ContainerExit, Outcome
from mhs_ray.attempt.prepare import failure_of, prepare, slide_files
from mhs_ray.attempt.pulled import PulledImages
from mhs_ray.attempt.tiles import TileFeedProcess, progress_key
from mhs_ray.domain.env import merge_env
from mhs_ray.domain.errors import BlobError, EngineError, ExecError, MhsError
from mhs_ray.domain.instances import INSTANCE_TYPES
from mhs_ray.domain.settings import JobSettings
from mhs_ray.domain.tile_feed import VARIABLE
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
    gate: Callable[[], None] = _open


class AttemptRunner:
    """Runs one order once. `stop` may come from any thread at any time.

    on_started: called once the container's process runs. gpus: device ids that Ray assigned to this attempt.
    """

    def __init__(
        self,
        order: AttemptOrder,
        node: Node,
        *,
        gpus: Sequence[str],
        on_started: Callable[[], None],
        echo: Callable[[str], None],
    ) -> None:
        self._order, self._node, self._gpus = order, node, tuple(gpus)
        self._pulled = PulledImages(node.folder / "images", node.engine)
        self._on_started, self._echo = on_started, echo
        self._stopped, self._timed_out = threading.Event(), threading.Event()
        self._ended = threading.Event()
        self._watch = _Watch()
        self._timings: dict[str, float] = {}
        self._slide_cached: bool | None = None
        self._feed: TileFeedProcess | None = None
        self._slide_sha256: tuple[str, ...] = ()

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
            ended = self._run(writer)
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
                pulled=self._pulled, gate=node.gate, say=writer.say, cancelled=self._stopped.is_set,
            )  # fmt: skip
            self._timings |= ready.timings
            self._slide_cached = ready.slide.was_cached
            self._slide_sha256 = ready.slide.sha256
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
            self._keep_debug_file(sandbox, writer)
            return ended

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
            network_of=sandbox.network_of,
            gpus=self._gpus,
            runtime=self._node.runtime,
        )
        asked = monotonic()

        def on_started(status: ContainerStatus) -> None:
            self._timings["start_s"] = round(monotonic() - asked, 3)
            writer.say("container started")
            self._on_started()
            threading.Thread(target=self._guard, args=(status,), name="guard", daemon=True).start()

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

    def _guard(self, status: ContainerStatus) -> None:
        """Watch a running container: what it uses, its time limit, and whether somebody wants it stopped."""
        deadline = monotonic() + self._order.time_limit_s
        self._watch.begin(status.pid)
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
                self._node.engine.stop(self._order.container_name, self._node.jobs.stop_grace.total_seconds())

    def _tell_progress(self, progress: dict[str, Any]) -> None:
        # A full store costs the progress only, and the next telling is seconds away.
        with suppress(BlobError):
            self._node.blobs.put(progress_key(self._order.job_id, self._order.attempt), json.dumps(progress).encode())

    def _keep_debug_file(self, sandbox: Sandbox, writer: LogWriter) -> None:
        file = sandbox.debug_file
        if file is None:
            return
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

    def begin(self, pid: int | None) -> None:
        """Start to watch the container whose init process is `pid`."""
        self._pid, self._start = pid, monotonic()
        self.look()

    def look(self) -> None:
        """Take a sample if the container is still there."""
        usage = sample(self._pid) if self._pid is not None else None
        if usage is None:
            return
        now = monotonic() - self._start
        self.cpu_s = usage.cpu_s if usage.cpu_s is not None else self.cpu_s
        known = [b for b in (usage.memory_peak_bytes, usage.memory_bytes, self.memory_peak_bytes) if b is not None]
        self.memory_peak_bytes = max(known, default=None)
        if now >= self._next:
            self.series.append((round(now, 1), usage.cpu_s, usage.memory_bytes))
            if len(self.series) >= self._MAX_POINTS:
                self.series = self.series[::2]
                self._every = 2 * (self._every or _SAMPLE_S)
            self._next = now + self._every


def _query(url: str) -> str:
    return urlsplit(url).query
