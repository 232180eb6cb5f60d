"""What the node that this process runs on brings, opened once per process; and its sweeping."""

from __future__ import annotations

import functools
import logging
import socket
import threading
from collections.abc import Callable, Collection

from mhs_ray.actors.kit import fetch_kit, wait_for_ray
from mhs_ray.attempt.runner import Node
from mhs_ray.attempt.warm_order import FOLDER, live_hosts
from mhs_ray.domain.settings import load_settings
from mhs_ray.engines import labels
from mhs_ray.engines.pause import ensure_pause_image
from mhs_ray.engines.reaper import reap
from mhs_ray.engines.select import pick_engine
from mhs_ray.platform.endpoints import Endpoints
from mhs_ray.platform.secrets import keys_of
from mhs_ray.sandbox.audit.gate import Gate
from mhs_ray.sandbox.routes import direct_routes
from mhs_ray.sandbox.scratch import remove_folder
from mhs_ray.services.policy import open_blobs, url_policy
from mhs_ray.slides.cache import CacheLimits, SlideCache
from mhs_ray.slides.fetch import FetchLimits

log = logging.getLogger(__name__)


_opening = threading.Lock()


def open_node() -> Node:
    """Return this node: its engine, slide cache and folders. Opened once per process."""
    with _opening:
        return _open_node()


def open_quietly() -> None:
    """Open the node and try its sandbox ahead of time; who needs it will hear what is wrong with it."""
    try:
        if not Endpoints.are_here(load_settings().home):
            wait_for_ray()
        open_node().gate()
    except Exception as error:
        log.debug("not opened ahead of time: %s", error)


@functools.cache
def _open_node() -> Node:
    settings, keys = load_settings(), None
    if Endpoints.are_here(settings.home):
        endpoints, keys = Endpoints.load(settings.home), keys_of(settings)
    else:
        if settings.api.internal_url is None:  # the head tells; else the node's own settings do
            settings, endpoints = fetch_kit(settings)
        else:
            endpoints = Endpoints.of(settings)
        settings.home.mkdir(parents=True, exist_ok=True)
    folder = settings.node_dir
    folder.mkdir(parents=True, exist_ok=True)
    if keys is None:  # nobody's `mhs up` made them; containers must get through
        settings.home.chmod(0o711)
        folder.chmod(0o711)
    engine = pick_engine(settings.engine, docker_host=settings.docker_host, folder=folder / "engine")
    cache = SlideCache(
        folder / "slides",
        limits=CacheLimits(max_bytes=settings.slides.cache),
        fetch_limits=FetchLimits(
            max_bytes=settings.slides.max_slide, deadline_s=settings.jobs.prepare_limit.total_seconds()
        ),
        policy=url_policy(settings, endpoints),
    )
    return Node(
        name=socket.gethostname(),
        engine=engine,
        cache=cache,
        blobs=open_blobs(settings, endpoints, keys),
        folder=folder,
        pause_image=ensure_pause_image(engine),
        jobs=settings.jobs,
        runtime=settings.sandbox.runtime,
        direct=direct_routes(settings.sandbox.direct_hosts),
        max_results_bytes=settings.api.max_results_body,
        images=settings.images,
        gate=Gate(engine, allow_weak=settings.sandbox.allow_weak, runtime=settings.sandbox.runtime),
    )


def sweep_node(platform: str, alive: Callable[[], Collection[tuple[int, int]]]) -> list[str]:
    """Remove containers and folders of attempts that nobody owns; returns what was removed.

    alive: asked only after what is here was listed, so that an attempt that begins meanwhile is safe.
    """
    node = open_node()
    parents = [node.folder / name for name in ("sandboxes", "work", FOLDER)]
    folders = [f for parent in parents if parent.is_dir() for f in parent.iterdir()]

    @functools.cache
    def owned() -> frozenset[str]:
        return frozenset((*(f"mhs-{platform}-{job}-{attempt}" for job, attempt in alive()), *live_hosts(node.folder)))

    removed = reap(node.engine, f"{labels.PLATFORM}={platform}", keep=lambda c: c.name.removesuffix("-net") in owned())
    for folder in folders:
        if folder.name not in owned():
            remove_folder(folder)
            removed.append(folder.name)
    if removed:
        log.warning("removed what nobody owned: %s", ", ".join(removed))
    return removed
