"""Everything around a hostile container that is real but Ray: API, database, attempt runner, engine, slide."""

from __future__ import annotations

import contextlib
import socket
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import tifffile
import uvicorn

from api.app import Peers, build_app
from mhs_ray.attempt.logbook import read_log
from mhs_ray.attempt.order import AttemptOrder, Outcome
from mhs_ray.attempt.runner import AttemptRunner, Node
from mhs_ray.auth.tokens import AttemptIdentity
from mhs_ray.domain.errors import NotFoundError
from mhs_ray.domain.failures import Failure
from mhs_ray.domain.models import ImageRef, Job
from mhs_ray.domain.sections import ApiSettings, JobSettings
from mhs_ray.domain.settings import Settings
from mhs_ray.domain.states import JobEvent
from mhs_ray.domain.verdict import judge
from mhs_ray.engines import labels
from mhs_ray.engines.docker import DockerEngine
from mhs_ray.engines.pause import ensure_pause_image
from mhs_ray.engines.podman import PodmanEngine
from mhs_ray.platform.endpoints import Endpoints
from mhs_ray.ports import RegistryCredential
from mhs_ray.sandbox.scratch import mounts_below
from mhs_ray.services.core import Core, build_core
from mhs_ray.slides.cache import SlideCache, SlideSource
from mhs_ray.slides.url_guard import UrlPolicy
from mhs_ray.store.sql.results import Results
from tests.store_fixtures import World

MIB = 1 << 20
HOST = "app.example.com"
MEMORY = 192 * MIB
SCRATCH = 48 * MIB
JOBS = JobSettings(scratch=SCRATCH, max_log=MIB, max_debug_file=4 * MIB, stop_grace="PT1S")
MAX_RESULTS = 160 * MIB

PRELUDE = textwrap.dedent(
    """
    import json, os, signal, socket, ssl, sys, threading, time, urllib.error, urllib.request
    say = lambda *words: print(*words, flush=True)
    def call(method, path, body=None, token=None, host=None, headers=None):
        url = f"https://api.{host or os.environ['HOST']}{path}"
        head = {"Authorization": "Bearer " + (token or os.environ["JWT_TOKEN"]), "Content-Type": "application/json"}
        data = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
        try:
            return urllib.request.urlopen(urllib.request.Request(url, data, {**head, **(headers or {})}, method=method), timeout=120).status
        except urllib.error.HTTPError as error:
            return error.code
    def post(results=None, **options):
        scan = {"scanId": os.environ["SCAN_ID"], "results": results or {"summary": "fine"}}
        return call("POST", "/api/v3/external/results/" + os.environ["TASK_ID"], {"scanResults": [scan]}, **options)
    """
)  # fmt: skip
"""What every hostile program has at hand; posting is what an honest one does."""


class _Present:
    """A real engine whose images are there already: pulling is tested elsewhere."""

    def __init__(self, engine: PodmanEngine | DockerEngine, image: str) -> None:
        self._engine, self._image = engine, image

    def pull(self, _image: ImageRef, _credential: RegistryCredential | None, _cancelled: Any = None) -> None:
        pass

    def run(self, spec: Any, on_output: Any, on_started: Any) -> None:
        image = self._image if isinstance(spec.image, ImageRef) else spec.image
        self._engine.run(replace(spec, image=image), on_output, on_started)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


@dataclass(frozen=True)
class Ended:
    """How a hostile container's attempt ended. log: what people read. failure: None when the job succeeded."""

    order: AttemptOrder
    outcome: Outcome
    failure: Failure | None
    log: list[str]
    took_s: float

    @property
    def code(self) -> str | None:
        return None if self.failure is None else str(self.failure.code)

    @property
    def text(self) -> str:
        return "\n".join(self.log)

    def said(self, prefix: str) -> list[str]:
        """Return what follows `prefix` in each line of the log that begins with it."""
        return [line.removeprefix(prefix).strip() for line in self.log if line.startswith(prefix)]


