"""A stand for trying containers: database, results gateway, dispatcher and node of this machine, for one process.

Everything that decides is the platform's own: admission, sandbox, environment, limits, gateway, verdict. What is left
out is what spreads work over machines: Ray, Serve, the registry, retries.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import unquote, urlsplit

from mhs_ray.attempt.logbook import LogLine
from mhs_ray.attempt.runner import AttemptRunner, Node
from mhs_ray.dispatch.dispatcher import AttemptKey, Dispatcher
from mhs_ray.domain.env import EnvVar
from mhs_ray.domain.errors import Fault, InvalidInputError
from mhs_ray.domain.models import Job, Principal, Provider, Role, ScanStatus
from mhs_ray.domain.sections import BlobSettings, ClusterSettings, SecretSettings, TechcyteSettings
from mhs_ray.domain.settings import Settings
from mhs_ray.engines import labels
from mhs_ray.engines.pause import ensure_pause_image
from mhs_ray.engines.reaper import reap
from mhs_ray.local.here import HereEngine, HereRegistry
from mhs_ray.local.serve import bind_loopback, gateway
from mhs_ray.platform.endpoints import Endpoints
from mhs_ray.platform.keys import load_keys
from mhs_ray.ports import Admission, ContainerEngine
from mhs_ray.registry.admission import AdmissionLimits
from mhs_ray.registry.scanner import Scanner
from mhs_ray.sandbox.audit.gate import Gate
from mhs_ray.sandbox.routes import direct_routes
from mhs_ray.sandbox.scratch import remove_folder
from mhs_ray.services.core import Core, build_core
from mhs_ray.services.gateway import GatewayService
from mhs_ray.services.images import ImageService
from mhs_ray.services.policy import url_policy
from mhs_ray.slides.cache import CacheLimits, SlideCache, SlideSource
from mhs_ray.slides.fetch import FetchLimits
from mhs_ray.slides.flock import try_lock
from mhs_ray.store.sql.results import Poster, StoredResult
from mhs_ray.store.sql.tasks import RequestedScan, Submission

_NOWHERE: Final = "http://127.0.0.1:1"
_WHO: Final = "this machine"


@dataclass(frozen=True, slots=True)
class Trial:
    """One container on one slide. image: tag or id. slide: a path or an http(s) URL. gpus: device ids.

    task_number, scan_number: as the container is told them; None: of our own. time_limit_s None: the longest.
    """

    image: str
    slide: str
    env: Sequence[EnvVar] = field(default=(), repr=False)
    instance_type: str = "g4dn.xlarge"
    gpus: Sequence[str] = ()
    host: str | None = None
    time_limit_s: int | None = None
    task_number: int | None = None
    scan_number: int | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """How a trial ended. faults: of the newest request that the gateway refused, all of them. posts: how often the
    container posted results that were good."""

    job: Job
    image: Admission
    result: StoredResult | None
    faults: tuple[Fault, ...]
    posts: int
    log: tuple[LogLine, ...]
    slide: SlideSource


class _ListeningGateway(GatewayService):
    """The gateway, which remembers what it refused: the job's row keeps only the first faults."""

    faults: tuple[Fault, ...] = ()
    posts = 0

    def post(self, poster: Poster, body: bytes) -> int:
        """See `GatewayService.post`."""
        try:
            stored = super().post(poster, body)
        except InvalidInputError as error:
            self.faults = error.faults
            raise
        self.posts += 1
        return stored


class _OneNode:
    """The `Cluster` of a single node that is free."""

    def __init__(self) -> None:
        self.launched: list[AttemptKey] = []

    def offers(self, instance_type: str) -> bool:
        return True

    def launch(self, key: AttemptKey, label: str, instance_type: str, prefer: str | None = None) -> None:
        self.launched.append(key)

    def stop(self, key: AttemptKey) -> None:
        pass

    def forget(self, key: AttemptKey) -> None:
        pass

    def attempts(self) -> Collection[AttemptKey]:
        return self.launched


