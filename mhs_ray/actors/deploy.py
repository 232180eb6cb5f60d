"""Starts the dispatcher, the registrar and the Serve application on the running Ray: `mhs up` runs it once.

``--upgrade`` (`mhs upgrade`) puts those of this version in the place of running ones. Attempts that run go on: they
call nobody, and the new dispatcher takes over from the rows and from their actors' names.
``--undo`` takes them off it again: how ``mhs down`` leaves a cluster that goes on without us.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from typing import Any, Final
from urllib.parse import urlsplit

import ray
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mhs_ray.actors.cluster import RayCluster, nodes
from mhs_ray.actors.dispatcher import start_dispatcher
from mhs_ray.actors.kit import publish_kit
from mhs_ray.actors.names import DISPATCHER, NAMESPACE, ON_HEAD, REGISTRAR, retire
from mhs_ray.actors.registrar import start_registrar
from mhs_ray.actors.warm import end_idle_workers
from mhs_ray.domain.errors import ConflictError
from mhs_ray.domain.settings import Settings, load_settings
from mhs_ray.platform.endpoints import Endpoints
from mhs_ray.platform.secrets import keys_of
from mhs_ray.services.core import open_database

_APPLICATION: Final = "mhs"


def main() -> int:
    """Deploy and return; everything started is detached."""
    settings = load_settings()
    endpoints = Endpoints.of(settings)
    ray.init(endpoints.ray_address, namespace=NAMESPACE, log_to_driver=False)
    if "--undo" in sys.argv[1:]:
        _undo(settings)
    else:
        _deploy(settings, endpoints, upgrade="--upgrade" in sys.argv[1:])
    return 0


def _deploy(settings: Settings, endpoints: Endpoints, *, upgrade: bool) -> None:
    import importlib

    if settings.cluster.ray_address is not None:
        _same_on_head(settings)
    open_database(settings, keys_of(settings)).close()
    publish_kit(settings, endpoints)
    if upgrade:
        retire(DISPATCHER)  # from here on no attempt is about to be given one of the workers that are ended next
        _forget_old_code()
    start_dispatcher()
    if upgrade:
        retire(REGISTRAR)
    start_registrar()
    url = urlsplit(endpoints.api_url)
    serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        http_options=HTTPOptions(host=url.hostname or "127.0.0.1", port=url.port or 80, request_timeout_s=None),
    )
    build = importlib.import_module("api.app").build  # by name: mhs_ray stands below api
    # On the head: nodes have no database, and a replica on one would keep it from ever being idle.
    options = {"num_cpus": 0, "resources": ON_HEAD}
    serve.run(
        build({"num_replicas": settings.api.replicas, "ray_actor_options": options}),
        name=_APPLICATION,
        route_prefix="/",
    )


def _forget_old_code() -> None:
    """Have every node start new workers: those that wait for work were started with what was installed then."""
    here = (NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes() if node["Alive"])
    ends = [_end_idle_workers.options(scheduling_strategy=node).remote() for node in here]
    try:
        ray.get(ends, timeout=60)
    except ray.exceptions.RayError as error:  # a node that is gone has none; one that is slow takes one old worker more
        print(f"idle workers could not be ended everywhere: {type(error).__name__}", file=sys.stderr)  # noqa: T201


@ray.remote(num_cpus=0, max_retries=0)
def _end_idle_workers() -> int:
    return end_idle_workers()


def _undo(settings: Settings) -> None:
    """End our actors, the attempts with their containers; queued jobs wait for the next `mhs up`."""
    serve.delete(_APPLICATION)
    for name in (DISPATCHER, REGISTRAR):
        with contextlib.suppress(ValueError):
            ray.kill(ray.get_actor(name, NAMESPACE))
    RayCluster(settings.cluster, lambda _key, _actor: None).end_all(settings.jobs.stop_grace.total_seconds() + 20)


def _same_on_head(settings: Settings) -> None:
    """Raise ConflictError unless the head's Ray was started with our settings: its actors read them there."""
    theirs: dict[str, str] = ray.get(_facts_on_head.remote(), timeout=60)
    ours = _facts(settings)
    different = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if different:
        names = ", ".join(f"MHS_{name.upper()}" for name in different)
        raise ConflictError(f"the head's Ray was started with other settings ({names}): export them before `ray start`")


def _facts(settings: Settings) -> dict[str, str]:
    """Return a fingerprint of each setting and section: some are secrets."""
    values: dict[str, Any] = {**settings.model_dump(mode="json"), "database_url": settings.sql_url}
    return {name: hashlib.sha256(repr(value).encode()).hexdigest() for name, value in values.items()}


@ray.remote(num_cpus=0, resources=ON_HEAD, max_retries=0)
def _facts_on_head() -> dict[str, str]:
    return _facts(load_settings())


if __name__ == "__main__":
    sys.exit(main())