class Arena:
    """Runs hostile programs one after the other and looks each time whether anything of them is left."""

    def __init__(self, folder: Path, engine: PodmanEngine | DockerEngine, image: str) -> None:
        self.folder, self.engine, self._image = folder, engine, image
        self._ids = iter(range(1, 10_000))
        slide = folder / "slide.tiff"
        tifffile.imwrite(slide, np.full((512, 512, 3), 200, np.uint8), tile=(256, 256), photometric="rgb")
        self._slide = SlideSource((slide.as_uri(),))
        self.settings = Settings(
            home=folder / "home",
            jobs=JOBS,
            api=ApiSettings(max_results_body=MAX_RESULTS),
        )
        self.port = _free_port()
        nowhere = "http://127.0.0.1:1"
        self.endpoints = Endpoints(f"http://127.0.0.1:{self.port}", nowhere, "127.0.0.1:1", "127.0.0.1:1", nowhere)
        self.core: Core = build_core(self.settings, self.endpoints)
        self.world = World(self.core.db)
        self.company = self.world.company("hostile")
        self.algorithm = self.world.algorithm(self.company)
        node = folder / "node"
        node.mkdir(mode=0o711)
        (node / "work").mkdir()
        self.node = Node(
            name="here",
            engine=cast("PodmanEngine", _Present(engine, image)),
            cache=SlideCache(folder / "slides", policy=UrlPolicy(file_roots=(folder,))),
            blobs=self.core.blobs,
            folder=node,
            pause_image=ensure_pause_image(engine),
            jobs=JOBS,
            max_results_bytes=MAX_RESULTS,
        )
        self.echoed: list[str] = []

    @contextlib.contextmanager
    def api(self) -> Iterator[None]:
        """Serve the real application while the block runs."""

        async def ping() -> str:
            return "ok"

        def make() -> tuple[Core, Peers]:
            return self.core, Peers(lambda: None, lambda _images: None, ping)

        config = uvicorn.Config(
            build_app(make),
            host="127.0.0.1",
            port=self.port,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=2,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the API did not start"
            time.sleep(0.02)
        yield
        server.should_exit = True
        thread.join(20)

    def new_order(self, program: str, *, time_limit_s: int = 60, env: dict[str, str] | None = None) -> AttemptOrder:
        """Return the order of a fresh job's first attempt that runs `program`."""
        job: Job = self.world.jobs.find(self.world.queued(self.company, self.algorithm))
        assert job.id in {claimed.id for claimed in self.world.claim()}
        self.world.jobs.transition(job.id, JobEvent.PLACED, attempt=1, node="here")
        self.world.jobs.transition(job.id, JobEvent.STARTED, attempt=1)
        row = self.core.jobs.jobs.row(job.id)
        from datetime import timedelta

        who = AttemptIdentity(self.company, row.task_number, job.id, 1)
        return AttemptOrder(
            platform=self.core.keys.platform,
            job_id=job.id,
            attempt=1,
            task_number=row.task_number,
            scan_number=row.scan_number,
            label=f"job {job.id}",
            image=ImageRef("localhost", "hostile", "sha256:" + "0" * 64),
            pull=RegistryCredential("puller", "canary-pull-password"),
            instance_type="g4dn.xlarge",
            time_limit_s=time_limit_s,
            env={"PROGRAM": PRELUDE + textwrap.dedent(program), "PYTHONHOME": "/usr/local", **(env or {})},
            secrets=tuple((env or {}).values()),
            host=HOST,
            jwt_token=self.core.tokens.for_attempt(who, timedelta(hours=1)),
            slide=self._slide,
            slide_name="slide.tiff",
            gateway_url=self.endpoints.api_url,
        )

    def run(self, program: str, **options: Any) -> Ended:
        """Run `program` as a job's container to its end; the node must then be as it was before."""
        return self.run_order(self.new_order(program, **options))

    def run_order(self, order: AttemptOrder) -> Ended:
        begun = time.monotonic()
        runner = AttemptRunner(order, self.node, gpus=(), on_started=lambda: None, echo=self.echoed.append)
        outcome = runner.run()
        took = time.monotonic() - begun
        log = [line.text for line in read_log(self.core.blobs, order.job_id, 1)]
        failure = outcome.failure
        if outcome.exit is not None:
            has_results, rejection = Results(self.core.db).standing(order.job_id)
            failure = judge(
                exit_code=outcome.exit.exit_code, oom_killed=outcome.exit.oom_killed,
                timed_out=outcome.exit.timed_out, has_results=has_results, rejection=rejection,
                log_tail=outcome.exit.log_tail, instance_type=order.instance_type, memory_limit_bytes=MEMORY,
                memory_peak_bytes=outcome.resources.get("memory_peak_bytes"), time_limit_s=order.time_limit_s,
            )  # fmt: skip
        self.end(order, failure)
        self.nothing_is_left()
        return Ended(order, outcome, failure, log, took)

    def end(self, order: AttemptOrder, failure: Failure | None) -> None:
        """Close the job's books, as the dispatcher does."""
        with contextlib.suppress(NotFoundError):
            self.world.jobs.transition(order.job_id, JobEvent.EXITED, attempt=1)
            event = JobEvent.SUCCEEDED if failure is None else JobEvent.FAILED
            self.world.jobs.transition(order.job_id, event, attempt=1, failure=failure)

    def nothing_is_left(self) -> None:
        """No container, folder, mount or process of any attempt."""
        left = self.engine.containers(f"{labels.PLATFORM}={self.core.keys.platform}")
        assert not left, [c.name for c in left]
        for name in ("sandboxes", "work"):
            folder = self.node.folder / name
            assert not folder.exists() or not list(folder.iterdir())
        assert not mounts_below(self.node.folder)

    def is_healthy(self) -> None:
        """An honest job still works."""
        ended = self.run("say('answer', post()); sys.exit(0)")
        assert ended.code is None, (ended.failure, ended.log)
        assert ended.said("answer") == ["201"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def peak_rss() -> int:
    """Return the most memory that this process has ever held, bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def reset_peak() -> None:
    """Forget the peak so far."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