class Stand:
    """A context manager; it may run any number of trials, one at a time.

    say: told what is done. echo: told each line of a container's log as it comes.
    Raises EngineError, SandboxError or ConflictError where this machine cannot do it.
    """

    def __init__(
        self,
        settings: Settings,
        engine: ContainerEngine,
        *,
        say: Callable[[str], None] = lambda _text: None,
        echo: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self._given, self._engine, self._say, self._echo = settings, engine, say, echo
        self._kept = settings.home / "local"
        self._undo = ExitStack()
        self._admitted: dict[str, tuple[int, Admission]] = {}
        self._scans: dict[tuple[str, int | None], int] = {}

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self._open(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._undo.close()

    def _open(self, undo: ExitStack) -> None:
        runs = self._kept / "runs"
        runs.mkdir(parents=True, exist_ok=True, mode=0o711)
        for folder in (self._kept, runs):
            folder.chmod(0o711)  # a runtime in a user namespace passes through
        self._sweep(runs)
        home = Path(tempfile.mkdtemp(dir=runs))
        home.chmod(0o711)
        undo.callback(remove_folder, home)
        undo.enter_context(try_lock(home / "owner"))
        given = self._given
        settings = given.model_copy(
            update={
                "home": home,
                "database_url": None,
                "secrets": SecretSettings(),
                "blobs": BlobSettings(quota=given.blobs.quota, min_free=given.blobs.min_free),
                "cluster": ClusterSettings(),
                "techcyte": TechcyteSettings(),
                "jobs": given.jobs.model_copy(update={"max_platform_attempts": 1}),
            }
        )
        bound = bind_loopback()
        address = "http://{}:{}".format(*bound.getsockname())
        endpoints = Endpoints(address, _NOWHERE, _NOWHERE.partition("//")[2], _NOWHERE, _NOWHERE)
        core = build_core(settings, endpoints)
        undo.callback(core.db.close)
        scanner = Scanner(settings.registry.scanner) if settings.registry.scanner else None
        limits = AdmissionLimits(compressed=settings.registry.max_image)
        self.registry = HereRegistry(self._engine, self._kept / "admitted", limits, scanner)
        self._gateway = _ListeningGateway(core.jobs.results, core.blobs)
        images = ImageService(core.images.images, self.registry, settings.registry.credential_life)
        self.core: Core = replace(core, registry=self.registry, images=images, gateway=self._gateway)
        undo.callback(reap, self._engine, f"{labels.PLATFORM}={core.keys.platform}", lambda _container: False)
        undo.enter_context(gateway(self.core, bound))
        self._node = self._make_node(settings, endpoints)
        self._cluster = _OneNode()
        self._dispatcher = Dispatcher(self.core, self._cluster)
        company = core.clients.ensure_company("local")
        self._who = Principal(company, _WHO, Role.LAB_ADMIN, core.keys.client_id)

    def _make_node(self, settings: Settings, endpoints: Endpoints) -> Node:
        limits = FetchLimits(
            max_bytes=settings.slides.max_slide, deadline_s=settings.jobs.prepare_limit.total_seconds()
        )
        self.slides = SlideCache(
            self._kept / "slides",
            limits=CacheLimits(max_bytes=settings.slides.cache),
            fetch_limits=limits,
            policy=url_policy(settings, endpoints),
        )
        gate = Gate(self._engine, allow_weak=settings.sandbox.allow_weak, runtime=settings.sandbox.runtime)
        folder = settings.node_dir
        folder.mkdir(mode=0o711)
        return Node(
            name=_WHO,
            engine=HereEngine(self._engine),
            cache=self.slides,
            blobs=self.core.blobs,
            folder=folder,
            pause_image=ensure_pause_image(self._engine),
            jobs=settings.jobs,
            runtime=settings.sandbox.runtime,
            direct=direct_routes(settings.sandbox.direct_hosts),
            max_results_bytes=settings.api.max_results_body,
            gate=gate,
        )

    def _sweep(self, runs: Path) -> None:
        """Remove what a stand left whose process was killed."""
        for folder in runs.iterdir():
            with try_lock(folder / "owner", create=False) as dead:
                if dead:
                    platform = load_keys(folder / "keys").platform
                    reap(self._engine, f"{labels.PLATFORM}={platform}", lambda _container: False)
                    remove_folder(folder)

    def admit(self, image: str) -> Admission:
        """Check an image as after a push. Raises AdmissionError with how to mend it, NotFoundError."""
        return self._take_in(image)[1]

    def _take_in(self, image: str) -> tuple[int, Admission]:
        digest = self.registry.find(image)
        if digest not in self._admitted:
            admission = self.registry.admit(0, digest)
            images = self.core.images.images
            made = self.core.images.create(self._who, f"{image[-150:]} {len(self._admitted)}")
            images.begin_check(made.id, digest)
            ref = self.registry.promote(made.id, digest, 1)
            images.uploaded(made.id, digest, ref, admission.size_bytes, admission.details)
            self._admitted[digest] = (made.id, admission)
        return self._admitted[digest]

    def run(self, trial: Trial) -> Ended:
        """Run a container on a slide to its end, whatever that is.

        Raises AdmissionError for the image, InvalidInputError for what is wrong with the trial itself.
        """
        image_id, admission = self._take_in(trial.image)
        core, who = self.core, self._who
        container = core.containers.create(
            who,
            image_id=image_id,
            instance_type=trial.instance_type,
            name=trial.image[-150:],
            env=trial.env,
            time_limit_s=trial.time_limit_s,
        )
        algorithm = core.algorithms.create(who, f"trial {container.id}", Provider.MHS, container.id)
        scan_id = self._add_slide(trial)
        submission = Submission(
            company_id=who.company_id,
            by=who.name,
            origin="local",
            host=trial.host or self._given.host,
            scans=(RequestedScan(id=scan_id, path="$.scan"),),
            algorithm_id=algorithm.id,
            number=trial.task_number,
        )
        [job_id] = core.tasks.submit(submission).job_ids
        self._gateway.faults, self._gateway.posts = (), 0
        self._run(trial)
        return Ended(
            job=core.jobs.jobs.get(who.company_id, job_id),
            image=admission,
            result=core.jobs.results.of_job(who.company_id, job_id),
            faults=self._gateway.faults,
            posts=self._gateway.posts,
            log=tuple(core.jobs.log(who, job_id, None)),
            slide=SlideSource(*core.scans.sources(scan_id)),
        )

    def _add_slide(self, trial: Trial) -> int:
        known = self._scans.get((trial.slide, trial.scan_number))
        if known is not None:
            return known
        # Not looked at here: what is wrong with it the attempt finds, as with a slide that Techcyte names.
        source = slide_source(trial.slide)
        is_path = source.urls[0].startswith("file:")
        path = Path(trial.slide).resolve() if is_path else Path(unquote(urlsplit(trial.slide).path))
        location: dict[str, Any] = {"path": str(path)} if is_path else {"urls": list(source.urls)}
        made = self.core.scans.scans.create(
            self._who.company_id, self._who.name, name=path.name or "slide",
            source="path" if is_path else "url", location=location, status=ScanStatus.READY, number=trial.scan_number,
        )  # fmt: skip
        self._scans[trial.slide, trial.scan_number] = made.id
        return made.id

    def slide_hashes(self, slide: str) -> tuple[str, ...]:
        """Return the SHA-256 of a slide's files as they came, in order. Raises SlideError."""
        with self.slides.get(slide_source(slide)) as cached:
            return cached.sha256

    def _run(self, trial: Trial) -> None:
        self._dispatcher.dispatch()
        key = self._cluster.launched.pop()
        order = self._dispatcher.order(key, self._node.name)
        assert order is not None  # nobody else could have cancelled it
        runner = AttemptRunner(
            order,
            self._node,
            gpus=trial.gpus,
            on_started=lambda: self._dispatcher.started(key),
            echo=self._echo,
        )
        self._dispatcher.settle(key, runner.run())

    def debug_file(self, ended: Ended) -> bytes | None:
        """Return the zip that the container put to DEBUG_FILE_UPLOAD_URL."""
        key = f"jobs/{ended.job.id}/attempts/{ended.job.attempt}/debug"
        if self.core.blobs.stat(key) is None:
            return None
        with self.core.blobs.open(key) as stored:
            return stored.read()

    def features(self, ended: Ended) -> Mapping[str, Any] | None:
        """Return the FeatureCollection as it was posted."""
        stored = self.core.jobs.geojson(ended.result) if ended.result is not None else None
        if stored is None:
            return None
        with stored:
            found: Mapping[str, Any] = json.loads(stored.read())
        return found


def slide_source(slide: str) -> SlideSource:
    """Return where the bytes of a path or an http(s) URL are."""
    if urlsplit(slide).scheme in ("http", "https"):
        return SlideSource((slide,))
    return SlideSource.of_path(Path(slide).resolve())
