"""Run once at ``mhs up``: starts the dispatcher, the registrar and the Serve application on the running Ray."""

from __future__ import annotations

import sys
from urllib.parse import urlsplit

import ray
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation

from mhs_ray.actors.dispatcher import start_dispatcher
from mhs_ray.actors.names import NAMESPACE
from mhs_ray.actors.registrar import start_registrar
from mhs_ray.domain.settings import load_settings
from mhs_ray.platform.endpoints import Endpoints
from mhs_ray.platform.secrets import keys_of
from mhs_ray.services.core import open_database


def main() -> int:
    """Deploy and return; everything started is detached."""
    import importlib

    settings = load_settings()
    endpoints = Endpoints.of(settings)
    open_database(settings, keys_of(settings)).close()
    ray.init(endpoints.ray_address, namespace=NAMESPACE, log_to_driver=False)
    start_dispatcher()
    start_registrar()
    url = urlsplit(endpoints.api_url)
    serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        http_options=HTTPOptions(host=url.hostname or "127.0.0.1", port=url.port or 80, request_timeout_s=None),
    )
    build = importlib.import_module("api.app").build  # by name: mhs_ray stands below api
    serve.run(
        build({"num_replicas": settings.api.replicas, "ray_actor_options": {"num_cpus": 0}}),
        name="mhs",
        route_prefix="/",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
